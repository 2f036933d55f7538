"""Where the cells of a tape lie on a device: only those that something there needs have a place.

Instructions that one window reaches lie side by side, in the order of the tape; they make a
*segment*, a piece of memory of its own, which exists from its first use to its last. What no window
carries out, because regions keep it in their rows, takes no memory at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..regions.region import Ints


class Places:
    """The places of a tape's cells, once it is known what needs one.

    Parameters
    ----------
    first : ndarray of int64
        The first cell of each instruction, and the cell after the last.

    Attributes
    ----------
    sizes : list of int
        Of each segment, how many numbers it holds; set by `settle`.

    Examples
    --------
    Four instructions of 3, 1, 2 and 4 cells, of which a window reaches the last two:

    >>> places = Places(np.array([0, 3, 4, 6, 10]))
    >>> places.need(1, 2)
    >>> places.need(4, 9)
    >>> places.settle()
    >>> places.sizes, places.of_run(1, 2), places.of_run(7, 9)
    ([3, 6], (0, 1), (1, 3))
    """

    def __init__(self, first: Ints) -> None:
        self._first = first
        self._needed = np.zeros(len(first) - 1, np.bool_)
        self._together: list[tuple[int, int]] = []  # instructions, from and to
        self.sizes: list[int] = []

    def instruction(self, cells: Any) -> Any:
        """Return the instruction that a cell belongs to, or those of an array of cells."""
        return np.searchsorted(self._first, cells, side="right") - 1

    def need(self, low: int, high: int) -> None:
        """Say that a window reaches these cells, lowest and highest."""
        p, q = int(self.instruction(low)), int(self.instruction(high))
        self._needed[p : q + 1] = True
        self._together.append((p, q))

    def need_cells(self, cells: Any) -> None:
        """Say that an array of cells is reached through indices."""
        found = np.unique(self.instruction(cells))
        if found.size:
            self._needed[found] = True
            self._together.append((int(found[0]), int(found[-1])))

    def has(self, instruction: int) -> bool:
        """Whether an instruction's cells have places."""
        return bool(self._needed[instruction])

    def settle(self) -> None:
        """Find the segments: nothing more can be needed."""
        starts: list[int] = []
        stops: list[int] = []
        for p, q in sorted(self._together):
            if starts and p <= stops[-1]:
                stops[-1] = max(stops[-1], q)
            else:
                starts.append(p)
                stops.append(q)
        self._starts = np.array(starts, np.int64)
        size = np.where(self._needed, np.diff(self._first), 0)
        before = np.concatenate(([0], np.cumsum(size)))
        self._place = before[:-1].copy()  # of each instruction's first cell, in its segment
        for start, stop in zip(starts, stops, strict=True):
            self.sizes.append(int(before[stop + 1] - before[start]))
            self._place[start : stop + 1] -= before[start]

    def of_run(self, low: int, high: int) -> tuple[int, int]:
        """Return the segment of cells that a window reaches, and the place of the lowest."""
        p = self.instruction(low)
        assert self._needed[p]
        assert self._needed[self.instruction(high)]
        return self._segment(p), int(self._place[p] + low - self._first[p])

    def of_cells(self, cells: Any) -> tuple[int, Ints]:
        """Return the segment of an array of cells, one at least, and the place of each."""
        found = self.instruction(cells)
        places: Ints = self._place[found] + cells - self._first[found]
        return self._segment(found.flat[0]), places

    def _segment(self, instruction: Any) -> int:
        return int(np.searchsorted(self._starts, instruction, side="right")) - 1
