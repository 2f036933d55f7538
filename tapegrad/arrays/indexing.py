"""Reading and assigning elements: indices are rearranged, and no instruction is recorded."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import at_caller
from ..recording import (
    FLOAT32,
    FLOAT64,
    array,
    cell_of,
    cells_of,
    check_dtype,
    dtype_of,
    elementwise,
    operand,
    scalar,
    shape_of,
)
from ..storage import Storage, Tracked, TrackedArray
from ..tape import recorder
from ..window import Window


def get(x: TrackedArray, key: Any) -> Any:
    """Return ``x[key]``: a scalar, a view, or (fancy keys) an array on the same cells."""
    key = plain_key(key)
    window, where = _select(x.window, key)
    if window is None:
        return gather(x, where)
    if window.shape or _has_ellipsis(key):
        return array(x.storage, window, x.dtype)
    tape = recorder.current()
    storage = tape.import_storage(x.storage)
    position = window.offset
    cell = storage.base + position if storage.index is None else storage.peek(position)
    return scalar(tape, cell, x.dtype)


def _select(window: Window, key: Any) -> tuple[Window | None, Any]:
    """Return what a key selects: a window, or (fancy keys) None and positions in the storage."""
    try:
        target = window.basic(key)
        return target, positions(window, key) if target is None else None
    except (IndexError, TypeError, ValueError) as error:
        raise type(error)(f"{error}{at_caller()}") from None


def gather(x: TrackedArray, where: np.ndarray[Any, Any]) -> Any:
    """Return the elements at given positions of x's storage, as an array of their shape."""
    tape = recorder.current()
    storage = tape.import_storage(x.storage)
    if storage.index is None:
        cells = (where + storage.base).astype(np.uint32)
    else:
        cells = storage.index[where]
    if where.ndim == 0:
        return scalar(tape, int(cells), x.dtype)
    return on_cells(tape, cells, x.dtype)


def on_cells(tape: Any, cells: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> Any:
    """Return a new array on given cells, in their shape."""
    storage = Storage(tape, 0, cells.size)
    storage.adopt_cells(tape, np.ascontiguousarray(cells, np.uint32).ravel())
    return array(storage, Window.contiguous(0, cells.shape), dtype)


def positions(window: Window, key: Any) -> np.ndarray[Any, Any]:
    """Return the positions in the storage that a fancy key selects, as NumPy selects them.

    Each axis' part is found by indexing a broadcast range, so the cost is that of the result, not
    of the window.
    """
    shape = window.shape
    if not shape:
        return np.asarray(np.broadcast_to(np.int64(window.offset), ())[key])
    total: Any = np.int64(window.offset)
    for axis, (n, stride) in enumerate(zip(shape, window.strides, strict=True)):
        along = np.arange(n).reshape((n,) + (1,) * (len(shape) - axis - 1))
        total = total + stride * np.broadcast_to(along, shape)[key]
    return np.asarray(total)


def plain_key(key: Any) -> Any:
    """Return a key without tracked values: integers and masks that depend on them are decisions."""
    if isinstance(key, tuple):
        return tuple([_plain_part(part) for part in key])
    return _plain_part(key)


def _plain_part(part: Any) -> Any:
    if isinstance(part, Tracked):
        if dtype_of(part).kind == "f":
            raise IndexError(
                "arrays used as indices must be of integer (or boolean) type, but this index is "
                f"a tracked {dtype_of(part)}; convert it with .value.astype(int){at_caller()}"
            )
        return part.value  # type: ignore[attr-defined]
    if isinstance(part, list) and any(isinstance(i, Tracked) for i in part):
        return [_plain_part(i) for i in part]
    return part


def _has_ellipsis(key: Any) -> bool:
    return key is Ellipsis or (isinstance(key, tuple) and any(part is Ellipsis for part in key))


def assign(x: TrackedArray, key: Any, value: Any) -> None:
    """Do ``x[key] = value`` by pointing x's storage at the cells of `value`.

    Raises
    ------
    RuntimeError
        If `x` is a leaf that requires a gradient.
    ValueError
        If `value` cannot be broadcast to the selection.
    IndexError
        If `key` is out of range.
    """
    storage = x.storage
    if storage.leaf is not None and storage.leaf.requires_grad:
        if not recorder.tape.detached:
            raise RuntimeError(
                "assignment into a leaf that requires a gradient: x.grad could no longer tell "
                "which values it belongs to; assign into x.copy(), or under tg.no_grad() to "
                f"change the leaf itself{at_caller()}"
            )
        _replace_leaf(x, plain_key(key), value)
        return
    key = plain_key(key)
    value = operand(value)
    if value is NotImplemented:
        raise TypeError(f"cannot assign this object to elements of a tracked array{at_caller()}")
    target, where = _select(x.window, key)
    shape = where.shape if target is None else target.shape
    value_shape = shape_of(value)
    if value_shape != shape and not _fits(value_shape, shape):
        raise ValueError(
            f"could not broadcast input array from shape {value_shape} into shape {shape}"
            f"{at_caller()}"
        )
    home = storage.tape
    if recorder.tape.detached and home is not None and home.open and not home.detached:
        # Under no_grad, into an array of the recording outside: its other elements keep theirs.
        constant = value.value if isinstance(value, Tracked) else value  # type: ignore[attr-defined]
        inner, recorder.tape = recorder.tape, home
        try:
            _rename(x, target, where, constant)
        finally:
            recorder.tape = inner
        return
    _rename(x, target, where, value)


def _rename(x: TrackedArray, target: Window | None, where: Any, value: Any) -> None:
    """Point the selected elements (a window, or positions) at the cells of `value`."""
    tape = recorder.current()
    value = _in_dtype(value, x.dtype)
    if target is not None and not target.shape:
        cell = cell_of(tape, value if shape_of(value) == () else value.reshape(()))
        _own(x, tape).rename_cells()[target.offset] = cell
        return
    shape = target.shape if target is not None else where.shape
    if isinstance(value, np.ndarray):
        entry = tape.push_input(value)
        value = array(
            Storage(tape, entry.cell, value.size), Window.contiguous(0, value.shape), x.dtype
        )
    if target is not None and isinstance(value, TrackedArray) and _whole(x.storage, target):
        source = tape.import_storage(value.storage)
        if value.window.shape == shape and value.window.is_contiguous and source.index is None:
            x.storage.rename_run(tape, source.base + value.window.offset)
            return
    cells: Any
    if isinstance(value, TrackedArray):
        cells = cells_of(tape, value)
        if cells.ndim > len(shape):
            cells = cells.reshape(cells.shape[cells.ndim - len(shape) :])
    else:
        cells = cell_of(tape, value)
    index = _own(x, tape).rename_cells()
    if target is not None:
        target.view(index)[...] = cells
    else:
        index[where] = cells


def _own(x: TrackedArray, tape: Any) -> Storage:
    """Return x's storage, moved to `tape` for good so that it can be renamed there."""
    storage = x.storage
    local = tape.import_storage(storage)
    if local is not storage:
        storage.rename_run(tape, local.base)
    return storage


def _whole(storage: Storage, target: Window) -> bool:
    return target.offset == 0 and target.size == storage.size and target.is_contiguous


def _fits(value: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a value broadcasts into a selection; leading axes of length 1 may be dropped."""
    extra = len(value) - len(shape)
    if extra > 0:
        if any(n != 1 for n in value[:extra]):
            return False
        value = value[extra:]
    return all(n in (1, m) for n, m in zip(value, shape[len(shape) - len(value) :], strict=True))


def _in_dtype(value: Any, dtype: np.dtype[Any]) -> Any:
    """Return `value` as an array of `dtype` takes it: rounded to float32, or to an integer."""
    if dtype == FLOAT32:
        if isinstance(value, Tracked):
            return elementwise("float32", value) if dtype_of(value) != FLOAT32 else value
        return np.asarray(value, np.float32) if isinstance(value, np.ndarray) else np.float32(value)
    if dtype == FLOAT64:
        return value
    if not isinstance(value, Tracked):
        values = np.asarray(value).astype(dtype)
        return values if values.ndim else values.item()
    if dtype_of(value) != dtype:
        raise TypeError(
            f"cannot assign {dtype_of(value)} values to a tracked {dtype} array; convert them "
            f"with .astype({dtype}){at_caller()}"
        )
    return value


def _replace_leaf(x: TrackedArray, key: Any, value: Any) -> None:
    """Under no_grad: give a leaf new values; recordings that imported the old ones keep them."""
    leaf = x.storage.leaf
    assert leaf is not None
    if isinstance(value, Tracked):
        value = value.value  # type: ignore[attr-defined]
    check_dtype(np.asarray(value).dtype)
    values = leaf.value.copy()
    x.window.view(values.reshape(-1))[key] = value
    leaf.value = values
    x.storage.tape = None
    x.storage.version += 1
