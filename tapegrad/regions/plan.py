"""Planning: which regions a tape's array instructions make, forward and backward.

Consecutive array instructions of one shape, and the sums and extremes that close them, run as one
region: values that nothing else uses are not stored, and a backward sweep computes them again in
the same block of lanes. Where equal extremes share an adjoint, a region of its own counts them
first. A plan says what to run in which order. It depends on the structure of the recording only,
not on any value, so plans are kept and serve every recording of the same structure.
"""

from __future__ import annotations

from collections import OrderedDict
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels import adjoints
from ..kernels.opcodes import ADD, FIRST_ROW, HOST, INPUT, KINDS, NAMES, ROWS
from ..window import coalesce
from .fusing import Fusing
from .plain import can_be_plain, made_plain, matched
from .region import ARITIES, MAXIMUM, MINIMUM, SET, Codes, Region

if TYPE_CHECKING:
    from ..host import HostCall
    from ..tape import Tape

LIMIT = 512
"""Instructions of a region: more rows would not stay in the cache."""

OWN = 256
"""Elements from which an import has buffers of its own, and is neither copied nor cleared."""

FUSED = 1 << 14
"""Lanes from which a region's program is fused: that takes about 5 us an instruction, once."""

KEPT = 64
"""Plans that are kept, the latest used."""

VALUES, POOL, ADJOINTS, INDICES, TIES, IMPORTS = range(6)
"""Buffers of a plan's regions; from `IMPORTS` on, values and adjoints of each import in `own`."""

SCALARS, HOST_CALL = -1, -2
_AXES, _WINDOW = 6, 6
_STORE_ALL, _STORE_OUTSIDE, _REVERSE, _COUNT_TIES, _STORE_SUMS = 1, 2, 4, 8, 16
_BY_OTHERS = 2
_RECEIVED = np.array(adjoints.RECEIVED, np.int64)
_STARTS = np.array(adjoints.STARTS, np.int64)
_PROGRAMS = np.array(adjoints.CODE, np.int64)
_NUMBERS = np.array(adjoints.CONSTANTS)
_KINDS = np.array(KINDS, np.uint8)
_EXTREMAL = np.array(
    [ROWS[name][0] for name in ("equal", "isnan", "logical_or", "divide", "where")]
)
_LINES = int(np.diff(_STARTS).max()) + 6  # instructions that one of the tape becomes, at most

# Scalar instructions whose adjoints do not depend on values.
_LINEAR = np.array(
    [
        name.startswith(("ADD", "SUBTRACT", "NEGATIVE", "POSITIVE", "INPUT", "CONST"))
        or name in ("MULTIPLY_XK", "MULTIPLY_KX", "DIVIDE_XK")
        for name in NAMES
    ]
)

Ints = np.ndarray[Any, np.dtype[np.int64]]


class Step:
    """One thing to run, forward and backward.

    Attributes
    ----------
    kind : int
        `SCALARS`, `HOST_CALL`, or the number of a region.
    start, stop : int
        The instructions.
    cell, end : int
        The first of their cells, and the one after the last.
    forward, ties, backward : Region or None
        A region's values, those that something else needs; how many lanes have each extreme; and
        the adjoints of its operands.
    blanks : list of (int, int, int)
        Stretches of imports' own adjoints (number, from, to) to be made zero before `backward`.
    used : list of (int, int)
        Stretches of adjoints that are used up by it, and are to be made zero.
    """

    __slots__ = (
        *("backward", "blanks", "cell", "end", "forward", "kind", "start", "stop", "ties"),
        "used",
    )

    def __init__(self, kind: int, start: int, stop: int, cell: int, end: int) -> None:
        self.kind, self.start, self.stop, self.cell, self.end = kind, start, stop, cell, end
        self.forward: Region | None = None
        self.ties: Region | None = None
        self.backward: Region | None = None
        self.blanks: list[tuple[int, int, int]] = []
        self.used: list[tuple[int, int]] = []

    @property
    def regions(self) -> list[Region]:
        """All that it has."""
        return [r for r in (self.forward, self.ties, self.backward) if r is not None]


class Plan:
    """What to run for the instructions of a tape from `start` on.

    Attributes
    ----------
    steps : list of Step
    own : list of int
        Imports that have buffers of their own.
    in_arena : list of int
        Those among them whose cells are met among all others, too.
    touched : list of bool
        By own import: whether regions write its adjoints.
    fused : int
        The step whose region computes values and adjoints at once, or -1. What follows it are
        scalar instructions that can be swept backward before they are computed.
    ties : int
        Extremes whose lanes are counted: how many numbers that takes.
    first : ndarray
        First cell of each instruction, and the cell after the last.
    stored : ndarray of bool
        By instruction, whether its values are computed and kept.
    compiled : bool
        Whether its regions have been given code of their own, where they can.
    """

    def __init__(self, tape: Tape, start: int, mode: str, seeds: tuple[Any, ...], active: Any):
        from ..kernels.cpu import ordering, planning  # numba comes with them

        self._planning, self._ordering = planning, ordering
        arena = tape.arena
        n, cell = tape.n - start, tape.done_cell if start else 0
        host_at, h = host_table(tape)
        self._columns = (arena.op.array, arena.a.array, arena.b.array)
        self._tables = (tape.d.array(), tape.x.array())
        self._hosts = (host_at, h, start, n)
        self.first = np.empty(n + 1, np.int64)
        self._region = np.empty(n, np.int64)
        outside = np.empty(n, np.uint8)
        self._link = np.empty((n, 3), np.int64)
        regions = int(np.count_nonzero(arena.op.array[start : tape.n] == 1)) + len(tape.hosts) + 2
        r_first, r_last, r_axes = (np.empty(regions, np.int64) for _ in range(3))
        r_shape = np.empty((regions, _AXES + 2), np.int64)
        op, a, b = self._columns
        self.count = planning.partition(
            op, a, b, *self._tables, _KINDS, ARITIES, host_at, h, start, n, cell, LIMIT,
            self.first, self._region, outside, self._link, r_first, r_last, r_axes, r_shape,
        )  # fmt: skip
        self.n, self.start = n, start
        self._room = 0
        self.fused = -1
        self.compiled = False
        self.steps: list[Step] = []
        if self.count < 0:
            return
        self._extents = r_first, r_last, r_axes, r_shape
        self.own: list[int] = []
        self.in_arena: list[int] = []
        self._own = np.full(len(tape.imports), -1, np.int64)
        self._in_arena = np.zeros(len(tape.imports), np.uint8)
        self._sizes: list[int] = []
        self._find_imports(outside)
        self._list_steps()
        self._outside = outside
        self._active = np.zeros(n, np.uint8)
        self._entered = np.zeros(n, np.uint8)
        self._cleared = np.zeros(n, np.uint8)
        self._ties = np.full(n, -1, np.int64)
        self.ties = 0
        self.stored = np.ones(n, np.bool_)
        if mode in ("gradient", "adjoints"):
            self._plan_gradient(seeds, active, sums=mode == "gradient")
        elif mode == "some":
            self._plan_some(seeds)
        else:
            for step in self.steps:
                if step.kind >= 0:
                    step.forward = self._write(step.kind, _STORE_ALL)
        self._forget()

    def order(self) -> tuple[list[Step], list[Step], list[Step], list[Step]]:
        """Return in which order a gradient runs the steps.

        Returns
        -------
        before, top : lists of Step
            What is run forward before adjoints start, and backward from there.
        after, rest : lists of Step
            What is run forward only then, as nothing swept so far needs it; and backward last.
        """
        last = self.fused if self.fused >= 0 else len(self.steps)
        below = self.steps[:last]
        return below, self.steps[last:][::-1], self.steps[last + 1 :], below[::-1]

    def _forget(self) -> None:
        """Let go of the tape's columns: the plan serves other tapes, too."""
        self.in_arena = np.flatnonzero(self._in_arena).tolist()
        del self._columns, self._tables, self._hosts, self._extents, self._planning, self._ordering
        del self._outside, self._active, self._entered, self._cleared
        del self._region, self._own, self._in_arena, self._link, self._ties
        self._make_room(0)

    def _find_imports(self, outside: Any) -> None:
        op, a, _ = self._columns
        _, _, start, n = self._hosts
        for i in np.flatnonzero(op[start : start + n] == INPUT).tolist():
            size = int(self.first[i + 1] - self.first[i])
            number = int(a[start + i])
            self._in_arena[number] = outside[i] & _BY_OTHERS
            if size >= OWN:
                self._own[number] = len(self.own)
                self.own.append(number)
                self._sizes.append(size)
        self.touched = [False] * len(self.own)

    def _list_steps(self) -> None:
        _, _, start, n = self._hosts
        table = np.empty((n + 1, 3), np.int64)
        count = self._ordering.schedule(
            self._columns[0], start, n, self._region, self._extents[1], table
        )
        for kind, low, high in table[:count].tolist():
            begin, end = int(self.first[low]), int(self.first[high])
            self.steps.append(Step(kind, start + low, start + high, begin, end))

    def _chosen(self, stretches: tuple[Any, ...]) -> Any:
        """Return by instruction whether some of its cells are in one of these stretches."""
        chosen = np.zeros(self.n, np.uint8)
        for low, high in stretches:
            p, q = np.searchsorted(self.first, (low, high), side="right") - 1
            chosen[max(p, 0) : q + 1] = 1
        return chosen

    def _plan_some(self, needed: tuple[Any, ...]) -> None:
        self._outside |= self._chosen(needed)
        kinds = self._columns[0][self.start : self.start + self.n]
        self.stored = (self._region < 0) | (self._outside != 0) | (kinds == HOST)
        for step in self.steps:
            if step.kind >= 0:
                step.forward = self._write(step.kind, _STORE_OUTSIDE | _STORE_SUMS)

    def _plan_gradient(self, seeds: tuple[Any, ...], active: Any, sums: bool) -> None:
        host_at, h, start, n = self._hosts
        op, a, b = self._columns
        seeded = self._chosen(seeds)
        self._planning.find_active(
            op, a, b, *self._tables, _KINDS, ARITIES, _RECEIVED, host_at, h, start, n,
            self.first, self._region, self._link, active, seeded, self._active,
        )  # fmt: skip
        kinds = op[start : start + n]
        self._entered = ((seeded | self._outside | (kinds == HOST)) != 0).astype(np.uint8)
        # What does not flow on may arrive all the same, but from regions, which know better.
        arrives = (seeded != 0) | (self._outside & _BY_OTHERS != 0) | (kinds == HOST)
        self._cleared = (self._entered & self._active) | arrives
        inside = self._region >= 0
        used = np.zeros(self.count + 1, np.bool_)  # regions that some adjoint flows through
        used[self._region[inside & (self._active != 0)]] = True
        tied = self._find_extremes()
        self.fused = self._find_fused(used, tied)
        sums = sums or bool(tied)  # extremes are met again on the way back
        store = _STORE_OUTSIDE | (_STORE_SUMS if sums else 0)
        self.stored = ~inside | (self._outside != 0) | (used[self._region] & sums & (kinds == HOST))
        touched = np.zeros(len(self.own), np.uint8)
        for i in range(len(self.steps) - 1, -1, -1):
            step = self.steps[i]
            if step.kind < 0:
                continue
            step.used = self._used(step.kind)
            if not used[step.kind]:  # a constant for the sweep, whose values others may need
                step.forward = self._write(step.kind, _STORE_OUTSIDE)
            elif i == self.fused:
                step.backward = self._write(step.kind, store | _REVERSE, step, touched)
            else:
                step.forward = self._write(step.kind, store)
                if step.kind in tied:
                    step.ties = self._write(step.kind, _COUNT_TIES)
                step.backward = self._write(step.kind, _REVERSE, step, touched)
        self.touched = [bool(t) for t in touched]

    def _find_extremes(self) -> set[int]:
        """Give extremes that adjoints flow through places for their ties; return their regions."""
        host_at, h, start, n = self._hosts
        op, a, _ = self._columns
        tied = set()
        for i in np.flatnonzero((op[start : start + n] == HOST) & (self._active != 0)).tolist():
            at = int(host_at[a[start + i]])
            if at >= 0 and h[at] != SET:
                self._ties[i] = self.ties
                self.ties += int(self.first[i + 1] - self.first[i])
                tied.add(int(self._region[i]))
        return tied

    def _find_fused(self, used: Any, tied: set[int]) -> int:
        """Return the last step with a region, if what follows can be swept before it is run.

        The adjoint of an extremum is not known before the extremum is.
        """
        op = self._columns[0]
        for i in range(len(self.steps) - 1, -1, -1):
            step = self.steps[i]
            if step.kind >= 0:
                return i if used[step.kind] and step.kind not in tied else -1
            if step.kind == HOST_CALL or not _LINEAR[op[step.start : step.stop]].all():
                return -1
        return -1

    def _write(
        self, r: int, mode: int, step: Step | None = None, touched: Any = None
    ) -> Region | None:
        """Return a region's program for a mode, or None where it would carry nothing out."""
        host_at, h, i0, n = self._hosts
        r_first, r_last, r_axes, r_shape = self._extents
        start, stop, axes = int(r_first[r]), int(r_last[r]) + 1, int(r_axes[r])
        shape = r_shape[r]
        count = stop - start
        if count > self._room:
            self._make_room(2 * count)
        self._table[:] = 0
        counts = np.zeros(4, np.int64)
        op, a, b = self._columns
        self._planning.write(
            op, a, b, *self._tables, ARITIES, host_at, h, i0, n, self.first, self._region,
            self._outside, self._link, r, start, stop, shape, axes, mode, self._active,
            self._entered, self._own, self._in_arena, self._ties, ADD, _EXTREMAL, _STARTS,
            _PROGRAMS, _RECEIVED, _NUMBERS, *self._work, counts,
        )  # fmt: skip
        n_out = int(counts[2])
        if n_out == 0:
            return None
        code, inputs, outputs, constants = self._programs
        if step is not None:
            blank = np.empty((len(self.own), 4), np.int64)
            self._ordering.choose_sets(
                outputs, n_out, shape, axes, np.array(self._sizes, np.int64), touched, blank
            )
            step.blanks = [
                (own, low, high)
                for own, row in enumerate(blank.tolist())
                for low, high in (row[:2], row[2:])
                if high > low
            ]
        return self._region_of(shape[:axes], code, inputs, outputs, constants, counts)

    def _make_room(self, count: int) -> None:
        """Make arrays for the program of a region of that many instructions."""
        lines, windows = count * _LINES, 4 * count + 2
        code = np.empty((4, lines), np.int64)
        inputs, outputs = (np.empty((windows, _WINDOW + _AXES), np.int64) for _ in range(2))
        constants = np.empty(len(_NUMBERS) + 1)
        self._room = count
        self._table = np.empty(1 << (2 * windows).bit_length(), np.int64)
        self._programs = code, inputs, outputs, constants
        self._work = (
            *(np.empty(self.n, np.int64), np.empty((count, 3), np.int64), code, inputs, outputs),
            *(self._table, constants, np.empty(lines, np.int64), np.empty(windows, np.int64)),
        )

    def _used(self, r: int) -> list[tuple[int, int]]:
        """Return the stretches of adjoints that a region uses up, neighbours together."""
        start, stop = int(self._extents[0][r]), int(self._extents[1][r]) + 1
        chosen = (self._region[start:stop] == r) & (self._cleared[start:stop] != 0)
        found: list[tuple[int, int]] = []
        for i in (start + np.flatnonzero(chosen)).tolist():
            low, high = int(self.first[i]), int(self.first[i + 1])
            if found and found[-1][1] == low:
                low = found.pop()[0]
            found.append((low, high))
        return found

    def _region_of(
        self, shape: Ints, code: Ints, inputs: Ints, outputs: Ints, constants: Any, counts: Ints
    ) -> Region:
        n_in, n_out = int(counts[1]), int(counts[2])
        columns = _WINDOW + len(shape)
        inputs, outputs = inputs[:n_in, :columns].copy(), outputs[:n_out, :columns].copy()
        m, results, tried = int(counts[0]), outputs[:, 0].copy(), None
        if prod(shape.tolist()) >= FUSED:
            lines = [[op, *values[: ARITIES[op]]] for op, *values in code[:, :m].T.tolist()]
            # What a sweep does with zeros is nobody's business; values may be used anywhere.
            bits = outputs[outputs[:, 1] == VALUES, 0].tolist()
            which = can_be_plain(lines, bits)
            if any(which):
                tried = Fusing(made_plain(lines, which), results.tolist())
            careful = Fusing(lines, results.tolist())
            code, results = careful.table().T, np.array(careful.results)
            m = len(careful.code)
        final, outputs[:, 0], rows = self._allocate(code[:, :m], results, counts)
        n_constants = int(counts[3])
        fixed = n_constants + n_in
        inputs[:, 0] = np.arange(n_constants, fixed)
        plain = None
        if tried is not None:
            plain, found, _ = self._allocate(tried.table().T, np.array(tried.results), counts)
            plain = matched(plain, found.tolist(), outputs[:, 0].tolist(), fixed)
        return Region(
            tuple(shape.tolist()), final, constants[:n_constants].copy(), inputs, outputs, rows,
            plain=plain,
        )  # fmt: skip

    def _allocate(self, code: Ints, results: Ints, counts: Ints) -> tuple[Codes, Ints, int]:
        """Return a program on rows, the rows of its results, and how many there are."""
        code, results = np.ascontiguousarray(code), results.reshape(-1, 1).copy()
        m = code.shape[1]
        counts[0] = m
        self._ordering.renumber(code, results, counts)
        fixed = int(counts[1] + counts[3])
        kept = np.zeros(fixed + m, np.bool_)
        kept[results[:, 0]] = True
        last, row, free = (np.empty(fixed + m + 1, np.int64) for _ in range(3))
        final = np.empty((m, 5), np.uint16)
        left, rows = self._ordering.allocate(*code, ARITIES, fixed, kept, last, row, free, final)
        return final[:left].copy(), row[results[:, 0]], rows

    def has(self, cells: Any, size: int) -> bool:
        """Whether the values of a run of cells (its first), or of an array of cells, are kept."""
        if isinstance(cells, (int, np.integer)):
            low, high = int(cells), int(cells) + size - 1
        elif len(cells):
            low, high = int(cells.min()), int(cells.max())
        else:
            return True
        p, q = np.searchsorted(self.first, (low, high), side="right") - 1
        return bool(self.stored[p : q + 1].all())


# -- what a plan is made from ----------------------------------------------------------------------


def host_table(tape: Tape) -> tuple[Ints, Ints]:
    """Return where each structural instruction is described, and the descriptions.

    A sum, maximum or minimum over consecutive or strided cells is described as an array instruction
    of one operand, how its out-window takes lanes in the place of the opcode, followed by the
    strides of its result; others by the cells that their operands reach.
    """
    at: list[int] = []
    words: list[int] = []
    for call in tape.hosts:
        described = _reduction(call)
        if described:
            at.append(len(words))
            words += described
        else:
            at.append(-1 - len(words))
            words += _reach(call)
    return np.array(at, np.int64), np.array(words, np.int64)


_REDUCTIONS = {"sum": SET, "max": MAXIMUM, "min": MINIMUM}


def _reduction(call: HostCall) -> list[int]:
    from ..ops.structural import STRUCTURAL

    how = _REDUCTIONS.get(call.row.name)
    if how is None or call.row is not STRUCTURAL[call.row.name]:
        return []
    if call.operands[0].window is None:
        return []
    window, axes = call.operands[0].window, call.params["axis"]
    if not window.size or window.ndim == 0:
        return []
    strides, step = [0] * window.ndim, 1
    for axis in range(window.ndim - 1, -1, -1):
        if axis not in axes:
            strides[axis] = step
            step *= window.shape[axis]
    sizes, (into, out) = coalesce(window.shape, [window.strides, tuple(strides)])
    return [how, len(sizes), *sizes, 0, window.offset, *into, *out]


def _reach(call: Any) -> list[int]:
    pairs: list[int] = []
    for x in getattr(call, "operands", ()):
        cells = x.cells if x.window is None else x.window
        if cells is None or not cells.size:
            continue
        if x.window is not None:
            reach = [(n - 1) * s for n, s in zip(cells.shape, cells.strides, strict=True)]
            pairs.append(cells.offset + sum(r for r in reach if r < 0))
            pairs.append(cells.offset + sum(r for r in reach if r > 0))
        else:
            pairs += (int(cells.min()), int(cells.max()))
    return [len(pairs) // 2, *pairs]


_plans: OrderedDict[Any, Plan] = OrderedDict()


def plan_of(
    tape: Tape, start: int, mode: str, seeds: tuple[Any, ...] = (), active: Any = None
) -> Plan:
    """Return the plan of a tape's instructions from `start` on, made anew where none is kept.

    Parameters
    ----------
    tape : Tape
        Flushed.
    mode : str
        "values" (all of them), "some" (those asked for, and what scalar instructions and those of
        the host need), "adjoints" (and the values needed for them) or "gradient" (and sums).
    seeds : tuple of (int, int)
        Stretches of cells, lowest and highest, that are asked for, or where adjoints start.
    active : ndarray of uint8
        By import, whether its adjoint is wanted.
    """
    arena, n = tape.arena, tape.n
    wanted = None if active is None else active.tobytes()
    here = (start, n, mode, seeds, wanted)
    known = tape.plans.get(here)
    if known is not None:
        return known
    columns = [column.array[start:n].tobytes() for column in (arena.op, arena.a, arena.b)]
    tables = [pool.array().tobytes() for pool in (tape.d, tape.x)]
    hosts = [part.tobytes() for part in host_table(tape)]
    cell = tape.done_cell if start else 0
    key = (start, cell, mode, seeds, wanted, len(tape.imports), *columns, *tables, *hosts)
    found = _plans.pop(key, None)
    if found is None:
        found = Plan(tape, start, mode, seeds, active)
        while len(_plans) >= KEPT:
            _plans.popitem(last=False)
    _plans[key] = found
    tape.plans[here] = found
    return found


assert FIRST_ROW == 5  # kernels/cpu/planning.py has the structural opcodes written out
