"""Structural instructions of a tape, as the planner is told of them.

Sums and extremes are lanes of regions, like array instructions; of others it has to know what they
read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..window import coalesce
from .region import MAXIMUM, MINIMUM, SET

if TYPE_CHECKING:
    from ..host import HostCall
    from ..tape import Tape


def host_table(tape: Tape) -> tuple[list[int], list[int]]:
    """Return where each structural instruction is described, and the descriptions.

    A sum, maximum or minimum over consecutive or strided cells is described as an array instruction
    of one operand, how its out-window takes lanes in the place of the opcode, followed by the
    strides of its result; others by the cells that their operands reach.
    """
    at: list[int] = []
    words: list[int] = []
    for call in tape.hosts:
        described = _reduction(call)
        if described:
            at.append(len(words))
            words += described
        else:
            at.append(-1 - len(words))
            words += _reach(call)
    return at, words


_REDUCTIONS = {"sum": SET, "max": MAXIMUM, "min": MINIMUM}


def _reduction(call: HostCall) -> list[int]:
    from ..ops.structural import STRUCTURAL

    how = _REDUCTIONS.get(call.row.name)
    if how is None or call.row is not STRUCTURAL[call.row.name]:
        return []
    if call.operands[0].window is None:
        return []
    window, axes = call.operands[0].window, call.params["axis"]
    if not window.size or window.ndim == 0:
        return []
    if window.ndim == 1 and window.size > 1 and axes == (0,):  # the usual one, at once
        return [how, 1, window.size, 0, window.offset, *window.strides, 0]
    strides, step = [0] * window.ndim, 1
    for axis in range(window.ndim - 1, -1, -1):
        if axis not in axes:
            strides[axis] = step
            step *= window.shape[axis]
    sizes, (into, out) = coalesce(window.shape, [window.strides, tuple(strides)])
    return [how, len(sizes), *sizes, 0, window.offset, *into, *out]


def _reach(call: Any) -> list[int]:
    pairs: list[int] = []
    for x in getattr(call, "operands", ()):
        cells = x.cells if x.window is None else x.window
        if cells is None or not cells.size:
            continue
        if x.window is not None:
            reach = [(n - 1) * s for n, s in zip(cells.shape, cells.strides, strict=True)]
            pairs.append(cells.offset + sum(r for r in reach if r < 0))
            pairs.append(cells.offset + sum(r for r in reach if r > 0))
        else:
            pairs += (int(cells.min()), int(cells.max()))
    return [len(pairs) // 2, *pairs]
