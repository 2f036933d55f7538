"""Reading and assigning elements: what NumPy does to an ndarray happens to a tracked array.

The strongest test here draws a sequence of slicings, assignments and in-place operations, does the
same to an ndarray and to a tracked array, and compares every array that is left, and the gradient
with a complex step through the ndarrays.
"""

import os

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad.tape import recorder

HERE = os.path.basename(__file__)
STEP = 1e-200  # of the complex step, whose error is of its square


def assign(array, key, value):
    array[key] = value


def matrix():
    return tg.array(np.arange(1.0, 13.0).reshape(3, 4))


# -- the same sequence on an ndarray and on a tracked array ----------------------------------------

NUMBERS = st.sampled_from([-1.5, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0])


def keys(shape):
    """Draw a key into an array of this shape, basic or fancy."""
    kinds = [hnp.basic_indices(shape, allow_newaxis=True, max_dims=4)]
    if shape and 0 not in shape:
        kinds.append(hnp.integer_array_indices(shape, result_shape=hnp.array_shapes(max_dims=2)))
        kinds.append(hnp.arrays(bool, shape))
        kinds.append(st.lists(st.integers(-shape[0], shape[0] - 1), max_size=4))
        kinds.append(hnp.arrays(bool, shape[0]).map(lambda mask: (mask, Ellipsis)))
    return st.one_of(kinds)


def read(arrays, source):
    """Return the value that a step uses: a number, an ndarray, or elements of array number j."""
    if isinstance(source, tuple):
        j, key = source
        return arrays[j][key]
    return source


def perform(step, arrays):
    """Do one step to the arrays, all of one kind; return the class of the exception it raised."""
    kind, i, key, source = step
    a = arrays[i]
    try:
        if kind == "view":
            arrays.append(a[key])
        elif kind == "take":  # in C order, which a fancy result of NumPy need not be in
            arrays.append(a[key].copy())
        elif kind == "transpose":
            arrays.append(a.T)
        elif kind == "ravel":
            arrays.append(a.reshape(-1))
        elif kind == "assign":
            a[key] = read(arrays, source)
        elif kind == "add":
            a[key] += read(arrays, source)
        else:
            a[key] *= read(arrays, source)
    except (ValueError, IndexError) as error:
        return type(error)
    return None


@st.composite
def sequences(draw):
    """Draw initial values and steps that fit the shapes which arise."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))
    start = np.cos(np.arange(np.prod(shape)) + 1.0).reshape(shape)
    arrays, steps = [start.copy()], []
    for _ in range(draw(st.integers(1, 8))):
        i = draw(st.integers(0, len(arrays) - 1))
        kind = draw(st.sampled_from(["view", "transpose", "ravel", "assign", "add", "multiply"]))
        key, source = ..., None
        if kind in ("view", "assign", "add", "multiply"):
            key = draw(keys(arrays[i].shape))
        if kind == "view" and not isinstance(arrays[i][key], np.ndarray):
            continue
        if kind == "view" and not np.shares_memory(arrays[i][key], arrays[i]):
            kind = "take"
        if kind in ("assign", "add", "multiply"):
            target = np.shape(arrays[i][key])
            j = draw(st.integers(0, len(arrays) - 1))
            source = draw(
                st.one_of(
                    NUMBERS,
                    hnp.arrays(float, target, elements=NUMBERS),
                    hnp.arrays(float, target[1:], elements=NUMBERS),
                    st.just((j, ...)),
                    keys(arrays[j].shape).map(lambda chosen, j=j: (j, chosen)),
                )
            )
            if not target and np.ndim(read(arrays, source)):
                source = 0.5  # NumPy takes an array of one element for a float, not for a complex
        step = (kind, i, key, source)
        try:
            perform(step, arrays)
        except TypeError:  # of NumPy's only: values for a mask may have one axis at most
            continue
        steps.append(step)
    return start, steps


def total(arrays):
    """Return one number that all elements of all arrays take part in."""
    weights = [np.sin(np.arange(a.size) + k).reshape(a.shape) for k, a in enumerate(arrays)]
    return sum(np.sum(w * a) for w, a in zip(weights, arrays, strict=True))


def after(steps, start):
    arrays = [start]
    return arrays, [perform(step, arrays) for step in steps]


@settings(max_examples=300)
@given(sequences())
def test_views_and_assignments_alias_as_in_numpy(drawn):
    start, steps = drawn
    expected, outcome = after(steps, start.copy())
    x = tg.array(start)
    found, found_outcome = after(steps, x.copy())
    assert found_outcome == outcome
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.value, other, strict=True)
    if start.size == 0:
        return
    total(found).backward()
    gradient = np.empty(start.shape)
    for i in np.ndindex(start.shape):
        moved = start.astype(complex)
        moved[i] += 1j * STEP
        gradient[i] = total(after(steps, moved)[0]).imag / STEP
    np.testing.assert_allclose(x.grad, gradient, rtol=1e-12, atol=1e-12)


@given(st.data())
def test_reading_selects_what_numpy_selects(data):
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    values = np.arange(float(np.prod(shape))).reshape(shape)
    key = data.draw(keys(shape))
    found, expected = tg.array(values)[key], values[key]
    assert found.shape == np.shape(expected)
    np.testing.assert_array_equal(found.value, expected)


# -- keys ------------------------------------------------------------------------------------------

KEYS = [
    0,
    -1,
    np.int64(1),
    np.array(1),
    slice(None, None, -1),
    slice(5, 0, -2),
    ...,
    None,
    (),
    (..., None, 1),
    (None, slice(None), None, 2),
    (np.newaxis, 0, np.newaxis, ..., np.newaxis),
    [0, 2],
    [[0, 2], [1, 1]],
    [],
    np.array([], int),
    ([0, 1], [1, 2]),
    ([[0], [2]], [0, 3]),
    (slice(None), [3, 0, 0]),
    ([0, 2], slice(1, 3)),
    ([0, 2], None, [1, 1]),
    (0, slice(None), [1, 2])[:2],
    np.arange(12).reshape(3, 4) % 3 == 0,
    [True, False, True],
    (slice(None), np.array([True, False, True, False])),
    ([True, False, True], [0, 1]),
    True,
    False,
    np.bool_(True),
    np.uint8(2),
    (np.int8(-1), np.array(3)),
]


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_a_key_reads_and_assigns_as_in_numpy(key):
    x, values = matrix(), matrix().value.copy()
    found = x[key]
    assert found.shape == values[key].shape
    np.testing.assert_array_equal(found.value, values[key])
    y = x * 1
    y[key] = 70.0
    values[key] = 70.0
    np.testing.assert_array_equal(y.value, values)
    (y * y).sum().backward()
    np.testing.assert_array_equal(x.grad, np.where(values == 70.0, 0.0, 2 * values))


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_the_gradient_of_a_read_goes_back_to_the_elements_read(key):
    x = matrix()
    y = x[key]
    y.backward(np.ones(y.shape))
    expected = np.zeros((3, 4))
    np.add.at(expected, key, 1.0)
    np.testing.assert_array_equal(x.grad, expected)


def test_a_mask_may_be_a_tracked_comparison():
    x = matrix()
    x[x > 6].sum().backward()
    np.testing.assert_array_equal(x.grad, x.value > 6)
    y = x * 1
    y[y > 6] = 0.0
    assert y.value.max() == 6.0


def test_an_index_may_be_a_tracked_integer():
    x = tg.array([3.0, 1.0, 2.0])
    np.testing.assert_array_equal(x[(x - 1).astype(int)].value, [2.0, 3.0, 1.0])
    assert x[np.argmin(x)].item() == 1.0


def test_reading_and_renaming_record_nothing():
    x = matrix()
    y = x * 1
    before = recorder.tape.next_cell
    y[1, 2] = y[0, 0]
    y[::2] = y[0]
    y[[0, 1]] = y[1:]
    assert y.T[1:, ::-1].reshape(-1)[[2, 0]].shape == (2,)
    assert [row.shape for row in y] == [(4,)] * 3
    assert recorder.tape.next_cell == before


# -- assignment ------------------------------------------------------------------------------------


def test_elements_assigned_into_zeros():
    x = tg.array([1.0, 2.0, 3.0])
    y = tg.zeros(3)
    y[0] = x[0] * x[1] * x[2]
    y[1] = x[0] + x[1] + x[2]
    y[2] = x[0] + x[1] * x[2]
    y.backward([0.1, 0.2, 0.3])
    np.testing.assert_allclose(x.grad, [1.1, 1.4, 1.0], rtol=1e-15)


def test_views_see_assignments_in_both_directions():
    x = matrix()
    y = x * 1
    row, column, reverse = y[1], y[:, 2], y[::-1]
    row[2] = 100.0
    assert column.value[1] == 100.0
    reverse[0] = 5.0
    assert (y.value[2] == 5.0).all()
    y[:] = 0.0
    assert not reverse.value.any()
    assert not column.value.any()


def test_a_copy_and_a_fancy_read_do_not_see_assignments():
    y = matrix() * 1
    copies = [y.copy(), y[[0, 1, 2]], y.flatten(), y[y > 0]]
    y[:] = 0.0
    assert all(copy.value.all() for copy in copies)


def test_values_read_before_an_assignment_keep_their_gradient():
    x = tg.array([1.0, 2.0])
    y = x * 3
    first = y[0]
    y[0] = y[1]
    (first * 10 + y.sum()).backward()
    np.testing.assert_array_equal(x.grad, [30.0, 6.0])


def test_overlapping_assignment_reads_before_it_writes():
    x = tg.array([1.0, 2.0, 3.0, 4.0])
    y = x * 1
    y[1:] = y[:-1]
    np.testing.assert_array_equal(y.value, [1.0, 1.0, 2.0, 3.0])
    y[::-1] = y
    np.testing.assert_array_equal(y.value, [3.0, 2.0, 1.0, 1.0])
    y[1:] += y[:-1]
    np.testing.assert_array_equal(y.value, [3.0, 5.0, 3.0, 2.0])
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [3.0, 2.0, 2.0, 0.0])


def test_the_last_of_repeated_indices_stays():
    x = tg.array([1.0, 2.0])
    y = tg.zeros(3)
    y[[1, 1]] = x
    y.backward(np.ones(3))
    np.testing.assert_array_equal(y.value, [0.0, 2.0, 0.0])
    np.testing.assert_array_equal(x.grad, [0.0, 1.0])


def test_lists_of_tracked_numbers_are_assigned_as_arrays():
    x = tg.array([1.0, 2.0])
    y = tg.zeros((2, 2))
    y[0] = [x[1], 5.0]
    y[:, 1] = (x[0], x[0] * x[1])
    y.sum().backward()
    np.testing.assert_array_equal(y.value, [[2.0, 1.0], [0.0, 2.0]])
    np.testing.assert_array_equal(x.grad, [3.0, 2.0])


def test_what_is_assigned_takes_the_dtype_of_the_array():
    x = tg.array([1.0, 2.0])
    y = tg.zeros(3, dtype=np.float32)
    y[0], y[1], y[2] = 0.1, x[0] / 10, np.float64(0.1)
    assert y.dtype == np.float32
    assert (y.astype(float).value == np.float32(0.1)).all()
    whole = x.astype(int)
    whole[0] = 2.7
    truth = x > 1.5
    truth[0] = 5
    np.testing.assert_array_equal((whole * 1.0 + truth * 1.0).value, [3.0, 3.0])


def test_an_ndarray_assigned_is_copied():
    x, y = tg.array([1.0, 2.0]), tg.zeros(2)
    values = np.array([3.0, 4.0])
    y[:] = values
    values[:] = 0.0
    (x * y).sum().backward()
    np.testing.assert_array_equal(x.grad, [3.0, 4.0])


def test_assignment_into_a_leaf_is_refused_and_names_the_ways_out():
    x = tg.array([1.0, 2.0])
    for change in (
        lambda: assign(x, 0, 3.0),
        lambda: assign(x[:1], 0, 3.0),
        lambda: x.__iadd__(1.0),
        lambda: x.reshape(2, 1).__imul__(x),
    ):
        with pytest.raises(RuntimeError, match=r"x\.copy\(\), or under tg\.no_grad\(\).*" + HERE):
            change()
    (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad, [2.0, 4.0])


def test_under_no_grad_a_leaf_gets_new_values():
    x = tg.array([[1.0, 2.0], [3.0, 4.0]])
    y = (x * x).sum()
    with tg.no_grad():
        x[0, 1] = 20.0
        x[1] -= 1.0
        x[:, 0] = x[:, 0] * 10
    np.testing.assert_array_equal(x.value, [[10.0, 20.0], [20.0, 3.0]])
    y.backward()  # recorded before the change: it keeps the values that it saw
    np.testing.assert_array_equal(x.grad, [[2.0, 4.0], [6.0, 8.0]])
    x.zero_grad()
    (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad, 2 * x.value)


def test_under_no_grad_other_elements_of_an_array_keep_their_gradient():
    x = tg.array([1.0, 2.0, 3.0])
    y = x * x
    with tg.no_grad():
        y[1] = y[0] * 100
    y.sum().backward()
    np.testing.assert_array_equal(y.value, [1.0, 100.0, 9.0])
    np.testing.assert_array_equal(x.grad, [2.0, 0.0, 6.0])


# -- bad input -------------------------------------------------------------------------------------

NAN = float("nan")
BAD_KEYS = [
    (3, IndexError, "out of bounds for axis 0 with size 3"),
    (-4, IndexError, "out of bounds"),
    ((0, 4), IndexError, "out of bounds for axis 1 with size 4"),
    ((0, 0, 0), IndexError, "too many indices"),
    ([0, 3], IndexError, "out of bounds"),
    (1.0, IndexError, "only integers"),
    (NAN, IndexError, "only integers"),
    (np.array([0.0, NAN]), IndexError, "integer"),
    ("a", IndexError, "only integers"),
    ([True, False], IndexError, "boolean index did not match"),
    ((..., ...), IndexError, "single ellipsis"),
    (slice(None, None, 0), ValueError, "slice step cannot be zero"),
    (([0, 1], [0, 1, 2]), IndexError, "shape mismatch"),
]


@pytest.mark.parametrize(("key", "kind", "words"), BAD_KEYS, ids=lambda part: repr(part)[:40])
def test_a_bad_key_is_refused_as_numpy_refuses_it(key, kind, words):
    x = matrix()
    y = x * x
    with pytest.raises(kind):
        matrix().value[key]
    with pytest.raises(kind, match=f"(?s){words}.*{HERE}"):
        y[key]
    with pytest.raises(kind, match=f"(?s){words}.*{HERE}"):
        assign(y, key, x[0, 0])
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, 2 * x.value)


def test_a_tracked_float_is_no_index():
    x = matrix()
    for key in (x[0, 0], x[0], [x[0, 0], 1]):
        with pytest.raises(IndexError, match=rf"\.value\.astype\(int\).*{HERE}"):
            x[key]


BAD_VALUES = [
    ((slice(2), np.ones(3)), ValueError, "could not broadcast"),
    ((0, np.ones((2, 4))), ValueError, "could not broadcast"),
    (((0, 0), np.ones(2)), ValueError, "could not broadcast"),
    (([0, 1], np.ones((3, 4))), ValueError, "could not broadcast"),
    ((0, "a"), TypeError, "cannot assign"),
    ((0, None), TypeError, "cannot assign"),
    ((0, 1j), TypeError, "cannot assign"),
    ((0, np.array([1j])), TypeError, "complex"),
    ((0, np.array([None] * 4)), TypeError, "object"),
    ((0, np.array(["a"])), TypeError, "dtype"),
]


@pytest.mark.parametrize(("key_value", "kind", "words"), BAD_VALUES, ids=repr)
def test_a_bad_value_is_refused(key_value, kind, words):
    key, value = key_value
    x = matrix()
    y = x * x
    with pytest.raises(kind, match=f"{words}.*{HERE}"):
        y[key] = value
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, 2 * x.value)


def test_tracked_values_do_not_fit_into_integers_or_into_an_ndarray():
    x = tg.array([1.0, 2.0])
    with pytest.raises(TypeError, match=rf"\.astype\(int64\).*{HERE}"):
        x.astype(int)[0] = x[0]
    with pytest.raises(tg.LostGradientError, match=rf"tg\.zeros.*{HERE}"):
        np.zeros(2)[:] = x
    # NumPy says of anything with elements that it is a sequence; the cause says what is wrong.
    with pytest.raises(ValueError, match="sequence") as caught:
        np.zeros(2)[0] = x[0]
    assert isinstance(caught.value.__cause__, tg.LostGradientError)
