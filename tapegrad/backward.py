"""The backward sweep over one tape and the tapes that it links back to."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

from . import execute
from .arena import give_back_adjoints, take_adjoints
from .errors import NoGradientError, at_caller
from .reach import reaches_leaf
from .recording import shape_of
from .storage import Floats, Leaf, Tracked, TrackedArray, TrackedScalar
from .tape import Import, Tape, check_usable, recorder

Seed = tuple[Any, Floats]  # cells (first of a run, or an array), flat cotangent


def backward(y: Tracked, gradient: Any, strict: bool) -> None:
    """Accumulate the derivatives of `y` into the ``.grad`` of leaves; see `Array.backward`."""
    cotangent = check_cotangent(gradient, shape_of(y))
    if y.leaf is not None:  # type: ignore[attr-defined]
        if not y.leaf.requires_grad:  # type: ignore[attr-defined]
            raise NoGradientError(f"this leaf does not require a gradient{at_caller()}")
        y.leaf.accumulate(cotangent)  # type: ignore[attr-defined]
        return
    tape, cells = place_of(y)
    check_usable(tape)
    found = sweep(tape, cells, cotangent.ravel(), strict=strict)
    totals: dict[int, tuple[Leaf, Floats]] = {}
    for entry, adjoint in found:
        leaf = entry.leaf
        if leaf is not None and leaf.requires_grad:
            known = totals.get(id(leaf))
            totals[id(leaf)] = (leaf, adjoint if known is None else known[1] + adjoint)
    if not totals:  # all adjoints that left the tape were zero, or nothing could leave it
        totals = {id(leaf): (leaf, np.zeros(leaf.value.size)) for leaf in _leaves_behind(tape)}
    if not totals:
        raise NoGradientError(
            "backward found no leaf that requires a gradient: make one with tg.array(...), "
            f"outside tg.no_grad(){at_caller()}"
        )
    for leaf, total in totals.values():
        leaf.accumulate(total.reshape(leaf.value.shape))
    if tape is recorder.tape:
        recorder.turn_over()


def _leaves_behind(tape: Tape) -> list[Leaf]:
    """Return the leaves that require a gradient and that `tape`, or one behind it, has imported."""
    leaves: dict[int, Leaf] = {}
    seen, stack = {tape.serial}, [tape]
    while stack:
        for entry in stack.pop().imports:
            if entry.leaf is not None and entry.leaf.requires_grad:
                leaves[id(entry.leaf)] = entry.leaf
            source = entry.source
            if source is not None and source.serial not in seen:
                seen.add(source.serial)
                stack.append(source)
    return list(leaves.values())


def check_cotangent(gradient: Any, shape: tuple[int, ...]) -> Floats:
    """Return a cotangent as a float64 array of `shape`.

    Raises
    ------
    ValueError
        If it has another shape, or is left out where the output is not a single element.
    TypeError
        If it is tracked, complex or not numeric.
    """
    if gradient is None:
        if int(np.prod(shape)) != 1:
            raise ValueError(
                f"backward needs a cotangent for an output of shape {shape}: pass "
                f"gradient=np.ones({shape}) for the gradient of the sum{at_caller()}"
            )
        return np.ones(shape)
    if isinstance(gradient, Tracked):
        raise TypeError(
            "the cotangent of .backward is a plain number or array: pass its .value, or take "
            f"derivatives of derivatives with tg.vjp{at_caller()}"
        )
    array = np.asarray(gradient)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"a cotangent of dtype {array.dtype} is not real{at_caller()}")
    if array.shape != shape:
        raise ValueError(
            f"the cotangent has shape {array.shape}, but the output has shape {shape}{at_caller()}"
        )
    return array.astype(np.float64)


def place_of(y: Any) -> tuple[Tape, Any]:
    """Return the tape of a tracked value that is no leaf, and its cells."""
    if isinstance(y, TrackedScalar):
        assert y.tape is not None
        return y.tape, y.cell
    assert isinstance(y, TrackedArray)
    storage, window = y.storage, y.window
    if storage.tape is None:  # a view of a leaf that no recording has imported yet
        recorder.current().import_storage(storage)
    assert storage.tape is not None
    if storage.index is not None:
        return storage.tape, window.cells(storage.index).ravel()
    if window.is_contiguous:
        return storage.tape, storage.base + window.offset
    return storage.tape, (window.cells() + storage.base).ravel()


def sweep(
    tape: Tape,
    cells: Any,
    cotangent: Floats,
    *,
    strict: bool = False,
    recording: object = None,
    values: bool = True,
) -> list[tuple[Import, Floats]]:
    """Sweep `tape` and then the tapes that it links to, newest first.

    Parameters
    ----------
    tape, cells, cotangent
        Where the sweep starts: cells of `tape` (the first of a run, or an array) and their
        cotangents.
    strict : bool
        Visit instructions whose adjoint is zero, too.
    recording : object, optional
        Stay within the tapes recorded for this transform.
    values : bool
        Whether the value of what was swept is going to be looked at.

    Returns
    -------
    list of (Import, adjoint)
        The imports of leaves that some adjoint reached.
    """
    waiting: dict[int, tuple[Tape, list[Seed]]] = {tape.serial: (tape, [(cells, cotangent)])}
    order = [-tape.serial]
    found: list[tuple[Import, Floats]] = []
    while order:
        tape, seeds = waiting.pop(-heapq.heappop(order))
        for entry, adjoint in _sweep_one(tape, seeds, strict, values):
            source = entry.source
            if entry.leaf is not None:
                found.append((entry, adjoint))
            elif source is not None and (recording is None or source.recording is recording):
                if source.serial not in waiting:
                    waiting[source.serial] = (source, [])
                    heapq.heappush(order, -source.serial)
                waiting[source.serial][1].append((entry.cells, adjoint))
    return found


def _sweep_one(
    tape: Tape, seeds: list[Seed], strict: bool, values: bool
) -> list[tuple[Import, Floats]]:
    with tape.lock:
        column = take_adjoints(tape.next_cell)
        g = column.array
        clean = False
        try:
            swept = None if strict else execute.gradient(tape, g, seeds, values=values)
            if swept is not None:
                clean = True
                return swept
            execute.evaluate(tape)
            column.expect(tape.flushed_cell)
            top = 0
            outputs = tape.replays is None or all(
                tape.replays.start_from(cells, cotangent.size) for cells, cotangent in seeds
            )
            for cells, cotangent in seeds:
                if not cotangent.size:  # no elements: every gradient is zero, and there is one
                    top = tape.flushed_cell
                elif isinstance(cells, (int, np.integer)):
                    stop = int(cells) + cotangent.size
                    g[int(cells) : stop] += cotangent
                    top = max(top, stop)
                else:
                    np.add.at(g, cells, cotangent)
                    top = max(top, int(cells.max()) + 1)
            execute.reverse(tape, g, top, strict, loops=outputs)
            found = []
            for entry in tape.imports:
                part = g[entry.cell : entry.cell + entry.size]
                if part.any() or (entry.leaf is not None and entry.cell < top):
                    found.append((entry, part.copy()))
                    part[...] = 0.0
            clean = True
            return found
        finally:
            give_back_adjoints(column, clean)


def requires_grad(y: Any) -> bool:
    """Whether a leaf that requires a gradient is reached from `y` (see `Array.requires_grad`)."""
    if y.leaf is not None:
        needed: bool = y.leaf.requires_grad
        return needed
    tape, cells = place_of(y)
    return reaches_leaf(tape, cells, y.size)
