"""What the planner's kernels write, and the regions that are made of it.

The kernels (`tapegrad.kernels.cpu.planning`) are given addresses of records: the columns of a tape,
what is known of the table's rows, and room for what they find out. Programs of many lanes are
rewritten (`fusing`, `plain`) before they are put on rows.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import numpy as np

from ..kernels import adjoints
from ..kernels.opcodes import ADD, KINDS, ROWS
from ..storage import address
from .fusing import Fusing
from .plain import can_be_plain, made_plain, matched
from .region import ARITIES, BUFFER, INDEX, OFFSET, STRIDES, Codes, Region
from .unit_seed import from_one

FUSED = 1 << 14
"""Lanes from which a region's program is fused: that takes about 5 us an instruction, once."""

VALUES, POOL, ADJOINTS, INDICES, TIES, IMPORTS = range(6)
"""Buffers of a plan's regions; from `IMPORTS` on, values and adjoints of each import in `own`."""

AXES, _WINDOW = 6, 6
_RECEIVED = np.array(adjoints.RECEIVED, np.int64)
_STARTS = np.array(adjoints.STARTS, np.int64)
_PROGRAMS = np.array(adjoints.CODE, np.int64)
_NUMBERS = np.array(adjoints.CONSTANTS)
_KINDS = np.array(KINDS, np.uint8)
_EXTREMAL = np.array(
    [ROWS[name][0] for name in ("equal", "isnan", "logical_or", "divide", "where")]
)
_LINES = int(np.diff(_STARTS).max()) + 6  # instructions that one of the tape becomes, at most

Ints = np.ndarray[Any, np.dtype[np.int64]]


class Record:
    """Arrays and integers as kernels of the planner take them; see `kernels/cpu/records.py`.

    Parameters
    ----------
    *fields : int, ndarray, or tuple of ndarray
        In a tuple there is one array, whose rows are fields of their own: looking up where arrays
        lie takes longer than planning an instruction.

    Attributes
    ----------
    words : array of int
        For each array its address, for each integer itself.
    address : int
        Where they lie.
    """

    __slots__ = ("_fields", "address", "words")

    def __init__(self, *fields: Any) -> None:
        self._fields = fields  # which have to live as long
        self.words = array("q")
        for field in fields:
            if isinstance(field, int):
                self.words.append(field)
            elif isinstance(field, tuple):
                start, step = address(field[0]), field[0].strides[0]
                self.words.extend([start + k * step for k in range(len(field[0]))])
            else:
                self.words.append(address(field))
        self.address = self.words.buffer_info()[0]


class Room(threading.local):
    """Where a thread's programs are written, used again: fresh memory costs as much as planning."""

    def __init__(self) -> None:
        self.count = self.instructions = self.left = 0
        self.counts = np.zeros(4, np.int64)
        self.fixed = (np.empty(len(_NUMBERS) + 2), self.counts)  # constants
        self.slots = np.zeros(64, np.int64)
        self.links, self.steps = np.empty((3, 0), np.int64), np.empty((0, 3), np.int64)

    def operands(self, n: int) -> Ints:
        """Return room for what is found out about the operands of `n` instructions."""
        if 3 * n > self.links.shape[1]:
            self.links, self.steps = np.empty((3, 3 * n), np.int64), np.empty((n + 1, 3), np.int64)
        return self.links

    def program(self, count: int, n: int, shape: int, axes: int) -> Record:
        """Return room for the program of a region of `count` instructions of a tape's `n`.

        `shape` is the address of its extents.
        """
        if count > self.count or n > self.instructions:
            self._grow(max(count, self.count), max(n, self.instructions))
        windows = 4 * count + 2
        size = 1 << (windows + windows // 2).bit_length()
        self.record.words[-3:] = array("q", (shape, axes, size - 1))
        return self.record

    def _grow(self, count: int, n: int) -> None:
        self.count, self.instructions = count, n
        lines, windows = count * _LINES, 4 * count + 2
        self.code = np.empty((4, lines), np.int64)
        self.inputs, self.outputs = np.empty((2, windows, _WINDOW + AXES), np.int64)
        table = np.zeros(1 << (windows + windows // 2).bit_length(), np.int64)
        value, operands = np.empty(n, np.int64), np.empty((count, 3), np.int64)
        adjoints = np.empty(lines, np.int64), np.empty(windows, np.int64)
        self.record = Record(
            *self.code, self.inputs, self.outputs, *self.fixed, table, value, operands,
            *adjoints, self.slots, 0, 0, 0,
        )  # fmt: skip
        values = lines + windows + len(self.fixed[0])
        self.final = np.empty((lines, 5), np.uint16)
        self.rows = Record(np.empty(values, np.uint8), *np.empty((3, values), np.int64), self.final)


@cache
def planner() -> dict[str, Callable[..., int]]:
    """Return the planner's kernels by name."""
    from ..kernels import native

    found: dict[str, Callable[..., int]] = native.load("planning")
    return found


@cache
def row_table() -> Record:
    """Return what kernels are told of the table's rows, and of their adjoints."""
    return Record(_KINDS, ARITIES, _EXTREMAL, _STARTS, _PROGRAMS, _RECEIVED, _NUMBERS, ADD)


def region_of(shape: tuple[int, ...], to: Record, unit: int) -> Region:
    """Return the region of the program that has been written, from the adjoint 1 of a cell."""
    counts = room.counts
    m, n_in, n_out, n_constants = counts.tolist()
    outputs = room.outputs[:n_out, : _WINDOW + len(shape)]
    tried = fused = None
    if prod(shape) >= FUSED:
        lines = [[op, *values[: ARITIES[op]]] for op, *values in room.code[:, :m].T.tolist()]
        results = outputs[:, 0].tolist()
        seed = _window_on(unit, len(shape), n_in) if unit >= 0 else 0
        if seed:
            one = _constant_one(n_constants)
            n_constants = int(counts[3])
            lines = from_one(lines, seed, one)
            results = [one if value == seed else value for value in results]
        fused = Fusing(lines, results)
        # Zeros of values may be used for anything, those of adjoints only as such.
        which = can_be_plain(lines, outputs[outputs[:, 1] == VALUES, 0].tolist())
        if any(which):
            tried = _finish(to, outputs, Fusing(made_plain(lines, which), results))
    final, rows, count = _finish(to, outputs, fused)
    plain = tried and matched(tried[0], tried[1], rows, n_constants + n_in)
    return Region(
        shape, final, room.fixed[0][:n_constants].copy(),
        room.inputs[:n_in, : _WINDOW + len(shape)].copy(), outputs.copy(), count, plain=plain,
    )  # fmt: skip


def _window_on(cell: int, axes: int, n_in: int) -> int:
    """Return the value that is brought in from the adjoint of a cell, or 0."""
    windows = room.inputs[:n_in, : _WINDOW + axes]
    still = ~windows[:, STRIDES:].any(axis=1) & (windows[:, INDEX] < 0)
    found = still & (windows[:, BUFFER] == ADJOINTS) & (windows[:, OFFSET] == cell)
    return -1 - 2 * int(found.argmax()) if found.any() else 0


def _constant_one(n_constants: int) -> int:
    """Return the value that is 1 in every lane, entering it among the constants if it is new."""
    numbers = room.fixed[0]
    known = np.flatnonzero(numbers[:n_constants] == 1.0)
    at = int(known[0]) if len(known) else n_constants
    numbers[at] = 1.0
    room.counts[3] = max(n_constants, at + 1)
    return -2 - 2 * at


def _finish(to: Record, outputs: Ints, fused: Fusing | None) -> tuple[Codes, list[int], int]:
    """Return a program on rows, the rows of its results, and how many rows there are."""
    if fused is not None:
        code = fused.table().T
        room.counts[0] = code.shape[1]
        room.code[:, : code.shape[1]] = code
        outputs[:, 0] = fused.results
    count = planner()["finish"](to.address, row_table().address, room.rows.address)
    return room.final[: room.counts[0]].copy(), outputs[:, 0].tolist(), count


room = Room()
