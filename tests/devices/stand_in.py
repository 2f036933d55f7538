"""A stand-in for CuPy on the simulator's device: its arrays answer NumPy's functions, and no more.

As CuPy does, they refuse to become ndarrays, and to be computed with ndarrays; they leave alone
what CuPy has no function for.
"""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np

FUNCTIONS = {
    *(np.sum, np.prod, np.max, np.min, np.cumsum, np.cumprod, np.concatenate, np.where, np.reshape),
    *(
        np.transpose,
        np.broadcast_to,
        np.moveaxis,
        np.flip,
        np.swapaxes,
        np.ones_like,
        np.zeros_like,
    ),
}
"""What the rules of structural operations may call."""

calls: list[str] = []
"""Names of the functions that were called."""


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):  # named as CuPy's
    def __init__(self, shape: Any, dtype: Any, memptr: Any = None) -> None:
        kind = np.ctypeslib.as_ctypes_type(np.dtype(dtype))
        size = int(np.prod(shape, dtype=int))
        elements = (kind * max(size, 1)).from_address(memptr.address)
        self.array = np.ctypeslib.as_array(elements)[:size].reshape(shape)
        self.owner = memptr

    @classmethod
    def of(cls, array: Any) -> Any:
        found = cls.__new__(cls)
        found.array, found.owner = np.asarray(array), None
        return found

    shape = property(lambda self: self.array.shape)
    ndim = property(lambda self: self.array.ndim)
    size = property(lambda self: self.array.size)
    dtype = property(lambda self: self.array.dtype)
    T = property(lambda self: ndarray.of(self.array.T))

    def __len__(self) -> int:
        return len(self.array)

    def __bool__(self) -> bool:
        return bool(self.array)

    def __getitem__(self, key: Any) -> Any:
        return ndarray.of(self.array[key])

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "data": (self.array.ctypes.data, False),
            "shape": self.array.shape,
            "strides": self.array.strides,
            "typestr": self.array.dtype.str,
            "version": 3,
            "stream": 1,
        }

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__":
            return NotImplemented
        calls.append(ufunc.__name__)
        return ndarray.of(ufunc(*plain(inputs), **kwargs))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function not in FUNCTIONS:
            return NotImplemented
        calls.append(function.__name__)
        return ndarray.of(function(*plain(args), **plain(kwargs)))


def plain(x: Any) -> Any:
    if isinstance(x, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(x, (list, tuple)):
        return type(x)([plain(item) for item in x])
    if isinstance(x, dict):
        return {key: plain(item) for key, item in x.items()}
    return x.array if isinstance(x, ndarray) else x


def asarray(x: Any, dtype: Any = None) -> Any:
    return ndarray.of(np.array(x, dtype))


def ascontiguousarray(x: Any, dtype: Any = None) -> Any:
    return ndarray.of(np.ascontiguousarray(x.array, dtype))


def any(x: Any) -> Any:  # named as CuPy's
    return ndarray.of(x.array.any())


released: list[int] = []
"""As often as the memory pool was emptied."""


def get_default_memory_pool() -> Any:
    return SimpleNamespace(free_all_blocks=lambda: released.append(1))


class Memory:
    def __init__(self, address: int, size: int, owner: Any, device_id: int = -1) -> None:
        self.address, self.owner = address, owner


cuda = SimpleNamespace(
    UnownedMemory=Memory,
    MemoryPointer=lambda memory, offset: memory,
    Device=lambda number: nullcontext(),
    ExternalStream=lambda number: nullcontext(),
)
assert ctypes.sizeof(ctypes.c_void_p) == 8
