"""Regions: straight-line programs over lanes, with windows that bring values in and results out.

A region is what the executors of lanes run: vectors on the CPU, threads, CUDA kernels. It holds no
data and names no memory, only numbers of buffers, so one region serves every array of its shapes.

A region runs its instructions once for each of its *lanes*, which are numbered in C order over its
`shape`. Every instruction reads rows and writes one; a row holds one number a lane, and an executor
keeps the rows of as many lanes at a time as it likes: lanes know nothing of each other.

There is one kind of region. A gradient is one as well: the values it needs, computed again, and
then the adjoints by ordinary instructions. A sum is an out-window of stride 0 and a broadcast an
in-window of stride 0, so that each is the adjoint of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from math import prod
from typing import Any

import numpy as np

from ..kernels.allocation import allocate
from ..kernels.opcodes import ARITY, KINDS, ROW_OF, UNARY
from ..kernels.rules import FORWARD
from ..window import Shape, Window
from .cutting import MOST_ROWS, NONE, Cut
from .fusing import Fusing
from .plain import can_be_plain, made_plain, matched

Ints = np.ndarray[Any, np.dtype[np.int64]]
Codes = np.ndarray[Any, np.dtype[np.uint16]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

# Columns of a window; the strides follow, one an axis.
ROW, BUFFER, OFFSET, INDEX, BASE, HOW, STRIDES = range(7)

SET, ADD, MAXIMUM, MINIMUM = range(4)
"""How an out-window changes its elements."""

ARITIES = np.array([ARITY.get(name, 0) for name in ROW_OF], np.uint8)
"""Number of operands by opcode."""

_BASIC = tuple(kind in (0, UNARY) or ROW_OF[i - 1] != ROW_OF[i] for i, kind in enumerate(KINDS))


class RegionTooLarge(ValueError):
    """A region needs more rows than there are numbers for."""


class Region:
    """A program over lanes. It is immutable; make one with `RegionBuilder`.

    Attributes
    ----------
    shape : tuple of int
        Extents of the lanes: there are ``size = prod(shape)`` of them, in C order.
    code : ndarray of uint16, shape (m, 5)
        One instruction a line: opcode, row of the result, rows of the operands x, y, z (0 where the
        row of the table takes fewer). Opcodes are those of `tapegrad.kernels.opcodes`, and never
        structural or variants with a constant operand. The result may have the row of an operand.
    constants : ndarray of float64
        Row ``j`` holds ``constants[j]`` in every lane. No instruction writes it.
    rows : int
        Number of rows: first those of the constants, then those of the in-windows in their order,
        then the results'. A row that an out-window reads is written once.
    inputs, outputs : ndarray of int64, shape (n, 6 + ndim)
        In-windows and out-windows, with these columns:

        ======== =======================================================================
        `ROW`    the row that is filled, or carried out
        `BUFFER` number of the buffer that values come from, or go to
        `OFFSET` place of lane 0
        `INDEX`  number of the buffer of an index array (uint32), or -1
        `BASE`   what is added to what an index array holds; 0 without one
        `HOW`    `SET`: an out-window replaces what its elements held; `ADD`: it adds to it;
                 `MAXIMUM`, `MINIMUM`: it replaces that by the extreme of the lanes
        strides  places from one lane to the next along each axis; may be 0 or negative
        ======== =======================================================================

        The place of the lane at position (i, j, ...) is ``offset + i*strides[0] + ...``. Without an
        index array the lane's element is ``buffer[place]``, with one it is
        ``buffer[base + index[place]]``.
    buffers : int
        How many buffers the windows name: flat arrays of `real`, or of uint32 for index arrays,
        which whoever runs the region hands in.
    plain : ndarray of uint16 or None
        Code that may be run instead where no out-window's row has a nan after it, with the same
        constants and in-windows and the results in the same rows (see `tapegrad.regions.plain`).
    real : str
        The type of its numbers, "float64" or "float32": the results of all instructions, and sums,
        are rounded to it.

    Notes
    -----
    An element that an out-window reaches is made zero, if any out-window that reaches it replaces;
    then the lanes that reach it are added, of all windows. So a window that carries several lanes
    to one element sums them. One of extremes takes the largest or the smallest, nan if there is
    any, as NumPy does, and no other out-window reaches its elements. The order of additions depends
    on nothing but the region: the same bits come out for any number of threads. No out-window
    reaches an element that an in-window reads, and buffers of different numbers do not overlap.
    """

    __slots__ = ("__weakref__", "buffers", "code", "constants", "inputs", "lowered", "outputs",
                 "plain", "real", "rows", "shape")  # fmt: skip

    def __init__(
        self,
        shape: Shape,
        code: Codes,
        constants: Floats,
        inputs: Ints,
        outputs: Ints,
        rows: int,
        real: str = "float64",
        plain: Codes | None = None,
    ) -> None:
        self.shape = shape
        self.real = real
        self.code = code
        self.plain = None if plain is not None and np.array_equal(plain, code) else plain
        self.constants = constants
        self.inputs = inputs
        self.outputs = outputs
        self.rows = rows
        numbers = [w[:, column] for w in (inputs, outputs) for column in (BUFFER, INDEX)]
        self.buffers = 1 + max((int(n.max()) for n in numbers if n.size), default=-1)
        self.lowered: Any = None  # what the CPU's executor makes of it, once

    @property
    def size(self) -> int:
        """Number of lanes."""
        return prod(self.shape)

    @property
    def places(self) -> int:
        """Rows that the code needs which is run first."""
        return max(self.rows, 1 + int(self.tried[:, 1].max(initial=0)))

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return 4 if self.real == "float32" else 8

    @property
    def tried(self) -> Codes:
        """The code that a block is run by first."""
        return self.code if self.plain is None else self.plain

    def __repr__(self) -> str:
        return (
            f"Region({self.shape}: {len(self.inputs)} in, {len(self.code)} instructions on "
            f"{self.rows} rows, {len(self.outputs)} out)"
        )

    def listing(self) -> str:
        """Return the region as text, a line for each window and instruction.

        Examples
        --------
        >>> build = RegionBuilder((3,))
        >>> x = build.input(0, (1,))
        >>> build.output(build.op("multiply", x, build.constant(2.0)), 1, (0,))
        >>> print(build.finish().listing())
        r0 = 2.0
        r1 = buffer 0 [0; 1]
        r2 = multiply(r1, r0)
        buffer 1 [0; 0] = r2
        """
        lines = [f"r{row} = {value}" for row, value in enumerate(self.constants.tolist())]
        lines += [f"r{w[ROW]} = {_shown(w)}" for w in self.inputs.tolist()]
        for op, row, *operands in self.code.tolist():
            used = ", ".join(f"r{x}" for x in operands[: ARITIES[op]])
            lines.append(f"r{row} = {ROW_OF[op]}({used})")
        signs = ("=", "+=", "max=", "min=")
        lines += [f"{_shown(w)} {signs[w[HOW]]} r{w[ROW]}" for w in self.outputs.tolist()]
        return "\n".join(lines)


def _shown(w: list[int]) -> str:
    strides = ", ".join(map(str, w[STRIDES:]))
    place = f"[{w[OFFSET]}; {strides}]"
    if w[INDEX] >= 0:
        place = f"[{w[BASE]} + buffer {w[INDEX]} {place}]"
    return f"buffer {w[BUFFER]} {place}"


class RegionBuilder:
    """Collects the windows and instructions of a region; values are known by opaque integers.

    Parameters
    ----------
    shape : tuple of int
        Extents of the lanes.
    real : str
        The type of the numbers; the row ``float32`` does nothing where it is that.

    Examples
    --------
    The sum of squares of five numbers:

    >>> build = RegionBuilder((5,))
    >>> x = build.input(0, (1,))
    >>> build.output(build.op("square", x), 1, (0,))
    >>> total = np.zeros(1)
    >>> run_reference(build.finish(), [np.arange(5.0), total])
    >>> total
    array([30.])
    """

    def __init__(self, shape: Shape, real: str = "float64") -> None:
        self.shape = shape
        self.real = real
        self._constants: dict[bytes, int] = {}
        self._inputs: list[list[int]] = []
        self._known: dict[tuple[int, ...], int] = {}
        self._outputs: list[list[int]] = []
        self._code: list[int] = []  # opcode and three values, one instruction after another
        self._plain: Fusing | None = None  # the code of `Region.plain`

    def constant(self, value: float) -> int:
        """Return the value that is this number in every lane."""
        key = np.float64(value).tobytes()  # tells the zeros apart, and finds nan again
        return -2 - 2 * self._constants.setdefault(key, len(self._constants))

    def input(
        self,
        buffer: int,
        strides: Sequence[int],
        offset: int = 0,
        *,
        index: int = -1,
        base: int = 0,
    ) -> int:
        """Return the value that a window brings in; the same window is the same value."""
        window = [0, buffer, offset, index, base, 0, *self._checked(strides)]
        number = self._known.setdefault(tuple(window), len(self._inputs))
        if number == len(self._inputs):
            self._inputs.append(window)
        return -1 - 2 * number

    def op(self, row: str | int, *values: int) -> int:
        """Append an instruction, a row of the table by name or opcode, and return its result."""
        opcode = row if isinstance(row, int) else ROW_OF.index(row)
        if len(values) != ARITIES[opcode] or not values or not _BASIC[opcode]:
            raise ValueError(
                f"a region has no instruction {ROW_OF[opcode]} (opcode {opcode}) of {len(values)} "
                f"operands"
            )
        if ROW_OF[opcode] == self.real:
            return values[0]
        self._code += (opcode, *values, *(0,) * (3 - len(values)))
        return len(self._code) // 4 - 1

    def extremum(self, row: str, values: Sequence[int]) -> int:
        """Append what gives the "max" or "min" of values, lane by lane."""
        step = {"max": "maximum", "min": "minimum"}[row]
        return reduce(lambda one, other: self.op(step, one, other), values)

    def output(
        self,
        value: int,
        buffer: int,
        strides: Sequence[int],
        offset: int = 0,
        *,
        add: bool = False,
        how: int = SET,
        index: int = -1,
        base: int = 0,
    ) -> None:
        """Carry a value out through a window; `add` stands for ``how=ADD``."""
        strides = self._checked(strides)
        how = ADD if add else how
        self._outputs.append([value, buffer, offset, index, base, how, *strides])

    def _checked(self, strides: Sequence[int]) -> Sequence[int]:
        if len(strides) != len(self.shape):
            raise ValueError(f"strides {tuple(strides)} do not fit the shape {self.shape}")
        return strides

    def fuse(self) -> RegionBuilder:
        """Rewrite what was appended to fewer instructions, with the same results to the bit.

        Adjoints' products have a plain program beside.
        """
        lines, results = self._lines(), self._results()
        self._try(can_be_plain(lines))
        fused = Fusing(lines, results)
        self._code = []
        for op, *values in fused.code:
            self.op(op, *values)
        for window, value in zip(self._outputs, fused.results, strict=True):
            window[0] = value
        return self

    def _lines(self) -> list[list[int]]:
        """Return the instructions, without padding."""
        lines = np.array(self._code, np.int64).reshape(-1, 4).tolist()
        return [[op, *values[: ARITIES[op]]] for op, *values in lines]

    def _results(self) -> list[int]:
        return [window[0] for window in self._outputs]

    def _try(self, which: Sequence[bool]) -> None:
        """Let these products of adjoints be plain in the code that is tried first."""
        if any(which):
            self._plain = Fusing(made_plain(self._lines(), which), self._results())

    def finish_in_parts(self, buffer: int, most: int = MOST_ROWS) -> tuple[list[Region], int]:
        """Return what was appended as regions of at most `most` rows, to be run in their order.

        Parameters
        ----------
        buffer : int
            Number of the buffer through which values go from one part to another.
        most : int

        Returns
        -------
        regions : list of Region
        places : int
            How many values wait in that buffer. In the regions' windows on it, offsets are numbers
            of values and strides are 0: whoever knows how many lanes there are makes room.
        """
        try:
            whole = self.finish()
        except RegionTooLarge:
            whole = None
        if whole is not None and whole.rows <= most:
            return [whole], 0
        used = np.array(self._used())
        lines = np.array(self._code, np.int64).reshape(-1, 4)
        operands = lines[:, 1:].copy()
        operands[np.arange(3) >= np.where(used, ARITIES[lines[:, 0]], 0)[:, None]] = NONE
        cut = Cut(operands, most)
        constants = np.frombuffer(b"".join(self._constants), np.float64).tolist()
        chosen = can_be_plain(self._lines()) if self._plain else [False] * len(used)
        still = (0,) * len(self.shape)
        regions = []
        for part in cut.parts:
            build = RegionBuilder(self.shape, self.real)
            known = {value: build.input(buffer, still, place) for value, place in part.brought}
            value_of = partial(self._in_part, build, known, constants)
            kept = (part.start + np.flatnonzero(used[part.start : part.stop])).tolist()
            for i in kept:
                op, *values = lines[i].tolist()
                known[i] = build.op(op, *map(value_of, values[: ARITIES[op]]))
            for window in self._outputs:
                value = window[0]
                if part.start <= value < part.stop or (value < 0 and part.start == 0):
                    build._outputs.append([value_of(value), *window[1:]])
            for value, place in part.carried:
                build.output(known[value], buffer, still, place)
            build._try([chosen[i] for i in kept])
            regions.append(build.finish())
        return regions, cut.places

    def _in_part(
        self, build: RegionBuilder, known: dict[int, int], constants: list[float], value: int
    ) -> int:
        """Return a value as another builder numbers it."""
        if value in known:
            return known[value]
        if value % 2 == 0:
            return build.constant(constants[(-2 - value) // 2])
        w = self._inputs[(-1 - value) // 2]
        return build.input(w[BUFFER], w[STRIDES:], w[OFFSET], index=w[INDEX], base=w[BASE])

    def _used(self) -> list[bool]:
        """Return which instructions results depend on."""
        used = [False] * (len(self._code) // 4)
        for window in self._outputs:
            if window[0] >= 0:
                used[window[0]] = True
        for i in range(len(used) - 1, -1, -1):
            if used[i]:
                op, *values = self._code[4 * i : 4 * i + 4]
                for value in values[: ARITIES[op]]:
                    if value >= 0:
                        used[value] = True
        return used

    def finish(self) -> Region:
        """Return the region: rows allocated by liveness, without instructions nothing needs."""
        constants = np.frombuffer(b"".join(self._constants), np.float64)
        columns = STRIDES + len(self.shape)
        inputs = np.array(self._inputs, np.int64).reshape(-1, columns)
        outputs = np.array(self._outputs, np.int64).reshape(-1, columns)
        fixed = len(constants) + len(inputs)

        def number(v: Ints) -> Ints:
            windows = len(constants) + (-1 - v) // 2
            return np.where(v >= 0, fixed + v, np.where(v % 2 == 0, (-2 - v) // 2, windows))

        def rows_of(code: Ints, results: Ints) -> tuple[Codes, Ints, int]:
            """Return code on rows, the rows of the results, and how many rows there are."""
            carried = number(results)
            op, *values = code.T
            final, row, rows = allocated(op, *map(number, values), fixed=fixed, carried=carried)
            return final, row[carried], rows

        inputs[:, ROW] = np.arange(len(constants), fixed)
        code = np.array(self._code, np.int64).reshape(-1, 4)
        final, outputs[:, ROW], rows = rows_of(code, outputs[:, ROW])
        tried = None
        if self._plain:
            lines, found, _ = rows_of(self._plain.table(), np.array(self._plain.results))
            tried = matched(lines, found.tolist(), outputs[:, ROW].tolist(), fixed)
        return Region(self.shape, final, constants, inputs, outputs, rows, self.real, tried)


def allocated(
    op: Ints, a: Ints, b: Ints, c: Ints, *, fixed: int, carried: Ints
) -> tuple[Codes, Ints, int]:
    """Return code, row by value, and number of rows; see `tapegrad.kernels.allocation`."""
    m = len(op)
    kept = np.zeros(fixed + m, np.bool_)
    kept[carried] = True
    last, row, free = (np.empty(fixed + m + 1, np.int64) for _ in range(3))
    code = np.empty((m, 5), np.int64)
    plain = [x.tolist() for x in (op, a, b, c, ARITIES)]
    count, rows = allocate(m, *plain, fixed, kept.tolist(), last, row, free, code)
    if rows > 0xFFFF:
        raise RegionTooLarge(f"a region of {rows} rows: cut it, it may have 65535 at most")
    return code[:count].astype(np.uint16), row, rows


# -- the reference ---------------------------------------------------------------------------------


def lanes_of(region: Region, window: Ints, buffers: Sequence[Any]) -> Ints:
    """Return the element of a window's buffer that each lane meets."""
    strides = tuple(window[STRIDES:].tolist())
    places = Window(int(window[OFFSET]), region.shape, strides).cells().ravel()
    if window[INDEX] >= 0:
        index: Ints = buffers[window[INDEX]][places].astype(np.int64) + window[BASE]
        return index
    return places


def run_reference(region: Region, buffers: Sequence[Any]) -> None:
    """Run a region lane by lane in Python: the oracle of every other executor.

    Parameters
    ----------
    region : Region
    buffers : sequence of ndarray
        Flat arrays, of the region's type for values and uint32 for index arrays; those that
        out-windows name are written.
    """
    rows = np.zeros((region.rows, region.size), region.real)
    for row, value in enumerate(region.constants):
        rows[row] = value
    for window in region.inputs:
        rows[window[ROW]] = buffers[window[BUFFER]][lanes_of(region, window, buffers)]
    for op, row, *operands in region.code.tolist():
        rule = FORWARD[op]
        columns = [rows[x].tolist() for x in operands[: ARITIES[op]]]
        with np.errstate(over="ignore"):
            rows[row] = [rule(*values) for values in zip(*columns, strict=True)]
    places = [lanes_of(region, window, buffers) for window in region.outputs]
    for window, elements in zip(region.outputs, places, strict=True):
        if window[HOW] != ADD:  # -0.0, to which adding anything gives just that
            start = {SET: -0.0, MAXIMUM: -np.inf, MINIMUM: np.inf}[int(window[HOW])]
            buffers[window[BUFFER]][elements] = start
    with np.errstate(all="ignore"):
        for window, elements in zip(region.outputs, places, strict=True):
            meet = {MAXIMUM: np.maximum, MINIMUM: np.minimum}.get(int(window[HOW]), np.add)
            meet.at(buffers[window[BUFFER]], elements, rows[window[ROW]])
