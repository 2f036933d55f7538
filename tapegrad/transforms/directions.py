"""Sweeps of many directions at once: `adjoints` backward, `tangents` forward.

A Jacobian needs an adjoint of every cell for each of its rows, or a tangent for each of its
columns.  Here a cell has a row of them, one a direction: the partials of an instruction are
computed once, and what flows through it is a short vector operation.  `adjoints` does for many
directions what `backward.sweep` does for one, and `tangents` is the numeric sweep of
Jacobian-vector products, for one direction as well.

Directions come in chunks of `width`, so that memory stays a small multiple of the recording's.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np

from .. import backward, execute
from ..arena import give_back_adjoints, take_adjoints
from ..errors import at_caller
from ..host import HostCall, HostOperand
from ..kernels.opcodes import HOST
from ..storage import Floats
from ..tape import Import, Tape
from .products import product_of
from .rows import Rows, first_of_run

WIDTH = 32  # directions that share the cost of the partials; more would crowd the caches,
WIDEST = 128  # but for recordings so small that more of them fit, too:
CACHE = 1 << 17  # numbers, of all directions together: 1 MiB
MEMORY = 1 << 25  # and of larger recordings a sweep holds no more than these at a time: 256 MiB

Seed = tuple[Any, Floats]  # cells (first of a run, or an array), and a row of numbers for each


def width(tape: Tape, recording: object = None) -> int:
    """Return how many directions to sweep at a time through `tape` and those it links to."""
    largest = max(1, *[linked.next_cell for linked in _linked(tape, recording)])
    return max(1, min(WIDTH, MEMORY // largest), min(WIDEST, CACHE // largest))


def _linked(tape: Tape, recording: object) -> list[Tape]:
    """Return a tape and those that it links to (within a recording, if given), newest first."""
    tapes, stack = {tape.serial: tape}, [tape]
    while stack:
        for entry in stack.pop().imports:
            source = entry.source
            if source is None or source.serial in tapes:
                continue
            if recording is None or source.recording is recording:
                tapes[source.serial] = source
                stack.append(source)
    return [tapes[serial] for serial in sorted(tapes, reverse=True)]


# -- backward -------------------------------------------------------------------------------------


def adjoints(
    tape: Tape, cells: Any, cotangents: Floats, *, recording: object = None
) -> list[tuple[Import, Floats]]:
    """Sweep backward through `tape` and then the tapes that it links to, newest first.

    Parameters
    ----------
    tape, cells
        Where the sweep starts: cells of `tape`, the first of a run or an array of them.
    cotangents : ndarray of shape (number of cells, number of directions)
        What each direction gives each of the cells.
    recording : object, optional
        Stay within the tapes recorded for this transform.

    Returns
    -------
    list of (Import, ndarray)
        The imports of leaves that an adjoint reached: a row for each of their cells, a column for
        each direction.
    """
    if cotangents.shape[1] == 1:
        single = backward.sweep(tape, cells, cotangents[:, 0], recording=recording)
        return [(entry, adjoint[:, None]) for entry, adjoint in single]
    waiting: dict[int, list[Seed]] = {tape.serial: [(cells, cotangents)]}
    tapes = _linked(tape, recording)
    known = {linked.serial for linked in tapes}
    found = []
    for linked in tapes:
        seeds = waiting.pop(linked.serial, None)
        if seeds is None:
            continue
        for entry, rows in _adjoints_of_one(linked, seeds):
            if entry.leaf is not None:
                found.append((entry, rows))
            elif entry.source is not None and entry.source.serial in known:
                waiting.setdefault(entry.source.serial, []).append((entry.cells, rows))
    return found


def _adjoints_of_one(tape: Tape, seeds: list[Seed]) -> list[tuple[Import, Floats]]:
    with tape.lock:
        execute.evaluate(tape)
        g, top = Rows(tape.flushed_cell, seeds[0][1].shape[1]), 0
        for cells, rows in seeds:
            if not rows.size:
                continue
            first = first_of_run(cells)
            if first is not None:
                g.receive(first, rows)
                top = max(top, first + len(rows))
            else:
                g.receive_at(cells, rows)
                top = max(top, int(cells.max()) + 1)
        with execute.watching.sweeps or nullcontext():
            _reverse(tape, g, top)
        return [
            (entry, g.run(entry.cell, entry.cell + entry.size))
            for entry in tape.imports
            if g.reached[entry.cell : entry.cell + entry.size].any()
        ]


def _reverse(tape: Tape, g: Rows, top: int) -> None:
    """Sweep backward from the cells below `top`."""
    arena = tape.arena
    op, a, b, v = arena.op.array, arena.a.array, arena.b.array, arena.v.array
    k, d, x = tape.k.array(), tape.d.array(), tape.x.array()
    m = g.values.shape[1]
    position, cell = execute.first_block_above(tape, top)
    lane, first, sweeps = -1, position, execute.watching.sweeps
    while position > 0:
        if op[position - 1] == HOST:
            size = int(b[position - 1])
            position, cell = position - 1, cell - size
            if g.reached[cell : cell + size].any():
                host_adjoints(tape.hosts[a[position]], v, g, cell, size)
        else:
            run = execute.kernels("vector", cell * m)
            limit = max(1, run.slice // m)
            position, cell, lane = run.vector_reverse(
                *(op, a, b, d, x, k, v, g.values, g.reached),
                *(position, 0, cell, lane, limit),
            )
        if sweeps:
            sweeps.moved("backward", first - position, first)


def host_adjoints(call: Any, v: Floats, g: Rows, cell: int, size: int) -> None:
    """Add the adjoints of a structural operation to its operands'."""
    product = product_of(call)
    if product is not None:
        with np.errstate(all="ignore"):
            for carry in product.adjoints(g, cell, size):
                carry()
        return
    rows = g.run(cell, cell + size)
    live = np.flatnonzero(rows.any(axis=0))
    if not live.size:
        for x in getattr(call, "operands", ()):
            g.of(_cells(x))  # zeros reach them: what is reached does not depend on values
        return
    if type(call) is not HostCall:
        _other_adjoints(call, v, g, rows, live, cell)
        return
    m = rows.shape[1]
    with np.errstate(all="ignore"):
        values = [x.read(v) for x in call.operands]
        many = getattr(call.row, "vjps", None)
        if many is not None:
            chosen = rows if live.size == m else rows[:, live]
            seeds = chosen.T.reshape(live.size, *call.shape)
            wanted = [x.constant is None for x in call.operands]
            cotangents = many(seeds, wanted, *values, **call.params)
            for x, cotangent in zip(call.operands, cotangents, strict=True):
                if x.constant is None:
                    _accumulate(x, g, live, cotangent)
            return
        out = v[cell : cell + size].reshape(call.shape)
        for j in live:
            adjoint = rows[:, j].reshape(call.shape)
            cotangents = call.row.vjp(adjoint, out, *values, **call.params)
            for x, cotangent in zip(call.operands, cotangents, strict=True):
                if x.constant is None:
                    _accumulate(x, g, [j], cotangent[None])


def _accumulate(x: HostOperand, g: Rows, directions: Any, cotangents: Floats) -> None:
    """Add cotangents of the operand's shape, one a direction, to the adjoints of its cells."""
    w, m = x.window, g.values.shape[1]
    received = cotangents.reshape(len(cotangents), -1).T
    if w is not None and w.is_contiguous and len(cotangents) == m:
        g.receive(w.offset, received)
    elif w is not None and w.is_contiguous:
        g.run(w.offset, w.offset + w.size)[:, directions] += received
    else:
        rows = np.zeros((len(received), m))
        rows[:, directions] = received
        g.receive_at(_cells(x), rows)


def _other_adjoints(call: Any, v: Floats, g: Rows, rows: Floats, live: Any, cell: int) -> None:
    """Do the same for an instruction that only knows how to sweep a column of adjoints."""
    column = take_adjoints(cell + len(rows))
    scratch = column.array[: cell + len(rows)]
    clean = False
    try:
        for j in live:
            scratch[cell:] = rows[:, j]
            call.reverse(v, scratch, cell, False)
            reached = np.flatnonzero(scratch)
            received = np.zeros((reached.size, rows.shape[1]))
            received[:, j] = scratch[reached]
            g.receive_at(reached, received)
            scratch[reached] = 0.0
        clean = True
    finally:
        give_back_adjoints(column, clean)


# -- forward --------------------------------------------------------------------------------------


def carries_tangents(tape: Tape, recording: object = None) -> bool:
    """Whether every operation on `tape`, and those it links to, has a forward rule."""
    return all(
        _has_forward_rule(call) for linked in _linked(tape, recording) for call in linked.hosts
    )


def _has_forward_rule(call: Any) -> bool:
    # Rows that are not of the table (a user's rule, a checkpoint) only have what they must have.
    return type(call) is HostCall and getattr(call.row, "jvp", None) is not None


def tangents(
    tape: Tape, cells: Any, seeds: dict[int, Floats], *, recording: object = None
) -> Floats:
    """Sweep forward through the tapes that `tape` links to, oldest first, and through `tape`.

    Parameters
    ----------
    tape, cells
        Whose tangents are asked for: an array of cells of `tape`.
    seeds : dict of ndarrays of shape (size of the leaf, number of directions), not empty
        The tangents of leaves, by their ``id``; other leaves have none.
    recording : object, optional
        Stay within the tapes recorded for this transform.

    Returns
    -------
    ndarray of shape (number of cells, number of directions)

    Raises
    ------
    NotImplementedError
        If an operation has no forward rule; see `carries_tangents`.
    """
    tapes = _linked(tape, recording)
    known = {linked.serial for linked in tapes}
    wanted: dict[int, list[tuple[Any, Any]]] = {linked.serial: [] for linked in tapes}
    wanted[tape.serial].append((None, np.asarray(cells)))
    for linked in tapes:
        for entry in linked.imports:
            if entry.source is not None and entry.source.serial in known:
                wanted[entry.source.serial].append((entry, _as_array(entry)))
    passed: dict[Any, Floats] = {}
    m = next(iter(seeds.values())).shape[1]
    for linked in reversed(tapes):
        passed |= _tangents_of_one(linked, m, seeds, passed, wanted[linked.serial])
    return passed[None]


def _as_array(entry: Import) -> Any:
    """Return the cells of the source tape that an import stands for."""
    if isinstance(entry.cells, int):
        return np.arange(entry.cells, entry.cells + entry.size)
    return entry.cells


def _tangents_of_one(
    tape: Tape,
    m: int,
    seeds: dict[int, Floats],
    passed: dict[Any, Floats],
    wanted: list[tuple[Any, Any]],
) -> dict[Any, Floats]:
    with tape.lock:
        execute.evaluate(tape)
        t = Rows(tape.flushed_cell, m)
        for entry in tape.imports:
            given = passed.get(entry) if entry.leaf is None else seeds.get(id(entry.leaf))
            if given is not None and entry.size:
                t.receive(entry.cell, given)
        top = max([int(cells.max()) + 1 for _, cells in wanted if cells.size], default=0)
        with execute.watching.sweeps or nullcontext():
            _forward(tape, t, top)
        return {key: t.of(cells) for key, cells in wanted}


def _forward(tape: Tape, t: Rows, top: int) -> None:
    """Sweep forward as far as there are cells below `top`."""
    arena = tape.arena
    op, a, b, v = arena.op.array, arena.a.array, arena.b.array, arena.v.array
    k, d, x = tape.k.array(), tape.d.array(), tape.x.array()
    m = t.values.shape[1]
    n, stop_cell = execute.first_block_above(tape, top)
    position = cell = lane = 0
    sweeps = execute.watching.sweeps
    while position < n:
        if op[position] == HOST:
            size = int(b[position])
            host_tangents(tape.hosts[a[position]], v, t, cell, size)
            position, cell = position + 1, cell + size
        else:
            run = execute.kernels("vector", (stop_cell - cell) * m)
            limit = max(1, run.slice // m)
            position, cell, lane = run.vector_forward(
                *(op, a, b, d, x, k, v, t.values, t.reached), *(position, n, cell, lane, limit)
            )
        if sweeps:
            sweeps.moved("forward", position, n)


def host_tangents(call: Any, v: Floats, t: Rows, cell: int, size: int) -> None:
    """Compute the tangents of a structural operation."""
    if not _has_forward_rule(call):
        name = getattr(getattr(call, "row", None), "name", type(call).__name__)
        raise NotImplementedError(
            f"{name} has no forward rule, only a reverse one; use mode='reverse'{at_caller()}"
        )
    product = product_of(call)
    if product is not None:
        with np.errstate(all="ignore"):
            for carry in product.tangents(t, cell, size):
                carry()
        return
    varying = [x for x in call.operands if x.constant is None]
    if not any([t.reached[_cells(x)].any() for x in varying]):
        return
    given = [None if x.constant is not None else _read(x, t) for x in call.operands]
    live = np.zeros(t.values.shape[1], np.bool_)
    for rows in given:
        if rows is not None:
            live |= rows.reshape(len(live), -1).any(axis=1)
    with np.errstate(all="ignore"):
        values = [x.read(v) for x in call.operands]
        if call.row.jvps is not None and live.any():
            tangents = call.row.jvps(given, *values, **call.params).reshape(len(live), size).T
        else:
            tangents = np.zeros((size, len(live)))
            out = v[cell : cell + size].reshape(call.shape)
            for j in np.flatnonzero(live):
                one = [None if rows is None else rows[j] for rows in given]
                tangents[:, j] = np.ravel(call.row.jvp(one, out, *values, **call.params))
    t.values[cell : cell + size] = tangents
    t.reached[cell : cell + size] = 1
    if not live.all():  # where nothing flows, an infinite element does not make it nan
        t.values[cell : cell + size, ~live] = 0.0


def _read(x: HostOperand, t: Rows) -> Floats:
    """Return the tangents of an operand: its shape, with the directions along a first axis."""
    shape = x.cells.shape if x.window is None else x.window.shape
    rows: Floats = t.of(_cells(x)).T.reshape(t.values.shape[1], *shape)
    return rows


def _cells(x: HostOperand) -> Any:
    """Return the cells of an operand as a flat array; none for a constant."""
    if x.window is not None:
        return x.window.cells().ravel()
    return np.zeros(0, np.int64) if x.cells is None else np.ravel(x.cells)
