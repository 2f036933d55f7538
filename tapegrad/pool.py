"""A growing array of constants, descriptors or indices that a tape's operands refer to."""

from __future__ import annotations

from typing import Any

import numpy as np


class Pool:
    """An array that grows at its end; appending is cheap, `array` packs what has been appended."""

    __slots__ = ("_array", "_pending", "_size")

    def __init__(self, dtype: Any) -> None:
        self._array: np.ndarray[Any, Any] = np.empty(0, dtype)
        self._size = 0
        self._pending: list[Any] = []

    def __len__(self) -> int:
        return self._size + len(self._pending)

    def append(self, value: float) -> int:
        """Append one number and return its index."""
        index = self._size + len(self._pending)
        self._pending.append(value)
        return index

    def extend(self, values: Any) -> int:
        """Append numbers (a list or a flat ndarray) and return the index of the first."""
        if isinstance(values, np.ndarray):
            index = len(self)
            self._pack(values)
            return index
        index = self._size + len(self._pending)
        self._pending += values
        return index

    def array(self) -> np.ndarray[Any, Any]:
        """Return all numbers, as a flat array that stays valid until the pool grows."""
        if self._pending:
            self._pack(self._array[:0])
        return self._array[: self._size]

    def _pack(self, more: np.ndarray[Any, Any]) -> None:
        middle = self._size + len(self._pending)
        size = middle + more.size
        if size > self._array.size:
            grown = np.empty(max(size, 2 * self._array.size, 16), self._array.dtype)
            grown[: self._size] = self._array[: self._size]
            self._array = grown
        self._array[self._size : middle] = self._pending
        self._array[middle:size] = more
        self._size = size
        self._pending.clear()
