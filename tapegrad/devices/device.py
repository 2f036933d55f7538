"""CUDA devices: finding them, their memory, and regions run there.

The same regions run here as on the CPU. One kernel interprets them all, so that a new program
compiles nothing; a region that has been interpreted for as long as compiling would take gets a
kernel of its own, with the same results bit for bit. Kernels and `numba.cuda` are imported when a
device is first asked for.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np

from ..errors import DeviceLostError, DeviceUnavailable, MixedDevicesError, at_caller
from ..regions.region import BUFFER, INDEX, Region
from . import interchange, modules
from .arrays import DeviceArray
from .launch import Sizes
from .loaded import Loaded
from .memory import Pool


def device(number: int = 0, stream: Any = None) -> Device:
    """Return a CUDA device.

    Parameters
    ----------
    number : int
        Which of them, from 0.
    stream : int or object, optional
        The stream to work in: its number for the CUDA driver, or an object of CuPy, PyTorch or
        Numba that has one. By default the default stream.

    Raises
    ------
    DeviceUnavailable
        If there is none: the message says whether a GPU, the driver or a package is missing.
    """
    if importlib.util.find_spec("numba_cuda") is None and not _simulated():
        raise DeviceUnavailable(
            f'no CUDA device: numba-cuda is not installed; pip install "tapegrad[cuda]"'
            f"{at_caller()}"
        )
    try:
        from ..kernels.cuda import driver
    except ImportError as error:
        raise DeviceUnavailable(
            f"no CUDA device: numba-cuda cannot be imported ({error}){at_caller()}"
        ) from error
    reason = driver.obstacle()
    if reason is not None:
        raise DeviceUnavailable(f"no CUDA device: {reason}{at_caller()}")
    if not 0 <= number < driver.count():
        raise DeviceUnavailable(
            f"no CUDA device {number}: there are {driver.count()}, counted from 0{at_caller()}"
        )
    return _device(number, interchange.stream_number(stream))


@functools.cache
def _device(number: int, stream: int | None) -> Device:
    from ..kernels.cuda import driver

    return Device(driver.Simulator() if driver.SIMULATED else driver.Gpu(number), stream)


def _simulated() -> bool:
    """Whether Numba is told to simulate a device."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


class Device:
    """One CUDA device and a stream on it; `device` makes it.

    Attributes
    ----------
    patience : float
        A region gets a kernel of its own once it has been interpreted for so many times what
        compiling takes: 1 by default, 0 compiles in the first run, `math.inf` never.
    started : set
        Kernels that have been started before, and so compiled.
    pool : Pool
        ``pool.release()`` gives memory back that no array uses.
    """

    def __init__(
        self, driver: Any, stream_number: int | None = None, sizes: Sizes | None = None
    ) -> None:
        self.patience = 1.0
        self.driver = driver
        self.stream_number = stream_number
        self.sizes = sizes or Sizes()
        with driver.active():
            self.stream = driver.stream(stream_number)
        self._loaded: weakref.WeakKeyDictionary[Region, dict[Any, Loaded]]
        self._loaded = weakref.WeakKeyDictionary()
        self.pool = Pool(driver)
        self.started: set[Any] = set()

    @functools.cached_property
    def arrays(self) -> Any:
        """What runs structural operations: see `tapegrad.devices.modules`; it may be replaced."""
        return modules.module_for(self)

    def with_room(self, compute: Callable[[], Any]) -> Any:
        """Return what a function of another library computes, which has memory of its own.

        Where it finds none, what waits here for its next use is given back, and it is called again.
        """
        try:
            return compute()
        except Exception as error:
            if not self.is_out_of_memory(error):
                raise
        self.pool.release()
        return compute()

    def __repr__(self) -> str:
        return f"<cuda:{self.driver.number}, {self.driver.name}>"

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Work on this device; errors of the driver become named ones.

        Raises
        ------
        MemoryError
            If the device's memory does not suffice.
        DeviceLostError
            If the device, or this process's hold on it, is gone.
        """
        try:
            with self.driver.active():
                yield
        except Exception as error:
            from ..kernels.cuda import driver

            if self.is_out_of_memory(error):
                raise MemoryError(f"the memory of {self} does not suffice{at_caller()}") from error
            if self.driver.code_of(error) not in driver.LOST:
                raise
            raise DeviceLostError(
                f"{self} has stopped working, and what was in its memory is lost: {error}. "
                f"Computing on the CPU still works; for the device start a new process{at_caller()}"
            ) from error

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an error says that the device's memory does not suffice."""
        from ..kernels.cuda import driver

        return isinstance(error, MemoryError) or self.driver.code_of(error) == driver.OUT_OF_MEMORY

    # -- arrays ------------------------------------------------------------------------------------

    def empty(self, shape: int | tuple[int, ...], dtype: Any = np.float64) -> DeviceArray:
        """Return an array that holds anything."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        with self.errors():
            block = self.pool.take(prod(shape) * np.dtype(dtype).itemsize)
        return DeviceArray(self, block, block.address, shape, dtype)

    def put(self, array: Any) -> DeviceArray:
        """Return a copy of an array of the host."""
        array = np.asarray(array, order="C")
        found = self.empty(array.shape, array.dtype)
        with self.errors():
            self.driver.copy_in(found.address, array, self.stream)
        return found

    def view(self, array: Any) -> DeviceArray:
        """Return an array of another library, on this device, without a copy.

        Parameters
        ----------
        array : object
            With ``__cuda_array_interface__`` or ``__dlpack__``: CuPy, PyTorch, JAX, Numba.

        Raises
        ------
        TypeError
            If it is not on any device, or of numbers that kernels do not take.
        ValueError
            If its elements do not lie one after another.
        MixedDevicesError
            If it is on another device.
        """
        if isinstance(array, DeviceArray) and array.device is self:
            return array
        with self.errors():
            found = interchange.read(array, self.driver, self.stream_number)
            number = self.driver.device_of(found.address) if prod(found.shape) else self.number
        if number != self.number:
            where = "the host" if number is None else f"cuda:{number}"
            raise MixedDevicesError(f"an array is on {where}, and not on {self}{at_caller()}")
        return DeviceArray(self, array, found.address, found.shape, found.dtype)

    @property
    def number(self) -> int:
        """Which device it is."""
        return int(self.driver.number)

    def synchronize(self) -> None:
        """Wait until all work has been done."""
        with self.errors():
            self.driver.synchronize(self.stream)

    # -- regions -----------------------------------------------------------------------------------

    def run(self, region: Region, buffers: Sequence[Any]) -> None:
        """Run a region on the device, in its stream.

        Parameters
        ----------
        region : Region
        buffers : sequence of array
            By number: arrays on the device, flat, float64 or float32 and all alike; and index
            arrays as they are on the host, uint32.

        Raises
        ------
        MixedDevicesError, TypeError, ValueError, IndexError
            If buffers do not fit, before anything is written.
        MemoryError
            If the device's memory does not suffice for a single lane. Where it does not suffice
            for all lanes at once, they are run in parts, which may round sums differently.
        DeviceLostError
            If the device stops working.
        """
        if region.size:
            self.load(region, buffers).run(buffers)

    def load(self, region: Region, buffers: Sequence[Any]) -> Loaded:
        """Return what runs a region with these index arrays, made once."""
        named = {int(w[INDEX]) for w in (*region.inputs, *region.outputs) if w[INDEX] >= 0}
        indices = {}
        for number in sorted(named):
            index = buffers[number]
            if not isinstance(index, np.ndarray) or index.dtype != np.uint32 or index.ndim != 1:
                raise TypeError(
                    f"buffer {number} is an index array, and must be a flat array of uint32 on "
                    f"the host, not {type(index).__name__}"
                )
            indices[number] = index
        real = self._real(region, buffers)
        digests = tuple(hashlib.sha256(index.data).digest() for index in indices.values())
        kept = self._loaded.setdefault(region, {})
        key = real, digests
        if key not in kept:
            kept[key] = Loaded(self, region, indices, real)
        return kept[key]

    def _real(self, region: Region, buffers: Sequence[Any]) -> str:
        """Return the type of the numbers, one for all buffers."""
        numbers = {int(w[BUFFER]) for w in (*region.inputs, *region.outputs)}
        dtypes = {str(buffers[number].dtype).rpartition(".")[2] for number in numbers}
        if len(dtypes) > 1 or not dtypes <= {"float64", "float32"}:
            raise TypeError(
                f"a region runs on buffers of float64 or of float32, all alike, not on "
                f"{' and '.join(sorted(dtypes))}{at_caller()}"
            )
        return dtypes.pop() if dtypes else "float64"
