"""Making tracked arrays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import recording
from ..errors import at_caller
from ..recording import FLOAT32, FLOAT64, cell_of, cells_of, elementwise
from ..storage import Leaf, Storage, Tracked, TrackedArray
from ..tape import recorder
from ..window import Window
from .array import UNPICKLE
from .indexing import on_cells
from .scalar import Scalar


def array(x: Any, dtype: Any = None, requires_grad: bool = True) -> Any:
    """Make a leaf: an array whose gradient `backward` finds.

    Parameters
    ----------
    x : array_like
        Numbers, or (nested lists of) tracked values, which are gathered into one array without an
        instruction.  The values are copied.
    dtype : dtype, optional
        ``float64`` or ``float32``.  By default the dtype of `x`, and float64 for Python numbers.
    requires_grad : bool, optional
        Whether a gradient is wanted.  Ignored for tracked values, which bring their own.

    Returns
    -------
    Array

    Raises
    ------
    TypeError
        For integer, boolean, complex, object or string data: they have no derivative.
    ValueError
        For ragged nested lists.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> x = tg.array([1.0, 2.0, 3.0])
    >>> y = np.sum(x**2 + 2)
    >>> y.backward()
    >>> x.grad
    array([2., 4., 6.])
    """
    if isinstance(x, Tracked):
        return x.copy() if dtype is None else x.astype(dtype)  # type: ignore[attr-defined]
    if isinstance(x, (list, tuple)) and recording.holds_tracked(x):
        gathered = gather(x)
        return gathered if dtype is None else gathered.astype(dtype)
    return leaf(real_values(x, dtype), requires_grad)


def leaf(values: Any, requires_grad: bool) -> Any:
    """Return a leaf that owns `values` (a C-contiguous float64 or float32 ndarray)."""
    owner = Leaf(values, requires_grad)
    if values.ndim == 0 and values.dtype == FLOAT64:
        scalar = Scalar()
        scalar._leaf, scalar.tape, scalar.cell = owner, None, 0
        return scalar
    storage = Storage(None, 0, values.size, owner)
    dtype = FLOAT64 if values.dtype == FLOAT64 else FLOAT32
    return recording.array(storage, Window.contiguous(0, values.shape), dtype)


def real_values(x: Any, dtype: Any = None) -> Any:
    """Return a C-contiguous float64 or float32 copy of array-like numbers, or raise TypeError."""
    values = np.asarray(x)
    if dtype is None:
        python_ints = values.dtype.kind in "iu" and not isinstance(x, (np.ndarray, np.generic))
        dtype = FLOAT64 if python_ints else values.dtype
    dtype = np.dtype(dtype).newbyteorder("=")
    real = values.dtype.kind in "fiub"
    if not real or dtype not in (FLOAT64, FLOAT32):
        fix = "convert with tg.array(x, dtype=float)" if real else "pass real numbers"
        raise TypeError(
            f"values of dtype {dtype if real else values.dtype} have no derivative; tracked "
            f"arrays are float64 or float32: {fix}{at_caller()}"
        )
    return np.array(values, dtype, order="C")


def gather(x: Any) -> Any:
    """Return nested lists with tracked values in them as one array on their cells."""
    tape = recorder.current()
    dtypes: list[Any] = []

    def cells(item: Any) -> Any:
        if isinstance(item, (list, tuple)):
            parts = [cells(part) for part in item]
            if any(part.shape != parts[0].shape for part in parts):
                raise ValueError(
                    "setting an array element with a sequence: the nested lists have an "
                    f"inhomogeneous shape{at_caller()}"
                )
            return np.stack(parts) if parts else np.empty(0, np.uint32)
        if isinstance(item, TrackedArray):
            dtypes.append(item.dtype)
            return cells_of(tape, item)
        if isinstance(item, Tracked):
            dtypes.append(FLOAT64)
            return np.asarray(cell_of(tape, item))
        values = np.asarray(item)
        recording.check_dtype(values.dtype)
        dtypes.append(values.dtype)
        entry = tape.push_input(values)
        return np.arange(entry.cell, entry.cell + entry.size).reshape(values.shape)

    found = cells(x)
    dtype = FLOAT32 if np.result_type(*dtypes) == FLOAT32 else FLOAT64
    return on_cells(tape, found, dtype)


def constant(x: Any, dtype: Any = None) -> Any:
    """Return an array that no gradient is wanted for, copied once and shared by all recordings.

    An ndarray operand is copied into every operation that uses it; a constant only once a
    recording.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> t = tg.constant(np.linspace(0.0, 1.0, 5))
    >>> tg.grad(lambda k: np.sum(np.exp(k * t)))(0.0)
    2.5
    """
    values = np.asarray(x)
    if values.dtype.kind in "iu" and dtype is None:
        dtype = FLOAT64
    return leaf(real_values(values, dtype), requires_grad=False)


def zeros(shape: Any, dtype: Any = float) -> Any:
    """Return an array of zeros that tracked values can be assigned to, like `numpy.zeros`.

    Examples
    --------
    >>> import tapegrad as tg
    >>> x, y = tg.array(2.0), tg.zeros(2)
    >>> y[0] = x * x
    >>> y[1] = 3 * x
    >>> y.sum().backward()
    >>> float(x.grad)
    7.0
    """
    return _constant_array(np.zeros(shape), dtype)


def ones(shape: Any, dtype: Any = float) -> Any:
    """Return an array of ones that tracked values can be assigned to, like `numpy.ones`."""
    return _constant_array(np.ones(shape), dtype)


def full(shape: Any, fill_value: Any, dtype: Any = float) -> Any:
    """Return a constant array, like `numpy.full`; the fill value may be tracked."""
    if isinstance(fill_value, Tracked):
        out = zeros(shape, dtype)
        out[...] = fill_value
        return out
    return _constant_array(np.full(shape, fill_value), dtype)


def _constant_array(values: Any, dtype: Any) -> Any:
    """Return a constant that can be assigned to, also where it has no axes."""
    values = real_values(values, dtype)
    storage = Storage(None, 0, values.size, Leaf(values, False))
    kind = FLOAT64 if values.dtype == FLOAT64 else FLOAT32
    return recording.array(storage, Window.contiguous(0, values.shape), kind)


def stop_gradient(x: Any) -> Any:
    """Return `x` as a constant: its value is used, and no gradient flows through it.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.grad(lambda x: x * tg.stop_gradient(x))(3.0)
    3.0
    """
    return elementwise("stop_gradient", x) if isinstance(x, Tracked) else x


@contextmanager
def no_grad() -> Iterator[None]:
    """Record nothing that gradients flow through, as for updating parameters.

    Under it, assignment to a leaf gives the leaf new values, as in ``w -= 0.1 * w.grad``.

    Examples
    --------
    >>> import tapegrad as tg
    >>> w = tg.array([1.0, 2.0])
    >>> (w * w).sum().backward()
    >>> with tg.no_grad():
    ...     w -= 0.1 * w.grad
    >>> w.value
    array([0.8, 1.6])
    """
    outer = recorder.enter(detached=True)
    try:
        yield
    finally:
        recorder.leave(outer)


def unpickle(values: Any, requires_grad: bool) -> Any:
    """Return the array that a pickle of one holds: a leaf."""
    if values.dtype.kind == "f":
        return leaf(values, requires_grad)
    return leaf(values.astype(FLOAT64), requires_grad=False).astype(values.dtype)


UNPICKLE.append(unpickle)
recording.classes.gather = gather
