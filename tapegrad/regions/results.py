"""Arrays for results, used again once nobody holds them: fresh memory costs more than arithmetic.

A result is a view of an array that stays here. While anybody holds the result, or a view of it, the
array's reference count says so; afterwards it serves for the next result of that size.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ..storage import Floats, address

SMALL = 1 << 12  # numbers, below which memory comes cheaper from NumPy
KEEP_BYTES = 256 << 20  # what waits for its next use, at most
KEEP_COUNT = 32
_PAGE = 512  # numbers
_SHIFT = _PAGE // 2 + 8
"""Numbers into a page at which a result starts by itself. Large arrays of NumPy start with a page,
all but 16 bytes. Were results to start there, too, each load of an argument would look to the
processor like one of what has just been stored, whose addresses agree in their last 12 bits, and
wait for it."""

_owners: list[Any] = []


def take(n: int, beside: np.ndarray[Any, Any] | None = None) -> Floats:
    """Return a flat array of `n` numbers, of undefined contents, that nobody else has.

    It starts where a line of the cache does, or as far from there as the array `beside`, which is
    read where it is written: then vectors of both are aligned in the same lanes. And it starts half
    a page away from that array, or from where large arrays of NumPy start.

    Examples
    --------
    >>> first = take(10_000)
    >>> address = first.ctypes.data
    >>> del first
    >>> take(10_000).ctypes.data == address
    True
    """
    if n < SMALL:
        return np.empty(n)
    size = n + _PAGE
    shift = _SHIFT if beside is None else address(beside) // 8 + _PAGE // 2
    for _ in range(len(_owners)):
        try:
            owner = _owners.pop(0)  # from here on it is ours, or of whoever holds a view
        except IndexError:
            break
        if owner.size == size and sys.getrefcount(owner) == 2:
            return _lend(owner, shift)
        _owners.append(owner)
    waiting = sum(owner.nbytes for owner in list(_owners))
    while _owners and (waiting > KEEP_BYTES or len(_owners) >= KEEP_COUNT):
        try:
            waiting -= _owners.pop(0).nbytes
        except IndexError:
            break
    return _lend(np.empty(size), shift)


def _lend(owner: Any, shift: int) -> Floats:
    start = (shift - address(owner) // 8) % _PAGE
    result: Floats = owner[start : start + owner.size - _PAGE]
    _owners.append(owner)
    return result
