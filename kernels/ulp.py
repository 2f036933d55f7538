"""Measures the errors of the vector functions, in units in the last place, and their speed.

``python -m tapegrad.kernels.ulp`` writes docs/accuracy.md. It needs mpmath, and SciPy for what
NumPy lacks. The tests measure the same cases at fewer points.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath as mp
import numpy as np

from tapegrad.kernels.emit import library

Sampler = Callable[[np.random.Generator, int], Any]
VECTOR_BYTES = 128
PAGE = Path(__file__).parents[1] / "docs" / "accuracy.md"


# Where functions are measured -------------------------------------------------------------------


def between(low: float, high: float) -> Sampler:
    """Return numbers spread evenly."""
    return lambda random, n: random.uniform(low, high, n)


def sized(low: float, high: float, signed: bool = True) -> Sampler:
    """Return numbers from 2**low to 2**high, as many of each size, of both signs."""

    def sample(random: np.random.Generator, n: int) -> Any:
        x = np.exp2(random.uniform(low, high, n))
        return x * random.choice([-1.0, 1.0], n) if signed else x

    return sample


def near(*points: float) -> Sampler:
    """Return numbers around these, as many at each distance."""

    def sample(random: np.random.Generator, n: int) -> Any:
        return random.choice(points, n) + sized(-52, -2)(random, n)

    return sample


def any_number(random: np.random.Generator, n: int) -> Any:
    """Return floats of any bits."""
    return random.integers(0, 2**64, n, dtype=np.uint64).view(np.float64)


def quarter_turns(random: np.random.Generator, n: int) -> Any:
    """Return the floats next to multiples of pi / 2."""
    return (random.integers(-640000, 640000, n) * (np.longdouble(np.pi) / 2)).astype(np.float64)


def any_single(random: np.random.Generator, n: int) -> Any:
    """Return floats of any bits in single precision."""
    x = random.integers(0, 2**32, n, dtype=np.uint32).view(np.float32)
    return np.where(np.isnan(x), np.float32(0), x).astype(np.float64)


ALL = (sized(-1074, 1023), any_number, any_single)
SIGMOID = (between(-746, 746), between(-40, 40), between(-2, 2), *ALL)
ANGLES = (between(-1e6, 1e6), between(-7, 7), quarter_turns, sized(-30, 30), *ALL)
POSITIVE = (near(1), between(0.5, 2), sized(-1074, 1023, signed=False), any_number, any_single)
UNIT = (between(-1, 1), near(-1, -0.5, 0.5, 1), sized(-1074, 0))
SPECIALS = np.array([
    *(0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, np.inf, -np.inf, np.nan),
    *(5e-324, -5e-324, 2.2250738585072014e-308, -2.2250738585072014e-308, 1e-310),
    *(1.7976931348623157e308, -1.7976931348623157e308, 1e-17, -1e-17, 1e17, 1e6, -1e6),
])  # fmt: skip
with np.errstate(over="ignore", under="ignore"):
    SPECIALS32 = np.unique(SPECIALS.astype(np.float32))
SPECIALS32 = np.concatenate([SPECIALS32, np.float32([-0.0, 1e-45, -1e-45, 1e-40, 3e38, -3e38])])


def pairs(*samplers: Sampler) -> tuple[Sampler, ...]:
    """Return pairs of independent numbers, and of numbers of nearly the same size."""

    def alike(random: np.random.Generator, n: int) -> Any:
        x = samplers[0](random, n)
        with np.errstate(over="ignore"):
            return np.stack([x, x * sized(-60, 60)(random, n)])

    def close(random: np.random.Generator, n: int) -> Any:
        x = samplers[0](random, n)
        with np.errstate(over="ignore"):
            return np.stack([x, x * sized(-3, 3)(random, n)])

    def independent(s: Sampler) -> Sampler:
        return lambda random, n: np.stack([s(random, n), s(random, n)])

    return (*map(independent, samplers), alike, close)


def powers(random: np.random.Generator, n: int) -> Any:
    """Return bases and exponents whose powers are of every size."""
    x = np.where(random.random(n) < 0.5, *(s(random, n) for s in (sized(-1074, 1023), near(1))))
    x = np.abs(x)
    size = np.where(
        random.random(n) < 0.3, random.uniform(-3, 3, n), random.uniform(-1080, 1025, n)
    )
    with np.errstate(divide="ignore"):
        return np.stack([x, size / np.log2(x)])


def roots(random: np.random.Generator, n: int) -> Any:
    """Return pairs whose second number is positive."""
    return np.stack([sized(-10, 10)(random, n), np.abs(POSITIVE[1](random, n))])


# What is measured -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A function, its definition in mpmath, points, and the function of NumPy or SciPy."""

    name: str
    exact: Callable[..., Any]
    samplers: tuple[Sampler, ...]
    other: str
    timed: tuple[float, float] = (0.1, 0.9)
    arity: int = 1
    cancels: bool = False  # Whether it is the sum of its largest operand and something positive.


def _log1p_exp(x: Any) -> Any:
    return mp.log1p(mp.exp(x))


CASES = (
    Case("exp", mp.exp, SIGMOID, "exp"),
    Case("exp2", lambda x: mp.power(2, x), (between(-1080, 1030), *SIGMOID), "exp2"),
    Case("expm1", mp.expm1, SIGMOID, "expm1"),
    Case("log", mp.log, POSITIVE, "log"),
    Case("log2", lambda x: mp.log(x, 2), POSITIVE, "log2"),
    Case("log10", mp.log10, POSITIVE, "log10"),
    Case("log1p", mp.log1p, (near(-1), between(-1, 2), *ALL), "log1p"),
    Case("sinh", mp.sinh, SIGMOID, "sinh"),
    Case("cosh", mp.cosh, SIGMOID, "cosh"),
    Case("tanh", mp.tanh, SIGMOID, "tanh"),
    Case("arcsinh", mp.asinh, (between(-4, 4), *ALL), "arcsinh"),
    Case("arccosh", mp.acosh, (near(1), between(1, 4), *POSITIVE), "arccosh", (1.1, 3.0)),
    Case("arctanh", mp.atanh, UNIT, "arctanh"),
    Case("sin", mp.sin, ANGLES, "sin"),
    Case("cos", mp.cos, ANGLES, "cos"),
    Case("tan", mp.tan, ANGLES, "tan"),
    Case("arcsin", mp.asin, UNIT, "arcsin"),
    Case("arccos", mp.acos, UNIT, "arccos"),
    Case("arctan", mp.atan, (between(-4, 4), *ALL), "arctan"),
    Case("arctan2", mp.atan2, pairs(between(-4, 4), *ALL), "arctan2", arity=2),
    Case("cbrt", lambda x: mp.sign(x) * mp.cbrt(abs(x)), (between(-8, 8), *ALL), "cbrt"),
    Case("hypot", mp.hypot, pairs(between(-4, 4), *ALL), "hypot", arity=2),
    Case("power", mp.power, (powers,), "power", arity=2),
    Case("erf", mp.erf, (between(-6, 6), between(-1, 1), *ALL), "scipy.erf"),
    Case(
        "erfc",
        lambda x: mp.erfc(x) if x < 50 else mp.mpf(0),
        (between(-6, 27.3), between(-1, 3), *ALL),
        "scipy.erfc",
    ),
    Case("expit", lambda x: 1 / (1 + mp.exp(-x)), SIGMOID, "scipy.expit"),
    Case("logit", lambda x: mp.log(x / (1 - x)), (near(0.5, 1), *UNIT), "scipy.logit"),
    Case("log_expit", lambda x: -_log1p_exp(-x), SIGMOID, "scipy.log_expit"),
    Case("softplus", _log1p_exp, SIGMOID, "softplus"),
    Case("xlogy", lambda x, y: x * mp.log(y), (roots,), "scipy.xlogy", arity=2),
    Case("xlog1py", lambda x, y: x * mp.log1p(y), (roots,), "scipy.xlog1py", arity=2),
    *(
        Case(name, exact, pairs(between(-40, 40), between(-2, 2)), name, arity=2, cancels=True)
        for name, exact in (
            ("logaddexp", lambda x, y: max(x, y) + _log1p_exp(-abs(x - y))),
            ("logaddexp2", lambda x, y: max(x, y) + _log1p_exp(-abs(x - y) * mp.ln2) / mp.ln2),
        )
    ),
)


def other(name: str) -> Callable[..., Any]:
    """Return the function of NumPy or SciPy that a case names."""
    if name == "softplus":
        return lambda x, out=None: np.logaddexp(x, 0.0, out=out)
    if name.startswith("scipy."):
        from scipy import special

        return getattr(special, name.removeprefix("scipy."))
    return getattr(np, name)


# How it is measured -----------------------------------------------------------------------------


def driver(names: tuple[str, ...], path: Path, single: bool = False) -> Any:
    """Write and import a module whose `apply(case, x, y, out, vectors)` runs these functions."""
    cases = [case for case in CASES if case.name in names]
    simd, text = library.vector_library({f"v{name}" for name in names}, single)
    load, store, suffix = ("load_f32", "store_f32", "32") if single else ("load", "store", "")
    lines = [
        "from __future__ import annotations\n",
        "import math\nfrom math import inf, nan\nfrom typing import Any\n",
        "from tapegrad.kernels.cpu import simd",
        "from tapegrad.kernels.cpu.jit import helper, kernel",
        f"from tapegrad.kernels.cpu.simd import {', '.join(sorted({*simd, load, store}))}\n",
        f"SIMD_TEXT = {library.simd_mark()!r}",
        text,
        "\n\n@kernel\ndef apply(case, x, y, out, vectors):",
    ]
    for case in cases:
        operands = ", ".join(f"{load}({x} + i)" for x in ("x", "y")[: case.arity])
        lines += [
            f"    if case == {CASES.index(case)}:",
            "        for i in range(0, 128 * vectors, 128):",
            f"            {store}(out + i, v{case.name}{suffix}({operands}))",
        ]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def apply(module: Any, case: Case, operands: Any) -> Any:
    """Return the function of the rows of an array, of whole vectors, by the compiled driver."""
    x, y = (np.ascontiguousarray(operands[i]) for i in (0, -1))
    out = np.empty_like(x)
    addresses = (x.ctypes.data, y.ctypes.data, out.ctypes.data)
    module.apply(CASES.index(case), *addresses, x.nbytes // VECTOR_BYTES)
    return out


def points(case: Case, count: int, seed: int = 0, single: bool = False) -> Any:
    """Return operands, of shape (arity, whole vectors), where every function value is finite."""
    random = np.random.default_rng(seed)
    each = -(-count // len(case.samplers))
    parts = [sampler(random, each).reshape(case.arity, -1) for sampler in case.samplers]
    with np.errstate(all="ignore"):
        x = np.concatenate(parts, axis=1).astype(np.float32 if single else np.float64)
        wanted = np.isfinite(x).all(axis=0) & np.isfinite(other(case.other)(*x))
    x = x[:, wanted]
    lanes = VECTOR_BYTES // x.itemsize
    return np.ascontiguousarray(x[:, : x.shape[1] // lanes * lanes])


def specials(case: Case, single: bool = False) -> Any:
    """Return all combinations of zeros, infinities, nan, subnormals and other hard numbers."""
    numbers = SPECIALS32 if single else SPECIALS
    x = np.stack([a.ravel() for a in np.meshgrid(*(numbers,) * case.arity)])
    lanes = VECTOR_BYTES // x.itemsize
    return np.concatenate([x, np.ones((case.arity, -x.shape[1] % lanes), x.dtype)], axis=1)


def errors(case: Case, operands: Any, got: Any) -> Any:
    """Return by how many units in the last place results are off, an array.

    Results in single precision are compared with NumPy's and SciPy's in double precision, whose
    errors are a thousand million times less than their unit.
    """
    if got.dtype == np.float64:
        return np.array([_error(case, x, y) for x, y in zip(operands.T, got, strict=True)])
    numbers = operands.astype(np.float64)
    with np.errstate(all="ignore"):
        exact = other(case.other)(*numbers)
    size = np.abs(exact)
    if case.cancels:
        largest = numbers.max(axis=0)
        size = np.abs(largest) + (exact - largest)
    value = got.astype(np.float64)
    value = np.where(np.isinf(value), np.copysign(2.0**128, value), value)
    return np.ldexp(np.abs(value - exact), -np.maximum(np.frexp(size)[1] - 24, -149))


def _error(case: Case, operands: Any, got: float) -> float:
    numbers = [mp.mpf(float(x)) for x in operands]
    with mp.workprec(250):
        exact = case.exact(*numbers)
        size = abs(exact)
        if case.cancels:
            size = abs(max(numbers)) + (exact - max(numbers))
        exponent = -1074 if size == 0 else max(mp.frexp(size)[1] - 53, -1074)
        # An infinity stands for the first number that does not exist.
        value = mp.ldexp(mp.sign(got), 1024) if np.isinf(got) else mp.mpf(float(got))
        return float(abs(value - exact) * mp.ldexp(1, -exponent))


def worst(
    module: Any, case: Case, count: int, seed: int = 0, single: bool = False
) -> tuple[float, Any]:
    """Return the greatest error at about `count` points, and the operands there."""
    x = points(case, count, seed, single)
    off = errors(case, x, apply(module, case, x))
    i = int(np.argmax(off))
    return float(off[i]), x[:, i]


def nanoseconds(run: Callable[[], Any], elements: int) -> float:
    """Return the least time an element of many runs."""
    best = np.inf
    for _ in range(30):
        start = time.perf_counter()
        for _ in range(10):
            run()
        best = min(best, time.perf_counter() - start)
    return float(best) / 10 / elements * 1e9


def speeds(module: Any, case: Case, dtype: Any) -> tuple[float, float]:
    """Return nanoseconds an element, of the vector function and of NumPy's or SciPy's."""
    n = 4096
    x, y = np.random.default_rng(1).uniform(*case.timed, (2, n)).astype(dtype)
    out = np.empty_like(x)
    which, *addresses = CASES.index(case), x.ctypes.data, y.ctypes.data, out.ctypes.data
    function, operands = other(case.other), (x, y)[: case.arity]
    return (
        nanoseconds(lambda: module.apply(which, *addresses, x.nbytes // VECTOR_BYTES), n),
        nanoseconds(lambda: function(*operands, out=out), n),
    )


HEAD = """# Accuracy and speed of the vector functions

Errors are in units in the last place (ULP): the greatest among about {count:,} points over the
whole range of the function, with subnormal and huge numbers, in float64 against mpmath, in float32
at ten times as many points against float64. Zeros, infinities and nan are compared with NumPy and
SciPy in the tests. Times are nanoseconds an element, in cache, one thread; NP is NumPy or SciPy.
Written by `python -m tapegrad.kernels.ulp` on {machine}.

`logaddexp` and `logaddexp2` add something positive to the larger operand, which cancel where the
result is near 0: their errors are in units in the last place of the sum of the two sizes.

| function | float64: error | at | ns | NP, ns | float32: error | ns | NP, ns |
|---|---:|---|---:|---:|---:|---:|---:|
"""


def main(arguments: list[str] | None = None) -> int:
    """Measure all functions and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tapegrad.kernels.ulp", description=__doc__)
    parser.add_argument("--points", type=int, default=30_000, help="how many for each function")
    parser.add_argument("--output", type=Path, default=PAGE, help="the page to write")
    options = parser.parse_args(arguments)
    names = tuple(dict.fromkeys(case.name for case in CASES))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        modules = []
        for dtype in (np.float64, np.float32):
            start = time.process_time()
            path = Path(folder) / f"driver_{dtype.__name__}.py"
            modules.append(driver(names, path, dtype is np.float32))
            apply(modules[-1], CASES[0], np.ones((1, VECTOR_BYTES), dtype))
            seconds = time.process_time() - start
            print(f"{dtype.__name__}: compiled in {seconds:.1f} s of CPU", file=sys.stderr)
        for case in CASES:
            greatest, where = worst(modules[0], case, options.points)
            cells = [
                f"`{case.name}`",
                *(f"{greatest:.2f}", ", ".join(f"{x:.17g}" for x in where)),
                *(f"{x:.2f}" for x in speeds(modules[0], case, np.float64)),
                f"{worst(modules[1], case, 10 * options.points, single=True)[0]:.2f}",
                *(f"{x:.2f}" for x in speeds(modules[1], case, np.float32)),
            ]
            rows.append(f"| {' | '.join(cells)} |")
            print(rows[-1], file=sys.stderr)
    head = HEAD.format(count=options.points, machine=f"{platform.machine()}, {platform.system()}")
    options.output.write_text(head + "\n".join([*rows, ""]), encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
