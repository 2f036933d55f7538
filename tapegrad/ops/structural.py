"""Structural rows: reductions, scans and products of matrices.

The rule of a structural row is one function over the NumPy namespace, ``vjp(g, out, *operands,
**params)``. It gives one cotangent for each operand, of that operand's shape. It calls nothing but
NumPy functions, so that it runs on ndarrays in a sweep, and on Arrays where a derivative is itself
being recorded. For that reason no rule branches on values, and none divides by an operand: a
derivative of a rule must be the second derivative, at zeros too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Axis = int | Sequence[int] | None


class StructuralRow:
    """One structural operation: its value, its rule and its documentation."""

    __slots__ = ("doc", "forward", "name", "vjp")

    def __init__(
        self,
        name: str,
        forward: Callable[..., Any],
        vjp: Callable[..., tuple[Any, ...]],
        doc: str,
    ) -> None:
        self.name = name
        self.forward = forward
        self.vjp = vjp
        self.doc = doc

    def __repr__(self) -> str:
        return f"StructuralRow({self.name!r})"


def axes_of(axis: Axis, ndim: int) -> tuple[int, ...]:
    """Return the axes that a reduction takes away, counted from 0.

    >>> axes_of(None, 2), axes_of(-1, 3), axes_of((0, -1), 3)
    ((0, 1), (2,), (0, 2))
    """
    if axis is None:
        return tuple(range(ndim))
    given = (axis,) if isinstance(axis, int) else tuple(axis)
    return tuple(sorted(position % ndim for position in given)) if ndim else ()


def unbroadcast(g: Any, shape: tuple[int, ...]) -> Any:
    """Sum a cotangent over the axes along which an operand of this shape was broadcast.

    >>> unbroadcast(np.ones((2, 3)), (3,))
    array([2., 2., 2.])
    """
    leading = g.ndim - len(shape)
    stretched = tuple(
        leading + i for i, extent in enumerate(shape) if extent == 1 and g.shape[leading + i] != 1
    )
    if leading or stretched:
        g = np.sum(g, axis=tuple(range(leading)) + stretched, keepdims=True)
    return np.reshape(g, shape) if g.shape != shape else g


def _kept(reduced: Any, x: Any, axis: Axis) -> Any:
    """Give a reduced array its axes back, with length 1."""
    axes = axes_of(axis, x.ndim)
    return np.reshape(reduced, tuple(1 if i in axes else n for i, n in enumerate(x.shape)))


def _sum_vjp(g: Any, out: Any, x: Any, *, axis: Axis = None, keepdims: bool = False) -> Any:
    return (np.broadcast_to(_kept(g, x, axis), x.shape),)


def _extremum_vjp(g: Any, out: Any, x: Any, *, axis: Axis = None, keepdims: bool = False) -> Any:
    # An element that is nan made the result nan, so it takes its share.
    chosen = np.logical_or(x == _kept(out, x, axis), x != x)
    ties = np.sum(np.where(chosen, 1.0, 0.0), axis=axes_of(axis, x.ndim), keepdims=True)
    return (np.where(chosen, _kept(g, x, axis) / ties, 0.0),)


def _products_of_others(x: Any) -> Any:
    """Multiply, along the last axis, all elements but one: those before it by those after it."""
    one = np.ones((*x.shape[:-1], 1))
    before = np.cumprod(np.concatenate([one, x[..., :-1]], axis=-1), axis=-1)
    after = np.cumprod(np.concatenate([one, x[..., :0:-1]], axis=-1), axis=-1)
    return before * after[..., ::-1]


def _prod_vjp(g: Any, out: Any, x: Any, *, axis: Axis = None, keepdims: bool = False) -> Any:
    axes = axes_of(axis, x.ndim)
    if x.size == 0:
        return (np.zeros(x.shape),)
    # The reduced axes go last, as one.
    order = tuple(i for i in range(x.ndim) if i not in axes) + axes
    moved = np.transpose(x, order)
    rest = moved.shape[: x.ndim - len(axes)]
    others = np.reshape(_products_of_others(np.reshape(moved, (*rest, -1))), moved.shape)
    back = tuple(order.index(i) for i in range(x.ndim))
    return (_kept(g, x, axis) * np.transpose(others, back),)


def _cumsum_vjp(g: Any, out: Any, x: Any, *, axis: int | None = None) -> Any:
    if axis is None:
        return (np.reshape(np.cumsum(g[::-1])[::-1], x.shape),)
    return (np.flip(np.cumsum(np.flip(g, axis), axis=axis), axis),)


def _cumprod_vjp(g: Any, out: Any, x: Any, *, axis: int | None = None) -> Any:
    if x.size == 0:
        return (np.zeros(x.shape),)
    lines = np.reshape(x, (-1,)) if axis is None else np.moveaxis(x, axis, -1)
    seeds = g if axis is None else np.moveaxis(g, axis, -1)
    one = np.ones((*lines.shape[:-1], 1))
    before = np.cumprod(np.concatenate([one, lines[..., :-1]], axis=-1), axis=-1)
    result = before * _suffix_sums(seeds, lines)
    return (np.reshape(result, x.shape) if axis is None else np.moveaxis(result, -1, axis),)


def _suffix_sums(g: Any, x: Any) -> Any:
    """Solve s[i] = g[i] + x[i+1] s[i+1] along the last axis by doubling, in log n steps."""
    n = x.shape[-1]
    sums = g
    factors = np.concatenate([x[..., 1:], np.zeros((*x.shape[:-1], 1))], axis=-1)
    step = 1
    while step < n:
        beyond = np.zeros((*x.shape[:-1], step))
        sums = sums + factors * np.concatenate([sums[..., step:], beyond], axis=-1)
        factors = factors * np.concatenate([factors[..., step:], beyond], axis=-1)
        step *= 2
    return sums


def _matmul_vjp(g: Any, out: Any, x: Any, y: Any) -> tuple[Any, Any]:
    if x.ndim == 1 and y.ndim == 1:
        return g * y, g * x
    if x.ndim == 1:  # A row vector times matrices: the cotangent is a row vector too.
        to_x = unbroadcast(np.matmul(y, g[..., None])[..., 0] if y.ndim > 2 else y @ g, x.shape)
        return to_x, x[:, None] * g[..., None, :]
    if y.ndim == 1:  # Matrices times a column vector.
        to_y = unbroadcast(
            np.matmul(g[..., None, :], x)[..., 0, :] if x.ndim > 2 else g @ x, y.shape
        )
        return g[..., :, None] * y, to_y
    to_x = np.matmul(g, np.swapaxes(y, -1, -2))
    to_y = np.matmul(np.swapaxes(x, -1, -2), g)
    return unbroadcast(to_x, x.shape), unbroadcast(to_y, y.shape)


STRUCTURAL = {
    row.name: row
    for row in (
        StructuralRow("sum", np.sum, _sum_vjp, "Sum over axes."),
        StructuralRow("prod", np.prod, _prod_vjp, "Product over axes; exact where factors are 0."),
        StructuralRow("max", np.max, _extremum_vjp, "Maximum over axes; ties share evenly."),
        StructuralRow("min", np.min, _extremum_vjp, "Minimum over axes; ties share evenly."),
        StructuralRow("cumsum", np.cumsum, _cumsum_vjp, "Running sum along an axis."),
        StructuralRow(
            "cumprod",
            np.cumprod,
            _cumprod_vjp,
            "Running product along an axis; exact where factors are 0.",
        ),
        StructuralRow(
            "matmul",
            np.matmul,
            _matmul_vjp,
            "Product of matrices and vectors, with NumPy's broadcasting of the leading axes.",
        ),
    )
}
"""Structural rows by name."""
