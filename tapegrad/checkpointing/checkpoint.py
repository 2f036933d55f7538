"""Checkpointing: what a sweep needs is recomputed instead of stored.

A checkpointed call is one instruction.  Its function is recorded by itself, on a tape that is
released at once; the backward sweep records it again, and sweeps that.  Values that the function
takes from outside, besides its arguments, are noticed and become operands like these.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import backward, execute, recording, trees
from ..errors import NotDifferentiableError, at_caller
from ..host import HostOperand
from ..recording import cell_of, cells_of
from ..storage import Floats, Leaf, Tracked, TrackedArray, TrackedScalar
from ..tape import Import, Recording, Tape, read_cells, recorder
from ..transforms import derivatives
from ..transforms.custom import Arguments, Outputs, place, run_once
from ..window import Window

Function = Callable[..., Any]
Key = Any  # what a captured value is known by: its leaf, or the tape and cells that it comes from

_IMPURE = 1e-6  # relative difference of a repeated result that is more than another executor's


class Trace(Recording):
    """One recording of a function by itself, which knows what it took from outside.

    Attributes
    ----------
    known : dict or None
        Values of what may be taken from outside; None for a first recording, which finds out.
    storages : dict
        By id, storages whose elements were taken from outside, and their keys then: what is
        assigned to them later makes no difference.
    holders : dict
        What was taken from outside: key to (tracked value, its version).
    leaves : dict
        Key to the leaf that stands for a captured value in this recording.
    inputs : list of Leaf
        The leaves that stand for the operands.
    outputs, flat
        Form and values of the output.
    """

    __slots__ = (
        "cells",
        "flat",
        "holders",
        "inputs",
        "known",
        "leaves",
        "outputs",
        "size",
        "storages",
        "tape",
    )

    flat: Floats

    def __init__(
        self, storages: dict[int, tuple[Any, Key]], known: dict[Key, Floats] | None = None
    ) -> None:
        super().__init__()
        self.storages = storages
        self.known = known
        self.holders: dict[Key, tuple[Any, int]] = {}
        self.leaves: dict[Key, Leaf] = {}
        self.inputs: list[Leaf] = []
        self.tape: Any = None

    def run(
        self,
        f: Function,
        values: Sequence[Floats],
        dtypes: Sequence[Any],
        is_carried: Callable[[Any], bool],
    ) -> Trace:
        """Record ``f(inputs)`` at the given values."""
        outer = recorder.enter(recording=self, kind=_Scratch)
        try:
            output = f([self._input(x, dtype) for x, dtype in zip(values, dtypes, strict=True)])
            leaves, tree = trees.flatten(output)
            self.outputs = Outputs(leaves, tree, is_carried)
            tape = recorder.current()
            cells = [_cells(tape, x) for x in leaves if is_carried(x)]
            self.cells = np.concatenate([np.empty(0, np.int64), *cells])
            self.tape, self.size = tape, tape.next_cell - tape.input_cells
            execute.evaluate(tape)
            self.flat = tape.arena.v.array[self.cells]
            self._check_holders()
        except BaseException:
            recorder.leave(outer)
            self.release()
            raise
        recorder.leave(outer)
        return self

    def _input(self, value: Floats, dtype: Any) -> Any:
        tape = recorder.tape
        entry = tape.push_input(value)
        leaf = Leaf(value, True)
        self.inputs.append(leaf)
        if dtype.kind == "f":
            entry.leaf = leaf
        return recording.run(tape, entry.cell, value.shape, dtype)

    def _check_holders(self) -> None:
        for holder, version in self.holders.values():
            if getattr(holder, "version", 0) != version:
                raise NotDifferentiableError(
                    "a checkpointed function assigned to an array from outside; pass the array as "
                    f"an argument, and return it{at_caller()}"
                )

    def release(self) -> None:
        """Free the recording; the output's form and values remain."""
        super().release()
        # The tape refers to its recording: without the way back nothing waits for the collector.
        self.tape = self.known = None
        self.holders, self.leaves, self.inputs, self.storages = {}, {}, [], {}

    def taken(self) -> list[Any]:
        """Return the tracked values that were taken from outside."""
        return [tracked_whole(holder) for holder, _ in self.holders.values()]

    def pull(self, g: Floats) -> dict[int, Floats]:
        """Sweep backward from the output's cotangent; return cotangents by id of leaves."""
        totals: dict[int, Floats] = {}
        if g.size:
            for entry, adjoint in backward.sweep(self.tape, self.cells, g, recording=self):
                key = id(entry.leaf)
                totals[key] = adjoint if key not in totals else totals[key] + adjoint
        return totals


class _Scratch(Tape):
    """The tape of a `Trace`: values from outside are imported as leaves of its own."""

    __slots__ = ()

    def _may_rebind(self, holder: Any) -> bool:
        return False  # the tape is gone soon, and what is from outside must remain there

    def _import(
        self, holder: Any, leaf: Leaf | None, source: Tape | None, cells: Any, size: int
    ) -> Import:
        trace = self.recording
        assert isinstance(trace, Trace)
        if source is not None and leaf is None and source.recording is trace:
            return super()._import(holder, leaf, source, cells, size)
        key = _key(leaf, source, cells, size)
        if trace.known is None:
            if key is not None and not isinstance(holder, TrackedScalar):
                trace.storages.setdefault(id(holder), (holder, key))
        elif id(holder) in trace.storages:
            key = trace.storages[id(holder)][1]
        if key is None or trace.known is None:
            values = leaf.value if leaf is not None else read_cells(_existing(source), cells, size)
        elif key in trace.known:
            values = trace.known[key]
        else:
            raise NotDifferentiableError(
                "run again for the backward sweep, a checkpointed function used a tracked value "
                "from outside that it had not used before, or that has been assigned to since: it "
                "must do the same each time; pass what changes as an argument, and make constants "
                f"by tg.constant, not tg.array{at_caller()}"
            )
        entry = self.push_input(values)
        if key is not None:
            trace.holders.setdefault(key, (holder, getattr(holder, "version", 0)))
            entry.leaf = trace.leaves.setdefault(key, Leaf(values, True))
        return entry


def _existing(tape: Tape | None) -> Tape:
    assert tape is not None
    return tape


def _key(leaf: Leaf | None, source: Tape | None, cells: Any, size: int) -> Key | None:
    """Return what a value from outside is known by in every recording; None for constants."""
    if leaf is None:
        source = _existing(source)
        if source.detached:
            return None
        origin = Import(0, size)
        origin.source, origin.cells = source, cells
        if source.recording is None:  # where a value may since have moved to a newer tape
            source.link(origin, cells)
        if origin.source is not None:
            at = origin.cells
            return origin.source.serial, at if isinstance(at, int) else at.tobytes(), size
        leaf = origin.leaf
    return leaf if leaf is not None and leaf.requires_grad else None


def tracked_whole(holder: Any) -> Any:
    """Return a scalar, or the whole of a storage, as a tracked value."""
    if isinstance(holder, TrackedScalar):
        return holder
    return recording.array(holder, Window.contiguous(0, (holder.size,)))


def _cells(tape: Tape, x: Any) -> Any:
    """Return the cells of a number or an array in `tape`, flat."""
    if isinstance(x, TrackedArray):
        return cells_of(tape, x).ravel()
    if isinstance(x, Tracked):
        return np.array([cell_of(tape, x)])
    entry = tape.push_input(np.asarray(x, np.float64))
    return np.arange(entry.cell, entry.cell + entry.size)


def stores_all() -> bool:
    """Whether nothing is to be gained from recomputing, or it would be in the way.

    That is the case where no gradient is wanted, and where a derivative is itself recorded for a
    further one: the recorded sweep needs the instructions inside, once and for all.
    """
    return recorder.tape.detached or bool(recorder.tape.pinned)


def _is_tracked(x: Any) -> bool:
    return isinstance(x, Tracked)


def check_repeated(name: str, found: Floats, expected: Any, agrees: bool = True) -> None:
    """Raise unless a function that was run again has given the same result."""
    if agrees and found.shape == expected.shape:
        scale = np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected))
        if np.allclose(found, expected, _IMPURE, _IMPURE * scale, equal_nan=True):
            return
    raise NotDifferentiableError(
        f"run again, {name} gave another result than before; a checkpointed function must not use "
        "random numbers, or anything that is changed in between, except as arguments; and numbers "
        f"that it computes from tracked values must be returned tracked{at_caller()}"
    )


class Row:
    """What the rows of checkpointed calls share.

    Attributes
    ----------
    keys : list
        The captured values, which follow the arguments as operands.
    storages : dict
        Where they were found; see `Trace`.
    pending : ndarray or None
        The result, while the call is being recorded.
    """

    name = "checkpoint"
    keys: list[Key]
    storages: dict[int, tuple[Any, Key]]
    pending: Floats | None = None

    def _known(self, captured: Sequence[Floats]) -> dict[Key, Floats]:
        return dict(zip(self.keys, captured, strict=True))

    def _recorded_vjp(self, f: Function, parts: Any, values: Sequence[Any]) -> list[Any]:
        """Return tracked cotangents: the function is recorded in full, as if not checkpointed."""
        if self.keys:
            raise NotDifferentiableError(
                f"second derivatives of a tg.{self.name} that uses tracked values from outside "
                f"are not implemented; pass these as arguments{at_caller()}"
            )
        _, pull = derivatives.vjp(f, *values)
        return list(pull(parts))


def checkpoint(f: Function) -> Function:
    """Return `f` with its interior recomputed in backward sweeps, instead of stored.

    Memory then holds the arguments and outputs of each call, and the interior of one call at a
    time.  Every call costs one more run of `f`.

    Parameters
    ----------
    f : callable
        Takes and returns numbers, arrays, and dicts, lists, tuples or dataclasses of them.  It may
        use tracked values from outside.  It must give the same results when it is run again.

    Returns
    -------
    callable
        The same function.  Inside a derivative that is itself differentiated it stores everything.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> layer = tg.checkpoint(lambda x, w: np.tanh(w * x))
    >>> tg.grad(lambda w: layer(layer(0.5, w), w))(1.0)
    0.6958555864052879
    """
    if not callable(f):
        raise TypeError(f"tg.checkpoint expects a function, got {type(f).__name__}{at_caller()}")

    @functools.wraps(f)
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if stores_all():
            return f(*args, **kwargs)
        leaves, tree = trees.flatten((args, kwargs))
        rule = _Recomputed(f, Arguments(leaves, tree))
        tape, places, values = place(x for x in leaves if isinstance(x, Tracked))
        trace = rule.trace(values)
        try:
            places += [HostOperand(tape, x) for x in trace.taken()]
            rule.keys, rule.outputs = list(trace.holders), trace.outputs
            if not places:
                return trace.outputs.plain(trace.flat)
            return run_once(tape, rule, places, trace.flat, trace.outputs)
        finally:
            trace.release()

    return checkpointed


class _Recomputed(Row):
    """One call of a checkpointed function, as the row of a structural instruction."""

    def __init__(self, f: Function, arguments: Arguments) -> None:
        self.f = f
        self.arguments = arguments
        self.outputs: Outputs | None = None
        self.keys: list[Key] = []
        self.storages: dict[int, tuple[Any, Key]] = {}

    def call(self, operands: Sequence[Any]) -> Any:
        """Run the function on values in the place of the tracked parts of its arguments."""
        args, kwargs = self.arguments.build(operands)
        return self.f(*args, **kwargs)

    def trace(self, values: Sequence[Floats], known: dict[Key, Floats] | None = None) -> Trace:
        """Record the function by itself."""
        return Trace(self.storages, known).run(
            self.call, values, self.arguments.dtypes, _is_tracked
        )

    def _retrace(self, values: Sequence[Floats], out: Any = None) -> Trace:
        """Record the function once more, and check that it does what it did before."""
        n = len(self.arguments.dtypes)
        trace = self.trace(values[:n], self._known(values[n:]))
        assert self.outputs is not None
        try:
            name = getattr(self.f, "__name__", "the function")
            agrees = trace.outputs.agrees(self.outputs)
            check_repeated(name, trace.flat, trace.flat if out is None else out, agrees)
        except BaseException:
            trace.release()
            raise
        return trace

    def forward(self, *values: Floats) -> Floats:
        """Compute the output from operands."""
        if self.pending is not None:
            return self.pending
        trace = self._retrace(values)
        trace.release()
        return trace.flat

    def vjp(self, g: Any, out: Any, *values: Any) -> list[Any]:
        """Return the operands' cotangents."""
        if any(isinstance(x, Tracked) for x in (g, *values)):
            return self._recorded_vjp(self._tracked_outputs, g, values)
        trace = self._retrace(values, out)
        try:
            totals = trace.pull(g)
            leaves = [*trace.inputs, *[trace.leaves.get(key) for key in self.keys]]
            return [
                totals.get(id(leaf), np.zeros(x.size)).reshape(x.shape)
                for leaf, x in zip(leaves, values, strict=True)
            ]
        finally:
            trace.release()

    def _tracked_outputs(self, *operands: Any) -> Any:
        """Return the outputs that are in cells, as one flat array."""
        leaves, _ = trees.flatten(self.call(operands))
        parts: list[Any] = [x for x in leaves if isinstance(x, Tracked)]
        return np.concatenate([np.reshape(x, -1) for x in parts])
