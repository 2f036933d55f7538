"""Sparse Jacobians and Hessians: structure and values; against the dense ones."""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.sparse.linalg import spsolve

import tapegrad as tg

simplify = importlib.import_module("tapegrad.programs.simplify")
sparsity = importlib.import_module("tapegrad.sparse.sparsity")


@pytest.fixture(params=["swept in Python", "swept", "derived"], autouse=True)
def way(request, monkeypatch):
    """Prepare recordings in each way, also where another would be chosen."""
    in_python = request.param == "swept in Python"
    monkeypatch.setattr(simplify, "COMPILED_FROM", 10**9 if in_python else 0)
    if in_python:
        monkeypatch.setattr(simplify, "_COMPILER", "no such module")
    monkeypatch.setattr(sparsity, "_may_derive", lambda tape: request.param == "derived")
    return request.param


def bratu(u):
    """Discretise -u'' = exp(u) on a line, with zero ends."""
    h = 1.0 / (u.size + 1)
    r = 2.0 * u - h * h * np.exp(u)
    r[1:] -= u[:-1]
    r[:-1] -= u[1:]
    return r


def by_elements(x):
    y = tg.zeros(x.size)
    for i in range(x.size):
        y[i] = x[i] * x[i - 1] if i % 2 else np.sin(x[i])
    return y


def branching(x):
    y = x * x
    if x[0] > 0.0:
        y[0] = x[1] * x[2]
    return y


FUNCTIONS = {
    "differences": lambda x: x[1:] ** 2 - x[:-1],
    "bratu": bratu,
    "elements": by_elements,
    "gathered": lambda x: x[[3, 3, 0, 1]] * x[[0, 1, 2, 3]],
    "one dense row": lambda x: np.concatenate((x * 2.0, [np.sum(x * x)])),
    "one dense column": lambda x: x * x[0] + 1.0,
    "matrix": lambda x: np.array([[1.0, 2.0], [0.0, 3.0]]) @ x[:2],
    "where": lambda x: np.where(x > 0.5, x * x[0], 2.0),
    "grid": lambda x: (x.reshape(2, -1) * np.exp(x[:2])[:, None]).T.ravel(),
    "constant rows": lambda x: np.stack([x[0], x[1] * 0.0, x[2]]),
    "nothing": lambda x: x[:0] * 2.0,
    "more than 64 outputs": lambda x: np.concatenate([x * k for k in range(1, 15)]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_the_dense_jacobian(name):
    f = FUNCTIONS[name]
    jacobian = tg.sparse_jacobian(f)
    rng = np.random.default_rng(1)
    for _ in range(2):
        x = rng.normal(size=6)
        sparse = jacobian(x)
        dense = tg.jacobian(f)(x)
        assert sparse.shape == dense.shape
        np.testing.assert_allclose(sparse.toarray(), dense, rtol=1e-14, atol=1e-15)
        assert sparse.has_sorted_indices
    assert jacobian.pattern.shape == dense.shape


def test_the_structure_is_exact_and_the_colours_few():
    n = 40
    jacobian = tg.sparse_jacobian(bratu)
    matrix = jacobian(np.linspace(0.1, 1.0, n))
    assert matrix.nnz == 3 * n - 2
    assert jacobian.pattern.count == 3
    zero = tg.sparse_jacobian(lambda x: x * np.arange(6.0))
    assert zero(np.ones(6)).nnz == 6  # a zero that is not structural is stored


def test_no_two_columns_of_a_colour_meet():
    rng = np.random.default_rng(0)
    picks = rng.integers(0, 30, size=(50, 3))
    jacobian = tg.sparse_jacobian(lambda x: x[picks[:, 0]] * x[picks[:, 1]] + x[picks[:, 2]])
    jacobian(rng.normal(size=30))
    p = jacobian.pattern
    seeded, swept = (p.columns, p.rows) if p.forward else (p.rows, p.columns)
    pairs = set()
    for one, other in zip(swept.tolist(), p.colors[seeded].tolist(), strict=True):
        assert (one, other) not in pairs
        pairs.add((one, other))


def test_a_dense_column_is_swept_backward_and_a_dense_row_forward_where_that_is_less():
    rows = tg.sparse_jacobian(lambda x: x * x[0])
    rows(np.ones(8))
    assert (rows.pattern.forward, rows.pattern.count) == (True, 2)
    columns = tg.sparse_jacobian(lambda x: np.concatenate((x * 2.0, [np.sum(x)])))
    columns(np.ones(8))
    assert (columns.pattern.forward, columns.pattern.count) == (False, 2)


def test_another_way_through_the_code_has_another_pattern():
    jacobian = tg.sparse_jacobian(branching)
    for x in (np.array([1.0, 2.0, 3.0]), np.array([-1.0, 2.0, 3.0]), np.array([2.0, 5.0, 7.0])):
        np.testing.assert_allclose(jacobian(x).toarray(), tg.jacobian(branching)(x), rtol=1e-14)


def test_it_goes_into_scipy():
    n = 200
    jacobian = tg.sparse_jacobian(bratu)
    u = np.zeros(n)
    for _ in range(8):
        u = u - spsolve(jacobian(u).tocsc(), bratu(u))
    assert np.abs(bratu(u)).max() < 1e-12
    few = np.zeros(12)  # least_squares solves sparse systems iteratively: slowly, on more
    found = least_squares(bratu, few, jac=jacobian, tr_solver="lsmr")
    assert np.abs(bratu(found.x)).max() < 1e-4


def chain(x):
    total = 0.0
    for i in range(x.size - 1):
        t = x[i + 1] - x[i] * x[i]
        u = 1.0 - x[i]
        total = total + 100.0 * t * t + u * u
    return total


def piecewise(x):
    total = np.sum(np.where(x > 0.2, x**3, -x) * np.roll(x, 1)) + np.sum(np.abs(x) * x)
    return total + np.maximum(x[0] * x[1], x[2] ** 2)


def deciding(x):
    return np.sum(x**3) if x[0] > 0.0 else x[0] * x[1] * x[2]


SCALAR_FUNCTIONS = {
    "chain": chain,
    "array chain": lambda x: np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2),
    "quadratic form": lambda x: x @ (np.arange(36.0).reshape(6, 6) @ x),
    "partly linear": lambda x: x[0] * x[1] + np.exp(x[3]) + 3.0 * x[5],
    "linear": lambda x: np.sum(x * np.arange(6.0)),
    "quotients": lambda x: np.sum(x[1:] / (2.0 + x[:-1])) + np.log1p(x[0] ** 2) / (1.5 + x[2]),
    "powers": lambda x: np.sum(np.exp(x) ** 1.5) + x[0] ** 4 + (2.0 + x[1]) ** np.exp(x[2]),
    "dense": lambda x: np.log(np.sum(np.exp(x))),
    "product": lambda x: np.prod(x[:4]) + np.sqrt(4.0 + x[4] * x[5]),
    "piecewise": piecewise,
    "deciding": deciding,
    "grid": lambda x: np.sum(np.sin(x.reshape(2, 3)[:, 1:] * x.reshape(2, 3)[:, :-1])),
    "shared": lambda x: np.sum(np.tanh(x[0] * x[1] * np.array([1.0, 2.0])) * x[2:4]),
}


@pytest.mark.parametrize("name", SCALAR_FUNCTIONS)
def test_it_is_the_dense_hessian(name):
    f = SCALAR_FUNCTIONS[name]
    hessian = tg.sparse_hessian(f)
    rng = np.random.default_rng(3)
    for _ in range(4):
        x = rng.normal(size=6)
        sparse, dense = hessian(x), tg.hessian(f)(x)
        assert sparse.has_sorted_indices
        # Other orders of sums: a few roundings of the largest terms.
        np.testing.assert_allclose(sparse.toarray(), dense, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(sparse.toarray(), sparse.T.toarray(), rtol=1e-13, atol=1e-13)
    assert hessian.recordings <= 2  # "deciding" has two ways


def test_the_structure_of_a_hessian_is_exact():
    n = 30
    hessian = tg.sparse_hessian(chain)
    assert hessian(np.linspace(-1.0, 1.0, n)).nnz == 3 * n - 2
    assert hessian(np.zeros(n)).nnz == 3 * n - 2  # though the matrix is diagonal here
    assert hessian.pattern.count == 3
    assert hessian.recordings == 1
    partly = tg.sparse_hessian(SCALAR_FUNCTIONS["partly linear"])
    assert list(zip(*partly(np.ones(6)).nonzero(), strict=True)) == [(0, 1), (1, 0), (3, 3)]
    assert tg.sparse_hessian(SCALAR_FUNCTIONS["linear"])(np.ones(6)).nnz == 0


def test_an_arrow_takes_two_directions():
    hessian = tg.sparse_hessian(lambda x: np.sum(x[:-1] ** 2 * x[-1]))
    x = np.linspace(1.0, 2.0, 40)
    assert hessian(x).nnz == 3 * 39  # the last element is a linear factor
    assert hessian.pattern.count == 2


def test_results_belong_to_the_caller():
    hessian = tg.sparse_hessian(chain)
    x = np.linspace(-1.0, 1.0, 8)
    first = hessian(x)
    kept = first.toarray()
    second = hessian(2.0 * x)
    second.data[:] = 0.0
    second.eliminate_zeros()
    np.testing.assert_array_equal(first.toarray(), kept)
    np.testing.assert_array_equal(hessian(x).toarray(), kept)


def test_other_arguments_and_numbers():
    hessian = tg.sparse_hessian(lambda a, x, p: a * np.sum(x**3) * p["s"], argnums=1)
    x = np.array([1.0, 2.0])
    np.testing.assert_allclose(hessian(2.0, x, {"s": 3.0}).diagonal(), 36.0 * x, rtol=1e-15)
    np.testing.assert_allclose(hessian(4.0, x, {"s": 3.0}).diagonal(), 72.0 * x, rtol=1e-15)
    assert hessian.recordings == 1
    square = tg.sparse_hessian(lambda x: x**3)
    assert square(2.0).toarray().tolist() == [[12.0]]
    single = tg.sparse_hessian(lambda x: np.sum(x**3))(np.ones(2, np.float32))
    assert single.dtype == np.float32


def test_a_captured_number_that_changes_is_noticed():
    scale = 1.0
    hessian = tg.sparse_hessian(lambda x: np.sum(x**2) * scale)
    assert hessian(np.ones(2)).diagonal().tolist() == [2.0, 2.0]
    scale = 3.0
    assert hessian(np.ones(2)).diagonal().tolist() == [6.0, 6.0]


def test_bad_input_to_hessians():
    with pytest.raises(TypeError, match="sparse_hessian differentiates one argument"):
        tg.sparse_hessian(chain, argnums=(0, 1))
    with pytest.raises(TypeError, match="expected a function"):
        tg.sparse_hessian(3.0)
    with pytest.raises(TypeError, match=r"sparse_hessian needs .* a single number"):
        tg.sparse_hessian(bratu)(np.ones(3))
    with pytest.raises(TypeError, match="not one array of floats"):
        tg.sparse_hessian(lambda p: p["x"] ** 2)({"x": 2.0})
    with pytest.raises(ValueError, match="argnums"):
        tg.sparse_hessian(chain, argnums=1)(np.ones(3))


def test_bad_input():
    with pytest.raises(TypeError, match="must be an integer"):
        tg.sparse_jacobian(bratu, argnums=(0, 1))
    with pytest.raises(TypeError, match="expected a function"):
        tg.sparse_jacobian(3.0)
    with pytest.raises(TypeError, match="not one array of floats"):
        tg.sparse_jacobian(lambda p: p["x"])({"x": np.ones(2)})
    with pytest.raises(TypeError, match="returns 2"):
        tg.sparse_jacobian(lambda x: (x, x))(np.ones(2))
    with pytest.raises(TypeError, match="does not depend"):
        tg.sparse_jacobian(lambda x: np.ones(3))(np.ones(2))


def test_threads_share_a_hessian():
    hessian = tg.sparse_hessian(chain)
    points = [np.linspace(-1.0, 1.0, 50) * (1.0 + k) for k in range(8)]
    expected = [tg.sparse_hessian(chain)(x).toarray() for x in points]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: hessian(x).toarray(), points))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_within_another_derivative_it_is_refused():
    hessian = tg.sparse_hessian(lambda x: np.sum(x**3))
    with pytest.raises(TypeError, match="tracked"):
        tg.grad(lambda x: hessian(x).diagonal().sum())(np.ones(3))


def test_programs_have_sparse_derivatives():
    program = tg.record(chain, np.ones(9))
    x = np.linspace(-1.0, 1.0, 9)
    np.testing.assert_allclose(program.sparse_hessian(x).toarray(), program.hessian(x), rtol=1e-13)
    again = program.sparse_hessian(2.0 * x)
    np.testing.assert_allclose(again.toarray(), program.hessian(2.0 * x), rtol=1e-13)
    residuals = tg.record(lambda a, x: a * x[1:] * x[:-1], 2.0, np.ones(9))
    found = residuals.sparse_jacobian(3.0, x, argnums=1)
    np.testing.assert_allclose(found.toarray(), residuals.jacobian(3.0, x, argnums=1), rtol=1e-14)
    branch = tg.record(deciding, np.ones(3))
    branch.sparse_hessian(np.ones(3))
    with pytest.raises(tg.ControlFlowChanged):
        branch.sparse_hessian(-np.ones(3))
    through = tg.sparse_hessian(program)  # a program is a function, too
    np.testing.assert_allclose(through(x).toarray(), program.hessian(x), rtol=1e-13)
