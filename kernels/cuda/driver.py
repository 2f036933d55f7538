"""What an executor asks of a device, a GPU or the simulator: memory, copies, launches, time."""

from __future__ import annotations

import contextlib
import ctypes
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tapegrad.kernels.cuda import jit, passes
from tapegrad.kernels.cuda.jit import SIMULATED, Address, cuda

OUT_OF_MEMORY = 2
"""The number that the driver has for it."""

LOST = frozenset({3, 4, 46, 100, 201, 214, 220, 700, 702, 709, *range(714, 720), 999})
"""Numbers of errors after which a device, or this process's context on it, cannot go on."""


_OF_CUPY = ("CUDARuntimeError", "CUDADriverError")


def obstacle() -> str | None:
    """Return why there is no device, or None where there is one."""
    if SIMULATED:
        return None
    if cuda.is_available():
        return None if count() else "the CUDA driver finds no GPU"
    error = " ".join(str(cuda.cuda_error() or "").split())
    if not error:  # the driver works
        return 'numba-cuda finds no NVVM to compile kernels with; pip install "tapegrad[cuda]"'
    found_none = "NO_DEVICE" in error or error.endswith("(100)")
    return f"the CUDA driver finds no GPU: {error}" if found_none else error


def count() -> int:
    """Return the number of devices."""
    return 1 if SIMULATED else len(cuda.list_devices())


class Memory:
    """A stretch of device memory, freed with the object.

    Attributes
    ----------
    address : int
    """

    __slots__ = ("address", "owner")

    def __init__(self, address: int, owner: Any) -> None:
        self.address, self.owner = address, owner


class Gpu:
    """A GPU, by way of `numba.cuda`."""

    def __init__(self, number: int) -> None:
        self.number = number
        with self.active():
            device = cuda.get_current_device()
            name = device.name
            self.name = name.decode() if isinstance(name, bytes) else str(name)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make it the device that calls go to."""
        with cuda.gpus[self.number]:
            yield

    @staticmethod
    def code_of(error: BaseException) -> int | None:
        """Return the number that the driver gives an error; None where it is not the driver's."""
        from numba.cuda.cudadrv.driver import CudaAPIError

        if isinstance(error, CudaAPIError):
            return int(error.code)
        # CuPy passes on errors of the runtime, which has the driver's numbers.
        return int(error.status) if type(error).__name__ in _OF_CUPY else None  # type: ignore[attr-defined]

    def device_of(self, address: int) -> int | None:
        """Return the number of the device that an address belongs to, or None."""
        from cuda.bindings import driver

        attribute = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        error, number = driver.cuPointerGetAttribute(attribute, address)
        return int(number) if int(error) == 0 else None

    def stream(self, handle: int | None) -> Any:
        """Return a stream, given the number that the driver has for it."""
        return cuda.default_stream() if not handle else cuda.external_stream(handle)

    def wait_for(self, handle: int | None) -> None:
        """Wait for what another stream is doing."""
        self.stream(handle).synchronize()

    def allocate(self, size: int, dtype: Any) -> Memory:
        """Return memory for numbers; what it holds is unknown."""
        array = cuda.device_array(max(size, 1), dtype)
        return Memory(array.__cuda_array_interface__["data"][0], array)

    def upload(self, array: Any, stream: Any) -> Memory:
        """Return a copy of an array of the host."""
        found = cuda.to_device(np.ascontiguousarray(array), stream)
        stream.synchronize()  # the array may change once this returns
        return Memory(found.__cuda_array_interface__["data"][0], found)

    def download(self, address: int, out: Any, stream: Any) -> None:
        """Copy memory into a contiguous array of the host."""
        if out.size:
            self._view(address, out.size, out.dtype).copy_to_host(out.reshape(-1), stream)
        stream.synchronize()

    def copy_in(self, address: int, array: Any, stream: Any) -> None:
        """Copy a contiguous array of the host to an address."""
        if array.size:
            self._view(address, array.size, array.dtype).copy_to_device(array.reshape(-1), stream)
        stream.synchronize()

    @staticmethod
    def _view(address: int, size: int, dtype: Any) -> Any:
        interface = {
            "data": (address, False),
            "shape": (size,),
            "typestr": np.dtype(dtype).str,
            "strides": None,
            "version": 3,
        }
        return cuda.as_cuda_array(_Interface(interface), sync=False)

    def launch(
        self,
        kernel: Any,
        blocks: int,
        block: int,
        shared: int,
        stream: Any,
        arguments: Sequence[tuple[str, int, int]],
    ) -> None:
        """Start a kernel; arguments are (dtype, address, elements)."""
        from numba.cuda.core.errors import NumbaPerformanceWarning

        pointers = [Address(dtype, address) for dtype, address, _ in arguments]
        with warnings.catch_warnings():  # that a small region leaves a GPU idle is no surprise
            warnings.simplefilter("ignore", NumbaPerformanceWarning)
            kernel[blocks, block, stream, shared](*pointers)

    def clock(self, stream: Any) -> Clock:
        """Return a clock that starts now, in the order of the stream."""
        return Clock(stream)

    def synchronize(self, stream: Any) -> None:
        """Wait until a stream has done its work."""
        stream.synchronize()


class Clock:
    """Measures what a stream does between two points, without waiting for it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._start, self._stop = cuda.event(), cuda.event()
        self._start.record(stream)

    def stop(self) -> None:
        """Mark the second point."""
        self._stop.record(self._stream)

    def seconds(self) -> float | None:
        """Return the time between them, None while it is not over."""
        if not self._stop.query():
            return None
        return float(cuda.event_elapsed_time(self._start, self._stop)) * 1e-3


class Simulator:
    """The host in the place of a GPU: arrays of NumPy, kernels run by Python."""

    number = 0
    name = "CUDA simulator"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Do nothing."""
        yield

    @staticmethod
    def code_of(error: BaseException) -> int | None:
        """Return that it is no driver's error."""
        return None

    def device_of(self, address: int) -> int | None:
        """Return the only device."""
        return 0

    def stream(self, handle: int | None) -> Any:
        """Return nothing: there are no streams."""
        return None

    def wait_for(self, handle: int | None) -> None:
        """Return at once: all is done in order."""

    def allocate(self, size: int, dtype: Any) -> Memory:
        """Return memory for numbers."""
        array = np.full(max(size, 1), -7.7 if np.dtype(dtype).kind == "f" else 7, dtype)
        return Memory(array.ctypes.data, array)

    def upload(self, array: Any, stream: Any) -> Memory:
        """Return a copy of an array."""
        array = np.array(array)
        return Memory(array.ctypes.data, array)

    def download(self, address: int, out: Any, stream: Any) -> None:
        """Copy memory into an array."""
        ctypes.memmove(out.ctypes.data, address, out.nbytes)

    def copy_in(self, address: int, array: Any, stream: Any) -> None:
        """Copy an array to an address."""
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def launch(
        self,
        kernel: Any,
        blocks: int,
        block: int,
        shared: int,
        stream: Any,
        arguments: Sequence[tuple[str, int, int]],
    ) -> None:
        """Run a kernel."""
        arrays = [_at(*argument) for argument in arguments]
        kernel[blocks, block, 0, shared](*arrays)

    def clock(self, stream: Any) -> _HostClock:
        """Return a clock that starts now."""
        return _HostClock()

    def synchronize(self, stream: Any) -> None:
        """Return at once."""


class _HostClock:
    def __init__(self) -> None:
        self._start = self._stop = time.perf_counter()

    def stop(self) -> None:
        self._stop = time.perf_counter()

    def seconds(self) -> float | None:
        return self._stop - self._start


class _Interface:
    def __init__(self, interface: dict[str, Any]) -> None:
        self.__cuda_array_interface__ = interface


def _at(dtype: str, address: int, elements: int) -> Any:
    kind = np.ctypeslib.as_ctypes_type(np.dtype(dtype))
    return _Elements(np.ctypeslib.as_array((kind * max(elements, 1)).from_address(address)))


class _Elements:
    """An array that the simulator hands to a kernel as it is, instead of a copy."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __getitem__(self, place: Any) -> Any:
        return self._array[place]

    def __setitem__(self, place: Any, value: Any) -> None:
        self._array[place] = value


def kernels(real: str) -> Any:
    """Return the module of a region's kernels on numbers of a type."""
    from tapegrad.kernels.cuda import float32, float64

    return {"float32": float32, "float64": float64}[real]


def pass_kernel(name: str, real: str) -> Any:
    """Return a kernel of `tapegrad.kernels.cuda.passes`."""
    found = getattr(passes, name)
    return found[real] if isinstance(found, dict) else found


def compile_straight(program: Any) -> Any:
    """Return the kernel of one region's program, a `tapegrad.kernels.emit.cuda.Straight`."""
    from tapegrad.kernels.emit.cuda import emit_straight

    names = dict(vars(kernels(program.real)))
    exec(compile(emit_straight(program), "<a region>", "exec"), names)
    return jit.straight(names["straight"])
