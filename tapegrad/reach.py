"""Which values depend on a leaf that requires a gradient: a walk backward over the tape.

Like a backward sweep, with one mark a cell in the place of adjoints, and no arithmetic: a mark
passes from a result to the operands that have a derivative, whatever the values are.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

import numpy as np

from .kernels.opcodes import (
    BINARY,
    BINARY_KX,
    BINARY_XK,
    CARRY,
    CONST,
    FLAT_OPERANDS,
    HOST,
    INPUT,
    KINDS,
    LANES,
    NONDIFF,
    ROW_OF,
    TERNARY,
    UNARY,
    ZERO_DERIVATIVE,
)
from .kernels.reference import CELLS, INDEXED
from .storage import Cells
from .tape import Import, Tape, check_usable
from .window import Window


def reaches_leaf(tape: Tape, cells: int | Cells, size: int) -> bool:
    """Whether a derivative flows from `cells` of `tape` to a leaf that requires a gradient.

    The walk is exact to the cell, but for structural operations (sums, products of matrices, ...),
    each element of whose result is taken to depend on all elements of the operands.

    Parameters
    ----------
    tape : Tape
    cells : int or ndarray
        First cell of a run, or the cells.
    size : int
        Length of the run.
    """
    marks = {tape.serial: _Marks(tape)}
    marks[tape.serial].add(cells, size)
    order = [-tape.serial]
    while order:
        for entry, marked in marks.pop(-heapq.heappop(order)).walk():
            if entry.leaf is not None and entry.leaf.requires_grad:
                return True
            source = entry.source
            if source is None:
                continue
            if source.serial not in marks:
                marks[source.serial] = _Marks(source)
                heapq.heappush(order, -source.serial)
            run = isinstance(entry.cells, int)
            marks[source.serial].add(
                marked + entry.cells if run else np.ravel(entry.cells)[marked], 0
            )
    return False


class _Marks:
    """One byte a cell of a tape: whether the walk has come to it."""

    def __init__(self, tape: Tape) -> None:
        check_usable(tape)
        with tape.lock:
            if tape.code:
                tape.flush()
        self.tape = tape
        self.marks = bytearray(tape.flushed_cell)
        self.array = np.frombuffer(self.marks, np.bool_)  # the same bytes

    def add(self, cells: Any, size: int) -> None:
        """Mark a run of cells, or an array of them."""
        self.array[slice(cells, cells + size) if isinstance(cells, int) else cells] = True

    def walk(self) -> Iterator[tuple[Import, np.ndarray[Any, Any]]]:
        """Carry marks to operands; yield imports that are reached, and which of their cells."""
        tape, marks = self.tape, self.marks
        if tape.detached or not _leads_on(tape):
            return
        arena = tape.arena
        op, a, b = (column.array.data for column in (arena.op, arena.a, arena.b))
        cell = tape.flushed_cell
        for i in range(tape.n - 1, -1, -1):
            o = op[i]
            cell -= b[i] if o in (INPUT, LANES, HOST) else 1
            if KINDS[o]:
                if marks[cell]:
                    if _IN_A[o]:
                        marks[a[i]] = 1
                    if _IN_B[o]:
                        marks[b[i]] = 1
                    if _IN_CARRY[o]:
                        marks[a[i - 1]] = 1
            elif o in (CARRY, CONST) or marks.find(1, cell, cell + b[i]) < 0:
                continue
            elif o == INPUT:
                yield tape.imports[a[i]], self.array[cell : cell + b[i]].nonzero()[0]
            elif o == LANES:
                self._carry_lanes(a[i], self.array[cell : cell + b[i]])
            else:
                for operand in tape.hosts[a[i]].operands:
                    if operand.constant is None:
                        window = operand.window
                        self.array[operand.cells if window is None else window.cells()] = True

    def _carry_lanes(self, at: int, lanes: np.ndarray[Any, Any]) -> None:
        d = self.tape.d.array()
        row, ndim = int(d[at]), int(d[at + 1])
        shape = tuple(d[at + 2 : at + 2 + ndim].tolist())
        for position in range(len(_COLUMNS[KINDS[row]])):
            at += 2 + ndim
            kind, offset, *strides = d[at : at + 2 + ndim].tolist()
            if kind in (CELLS, INDEXED) and position in FLOWS[row]:
                places = Window(offset, shape, tuple(strides)).cells().ravel()[lanes]
                self.array[self.tape.x.array()[places] if kind == INDEXED else places] = True


def _leads_on(tape: Tape) -> bool:
    return any(
        entry.source is not None or (entry.leaf is not None and entry.leaf.requires_grad)
        for entry in tape.imports
    )


# Where scalar instructions keep the cells of operands x, y, z: in column a, in column b, or in the
# column a of the CARRY before (c); a constant operand (-) is no cell.
_COLUMNS = {UNARY: "a", BINARY: "ab", BINARY_XK: "a-", BINARY_KX: "-a", TERNARY: "cab"}


def _flows(op: int) -> tuple[int, ...]:
    """Return the operands of a row that a derivative flows to."""
    row = ROW_OF[op]
    if not KINDS[op] or row in ZERO_DERIVATIVE or row in NONDIFF:
        return ()
    flat = FLAT_OPERANDS.get(row, ())
    return tuple([i for i in range(len(_COLUMNS[KINDS[op]])) if i not in flat])


def _flows_by(column: str) -> bytes:
    """Return, by opcode, whether a derivative flows to the cell in a column."""
    return bytes(
        [any(_COLUMNS[KINDS[op]][i] == column for i in FLOWS[op]) for op in range(len(KINDS))]
    )


FLOWS = [_flows(op) for op in range(len(KINDS))]
_IN_A, _IN_B, _IN_CARRY = map(_flows_by, "abc")
