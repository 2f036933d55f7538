import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapegrad.transforms.differences import central, one_sided

FUNCTIONS = [
    (math.sin, math.cos),
    (math.exp, math.exp),
    (lambda t: t**3 + 2.0 * t, lambda t: 3.0 * t * t + 2.0),
    (lambda t: 1.0 / (2.0 + t * t), lambda t: -2.0 * t / (2.0 + t * t) ** 2),
    (lambda t: math.log(5.0 + t), lambda t: 1.0 / (5.0 + t)),
]


@given(t=st.floats(-4.0, 4.0))
def test_the_error_estimate_holds(t):
    slope, error = central(lambda t: np.array([f(t) for f, _ in FUNCTIONS]), t, 1e-8, 1e-8)
    exact = np.array([d(t) for _, d in FUNCTIONS])
    assert np.all(np.abs(slope - exact) <= error)
    assert np.all(error < 1e-7 * (1.0 + np.abs(exact)))
    for side in (-1.0, 1.0):
        slope, error = one_sided(lambda t: np.array([f(t) for f, _ in FUNCTIONS]), t, side)
        assert np.all(np.abs(slope - exact) <= error)
        assert np.all(error < 1e-5 * (1.0 + np.abs(exact)))


@pytest.mark.parametrize("t", [1e-300, 1e-8, 1e-3, 1.0, 1e300])
def test_the_end_of_a_domain_is_close(t):
    with np.errstate(all="ignore"):
        slope, error = central(lambda t: np.array([np.log(t), np.cbrt(t)]), t, 1e-6, 0.0)
        exact = np.array([1.0 / t, np.cbrt(t) / t / 3.0])
        np.testing.assert_allclose(slope, exact, rtol=1e-6)
        assert np.all(error < 1e-5 * exact)


def test_each_element_has_its_own_step():
    """A kink at 1e-4 stands in the way of wide steps, and noise in that of narrow ones."""
    noise = 1e-9
    slope, error = central(
        lambda t: np.array([abs(t - 1e-4), t + noise * math.sin(1e12 * t)]), 0.0, 1e-6, 1e-6
    )
    np.testing.assert_allclose(slope, [-1.0, 1.0], atol=1e-5)
    assert error[0] < 1e-6


def test_functions_that_are_not_differentiable_have_no_small_error():
    def g(t):
        return np.array([np.floor(t), np.cbrt(t), np.nan if t < 0.0 else t])

    slope, error = central(g, 0.0, 1e-6, 1e-6)
    assert np.all(error > 0.1 * np.abs(slope[:2]).min())
    assert error[2] == np.inf


def test_sides():
    def g(t):
        return np.array([abs(t), max(t, 0.0), np.nan if t < 0.0 else t * t])

    left, _ = one_sided(g, 0.0, -1.0)
    right, error = one_sided(g, 0.0, 1.0)
    np.testing.assert_array_equal(left, [-1.0, 0.0, np.nan])
    np.testing.assert_allclose(right, [1.0, 1.0, 0.0], atol=1e-12)
    assert np.all(error < 1e-9)
    slope, error = one_sided(lambda t: np.array([t**1.5]), 0.0, 1.0)  # converges slowly to 0
    assert abs(slope[0]) <= error[0]
