"""Programs of nonzeros: what they compute, and how long they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad.kernels.opcodes import KINDS, NONDIFF, ROW_OF, ZERO_DERIVATIVE
from tapegrad.kernels.partials import FLOWS, PARTIALS
from tapegrad.ops.row import in_domain
from tapegrad.ops.table import TABLE
from tapegrad.sparse import derive, patterns, straight
from tapegrad.sparse.derive import derive_hessian, derive_jacobian
from tapegrad.sparse.straight import Unsupported


def dense(matrix, x, shape):
    """Return the values of a derived matrix at a point, as a dense one."""
    result = np.zeros(shape)
    rows = np.repeat(np.arange(shape[0]), np.diff(matrix.indptr))
    result[rows, matrix.columns] = matrix.values([x])
    return result


def hessian_of(f, x):
    program = tg.record(f, x)
    matrix = derive_hessian(program, program.array_input(0), int(program.array_output()[0]))
    return matrix, program


def jacobian_of(f, x):
    program = tg.record(f, x)
    return derive_jacobian(program, program.array_input(0), program.array_output()), program


# Every row that has a derivative and serves a function of NumPy.
ROWS = {
    name: getattr(np, row.ufuncs[0])
    for name, row in TABLE.items()
    if row.ufuncs and hasattr(np, row.ufuncs[0]) and row.result == "float"
    if name not in NONDIFF and name not in ZERO_DERIVATIVE and row.integer_operand is None
}


@pytest.mark.parametrize("name", ROWS)
def test_every_row(name):
    """Second derivatives of w(row(x, y)) with a nonlinear w, against the recorded ones."""
    row, function = TABLE[name], ROWS[name]
    arity = row.arity

    def f(x):
        return np.sum(function(*[x[j::arity] for j in range(arity)]) ** 2 * x[::arity])

    scales = np.array([[0.99], [0.98]])
    points = [
        point
        for point in row.samples
        if all(0.05 < abs(a) < 30.0 for a in point)
        and all(in_domain(row, tuple(scaled)) for scaled in scales * point)
    ]
    x = np.array(points[:4]).ravel()
    matrix, _ = hessian_of(f, 0.99 * x)
    for at in scales * x:
        expected = tg.hessian(f)(at)
        found = dense(matrix, at, (x.size, x.size))
        # Products are taken in another order: some roundings, of the largest element.
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13 * np.abs(expected).max())


def test_the_programs_of_partials_cover_the_table():
    assert set(PARTIALS) == set(FLOWS) == set(TABLE)
    for op, kind in enumerate(KINDS):
        if kind:
            assert len(PARTIALS[ROW_OF[op]]) == TABLE[ROW_OF[op]].arity


steps = st.lists(
    st.tuples(st.sampled_from("+-*/nsqkw"), st.integers(0, 99), st.integers(0, 99)), max_size=25
)


def any_function(operations):
    """Return a function of 4 numbers, between about -2 and 2 all the way."""

    def f(x):
        values = [x[0], x[1], x[2], x[3], 0.5, -2.0]
        for what, i, j in operations:
            a, b = values[i % len(values)], values[j % len(values)]
            if what == "+":
                c = a + b
            elif what == "-":
                c = a - b
            elif what == "*":
                c = a * b
            elif what == "/":
                c = a / (2.0 + b * b)
            elif what == "n":
                c = -a
            elif what == "s":
                c = np.sin(a) if isinstance(a, tg.Array) else 0.3
            elif what == "q":
                c = a**2
            elif what == "k":
                c = 3.0 * a - 2.0 * b
            else:
                c = a * 1.0 + 0.0 * b
            values.append(np.tanh(c) if isinstance(c, tg.Array) else c / (1.0 + abs(c)))
        return values

    return f


@settings(max_examples=150)
@given(steps)
def test_any_hessian(operations):
    def f(x):
        values = any_function(operations)(x)
        return values[-1] * values[-2] + x[0] * values[len(values) // 2]

    x = np.array([0.3, -0.7, 1.1, 0.6])
    matrix, _ = hessian_of(f, x)
    at = x + 0.05
    # Sums of products of numbers below 10, in another order.
    np.testing.assert_allclose(dense(matrix, at, (4, 4)), tg.hessian(f)(at), rtol=1e-11, atol=1e-12)


@settings(max_examples=60)
@given(steps)
def test_any_jacobian_and_its_structure(operations):
    def f(x):
        return np.stack([value * 1.5 for value in any_function(operations)(x)[:20]] + [x[0]])

    x = np.array([0.3, -0.7, 1.1, 0.6])
    matrix, program = jacobian_of(f, x)
    known, cells = program.array_input(0), program.array_output()
    found = dense(matrix, x, (len(cells), 4))
    np.testing.assert_allclose(found, tg.jacobian(f)(x), rtol=1e-12, atol=1e-13)
    indptr, columns = patterns.find_pattern(program.tape, cells, known.cell, known.size)
    np.testing.assert_array_equal(matrix.indptr, indptr)
    np.testing.assert_array_equal(matrix.columns, columns)


def chain(x):
    total = 0.0
    for i in range(x.size - 1):
        t = x[i + 1] - x[i] * x[i]
        u = 1.0 - x[i]
        total = total + 100.0 * t * t + u * u
    return total


def test_a_chain_takes_few_instructions_an_element():
    """By hand, 400 (3 x_i^2 - x_(i+1)) + 202 and -400 x_i: eight, and two more are found."""
    n = 300
    matrix, _ = hessian_of(chain, np.linspace(-1.0, 1.0, n))
    cells = len(matrix._tape.arena.v.array) - n
    assert cells <= 10 * n
    assert len(matrix) <= 20  # array instructions


@pytest.mark.usefixtures("products")
def test_structural_operations_become_scalar_code():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 4))

    def f(x):
        y = x.reshape(3, 4)
        return (
            np.sum(np.sum(y * a, axis=1) ** 2)
            + np.prod(y[:, 0])
            + np.sum((a.T @ y @ x[:4]) ** 2)
            + np.sum(np.cumsum(y, axis=1) ** 3)
            + np.sum(x[:3] @ y)
        )

    x = rng.normal(size=12)
    matrix, _ = hessian_of(f, x)
    np.testing.assert_allclose(dense(matrix, x, (12, 12)), tg.hessian(f)(x), rtol=1e-12, atol=1e-12)


PIECEWISE = {
    "a choice": lambda x: np.sum(np.where(x > 0.5, x**3, -x) * np.roll(x, 1)),
    "a branch that is nan": lambda x: np.sum(np.where(x > 0.0, np.sqrt(x), x**2) ** 3),
    "nested choices": lambda x: np.sum(np.where(x > 0.0, np.where(x > 1.0, np.log(x), x**2), -x)),
    "a kink": lambda x: np.sum(np.abs(x) * x) + np.sum(np.abs(x[:2]) ** 1.5),
    "larger of two": lambda x: np.sum(np.maximum(x**2, x) * np.minimum(x, 0.7)),
    "powers": lambda x: np.sum((2.0 + x) ** np.exp(x)) + (x[0] ** 2 + 0.1) ** 0.5,
    "log of a sum": lambda x: np.logaddexp(x[0], x[1] * x[2]),
}


@pytest.mark.parametrize("name", PIECEWISE)
def test_pieces(name):
    f = PIECEWISE[name]
    x = np.array([-0.8, 0.4, 1.7, 0.6])
    with np.errstate(all="ignore"):
        _, program = hessian_of(f, x)
        for at in (x, x[::-1] * 1.1, np.array([0.0, 1.0, 0.25, -3.0])):
            found = program.sparse_hessian(at).toarray()
            np.testing.assert_allclose(found, tg.hessian(f)(at), rtol=1e-13, atol=1e-14)


def test_too_much_is_refused(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(straight, "EXPANSION", 0)
        with pytest.raises(Unsupported, match="too large"):
            jacobian_of(lambda x: np.ones((300, 300)) @ x, np.ones(300))
    monkeypatch.setattr(derive, "GROWTH", 0)
    with pytest.raises(Unsupported, match="too many"):
        hessian_of(lambda x: np.log(np.sum(np.exp(x))), np.ones(400))


def test_other_arguments_and_captured_arrays_are_kept_apart():
    weights = np.array([1.0, 2.0, 3.0])

    def f(a, x, b):
        return np.sum(a * x**3 * weights) + b["c"] * x[0] * x[1]

    program = tg.record(f, 2.0, np.ones(3), {"c": 5.0})
    known = program.array_input(1)
    matrix = derive_hessian(program, known, int(program.array_output()[0]))
    x = np.array([0.5, 1.5, 2.5])
    values = matrix.values([np.array(3.0), x, np.array(7.0)])
    found = np.zeros((3, 3))
    found[np.repeat(np.arange(3), np.diff(matrix.indptr)), matrix.columns] = values
    np.testing.assert_allclose(found, tg.hessian(f, 1)(3.0, x, {"c": 7.0}), rtol=1e-14)
