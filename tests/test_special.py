import inspect

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad import special
from tapegrad.ops.table import FAMILIES, TABLE

UNARY = [name for name in special.__all__ if name not in ("polygamma", "xlogy", "xlog1py")]
SCIPY = {"lgamma": "gammaln", "softplus": None, "sinc": None}  # by another name, or not at all
POINTS = np.array([0.1, 0.35, 0.8])  # inside the domain of every function

inside = st.floats(0.05, 0.95)


def oracle(name):
    if name == "softplus":
        return lambda x: np.logaddexp(0.0, x)
    return np.sinc if name == "sinc" else getattr(scipy.special, SCIPY.get(name, name))


@pytest.mark.parametrize("name", special.__all__)
def test_docs_are_those_of_the_table(name):
    doc = inspect.getdoc(getattr(special, name)).splitlines()[0]
    row = TABLE[name].doc
    if name == "polygamma":  # whose operands SciPy calls n and x, not x and y
        row = row.replace("x times, at y; x is", "n times, at x; n is")
    assert doc == row


def test_every_special_row_is_here():
    rows = {row.name for row in FAMILIES["Special functions"]}
    assert rows - {"adjoint_divide", "adjoint_multiply", "sinc_derivative"} == set(special.__all__)


@pytest.mark.parametrize("name", UNARY)
def test_value_and_gradient_of_arrays_and_numbers(name):
    function = getattr(special, name)
    expected = oracle(name)(POINTS)
    np.testing.assert_allclose(function(POINTS), expected, rtol=1e-13)
    np.testing.assert_allclose(function(tg.array(POINTS)).value, expected, rtol=1e-13)
    assert function(0.35) == function(POINTS)[1] == function(np.float64(0.35))
    assert type(function(0.35)) is float
    tg.check_gradients(function, POINTS)
    tg.check_gradients(function, 0.35)


@given(x=inside, y=inside)
@pytest.mark.parametrize("name", ["xlogy", "xlog1py"])
def test_functions_of_two_numbers(name, x, y):
    function = getattr(special, name)
    assert function(x, y) == pytest.approx(getattr(scipy.special, name)(x, y), rel=1e-14)
    tg.check_gradients(function, x, y)


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_polygamma(n):
    np.testing.assert_allclose(
        special.polygamma(n, POINTS), scipy.special.polygamma(n, POINTS), rtol=1e-12
    )
    gradient = tg.grad(lambda x: np.sum(special.polygamma(n, x)))(POINTS)
    np.testing.assert_allclose(gradient, scipy.special.polygamma(n + 1, POINTS), rtol=1e-12)


def test_polygamma_of_several_orders():
    n = np.array([1, 2])
    expected = scipy.special.polygamma(n, 0.5)
    np.testing.assert_allclose(special.polygamma(n, 0.5), expected, rtol=1e-12)
    np.testing.assert_allclose(special.polygamma(n, tg.array(0.5)).value, expected, rtol=1e-12)


@pytest.mark.parametrize("n", [1.5, tg.array(1.0), np.array([1.0, 0.5])])
def test_the_order_of_polygamma_is_an_integer(n):
    with pytest.raises(TypeError, match=r"n must be an integer.*test_special\.py"):
        special.polygamma(n, 1.0)


@pytest.mark.parametrize("name", ["erf", "erfc", "gamma", "gammaln", "psi", "expit", "logit",
                                  "log_expit"])  # fmt: skip
def test_ufuncs_of_scipy_record_the_same(name):
    ufunc = getattr(scipy.special, name)
    ours = getattr(special, {"gammaln": "lgamma", "psi": "digamma"}.get(name, name))
    x = tg.array(POINTS)
    np.testing.assert_array_equal(ufunc(x).value, ours(x).value)
    assert ufunc(x[0]).value == ours(x[0]).value
    gradients = [tg.grad(lambda x, f=f: np.sum(f(x)))(POINTS) for f in (ufunc, ours)]
    np.testing.assert_array_equal(*gradients)
    tg.check_gradients(ufunc, POINTS)


@pytest.mark.parametrize("name", ["xlogy", "xlog1py"])
def test_binary_ufuncs_of_scipy_record_the_same(name):
    ufunc, ours = getattr(scipy.special, name), getattr(special, name)
    x = tg.array(POINTS)
    for operands in [(x, x[::-1]), (2.0, x), (x, 2.0), (x[0], x[1])]:
        np.testing.assert_array_equal(ufunc(*operands).value, ours(*operands).value)


def test_dtypes():
    single = POINTS.astype(np.float32)
    assert special.erf(single).dtype == np.float32
    assert special.erf(tg.array(single)).dtype == np.float32
    assert special.erf(np.array([1, 2])).dtype == np.float64
    assert special.erf([0.0, 1.0]).shape == (2,)
    assert special.xlogy(POINTS[:, None], POINTS).shape == (3, 3)


def test_extremes_neither_raise_nor_warn():
    assert special.gamma(np.array([0.0, 200.0])).tolist() == [np.inf, np.inf]
    assert special.logit(np.array([0.0, 1.0])).tolist() == [-np.inf, np.inf]
    assert np.isnan(special.erf(float("nan")))


@pytest.mark.parametrize("x", [1j, np.array([1j]), "a", np.array(["a"])])
def test_what_is_no_real_number_is_refused(x):
    with pytest.raises(TypeError):
        special.erf(x)


def test_an_unknown_companion_of_a_tracked_value_is_refused():
    with pytest.raises(TypeError, match="xlogy takes numbers and arrays"):
        special.xlogy(tg.array(1.0), object())
