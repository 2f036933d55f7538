"""NumPy's universal functions on tracked values: the ``__array_ufunc__`` protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import NotDifferentiableError, at_caller
from ..host import structural
from ..kernels.opcodes import INTEGER_OPERAND, MULTI_UFUNCS, UFUNCS
from ..matmul import matmul
from ..recording import FLOAT64, elementwise, operand, promote, shape_of
from ..storage import Tracked, TrackedArray
from .indexing import assign


def power(x: Any, y: Any) -> Any:
    """Record ``x ** y``; a constant integer exponent is exact and cheap."""
    if isinstance(y, (int, np.integer)) and not isinstance(y, bool):
        if isinstance(y, np.integer) and promote((x, y)) == FLOAT64:
            x = x.astype(FLOAT64)  # NumPy's integers are not weak: float32 ** int64 is float64
        if y == 2:
            return elementwise("square", x)
        return elementwise("integer_power", x, int(y))
    if type(y) is float and y in (2.0, 0.5, -1.0, 1.0):
        # NumPy's own short cuts for arrays
        return elementwise({2.0: "square", 0.5: "sqrt", -1.0: "reciprocal", 1.0: "positive"}[y], x)
    return elementwise("power", x, y)


def _in_double(x: Any) -> Any:
    x = operand(x)
    return x.astype(FLOAT64) if getattr(x, "dtype", FLOAT64) != FLOAT64 else x


# Ufuncs that are more than one row, or a choice between rows.
_SPECIAL: dict[Any, Callable[..., Any]] = {
    np.power: power,
    np.float_power: lambda x, y: elementwise("power", _in_double(x), _in_double(y)),
    np.matmul: matmul,
    np.bitwise_and: lambda x, y: elementwise("logical_and", x, y),
    np.bitwise_or: lambda x, y: elementwise("logical_or", x, y),
    np.bitwise_xor: lambda x, y: elementwise("logical_xor", x, y),
    np.invert: lambda x: elementwise("logical_not", x),
}
_BITWISE = (np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.invert)

_REDUCTIONS = {np.add: "sum", np.multiply: "prod", np.maximum: "max", np.minimum: "min"}
_ACCUMULATIONS = {np.add: "cumsum", np.multiply: "cumprod"}


def array_ufunc(ufunc: Any, method: str, inputs: Any, kwargs: dict[str, Any]) -> Any:
    """Record one call of a ufunc or of one of its methods.

    Raises
    ------
    NotDifferentiableError
        For a ufunc or a method that tapegrad does not know.
    TypeError
        When the output is an ndarray, which cannot hold tracked values.
    """
    if method == "__call__" and not kwargs:
        return _call(ufunc, inputs)
    out = kwargs.pop("out", None)
    where = kwargs.pop("where", True)
    for name, default in (("casting", "same_kind"), ("order", "K"), ("subok", True)):
        if kwargs.get(name, default) == default:
            kwargs.pop(name, None)
    dtype = kwargs.pop("dtype", None)
    if method == "__call__":
        if kwargs:
            raise _unsupported(f"np.{ufunc.__name__} with {', '.join(kwargs)}=")
        result = _call(ufunc, inputs)
    elif method in ("reduce", "accumulate", "outer"):
        if where is not True:
            raise _unsupported(f"np.{ufunc.__name__}.{method} with where=")
        result = _method(ufunc, method, inputs, kwargs)
    else:
        raise _unsupported(f"np.{ufunc.__name__}.{method}")
    if result is NotImplemented:
        return result
    if dtype is not None and result.dtype != np.dtype(dtype):
        if np.dtype(dtype).kind != result.dtype.kind:
            raise TypeError(
                f"np.{ufunc.__name__}(..., dtype={np.dtype(dtype)}): the result is "
                f"{result.dtype}; convert it with .astype{at_caller()}"
            )
        result = result.astype(dtype)
    if out is None:
        if where is not True:
            raise ValueError(
                f"np.{ufunc.__name__}(..., where=mask) leaves the other elements undefined "
                f"without out=; use np.where(mask, ..., ...){at_caller()}"
            )
        return result
    return _store(ufunc, out, where, result)


def _call(ufunc: Any, inputs: Any) -> Any:
    special = _SPECIAL.get(ufunc)
    if special is not None:
        if ufunc in _BITWISE:
            _check_boolean(ufunc, inputs)
        return special(*inputs)
    rows = MULTI_UFUNCS.get(ufunc.__name__)
    if rows is not None:
        return tuple([elementwise(row, *inputs) for row in rows])
    row = UFUNCS.get(ufunc.__name__)
    if row is None:
        raise _unsupported(f"np.{ufunc.__name__}")
    position = INTEGER_OPERAND.get(row)
    if position is not None:
        _check_integer(ufunc, inputs[position], position)
    return elementwise(row, *inputs)


def _method(ufunc: Any, method: str, inputs: Any, kwargs: dict[str, Any]) -> Any:
    if method == "outer":
        if ufunc.nin != 2 or kwargs:
            raise _unsupported(f"np.{ufunc.__name__}.outer")
        x, y = [operand(x) for x in inputs]
        x_shape, y_shape = shape_of(x), shape_of(y)
        if isinstance(x, (TrackedArray, np.ndarray)):
            x = x.reshape(x_shape + (1,) * len(y_shape))  # type: ignore[union-attr]
        return _call(ufunc, (x, y))
    (x,) = inputs
    if method == "reduce" and ufunc in _REDUCTIONS:
        if set(kwargs) - {"axis", "keepdims"}:
            raise _unsupported(f"np.{ufunc.__name__}.reduce with initial=")
        axis = kwargs.get("axis", 0)
        return structural(
            _REDUCTIONS[ufunc], x, axis=axis, keepdims=bool(kwargs.get("keepdims", False))
        )
    if method == "accumulate" and ufunc in _ACCUMULATIONS and not set(kwargs) - {"axis"}:
        return structural(_ACCUMULATIONS[ufunc], x, axis=kwargs.get("axis", 0))
    raise _unsupported(f"np.{ufunc.__name__}.{method}")


def _check_integer(ufunc: Any, x: Any, position: int) -> None:
    known = operand(x)
    if promote((known,)).kind == "f" and not isinstance(known, int):
        raise TypeError(
            f"np.{ufunc.__name__}: operand number {position + 1} must be an integer; convert it "
            f"with .astype(int){at_caller()}"
        )


def _check_boolean(ufunc: Any, inputs: Any) -> None:
    for x in inputs:
        dtype = getattr(x, "dtype", np.dtype(type(x)) if isinstance(x, (bool, float)) else None)
        if dtype is not None and dtype.kind == "f":
            raise TypeError(
                f"ufunc '{ufunc.__name__}' not supported for the input types: tracked values are "
                f"floating-point; compare first, as in (x > 0) & (y > 0){at_caller()}"
            )


def _store(ufunc: Any, out: Any, where: Any, result: Any) -> Any:
    results = result if isinstance(result, tuple) else (result,)
    stored = []
    for target, value in zip(out, results, strict=True):
        stored.append(value if target is None else target)
        if target is None:
            continue
        if not isinstance(target, TrackedArray):
            raise TypeError(
                f"np.{ufunc.__name__}(..., out=a): `a` is a {type(target).__name__}, which cannot "
                f"hold tracked values; leave out= away, or make `a` by tg.zeros{at_caller()}"
            )
        shape = target.window.shape
        if shape_of(value) != shape and where is True:
            raise ValueError(
                f"non-broadcastable output operand with shape {shape} doesn't match the broadcast "
                f"shape {shape_of(value)}{at_caller()}"
            )
        if where is not True:
            value = elementwise("where", where, value, target)
        assign(target, ..., value)
    return stored[0] if len(stored) == 1 else tuple(stored)


def _unsupported(what: str) -> NotDifferentiableError:
    return NotDifferentiableError(
        f"{what} is not implemented for tracked values; compute it on .value where its derivative "
        f"is not needed{at_caller()}"
    )


__all__ = ["Tracked", "array_ufunc", "power"]
