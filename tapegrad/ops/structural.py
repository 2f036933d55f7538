"""Structural rows: reductions, scans and products of matrices.

The rule of a structural row is one function over the NumPy namespace, ``vjp(g, out, *operands,
**params)``. It gives one cotangent for each operand, of that operand's shape. It calls nothing but
NumPy functions of its operands, so that it runs on ndarrays in a sweep, on arrays of CuPy on a
device, and on Arrays where a derivative is itself being recorded. For that reason no rule makes an
array but from another one (`np.ones_like`), none branches on values, and none divides by an
operand: a derivative of a rule must be the second derivative, at zeros too.

The forward rule is a function of the same kind, ``jvp(tangents, out, *operands, **params)``. It is
given a tangent for each operand, None for one that has none, and gives the tangent of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Axis = int | Sequence[int] | None


class StructuralRow:
    """One structural operation: its value, its rules and its documentation.

    An operation without a forward rule (None) is differentiated backward only.

    `vjps` and `jvps` are the rules for many cotangents or tangents at once, on ndarrays, where that
    is much cheaper than one after another: ``vjps(g, wanted, *operands, **params)``, which answers
    None for operands that are not wanted, and ``jvps(tangents, *operands, **params)``.  Cotangents
    and tangents lie along the first axis.
    """

    __slots__ = ("doc", "forward", "jvp", "jvps", "name", "vjp", "vjps")

    def __init__(
        self,
        name: str,
        forward: Callable[..., Any],
        vjp: Callable[..., tuple[Any, ...]],
        jvp: Callable[..., Any] | None,
        doc: str,
        vjps: Callable[..., tuple[Any, ...]] | None = None,
        jvps: Callable[..., Any] | None = None,
    ) -> None:
        self.name = name
        self.forward = forward
        self.vjp = vjp
        self.jvp = jvp
        self.vjps = vjps
        self.jvps = jvps
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


def _sum_vjps(
    g: Any, wanted: Sequence[bool], x: Any, *, axis: Axis = None, keepdims: bool = False
) -> Any:
    axes = axes_of(axis, x.ndim)
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    return (np.broadcast_to(np.reshape(g, (len(g), *kept)), (len(g), *x.shape)),)


def _sum_jvp(tangents: Any, out: Any, x: Any, *, axis: Axis = None, keepdims: bool = False) -> Any:
    return np.sum(tangents[0], axis=axes_of(axis, x.ndim), keepdims=keepdims)


def _sum_jvps(tangents: Any, x: Any, *, axis: Axis = None, keepdims: bool = False) -> Any:
    axes = tuple([1 + i for i in axes_of(axis, x.ndim)])
    return np.sum(tangents[0], axis=axes, keepdims=keepdims)


def _extremum_vjp(g: Any, out: Any, x: Any, *, axis: Axis = None, keepdims: bool = False) -> Any:
    chosen, ties = _chosen(out, x, axis)
    return (np.where(chosen, _kept(g, x, axis) / ties, 0.0),)


def _extremum_jvp(
    tangents: Any, out: Any, x: Any, *, axis: Axis = None, keepdims: bool = False
) -> Any:
    chosen, ties = _chosen(out, x, axis)
    shares = np.where(chosen, tangents[0] / ties, 0.0)
    return np.sum(shares, axis=axes_of(axis, x.ndim), keepdims=keepdims)


def _chosen(out: Any, x: Any, axis: Axis) -> tuple[Any, Any]:
    """Return which elements are the extremum, and how many share it along the axes."""
    # An element that is nan made the result nan, so it takes its share.
    chosen = np.logical_or(x == _kept(out, x, axis), x != x)
    ties = np.sum(np.where(chosen, 1.0, 0.0), axis=axes_of(axis, x.ndim), keepdims=True)
    return chosen, ties


def _products_of_others(x: Any) -> Any:
    """Multiply, along the last axis, all elements but one: those before it by those after it."""
    one = np.ones_like(x[..., :1])
    before = np.cumprod(np.concatenate([one, x[..., :-1]], axis=-1), axis=-1)
    after = np.cumprod(np.concatenate([one, x[..., :0:-1]], axis=-1), axis=-1)
    return before * after[..., ::-1]


def _prod_vjp(g: Any, out: Any, x: Any, *, axis: Axis = None, keepdims: bool = False) -> Any:
    return (_kept(g, x, axis) * _others(x, axis),)


def _prod_jvp(tangents: Any, out: Any, x: Any, *, axis: Axis = None, keepdims: bool = False) -> Any:
    terms = tangents[0] * _others(x, axis)
    return np.sum(terms, axis=axes_of(axis, x.ndim), keepdims=keepdims)


def _others(x: Any, axis: Axis) -> Any:
    """Return, for each element, the product of all others along the axes."""
    axes = axes_of(axis, x.ndim)
    if x.size == 0:
        return np.zeros_like(x)
    # The reduced axes go last, as one.
    order = tuple(i for i in range(x.ndim) if i not in axes) + axes
    moved = np.transpose(x, order)
    rest = moved.shape[: x.ndim - len(axes)]
    others = np.reshape(_products_of_others(np.reshape(moved, (*rest, -1))), moved.shape)
    back = tuple(order.index(i) for i in range(x.ndim))
    return np.transpose(others, back)


def _cumsum_vjp(g: Any, out: Any, x: Any, *, axis: int | None = None) -> Any:
    if axis is None:
        return (np.reshape(np.cumsum(g[::-1])[::-1], x.shape),)
    return (np.flip(np.cumsum(np.flip(g, axis), axis=axis), axis),)


def _cumsum_jvp(tangents: Any, out: Any, x: Any, *, axis: int | None = None) -> Any:
    return np.cumsum(tangents[0], axis=axis)


def _cumprod_vjp(g: Any, out: Any, x: Any, *, axis: int | None = None) -> Any:
    if x.size == 0:
        return (np.zeros_like(x),)
    lines = np.reshape(x, (-1,)) if axis is None else np.moveaxis(x, axis, -1)
    seeds = g if axis is None else np.moveaxis(g, axis, -1)
    result = _products_before(lines) * _suffix_sums(seeds, lines)
    return (np.reshape(result, x.shape) if axis is None else np.moveaxis(result, -1, axis),)


def _cumprod_jvp(tangents: Any, out: Any, x: Any, *, axis: int | None = None) -> Any:
    if x.size == 0:
        return np.zeros_like(out)
    (t,) = tangents
    lines = np.reshape(x, (-1,)) if axis is None else np.moveaxis(x, axis, -1)
    seeds = np.reshape(t, (-1,)) if axis is None else np.moveaxis(t, axis, -1)
    # t_out[i] = before[i] t[i] + x[i] t_out[i-1]: the transposed sums, run from the other end.
    terms = _products_before(lines) * seeds
    factors = np.concatenate([lines[..., :1], lines[..., :0:-1]], axis=-1)
    result = _suffix_sums(terms[..., ::-1], factors)[..., ::-1]
    return result if axis is None else np.moveaxis(result, -1, axis)


def _products_before(x: Any) -> Any:
    """Return, for each element, the product of those before it along the last axis."""
    one = np.ones_like(x[..., :1])
    return np.cumprod(np.concatenate([one, x[..., :-1]], axis=-1), axis=-1)


def _suffix_sums(g: Any, x: Any) -> Any:
    """Solve s[i] = g[i] + x[i+1] s[i+1] along the last axis by doubling, in log n steps."""
    n = x.shape[-1]
    sums = g
    factors = np.concatenate([x[..., 1:], np.zeros_like(x[..., :1])], axis=-1)
    step = 1
    while step < n:
        beyond = np.zeros_like(x[..., :step])
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


def _matrices(x: Any, y: Any) -> tuple[Any, Any, tuple[int, ...]]:
    """Return operands of a product with vectors as a row and a column, and the leading axes."""
    left = x[None, :] if x.ndim == 1 else x
    right = y[:, None] if y.ndim == 1 else y
    return left, right, np.broadcast_shapes(left.shape[:-2], right.shape[:-2])


def _matmul_vjps(g: Any, wanted: Sequence[bool], x: Any, y: Any) -> tuple[Any, Any]:
    left, right, stack = _matrices(x, y)
    m, n, p = len(g), left.shape[-2], right.shape[-1]
    g = np.reshape(g, (m, *stack, n, p))
    to_x = to_y = None
    if wanted[0]:
        if right.ndim == 2:  # one product of matrices serves all cotangents
            to_x = np.reshape(np.reshape(g, (-1, p)) @ right.T, (m, *stack, n, left.shape[-1]))
        else:
            to_x = np.matmul(g, np.swapaxes(right, -1, -2))
        to_x = _unstacked(to_x, left.shape, x.shape)
    if wanted[1]:
        if left.ndim == 2 and y.ndim == 1:
            to_y = np.reshape(g, (m, n)) @ left
        else:
            to_y = _unstacked(np.matmul(np.swapaxes(left, -1, -2), g), right.shape, y.shape)
    return to_x, to_y


def _unstacked(g: Any, matrices: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """Sum cotangents, along the first axis, over the axes that the operand was broadcast along."""
    missing = (1,) * (g.ndim - 1 - len(matrices))
    return np.reshape(unbroadcast(g, (len(g), *missing, *matrices)), (len(g), *shape))


def _matmul_jvp(tangents: Any, out: Any, x: Any, y: Any) -> Any:
    to_x, to_y = tangents
    if to_y is None:
        return np.matmul(to_x, y)
    if to_x is None:
        return np.matmul(x, to_y)
    return np.matmul(to_x, y) + np.matmul(x, to_y)


def _matmul_jvps(tangents: Any, x: Any, y: Any) -> Any:
    left, right, stack = _matrices(x, y)
    ndim = max(left.ndim, right.ndim)
    result: Any = 0.0
    for_x, for_y = tangents
    if for_x is not None:
        t = np.reshape(for_x, (len(for_x), *(1,) * (ndim - left.ndim), *left.shape))
        if right.ndim == 2:  # one product of matrices serves all tangents
            product = np.reshape(t, (-1, t.shape[-1])) @ right
            result = np.reshape(product, (*t.shape[:-1], right.shape[-1]))
        else:
            result = np.matmul(t, right)
    if for_y is not None:
        if left.ndim == 2 and y.ndim == 1:
            result = result + (for_y @ left.T)[..., None]
        else:
            t = np.reshape(for_y, (len(for_y), *(1,) * (ndim - right.ndim), *right.shape))
            result = result + np.matmul(left, t)
    rows, columns = left.shape[-2:-1] * (x.ndim > 1), right.shape[-1:] * (y.ndim > 1)
    return np.reshape(result, (len(result), *stack, *rows, *columns))


STRUCTURAL = {
    row.name: row
    for row in (
        StructuralRow("sum", np.sum, _sum_vjp, _sum_jvp, "Sum over axes.", _sum_vjps, _sum_jvps),
        StructuralRow(
            "prod",
            np.prod,
            _prod_vjp,
            _prod_jvp,
            "Product over axes; exact where factors are 0.",
        ),
        StructuralRow(
            "max",
            np.max,
            _extremum_vjp,
            _extremum_jvp,
            "Maximum over axes; ties share evenly.",
        ),
        StructuralRow(
            "min",
            np.min,
            _extremum_vjp,
            _extremum_jvp,
            "Minimum over axes; ties share evenly.",
        ),
        StructuralRow("cumsum", np.cumsum, _cumsum_vjp, _cumsum_jvp, "Running sum along an axis."),
        StructuralRow(
            "cumprod",
            np.cumprod,
            _cumprod_vjp,
            _cumprod_jvp,
            "Running product along an axis; exact where factors are 0.",
        ),
        StructuralRow(
            "matmul",
            np.matmul,
            _matmul_vjp,
            _matmul_jvp,
            "Product of matrices and vectors, with NumPy's broadcasting of the leading axes.",
            _matmul_vjps,
            _matmul_jvps,
        ),
    )
}
"""Structural rows by name."""
