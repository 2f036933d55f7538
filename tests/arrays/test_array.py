"""What a user meets on a tracked array: attributes, conversions, printing, pickling."""

import copy
import math
import os
import pickle

import numpy as np
import pytest

import tapegrad as tg

HERE = os.path.basename(__file__)
SHAPES = [(), (3,), (2, 3), (0,), (2, 0, 3), (1, 1)]


def ramp(shape):
    return np.arange(1.0, 1.0 + np.prod(shape)).reshape(shape)


# -- what it is ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_attributes_are_those_of_numpy(shape):
    values = ramp(shape)
    for x in (tg.array(values), tg.array(values) * 1):
        assert isinstance(x, tg.Array)
        assert (x.shape, x.ndim, x.size) == (values.shape, values.ndim, values.size)
        assert x.dtype == values.dtype
        assert x.T.shape == values.T.shape
        assert x.tolist() == values.tolist()
        assert np.shape(x) == values.shape


def test_attributes_that_are_not_there():
    for x in (tg.array(1.0), tg.array([1.0])):
        for name in ("nothing", "sort", "data", "__array_interface__", "__array_struct__"):
            assert not hasattr(x, name)
        for name in ("value", "shape", "T", "nothing", "is_leaf"):
            with pytest.raises(AttributeError):
                setattr(x, name, 1.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_value_is_an_ndarray_to_read(shape):
    values = ramp(shape)
    x = tg.array(values)
    for y in (x, x * 1, x.T.T, (x * 1).reshape(-1).reshape(shape), x.astype(np.float32)):
        if shape == ():
            assert isinstance(y.value, np.floating)
        else:
            assert type(y.value) is np.ndarray
            assert not y.value.flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                y.value[...] = 0.0
        np.testing.assert_array_equal(y.value, values)


def test_an_old_value_does_not_change():
    x = tg.array([1.0, 2.0])
    y = x * 1
    before = x.value, y.value
    y[0] = 5.0
    with tg.no_grad():
        x[0] = 5.0
    for value in before:
        np.testing.assert_array_equal(value, [1.0, 2.0])
    np.testing.assert_array_equal(x.value, [5.0, 2.0])


def test_iteration_membership_and_length():
    x = tg.array([[1.0, 2.0], [3.0, 4.0]])
    rows = list(x)
    assert len(x) == len(rows) == 2
    sum(row[0] * row[1] for row in x).backward()
    np.testing.assert_array_equal(x.grad, [[2.0, 1.0], [4.0, 3.0]])
    a, b = x[0]
    assert (a.item(), b.item()) == (1.0, 2.0)
    assert 3.0 in x
    assert 5 not in x
    assert x[0, 0] in x
    assert list(tg.array([])) == []
    for x in (tg.array(1.0), tg.array(np.float32(1.0))):
        with pytest.raises(TypeError, match="unsized"):
            len(x)
        with pytest.raises(TypeError, match="0-d"):
            iter(x)


def test_arrays_are_hashed_by_identity():
    x, y = tg.array([1.0]), tg.array([1.0])
    assert {x: 1, y: 2}[x] == 1
    assert len({x, y, x}) == 2
    s = tg.array(1.0)
    assert {s: 1}[s] == 1


# -- numbers ---------------------------------------------------------------------------------------


def test_decisions_answer():
    for x in (tg.array(2.5), tg.array(2.5) * 1, tg.array([2.5])[0], tg.array([[2.5]])[0, 0]):
        assert bool(x)
        assert int(x) == 2
        assert round(x).item() == 2.0
        assert math.floor(x).item() == 2.0
        assert math.ceil(x).item() == 3.0
        assert math.trunc(x).item() == 2.0
        assert [x > 2, x >= 3, x < 2, x <= 3, x == 2.5, x != 2.5] == [1, 0, 0, 1, 1, 0]
        assert bool(x > 2) is True
        assert not x - 2.5
        assert max(x, tg.array(1.0)) is x
        assert 1.0 < x < 3.0
    assert bool(tg.array([[2.0]]))
    assert sorted(tg.array([3.0, 1.0, 2.0]))[0].item() == 1.0


def test_the_truth_of_many_is_ambiguous():
    for x in (tg.array([1.0, 2.0]), tg.array([1.0, 2.0]) * 1, tg.array([])):
        with pytest.raises(ValueError, match="ambiguous"):
            bool(x)
    with pytest.raises(TypeError, match="0-dim"):
        int(tg.array([1.0, 2.0]))
    assert (tg.array([1.0, 2.0]) > 0).all()
    assert not (tg.array([1.0, 2.0]) > 5).any()


def test_integers_index_and_floats_do_not():
    x = tg.array([2.0, 1.0])
    assert "abc"[x.astype(int)[0]] == "c"
    assert list(range(np.argmax(x), 2)) == [0, 1]
    for bad in (x[0], x, x.astype(int)):
        with pytest.raises(TypeError, match="index"):
            "abc"[bad]


LOSSES = {
    "float(x)": (float, r"x\.item\(\)"),
    "math.sin(x)": (math.sin, r"np\.sin\(x\)"),
    "math.sqrt(x)": (math.sqrt, r"np\.sin\(x\) for math\.sin"),
    "complex(x)": (complex, r"x\.item\(\)"),
    "'%.2f' % x": (lambda x: "%.2f" % x, r"x\.item\(\)"),  # noqa: UP031
    "np.asarray(x)": (np.asarray, r"x\.value.*tg\.array\(\[x, y\]\)"),
    "np.array(x)": (np.array, r"x\.value"),
    "np.array([x, x])": (lambda x: np.array([x, x]), r"tg\.array\(\[x, y\]\)"),
    "np.float64(x)": (np.float64, "gradient"),
    "np.ascontiguousarray(x)": (np.ascontiguousarray, r"x\.value"),
    "np.ones(3)[:] = x": (lambda x: np.ones(3).__setitem__(slice(None), x), r"tg\.zeros"),
}


@pytest.mark.parametrize("what", LOSSES)
def test_what_would_lose_the_gradient_is_refused_and_names_the_alternative(what):
    lose, words = LOSSES[what]
    for x in (tg.array(0.5), tg.array(0.5) * 1, tg.array([0.5, 0.6]) * 1, tg.array([0.5])):
        y = x * x
        with pytest.raises(tg.LostGradientError, match=f"(?s){words}.*{HERE}") as caught:
            lose(y)
        assert isinstance(caught.value, TypeError)
        np.sum(y).backward()
        np.testing.assert_array_equal(x.grad if x.is_leaf else 2 * x.value, 2 * x.value)


def test_item_and_tolist():
    x = tg.array([[1.0, 2.0]])
    assert type(x[0, 1].item()) is float
    assert tg.array([[3.0]]).item() == 3.0
    assert x.tolist() == [[1.0, 2.0]]
    assert type(tg.array(2.0).tolist()) is float
    assert type(x.astype(int).tolist()[0][0]) is int
    with pytest.raises(ValueError, match="size 1"):
        x.item()


# -- printing --------------------------------------------------------------------------------------


def test_a_repr_shows_value_and_shape():
    x = tg.array([1.0, 2.5])
    assert repr(x) == "Array([1. , 2.5], shape=(2,))"
    assert repr(x * 2) == "Array([2., 5.], shape=(2,))"
    assert repr(x.sum()) == repr(tg.array(3.5)) == "Array(3.5, shape=())"
    assert repr(x.astype("f4")) == "Array([1. , 2.5], shape=(2,), dtype=float32)"
    assert repr(x > 2) == "Array([False,  True], shape=(2,), dtype=bool)"
    assert repr(tg.array(np.zeros((0, 2)))) == "Array([], shape=(0, 2))"
    assert repr(tg.array(np.ones((2, 2)))).splitlines()[1] == "       [1., 1.]], shape=(2, 2))"


def test_formatting():
    x = tg.array([1.0, 2.5])
    assert str(x) == "[1.  2.5]"
    assert f"{x}" == "[1.  2.5]"
    for s in (x[1], tg.array(2.5), x[1:].sum()):
        assert str(s) == f"{s}" == "2.5"
        assert f"{s:.3f}" == "2.500"
        assert f"{s:8.1e}|" == " 2.5e+00|"
        assert "%s" % s == "2.5"  # noqa: UP031
    with pytest.raises(TypeError, match="format"):
        f"{x:.3f}"


# -- copies and pickles ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_pickle_holds_the_value(shape, dtype):
    x = tg.array(ramp(shape).astype(dtype))
    for y, requires_grad in ((x, True), (x * 2, False), (tg.ones(shape, dtype), False)):
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            z = pickle.loads(pickle.dumps(y, protocol))
            assert (z.dtype, z.shape, z.requires_grad) == (dtype, shape, requires_grad)
            np.testing.assert_array_equal(z.value, y.value)


def test_a_pickle_of_truth_values_and_integers():
    x = tg.array([1.0, 2.0])
    for y in (x > 1, (x > 1)[0], x.astype(int), x.astype(int)[1]):
        z = pickle.loads(pickle.dumps(y))
        assert (z.dtype, z.shape) == (y.dtype, y.shape)
        np.testing.assert_array_equal(z.value, y.value)


def test_a_deep_copy_of_a_leaf_is_another_leaf():
    for x in (tg.array([1.0, 2.0]), tg.array(3.0), tg.array([1.0], dtype="f4")):
        parameters = {"x": x, "same": x, "constant": tg.ones(2)}
        other = copy.deepcopy(parameters)
        assert other["x"] is other["same"]
        assert other["x"].is_leaf
        assert not other["constant"].requires_grad
        np.sum(other["x"] * 3).backward()
        assert x.grad is None
        np.testing.assert_array_equal(other["x"].grad, np.full(x.shape, 3.0))
        with tg.no_grad():
            if x.ndim:
                other["x"][0] = 9.0
                assert x.value[0] == 1.0


def test_copies_of_results_pass_gradients_on():
    x = tg.array([1.0, 2.0])
    y = x * x
    for make in (copy.copy, copy.deepcopy, tg.Array.copy, np.copy):
        z = make(y)
        z[0] = 100.0
        z.sum().backward()
    np.testing.assert_array_equal(y.value, [1.0, 4.0])
    np.testing.assert_array_equal(x.grad, [0.0, 16.0])
    z = copy.copy(x)
    assert not z.is_leaf
    z[1] = 0.0
    z.sum().backward()
    np.testing.assert_array_equal(x.grad, [1.0, 16.0])


# -- dtypes ----------------------------------------------------------------------------------------


def test_astype():
    x = tg.array([0.1, -1.5, 2.0])
    for dtype in (np.float32, np.float64, bool, int, np.int64):
        y = x.astype(dtype)
        np.testing.assert_array_equal(y.value, x.value.astype(dtype))
        assert y.dtype == dtype
    single = x.astype(np.float32)
    back = single.astype(float)
    assert back.value[0] == np.float64(np.float32(0.1))
    (back * single.astype(float) + x.astype(int) + x.astype(bool)).sum().backward()
    np.testing.assert_array_equal(x.grad, 2.0 * np.float32(x.value))
    s = tg.array(1.5)
    assert s.astype("f4").astype(float).shape == ()
    for bad in (complex, "U3", np.float16, object):
        with pytest.raises(TypeError, match=f"float64 or float32.*{HERE}"):
            x.astype(bad)


PROMOTED = [
    *(2, 2.5, True, np.float64(2), np.float32(2), np.float16(2), np.int64(2), np.int8(2)),
    *(
        np.bool_(True),
        np.array(2.0),
        np.array(2, np.int16),
        np.array([1, 2]),
        np.array([True, False]),
    ),
    *(np.array([1.0, 2.0]), np.array([1.0, 2.0], np.float32), np.array([1.0, 2.0], np.float16)),
]


@pytest.mark.parametrize("other", PROMOTED, ids=repr)
def test_promotion_is_that_of_numpy(other):
    for values in (np.array([1.5, 2.5]), np.array([1.5, 2.5], np.float32), np.float32(1.5)):
        x = tg.array(values)
        for function in (np.add, np.multiply, np.maximum, np.hypot, np.power):
            expected = function(values, other)
            found = function(x, other)
            assert found.dtype == expected.dtype, function
            np.testing.assert_allclose(found.value, expected, rtol=1e-6)
            assert function(other, x).dtype == function(other, values).dtype
        assert (
            np.where([True, False], x, other).dtype == np.where([True, False], values, other).dtype
        )


def test_single_precision_rounds_every_operation():
    values = np.float32([0.1, 0.7, 1.3])
    x = tg.array(values)
    y = values * values + np.float32(1e-4) - values / np.float32(3)
    np.testing.assert_array_equal((x * x + 1e-4 - x / 3).value, y)
    assert (x * 1e-60).value.any() == (values * np.float32(1e-60)).any()
    assert x.sum().dtype == x.mean().dtype == np.float32
