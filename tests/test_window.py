"""Windows against NumPy: the same key on the same array must show the same cells, or fail alike."""

import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tapegrad.window import Window, broadcast_shapes, coalesce

relaxed = settings(deadline=None, max_examples=200)  # the machines that run tests are shared
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def outcome(function, *args):
    """Return what a call gives, or the type and message of its error."""
    try:
        result = function(*args)
        return np.asarray(result) if isinstance(result, np.generic) else result
    except Exception as error:
        return type(error), str(error)


def assert_shows(window, array):
    """Check that a window shows the cells that stand in a view of ``np.arange``."""
    assert window.shape == array.shape
    assert window.size == array.size
    assert window.ndim == array.ndim
    cells = window.cells()
    assert cells.dtype == np.int64
    np.testing.assert_array_equal(cells, array, strict=True)
    consecutive = cells.size == 0 or np.array_equal(np.diff(cells.ravel()), np.ones(cells.size - 1))
    assert window.is_contiguous == consecutive
    buffer = np.arange(1000)
    view = window.view(buffer)
    np.testing.assert_array_equal(view, array)
    assert view.size == 0 or np.shares_memory(view, buffer)
    np.testing.assert_array_equal(window.cells(3 * buffer), 3 * array)
    shape, (strides,) = coalesce(window.shape, [window.strides])
    merged = Window(window.offset, shape, strides)
    np.testing.assert_array_equal(merged.cells().ravel(), array.ravel())


def start(shape):
    size = int(np.prod(shape))
    return Window.contiguous(0, shape), np.arange(size, dtype=np.int64).reshape(shape)


def axis_of(ndim):
    return st.integers(-ndim, ndim - 1)


@st.composite
def views(draw):
    """Draw a window and the array it must equal, after a few changes of view."""
    window, array = start(draw(shapes))
    for change in draw(
        st.lists(st.sampled_from(["key", "transpose", "flip", "stretch"]), max_size=3)
    ):
        if change == "key":
            key = draw(hnp.basic_indices(array.shape, allow_newaxis=True, max_dims=5))
            window, array = window.basic(key), np.asarray(array[key])
        elif change == "transpose":
            axes = draw(st.permutations(range(array.ndim)))
            window, array = window.transpose(axes), array.transpose(axes)
        elif change == "flip":
            window, array = window.flip(), np.asarray(np.flip(array))
        else:
            shape = (draw(st.integers(1, 2)), *array.shape)
            window, array = window.broadcast_to(shape), np.broadcast_to(array, shape)
    return window, array


@relaxed
@given(views())
def test_a_chain_of_views_shows_numpys_cells(pair):
    assert_shows(*pair)


def test_cells_start_at_the_offset():
    np.testing.assert_array_equal(Window.contiguous(7, (2, 2)).cells(), [[7, 8], [9, 10]])
    np.testing.assert_array_equal(Window(7, (3,), (-2,)).cells(), [7, 5, 3])


def test_cells_of_an_index_are_a_copy():
    index = np.arange(4)
    cells = Window.contiguous(0, (4,)).cells(index)
    cells[0] = 9
    assert index[0] == 0


def test_windows_are_values():
    window = Window.contiguous(1, (2, 3))
    assert window == Window(1, (2, 3), (3, 1))
    assert hash(window) == hash(Window(1, (2, 3), (3, 1)))
    assert window != Window.contiguous(2, (2, 3))
    assert window != (1, (2, 3), (3, 1))
    assert repr(window) == "Window(1, (2, 3), (3, 1))"


# -- keys -----------------------------------------------------------------------------------------

items = st.one_of(
    st.integers(-5, 5),
    st.integers(-5, 5).map(np.int32),
    st.slices(4),
    st.builds(slice, *[st.none() | st.integers(-6, 6)] * 3),
    st.just(Ellipsis),
    st.none(),
    st.sampled_from([1.0, "a", np.float64(1), 1j, slice(1.5), object()]),
)


@relaxed
@given(shapes, items | st.lists(items, max_size=5).map(tuple))
def test_basic_keys_do_what_numpy_does(shape, key):
    window, array = start(shape)
    expected = outcome(operator.getitem, array, key)
    got = outcome(window.basic, key)
    if not isinstance(got, Window):
        assert got[0] is expected[0]
    else:
        assert_shows(got, np.asarray(expected))


@pytest.mark.parametrize(
    "key",
    [
        [0, 1],
        np.array([0, 1]),
        np.array(1),
        True,
        np.True_,
        np.array([True, False, True]),
        (0, [1]),
        (slice(None), True),
        ((0, 1), 0),
        range(2),
        (..., [0]),
        [],
    ],
)
def test_fancy_keys_are_left_to_the_caller(key):
    assert Window.contiguous(0, (3, 3)).basic(key) is None


class Three:
    def __index__(self):
        return 3


def test_whatever_has_an_index_is_an_integer():
    assert Window.contiguous(0, (5,)).basic(Three()) == Window(3, (), ())
    assert Window.contiguous(0, (5, 5)).basic((Three(), Three())) == Window(18, (), ())


@pytest.mark.parametrize(
    ("shape", "key", "message"),
    [
        ((3,), 5, "index 5 is out of bounds for axis 0 with size 3"),
        ((3,), -4, "index -4 is out of bounds for axis 0 with size 3"),
        ((3, 2), (0, 2), "index 2 is out of bounds for axis 1 with size 2"),
        ((3,), (0, 0), "too many indices for array: array is 1-dimensional, but 2 were indexed"),
        ((), 0, "too many indices for array: array is 0-dimensional, but 1 were indexed"),
        ((3,), (..., ...), "an index can only have a single ellipsis"),
        ((3,), 10**30, "out of bounds"),
        ((3,), 1.0, "only integers.*not float"),
    ],
)
def test_wrong_keys_say_what_is_wrong(shape, key, message):
    with pytest.raises(IndexError, match=message):
        Window.contiguous(0, shape).basic(key)
    with pytest.raises(IndexError):
        start(shape)[1][key]


def test_an_empty_slice_stays_inside_its_buffer():
    window = Window.contiguous(0, (3, 2)).basic((slice(3, None), 1))
    assert window.view(np.arange(6)).shape == (0,)


# -- axes -----------------------------------------------------------------------------------------


def agree(window, expected, function, *args):
    """Check that a method gives NumPy's view, or NumPy's kind of error."""
    got = outcome(function, *args)
    if isinstance(got, Window):
        assert isinstance(expected, np.ndarray)
        assert_shows(got, expected)
    else:
        # where two things are wrong, which one is reported is not part of NumPy's interface
        assert issubclass(got[0], expected[0]) or issubclass(expected[0], got[0])


loose_axes = st.integers(-4, 4)
several = st.lists(loose_axes, max_size=3, unique=True).map(tuple)


@relaxed
@given(views(), st.none() | several)
def test_transpose(pair, axes):
    window, array = pair
    agree(window, outcome(array.transpose, axes), window.transpose, axes)


@relaxed
@given(views(), loose_axes, loose_axes)
def test_swapaxes(pair, i, j):
    window, array = pair
    agree(window, outcome(np.swapaxes, array, i, j), window.swapaxes, i, j)


@relaxed
@given(views(), loose_axes | several, loose_axes | several)
def test_moveaxis(pair, source, destination):
    window, array = pair
    expected = outcome(np.moveaxis, array, source, destination)
    agree(window, expected, window.moveaxis, source, destination)


@relaxed
@given(views(), st.none() | loose_axes | several)
def test_squeeze(pair, axis):
    window, array = pair
    agree(window, outcome(np.squeeze, array, axis), window.squeeze, axis)


@relaxed
@given(views(), loose_axes | several)
def test_expand_dims(pair, axis):
    window, array = pair
    agree(window, outcome(np.expand_dims, array, axis), window.expand_dims, axis)


@relaxed
@given(views(), st.none() | loose_axes | several)
def test_flip(pair, axis):
    window, array = pair
    agree(window, outcome(np.flip, array, axis), window.flip, axis)


@relaxed
@given(views(), loose_axes, loose_axes, loose_axes)
def test_diagonal(pair, offset, i, j):
    window, array = pair
    expected = outcome(np.diagonal, array, offset, i, j)
    agree(window, expected, window.diagonal, offset, i, j)


def test_several_axes_move_at_once():
    window, array = start((1, 2, 3, 4))
    for source, destination in [((0, 1), (3, 0)), ((3, 0), (1, 2)), ((0, 1, 2), (-1, -2, -3))]:
        assert_shows(window.moveaxis(source, destination), np.moveaxis(array, source, destination))


def test_repeated_axes_are_refused():
    window = Window.contiguous(0, (2, 3))
    with pytest.raises(ValueError, match="repeated axis in transpose"):
        window.transpose((0, 0))
    with pytest.raises(ValueError, match="repeated axis in `source` argument"):
        window.moveaxis((0, -2), (0, 1))
    with pytest.raises(ValueError, match="repeated axis"):
        window.flip((0, -2))
    with pytest.raises(np.exceptions.AxisError, match="source: axis 2 is out of bounds"):
        window.moveaxis(2, 0)


# -- shapes ---------------------------------------------------------------------------------------


@relaxed
@given(views(), st.lists(st.integers(-1, 4), max_size=4).map(tuple))
def test_broadcast_to(pair, shape):
    window, array = pair
    agree(window, outcome(np.broadcast_to, array, shape), window.broadcast_to, shape)


def factorings(size):
    """Shapes of that size, some with an unknown entry, some of another size."""
    sides = st.sampled_from([n for n in range(1, size + 1) if size % n == 0] or [0, 1, 2])
    return st.lists(sides | st.just(-1), max_size=4).map(tuple)


@relaxed
@given(st.data(), views())
def test_reshape(data, pair):
    window, array = pair
    shape = data.draw(factorings(array.size))
    expected = outcome(array.reshape, shape)
    got = outcome(window.reshape, shape)
    if isinstance(got, tuple):
        assert got[0] is expected[0]
        assert got[1] == expected[1] or -1 in shape  # NumPy prints -1 as newaxis, or not at all
    elif got is None:
        assert not np.shares_memory(expected, array)
    else:
        assert_shows(got, expected)
        assert array.size == 0 or np.shares_memory(expected, array)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        (slice(None, None, 2), (2, 3, 2)),  # one stride, cut into three axes
        (slice(None, None, -1), (4, -1, 1)),
        (slice(0, 12), (1, 12)),
    ],
)
def test_a_strided_run_is_cut_without_a_copy(key, shape):
    window, array = start((24,))
    array = array[key][:12]
    got = window.basic(key).basic(slice(12)).reshape(shape)
    assert_shows(got, array.reshape(shape))


def test_a_strided_matrix_is_merged_or_refused():
    window, array = start((4, 3, 4))
    window, array = window.basic((..., slice(2))), array[..., :2]
    assert_shows(window.reshape((2, 6, 2)), array.reshape((2, 6, 2)))
    assert window.reshape((2, 12)) is None


def test_reshape_reports_as_numpy_does():
    window = Window.contiguous(0, (2, 3))
    with pytest.raises(ValueError, match=r"cannot reshape array of size 6 into shape \(4,\)"):
        window.reshape((4,))
    with pytest.raises(ValueError, match="can only specify one unknown dimension"):
        window.reshape((-1, -1))
    assert window.reshape(6) == Window.contiguous(0, (6,))


@relaxed
@given(st.data(), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
def test_coalesced_operands_keep_their_elements(data, shape):
    operands = []
    for _ in range(data.draw(st.integers(1, 3))):
        axes = data.draw(st.permutations(range(len(shape))))
        strides = [0] * len(shape)
        for axis, stride in zip(axes, start(shape)[0].strides, strict=True):
            strides[axis] = data.draw(st.sampled_from([stride, 0]))
        operands.append(tuple(strides))
    merged, merged_strides = coalesce(shape, operands)
    assert len(merged) <= len(shape)
    assert 1 not in merged
    for strides, after in zip(operands, merged_strides, strict=True):
        before = Window(50, shape, strides).cells().ravel()
        np.testing.assert_array_equal(Window(50, merged, after).cells().ravel(), before)


def test_coalesce_merges_all_it_can():
    assert coalesce((2, 3, 4), [(12, 4, 1)]) == ((24,), [(1,)])
    assert coalesce((2, 1, 4), [(4, 9, 1), (4, 0, 1)]) == ((8,), [(1,), (1,)])
    assert coalesce((2, 3), [(3, 1), (1, 2)]) == ((2, 3), [(3, 1), (1, 2)])
    assert coalesce((1, 1), [(5, 7)]) == ((), [()])
    assert coalesce((2, 0), [(1, 1), (0, 0)]) == ((0,), [(0,), (0,)])


@relaxed
@given(st.lists(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3), max_size=4))
def test_broadcast_shapes(parts):
    expected = outcome(np.broadcast_shapes, *parts)
    got = outcome(broadcast_shapes, *parts)
    if got and isinstance(got[0], type):
        assert got[0] is expected[0] is ValueError
        assert "could not be broadcast together with shapes" in got[1]
    else:
        assert got == expected


def test_broadcast_shapes_names_the_shapes():
    with pytest.raises(ValueError, match=r"together with shapes \(2,\) \(3,\)$"):
        broadcast_shapes((2,), (3,))
