"""CUDA devices: arrays on them, and regions run there.

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
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..errors import DeviceLostError, DeviceUnavailable, MixedDevicesError, at_caller
from ..regions.region import ADD, BUFFER, HOW, INDEX, OFFSET, SET, STRIDES, Region
from . import interchange
from .launch import Launch, Pass, Sizes
from .memory import Block, Pool

LONGEST = 500
"""Instructions of the longest region that gets a kernel of its own: longer ones spill registers."""

_SECONDS = 0.1, 0.004
"""What compiling a kernel takes: a constant, and per instruction. It need not be exact."""

_compiling = threading.Lock()


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


class DeviceArray:
    """An array in the memory of a CUDA device; results come as such.

    CuPy, PyTorch, JAX and Numba take it as it is, through ``__cuda_array_interface__``.

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

    def reshape(self, *shape: int) -> DeviceArray:
        """Return the same elements in another shape."""
        if prod(shape) != self.size:
            raise ValueError(f"an array of shape {self.shape} has no shape {shape}{at_caller()}")
        return DeviceArray(self.device, self._owner, self.address, shape, self.dtype)

    def after(self, elements: int) -> DeviceArray:
        """Return the elements from one on, flat."""
        address = self.address + elements * self.dtype.itemsize
        return DeviceArray(self.device, self._owner, address, (self.size - elements,), self.dtype)


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

            code = self.driver.code_of(error)
            if code == driver.OUT_OF_MEMORY:
                raise MemoryError(f"the memory of {self} does not suffice") from error
            if code not in driver.LOST:
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
        array = np.ascontiguousarray(array)
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


class Loaded:
    """A region on a device, ready to run.

    Attributes
    ----------
    seconds : float
        For how long it has been interpreted.
    straight : object or None
        Its own kernel, once it has earned it.
    """

    def __init__(
        self,
        device: Device,
        region: Region,
        indices: dict[int, Any],
        real: str,
        continued: bool = False,
    ) -> None:
        self.device, self.region, self.real = device, region, real
        self._indices, self._continued = indices, continued
        self.itemsize = np.dtype(real).itemsize
        self.launch = Launch(region, indices, self.itemsize, device.sizes, continued)
        self.seconds = 0.0
        self.straight: Any = None
        self._clocks: list[Any] = []
        self._fixed: list[Any] | None = None
        self._words: dict[Any, tuple[Any, Any]] = {}
        self._lock = threading.Lock()

    def run(self, buffers: Sequence[Any]) -> None:
        """Run the region."""
        views = self._checked(buffers)
        with self._lock, self.device.errors():
            try:
                ready = self._prepare(views)
            except Exception as error:
                if not self.device.is_out_of_memory(error):
                    raise
                ready = None
            if ready is not None:
                self._start(*ready)
                return
        if self.region.size == 1:
            raise MemoryError(f"the memory of {self.device} does not suffice for a single lane")
        self._run_in_halves(buffers)

    def _checked(self, buffers: Sequence[Any]) -> dict[int, DeviceArray]:
        views: dict[int, DeviceArray] = {}
        for number, low, high in self.launch.limits:
            if number not in views:
                views[number] = self.device.view(buffers[number])
            if low < 0 or high >= views[number].size:
                raise IndexError(
                    f"buffer {number} has {views[number].size} elements, and the region reaches "
                    f"from {low} to {high}"
                )
        return views

    # -- one launch --------------------------------------------------------------------------------

    def _prepare(self, views: dict[int, DeviceArray]) -> tuple[_Memory, Block | None]:
        """Ask for all the memory that a run needs, so that none is missing half way through it."""
        device, launch = self.device, self.launch
        if self._fixed is None:
            code = np.append(launch.region.code.ravel(), np.zeros(1, np.uint16))
            constants = np.append(launch.region.constants, 0.0).astype(self.real)
            parts = code, constants, launch.index
            self._fixed = [device.driver.upload(part, device.stream) for part in parts]
        extras = [device.pool.take(size * self.itemsize) for size in launch.extras]
        rows = device.pool.take(launch.scratch * self.itemsize) if launch.scratch else None
        memory = self._memory(views, extras)
        for key, words in [("region", launch.words)] + [
            (one, one.words) for one in (*launch.before, *launch.after)
        ]:
            self._upload(key, words, memory.places)
        return memory, rows

    def _memory(self, views: dict[int, DeviceArray], extras: list[Block]) -> _Memory:
        """Return all buffers as one stretch of memory, and the place of each."""
        addresses = {number: view.address for number, view in views.items()}
        ends = [view.address + view.size * self.itemsize for view in views.values()]
        for i, (block, size) in enumerate(zip(extras, self.launch.extras, strict=True)):
            addresses[self.region.buffers + i] = block.address
            ends.append(block.address + size * self.itemsize)
        origin = min(addresses.values())
        if any((address - origin) % self.itemsize for address in addresses.values()):
            raise ValueError(f"an array is not aligned to the size of its numbers{at_caller()}")
        places = {n: (address - origin) // self.itemsize for n, address in addresses.items()}
        return _Memory(origin, (max(ends) - origin) // self.itemsize, places, extras)

    def _start(self, memory: _Memory, rows: Block | None) -> None:
        """Start the region's kernel, and the passes before and after it."""
        assert self._fixed is not None
        index = "uint32", self._fixed[2].address, self.launch.index.size
        for one in self.launch.before:
            self._pass(one, memory, index)
        self._kernel(memory, index, rows)
        for one in self.launch.after:
            self._pass(one, memory, index)
        self._earn()

    def _upload(self, key: Any, words: Any, places: dict[int, int]) -> tuple[str, int, int]:
        """Return words on the device, those of the last run if no buffer has moved."""
        relative = tuple(places[buffer] for _, buffer in words.relative)
        found = self._words.get(key)
        if found is None or found[0] != relative:
            memory = self.device.driver.upload(words.at(places), self.device.stream)
            found = self._words[key] = relative, memory
        return "int64", found[1].address, len(words.words)

    def _kernel(self, memory: _Memory, index: Any, rows: Block | None) -> None:
        from ..kernels.cuda import driver

        device, launch = self.device, self.launch
        words = self._upload("region", launch.words, memory.places)
        block, threads = device.sizes.block, launch.threads
        arguments = [(self.real, memory.origin, memory.size), words]
        if self.straight is not None:
            if not launch.sums:
                threads = -(-min(device.sizes.threads, self.region.size) // block) * block
            device.driver.launch(
                self.straight, threads // block, block, 0, device.stream, [*arguments, index]
            )
            return
        assert self._fixed is not None
        code, constants, _ = self._fixed
        arguments += [
            ("uint16", code.address, launch.region.code.size + 1),
            (self.real, constants.address, len(launch.region.constants) + 1),
            index,
        ]
        kernels = driver.kernels(self.real)
        kernel = kernels.interpret_in_shared
        if rows is not None:
            kernel = kernels.interpret_in_global
            arguments.append((self.real, rows.address, launch.scratch))
        # The first launch of a kernel compiles it, which is not to be counted.
        clock = device.driver.clock(device.stream) if kernel in device.started else None
        device.driver.launch(
            kernel, threads // block, block, launch.shared, device.stream, arguments
        )
        device.started.add(kernel)
        if clock is not None:
            clock.stop()
            self._clocks.append(clock)

    def _pass(self, one: Pass, memory: _Memory, index: Any) -> None:
        from ..kernels.cuda import driver

        sizes = self.device.sizes
        words = self._upload(one, one.words, memory.places)
        enough = min(-(-one.count // sizes.block), sizes.threads // sizes.block)
        blocks = one.blocks or max(1, enough)
        shared = sizes.block * self.itemsize if one.blocks else 0
        kernel = driver.pass_kernel(one.kernel, self.real)
        arguments = [(self.real, memory.origin, memory.size), words, index]
        self.device.driver.launch(
            kernel, blocks, sizes.block, shared, self.device.stream, arguments
        )

    # -- a kernel of its own -----------------------------------------------------------------------

    def _earn(self) -> None:
        """Compile the region's own kernel once interpreting has taken as long as that takes."""
        if self.straight is not None:
            return
        waiting = []
        for clock in self._clocks:
            passed = clock.seconds()
            if passed is None:
                waiting.append(clock)
            else:
                self.seconds += passed
        self._clocks = waiting
        constant, each = _SECONDS
        if self.seconds >= self.device.patience * (constant + each * len(self.region.code)):
            self.specialise()

    def specialise(self) -> None:
        """Give the region its own kernel, if it is not too long."""
        if len(self.region.code) <= LONGEST:
            with _compiling:
                self.straight = _straight(self.launch.program(self.real))
            self._clocks.clear()

    # -- less memory -------------------------------------------------------------------------------

    def _run_in_halves(self, buffers: Sequence[Any]) -> None:
        """Run the lanes in two parts, each of which may be divided further."""
        region = self.region
        views = self._checked(buffers)
        sizes = self.device.sizes
        cleared = Launch(region, self._indices, self.itemsize, sizes, self._continued)
        cleared.before, cleared.after = cleared.clear_all(), []
        axis = int(np.argmax(region.shape))
        middle = region.shape[axis] // 2
        with self.device.errors(), self._lock:
            self._clear(cleared, views)
        for low, high in ((0, middle), (middle, region.shape[axis])):
            part = cut(region, axis, low, high)
            Loaded(self.device, part, self._indices, self.real, continued=True).run(buffers)

    def _clear(self, launch: Launch, views: dict[int, DeviceArray]) -> None:
        uploaded = self.device.driver.upload(launch.index, self.device.stream)
        memory = self._memory(views, [self.device.pool.take(0) for _ in self.launch.extras])
        for one in launch.before:
            self._pass(one, memory, ("uint32", uploaded.address, launch.index.size))


class _Memory(NamedTuple):
    """All buffers of a run as one stretch of memory: where it starts, its numbers, their places."""

    origin: int
    size: int
    places: dict[int, int]
    extras: list[Block]  # which live as long as the run


def cut(region: Region, axis: int, low: int, high: int) -> Region:
    """Return the part of a region between two positions of an axis; it adds and never replaces.

    Windows of extremes stay what they are: the part is to be run as one that is continued.
    """
    shape = (*region.shape[:axis], high - low, *region.shape[axis + 1 :])
    inputs, outputs = region.inputs.copy(), region.outputs.copy()
    for windows in (inputs, outputs):
        windows[:, OFFSET] += low * windows[:, STRIDES + axis]
    outputs[outputs[:, HOW] == SET, HOW] = ADD
    return Region(shape, region.code, region.constants, inputs, outputs, region.rows)


@functools.lru_cache(maxsize=256)
def _straight(program: Any) -> Any:
    from ..kernels.cuda import driver

    return driver.compile_straight(program)


def in_parts(n: int, run: Callable[[int, int], None], most: int | None = None) -> None:
    """Call ``run(start, stop)`` over a batch, in halves where a device's memory does not suffice.

    Parameters
    ----------
    n : int
        Size of the batch.
    run : callable
        It may be called again for a part of what it ran out of memory for.
    most : int, optional
        Samples of a part, at most.

    Raises
    ------
    MemoryError
        If memory does not suffice for one sample.

    Examples
    --------
    >>> def run(start, stop):
    ...     if stop - start > 3:
    ...         raise MemoryError
    ...     print(start, stop)
    >>> in_parts(8, run)
    0 2
    2 4
    4 6
    6 8
    """
    size, start = min(n, most or n), 0
    while start < n:
        try:
            run(start, min(start + size, n))
            start += size
        except MemoryError:
            if size == 1:
                raise
            size = -(-size // 2)
