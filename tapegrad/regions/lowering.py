"""From a region to the words that its CPU executor reads: blocks, chunks, and who writes what when.

Chunks of lanes run in any order and at the same time, so no two of them may write one element. How
the lanes of an out-window reach their elements without that is decided here, once a region, from
strides alone: directly where each lane has an element of its own; by sums, copies or halos a chunk
that are added up in the order of the chunks; or, where nothing better is known, by putting the
results aside and carrying them out at the end, lane by lane.
"""

from __future__ import annotations

from itertools import pairwise
from math import gcd, lcm

import numpy as np

from ..kernels import words as W
from ..window import Shape, coalesce, injective
from .region import (
    ADD,
    ARITIES,
    BASE,
    BUFFER,
    HOW,
    INDEX,
    MAXIMUM,
    OFFSET,
    ROW,
    SET,
    STRIDES,
    Ints,
    Region,
)

LANES = 128
"""Lanes of a block: enough to hide the dispatch, few enough that rows stay in the first cache."""

CACHE_BYTES = 1 << 19
"""Room for the rows of a block of `LANES`; with more rows it has half as many..."""

FAR_BYTES = 8 << 20
"""... and half as many again where that does not suffice: rows are written and read in order, so
that a distant cache serves nearly as well, and to decode an instruction has its price, too."""

STREAM_BYTES = 24 << 20
"""Arrays beyond which results go past the cache: they would not be there when they are read."""

AHEAD_BYTES = 1 << 20
"""Arrays beyond which a block's arguments are asked for while the one before is computed."""

COMPILED_LANES = 1024
"""Lanes of a block of a region that has code of its own: its values are in registers, and only what
is brought in or carried out by rows has to stay in the first cache."""

COMPILED_BYTES = 3 << 13
"""Room for those rows."""

READ_OFTEN = 6
"""Instructions that read an in-window from which it is copied to where vectors are aligned."""

_ALIGNED = 128

_LEAST = 32  # lanes of a block, unless there are fewer
_CHUNK = 1024  # lanes a chunk has at least,
_WORK = 1 << 18  # unless it has as many instructions times lanes: about 50 us of work
_CHUNKS = 64  # and how many chunks there are at most, so that threads find some each

Join = tuple[tuple[int, int], ...]
"""Rows, and by how many lanes each shifts what is added up before."""

_H = {name: i for i, name in enumerate(W.HEADER)}
_IN = {name: i for i, name in enumerate(W.IN_KINDS)}
_OUT = {name: i for i, name in enumerate(W.OUT_KINDS)}


class Lowered:
    """A region as its executor reads it.

    Parameters
    ----------
    region : Region
    straight : int
        Address of the region's own code (see `straight`), 0 where it is interpreted. Chunks, and
        with them the bits of sums, are the same. Blocks are longer: where one is run again with
        care, zeros that are adjoints may have another sign.

    Attributes
    ----------
    words : ndarray of int64
    chunks : int
    scratch : int
        Bytes that a thread needs for the rows of a block.
    extras : list of int
        Where buffers that the executor needs beside the region's lie, in bytes from the first.
    extra : int
        Bytes that they take together.
    size, work : int
        Lanes, and about how many instructions times lanes.
    uniform : frozenset of int
        Rows that hold one number in all lanes.
    joins : tuple of tuples
        Groups of overlapping windows that the region's own code adds up: the rows of a group in
        their order, each with the number of lanes that the sum up to there lies behind.
    straight : int
    spent, cost : float
        Seconds that it was run, and those after which it gets code of its own; negative where
        nobody has asked.
    """

    __slots__ = (
        *("address", "chunks", "cost", "extra", "extras", "joins", "keep", "scratch", "size"),
        *("spent", "straight", "uniform", "words", "work"),
    )

    def __init__(self, region: Region, straight: int = 0) -> None:
        n = region.size
        self.extras: list[int] = []
        self.extra = 0
        self.size, self.work = n, n * (len(region.code) + 4)
        outs = [_Out(region, w) for w in region.outputs]
        kinds = [_in_kind(region.shape, w) for w in region.inputs.tolist()]
        rows_in = zip(region.inputs[:, ROW].tolist(), kinds, strict=True)
        same = [row for row, kind in rows_in if kind == _IN["UNIFORM"]]
        self.uniform = frozenset([*range(len(region.constants)), *same])
        self.spent, self.cost = 0.0, -1.0
        rows = region.rows - kinds.count(_IN["IN_PLACE"]) - sum(out.flat for out in outs)
        block = LANES * 8 // region.itemsize
        for room in (CACHE_BYTES, FAR_BYTES):
            if region.itemsize * rows * block > room:
                block //= 2
        while block > _LEAST and n < 2 * block and len(region.code) * block > _WORK:
            block //= 2  # a block of a long program is enough for a thread
        width = W.VECTOR // region.itemsize
        block = min(block, max(-(-n // width), 1) * width)
        chunk = _chunk_size(n, len(region.code), block, outs)
        self.chunks = max(-(-n // chunk), 1)
        arranged: list[_Out] = []
        for number in dict.fromkeys(out.buffer for out in outs):
            together = [out for out in outs if out.buffer == number]
            arranged += _arrange(together, n, width, chunk, self.chunks)
        self.joins = _join(arranged, width)
        flat = sum(out.kind == "FLAT" for out in arranged) + len(region.inputs)
        moved = region.itemsize * region.size * flat
        _choose_places(region, arranged, streams=moved > STREAM_BYTES)
        # Calls of small regions are prepared for a scratch of the size that it has at first.
        if straight and self.chunks > 1 and self.work >= _WORK:
            block = _longer(region, kinds, arranged, block, chunk)
        self._write(region, kinds, arranged, block, chunk, moved > AHEAD_BYTES and not straight)
        self.use(straight)

    def _write(
        self,
        region: Region,
        kinds: list[int],
        outs: list[_Out],
        block: int,
        chunk: int,
        ahead: bool,
    ) -> None:
        inputs = region.inputs
        count = region.places
        ndim = len(region.shape)
        strides_at = W.HEADER_WORDS + W.WINDOW_WORDS * (len(inputs) + len(outs)) + ndim
        code, careful = np.ascontiguousarray(region.tried), np.ascontiguousarray(region.code)
        constants = np.ascontiguousarray(region.constants, region.real)
        self.keep = (code, careful, constants)
        header = [0] * W.HEADER_WORDS
        for name, value in {
            "SIZE": region.size,
            "BLOCK": block,
            "CHUNK": chunk,
            "CHUNKS": self.chunks,
            "PEELED": int(all(out.streamed or out.kind == "SUM" for out in outs)),
            "CODE": code.ctypes.data,
            "INSTRUCTIONS": len(code),
            "CAREFUL": 0 if region.plain is None else careful.ctypes.data,
            "CAREFUL_INSTRUCTIONS": len(careful),
            "ROWS": count,
            "JOINS": len(self.joins),
            "CONSTANTS": len(constants),
            "VALUES": constants.ctypes.data,
            "INPUTS": len(inputs),
            "OUTPUTS": len(outs),
            "AXES": ndim,
            "SHAPE": strides_at - ndim,
        }.items():
            header[_H[name]] = value
        words, strides = header, list(region.shape)
        used = np.arange(3) < ARITIES[code[:, 0]][:, None]
        read = np.bincount(code[:, 2:][used], minlength=count)
        for i, w in enumerate(inputs.tolist()):
            words += self._window(
                w,
                strides_at + i * ndim,
                KIND=kinds[i],
                ALIGNED=int(read[w[ROW]] >= READ_OFTEN),
                AHEAD=int(ahead),
            )
            strides += w[STRIDES:]
        numbers: dict[int, int] = {}
        for i, out in enumerate(outs, len(inputs)):
            if out.extra:
                numbers[id(out)] = region.buffers + len(self.extras)
                self.extras.append(self.extra)
                self.extra += -(-region.itemsize * out.extra // _ALIGNED) * _ALIGNED
            words += self._window(
                out.window,
                strides_at + i * ndim,
                KIND=_OUT[out.kind],
                HOW=out.how,
                PLACED=int(out.placed),
                STREAMED=int(out.streamed),
                ZERO=int(out.zero),
                LOW=out.low,
                EXTENT=out.extent,
                EXTRA=numbers.get(id(out.lead or out), 0),
                SHIFT=out.shift,
                HALO=out.halo,
                JOINED=int(out.joined),
            )
            strides += out.window[STRIDES:]
        self.words = np.array(words + strides, np.int64)
        self.address = int(self.words.ctypes.data)
        rows = count * (region.itemsize * block + 8 + W.PAD) + 2 * W.VECTOR
        rows += len(self.joins) * (16 + W.VECTOR)
        self.scratch = -(-rows // _ALIGNED) * _ALIGNED

    def use(self, own: int) -> None:
        """Let blocks be run by the function at an address, which has the code compiled, or 0."""
        self.straight = own
        self.words[_H["OWN"]] = own

    def _window(self, w: list[int], strides: int, **fields: int) -> list[int]:
        fields |= {"ROW": w[ROW], "BUFFER": w[BUFFER], "OFFSET": w[OFFSET], "INDEX": w[INDEX]}
        fields |= {"BASE": w[BASE], "STRIDES": strides}
        return [fields.get(name, 0) for name in W.WINDOW]


class _Out:
    """An out-window, and how it is going to be carried out."""

    def __init__(self, region: Region, window: Ints) -> None:
        w = window.tolist()
        self.row, self.buffer, self.offset = w[ROW], w[BUFFER], w[OFFSET]
        self.gathered = w[INDEX] >= 0
        self.how = w[HOW]
        self.shape, (self.strides,) = coalesce(region.shape, [tuple(w[STRIDES:])])
        reach = [(n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)]
        self.low = self.offset + sum(r for r in reach if r < 0)
        self.extent = sum(map(abs, reach)) + 1
        self.kind = ""
        self.zero = self.placed = self.streamed = self.joined = False
        self.window = w
        self.lead: _Out | None = None  # whose halo it shares
        self.extra = self.shift = self.halo = 0

    @property
    def flat(self) -> bool:
        """Whether lanes go to consecutive elements."""
        return not self.gathered and self.strides in ((1,), ())

    @property
    def uniform(self) -> bool:
        """Whether all lanes go to one element."""
        return not any(self.strides)

    @property
    def injective(self) -> bool:
        """Whether it is plain that each lane has an element of its own."""
        return not self.gathered and injective(self.shape, self.strides)

    @property
    def run(self) -> int:
        """How many lanes in a row meet one element, if other lanes meet others; else 0."""
        if self.gathered or self.uniform or self.strides[-1]:
            return 0
        return self.shape[-1] if injective(self.shape[:-1], self.strides[:-1]) else 0

    def meet(self) -> None:
        """Let lanes change what others have left, from what stands there before the first."""
        self.zero, self.how = self.how != ADD, max(self.how, ADD)

    def meets(self, other: _Out) -> bool:
        """Whether the two may reach one element."""
        if self.gathered or other.gathered:
            return True
        if self.low + self.extent <= other.low or other.low + other.extent <= self.low:
            return False
        step = gcd(*self.strides, *other.strides)
        return step == 0 or (self.offset - other.offset) % step == 0


def _in_kind(shape: Shape, w: list[int]) -> int:
    _, (strides,) = coalesce(shape, [tuple(w[STRIDES:])])
    if not any(strides):
        return _IN["UNIFORM"]
    if w[INDEX] >= 0:
        return _IN["GATHERED"]
    return _IN["IN_PLACE" if strides == (1,) else "WALKED"]


def _longer(region: Region, kinds: list[int], outs: list[_Out], block: int, chunk: int) -> int:
    """Return how many lanes a block has where values stay in registers."""
    if any(out.kind in ("WALK", "PRIVATE", "LATER") for out in outs):
        return block  # where runs of one element are summed up, blocks part them
    moved = kinds.count(_IN["WALKED"]) + kinds.count(_IN["GATHERED"])
    moved += len({out.row for out in outs if not out.joined})
    room = COMPILED_BYTES // (region.itemsize * moved) if moved else chunk
    while 2 * block <= min(COMPILED_LANES * 8 // region.itemsize, room, chunk):
        block *= 2
    return block


def _chunk_size(n: int, instructions: int, block: int, outs: list[_Out]) -> int:
    """Return how many lanes a chunk has: enough, whole blocks, and whole runs of axis sums."""
    chunk = max(min(_CHUNK, _WORK // (instructions + 1)), -(-n // _CHUNKS))
    chunk = -(-chunk // block) * block
    run = lcm(*[out.run or 1 for out in outs])
    if 1 < run <= 8 * chunk:
        chunk = -(-chunk // run) * run
    return chunk


def _arrange(outs: list[_Out], n: int, width: int, chunk: int, chunks: int) -> list[_Out]:
    """Decide how the out-windows on one buffer are carried out; return them in their order."""
    if _apart(outs):
        alone, rest = outs, []
    else:
        alone = [x for x in outs if not any(x.meets(other) for other in outs if other is not x)]
        rest = [out for out in outs if out not in alone]
    for out in alone:
        if out.injective and out.how >= MAXIMUM:
            out.how = SET  # the extreme of one lane
        if out.flat:
            out.kind = "FLAT"
        elif out.uniform:
            out.kind, out.extra = "SUM", chunks * width
        elif out.injective:
            out.kind = "WALK"
        elif chunks == 1 or (out.run and chunk % out.run == 0):
            out.kind = "WALK"
            out.meet()
        else:
            _put_aside(out, n, chunks)
    if not rest:
        return alone
    if any(out.how >= MAXIMUM for out in rest):
        raise ValueError("an out-window of extremes meets another one")
    rest.sort(key=lambda out: -out.offset)
    lead, low = rest[0], min(out.low for out in rest)
    halo = lead.low - low
    if all(out.flat for out in rest) and 0 < halo <= chunk and chunks > 1:
        follow_add = all(out.how == ADD for out in rest[1:])
        for out in rest:
            out.kind, out.shift, out.halo, out.lead = "FOLLOW", out.low - low, halo, lead
            out.meet()
        lead.kind, lead.low, lead.extra = "LEAD", low, halo * chunks
        if follow_add and lead.zero:
            lead.zero, lead.how = False, SET
        return alone + rest
    for out in rest:
        out.meet()
        if chunks == 1:
            out.kind = "WALK"
        else:
            _put_aside(out, n, chunks)
    return alone + rest


def _join(outs: list[_Out], width: int) -> tuple[Join, ...]:
    """Choose groups of overlapping windows that are near enough for vectors to hold them."""
    joins = []
    for lead in outs:
        if lead.kind == "LEAD" and lead.how == SET and lead.halo < width:
            group = [out for out in outs if out.lead is lead]
            for out in group:
                out.joined = True
            steps = [0, *[before.shift - out.shift for before, out in pairwise(group)]]
            joins.append(tuple(zip([out.row for out in group], steps, strict=True)))
    return tuple(joins)


def _apart(outs: list[_Out]) -> bool:
    """Whether it is plain that no two windows meet: there may be thousands."""
    if any(out.gathered for out in outs):
        return len(outs) == 1
    order = sorted(outs, key=lambda out: out.low)
    return all(x.low + x.extent <= y.low for x, y in pairwise(order))


def _put_aside(out: _Out, n: int, chunks: int) -> None:
    if not out.gathered and chunks * out.extent <= max(2 * n, 1 << 12):
        out.kind, out.extra = "PRIVATE", chunks * out.extent
    else:
        out.kind, out.extra = "LATER", n


def _choose_places(region: Region, outs: list[_Out], streams: bool) -> None:
    """Let results be written where they are to go, a row to one place, or past the cache."""
    results = set(region.tried[:, 1].tolist())
    rows = [out.row for out in outs]
    for out in outs:
        if streams and out.kind == "FLAT" and out.how == SET:
            out.streamed = True
            continue
        if out.kind == "LEAD" and rows.count(out.row) > 1:
            continue  # those that follow change what lies there
        if out.kind in ("FLAT", "LEAD") and out.how == SET and out.row in results:
            out.placed = True
            results.discard(out.row)
