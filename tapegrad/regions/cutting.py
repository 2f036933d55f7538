"""Long programs as several regions, run one after another on the same lanes.

A region has at most 65,535 rows. What one part of a longer program computes and a later one needs
goes through memory: an out-window of the one and an in-window of the other, on a buffer that holds
a number a lane for each value that is waiting. Where parts end, liveness decides: near as far as a
part can reach, where the fewest values cross.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .region import Ints

MOST_ROWS = 0xFFFF
NONE = 1 << 60
"""No value."""

_SLACK = 8  # a part may end up to an eighth before it must


class Part:
    """Instructions that run together.

    Attributes
    ----------
    start, stop : int
    brought, carried : list of (int, int)
        Values of earlier parts that it needs, and values of its own that later ones need; with the
        place in memory of each.
    """

    __slots__ = ("brought", "carried", "start", "stop")

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self.brought: list[tuple[int, int]] = []
        self.carried: list[tuple[int, int]] = []


class Cut:
    """Cuts straight-line code.

    Parameters
    ----------
    operands : ndarray of int64, shape (n, 3)
        The values that each instruction needs: results by number, others negative, `NONE` for none.
        An instruction that nothing needs has none.
    most : int
        Rows of a part, at most; at least some dozens.

    Attributes
    ----------
    parts : list of Part
    places : int
        How many values wait in memory at a time, at most.

    Examples
    --------
    Each instruction needs the one before it, but the last needs the first, too:

    >>> cut = Cut(np.array([[-1, NONE], [0, NONE], [1, NONE], [2, NONE], [3, 0]]), most=3)
    >>> [(part.start, part.stop) for part in cut.parts]
    [(0, 1), (1, 5)]
    >>> cut.parts[0].carried, cut.parts[1].brought
    ([(0, 0)], [(0, 0)])
    """

    def __init__(self, operands: Ints, most: int = MOST_ROWS) -> None:
        self._operands = operands
        self._most = most
        n = len(operands)
        last = np.full(n, -1)
        for column in operands.T:
            (i,) = np.nonzero((column >= 0) & (column != NONE))
            np.maximum.at(last, column[i], i)
        self._last: Ints = last
        used = np.flatnonzero(last >= 0)
        steps = np.zeros(n + 2, np.int64)
        np.add.at(steps, used + 1, 1)
        np.add.at(steps, last[used] + 1, -1)
        self._crossing = np.cumsum(steps)  # by instruction: values that wait before it
        self.parts = list(self._cut())
        self.places = self._place()

    def _cut(self) -> Iterator[Part]:
        n = len(self._last)
        start = 0
        while start < n:
            stop = self._reach(start)
            if stop < n:
                first = max(stop - max((stop - start) // _SLACK, 1), start + 1)
                fewest = self._crossing[first : stop + 1]
                better = first + len(fewest) - 1 - int(np.argmin(fewest[::-1]))
                stop = better if self._rows(start, better) <= self._most else stop
            yield Part(start, stop)
            start = stop

    def _reach(self, start: int) -> int:
        """Return how far a part can go."""
        low, high = start + 1, len(self._last)
        if self._rows(start, high) <= self._most:
            return high
        while high - low > 1:
            middle = (low + high) // 2
            if self._rows(start, middle) <= self._most:
                low = middle
            else:
                high = middle
        return low

    def _rows(self, start: int, stop: int) -> int:
        """Return how many rows a part takes: what it brings in, carries out, has for itself."""
        needed = self._operands[start:stop]
        brought = np.unique(needed[(needed < start) & (needed != NONE)]).size
        last = self._last[start:stop]
        carried = int(np.count_nonzero(last >= stop))
        own = np.flatnonzero((last >= 0) & (last < stop))
        steps = np.zeros(stop - start + 1, np.int64)
        np.add.at(steps, own, 1)
        np.add.at(steps, last[own] - start, -1)
        return brought + carried + int(np.cumsum(steps).max()) + 1

    def _place(self) -> int:
        """Give values that cross a cut places, which are used again; return how many there are."""
        place: dict[int, int] = {}
        free: list[int] = []
        total = 0
        for part in self.parts:
            needed = np.unique(self._operands[part.start : part.stop]).tolist()
            part.brought = [(v, place[v]) for v in needed if 0 <= v < part.start]
            for v in range(part.start, part.stop):
                if self._last[v] >= part.stop:
                    if not free:
                        free.append(total)
                        total += 1
                    place[v] = free.pop()
                    part.carried.append((v, place[v]))
            # Only now: a part writes no place that it reads.
            free += [at for v, at in part.brought if self._last[v] < part.stop]
        return total
