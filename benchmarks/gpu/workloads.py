"""What is measured on a GPU: value and derivatives of small functions, for many samples."""

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

    `function` is called with a system's namespace (`exp`, `log`, `sqrt`, `erf`) and the arguments.
    """

    name: str
    function: Callable[..., Any]
    limits: tuple[tuple[float, float], ...]

    def arguments(self, n: int) -> list[Any]:
        """Return `n` samples of each argument; at most a million differ."""
        rng = np.random.default_rng(0)
        distinct = min(n, 1_000_000)
        found = [rng.uniform(low, high, distinct) for low, high in self.limits]
        return [np.tile(x, -(-n // distinct))[:n] for x in found]

    def program(self) -> tg.Program:
        """Return the recorded function."""
        example = [0.5 * (low + high) for low, high in self.limits]
        return tg.record(lambda *x: self.function(NumPy, *x), *example)

    @property
    def argnums(self) -> tuple[int, ...]:
        """All arguments: derivatives by each are wanted."""
        return tuple(range(len(self.limits)))


class NumPy:
    """The functions of workloads in NumPy, which tapegrad records."""

    exp, log, sqrt, erf = np.exp, np.log, np.sqrt, tg.special.erf


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


WORKLOADS = {
    "w5": Workload("w5", _local_volatility, ((-1, 1), (0.2, 0.6), (0.1, 0.9), (-0.05, 0.05))),
    "black_scholes": Workload(
        "black_scholes",
        _black_scholes,
        ((80, 120), (80, 120), (0.2, 2.0), (0.01, 0.05), (0.1, 0.5)),
    ),
}
