"""Computes the coefficients of kernels/vector_functions.py, and writes kernels/coefficients.py.

``python -m tapegrad.kernels.fit_polynomials`` needs mpmath. Each polynomial is the minimax one for
its weight (Remez's exchange, in 50 digits), of the lowest degree whose error is below the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath as mp

OUTPUT = Path(__file__).parent / "coefficients.py"
# Of the last place, which is 2**-53 or 2**-24 of a number just below 1, a twentieth or less.
PRECISIONS = {"": 2.0**-57.8, "32": 2.0**-28.2}

Function = Callable[[Any], Any]


@dataclass(frozen=True)
class Fit:
    """A polynomial p near `function` on [low, high], |p - function| * weight below a small number.

    That number is one of `PRECISIONS`, to the power `power`.
    """

    name: str
    function: Function
    low: float
    high: float
    weight: Function
    doc: str
    power: float = 1.0


def evaluate(coefficients: Sequence[Any], x: Any) -> Any:
    """Return the polynomial at x, by Horner's rule."""
    total = mp.mpf(0)
    for c in reversed(coefficients):
        total = total * x + c
    return total


def remez(function: Function, low: Any, high: Any, degree: int, weight: Function) -> Any:
    """Return the coefficients of the weighted minimax polynomial, and its greatest error."""
    count = degree + 2
    low, high = mp.mpf(low), mp.mpf(high)
    points = [
        (low + high - (high - low) * mp.cos(mp.pi * (i + mp.mpf("0.5")) / count)) / 2
        for i in range(count)
    ]
    grid = [
        (low + high - (high - low) * mp.cos(mp.pi * i / (12 * count))) / 2
        for i in range(12 * count + 1)
    ]
    table = [(x, function(x), weight(x)) for x in grid]
    coefficients: list[Any] = []
    for _ in range(30):
        rows = [
            [x**j for j in range(degree + 1)] + [(-1) ** i / max(weight(x), mp.mpf(10) ** -30)]
            for i, x in enumerate(points)
        ]
        solution = mp.lu_solve(mp.matrix(rows), mp.matrix([function(x) for x in points]))
        coefficients = list(solution)[:-1]
        errors = [(evaluate(coefficients, x) - f) * w for x, f, w in table]
        points = _extrema(grid, errors, count)
        worst = max(abs(e) for e in errors)
        if worst <= abs(solution[degree + 1]) * mp.mpf("1.02"):
            break
    return coefficients, worst


def _extrema(grid: list[Any], errors: list[Any], count: int) -> list[Any]:
    """Return `count` neighbouring points where the error is extreme, with alternating signs."""
    found: list[int] = []
    for i, error in enumerate(errors):
        if found and (errors[found[-1]] > 0) == (error > 0):
            if abs(error) > abs(errors[found[-1]]):
                found[-1] = i
        else:
            found.append(i)
    if len(found) < count:
        raise ArithmeticError("the error changes sign too seldom; the precision is too low")
    start = max(
        range(len(found) - count + 1),
        key=lambda s: min(abs(errors[i]) for i in found[s : s + count]),
    )
    return [grid[i] for i in found[start : start + count]]


def fit(wanted: Fit, target: float) -> tuple[list[float], float]:
    """Return the coefficients of the lowest degree that reaches the target, and their error."""
    for degree in range(32):
        coefficients, error = remez(wanted.function, wanted.low, wanted.high, degree, wanted.weight)
        if error < target:
            return [float(c) for c in coefficients], float(error)
    raise ArithmeticError(f"{wanted.name}: no polynomial up to degree 31 reaches the target")


def head(value: Any, bits: int) -> float:
    """Return the number cut to this many significant bits: its products with integers are exact."""
    mantissa, exponent = mp.frexp(value)
    return float(mp.ldexp(mp.floor(mp.ldexp(mantissa, bits)), exponent - bits))


def parts(value: Any, *widths: int) -> tuple[float, ...]:
    """Return numbers of at most these many bits, and a last one, whose sum is the value."""
    found = []
    for bits in widths:
        found.append(head(value, bits))
        value = value - found[-1]
    return (*found, float(value))


def off_zero(function: Function) -> Function:
    """Return the function, which at 0 would divide 0 by 0, with its argument kept off 0."""
    return lambda x: function(x if abs(x) > mp.mpf(10) ** -20 else mp.mpf(10) ** -20)


def _log_series(z: Any) -> Any:
    """Return R(z) in log((1 + s) / (1 - s)) = 2 s + s R(s**2)."""
    s = mp.sqrt(z)
    return (mp.log((1 + s) / (1 - s)) - 2 * s) / s


def _erfc_scaled(t: Any) -> Any:
    """Return (1 + 2 x) exp(x**2) erfc(x) where t = (x - ERFC_CENTRE) / (x + ERFC_CENTRE)."""
    x = ERFC_CENTRE * (1 + t) / (1 - t)
    return (1 + 2 * x) * mp.exp(x * x) * mp.erfc(x)


ERFC_CENTRE = 3.75
HALF_LN2 = 0.3467
ROOT_HALF = 0.0295  # s**2 where (1 + s) / (1 - s) is the root of 2.

FITS = (
    Fit(
        "EXP_FIT",
        off_zero(lambda r: (mp.exp(r) - 1 - r) / r**2),
        *(-HALF_LN2, 0.34669),
        lambda r: r**2 / mp.exp(r),
        "exp(r) = 1 + r + r**2 EXP_FIT(r)",
    ),
    Fit(
        "EXP2_FIT",
        off_zero(lambda r: (mp.mpf(2) ** r - 1 - r * mp.log(2)) / r**2),
        *(-0.5001, 0.50009),
        lambda r: r**2 / mp.mpf(2) ** r,
        "2**r = 1 + r log(2) + r**2 EXP2_FIT(r)",
    ),
    Fit(
        "COSH_FIT",
        off_zero(lambda z: (mp.cosh(mp.sqrt(z)) - 1 - z / 2) / z**2),
        *(0.0, HALF_LN2**2),
        lambda z: z**2,
        "cosh(r) = 1 + z / 2 + z**2 COSH_FIT(z), z = r**2",
    ),
    Fit(
        "SINH_FIT",
        off_zero(lambda z: (mp.sinh(mp.sqrt(z)) / mp.sqrt(z) - 1) / z),
        *(0.0, HALF_LN2**2),
        lambda z: z,
        "sinh(r) = r + r z SINH_FIT(z), z = r**2",
    ),
    Fit(
        "LOG_FIT",
        off_zero(lambda z: _log_series(z) / z),
        *(0.0, ROOT_HALF),
        lambda z: z / 2,
        "log((1 + s) / (1 - s)) = 2 s + s z LOG_FIT(z), z = s**2",
    ),
    Fit(
        "LOG_UNIT_FIT",
        off_zero(lambda z: _log_series(z) / z),
        *(0.0, 0.1112),
        lambda z: z / 2,
        "the same up to z = 1/9, where the ratio is 2",
    ),
    Fit(
        "LOG_FINE_FIT",
        off_zero(lambda z: (_log_series(z) / z - mp.mpf(2) / 3) / z),
        *(0.0, ROOT_HALF),
        lambda z: z**2 / 2,
        "log((1 + s) / (1 - s)) = 2 s + s z (2/3 + z LOG_FINE_FIT(z)), z = s**2",
        7 / 6,
    ),
    Fit(
        "SIN_FIT",
        off_zero(lambda z: (mp.sin(mp.sqrt(z)) / mp.sqrt(z) - 1) / z),
        *(0.0, 0.617),
        lambda z: z,
        "sin(r) = r + r z SIN_FIT(z), z = r**2",
    ),
    Fit(
        "SIN_WIDE_FIT",
        off_zero(lambda z: (mp.sin(mp.sqrt(z)) / mp.sqrt(z) - 1) / z),
        *(0.0, 2.468),
        lambda z: z,
        "the same up to z = (pi / 2)**2",
    ),
    Fit(
        "COS_FIT",
        off_zero(lambda z: (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2),
        *(0.0, 0.617),
        lambda z: z**2,
        "cos(r) = 1 - z / 2 + z**2 COS_FIT(z), z = r**2",
    ),
    Fit(
        "ATAN_FIT",
        off_zero(lambda z: (mp.atan(mp.sqrt(z)) / mp.sqrt(z) - 1) / z),
        *(0.0, 0.1716),
        lambda z: z,
        "atan(t) = t + t z ATAN_FIT(z), z = t**2",
    ),
    Fit(
        "ASIN_FIT",
        off_zero(lambda z: (mp.asin(mp.sqrt(z)) / mp.sqrt(z) - 1) / z),
        *(0.0, 0.25),
        lambda z: z,
        "asin(x) = x + x z ASIN_FIT(z), z = x**2",
    ),
    Fit(
        "ERF_FIT",
        off_zero(lambda z: mp.erf(mp.sqrt(z)) / mp.sqrt(z) - 1),
        *(0.0, 1.0),
        lambda z: 1,
        "erf(x) = x + x ERF_FIT(z), z = x**2",
    ),
    Fit(
        "LOG_ERFC_FIT",
        lambda x: mp.log(mp.erfc(x)),
        *(1.0, 6.0),
        lambda x: mp.erfc(x),
        "log(erfc(x)) = LOG_ERFC_FIT(x) for 1 <= x <= 6",
        57 / 58,  # It adds to something larger.
    ),
    Fit(
        "ERFC_FIT",
        off_zero(lambda t: (_erfc_scaled(t) - _erfc_scaled(0)) / t),
        *(-1.0, 0.761),
        lambda t: abs(t),
        "(1 + 2 x) exp(x**2) erfc(x) = ERFC_MIDDLE + t ERFC_FIT(t), t of `verfc`",
    ),
    Fit(
        "CBRT_FIT",
        lambda m: mp.cbrt(m),
        *(1.0, 2.0),
        lambda m: 1,
        "cbrt(m) for 1 <= m <= 2, to be refined",
        1 / 3,
    ),
)


# Numbers in several parts, whose widths in bits are given for float64 and for float32: products of
# the first ones with small integers, or with numbers as short, are exact.
PARTS = (
    ("LN2_PARTS", lambda: mp.log(2), (40,), (16,)),
    ("LOG2E_PARTS", lambda: 1 / mp.log(2), (26,), (12,)),
    ("LOG2E_PAIR", lambda: 1 / mp.log(2), (53,), (24,)),
    ("LOG10E_PARTS", lambda: 1 / mp.log(10), (26,), (12,)),
    ("LOG10_2_PARTS", lambda: mp.log10(2), (40,), (16,)),
    ("HALF_PI_PARTS", lambda: mp.pi / 2, (33, 53), (13, 24)),
    ("HALF_PI_PAIR", lambda: mp.pi / 2, (53,), (24,)),
    ("ERFC_MIDDLE", lambda: _erfc_scaled(0), (53,), (24,)),
    ("TWO_THIRDS", lambda: mp.mpf(2) / 3, (53,), (24,)),
)


def _tuple(name: str, values: Iterable[float]) -> list[str]:
    return [f"{name} = (", *(f"    {value!r}," for value in values), ")"]


def text() -> str:
    """Return the text of the module of coefficients."""
    mp.mp.dps = 70
    lines = [
        '"""Coefficients of kernels/vector_*.py: NAME for float64, and NAME32 for float32.',
        "",
        "Written by ``python -m tapegrad.kernels.fit_polynomials``; do not edit.",
        '"""',
        "",
        "# fmt: off",
    ]
    for name, value, *widths in PARTS:
        for suffix, width in zip(PRECISIONS, widths, strict=True):
            lines += _tuple(name + suffix, parts(value(), *width))
    for wanted in FITS:
        lines += ["", f"# {wanted.doc}."]
        for suffix, precision in PRECISIONS.items():
            coefficients, error = fit(wanted, precision**wanted.power)
            lines.append(f"# Error 2**{float(mp.log(error, 2)):.1f}.")
            lines += _tuple(wanted.name + suffix, coefficients)
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    OUTPUT.write_text(text(), encoding="utf-8", newline="\n")
