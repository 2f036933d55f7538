"""NumPy's functions on tracked values: the ``__array_function__`` protocol.

Four kinds: functions that only rearrange elements, which rearrange indices of cells and record
nothing; functions that are rows or structural rows; functions that make arrays; and decisions
(``argmax``, ``isclose``, ...), which look at the values and have no derivative to lose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import recording
from ..decisions import FUNCTIONS as DECIDING
from ..errors import at_caller
from ..matmul import matmul
from ..recording import cells_of, elementwise, shape_of
from ..storage import Storage, Tracked, TrackedArray
from ..tape import recorder
from ..window import Window
from .array import FUNCTIONS
from .creation import full, ones, zeros
from .indexing import gather, on_cells

Function = Callable[..., Any]


def implements(*functions: Any) -> Callable[[Function], Function]:
    """Register a function as tapegrad's version of NumPy functions."""

    def register(ours: Function) -> Function:
        for function in functions:
            FUNCTIONS[function] = ours
        return ours

    return register


def tracked(x: Any) -> Any:
    """Return array-like `x` as a tracked array or scalar; numbers become constants."""
    if isinstance(x, Tracked):
        return x
    known = recording.operand(x)
    if known is NotImplemented:
        raise TypeError(f"expected numbers or arrays, got a {type(x).__name__}{at_caller()}")
    return known if isinstance(known, Tracked) else _constant(known)


def _constant(x: Any) -> Any:
    tape = recorder.current()
    values = np.asarray(x)
    entry = tape.push_input(values)
    tape.captures(x)
    storage = Storage(tape, entry.cell, values.size)
    dtype = recording.FLOAT32 if values.dtype == np.float32 else recording.FLOAT64
    return recording.array(storage, Window.contiguous(0, values.shape), dtype)


# -- rearranging: NumPy's own function on the indices ----------------------------------------------


def _rearranged(function: Any) -> Function:
    def ours(a: Any, *args: Any, **kwargs: Any) -> Any:
        x = tracked(a)._windowed()
        return gather(x, np.asarray(function(x.window.cells(), *args, **kwargs)))

    ours.__doc__ = f"{function.__name__}: rearranges indices, records nothing."
    return ours


_REARRANGING: tuple[Any, ...] = (
    np.flip, np.fliplr, np.flipud, np.roll, np.rot90, np.repeat, np.tile, np.take,
    np.take_along_axis, np.diagonal, np.delete, np.resize, np.broadcast_to, np.moveaxis,
    np.rollaxis, np.expand_dims, np.atleast_1d, np.atleast_2d, np.atleast_3d, np.transpose,
    np.swapaxes, np.squeeze, np.ravel, np.reshape,
)  # fmt: skip
for _function in _REARRANGING:
    FUNCTIONS[_function] = _rearranged(_function)


@implements(np.compress)
def compress(condition: Any, a: Any, axis: Any = None, out: Any = None) -> Any:
    """Return the slices along an axis where a condition holds."""
    return np.take(a, np.flatnonzero(_decided(condition)), axis=axis)


@implements(np.extract)
def extract(condition: Any, arr: Any) -> Any:
    """Return the elements where a condition holds, along one axis."""
    return np.take(arr, np.flatnonzero(_decided(condition)))


def _view(method: str) -> Function:
    def ours(a: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(a, method)(*args, **kwargs)

    ours.__doc__ = f"{method}: a view, as NumPy's is."
    return ours


for _function, _name in (
    (np.transpose, "transpose"), (np.swapaxes, "swapaxes"), (np.squeeze, "squeeze"),
    (np.ravel, "ravel"), (np.copy, "copy"), (np.round, "round"), (np.cumsum, "cumsum"),
    (np.cumprod, "cumprod"),
):  # fmt: skip
    FUNCTIONS[_function] = _view(_name)


@implements(np.reshape)
def reshape(a: Any, shape: Any = None, order: str = "C", **kwargs: Any) -> Any:
    """Return a view of another shape."""
    return a.reshape(kwargs.get("newshape", shape), order=order)


def _windowed(method: str) -> Function:
    def ours(a: Any, *args: Any, **kwargs: Any) -> Any:
        return a._view(method, *args, **kwargs)

    ours.__doc__ = f"{method}: a view, as NumPy's is."
    return ours


for _function, _name in (
    (np.moveaxis, "moveaxis"), (np.expand_dims, "expand_dims"), (np.flip, "flip"),
    (np.diagonal, "diagonal"),
):  # fmt: skip
    FUNCTIONS[_function] = _windowed(_name)


@implements(np.broadcast_to)
def broadcast_to(array: Any, shape: Any, subok: bool = False) -> Any:
    """Return a view of the given shape."""
    return tracked(array)._view("broadcast_to", shape)


@implements(np.broadcast_arrays)
def broadcast_arrays(*args: Any, subok: bool = False) -> Any:
    """Return views of the common shape."""
    shape = np.broadcast_shapes(*[np.shape(x) for x in args])
    return tuple([broadcast_to(tracked(x), shape) for x in args])


def _joined(function: Any) -> Function:
    """Return a function that joins arrays by joining their cells."""

    def ours(arrays: Any, *args: Any, **kwargs: Any) -> Any:
        parts = [tracked(x)._windowed() for x in arrays]
        tape = recorder.current()
        dtype = np.result_type(*[x.dtype for x in parts])
        cells = function([cells_of(tape, x) for x in parts], *args, **kwargs)
        return on_cells(tape, cells, recording.FLOAT64 if dtype.kind != "f" else dtype)

    ours.__doc__ = f"{function.__name__}: joins indices of cells, records nothing."
    return ours


for _function in (np.concatenate, np.stack, np.vstack, np.hstack, np.dstack, np.column_stack):
    FUNCTIONS[_function] = _joined(_function)


@implements(np.append)
def append(arr: Any, values: Any, axis: Any = None) -> Any:
    """Return `arr` with `values` appended."""
    if axis is None:
        arr, values, axis = tracked(arr).ravel(), tracked(values).ravel(), 0
    return np.concatenate((arr, values), axis=axis)


def _split(function: Any) -> Function:
    def ours(ary: Any, *args: Any, **kwargs: Any) -> Any:
        x = ary._windowed()
        return [gather(x, part) for part in function(x.window.cells(), *args, **kwargs)]

    ours.__doc__ = f"{function.__name__}: splits indices, records nothing."
    return ours


for _function in (np.split, np.array_split, np.hsplit, np.vsplit, np.dsplit, np.meshgrid):
    FUNCTIONS[_function] = _split(_function)
del FUNCTIONS[np.meshgrid]


@implements(np.diag)
def diag(v: Any, k: int = 0) -> Any:
    """Return the diagonal of a matrix, or the matrix with a given diagonal."""
    if v.ndim == 2:
        return np.diagonal(v, k)
    n = v.size + abs(k)
    out = zeros((n, n), v.dtype)
    i = np.arange(v.size)
    out[i + max(-k, 0), i + max(k, 0)] = v
    return out


def _triangle(function: Any) -> Function:
    def ours(m: Any, k: int = 0) -> Any:
        return elementwise("where", function(np.ones(m.shape, bool), k), m, 0.0)

    ours.__doc__ = f"{function.__name__}: the other elements become zero."
    return ours


FUNCTIONS[np.tril], FUNCTIONS[np.triu] = _triangle(np.tril), _triangle(np.triu)


# -- rows and reductions ---------------------------------------------------------------------------


def _reduction(name: str) -> Function:
    def ours(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, **kwargs: Any) -> Any:
        keepdims = kwargs.pop("keepdims", False)
        if out is not None or kwargs or dtype not in (None, float, np.float64):
            raise NotImplementedError(
                f"np.{name} of tracked values takes axis= and keepdims= only; use np.where to "
                f"leave elements out{at_caller()}"
            )
        return getattr(tracked(a), name)(axis=axis, keepdims=bool(keepdims))

    ours.__doc__ = f"{name} over axes."
    return ours


for _function, _name in (
    (np.sum, "sum"), (np.prod, "prod"), (np.mean, "mean"), (np.min, "min"), (np.max, "max"),
    (np.amin, "min"), (np.amax, "max"),
):  # fmt: skip
    FUNCTIONS[_function] = _reduction(_name)


@implements(np.where)
def where(condition: Any, *branches: Any) -> Any:
    """Return elements of `x` where `condition` is true, of `y` elsewhere.

    The branch not taken contributes exactly 0 to the gradient, even where it is nan.
    """
    if not branches:
        return np.nonzero(condition)
    x, y = branches
    result = elementwise("where", condition, x, y)
    if result is NotImplemented:
        raise TypeError(f"np.where of tracked values takes numbers and arrays{at_caller()}")
    return result


@implements(np.clip)
def clip(a: Any, a_min: Any = None, a_max: Any = None, out: Any = None, **kwargs: Any) -> Any:
    """Limit values; the gradient is 1 inside, 0 outside, 1/2 at a bound."""
    low, high = kwargs.pop("min", a_min), kwargs.pop("max", a_max)
    if out is not None or kwargs:
        raise NotImplementedError(f"np.clip of tracked values takes the bounds only{at_caller()}")
    return tracked(a).clip(low, high)


FUNCTIONS[np.around] = FUNCTIONS[np.round]


@implements(np.dot)
def dot(a: Any, b: Any, out: Any = None) -> Any:
    """Return the dot product of operands of at most two axes."""
    return tracked(a).dot(b)


@implements(np.inner, np.vdot)
def inner(a: Any, b: Any, /) -> Any:
    """Return the inner product of two vectors."""
    if len(shape_of(a)) > 1 or len(shape_of(b)) > 1:
        raise NotImplementedError(
            "np.inner and np.vdot of tracked values take vectors only; use @ for matrices"
            + at_caller()
        )
    return tracked(a).dot(b)


@implements(np.outer)
def outer(a: Any, b: Any, out: Any = None) -> Any:
    """Return the outer product of two (flattened) arrays."""
    return tracked(a).reshape(-1, 1) * tracked(b).reshape(1, -1)


@implements(np.trace)
def trace(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    """Return the sum along a diagonal."""
    return np.diagonal(a, offset, axis1, axis2).sum(axis=-1)


@implements(np.diff)
def diff(a: Any, n: int = 1, axis: int = -1) -> Any:
    """Return the n-th differences along an axis."""
    x = np.moveaxis(a, axis, -1)
    for _ in range(n):
        x = x[..., 1:] - x[..., :-1]
    return np.moveaxis(x, -1, axis)


@implements(np.sinc)
def sinc(x: Any) -> Any:
    """Return ``sin(pi x) / (pi x)``."""
    return elementwise("sinc", x)


@implements(np.fix)
def fix(x: Any, out: Any = None) -> Any:
    """Return `x` rounded towards zero."""
    return np.trunc(x, out=out)


FUNCTIONS[np.real] = FUNCTIONS[np.real_if_close] = lambda val, *_: val
FUNCTIONS[np.matmul] = matmul


# -- making arrays ---------------------------------------------------------------------------------


@implements(np.zeros_like, np.empty_like)
def zeros_like(a: Any, dtype: Any = None, order: str = "K", subok: bool = True, **kw: Any) -> Any:
    """Return zeros of the shape and dtype of `a`, which tracked values can be assigned to."""
    return zeros(_shape(a, kw), dtype or a.dtype)


@implements(np.ones_like)
def ones_like(a: Any, dtype: Any = None, order: str = "K", subok: bool = True, **kw: Any) -> Any:
    """Return ones of the shape and dtype of `a`."""
    return ones(_shape(a, kw), dtype or a.dtype)


@implements(np.full_like)
def full_like(a: Any, fill_value: Any, dtype: Any = None, *_: Any, **kw: Any) -> Any:
    """Return an array of one value, of the shape and dtype of `a`."""
    return full(_shape(a, kw), fill_value, dtype or a.dtype)


def _shape(a: Any, kwargs: dict[str, Any]) -> Any:
    shape = kwargs.get("shape")
    return a.shape if shape is None else shape


# -- decisions -------------------------------------------------------------------------------------


def _decision(function: Any) -> Function:
    def ours(*args: Any, **kwargs: Any) -> Any:
        outcome = function(*[_value(x) for x in args], **{k: _value(x) for k, x in kwargs.items()})
        tape = recorder.tape
        if tape.recording is not None and tape.recording.decisions is not None:
            tape.recording.decisions.call(tape, function, args, kwargs, outcome)
        return outcome

    ours.__doc__ = f"{function.__name__}: answers from the values; it has no derivative to lose."
    return ours


def _decided(x: Any) -> Any:
    """Return a mask whose values decide which elements are taken."""
    return x.value if isinstance(x, Tracked) else x  # type: ignore[attr-defined]


def _value(x: Any) -> Any:
    if isinstance(x, Tracked):
        return x._peek()  # type: ignore[attr-defined]
    if isinstance(x, (list, tuple)):
        return type(x)(_value(item) for item in x)
    return x


for _function in (*DECIDING.values(), np.histogram_bin_edges):
    FUNCTIONS[_function] = _decision(_function)


def _look(function: Any) -> Function:
    def ours(*args: Any, **kwargs: Any) -> Any:
        return function(*map(_value, args), **{k: _value(x) for k, x in kwargs.items()})

    ours.__doc__ = f"{function.__name__}: its answer decides nothing, so it is no decision."
    return ours


for _function in (
    np.array_repr, np.array_str, np.array2string, np.iscomplexobj, np.isrealobj,
    np.may_share_memory, np.shares_memory,
):  # fmt: skip
    FUNCTIONS[_function] = _look(_function)


FUNCTIONS[np.shape] = lambda a: a.shape
FUNCTIONS[np.ndim] = lambda a: a.ndim
FUNCTIONS[np.size] = lambda a, axis=None: a.size if axis is None else a.shape[axis]
FUNCTIONS[np.result_type] = lambda *xs: np.result_type(
    *[recording.dtype_of(x) if isinstance(x, Tracked) else x for x in xs]
)
FUNCTIONS[np.can_cast] = lambda a, to, casting="safe": np.can_cast(a.dtype, to, casting)

__all__ = ["FUNCTIONS", "TrackedArray", "implements"]
