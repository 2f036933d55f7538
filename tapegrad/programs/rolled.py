"""Loops of a program as compiled code, once replays have taken longer than compiling does.

A program is swept by interpreters, which need no compilation.  One that is replayed for seconds has
earned more: the loops in its tape are found again (`tapegrad.programs.rerolling`), and each loop
body is compiled as straight code, operands in registers.  Bodies that look the same share
code.
"""

from __future__ import annotations

import functools
import sys
import threading
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels import native
from ..kernels.opcodes import BINARY, CARRY, CONST, HOST, KINDS, LANES, TERNARY, UNARY
from ..regions.threads import direct
from ..regions.written import Record
from ..storage import Floats, address

if TYPE_CHECKING:
    from ..tape import Tape
    from .ready import Ready
    from .rerolling import Loop

SECONDS = 1.0
"""Time spent in sweeps of a program after which its loops are compiled: about what that takes."""

SLICE = 2_000_000  # instructions between two looks at Ctrl-C

_compile_lock = threading.Lock()


class Replays:
    """What a tape that is swept again and again keeps: the time spent so far, compiled loops.

    Parameters
    ----------
    cells : int
        How many cells the tape has.
    outputs : ndarray of int64
        Those that reverse sweeps start from; a sweep that starts elsewhere uses no loops.

    Attributes
    ----------
    rolled : Rolled or None
        The loops, once they are compiled.
    ready : Ready or None
        The sweeps as single calls, of a small tape.
    planned : bool
        Whether there are plans, even where the tape has few cells.
    count : int
        How often the tape was swept otherwise.
    """

    __slots__ = ("_is_output", "count", "planned", "ready", "rolled", "seconds")

    def __init__(self, cells: int, outputs: Any) -> None:
        self._is_output = np.zeros(cells, np.bool_)
        self._is_output[outputs] = True
        self.seconds, self.count = 0.0, 0
        self.rolled: Rolled | None = None
        self.ready: Ready | None = None
        self.planned = False

    def start_from(self, cells: Any, size: int) -> bool:
        """Whether a reverse sweep may start from these cells, or from a run of `size` cells."""
        if isinstance(cells, (int, np.integer)):
            return bool(self._is_output[cells : cells + size].all())
        return bool(self._is_output[cells].all())

    @property
    def due(self) -> bool:
        """Whether sweeps have taken as long as compiling does."""
        return self.rolled is None and self.seconds > SECONDS

    def until_due(self) -> int:
        """Return how many more sweeps like those so far it takes until compiling is due."""
        if self.seconds == 0.0:
            return sys.maxsize
        return int((SECONDS - self.seconds) * self.count / self.seconds)

    def compile(self, tape: Tape) -> None:
        """Find the loops of the tape and compile them."""
        if self.rolled is None:
            arena, n = tape.arena, tape.n
            op, a, b = (column.array[:n] for column in (arena.op, arena.a, arena.b))
            self.rolled = Rolled(op, a, b, np.flatnonzero(self._is_output))


class Rolled:
    """The compiled loops of one tape.

    Parameters
    ----------
    op, a, b : ndarray
        Columns of the tape.
    outputs : ndarray of int64
        Cells that a reverse sweep may start from.
    """

    def __init__(self, op: Any, a: Any, b: Any, outputs: Any) -> None:
        sizes = np.where(op < CONST, b, 1).astype(np.int64)
        first = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
        from .rerolling import find_loops  # with the first program that is replayed for long

        loops = [_cut(loop, op) for loop in find_loops(op, a, b)]
        self.bodies = [_Body(loop, op, a, b, first) for loop in loops]
        used = _used_outside(loops, op, a, b, first, outputs)
        for body in self.bodies:
            body.compile(used)
        self._starts = [loop.start for loop in loops]
        self._stops = [loop.stop for loop in loops]

    def __len__(self) -> int:
        """Return the number of loops."""
        return len(self.bodies)

    def starting_at(self, position: int) -> _Body | None:
        """Return the loop whose first instruction is at `position`."""
        i = bisect_left(self._starts, position)
        return self.bodies[i] if i < len(self._starts) and self._starts[i] == position else None

    def stopping_at(self, position: int) -> _Body | None:
        """Return the loop whose last instruction is before `position`."""
        i = bisect_left(self._stops, position)
        return self.bodies[i] if i < len(self._stops) and self._stops[i] == position else None

    def next_start(self, position: int, end: int) -> int:
        """Return where the next loop behind `position` starts, `end` if there is none before it."""
        i = bisect_right(self._starts, position)
        return min(end, self._starts[i]) if i < len(self._starts) else end

    def previous_stop(self, position: int, end: int) -> int:
        """Return where the last loop before `position` stops, `end` if there is none after it."""
        i = bisect_left(self._stops, position) - 1
        return max(end, self._stops[i]) if i >= 0 else end


class _Body:
    """One loop of a tape: where it is, and its code."""

    def __init__(self, loop: Loop, op: Any, a: Any, b: Any, first: Any) -> None:
        self.loop = loop
        self.start, self.stop = loop.start, loop.stop
        self.cell = int(first[loop.start])
        self.size = loop.period * loop.count
        self._parameters: list[int] = [self.cell]
        self._numbers: dict[tuple[int, int, bool], int] = {}
        self._slots = [
            (
                int(op[i]),
                [self._operand(i - loop.start, column, pooled) for column, pooled in parts],
            )
            for i, parts in self._instructions(op, a, b)
        ]

    def _instructions(self, op: Any, a: Any, b: Any) -> Any:
        """Yield each instruction of the body with its operands: columns of the first two copies."""
        period = self.loop.period
        for i in range(self.start, self.start + period):
            kind = KINDS[op[i]]
            parts = [((int(a[i]), int(a[i + period])), op[i] == CONST)]
            if kind not in (UNARY, 0):
                pooled = kind not in (BINARY, TERNARY)
                parts.append(((int(b[i]), int(b[i + period])), pooled))
            yield i, parts

    def _operand(self, j: int, places: tuple[int, int], pooled: bool) -> tuple[str, int]:
        from ..kernels.emit import loop as emit

        place, step = places[0], places[1] - places[0]
        period = self.loop.period
        if not pooled:
            back = self.cell + j - place
            if step == period and back <= j:
                return emit.LOCAL, j - back
            if step == period and back <= j + period:
                return emit.CARRIED, j - back + period
        kind = emit.FIXED if step == 0 and place < self.cell else emit.MEMORY
        return emit.POOLED if pooled else kind, self._parameter(place, step, pooled)

    def _parameter(self, place: int, step: int, pooled: bool) -> int:
        number = self._numbers.get((place, step, pooled))
        if number is None:
            number = self._numbers[place, step, pooled] = len(self._numbers)
            self._parameters += [place, step]
        return number

    def compile(self, used: Any) -> None:
        """Compile the body; `used` says by cell whether something outside the loop uses it."""
        from ..kernels.emit import loop as emit

        cells = self._memory_cells()
        touched = set(cells.tolist())
        for _, parts in self._slots:
            for i, (kind, n) in enumerate(parts):
                if kind == emit.FIXED and self._parameters[1 + 2 * n] in touched:
                    parts[i] = emit.MEMORY, n  # its adjoint cannot wait in a register
        shape = self.loop.count, self.loop.period
        outside = used[self.cell : self.cell + self.size].reshape(shape).any(axis=0)
        inside = np.zeros(self.size, np.bool_)
        cells = cells - self.cell
        inside[cells[(cells >= 0) & (cells < self.size)]] = True
        exposed = np.where(outside, emit.OUTSIDE, emit.NOBODY)
        exposed = np.where(inside.reshape(shape).any(axis=0), emit.MEMORY, exposed)
        body = tuple(
            emit.Slot(op, tuple([emit.Operand(*part) for part in parts]), str(by))
            for (op, parts), by in zip(self._slots, exposed, strict=True)
        )
        self.code = self._forward, self._reverse = _compiled(body)
        self.parameters = np.array(self._parameters, np.int64)
        self._slice = max(1, SLICE // self.loop.period)
        self._call = direct(native.load("replay")["call"])

    def _memory_cells(self) -> Any:
        """Return the cells that operands in memory name, over all iterations."""
        from ..kernels.emit import loop as emit

        numbers = {n for _, parts in self._slots for kind, n in parts if kind == emit.MEMORY}
        r = np.arange(self.loop.count)
        found = [self._parameters[1 + 2 * n] + self._parameters[2 + 2 * n] * r for n in numbers]
        return np.concatenate([np.empty(0, np.int64), *found])

    def forward(self, k: Floats, v: Floats) -> None:
        """Compute the values of all iterations."""
        columns = Record(0, 0, 0, k, v, 0)
        for r in range(0, self.loop.count, self._slice):
            self._run(self._forward, columns, r, min(r + self._slice, self.loop.count))

    def reverse(self, k: Floats, v: Floats, g: Floats) -> None:
        """Propagate the adjoints of all iterations, from the last to the first."""
        columns = Record(0, 0, 0, k, v, g)
        for r in range(self.loop.count, 0, -self._slice):
            self._run(self._reverse, columns, max(r - self._slice, 0), r)

    def _run(self, function: int, columns: Record, first: int, last: int) -> None:
        self._call(function, columns.address, address(self.parameters), first, last)


@functools.lru_cache(maxsize=256)
def _compiled(body: Any) -> tuple[int, int]:
    """Return the addresses of the code of a loop body."""
    from ..kernels.cpu import columns, jit, scalar
    from ..kernels.emit import writing
    from ..kernels.emit.loop import emit

    names = {**vars(columns), **vars(scalar), "likely": jit.likely}
    with writing:
        source = emit(body)
        exec(compile(source, "<a loop of a program>", "exec"), names)
    functions = names["forward"], names["reverse"]
    for function in functions:
        function.source = source
    with _compile_lock:
        forward, reverse = jit.natives("void(int64, int64, int64, int64)", *functions)
    return forward, reverse


def _cut(loop: Loop, op: Any) -> Loop:
    """Return the part of a loop that is compiled.

    The last iteration is left to the interpreter: what uses its results is code of all sorts.  A
    ternary instruction stays with the CARRY before it.
    """
    if KINDS[op[loop.start]] == TERNARY:
        loop = type(loop)(loop.start + 1, loop.period, loop.count - 1)
    return type(loop)(loop.start, loop.period, loop.count - 1)


def _used_outside(loops: list[Loop], op: Any, a: Any, b: Any, first: Any, outputs: Any) -> Any:
    """Return, by cell, whether it is an output, or used by an instruction outside its own loop."""
    cells = int(first[-1])
    used = np.zeros(cells, np.bool_)
    if np.isin(op, (LANES, HOST)).any():
        used[:] = True  # what these read is written down elsewhere: any cell
        return used
    used[outputs] = True
    kinds = np.array(KINDS)[op]
    owner = np.full(len(op), -1)  # loop that an instruction belongs to
    cell_owner = np.full(cells, -1)
    for i, loop in enumerate(loops):
        owner[loop.start : loop.stop] = i
        cell = int(first[loop.start])
        cell_owner[cell : cell + loop.period * loop.count] = i
    for column, reads in (
        (a, (kinds != 0) | (op == CARRY)),
        (b, (kinds == BINARY) | (kinds == TERNARY)),
    ):
        places = column[reads].astype(np.int64)
        used[places[cell_owner[places] != owner[reads]]] = True
    return used
