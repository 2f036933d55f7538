"""The array module that runs structural operations: CuPy on the device, or NumPy on the host.

A structural row's rule is a function over NumPy's namespace, and CuPy's arrays answer NumPy's
functions (``__array_function__``, ``__array_ufunc__``): the same rule then runs on the device. A
rule that is not of the table (a custom rule, a checkpoint) is Python code for ndarrays: what it
takes is copied to the host, and what it gives is copied back.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import DeviceArray

if TYPE_CHECKING:
    from .device import Device


class OnHost:
    """Runs rules on ndarrays of float64: operands are copied to the host, results back."""

    def __init__(self, device: Device) -> None:
        self._device = device

    @contextmanager
    def active(self) -> Iterator[None]:
        """Run rules inside of this."""
        with np.errstate(all="ignore"):
            yield

    def take(self, array: DeviceArray) -> Any:
        """Return an array of the device as one that rules take."""
        return array.numpy().astype(np.float64)

    def constant(self, array: Any, real: Any) -> Any:
        """Return an ndarray as an array that rules take."""
        return array

    def give(self, array: Any, real: Any) -> DeviceArray:
        """Return what a rule gave as an array of the device, contiguous."""
        return self._device.put(np.ascontiguousarray(array, real))

    def any(self, array: Any) -> bool:
        """Whether some element is not zero."""
        return bool(np.any(array))


class OnDevice:
    """Runs rules on a module's arrays, where those of the device lie and in its stream.

    Parameters
    ----------
    device : Device
    module : module
        CuPy, or what has the same names: ``ndarray``, ``asarray``, ``ascontiguousarray``, ``any``,
        ``get_default_memory_pool``, and in ``cuda`` ``Device``, ``ExternalStream``,
        ``UnownedMemory`` and ``MemoryPointer``.
    """

    def __init__(self, device: Device, module: Any) -> None:
        self._device, self._module = device, module
        device.pool.others.append(module.get_default_memory_pool().free_all_blocks)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Run rules inside of this."""
        cuda = self._module.cuda
        with self._device.errors(), cuda.Device(self._device.number):
            if not self._device.stream_number:
                yield
                return
            with cuda.ExternalStream(self._device.stream_number):
                yield

    def take(self, array: DeviceArray) -> Any:
        """Return an array of the device as the module's, without a copy."""
        cuda = self._module.cuda
        size = array.size * array.dtype.itemsize
        memory = cuda.UnownedMemory(array.address, size, array, self._device.number)
        pointer = cuda.MemoryPointer(memory, 0)
        return self._module.ndarray(array.shape, array.dtype, pointer)

    def constant(self, array: Any, real: Any) -> Any:
        """Return a copy of an ndarray on the device."""
        return self._module.asarray(array, real)

    def give(self, array: Any, real: Any) -> DeviceArray:
        """Return what a rule gave as an array of the device, contiguous."""
        if isinstance(array, (np.ndarray, np.generic, float, int)):  # zeros for no elements
            return self._device.put(np.ascontiguousarray(array, real))
        shape = array.shape
        found = self._device.view(self._module.ascontiguousarray(array, real))
        return found.reshape(*shape)  # NumPy's gives an array without axes one

    def any(self, array: Any) -> bool:
        """Whether some element is not zero."""
        return bool(self._module.any(array))


def module_for(device: Device) -> OnHost | OnDevice:
    """Return what runs the rows of the table: CuPy where it works, else the host."""
    from ..kernels.cuda import driver

    if driver.SIMULATED:
        return OnHost(device)
    try:
        module = importlib.import_module("cupy")
        module.cuda.runtime.getDeviceCount()
    except ModuleNotFoundError:
        return OnHost(device)
    except Exception as error:  # it is for another CUDA, say, and has its own exceptions for that
        warnings.warn(
            f"structural operations such as matmul run on the host: CuPy does not work ({error})",
            RuntimeWarning,
            stacklevel=2,
        )
        return OnHost(device)
    return OnDevice(device, module)
