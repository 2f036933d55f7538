"""Arrays in the memory of a device."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import at_caller
from . import interchange
from .memory import Block

if TYPE_CHECKING:
    from .device import Device


class DeviceArray:
    """An array in the memory of a CUDA device; results come as such.

    CuPy, PyTorch, JAX and Numba take it as it is, through ``__cuda_array_interface__`` or DLPack.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
        float64, float32 or uint32.
    address : int
    device : Device
    """

    __slots__ = ("_owner", "address", "device", "dtype", "shape")

    def __init__(
        self, device: Device, owner: Any, address: int, shape: tuple[int, ...], dtype: Any
    ) -> None:
        self.device, self._owner, self.address = device, owner, address
        self.shape, self.dtype = shape, np.dtype(dtype)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if isinstance(self._owner, Block):
            self._owner.exported = True
        return {
            "data": (self.address, False),
            "shape": self.shape,
            "strides": None,
            "typestr": self.dtype.str,
            "stream": self.device.stream_number or 1,  # 1 is the default stream
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return interchange.device_by_dlpack(self.device.driver)

    def __dlpack__(
        self, *, stream: int | None = None, max_version: Any = None, dl_device: Any = None,
        copy: bool | None = None,
    ) -> Any:  # fmt: skip
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(f"an array on {self.device} is lent where it lies{at_caller()}")
        if stream != -1 and (stream or 1) != (self.device.stream_number or 1):
            self.device.synchronize()
        if isinstance(self._owner, Block):
            self._owner.exported = True
        return interchange.capsule_of(self, self.device.driver)

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype}, device={self.device})"

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError(
            f"an array on {self.device} is not copied to the host silently; call .numpy()"
            f"{at_caller()}"
        )

    def numpy(self) -> np.ndarray[Any, Any]:
        """Return a copy on the host, once what computes it has been done."""
        out = np.empty(self.shape, self.dtype)
        with self.device.errors():
            self.device.driver.download(self.address, out, self.device.stream)
        return out

    def put(self, array: Any) -> None:
        """Copy an ndarray of its size here."""
        with self.device.errors():
            values = np.ascontiguousarray(array, self.dtype)
            self.device.driver.copy_in(self.address, values, self.device.stream)

    def reshape(self, *shape: int) -> DeviceArray:
        """Return the same elements in another shape."""
        if prod(shape) != self.size:
            raise ValueError(f"an array of shape {self.shape} has no shape {shape}{at_caller()}")
        return DeviceArray(self.device, self._owner, self.address, shape, self.dtype)

    def after(self, elements: int, size: int | None = None) -> DeviceArray:
        """Return the elements from one on, flat: all of them, or so many."""
        address = self.address + elements * self.dtype.itemsize
        shape = (self.size - elements if size is None else size,)
        return DeviceArray(self.device, self._owner, address, shape, self.dtype)
