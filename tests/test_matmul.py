"""Small products of matrices, which are recorded as scalar instructions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad import matmul, trees
from tapegrad.kernels.opcodes import HOST, INPUT, LANES, ROWS

RNG = np.random.default_rng(7)
SHAPES = [
    ((3,), (3,)),
    ((1,), (1,)),
    ((16,), (16,)),
    ((3, 3), (3, 3)),
    ((4, 4), (4, 4)),
    ((1, 1), (1, 1)),
    ((2, 3), (3,)),
    ((8, 8), (8,)),
    ((3,), (3, 4)),
    ((5, 1), (1, 3)),
    ((1, 5), (5, 1)),
    ((2, 2, 3), (3, 2)),
    ((2, 1, 2, 3), (2, 3, 2)),
    ((3,), (2, 3, 2)),
    ((2, 3, 3), (3,)),
    ((3, 1, 2, 2), (1, 2, 2, 1)),
]
WRITTEN = {ROWS["add"][0], *ROWS["multiply"], INPUT}


def opcodes(program):
    return set(program.tape.arena.op.array[: program.tape.n].tolist())


def exact(shape):
    """Return numbers whose products and sums are exact, in any order."""
    return RNG.integers(-9, 10, shape) / 4.0


@pytest.mark.parametrize(("left", "right"), SHAPES)
@pytest.mark.parametrize("which", ["both", "left", "right"])
def test_it_is_numpys_product(left, right, which):
    x, y = exact(left), exact(right)

    def f(a, b):
        return (a if which != "right" else x) @ (b if which != "left" else y)

    program = tg.record(f, x, y)
    assert opcodes(program) <= WRITTEN
    expected = x @ y
    found = program(x, y)
    assert np.shape(found) == expected.shape
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(tg.vjp(f, x, y)[0], expected)
    tg.check_gradients(f, x, y)


@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_derivatives_are_those_of_the_structural_instruction(left, right, monkeypatch):
    x, y, v = RNG.normal(size=left), RNG.normal(size=right), RNG.normal(size=left)
    weights = RNG.normal(size=np.shape(x @ y))

    def f(x, y):
        return np.sum(np.sin(x @ y) * weights)

    def all_of_it(f):
        program = tg.record(f, x, y)
        lanes = np.stack([x, 2.0 * x])
        return (
            tg.value_and_grad(f, argnums=(0, 1))(x, y),
            tg.hessian(f, argnums=(0, 1))(x, y),
            tg.jvp(f, (x, y), (v, y)),
            tg.hvp(f)(x, y, v),
            tg.vmap(f, in_axes=(0, None))(lanes, y),
            program.map.grad(lanes, y, in_axes=(0, None)),
            program.gradient()(x, y),
            program.hessian(x, y),
        )

    written = all_of_it(f)
    monkeypatch.setattr(matmul, "_written", lambda x, y: None)
    structural = all_of_it(lambda x, y: f(x, y))
    a, b = trees.flatten(written)[0], trees.flatten(structural)[0]
    assert len(a) == len(b) > 10
    for one, other in zip(a, b, strict=True):  # sums in other orders: some units in the last place
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)


sizes = st.integers(0, 4)
stacks = st.lists(st.integers(1, 2), max_size=2).map(tuple)


@given(sizes, sizes, sizes, stacks, stacks, st.booleans(), st.booleans(), st.randoms())
def test_any_shapes(n, k, m, left, right, row, column, random):
    """Vectors, matrices, stacks and empty ones; errors are NumPy's."""
    x = np.ones((k,)) if row else np.ones((*left, n, k))
    y = np.ones((k,)) if column else np.ones((*right, k, m))
    x, y = (np.array([random.randint(-4, 4) for _ in range(a.size)], float).reshape(a.shape)
            for a in (x, y))  # fmt: skip
    try:
        expected = x @ y
    except ValueError:
        with pytest.raises(ValueError, match="matmul"):
            tg.array(x) @ tg.array(y)
        return
    for a, b in ((tg.array(x), y), (x, tg.array(y)), (tg.array(x), tg.array(y))):
        found = a @ b
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found.value, expected)
        np.sum(found * found).backward()


WINDOWS = {
    "transposed": lambda x: x.T,
    "reversed": lambda x: x[::-1, ::-1],
    "broadcast": lambda x: np.broadcast_to(x[0], (3, 3)),
    "gathered": lambda x: x[[2, 0, 2]],
    "a part": lambda x: np.tile(x, (2, 2))[1:4, 2:5],
    "joined": lambda x: np.stack([x[0], x[1] * 2.0, x[2]]),
    "assigned": lambda x: assigned(x),
    "computed": np.sin,
}


def assigned(x):
    y = tg.zeros((3, 3))
    y[0] = x[1]
    y[1:, 0] = x[0, :2] * 2.0
    y[2, 2] = 3.0
    return y


@pytest.mark.parametrize("one", WINDOWS)
@pytest.mark.parametrize("other", WINDOWS)
def test_operands_lie_anywhere(one, other):
    a, b = WINDOWS[one], WINDOWS[other]

    def f(x):
        return a(x) @ b(x) + a(x) @ x[0] * 2.0

    x = RNG.normal(size=(3, 3))

    p, q = (np.asarray(tg.record(part, x)(x)) for part in (a, b))
    np.testing.assert_allclose(tg.record(f, x)(x), p @ q + p @ x[0] * 2.0, rtol=1e-13)
    with tg.no_grad():
        np.testing.assert_allclose(f(tg.array(x)).value, p @ q + p @ x[0] * 2.0, rtol=1e-13)
    tg.check_gradients(f, x)


def test_dtypes_are_those_of_numpy():
    for left in (np.float64, np.float32, np.int64, np.int32):
        for right in (np.float64, np.float32, np.int64):
            x, y = np.ones((2, 2), left), np.ones((2, 2), right)
            with tg.no_grad():
                found = tg.array(x.astype(float)).astype(left) @ y
            assert found.dtype == (x @ y).dtype
    x = tg.array(np.array([[0.1, 0.2], [0.3, 0.4]], np.float32))
    y = x @ x
    np.testing.assert_array_equal(y.value, y.value.astype(np.float32))
    np.sum(y).backward()
    assert x.grad.dtype == np.float32
    assert (tg.array([1.0, 2.0]) @ np.array([True, False])).value == 1.0
    assert ([1.0, 2.0] @ tg.array([3.0, 4.0])).value == 11.0


def test_infinities_and_nans_are_numpys():
    for x, y in (
        ([[0.0, 1.0], [2.0, 3.0]], [[np.inf, 1.0], [1.0, 0.0]]),
        ([[np.nan, 1.0], [2.0, 3.0]], [[0.0, 1.0], [1.0, 1.0]]),
        ([[np.inf, np.inf], [1.0, 0.0]], [[1.0, 0.0], [-1.0, 2.0]]),
    ):
        with np.errstate(invalid="ignore"):
            expected = np.array(x) @ np.array(y)
        np.testing.assert_array_equal((tg.array(x) @ np.array(y)).value, expected)
        np.testing.assert_array_equal((np.array(x) @ tg.array(y)).value, expected)


def test_a_branch_not_taken_contributes_nothing():
    matrix = np.array([[np.inf, 1.0], [1.0, 2.0]])

    def f(x):
        return np.sum(np.where(x > 0.0, x, matrix @ x))

    x = np.array([1.0, -1.0])
    assert tg.grad(f)(x).tolist() == [2.0, 2.0]
    assert tg.record(f, x).value_and_grad(x)[1].tolist() == [2.0, 2.0]
    assert tg.record(f, x).gradient()(x).tolist() == [2.0, 2.0]
    y = tg.array(x)
    f(y).backward(strict=True)  # which visits what has no adjoint
    assert np.isnan(y.grad[0])


def test_decisions_on_products_are_guarded():
    def f(x):
        y = x @ x
        return y[0, 0] if y[1, 1] > 1.0 else y[0, 1]

    program = tg.record(f, np.eye(2) * 2.0)
    assert program(np.eye(2) * 3.0) == 9.0
    with pytest.raises(tg.ControlFlowChanged):
        program(np.eye(2) * 0.5)


@pytest.mark.parametrize("f", [np.dot, np.matmul, np.inner, np.vdot, lambda x, y: x.dot(y)])
def test_all_ways_to_write_it(f):
    x, y = exact(4), exact(4)
    program = tg.record(f, x, y)
    assert opcodes(program) <= WRITTEN
    assert program(x, y) == x @ y


def test_an_array_with_more_axes_by_dot():
    x, y = exact((2, 2)), exact((3, 2, 2))
    np.testing.assert_array_equal(tg.array(x).dot(tg.array(y)).value, np.dot(x, y))


def test_where_the_limits_are():
    def is_written(left, right):
        program = tg.record(lambda x, y: x @ y, np.ones(left), np.ones(right))
        return HOST not in opcodes(program)

    assert is_written((4, 4), (4, 4))
    assert is_written((64, 1), (1, 1))
    assert not is_written((4, 4), (4, 5))
    assert not is_written((65, 1), (1, 1))
    assert is_written((16,), (16,))
    assert not is_written((17,), (17,))
    assert is_written((1, 17), (17,))


def test_blocks_of_the_tape_are_filled_and_left():
    """Products wherever a block of instructions ends."""
    x = RNG.normal(size=(4, 4)) / 2.0
    for before in (0, 4000, 4090, 4096, 8000, 8191):

        def f(x, s, before=before):
            for _ in range(before):
                s = s * 1.0
            return np.sum(x @ x @ x) * s + (x @ x)[1, 2]

        value, (by_x, by_s) = tg.value_and_grad(f, argnums=(0, 1))(x, 2.0)
        expected, (want, by) = tg.value_and_grad(
            lambda x, s: np.sum(x @ x @ x) * s + (x @ x)[1, 2], argnums=(0, 1)
        )(x, 2.0)
        assert (value, by_s) == (expected, by)
        np.testing.assert_array_equal(by_x, want)


@pytest.mark.parametrize("executor", ["reference", "compiled"])
def test_a_program_of_products_calls_no_host(executor, tmp_path):
    weights = RNG.normal(size=(3, 3)) / 2.0
    fixed = np.diag([1.0, 0.5, 0.0]) + 0.1

    def f(x, w):
        for _ in range(20):
            x = np.tanh(fixed @ x @ w) + 0.1 * x
        return np.sum(x @ x[0])

    x = RNG.normal(size=(3, 3))
    program = tg.record(f, x, weights)
    assert HOST not in opcodes(tg.record(lambda x, w: (fixed @ x @ w @ x[0])[1], x, weights))
    assert LANES in opcodes(program)
    assert [call.row.name for call in program.tape.hosts] == ["sum"]
    program.save(tmp_path / "products.tape")
    with tg.executor(executor):
        expected = tg.value_and_grad(f, argnums=(0, 1))(x, weights)
        for one in (program, tg.load(tmp_path / "products.tape")):
            value, gradients = one.value_and_grad(x, weights, argnums=(0, 1))
            # A plan sums in pairs, and a sweep one after another.
            np.testing.assert_allclose(value, expected[0], rtol=1e-14)
            for gradient, want in zip(gradients, expected[1], strict=True):
                np.testing.assert_allclose(gradient, want, rtol=1e-11, atol=1e-13)
    tg.check_gradients(f, x, weights)


def test_compiled_loops_of_products():
    def f(x, w):
        for _ in range(100):
            x = w @ x
        return np.sum(x)

    args = RNG.normal(size=3), np.eye(3) + RNG.normal(size=(3, 3)) / 50.0
    program = tg.record(f, *args)
    before = program.value_and_grad(*args, argnums=(0, 1))
    after = program.compile().value_and_grad(*args, argnums=(0, 1))
    assert before[0] == after[0]
    for one, other in zip(before[1], after[1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_sparsity_is_exact_to_the_element():
    fixed = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
    jacobian = tg.sparse_jacobian(lambda x: np.concatenate([fixed @ x[:3], x[:2] @ fixed[:2]]))
    x = np.array([2.0, 3.0, 4.0])
    found = jacobian(x)
    np.testing.assert_array_equal(
        found.toarray(), np.concatenate([fixed, fixed[:2].T @ np.eye(2, 3)])
    )
    products = tg.sparse_hessian(lambda x: (x[:3] @ x[3:6]) + x[6] ** 2)(np.ones(7))
    assert products.nnz == 7


def test_constants_are_captured_and_kept():
    fixed = np.array([[1.0, 2.0], [3.0, 4.0]])
    program = tg.record(lambda x: fixed @ x, np.ones(2))
    fixed[0, 0] = 10.0
    assert program(np.ones(2)).tolist() == [3.0, 7.0]  # what it held when it was recorded
    assert "fixed" in [item.name for item in program.check_captured()]
    promoted = program.promote("fixed")
    assert promoted(np.ones(2), fixed).tolist() == [12.0, 7.0]
