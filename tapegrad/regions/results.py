"""Arrays for results, used again once nobody holds them: fresh memory costs more than arithmetic.

A result is a view of an array that stays here. While anybody holds the result, or a view of it, the
array's reference count says so; afterwards it serves for the next result of that size.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ..storage import Floats

SMALL = 1 << 12  # numbers, below which memory comes cheaper from NumPy
KEEP_BYTES = 256 << 20  # what waits for its next use, at most
KEEP_COUNT = 32
_ALIGNED = 8  # numbers: 64 bytes, which vectors like

_owners: list[Any] = []


def take(n: int, beside: np.ndarray[Any, Any] | None = None) -> Floats:
    """Return a flat array of `n` numbers, of undefined contents, that nobody else has.

    It starts where a line of the cache does, or as far from there as the array `beside`, which is
    read where it is written: then vectors of both are aligned in the same lanes.

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
    size = n + _ALIGNED
    shift = 0 if beside is None else beside.__array_interface__["data"][0] // 8 % _ALIGNED
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
    start = (shift - owner.ctypes.data // 8) % _ALIGNED
    result: Floats = owner[start : start + owner.size - _ALIGNED]
    _owners.append(owner)
    return result
