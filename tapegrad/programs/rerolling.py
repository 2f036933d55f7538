"""Finding the loops of a recorded program again.

A Python loop is recorded as one copy of its body after another.  Here such copies are recognised:
stretches of scalar instructions in which every `period`-th opcode is the same, and every operand
advances by a constant step from one copy to the next.  (Compilers call this loop rerolling.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..kernels.opcodes import CONST

LONGEST = 256
"""Instructions of the longest loop body that is looked for."""

LEAST_COUNT = 8
"""Iterations from which on copies are taken for a loop."""

LEAST_INSTRUCTIONS = 256
"""Instructions that a loop must cover."""

_CANDIDATES = 12  # periods that are tried, the most frequent ones
_GRAM = 4  # opcodes in a row whose return suggests a period

Ints = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, order=True)
class Loop:
    """A stretch of instructions that repeats itself.

    Attributes
    ----------
    start : int
        Its first instruction.
    period : int
        Instructions in one iteration.
    count : int
        Iterations.
    """

    start: int
    period: int
    count: int

    @property
    def stop(self) -> int:
        """The instruction that follows."""
        return self.start + self.period * self.count


def find_loops(op: Any, a: Any, b: Any) -> list[Loop]:
    """Return the loops among instructions, in order; they do not overlap.

    Parameters
    ----------
    op, a, b : ndarray of unsigned integers
        Columns of a tape.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> from tapegrad.programs.rerolling import find_loops
    >>> def f(x):
    ...     for _ in range(1000):
    ...         x = x * 0.5 + 1.0
    ...     return x
    >>> arena = tg.record(f, 3.0).tape.arena
    >>> find_loops(arena.op.array, arena.a.array, arena.b.array)
    [Loop(start=1, period=2, count=1000)]
    """
    op, a, b = op.astype(np.int64), a.astype(np.int64), b.astype(np.int64)
    free = op >= CONST  # INPUT, LANES and HOST take no part
    found: list[Loop] = []
    while True:
        best: list[Loop] = []
        covered = 0
        periods = _periods(op, free)
        for period in periods:
            loops, outer = _of_period(op, a, b, free, period)
            if outer > max(periods):
                periods.append(outer)
            total = sum(loop.period * loop.count for loop in loops)
            if total > 1.05 * covered:  # of two that do as well, the shorter body
                best, covered = loops, total
        if not best:
            return sorted(found)
        found += best
        for loop in best:
            free[loop.start : loop.stop] = False


def _periods(op: Ints, free: Bools) -> list[int]:
    """Return distances at which opcodes return, the short ones first."""
    n = len(op) - _GRAM + 1
    if n < LEAST_INSTRUCTIONS:
        return []
    grams = op[:n].copy()
    for i in range(1, _GRAM):
        grams = grams << 8 | op[i : i + n]
    grams = grams[free[:n]]
    where = np.flatnonzero(free[:n])
    order = np.argsort(grams, kind="stable")
    apart = np.diff(where[order])[np.diff(grams[order]) == 0]
    counts = np.bincount(apart[apart <= LONGEST], minlength=LONGEST + 1)
    likely = np.argsort(-counts, kind="stable")[:_CANDIDATES]
    return sorted(int(period) for period in likely if counts[period] >= LEAST_COUNT)


def _of_period(op: Ints, a: Ints, b: Ints, free: Bools, period: int) -> tuple[list[Loop], int]:
    """Return the loops whose body has `period` instructions, and the period of a loop around them.

    The latter is the usual distance between the places where copies begin anew, 0 for none.
    """
    if len(op) < 2 * period + LEAST_INSTRUCTIONS:
        return [], 0
    # By instruction, from the third iteration on: the same as those before it, and in step.
    same = (op[period:] == op[:-period]) & free[period:] & free[:-period]
    steady = same[period:] & same[:-period]
    for column in (a, b):
        step = column[period:] - column[:-period]
        steady &= step[period:] == step[:-period]
    edges = np.flatnonzero(np.diff(np.concatenate(([0], steady.astype(np.int8), [0]))))
    runs = edges.reshape(-1, 2)
    loops = []
    for start, stop in runs.tolist():
        count = (stop - start) // period + 2
        if count >= LEAST_COUNT and count * period >= LEAST_INSTRUCTIONS:
            loops.append(Loop(start, period, count))
    apart = np.diff(runs[runs[:, 1] - runs[:, 0] >= 2 * period, 0])
    apart = apart[(apart > period) & (apart <= LONGEST)]
    outer = int(np.bincount(apart).argmax()) if apart.size >= LEAST_COUNT else 0
    return loops, outer
