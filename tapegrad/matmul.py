"""Products of matrices and vectors: small ones element by element, others as one instruction.

A structural instruction (`tapegrad.host`) is run by Python, which takes microseconds however small
its operands are. Products of 3x3 matrices and the like are therefore recorded as the scalar
multiplications and additions that they consist of: compiled kernels sweep those in nanoseconds, and
everything that is known of scalar instructions (derivatives of any order, batches, compiled loops,
exact sparsity) holds for them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import prod
from operator import itemgetter, length_hint
from typing import Any

import numpy as np

from .host import result_shape, structural
from .kernels.opcodes import ROWS
from .recording import (
    FLOAT32,
    FLOAT64,
    INT64,
    cells_of,
    elementwise,
    operand,
    promote,
    run,
    shape_of,
)
from .storage import TrackedArray
from .tape import BLOCK, Tape, recorder
from .window import Shape

PRODUCTS = 64
"""Multiplications in a product that is recorded element by element, at most: two 4x4 matrices."""

TERMS = 16
"""Terms of an inner product of vectors that is, at most: its adjoints are cheap for Python, too."""

_MULTIPLY, _MULTIPLY_XK, _MULTIPLY_KX = ROWS["multiply"]
_ADD = ROWS["add"][0]


class Written:
    """The scalar instructions of a product of operands of given shapes.

    All multiplications come first, term by term, and then the sums, so that long runs of one opcode
    are swept, and the results own consecutive cells. Terms are added from the first to the last.

    Attributes
    ----------
    count : int
        Instructions, each of which owns a cell.
    first : int
        The first of those that are the results.
    """

    __slots__ = ("_pick", "_pick_swapped", "count", "first")

    def __init__(self, x: Shape, y: Shape, shape: Shape) -> None:
        terms, size = x[-1], prod(shape)
        left = np.arange(prod(x)).reshape(x if len(x) > 1 else (1, *x))
        right = np.arange(prod(y)).reshape(y if len(y) > 1 else (*y, 1))
        a, b = left[..., :, None, :], np.swapaxes(right, -1, -2)[..., None, :, :]
        a, b = (np.moveaxis(part, -1, 0).reshape(terms, -1) for part in np.broadcast_arrays(a, b))
        # Where the parts of an instruction stand: two opcodes, the operands' places, new cells.
        places_x, places_y, cells = 2, 2 + prod(x), 2 + prod(x) + prod(y)
        multiplications = np.stack([np.zeros_like(a), places_x + a, places_y + b], -1)
        self.count = (2 * terms - 1) * size
        self.first = self.count - size
        total = np.arange(cells, cells + size)
        additions = []
        for term in range(1, terms):
            other = np.arange(size) + cells + term * size
            additions.append(np.stack([np.ones_like(total), total, other], -1))
            total = np.arange(size) + cells + (terms + term - 1) * size
        rest = np.concatenate([np.zeros((0, 3), np.int64), *additions])
        straight, swapped = multiplications.reshape(-1, 3), multiplications[..., [0, 2, 1]]
        self._pick, self._pick_swapped = (
            itemgetter(*np.concatenate([part.reshape(-1, 3), rest]).ravel().tolist())
            for part in (straight, swapped)
        )

    def append(self, tape: Tape, x: Any, y: Any) -> int:
        """Append the instructions to the current tape; return the first cell of the results."""
        pick, opcode = self._pick, _MULTIPLY
        if not isinstance(x, TrackedArray):
            pick, opcode = self._pick_swapped, _MULTIPLY_KX
        elif not isinstance(y, TrackedArray):
            opcode = _MULTIPLY_XK
        places_x, places_y = _places(tape, x), _places(tape, y)
        if length_hint(tape.cells) < self.count:
            if len(tape.code) // 3 + self.count > BLOCK:
                tape.flush()
            tape.open_block()
        cell, stop = tape.next_cell, tape.next_cell + self.count
        code = pick([opcode, _ADD, *places_x, *places_y, *range(cell, stop)])
        cells = iter(range(stop, tape.stop))
        # No call between these two lines: Ctrl-C cannot fall between them.
        tape.code += code
        tape.cells = cells
        return cell + self.first


def _places(tape: Tape, x: Any) -> Sequence[int]:
    """Return the cells of an array's elements, or where those of a constant are in the pool."""
    if not isinstance(x, TrackedArray):
        tape.captures(x)
        return list(map(tape.constant, np.asarray(x, np.float64).ravel().tolist()))
    window = x.window
    storage = tape.import_storage(x.storage)
    if storage.index is None and window.is_contiguous:
        first = storage.base + window.offset
        return range(first, first + window.size)
    places: list[int] = cells_of(tape, x).ravel().tolist()
    return places


@functools.lru_cache(1 << 10)
def _written(x: Shape, y: Shape) -> tuple[Shape, Written] | None:
    """Return the shape of a product and how it is written; None for a structural instruction."""
    if not x or not y or x[-1] == 0 or (len(x) == len(y) == 1 and x[-1] > TERMS):
        return None
    try:
        shape = result_shape("matmul", [x, y], {})
    except ValueError:
        return None  # `structural` says what is wrong, and where
    if not 0 < prod(shape) * x[-1] <= PRODUCTS:
        return None
    return shape, Written(x, y, shape)


def matmul(x: Any, y: Any) -> Any:
    """Record the product of two operands as `numpy.matmul` has it.

    Parameters
    ----------
    x, y : array_like
        Tracked or constant, at least one of them tracked. Vectors count as a row or a column;
        leading axes are broadcast.

    Returns
    -------
    Array
        Its terms are added from the first to the last, where the product is a small one: NumPy's
        last digits may differ, and the sign of a zero.

    Raises
    ------
    ValueError
        If the shapes do not match, or an operand has no axes.
    TypeError
        If an operand is no array of numbers.

    Examples
    --------
    Eight multiplications, four additions, and two inputs:

    >>> import numpy as np, tapegrad as tg
    >>> tg.record(lambda x, y: x @ y, np.ones((2, 2)), np.ones((2, 2)))
    Program(<lambda>: 14 instructions, 0 decisions)
    """
    a, b = operand(x), operand(y)
    known = None
    if a is not NotImplemented and b is not NotImplemented:
        known = _written(shape_of(a), shape_of(b))
    if known is None:
        return structural("matmul", x, y)
    shape, written = known
    dtype = promote((a, b))
    tape = recorder.current()
    base = written.append(tape, a, b)
    if dtype == FLOAT32:
        return elementwise("float32", run(tape, base, shape, FLOAT64))
    return run(tape, base, shape, INT64 if dtype.kind in "biu" else dtype)


__all__ = ["PRODUCTS", "TERMS", "matmul"]
