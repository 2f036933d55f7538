"""Solve the Bratu problem, a nonlinear PDE, by Newton's method with exact sparse Jacobians.

On the unit square, -(u_xx + u_yy) = lambda exp(u), and u = 0 on the boundary: the temperature in a
material that heats itself by a reaction.  It has two solutions for a small lambda, and none above
lambda* = 6.808124423, a fold where u at the centre is 1.39166 (J. Bolstad and H. Keller, "A
multigrid continuation method for elliptic problems with folds", SIAM Journal on Scientific and
Statistical Computing 7, 1986).

The residual below is plain NumPy, second-order differences on an n by n grid of unknowns.
`tapegrad.sparse_jacobian` records it once, finds that each row of the Jacobian has at most five
nonzeros, and computes these for each step; SciPy factorises the matrix.  Solutions are followed
from lambda = 0 over the fold in the value of u at the centre, which is imposed instead of lambda:
near the fold lambda is a quadratic function of it, whose maximum is compared with lambda*.

Run it with ``python examples/bratu.py [--points N]``.  The default grid has 101,124 unknowns.  It
exits with status 1 when Newton's method does not converge quadratically, or the fold is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.sparse import csc_array
from scipy.sparse.linalg import splu

import tapegrad as tg

FOLD = 6.808124423
TOLERANCE = 1e-11  # of the residual, relative to the first one


def residual(u: Any, strength: Any) -> Any:
    """Return h^2 times the residual of the PDE at each of n by n inner points, flat."""
    n = round(u.size**0.5)
    h = 1.0 / (n + 1)
    grid = u.reshape(n, n)
    r = 4.0 * grid - h * h * strength * np.exp(grid)
    r[1:] -= grid[:-1]
    r[:-1] -= grid[1:]
    r[:, 1:] -= grid[:, :-1]
    r[:, :-1] -= grid[:, 1:]
    return r.ravel()


@dataclass
class Solution:
    """A solution of the PDE, and how Newton's method came to it.

    Attributes
    ----------
    norms
        The largest residual before each step, and after the last.
    jacobian_seconds, solver_seconds
        For all steps together.
    """

    u: np.ndarray
    strength: float
    norms: list[float] = field(default_factory=list)
    jacobian_seconds: float = 0.0
    solver_seconds: float = 0.0

    @property
    def converged(self) -> bool:
        return self.norms[-1] <= TOLERANCE * max(1.0, self.norms[0])


class Bratu:
    """The problem on an n by n grid: recorded once, solved for any lambda."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.centre = (n // 2) * n + n // 2
        self._residual = tg.function(residual)
        self._jacobian = tg.sparse_jacobian(residual)

    @property
    def pattern(self) -> Any:
        return self._jacobian.pattern

    def solve(self, strength: float, start: np.ndarray, steps: int = 12) -> Solution:
        """Solve for a given lambda, from a start."""
        solution = Solution(start.copy(), strength)

        def step(u: np.ndarray, r: np.ndarray, solve: Callable[[Any], Any]) -> np.ndarray:
            return solve(r)

        return self._newton(solution, step, steps)

    def through(self, height: float, start: Solution, steps: int = 12) -> Solution:
        """Find lambda and the solution that has this height at the centre."""
        solution = Solution(start.u.copy(), start.strength)
        solution.u[self.centre] = height
        h = 1.0 / (self.n + 1)

        def step(u: np.ndarray, r: np.ndarray, solve: Callable[[Any], Any]) -> np.ndarray:
            # One more unknown, lambda, and one more equation, which holds already: eliminated.
            towards, along = solve(r), solve(h * h * np.exp(u))
            change = towards[self.centre] / along[self.centre]
            solution.strength += change
            return towards - change * along

        return self._newton(solution, step, steps)

    def _newton(self, solution: Solution, step: Callable[..., np.ndarray], steps: int) -> Solution:
        for _ in range(steps):
            r = self._residual(solution.u, solution.strength)
            solution.norms.append(float(np.abs(r).max()))
            if solution.converged and len(solution.norms) > 1:
                break
            start = time.perf_counter()
            matrix = self._jacobian(solution.u, solution.strength)
            computed = time.perf_counter()
            factors = splu(
                csc_array(matrix), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}
            )
            solution.u -= step(solution.u, r, factors.solve)
            solution.jacobian_seconds += computed - start
            solution.solver_seconds += time.perf_counter() - computed
        return solution

    def fold(self) -> tuple[float, list[Solution]]:
        """Return the largest lambda that has a solution, and the solutions that tell."""
        found = [self.solve(6.0, np.zeros(self.n * self.n))]
        for height in (1.30, 1.39, 1.48):
            found.append(self.through(height, found[-1]))
        heights = [s.u[self.centre] for s in found[1:]]
        a, b, c = np.polyfit(heights, [s.strength for s in found[1:]], 2)
        return float(c - b * b / (4 * a)), found


def order_of(norms: Sequence[float]) -> float:
    """Return the order of convergence of the last steps that rounding does not disturb."""
    clean = [norm for norm in norms if norm > 1e-13]
    first, second, third = clean[-3:]
    return float(np.log(third / second) / np.log(second / first))


def main(arguments: Sequence[str] | None = None) -> int:
    """Solve, follow the solutions over the fold, and compare it with the literature."""
    parser = argparse.ArgumentParser(description="Solve the Bratu problem.")
    parser.add_argument("--points", type=int, default=318, help="unknowns along an edge")
    n = parser.parse_args(arguments).points
    problem = Bratu(n)

    start = time.perf_counter()
    problem._jacobian(np.zeros(n * n), 1.0)
    print(f"{n * n} unknowns; recorded and prepared in {time.perf_counter() - start:.2f} s")
    print(f"Jacobian: {problem.pattern}")

    fold, solutions = problem.fold()
    for s in solutions:
        print(
            f"\nlambda = {s.strength:.9f}, u at the centre {s.u[problem.centre]:.9f}: "
            f"{len(s.norms) - 1} steps, Jacobians {s.jacobian_seconds:.3f} s, "
            f"factorisations {s.solver_seconds:.2f} s"
        )
        print("  largest residuals " + " ".join(f"{norm:.1e}" for norm in s.norms))

    order = order_of(solutions[0].norms)
    # Second-order differences are off by about h^2; the parabola through three points by 2e-5.
    allowed = 3.0 * FOLD / (n + 1) ** 2 + 1e-4
    print(f"\nNewton's method converges with order {order:.2f}.")
    print(f"Fold at lambda = {fold:.6f}; known: {FOLD}; expected within {allowed:.1e}.")
    good = all(s.converged for s in solutions) and order > 1.7 and abs(fold - FOLD) < allowed
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
