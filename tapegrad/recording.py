"""Recording one operation on any mixture of operands: dtypes, shapes, constants, broadcasting.

This is the general way.  Operators between scalars of the current tape take a short cut in
`tapegrad.arrays.array` and never come here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from .errors import NotDifferentiableError, at_caller
from .kernels.opcodes import CARRY, INTEGER_OPERAND, LANES, NONDIFF, RESULT, ROWS
from .storage import Storage, Tracked, TrackedArray, TrackedScalar
from .tape import Tape, recorder
from .window import Shape, Window, broadcast_shapes, coalesce

FLOAT64 = np.dtype(np.float64)
FLOAT32 = np.dtype(np.float32)
BOOL = np.dtype(np.bool_)
INT64 = np.dtype(np.int64)

# Kinds of operand windows in an array instruction's descriptor.
CELLS, INDEXED, CONSTANT, PASSIVE_CELLS = range(4)

_LOGICAL = {"add": "logical_or", "multiply": "logical_and"}  # what NumPy does for two booleans


class _Classes:
    """The public array classes, which their modules put here: results are made of them."""

    scalar: type[Any]
    array: type[Any]
    gather: Callable[[Any], Any]  # what makes an array of nested lists of tracked values


classes = _Classes()


# -- making results -----------------------------------------------------------------------------


def scalar(tape: Tape, cell: int, dtype: np.dtype[Any] = FLOAT64) -> Any:
    """Return the tracked scalar that stands for a cell."""
    if dtype is FLOAT64:
        out = classes.scalar()
        out.tape, out.cell = tape, cell
        return out
    return array(Storage(tape, cell, 1), Window(0, (), ()), dtype)


def array(storage: Storage, window: Window, dtype: np.dtype[Any] = FLOAT64) -> Any:
    """Return the tracked array that is a window on a storage."""
    out = classes.array()
    out.storage, out.window, out.dtype = storage, window, dtype
    return out


def run(tape: Tape, base: int, shape: Shape, dtype: np.dtype[Any] = FLOAT64) -> Any:
    """Return the tracked array (or scalar, for shape ``()``) on consecutive cells."""
    if not shape:
        return scalar(tape, base, dtype)
    window = _whole(shape)
    return array(Storage(tape, base, prod(shape)), window, dtype)


@functools.lru_cache(1 << 10)
def _whole(shape: Shape) -> Window:
    """Return the window on all of a storage, in C order."""
    return Window.contiguous(0, shape)


# -- operands --------------------------------------------------------------------------------------


def operand(x: Any) -> Any:
    """Return `x` as a tracked value, a Python float, or an ndarray; NotImplemented if it is none.

    Raises
    ------
    TypeError
        For arrays of complex, object, string or extended precision type.
    """
    if isinstance(x, Tracked):
        return x
    kind = type(x)
    if kind is float or kind is int or kind is bool:
        return x
    if isinstance(x, (list, tuple)):
        if holds_tracked(x):
            return classes.gather(x)
        x = np.asarray(x)
    if isinstance(x, (np.ndarray, np.generic)):
        check_dtype(x.dtype)
        return x
    if isinstance(x, (float, int)):
        return float(x)
    return NotImplemented


def holds_tracked(x: Any) -> bool:
    """Whether nested lists or tuples hold a tracked value."""
    if isinstance(x, (list, tuple)):
        return any(holds_tracked(item) for item in x)
    return isinstance(x, Tracked)


def check_dtype(dtype: np.dtype[Any]) -> None:
    """Raise TypeError unless numbers of `dtype` can meet tracked ones."""
    if dtype.kind in "biu" or (dtype.kind == "f" and dtype.itemsize <= 8):
        return
    what = {"c": "complex numbers are", "O": "an object array is"}.get(
        dtype.kind, f"dtype {dtype} is"
    )
    raise TypeError(
        f"{what} not supported together with tracked values, which are float64 or float32; "
        f"convert the operand first{at_caller()}"
    )


def shape_of(x: Any) -> Shape:
    """Return the shape of an operand."""
    if isinstance(x, TrackedArray):
        return x.window.shape
    if isinstance(x, np.ndarray):
        shape: Shape = x.shape
        return shape
    return ()


def dtype_of(x: Any) -> np.dtype[Any]:
    """Return the dtype of a tracked value or of a NumPy one."""
    if isinstance(x, TrackedScalar):
        return FLOAT64
    dtype: np.dtype[Any] = x.dtype
    return dtype


def promote(operands: Sequence[Any]) -> np.dtype[Any]:
    """Return the dtype that NumPy's promotion gives, Python scalars being weak."""
    for x in operands:
        if not isinstance(x, (TrackedScalar, float, int)) and (
            not isinstance(x, TrackedArray) or x.dtype is not FLOAT64
        ):
            break
    else:
        return FLOAT64  # np.float64 is a float, too
    strong = [dtype_of(x) for x in operands if not isinstance(x, (bool, float, int))]
    strong += [FLOAT64 for x in operands if isinstance(x, np.float64)]
    dtype = np.result_type(*strong)
    if dtype.kind in "biu" and any(type(x) in (float, int) for x in operands):
        return FLOAT64 if any(type(x) is float for x in operands) else np.result_type(dtype, INT64)
    if dtype == np.float16:
        return FLOAT32
    return dtype


def result_dtype(row: str, operands: Sequence[Any]) -> np.dtype[Any]:
    """Return the dtype of a row's result: bool for comparisons, else NumPy's promotion."""
    kind = RESULT.get(row)
    if kind == "bool":
        return BOOL
    if kind == "int":
        return INT64
    if row in INTEGER_OPERAND:
        operands = operands[1 - INTEGER_OPERAND[row] :][:1]  # the other one decides
    dtype = promote(operands[1:] if row == "where" else operands)
    if dtype is FLOAT64 and row != "float32":
        return FLOAT64
    if dtype == FLOAT32 or row == "float32":
        return FLOAT32
    if dtype.kind in "biu" and row in _INTEGER_ROWS:
        return BOOL if dtype.kind == "b" else INT64
    return FLOAT64


# Rows that give integers for integers; all others go over to float64, as NumPy's do.
_INTEGER_ROWS = frozenset(
    (
        *("add", "subtract", "multiply", "negative", "positive", "absolute", "square", "sign"),
        *("maximum", "minimum", "where", "remainder", "fmod", "floor_divide"),
        *("floor", "ceil", "trunc", "rint", "stop_gradient"),
    )
)


def cell_of(tape: Tape, x: Any) -> int:
    """Return the cell of a one-element operand in `tape`."""
    if isinstance(x, TrackedScalar):
        return x.cell if x.tape is tape else tape.import_scalar(x)
    if isinstance(x, TrackedArray):
        storage = tape.import_storage(x.storage)
        position = x.window.offset
        return storage.base + position if storage.index is None else int(storage.index[position])
    return tape.constant_cell(float(x))


def cells_of(tape: Tape, x: TrackedArray) -> np.ndarray[Any, Any]:
    """Return the cells of a tracked array's elements in `tape`, in its shape."""
    storage = tape.import_storage(x.storage)
    if storage.index is not None:
        return x.window.cells(storage.index)
    return x.window.cells() + storage.base


_common_shape = functools.lru_cache(1 << 12)(broadcast_shapes)


# -- elementwise rows ------------------------------------------------------------------------------


def elementwise(row: str, *operands: Any) -> Any:
    """Record a row of the table on its operands, broadcast together.

    Parameters
    ----------
    row : str
        Name of the row.
    *operands
        Tracked values, Python or NumPy numbers, ndarrays.

    Returns
    -------
    Array or NotImplemented
        NotImplemented where an operand is of a type that nothing is known of.
    """
    tape = recorder.current()
    out = _alike(tape, row, operands) if row not in _UNLIKE else None
    if out is not None:
        return out
    known = [operand(x) for x in operands]
    if any([x is NotImplemented for x in known]):
        return NotImplemented
    if row in NONDIFF and not tape.detached:
        raise NotDifferentiableError(
            f"{row} has no derivative: {NONDIFF[row]}; use the operand's .value, or compute it "
            f"under tg.no_grad(){at_caller()}"
        )
    dtype = result_dtype(row, known)
    single = dtype is not FLOAT64 and dtype == FLOAT32
    if dtype is BOOL and row in _LOGICAL:
        row = _LOGICAL[row]
    elif dtype is BOOL and row in ("subtract", "negative"):
        raise TypeError(
            f"numpy boolean {row}, the `-` operator, is not supported, use the bitwise_xor, the "
            f"`^` operator, or the logical_not function instead{at_caller()}"
        )
    if single or (dtype is BOOL and promote(known) == FLOAT32):
        known = [float(np.float32(x)) if type(x) in (float, int) else x for x in known]
    try:
        shape = _common_shape(*[shape_of(x) for x in known])
    except ValueError as error:
        raise ValueError(f"{row}: {error}{at_caller()}") from None
    if shape == ():
        cell = _scalar_instruction(tape, row, known)
        if single and row != "float32":
            cell = tape.push(ROWS["float32"][0], cell, 0)
        return scalar(tape, cell, dtype)
    out = run(tape, _array_instruction(tape, row, known, shape), shape, dtype)
    if single and row != "float32":
        return run(tape, _array_instruction(tape, "float32", [out], shape), shape, dtype)
    return out


# Rows whose result is not simply float64 where their operands are.
_UNLIKE = frozenset([*RESULT, *NONDIFF, *INTEGER_OPERAND, "float32"])


def _alike(tape: Tape, row: str, operands: Sequence[Any]) -> Any:
    """Record a row on float64 arrays of one shape, in C order on this tape, and on numbers.

    That is most of what array code does, and a shorter way than the general one. Returns
    None, and records nothing, where anything is otherwise.
    """
    window = None
    places: list[int] = []
    for x in operands:
        kind = x.__class__
        if kind is classes.array:
            storage, own = x.storage, x.window
            if storage.tape is not tape or storage.index is not None or x.dtype is not FLOAT64:
                return None
            shape = own.shape
            if window is None:
                window = _whole(shape)
            elif shape != window.shape:
                return None
            if len(shape) == 1:
                places += (CELLS, storage.base + own.offset, own.strides[0])
            elif own.strides == window.strides:
                places += (CELLS, storage.base + own.offset, 1)
            else:
                return None
        elif kind is float or kind is int:
            places += (CONSTANT, tape.constant(float(x)), 0)
        elif kind is classes.scalar and x.tape is tape:
            places += (CELLS, x.cell, 0)
        else:
            return None
    if window is None:
        return None
    size = window.size
    if size < 2:
        return None
    cell = tape.push_run(LANES, tape.d.extend([ROWS[row][0], 1, size, *places]), size)
    return array(Storage(tape, cell, size), window)


def _scalar_instruction(tape: Tape, row: str, operands: Sequence[Any]) -> int:
    op, op_xk, op_kx = ROWS[row]
    x = operands[0]
    if len(operands) == 1:
        return tape.push(op, cell_of(tape, x), 0)
    y = operands[1]
    if len(operands) == 2:
        if op_xk >= 0 and not isinstance(y, Tracked):
            return tape.push(op_xk, cell_of(tape, x), tape.constant(float(y)))
        if op_kx >= 0 and not isinstance(x, Tracked):
            return tape.push(op_kx, cell_of(tape, y), tape.constant(float(x)))
        a = cell_of(tape, x)
        return tape.push(op, a, cell_of(tape, y))
    a, b, c = (cell_of(tape, x) for x in operands)
    tape.push(CARRY, a, 0)
    return tape.push(op, b, c)


def _array_instruction(tape: Tape, row: str, operands: Sequence[Any], shape: Shape) -> int:
    places = [_place(tape, x) for x in operands]
    size, sizes, steps = _layout(shape, tuple([place[2] for place in places]))
    if size == 0:
        return 0
    descriptor = [ROWS[row][0], len(sizes), *sizes]
    for (kind, offset, _), strides in zip(places, steps, strict=True):
        descriptor += (kind, offset, *strides)
    return tape.push_run(LANES, tape.d.extend(descriptor), size)


_C_ORDER: Shape = ()  # no strides stand for those of an array in C order


@functools.lru_cache(1 << 12)
def _layout(
    shape: Shape, operands: tuple[tuple[Shape, Shape], ...]
) -> tuple[int, Shape, list[Shape]]:
    """Return how many lanes an instruction on operands of these shapes and strides has, and how.

    That is the extents of its axes, as few as possible, and the strides of each operand. Most of
    what a program computes, it computes again.
    """
    windows = [
        Window(0, own, strides) if strides else Window.contiguous(0, own)
        for own, strides in operands
    ]
    size = prod(shape)
    if size == 0 or len(shape) == 1:
        return size, shape, [window.broadcast_to(shape).strides for window in windows]
    sizes, steps = coalesce(shape, [window.broadcast_to(shape).strides for window in windows])
    return size, sizes, steps


_NUMBER: tuple[Shape, Shape] = (), ()


def _place(tape: Tape, x: Any) -> tuple[int, int, tuple[Shape, Shape]]:
    """Return kind and offset of an operand's window, and its shape and strides."""
    if isinstance(x, TrackedScalar):
        return CELLS, cell_of(tape, x), _NUMBER
    if isinstance(x, TrackedArray):
        window = x.window
        storage = tape.import_storage(x.storage)
        if storage.index is None:
            return CELLS, storage.base + window.offset, (window.shape, window.strides)
        offset = tape.x.extend(window.view(storage.index).ravel())
        return INDEXED, offset, (window.shape, _C_ORDER)
    if isinstance(x, np.ndarray) and x.size != 1:
        entry = tape.push_input(x)
        tape.captures(x)
        return PASSIVE_CELLS, entry.cell, (x.shape, _C_ORDER)
    if isinstance(x, np.ndarray):
        tape.captures(x)
        x = x.item()
    return CONSTANT, tape.constant(float(x)), _NUMBER
