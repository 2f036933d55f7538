"""Products with a constant matrix, the layers of networks, for many directions at once.

Adjoints and tangents have a row a cell and a column a direction (`tapegrad.transforms.rows`), and
an array's cells are in C order.  So all directions together are one product of matrices, from rows
into rows, without copies: with a matrix on the left, the axes of the array behind its first one
count as more columns, and with one on the right, the axes before its last one as a stack.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ..host import HostCall
from ..storage import Floats
from ..window import Window
from .rows import Rows

Run = tuple[int, int]  # first cell, and where they end
Calls = list[Callable[[], object]]


class Product:
    """A product of a constant matrix and an array on a run of cells.

    Its rules return calls, which are to be made at once, in this order; rows of the same cells that
    have been reached in the same way may be carried on by the same calls later.

    Attributes
    ----------
    matrix : ndarray of shape (r, n)
        What each of `stack` parts of the array, of shape (n, `columns`), is multiplied by.
    window : Window
        The cells of the array.
    """

    __slots__ = ("_finite", "columns", "matrix", "stack", "window")

    def __init__(self, matrix: Floats, window: Window, stack: int, columns: int) -> None:
        self.matrix, self.window, self.stack, self.columns = matrix, window, stack, columns
        self._finite = bool(np.isfinite(matrix).all())

    @property
    def run(self) -> Run:
        """The cells of the array: the first, and where they end."""
        return self.window.offset, self.window.offset + self.window.size

    def adjoints(self, g: Rows, cell: int, size: int) -> Calls:
        """Add to the adjoints of the array what those of the product, from `cell` on, give."""
        return self._carry(self.matrix.T, g, (cell, cell + size), self.run)

    def tangents(self, t: Rows, cell: int, size: int) -> Calls:
        """Set the tangents of the product, whose cells begin with `cell`."""
        return self._carry(self.matrix, t, self.run, (cell, cell + size))

    def _carry(self, matrix: Floats, rows: Rows, source: Run, target: Run) -> Calls:
        """Multiply rows of the cells `source` by `matrix`, and add them to those of `target`."""
        low, high = _reached(rows.reached[source[0] : source[1]])
        if low == high:
            return []
        if self.stack == self.columns == 1:  # only some elements of a vector may have any
            matrix = matrix[:, low:high]
            given = rows.run(source[0] + low, source[0] + high)
        else:
            given = rows.run(*source)
        into, reached = rows.values[target[0] : target[1]], rows.reached[target[0] : target[1]]
        missing = reached == 0
        if missing.all():
            multiply = functools.partial(self._multiply, matrix, given, into)
            return [multiply, functools.partial(reached.fill, 1)]
        result = np.empty_like(into)
        calls: Calls = [functools.partial(self._multiply, matrix, given, result)]
        if missing.any():
            calls.append(functools.partial(into.__setitem__, missing, 0.0))
            calls.append(functools.partial(reached.fill, 1))
        return [*calls, functools.partial(np.add, into, result, out=into)]

    def _multiply(self, matrix: Floats, given: Floats, result: Floats) -> None:
        if self.stack > 1:
            shape = self.stack, -1, given.shape[1]
            np.matmul(matrix, given.reshape(shape), out=result.reshape(shape))
        elif self.columns > 1:
            wide = given.reshape(matrix.shape[1], -1)
            np.matmul(matrix, wide, out=result.reshape(len(matrix), -1))
        elif _is_diagonal(given):
            # The first step of a Jacobian. The sum is for zeros: they are not negative.
            np.multiply(matrix, given.diagonal(), out=result)
            result += 0.0
        else:
            np.matmul(matrix, given, out=result)
        if not self._finite:  # but where nothing flows, nothing becomes nan
            result[:, ~given.any(axis=0)] = 0.0


def product_of(call: Any) -> Product | None:
    """Return what a structural operation is as a product with a constant matrix, if it is one."""
    if type(call) is not HostCall or call.row.name != "matmul":
        return None
    known: Product | None = call.product
    if known is None or known.window is not _window(call):
        call.product = known = _product(call)
    return known


def _window(call: HostCall) -> Window | None:
    """Return the operand that varies, where the other one is constant."""
    left, right = call.operands
    return left.window if right.constant is not None else right.window


def _product(call: HostCall) -> Product | None:
    left, right = call.operands
    matrix = left.constant if right.constant is None else right.constant
    w = _window(call)
    if matrix is None or w is None or not w.is_contiguous or w.size == 0 or matrix.ndim > 2:
        return None
    if right.constant is not None:
        matrix = matrix[None, :] if matrix.ndim == 1 else matrix.T
        return Product(matrix, w, w.size // matrix.shape[1], 1)
    if w.ndim > 2:
        return None
    matrix = np.atleast_2d(matrix)
    return Product(matrix, w, 1, w.size // matrix.shape[1])


def _reached(flags: Any) -> tuple[int, int]:
    """Return where the flags that are set begin and end."""
    low = int(flags.argmax())
    if not flags[low]:
        return 0, 0
    return low, len(flags) - int(flags[::-1].argmax())


def _is_diagonal(rows: Floats) -> bool:
    n, m = rows.shape
    if n != m or n < 2 or rows[0, -1] != 0.0 or rows[-1, 0] != 0.0:
        return False
    return bool(np.count_nonzero(rows != 0.0) == np.count_nonzero(rows.diagonal()))
