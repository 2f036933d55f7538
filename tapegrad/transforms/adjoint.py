"""The backward sweep as recorded operations: adjoints that can be differentiated again.

`tapegrad.backward` computes adjoints; here they are recorded, by the rows' own partials, from the
instructions that a call has appended to a tape.  The adjoint of a cell is another cell, so adjoints
are an index array over the cells of the call: where nothing has to be added, nothing is recorded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import execute
from ..arena import give_back_adjoints, take_adjoints
from ..arrays.indexing import on_cells
from ..arrays.scalar import adjoint_product, adjoint_quotient
from ..kernels.opcodes import (
    BINARY,
    BINARY_KX,
    BINARY_XK,
    CARRY,
    CONST,
    HOST,
    INPUT,
    KINDS,
    LANES,
    ROW_OF,
    ROWS,
    TERNARY,
)
from ..kernels.rules import FORWARD
from ..kernels.traced import CONTRIBUTIONS, FLOWS
from ..recording import (
    CELLS,
    CONSTANT,
    INDEXED,
    PASSIVE_CELLS,
    array,
    cell_of,
    cells_of,
    elementwise,
    scalar,
)
from ..storage import Floats, Storage, Tracked, TrackedArray
from ..tape import Tape, recorder
from ..window import Shape, Window

Ints = np.ndarray[Any, np.dtype[np.int64]]
Seed = tuple[Any, Any]  # cells (first of a run, or an array), cotangent (an ndarray, or tracked)


_ADD, _ADJOINT_MULTIPLY = ROWS["add"][0], ROWS["adjoint_multiply"][0]
_MULTIPLY, _MULTIPLY_XK, _MULTIPLY_KX = ROWS["multiply"]
_SUMS_AND_PRODUCTS = frozenset((_ADD, _MULTIPLY, _MULTIPLY_XK, _MULTIPLY_KX))


@contextmanager
def pinned(tape: Tape) -> Iterator[None]:
    """Keep recording on `tape`, however large it grows."""
    tape.pinned += 1
    try:
        yield
    finally:
        tape.pinned -= 1


class Stretch:
    """The instructions that one call of a function appended to a tape.

    Attributes
    ----------
    tape : Tape
    first, stop : int
        Its instructions.
    base, top : int
        Their cells.
    arguments : list of ndarray
        Cells of the differentiated arguments, which a sweep ends at.
    """

    __slots__ = ("_active", "_depends", "arguments", "base", "first", "stop", "tape", "top")

    def __init__(self, tape: Tape, whole: bool = False) -> None:
        tape.flush()
        self.tape = tape
        self.first, self.base = (0, 0) if whole else (tape.n, tape.flushed_cell)
        self.stop, self.top = tape.n, tape.flushed_cell
        self.arguments: list[Ints] = []
        self._active: bytearray | None = None
        self._depends = False

    def end(self) -> None:
        """Say that the call is over."""
        self.tape.flush()
        self.stop, self.top = self.tape.n, self.tape.flushed_cell

    @property
    def active(self) -> bytearray:
        """For each cell, whether it depends on an argument by derivatives that are not zero."""
        if self._active is None:
            self._active = self._find_active()
        return self._active

    @property
    def depends(self) -> bool:
        """Whether some instruction refers to cells before the call, or to a value from outside."""
        return bool(self.active) and self._depends

    def inside(self, cells: Ints) -> Any:
        """Return which cells belong to the call."""
        return (cells >= self.base) & (cells < self.top)

    def _find_active(self) -> bytearray:
        base = self.base
        active = bytearray(self.top - base)
        flags = np.frombuffer(active, np.bool_)
        for argument in self.arguments:
            flags[argument - base] = True
        for entry in self.tape.imports:
            if entry.cell >= base and (entry.source or (entry.leaf and entry.leaf.requires_grad)):
                self._depends = True
        places: list[Ints | None]
        for i, op, a, b, cell in self.instructions():
            if op == LANES:
                row, shape, operands = descriptor(self.tape, a)
                rules = CONTRIBUTIONS[row]
                places = [places_of(self.tape, shape, operand) for operand in operands]
            elif op == HOST:
                places = [host_cells(operand) for operand in self.tape.hosts[a].operands]
                rules = (host_cells,) * len(places)  # every operand has a derivative
            elif op in (INPUT, CONST, CARRY):
                continue
            else:
                before = int(self.tape.arena.a.array[i - 1]) if KINDS[op] == TERNARY else 0
                scalar_rules = CONTRIBUTIONS[ROW_OF[op]]
                for position, place in scalar_operands(KINDS[op], a, b, before):
                    if place < base:
                        self._depends = True
                    elif scalar_rules[position] is not None and active[place - base]:
                        active[cell - base] = 1
                continue
            for rule, cells in zip(rules, places, strict=True):
                if cells is None or not cells.size:
                    continue
                if cells.min() < base:
                    self._depends = True
                    cells = cells[cells >= base]
                if rule is not None and flags[cells - base].any():
                    flags[cell - base : cell - base + b] = True
        return active

    def instructions(self, backward: bool = False) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield position, opcode, a, b and first cell of each instruction."""
        arena = self.tape.arena
        columns = [
            column.array[self.first : self.stop].tolist() for column in (arena.op, arena.a, arena.b)
        ]
        rows = zip(range(self.first, self.stop), *columns, strict=True)
        if not backward:
            cell = self.base
            for i, op, a, b in rows:
                yield i, op, a, b, cell
                cell += b if op in (INPUT, LANES, HOST) else 1
            return
        cell = self.top
        for i, op, a, b in reversed(list(rows)):
            cell -= b if op in (INPUT, LANES, HOST) else 1
            yield i, op, a, b, cell

    def sweep(self, seeds: Sequence[Seed]) -> list[Floats]:
        """Return the arguments' adjoints as numbers, by the ordinary sweep over the call only."""
        tape = self.tape
        with tape.lock:
            execute.evaluate(tape)
            column = take_adjoints(tape.flushed_cell)
            g, clean = column.expect(tape.flushed_cell), False
            try:
                for cells, cotangent in seeds:
                    where = run_of(cells, cotangent.size)
                    known = self.inside(where)
                    np.add.at(g, where[known], cotangent.ravel()[known])
                execute.reverse(tape, g, self.top, bottom=self.first)
                found = [g[cells] for cells in self.arguments]
                for entry in tape.imports:
                    if entry.cell >= self.base:
                        g[entry.cell : entry.cell + entry.size] = 0.0
                for cells in self.arguments:
                    g[cells] = 0.0
                clean = True
                return found
            finally:
                give_back_adjoints(column, clean)


# -- reading instructions --------------------------------------------------------------------------


def run_of(cells: Any, size: int) -> Ints:
    """Return cells, given as the first of a run or as an array, as a flat array."""
    if isinstance(cells, (int, np.integer)):
        return np.arange(cells, cells + size, dtype=np.int64)
    return np.asarray(cells, np.int64).ravel()


def scalar_operands(kind: int, a: int, b: int, before: int) -> tuple[tuple[int, int], ...]:
    """Return (position, cell) of the operands of a scalar instruction that are cells."""
    if kind == BINARY:
        return (0, a), (1, b)
    if kind == BINARY_KX:
        return ((1, a),)
    if kind == TERNARY:
        return (0, before), (1, a), (2, b)
    return ((0, a),)


def descriptor(tape: Tape, at: int) -> tuple[str, Shape, list[tuple[int, int, Shape]]]:
    """Return row, shape, and (kind, offset, strides) of the operands of an array instruction."""
    d = tape.d.array()
    row, ndim = ROW_OF[d[at]], int(d[at + 1])
    shape = tuple(d[at + 2 : at + 2 + ndim].tolist())
    operands = []
    at += 2 + ndim
    for _ in CONTRIBUTIONS[row]:
        kind, offset, *strides = d[at : at + 2 + ndim].tolist()
        operands.append((kind, offset, tuple(strides) or (0,)))
        at += 2 + ndim
    return row, shape or (1,), operands


def places_of(tape: Tape, shape: Shape, operand: tuple[int, int, Shape]) -> Ints | None:
    """Return the cells of an operand of an array instruction, or None where it has no adjoint.

    Axes along which the operand is broadcast have length 1.
    """
    kind, offset, strides = operand
    if kind in (CONSTANT, PASSIVE_CELLS):
        return None
    kept = tuple([n if step else 1 for n, step in zip(shape, strides, strict=True)])
    cells = Window(offset, kept, strides).cells()
    return tape.x.array()[cells].astype(np.int64) if kind == INDEXED else cells


def host_cells(operand: Any) -> Ints | None:
    """Return the cells of an operand of a structural instruction, or None for a constant."""
    if operand.window is not None:
        cells: Ints = operand.window.cells()
        return cells
    return None if operand.cells is None else np.asarray(operand.cells, np.int64)


# -- what the rules are handed ---------------------------------------------------------------------


def call(row: str, *operands: Any) -> Any:
    """Record a row, or compute it where no operand is tracked."""
    if any(isinstance(x, Tracked) for x in operands):
        return elementwise(row, *operands)
    return FORWARD[ROWS[row][0]](*map(float, operands))


def choose(test: Any, body: Any, orelse: Any) -> Any:
    """Record the choice between two branches, or take one where the test is known."""
    if isinstance(test, Tracked):
        return elementwise("where", test, body(), orelse())
    return body() if test else orelse()


class _Adjoint:
    """An adjoint, as rules multiply it: where it is zero, its products are, whatever the partial.

    So what is recorded has the values of a sweep of numbers, which skips what has no adjoint.
    """

    __slots__ = ("w",)

    def __init__(self, w: Any) -> None:
        self.w = w

    def __mul__(self, partial: Any) -> Any:
        if _is_plain(partial):
            return self.w * partial
        return adjoint_product(self.w, partial)

    def __truediv__(self, divisor: Any) -> Any:
        if _is_plain(divisor):
            return self.w / divisor
        return adjoint_quotient(self.w, divisor)

    def __neg__(self) -> Any:
        return -self.w


def _is_plain(x: Any) -> bool:
    """Whether a factor is a number that makes zero of zero."""
    return x.__class__ is float and x != 0.0 and math.isfinite(x)


def _plain(c: Any) -> Any:
    return c.w if c.__class__ is _Adjoint else c


def _choose(test: Any, body: Any, orelse: Any) -> Any:
    return choose(test, lambda: _plain(body()), lambda: _plain(orelse()))


# -- the sweep -------------------------------------------------------------------------------------


class RecordedSweep:
    """One backward sweep over a stretch, appended to the current tape.

    An adjoint that is zero because a branch was not taken (``np.where``, ``np.maximum``), or by a
    constant factor, carries the condition under which it flows, so that it stays zero whatever it
    is multiplied by: a sweep of numbers skips such instructions, which recorded operations cannot.
    Adjoints that happen to be zero, as sums, do not: their derivatives need not be.
    """

    def __init__(self, stretch: Stretch) -> None:
        self.stretch = stretch
        self.tape = recorder.current()
        size = stretch.top - stretch.base
        self.adjoints: Ints = np.full(size, -1, np.int64)  # cells, -1 where there is none
        self.flows: Ints = np.full(size, -1, np.int64)  # cells of conditions, -1 for always
        self._adjoint, self._flow = memoryview(self.adjoints), memoryview(self.flows)  # type: ignore[arg-type]
        self.masked = False  # whether there is any condition
        self._active = stretch.active
        self.active = np.frombuffer(self._active, np.bool_)
        self._pool: list[float] = stretch.tape.k.array().tolist()
        self.shift = 0
        self._constants: dict[float, int] = {}

    def run(self, seeds: Sequence[Seed]) -> list[Any]:
        """Return the arguments' adjoints: flat tracked arrays, or None where nothing flows."""
        stretch = self.stretch
        with pinned(self.tape):
            if stretch.tape is not self.tape:
                values = self.tape.import_storage(Storage(stretch.tape, 0, stretch.top))
                self.shift = values.base
            for cells, cotangent in seeds:
                self._seed(run_of(cells, cotangent.size), cotangent)
            for i, op, a, b, cell in stretch.instructions(backward=True):
                if op in (INPUT, CONST, CARRY):
                    continue
                if op == LANES:
                    self._lanes(a, b, cell)
                elif op == HOST:
                    self._host(a, b, cell)
                elif self._adjoint[cell - stretch.base] < 0:
                    continue
                elif not self._sum_or_product(op, a, b, cell):
                    self._scalar(i, op, a, b, cell)
            return [self._result(cells - stretch.base) for cells in stretch.arguments]

    def _seed(self, cells: Ints, cotangent: Any) -> None:
        if isinstance(cotangent, Tracked):
            self._accumulate(cells, flat_cells(self.tape, cotangent), None)
            return
        values = np.asarray(cotangent, np.float64).ravel()
        chosen = np.flatnonzero(values)
        if not chosen.size:
            return
        if chosen.size == 1:
            found = np.array([self._constant(values[chosen[0]])])
        else:
            entry = self.tape.push_input(values[chosen])
            found = np.arange(entry.cell, entry.cell + entry.size)
        self._accumulate(cells[chosen], found, None)

    def _result(self, places: Ints) -> Any:
        cells = self.adjoints[places]
        if not (cells >= 0).any():
            return None
        return self._view(self._filled(cells), cells.shape, own=True)

    # -- instructions ------------------------------------------------------------------------------

    def _sum_or_product(self, op: int, a: int, b: int, cell: int) -> bool:
        """Do what `_scalar` does for the commonest instructions, if this is one: in less time."""
        if op not in _SUMS_AND_PRODUCTS or self._flow[cell - self.stretch.base] >= 0:
            return False
        base, tape, active = self.stretch.base, self.tape, self._active
        adjoint = self._adjoint[cell - base]
        if op in (_ADD, _MULTIPLY):
            for place, other in ((a, b), (b, a)):
                if place >= base and active[place - base]:
                    part = adjoint
                    if op == _MULTIPLY:
                        part = tape.push(_ADJOINT_MULTIPLY, adjoint, other + self.shift)
                    self._accumulate_one(place - base, part, None)
            return True
        constant = self._pool[b]
        if not _is_plain(constant):
            return False
        if a >= base and active[a - base]:
            part = tape.push(_MULTIPLY_XK, adjoint, tape.constant(constant))
            self._accumulate_one(a - base, part, None)
        return True

    def _scalar(self, i: int, op: int, a: int, b: int, cell: int) -> None:
        tape, base, shift = self.tape, self.stretch.base, self.shift
        active = self.stretch.active
        kind, row = KINDS[op], ROW_OF[op]
        before = int(self.stretch.tape.arena.a.array[i - 1]) if kind == TERNARY else 0
        operands = scalar_operands(kind, a, b, before)
        values = [scalar(tape, place + shift) for _, place in operands]
        if kind in (BINARY_XK, BINARY_KX):
            constant = self.stretch.tape.k.array().item(b)
            values.insert(len(values) if kind == BINARY_XK else 0, constant)
        values.append(scalar(tape, cell + shift))
        w = scalar(tape, self._adjoint[cell - base])
        known = self._flow[cell - base]
        mask = scalar(tape, known) if known >= 0 else None
        for position, place in operands:
            if place >= base and active[place - base]:
                c, flow = self._contribution(row, position, w, values, mask)
                if c is not None:
                    self._accumulate_one(place - base, cell_of(tape, c), flow)

    def _lanes(self, at: int, size: int, cell: int) -> None:
        base = self.stretch.base
        adjoints = self.adjoints[cell - base : cell - base + size]
        present = adjoints >= 0
        if not present.any():
            return
        row, shape, operands = descriptor(self.stretch.tape, at)
        lanes = None if present.all() else np.flatnonzero(present)
        conditions = self.flows[cell - base : cell - base + size]
        if lanes is not None:
            adjoints, conditions = adjoints[lanes], conditions[lanes]
        values = [self._operand(shape, operand, lanes) for operand in operands]
        own = np.arange(cell, cell + size)
        shown = shape if lanes is None else lanes.shape
        values.append(self._view((own if lanes is None else own[lanes]) + self.shift, shown))
        w, mask = self._view(adjoints, shown), None
        if self.masked and (conditions >= 0).any():
            always = self._constant(1.0) if (conditions < 0).any() else 0
            mask = self._view(np.where(conditions < 0, always, conditions), shown)
        for position, operand in enumerate(operands):
            targets = places_of(self.stretch.tape, shape, operand)
            if targets is None or not self._any_active(targets):
                continue
            c, flow = self._contribution(row, position, w, values, mask)
            if c is None:
                continue
            if row == "multiply":
                flow = self._through_constant(shape, operands[1 - position], values, position, flow)
            if lanes is not None:
                targets = np.broadcast_to(targets, shape).ravel()[lanes]
            axes = tuple([i for i, n in enumerate(shown) if targets.shape[i] != n])
            if axes:
                c = c.sum(axis=axes)
                flow = flow.max(axis=axes) if flow is not None else None
            flow_cells = None if flow is None else flat_cells(self.tape, flow)
            self._accumulate(targets.ravel(), flat_cells(self.tape, c), flow_cells)

    def _operand(self, shape: Shape, operand: tuple[int, int, Shape], lanes: Any) -> Any:
        """Return the values of an operand of an array instruction, or of some of its lanes."""
        kind, offset, strides = operand
        tape = self.stretch.tape
        if kind == CONSTANT:
            return float(tape.k.array()[offset])
        if kind in (CELLS, PASSIVE_CELLS) and lanes is None:
            window = Window(offset + self.shift, shape, strides)
            return array(Storage(self.tape, 0, self.tape.next_cell), window)
        cells = Window(offset, shape, strides).cells()
        if kind == INDEXED:
            cells = tape.x.array()[cells].astype(np.int64)
        chosen = cells if lanes is None else cells.ravel()[lanes]
        return self._view(chosen.ravel() + self.shift, chosen.shape)

    def _through_constant(
        self,
        shape: Shape,
        factor: tuple[int, int, Shape],
        values: list[Any],
        position: int,
        flow: Any,
    ) -> Any:
        """Return a condition that is also false where the other factor is a constant zero."""
        kind, offset, strides = factor
        tape = self.stretch.tape
        if kind != PASSIVE_CELLS:
            return flow
        if Window(offset, shape, strides).view(tape.arena.v.array).all():
            return flow
        passes = elementwise("not_equal", values[1 - position], 0.0)
        return passes if flow is None else elementwise("logical_and", flow, passes)

    def _contribution(
        self, row: str, position: int, w: Any, values: list[Any], mask: Any
    ) -> tuple[Any, Any]:
        """Return what an operand's adjoint receives and under which condition; None for nothing."""
        rule, flows = CONTRIBUTIONS[row][position], FLOWS[row][position]
        if rule is None:
            return None, None
        if (
            row == "multiply"
            and values[1 - position].__class__ is float
            and not values[1 - position]
        ):
            return None, None
        c = _plain(rule(call, _choose, _Adjoint(w), *values))
        flow = None if flows is None else flows(call, choose, *values)
        if not isinstance(c, Tracked):
            return None, None  # a literal zero
        if mask is not None:
            c = elementwise("where", mask, c, 0.0)
            flow = elementwise("logical_and", mask, flow) if isinstance(flow, Tracked) else mask
        return c, flow if isinstance(flow, Tracked) else None

    def _host(self, number: int, size: int, cell: int) -> None:
        base = self.stretch.base
        adjoints = self.adjoints[cell - base : cell - base + size]
        if not (adjoints >= 0).any():
            return
        instruction = self.stretch.tape.hosts[number]
        places = [host_cells(operand) for operand in instruction.operands]
        values = []
        for operand, cells in zip(instruction.operands, places, strict=True):
            if cells is None:
                values.append(operand.constant)
            else:
                values.append(self._view(cells.ravel() + self.shift, cells.shape))
        own = np.arange(cell, cell + size) + self.shift
        out = self._view(own, instruction.shape)
        w = self._view(self._filled(adjoints), instruction.shape)
        found = instruction.row.vjp(w, out, *values, **instruction.params)
        for x, targets, cotangent in zip(values, places, found, strict=True):
            if targets is None or not self._any_active(targets):
                continue
            if isinstance(cotangent, Tracked):
                flow = _chosen(instruction, x, out)
                self._accumulate(
                    targets.ravel(),
                    flat_cells(self.tape, cotangent),
                    None if flow is None else flat_cells(self.tape, flow),
                )
            else:
                self._seed(targets.ravel(), cotangent)

    # -- adjoints ----------------------------------------------------------------------------------

    def _any_active(self, targets: Ints) -> bool:
        known = targets[self.stretch.inside(targets)]
        return bool(self.active[known - self.stretch.base].any())

    def _accumulate(self, targets: Ints, cells: Ints, flow: Ints | None) -> None:
        """Add the values of `cells` to the adjoints of the cells `targets` that are active."""
        known = self.stretch.inside(targets)
        places = targets - self.stretch.base
        known[known] = self.active[places[known]]
        if not known.all():
            places, cells = places[known], cells[known]
            flow = None if flow is None else flow[known]
        if not places.size:
            return
        if flow is None:
            self.flows[places] = -1
        else:
            self.masked = True
            open_ = (self.adjoints[places] < 0) | (self.flows[places] >= 0)
            self._merge(self.flows, places[open_], flow[open_], "logical_or")
        self._merge(self.adjoints, places, cells, "add")

    def _accumulate_one(self, place: int, cell: int, flow: Any) -> None:
        """Add the value of one cell to the adjoint at `place`."""
        before, condition = self._adjoint[place], self._flow[place]
        if flow is None:
            self._flow[place] = -1
        elif before < 0 or condition >= 0:
            self.masked = True
            if before >= 0:
                flow = elementwise("logical_or", scalar(self.tape, condition), flow)
            self._flow[place] = cell_of(self.tape, flow)
        if before >= 0:
            cell = self.tape.push(_ADD, before, cell)
        self._adjoint[place] = cell

    def _merge(self, table: Ints, places: Ints, cells: Ints, row: str) -> None:
        """Join `cells` by a row to what `table` has at `places`, which may repeat."""
        places, cells = self._without_repeats(places, cells, row)
        before = table[places]
        old = before >= 0
        if old.any():
            cells = cells.copy()
            cells[old] = self._joined(before[old], cells[old], row)
        table[places] = cells

    def _without_repeats(self, places: Ints, cells: Ints, row: str) -> tuple[Ints, Ints]:
        """Join the cells that go to one place, in pairs: log n instructions for n of them."""
        if places.size < 2 or (places[1:] > places[:-1]).all():
            return places, cells
        order = np.argsort(places, kind="stable")
        places, cells = places[order], cells[order]
        while True:
            first = np.append(True, places[1:] != places[:-1])
            if first.all():
                return places, cells
            count = np.arange(places.size)
            even = (count - np.maximum.accumulate(np.where(first, count, 0))) % 2 == 0
            pairs = np.flatnonzero(even[:-1] & ~first[1:])
            cells[pairs] = self._joined(cells[pairs], cells[pairs + 1], row)
            places, cells = places[even], cells[even]

    def _joined(self, one: Ints, other: Ints, row: str) -> Ints:
        result = elementwise(row, self._view(one, one.shape), self._view(other, other.shape))
        return flat_cells(self.tape, result)

    # -- values on the tape ------------------------------------------------------------------------

    def _constant(self, value: float) -> int:
        cell = self._constants.get(value)
        if cell is None:
            cell = self._constants[value] = self.tape.constant_cell(value)
        return cell

    def _filled(self, cells: Ints) -> Ints:
        """Return cells with a zero where there is no adjoint."""
        missing = cells < 0
        return np.where(missing, self._constant(0.0), cells) if missing.any() else cells

    def _view(self, cells: Ints, shape: Shape, own: bool = False) -> Any:
        """Return the values of flat `cells` in a shape, as a window where they allow it."""
        tape = self.tape
        if not shape:
            return scalar(tape, int(cells[0]))
        size = cells.size
        if size and cells[-1] - cells[0] == size - 1 and (size < 3 or (np.diff(cells) == 1).all()):
            return array(Storage(tape, int(cells[0]), size), Window.contiguous(0, shape))
        if size and not own and (cells == cells[0]).all():
            return array(Storage(tape, int(cells[0]), 1), Window(0, shape, (0,) * len(shape)))
        return on_cells(tape, cells.reshape(shape), np.dtype(np.float64))


def flat_cells(tape: Tape, x: Any) -> Ints:
    """Return the cells of a tracked value in `tape`, flat."""
    if isinstance(x, TrackedArray):
        return cells_of(tape, x).astype(np.int64).ravel()
    return np.array([cell_of(tape, x)], np.int64)


def _chosen(instruction: Any, x: Any, out: Any) -> Any:
    """Return which elements an extremum was, for their adjoints alone are not zero."""
    from ..ops.structural import STRUCTURAL  # loaded with the first structural operation

    if instruction.row not in (STRUCTURAL["min"], STRUCTURAL["max"]):
        return None
    axes = instruction.params["axis"]
    kept = tuple([1 if i in axes else n for i, n in enumerate(x.shape)])
    return np.logical_or(x == out.reshape(kept), x != x)
