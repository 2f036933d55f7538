"""The rules of structural rows against complex steps of their values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tapegrad.ops.structural import STRUCTURAL, unbroadcast


def check(name: str, operands: Any, **params: Any) -> None:
    """Compare each cotangent, and the tangents, with the complex-step derivative of the value."""
    row = STRUCTURAL[name]
    out = np.asarray(row.forward(*operands, **params))
    rng = np.random.default_rng(7)
    g = rng.normal(size=out.shape)
    cotangents = row.vjp(g, out, *operands, **params)
    assert len(cotangents) == len(operands)
    directions = [rng.normal(size=operand.shape) for operand in operands]
    check_tangent(row, out, operands, directions, params)
    for given in range(len(operands) if len(operands) > 1 else 0):  # the others are constants
        one = [t if i == given else None for i, t in enumerate(directions)]
        check_tangent(row, out, operands, one, params)
    check_many(row, out, operands, params)
    tangent = row.jvp(directions, out, *operands, **params)
    received = sum(np.sum(c * t) for c, t in zip(cotangents, directions, strict=True))
    np.testing.assert_allclose(np.sum(g * tangent), received, rtol=1e-11, atol=1e-11)
    for position, (operand, cotangent) in enumerate(zip(operands, cotangents, strict=True)):
        want = np.zeros(operand.shape)
        for index in np.ndindex(operand.shape):
            moved = [o.astype(complex) for o in operands]
            moved[position][index] += 1e-30j
            want[index] = np.sum(np.asarray(row.forward(*moved, **params)).imag * g) / 1e-30
        assert cotangent.shape == operand.shape
        np.testing.assert_allclose(cotangent, want, rtol=1e-12, atol=1e-12)


def check_many(row: Any, out: Any, operands: Any, params: Any) -> None:
    """Compare the rules for many cotangents and tangents with the rules for each."""
    if row.vjps is None:
        return
    rng = np.random.default_rng(8)
    g = rng.normal(size=(3, *out.shape))
    want = [row.vjp(one, out, *operands, **params) for one in g]
    for wanted in ([True, True], [True, False], [False, True]):
        wanted = wanted[: len(operands)]
        got = row.vjps(g, wanted, *operands, **params)
        assert len(got) == len(operands)
        for position, cotangents in enumerate(got):
            if wanted[position]:
                stacked = np.stack([cotangent[position] for cotangent in want])
                assert cotangents.shape == stacked.shape
                np.testing.assert_allclose(cotangents, stacked, rtol=1e-12, atol=1e-12)
            elif len(operands) > 1:
                assert cotangents is None
        directions = [
            rng.normal(size=(3, *x.shape)) if given else None
            for x, given in zip(operands, wanted, strict=True)
        ]
        if any(wanted):
            each = [
                row.jvp([None if t is None else t[i] for t in directions], out, *operands, **params)
                for i in range(3)
            ]
            tangents = row.jvps(directions, *operands, **params)
            assert tangents.shape == g.shape
            np.testing.assert_allclose(tangents, np.stack(each), rtol=1e-12, atol=1e-12)


def check_tangent(row: Any, out: Any, operands: Any, directions: Any, params: Any) -> None:
    moved = [x if t is None else x + 1e-30j * t for x, t in zip(operands, directions, strict=True)]
    want = np.asarray(row.forward(*moved, **params)).imag / 1e-30
    tangent = np.asarray(row.jvp(directions, out, *operands, **params))
    assert tangent.shape == out.shape
    np.testing.assert_allclose(tangent, want, rtol=1e-12, atol=1e-12)


def cube(zeros: int) -> Any:
    x = np.random.default_rng(3).normal(size=(2, 3, 4))
    x.flat[[6, 7, 12][:zeros]] = 0.0
    return x


@pytest.mark.parametrize("zeros", [0, 1, 3])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (2, 0), (0, 1, 2), ()])
@pytest.mark.parametrize("name", ["sum", "prod"])
def test_reductions(name: str, axis: Any, keepdims: bool, zeros: int) -> None:
    check(name, (cube(zeros),), axis=axis, keepdims=keepdims)


@pytest.mark.parametrize("zeros", [0, 1, 3])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("name", ["cumsum", "cumprod"])
def test_scans(name: str, axis: Any, zeros: int) -> None:
    check(name, (cube(zeros),), axis=axis)


@pytest.mark.parametrize("name", ["sum", "prod", "cumsum", "cumprod"])
@pytest.mark.parametrize("shape", [(0,), (2, 0), (1,), (1, 1)])
def test_small_and_empty(name: str, shape: tuple[int, ...]) -> None:
    check(name, (np.full(shape, 2.0),), axis=-1)


def test_scalars_reduce_to_themselves() -> None:
    for name in ("sum", "prod", "max", "min"):
        (cotangent,) = STRUCTURAL[name].vjp(np.array(2.0), np.array(3.0), np.array(3.0))
        assert cotangent.shape == ()
        assert cotangent == 2.0
        assert STRUCTURAL[name].jvp([np.array(2.0)], np.array(3.0), np.array(3.0)) == 2.0


def test_ties_share_evenly_and_nan_takes_its_share() -> None:
    x = np.array([[3.0, 3.0, 1.0], [1.0, np.nan, 2.0]])
    (cotangent,) = STRUCTURAL["max"].vjp(np.array([1.0, 2.0]), np.max(x, axis=1), x, axis=1)
    assert cotangent.tolist() == [[0.5, 0.5, 0.0], [0.0, 2.0, 0.0]]
    t = np.array([[2.0, 4.0, 8.0], [np.inf, 5.0, np.nan]])
    assert STRUCTURAL["max"].jvp([t], np.max(x, axis=1), x, axis=1).tolist() == [3.0, 5.0]
    kept = STRUCTURAL["min"].jvp([t[:1]], np.array(1.0), x[:1], axis=None, keepdims=True)
    assert kept.tolist() == [[8.0]]
    (cotangent,) = STRUCTURAL["min"].vjp(np.array(1.0), np.array(1.0), x[:1], axis=None)
    assert cotangent.tolist() == [[0.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3,), (3,)),
        ((3,), (3, 2)),
        ((2, 3), (3,)),
        ((2, 3), (3, 4)),
        ((5, 2, 3), (3, 4)),
        ((2, 3), (5, 3, 4)),
        ((5, 1, 2, 3), (6, 3, 4)),
        ((3,), (5, 3, 4)),
        ((5, 2, 3), (3,)),
        ((1, 2, 3), (5, 3, 4)),
    ],
)
def test_matmul(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    check("matmul", (rng.normal(size=left), rng.normal(size=right)))


def test_unbroadcast_sums_what_was_stretched() -> None:
    g = np.arange(24.0).reshape(2, 3, 4)
    assert unbroadcast(g, (2, 3, 4)) is g
    assert unbroadcast(g, (1, 4)).tolist() == [g.sum(axis=(0, 1)).tolist()]
    assert unbroadcast(g, ()) == g.sum()


def test_vector_operands_are_multiplied_as_vectors() -> None:
    """No product in the rule of matrix times vector has two matrices in it."""
    shapes = []

    class Counted(np.ndarray):
        def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
            plain = [np.asarray(i) for i in inputs]
            if ufunc is np.matmul:
                shapes.append(tuple(i.ndim for i in plain))
            return np.asarray(getattr(ufunc, method)(*plain, **kwargs)).view(Counted)

    w = np.ones((3, 4)).view(Counted)
    STRUCTURAL["matmul"].vjp(np.ones(3).view(Counted), None, w, np.ones(4).view(Counted))
    STRUCTURAL["matmul"].vjp(np.ones(4).view(Counted), None, np.ones(3).view(Counted), w)
    assert shapes == [(1, 2), (2, 1)]
