"""Arenas: the memory of tapes, in columns that grow without moving and go back to a pool.

On Linux a column is reserved address space: its pages come into being when they are first touched,
so it costs what it holds, and growing neither copies nor moves anything. Where that cannot be had
(another system, a limit on address space, strict overcommit) a column is an ordinary array that
grows by doubling. Code that calls `Column.ensure` and then reads `Column.array` again works with
both.

Touching fresh pages costs more than a sweep, so arenas are reused: see `Pool`.

A sweep walks through all columns side by side. Where they start at the same offset into a page,
addresses agree in the bits by which a processor tells a load from an earlier store, and it waits in
vain (a reverse sweep took 1.4 times as long): each column has a `STAGGER` of its own.
"""

from __future__ import annotations

import mmap
import sys
import weakref
from collections import deque
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

RESERVE = 1 << 32
"""Items reserved for a column: operands are uint32, so a tape never has more cells."""

POOL_COUNT = 16
"""Arenas a pool keeps at most; the oldest go first."""

POOL_BYTES = 512 << 20
"""Touched memory a pool keeps, about: what is beyond goes back to the system."""

SMALL_BYTES = 1 << 20
"""What every pooled arena may keep, uncounted."""

FIRST_ITEMS = 1 << 12  # the first size of a column that grows by doubling
STAGGER = {"op": 0, "a": 832, "b": 1664, "v": 2496, "g": 3328}
"""Bytes into a page at which each kind of column starts; 832 is 4096 / 5 in whole cache lines."""

HUGE_PAGE = 2 << 20
HUGE_FROM = 2 * HUGE_PAGE  # bytes before huge pages: a small tape must not touch 2 MiB at once

MAX_RESERVED = 1024
"""Columns reserved at a time, at most: about a tenth of the address space of a process."""

_NORESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000)  # named since Python 3.13

AnyArray = np.ndarray[Any, Any]


class Column:
    """A flat typed array that grows.

    Parameters
    ----------
    dtype : data type
    reserve : int, optional
        Items to reserve address space for, where the system allows it.
    shift : int, optional
        Bytes into a page at which the column starts.

    Attributes
    ----------
    array : ndarray
        The whole capacity. Items never written are zero. A call of `ensure` may replace it; what
        was derived from it before (views, addresses) is then outdated.
    touched : int
        Items that may have been written: an upper bound, kept by `ensure`.

    Notes
    -----
    Most cells of array code are never written. Where one of them is, it must not bring a huge page
    with it, so only what `expect` is asked for has those.

    Examples
    --------
    >>> column = Column(np.float64)
    >>> column.ensure(1000)[:3]
    array([0., 0., 0.])
    """

    __slots__ = ("_huge", "_map", "_shift", "array", "touched")

    array: AnyArray
    touched: int
    _map: mmap.mmap | None

    def __init__(self, dtype: Any, reserve: int = RESERVE, shift: int = 0) -> None:
        dtype = np.dtype(dtype)
        self._shift = shift
        self._huge = HUGE_FROM  # bytes up to where nothing is left to be said about huge pages
        self._map = _reserve(shift + reserve * dtype.itemsize)
        if self._map is None:
            self.array = zeros(min(FIRST_ITEMS, reserve), dtype, shift)
        else:
            self.array = np.frombuffer(self._map, dtype, reserve, shift)
        self.touched = 0

    @property
    def capacity(self) -> int:
        """Items there is room for without growing."""
        return self.array.size

    @property
    def touched_bytes(self) -> int:
        """Memory that may be resident, at most."""
        return self.touched * self.array.itemsize

    def ensure(self, n: int) -> AnyArray:
        """Make room for `n` items and return the array.

        Raises
        ------
        MemoryError
            Where the system has no room for them. The column is as it was.
        """
        if n > self.array.size:
            self._grow(n)
        if n > self.touched:
            self.touched = n
        return self.array

    def expect(self, n: int) -> AnyArray:
        """Make room for `n` items, nearly all of which are going to be written; see `ensure`.

        Beyond the first they lie in huge pages, where the system has them: a sweep is a quarter
        faster, and touching them for the first time twice as fast.
        """
        stop = self._shift + n * self.array.itemsize
        if stop > self._huge and self._map is not None:
            self._advise(stop)
        return self.ensure(n)

    def _advise(self, stop: int) -> None:
        stop = -(-max(stop, 2 * self._huge) // HUGE_PAGE) * HUGE_PAGE  # a few calls for any size
        stop = min(stop, len(self._map))  # type: ignore[arg-type]
        try:
            self._map.madvise(mmap.MADV_HUGEPAGE, self._huge, stop - self._huge)  # type: ignore[union-attr]
        except OSError:  # a kernel built without huge pages: only speed is lost
            pass
        self._huge = stop

    def _grow(self, n: int) -> None:
        old = self.array
        try:
            # calloc: pages beyond what is copied stay untouched
            new = zeros(max(n, 2 * old.size), old.dtype, self._shift)
        except (MemoryError, ValueError) as error:  # ValueError: beyond the address space
            raise MemoryError(
                f"no memory for {n:,} items of a tape ({n * old.itemsize / 2**30:.1f} GiB); record "
                "in shorter pieces, use tg.checkpoint, or work on whole arrays instead of elements"
            ) from error
        new[: old.size] = old
        self.array = new
        self._map = None

    def release(self, keep: int = 0) -> None:
        """Give memory beyond the first `keep` bytes back to the system.

        The contents are then undefined, but for this: a column that was all zero still is.
        """
        if self.touched_bytes <= keep:
            return
        if sys.platform == "linux" and self._map is not None:
            keep = (keep + self._shift) // mmap.PAGESIZE * mmap.PAGESIZE
            if keep < len(self._map):
                self._map.madvise(mmap.MADV_DONTNEED, keep)
                kept = max(0, keep - self._shift) // self.array.itemsize
                self.touched = min(self.touched, kept)
        else:
            self.array = zeros(FIRST_ITEMS, self.array.dtype, self._shift)
            self.touched = 0

    def clear(self) -> None:
        """Make every item zero."""
        self.release(SMALL_BYTES)  # fresh pages are zero: cheaper than writing zeros into many
        self.array[: self.touched] = 0


def zeros(n: int, dtype: np.dtype[Any], shift: int) -> AnyArray:
    """Return an array of zeros that starts `shift` bytes into a page, where that matters."""
    if n < FIRST_ITEMS:
        return np.zeros(n, dtype)  # fits the cache many times over
    raw = np.zeros(n * dtype.itemsize + mmap.PAGESIZE, np.uint8)
    start = (shift - raw.ctypes.data) % mmap.PAGESIZE
    return raw[start : start + n * dtype.itemsize].view(dtype)


def _reserve(nbytes: int) -> mmap.mmap | None:
    """Return that much address space, of which nothing is in memory yet, or None."""
    if sys.platform != "linux":
        return None
    import resource

    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return None  # reserving would eat up the limit (ulimit -v)
    if nbytes > sys.maxsize or len(_reserved) >= MAX_RESERVED:
        return None
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    try:
        reserved = mmap.mmap(-1, nbytes, flags=flags)
    except (OSError, ValueError):  # strict overcommit, or an odd system
        return None
    _reserved.add(reserved)
    return reserved


_reserved: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


# -- pools ----------------------------------------------------------------------------------------


class Pooled(Protocol):
    """What a pool holds."""

    @property
    def touched_bytes(self) -> int:
        """Memory that may be resident, at most."""

    def release(self, keep: int = 0) -> None:
        """Give memory beyond `keep` bytes back to the system."""


T = TypeVar("T", bound=Pooled)


class Pool(Generic[T]):
    """Arenas waiting for their next tape; the last one given back, still warm, goes first.

    A pool holds at most `POOL_COUNT` arenas and about `POOL_BYTES` of memory. It has no lock, only
    single operations of a deque, which are atomic: an arena may be given back from a destructor,
    which runs anywhere, also inside of what a lock would protect, and a lock does not survive a
    fork.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[T] = deque(maxlen=POOL_COUNT)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def touched_bytes(self) -> int:
        """Memory that the waiting arenas hold, at most."""
        return sum(arena.touched_bytes for arena in self._waiting.copy())

    def take(self) -> T | None:
        """Return an arena nobody else has, or None."""
        try:
            return self._waiting.pop()
        except IndexError:
            return None

    def give(self, arena: T) -> None:
        """Keep an arena for later; nobody may use it any more."""
        if arena.touched_bytes > SMALL_BYTES:
            arena.release(max(POOL_BYTES - self.touched_bytes, SMALL_BYTES))
        self._waiting.append(arena)

    def drain(self) -> None:
        """Give all memory back to the system."""
        self._waiting.clear()


# -- the code and values of a tape ----------------------------------------------------------------


class Arena:
    """The columns of one tape that is being recorded: opcodes, operands and values.

    Attributes
    ----------
    op, a, b : Column
        One item an instruction: opcode (uint8) and two operands (uint32).
    v : Column
        One item a cell: its value (float64).

    Examples
    --------
    >>> arena = Arena.take()
    >>> arena.op.ensure(2)[:2] = 7, 8
    >>> code = arena.compact(2, 0)
    >>> arena.give_back(2, 0)
    >>> code.op.array
    array([7, 8], dtype=uint8)
    """

    __slots__ = ("a", "b", "op", "v")

    def __init__(self, reserve: int = RESERVE) -> None:
        self.op = Column(np.uint8, reserve, STAGGER["op"])
        self.a = Column(np.uint32, reserve, STAGGER["a"])
        self.b = Column(np.uint32, reserve, STAGGER["b"])
        self.v = Column(np.float64, reserve, STAGGER["v"])

    @classmethod
    def take(cls) -> Arena:
        """Return an arena from the pool, or a new one. Its contents are undefined."""
        return _arenas.take() or cls()

    @property
    def touched_bytes(self) -> int:
        """Memory that may be resident, at most."""
        columns = self.op, self.a, self.b, self.v
        return sum([column.touched_bytes for column in columns])

    def ensure(self, n_instructions: int, n_cells: int) -> None:
        """Make room in all columns; read their arrays again afterwards."""
        self.op.ensure(n_instructions)
        self.a.ensure(n_instructions)
        self.b.ensure(n_instructions)
        self.v.ensure(n_cells)

    def compact(self, n_instructions: int, n_cells: int) -> CompactArena:
        """Return a copy of what is used, so that the arena can go back to the pool."""
        return CompactArena(
            self.op.array[:n_instructions],
            self.a.array[:n_instructions],
            self.b.array[:n_instructions],
            self.v.array[:n_cells],
        )

    def release(self, keep: int = 0) -> None:
        """Give memory beyond about `keep` bytes back to the system; contents are lost."""
        for column in (self.op, self.a, self.b, self.v):
            column.release(keep // 4)

    def give_back(self, n_instructions: int, n_cells: int) -> None:
        """Return the arena to the pool, saying how much of it was used."""
        self.ensure(n_instructions, n_cells)
        _arenas.give(self)


class FixedColumn:
    """An ordinary array in the place of a `Column` that grows no more."""

    __slots__ = ("array",)

    def __init__(self, array: AnyArray) -> None:
        self.array = array

    def ensure(self, n: int) -> AnyArray:
        """Return the array, which must have room for `n` items already."""
        if n > self.array.size:
            raise ValueError("a finished tape cannot grow")
        return self.array

    expect = ensure


class CompactArena:
    """The code and values of a finished tape, in ordinary arrays of just their size.

    They are copies of what is handed in, whose columns may be integers of any kind.
    """

    __slots__ = ("a", "b", "op", "v")

    def __init__(self, op: AnyArray, a: AnyArray, b: AnyArray, v: AnyArray) -> None:
        self._make(len(op), len(v))
        for column, values in ((self.op, op), (self.a, a), (self.b, b), (self.v, v)):
            column.array[:] = values

    @classmethod
    def of_size(cls, n_instructions: int, n_cells: int) -> CompactArena:
        """Return one of zeros, to be filled in."""
        arena = cls.__new__(cls)
        arena._make(n_instructions, n_cells)
        return arena

    def _make(self, n_instructions: int, n_cells: int) -> None:
        self.op = FixedColumn(zeros(n_instructions, np.dtype(np.uint8), STAGGER["op"]))
        self.a = FixedColumn(zeros(n_instructions, np.dtype(np.uint32), STAGGER["a"]))
        self.b = FixedColumn(zeros(n_instructions, np.dtype(np.uint32), STAGGER["b"]))
        self.v = FixedColumn(zeros(n_cells, np.dtype(np.float64), STAGGER["v"]))

    def give_back(self, n_instructions: int, n_cells: int) -> None:
        """Do nothing: ordinary arrays free themselves."""


# -- adjoints -------------------------------------------------------------------------------------


def take_adjoints(n: int) -> Column:
    """Return a float64 column that is all zero and has room for `n` items.

    Examples
    --------
    >>> g = take_adjoints(10)
    >>> g.array[3] = 1.5
    >>> give_back_adjoints(g, clean=False)
    """
    column = _adjoints.take() or Column(np.float64, shift=STAGGER["g"])
    column.ensure(n)
    return column


def give_back_adjoints(column: Column, clean: bool) -> None:
    """Return a column to the pool. Nobody may use it any more.

    Parameters
    ----------
    column : Column
        From `take_adjoints`; written only as far as `Column.ensure` was asked for.
    clean : bool
        Whether it is all zero again, as a sweep leaves it; say False where a sweep did not end.
    """
    if not clean:
        column.clear()
    _adjoints.give(column)


def drain_pools() -> None:
    """Give the memory of all waiting arenas back to the system."""
    _arenas.drain()
    _adjoints.drain()


_arenas: Pool[Arena] = Pool()
_adjoints: Pool[Column] = Pool()
