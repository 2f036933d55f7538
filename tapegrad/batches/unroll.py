"""A program's tape as single instructions, handed to whatever wants to run them for many samples.

The cells of a tape are the values of one sample. `unroll` walks over its instructions, takes array
instructions and the common reductions apart into operations on single elements, and asks a *target*
to append each: a `RegionBuilder`, for which a value is a row of lanes, or recorded arrays, one
element a sample (`tapegrad.batches.vmap`). What a value is, only the target knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ..kernels.opcodes import (
    BINARY,
    BINARY_KX,
    BINARY_XK,
    CARRY,
    CONST,
    HOST,
    INPUT,
    KINDS,
    LANES,
    ROW_OF,
    TERNARY,
)
from ..recording import CONSTANT, INDEXED, PASSIVE_CELLS
from ..tape import Tape
from ..transforms.adjoint import descriptor
from ..window import Shape, Window

MAX_CELLS = 1 << 15
"""Cells of a tape that is taken apart, at most, unless many samples make up for the time."""

MAX_PRODUCTS = 1 << 15
"""Products of elements in a product of matrices that is taken apart, at most."""

Value = Any


class Target(Protocol):
    """What instructions are appended to."""

    def constant(self, value: float) -> Value:
        """Return the value that is this number for every sample."""

    def op(self, row: str, *values: Value) -> Value:
        """Append a row of the table and return its result."""

    def extremum(self, row: str, values: Sequence[Value]) -> Value:
        """Append the "max" or "min" of values: ties share, where there is a derivative to be."""


def can_unroll(tape: Tape, most: int | None = None) -> bool:
    """Whether a finished tape is short enough, and of operations that are known by element."""
    if length(tape) > (MAX_CELLS if most is None else most):
        return False
    from ..ops.structural import STRUCTURAL  # loaded with the first structural operation

    for call in tape.hosts:
        name = call.row.name
        if STRUCTURAL.get(name) is not call.row or name not in _BY_ELEMENT:
            return False
        if name == "matmul" and _products(call) > MAX_PRODUCTS:
            return False
    return True


def length(tape: Tape) -> int:
    """Return how many cells a tape computes."""
    return tape.flushed_cell - tape.input_cells


def _products(call: Any) -> int:
    shape: Shape = _operand_shape(call.operands[0])
    return int(np.prod(call.shape, dtype=np.int64)) * shape[-1]


def _operand_shape(place: Any) -> Shape:
    if place.window is not None:
        shape: Shape = place.window.shape
        return shape
    return np.shape(place.constant if place.cells is None else place.cells)


class Unrolled:
    """The values of a tape's cells, as a target knows them.

    Parameters
    ----------
    tape : Tape
        A finished one, whose constants have been copied into its cells (by a sweep).
    inputs : sequence of (int, int)
        First cell and number of cells of each input.
    given : callable
        ``given(number, element)`` is the target's value of an element of an input; it is asked
        once, where something needs it.
    target : Target
    """

    def __init__(
        self,
        tape: Tape,
        inputs: Sequence[tuple[int, int]],
        given: Callable[[int, int], Value],
        target: Target,
    ) -> None:
        self.tape, self.target = tape, target
        self._given = given
        self._values: list[Value] = [None] * tape.flushed_cell
        self._known = bytearray(tape.flushed_cell)
        self._input: dict[int, tuple[int, int]] = {
            cell + j: (number, j) for number, (cell, size) in enumerate(inputs) for j in range(size)
        }
        self._constants: dict[bytes, Value] = {}
        self._walk()

    def value(self, cell: int) -> Value:
        """Return the value of a cell."""
        if not self._known[cell]:  # an input, or a constant of the tape: others come in order
            place = self._input.get(cell)
            if place is None:
                self._put(cell, self.constant(self.tape.arena.v.array.item(cell)))
            else:
                self._put(cell, self._given(*place))
        return self._values[cell]

    def constant(self, value: float) -> Value:
        """Return the value that is a number for every sample."""
        key = np.float64(value).tobytes()
        if key not in self._constants:
            self._constants[key] = self.target.constant(value)
        return self._constants[key]

    def _put(self, cell: int, value: Value) -> None:
        self._values[cell] = value
        self._known[cell] = True

    def _walk(self) -> None:
        k = self.tape.k.array()
        op_of, value, constant = self.target.op, self.value, self.constant
        carried = 0
        for op, a, b, cell in self._instructions():
            kind = KINDS[op]
            if op == INPUT:
                continue
            if op == CONST:
                self._put(cell, constant(k.item(a)))
            elif op == CARRY:
                carried = a
            elif op == LANES:
                self._lanes(a, cell)
            elif op == HOST:
                self._host(self.tape.hosts[a], cell)
            elif kind == BINARY:
                self._put(cell, op_of(ROW_OF[op], value(a), value(b)))
            elif kind == BINARY_XK:
                self._put(cell, op_of(ROW_OF[op], value(a), constant(k.item(b))))
            elif kind == BINARY_KX:
                self._put(cell, op_of(ROW_OF[op], constant(k.item(b)), value(a)))
            elif kind == TERNARY:
                self._put(cell, op_of(ROW_OF[op], value(carried), value(a), value(b)))
            else:
                self._put(cell, op_of(ROW_OF[op], value(a)))

    def _instructions(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield opcode, a, b and first cell of each instruction."""
        n, arena = self.tape.n, self.tape.arena
        cell = 0
        columns = [column.array[:n].tolist() for column in (arena.op, arena.a, arena.b)]
        for op, a, b in zip(*columns, strict=True):
            yield op, a, b, cell
            cell += b if op in (INPUT, LANES, HOST) else 1

    def _lanes(self, at: int, cell: int) -> None:
        """Take an array instruction apart, lane by lane."""
        row, shape, operands = descriptor(self.tape, at)
        columns = [self._operand(shape, operand) for operand in operands]
        for i, values in enumerate(zip(*columns, strict=True)):
            self._put(cell + i, self.target.op(row, *values))

    def _operand(self, shape: Shape, operand: tuple[int, int, Shape]) -> list[Value]:
        kind, offset, strides = operand
        window = Window(offset, shape, strides)
        if kind == CONSTANT:
            return [self.constant(x) for x in window.view(self.tape.k.array()).ravel().tolist()]
        if kind == PASSIVE_CELLS:
            values = window.view(self.tape.arena.v.array).ravel().tolist()
            return [self.constant(x) for x in values]
        cells = window.cells().ravel()
        if kind == INDEXED:
            cells = self.tape.x.array()[cells]
        return [self.value(cell) for cell in cells.tolist()]

    def _host(self, call: Any, cell: int) -> None:
        """Take a structural instruction apart: NumPy runs it on arrays of terms."""
        operands = [self._terms(place) for place in call.operands]
        result = np.asarray(_BY_ELEMENT[call.row.name](*operands, **call.params), object)
        for i, term in enumerate(result.ravel()):
            known = isinstance(term, _Term)
            self._put(cell + i, term.value if known else self.constant(float(term)))

    def _terms(self, place: Any) -> Any:
        """Return the operand of a structural instruction as an array of terms."""
        target = self.target
        if place.window is not None:
            cells = place.window.cells()
        elif place.cells is not None:
            cells = np.asarray(place.cells)
        else:
            terms = np.empty(np.shape(place.constant), object)
            for index, x in np.ndenumerate(place.constant):
                terms[index] = _Term(target, self.constant(float(x)))
            return terms
        terms = np.empty(cells.shape, object)
        for index, cell in np.ndenumerate(cells):
            terms[index] = _Term(target, self.value(int(cell)))
        return terms


class _Term:
    """A target's value with the two operators that sums and products are made of."""

    __slots__ = ("target", "value")

    def __init__(self, target: Target, value: Value) -> None:
        self.target = target
        self.value = value

    def __add__(self, other: _Term) -> _Term:
        return _Term(self.target, self.target.op("add", self.value, other.value))

    def __mul__(self, other: _Term) -> _Term:
        return _Term(self.target, self.target.op("multiply", self.value, other.value))


def _extremum(row: str) -> Callable[..., Any]:
    def extremum(x: Any, *, axis: tuple[int, ...], keepdims: bool = False) -> Any:
        kept = [i for i in range(x.ndim) if i not in axis]
        shape = tuple([x.shape[i] for i in kept])
        flat = x.transpose(*kept, *axis).reshape(*shape, -1)
        result = np.empty(shape, object)
        for index in np.ndindex(*shape):
            target = flat[index][0].target
            values = [term.value for term in flat[index]]
            result[index] = _Term(target, target.extremum(row, values))
        return result  # its order is that of the result with axes kept, too

    return extremum


_BY_ELEMENT: dict[str, Callable[..., Any]] = {
    "sum": np.sum,
    "prod": np.prod,
    "cumsum": np.cumsum,
    "cumprod": np.cumprod,
    "matmul": np.matmul,
    "max": _extremum("max"),
    "min": _extremum("min"),
}
"""How structural rows are computed on arrays of terms."""
