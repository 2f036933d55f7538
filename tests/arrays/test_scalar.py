"""Tracked numbers: the short cuts of the recorder give what the general way gives."""

import operator
import os
import random
import signal
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad import recording, tape
from tapegrad.kernels.opcodes import UFUNCS
from tapegrad.tape import recorder

HERE = os.path.basename(__file__)

OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow]
CONSTANTS = st.one_of(
    st.sampled_from([0, 0.0, -0.0, 1, -1, 2, 3, -2, 0.5, True, False, 10**20, 1e308, 5e-324]),
    st.floats(allow_nan=False, width=32),
    st.integers(-5, 5),
)


def swapped(operate):
    return lambda x, y: operate(y, x)


def outcome(compute, *operands):
    with np.errstate(all="ignore"):
        try:
            return np.float64(compute(*operands))
        except OverflowError:
            return OverflowError


@given(
    st.floats(-100, 100), CONSTANTS, st.sampled_from(OPERATORS), st.booleans(), st.integers(1, 2)
)
def test_operators_with_python_numbers_are_those_of_numpy(value, constant, operate, swap, times):
    """Whether the constant is new to the tape or known, and whichever sign its zero has."""
    plain = np.float64(value)
    x = tg.array(value)
    if swap:
        operate = swapped(operate)
    expected = outcome(operate, plain, constant)
    for _ in range(times + 1):
        found = outcome(lambda *pair: operate(*pair).value, x, constant)
        x = x * 1  # a leaf the first time, a value of the tape from then on
        if expected is OverflowError:
            assert found is OverflowError
            continue
        np.testing.assert_allclose(found, expected, rtol=1e-15)
        assert np.signbit(found) == np.signbit(expected) or np.isnan(expected)


@given(st.lists(st.sampled_from([0.0, -0.0, 1.5, -2.0, 3]), min_size=1, max_size=6))
def test_zeros_of_both_signs_stay_apart_among_constants(constants):
    x = tg.array(1.0) * 1
    found = [(x * c).value for c in constants] + [(c / x).value for c in constants]
    expected = [1.0 * c for c in constants] + [c / 1.0 for c in constants]
    assert [str(f) for f in found] == [str(np.float64(e)) for e in expected]


def test_a_short_cut_records_what_the_general_way_records():
    x, y = tg.array(1.25) * 1, tg.array(-0.5) * 1
    pairs = [
        (lambda: x + y, ("add", x, y)),
        (lambda: x - 2.5, ("subtract", x, 2.5)),
        (lambda: 2 / x, ("divide", 2, x)),
        (lambda: -x, ("negative", x)),
        (lambda: abs(y), ("absolute", y)),
        (lambda: x**2, ("square", x)),
        (lambda: x**3, ("integer_power", x, 3)),
        (lambda: np.sin(x), ("sin", x)),
        (lambda: np.hypot(x, y), ("hypot", x, y)),
        (lambda: np.maximum(x, 0.5), ("maximum", x, 0.5)),
        (lambda: x < y, ("less", x, y)),
        (lambda: x >= 1.0, ("greater_equal", x, 1.0)),
    ]
    for short, (row, *operands) in pairs:
        instructions = []
        for make in (
            short,
            lambda row=row, operands=operands: recording.elementwise(row, *operands),
        ):
            recorder.tape.flush()
            make()
            instructions.append(tuple(recorder.tape.code))
        assert instructions[0] == instructions[1], row


@pytest.mark.parametrize("name", sorted(name for name in UFUNCS if hasattr(np, name)))
def test_ufuncs_of_numbers_are_those_of_one_element_arrays(name):
    ufunc = getattr(np, name)
    if UFUNCS[name] in recording.NONDIFF or not isinstance(ufunc, np.ufunc):
        return
    second = (2,) if ufunc.nin == 2 else ()
    results = []
    for x in (tg.array(0.75), tg.array([0.75])):
        with np.errstate(all="ignore"):
            y = ufunc(x * 1, *second)
        np.sum(y).backward()
        results.append((np.float64(np.sum(y.value)), np.float64(np.sum(x.grad))))
    np.testing.assert_array_equal(results[0], results[1])


# -- a long loop -----------------------------------------------------------------------------------


def test_scalars_across_blocks_and_segments(monkeypatch):
    """A loop that fills many blocks, and turns over to new tapes on the way."""
    monkeypatch.setattr(tape, "SEGMENT_CELLS", 20_000)
    x = tg.array(1.0)
    y, expected = x, 1.0
    for i in range(30_000):
        y = y * 0.9999 + 0.5 * x if i % 7 else np.sin(y) + x
        expected = expected * 0.9999 + 0.5 if i % 7 else np.sin(expected) + 1.0
    assert y.item() == pytest.approx(expected, rel=1e-12)
    y.backward()
    h = 1e-7

    def plain(x):
        y = x
        for i in range(30_000):
            y = y * 0.9999 + 0.5 * x if i % 7 else np.sin(y) + x
        return y

    slope = plain(1.0 + 1e-20j).imag / 1e-20
    assert x.grad == pytest.approx(slope, rel=1e-9)
    assert x.grad == pytest.approx((plain(1 + h) - plain(1 - h)) / (2 * h), rel=1e-4)


def test_many_different_constants():
    x = tg.array(0.5)
    numbers = random.Random(1).sample(range(10**6), 20_000)
    y = sum(x * (n + 0.5) for n in numbers)
    y.backward()
    assert x.grad == sum(n + 0.5 for n in numbers)


# -- numbers as arrays without axes ----------------------------------------------------------------


def test_indexing_a_number():
    s = tg.array(2.0)
    value = np.float64(2.0)
    for x in (s, s * 1):
        for key in ((), ..., (...,), None, (None, None), (..., None), (None, ...), True, False):
            expected = value[key]
            assert x[key].shape == np.shape(expected)
            np.testing.assert_array_equal(x[key].value, expected)
        for key in (0, slice(None), (0, 0), [0], (None, 0), "a"):
            with pytest.raises(IndexError, match=HERE):
                x[key]
        with pytest.raises(TypeError, match="item assignment"):
            x[()] = 1.0
    (s[None] * s[None, None]).backward([[3.0]])
    assert s.grad == 12.0


def test_shapes_of_a_number():
    s = tg.array(2.0)
    for y in (s.T, s.transpose(), s.squeeze(), s.reshape(()), s.copy(), s[...]):
        assert y.shape == ()
        y.backward()
    assert s.grad == 6.0
    for y in (s.reshape(1), s.ravel(), s.flatten(), s.reshape(-1), s.cumsum()):
        assert y.shape == (1,)
        y.backward([1.0])
    assert s.grad == 11.0
    assert s.sum().item() == s.mean().item() == s.max().item() == s.prod().item() == 2.0
    with pytest.raises(ValueError, match=f"cannot reshape.*{HERE}"):
        s.reshape(2)


def test_a_single_precision_number():
    s = tg.array(np.float32(1.5))
    y = s * s + 1
    assert y.dtype == np.float32
    assert y.shape == ()
    y.backward()
    assert s.grad == np.float32(3.0)
    assert isinstance(s.grad, np.float32)


def test_python_functions_on_tracked_numbers():
    x = tg.array([3.0, 1.0, 2.0])
    numbers = list(x)
    (sum(numbers) + max(numbers) * 10 + min(numbers) * 100 + abs(-numbers[2])).backward()
    np.testing.assert_array_equal(x.grad, [11.0, 101.0, 2.0])
    assert [n.item() for n in sorted(numbers)] == [1.0, 2.0, 3.0]
    assert pow(x[0], 2).item() == 9.0
    assert divmod(x[0], 2.0)[1].item() == 1.0


# -- interruption ----------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="needs setitimer")
def test_an_interrupted_recording_stays_usable():
    """Ctrl-C at any moment of a recording loop leaves a tape on which all goes on."""
    x = tg.array(1.0)
    previous = signal.getsignal(signal.SIGALRM)

    def interrupt(number, frame):
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    try:
        for attempt in range(40):
            x.zero_grad()
            y, total = x * 1, x * 0
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.002 + 0.0003 * attempt)
                for _ in range(10**7):
                    y = -(y * 0.5 + 1.0)
                    total = total + np.cos(y)
            except KeyboardInterrupt:
                pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            z = x * 3.0 + x
            assert z.item() == 4.0
            z.backward()
            assert x.grad == 4.0
            assert abs(y.item()) <= 2.0
            y.backward()
            assert abs(x.grad - 4.0) <= 1.0
    finally:
        signal.signal(signal.SIGALRM, previous)
