"""What is measured on a GPU: value and derivatives of small functions, and of array code."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import tapegrad as tg

STEPS = (0.11, -0.23, 0.31, 0.05, -0.17, 0.29, -0.07, 0.19)


@dataclass(frozen=True)
class Workload:
    """A function, and the limits between which its arguments are drawn.

    `function` is called with a system's namespace (`exp`, `log`, `sqrt`, `erf`, `sum`) and the
    arguments: numbers, of which there are many samples, or where it is `one_call`, whole arrays.
    """

    name: str
    function: Callable[..., Any]
    limits: tuple[tuple[float, float], ...]
    one_call: bool = False

    def arguments(self, n: int) -> list[Any]:
        """Return `n` samples of each argument; at most a million differ."""
        rng = np.random.default_rng(0)
        distinct = min(n, 1_000_000)
        found = [rng.uniform(low, high, distinct) for low, high in self.limits]
        return [np.tile(x, -(-n // distinct))[:n] for x in found]

    def program(self, n: int) -> tg.Program:
        """Return the recorded function; its instructions for `n` samples, if it is `one_call`."""
        return _program(self, n)

    def _recorded(self, n: int) -> tg.Program:
        example = [0.5 * (low + high) for low, high in self.limits]
        if self.one_call:
            example = [np.full(n, x) for x in example]
        return tg.record(lambda *x: self.function(NumPy, *x), *example)

    @property
    def argnums(self) -> tuple[int, ...]:
        """All arguments: derivatives by each are wanted."""
        return tuple(range(len(self.limits)))

    def bytes_moved(self, n: int) -> int:
        """Return how much memory is read and written if each number is met once."""
        values = 0 if self.one_call else n
        return 8 * (2 * len(self.limits) * n + values)


@functools.lru_cache(maxsize=1)  # recording the instructions of 1e8 elements takes a while
def _program(workload: Workload, n: int) -> tg.Program:
    return workload._recorded(n)


class NumPy:
    """The functions of workloads in NumPy, which tapegrad records."""

    exp, log, sqrt, erf, sum = np.exp, np.log, np.sqrt, tg.special.erf, np.sum


def _local_volatility(xp: Any, x: Any, a: Any, b: Any, mu: Any) -> Any:
    for z in STEPS:
        x = x + mu + a * xp.exp(-(b * x * x)) * z
    return xp.log(1.0 + xp.exp(x))


def _black_scholes(xp: Any, spot: Any, strike: Any, time: Any, rate: Any, vol: Any) -> Any:
    vs = vol * xp.sqrt(time)
    d1 = (xp.log(spot / strike) + (rate + 0.5 * vol * vol) * time) / vs
    held = spot * (0.5 * (1.0 + xp.erf(d1 * math.sqrt(0.5))))
    owed = 0.5 * (1.0 + xp.erf((d1 - vs) * math.sqrt(0.5)))
    return held - strike * xp.exp(-(rate * time)) * owed


def _rosenbrock(xp: Any, x: Any) -> Any:
    curve, line = x[1:] - x[:-1] * x[:-1], 1.0 - x[:-1]
    return xp.sum(100.0 * curve * curve + line * line)


WORKLOADS = {
    "w5": Workload("w5", _local_volatility, ((-1, 1), (0.2, 0.6), (0.1, 0.9), (-0.05, 0.05))),
    "black_scholes": Workload(
        "black_scholes",
        _black_scholes,
        ((80, 120), (80, 120), (0.2, 2.0), (0.01, 0.05), (0.1, 0.5)),
    ),
    "rosenbrock": Workload("rosenbrock", _rosenbrock, ((-1.0, 1.0),), one_call=True),
}
