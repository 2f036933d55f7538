"""Sweeps of a tape on a device: the plan that the CPU has, its steps made there.

Values and adjoints are in device memory, each segment (`tapegrad.devices.places`) from its first
use to its last. Arguments of some size are read where they lie. A sweep is made once for a plan,
and run with other arguments again and again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arena import give_back_adjoints, take_adjoints
from ..kernels.opcodes import HOST, INPUT, LANES
from ..regions.plan import HOST_CALL, SCALARS, Plan, Step
from ..storage import Floats
from ..tape import Tape
from .arrays import DeviceArray
from .places import Places
from .steps import DeviceStep, RegionStep, ScalarStep, StructuralStep
from .work import Key, Picked, Way, Work, copy, fill, moving

if TYPE_CHECKING:
    from .device import Device

Cells = Any
"""The first of a run of cells, or an array of cells."""


Action = tuple[DeviceStep, bool]
"""A step, and whether it is made backward."""


class Looked:
    """Cells that somebody wants to see, or where adjoints start: a run, or an array of them.

    Attributes
    ----------
    cells : slice or ndarray of int64
    on_host : bool
        Whether the host computes them.
    """

    def __init__(self, sweep: Sweep, cells: Cells, size: int) -> None:
        self.size = size
        self.cells: Any
        if isinstance(cells, (int, np.integer)):
            self.cells = slice(int(cells), int(cells) + size)
            first, last = sweep.values.instruction(np.array([cells, cells + size - 1]))
            found = np.arange(first, last + 1)
        else:
            self.cells = np.ravel(cells).astype(np.int64)
            found = np.unique(sweep.values.instruction(self.cells))
        on_device = np.isin(sweep.kinds[found], (LANES, HOST, INPUT))
        self.on_host = not size or not on_device.any()

    def need(self, places: Places) -> None:
        """Say what places it needs."""
        if self.on_host:
            return
        if isinstance(self.cells, slice):
            places.need(self.cells.start, self.cells.stop - 1)
        else:
            places.need_cells(self.cells)

    def settle(self, places: Places) -> None:
        """Find the places, which are known now."""
        if self.on_host:
            return
        if isinstance(self.cells, slice):
            self.segment, place = places.of_run(self.cells.start, self.cells.stop - 1)
            self.picked = Picked(Way.straight(self.size, place))
        else:
            self.segment, found = places.of_cells(self.cells)
            self.picked = Picked(Way.of_places(found))
        self.add = moving(Way.straight(self.size), self.picked.way, add=True)


class Sweep:
    """A plan of a tape as a device runs it.

    Parameters
    ----------
    device : Device
    tape : Tape
    plan : Plan
    values : Plan
        The plan of its values; `plan` itself where no adjoints are wanted.
    real : dtype
        Of the numbers on the device.
    reads : sequence of (cells, size)
        What is to be seen afterwards.
    seeds : sequence of (cells, size)
        Where adjoints start; the plan's mode is "gradient" if there are any.
    wanted : sequence of bool
        Of which imports adjoints are wanted.

    Attributes
    ----------
    kinds : ndarray
        The opcode of each instruction.
    listed : ndarray of uint32
        The tape's pool of indices.
    values, adjoints : Places
    """

    def __init__(
        self,
        device: Device,
        tape: Tape,
        plan: Plan,
        values: Plan,
        real: Any,
        reads: Sequence[tuple[Cells, int]],
        seeds: Sequence[tuple[Cells, int]] = (),
        wanted: Sequence[bool] = (),
    ) -> None:
        self.device, self.tape, self.plan, self.real = device, tape, plan, np.dtype(real)
        self.gradient = bool(seeds)
        self.kinds = tape.arena.op.array[: tape.n].copy()
        self.listed = tape.x.array()
        self.values: Places = Places(plan.first)
        self.adjoints: Places = Places(plan.first)
        self._wanted = list(wanted)
        self._numbers = tape.arena.a.array[: tape.n].astype(np.int64)  # of imports, by instruction
        self.at = {
            int(self._numbers[i]): i for i in np.flatnonzero(self.kinds == INPUT).tolist()
        }  # instruction by import
        self.own = {number: i for i, number in enumerate(plan.own)}
        self._host_reads: dict[int, list[Any]] = {}
        self.steps = [self._made(*pair) for pair in zip(plan.steps, values.steps, strict=True)]
        self.reads = [Looked(self, *one) for one in reads]
        self.seeds = [Looked(self, *one) for one in seeds]
        for read in self.reads:
            read.need(self.values)
        for seed in self.seeds:
            seed.need(self.adjoints)
        self._settle()
        self._fixed: dict[Key, DeviceArray] = {}  # constants, once they are on the device

    def _made(self, step: Step, values: Step) -> DeviceStep:
        if step.kind == SCALARS:
            return ScalarStep(self, step)
        if step.kind == HOST_CALL:
            return StructuralStep(self, step)
        return RegionStep(self, step, values)

    def _settle(self) -> None:
        for places in (self.values, self.adjoints):
            places.settle()
        for step in self.steps:
            step.settle()
        for read in self.reads:
            read.settle(self.values)
        for seed in self.seeds:
            seed.settle(self.adjoints)
        # By import: cells that the host reads, what picks them, and what adds to their adjoints.
        self.picked: dict[int, tuple[Any, Picked, Work]] = {}
        for number, cells in self._host_reads.items():
            found = np.unique(np.concatenate(cells))
            way = Way.of_places(found - self.tape.imports[number].cell)
            back = moving(Way.straight(found.size), way, add=True)
            self.picked[number] = found, Picked(way), back
        self._order = self._needed(self._actions())
        last: dict[Key, int] = {}
        for i, (step, backward) in enumerate(self._order):
            for key in step.uses(backward):
                last[key] = i
        kept = {("values", read.segment) for read in self.reads if not read.on_host}
        kept |= {("adjoints", segment) for segment, *_ in self.parts(self.adjoints)}
        self._ends: list[list[Key]] = [[] for _ in self._order]
        for key, i in last.items():
            if key not in kept and key[0] in ("values", "adjoints"):
                self._ends[i].append(key)

    def _actions(self) -> list[Action]:
        """Return what is to be done in order: steps, forward or backward."""
        self._first_backward = -1
        if not self.gradient:
            return [(step, False) for step in self.steps]
        fused = self.plan.fused
        last = fused if fused >= 0 else len(self.steps)
        after = self.steps[last:]
        self._first_backward = len(self.steps[:last])
        order = [(step, False) for step in self.steps[:last]]
        order += [(step, True) for step in reversed(after)]
        if self.reads:
            order += [(step, False) for step in after[1:]]
        return order + [(step, True) for step in reversed(self.steps[:last])]

    def _needed(self, order: list[Action]) -> list[Action]:
        """Leave out regions whose values nothing uses: of what flows nowhere."""
        used = {("values", read.segment) for read in self.reads if not read.on_host}
        kept: list[Action] = []
        for i in range(len(order) - 1, -1, -1):
            step, backward = order[i]
            if isinstance(step, RegionStep) and not backward and not step.given & used:
                self._first_backward -= i < self._first_backward
                continue
            used.update(step.uses(backward))
            kept.append((step, backward))
        return kept[::-1]

    # -- what steps ask ----------------------------------------------------------------------------

    def read_on_host(self, instruction: int, cells: Any) -> None:
        """Say that scalar instructions read cells of an import."""
        self._host_reads.setdefault(int(self._numbers[instruction]), []).append(cells)

    def own_of(self, instruction: int) -> int:
        """Return the number of an import's own buffers, or -1 where it has none."""
        return self.own.get(int(self._numbers[instruction]), -1)

    def is_wanted(self, instruction: int) -> bool:
        """Whether the adjoint of an import is wanted."""
        return self.gradient and self._wanted[int(self._numbers[instruction])]

    # -- running -----------------------------------------------------------------------------------

    @contextmanager
    def run(self, arguments: dict[int, Any], seeds: Sequence[Any] = ()) -> Iterator[Run]:
        """Run it; results are read inside of the context.

        Parameters
        ----------
        arguments : dict
            By number of the import: flat arrays, of the device or of the host. Other imports are
            constants.
        seeds : sequence
            What adjoints start with: flat arrays, of the device or of the host.

        Raises
        ------
        MemoryError
            If the device's memory does not suffice.
        DeviceLostError
            If the device stops working.
        """
        tape = self.tape
        tape.done, tape.done_cell, tape.sparse = 0, 0, None  # its arena holds some values of ours
        column = take_adjoints(tape.flushed_cell) if self.gradient else None
        clean = False
        try:
            run = Run(self, arguments, tape.arena.v.array, None if column is None else column.array)
            for i, (step, backward) in enumerate(self._order):
                if i == self._first_backward:
                    run.seed(seeds)
                if backward:
                    step.backward(run)
                else:
                    step.forward(run)
                for key in self._ends[i]:
                    run.free(key)
            if self._first_backward == len(self._order):
                run.seed(seeds)
            yield run
            clean = True
        finally:
            if column is not None:
                for cells, _, _ in self.picked.values():
                    column.array[cells] = 0.0
                give_back_adjoints(column, clean)

    def fixed(self, key: Key) -> DeviceArray:
        """Return constants as an array of the device: those of the tape's pool, or an import."""
        found = self._fixed.get(key)
        if found is None:
            if key[0] == "constants":
                values = self.tape.k.array()
            else:
                entry = self.tape.imports[key[1]]
                values = self.tape.arena.v.array[entry.cell : entry.cell + entry.size]
            found = self._fixed[key] = self.device.put(values.astype(self.real))
        return found

    def parts(self, places: Places) -> list[tuple[int, int, int]]:
        """Return the imports that have places: segment, place, and the import's number."""
        found = []
        for number, i in self.at.items():
            entry = self.tape.imports[number]
            if entry.size and places.has(i):
                found.append((*places.of_run(entry.cell, entry.cell), number))
        return found


class Run:
    """One run of a sweep: its arrays on the device, and the host's side of it.

    Attributes
    ----------
    v, g : ndarray
        Values and adjoints by cell on the host, of what is computed there.
    """

    def __init__(self, sweep: Sweep, arguments: dict[int, Any], v: Floats, g: Any) -> None:
        self.sweep, self.device, self.real, self.v, self.g = sweep, sweep.device, sweep.real, v, g
        self._arguments = arguments
        self._arrays: dict[Key, DeviceArray] = {}
        self._shared: set[Key] = set()  # buffers that are somebody's, too
        imports = sweep.tape.imports
        for segment, place, number in sweep.parts(sweep.values):
            array = arguments.get(number)
            if isinstance(array, np.ndarray) and number not in sweep.own:
                self.buffer(("values", segment)).after(place, array.size).put(array)
            else:
                self.set((segment, place), self._import(number), shared=True)
        for number, (cells, picked, _) in sweep.picked.items():
            array = arguments.get(number)
            if isinstance(array, DeviceArray):
                self.v[cells] = picked.read(array)
            elif array is not None:
                self.v[cells] = array[cells - imports[number].cell]

    def _import(self, number: int) -> DeviceArray:
        """Return the values of an import, flat, on the device."""
        array = self._arguments.get(number)
        if array is None:
            return self.sweep.fixed(("import", number))
        if isinstance(array, np.ndarray):
            array = self._arguments[number] = self.device.put(array.astype(self.real))
        return array

    # -- buffers -----------------------------------------------------------------------------------

    def known(self, key: Key) -> DeviceArray | None:
        """Return a buffer if it has been used already."""
        return self._arrays.get(key)

    def buffer(self, key: Key) -> DeviceArray:
        """Return a buffer. Adjoints are zero at first, and an import's own adjoints anything."""
        found = self._arrays.get(key)
        if found is not None:
            return found
        sweep = self.sweep
        kind, number = key
        if kind == "constants":
            return sweep.fixed(key)
        if kind == "import":
            return self._import(sweep.plan.own[number])
        if kind == "ties":
            size = sweep.plan.ties
        elif kind == "import's adjoint":
            size = sweep.tape.imports[sweep.plan.own[number]].size
        else:
            size = (sweep.values if kind == "values" else sweep.adjoints).sizes[number]
        found = self._arrays[key] = self.device.empty(size, self.real)
        if kind == "adjoints":
            fill(found, 0.0)
        return found

    def set(self, at: tuple[int, int], array: DeviceArray, shared: bool = False) -> None:
        """Put values in their place; they become the segment where they are all of it."""
        segment, place = at
        key = "values", segment
        if key not in self._arrays and array.size == self.sweep.values.sizes[segment]:
            self._arrays[key] = array.reshape(array.size)
            if shared:
                self._shared.add(key)
        else:
            copy(array, self.buffer(key).after(place, array.size))

    def add(self, key: Key, work: Work, array: DeviceArray) -> None:
        """Add to a buffer what `work` moves there from an array."""
        work.run([array.reshape(array.size), self.buffer(key)])

    def free(self, key: Key) -> None:
        """Let go of a buffer that nothing uses any more."""
        self._arrays.pop(key, None)

    # -- ends of a sweep ---------------------------------------------------------------------------

    def seed(self, seeds: Sequence[Any]) -> None:
        """Let adjoints start."""
        for at, seed in zip(self.sweep.seeds, seeds, strict=True):
            if not at.size:
                continue
            if at.on_host:
                host = seed.numpy() if isinstance(seed, DeviceArray) else seed
                if isinstance(at.cells, slice):
                    self.g[at.cells] += host
                else:
                    np.add.at(self.g, at.cells, host)
            else:
                put = isinstance(seed, DeviceArray)
                array = seed if put else self.device.put(np.asarray(seed, self.real))
                self.add(("adjoints", at.segment), at.add, array)

    def read(self, number: int) -> Any:
        """Return cells that were to be seen: an array of the device that nobody else has.

        What the host computed is an ndarray.
        """
        at = self.sweep.reads[number]
        if at.on_host or not at.size:
            return self.v[at.cells]
        key = "values", at.segment
        segment = self.buffer(key)
        found = at.picked.of(segment)
        if not at.picked.is_view:
            return found
        if key in self._shared or 4 * found.size < segment.size:
            return self._copied(found)
        self._shared.add(key)
        return found

    def look(self, number: int) -> None:
        """Copy cells that were to be seen into the tape's arena."""
        at = self.sweep.reads[number]
        if not at.on_host and at.size:
            self.v[at.cells] = at.picked.read(self.buffer(("values", at.segment)))

    def _copied(self, array: DeviceArray) -> DeviceArray:
        found = self.device.empty(array.shape, self.real)
        copy(array, found)
        return found

    def adjoint(self, number: int) -> DeviceArray | None:
        """Return the adjoint of an import, flat, which nobody else has; None for zeros."""
        sweep = self.sweep
        entry, at = sweep.tape.imports[number], sweep.at[number]
        own = sweep.own.get(number, -1)
        found = self.known(("import's adjoint", own))
        if sweep.adjoints.has(at):
            segment, place = sweep.adjoints.of_run(entry.cell, entry.cell)
            known = self.known(("adjoints", segment))
            if known is not None:
                part = known.after(place, entry.size)
                if found is None:
                    found = part if part.size == known.size else self._copied(part)
                else:
                    copy(part, found, add=True)
        if number in sweep.picked:
            cells, _, back = sweep.picked[number]
            if found is None:
                found = self.device.empty(entry.size, self.real)
                fill(found, 0.0)
            back.run([self.device.put(self.g[cells].astype(self.real)), found])
        return found
