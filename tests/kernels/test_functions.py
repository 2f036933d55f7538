"""The guarded functions answer as IEEE 754 does, and functions with loops end for every input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tapegrad.kernels import functions, guarded

NUMBERS = (
    *(0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 3.0, -3.0, 1e-310, 1e300, -1e300, 800.0),
    *(math.inf, -math.inf, math.nan),
)
UNARY = {
    **{name: name for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp", "expm1")},
    **{name: name for name in ("arcsin", "arccos", "arctan", "arcsinh", "arccosh", "arctanh")},
    **{name: name for name in ("log", "log2", "log10", "log1p", "sqrt")},
}


def close(got: float, want: float) -> bool:
    if math.isnan(want):
        return math.isnan(got)
    if want == 0.0 or math.isinf(want):
        return got == want and math.copysign(1.0, got) == math.copysign(1.0, want)
    return got == pytest.approx(want, rel=1e-15)


@pytest.mark.parametrize("name", list(UNARY))
def test_guarded_functions_answer_as_numpy(name: str) -> None:
    for x in NUMBERS:
        with np.errstate(all="ignore"):
            want = float(getattr(np, name)(x))
        assert close(getattr(guarded, name)(x), want), (x, want)


@pytest.mark.parametrize("name", ["divide", "power"])
def test_guarded_operators_answer_as_numpy(name: str) -> None:
    for x in NUMBERS:
        for y in NUMBERS:
            if (name, y) == ("power", 0.5) and x in (0.0, -math.inf):
                continue  # There NumPy takes a square root, which differs from C's pow.
            with np.errstate(all="ignore"):
                want = float(getattr(np, name)(x, y))
            assert close(getattr(guarded, name)(x, y), want), (x, y, want)


def test_guarded_conversions() -> None:
    assert guarded.float32(0.1) == float(np.float32(0.1))
    assert guarded.float32(-1e300) == -math.inf
    assert guarded.scale(-1.0, 5000) == -math.inf
    assert (guarded.gamma(-0.0), guarded.gamma(1e300)) == (-math.inf, math.inf)
    assert guarded.lgamma(-2.0) == math.inf


@pytest.mark.parametrize("name", ["polygamma", "sinc_derivative", "integer_power", "ldexp"])
def test_functions_of_an_integer_end_for_any_number(name: str) -> None:
    function = getattr(functions, name)
    for x in (*NUMBERS, 1e15, 151.0):
        for y in (*NUMBERS, 1e15, -1e15 - 0.5):
            assert isinstance(function(x, y), float)


def test_every_function_takes_every_number() -> None:
    for name in ("digamma", "cbrt", "logit", "expit", "log_expit", "softplus", "sinc", "rint"):
        for x in NUMBERS:
            assert isinstance(getattr(functions, name)(x), float)


def test_integer_powers_are_exact() -> None:
    assert functions.integer_power(3.0, 5.0) == 243.0
    assert functions.integer_power(-2.0, -3.0) == -0.125
    # The reciprocal of a power that overflows would be 0.
    assert functions.integer_power(1e160, -2.0) == pytest.approx(1e-320, rel=1e-3)
