"""`tg.function`: one program for each way through the code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad import function as make_function


def tangle(x):
    """Take one of many ways, some of them nested, some through a loop."""
    y = x[0] * x[1]
    if y > 0.0:
        y = np.sqrt(y)
        if x[2] > y:
            y = y * x[2]
    elif x[2] < -1.0:
        y = y * y + x[2]
    n = 0
    while n < 4 and abs(y) > 1.0:
        y = y / 2.0
        n += 1
    return y + x[int(abs(x[2])) % 3]


numbers = st.floats(-4.0, 4.0).filter(lambda v: abs(v) > 1e-3)


@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=12))
def test_every_way_gives_the_right_value_and_gradient(points):
    f = make_function(tangle)
    for point in points * 2:
        x = np.array(point)
        expected_value, expected = tg.value_and_grad(tangle)(x)
        assert f(x) == pytest.approx(expected_value, rel=1e-13)
        value, gradient = f.value_and_grad(x)
        assert value == pytest.approx(expected_value, rel=1e-13)
        np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-13)
    assert f.recordings <= len(points)


def test_a_way_is_recorded_once():
    f = make_function(lambda x: x * x if x < 1.0 else 2.0 * x - 1.0)
    results = [f(x) for x in (0.5, 3.0, 0.25, 4.0, 0.5)]
    assert results == [0.25, 5.0, 0.0625, 7.0, 0.25]
    assert f.recordings == 2
    assert len(f.programs) == 2
    assert [f.grad(x) for x in (0.5, 3.0)] == [1.0, 2.0]
    assert f.recordings == 2


def test_shapes_structures_and_constants_have_programs_of_their_own():
    f = make_function(lambda x, n=2: np.sum(x**n))
    assert f(np.array([1.0, 2.0])) == 5.0
    assert f(np.array([1.0, 2.0, 3.0])) == 14.0
    assert f(np.array([1.0, 2.0]), n=3) == 9.0
    assert f(np.array([2.0, 2.0]), n=3) == 16.0
    assert f.recordings == 3


def test_a_small_captured_array_that_changed_is_recorded_again():
    data = np.array([1.0, 2.0])
    f = make_function(lambda x: np.sum(x * data))
    assert f(np.ones(2)) == 3.0
    data[0] = 10.0
    assert f(np.ones(2)) == 12.0
    assert f(np.ones(2)) == 12.0
    assert f.recordings == 2


def test_the_number_of_ways_is_bounded(monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["tapegrad.programs.function"], "MAX_WAYS", 3)
    f = make_function(lambda x: x * int(x))
    for k in range(10):
        assert f(k + 0.5) == (k + 0.5) * k
        assert len(f.programs) <= 4
    assert f.jacobian(3.5) == 3.0
    value, pull = f.vjp(3.5)
    assert (value, pull(2.0)) == (10.5, (6.0,))


def test_every_derivative_takes_the_way_of_its_arguments():
    def f(x):
        return np.sum(x**3) if x[0] > 0.0 else np.sum(x**2) * x[1]

    g, v = make_function(f), np.array([1.0, -2.0])
    for x in (np.array([1.0, 2.0]), np.array([-1.0, 2.0])):
        np.testing.assert_allclose(g.hessian(x), tg.hessian(f)(x), rtol=1e-14)
        np.testing.assert_allclose(g.hvp(x, v), tg.hvp(f)(x, v), rtol=1e-14)
        np.testing.assert_allclose(g.jvp((x,), (v,)), tg.jvp(f, (x,), (v,)), rtol=1e-14)
        np.testing.assert_allclose(g.jacobian(x, mode="forward"), tg.grad(f)(x), rtol=1e-14)
    assert g.recordings == 2


def test_it_keeps_the_name_and_doc():
    assert make_function(tangle).__name__ == "tangle"
    assert make_function(tangle).__doc__ == tangle.__doc__
    with pytest.raises(TypeError, match="expected a function"):
        make_function(3.0)


def test_what_only_one_way_captured_is_looked_at_on_that_way():
    class Market:
        rate = np.array([2.0])

    market, name = Market(), "rate"

    def f(x):
        if x > 0.0:
            return x * 3.0
        return np.sum(x * getattr(market, name))  # found only as it meets the recording

    g = make_function(f)
    assert g.grad(1.0) == 3.0
    assert g.grad(-1.0) == 2.0
    market.rate[0] = 7.0
    assert g.grad(-1.0) == 7.0
    assert g.grad(1.0) == 3.0


def test_the_way_taken_last_is_tried_first():
    def f(x, y):
        if x > 0.0:
            return x * y
        return x + y

    g = make_function(f)
    arguments = [(1.0, 2.0), (-1.0, 2.0), (np.float64(-2.0), 3.0), (2.0, -1.0), (-3.0, 1.0)]
    for x, y in arguments * 2:
        assert g(x, y) == f(x, y)
    assert g.recordings == 2
    root = g.way((1.0, 2.0), {})
    assert root.latest is not root.program
    assert g(1, 2) == 2  # integers are part of a program, which is another
    assert g.recordings == 3
