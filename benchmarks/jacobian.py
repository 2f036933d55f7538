"""asv: dense Jacobians, of all rows or columns at once, in CPU time."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tapegrad as tg

Function = Callable[[NDArray[np.float64]], NDArray[np.float64]]

SIZE = 100
SAMPLES = 250


def layers() -> Function:
    """Return three layers of a network, 100 numbers to 100: products of matrices."""
    weights = np.random.default_rng(0).normal(size=(3, SIZE, SIZE)) / np.sqrt(SIZE)

    def f(x: NDArray[np.float64]) -> NDArray[np.float64]:
        for w in weights:
            x = np.tanh(w @ x)
        return x

    return f


FUNNEL = (200, 120, 90, 50)


def funnel(xp: Any = np) -> Function:
    """Return three layers of a network, 200 numbers to 50: biases, and an activation for each.

    `xp` is the namespace to compute with, which may be that of another system.
    """
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=(n, m)) / np.sqrt(n) for n, m in pairwise(FUNNEL)]
    biases = [rng.normal(size=m) for m in FUNNEL[1:]]

    def f(x: NDArray[np.float64]) -> NDArray[np.float64]:
        x = xp.maximum(x @ weights[0] + biases[0], 0.0)
        x = 1.0 / (1.0 + xp.exp(-(x @ weights[1] + biases[1])))
        x = x @ weights[2] + biases[2]
        return xp.log1p(xp.exp(x))

    return f


def recurrence() -> Function:
    """Return a recurrence written element by element, of which 100 numbers come out."""

    def f(x: NDArray[np.float64]) -> NDArray[np.float64]:
        y = x * 1.0
        for _ in range(5):
            for i in range(SIZE):
                y[i] = np.sin(y[i - 1]) + x[i] * y[i]
        return y

    return f


def peaks() -> Function:
    """Return two Gaussian peaks on an exponential: 8 parameters, a residual for each sample."""
    t = np.linspace(0.0, 250.0, SAMPLES)

    def f(b: NDArray[np.float64]) -> NDArray[np.float64]:
        background = b[0] * np.exp(-b[1] * t)
        first = b[2] * np.exp(-(((t - b[3]) / b[4]) ** 2))
        return background + first + b[5] * np.exp(-(((t - b[6]) / b[7]) ** 2))

    return f


PROGRAMS = {"layers": layers, "funnel": funnel, "recurrence": recurrence, "peaks": peaks}
PEAKS_AT = np.array([98.8, 0.0105, 100.5, 67.5, 23.1, 72.0, 179.0, 18.4])


def point(program: str) -> NDArray[np.float64]:
    """Return the arguments that a program is differentiated at."""
    if program == "peaks":
        return PEAKS_AT
    return np.linspace(-0.9, 0.9, FUNNEL[0] if program == "funnel" else SIZE)


def row_by_row(f: Function, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Jacobian of f by a backward sweep for each row."""
    value, pull = tg.vjp(f, x)
    return np.stack([pull(row)[0] for row in np.eye(value.size)])


class Jacobian:
    """One Jacobian, from recording on."""

    timer = time.process_time
    params = (tuple(PROGRAMS), ("forward", "reverse", "row by row"))
    param_names = ("program", "mode")

    def setup(self, program, mode):
        f, self.x = PROGRAMS[program](), point(program)
        self.jacobian = (
            (lambda x: row_by_row(f, x)) if mode == "row by row" else tg.jacobian(f, mode=mode)
        )
        self.time_jacobian(program, mode)

    def time_jacobian(self, program, mode):
        with tg.executor("compiled"):
            self.jacobian(self.x)
