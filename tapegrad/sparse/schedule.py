"""Putting straight code in the order in which it runs fastest, as a tape.

Instructions of one opcode that do not wait for each other become one array instruction; cells are
numbered so that its operands are runs of cells, wherever that is possible.  What remains single are
scalar instructions.  Code is taken in tiles, so that what an instruction reads was computed not
long ago.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arena import CompactArena
from ..kernels.opcodes import ARITY, INPUT, KINDS, LANES, ROW_OF, ROWS, TERNARY
from ..kernels.reference import CELLS, CONSTANT, INDEXED
from ..tape import Import, Tape, recorder
from .straight import Ints

TILE = 1 << 17  # instructions
FEWEST_LANES = 16  # for fewer, an array instruction takes longer than scalar ones


def schedule(code: Any, inputs: int, wanted: Ints) -> tuple[Tape, Ints]:
    """Return a tape of the part of code that is needed, and the cells with the wanted values.

    Parameters
    ----------
    code : Code
        See `tapegrad.kernels.cpu.rewriting`.
    inputs : int
        The number of inputs, which come first.
    wanted : ndarray of int
        Cells, or constants.
    """
    return _Schedule(code, inputs, wanted).finish(wanted)


class _Schedule:
    def __init__(self, code: Any, inputs: int, wanted: Ints) -> None:
        n = int(code.used[0])
        self._inputs = inputs
        self._k = code.k[: code.used[1]]
        self._columns: list[tuple[Any, Any, Any]] = []  # opcode, a, b of pieces of the tape
        self._d: list[int] = []
        self._x: list[Any] = []
        self._x_size = 0
        # Constants that must be in cells stand after all others: until then they are -1 - i.
        self._late: list[Any] = []
        self._late_size = 0
        self._late_in_d: list[int] = []
        self.new: Ints = np.zeros(n, np.int64)  # by cell of the code
        self.new[:inputs] = np.arange(inputs)
        self._next = inputs
        self._add_tiles(code, wanted)

    def _add_tiles(self, code: Any, wanted: Ints) -> None:
        """Append all that is needed, tile by tile."""
        from ..kernels.cpu import ordering  # with Numba

        n = int(code.used[0])
        order, waiting = np.empty(n, np.int32), np.empty(n, np.int32)
        place, ends = np.full(n, -1, np.int32), np.zeros(len(wanted) + 1, np.int32)
        ordering.order_by_need(code, wanted, self._inputs, place, waiting, order, ends[1:])
        order = order[: ends[-1]]
        level = waiting
        first = 0
        while first < len(order):
            # What is needed together stays together, so that tiles of equal code look the same.
            stop = int(ends[np.searchsorted(ends, min(first + TILE, len(order)))])
            ordering.levels(code, order, place, level, first, stop)
            self._add_tile(code, order[first:stop], level[first:stop].astype(np.int64))
            first = stop

    def _add_tile(self, code: Any, cells: Any, level: Ints) -> None:
        """Append the instructions of some cells, by level, opcode, and which operands vary.

        Where many have a constant in common, they stay together; others share what remains.
        """
        op, x, y, _ = code.ins[cells].astype(np.int64).T
        key = (level * 256 + op) * 4 + 2 * (x < 0) + (y < 0)
        number = np.where(x < 0, -x, np.where((y < 0) & (_ARITY[op] > 1), -y, 0))
        number[~_often(key, number)] = len(self._k) + 1
        sorted_ = np.lexsort((number, key))
        cells, key, op, number = cells[sorted_], key[sorted_], op[sorted_], number[sorted_]
        starts = _starts(key, number)
        stops = np.append(starts[1:], len(cells))
        wide = (stops - starts >= FEWEST_LANES) | _IS_TERNARY[op[starts]]
        done = 0
        for start, stop in zip(starts[wide].tolist(), stops[wide].tolist(), strict=True):
            self._add_scalars(code, cells[done:start])
            self._add_lanes(code, int(op[start]), cells[start:stop])
            done = stop
        self._add_scalars(code, cells[done:])

    # -- array instructions ------------------------------------------------------------------------

    def _add_lanes(self, code: Any, op: int, cells: Ints) -> None:
        columns = code.ins[cells, 1 : 1 + ARITY[ROW_OF[op]]]
        operands = list(columns.T.astype(np.int64))
        for operand in operands:
            if operand[0] >= 0:  # so are all others, or an operand of a choice
                places = self.new[np.maximum(operand, 0)]
                if (places[1:] < places[:-1]).any():
                    ordered = np.argsort(places, kind="stable")
                    cells, operands = cells[ordered], [x[ordered] for x in operands]
                break
        n = len(cells)
        at = len(self._d)
        self._d += [op, 1, n]
        for operand in operands:
            self._add_window(operand)
        self._columns.append(
            (np.array([LANES], np.uint8), np.array([at], np.int64), np.array([n], np.int64))
        )
        self.new[cells] = self._next + np.arange(n)
        self._next += n

    def _add_window(self, operand: Ints) -> None:
        """Append where an array instruction finds an operand."""
        n = len(operand)
        fixed = operand < 0
        if fixed.all():
            numbers = -1 - operand
            if (numbers == numbers[0]).all():
                self._d += [CONSTANT, int(numbers[0]), 0]
                return
            self._late_in_d.append(len(self._d) + 1)
            self._d += [CELLS, self._add_late(numbers), 1]
            return
        places = self.new[np.maximum(operand, 0)]
        if not fixed.any():
            step = int(places[1] - places[0]) if n > 1 else 0
            if n < 3 or (np.diff(places) == step).all():
                self._d += [CELLS, int(places[0]), step]
                return
        self._d += [INDEXED, self._x_size, 1 if n > 1 else 0]
        if fixed.any():
            first = self._add_late(-1 - operand[fixed])
            places[fixed] = -1 - (first + np.arange(int(fixed.sum())))
        self._x.append(places)
        self._x_size += n

    def _add_late(self, numbers: Ints) -> int:
        """Put constants in cells after all others; return the place of the first among those."""
        self._late.append(self._k[numbers])
        self._late_size += len(numbers)
        return self._late_size - len(numbers)

    # -- scalar instructions -----------------------------------------------------------------------

    def _add_scalars(self, code: Any, cells: Ints) -> None:
        n = len(cells)
        if not n:
            return
        self.new[cells] = self._next + np.arange(n)
        self._next += n
        op, x, y, _ = code.ins[cells].astype(np.int64).T
        binary = _ARITY[op] == 2
        a = self.new[np.maximum(x, 0)]
        b = np.where(binary, self.new[np.maximum(y, 0)], 0)
        with_y = binary & (y < 0) & (_WITH_Y[op] > 0)
        with_x = binary & (x < 0) & (y >= 0) & (_WITH_X[op] > 0)
        new = np.where(with_y, _WITH_Y[op], np.where(with_x, _WITH_X[op], op)).astype(np.uint8)
        b[with_y] = -1 - y[with_y]
        a[with_x], b[with_x] = b[with_x], -1 - x[with_x]
        self._fill(a, x, (x < 0) & ~with_x)
        self._fill(b, y, binary & (y < 0) & ~with_y)
        self._columns.append((new, a, b))

    def _fill(self, column: Ints, operand: Ints, chosen: Any) -> None:
        """Let an operand that is constant stand in a cell where its row wants one."""
        if chosen.any():
            first = self._add_late(-1 - operand[chosen])
            column[chosen] = -1 - (first + np.arange(int(chosen.sum())))

    # -- the end -----------------------------------------------------------------------------------

    def finish(self, wanted: Ints) -> tuple[Tape, Ints]:
        """Return the tape, and the cells of what is wanted."""
        cells = np.where(wanted < 0, 0, self.new[np.maximum(wanted, 0)])
        fixed = wanted < 0
        if fixed.any():
            numbers, which = np.unique(-1 - wanted[fixed], return_inverse=True)
            cells[fixed] = -1 - (self._add_late(numbers) + which)
        late = np.concatenate([np.zeros(0), *self._late])
        base = self._next

        def settled(column: Any) -> Any:
            return np.where(column < 0, base - 1 - column, column)

        inputs = np.array([INPUT], np.uint8), np.array([0]), np.array([self._inputs])
        pieces = [inputs, *self._columns]  # the constants at the end belong to no instruction
        op = np.concatenate([piece[0] for piece in pieces])
        a = settled(np.concatenate([piece[1] for piece in pieces])).astype(np.uint32)
        b = settled(np.concatenate([piece[2] for piece in pieces])).astype(np.uint32)
        v = np.zeros(base + len(late))
        v[base:] = late
        tape = Tape(recorder.owner)
        tape._arena = CompactArena(op, a, b, v)
        tape.k.extend(self._k.copy())
        d = np.array(self._d, np.int64)
        d[self._late_in_d] += base
        tape.d.extend(d)
        tape.x.extend(settled(np.concatenate([np.zeros(0, np.int64), *self._x])).astype(np.uint32))
        tape.imports = [Import(0, self._inputs)]
        tape.n, tape.flushed_cell = len(op), len(v)
        tape.input_cells = self._inputs
        tape.cells, tape.stop, tape.open = iter(range(0)), len(v), False
        return tape, settled(cells)


def _often(key: Ints, number: Ints) -> Any:
    """Say which pairs occur often enough for an array instruction of their own."""
    order = np.lexsort((number, key))
    starts = _starts(key[order], number[order])
    lengths = np.diff(np.append(starts, len(key)))
    often = np.empty(len(key), np.bool_)
    often[order] = np.repeat(lengths >= FEWEST_LANES, lengths)
    return often


def _starts(key: Ints, number: Ints) -> Ints:
    """Return where another pair begins."""
    changes = (key[1:] != key[:-1]) | (number[1:] != number[:-1])
    return np.flatnonzero(np.append(len(key) > 0, changes))


_PAD = [0] * (256 - len(KINDS))
_IS_TERNARY = np.array([kind == TERNARY for kind in KINDS] + _PAD, np.bool_)
_ARITY = np.array([ARITY.get(row, 0) for row in ROW_OF] + _PAD, np.int64)
_WITH_Y, _WITH_X = (
    np.array([max(ROWS[row][j], 0) if row in ROWS else 0 for row in ROW_OF] + _PAD, np.int64)
    for j in (1, 2)
)
