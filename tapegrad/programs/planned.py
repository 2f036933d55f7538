"""Replays of small programs with arrays, as lists of calls that are ready to be made.

What a plan (`tapegrad.regions.plan`) takes a sweep through is the same for each replay: regions on
buffers that stay where they are, stretches of scalar instructions, structural operations on views.
Looking all that up takes longer than a thousand instructions on 3x3 arrays. So the steps of the
plans are written down once, each as the call of a kernel or of NumPy, and a replay makes them.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import execute
from ..host import HostCall
from ..kernels.opcodes import CONST, HOST, INPUT, LANES
from ..kernels.replays import (
    CHECK,
    GIVE_ADJOINTS,
    GIVE_VALUES,
    PUT,
    SEED,
    SWEEP,
    SWEEP_BACK,
)
from ..regions import straight, threads
from ..regions.plan import HOST_CALL, SCALARS, Plan, Step, plan_of
from ..regions.region import Region
from .ready import Ready

if TYPE_CHECKING:
    from ..decisions import Decisions
    from ..tape import Tape
    from .ports import Input, Output

NUMBERS = 1 << 14
"""Of all inputs and outputs together, at most: longer ones are borrowed rather than copied."""

Call = Callable[[], Any]


def is_plannable(tape: Tape, ports: Sequence[Input | Output]) -> bool:
    """Whether a tape with arrays is short of numbers, and calls NumPy only."""
    if tape.code or tape.lent or sum([port.size for port in ports]) > NUMBERS:
        return False
    op = tape.arena.op.array[: tape.n]
    arrays = ((op == LANES) | (op == HOST)).any()
    return bool(arrays) and all(map(_is_structural, tape.hosts))


def _is_structural(call: Any) -> bool:
    """Whether a host instruction is a row of the table, and calls no code of a user."""
    from ..ops.structural import STRUCTURAL

    return type(call) is HostCall and STRUCTURAL.get(call.row.name) is call.row


class Planned(Ready):
    """The replay of a small program with arrays.

    Parameters
    ----------
    tape : Tape
        All of it has been evaluated.
    decisions : Decisions
    inputs, outputs : sequence of Input, of Output
        Those that are on the tape.
    needed : tuple of (int, int)
        Stretches of cells (lowest and highest) that outputs and decisions are among.

    Attributes
    ----------
    works : bool
        Whether there are plans: not where a region would have too many axes.
    """

    __slots__ = (
        *("_decides", "_forward", "_gradient", "_hosts", "_kept", "_regions", "_room", "_tape"),
        "works",
    )

    def __init__(
        self,
        tape: Tape,
        decisions: Decisions,
        inputs: Sequence[Input],
        outputs: Sequence[Output],
        needed: tuple[tuple[int, int], ...],
    ) -> None:
        super().__init__(tape, None, decisions, inputs, outputs, whole=False)
        self._tape = tape
        self._decides = len(decisions) > 0
        self._kept: list[Any] = []  # what calls refer to by addresses
        self._hosts: dict[int, tuple[Call, Call]] = {}
        self._gradient: list[Call] | None = None
        plans = [plan_of(tape, 0, "some", needed)]
        if len(outputs) == 1 and outputs[0].size == 1:
            cell = int(outputs[0].flat_cells()[0])
            places = {known.cell for known in inputs}
            wanted = np.array([entry.cell in places for entry in tape.imports], np.uint8)
            plans.append(plan_of(tape, 0, "gradient", ((cell, cell),), wanted))
        self.works = all([plan.count >= 0 for plan in plans])
        if not self.works:
            return
        for plan in plans:
            execute.compile_where_asked(tape, plan)
        self._regions = [region for plan in plans for step in plan.steps for region in step.regions]
        size = max([threads.room_for(region) for region in self._regions], default=0)
        self._room = threads.room(size)
        value, *gradient = plans
        table = self._table(value, [])
        self._forward = [call for step in value.steps for call in self._step(step, table)]
        if gradient:
            self._gradient = list(self._calls_of(gradient[0]))
            if not self._decides and not gradient[0].has(cell, 1):
                self._gradient = self._forward + self._gradient

    def call(self, parts: int) -> Callable[[], int]:
        """Return the call that does some parts of a replay, and tells which decision changed."""
        ask = super().call
        calls = [ask(PUT), *self._forward]
        rest = [ask(parts & (GIVE_VALUES + GIVE_ADJOINTS))]
        if parts & SWEEP_BACK:
            assert self._gradient is not None
            rest = [*self._gradient, *rest]
            calls = calls if self._decides else calls[:1]
        look = ask(CHECK) if self._decides else None
        tape = self._tape

        def run() -> int:
            tape.done, tape.done_cell, tape.sparse = 0, 0, None  # what others know of its values
            try:
                for call in calls:
                    call()
                if look is not None:
                    place = look()
                    if place >= 0:
                        return place
                for call in rest:
                    call()
            except BaseException:  # Ctrl-C: the next sweep starts from zeros again
                self.g[:] = 0.0
                raise
            return -1

        def run_quietly() -> int:
            with np.errstate(all="ignore"):
                return run()

        return run_quietly if tape.hosts else run

    def replays_until_due(self) -> int:
        """Return how many replays take as long as giving its regions code of their own."""
        cost = sum([c for c in map(straight.at_least, self._regions) if c < math.inf])
        if cost == 0.0:
            return sys.maxsize
        start = perf_counter()
        for call in self._gradient or self._forward:
            call()
        seconds = perf_counter() - start
        self.g[:] = 0.0
        return int(cost / seconds)

    # -- from steps to calls -----------------------------------------------------------------------

    def _table(self, plan: Plan, adjoints: list[Any]) -> list[int]:
        """Return the addresses of the buffers of a plan's regions."""
        ties = np.empty(plan.ties)
        self._kept.append(ties)
        return execute.addresses(self._tape, plan, self.g, adjoints, ties)

    def _calls_of(self, plan: Plan) -> Iterator[Call]:
        """Yield the calls of a sweep backward, after those forward that it needs."""
        g, imports, shared = self.g, self._tape.imports, set(plan.in_arena)
        own = []
        for number in plan.own:
            entry = imports[number]
            adjoint = g[entry.cell : entry.cell + entry.size]
            # Adjoints that come from elsewhere, too, may be there before a region sets them.
            own.append(np.zeros(entry.size) if number in shared else adjoint)
        table = self._table(plan, own)
        before, top, after, rest = plan.order()
        for step in before:
            yield from self._step(step, table)
        yield super().call(SEED)
        for step in top:
            yield from self._step_back(step, table, own)
        for step in after:
            yield from self._step(step, table)
        for step in rest:
            yield from self._step_back(step, table, own)
        for i, number in enumerate(plan.own):
            if number in shared and plan.touched[i]:
                entry = imports[number]
                adjoint = g[entry.cell : entry.cell + entry.size]
                yield functools.partial(np.add, adjoint, own[i], adjoint)

    def _step(self, step: Step, table: list[int]) -> Iterator[Call]:
        """Yield the calls of a step forward."""
        if step.kind == SCALARS:
            op = self._tape.arena.op.array[step.start : step.stop]
            if not ((op == INPUT) | (op == CONST)).all():  # whose values are there
                yield self._scalars(step, SWEEP)
        elif step.kind == HOST_CALL:
            yield self._host(step)[0]
        elif step.forward is not None:
            yield self._region(step.forward, table)

    def _step_back(self, step: Step, table: list[int], own: list[Any]) -> Iterator[Call]:
        """Yield the calls of a step backward."""
        if step.kind == SCALARS:
            if (self._tape.arena.op.array[step.start : step.stop] != INPUT).any():
                yield self._scalars(step, SWEEP_BACK)
        elif step.kind == HOST_CALL:
            yield self._host(step)[1]
        else:
            for number, low, high in step.blanks:
                if own[number].base is not self.g:
                    yield functools.partial(own[number][low:high].fill, 0.0)
            for region in (step.ties, step.backward):
                if region is not None:
                    yield self._region(region, table)
            for low, high in step.used:
                yield functools.partial(self.g[low:high].fill, 0.0)

    def _region(self, region: Region, table: list[int]) -> Call:
        call, held = threads.prepared(region, table, threads.aligned(self._room))
        self._kept.append(held)
        return call

    def _host(self, step: Step) -> tuple[Call, Call]:
        if step.start not in self._hosts:
            arena = self._tape.arena
            host = self._tape.hosts[arena.a.array[step.start]]
            self._hosts[step.start] = host.prepared(arena.v.array, self.g, step.cell)
        return self._hosts[step.start]

    def _scalars(self, step: Step, part: int) -> Call:
        return self.stretch(self._tape, step.start, step.stop, step.cell, part)
