"""Who owns values: leaves own theirs, storages own runs or index arrays of cells."""

from __future__ import annotations

from ctypes import addressof, c_char
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .tape import Tape
    from .window import Window

Floats = NDArray[np.float64]
Cells = NDArray[np.uint32]


def address(array: Any) -> int:
    """Return where a contiguous array lies in memory."""
    try:
        return addressof(c_char.from_buffer(array))  # a quarter of the time of the other way
    except (BufferError, TypeError, ValueError):  # read-only, or empty
        place: int = array.__array_interface__["data"][0]
        return place


def stretch(cells: Any, size: int) -> tuple[int, int]:
    """Return the lowest and highest of a run of cells (its first), or of an array of cells."""
    if isinstance(cells, (int, np.integer)):
        return int(cells), int(cells) + size - 1
    return int(cells.min()), int(cells.max())


class Leaf:
    """The values that a user handed in, and the gradient that accumulates for them.

    A leaf belongs to no recording: each recording imports it on first use.  Its value is never
    written in place, only replaced, because recordings and ``.value`` views may refer to it.
    """

    __slots__ = ("grad", "requires_grad", "value")

    def __init__(self, value: NDArray[Any], requires_grad: bool) -> None:
        self.value = value
        self.requires_grad = requires_grad
        self.grad: Any = None

    def accumulate(self, cotangent: Floats) -> None:
        """Add a cotangent of the leaf's shape to ``grad``, in the leaf's dtype."""
        contribution = cotangent.astype(self.value.dtype)
        total = contribution if self.grad is None else self.grad + contribution
        self.grad = total[()] if self.value.ndim == 0 else total


class Tracked:
    """Base of everything that recording knows."""

    __slots__ = ()


class TrackedScalar(Tracked):
    """One cell of one tape.

    A leaf scalar keeps its `leaf`; `tape` and `cell` then cache its latest import, and `tape` is
    None in between.  Other scalars never have the `leaf` slot set at all: recording is faster.
    """

    __slots__ = ("_leaf", "cell", "tape")

    tape: Tape | None
    cell: int
    _leaf: Leaf

    @property
    def leaf(self) -> Leaf | None:
        """The leaf that this scalar is, if any."""
        return getattr(self, "_leaf", None)


class TrackedArray(Tracked):
    """A NumPy-like window on a storage."""

    __slots__ = ("__weakref__", "dtype", "storage", "window")

    storage: Storage
    window: Window
    dtype: np.dtype[Any]


class Storage:
    """Cells that arrays are windows on: a run of consecutive ones, or an array of indices.

    Assignment never overwrites a cell, it renames: the storage points at other cells.  Views of
    one storage therefore see each other's assignments exactly as NumPy's views do.

    Attributes
    ----------
    tape : Tape or None
        Recording that the cells belong to; None for a leaf that none has imported yet.
    base : int
        First cell of the run; meaningless once `index` is set.
    size : int
        Number of elements.
    index : ndarray of uint32, or None
        Cell of each element, from the first partial assignment on.
    leaf : Leaf or None
        Set while the storage still is what the user handed in.
    version : int
        Counts renamings, so that a recording notices that its import is out of date.
    """

    __slots__ = ("base", "index", "leaf", "peek", "size", "tape", "version")

    def __init__(self, tape: Tape | None, base: int, size: int, leaf: Leaf | None = None) -> None:
        self.tape = tape
        self.base = base
        self.size = size
        self.leaf = leaf
        self.index: Cells | None = None
        self.peek: Any = None  # index.item, bound once: the fast way to one element
        self.version = 0

    def rename_run(self, tape: Tape, base: int) -> None:
        """Become the run of cells that starts at `base`."""
        self.tape, self.base, self.index, self.peek = tape, base, None, None
        self.leaf = None
        self.version += 1

    def rename_cells(self) -> Cells:
        """Return the index array for writing, made from the run on first use (O(n), once)."""
        if self.index is None:
            self.index = np.arange(self.base, self.base + self.size, dtype=np.uint32)
            self.peek = self.index.item
        self.leaf = None
        self.version += 1
        return self.index

    def adopt_cells(self, tape: Tape, cells: Cells) -> None:
        """Become the given cells, in this order."""
        self.tape, self.index, self.peek = tape, cells, cells.item
        self.leaf = None
        self.version += 1
