"""What finishing a program takes off its tape, and that nothing else changes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad.kernels.opcodes import INPUT, NAMES

module = sys.modules["tapegrad.programs.simplify"]


@pytest.fixture(params=["python", "compiled"], autouse=True)
def passes(request, monkeypatch):
    """Run the passes both ways."""
    monkeypatch.setattr(module, "COMPILED_FROM", 0 if request.param == "compiled" else 10**9)
    if request.param == "python":
        monkeypatch.setattr(module, "_COMPILER", "no such module")


def rows(program):
    """Return the names of a program's instructions, inputs left out."""
    op = program.tape.arena.op.array[: program.tape.n]
    return [NAMES[o] for o in op if o != INPUT]


def test_a_repeated_expression_is_computed_once():
    program = tg.record(
        lambda x: np.sin(x * 2.0) + np.sin(x * 2.0) * np.sin(2.0 * x + 0.0 * x), 1.0
    )
    names = rows(program)
    assert names.count("SIN") == 2
    assert names.count("MULTIPLY_XK") + names.count("MULTIPLY_KX") <= 4
    commuted = tg.record(lambda x, y: x * y + y * x, 1.0, 2.0)
    assert rows(commuted) == ["MULTIPLY", "ADD"]
    assert commuted.value_and_grad(3.0, 5.0, argnums=(0, 1)) == (30.0, (10.0, 6.0))


@pytest.mark.parametrize("pairs", ["one late operand", "all with all"])
def test_repeated_expressions_are_found_however_many_share_an_operand(pairs):
    """They crowd the places of the hash table that belong to that operand."""
    n = 200 if pairs == "one late operand" else 15

    def f(x):
        others = [np.sin(np.exp(x[0]))] if pairs == "one late operand" else list(x)
        total = 0.0
        for _ in range(2):
            for a in others:
                for b in list(x):
                    total = total + a * b
        return total

    program = tg.record(f, np.linspace(0.1, 1.0, n))
    distinct = n if pairs == "one late operand" else n * (n + 1) // 2
    assert rows(program).count("MULTIPLY") == distinct
    x = np.linspace(1.0, 2.0, n)
    # Sums of adjoints come in another order where repeated parts are merged.
    np.testing.assert_allclose(program.value_and_grad(x)[1], tg.grad(f)(x), rtol=1e-12)


def test_constant_arithmetic_is_done_once():
    table = np.array([1.0, 2.0, 3.0])

    def f(x):
        t = tg.constant(table)
        scale = np.exp(t[0]) * np.sqrt(t[1] + t[2])
        return x * scale

    program = tg.record(f, 1.0)
    assert rows(program) == ["CONST", "MULTIPLY"]
    expected = float(np.exp(1.0) * np.sqrt(5.0))
    assert program.value_and_grad(2.0) == pytest.approx((2.0 * expected, expected))


def test_dead_instructions_are_gone():
    def f(x):
        for _ in range(50):
            np.cos(x) * 3.0
        y = tg.zeros(3)
        y[0] = np.exp(x)
        y[0] = x  # the exponential is overwritten
        np.sum(np.arange(4.0) * x)
        return y[0] * 2.0

    program = tg.record(f, 1.0)
    assert rows(program) == ["MULTIPLY_XK"]
    assert program.value_and_grad(4.0) == (8.0, 2.0)


def test_zeros_of_both_signs_are_different_constants():
    program = tg.record(lambda x: x / 0.0 - x / -0.0, 1.0)
    assert program(2.0) == np.inf


def test_where_keeps_its_condition():
    def f(x):
        return np.where(x > 1.0, x * x, x) + np.where(x < 1.0, x * x, x)

    program = tg.record(f, 2.0)
    assert len([name for name in rows(program) if name == "WHERE"]) == 2
    for x in (0.5, 2.0, 3.0):
        assert program(x) == x * x + x


ARRAYS = {
    "views": lambda x, y: np.sum(x[1:] * x[:-1] + y[::-1][1:] * 2.0),
    "gathered": lambda x, y: np.sum(x[[3, 0, 0, 1]] * y) + x[2] * y[3],
    "assigned": lambda x, y: assigned(x, y),
    "stacked": lambda x, y: np.sum(np.stack([x, y, x * y])[:, [0, 2]] ** 2),
    "matrices": lambda x, y: x.reshape(2, 2) @ y[:2] @ np.array([1.0, 3.0]) + np.max(x),
    "broadcast": lambda x, y: np.sum(np.exp(x[:, None] * y)[::2].T),
    "sums": lambda x, y: np.sum(np.sum(x) * y) + np.prod(y) * np.sum(x),
    "dead arrays": lambda x, y: (np.exp(x) * y, np.sum(x))[1],
    "nothing": lambda x, y: np.sum(x[:0]) + np.sum(y[[]]) + x[0],
}


def assigned(x, y):
    z = tg.zeros(6)
    z[1:5] = x * y
    z[0] = x[0] * x[0]
    z[2] = z[0] * 3.0
    return np.sum(z * z[::-1]) + z[5]


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("name", ARRAYS)
def test_programs_of_arrays(name):
    f = ARRAYS[name]
    rng = np.random.default_rng(0)
    program = tg.record(f, rng.normal(size=4), rng.normal(size=4))
    for _ in range(3):
        x, y = rng.normal(size=4), rng.normal(size=4)
        value, gradient = program.value_and_grad(x, y, argnums=(0, 1))
        expected_value, expected = tg.value_and_grad(f, argnums=(0, 1))(x, y)
        assert value == pytest.approx(expected_value, rel=1e-13)
        np.testing.assert_allclose(gradient[0], expected[0], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(gradient[1], expected[1], rtol=1e-12, atol=1e-14)


steps = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=40
)


@settings(max_examples=60)
@given(steps, st.tuples(*[st.floats(-2.0, 2.0)] * 3))
def test_random_programs_are_what_they_were(steps, point):
    def f(x):
        values = [x[0], x[1], x[2], x[0] * 1.0]
        for kind, i, j in steps:
            a, b = values[i % len(values)], values[j % len(values)]
            values.append(
                [
                    lambda a, b: a + b,
                    lambda a, b: a * b,
                    lambda a, b: a - 2.0 * b,
                    lambda a, b: np.sin(a),
                    lambda a, b: np.where(a > b, a, b * 0.5),
                    lambda a, b: np.sum(np.stack([a, b]) * np.array([1.0, 3.0])),
                    lambda a, b: np.tanh(a) / (1.0 + b * b),
                    lambda a, b: tg.array([a, b])[::-1][1] * 1.0,
                ][kind](a, b)
            )
        return values[-1] + values[len(values) // 2]

    program = tg.record(f, np.array([0.3, -0.7, 1.1]))
    x = np.array(point)
    value, gradient = program.value_and_grad(x)
    expected_value, expected = tg.value_and_grad(f)(x)
    np.testing.assert_allclose(value, expected_value, rtol=1e-12, atol=1e-13)
    # Sums of adjoints come in another order where repeated parts are merged.
    scale = 1.0 + np.abs(expected).max()
    np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-13 * scale)
    assert len(program) <= 1 + 4 * len(steps) + 8


def test_programs_of_long_arrays_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(module, "MANY_CELLS", 50_000)

    def f(x):
        unused = np.sin(x)
        assert unused.shape == x.shape
        return np.sum(np.exp(x) * np.exp(x))

    small, large = np.linspace(0.0, 1.0, 10), np.linspace(0.0, 1.0, 30_000)
    assert len(tg.record(f, small)) < len(tg.record(f, large))
    value, gradient = tg.record(f, large).value_and_grad(large)
    expected, slopes = tg.value_and_grad(f)(large)
    assert value == expected
    np.testing.assert_array_equal(gradient, slopes)
