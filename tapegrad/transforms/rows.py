"""`Rows`: adjoints or tangents of many directions, a row for each cell of a tape."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..regions import results
from ..storage import Floats


class Rows:
    """A row of numbers for each cell, one a direction.

    The row of a cell that nothing has reached is undefined, and stands for zeros.  So memory, which
    is used again, need not be cleared, and the first contribution to a row sets it.

    Parameters
    ----------
    cells, directions : int

    Attributes
    ----------
    values : ndarray of float64, shape (cells, directions)
    reached : ndarray of uint8, shape (cells,)
        Which rows are defined.
    """

    __slots__ = ("reached", "values")

    def __init__(self, cells: int, directions: int) -> None:
        self.values: Floats = results.take(cells * directions).reshape(cells, directions)
        self.reached = np.zeros(cells, np.uint8)

    def run(self, first: int, stop: int) -> Floats:
        """Return the rows of a run of cells, as a view."""
        reached, values = self.reached[first:stop], self.values[first:stop]
        missing = reached == 0
        if missing.any():
            values[missing] = 0.0
            reached[:] = 1
        return values

    def of(self, cells: Any) -> Floats:
        """Return the rows of an array of cells: a view, where they are a run."""
        if not cells.size:
            return self.values[:0]
        first = first_of_run(cells)
        if first is not None:
            return self.run(first, first + cells.size)
        missing = cells[self.reached[cells] == 0]
        self.values[missing] = 0.0
        self.reached[missing] = 1
        rows: Floats = self.values[cells]
        return rows

    def receive(self, first: int, rows: Any) -> None:
        """Add rows to those of a run of cells that begins with `first`."""
        stop = first + len(rows)
        if self.reached[first:stop].any():
            values = self.run(first, stop)
            values += rows
        else:
            self.values[first:stop] = rows
            self.reached[first:stop] = 1

    def receive_at(self, cells: Any, rows: Any) -> None:
        """Add rows to those of an array of cells, in which a cell may occur several times."""
        cells = np.asarray(cells).ravel()
        missing = cells[self.reached[cells] == 0]
        self.values[missing] = 0.0
        self.reached[cells] = 1
        i, j = np.nonzero(rows)  # of a flat array, `add.at` is much faster
        places = cells.astype(np.int64)[i] * self.values.shape[1] + j
        np.add.at(self.values.reshape(-1), places, rows[i, j])


def first_of_run(cells: Any) -> int | None:
    """Return the first of cells that are consecutive, None for others."""
    if isinstance(cells, (int, np.integer)):
        return int(cells)
    first = int(cells[0])
    if int(cells[-1]) - first != len(cells) - 1 or (np.diff(cells.astype(np.int64)) != 1).any():
        return None
    return first
