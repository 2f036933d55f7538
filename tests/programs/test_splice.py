"""Programs on tracked values: inside of derivatives, of other programs, and of themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tapegrad as tg

WEIGHTS = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]])


def scalars(x):
    y = x[0] * x[1]
    for i in range(6):
        y = np.sin(y) + x[i % 3] / (1.0 + y * y) + 2.0 ** np.cos(y)
    return np.hypot(y, x[2]) ** 3


def arrays(x):
    y = WEIGHTS @ x
    z = np.concatenate([y, x[::-1]]) * x[0]
    z[1] = x[2] ** 2
    total = np.cumsum(np.where(z > 0.1, z**3, np.exp(z)))
    return np.sum(total * np.array([0.3, 0.1, -0.7, 0.2, 0.9])) + np.prod(x) + np.max(x[:2])


def indexed(x):
    return np.sum(x[[0, 0, 2]] ** 3 * x[[2, 1, 1]]) + np.sum(np.outer(x, x[:2])[:, ::-1] ** 2)


def mixed(x):
    return scalars(x) * arrays(x[::-1]) + indexed(np.tanh(x))


FUNCTIONS = (scalars, arrays, indexed, mixed)
AT = np.array([0.8, -0.4, 1.3])
OTHER = np.array([0.3, 0.9, -0.6])

# Recorded sweeps add in another order than those of numbers; third derivatives here reach 1e4 times
# the values, and share that much of their rounding.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.mark.parametrize("f", FUNCTIONS)
def test_derivatives_of_a_program_to_third_order(f):
    program = tg.record(f, AT)

    def part(g):
        return lambda x: np.sum(tg.grad(g)(x) * OTHER)

    for x in (OTHER, AT):
        np.testing.assert_allclose(tg.grad(program)(x), tg.grad(f)(x), rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(tg.hessian(program)(x), tg.hessian(f)(x), **CLOSE)
        np.testing.assert_allclose(tg.hvp(program)(x, AT), tg.hvp(f)(x, AT), **CLOSE)
        found = tg.jvp(tg.grad(program), (x,), (AT,))
        expected = tg.jvp(tg.grad(f), (x,), (AT,))
        np.testing.assert_allclose(found, expected, **CLOSE)
        third = tg.grad(part(part(program)))(x)
        np.testing.assert_allclose(third, tg.grad(part(part(f)))(x), **CLOSE)


@pytest.mark.parametrize("f", FUNCTIONS)
def test_a_program_in_the_middle_of_other_code(f):
    program = tg.record(f, AT)

    def outside(g):
        def h(x):
            y = np.sin(x) * x[1]
            total = g(y) * 2.0 + x[0]
            y[0] = total / 10.0
            return g(y[::-1]) + np.sum(np.cos(y))

        return h

    np.testing.assert_allclose(
        tg.grad(outside(program))(OTHER), tg.grad(outside(f))(OTHER), rtol=1e-11
    )
    np.testing.assert_allclose(
        tg.hessian(outside(program))(OTHER), tg.hessian(outside(f))(OTHER), **CLOSE
    )
    x = tg.array(OTHER)
    outside(program)(x).backward()
    np.testing.assert_allclose(x.grad, tg.grad(outside(f))(OTHER), rtol=1e-11)


@pytest.mark.parametrize("f", FUNCTIONS)
@pytest.mark.parametrize("executor", ["reference", "compiled"])
def test_a_program_inside_a_program(f, executor):
    with tg.executor(executor):
        inner = tg.record(f, AT)
        outer = tg.record(lambda x: inner(x * 2.0) + inner(np.sin(x)), AT)
        value, gradient = outer.value_and_grad(OTHER)

        def expected(x):
            return f(x * 2.0) + f(np.sin(x))

        assert value == pytest.approx(expected(OTHER), rel=1e-13)
        np.testing.assert_allclose(gradient, tg.grad(expected)(OTHER), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(outer.hessian(OTHER), tg.hessian(expected)(OTHER), **CLOSE)


def test_no_perturbation_confusion():
    """The classic: the inner derivative must not see the outer argument move."""
    product = tg.record(lambda x, y: x * y, 1.0, 1.0)
    sum_ = tg.record(lambda x, y: x + y, 1.0, 1.0)
    assert tg.grad(lambda x: x * tg.grad(lambda y: sum_(x, y))(1.0))(1.0) == 1.0
    assert tg.grad(lambda x: x * tg.grad(lambda y: product(x, y))(2.0))(3.0) == 6.0
    nested = tg.record(lambda x: x * tg.grad(lambda y: product(x, y) * y)(2.0), 1.0)
    # x * d/dy (x y^2) at y = 2 is 4 x^2.
    assert nested(3.0) == 36.0
    assert tg.grad(nested)(3.0) == 24.0
    assert nested.value_and_grad(3.0)[1] == 24.0
    assert nested.hessian(3.0) == 8.0


def test_a_program_inside_a_jvp_and_a_jacobian():
    def pair(x):
        return np.stack([x[0] * x[1], np.sin(x[1])])

    f = tg.record(pair, np.ones(2))
    x, v = np.array([2.0, 0.5]), np.array([1.0, -1.0])
    value, tangent = tg.jvp(f, (x,), (v,))
    np.testing.assert_allclose(value, [1.0, math.sin(0.5)])
    np.testing.assert_allclose(tangent, [0.5 - 2.0, -math.cos(0.5)])
    for mode in ("forward", "reverse", "auto"):
        np.testing.assert_allclose(
            tg.jacobian(f, mode=mode)(x), [[0.5, 2.0], [0.0, math.cos(0.5)]], rtol=1e-15
        )
    # The Hessian of something that holds a directional derivative of the program.
    hessian = tg.hessian(lambda x: np.sum(tg.jvp(f, (x,), (x,))[1] ** 2))(x)
    plain = tg.hessian(
        lambda x: np.sum(
            tg.jvp(lambda x: np.stack([x[0] * x[1], np.sin(x[1])]), (x,), (x,))[1] ** 2
        )
    )(x)
    np.testing.assert_allclose(hessian, plain, rtol=1e-12, atol=1e-13)


def test_methods_take_tracked_values():
    f = tg.record(lambda x, y: np.sum(x**3) * y, np.ones(2), 1.0)
    x, y = np.array([1.0, 2.0]), 0.5

    def value_and_slope(x, y):
        value, (dx, dy) = f.value_and_grad(x, y, argnums=(0, 1))
        return value + np.sum(dx) + dy

    def expected(x, y):
        return np.sum(x**3) * y + np.sum(3.0 * x**2 * y) + np.sum(x**3)

    for found, wanted in zip(
        tg.value_and_grad(value_and_slope, argnums=(0, 1))(x, y),
        tg.value_and_grad(expected, argnums=(0, 1))(x, y),
        strict=True,
    ):
        tg.trees.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), found, wanted)

    def others(x, y):
        value, pull = f.vjp(x, y)
        tangent = f.jvp((x, y), (x * 2.0, None))[1]
        return (
            value
            + np.sum(pull(y)[0])
            + tangent
            + np.sum(f.jacobian(x, y) * x)
            + np.sum(f.hessian(x, y))
            + np.sum(f.hvp(x, y, x))
        )

    def by_hand(x, y):
        slope = 3.0 * x**2 * y
        return (
            np.sum(x**3) * y
            + np.sum(slope * y)
            + np.sum(slope * x * 2.0)
            + np.sum(slope * x)
            + np.sum(6.0 * x * y)
            + np.sum(6.0 * x * y * x)
        )

    for i in (0, 1):
        np.testing.assert_allclose(
            tg.grad(others, argnums=i)(x, y), tg.grad(by_hand, argnums=i)(x, y), rtol=1e-13
        )
    _, pull = f.vjp(x, y)  # a plain point, and a cotangent that is tracked
    assert tg.grad(lambda g: np.sum(pull(g)[0]))(1.0) == pytest.approx(7.5)


# -- decisions -------------------------------------------------------------------------------------


def branch(x):
    return x * x if x < 1.0 else 2.0 * x - 1.0


def test_decisions_are_checked_where_the_program_becomes_a_part():
    program = tg.record(branch, 0.5)
    assert tg.grad(lambda x: program(x) * 3.0)(0.25) == 1.5
    with pytest.raises(tg.ControlFlowChanged, match=r"test_splice\.py:\d+ was True .* is False"):
        tg.grad(lambda x: program(x * 8.0))(0.25)
    with pytest.raises(tg.ControlFlowChanged):
        tg.record(lambda x: program(x * 8.0), 0.25)
    with pytest.raises(tg.ControlFlowChanged):
        program(tg.array(3.0))


def test_decisions_of_a_part_are_decisions_of_the_whole():
    inner = tg.record(lambda x: x[np.argmax(x)] if x[0] < 1.0 else x[0], np.array([0.5, 0.1]))
    outer = tg.record(lambda x: inner(x) * 2.0 if x[1] > 0.0 else x[1], np.array([0.5, 0.2]))
    assert [d.what for d in outer.decisions.all] == ["the truth of a value"] * 2 + ["np.argmax"]
    assert outer(np.array([0.75, 0.25])) == 1.5
    for point, number in (([2.0, 0.25], 1), ([0.25, 0.75], 2), ([0.5, -1.0], 0)):
        for run in (outer, outer.value_and_grad, outer.gradient(), outer.hessian):
            with pytest.raises(tg.ControlFlowChanged) as caught:
                run(np.array(point))
            assert caught.value.number == number
            assert caught.value.decision.file.endswith("test_splice.py")
    assert outer.gradient()(np.array([0.75, 0.25])).tolist() == [2.0, 0.0]


def test_functions_of_programs_on_tracked_values():
    f = tg.function(branch)

    def total(x):
        return f(x[0]) * f(x[1]) + f.value_and_grad(x[0] * x[1])[1]

    def plain(x):
        slope = 2.0 * x[0] * x[1] if x[0] * x[1] < 1.0 else 2.0
        return branch(x[0]) * branch(x[1]) + slope

    for x in ([0.5, 3.0], [3.0, 4.0], [0.25, 0.5], [3.0, 0.1]):
        x = np.array(x)
        np.testing.assert_allclose(tg.grad(total)(x), tg.grad(plain)(x), rtol=1e-14)
        np.testing.assert_allclose(tg.hessian(total)(x), tg.hessian(plain)(x), rtol=1e-14)
    assert f.recordings == 2


@given(st.floats(-3.0, 3.0), st.floats(-3.0, 3.0))
def test_a_function_of_programs_inside_a_program(x, y):
    f = tg.function(branch)
    program = tg.record(lambda x: f(x) * 2.0, x)
    assert program(x) == 2.0 * branch(x)
    if (x < 1.0) == (y < 1.0):
        assert program(y) == 2.0 * branch(y)
    else:
        with pytest.raises(tg.ControlFlowChanged):
            program(y)


# -- structures, dtypes, what is not differentiated ------------------------------------------------


class Pair(NamedTuple):
    left: float
    right: np.ndarray


@dataclass
class Parameters:
    pair: Pair
    more: list


def structured(p, n, *, scale):
    total = p.pair.left * np.sum(p.pair.right**n) + p.more[0] * scale
    return {"total": total, "pair": Pair(total * 2.0, p.pair.right * 3.0), "n": n}


def test_structures_and_constants():
    p = Parameters(Pair(1.0, np.ones(2)), [2.0])
    program = tg.record(structured, p, 2, scale=1.0)
    q = Parameters(Pair(2.0, np.array([3.0, 4.0])), [5.0])

    def loss(f):
        def g(q):
            out = f(q, 2, scale=3.0)
            assert type(out["pair"]) is Pair
            assert out["n"] == 2
            return out["total"] + out["pair"].left + np.sum(out["pair"].right)

        return g

    found, expected = tg.grad(loss(program))(q), tg.grad(loss(structured))(q)
    assert repr(found) == repr(expected)
    with pytest.raises(ValueError, match="was 2 when it was recorded"):
        tg.grad(lambda q: program(q, 3, scale=3.0)["total"])(q)
    with pytest.raises(ValueError, match="has shape"):
        tg.grad(lambda x: program(Parameters(Pair(x, np.ones(3)), [1.0]), 2, scale=1.0)["total"])(
            1.0
        )


def test_integers_that_are_tracked_are_compared():
    program = tg.record(lambda x, n: x**n, 1.0, 2)
    whole = tg.array([2.5])

    def f(x):
        return program(x, np.trunc(whole[0]).astype(int))

    assert tg.grad(f)(3.0) == 6.0


def test_float32_stays_float32():
    program = tg.record(lambda x: x * x, np.ones(2, np.float32))
    x = tg.array(np.array([3.0, 4.0], np.float32))
    y = program(x)
    assert y.dtype == np.float32
    y.backward(np.ones(2))
    assert x.grad.dtype == np.float32
    np.testing.assert_array_equal(x.grad, [6.0, 8.0])


def test_no_elements_constant_outputs_and_identity():
    program = tg.record(lambda x, y: (x, y, np.sum(x), 3, np.ones(2)), np.ones((0, 2)), 1.0)

    def f(y):
        same, again, total, three, ones = program(np.ones((0, 2)), y)
        assert same.shape == (0, 2)
        assert three == 3
        ones[:] = 7.0
        return again * 2.0 + total

    assert tg.grad(f)(5.0) == 2.0
    np.testing.assert_array_equal(program(np.ones((0, 2)), 1.0)[4], np.ones(2))
    assert tg.grad(lambda x: program(np.ones((0, 2)), 1.0)[1] * x)(2.0) == 1.0


def test_a_list_of_tracked_numbers_is_an_array():
    program = tg.record(lambda x: x[0] * x[1] ** 2, np.ones(2))
    assert tg.grad(lambda a: program([a, 3.0]))(2.0) == 9.0


def test_custom_rules_and_checkpoints_inside():
    @tg.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, g: (3.0 * x**2 * g,))
    layer = tg.checkpoint(lambda x, w: np.tanh(w * x))
    f = tg.record(lambda x, w: cube(layer(layer(x, w), w)), 0.5, 0.7)

    def plain(x, w):
        return np.tanh(w * np.tanh(w * x)) ** 3

    for x, w in ((0.5, 0.7), (-0.3, 1.2)):
        found = tg.grad(lambda x, w: f(x, w) * x, argnums=(0, 1))(x, w)
        expected = tg.grad(lambda x, w: plain(x, w) * x, argnums=(0, 1))(x, w)
        np.testing.assert_allclose(found, expected, rtol=1e-13)
        np.testing.assert_allclose(f.hessian(x, w), tg.hessian(plain)(x, w), rtol=1e-12)
        value, tangent = f.jvp((x, w), (1.0, 0.5))
        np.testing.assert_allclose(tangent, tg.jvp(plain, (x, w), (1.0, 0.5))[1], rtol=1e-13)
        assert value == pytest.approx(plain(x, w), rel=1e-14)


def test_many_calls_on_one_tape():
    step = tg.record(lambda x, a: np.sin(a * x) + x / (1.0 + x * x), 0.3, 1.1)

    def loop(f):
        def g(x, a):
            for _ in range(300):
                x = f(x, a)
            return x

        return g

    def plain(x, a):
        return np.sin(a * x) + x / (1.0 + x * x)

    np.testing.assert_allclose(
        tg.grad(loop(step), argnums=(0, 1))(0.4, 1.3),
        tg.grad(loop(plain), argnums=(0, 1))(0.4, 1.3),
        rtol=1e-12,
    )


def test_what_a_part_has_captured_is_captured_by_the_whole():
    data = np.array([1.0, 2.0])
    inner = tg.record(lambda x: np.sum(x * data), np.ones(2))
    outer = tg.record(lambda x: inner(x) ** 2, np.ones(2))
    assert {"data", "an operand"} <= {item.name for item in outer.captured}
    data[0] = 5.0
    assert {item.name for item in outer.gradient().check_captured()} == {"data", "an operand"}


def test_values_under_no_grad():
    program = tg.record(lambda x: x * x, np.ones(2))
    x = tg.array([1.0, 2.0])
    with tg.no_grad():
        y = program(x)
    assert not y.requires_grad
    np.testing.assert_array_equal(y.value, [1.0, 4.0])


def test_what_encloses_a_recording_must_be_an_argument():
    """It would be baked in, and its derivative lost."""

    def f(x):
        inner = tg.function(lambda y: x * y)
        return inner(2.0)

    def g(x):
        return tg.record(lambda y: np.sin(x) * y, 2.0)(2.0)

    for outer in (f, g):
        with pytest.raises(NotImplementedError, match="make that value an argument"):
            tg.grad(outer)(3.0)
    assert tg.grad(lambda x: tg.record(lambda x, y: x * y, x, 2.0)(x, 2.0))(3.0) == 2.0
