"""From a region to what CUDA kernels are handed: words, and the passes before and after.

Lanes run in any order and at the same time, so a region's kernel writes an element only where no
other lane meets it. What else reaches an element is left aside, by lane or as a sum a thread, and
added up by passes afterwards, in one order that depends on the region alone: results are the same
bits on every run and every device. Which way an out-window goes is decided here from strides and
index arrays, without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np

from ..kernels.cuda import words as W
from ..regions.region import (
    ADD,
    BASE,
    BUFFER,
    HOW,
    INDEX,
    MAXIMUM,
    MINIMUM,
    OFFSET,
    ROW,
    STRIDES,
    Ints,
    Region,
    lanes_of,
)
from ..window import Shape, coalesce

Indices = np.ndarray[Any, np.dtype[np.uint32]]

LONG = 256
"""Numbers from which one element is added up by blocks rather than by a thread."""

_PART = 4096  # numbers that a block adds up, where an element is cut into parts
_PARTS = 256


@dataclass(frozen=True)
class Sizes:
    """How many threads run, and what memory they keep rows in.

    Constants rather than properties of a device: threads decide the order of sums.

    Attributes
    ----------
    block : int
        Threads of a block, a power of two.
    threads : int
        How many there are at most; they go on to further lanes.
    shared : int
        Bytes of shared memory that the rows of a block may take; beyond that they are in global
        memory.
    resident : int
        Bytes of global memory that rows may take: about the cache of a device, so that they stay
        there...
    least : int
        ... but for as many threads as keep a device at work, whatever they need.
    """

    block: int = 64
    threads: int = 1 << 17
    shared: int = 30 << 10
    resident: int = 32 << 20
    least: int = 1 << 13


class Words:
    """Words with places that are counted from buffers, whose addresses only a launch knows.

    Attributes
    ----------
    words : ndarray of int64
    relative : list of (int, int)
        Position of a word, and number of the buffer that it counts from.
    """

    __slots__ = ("relative", "words")

    def __init__(self, words: Sequence[int], relative: list[tuple[int, int]]) -> None:
        self.words = np.array(words, np.int64)
        self.relative = relative

    def at(self, places: Sequence[int]) -> Ints:
        """Return the words, given the place of each buffer."""
        words = self.words.copy()
        for position, buffer in self.relative:
            words[position] += places[buffer]
        return words


@dataclass(frozen=True, eq=False)
class Pass:
    """A launch beside that of the region's kernel.

    Attributes
    ----------
    kernel : str
        Its name in `tapegrad.kernels.cuda.passes`.
    blocks : int
        Blocks that it needs; 0 for a thread an element.
    count : int
        Elements.
    words : Words
    """

    kernel: str
    blocks: int
    count: int
    words: Words


class Launch:
    """A region as CUDA kernels run it.

    Parameters
    ----------
    region : Region
    indices : dict of int to ndarray of uint32
        The index arrays, by number of their buffer.
    itemsize : int
        Bytes of a number.
    sizes : Sizes
    continued : bool
        Whether extremes are those of the lanes and of what their elements hold.

    Attributes
    ----------
    words : Words
    threads, shared, scratch : int
        Threads to start; bytes of shared memory a block needs, 0 where rows are in global memory;
        numbers of global memory for rows.
    index : ndarray of uint32
        All index arrays, one after another.
    extras : list of int
        Numbers that each buffer beside the region's holds.
    before, after : list of Pass
    sums : int
        Out-windows that threads sum: their order depends on the number of threads.
    limits : list of (int, int, int)
        Of each window: its buffer, and the lowest and the highest element that it meets.
    """

    def __init__(
        self,
        region: Region,
        indices: dict[int, Indices],
        itemsize: int,
        sizes: Sizes,
        continued: bool = False,
    ) -> None:
        self.region, self.sizes, self.continued = region, sizes, continued
        self._own = _Index(indices)
        self.extras: list[int] = []
        self.before: list[Pass] = []
        self.after: list[Pass] = []
        windows = [*region.inputs, *region.outputs]
        self.shape, strides = coalesce(region.shape, [tuple(w[STRIDES:].tolist()) for w in windows])
        if not self.shape:
            self.shape, strides = (1,), [(0,) for _ in windows]
        self._lanes = tuple(prod(self.shape[i + 1 :]) for i in range(len(self.shape)))
        number = itemsize * sizes.block
        sums = sum(
            not any(s) and w[HOW] < MAXIMUM
            for w, s in zip(region.outputs, strides[len(region.inputs) :], strict=True)
        )
        self.shared = (region.rows + sums) * number
        self.scratch = 0
        self._sums_in_rows = self.shared <= sizes.shared
        self.threads = min(sizes.threads, region.size)
        if not self._sums_in_rows:
            self.shared = 0
            room = max(sizes.resident // (region.rows * number) * sizes.block, sizes.least)
            self.threads = min(self.threads, room)
        self.threads = -(-self.threads // sizes.block) * sizes.block
        if not self._sums_in_rows:
            self.scratch = region.rows * self.threads
        self.outs = [
            Reach(region, w, self.shape, s, indices)
            for w, s in zip(region.outputs, strides[len(region.inputs) :], strict=True)
        ]
        self.inputs = [
            Reach(region, w, self.shape, s, indices)
            for w, s in zip(region.inputs, strides[: len(region.inputs)], strict=True)
        ]
        self.limits = [(o.buffer, *o.span) for o in (*self.inputs, *self.outs)]
        self.sums = 0
        self._kinds: dict[int, tuple[int, int, int]] = {}  # by out-window: kind, extra, row of sum
        for buffer in dict.fromkeys(out.buffer for out in self.outs):
            self._arrange([out for out in self.outs if out.buffer == buffer])
        self.words = self._write()
        self.index = self._own.array()

    # -- how elements are reached ------------------------------------------------------------------

    def _arrange(self, outs: list[Reach]) -> None:
        """Decide how the out-windows on one buffer reach their elements."""
        for out in outs:
            if not any(out.meets(other) for other in outs if other is not out):
                self._carry(out, out.add)
        rest = [out for out in outs if id(out) not in self._kinds]
        if not rest:
            return
        if any(out.extreme for out in rest):
            raise ValueError("an out-window of extremes meets another one")
        lead = next((out for out in rest if out.injective), None)
        replacing = [out for out in rest if not out.add]
        if len(replacing) == 1 and replacing[0].injective:
            (lead,) = replacing  # all others add, after it
            self._kinds[id(lead)] = W.SET, -1, 0
        else:
            self.before += [self._clear(out) for out in replacing]
            if lead is not None:
                self._kinds[id(lead)] = W.ADD, -1, 0
        for out in rest:
            if out is not lead:
                self._carry(out, True, alone=False)

    def _carry(self, out: Reach, add: bool, alone: bool = True) -> None:
        """Let a window reach elements that no other window's lanes meet at the same time."""
        if out.extreme:
            extra = self._extra(self.region.size)
            self._kinds[id(out)] = W.SET, extra, 0
            if out.separable:
                self._meet(out, self.continued, extra, *out.axes(self._lanes))
            else:
                self._meet_in_order(out, self.continued, extra)
        elif out.injective and alone:
            self._kinds[id(out)] = W.ADD if add else W.SET, -1, 0
        elif out.uniform and self._sums_in_rows:
            extra = self._extra(self.threads)
            self._kinds[id(out)] = W.SUM, extra, self.region.rows + self.sums
            self.sums += 1
            around: Axes = [], [], []
            self._meet(out, add, extra, around, ([self.threads], [1]))
        else:
            extra = self._extra(self.region.size)
            self._kinds[id(out)] = W.SET, extra, 0
            if out.separable:
                self._meet(out, add, extra, *out.axes(self._lanes))
            else:
                self._meet_in_order(out, add, extra)

    def _extra(self, size: int) -> int:
        self.extras.append(size)
        return self.region.buffers + len(self.extras) - 1

    # -- passes ------------------------------------------------------------------------------------

    def clear_all(self) -> list[Pass]:
        """Return passes that clear whatever the region replaces."""
        return [
            self._clear(out)
            for out in self.outs
            if not out.add and not (out.extreme and self.continued)
        ]

    def _clear(self, out: Reach) -> Pass:
        around, _ = out.axes(self._lanes)
        words = self._pass(out, around=around, along=([], []), source=out.buffer)
        return Pass(f"clear_{out.extreme}" if out.extreme else "clear", 0, prod(around[0]), words)

    def _meet(self, out: Reach, add: bool, extra: int, around: Axes, along: Members) -> None:
        """Add numbers that lie in strides, or take their extremes."""
        what = out.extreme or "sum"
        count, members = prod(around[0]), prod(along[0])
        if members >= LONG:
            parts = min(_PARTS, max(1, members // _PART)) if count < _PARTS else 1
            into = self._extra(count * parts)
            words = self._pass(out, around=around, along=along, source=extra, parts=parts)
            words.words[W.TARGET] = 0
            words.relative = [pair for pair in words.relative if pair[0] != W.TARGET]
            words.relative.append((W.TARGET, into))
            self.after.append(Pass(f"{what}_by_blocks", count * parts, count, words))
            extents, targets, _ = around
            steps = [prod(extents[i + 1 :]) * parts for i in range(len(extents))]
            around, along, extra = (extents, targets, steps), ([parts], [1]), into
        words = self._pass(out, around=around, along=along, source=extra, adds=add)
        self.after.append(Pass(f"{what}_by_threads", 0, count, words))

    def _meet_in_order(self, out: Reach, add: bool, extra: int) -> None:
        """Add numbers whose elements come in no pattern, those of one element in their order.

        Or take their extremes.
        """
        elements = out.elements()
        order = np.argsort(elements, kind="stable")
        targets, starts = np.unique(elements[order], return_index=True)
        low = int(targets[0])
        count = len(targets)
        if max(int(targets[-1]) - low, len(order)) > 0xFFFFFFFF:
            raise ValueError("an out-window whose elements are further apart than 2**32")
        words = self._pass(
            out,
            around=([count], [1], [0]),
            along=([], []),
            source=extra,
            adds=add,
            order=self._own.append(order),
            starts=self._own.append(np.append(starts, len(order))),
            targets=self._own.append(targets - low),
        )
        words.words[W.TARGET] = low
        self.after.append(Pass(f"{out.extreme or 'sum'}_by_threads", 0, count, words))

    def _pass(
        self,
        out: Reach,
        *,
        around: Axes,
        along: Members,
        source: int,
        parts: int = 1,
        adds: bool = False,
        order: int = -1,
        starts: int = 0,
        targets: int = -1,
    ) -> Words:
        offset = out.offset
        if out.index >= 0 and targets < 0:
            targets, offset = self._own.place(out.index) + out.offset, out.base
        fields = {
            W.COUNT: prod(around[0]),
            W.REDUCED: prod(along[0]),
            W.PARTS: parts,
            W.SOURCE: 0,
            W.ORDER: order,
            W.STARTS: starts,
            W.TARGET: offset,
            W.TARGETS: targets,
            W.ADDS: int(adds),
            W.AROUND: len(around[0]),
            W.ALONG: len(along[0]),
        }
        words = [fields[i] for i in range(W.REST)]
        for part in (*around, *along):
            words += part
        return Words(words, [(W.SOURCE, source), (W.TARGET, out.buffer)])

    # -- the region --------------------------------------------------------------------------------

    def _write(self) -> Words:
        region = self.region
        words = [0] * W.EXTENTS
        for position, value in {
            W.SIZE: region.size,
            W.AXES: len(self.shape),
            W.INSTRUCTIONS: len(region.code),
            W.ROWS: region.rows,
            W.CONSTANTS: len(region.constants),
            W.INPUTS: len(self.inputs),
            W.OUTPUTS: len(self.outs),
            W.SUMS: self.sums,
        }.items():
            words[position] = value
        words += self.shape
        relative: list[tuple[int, int]] = []
        for w in self.inputs:
            self._window(words, relative, w, W.SET, w.base)
        for w in self.outs:
            kind, extra, row = self._kinds[id(w)]
            if extra < 0:
                self._window(words, relative, w, kind, w.base)
                continue
            relative.append((len(words) + W.OFFSET, extra))
            strides = self._lanes if kind == W.SET else [0] * len(self.shape)
            words += [w.row, kind, 0, -1, row, *strides]
        return Words(words, relative)

    def _window(
        self, words: list[int], relative: list[tuple[int, int]], w: Reach, kind: int, base: int
    ) -> None:
        index = self._own.place(w.index) if w.index >= 0 else -1
        relative.append((len(words) + (W.BASE if w.index >= 0 else W.OFFSET), w.buffer))
        words += [w.row, kind, w.offset, index, base, *w.strides]

    def program(self, real: str) -> Any:
        """Return what a straight kernel for the region is made from."""
        from ..kernels.emit.cuda import Straight

        n, step = len(self.inputs), W.STRIDES + len(self.shape)
        rows = self.words.words[W.EXTENTS + len(self.shape) :].reshape(-1, step).tolist()
        windows = [(w[W.ROW], w[W.KIND], w[W.INDEX] >= 0, tuple(w[W.STRIDES :])) for w in rows]
        return Straight(
            real,
            tuple(map(tuple, self.region.code.tolist())),
            tuple(value.hex() for value in self.region.constants.tolist()),
            tuple(windows[:n]),
            tuple(windows[n:]),
        )


Axes = tuple[list[int], list[int], list[int]]
Members = tuple[list[int], list[int]]


class Reach:
    """A window, and how lanes meet elements through it.

    Attributes
    ----------
    shape, strides : tuple of int
        Extents of the lanes, axes merged; places from one lane to the next.
    span : (int, int)
        The lowest and the highest element.
    """

    def __init__(
        self, region: Region, window: Ints, shape: Shape, strides: Shape, indices: dict[int, Any]
    ) -> None:
        w = window.tolist()
        self.row, self.buffer, self.offset = w[ROW], w[BUFFER], w[OFFSET]
        self.index, self.base, self.add = w[INDEX], w[BASE], w[HOW] == ADD
        self.extreme = {MAXIMUM: "maximum", MINIMUM: "minimum"}.get(w[HOW], "")
        self.shape, self.strides = shape, strides
        self._region, self._window, self._indices = region, window, indices
        reach = [(n - 1) * s for n, s in zip(shape, strides, strict=True)]
        low = self.offset + sum(r for r in reach if r < 0)
        high = self.offset + sum(r for r in reach if r > 0)
        self.span = low, high
        self.kept = [(n, s) for n, s in zip(shape, strides, strict=True) if s and n > 1]
        alone = _injective(self.kept)
        if self.index >= 0:
            if low < 0 or high >= len(indices[self.index]):
                raise IndexError(f"a window reaches beyond index array {self.index}")
            found = self.elements()
            self.span = int(found.min()), int(found.max())
            kept = prod(n for n, _ in self.kept)
            alone = alone and len(np.unique(found)) == kept
        self.uniform = not self.kept
        self.separable = alone  # each element has its own places along the axes that move
        self.injective = alone and prod(n for n, _ in self.kept) == prod(shape)

    def elements(self) -> Ints:
        """Return the element of each lane."""
        buffers = {**self._indices}
        return lanes_of(self._region, self._window, buffers)  # type: ignore[arg-type]

    def meets(self, other: Reach) -> bool:
        """Whether the two may reach one element."""
        if self.span[1] < other.span[0] or other.span[1] < self.span[0]:
            return False
        if self.index >= 0 or other.index >= 0:
            return True
        step = gcd(*[s for _, s in (*self.kept, *other.kept)])
        return step == 0 or (self.offset - other.offset) % step == 0

    def axes(self, lanes: Shape) -> tuple[Axes, Members]:
        """Return axes that move the window, and those along which it stays; see `Pass`."""
        around: Axes = [], [], []
        along: Members = [], []
        for n, step, lane in zip(self.shape, self.strides, lanes, strict=True):
            if n > 1:
                for part, value in zip(
                    around if step else along, (n, step, lane) if step else (n, lane), strict=True
                ):
                    part.append(value)
        return around, along


def _injective(axes: list[tuple[int, int]]) -> bool:
    reach = 0
    for step, n in sorted((abs(s), n) for n, s in axes):
        if step <= reach:
            return False
        reach += step * (n - 1)
    return True


class _Index:
    """All index arrays in one."""

    def __init__(self, indices: dict[int, Indices]) -> None:
        self._parts: list[Indices] = []
        self._size = 0
        self._places = {buffer: self.append(array) for buffer, array in indices.items()}

    def append(self, array: Any) -> int:
        """Add an array, and return its place."""
        self._parts.append(np.asarray(array, np.uint32))
        self._size += len(array)
        return self._size - len(array)

    def place(self, buffer: int) -> int:
        return self._places[buffer]

    def array(self) -> Indices:
        return np.concatenate(self._parts) if self._parts else np.zeros(1, np.uint32)
