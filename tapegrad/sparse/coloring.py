"""Compression: few directions from which all elements of a sparse matrix are read.

Columns that never meet in a row share a direction, and so do rows that never meet in a column.  In
a symmetric matrix, an element may be read in either of two places, so that less is asked.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..programs.simplify import python_or_compiled

Ints = np.ndarray[Any, np.dtype[np.int64]]
MAX_WORDS = 1 << 25  # of masks: 256 MiB


class Compression:
    """How the elements of a sparse matrix are read from its products with a few directions.

    Attributes
    ----------
    colors : ndarray
        The direction that each column (each row, where rows are coloured) belongs to.
    count : int
        The number of directions.
    at, direction : ndarray
        Element `e` is number ``at[e]`` of the product with direction ``direction[e]``.
    """

    __slots__ = ("at", "colors", "count", "direction")

    def __init__(self, count: int, colors: Ints, at: Ints, direction: Ints) -> None:
        self.count, self.colors, self.at, self.direction = count, colors, at, direction

    def seeds(self, low: int, high: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return directions `low` to `high`, one a column."""
        seeds = np.zeros((len(self.colors), high - low))
        chosen = np.flatnonzero((self.colors >= low) & (self.colors < high))
        seeds[chosen, self.colors[chosen] - low] = 1.0
        return seeds


def compress_columns(rows: Ints, columns: Ints, shape: tuple[int, int]) -> Compression:
    """Return how to read a matrix from its products with sums of columns' directions."""
    start, across = _grouped(columns, rows, shape[1])
    count, colors = _color("color_columns", start, across, shape[0], np.arange(shape[1]))
    return Compression(count, colors, rows, colors[columns])


def compress_symmetric(rows: Ints, columns: Ints, size: int) -> Compression:
    """Return how to read a symmetric matrix, whose elements are ordered by rows."""
    start = np.searchsorted(rows, np.arange(size + 1))
    most_first = np.argsort(-np.diff(start), kind="stable")
    count, colors = _color("color_star", start, columns, size, most_first)
    direction = colors[columns]
    _, place, times = np.unique(rows * count + direction, return_inverse=True, return_counts=True)
    alone = times[place] == 1
    return Compression(
        count, colors, np.where(alone, rows, columns), np.where(alone, direction, colors[rows])
    )


def most_in_line(places: Ints, size: int) -> int:
    """Return how many elements the fullest line has: no colouring across it has fewer colours."""
    return int(np.bincount(places, minlength=1).max()) if size and places.size else 0


def _grouped(by: Ints, what: Ints, size: int) -> tuple[Ints, Ints]:
    order = np.argsort(by, kind="stable")
    return np.searchsorted(by[order], np.arange(size + 1)), what[order]


def _color(name: str, start: Ints, across: Ints, size: int, order: Ints) -> tuple[int, Ints]:
    run = python_or_compiled("coloring", len(across))
    words = 1
    while True:
        colors = np.full(len(order), -1, np.int64)
        count = getattr(run, name)(
            *(order, start.astype(np.int64), across.astype(np.int64)),
            *(np.zeros(size * words, np.int64), np.zeros(words, np.int64), words, colors),
        )
        if count >= 0:
            return int(count), colors
        if size * words > MAX_WORDS:
            # So many directions that nothing is gained: one for each.
            return len(order), np.arange(len(order))
        words *= 4
