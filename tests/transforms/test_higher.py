"""Derivatives of derivatives: rows against mpmath, programs against differences, nesting, kinks."""

import itertools
import math
import os
import subprocess
import sys

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import rosen_hess, rosen_hess_prod

import tapegrad as tg
from tapegrad.ops import TABLE
from tapegrad.ops.row import in_domain
from tapegrad.recording import elementwise

HERE = r"test_higher\.py:\d+"
MP_NAMES = {name: getattr(mpmath, name) for name in dir(mpmath) if not name.startswith("_")}
MP_NAMES.update(max=max, min=min, int=int)


def rosen(x):
    return np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


# -- rows ------------------------------------------------------------------------------------------

DIFFERENTIABLE = [
    (row, point)
    for row in TABLE.values()
    if row.differentiable
    for point in row.samples
    if in_domain(row, point)
]


def wanted(row, point, order):
    """Differentiate the row's independent definition, with steps that suit each operand."""
    if row.name == "sinc_derivative":  # an integral, which is slow to differentiate numerically
        point, order = (point[0] + order[1], point[1]), (0, 0)
    code = compile(row.mp, f"<{row.name}>", "eval")
    at = [mpmath.mpf(t) for t in point]
    sizes = [abs(t) or mpmath.mpf(1) for t in at]

    def moved(*steps):
        here = [t + h * n for t, h, n in zip(at, steps, sizes, strict=True)]
        return eval(code, MP_NAMES | dict(zip(row.operands, here, strict=True)))

    factor = mpmath.fprod(size**n for size, n in zip(sizes, order, strict=True))
    return mpmath.diff(moved, (0,) * row.arity, order) / factor


def orders(row, total):
    """Yield the positions to differentiate for, one after the other."""
    smooth = [i for i, p in enumerate(row.partials) if i != row.integer_operand and p]
    return itertools.combinations_with_replacement(smooth, total)


def nested(row, positions):
    def f(*operands):
        return elementwise(row.name, *operands)

    for position in positions:
        f = tg.grad(f, argnums=position)
    return f


@pytest.mark.parametrize("total", [2, 3])
@pytest.mark.parametrize(
    ("row", "point"), [pytest.param(r, p, id=f"{r.name}{p}") for r, p in DIFFERENTIABLE]
)
def test_rows_to_third_order(row, point, total):
    with mpmath.workdps(40):
        for positions in orders(row, total):
            order = tuple(positions.count(i) for i in range(row.arity))
            want = wanted(row, point, order)
            if abs(want) > sys.float_info.max:
                continue  # no number can tell
            got = nested(row, positions)(*point)
            scale = abs(want) + abs(wanted(row, point, (0,) * row.arity)) * 1e-3
            # The partials' own terms cancel, the more the higher the order.
            tolerance = 1e-10 * scale * max(1.0, row.ulp / 4) + 1e-11
            assert abs(got - want) <= tolerance or got == float(want), (positions, got, want)


# -- functions with known second derivatives -------------------------------------------------------


def test_the_hessian_of_rosenbrock_is_scipys():
    x = np.random.default_rng(1).normal(size=30)
    hessian = tg.hessian(rosen)(x)
    np.testing.assert_allclose(hessian, rosen_hess(x), rtol=1e-13, atol=1e-11)
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-15, atol=0)
    assert hessian.flags.c_contiguous
    assert hessian.flags.writeable
    v = np.random.default_rng(2).normal(size=30)
    np.testing.assert_allclose(tg.hvp(rosen)(x, v), rosen_hess_prod(x, v), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(
        tg.jvp(tg.grad(rosen), (x,), (v,))[1], rosen_hess_prod(x, v), rtol=1e-12, atol=1e-9
    )


def test_the_hessian_has_the_structure_of_the_argument_twice():
    def f(p, s):
        return np.sum(p["a"] ** 2 * p["b"][0]) * s

    p, s = {"a": np.array([1.0, 2.0]), "b": [3.0]}, 4.0
    blocks = tg.hessian(f, argnums=(0, 1))(p, s)
    np.testing.assert_array_equal(blocks[0]["a"][0]["a"], 24.0 * np.eye(2))
    np.testing.assert_array_equal(blocks[0]["a"][0]["b"][:, 0], [8.0, 16.0])
    np.testing.assert_array_equal(blocks[0]["a"][1], [6.0, 12.0])
    np.testing.assert_array_equal(blocks[1][0]["b"], [5.0])
    assert blocks[1][1] == 0.0
    x = np.arange(6.0).reshape(2, 3)
    hessian = tg.hessian(lambda x: np.sum(x**3))(x)
    np.testing.assert_array_equal(hessian.reshape(6, 6), np.diag(6 * x.ravel()))
    value, aux = tg.hessian(lambda x: (x * x, "told"), has_aux=True)(3.0)
    assert (value, aux) == (2.0, "told")
    assert tg.hessian(lambda x: 3.0)(1.0) == 0.0


def test_gradients_of_jacobians_and_jacobians_of_jacobians():
    def f(x):
        return np.stack([x[0] * x[1], np.exp(x[0])])

    x = np.array([0.5, 2.0])
    got = tg.grad(lambda x: np.sum(tg.jacobian(f)(x)))(x)
    np.testing.assert_allclose(got, [1 + math.exp(0.5), 1.0], rtol=1e-15)
    third = tg.jacobian(tg.jacobian(f))(x)
    expected = np.zeros((2, 2, 2))
    expected[0, 0, 1] = expected[0, 1, 0] = 1.0
    expected[1, 0, 0] = math.exp(0.5)
    np.testing.assert_allclose(third, expected, rtol=1e-15)
    assert tg.jacobian(tg.jacobian(lambda x: x[:0]))(x).shape == (0, 2, 2)


@pytest.mark.usefixtures("products")
def test_structural_rows_and_rearrangements():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3, 3))
    x[1, 1] = 0.0
    a = rng.normal(size=(3, 3))
    functions = (
        lambda x: np.sum(np.prod(x, axis=0) ** 2),
        lambda x: np.sum(np.cumprod(x, axis=1) * a),
        lambda x: np.sum(np.cumsum(x**2, axis=0) * x),
        lambda x: np.sum(np.max(x, axis=1) ** 3) + np.min(x) ** 2,
        lambda x: np.sum(np.sin(x @ a @ x.T)),
        lambda x: np.sum((x[0] @ x) * (x @ x[:, 1])) + x[0] @ x[1],
        lambda x: np.sum(np.matmul(np.stack([x, a]), x) ** 2),
        lambda x: np.sum(x[[0, 0, 2, 0]] ** 3 * x.T[1]),
        lambda x: np.sum(np.concatenate([x[::-1], x.T]) ** 4) + np.trace(x) ** 2,
        lambda x: np.sum(np.exp(np.broadcast_to(x[0], (4, 3)) * x[:, :1][0])),
        lambda x: np.sum(np.where(x > 0.1, x**3, -x)) + np.mean(x) ** 3,
    )
    for function in functions:
        check_second_order(function, x)


def check_second_order(function, x):
    """Compare the Hessian with central differences of the gradient, and with products."""
    gradient = tg.grad(function)
    hessian = tg.hessian(function)(x).reshape(x.size, x.size)
    for i in range(x.size):
        step = np.zeros(x.size)
        step[i] = 1e-5
        step = step.reshape(x.shape)
        difference = (gradient(x + step) - gradient(x - step)).ravel() / 2e-5
        # Differences are good to about 1e-11 (rounding / step) and 1e-10 (step squared).
        np.testing.assert_allclose(
            hessian[i], difference, rtol=1e-6, atol=1e-7 * (1 + abs(hessian).max())
        )
    v = np.cos(np.arange(x.size)).reshape(x.shape)
    size = abs(hessian).max() + 1e-300
    product = tg.hvp(function)(x, v).ravel()
    np.testing.assert_allclose(product, hessian @ v.ravel(), rtol=1e-12, atol=1e-13 * size)
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-12, atol=1e-14 * size)
    slope = tg.jvp(gradient, (x,), (v,))[1].ravel()
    np.testing.assert_allclose(slope, product, rtol=1e-12, atol=1e-13 * size)


# -- programs --------------------------------------------------------------------------------------


def _assign(y):
    z = y.copy()
    z[1:] = y[:-1] * z[0]
    z[0] = np.sin(z[2])
    return z


STEPS = {
    "sin": np.sin,
    "tanh of a product": lambda y: np.tanh(y * y[0]),
    "broadcast": lambda y: np.sum(np.outer(y, np.cos(y)), axis=1) / 4.0,
    "slices": lambda y: np.concatenate([y[1:], y[:1]]) * y,
    "assignment": _assign,
    "scalars": lambda y: y * (y[0] * y[3] + 0.5),
    "reduction": lambda y: y - np.mean(y**2),
    "matmul": lambda y: np.array([[0.3, -0.2], [0.5, 0.1]]) @ y.reshape(2, 2),
    "choice": lambda y: np.where(y > 0.1, np.exp(-y), y * y),
    "gather": lambda y: y[[3, 0, 0, 1]] * y[2],
    "loop": lambda y: sum(y[i] * y for i in range(3)),
    "cumsum": lambda y: np.cumsum(y) * 0.5,
}


@settings(max_examples=40)
@given(
    names=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_random_programs(names, seed):
    def function(x):
        y = x
        for name in names:
            y = STEPS[name](y).reshape(4)
        return np.sum(y * np.array([1.0, 0.5, -0.3, 2.0]))

    x = np.random.default_rng(seed).uniform(0.2, 0.9, 4)
    check_second_order(function, x)


# -- nesting ---------------------------------------------------------------------------------------


def test_derivatives_to_any_order():
    f = np.sin
    for expected in (np.cos, lambda x: -np.sin(x), lambda x: -np.cos(x), np.sin, np.cos):
        f = tg.grad(f)
        assert f(0.7) == pytest.approx(expected(0.7), rel=1e-15)


def test_no_perturbation_confusion():
    # Each derivative means its own argument, not the same value met elsewhere.
    assert tg.grad(lambda x: x * tg.grad(lambda y: y * x)(1.0))(2.0) == 4.0
    assert tg.grad(lambda x: x * tg.grad(lambda y: x + y)(1.0))(1.0) == 1.0
    assert tg.grad(lambda x: tg.grad(lambda y: x * y)(x))(3.0) == 1.0
    assert tg.grad(lambda x: tg.grad(lambda x: x * x)(x) * x)(3.0) == 12.0
    assert tg.jvp(lambda x: x * tg.jvp(lambda y: x + y, (1.0,), (1.0,))[1], (1.0,), (1.0,)) == (
        1,
        1,
    )

    def third(x):
        return tg.grad(lambda y: y**2 * x * tg.grad(lambda z: z**2 * y * x)(x))(x)

    # z -> 2 x z y = 2 x**2 y; y -> d/dy 2 x**3 y**3 = 6 x**3 y**2, at y = x: 6 x**5.
    assert third(1.3) == pytest.approx(6 * 1.3**5)
    assert tg.grad(third)(1.3) == pytest.approx(30 * 1.3**4)


def test_closures_over_arrays_and_mixed_derivatives():
    a = np.array([1.0, -2.0, 0.5])

    def f(x):
        return tg.grad(lambda s: np.sum(np.sin(s * x) * a))(0.3) * np.sum(x)

    x = np.array([0.2, 0.7, -1.0])
    inner = np.sum(a * x * np.cos(0.3 * x))
    expected = inner + np.sum(x) * a * (np.cos(0.3 * x) - 0.3 * x * np.sin(0.3 * x))
    np.testing.assert_allclose(tg.grad(f)(x), expected, rtol=1e-14)
    mixed = tg.grad(tg.grad(lambda x, y: np.exp(x * y), argnums=0), argnums=1)(0.5, 2.0)
    assert mixed == pytest.approx(math.e * 2.0)


def test_a_derivative_that_depends_on_nothing_outside_is_a_number():
    seen = []

    def f(x):
        slope, aux = tg.grad(lambda y: (y**3, y), has_aux=True)(2.0)
        matrix = tg.jacobian(lambda y: y * y)(np.array([1.0, 2.0]))
        value, pull = tg.vjp(np.sin, 0.5)
        seen.append((slope, aux, matrix, value, pull(1.0)))
        return x * slope * matrix[1, 1] * pull(x)[0]

    assert tg.grad(f)(3.0) == pytest.approx(12.0 * 4.0 * 2 * 3.0 * math.cos(0.5))
    slope, aux, matrix, value, pulled = seen[0]
    assert [type(x) for x in (slope, aux, matrix, value, *pulled)] == [
        float, float, np.ndarray, float, float
    ]  # fmt: skip
    np.testing.assert_array_equal(matrix, [[2.0, 0.0], [0.0, 4.0]])


def test_values_and_aux_of_an_inner_derivative_are_differentiated_too():
    def f(x):
        (value, aux), slope = tg.value_and_grad(lambda y: (y**2, y * x), has_aux=True)(x)
        return value + aux * slope

    assert tg.grad(f)(3.0) == 6.0 + 6.0 * 9.0


def test_pulls_are_differentiated_for_point_and_cotangent():
    def f(x, w):
        value, pull = tg.vjp(lambda t: {"y": t**2}, x)
        return np.sum(pull({"y": w})[0] * value["y"])  # 2 x w * x**2

    x, w = np.array([1.0, 2.0]), np.array([3.0, -1.0])
    to_x, to_w = tg.grad(f, argnums=(0, 1))(x, w)
    np.testing.assert_allclose(to_x, 6 * x**2 * w)
    np.testing.assert_allclose(to_w, 2 * x**3)
    _, pull = tg.vjp(np.sin, 0.5)  # recorded before, with no thought of a second derivative
    assert tg.grad(lambda w: pull(w * w)[0])(3.0) == pytest.approx(6 * math.cos(0.5))
    assert pull(2.0)[0] == 2 * math.cos(0.5)


def test_a_pull_outlives_its_tape_and_changes_to_the_output():
    x = tg.array([1.0, 2.0])
    value, pull = tg.vjp(lambda t: t**3, x)
    np.sum(value).backward()  # ends the tape
    doubled = value * 2.0  # imported: the value now belongs to a later tape
    value[0] = 100.0
    (cotangent,) = pull(np.array([1.0, 10.0]))
    np.testing.assert_array_equal(cotangent.value, [3.0, 120.0])
    x.zero_grad()
    np.sum(cotangent + doubled).backward()
    np.testing.assert_array_equal(x.grad, [6.0 + 6.0, 120.0 + 24.0])


def test_derivatives_at_leaves_flow_into_them():
    x = tg.array([1.0, 2.0])
    gradient = tg.grad(lambda t: np.sum(t**3))(x)
    assert isinstance(gradient, tg.Array)
    np.sum(gradient * x).backward()  # 3 x**3
    np.testing.assert_array_equal(x.grad, 9 * x.value**2)
    with tg.no_grad():
        plain = tg.grad(lambda t: np.sum(t**3))(x)
    np.testing.assert_array_equal(plain, 3 * x.value**2)


def test_the_caller_may_assign_to_a_gradient_inside():
    def f(x):
        g = tg.grad(lambda t: np.sum(t) * 2.0)(x)  # one cell, shown three times
        h = tg.grad(lambda t: np.sum(t * t))(x)
        g[0] = 5.0 * x[1]
        h[1] = 0.0
        return np.sum(g) + np.sum(h * x)

    np.testing.assert_array_equal(tg.grad(f)(np.array([1.0, 2.0, 3.0])), [4.0, 5.0, 12.0])


def test_programs_hold_derivatives():
    program = tg.record(lambda x: tg.hessian(rosen)(x) @ tg.grad(rosen)(x), np.full(4, 1.2))
    x = np.array([0.3, -0.4, 0.5, 0.6])
    np.testing.assert_allclose(program(x), rosen_hess(x) @ tg.grad(rosen)(x), rtol=1e-13)


# -- jvp and linearize -----------------------------------------------------------------------------


def test_jvp_is_the_jacobian_times_a_tangent():
    a = np.random.default_rng(4).normal(size=(3, 2))

    def f(p, s):
        return {"y": np.tanh(p["w"] @ a) * s, "z": [np.sum(p["w"]), 7.0]}

    p, s = {"w": np.array([0.1, -0.5, 2.0])}, 1.5
    value, tangent = tg.jvp(f, (p, s), ({"w": np.array([1.0, 0.0, -1.0])}, 10.0))
    y = np.tanh(p["w"] @ a)
    np.testing.assert_allclose(value["y"], 1.5 * y)
    dy = 1.5 * (1 - y**2) * (np.array([1.0, 0.0, -1.0]) @ a) + 10.0 * y
    np.testing.assert_allclose(tangent["y"], dy, rtol=1e-14)
    assert tangent["z"] == [0.0, 0.0]
    assert value["z"][1] == 7.0


def test_what_comes_beside_the_output():
    def f(x, y):
        return x * x * y, {"told": x + y, "name": "f"}

    def number(x, y):
        return f(x, y)[0]

    value, tangent, aux = tg.jvp(f, (2.0, 3.0), (1.0, 10.0), has_aux=True)
    assert (value, tangent) == tg.jvp(number, (2.0, 3.0), (1.0, 10.0))
    assert aux == {"told": 5.0, "name": "f"}
    value, push, aux = tg.linearize(f, 2.0, 3.0, has_aux=True)
    assert (value, push(1.0, 10.0), aux["told"]) == (12.0, tangent, 5.0)
    product, aux = tg.hvp(f, argnums=1, has_aux=True)(2.0, 3.0, 1.0)
    assert (product, aux["told"]) == (0.0, 5.0)
    product, aux = tg.hvp(f, has_aux=True)(2.0, 3.0, 1.0)
    assert (product, aux["name"]) == (6.0, "f")

    def beside(x):
        _, tangent, aux = tg.jvp(f, (x, 3.0), (1.0, 0.0), has_aux=True)
        return tangent * aux["told"]

    # 6 x (x + 3), whose slope at 2 is 12 * 2 + 18.
    assert tg.grad(beside)(2.0) == 42.0


def test_linearize_does_not_run_the_function_again():
    runs = []

    def f(x, y):
        runs.append(1)
        return x * x * y

    value, push = tg.linearize(f, np.array([1.0, 2.0]), 3.0)
    np.testing.assert_array_equal(value, [3.0, 12.0])
    np.testing.assert_array_equal(push(np.array([1.0, 0.0]), 0.0), [6.0, 0.0])
    np.testing.assert_array_equal(push(np.zeros(2), 1.0), [1.0, 4.0])
    assert runs == [1]
    assert tg.grad(lambda t: push(np.array([1.0, 0.0]) * t, 0.0)[0])(5.0) == 6.0


def test_hessians_of_what_holds_a_jvp():
    def f(x):
        return tg.jvp(lambda y: np.sum(np.sin(y) * x), (x,), (np.ones(2),))[1]

    x = np.array([0.3, 0.9])  # f = sum(x cos x)
    expected = np.diag(-2 * np.sin(x) - x * np.cos(x))
    np.testing.assert_allclose(tg.hessian(f)(x), expected, rtol=1e-14, atol=1e-16)


# -- kinks, dtypes, memory, errors -----------------------------------------------------------------


def test_branches_not_taken_contribute_exactly_zero_at_any_order():
    second = tg.grad(tg.grad(lambda x: np.where(x > 0, np.sqrt(x), 3.0) * x))
    assert second(-1.0) == 0.0
    third = tg.grad(second)
    assert third(-1.0) == third(0.0) == 0.0
    assert tg.grad(tg.grad(lambda x: np.maximum(np.sqrt(x), 0.1) * x**2))(0.0) == 0.2
    assert tg.grad(tg.grad(lambda x: np.max(np.stack([np.sqrt(x), 2.0 + x])) ** 2))(0.0) == 2.0

    def f(x):  # the branch not taken meets one that is taken
        y = np.sqrt(x)
        return np.sum(np.where(x > 0, y * y, 0.0) + np.where(x > 1, y, 0.0))

    hessian = tg.hessian(f)(np.array([0.0, 0.25, 4.0]))
    np.testing.assert_allclose(hessian, np.diag([0.0, 0.0, -1 / 32]), atol=1e-16)


def test_constant_zero_factors_are_as_good_as_branches_not_taken():
    x, weights = np.array([0.0, 4.0]), np.array([0.0, 1.0])
    for function in (
        lambda x: np.sum(weights * np.sqrt(x)),
        lambda x: np.sum(np.stack([weights, weights]) * np.sqrt(x)) / 2.0,
        lambda x: np.sum(0.0 * np.sqrt(x)) + np.sqrt(x[1]) + 0.0 * np.sqrt(x[0]),
        lambda x: np.sum(np.where(x > 0, 1.0, weights) * weights * np.sqrt(x)),
    ):
        np.testing.assert_array_equal(tg.hessian(function)(x), [[0.0, 0.0], [0.0, -1 / 32]])
    assert tg.grad(tg.grad(lambda x: np.abs(np.sqrt(x))))(0.0) == 0.0


def test_elements_that_are_not_used_are_not_visited():
    x = np.array([0.0, 4.0])
    np.testing.assert_array_equal(
        tg.hessian(lambda x: np.sum(np.sqrt(x)[1:]))(x), [[0.0, 0.0], [0.0, -1 / 32]]
    )


def test_kinks():
    assert tg.grad(tg.grad(np.abs))(0.0) == 0.0
    assert tg.grad(tg.grad(lambda x: x * np.abs(x)))(-2.0) == -2.0
    assert tg.grad(tg.grad(lambda x: np.maximum(x, 0.0) ** 2))(-1.0) == 0.0
    assert tg.grad(tg.grad(lambda x: x**3))(0.0) == 0.0
    assert tg.grad(tg.grad(lambda x: x**2))(0.0) == 2.0
    np.testing.assert_array_equal(
        tg.hessian(lambda x: x[0] * x[1] * x[2])(np.array([0.0, 0.0, 4.0])),
        [[0, 4, 0], [4, 0, 0], [0, 0, 0]],
    )


def test_float32():
    x = np.array([0.5, 2.0], np.float32)
    hessian = tg.hessian(lambda x: np.sum(x**3))(x)
    assert hessian.dtype == np.float32
    np.testing.assert_array_equal(hessian, np.diag([3.0, 12.0]))
    assert tg.hvp(lambda x: np.sum(x**3))(x, x).dtype == np.float32
    value, tangent = tg.jvp(np.sin, (x,), (x,))
    assert (value.dtype, tangent.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(tangent, x * np.cos(x), rtol=1e-6)


def test_recorded_sweeps_stay_array_programs():
    counts = []
    for n in (100, 10_000):
        program = tg.record(lambda x: tg.hvp(rosen)(x, x), np.full(n, 0.9))
        counts.append(len(program))
    assert counts[0] == counts[1]


def test_a_loop_of_hessians_runs_flat():
    script = """
import resource, numpy as np, tapegrad as tg
def f(x):
    s = x[0]
    for i in range(1, len(x)):
        s = np.sin(s) * x[i] + np.sum(x)
    return s
peak = []
for _ in range(60):
    tg.hessian(f)(np.ones(20))
    peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
assert peak[-1] - peak[20] < 2000, peak
"""
    pytest.importorskip("resource")
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: tg.hvp(np.sum)(np.ones(2)), TypeError, r"tg\.hvp\(f\)\(x, v\)"),
        (lambda: tg.hvp(np.sum, (0, 1)), TypeError, "no integer"),
        (lambda: tg.hvp(np.sum)(np.ones(2), np.ones(3)), ValueError, r"shape \(3,\)"),
        (lambda: tg.jvp(np.sin, 1.0, 1.0), TypeError, "two tuples"),
        (lambda: tg.jvp(np.sin, (1.0,), (1.0, 2.0)), TypeError, "2 tangents for 1"),
        (lambda: tg.jvp(np.sin, (1.0,), (np.ones(2),)), ValueError, r"shape \(2,\)"),
        (lambda: tg.hessian(lambda x: x)(np.ones(2)), TypeError, "single number"),
    ],
)
def test_bad_input_is_refused(call, kind, words):
    with pytest.raises(kind, match=f"(?s){words}.*{HERE}"):
        call()
