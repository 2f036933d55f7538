"""`checkpoint_loop`: a long loop whose states are stored as far as memory goes.

The loop is one instruction of the tape.  Blocks of its steps are recorded one at a time, each on a
tape that is released at once: without derivatives to reach a state, and again to be reversed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from .. import execute, recording, trees
from ..errors import at_caller
from ..host import HostOperand
from ..progress import steps, wanted
from ..recording import FLOAT32, FLOAT64
from ..storage import Floats, Tracked
from ..tape import Tape
from ..transforms.custom import Outputs, flat_values, is_numeric, place, run_once
from . import revolve
from .checkpoint import Function, Key, Row, Trace, check_repeated, stores_all, tracked_whole

BLOCK_CELLS = 1 << 14  # cells that are recorded at a time
MEMORY = 1 << 28  # bytes for states, where nothing is said


class LoopPlan(NamedTuple):
    """How `checkpoint_loop` runs a loop.

    Attributes
    ----------
    steps : int
        Steps of the loop.
    block : int
        Steps that are recorded at a time, the unit of the schedule.
    snapshots : int
        States stored at most.
    recomputed : int
        Steps that a backward sweep runs again.
    """

    steps: int
    block: int
    snapshots: int
    recomputed: int


def checkpoint_loop(
    body: Function,
    state: Any,
    n: int,
    *,
    memory: float | None = None,
    snapshots: int | None = None,
    block: int | None = None,
    progress: bool | None = None,
) -> tuple[Any, LoopPlan]:
    """Run ``state = body(state, i)`` for i in ``range(n)``, with the states that fit into memory.

    The backward sweep recomputes states that were not stored, as few as possible (Griewank and
    Walther's binomial schedule, see `tapegrad.checkpointing.revolve`).

    Parameters
    ----------
    body : callable
        ``body(state, i)`` returns the next state, of the same structure, shapes and dtypes.  It may
        use tracked values from outside, and must give the same result when it is run again.
    state : number, array, or a structure of them
        The initial state.  Integers are taken as float64.
    n : int
        Number of steps.
    memory : float, optional
        Bytes for stored states; by default 256 MiB.  One block's recording comes on top.
    snapshots : int, optional
        Number of stored states, instead of `memory`.
    block : int, optional
        Steps recorded at a time, between which states may be stored.  By default 1 with
        `snapshots`, and otherwise what makes recordings of some thousand cells (about 1 MB), or 1.
    progress : bool, optional
        Whether to show progress bars, which needs the package ``tqdm``; by default they are shown
        inside of `tapegrad.progress`.

    Returns
    -------
    state
        The state after `n` steps.
    plan : LoopPlan
        What it costs; ``plan.recomputed`` steps are run again in a backward sweep.  Under
        `no_grad`, and inside a derivative that is itself differentiated, the loop is run as it is.

    Raises
    ------
    ValueError
        If not even one state fits into `memory`, or `body` changes the form of the state.

    Examples
    --------
    >>> import tapegrad as tg
    >>> def f(k):
    ...     x, plan = tg.checkpoint_loop(lambda x, i: x + k * x * (1 - x), 0.5, 100, snapshots=5)
    ...     print(plan)
    ...     return x
    >>> round(tg.grad(f)(0.01), 12)
    LoopPlan(steps=100, block=1, snapshots=5, recomputed=317)
    19.719392136493
    """
    count = _count(n)
    if memory is not None and snapshots is not None:
        raise TypeError(f"give memory or snapshots, not both{at_caller()}")
    if stores_all() or count == 0:
        for i in range(count):
            state = body(state, i)
        return state, LoopPlan(count, 1, 0, 0)
    loop = _Loop(body, state, count, progress)
    return loop.record(memory, snapshots, block), loop.plan


def _count(n: Any) -> int:
    if isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n >= 0:
        return int(n)
    raise ValueError(f"the number of steps must be an integer from 0, not {n!r}{at_caller()}")


def _read(tape: Tape, places: Sequence[HostOperand]) -> list[Floats]:
    execute.evaluate(tape)
    return [np.array(x.read(tape.arena.v.array)) for x in places]


def _form(leaves: list[Any], tree: trees.TreeDef) -> Outputs:
    """Return the form of a state, all of which must be real."""
    for leaf, path in zip(leaves, trees.paths(tree), strict=True):
        kind = recording.dtype_of(leaf if isinstance(leaf, Tracked) else np.asarray(leaf)).kind
        if kind not in ("f" if isinstance(leaf, Tracked) else "fiu"):
            raise TypeError(
                f"state{path} is a {type(leaf).__name__}; the state of a loop is made of real "
                f"numbers and arrays{at_caller()}"
            )
    form = Outputs(leaves, tree, is_numeric)
    form.dtypes = [FLOAT32 if dtype is FLOAT32 else FLOAT64 for dtype in form.dtypes]
    if not form.size:
        raise ValueError(f"the state of a loop has no elements{at_caller()}")
    return form


class _Run(NamedTuple):
    """A loop that has been run forward, and waits for a backward sweep.

    Attributes
    ----------
    values : list of ndarray
        The operands' values.
    slots : ndarray
        Stored states, one a row.
    present : ndarray
        The state before the last block.
    rest : iterator of Action
        What the schedule says from here on.
    """

    values: list[Floats]
    slots: Floats
    present: Floats
    rest: Iterator[revolve.Action]


class _Loop(Row):
    """A loop, as the row of a structural instruction."""

    name = "checkpoint_loop"
    plan: LoopPlan
    run: Any  # a _Run, until a sweep has used it up
    tracked: list[bool]  # which parts of the state are operands
    kept: list[Any]  # the values of the others

    def __init__(self, body: Function, state: Any, n: int, progress: bool | None) -> None:
        self.leaves, tree = trees.flatten(state)
        self.body = body
        self.form = _form(self.leaves, tree)
        self.n = n
        self.shown = wanted() if progress is None else progress
        self.tracked = [isinstance(x, Tracked) for x in self.leaves]
        self.kept = [
            None if isinstance(x, Tracked) else np.asarray(x, np.float64) for x in self.leaves
        ]
        self.keys: list[Key] = []
        self.storages: dict[int, tuple[Any, Key]] = {}
        self.holders: dict[Key, tuple[Any, int]] = {}

    def record(self, memory: float | None, snapshots: int | None, block: int | None) -> Any:
        """Run the loop, append it to the tape unless it depends on nothing; return its state."""
        tape, places, values = place(x for x in self.leaves if isinstance(x, Tracked))
        del self.leaves  # holding them would keep tapes alive
        flat = self.first(values, memory, snapshots, block)
        places += [HostOperand(tape, x) for x in self.taken()]
        if not places:
            return self.form.plain(flat)
        self.run = self.run._replace(values=[*values, *_read(tape, places[len(values) :])])
        return run_once(tape, self, places, flat, self.form)

    def taken(self) -> list[Any]:
        """Return the tracked values that the body takes from outside, and remember their keys."""
        self.keys = list(self.holders)
        found = [tracked_whole(holder) for holder, _ in self.holders.values()]
        self.holders = {}  # holding them would keep tapes alive
        return found

    def _steps_shown(self, total: int, what: str) -> AbstractContextManager[Callable[[int], Any]]:
        """Return a context that is given the numbers of steps done, and may show them."""
        return steps(f"checkpoint_loop, {what}", total, self.shown)

    # -- forward -----------------------------------------------------------------------------------

    def first(
        self, values: list[Floats], memory: float | None, snapshots: int | None, block: int | None
    ) -> Floats:
        """Run the loop, plan how it will be reversed, and return the final state, flat."""
        start = self._initial(values)
        available = _snapshots(memory, snapshots, start.nbytes)
        with self._steps_shown(self.n, "forward") as advanced:
            trace = self._trace(start, 0, 1, None)
            flat = trace.flat
            if block is None:
                size = max(trace.size, 1)
                block = max(1, min(self.n, BLOCK_CELLS // size)) if snapshots is None else 1
            trace.release()
            if _count(block) < 1:
                raise ValueError(f"a block is at least one step{at_caller()}")
            blocks = ceil(self.n / block)
            s = min(available, blocks)
            advances = block * revolve.forward_steps(blocks, s)
            again = advances - block * (blocks - 1) + self.n
            self.plan = LoopPlan(self.n, block, s, again)
            advanced(1)
            flat, at = self._prepare(start, flat, 1, None, advanced)
            return self._advance(flat, at, self.n, None, advanced)

    def _initial(self, values: Sequence[Floats]) -> Floats:
        """Return the initial state, flat."""
        rest = iter(values)
        return flat_values(
            next(rest) if tracked else kept
            for tracked, kept in zip(self.tracked, self.kept, strict=True)
        )

    def _prepare(
        self, start: Floats, flat: Floats, at: int, known: Any, advanced: Callable[[int], None]
    ) -> tuple[Floats, int]:
        """Run the loop up to its last block, storing states as scheduled.

        `start` is the initial state, and `flat` the one before step `at`, which is where to begin.
        Returns the last state, and the step it is before.
        """
        actions = revolve.schedule(ceil(self.n / self.plan.block), self.plan.snapshots)
        slots = np.empty((self.plan.snapshots, start.size))
        present = start
        for action in actions:
            if action.kind == "store":
                slots[action.slot] = present
            elif action.kind == "advance":
                stop = action.stop * self.plan.block
                present = flat = self._advance(flat, at, stop, known, advanced)
                at = stop
            else:
                break
        self.run = _Run([], slots, present, chain([action], actions))
        return flat, at

    def _advance(
        self, flat: Floats, start: int, stop: int, known: Any, advanced: Callable[[int], None]
    ) -> Floats:
        for at in range(start, stop, self.plan.block):
            end = min(at + self.plan.block, stop)
            trace = self._trace(flat, at, end, known)
            flat = trace.flat
            trace.release()
            advanced(end - at)
        return flat

    def _trace(self, flat: Floats, start: int, stop: int, known: Any) -> Trace:
        """Record the steps from `start` up to `stop`."""
        trace = Trace(self.storages, known).run(
            lambda parts: self._steps(parts, start, stop),
            self.form.split(flat),
            self.form.dtypes,
            is_numeric,
        )
        if known is None:
            for key, holder in trace.holders.items():
                self.holders.setdefault(key, holder)
        return trace

    def _steps(self, parts: Sequence[Any], start: int, stop: int) -> list[Any]:
        state = self.form.build(parts)
        for i in range(start, stop):
            state = self.body(state, i)
        try:
            leaves = trees.flatten_like(self.form.tree, state)
        except ValueError as error:
            raise ValueError(f"the body of a loop must keep its state's form: {error}") from None
        rows = zip(
            leaves, self.form.shapes, self.form.dtypes, trees.paths(self.form.tree), strict=True
        )
        for leaf, shape, dtype, path in rows:
            found = recording.dtype_of(leaf if isinstance(leaf, Tracked) else np.asarray(leaf))
            if recording.shape_of(leaf) != shape or (isinstance(leaf, Tracked) and found != dtype):
                raise ValueError(
                    f"the body of a loop must keep its state's form: state{path} was of shape "
                    f"{shape} and dtype {dtype}, and after step {stop - 1} it is of shape "
                    f"{recording.shape_of(leaf)} and dtype {found}{at_caller()}"
                )
        return leaves

    def forward(self, *values: Floats) -> Floats:
        """Compute the final state from operands."""
        if self.pending is not None:
            return self.pending
        flat, at = self._rerun([np.array(x) for x in values])
        known = self._known(values[sum(self.tracked) :])
        return self._advance(flat, at, self.n, known, lambda steps: None)

    def _rerun(self, values: list[Floats]) -> tuple[Floats, int]:
        """Get ready for a sweep from other values, or for a second one."""
        n = sum(self.tracked)
        start = self._initial(values[:n])
        total = (ceil(self.n / self.plan.block) - 1) * self.plan.block
        with self._steps_shown(total, "forward") as advanced:
            last = self._prepare(start, start, 0, self._known(values[n:]), advanced)
        self.run = self.run._replace(values=values)
        return last

    # -- backward ----------------------------------------------------------------------------------

    def vjp(self, g: Any, out: Any, *values: Any) -> list[Any]:
        """Return the operands' cotangents."""
        if any(isinstance(x, Tracked) for x in (g, *values)):
            return self._recorded_vjp(self._tracked_state, g, values)
        if self.run is None or not all(
            np.array_equal(x, y, equal_nan=True)
            for x, y in zip(values, self.run.values, strict=True)
        ):
            self._rerun([np.array(x) for x in values])
        run, self.run = self.run, None
        with self._steps_shown(self.plan.recomputed, "backward") as advanced:
            return self._reverse(run, g, out, advanced)

    def _reverse(
        self, run: _Run, g: Floats, out: Floats, advanced: Callable[[int], None]
    ) -> list[Floats]:
        block, n = self.plan.block, sum(self.tracked)
        known = self._known(run.values[n:])
        sums = [np.zeros(x.size) for x in run.values[n:]]
        present = run.present
        for kind, start, stop, slot in run.rest:
            if kind == "store":
                run.slots[slot] = present
            elif kind == "restore":
                present = run.slots[slot].copy()
            elif kind == "advance":
                present = self._advance(present, start * block, stop * block, known, advanced)
            else:
                end = min(stop * block, self.n)
                trace = self._trace(present, start * block, end, known)
                try:
                    if end == self.n:
                        check_repeated("the body of a loop", trace.flat, out)
                    g = self._pull(trace, g, sums)
                finally:
                    trace.release()
                advanced(end - start * block)
        parts = zip(self.form.split(g), self.tracked, strict=True)
        return [
            *[part for part, tracked in parts if tracked],
            *[total.reshape(x.shape) for total, x in zip(sums, run.values[n:], strict=True)],
        ]

    def _pull(self, trace: Trace, g: Floats, sums: list[Floats]) -> Floats:
        """Carry the state's cotangent over a block, and add up those of captured values."""
        totals = trace.pull(g)
        for key, total in zip(self.keys, sums, strict=True):
            leaf = trace.leaves.get(key)
            if leaf is not None and id(leaf) in totals:
                total += totals[id(leaf)]
        return flat_values(totals.get(id(leaf), np.zeros(leaf.value.size)) for leaf in trace.inputs)

    def _tracked_state(self, *operands: Any) -> Any:
        """Run the loop in the ordinary way; return its final state as one flat array."""
        rest = iter(operands)
        parts = zip(self.tracked, self.form.split(self._initial_kept()), strict=True)
        state = [next(rest) if tracked else part[()] for tracked, part in parts]
        return np.concatenate([np.reshape(x, -1) for x in self._steps(state, 0, self.n)])

    def _initial_kept(self) -> Floats:
        shapes = zip(self.kept, self.form.shapes, strict=True)
        return flat_values(np.zeros(shape) if x is None else x for x, shape in shapes)


def _snapshots(memory: float | None, snapshots: int | None, size: int) -> int:
    """Return how many states of `size` bytes may be stored."""
    if snapshots is None:
        snapshots = int((MEMORY if memory is None else memory) // size)
        if snapshots < 1:
            raise ValueError(
                f"memory={memory} bytes hold no state of {size} bytes; allow at least "
                f"{size}{at_caller()}"
            )
    elif _count(snapshots) < 1:
        raise ValueError(f"a loop needs at least one stored state{at_caller()}")
    return snapshots
