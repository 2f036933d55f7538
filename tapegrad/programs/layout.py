"""How the instructions of a finished tape lie: their first cells, and what array operands name.

While a derivative is recorded, adjoints that happen to be in consecutive cells become one window,
whatever instructions they belong to.  A finished program is simplified and spliced instruction by
instruction, so there each window must lie in one of them: `index_runs` sees to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..host import HostOperand
from ..kernels.opcodes import BINARY, HOST, INPUT, KINDS, LANES, TERNARY, UNARY
from ..recording import CELLS, INDEXED
from ..tape import Tape
from ..window import Window

Ints = np.ndarray[Any, Any]

_ARITY = np.array([{UNARY: 1, BINARY: 2, TERNARY: 3}.get(kind, 0) for kind in KINDS])


def first_cells(op: Ints, b: Ints) -> Ints:
    """Return the first cell of each instruction, and the number of all cells at the end.

    Examples
    --------
    >>> first_cells(np.array([INPUT, 9, INPUT]), np.array([3, 0, 2]))
    array([0, 3, 4, 6])
    """
    wide = (op == INPUT) | (op == LANES) | (op == HOST)
    first = np.zeros(op.size + 1, np.int64)
    np.cumsum(np.where(wide, b, 1), out=first[1:])
    return first


def lane_operands(op: Ints, a: Ints, d: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Yield shapes and places of operands of array instructions, those of one form together.

    Yields
    ------
    extents : ndarray of shape (count, axes)
        The shapes of the instructions.
    at : ndarray of shape (count,)
        Where in `d` one operand of each of them stands: its kind, its offset, its strides.
    """
    start = a[op == LANES].astype(np.int64)
    form = 4 * d[start + 1] + _ARITY[d[start]]
    for one in np.unique(form):
        some = start[form == one]
        axes, arity = divmod(int(one), 4)
        extents = d[some[:, None] + np.arange(2, 2 + axes)]
        for j in range(1, 1 + arity):
            yield extents, some + j * (2 + axes)


def index_runs(tape: Tape, outputs: Iterable[Any], hosts: Iterable[HostOperand]) -> None:
    """Give each window that reaches over several instructions an index of its own.

    Parameters
    ----------
    tape : Tape
        A finished one, changed in place.
    outputs : iterable of `tapegrad.programs.ports.Output`
    hosts : iterable of HostOperand
        Further operands to look at, besides those of its structural instructions.
    """
    n, arena = tape.n, tape.arena
    op, outputs = arena.op.array[:n], list(outputs)
    lanes = bool((op == LANES).any())
    if not lanes and not tape.hosts and all([x.size < 2 for x in outputs]):
        return  # scalars only, which have no windows
    first = first_cells(op, arena.b.array[:n])
    if lanes:
        _index_lanes(tape, first)
    for call in tape.hosts:
        for place in call.operands:
            _index_operand(place, first)
    for place in hosts:
        _index_operand(place, first)
    for output in outputs:
        if isinstance(output.cells, (int, np.integer)) and output.size > 1:
            ends = np.array([output.cells, output.cells + output.size - 1])
            if is_split(first, *ends):
                output.cells = np.arange(ends[0], ends[1] + 1)


def _index_lanes(tape: Tape, first: Ints) -> None:
    n, arena = tape.n, tape.arena
    d = tape.d.array()
    for extents, at in lane_operands(arena.op.array[:n], arena.a.array[:n], d):
        strides = d[at[:, None] + np.arange(2, 2 + extents.shape[1])]
        reach = (extents - 1) * strides
        low = d[at + 1] + np.minimum(reach, 0).sum(axis=1)
        high = d[at + 1] + np.maximum(reach, 0).sum(axis=1)
        apart = (d[at] == CELLS) & is_split(first, low, high)
        for i in np.flatnonzero(apart).tolist():
            kept = tuple(np.where(strides[i] != 0, extents[i], 1).tolist())
            cells = Window(int(d[at[i] + 1]), kept, tuple(strides[i].tolist())).cells()
            steps = Window.contiguous(0, kept).broadcast_to(tuple(extents[i].tolist())).strides
            d[at[i]], d[at[i] + 1] = INDEXED, tape.x.extend(cells.ravel().astype(np.uint32))
            d[at[i] + 2 : at[i] + 2 + len(steps)] = steps


def is_split(first: Ints, low: Any, high: Any) -> Any:
    """Whether two cells belong to different instructions, whose first cells are given.

    Examples
    --------
    >>> is_split(np.array([0, 3, 4, 6]), np.array([0, 2]), np.array([2, 3]))
    array([False,  True])
    """
    return np.searchsorted(first, low, "right") != np.searchsorted(first, high, "right")


def _index_operand(place: HostOperand, first: Ints) -> None:
    w = place.window
    if w is None or w.size < 2:
        return
    reach = [(n - 1) * step for n, step in zip(w.shape, w.strides, strict=True)]
    low = w.offset + sum([step for step in reach if step < 0])
    high = w.offset + sum([step for step in reach if step > 0])
    if is_split(first, low, high):
        place.cells, place.window = w.cells(), None
