"""Planning: which regions a tape's array instructions make, forward and backward.

Consecutive array instructions of one shape, and the sums and extremes that close them, run as one
region: values that nothing else uses are not stored, and a backward sweep computes them again in
the same block of lanes. Where equal extremes share an adjoint, a region of its own counts them
first. A plan says what to run in which order. It depends on the structure of the recording only,
not on any value, so plans are kept and serve every recording of the same structure.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels import adjoints
from ..kernels.opcodes import ADD, FIRST_ROW, HOST, INPUT, KINDS, NAMES, ROWS
from ..storage import address
from ..window import coalesce
from .fusing import Fusing
from .plain import can_be_plain, made_plain, matched
from .region import (
    ARITIES,
    BUFFER,
    INDEX,
    MAXIMUM,
    MINIMUM,
    OFFSET,
    SET,
    STRIDES,
    Codes,
    Region,
)
from .unit_seed import from_one

if TYPE_CHECKING:
    from ..host import HostCall
    from ..tape import Tape

LIMIT = 512 * 128
"""Instructions of a region, times the lanes of a block: more rows would not stay in the cache.

Arrays of few lanes, the least that are counted being those of a vector, may have more of them."""

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


class Record:
    """Arrays and integers as kernels of the planner take them; see `kernels/cpu/records.py`.

    Parameters
    ----------
    *fields : int, ndarray, or tuple of ndarray
        In a tuple there is one array, whose rows are fields of their own: looking up where arrays
        lie takes longer than planning an instruction.

    Attributes
    ----------
    words : array of int
        For each array its address, for each integer itself.
    address : int
        Where they lie.
    """

    __slots__ = ("_fields", "address", "words")

    def __init__(self, *fields: Any) -> None:
        self._fields = fields  # which have to live as long
        self.words = array("q")
        for field in fields:
            if isinstance(field, int):
                self.words.append(field)
            elif isinstance(field, tuple):
                start, step = address(field[0]), field[0].strides[0]
                self.words.extend([start + k * step for k in range(len(field[0]))])
            else:
                self.words.append(address(field))
        self.address = self.words.buffer_info()[0]


class _Room(threading.local):
    """Where a thread's programs are written, used again: fresh memory costs as much as planning."""

    def __init__(self) -> None:
        self.count = self.instructions = self.left = 0
        self.counts = np.zeros(4, np.int64)
        self.fixed = (np.empty(len(_NUMBERS) + 2), self.counts)  # constants
        self.slots = np.zeros(64, np.int64)
        self.links, self.steps = np.empty((3, 0), np.int64), np.empty((0, 3), np.int64)

    def operands(self, n: int) -> Ints:
        """Return room for what is found out about the operands of `n` instructions."""
        if 3 * n > self.links.shape[1]:
            self.links, self.steps = np.empty((3, 3 * n), np.int64), np.empty((n + 1, 3), np.int64)
        return self.links

    def program(self, count: int, n: int, shape: int, axes: int) -> Record:
        """Return room for the program of a region of `count` instructions of a tape's `n`.

        `shape` is the address of its extents.
        """
        if count > self.count or n > self.instructions:
            self._grow(max(count, self.count), max(n, self.instructions))
        windows = 4 * count + 2
        size = 1 << (windows + windows // 2).bit_length()
        self.record.words[-3:] = array("q", (shape, axes, size - 1))
        return self.record

    def _grow(self, count: int, n: int) -> None:
        self.count, self.instructions = count, n
        lines, windows = count * _LINES, 4 * count + 2
        self.code = np.empty((4, lines), np.int64)
        self.inputs, self.outputs = np.empty((2, windows, _WINDOW + _AXES), np.int64)
        table = np.zeros(1 << (windows + windows // 2).bit_length(), np.int64)
        value, operands = np.empty(n, np.int64), np.empty((count, 3), np.int64)
        adjoints = np.empty(lines, np.int64), np.empty(windows, np.int64)
        self.record = Record(
            *self.code, self.inputs, self.outputs, *self.fixed, table, value, operands,
            *adjoints, self.slots, 0, 0, 0,
        )  # fmt: skip
        values = lines + windows + len(self.fixed[0])
        self.final = np.empty((lines, 5), np.uint16)
        self.rows = Record(np.empty(values, np.uint8), *np.empty((3, values), np.int64), self.final)


@cache
def _planner() -> dict[str, Callable[..., int]]:
    """Load the planner's kernels."""
    from ..kernels import native

    found: dict[str, Callable[..., int]] = native.load("planning")
    return found


@cache
def _rows() -> Record:
    return Record(_KINDS, ARITIES, _EXTREMAL, _STARTS, _PROGRAMS, _RECEIVED, _NUMBERS, ADD)


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
    idle : bool
        Whether it has nothing but imports, for which a sweep does nothing.
    """

    __slots__ = (
        *("backward", "blanks", "cell", "end", "forward", "idle", "kind", "start", "stop", "ties"),
        "used",
    )

    def __init__(self, kind: int, start: int, stop: int, cell: int, end: int) -> None:
        self.kind, self.start, self.stop, self.cell, self.end = kind, start, stop, cell, end
        self.forward: Region | None = None
        self.ties: Region | None = None
        self.backward: Region | None = None
        self.blanks: list[tuple[int, int, int]] = []
        self.used: list[tuple[int, int]] = []
        self.idle = False

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
    in_arena : set of int
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
    unit : int
        The cell of a sum whose adjoint is known to be 1, or -1.
    compiled : bool
        Whether its regions have been given code of their own, where they can.
    """

    def __init__(
        self,
        tape: Tape,
        start: int,
        mode: str,
        seeds: tuple[Any, ...],
        active: Any,
        unit: bool = False,
    ) -> None:
        arena = tape.arena
        n, cell = tape.n - start, tape.done_cell if start else 0
        op, a, b = self._columns = arena.op.array, arena.a.array, arena.b.array
        self._hosts = tuple([np.array(part, np.int64) for part in host_table(tape)])
        self.n, self.start = n, start
        self.first = np.empty(n + 1, np.int64)
        self._region, self._ties = known = np.empty((2, n), np.int64)
        self._outside, self._active, _, self._cleared = marks = np.zeros((4, n), np.uint8)
        self._own = np.full(len(tape.imports), -1, np.int64)
        self._in_arena = np.zeros(len(tape.imports), np.uint8)
        self._ties[:] = -1
        self._tape = Record(
            op, a, b, tape.d.array(), tape.x.array(), *self._hosts, self.first, (known,),
            (_room.operands(n),), (marks,), self._own, self._in_arena, start, n,
        )  # fmt: skip
        regions = int(np.count_nonzero(op[start : tape.n] == 1)) + len(tape.hosts) + 2
        self._ends = np.empty((3, regions), np.int64)
        self._shapes = np.empty((regions, _AXES + 2), np.int64)
        self._extents = Record((self._ends,), self._shapes, 0)
        self._extents.words[-1] = self._shape_at(regions - 1)
        self.count = _planner()["partition"](
            self._tape.address, _rows().address, self._extents.address, cell, LIMIT
        )
        self.fused = self.unit = -1
        self.compiled = False
        self.steps: list[Step] = []
        if self.count < 0:
            return
        self.own: list[int] = []
        self.in_arena: set[int] = set()
        self._sizes: list[int] = []
        self._find_imports()
        self._list_steps()
        self.ties = 0
        self.stored = np.ones(n, np.bool_)
        if mode in ("gradient", "adjoints"):
            self._plan_gradient(seeds, active, unit, sums=mode == "gradient")
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
        self.in_arena = set(np.flatnonzero(self._in_arena).tolist())
        del self._columns, self._hosts, self._tape, self._ends, self._shapes, self._extents
        del self._region, self._ties, self._outside, self._active, self._cleared
        del self._own, self._in_arena

    def _find_imports(self) -> None:
        op, a, _ = self._columns
        for i in np.flatnonzero(op[self.start : self.start + self.n] == INPUT).tolist():
            size = int(self.first[i + 1] - self.first[i])
            number = int(a[self.start + i])
            self._in_arena[number] = self._outside[i] & _BY_OTHERS
            if size >= OWN:
                self._own[number] = len(self.own)
                self.own.append(number)
                self._sizes.append(size)
        self.touched = [False] * len(self.own)

    def _list_steps(self) -> None:
        op = self._columns[0]
        table, start = _room.steps, self.start
        steps = Record(table)
        count = _planner()["schedule"](self._tape.address, self._extents.address, steps.address)
        for kind, low, high in table[:count].tolist():
            begin, end = int(self.first[low]), int(self.first[high])
            step = Step(kind, start + low, start + high, begin, end)
            step.idle = kind == SCALARS and bool((op[step.start : step.stop] == INPUT).all())
            self.steps.append(step)

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

    def _plan_gradient(self, seeds: tuple[Any, ...], active: Any, unit: bool, sums: bool) -> None:
        seeded = self._chosen(seeds)
        marks = Record(active, seeded)
        _planner()["find_active"](self._tape.address, _rows().address, marks.address)
        kinds = self._columns[0][self.start : self.start + self.n]
        inside = self._region >= 0
        used = np.zeros(self.count + 1, np.bool_)  # regions that some adjoint flows through
        used[self._region[inside & (self._active != 0)]] = True
        tied = self._find_extremes()
        self.fused = self._find_fused(used, tied)
        if unit:
            self._find_unit(seeds[0][0], tied)
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

    def _find_unit(self, cell: int, tied: set[int]) -> None:
        """Note the cell that a sweep starts from with 1, if it is a sum that nothing else uses."""
        i = int(np.searchsorted(self.first, cell, side="right")) - 1
        summed = self._columns[0][self.start + i] == HOST and self._region[i] >= 0
        alone = self.first[i + 1] - self.first[i] == 1 and not self._outside[i]
        if summed and alone and self._region[i] not in tied:
            self.unit = cell

    def _find_extremes(self) -> set[int]:
        """Give extremes that adjoints flow through places for their ties; return their regions."""
        (op, a, _), (host_at, h), start = self._columns, self._hosts, self.start
        tied = set()
        hosts = op[start : start + self.n] == HOST
        for i in np.flatnonzero(hosts & (self._active != 0)).tolist():
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
        start, last, axes = self._ends[:, r].tolist()
        shape = self._shapes[r]
        to = _room.program(last + 1 - start, self.n, self._shape_at(r), axes)
        _planner()["write"](
            self._tape.address, _rows().address, to.address, r, start, last + 1, mode
        )
        if not _room.counts[2]:
            return None
        if step is not None:
            blank = np.empty((len(self.own), 4), np.int64)
            imports = Record(np.array(self._sizes, np.int64), touched, blank, len(self.own))
            _planner()["choose_sets"](to.address, imports.address)
            step.blanks = [
                (own, low, high)
                for own, row in enumerate(blank.tolist())
                for low, high in (row[:2], row[2:])
                if high > low
            ]
        return _region(tuple(shape[:axes].tolist()), to, self.unit)

    def _shape_at(self, r: int) -> int:
        """Return where the shape of a region lies."""
        return self._extents.words[3] + r * self._shapes.strides[0]

    def _used(self, r: int) -> list[tuple[int, int]]:
        """Return the stretches of adjoints that a region uses up, neighbours together."""
        start, last, _ = self._ends[:, r].tolist()
        stop = last + 1
        chosen = (self._region[start:stop] == r) & (self._cleared[start:stop] != 0)
        found: list[tuple[int, int]] = []
        for i in (start + np.flatnonzero(chosen)).tolist():
            low, high = int(self.first[i]), int(self.first[i + 1])
            if found and found[-1][1] == low:
                low = found.pop()[0]
            found.append((low, high))
        return found

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


def _region(shape: tuple[int, ...], to: Record, unit: int) -> Region:
    """Return the region of the program that has been written, from the adjoint 1 of a cell."""
    room, counts = _room, _room.counts
    m, n_in, n_out, n_constants = counts.tolist()
    outputs = room.outputs[:n_out, : _WINDOW + len(shape)]
    tried = fused = None
    if prod(shape) >= FUSED:
        lines = [[op, *values[: ARITIES[op]]] for op, *values in room.code[:, :m].T.tolist()]
        results = outputs[:, 0].tolist()
        seed = _window_on(unit, len(shape), n_in) if unit >= 0 else 0
        if seed:
            one = _constant_one(n_constants)
            n_constants = int(counts[3])
            lines = from_one(lines, seed, one)
            results = [one if value == seed else value for value in results]
        fused = Fusing(lines, results)
        # Zeros of values may be used for anything, those of adjoints only as such.
        which = can_be_plain(lines, outputs[outputs[:, 1] == VALUES, 0].tolist())
        if any(which):
            tried = _finish(to, outputs, Fusing(made_plain(lines, which), results))
    final, rows, count = _finish(to, outputs, fused)
    plain = tried and matched(tried[0], tried[1], rows, n_constants + n_in)
    return Region(
        shape, final, room.fixed[0][:n_constants].copy(),
        room.inputs[:n_in, : _WINDOW + len(shape)].copy(), outputs.copy(), count, plain=plain,
    )  # fmt: skip


def _window_on(cell: int, axes: int, n_in: int) -> int:
    """Return the value that is brought in from the adjoint of a cell, or 0."""
    windows = _room.inputs[:n_in, : _WINDOW + axes]
    still = ~windows[:, STRIDES:].any(axis=1) & (windows[:, INDEX] < 0)
    found = still & (windows[:, BUFFER] == ADJOINTS) & (windows[:, OFFSET] == cell)
    return -1 - 2 * int(found.argmax()) if found.any() else 0


def _constant_one(n_constants: int) -> int:
    """Return the value that is 1 in every lane, entering it among the constants if it is new."""
    numbers = _room.fixed[0]
    known = np.flatnonzero(numbers[:n_constants] == 1.0)
    at = int(known[0]) if len(known) else n_constants
    numbers[at] = 1.0
    _room.counts[3] = max(n_constants, at + 1)
    return -2 - 2 * at


def _finish(to: Record, outputs: Ints, fused: Fusing | None) -> tuple[Codes, list[int], int]:
    """Return a program on rows, the rows of its results, and how many rows there are."""
    room = _room
    if fused is not None:
        code = fused.table().T
        room.counts[0] = code.shape[1]
        room.code[:, : code.shape[1]] = code
        outputs[:, 0] = fused.results
    count = _planner()["finish"](to.address, _rows().address, room.rows.address)
    return room.final[: room.counts[0]].copy(), outputs[:, 0].tolist(), count


# -- what a plan is made from ----------------------------------------------------------------------


def host_table(tape: Tape) -> tuple[list[int], list[int]]:
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
    return at, words


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
    if window.ndim == 1 and window.size > 1 and axes == (0,):  # the usual one, at once
        return [how, 1, window.size, 0, window.offset, *window.strides, 0]
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


_room = _Room()
_plans: OrderedDict[Any, Plan] = OrderedDict()


def plan_of(
    tape: Tape,
    start: int,
    mode: str,
    seeds: tuple[Any, ...] = (),
    active: Any = None,
    unit: bool = False,
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
    unit : bool
        Whether they start at one cell, from 1.
    """
    arena, n = tape.arena, tape.n
    wanted = None if active is None else active.tobytes()
    here = (start, n, mode, seeds, wanted, unit)
    known = tape.plans.get(here)
    if known is not None:
        return known
    columns = [column.array[start:n].tobytes() for column in (arena.op, arena.a, arena.b)]
    tables = [pool.array().tobytes() for pool in (tape.d, tape.x)]
    hosts = map(tuple, host_table(tape))
    cell = tape.done_cell if start else 0
    key = (start, cell, mode, seeds, wanted, unit, len(tape.imports), *columns, *tables, *hosts)
    found = _plans.pop(key, None)
    if found is None:
        found = Plan(tape, start, mode, seeds, active, unit)
        while len(_plans) >= KEPT:
            _plans.popitem(last=False)
    _plans[key] = found
    tape.plans[here] = found
    return found


assert FIRST_ROW == 5  # kernels/cpu/planned.py has the structural opcodes written out
