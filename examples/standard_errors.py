"""Maximum likelihood on real data, with standard errors from exact Hessians.

The covariance of a maximum likelihood estimate is the inverse of the information: the Hessian of
minus the log-likelihood where that is smallest.  Two cases, both checked against published figures:

* The risk of a damaged O-ring by temperature, from the 23 flights of the Space Shuttle before
  Challenger's last one: a logistic regression, fitted by SciPy with gradient and Hessian.  The
  estimates and standard errors are in many textbooks, with four decimals; they follow the analysis
  of S. Dalal, E. Fowlkes and B. Hoadley, "Risk analysis of the Space Shuttle: pre-Challenger
  prediction of failure", Journal of the American Statistical Association 84 (1989).  The standard
  error of the risk at 31 degrees, the temperature of the last launch, takes its gradient, too.

* Ten regressions of the NIST StRD with normal errors, whose parameters have standard deviations
  that NIST certifies to eleven digits.  They are those of the expected information, the Hessian of
  the mean of minus the log-likelihood over all errors; NIST estimates the variance of the errors
  with n - p in the place of n.  Standard errors from the observed information are shown beside
  them: there, the curvature of the model counts, too.

Run it with ``python examples/standard_errors.py``.  It exits with status 1 where a figure differs
from the published one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

import tapegrad as tg
from nist_regression import DATA, MODELS, ReferenceSet, fit, matching_digits, read_reference_set

CHALLENGER = Path(__file__).parent / "data" / "challenger.csv"
PUBLISHED = {"intercept": (15.0429, 7.3786), "slope": (-0.2322, 0.1082), "deviance": 20.315}
REQUIRED_DIGITS = 6


@dataclass(frozen=True)
class Estimate:
    """What maximum likelihood says: parameters, their standard errors, and how it was found."""

    parameters: np.ndarray
    covariance: np.ndarray
    log_likelihood: float
    gradient: np.ndarray

    @property
    def standard_errors(self) -> np.ndarray:
        return np.sqrt(np.diag(self.covariance))

    def error_of(self, f: Callable[[Any], Any]) -> tuple[float, float]:
        """Return a function of the parameters and its standard error, by its gradient."""
        value, slope = tg.value_and_grad(f)(self.parameters)
        return value, float(np.sqrt(slope @ self.covariance @ slope))


def read_flights() -> tuple[np.ndarray, np.ndarray]:
    """Return the temperatures of all flights, and whether O-rings were damaged."""
    lines = [line for line in CHALLENGER.read_text("ascii").splitlines() if line[0] != "#"]
    rows = [line.split(",") for line in lines[1:]]
    return (
        np.array([float(temperature) for _, temperature, _ in rows]),
        np.array([float(damaged) > 0 for _, _, damaged in rows]),
    )


def risk(b: Any, temperature: Any) -> Any:
    """Return the probability that an O-ring is damaged."""
    return 1.0 / (1.0 + np.exp(-b[0] - b[1] * temperature))


def challenger() -> Estimate:
    """Fit the risk by a trust-region method, with exact gradients and Hessians."""
    temperature, damaged = read_flights()

    def minus_log_likelihood(b: Any) -> Any:
        p = risk(b, temperature)
        return -np.sum(np.log(np.where(damaged, p, 1.0 - p)))

    program = tg.record(minus_log_likelihood, np.zeros(2))
    found = minimize(
        program.value_and_grad,
        np.zeros(2),
        method="trust-exact",
        jac=True,
        hess=program.hessian,
        options={"gtol": 1e-10},
    )
    return Estimate(found.x, np.linalg.inv(program.hessian(found.x)), -found.fun, found.jac)


@dataclass(frozen=True)
class Deviations:
    """Standard deviations of the parameters of one NIST set."""

    expected: np.ndarray
    observed: np.ndarray
    certified: np.ndarray

    @property
    def digits(self) -> float:
        return float(matching_digits(self.expected, self.certified).min())


def certified_deviations(reference: ReferenceSet) -> np.ndarray:
    """Return the standard deviations that NIST certifies."""
    text = (DATA / f"{reference.name}.dat").read_text("ascii")
    rows = re.findall(r"^\s*b\d+ =" + r"\s+[-+.\dE]+" * 3 + r"\s+([-+.\dE]+)\s*$", text, re.M)
    return np.array([float(row) for row in rows])


def nist(reference: ReferenceSet) -> Deviations:
    """Compute standard deviations at the maximum of the likelihood of normal errors."""
    b = fit(reference).parameters  # with normal errors, that of least squares
    n, p = len(reference.y), len(b)
    variance = np.sum(reference.residuals(b) ** 2) / (n - p)
    fitted = reference.model(b, reference.x)
    scale = np.abs(b)  # parameters of sizes from 1e-6 to 1e3 make ill-conditioned matrices

    def observed(s: Any) -> Any:
        return np.sum(reference.residuals(s * scale) ** 2) / (2.0 * variance)

    def expected(s: Any) -> Any:
        return np.sum((reference.model(s * scale, reference.x) - fitted) ** 2) / (2.0 * variance)

    deviations = [
        np.sqrt(np.diag(np.linalg.inv(tg.hessian(information)(b / scale)))) * scale
        for information in (expected, observed)
    ]
    return Deviations(*deviations, certified_deviations(reference))


def main() -> int:
    """Estimate, print, and compare; 0 when all figures are the published ones."""
    estimate = challenger()
    good = True
    print("Damaged O-rings of the Space Shuttle, logistic regression on 23 flights")
    for i, name in enumerate(("intercept", "slope")):
        ours = estimate.parameters[i], estimate.standard_errors[i]
        good &= bool(np.all(np.round(ours, 4) == PUBLISHED[name]))
        print(
            f"  {name:10}{ours[0]:10.4f} +- {ours[1]:.4f}   published "
            f"{PUBLISHED[name][0]:.4f} +- {PUBLISHED[name][1]:.4f}"
        )
    deviance = -2.0 * estimate.log_likelihood
    good &= round(deviance, 3) == PUBLISHED["deviance"]
    print(f"  deviance  {deviance:10.3f}             published {PUBLISHED['deviance']:.3f}")
    for temperature in (70.0, 31.0):
        logit, error = estimate.error_of(lambda b, t=temperature: b[0] + b[1] * t)
        low, high = (1.0 / (1.0 + np.exp(-logit - z * error)) for z in (-1.96, 1.96))
        print(
            f"  risk at {temperature:.0f} F: {risk(estimate.parameters, temperature):.4f}, "
            f"95 % confidence {low:.4f} to {high:.4f}"
        )

    print("\nStandard deviations of NIST's regressions, of the worst parameter")
    print(f"  {'set':10}{'certified':>18}{'expected info':>18}{'digits':>8}{'observed info':>18}")
    for name in MODELS:
        found = nist(read_reference_set(DATA / f"{name}.dat"))
        worst = int(np.argmin(matching_digits(found.expected, found.certified)))
        good &= found.digits >= REQUIRED_DIGITS
        print(
            f"  {name:10}{found.certified[worst]:18.10E}{found.expected[worst]:18.10E}"
            f"{found.digits:8.1f}{found.observed[worst]:18.10E}"
        )
    print("All figures are the published ones." if good else "Some figures differ.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
