"""Structural operations: instructions whose rule is run by Python, on NumPy arrays.

A sweep that meets one calls `HostCall.forward` or `HostCall.reverse`; the rule itself is a row of
`tapegrad.ops.structural`, which knows nothing of tapes.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from .errors import at_caller
from .kernels.opcodes import HOST
from .recording import (
    BOOL,
    FLOAT32,
    FLOAT64,
    INT64,
    cell_of,
    cells_of,
    elementwise,
    operand,
    promote,
    run,
    shape_of,
)
from .storage import Floats, TrackedArray, TrackedScalar
from .tape import Tape, recorder
from .window import Shape, Window, broadcast_shapes

Call = Callable[[], Any]

GATHERED = 256
"""Elements from which an operand that is gathered is copied, so that a region reads it."""


class HostOperand:
    """Where a structural operation finds an operand: a window on cells, cells, or a constant."""

    __slots__ = ("cells", "constant", "window")

    def __init__(self, tape: Tape, x: Any) -> None:
        self.cells: Any = None
        self.window: Window | None = None
        self.constant: Any = None
        if isinstance(x, TrackedScalar):
            self.window = Window(cell_of(tape, x), (), ())
        elif isinstance(x, TrackedArray):
            storage = tape.import_storage(x.storage)
            if storage.index is None:
                w = x.window
                self.window = Window(storage.base + w.offset, w.shape, w.strides)
            else:
                self.cells = cells_of(tape, x)
        else:
            self.constant = np.array(x, np.float64)
            tape.captures(x)

    def read(self, v: Floats) -> Floats:
        """Return the operand's values, as a view where that is possible."""
        if self.window is not None:
            return self.window.view(v)
        values: Floats = self.constant if self.cells is None else v[self.cells]
        return values

    def accumulate(self, g: Floats, cotangent: Floats) -> None:
        """Add a cotangent of the operand's shape to the adjoints of its cells."""
        if self.constant is None:
            self.adder(g)(cotangent)

    def adder(self, g: Floats) -> Callable[[Any], None]:
        """Return the function that adds a cotangent to the adjoints of the operand's cells."""
        if self.window is not None and self.window.is_injective:
            view = self.window.view(g)
            return lambda cotangent: np.add(view, cotangent, view)
        cells = self.cells if self.window is None else self.window.cells()
        return functools.partial(np.add.at, g, cells)


class HostCall:
    """One structural instruction: a rule, its operands and parameters, and where it was written."""

    __slots__ = ("operands", "params", "product", "row", "shape")

    def __init__(
        self, row: Any, operands: list[HostOperand], params: dict[str, Any], shape: Shape
    ) -> None:
        self.row = row
        self.operands = operands
        self.params = params
        self.shape = shape
        self.product: Any = None  # what `tapegrad.transforms.products` has found out

    def forward(self, v: Floats, out: Floats) -> None:
        """Compute the operation into the cells `out`."""
        with np.errstate(all="ignore"):
            values = [x.read(v) for x in self.operands]
            out[...] = np.asarray(self.row.forward(*values, **self.params)).ravel()

    def reverse(self, v: Floats, g: Floats, cell: int, strict: bool) -> None:
        """Turn the adjoints of the operation's cells, from `cell` on, into its operands'."""
        size = Window.contiguous(0, self.shape).size
        adjoint = g[cell : cell + size].reshape(self.shape).copy()
        g[cell : cell + size] = 0.0
        if not strict and not np.count_nonzero(adjoint):
            return
        out = v[cell : cell + size].reshape(self.shape)
        with np.errstate(all="ignore"):
            values = [x.read(v) for x in self.operands]
            cotangents = self.row.vjp(adjoint, out, *values, **self.params)
            for x, cotangent in zip(self.operands, cotangents, strict=True):
                x.accumulate(g, cotangent)

    def prepared(self, v: Floats, g: Floats, cell: int) -> tuple[Call, Call]:
        """Return `forward` and `reverse` as calls, for columns that stay where they are.

        The second one uses what the first one has read. NumPy's warnings are for others to turn
        off, once for many such calls.
        """
        stop = cell + Window.contiguous(0, self.shape).size
        out, adjoint = (column[cell:stop].reshape(self.shape) for column in (v, g))
        values: list[Any] = []
        reads: list[Call] = []
        for x in self.operands:
            values.append(x.read(v))
            if x.cells is not None:
                reads.append(functools.partial(np.take, v, x.cells, None, values[-1], "clip"))
        compute = functools.partial(self.row.forward, *values, **self.params, out=out)
        vjp = functools.partial(self.row.vjp, **self.params)
        adders = [None if x.constant is not None else x.adder(g) for x in self.operands]

        def forward() -> None:
            for read in reads:
                read()
            compute()

        def reverse() -> None:
            if not np.count_nonzero(adjoint):
                return
            received = adjoint.copy()
            adjoint.fill(0.0)
            for add, cotangent in zip(adders, vjp(received, out, *values), strict=True):
                if add is not None:
                    add(cotangent)

        return forward if reads else compute, reverse


def append(
    tape: Tape, row: Any, places: list[HostOperand], params: dict[str, Any], shape: Shape
) -> int:
    """Append a structural instruction and return the first of the cells that it owns.

    `row` is a row of the table, or whatever has its `name`, its `forward` and its `vjp`.
    """
    tape.hosts.append(HostCall(row, places, params, shape))
    return tape.push_run(HOST, len(tape.hosts) - 1, Window.contiguous(0, shape).size)


def structural(name: str, *operands: Any, **params: Any) -> Any:
    """Record a structural row on tracked and constant operands.

    Errors of shape are raised here, before anything is recorded, rather than in a sweep.
    """
    known = [operand(x) for x in operands]
    if any([x is NotImplemented for x in known]):
        bad = next(x for x, y in zip(operands, known, strict=True) if y is NotImplemented)
        raise TypeError(f"{name} does not take a {type(bad).__name__}{at_caller()}")
    row = _rows()[name]
    if "axis" in params:
        params["axis"] = _axes(name, params["axis"], len(shape_of(known[0])))
    shape = result_shape(name, [shape_of(x) for x in known], params)
    dtype = promote(known)
    if dtype.kind in "biu":
        dtype = dtype if dtype is BOOL and name in ("min", "max") else INT64
    tape = recorder.current()
    if name in ("sum", "max", "min") and _is_gathered(tape, known[0]):
        known[0] = elementwise("positive", known[0])  # by a region, which the reduction then closes
    places = [HostOperand(tape, x) for x in known]
    base = append(tape, row, places, params, shape)
    out = run(tape, base, shape, dtype)
    if dtype == FLOAT32:
        out.dtype = FLOAT64
        return elementwise("float32", out)
    return out


@functools.cache
def _rows() -> dict[str, Any]:
    from .ops.structural import STRUCTURAL  # loaded with the first structural operation

    return STRUCTURAL


def _is_gathered(tape: Tape, x: Any) -> bool:
    """Whether an operand is a large array whose cells come from several places."""
    if not isinstance(x, TrackedArray) or x.window.size < GATHERED:
        return False
    return tape.import_storage(x.storage).index is not None


def _axes(name: str, axis: Any, ndim: int) -> Any:
    """Return an axis argument in the one form that rules run on: no sweep may stumble over it.

    That is a tuple of integers from 0 for reductions, and an integer for scans.
    """
    if axis is None:
        return tuple(range(ndim))
    if ndim == 0 and (axis == 0 or axis == -1):
        return ()  # NumPy lets a number pass for a vector of one element here
    try:
        if name in ("cumsum", "cumprod"):
            return normalize_axis_index(operator.index(axis), ndim)
        return normalize_axis_tuple(axis, ndim)
    except (TypeError, ValueError) as error:  # AxisError is a ValueError
        raise type(error)(f"{name}: axis={axis!r}: {error}{at_caller()}") from None


def result_shape(name: str, shapes: list[Shape], params: dict[str, Any]) -> Shape:
    """Return the shape of a structural row's result.

    Raises
    ------
    numpy.exceptions.AxisError
        If an axis is out of range.
    ValueError
        If an axis is given twice, shapes do not match, or the extremum of nothing is asked for.
    """
    if name == "matmul":
        return _matmul_shape(*shapes)
    (shape,) = shapes
    axes = params["axis"]
    if name in ("cumsum", "cumprod"):
        return shape
    if name in ("min", "max") and any(shape[i] == 0 for i in axes):
        raise ValueError(
            f"zero-size array to reduction operation {name}imum which has no identity{at_caller()}"
        )
    if params["keepdims"]:
        return tuple([1 if i in axes else n for i, n in enumerate(shape)])
    return tuple([n for i, n in enumerate(shape) if i not in axes])


def _matmul_shape(x: Shape, y: Shape) -> Shape:
    if not x or not y:
        raise ValueError(
            "matmul: an operand has no axes (a scalar); use * for products with scalars"
            f"{at_caller()}"
        )
    inner = y[-2] if len(y) > 1 else y[0]
    if x[-1] != inner:
        raise ValueError(
            f"matmul: operands of shapes {x} and {y} do not match: {x[-1]} columns against "
            f"{inner} rows{at_caller()}"
        )
    try:
        stack = broadcast_shapes(x[:-2], y[:-2])
    except ValueError as error:
        raise ValueError(f"matmul, leading axes: {error}{at_caller()}") from None
    return stack + x[-2:-1] + (y[-1:] if len(y) > 1 else ())
