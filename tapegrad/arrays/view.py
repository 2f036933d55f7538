"""`ArrayView`: a tracked array as a NumPy-like window on a storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .. import recording
from ..errors import at_caller
from ..recording import FLOAT64, elementwise
from ..storage import Leaf, TrackedArray
from ..tape import check_usable, read_cell, read_cells, recorder
from .array import Array
from .indexing import assign, get
from .scalar import Scalar
from .ufuncs import power


class ArrayView(Array, TrackedArray):
    """A window (offset, shape, strides) on a storage, which views share as NumPy's share memory."""

    __slots__ = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return self.window.shape

    @property
    def leaf(self) -> Leaf | None:
        """The leaf that this array is, if any (a view of a leaf is not one)."""
        leaf = self.storage.leaf
        if leaf is None or self.window.shape != leaf.value.shape:
            return None
        return leaf if self.window.offset == 0 and self.window.is_contiguous else None

    def _peek(self) -> Any:
        window, storage = self.window, self.storage
        if storage.leaf is not None:
            values = window.view(storage.leaf.value.reshape(-1))
        else:
            tape = storage.tape
            assert tape is not None
            if storage.index is None:
                check_usable(tape)
                run = read_cells(tape, storage.base, storage.size)
                values = window.view(run)
            else:
                values = read_cells(tape, window.view(storage.index), 0)
            if self.dtype is not FLOAT64:
                values = values.astype(self.dtype)
        if not window.shape:
            return values[()]
        values = values[...]
        values.flags.writeable = False
        return values

    def __bool__(self) -> bool:
        storage = self.storage
        if storage.size == 1 and storage.leaf is None and storage.index is None:
            tape = storage.tape
            assert tape is not None
            if tape.recording is None:  # one number: nothing but its cell is looked at
                return read_cell(tape, storage.base) != 0.0
        return super().__bool__()

    def _windowed(self) -> TrackedArray:
        return self

    def __len__(self) -> int:
        if not self.window.shape:
            raise TypeError("len() of unsized object")
        return self.window.shape[0]

    def __iter__(self) -> Iterator[Any]:
        if not self.window.shape:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(self.window.shape[0]))

    def __contains__(self, item: Any) -> bool:
        return bool(np.any(elementwise("equal", self, item)))

    def __getitem__(self, key: Any) -> Any:
        storage = self.storage
        tape = storage.tape
        # One element of a one-dimensional array in this thread's recording: no instruction.
        if (
            key.__class__ is int
            and tape is not None
            and tape.awake
            and self.dtype is FLOAT64
            and tape.thread._is_owned()
        ):
            window = self.window
            if len(window.shape) == 1:
                n = window.shape[0]
                if -n <= key < n:
                    position = window.offset + window.strides[0] * (key if key >= 0 else key + n)
                    out = Scalar()
                    out.tape = tape
                    peek = storage.peek
                    out.cell = storage.base + position if peek is None else peek(position)
                    return out
        return get(self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        storage = self.storage
        if value.__class__ is Scalar and key.__class__ is int and storage.index is not None:
            tape = storage.tape
            window = self.window
            if (
                value.tape is tape
                and tape is not None
                and tape.awake
                and tape.thread._is_owned()
                and self.dtype is FLOAT64
                and len(window.shape) == 1
            ):
                n = window.shape[0]
                if -n <= key < n:
                    position = window.offset + window.strides[0] * (key if key >= 0 else key + n)
                    storage.index[position] = value.cell
                    storage.version += 1
                    return
        assign(self, key, value)

    # In place: the result takes the place of the elements, in every view of the storage.

    def __iadd__(self, other: Any) -> Any:
        return _update(self, _add, other)

    def __isub__(self, other: Any) -> Any:
        return _update(self, _subtract, other)

    def __imul__(self, other: Any) -> Any:
        return _update(self, _multiply, other)

    def __itruediv__(self, other: Any) -> Any:
        return _update(self, _divide, other)

    def __ifloordiv__(self, other: Any) -> Any:
        return _update(self, _floor_divide, other)

    def __imod__(self, other: Any) -> Any:
        return _update(self, _remainder, other)

    def __ipow__(self, other: Any) -> Any:
        return _update(self, power, other)

    def __imatmul__(self, other: Any) -> Any:
        return _update(self, Array.__matmul__, other)


def _row(name: str) -> Callable[[Any, Any], Any]:
    return lambda x, y: elementwise(name, x, y)


_add, _subtract, _multiply, _divide = map(_row, ("add", "subtract", "multiply", "divide"))
_floor_divide, _remainder = _row("floor_divide"), _row("remainder")


def _update(self: ArrayView, operate: Callable[[Any, Any], Any], other: Any) -> Any:
    leaf = self.storage.leaf
    if leaf is not None and leaf.requires_grad and not recorder.tape.detached:
        assign(self, ..., 0.0)  # raises, and says why, before anything is recorded
    result = operate(self, other)
    if result is NotImplemented:
        return result
    if result.shape != self.shape:
        raise ValueError(
            f"non-broadcastable output operand with shape {self.shape} doesn't match the "
            f"broadcast shape {result.shape}{at_caller()}"
        )
    assign(self, ..., result)
    return self


recording.classes.array = ArrayView
