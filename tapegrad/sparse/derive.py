"""Sparse derivatives as programs: every nonzero of a Jacobian or Hessian is computed by itself.

The tape becomes straight code (`tapegrad.sparse.straight`), from which derivatives are derived, one
instruction after another, as more of it (`tapegrad.kernels.cpu.derive`): for a Hessian the gradient
by a backward sweep, and then, forward, the derivatives of each cell with respect to the inputs that
it depends on.  Shared and constant parts are found on the way, and what is left is put in the order
in which it runs fastest (`tapegrad.sparse.schedule`).  Nothing is seeded, coloured or compressed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import execute
from ..kernels.opcodes import ROWS
from ..kernels.partials import FLOWS, PARTIALS
from ..programs.layout import first_cells
from ..storage import Floats
from ..tape import Tape
from .schedule import schedule
from .straight import Ints, Straight, Unsupported

if TYPE_CHECKING:
    from ..programs.program import Program

COMPILED_FROM = 1_000
"""Cells from which on a program of nonzeros runs compiled at once: Numba is there already."""

CACHED = 1 << 17
"""Cells from which on values that are not among the nonzeros are not stored: a megabyte of them."""

ROOM = 4
"""Derived code that there is room for from the start, by the length of what it is derived from."""

GROWTH = 16
"""Derived code may be this many times as long as what it is derived from; then it is given up."""


class DerivedMatrix:
    """A program that computes the nonzeros of a sparse matrix of derivatives.

    Attributes
    ----------
    indptr, columns : ndarray of int64
        The structure, row by row.
    """

    __slots__ = ("_cells", "_gather", "_needed", "_tape", "columns", "indptr")

    def __init__(self, indptr: Ints, columns: Ints, tape: Tape, cells: Ints) -> None:
        from ..kernels.cpu.derive import gather  # with Numba

        self.indptr, self.columns = indptr, columns
        self._gather = gather
        self._tape, self._cells = tape, cells.astype(np.uint32)
        self._needed = stretches(tape, cells) if tape.flushed_cell > CACHED else None

    def __len__(self) -> int:
        """Return the number of instructions."""
        return self._tape.n

    def values(self, inputs: Sequence[Any]) -> Floats:
        """Return the nonzeros for values of the program's inputs.

        A sweep carries on nothing that is zero, be it multiplied by inf; this does, so that it may
        answer nan, and nothing worse, where that would not.
        """
        tape = self._tape
        v, start = tape.arena.v.array, 0
        for value in inputs:
            stop = start + value.size
            v[start:stop] = value.ravel()
            start = stop
        if self._needed is None:
            tape.done, tape.done_cell = 1, start
        else:
            tape.done, tape.done_cell, tape.sparse = 0, 0, None
        execute.evaluate(tape, self._needed)
        nonzeros = np.empty(len(self._cells))
        self._gather(v, self._cells, nonzeros)
        return nonzeros


def stretches(tape: Tape, cells: Ints) -> tuple[tuple[int, int], ...]:
    """Return stretches of cells, lowest and highest, of the instructions that some belong to."""
    first = first_cells(tape.arena.op.array[: tape.n], tape.arena.b.array[: tape.n])
    chosen = np.zeros(tape.n + 2, np.bool_)  # one more at each end, which are not chosen
    chosen[np.searchsorted(first, cells, "right")] = True
    chosen[-1] = False  # constants, after all instructions
    starts, stops = np.flatnonzero(chosen[1:] != chosen[:-1]).reshape(-1, 2).T
    return tuple(zip(first[starts].tolist(), (first[stops] - 1).tolist(), strict=True))


def derive_jacobian(program: Program, known: Any, outputs: Ints) -> DerivedMatrix:
    """Return the program of a sparse Jacobian; raises `Unsupported` where it has none.

    Parameters
    ----------
    program : Program
    known
        The input to differentiate with respect to.
    outputs : ndarray of int
        Cells of the outputs.
    """
    code = _Derivation(program, known)
    rows, columns, values = code.tangents(code.cells[outputs])
    indptr = np.searchsorted(rows, np.arange(len(outputs) + 1))
    return code.finish(indptr, columns, values)


def derive_hessian(program: Program, known: Any, output: int) -> DerivedMatrix:
    """Return the program of a sparse Hessian; raises `Unsupported` where it has none."""
    code = _Derivation(program, known)
    rows, columns, values = code.tangents(code.gradient(int(code.cells[output])))
    # Elements above the diagonal stand for those below, too.
    n = known.size
    low, high = np.minimum(rows, columns), np.maximum(rows, columns)
    order = np.lexsort((rows, low * n + high))  # of a pair, the one above comes first
    pair = (low * n + high)[order]
    first = np.append(True, pair[1:] != pair[:-1]) if pair.size else np.zeros(0, np.bool_)
    low, high, values = low[order][first], high[order][first], values[order][first]
    below = low != high
    rows = np.concatenate((low, high[below]))
    columns = np.concatenate((high, low[below]))
    values = np.concatenate((values, values[below]))
    order = np.lexsort((columns, rows))
    indptr = np.searchsorted(rows[order], np.arange(n + 1))
    return code.finish(indptr, columns[order], values[order])


def derive_gradient(program: Program, output: int) -> tuple[Any, Ints, Ints]:
    """Return the code of a program with a backward sweep from one of its cells.

    Returns
    -------
    code
        See `tapegrad.kernels.cpu.rewriting`: all inputs of the program come first.
    cells : ndarray of int
        By cell of the program: the cell or constant that has its value.
    adjoints : ndarray of int
        The derivative with respect to each input: a cell, a constant, or `NOTHING`.
    """
    known = next(x for x in program._inputs if x is not None)
    code = _Derivation(program, known)
    code._mine = slice(0, code._inputs)
    adjoints = code.gradient(int(code.cells[output]))
    return code._code, code.cells, adjoints


class _Derivation:
    """Code that grows, derived from the tape of a program.

    Attributes
    ----------
    cells : ndarray of int64
        By cell of the tape: the cell or constant that has its value here.
    """

    def __init__(self, program: Program, known: Any) -> None:
        execute.load("derive")
        from ..kernels.cpu import rewriting  # with Numba

        tape = program.tape
        inputs = [x for x in program._inputs if x is not None]
        leaves = {id(x.leaf) for x in inputs}
        straight = Straight(tape, [e for e in tape.imports if id(e.leaf) not in leaves])
        places = [slice(x.cell, x.cell + x.size) for x in inputs]
        starts = np.cumsum([0, *[x.size for x in inputs]])
        mine = next(i for i, x in enumerate(inputs) if x is known)
        self._mine = slice(int(starts[mine]), int(starts[mine + 1]))
        self._inputs = int(starts[-1])
        n = len(straight.op)
        self._limit = GROWTH * n + (1 << 16)

        programs = _programs()
        constants = np.concatenate(straight.k)
        pool, which = _distinct(np.concatenate((constants, programs.numbers)))
        numbers = -1 - which
        steps = _renamed(programs.steps, numbers[len(constants) :])
        self._programs = programs.entries.copy()
        self._programs[:, 2] = _renamed(self._programs[:, 2], numbers[len(constants) :])
        self._scratch = np.zeros(64, np.int64)
        self._code = self._new_code(steps, pool, self._inputs + ROOM * n)

        to = np.full(n + 1, -1, np.int32)
        for place, start in zip(places, starts.tolist(), strict=False):
            to[straight.cells[place]] = start + np.arange(place.stop - place.start)
        columns = [
            _renamed(column, numbers[: len(constants)]).astype(np.int32)
            for column in (straight.x, straight.y, straight.z)
        ]
        done = 0
        while done < n:
            done = rewriting.copy(self._code, straight.op, *columns, to, done, n)
            if done < n:
                self._grow()
        cells = _renamed(straight.cells, numbers[: len(constants)])
        self.cells: Ints = np.where(cells < 0, cells, to[np.maximum(cells, 0)])

    def _new_code(self, steps: Any, pool: Floats, room: int) -> Any:
        from ..kernels.cpu import rewriting

        room += 4 * rewriting.ROOM
        ins = np.empty((room, 4), np.int32)  # what is not used is not in memory
        ins[: self._inputs] = 0, -1, -1, -1
        k = np.concatenate((pool, np.zeros(4 * rewriting.ROOM)))
        used = np.array([self._inputs, len(pool)], np.int64)
        roles = _roles(rewriting.ROLES, rewriting.ROLE)
        code = rewriting.Code(ins, k, _table(room), _table(len(k)), roles, steps, used)
        rewriting.rehash(code)
        return code

    def _grow(self) -> None:
        """Make room for as many instructions and constants again."""
        from ..kernels.cpu import rewriting

        code = self._code
        if code.used[0] > self._limit:
            raise Unsupported("the derivatives are too many to be written out")
        size, k_size = 2 * len(code.ins), 2 * len(code.k)
        columns = {"ins": _longer(code.ins, size), "k": _longer(code.k, k_size)}
        self._code = code._replace(**columns, table=_table(size), k_table=_table(k_size))
        rewriting.rehash(self._code)

    def gradient(self, output: int) -> Ints:
        """Append a backward sweep from one cell; return the derivative with respect to each input.

        Inputs without one have `NOTHING`.
        """
        from ..kernels.cpu import derive

        stop = int(self._code.used[0])
        adjoint = np.full(stop, derive.NOTHING, np.int32)
        if output >= 0:
            active = np.zeros(stop, np.uint8)
            active[self._mine] = 1
            derive.reach_forward(self._code, self._programs, active, stop)
            adjoint[output] = self._constant(1.0)
            condition = np.full(stop, derive.NOTHING, np.int32)
            while stop:
                stop = derive.reverse(
                    *(self._code, self._programs, active, adjoint, condition),
                    *(self._scratch, stop),
                )
                if stop:
                    self._grow()
        return adjoint[self._mine].astype(np.int64)

    def tangents(self, outputs: Ints) -> tuple[Ints, Ints, Ints]:
        """Append the derivatives of outputs, row by row; return rows, columns, and their cells."""
        from ..kernels.cpu import derive

        stop = int(self._code.used[0])
        needed = np.zeros(stop, np.uint8)
        needed[outputs[outputs >= 0]] = 1
        derive.reach_backward(self._code, self._programs, needed, stop)
        size = self._mine.stop - self._mine.start
        start, count = np.zeros(stop, np.int64), np.zeros(stop, np.int32)
        start[self._mine], count[self._mine] = np.arange(size), 1
        of = np.zeros(2 * stop + size, np.int32)
        value = np.zeros(2 * stop + size, np.int32)
        of[:size], value[:size] = np.arange(size), self._constant(1.0)
        filled = np.array([size, 0], np.int64)
        first = 0
        while first < stop:
            first = derive.tangents(
                *(self._code, self._programs, needed, start, count, of, value),
                *(filled, self._scratch, first, stop),
            )
            if first < stop:
                of, value = _longer(of, 2 * len(of) + size), _longer(value, 2 * len(of) + size)
                self._grow()
        chosen = np.flatnonzero(outputs >= 0)
        cells = outputs[chosen]
        rows = np.repeat(chosen, count[cells])
        ends = np.cumsum(count[cells])
        places = np.arange(len(rows)) - np.repeat(ends - count[cells], count[cells])
        places += np.repeat(start[cells], count[cells])
        return rows, of[places].astype(np.int64), value[places].astype(np.int64)

    def _constant(self, value: float) -> int:
        code = self._code
        found = np.flatnonzero(code.k[: code.used[1]] == value)
        return -1 - int(found[0])  # 1.0 is among the numbers of partials

    def finish(self, indptr: Ints, columns: Ints, values: Ints) -> DerivedMatrix:
        """Return the program that computes the values, which are cells or constants."""
        tape, cells = schedule(self._code, self._inputs, values)
        if tape.flushed_cell >= COMPILED_FROM:
            execute.load("lanes")
        return DerivedMatrix(indptr.astype(np.int64), columns, tape, cells)


class _Programs:
    """The programs of partials, as arrays: see `tapegrad.kernels.cpu.derive`."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {"0.0": 0}
        self._steps: list[list[int]] = []
        self.entries = np.concatenate((self._entries(PARTIALS), self._entries(FLOWS)))
        self.steps = np.array(self._steps, np.int64)
        self.numbers = np.array([float(text) for text in self._numbers])

    def _entries(self, programs: Any) -> Ints:
        entries = np.full((3 * 256, 3), -1, np.int64)
        for row, of_row in programs.items():
            for j, steps in enumerate(of_row):
                if steps:
                    entries[3 * ROWS[row][0] + j] = self._program(steps)
        return entries

    def _program(self, steps: Any) -> tuple[int, int, int]:
        first = len(self._steps)
        if " " not in steps[0]:
            return first, first, self._name(steps[0])
        for step in steps:
            row, *names = step.split()
            places = [*map(self._name, names), *[-1] * (3 - len(names))]
            self._steps.append([ROWS[row][0], *places])
        return first, len(self._steps), 4 + len(steps) - 1

    def _name(self, name: str) -> int:
        if name in _OPERANDS:
            return _OPERANDS.index(name)
        if name[0] == "#":
            return 4 + int(name[1:])
        return -1 - self._numbers.setdefault(name, len(self._numbers))


_OPERANDS = ("x", "y", "z", "out")


@functools.cache
def _programs() -> _Programs:
    return _Programs()


def _roles(names: Any, offset: int) -> Ints:
    """Return the role of each opcode and, from `offset` on, the opcode of each role."""
    roles = np.zeros(offset + len(names), np.int64)
    for i, name in enumerate(names):
        if name:
            roles[offset + i] = ROWS[name][0]
            roles[ROWS[name][0]] = i
    return roles


def _distinct(values: Floats) -> tuple[Floats, Ints]:
    """Return the numbers that occur, in the order in which they do, and which each one is."""
    _, first, which = np.unique(values.view(np.int64), return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return values[first[order]], rank[which]


def _renamed(column: Any, numbers: Ints) -> Any:
    """Return operands with other numbers for constants."""
    return np.where(column < 0, numbers[np.maximum(-1 - column, 0)], column)


def _table(room: int) -> Any:
    """Return an empty hash table for so many entries."""
    return np.zeros(1 << (2 * room).bit_length(), np.int32)


def _longer(column: Any, size: int) -> Any:
    longer = np.zeros((size, *column.shape[1:]), column.dtype)
    longer[: len(column)] = column
    return longer
