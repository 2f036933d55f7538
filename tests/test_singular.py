"""All ways to a derivative at points where partials are infinite or nan, and where zeros meet them.

A backward sweep of one direction is what the others are compared with: it carries on nothing that
is zero, be it multiplied by infinity.  A forward sweep carries on nothing by a partial that is zero
either, so it may answer a number where a backward one answers nan; otherwise, they agree.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad import execute
from tapegrad.kernels.opcodes import NONDIFF, ZERO_DERIVATIVE
from tapegrad.ops.table import TABLE
from tapegrad.recording import elementwise

NASTY = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, math.inf, -math.inf, math.nan)
ROWS = [
    name
    for name, row in TABLE.items()
    if name not in NONDIFF and name not in ZERO_DERIVATIVE and row.result == "float"
]

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# What becomes of a row's value: adjoints that are zero by accident or by choice, or infinite.
AFTER = (
    lambda y, c: y * c,
    lambda y, c: y * y + c,
    lambda y, c: np.where(c > 0.5, y, c),
    lambda y, c: np.sqrt(np.maximum(y * c, 0.0)),
)


def composed(row, operands, c, weights):
    """Return a row's value after each of these, of which the weights choose one, the others 0."""
    y = elementwise(row, *operands)
    return sum(w * after(y, c) for w, after in zip(weights, AFTER, strict=True))


@functools.cache
def points_of(row, most):
    """Return nasty operands of a row, a factor and weights: some of all combinations, as lanes."""
    row = TABLE[row]
    rng = np.random.default_rng(len(row.name))
    grid = np.array(np.meshgrid(*[NASTY] * row.arity)).reshape(row.arity, -1).T
    points = np.concatenate([grid, np.array(row.points, np.float64).reshape(-1, row.arity)])
    if row.integer_operand is not None:
        j = row.integer_operand
        points[:, j] = np.where(np.abs(points[:, j]) < 100.0, np.round(points[:, j]), 2.0)
    lanes = rng.integers(len(points), size=most)
    weights = np.eye(len(AFTER))[rng.integers(len(AFTER), size=most)].T
    return points[lanes].T.copy(), rng.choice([0.0, 1.0, -0.0, math.inf], most), weights


def of_rows(x, row, most):
    """Return the composition, lane by lane, as a function of all operands in one array."""
    operands, c, weights = points_of(row, most)
    return composed(row, x.reshape(operands.shape), c, weights)


def case(row, most):
    """Return a function of one array, where to differentiate it, and its gradient by one sweep."""
    x = points_of(row, most)[0].ravel()

    def f(x):
        return np.sum(of_rows(x, row, most))

    with tg.executor("reference"):
        return f, x, tg.grad(f)(x)


def same(got, want):
    """Compare to rounding: partials are rounded before or after they are multiplied."""
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-300)


def same_or_more(got, want):
    """Compare where the sweep answers a number; where it answers nan, a number is welcome."""
    known = ~np.isnan(want)
    same(np.asarray(got)[known], want[known])


@pytest.mark.parametrize("row", ROWS)
def test_array_code(monkeypatch, row):
    f, x, want = case(row, 120)
    with tg.executor("compiled"):
        monkeypatch.setattr(execute, "REGION_CELLS", 1 << 40)
        same(tg.grad(f)(x), want)
        program = tg.record(f, x)
        same(program.value_and_grad(x)[1], want)
        same_or_more(program.gradient()(x), want)
        # Regions divide an adjoint once for several operands: by infinity that leaves zero.
        monkeypatch.setattr(execute, "REGION_CELLS", 1)
        same_or_more(tg.grad(f)(x), want)
        same_or_more(tg.record(f, x).value_and_grad(x)[1], want)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("executor", ["reference", "compiled"])
def test_many_directions(row, executor):
    most = 40 if executor == "compiled" else 8
    _, x, want = case(row, most)
    with tg.executor(executor):
        program = tg.record(lambda x: of_rows(x, row, most), x)
        for _ in range(3 if executor == "compiled" else 1):  # the third by calls that are ready
            backward = program.jacobian(x, mode="reverse").sum(axis=0)
            forward = program.jacobian(x, mode="forward").sum(axis=0)
            same(backward, want)
            same_or_more(forward, want)


@pytest.mark.parametrize("row", ROWS)
def test_one_direction(row):
    """A function and its program have the same tangents, where these are numbers and where not."""
    _, x, _ = case(row, 40)
    f = functools.partial(of_rows, row=row, most=40)
    program = tg.record(f, x)
    for t in (np.ones(x.size), np.where(np.arange(x.size) % 3, 0.0, -2.0)):
        want = program.jvp((x,), (t,))[1]
        same(tg.jvp(f, (x,), (t,))[1], want)
        value, push = tg.linearize(lambda x: {"a": [f(x), 1.0], "b": x}, x)
        assert value["b"].shape == x.shape
        found = push(t)
        same(found["a"][0], want)
        assert found["a"][1] == 0.0
        same(found["b"], t)


def test_one_direction_of_other_things():
    assert tg.jvp(lambda x: x * np.sqrt(x), (0.0,), (1.0,)) == (0.0, 0.0)
    x = np.zeros(3, np.float32)
    tangent = tg.jvp(lambda x: x * np.sqrt(x), (x,), (np.ones(3),))[1]
    assert tangent.dtype == np.float32
    assert tangent.tolist() == [0.0] * 3
    # A rule of the user's has no forward sweep: what there is stays as it is.
    rule = tg.custom_vjp(lambda x: x * 1.0)
    rule.defvjp(lambda x: (x, None), lambda _, g: (g,))
    assert np.isnan(tg.jvp(lambda x: rule(x) * np.sqrt(x), (0.0,), (1.0,))[1])


@pytest.mark.parametrize("row", ROWS)
def test_scalar_code(row):
    _, x, want = case(row, 12)
    _, c, weights = points_of(row, 12)

    def f(x):
        lanes = [x[i::12] for i in range(12)]
        return sum(
            composed(row, list(lane), c.item(i), weights[:, i].tolist())
            for i, lane in enumerate(lanes)
        )

    for executor in ("reference", "compiled"):
        with tg.executor(executor):
            same(tg.grad(f)(x), want)
            program = tg.record(f, x)
            same(program.value_and_grad(x)[1], want)
            # In a recorded sweep a constant factor of zero ends the way of an infinite adjoint.
            same_or_more(program.gradient()(x), want)


@pytest.mark.parametrize("row", ROWS)
def test_batches(row):
    operands, c, weights = points_of(row, 60)
    _, _, want = case(row, 60)

    def f(x, c, w):
        return composed(row, list(x), c, list(w))

    program = tg.record(f, operands[:, 0], 1.0, weights[:, 0])
    same(program.map.grad(operands.T, c, weights.T).T.ravel(), want)
    mapped = tg.vmap(lambda x, c, w: tg.grad(f)(x, c, w))
    same(mapped(operands.T, c, weights.T).T.ravel(), want)


@pytest.mark.parametrize("row", ROWS)
def test_sparse_derivatives(row):
    _, x, want = case(row, 40)
    execute.load("derive")
    program = tg.record(lambda x: of_rows(x, row, 40), x)
    same_or_more(program.sparse_jacobian(x).sum(axis=0), want)
    f, x, _ = case(row, 10)
    program = tg.record(f, x)
    with tg.executor("reference"):  # others differ in last digits, which 1 - expit(x) makes first
        same_or_more(program.sparse_hessian(x).toarray(), tg.hessian(f)(x))


@pytest.mark.parametrize("row", ROWS)
def test_sweeps_that_skip_nothing(row):
    """What `strict` answers, zeros times infinity, is the same in every executor."""
    f, x, _ = case(row, 40)

    def strict(executor):
        with tg.executor(executor):
            leaf = tg.array(x)
            f(leaf).backward(strict=True)
            return leaf.grad

    same(strict("compiled"), strict("reference"))


def singular_step(y, x, c):
    """One step of a loop through what is singular at 0."""
    z = np.sqrt(np.abs(x)) * c + np.log(np.maximum(x, 0.0)) * (c * c)
    return y + np.where(x > 0.25, z, x * x) * np.sqrt(x * x) + (np.abs(x) ** 1.5 - c) * c


def test_compiled_loops():
    x = np.array([0.0, -0.0, 1.0, 0.25, math.inf, -1.0, math.nan, 0.5] * 4)
    c = np.array([0.0, 1.0, -0.0, 2.0] * 8)

    def f(x, c):
        y = 0.0
        for i in range(32):
            y = singular_step(y, x[i], c[i])
        return y

    want = tg.grad(f, argnums=(0, 1))(x, c)
    program = tg.record(f, x, c).compile()
    assert program.tape.replays.rolled
    for one, other in zip(program.value_and_grad(x, c, argnums=(0, 1))[1], want, strict=True):
        same(one, other)


FUNCTIONS = (
    lambda a, b: a + b,
    lambda a, b: a * b,
    lambda a, b: a - 2.0 * b,
    lambda a, b: np.sqrt(np.abs(a)) * b,
    lambda a, b: np.abs(a) ** 1.5,
    lambda a, b: a**0.5,
    lambda a, b: np.log(a) * b,
    lambda a, b: 0.0 * a + b,
    lambda a, b: np.where(a > b, np.sqrt(a - b), a * b),
    lambda a, b: np.maximum(a, b),
    lambda a, b: a / b,
    lambda a, b: np.hypot(a, b),
)
steps = st.lists(st.tuples(st.sampled_from(FUNCTIONS), st.integers(0, 9), st.integers(0, 9)))


@settings(max_examples=60)
@given(steps, st.lists(st.sampled_from((0.0, 1.0, -1.0, 0.5)), min_size=3, max_size=3))
def test_any_sparse_hessian_and_gradient(operations, at):
    """Where sweeps answer numbers, derived programs do, and the same."""

    def f(x):
        values = [x[0], x[1], x[2]]
        for function, i, j in operations[:8]:
            values.append(function(values[i % len(values)], values[j % len(values)]))
        return values[-1] * values[len(values) // 2] + values[-1]

    execute.load("derive")
    x = np.array(at)
    program = tg.record(f, np.array([0.7, 0.3, 0.2]))
    want = tg.hessian(f)(x)
    got = program.sparse_hessian(x).toarray()
    known = np.isfinite(want)
    # Sums are taken in another order, of numbers that may cancel.
    scale = max(1.0, np.abs(want[known]).max(initial=0.0))
    np.testing.assert_allclose(got[known], want[known], rtol=1e-9, atol=1e-9 * scale)
    gradient = tg.grad(f)(x)
    got = program.gradient()(x)
    known = np.isfinite(gradient)
    np.testing.assert_allclose(got[known], gradient[known], rtol=1e-9, atol=1e-12)
