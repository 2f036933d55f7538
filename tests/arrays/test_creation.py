"""Making tracked arrays."""

import os

import numpy as np
import pytest

import tapegrad as tg

HERE = os.path.basename(__file__)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (2, np.float64),
        (2.5, np.float64),
        ([1, 2], np.float64),
        ((1, 2.5), np.float64),
        ([[1, 2], [3, 4]], np.float64),
        ([], np.float64),
        ([[], []], np.float64),
        (np.float64(1.5), np.float64),
        (np.float32(1.5), np.float32),
        (np.array([1.0, 2.0], np.float32), np.float32),
        (np.array([[1.0, 2.0], [3.0, 4.0]]).T, np.float64),
        (np.arange(6.0)[::-2], np.float64),
        (np.zeros((0, 3)), np.float64),
        (range(3), np.float64),
        ([np.float32(1), np.float32(2)], np.float32),
        ([np.array([1.0]), [2]], np.float64),
    ],
    ids=repr,
)
def test_an_array_of_numbers(given, dtype):
    x = tg.array(given)
    assert x.dtype == dtype
    assert x.shape == np.shape(given)
    np.testing.assert_array_equal(x.value, given)
    assert x.is_leaf
    assert x.requires_grad
    assert x.grad is None


@pytest.mark.parametrize("dtype", [np.float32, "f4", np.float64, float, "float64"])
@pytest.mark.parametrize("given", [1, [1.5, 2.5], np.array([1, 2]), np.float16(0.5), [True, False]])
def test_an_explicit_dtype_converts(given, dtype):
    x = tg.array(given, dtype=dtype)
    assert x.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(x.value, np.asarray(given, dtype))


def test_the_values_are_copied():
    values = np.array([1.0, 2.0])
    made = [tg.array(values), tg.constant(values), tg.array([values, values])]
    values[:] = 0.0
    assert all(x.value.all() for x in made)


def test_tracked_values_are_gathered_without_an_instruction():
    from tapegrad.tape import recorder

    x = tg.array([1.0, 2.0, 3.0])
    y = x * x
    before = recorder.tape.next_cell
    rows = tg.array([y, y[::-1], [y[0], y[1], y[0]]])
    assert recorder.tape.next_cell == before
    np.testing.assert_array_equal(rows.value, [[1, 4, 9], [9, 4, 1], [1, 4, 1]])
    rows.backward([[1.0, 0.0, 0.0], [0.0, 0.0, 10.0], [100.0, 0.0, 1000.0]])
    np.testing.assert_array_equal(x.grad, [2 * 1111.0, 0.0, 0.0])


def test_nested_lists_of_tracked_values_and_numbers():
    s, x = tg.array(2.0), tg.array([1.0, 3.0])
    y = tg.array([[s, 1], (2.5, s * s), x, np.array([7, 8]), [np.float32(0.5), True]])
    np.testing.assert_array_equal(y.value, [[2, 1], [2.5, 4], [1, 3], [7, 8], [0.5, 1]])
    (y * y).sum().backward()
    assert s.grad == 4.0 + 2 * 2.0**3 * 2
    np.testing.assert_array_equal(x.grad, [2.0, 6.0])
    assert tg.array([s]).shape == (1,)
    assert tg.array([x[:0], x[:0]]).shape == (2, 0)


def test_gathering_promotes_as_numpy_does():
    x, y = tg.array([1.0], dtype=np.float32), tg.array([1.0])
    assert tg.array([x, x]).dtype == np.float32
    assert tg.array([x, y]).dtype == np.float64
    assert tg.array([x[0], np.float32(2)]).dtype == np.float32
    assert tg.array([x[0], 2.0]).dtype == np.array([np.float32(1), 2.0]).dtype
    assert tg.array([x, x], dtype=float).dtype == np.float64
    assert tg.array([y, y], dtype="f4").dtype == np.float32


def test_an_array_of_a_tracked_array_is_a_copy_that_passes_gradients_on():
    for x in (tg.array([1.0, 2.0]), tg.array(3.0)):
        y = tg.array(x)
        assert not y.is_leaf
        np.sum(y * y).backward()
        np.testing.assert_array_equal(x.grad, 2 * x.value)
    z = tg.array(tg.array([1.0, 2.0]) * 2, dtype=np.float32)
    assert z.dtype == np.float32


BAD = {
    "integers": (np.array([1, 2]), "int64", "dtype=float"),
    "one integer": (np.int64(1), "int64", "dtype=float"),
    "truth values": ([True, False], "bool", "dtype=float"),
    "half precision": (np.float16(1), "float16", "dtype=float"),
    "complex numbers": ([1j], "complex128", "real numbers"),
    "objects": (np.array([1, None]), "object", "real numbers"),
    "nothing": (None, "object", "real numbers"),
    "text": ("1.0", "<U3", "real numbers"),
    "texts": (["a"], "<U1", "real numbers"),
    "huge integers": ([10**400], "object", "real numbers"),
}


@pytest.mark.parametrize("what", BAD)
def test_data_without_a_derivative_is_refused(what):
    given, dtype, fix = BAD[what]
    with pytest.raises(TypeError, match=f"{dtype}.*{fix}.*{HERE}"):
        tg.array(given)
    if fix == "dtype=float":
        assert tg.array(given, dtype=float).dtype == np.float64


@pytest.mark.parametrize("dtype", [int, bool, complex, object, np.float16, "U3"])
def test_a_dtype_without_a_derivative_is_refused(dtype):
    with pytest.raises(TypeError, match=f"have no derivative.*{HERE}"):
        tg.array([1.0, 2.0], dtype=dtype)
    with pytest.raises(TypeError, match=f"have no derivative.*{HERE}"):
        tg.zeros(2, dtype=dtype)


def test_bad_lists_are_refused():
    s, x = tg.array(2.0), tg.array([1.0, 2.0])
    for ragged in ([s, [1.0]], [x, s], [x, [1.0, 2.0, 3.0]], [[s], [s, s]]):
        with pytest.raises(ValueError, match=f"inhomogeneous shape.*{HERE}"):
            tg.array(ragged)
    with pytest.raises(ValueError, match="inhomogeneous"):
        tg.array([[1.0], [2.0, 3.0]])
    for foreign in ([s, "a"], [s, None], [s, 1j]):
        with pytest.raises(TypeError, match=f"not supported.*{HERE}"):
            tg.array(foreign)
    (s * s).backward()
    assert s.grad == 4.0


def test_constants_require_no_gradient():
    x = tg.array([1.0, 2.0])
    made = [tg.constant([3, 4]), tg.constant(np.array([3, 4])), tg.array([3.0, 4.0], None, False)]
    for c in made:
        assert c.dtype == np.float64
        assert not c.requires_grad
        (x * c).sum().backward()
        assert c.grad is None
    np.testing.assert_array_equal(x.grad, [9.0, 12.0])
    assert tg.constant(np.float32(2)).dtype == np.float32
    with pytest.raises(TypeError, match=HERE):
        tg.constant(["a"])


def test_zeros_ones_and_full():
    for shape in (3, (2, 3), [2], (0,), np.int64(2), ()):
        np.testing.assert_array_equal(tg.zeros(shape).value, np.zeros(shape))
        np.testing.assert_array_equal(tg.ones(shape).value, np.ones(shape))
        np.testing.assert_array_equal(tg.full(shape, 2.5).value, np.full(shape, 2.5))
        for made in (tg.zeros(shape), tg.ones(shape), tg.full(shape, 1)):
            assert made.dtype == np.float64
            assert not made.requires_grad
    assert tg.ones(2, dtype=np.float32).dtype == np.float32
    for bad in (-1, (2, -1), "a", 1.5):
        with pytest.raises((ValueError, TypeError)):
            tg.zeros(bad)


def test_full_of_a_tracked_value():
    s = tg.array(2.0)
    y = tg.full((2, 2), s * s)
    y.backward([[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_array_equal(y.value, np.full((2, 2), 4.0))
    assert s.grad == 40.0


def test_an_array_filled_in_a_loop():
    x = tg.array(np.arange(1.0, 6.0))
    y = tg.zeros(5)
    for i in range(5):
        y[i] = x[i] * x[i - 1]
    y[1:4] += 1.0
    np.testing.assert_array_equal(y.value, [5.0, 3.0, 7.0, 13.0, 20.0])
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, np.roll(x.value, 1) + np.roll(x.value, -1))


def test_an_array_without_axes_can_be_assigned_to():
    x = tg.array(3.0)
    for make in (tg.zeros, tg.ones, lambda shape: tg.full(shape, 7.0)):
        y = make(())
        y[...] = x * x
        y[()] = y * 2.0
        x.zero_grad()
        y.backward()
        assert y.value == 18.0
        assert x.grad == 12.0


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_the_byte_order_of_another_machine_is_no_other_dtype(kind):
    native = np.array([1.5, -2.0], kind)
    other = native.astype(native.dtype.newbyteorder())
    assert tg.array(other).dtype == native.dtype
    np.testing.assert_array_equal(tg.array(other).value, native)
    slope = tg.grad(lambda x: np.sum(x * x))(other)
    assert slope.dtype == native.dtype
    np.testing.assert_array_equal(slope, 2 * native)
