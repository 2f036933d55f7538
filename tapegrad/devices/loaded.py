"""Regions on a device: interpreted, or with a kernel of their own, in parts where memory lacks."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import at_caller
from ..regions.region import ADD, HOW, OFFSET, SET, STRIDES, Region
from .arrays import DeviceArray
from .launch import Launch, Pass
from .memory import Block

if TYPE_CHECKING:
    from .device import Device

LONGEST = 500
"""Instructions of the longest region that gets a kernel of its own: longer ones spill registers."""

_SECONDS = 0.1, 0.004
"""What compiling a kernel takes: a constant, and per instruction. It need not be exact."""

_PLACINGS = 64
"""Words that are kept on the device, for other places of buffers: copying some there waits."""

_compiling = threading.Lock()


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
        self._words: dict[Any, Any] = {}
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
        if len(self._words) > _PLACINGS:
            self._words.clear()
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
        """Return words on the device, which has those for some of the last places of buffers."""
        relative = key, *[places[buffer] for _, buffer in words.relative]
        found = self._words.get(relative)
        if found is None:
            found = self.device.driver.upload(words.at(places), self.device.stream)
            self._words[relative] = found
        return "int64", found.address, len(words.words)

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
