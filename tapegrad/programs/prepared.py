"""A dense Jacobian of a program as calls that are ready to be made.

What a sweep of many directions does depends on the structure of the tape alone: which cells it
reaches, what is a product of which rows, which contribution comes first.  So the first sweep leaves
behind a list of calls, of kernels and of products of matrices, on rows that stay where they are.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import execute
from ..host import HostCall
from ..kernels import native
from ..kernels.opcodes import HOST, INPUT, LANES
from ..regions.threads import direct
from ..storage import Floats, address
from ..tape import Tape
from ..transforms import directions
from ..transforms.products import Calls, product_of
from ..transforms.rows import Rows, first_of_run

NUMBERS = 1 << 19
"""Of all cells and directions together, at most: 4 MiB, which are kept."""

_UNLIMITED = 1 << 62


def is_preparable(tape: Tape, count: int) -> bool:
    """Whether a Jacobian in so many directions is small, and its kernels are there already."""
    return (
        0 < tape.flushed_cell * count <= NUMBERS
        and _array_cells(tape) < execute.REGION_CELLS
        and is_usable()
        and all(type(call) is HostCall for call in tape.hosts)
        and all(entry.source is None for entry in tape.imports)
        and all(execute.compiles(family, 0) for family in _families(tape))
    )


def _array_cells(tape: Tape) -> int:
    """Return how many cells belong to array instructions, which are better swept in regions."""
    arena, n = tape.arena, tape.n
    return int(arena.b.array[:n][arena.op.array[:n] == LANES].sum())


def is_usable() -> bool:
    """Whether sweeps are to be made by compiled kernels, and nobody watches them."""
    return execute.watching.sweeps is None and execute.compiles("vector", 0)


def _families(tape: Tape) -> set[str]:
    """Return which kernels compute the values of a tape."""
    names = {LANES: "lanes", SCALARS: "scalar"}
    return {names[kind] for kind, *_ in _steps(tape) if kind != HOST}


SCALARS = 0  # stands for the opcodes of all scalar instructions
Step = tuple[int, int, int, int, int]  # kind, first instruction, stop, first cell, end


def _steps(tape: Tape, kinds: bool = True) -> list[Step]:
    """Return the steps of a sweep: a structural operation, or a run of others.

    If asked for, such a run is either of array instructions or of scalar ones.
    """
    op, b = tape.arena.op.array[: tape.n], tape.arena.b.array[: tape.n]
    ends = np.cumsum(np.where((op == INPUT) | (op == LANES) | (op == HOST), b, 1)).tolist()
    kind = np.where((op == HOST) | (kinds & (op == LANES)), op, SCALARS).tolist()
    steps, start, cell = [], 0, 0
    for stop in range(1, tape.n + 1):
        if stop == tape.n or kind[stop] != kind[start] or kind[start] == HOST:
            steps.append((kind[start], start, stop, cell, ends[stop - 1]))
            start, cell = stop, ends[stop - 1]
    return steps


class PreparedJacobian:
    """The Jacobian of cells of a tape with respect to some of its inputs, at any point.

    Parameters
    ----------
    tape : Tape
        Finished, and evaluated.
    cells : ndarray of int
        The outputs.
    places : sequence of slice
        The cells of the inputs to differentiate with respect to.
    forward : bool
        Whether to sweep forward.
    """

    def __init__(self, tape: Tape, cells: Any, places: Sequence[slice], forward: bool) -> None:
        self._tape = tape
        arena = tape.arena
        op, a, b, self._v = (x.array for x in (arena.op, arena.a, arena.b, arena.v))
        d, x, k = tape.d.array(), tape.x.array(), tape.k.array()
        self._values = [self._value(step, (op, a, b, d, x, k)) for step in _steps(tape)]
        sizes = [place.stop - place.start for place in places]
        self._rows = Rows(tape.flushed_cell, sum(sizes) if forward else len(cells))
        self._columns = op, a, b, d, x, k, self._v, self._rows.values, self._rows.reached
        self._calls: Calls = []
        with np.errstate(all="ignore"):
            if forward:
                self._prepare_forward(places)
                first = first_of_run(cells)
                self._rows.of(cells)  # so that those that nothing reaches are zero
                self._cells = cells if first is None else slice(first, first + len(cells))
                stops = np.cumsum(sizes).tolist()
                self._parts = [slice(n - size, n) for n, size in zip(stops, sizes, strict=True)]
            else:
                self._prepare_reverse(cells)
                for place in places:
                    self._rows.run(place.start, place.stop)
                self._cells, self._parts = None, list(places)

    def evaluate(self) -> None:
        """Compute all values of the tape, whose inputs are there."""
        tape = self._tape
        ready = execute.ready_sweeps(tape)
        if ready is not None:
            ready.forward()
        else:
            with np.errstate(all="ignore"):
                for call in self._values:
                    call()
        tape.done, tape.done_cell = tape.n, tape.flushed_cell

    def matrices(self) -> list[Floats]:
        """Return the Jacobian with respect to each of the inputs; values are known."""
        with np.errstate(all="ignore"):
            for call in self._calls:
                call()
        values = self._rows.values
        if self._cells is None:
            return [values[part].T.copy("C") for part in self._parts]
        rows = values[self._cells]
        return [rows[:, part].copy("C") for part in self._parts]

    def _value(self, step: Any, columns: Any) -> Any:
        """Return the call that computes the values of one step."""
        kind, start, stop, cell, end = step
        op, a, b, d, x, k = columns
        if kind == HOST:
            call, out = self._tape.hosts[a[start]], self._v[cell:end]
            if product_of(call) is None:
                return functools.partial(call.forward, self._v, out)
            operands = [part.read(self._v) for part in call.operands]
            return functools.partial(np.matmul, *operands, out=out.reshape(call.shape))
        if kind == LANES:
            run, used = direct(native.load("lanes")["forward"]), (op, a, b, d, x, k, self._v)
            return functools.partial(run, *map(address, used), start, stop, cell, 0, _UNLIMITED)
        run = direct(native.load("scalar")["forward"])
        return functools.partial(run, *map(address, (op, a, b, k, self._v)), start, stop, cell)

    def _prepare_forward(self, places: Sequence[slice]) -> None:
        """Sweep once, and keep the calls whose outcome depends on where that is."""
        kernel = importlib.import_module("..kernels.cpu.vector", __package__).forward
        t, first = self._rows, 0
        fixed = np.zeros(len(t.reached), np.bool_)  # whose tangents are the same anywhere
        for place in places:
            size = place.stop - place.start
            t.receive(place.start, np.eye(size, t.values.shape[1], first))
            fixed[place] = True
            first += size
        for kind, start, stop, cell, end in _steps(self._tape, False):
            if kind != HOST:
                where = start, stop, cell, 0, _UNLIMITED
                self._make(functools.partial(kernel, *self._columns, *where))
                continue
            call = self._tape.hosts[self._columns[1][start]]
            product, step = product_of(call), (self._v, t, cell, end - cell)
            if product is None:
                self._make(functools.partial(directions.host_tangents, call, *step))
            elif fixed[slice(*product.run)].all():
                directions.host_tangents(call, *step)
                fixed[cell:end] = True
            else:
                for carry in product.tangents(t, cell, end - cell):
                    self._make(carry)

    def _prepare_reverse(self, cells: Any) -> None:
        """Sweep once, and keep all calls."""
        kernel = importlib.import_module("..kernels.cpu.vector", __package__).reverse
        g, first, n = self._rows, first_of_run(cells), len(cells)
        self._make(functools.partial(g.reached.fill, 0))
        if first is None and len(np.unique(cells)) < n:
            self._make(functools.partial(g.receive_at, cells, np.eye(n)))
        elif first is None:
            self._make(functools.partial(g.values.__setitem__, cells, np.eye(n)))
            self._make(functools.partial(g.reached.__setitem__, cells, 1))
        else:
            seeds = g.values[first : first + n]
            self._make(functools.partial(seeds.fill, 0.0))
            self._make(functools.partial(seeds.reshape(-1)[:: n + 1].fill, 1.0))
            self._make(functools.partial(g.reached[first : first + n].fill, 1))
        for kind, start, stop, cell, end in reversed(_steps(self._tape, False)):
            if kind != HOST:
                where = stop, start, end, -1, _UNLIMITED
                self._make(functools.partial(kernel, *self._columns, *where))
                continue
            call = self._tape.hosts[self._columns[1][start]]
            product, step = product_of(call), (self._v, g, cell, end - cell)
            if product is not None:
                for carry in product.adjoints(g, cell, end - cell):
                    self._make(carry)
            elif g.reached[cell:end].any():
                self._make(functools.partial(directions.host_adjoints, call, *step))

    def _make(self, call: Any) -> None:
        """Make a call, and keep it to be made again."""
        call()
        self._calls.append(call)
