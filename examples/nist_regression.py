"""Fit ten NIST reference regressions with exact Jacobians.

Every set of `examples/data/nist` holds measurements, a nonlinear model, two starting points and
parameters that NIST certifies to eleven digits. Each model below is plain NumPy; SciPy fits it
from Start 1, the start farther from the solution, with the Jacobian that `tapegrad.jacobian`
derives from the same function. Afterwards the same fit is repeated with SciPy's finite differences.

One setting serves all sets: Levenberg-Marquardt, scaled by the Jacobian's columns, with tolerances
at the resolution of double precision. Certified values are only read once a fit is finished.

Run it with ``python examples/nist_regression.py [--output PNG] [SET ...]``. It exits with status 1
when a fit with exact Jacobians misses six certified digits.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

import tapegrad as tg

DATA = Path(__file__).parent / "data" / "nist"
REQUIRED_DIGITS = 6
CERTIFIED_DIGITS = 11  # NIST prints eleven digits, so no comparison can show more
SOLVER: dict[str, Any] = {
    "method": "lm",
    "x_scale": "jac",
    "ftol": 1e-15,
    "xtol": 1e-15,
    "gtol": 1e-15,
    "max_nfev": 5000,
}


# The models, as NIST writes them: b holds the parameters, x the predictor (Nelson has two).


def misra1a(b, x):
    b1, b2 = b
    return b1 * (1 - np.exp(-b2 * x))


def chwirut2(b, x):
    b1, b2, b3 = b
    return np.exp(-b1 * x) / (b2 + b3 * x)


def gauss1(b, x):
    b1, b2, b3, b4, b5, b6, b7, b8 = b
    first = b3 * np.exp(-((x - b4) ** 2) / b5**2)
    second = b6 * np.exp(-((x - b7) ** 2) / b8**2)
    return b1 * np.exp(-b2 * x) + first + second


def nelson(b, x):
    b1, b2, b3 = b
    time, temperature = x
    return b1 - b2 * time * np.exp(-b3 * temperature)


def kirby2(b, x):
    b1, b2, b3, b4, b5 = b
    return (b1 + b2 * x + b3 * x**2) / (1 + b4 * x + b5 * x**2)


def cubic_over_cubic(b, x):
    b1, b2, b3, b4, b5, b6, b7 = b
    return (b1 + b2 * x + b3 * x**2 + b4 * x**3) / (1 + b5 * x + b6 * x**2 + b7 * x**3)


def mgh09(b, x):
    b1, b2, b3, b4 = b
    return b1 * (x**2 + x * b2) / (x**2 + x * b3 + b4)


def roszman1(b, x):
    b1, b2, b3, b4 = b
    return b1 - b2 * x - np.arctan(b3 / (x - b4)) / np.pi


def eckerle4(b, x):
    b1, b2, b3 = b
    return b1 / b2 * np.exp(-0.5 * ((x - b3) / b2) ** 2)


MODELS: dict[str, Callable[[Any, np.ndarray], Any]] = {
    "Misra1a": misra1a,
    "Chwirut2": chwirut2,
    "Gauss1": gauss1,
    "Nelson": nelson,
    "Kirby2": kirby2,
    "Hahn1": cubic_over_cubic,
    "MGH09": mgh09,
    "Thurber": cubic_over_cubic,
    "Roszman1": roszman1,
    "Eckerle4": eckerle4,
}
RESPONSES = {"Nelson": np.log}  # NIST defines Nelson's model for log(y)


@dataclass(frozen=True)
class ReferenceSet:
    """One regression of the NIST StRD: observations, starts and certified results."""

    name: str
    formula: str
    y: np.ndarray
    x: np.ndarray
    starts: np.ndarray
    certified: np.ndarray
    certified_rss: float

    @property
    def model(self) -> Callable[[Any, np.ndarray], Any]:
        return MODELS[self.name]

    @property
    def response(self) -> np.ndarray:
        """What the model describes: `y`, or its logarithm where NIST says so."""
        return RESPONSES.get(self.name, np.asarray)(self.y)

    def residuals(self, b: Any) -> Any:
        """Model minus response: an ndarray for an ndarray `b`, tracked for a tracked one."""
        return self.model(b, self.x) - self.response


@dataclass(frozen=True)
class Fit:
    """A finished fit, and what it took."""

    parameters: np.ndarray
    rss: float
    digits: np.ndarray
    rss_digits: float
    model_calls: int
    jacobian_calls: int


def read_reference_set(path: Path) -> ReferenceSet:
    """Read one StRD file; its header says in which lines the observations stand.

    Raises
    ------
    ValueError
        When the file is not laid out as an StRD regression, or misses observations.
    """
    text = path.read_text(encoding="ascii")
    number = r"[-+.\dE]+"
    rows = re.findall(r"^\s*b\d+ =" + rf"\s+({number})" * 4 + r"\s*$", text, re.M)
    span = re.search(r"^\s*Data\s+\(lines\s+(\d+)\s+to\s+(\d+)\)", text, re.M)
    rss = re.search(rf"^Residual Sum of Squares:\s+({number})", text, re.M)
    count = re.search(r"^Number of Observations:\s+(\d+)", text, re.M)
    formula = re.search(r"^ +((?:y|log\[y\]) = .*?\+ +e\s*$)", text, re.M | re.S)
    if not (rows and span and rss and count and formula):
        raise ValueError(f"{path.name} is not laid out as an StRD regression: see nls_main.shtml")
    first, last = int(span[1]), int(span[2])
    data = np.loadtxt(text.splitlines()[first - 1 : last], ndmin=2)
    if len(data) != int(count[1]):
        raise ValueError(f"{path.name} announces {count[1]} observations but holds {len(data)}")
    start1, start2, certified, _ = np.array(rows, dtype=float).T
    return ReferenceSet(
        name=path.stem,
        formula=" ".join(formula[1].split()),
        y=data[:, 0],
        x=data[:, 1] if data.shape[1] == 2 else data[:, 1:].T,
        starts=np.array([start1, start2]),
        certified=certified,
        certified_rss=float(rss[1]),
    )


def matching_digits(fitted: Any, certified: Any) -> np.ndarray:
    """Number of matching decimal digits: the logarithm of the relative error, from 0 to 11."""
    error = np.abs(fitted - np.asarray(certified)) / np.abs(certified)
    with np.errstate(divide="ignore"):  # no difference at all: inf digits, clipped to eleven
        return np.clip(-np.log10(error), 0, CERTIFIED_DIGITS)


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable[[np.ndarray], Any]) -> None:
        self.function = function
        self.calls = 0

    def __call__(self, b: np.ndarray) -> Any:
        self.calls += 1
        return self.function(b)


def fit(reference: ReferenceSet, exact: bool = True) -> Fit:
    """Fit from Start 1, with the exact Jacobian or with SciPy's forward differences."""
    residuals = Counted(reference.residuals)
    jacobian = Counted(tg.jacobian(reference.residuals))
    # A trial step may leave the range of exp; the solver sees inf and shortens the step.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        solution = least_squares(
            residuals, reference.starts[0], jac=jacobian if exact else "2-point", **SOLVER
        )
    rss = 2 * solution.cost
    return Fit(
        parameters=solution.x,
        rss=rss,
        digits=matching_digits(solution.x, reference.certified),
        rss_digits=float(matching_digits(rss, reference.certified_rss)),
        model_calls=residuals.calls,
        jacobian_calls=jacobian.calls,
    )


def report(reference: ReferenceSet, exact: Fit, differences: Fit) -> str:
    """Describe one set: every parameter against its certified value, and what each fit took."""
    values = [*exact.parameters, exact.rss]
    certified = [*reference.certified, reference.certified_rss]
    digits = [*exact.digits, exact.rss_digits]
    names = [*(f"b{i}" for i in range(1, len(values))), "RSS"]
    lines = [f"{reference.name}: {reference.formula}  ({len(reference.y)} observations)"]
    lines.append(f"  {'':4}{'fitted':>18}{'certified':>20}{'digits':>9}")
    for name, value, target, matching in zip(names, values, certified, digits, strict=True):
        lines.append(f"  {name:4}{value:18.10E}{target:20.10E}{matching:9.1f}")
    lines.append(
        f"  exact Jacobian: {exact.model_calls} model and {exact.jacobian_calls} Jacobian"
        f" evaluations; finite differences: {differences.model_calls} model evaluations"
    )
    return "\n".join(lines)


def summary(fits: dict[str, tuple[Fit, Fit]]) -> str:
    """Set both ways of fitting side by side; digits are those of the worst parameter."""
    lines = [
        f"{'':10}{'exact Jacobian':^28}{'finite differences':^28}",
        f"{'set':10}{'digits':>8}{'models':>9}{'Jacobians':>11}{'digits':>14}{'models':>9}",
    ]
    for name, (exact, differences) in fits.items():
        lines.append(
            f"{name:10}{exact.digits.min():8.1f}{exact.model_calls:9}{exact.jacobian_calls:11}"
            f"{differences.digits.min():14.1f}{differences.model_calls:9}"
        )
    return "\n".join(lines)


def curves(reference: ReferenceSet, b: np.ndarray) -> Iterator[tuple[Any, ...]]:
    """Yield (which observations, abscissae, grid, fitted curve, label), one a drawn curve.

    A set with two predictors is drawn over the first, with a curve for each value of the second.
    """
    abscissae = np.atleast_2d(reference.x)[0]
    grid = np.linspace(abscissae.min(), abscissae.max(), 400)
    if reference.x.ndim == 1:
        yield slice(None), abscissae, grid, reference.model(b, grid), None
        return
    for level in np.unique(reference.x[1]):
        chosen = reference.x[1] == level
        fitted = reference.model(b, np.array([grid, np.full_like(grid, level)]))
        yield chosen, abscissae[chosen], grid, fitted, f"x2 = {level:g}"


def draw(results: Sequence[tuple[ReferenceSet, Fit]], output: Path) -> None:
    """Draw data, fit and residuals of every set into one PNG."""
    import matplotlib

    matplotlib.use("Agg")  # a file is all that is wanted: no display needed
    import matplotlib.pyplot as plt

    columns = min(5, len(results))
    rows = -(-len(results) // columns)
    style = {
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "0.5",
        "axes.formatter.limits": (-3, 4),
        "xtick.color": "0.35",
        "ytick.color": "0.35",
    }
    with plt.rc_context(style):
        figure = plt.figure(figsize=(3.4 * columns, 3.7 * rows), layout="constrained")
        figure.suptitle("NIST StRD regressions: certified digits matched by the worst parameter")
        panels = figure.subfigures(rows, columns, squeeze=False)
        for panel, (reference, fitted) in zip(panels.flat, results, strict=False):
            draw_set(panel, reference, fitted)
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06, hspace=0.02)
        figure.savefig(output, dpi=150)
        plt.close(figure)


def draw_set(panel: Any, reference: ReferenceSet, fitted: Fit) -> None:
    """Draw one set: observations and fitted curve above, residuals below."""
    upper, lower = panel.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    drawn = list(curves(reference, fitted.parameters))
    palette = [("#1d4e6b", "#e07a3f")]  # of the curve, and of its observations
    if len(drawn) > 1:
        palette = [(colour, colour) for colour in ("#3b4cc0", "#7b9ff9", "#f4987a", "#b40426")]
    misfit = -reference.residuals(fitted.parameters)  # observed minus fitted, as statisticians do
    dots = {"linestyle": "none", "marker": "o", "markersize": 3, "alpha": 0.6, "markeredgewidth": 0}
    for (line, dot), (chosen, abscissae, grid, curve, label) in zip(palette, drawn, strict=True):
        upper.plot(grid, curve, color=line, linewidth=1.1, label=label)
        upper.plot(abscissae, reference.response[chosen], color=dot, **dots)
        lower.plot(abscissae, misfit[chosen], color=dot, **dots)
    lower.axhline(0, color="0.5", linewidth=0.8, zorder=0)
    if len(drawn) > 1:
        upper.legend(fontsize=6, frameon=False, handlelength=1.2, labelspacing=0.25)
    upper.set_title(f"{reference.name}: {fitted.digits.min():.1f} digits", fontsize=9, loc="left")
    upper.set_ylabel("log(y)" if reference.name in RESPONSES else "y")
    lower.set_ylabel("residual")
    lower.set_xlabel("x1" if len(drawn) > 1 else "x")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit the chosen sets, print and draw the results; 0 when all reach six digits."""
    parser = argparse.ArgumentParser(description="Fit NIST reference regressions.")
    parser.add_argument("sets", nargs="*", metavar="SET", help="names of sets (default: all)")
    parser.add_argument("--output", type=Path, default=Path("nist_regression.png"))
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.sets) - MODELS.keys())
    if unknown:
        parser.error(f"unknown sets {', '.join(unknown)}; choose from {', '.join(MODELS)}")

    references = [read_reference_set(DATA / f"{name}.dat") for name in options.sets or MODELS]
    fits = {}
    for reference in references:
        fits[reference.name] = fit(reference), fit(reference, exact=False)
        print(report(reference, *fits[reference.name]), end="\n\n")
    print(summary(fits), end="\n\n")

    draw([(reference, fits[reference.name][0]) for reference in references], options.output)
    reached = sum(exact.digits.min() >= REQUIRED_DIGITS for exact, _ in fits.values())
    print(f"{reached} of {len(fits)} sets reach {REQUIRED_DIGITS} certified digits.")
    print(f"Figure: {options.output}")
    return 0 if reached == len(fits) else 1


if __name__ == "__main__":
    sys.exit(main())
