"""The programs that are measured, written once for every system.

They are plain Python: each system calls them with its own kind of number and its own `sin`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOOP_POINT = (0.3, 2.1, 0.7)
LOOP_OPERATIONS = 8
"""Elementary operations in one step of `scalar_loop`."""

CHAIN_OPERATIONS = 8
"""Elementary operations that one element adds to `rosenbrock`."""

PATH_STEPS = (0.11, -0.23, 0.31, 0.05, -0.17, 0.29, -0.07, 0.19)
PATH_OPERATIONS = 8 * len(PATH_STEPS) + 3
"""Elementary operations of `path`."""


def scalar_loop(x: Any, a: Any, b: Any, steps: int, sin: Callable[[Any], Any]) -> Any:
    """Iterate x = sin(a*x) + b*x²/(1 + x²) on scalars, and sum what it visits."""
    total: Any = 0.0
    for _ in range(steps):
        xx = x * x
        x = sin(a * x) + b * xx / (1.0 + xx)
        total = total + x
    return total


def rosenbrock(x: Any, n: int) -> Any:
    """Return the chained Rosenbrock function of n elements, read one by one as x[i]."""
    total: Any = 0.0
    for i in range(n - 1):
        t = x[i + 1] - x[i] * x[i]
        u = 1.0 - x[i]
        total = total + 100.0 * t * t + u * u
    return total


def rosenbrock_point(n: int) -> NDArray[np.float64]:
    """Return a point of n elements at which no term of `rosenbrock` vanishes."""
    return np.linspace(-0.9, 1.1, n) + 0.05 * np.sin(np.arange(n))


def path(xp: Any, x: Any, a: Any, b: Any, mu: Any) -> Any:
    """Follow a path with local volatility; return a softplus of where it ends.

    `xp` has the functions ``exp`` and ``log``.
    """
    for z in PATH_STEPS:
        x = x + mu + a * xp.exp(-(b * x * x)) * z
    return xp.log(1.0 + xp.exp(x))


def path_points(n: int) -> list[NDArray[np.float64]]:
    """Return the four arguments of `path`, each for n samples."""
    rng = np.random.default_rng(0)
    limits = ((-1.0, 1.0), (0.2, 0.6), (0.1, 0.9), (-0.05, 0.05))
    return [rng.uniform(low, high, n) for low, high in limits]


def fill(y: Any, value: Any, n: int) -> Any:
    """Assign `value` to each of the n elements of y, one by one."""
    for i in range(n):
        y[i] = value
    return y


def read(x: Sequence[Any] | Any, n: int) -> None:
    """Read each of the n elements of x, one by one."""
    for i in range(n):
        x[i]
