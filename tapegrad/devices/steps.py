"""The steps of a plan as a device makes them: regions, structural operations, scalar code.

Regions run as kernels, and structural operations through an array module
(`tapegrad.devices.modules`). Scalar instructions would leave a device idle but for one thread: the
host's interpreter runs them, on the tape's own arena; what they need is copied there and what they
give is copied back.

A step is made in two parts. First all steps say what places they need, forward and backward; once
the places are known, each finds its own.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .. import execute
from ..kernels.opcodes import BINARY, CONST, HOST, INPUT, KINDS, LANES, TERNARY
from ..regions.plan import Step
from ..window import Window
from .arrays import DeviceArray
from .modules import OnHost
from .places import Places
from .work import Key, Picked, Placed, Way, Work, fill, moving, need

if TYPE_CHECKING:
    from ..host import HostOperand
    from .sweeps import Run, Sweep

_KINDS = np.array(KINDS, np.uint8)


class DeviceStep(Protocol):
    """What a sweep asks of its steps."""

    def settle(self) -> None:
        """Find the places, which are known now."""

    def uses(self, backward: bool) -> list[Key]:
        """Return the segments that a direction uses."""

    def forward(self, run: Run) -> None:
        """Compute values."""

    def backward(self, run: Run) -> None:
        """Turn the adjoints of what the step computes into those of its operands."""


class RegionStep:
    """A region, forward and backward.

    Parameters
    ----------
    step : Step
        Of the plan that is swept.
    values : Step
        The same step where values are all that is wanted: what no adjoint flows through may still
        be the operand of something.
    """

    def __init__(self, sweep: Sweep, step: Step, values: Step) -> None:
        self._sweep, self._step = sweep, step
        forward = values.forward if step.backward is None else step.forward
        self._regions = forward, step.backward, step.ties
        for region in self._regions:
            if region is not None:
                need(region, sweep.listed, sweep.values, sweep.adjoints)

    def settle(self) -> None:
        """Find the places, which are known now."""
        sweep = self._sweep
        self._placed = [
            None if r is None else Placed(r, sweep.listed, sweep.values, sweep.adjoints)
            for r in self._regions
        ]

    def uses(self, backward: bool) -> list[Key]:
        """Return the segments that a direction uses."""
        used = self._placed[1:] if backward else self._placed[:1]
        return [key for placed in used if placed is not None for key in placed.keys]

    @property
    def given(self) -> set[Key]:
        """The segments that hold values which it computes forward."""
        return set() if self._placed[0] is None else self._placed[0].written

    def forward(self, run: Run) -> None:
        """Compute values."""
        self._run(run, self._placed[0])

    def backward(self, run: Run) -> None:
        """Turn the adjoints of what the step computes into those of its operands."""
        for number, low, high in self._step.blanks:
            fill(run.buffer(("import's adjoint", number)).after(low, high - low), 0.0)
        self._run(run, self._placed[2])
        self._run(run, self._placed[1])

    def _run(self, run: Run, placed: Placed | None) -> None:
        if placed is not None:
            placed.work.run([run.buffer(key) for key in placed.keys])


class ScalarStep:
    """Scalar instructions, which the host runs."""

    def __init__(self, sweep: Sweep, step: Step) -> None:
        self._sweep, self._step = sweep, step
        arena, start, stop = sweep.tape.arena, step.start, step.stop
        op, a, b = (column.array[start:stop] for column in (arena.op, arena.a, arena.b))
        computes = (op != INPUT) & (op != CONST)
        self._sweeps = bool((op != INPUT).any())
        two = computes & ((_KINDS[op] == BINARY) | (_KINDS[op] == TERNARY))
        cells = np.unique(np.concatenate((a[computes], b[two]))).astype(np.int64)
        self._read: list[Any] = []  # cells that a device computes, those of each instruction
        found = sweep.values.instruction(cells)
        for i in np.unique(found).tolist():
            mine = cells[found == i]
            if sweep.kinds[i] == INPUT:
                sweep.read_on_host(i, mine)
            elif sweep.kinds[i] in (LANES, HOST):
                self._read.append(mine)
                sweep.values.need_cells(mine)
                if sweep.gradient:
                    sweep.adjoints.need_cells(mine)

    def settle(self) -> None:
        """Find the places, which are known now."""
        sweep = self._sweep
        self._up = self._pieces(sweep.values, (INPUT,))
        self._down = self._pieces(sweep.adjoints, (INPUT, CONST))
        self._values: list[tuple[Any, int, Picked]] = []
        self._adjoints: list[tuple[Any, int, Work]] = []
        for cells in self._read:
            segment, places = sweep.values.of_cells(cells)
            self._values.append((cells, segment, Picked(Way.of_places(places))))
            if sweep.gradient:
                segment, places = sweep.adjoints.of_cells(cells)
                work = moving(Way.straight(cells.size), Way.of_places(places), add=True)
                self._adjoints.append((cells, segment, work))

    def _pieces(self, places: Places, but: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
        """Return own cells that have places, together: segment, place, and cells from and to."""
        sweep = self._sweep
        found: list[tuple[int, int, int, int]] = []
        for i in range(self._step.start, self._step.stop):
            if sweep.kinds[i] in but or not places.has(i):
                continue
            cell = int(sweep.plan.first[i])
            segment, place = places.of_run(cell, cell)
            if found and found[-1][0] == segment and found[-1][3] == cell:
                segment, place, cell, _ = found.pop()
                found.append((segment, place, cell, int(sweep.plan.first[i]) + 1))
            else:
                found.append((segment, place, cell, cell + 1))
        return found

    def uses(self, backward: bool) -> list[Key]:
        """Return the segments that a direction uses."""
        name = "adjoints" if backward else "values"
        pieces = self._down if backward else self._up
        cells = self._adjoints if backward else self._values
        return [(name, piece[0]) for piece in pieces] + [(name, part[1]) for part in cells]

    def forward(self, run: Run) -> None:
        """Compute values."""
        for cells, segment, picked in self._values:
            run.v[cells] = picked.read(run.buffer(("values", segment)))
        if self._sweeps:
            execute.forward_scalars(self._sweep.tape, self._step)
        for segment, place, low, high in self._up:
            run.buffer(("values", segment)).after(place, high - low).put(run.v[low:high])

    def backward(self, run: Run) -> None:
        """Turn the adjoints of what the step computes into those of its operands."""
        g = run.g
        for segment, place, low, high in self._down:
            known = run.known(("adjoints", segment))
            if known is not None:
                g[low:high] += known.after(place, high - low).numpy()
        if not self._sweeps:
            return
        execute.reverse_scalars(self._sweep.tape, g, self._step)
        for cells, segment, work in self._adjoints:
            if g[cells].any():
                run.add(("adjoints", segment), work, run.device.put(g[cells].astype(run.real)))
                g[cells] = 0.0


class StructuralStep:
    """A structural operation."""

    def __init__(self, sweep: Sweep, step: Step) -> None:
        from ..ops.structural import STRUCTURAL

        self._sweep, self._step = sweep, step
        self._call = sweep.tape.hosts[int(sweep.tape.arena.a.array[step.start])]
        row = self._call.row
        device = sweep.device
        known = STRUCTURAL.get(row.name) is row
        self._module = device.arrays if known else OnHost(device)
        self._size = step.end - step.cell
        self._operands = [Operand(sweep, x) for x in self._call.operands]
        if self._size:
            sweep.values.need(step.cell, step.end - 1)
            if sweep.gradient:
                sweep.adjoints.need(step.cell, step.end - 1)

    def settle(self) -> None:
        """Find the places, which are known now."""
        sweep, step = self._sweep, self._step
        for x in self._operands:
            x.settle()
        if self._size:
            self._out = sweep.values.of_run(step.cell, step.end - 1)
            if sweep.gradient:
                self._adjoint = sweep.adjoints.of_run(step.cell, step.end - 1)

    def uses(self, backward: bool) -> list[Key]:
        """Return the segments that a direction uses."""
        keys = [key for x in self._operands for key in x.uses(backward)]
        if self._size:
            keys.append(("values", self._out[0]))
            if backward:
                keys.append(("adjoints", self._adjoint[0]))
        return keys

    def forward(self, run: Run) -> None:
        """Compute values."""
        if not self._size:
            return
        with self._module.active():
            values = [x.take(run, self._module) for x in self._operands]
            call = self._call
            array = run.device.with_room(
                lambda: self._module.give(call.row.forward(*values, **call.params), run.real)
            )
        run.set(self._out, array)

    def backward(self, run: Run) -> None:
        """Turn the adjoints of what the step computes into those of its operands."""
        if not self._size:
            return
        segment, place = self._adjoint
        adjoints = run.known(("adjoints", segment))
        if adjoints is None:
            return
        module, shape = self._module, self._call.shape
        with module.active():
            adjoint = module.take(adjoints.after(place, self._size).reshape(*shape))
            if not module.any(adjoint):  # where nothing flows, infinite values make no nan
                return
            segment, place = self._out
            values = run.buffer(("values", segment))
            out = module.take(values.after(place, self._size).reshape(*shape))
            operands = [x.take(run, module) for x in self._operands]
            call = self._call
            found = run.device.with_room(
                lambda: call.row.vjp(adjoint, out, *operands, **call.params)
            )
            for x, cotangent in zip(self._operands, found, strict=True):
                if x.active:
                    x.accumulate(run, module.give(cotangent, run.real))


class Operand:
    """Where a structural operation finds an operand on a device, and where its adjoint goes.

    Attributes
    ----------
    active : bool
        Whether adjoints flow to it.
    """

    def __init__(self, sweep: Sweep, x: HostOperand) -> None:
        self._sweep, self._x = sweep, x
        self._own = -1  # the import with buffers of its own that it is a window on
        self._copy: Any = None
        self._constant: Any = None  # as the module has it
        if x.window is not None:
            self._shape, self._cells = x.window.shape, None
            reach = [(n - 1) * s for n, s in zip(x.window.shape, x.window.strides, strict=True)]
            self._low = x.window.offset + sum(r for r in reach if r < 0)
            self._high = x.window.offset + sum(r for r in reach if r > 0)
        else:
            cells = x.constant if x.cells is None else x.cells.astype(np.int64)
            self._shape, self._cells = np.shape(cells), cells
            self._low, self._high = (
                (0, -1) if not cells.size else (int(cells.min()), int(cells.max()))
            )
        self.active = x.constant is None and 0 not in self._shape
        self._reads = self.active
        if not self.active:
            return
        first, last = (int(sweep.values.instruction(c)) for c in (self._low, self._high))
        if first == last and sweep.kinds[first] == INPUT:
            self._own = sweep.own_of(first)
            self.active = sweep.is_wanted(first)
        if self._own < 0:
            self._need(sweep.values)
        self.active = self.active and sweep.gradient
        if self.active:
            self._need(sweep.adjoints)

    def _need(self, places: Places) -> None:
        if self._cells is None:
            places.need(self._low, self._high)
        else:
            places.need_cells(self._cells)

    def _way(self, places: Places) -> tuple[int, Way]:
        """Return the segment of the operand, and the way of its elements there."""
        if self._cells is not None:
            segment, found = places.of_cells(self._cells)
            return segment, Way.of_places(found)
        segment, place = places.of_run(self._low, self._high)
        assert self._x.window is not None
        return segment, Way.of_window(self._x.window, place + self._x.window.offset - self._low)

    def settle(self) -> None:
        """Find the places, which are known now."""
        sweep = self._sweep
        if self.active:
            self._segment, way = self._way(sweep.adjoints)
            self._add = moving(Way.straight(prod(self._shape)), way, add=True)
        if not self._reads:
            return
        if self._own < 0:
            segment, way = self._way(sweep.values)
            self._key: Key = "values", segment
        else:
            self._key = "import", self._own
            cell = sweep.tape.imports[sweep.plan.own[self._own]].cell
            if self._cells is not None:
                way = Way.of_places(self._cells - cell)
            else:
                assert self._x.window is not None
                way = Way.of_window(self._x.window, self._x.window.offset - cell)
        self._offset = way.offset
        if way.places is not None or way.strides != Window.contiguous(0, self._shape).strides:
            self._copy = moving(way, Way.straight(prod(self._shape)))

    def uses(self, backward: bool) -> list[Key]:
        """Return the segments that a direction uses."""
        keys = [self._key] if self._reads else []
        return [*keys, ("adjoints", self._segment)] if backward and self.active else keys

    def take(self, run: Run, module: Any) -> Any:
        """Return its values as an array that rules take."""
        if self._x.constant is not None:
            if self._constant is None:
                self._constant = module.constant(self._x.constant, run.real)
            return self._constant
        size = prod(self._shape)
        if not self._reads:
            return module.take(run.device.empty(self._shape, run.real))
        found = run.buffer(self._key)
        if self._copy is None:
            return module.take(found.after(self._offset, size).reshape(*self._shape))
        array = run.device.empty(size, run.real)
        self._copy.run([found, array])
        return module.take(array.reshape(*self._shape))

    def accumulate(self, run: Run, cotangent: DeviceArray) -> None:
        """Add a cotangent of its shape to its adjoints."""
        run.add(("adjoints", self._segment), self._add, cotangent)
