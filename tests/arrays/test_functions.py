"""NumPy's functions on tracked values, against NumPy itself."""

import os
import re

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.arrays.functions import FUNCTIONS
from tapegrad.tape import recorder

HERE = os.path.basename(__file__)

ARGUMENTS = {
    "x": np.array([[1.48, -0.4, 2.2], [0.3, 3.1, -1.7]]),
    "m": np.array([[0.7, -1.2], [2.4, 0.1]]),
    "v": np.array([0.9, -0.6, 1.3]),
    "s": np.float64(0.8),
    "d": np.arange(8.0).reshape(2, 2, 2) - 3.3,
}
CONSTANTS = {"np": np, "c": np.array([1.0, -2.0, 0.5]), "k": np.array([[2.0], [3.0]])}

# What rearranges elements: the result is made of the operands' own cells.
REARRANGING = """
np.flip(x); np.flip(x, 1); np.flip(x, (0, 1)); np.fliplr(x); np.flipud(v)
np.roll(x, 2); np.roll(x, 1, axis=1); np.roll(x, (1, -1), (0, 1)); np.rot90(x); np.rot90(x, -1)
np.repeat(x, 2); np.repeat(x, [1, 0, 2], axis=1); np.repeat(s, 3); np.tile(x, 2); np.tile(s, (2, 2))
np.tile(v, (2, 2)); np.take(x, [0, 5, 0]); np.take(x, [2, 0], axis=1); np.take(x, 1)
np.take_along_axis(x, np.array([[1], [2]]), axis=1); np.diagonal(m); np.diagonal(x, 1)
np.diagonal(d, 0, 1, 2); np.delete(v, 1); np.delete(x, [0], axis=0)
np.compress([True, False], x, 0)
np.extract(c > 0, v); np.resize(v, (2, 4)); np.broadcast_to(v, (2, 3)); np.broadcast_to(s, (2,))
np.broadcast_to(s, 3); np.broadcast_arrays(v, x)[0]; np.broadcast_arrays(v, k)[1]
np.moveaxis(d, 0, -1); np.moveaxis(d, [0, 1], [2, 0]); np.rollaxis(d, 2); np.expand_dims(x, 1)
np.expand_dims(s, 0); np.expand_dims(x, (0, 2)); np.atleast_1d(s); np.atleast_2d(v)
np.atleast_3d(x); np.transpose(x); np.transpose(d, (1, 2, 0)); np.swapaxes(d, 0, 2); x.T; d.T
x.transpose(); d.transpose(2, 0, 1); d.transpose((2, 0, 1)); d.swapaxes(-1, 0); s.T
np.squeeze(x[None]); np.squeeze(x[:, None], axis=1); x[None].squeeze(0); s.squeeze()
np.ravel(x); np.ravel(x.T); x.ravel(); x.T.flatten(); s.ravel(); np.reshape(x, (3, 2))
np.reshape(x, -1); np.reshape(x.T, (2, 3)); x.reshape(3, -1); x.reshape((6,)); s.reshape(1, 1)
np.copy(x); x.copy(); s.copy(); x[::-1].copy()
np.concatenate([x, x * 2]); np.concatenate([x, k], axis=1); np.concatenate([[1.0, 2.0], v])
np.concatenate([x, v], axis=None); np.stack([v, c]); np.stack([v, v * 2], axis=1); np.stack([s, s])
np.stack([s, 1.0, s * 2]); np.vstack([x, c]); np.vstack([s, s]); np.hstack([v, s])
np.hstack([x, k])
np.dstack([x, x * 2]); np.column_stack([v, c]); np.column_stack([x, k]); np.append(x, 4.0)
np.append(x, [[1, 2, 3]], axis=0); np.append(c, v); np.split(v, 3)[1]; np.split(x, [1], axis=1)[1]
np.array_split(v, 2)[0]; np.hsplit(x, 3)[2]; np.vsplit(x, 2)[0]; np.dsplit(d, 2)[1]
np.diag(m); np.diag(x, 1); np.real(x); np.real_if_close(x)
"""

COMPUTING = """
np.diag(v); np.diag(v, -1); np.diag(v, 2); np.tril(x); np.tril(m, -1); np.triu(x, 1); np.triu(d)
np.sum(x); np.sum(x, axis=0); np.sum(x, axis=-1, keepdims=True); np.sum(d, axis=(0, 2)); np.sum(s)
np.sum(x, 1); x.sum(); x.sum(0); x.sum(axis=(0, 1), keepdims=True); np.sum(s, axis=0); x.sum(())
np.prod(x); np.prod(x, axis=1); x.prod(0); x.prod(axis=0, keepdims=True); np.prod(d, axis=(1, 2))
np.mean(x); np.mean(x, axis=0); x.mean(); x.mean(1, keepdims=True); np.mean(d, axis=(0, 1))
s.mean()
np.min(x); np.min(x, axis=0); x.min(1); np.max(x); np.max(x, axis=1); x.max(axis=0, keepdims=True)
np.amin(x); np.amax(x, axis=-1); np.max(d, axis=(0, 1)); s.max(); np.sum(x, axis=np.int64(1))
np.cumsum(x); np.cumsum(x, axis=0); x.cumsum(1); np.cumsum(s); np.cumprod(x); np.cumprod(x, axis=-1)
np.cumsum(s, axis=0); x.cumprod(axis=0)
np.where(x > 0, x, -x); np.where(x > 0, x, 0.0); np.where([True, False, True], v, c)
np.where(c > 0, s, v); np.where(True, s, 2.0); np.where(x > 0, k, x * 3)
np.clip(x, -1, 1); np.clip(x, None, c); np.clip(x, 0.1, None); x.clip(-1, 2); np.clip(x, min=0.5)
x.clip(max=1.0); np.clip(s, 0, 1); np.clip(c, v * 0 - 1, s)
np.round(x); np.round(x, 1); np.around(x, 0); x.round(1); round(s, 1); np.fix(x); x.round(-1)
np.dot(x, v); np.dot(x, c); np.dot(c, v); np.dot(v, v); np.dot(m, x); np.dot(s, x); np.dot(x, 2.0)
x.dot(v); x.dot(c); v.dot(c); np.dot(m, d); np.dot(d, m); np.dot(d, d); np.dot(m[0], d); d.dot(m[1])
np.inner(v, c); np.inner(v, v); np.vdot(c, v); np.outer(v, c); np.outer(x, v); np.outer([1, 2], v)
np.matmul(x, v); np.matmul(m, x); m @ x; x @ c; c @ x.T; x @ x.T; d @ m; m @ d; d @ d; v @ v
m[0] @ d
d @ m[0]; [1.0, 2.0] @ m; m @ [1.0, 2.0]; np.matmul(d, x)
np.trace(m); np.trace(x, 1); np.trace(d, axis1=1, axis2=2); np.diff(x); np.diff(x, axis=0)
np.diff(v, 2); np.sinc(x); np.sinc(s)
np.zeros_like(x) + s; np.empty_like(x) * 0 + x; np.ones_like(x) * x; np.full_like(x, 3.0) * x
np.zeros_like(x, shape=(3,)) + v; np.ones_like(s) * s; np.full_like(v, s)
"""

DECIDING = """
np.all(x > 0); np.any(x > 0, axis=0); np.argmax(x); np.argmax(x, axis=1); np.argmin(x, axis=0)
np.argsort(x, axis=1); np.argpartition(v, 1); np.nonzero(x > 0); np.flatnonzero(x > 0)
np.where(x > 0)
np.argwhere(x > 0); np.count_nonzero(x > 0); np.searchsorted([0.0, 1.0], v)
np.digitize(x, [0.0, 1.0])
np.isclose(x, x); np.allclose(x, x + 1); np.array_equal(x, x); np.array_equiv(v, x)
np.iscomplexobj(x); np.isrealobj(x); np.isneginf(x); np.isposinf(x); np.array_repr(v)
np.array_str(v)
np.array2string(v); np.histogram_bin_edges(v, 3); np.shape(x); np.shape(s); np.ndim(x); np.size(x)
np.size(x, 1); np.result_type(x, np.float32); np.result_type(x); np.can_cast(x.dtype, int)
(x > 0).any(); (x > -9).all(); (x > 0).any(axis=0); len(x); x.shape; x.size; x.ndim; x.tolist()
s.item(); s.tolist(); v[0].item(); bool(s); int(s); 0.9 in v; 7.0 in v; (x > 0).all(axis=1)
"""


def calls(text):
    return [call.strip() for line in text.splitlines() for call in line.split(";") if call.strip()]


def variables(make):
    return CONSTANTS | {name: make(value) for name, value in ARGUMENTS.items()}


def check_gradient(call, tolerance):
    """Compare the gradient of a weighted sum of a call's result with central differences."""
    names = list(ARGUMENTS)

    def weighted(*values):
        result = eval(call, CONSTANTS | dict(zip(names, values, strict=True)))
        return np.sum(result * np.cos(np.arange(np.size(result))).reshape(np.shape(result)))

    found = tg.grad(weighted, argnums=range(len(names)))(*ARGUMENTS.values())
    for k, value in enumerate(ARGUMENTS.values()):
        expected = np.empty(value.shape)
        for i in np.ndindex(value.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [np.array(a) for a in ARGUMENTS.values()]
                moved[k][i] += step
                ends.append(weighted(*[a[()] for a in moved]))
            expected[i] = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(found[k], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore:numpy.fix is deprecated:DeprecationWarning")
@pytest.mark.parametrize("call", calls(REARRANGING) + calls(COMPUTING))
def test_a_function_gives_the_value_and_the_gradient_of_numpy(call):
    expected = eval(call, variables(np.copy) | {"s": ARGUMENTS["s"]})
    found = eval(call, variables(tg.array))
    assert isinstance(found, tg.Array)
    assert found.shape == np.shape(expected)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found.value, expected, rtol=1e-15, atol=1e-15)
    check_gradient(call, 1e-8)


@pytest.mark.filterwarnings("ignore:numpy.fix is deprecated:DeprecationWarning")
@pytest.mark.parametrize("call", calls(REARRANGING) + calls(COMPUTING))
def test_a_function_keeps_single_precision(call):
    single = {"c": np.float32(CONSTANTS["c"])}
    expected = eval(call, variables(np.float32) | single)
    found = eval(call, variables(lambda value: tg.array(np.float32(value))) | single)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found.value, expected, rtol=3e-6, atol=1e-6)


# Constants that are joined to tracked values are copied into cells, and products are recorded.
OF_CELLS_ONLY = [
    c for c in calls(REARRANGING) if not re.search(r"\bnp\.append|\*|\d\.\d|\b[ck]\b", c)
]


@pytest.mark.parametrize("call", OF_CELLS_ONLY)
def test_what_rearranges_records_nothing(call):
    names = variables(tg.array)
    for name in ARGUMENTS:
        assert (names[name] * 1).shape == ARGUMENTS[name].shape  # every leaf is imported by now
    before = recorder.tape.next_cell
    eval(call, names)
    assert recorder.tape.next_cell == before


@pytest.mark.parametrize("call", calls(DECIDING))
def test_a_decision_answers_as_numpy_does(call):
    expected = eval(call, variables(np.copy) | {"s": ARGUMENTS["s"]})
    found = eval(call, variables(tg.array))
    assert type(found) is type(expected)
    if isinstance(expected, tuple) and expected and isinstance(expected[0], np.ndarray):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    else:
        np.testing.assert_array_equal(found, expected)


def test_every_function_is_tested_here():
    tested = REARRANGING + COMPUTING + DECIDING
    aliases = {"min": "amin", "max": "amax", "round": "around"}
    missing = [
        function.__name__
        for function in FUNCTIONS
        if f"np.{function.__name__}(" not in tested
        and f"np.{aliases.get(function.__name__)}(" not in tested
    ]
    assert not set(missing) - {"may_share_memory", "shares_memory"}


# -- views -----------------------------------------------------------------------------------------

VIEWS = """
np.transpose(y); np.swapaxes(y, 0, 1); np.squeeze(y[None]); np.ravel(y); np.moveaxis(y, 0, 1); y.T
np.expand_dims(y, 0); np.flip(y, 1); np.reshape(y, (3, 2)); y.reshape(-1); y[::-1]; y[None, ..., 1:]
"""
COPIES = """
np.copy(y); y.copy(); y.flatten(); y[[0, 1]]; y[y > -9]; np.concatenate([y, y]); np.roll(y, 1)
np.repeat(y, 2); y.T.reshape(-1); np.take(y, [0, 1]); y.astype(float); y * 1; +y
"""


@pytest.mark.parametrize("call", calls(VIEWS) + calls(COPIES))
def test_a_view_is_one_where_numpy_gives_one(call):
    values = ARGUMENTS["x"].copy()
    expected = eval(call, {"np": np, "y": values})
    y = tg.array(ARGUMENTS["x"]) * 1
    found = eval(call, {"np": np, "y": y})
    y[...] = 7.0
    values[...] = 7.0
    np.testing.assert_array_equal(found.value, expected)
    assert (expected == 7.0).all() == (call in calls(VIEWS))


# -- exact conventions -----------------------------------------------------------------------------


def test_where_gives_nothing_to_the_branch_not_taken():
    x = tg.array([0.0, 4.0])
    with np.errstate(all="ignore"):
        np.where(x > 0, np.sqrt(x) / x, 0.0).sum().backward()
    np.testing.assert_array_equal(x.grad, [0.0, -0.5 / 8])


def test_equal_extrema_share_evenly():
    for function in (np.max, np.min, np.amax):
        x = tg.array([[2.0, 2.0, 2.0], [1.0, 1.0, 0.0]])
        function(x[0]).backward()
        np.testing.assert_allclose(x.grad, [[1 / 3] * 3, [0.0] * 3], rtol=1e-15)
    for function in (np.maximum, np.minimum, np.fmax, np.fmin):
        x, y = tg.array(1.5), tg.array(1.5)
        function(x, y).backward()
        assert (x.grad, y.grad) == (0.5, 0.5)


def test_clip_at_a_bound_is_a_half():
    x = tg.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    np.clip(x, -1.0, 1.0).sum().backward()
    np.testing.assert_array_equal(x.grad, [0.0, 0.5, 1.0, 0.5, 0.0])


def test_products_with_zeros_are_exact():
    for values, products in (([2.0, 0.0, 3.0], [0.0, 6.0, 0.0]), ([0.0, 0.0, 3.0], [0.0] * 3)):
        x = tg.array(values)
        np.prod(x).backward()
        np.testing.assert_array_equal(x.grad, products)
        x.zero_grad()
        np.cumprod(x)[-1].backward()
        np.testing.assert_array_equal(x.grad, products)


# -- nothing at all --------------------------------------------------------------------------------

EMPTY = """
np.sum(e); np.sum(e, axis=0); np.prod(e, axis=0); e.sum(1); np.cumsum(e); e.max(1)
e @ np.ones((3, 2))
np.zeros((2, 0)) @ e; np.concatenate([e, [[1.0, 2.0, 3.0]]]); np.stack([e, e]); e.T; e.reshape(3, 0)
e.ravel(); e[:, 1]; e[:, ::-1]; np.exp(e); e + 1; e * np.ones(3); e[[]]; e[:0]; np.roll(e, 1)
e.copy()
np.where(e > 0, e, 1.0); e[:, :2] * 2; e[:, 1] + 1; e[:, 1:].sum(); e[:, 2].copy(); np.diff(e)
"""


@pytest.mark.parametrize("call", calls(EMPTY))
def test_arrays_without_elements(call):
    expected = eval(call, {"np": np, "e": np.zeros((0, 3))})
    for e in (tg.array(np.zeros((0, 3))), tg.array(np.zeros((0, 3))) * 2, tg.ones((2, 3))[2:]):
        found = eval(call, {"np": np, "e": e})
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found.value, expected)


def test_the_gradient_of_nothing_is_nothing():
    x = tg.array(np.zeros((0, 3)))
    np.sum(x * 2).backward()
    assert x.grad.shape == (0, 3)
    y = tg.array([1.0, 2.0])
    (y[:0] * 2).backward(np.zeros(0))
    np.testing.assert_array_equal(y.grad, [0.0, 0.0])


def test_the_mean_of_nothing_is_nan_and_its_maximum_is_refused():
    x = tg.array(np.zeros((0, 3)))
    assert np.isnan(x.mean().item())
    with pytest.raises(ValueError, match=f"zero-size array.*{HERE}"):
        x.max()


# -- bad input -------------------------------------------------------------------------------------

BAD = {
    "np.sum(x, axis=2)": (np.exceptions.AxisError, "axis 2 is out of bounds"),
    "np.sum(x, axis=(0, 0))": (ValueError, "repeated axis"),
    "x.sum(axis=0.5)": (TypeError, "axis=0.5"),
    "x.max(axis='a')": (TypeError, "axis='a'"),
    "x.cumsum(axis=(0, 1))": (TypeError, "axis"),
    "np.cumprod(x, 2)": (np.exceptions.AxisError, "axis 2"),
    "x.reshape(4)": (ValueError, "cannot reshape array of size 6"),
    "x.reshape(-1, -1)": (ValueError, "one unknown dimension"),
    "x.reshape(1.5)": (TypeError, "integer"),
    "x.transpose(0)": (ValueError, "axes don't match"),
    "x.transpose(0, 0)": (ValueError, "repeated axis"),
    "x.swapaxes(0, 2)": (np.exceptions.AxisError, "axis"),
    "x.squeeze(0)": (ValueError, "size not equal to one"),
    "np.moveaxis(x, 3, 0)": (np.exceptions.AxisError, "axis"),
    "np.broadcast_to(x, (3, 3))": (ValueError, "broadcast"),
    "x @ x": (ValueError, "3 columns against 2 rows"),
    "x @ 2.0": (ValueError, r"use \* for products"),
    "np.ones((3, 2, 3)) @ np.stack([x.T, x.T])": (ValueError, "matmul, leading axes"),
    "x @ 'a'": (TypeError, "does not take a str"),
    "x.dot(c[:2])": (ValueError, "3 columns against 2 rows"),
    "np.where(x > 0, x, 'a')": (TypeError, "np.where"),
    "np.sum(x, where=x.value > 0)": (NotImplementedError, r"np\.where"),
    "np.sum(x, initial=1.0)": (NotImplementedError, "axis= and keepdims= only"),
    "np.clip(x, 0, 1, out=x)": (NotImplementedError, "bounds only"),
    "np.inner(x, x)": (NotImplementedError, "vectors only; use @"),
    "np.linalg.norm(x)": (NotImplementedError, r"np\.linalg\.norm is not implemented"),
    "np.fft.fft(x)": (NotImplementedError, r"np\.fft\.fft is not implemented"),
    "np.sort(x)": (NotImplementedError, r"np\.sort is not implemented"),
    "np.median(x)": (NotImplementedError, r"np\.median is not implemented"),
    "x.astype(complex)": (TypeError, "complex128"),
    "x.reshape(3, 2, order='F')": (NotImplementedError, "order='C' only"),
}


@pytest.mark.parametrize("call", BAD)
def test_bad_arguments_are_refused_and_the_tape_is_unharmed(call):
    kind, words = BAD[call]
    x = tg.array(ARGUMENTS["x"])
    y = x * x
    program = compile(call, __file__, "eval")
    with pytest.raises(kind, match=f"{words}.*{HERE}"):
        eval(program, CONSTANTS | {"x": y})
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, 2 * ARGUMENTS["x"])
