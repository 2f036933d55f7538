"""Sorting the instructions of a program that is replayed: by level, and within one by opcode.

An interpreter is quick where it can guess the next opcode.  Instructions of one level do not depend
on each other, so a level may be run one opcode after another, in long runs of the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arena import CompactArena
from ..kernels.opcodes import HOST, INPUT, KINDS, LANES
from ..tape import Tape
from .simplify import python_or_compiled

LEAST_RUN = 4
"""Instructions in a run of one opcode, on average, from which on sorting pays."""


def reorder(tape: Tape) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """Sort a finished tape of scalar instructions in place, if that gives long runs of opcodes.

    Returns
    -------
    ndarray or None
        By old cell, the new one; None where the tape was left as it is.
    """
    arena, n, cells = tape.arena, tape.n, tape.flushed_cell
    op, a, b = (column.array[:n] for column in (arena.op, arena.a, arena.b))
    if n == 0 or np.isin(op, (LANES, HOST)).any():
        return None
    kinds = np.array(KINDS + (0,) * (256 - len(KINDS)), np.int64)
    sizes = np.where(op == INPUT, b, 1).astype(np.int64)
    first = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)[:-1]))
    keys = np.zeros(n, np.int64)
    run = python_or_compiled("simplify", n)
    run.sort_keys(op, a, b, first, kinds, np.zeros(cells, np.int64), keys)
    order = np.argsort(keys, kind="stable")
    if np.count_nonzero(np.diff(keys[order])) * LEAST_RUN > n:
        return None
    new_first = np.empty(n, np.int64)
    new_first[order] = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes[order])[:-1]))
    to = np.arange(cells) + np.repeat(new_first - first, sizes)
    op, a, b = op[order], a[order].astype(np.int64), b[order].astype(np.int64)
    run.remap(op, a, b, kinds, to)
    values = np.empty(cells)
    values[to] = arena.v.array[:cells]
    for entry in tape.imports:
        entry.cell = int(to[entry.cell]) if entry.size else 0
    tape._arena = CompactArena(op, a, b, values)
    tape.milestones = []
    tape.plans.clear()
    return to
