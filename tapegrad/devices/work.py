"""Pieces of work for a device: regions with the arrays that they run on, and regions that move.

A plan's regions (`tapegrad.regions.plan`) count cells of a tape. `placed` writes them anew with
places in the memory of a device (`tapegrad.devices.places`), where each segment is a buffer.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..regions.region import BASE, BUFFER, INDEX, OFFSET, STRIDES, Ints, Region, RegionBuilder
from ..regions.written import ADJOINTS, IMPORTS, POOL, TIES, VALUES
from ..window import Shape, Window
from .loaded import Loaded
from .places import Places

if TYPE_CHECKING:
    from .arrays import DeviceArray

Key = tuple[str, int]
"""What a buffer is: "values" or "adjoints" and a segment, "import" or "import's adjoint" and a
number, "constants", and "ties": how many lanes have each extreme."""


class Work:
    """A region, its index arrays by number of their buffer, and what runs it on a device."""

    __slots__ = ("_indices", "_loaded", "region")

    def __init__(self, region: Region, indices: dict[int, Any] | None = None) -> None:
        self.region = region
        self._indices = indices or {}
        self._loaded: Loaded | None = None

    def run(self, arrays: Sequence[DeviceArray]) -> None:
        """Run it on arrays of one device and one dtype, always the same two, by number."""
        if self._loaded is None:
            one = arrays[0]
            self._loaded = Loaded(one.device, self.region, self._indices, one.dtype.name)
        self._loaded.run(arrays)


# -- moving ----------------------------------------------------------------------------------------


class Way(NamedTuple):
    """How elements lie in a flat array: by strides, or where an array of places says."""

    shape: Shape
    strides: Shape
    offset: int = 0
    places: Any = None

    @classmethod
    def of_window(cls, window: Window, offset: int) -> Way:
        """Return the way of a window whose first element is at `offset`."""
        return cls(window.shape, window.strides, offset)

    @classmethod
    def of_places(cls, places: Any) -> Way:
        """Return the way that an array of places goes, flat."""
        return cls((places.size,), (1,), 0, np.ascontiguousarray(places.ravel(), np.uint32))

    @classmethod
    def straight(cls, size: int, offset: int = 0) -> Way:
        """Return the way along consecutive elements."""
        return cls((size,), (1,), offset)


def moving(source: Way, target: Way, add: bool = False) -> Work:
    """Return what copies, or adds, elements of buffer 0 to those of buffer 1, one by one.

    One of the ways may be `Way.straight`, and then stands for any shape of that size.
    """
    shape = target.shape if len(target.shape) > len(source.shape) else source.shape
    build = RegionBuilder(shape)
    indices: dict[int, Any] = {}

    def window(way: Way) -> dict[str, Any]:
        strides = way.strides if way.shape == shape else Window.contiguous(0, shape).strides
        if way.places is None:
            return {"strides": strides, "offset": way.offset}
        number = 2 + len(indices)
        indices[number] = way.places
        return {"strides": strides, "index": number}

    build.output(build.input(0, **window(source)), 1, add=add, **window(target))
    return Work(build.finish(), indices)


@functools.lru_cache(maxsize=256)
def _region_that_fills(size: int, value: float) -> Region:
    build = RegionBuilder((size,))
    build.output(build.constant(value), 0, (1,))
    return build.finish()


@functools.lru_cache(maxsize=256)
def _region_that_adds(size: int, add: bool) -> Region:
    return moving(Way.straight(size), Way.straight(size), add).region


def fill(array: DeviceArray, value: float) -> None:
    """Give all elements of an array a value."""
    if array.size:
        array.device.run(_region_that_fills(array.size, value), [array.reshape(array.size)])


def copy(source: DeviceArray, target: DeviceArray, add: bool = False) -> None:
    """Copy, or add, the elements of one array to those of another of its size."""
    if source.size:
        flat = [array.reshape(array.size) for array in (source, target)]
        source.device.run(_region_that_adds(source.size, add), flat)


class Picked:
    """Some elements of an array on the device: a stretch of it, or those at an array of places."""

    __slots__ = ("_gather", "_size", "way")

    def __init__(self, way: Way) -> None:
        places = way.places
        if places is not None and not (np.diff(places.astype(np.int64)) != 1).any():
            way = Way.straight(places.size, int(places[0]))
        self.way, self._size = way, way.shape[0]
        self._gather = None if way.places is None else moving(way, Way.straight(self._size))

    @property
    def is_view(self) -> bool:
        """Whether they lie side by side, so that `of` copies nothing."""
        return self._gather is None

    def read(self, array: DeviceArray) -> Any:
        """Return the elements as an ndarray."""
        return self.of(array).numpy()

    def of(self, array: DeviceArray) -> DeviceArray:
        """Return the elements on the device: a view where they lie side by side."""
        if self._gather is None:
            return array.after(self.way.offset, self._size)
        found = array.device.empty(self._size, array.dtype)
        self._gather.run([array, found])
        return found


# -- regions of a plan -----------------------------------------------------------------------------


def _reach(region: Region, w: Ints) -> tuple[int, int]:
    """Return the lowest and the highest place that a window's lanes meet."""
    low = high = int(w[OFFSET])
    for n, step in zip(region.shape, w[STRIDES:].tolist(), strict=True):
        reach = (n - 1) * step
        low, high = (low + reach, high) if reach < 0 else (low, high + reach)
    return low, high


def need(region: Region, listed: Any, values: Places, adjoints: Places) -> None:
    """Say what places a plan's region needs; `listed` is the tape's pool of indices."""
    for w in (*region.inputs, *region.outputs):
        if w[BUFFER] not in (VALUES, ADJOINTS):
            continue
        places = values if w[BUFFER] == VALUES else adjoints
        low, high = _reach(region, w)
        if w[INDEX] < 0:
            places.need(low, high)
        else:
            places.need_cells(listed[low : high + 1].astype(np.int64) + w[BASE])


class Placed:
    """A plan's region with the places that a device has for cells.

    Attributes
    ----------
    work : Work
    keys : list of Key
        What its buffers are, by number; those of index arrays are left out at the end.
    written : set of Key
        Those that it writes.
    """

    __slots__ = ("keys", "work", "written")

    def __init__(self, region: Region, listed: Any, values: Places, adjoints: Places) -> None:
        self.keys: list[Key] = []
        inputs, outputs = region.inputs.copy(), region.outputs.copy()
        gathered: list[tuple[Ints, Any]] = []
        for w in (*inputs, *outputs):
            self._place(region, w, listed, values, adjoints, gathered)
        self.written = {self.keys[number] for number in outputs[:, BUFFER].tolist()}
        indices: dict[int, Any] = {}
        known: dict[bytes, int] = {}
        for w, index in gathered:
            text = index.tobytes()
            number = known.setdefault(text, len(self.keys) + len(known))
            indices[number], w[INDEX] = index, number
        self.work = Work(
            Region(region.shape, region.code, region.constants, inputs, outputs, region.rows),
            indices,
        )

    def _place(
        self,
        region: Region,
        w: Ints,
        listed: Any,
        values: Places,
        adjoints: Places,
        gathered: list[tuple[Ints, Any]],
    ) -> None:
        """Rewrite a window in its place."""
        buffer = int(w[BUFFER])
        low, high = _reach(region, w)
        if w[INDEX] >= 0:
            index = listed[low : high + 1].astype(np.int64)
            w[OFFSET] -= low
            if buffer in (VALUES, ADJOINTS):
                places = values if buffer == VALUES else adjoints
                segment, index = places.of_cells(index + w[BASE])
                w[BASE] = 0
            gathered.append((w, index.astype(np.uint32)))
        elif buffer in (VALUES, ADJOINTS):
            segment, place = (values if buffer == VALUES else adjoints).of_run(low, high)
            w[OFFSET] += place - low
        if buffer in (VALUES, ADJOINTS):
            key = ("values" if buffer == VALUES else "adjoints"), segment
        elif buffer in (POOL, TIES):
            key = ("constants" if buffer == POOL else "ties"), 0
        else:
            number, side = divmod(buffer - IMPORTS, 2)
            key = ("import's adjoint" if side else "import"), number
        if key not in self.keys:
            self.keys.append(key)
        w[BUFFER] = self.keys.index(key)
