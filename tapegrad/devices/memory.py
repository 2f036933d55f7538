"""Memory of a device that is handed out again: asking the driver for it waits for the device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np


class Block:
    """A stretch of device memory. It goes back to its pool with the last array that lies in it.

    Attributes
    ----------
    address : int
    exported : bool
        Whether another library has been told the address: what that still computes there in a
        stream of its own is unknown, so the memory goes back to the driver, which waits.
    """

    __slots__ = ("_memory", "_pool", "_size", "address", "exported")

    def __init__(self, pool: Pool, memory: Any, size: int) -> None:
        self._pool, self._memory, self._size = pool, memory, size
        self.address: int = memory.address
        self.exported = False

    def __del__(self) -> None:
        if not self.exported:
            self._pool.free[self._size].append(self._memory)


class Pool:
    """Memory for the arrays of one stream: work there is done in order, so reuse needs no wait.

    Attributes
    ----------
    free : dict of int to list
        Memory that nothing uses, by size.
    others : list of callable
        What else can give memory back to the driver, where there is none left.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self.others: list[Callable[[], None]] = []
        self.free: defaultdict[int, list[Any]] = defaultdict(list)

    def take(self, size: int) -> Block:
        """Return memory of so many bytes; what it holds is unknown."""
        size = max(-(-size // 8), 1) * 8
        try:
            return Block(self, self.free[size].pop(), size)
        except IndexError:
            pass
        try:
            memory = self._ask(size)
        except Exception as error:
            from ..kernels.cuda import driver

            code = self._driver.code_of(error)
            if code != driver.OUT_OF_MEMORY and not isinstance(error, MemoryError):
                raise
            self.release()
            for other in self.others:
                other()
            memory = self._ask(size)
        return Block(self, memory, size)

    def _ask(self, size: int) -> Any:
        return self._driver.allocate(size // 8, np.dtype(np.float64))

    def release(self) -> None:
        """Give memory that nothing uses back to the driver."""
        self.free.clear()
