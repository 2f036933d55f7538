"""Replays of small programs as single calls of a kernel, which is most of what they take.

Where a program has a thousand scalar instructions, sweeping them takes microseconds, and so does
every NumPy function that would be called around the sweep. So all that a replay does is written
down once, for `tapegrad.kernels.cpu.replay`, and arguments and results pass through one buffer.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from operator import itemgetter, length_hint
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import execute, trees
from ..arena import STAGGER, zeros
from ..kernels import native
from ..kernels.opcodes import CONST, HOST, LANES
from ..kernels.replays import (
    CHECK,
    GIVE_ADJOINTS,
    GIVE_VALUES,
    PUT,
    RUN,
    SEED,
    STEP,
    SWEEP,
    SWEEP_BACK,
)
from ..recording import FLOAT64
from ..regions.threads import direct
from ..regions.written import Record
from ..storage import Floats, address

if TYPE_CHECKING:
    from ..decisions import Decisions
    from ..tape import Tape
    from .ports import Input, Output
    from .rolled import Rolled

Call = Callable[[], int]

CELLS = 1 << 20
"""Cells of the largest tape whose replays are made so; one that takes longer looks at Ctrl-C."""

SLICE = 1 << 12
"""Instructions after which decisions are looked at, while what they look at is in the cache."""

_NEXT_CELL, _RUNS, _RUN_COUNT, _NEXT_LOOK = map(
    STEP.index, ("next_cell", "runs", "run_count", "next_look")
)

_RUN = 8  # looks that a run has at least

_PLAIN = {float, np.float64}  # types of numbers that are taken without a look at them


class Ready:
    """The replay of a small program of scalar instructions: nothing is left to be decided.

    Parameters
    ----------
    tape : Tape
        All of it has been evaluated.
    loops : Rolled or None
        Its compiled loops.
    decisions : Decisions
    inputs, outputs : sequence of Input, of Output
        Those that are on the tape.
    whole : bool
        Whether the interpreters and the loops are all that sweeps need.

    Attributes
    ----------
    g : ndarray of float64
        Adjoints by cell; all zero between sweeps.
    values : ndarray of float64
        Values of all inputs, for `run`; then values of all outputs, and adjoints of all inputs.
    """

    __slots__ = ("_cells", "_columns", "_counts", "_held", "_program", "_replay", "g", "values")

    def __init__(
        self,
        tape: Tape,
        loops: Rolled | None,
        decisions: Decisions,
        inputs: Sequence[Input],
        outputs: Sequence[Output],
        whole: bool = True,
    ) -> None:
        execute.load("replay")
        arena = tape.arena
        self.g = zeros(tape.flushed_cell, FLOAT64, STAGGER["g"])
        given = _joined([np.arange(port.cell, port.cell + port.size) for port in inputs])
        wanted = _joined([port.flat_cells() for port in outputs])
        imported = _joined([np.arange(e.cell, e.cell + e.size) for e in tape.imports])
        looks, seen = decisions.looks()
        self.values = np.zeros(given.size + wanted.size)
        steps, parameters = _steps(tape, loops, 0, tape.n if whole else 0, 0)
        singles, runs = _looks(decisions, steps)
        v = arena.v.array
        self._columns = arena.op.array, arena.a.array, arena.b.array, tape.k.array(), v, self.g, v
        self._cells = (
            *(given, wanted, imported, self.values),
            *(looks[singles].astype(np.uint32), seen[singles], looks.astype(np.uint32), seen),
        )
        self._counts = given.size, wanted.size, imported.size, looks.size
        self._program = self._with_steps(steps)
        self._held: list[Any] = [parameters, runs]  # whose addresses are in the steps
        self._replay = direct(native.load("replay")["replay"])

    def _with_steps(self, steps: Any) -> Record:
        """Return the words of the program, but for what a sweep consists of."""
        return Record(*self._columns, steps, *self._cells, len(steps), *self._counts)

    def forward(self, check: bool = False) -> int:
        """Compute all values; return which of the values looked at has changed, -1 if none."""
        parts = SWEEP + (CHECK if check else 0)
        place: int = self._replay(self._program.address, parts)
        return place

    def reverse(self) -> None:
        """Propagate the adjoints that stand in `g`; those of imports remain there."""
        self._replay(self._program.address, SWEEP_BACK)

    def call(self, parts: int) -> Call:
        """Return the call that does some parts of a replay, and tells which decision changed."""
        return functools.partial(self._replay, self._program.address, parts)

    def stretch(self, tape: Tape, start: int, stop: int, cell: int, parts: int) -> Call:
        """Return the call that sweeps some scalar instructions, the first of which owns `cell`."""
        assert tape.replays is not None
        steps, parameters = _steps(tape, tape.replays.rolled, start, stop, cell)
        program = self._with_steps(steps)
        self._held.append((program, parameters))
        return functools.partial(self._replay, program.address, parts)


def _joined(cells: list[Any]) -> Any:
    return np.concatenate([np.zeros(0, np.uint32), *cells]).astype(np.uint32)


def _steps(
    tape: Tape, loops: Rolled | None, position: int, end: int, cell: int
) -> tuple[Any, list[Any]]:
    """Return what is run, one after another, as rows of words; and the parameters they point to.

    That is for the instructions from `position` to `end`, whose first cell is `cell`.
    """
    if position == end:
        return np.zeros((0, len(STEP)), np.int64), []
    execute.load("scalar")
    scalar = native.load("scalar")
    interpreters = scalar["forward_of"], scalar["reverse_of"]
    arena = tape.arena
    op, b = arena.op.array[:end], arena.b.array[:end]
    cells = np.where(op < CONST, b, 1).astype(np.int64)
    rows: list[list[int]] = []
    parameters: list[Any] = []
    while position < end:
        body = loops.starting_at(position) if loops else None
        if body is None or body.stop > end:
            stop = min(position + SLICE, loops.next_start(position, end) if loops else end)
            next_cell = cell + int(cells[position:stop].sum())
            rows.append([*interpreters, 0, position, stop, cell, next_cell, 0, 0, 0])
            position, cell = stop, next_cell
            continue
        parameters.append(body.parameters)
        known = address(body.parameters)
        period, count = body.loop.period, body.loop.count
        for first in range(0, count, max(1, SLICE // period)):
            last = min(first + max(1, SLICE // period), count)
            ends = cell + first * period, cell + last * period
            rows.append([*body.code, known, first, last, *ends, 0, 0, 0])
        position, cell = body.stop, cell + body.size
    return np.array(rows, np.int64).reshape(-1, len(STEP)), parameters


def _looks(decisions: Decisions, steps: Any) -> tuple[Any, Any]:
    """Sort what decisions look at by the steps that compute it.

    A loop decides the same way again and again, by cells that are evenly spaced: such a run is
    known by its ends, and its value.  Steps are told their runs, and how many others they reach.

    Returns
    -------
    singles : ndarray
        Which looks are in no run, in the order of cells.
    runs : ndarray
        The words of the runs.
    """
    cells, seen = decisions.looks()
    if not len(steps):
        return np.arange(cells.size), np.zeros((0, len(RUN)), np.int64)
    bits = seen.view(np.int64)
    step = np.searchsorted(steps[:, _NEXT_CELL], cells, "right")
    sites = decisions.sites()
    order = np.lexsort((cells, sites, step))
    single = np.ones(cells.size, np.bool_)
    rows: list[tuple[int, int, int, int]] = []
    counts = np.zeros(len(steps), np.int64)
    # From one look to the next: 0 where the two cannot be in one run, else how far it is.
    spacing = np.diff(cells[order])
    for column in (step, sites, bits):
        spacing[np.diff(column[order]) != 0] = 0
    edges = np.flatnonzero(np.diff(spacing, prepend=-1, append=-1))
    ends = np.stack((edges[:-1], edges[1:]), axis=1)
    for start, stop in ends[np.diff(edges) >= _RUN - 1].tolist():
        which = order[start : stop + 1]
        which = which[single[which]]  # the run before may end where this one would begin
        if which.size >= _RUN and spacing[start] > 0:
            single[which] = False
            first = which[0]
            rows.append((int(cells[first]), which.size, int(spacing[start]), int(bits[first])))
            counts[step[first]] += 1
    runs = np.array(rows, np.int64).reshape(-1, len(RUN))
    singles = np.flatnonzero(single)
    singles = singles[np.argsort(cells[singles], kind="stable")]
    steps[:, _NEXT_LOOK] = np.searchsorted(cells[singles], steps[:, _NEXT_CELL])
    steps[:, _RUN_COUNT] = counts
    steps[:, _RUNS] = address(runs) + 8 * len(RUN) * (np.cumsum(counts) - counts)
    return singles, runs


def is_small(tape: Tape) -> bool:
    """Whether replays of a tape may be made ready: few cells, and all of them numbers."""
    if tape.flushed_cell > CELLS or tape.code or tape.lent:
        return False
    op = tape.arena.op.array[: tape.n]
    return not ((op == LANES) | (op == HOST)).any()


# -- calls of a program ----------------------------------------------------------------------------


Run = Callable[[tuple[Any, ...]], Any]


class Calls:
    """A program's own methods, for arguments that are plain numbers and arrays of float64.

    Each takes a tuple of arguments, and returns None where they are anything else, which is then
    for the program to sort out; or where it is time for the program to have its loops compiled.
    Being functions, not methods, spares them a tenth of what a small replay takes.

    Parameters
    ----------
    ready : Ready
    inputs : sequence of Input
        One for each positional argument.
    outputs : sequence of Output
    tree : TreeDef
        The structure of the result.
    lock : context manager
    changed : callable
        Given which of the values that decisions look at has changed, return the error to be raised.
    replays : int, optional
        How many, until loops are due to be compiled.

    Attributes
    ----------
    value : callable
        `Program.__call__`.
    gradients : dict of callables
        `Program.value_and_grad`, by argnums.
    """

    __slots__ = ("_budget", "_gradient", "gradients", "value")

    def __init__(
        self,
        ready: Ready,
        inputs: Sequence[Input],
        outputs: Sequence[Output],
        tree: trees.TreeDef,
        lock: Any,
        changed: Callable[[int], Exception],
        replays: int | None = None,
    ) -> None:
        buffer = ready.values
        forward = PUT + SWEEP + CHECK + GIVE_VALUES
        back = SEED + SWEEP_BACK + GIVE_ADJOINTS
        self._budget = repeat(True) if replays is None else repeat(True, max(replays, 0))
        common = inputs, buffer, lock, changed, self._budget

        def structured(found: tuple[Any, ...]) -> Any:
            return trees.unflatten(tree, list(found))

        give = itemgetter(0) if tree.is_leaf else structured
        self.value = _run(ready.call(forward), _taker(buffer, outputs), give, *common)
        self.gradients: dict[Any, Run] = {}
        self._gradient: Callable[[Any], Run] | None = None
        if len(outputs) == 1 and outputs[0].size == 1:
            call, take = ready.call(forward + back), _taker(buffer, [*outputs, *inputs])
            self._gradient = lambda pick: _run(
                call, take, lambda found: (found[0], pick(found)), *common
            )

    @property
    def spent(self) -> bool:
        """Whether compiling loops is due."""
        return length_hint(self._budget, 1) == 0

    def know(self, argnums: Any, positions: Sequence[int]) -> None:
        """Make the function for `argnums`, which mean the arguments at these positions."""
        if self._gradient is None:
            return
        places = [1 + i for i in positions]  # behind the value
        run = slice(places[0], places[0] + len(places)) if places else slice(0)
        if type(argnums) is int:
            pick: Any = itemgetter(places[0])
        elif places == list(range(run.start or 0, run.stop)):
            pick = itemgetter(run)
        else:
            pick = itemgetter(*places)
        self.gradients[argnums] = self._gradient(pick)


def _run(
    call: Callable[[], int],
    take: Callable[[], tuple[Any, ...]],
    give: Callable[[tuple[Any, ...]], Any],
    inputs: Sequence[Input],
    buffer: Any,
    lock: Any,
    changed: Callable[[int], Exception],
    budget: Iterator[bool],
) -> Run:
    """Return the function that takes arguments to a result, or to None if they are not simple."""
    count, are_plain = len(inputs), _PLAIN.issuperset
    put: Any = functools.partial(struct.Struct(f"{count}d").pack_into, memoryview(buffer), 0)
    fits = None
    if any(port.shape for port in inputs):
        fits, put = _arrays(inputs, buffer)

    def run(args: tuple[Any, ...]) -> Any:
        if len(args) != count or not (are_plain(map(type, args)) if fits is None else fits(args)):
            return None
        if not next(budget, False):
            return None
        with lock:
            put(*args)
            place = call()
            if place >= 0:
                raise changed(place)
            found = take()
        return give(found)

    return run


def _arrays(inputs: Sequence[Input], buffer: Floats) -> tuple[Any, Any]:
    """Return whether arguments, some of them arrays, are as they should be; and what puts them."""
    shapes = [port.shape for port in inputs]
    places = [buffer[start : start + size].reshape(shape) for start, size, shape in _spans(inputs)]

    def fits(args: tuple[Any, ...]) -> bool:
        for arg, shape in zip(args, shapes, strict=True):
            if type(arg) is np.ndarray:
                if arg.shape != shape or arg.dtype != FLOAT64:
                    return False
            elif shape or type(arg) not in _PLAIN:
                return False
        return True

    def put(*args: Any) -> None:
        for arg, place in zip(args, places, strict=True):
            place[...] = arg

    return fits, put


def _taker(buffer: Any, ports: Sequence[Any]) -> Callable[[], tuple[Any, ...]]:
    """Return the function that takes results out of the buffer: numbers, and new arrays."""
    if all(not port.shape for port in ports):
        return functools.partial(struct.Struct(f"{len(ports)}d").unpack_from, memoryview(buffer))
    places = [(buffer[a : a + n].reshape(shape), shape != ()) for a, n, shape in _spans(ports)]
    return lambda: tuple([place.copy() if array else place.item() for place, array in places])


def _spans(ports: Sequence[Any]) -> list[tuple[int, int, tuple[int, ...]]]:
    """Return where ports lie one after another: the first element, how many, and the shape."""
    starts = np.cumsum([0, *[port.size for port in ports]]).tolist()
    return [(start, port.size, port.shape) for start, port in zip(starts, ports, strict=False)]
