"""`tg.function`: one program for each way through the code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad import function as make_function
from tapegrad import trees
from tapegrad.errors import EnclosedError


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


# -- `tg.grad` and `tg.value_and_grad` of it -------------------------------------------------------


@pytest.fixture
def no_call(monkeypatch):
    """Let nothing be recorded but programs."""

    def refuse(*args, **kwargs):
        raise AssertionError("a call was recorded")

    monkeypatch.setattr("tapegrad.transforms.derivatives.Call", refuse)


def structured(p, q, n=2, *, s=1.0):
    return np.sum(p["w"] @ p["x"]) * q[0] ** n + s * p["b"]


W, X = np.array([[0.5, 1.0], [2.0, -1.0]]), np.array([0.3, 0.7])
POINT = {"w": W, "x": X, "b": 2.0}
PLAIN = {
    "a number": (lambda x: np.sin(x) * x, (0.5,), {}, 0),
    "NumPy's": (lambda x: np.sin(x) * x, (np.float64(0.5),), {}, 0),
    "in single precision": (lambda x: np.sum(x * x), (X.astype(np.float32),), {}, 0),
    "a single one": (lambda x: x * x, (np.float32(1.5),), {}, 0),
    "an array": (lambda x: np.sum(x**3), (W,), {}, 0),
    "not in C order": (lambda x: np.sum(x**3), (W.T,), {}, 0),
    "a list": (lambda x: x[0] * np.exp(x[1]), ([0.5, 2.0],), {}, 0),
    "one of two": (lambda x, y: x * y, (0.5, 3.0), {}, 1),
    "counted from the end": (lambda x, y: x * y, (0.5, 3.0), {}, -1),
    "both": (lambda x, y: np.sum(x * y), (0.5, X), {}, (1, 0)),
    "a list of both": (lambda x, y: np.sum(x * y), (0.5, X), {}, [0, 1]),
    "a structure": (structured, (POINT, [0.5, 1.5], 3), {"s": 2.0}, (0, 1)),
    "a structure beside": (structured, (POINT, [0.5, 1.5]), {}, 1),
    "an array of one": (lambda x: x[:1] * x[1], (X,), {}, 0),
    "decisions": (lambda x: x * x if x > 1.0 else -x, (0.5,), {}, 0),
}


def same(found, expected):
    leaves, tree = trees.flatten(found)
    others, other = trees.flatten(expected)
    assert tree == other
    for one, two in zip(leaves, others, strict=True):
        assert type(one) is type(two)
        assert getattr(one, "dtype", None) == getattr(two, "dtype", None)
        assert getattr(one, "flags", {"C_CONTIGUOUS": True})["C_CONTIGUOUS"]
        np.testing.assert_allclose(one, two, rtol=1e-13)


@pytest.mark.parametrize("make", [make_function, tg.record], ids=["function", "program"])
@pytest.mark.parametrize("name", PLAIN)
def test_transforms_replay_its_programs(name, make, request):
    f, args, kwargs, argnums = PLAIN[name]
    value, gradient = tg.value_and_grad(f, argnums=argnums)(*args, **kwargs)
    request.getfixturevalue("no_call")
    g = make(f) if make is make_function else make(f, *args, **kwargs)
    for _ in range(2):
        same(tg.value_and_grad(g, argnums=argnums)(*args, **kwargs), (value, gradient))
        found = tg.grad(g, argnums=argnums)(*args, **kwargs)
        same(found, gradient)
        for part in trees.flatten(found)[0]:  # it is the caller's
            if isinstance(part, np.ndarray):
                part[...] = 7.0
    if make is make_function:
        assert g.recordings == 1


def test_transforms_find_the_ways_of_a_function(no_call):
    f = make_function(lambda x: x * x if x < 1.0 else 2.0 * x - 1.0)
    assert [tg.grad(f)(x) for x in (0.5, 3.0, 0.25, 4.0)] == [1.0, 2.0, 0.5, 2.0]
    assert f.recordings == 2


OTHERS = {
    "an integer": (lambda x: x * x, (3,), {}, 0),
    "a list of integers": (lambda x: x[0] * x[1], ([2, 3],), {}, 0),
    "a constant": (lambda x: 3.0, (0.5,), {}, 0),
    "an integer constant": (lambda x: 3, (0.5,), {}, 0),
    "an argument of its name": (lambda x, argnums: x * argnums, (0.5,), {"argnums": 3.0}, 0),
    "empty": (lambda x, y: np.sum(x) * y, (np.zeros(0), 2.0), {}, 0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_arguments_and_results_are_those_of_a_plain_function(name):
    f, args, kwargs, argnums = OTHERS[name]
    g = make_function(f)
    for transform in (tg.value_and_grad, tg.grad):
        expected = transform(f, argnums=argnums)(*args, **kwargs)
        same(transform(g, argnums=argnums)(*args, **kwargs), expected)


WRONG = {
    "no such argument": (lambda x: x, (0.5,), 1),
    "no integer": (lambda x: x, (0.5,), "a"),
    "twice": (lambda x, y: x * y, (0.5, 1.0), (0, 0)),
    "many numbers": (lambda x: x * X, (0.5,), 0),
    "a structure": (lambda x: [x], (0.5,), 0),
    "nothing": (lambda x: None, (0.5,), 0),
    "text": (lambda x: 0.0, ("a",), 0),
    "complex numbers": (lambda x: x, (1j,), 0),
    "truth": (lambda x: x * 1.0, (np.array([True]),), 0),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_are_those_of_a_plain_function(name):
    f, args, argnums = WRONG[name]
    errors = []
    for g in (f, make_function(f)):
        with pytest.raises((TypeError, ValueError)) as caught:
            tg.grad(g, argnums=argnums)(*args)
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


def test_transforms_nest_and_take_tracked_values():
    def cube(x):
        return np.sum(x**3)

    f, x = make_function(cube), np.array([1.0, -2.0])
    np.testing.assert_allclose(tg.hessian(f)(x), np.diag(6.0 * x))
    np.testing.assert_allclose(tg.grad(lambda x: np.sum(tg.grad(f)(x) ** 2))(x), 36.0 * x**3)
    np.testing.assert_allclose(tg.vmap(tg.grad(f))(np.stack([x, 2.0 * x]))[1], 12.0 * x**2)
    slope = tg.record(tg.grad(f), x)
    np.testing.assert_allclose(slope.jacobian(2.0 * x), np.diag(12.0 * x))
    leaf = tg.array(x)
    np.sum(tg.grad(f)(leaf)).backward()
    np.testing.assert_allclose(leaf.grad, 6.0 * x)
    with tg.no_grad():
        assert tg.grad(f)(x).tolist() == [3.0, 12.0]
        assert tg.grad(f)(leaf).tolist() == [3.0, 12.0]


def test_a_derivative_that_encloses_another_reaches_what_it_captures():
    def outer(a):
        inner = make_function(lambda x: a * x * x)
        return tg.grad(inner)(3.0)  # 6 a

    with pytest.raises(EnclosedError):
        tg.grad(outer)(2.0)
    assert tg.grad(lambda a: tg.grad(make_function(lambda x, a: a * x * x))(3.0, a))(2.0) == 6.0


def test_what_is_returned_beside_the_number():
    f = make_function(lambda x: (np.sum(x * x), {"twice": 2.0 * x}))
    (value, aux), gradient = tg.value_and_grad(f, has_aux=True)(X)
    assert value == np.sum(X * X)
    np.testing.assert_array_equal(aux["twice"], 2.0 * X)
    np.testing.assert_array_equal(gradient, 2.0 * X)
    gradient, aux = tg.grad(f, has_aux=True)(X)
    np.testing.assert_array_equal(gradient, aux["twice"])
