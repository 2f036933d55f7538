"""Planning: which regions a tape's array instructions make, forward and backward.

Consecutive array instructions of one shape, and the sums and extremes that close them, run as one
region: values that nothing else uses are not stored, and a backward sweep computes them again in
the same block of lanes. Where equal extremes share an adjoint, a region of its own counts them
first. A plan says what to run in which order. It depends on the structure of the recording only,
not on any value, so plans are kept and serve every recording of the same structure.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels.opcodes import FIRST_ROW, HOST, INPUT, NAMES
from ..storage import stretch
from .hosts import host_table
from .region import (
    SET,
    Region,
)
from .written import AXES, Record, planner, region_of, room, row_table

if TYPE_CHECKING:
    from ..tape import Tape

LIMIT = 512 * 128
"""Instructions of a region, times the lanes of a block: more rows would not stay in the cache.

Arrays of few lanes, the least that are counted being those of a vector, may have more of them."""

OWN = 256
"""Elements from which an import has buffers of its own, and is neither copied nor cleared."""

KEPT = 64
"""Plans that are kept, the latest used."""

SCALARS, HOST_CALL = -1, -2
_STORE_ALL, _STORE_OUTSIDE, _REVERSE, _COUNT_TIES, _STORE_SUMS = 1, 2, 4, 8, 16
_BY_OTHERS = 2

# Scalar instructions whose adjoints do not depend on values.
_LINEAR = np.array(
    [
        name.startswith(("ADD", "SUBTRACT", "NEGATIVE", "POSITIVE", "INPUT", "CONST"))
        or name in ("MULTIPLY_XK", "MULTIPLY_KX", "DIVIDE_XK")
        for name in NAMES
    ]
)


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
            (room.operands(n),), (marks,), self._own, self._in_arena, start, n,
        )  # fmt: skip
        regions = int(np.count_nonzero(op[start : tape.n] == 1)) + len(tape.hosts) + 2
        self._ends = np.empty((3, regions), np.int64)
        self._shapes = np.empty((regions, AXES + 2), np.int64)
        self._extents = Record((self._ends,), self._shapes, 0)
        self._extents.words[-1] = self._shape_at(regions - 1)
        self.count = planner()["partition"](
            self._tape.address, row_table().address, self._extents.address, cell, LIMIT
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
        table, start = room.steps, self.start
        steps = Record(table)
        count = planner()["schedule"](self._tape.address, self._extents.address, steps.address)
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
        planner()["find_active"](self._tape.address, row_table().address, marks.address)
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
        to = room.program(last + 1 - start, self.n, self._shape_at(r), axes)
        planner()["write"](
            self._tape.address, row_table().address, to.address, r, start, last + 1, mode
        )
        if not room.counts[2]:
            return None
        if step is not None:
            blank = np.empty((len(self.own), 4), np.int64)
            imports = Record(np.array(self._sizes, np.int64), touched, blank, len(self.own))
            planner()["choose_sets"](to.address, imports.address)
            step.blanks = [
                (own, low, high)
                for own, row in enumerate(blank.tolist())
                for low, high in (row[:2], row[2:])
                if high > low
            ]
        return region_of(tuple(shape[:axes].tolist()), to, self.unit)

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
        if not size:
            return True
        p, q = np.searchsorted(self.first, stretch(cells, size), side="right") - 1
        return bool(self.stored[p : q + 1].all())


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
