"""What nothing public does: sweeping a finished tape twice, and Hessians the way not chosen.

The one module here that reaches into tapegrad.
"""

import importlib
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

import tapegrad as tg
from tapegrad import execute

from .workloads import LOOP_OPERATIONS, LOOP_POINT, scalar_loop


class RecordedLoop:
    """`scalar_loop` of about `operations` operations, recorded and swept once by the kernels.

    Attributes
    ----------
    instructions : int
        Instructions on the tape: the operations, and the imports of three leaves.
    """

    def __init__(self, operations: int) -> None:
        leaves = [tg.array(value) for value in LOOP_POINT]
        self._out = scalar_loop(*leaves, operations // LOOP_OPERATIONS, np.sin)
        self._tape = self._out.tape
        with tg.executor("compiled"):
            self._out.backward()  # which ends the tape: what is recorded next goes to another
        self.instructions: int = self._tape.n
        self._adjoints = np.zeros(self._tape.flushed_cell)

    def forward(self) -> None:
        """Compute all values again."""
        self._tape.done = self._tape.done_cell = 0
        with tg.executor("compiled"):
            execute.evaluate(self._tape)

    def reverse(self) -> None:
        """Compute the adjoints of the leaves again."""
        cell = self._out.cell
        self._adjoints[cell] = 1.0
        with tg.executor("compiled"):
            execute.reverse(self._tape, self._adjoints, cell + 1)
        for entry in self._tape.imports:  # the sweep leaves the leaves' adjoints to its caller
            self._adjoints[entry.cell] = 0.0

    def sweep(self) -> None:
        """Compute values, then adjoints."""
        self.forward()
        self.reverse()


def swept_hessian(
    f: Callable[[Any], Any], x: NDArray[np.float64]
) -> tuple[Callable[[NDArray[np.float64]], Any], dict[str, float]]:
    """Return `tg.sparse_hessian(f)` made to sweep, and seconds for its structure and colouring."""
    sparsity: Any = importlib.import_module("tapegrad.sparse.sparsity")
    hessian: Any = tg.sparse_hessian(f)
    with mock.patch.object(sparsity, "_may_derive", return_value=False):
        start = time.perf_counter()
        hessian(x)
        info = {"trace_s": time.perf_counter() - start}
    swept, gradient = hessian._last._sparse["hessian", 0], hessian._last.gradient()
    start = time.perf_counter()
    sparsity._symmetric_pattern(gradient.tape, swept._cells, gradient._inputs[0])
    info["pattern_s"] = time.perf_counter() - start
    start = time.perf_counter()
    swept.pattern._choose()
    info["color_s"] = time.perf_counter() - start
    info["trace_s"] -= info["pattern_s"] + info["color_s"]
    return hessian, info


def prepared(derivative: Any, x: NDArray[np.float64], derive: bool) -> Callable[[], object]:
    """Return what prepares the recording of a sparse derivative anew, one way or the other."""
    sparsity: Any = importlib.import_module("tapegrad.sparse.sparsity")

    def prepare() -> object:
        with mock.patch.object(sparsity, "_may_derive", return_value=derive):
            prepare = getattr(sparsity, f"_prepare_{derivative._kind}")
            result = prepare(derivative._last, 0)
            return result if derive else result.pattern.compression

    derivative(x)
    prepare()
    return prepare
