"""NumPy's ufuncs, operators and ufunc methods on tracked values, against NumPy itself."""

import operator
import os

import numpy as np
import pytest
import scipy.special

import tapegrad as tg
from tapegrad.kernels.opcodes import INTEGER_OPERAND, MULTI_UFUNCS, NONDIFF, RESULT, UFUNCS
from tapegrad.ops.row import in_domain
from tapegrad.ops.table import TABLE

HERE = os.path.basename(__file__)
POINTS = np.array([-2.5, -1.0, -0.4, -0.0, 0.0, 0.3, 1.0, 1.7, 2.0])


def function(name):
    return getattr(np, name, None) or getattr(scipy.special, name)


def same(found, expected, rtol=1e-14):
    """Assert that tracked results have the values, shapes and dtypes of NumPy's."""
    many = expected if isinstance(expected, tuple) else (expected,)
    found = found if isinstance(found, tuple) else (found,)
    assert len(found) == len(many)
    for one, other in zip(found, many, strict=True):
        assert isinstance(one, tg.Array)
        assert one.shape == np.shape(other)
        # Integers are carried as int64, whatever width NumPy gives them.
        assert one.dtype == (np.int64 if other.dtype.kind == "i" else other.dtype)
        np.testing.assert_allclose(one.value, other, rtol=rtol, atol=0)


def operands(name, dtype):
    """Return ndarrays for a ufunc, every point with every other where it takes two."""
    ufunc = function(name)
    x = POINTS.astype(dtype)
    if getattr(ufunc, "nin", 1) == 1:
        return [x]
    y = np.arange(-2, 3) if UFUNCS.get(name) in INTEGER_OPERAND else x
    return [x[:, None], y]


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


NAMES = [*(name for name in UFUNCS if UFUNCS[name] not in NONDIFF), *MULTI_UFUNCS]


@pytest.mark.parametrize("name", NAMES)
def test_a_ufunc_gives_the_values_and_dtypes_of_numpy(name):
    ufunc = function(name)
    for dtype, rtol in ((np.float64, 1e-13), (np.float32, 1e-6)):
        if dtype == np.float32 and hasattr(scipy.special, name):
            rtol = 1e-4  # SciPy computes them in single precision
        arrays = operands(name, dtype)
        expected = ufunc(*arrays)
        first = expected[0] if isinstance(expected, tuple) else expected
        tracked = [tg.array(a) if a.dtype.kind == "f" else a for a in arrays]
        same(ufunc(*tracked), expected, rtol)
        for i in ([0, 3], [5, 1], [8, 4]):  # numbers
            index = tuple(i)[: first.ndim]
            values = [np.broadcast_to(a, first.shape)[index] for a in arrays]
            tracked = [tg.array(v) if v.dtype.kind == "f" else v for v in values]
            same(ufunc(*tracked), ufunc(*values), rtol)


@pytest.mark.parametrize("name", [name for name in NAMES if getattr(function(name), "nin", 1) == 2])
def test_a_binary_ufunc_takes_constants_on_either_side(name):
    ufunc = function(name)
    x, other = POINTS[5:], np.array([[1, 2, 3, 2], [3, 1, 1, 2]])
    if UFUNCS.get(name) not in INTEGER_OPERAND:
        for constant in (2, 2.5, np.float64(1.5), np.int64(2), other, other * 0.5, True):
            same(ufunc(constant, tg.array(x)), ufunc(constant, x), 1e-13)
            same(ufunc(constant, tg.array(x[1])), ufunc(constant, x[1]), 1e-13)
    for constant in (2, np.int64(2), other):
        same(ufunc(tg.array(x), constant), ufunc(x, constant), 1e-13)
        same(ufunc(tg.array(x[1]), constant), ufunc(x[1], constant), 1e-13)


def slope(compute, point, i):
    """Return the central difference of a function with respect to operand number i."""
    h = 1e-6 * max(1.0, abs(point[i]))
    ends = [compute(*[v + sign * h * (j == i) for j, v in enumerate(point)]) for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * h)


def ordinary(number):
    """Whether a difference of 1e-6 is small beside a number, and not lost in it."""
    return number == 0.0 or 0.05 < abs(number) < 1e3


GRADIENTS = [
    (name, row, k)
    for name in NAMES
    for k, row in enumerate(MULTI_UFUNCS.get(name) or (UFUNCS[name],))
    if row not in RESULT
]


@pytest.mark.parametrize(("name", "row", "result"), GRADIENTS)
def test_a_ufunc_has_the_gradient_of_its_row(name, row, result):
    points = [p for p in TABLE[row].samples if in_domain(TABLE[row], p) and all(map(ordinary, p))]
    integer = INTEGER_OPERAND.get(row)

    def compute(*values):
        values = [int(v) if i == integer else v for i, v in enumerate(values)]
        out = function(name)(*values)
        return out[result] if isinstance(out, tuple) else out

    for point in points:
        for copies in ((), (2, 1)):  # a number, an array
            values = [tg.array(np.full(copies, v)) for v in point]
            if integer is not None:
                values[integer] = point[integer]
            np.sum(compute(*values)).backward()
            for i, value in enumerate(values):
                if i != integer:
                    expected = np.full(copies, slope(compute, point, i))
                    np.testing.assert_allclose(value.grad, expected, rtol=1e-5, atol=1e-5)


# -- operators -------------------------------------------------------------------------------------

BINARY = {
    operate.__name__: operate
    for operate in (
        *(operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv),
        *(operator.mod, operator.pow, operator.lt, operator.le, operator.gt, operator.ge),
        *(operator.eq, operator.ne),
    )
} | {"divmod": divmod}
OTHERS = [
    *(0, -0.0, 1, 2, 3, -1, 2.0, 0.5, -1.0, 10**20, 1e308, True, False, float("nan"), float("inf")),
    *(np.float64(1.5), np.float32(1.5), np.float16(1.5), np.int64(3), np.int8(2), np.uint8(3)),
    *(np.bool_(True), np.array(2.5), np.array(2), np.array(2.5, np.float32), np.array([[2.0]])),
    *(np.array([1.0, 2.0, 3.0]), np.array([1, 2, 3]), np.array([True, False, True])),
    *(np.array([[1.0], [2.0]], np.float32), np.zeros((0, 3))),
]
VALUES = [
    *(np.float64(1.75), np.float32(-1.5), np.array([1.75, -2.0, 0.0]), np.zeros((0, 3))),
    *(np.array([1.75, -2.0, 0.5], np.float32), np.arange(6.0).reshape(2, 3)),
]


def outcome(compute):
    try:
        return compute()
    except (TypeError, ValueError, OverflowError) as error:
        return type(error)


# Before 2.3, NumPy's ** took a power of no axes for a Python number, and lost its dtype.
OLD_POWERS = np.lib.NumpyVersion(np.__version__) < "2.3.0"


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_an_operator_gives_what_numpy_gives(name, value):
    operate = BINARY[name]
    for other in OTHERS:
        if name == "pow" and OLD_POWERS and isinstance(other, (np.ndarray, np.generic)):
            continue
        for tracked in (tg.array(value), tg.array(value) * 1):
            for swap in (False, True):
                pair = (other, value) if swap else (value, other)
                expected = outcome(lambda pair=pair: operate(*pair))
                pair = (other, tracked) if swap else (tracked, other)
                found = outcome(lambda pair=pair: operate(*pair))
                if isinstance(expected, type):
                    assert found is expected, (name, other, swap)
                else:
                    # Powers of float32 are computed in double precision, then rounded.
                    same(found, expected, 1e-6 if value.dtype == np.float32 else 1e-15)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow"])
@pytest.mark.parametrize("value", [np.array([1.75, 2.0, 0.5]), np.array([1.5, 2, 3], np.float32)])
def test_an_in_place_operator_keeps_the_array_and_its_dtype(name, value):
    operate = getattr(operator, f"i{name}")
    for other in (2, 0.5, np.float64(1.5), np.array([1.0, 2.0, 3.0]), np.array([2, 1, 2])):
        y = tg.array(value) * 1
        view, same_one = y[::-1], y
        y = operate(y, other)
        assert y is same_one
        expected = operate(value.copy(), other)
        assert y.dtype == expected.dtype
        np.testing.assert_allclose(y.value, expected, rtol=1e-6)
        np.testing.assert_array_equal(view.value, y.value[::-1])


@pytest.mark.parametrize("compare", [np.less, np.less_equal, np.equal, np.not_equal])
def test_numbers_that_singles_are_compared_with_are_rounded_as_numpy_rounds_them(compare):
    value = np.array([0.9, 0.5, 0.3], np.float32)
    for number in (0.9, 0.3, 0.1):
        same(compare(tg.array(value), number), compare(value, number))
        same(compare(number, tg.array(value)), compare(number, value))


def test_in_place_operators_of_numbers_make_new_numbers():
    x = tg.array(2.0)
    y = x
    y += 1
    y *= np.array([1.0, 2.0])
    assert x.item() == 2.0
    np.testing.assert_array_equal(y.value, [3.0, 6.0])


@pytest.mark.parametrize("other", ["a", None, 1j, object(), {}], ids=lambda x: type(x).__name__)
def test_foreign_operands_are_refused(other):
    for x in (tg.array(2.0), tg.array([1.0, 2.0]), tg.array([1.0, 2.0]) * 1):
        for operate in (operator.add, operator.sub, operator.truediv, operator.pow, operator.lt):
            with pytest.raises(TypeError):
                operate(x, other)
            with pytest.raises(TypeError):
                operate(other, x)
        with pytest.raises(TypeError):
            np.multiply(x, other)
        assert (x == other) is False
        assert (x != other) is True


@pytest.mark.parametrize(
    "other", [np.array([1j]), np.array([None]), np.array(["a"]), np.array([1.0], np.longdouble)],
    ids=lambda a: str(a.dtype),
)  # fmt: skip
def test_operand_arrays_of_other_dtypes_are_refused(other):
    if other.dtype == np.float64:
        pytest.skip("long double is double on this platform")
    for x in (tg.array(2.0), tg.array([1.0])):
        for operate in (operator.add, operator.mul, np.maximum):
            for pair in ((x, other), (other, x)):
                with pytest.raises(TypeError, match=f"not supported together.*{HERE}"):
                    operate(*pair)


def test_shapes_that_do_not_broadcast_are_refused_and_the_tape_is_unharmed():
    x = tg.array([1.0, 2.0, 3.0])
    y = x * x
    for bad in (np.ones(2), tg.array([1.0, 2.0]), np.ones((2, 4))):
        for operate in (operator.add, np.hypot, operator.lt, np.add):
            with pytest.raises(ValueError, match=rf"could not be broadcast.*{HERE}"):
                operate(y, bad)
        with pytest.raises(ValueError, match=HERE):
            y += bad
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [2.0, 4.0, 6.0])


def test_truth_values():
    x = tg.array([1.0, 2.0, 3.0])
    low, high = x < 2, x > 2
    np.testing.assert_array_equal((low | high).value, [True, False, True])
    np.testing.assert_array_equal((low & high).value, [False] * 3)
    np.testing.assert_array_equal((low ^ True).value, [False, True, True])
    np.testing.assert_array_equal(
        (np.array([True, False, True]) & ~low).value, [False, False, True]
    )
    np.testing.assert_array_equal((low + high).value, [True, False, True])
    assert (low * 1).dtype == np.int64
    assert (low * 1.5).dtype == np.float64
    assert high.sum().item() == 1
    with pytest.raises(TypeError, match="bitwise_xor"):
        operator.sub(low, high)
    with pytest.raises(TypeError, match="logical_not"):
        operator.neg(low)
    for operate in (lambda: x & low, lambda: ~x, lambda: 1.0 | x):
        with pytest.raises(TypeError, match=rf"compare first.*{HERE}"):
            operate()


# -- out=, where=, dtype= and methods --------------------------------------------------------------


def test_out_renames_the_elements_of_a_tracked_array():
    x, y = tg.array([1.0, 2.0]), tg.zeros(2)
    view = y[:1]
    assert np.multiply(x, x, out=y) is y
    assert view.value == [1.0]
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [2.0, 4.0])
    whole, rest = np.divmod(x, 2.0, out=(None, y))
    assert rest is y
    np.testing.assert_array_equal(whole.value, [0.0, 1.0])


def test_where_with_out_keeps_the_other_elements():
    x, y = tg.array([1.0, 2.0, 3.0]), tg.ones(3)
    np.square(x, out=y, where=[True, False, True])
    np.testing.assert_array_equal(y.value, [1.0, 1.0, 9.0])
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [2.0, 0.0, 6.0])


def test_bad_out_and_where_are_refused():
    x = tg.array([1.0, 2.0])
    values = np.zeros(2)
    with pytest.raises(TypeError, match=rf"tg\.zeros.*{HERE}"):
        np.sin(x, out=values)
    with pytest.raises(TypeError, match=rf"tg\.zeros.*{HERE}"):
        values += x
    assert not values.any()
    with pytest.raises(ValueError, match=rf"non-broadcastable output.*{HERE}"):
        np.sin(x, out=tg.zeros(3))
    with pytest.raises(ValueError, match=rf"np\.where.*{HERE}"):
        np.sin(x, where=[True, False])
    with pytest.raises(RuntimeError, match=rf"leaf.*{HERE}"):
        np.sin(x, out=x)


def test_dtype_casts_the_result():
    x = tg.array([1.0, 2.0])
    y = np.divide(x, 3, dtype=np.float32)
    assert y.dtype == np.float32
    assert np.add(x, x, dtype=float).dtype == np.float64
    with pytest.raises(TypeError, match=rf"astype.*{HERE}"):
        np.add(x, x, dtype=int)


def test_reduce_accumulate_and_outer():
    values = np.array([[1.0, 4.0, 2.0], [3.0, 0.5, 6.0]])
    x = tg.array(values)
    for ufunc in (np.add, np.multiply, np.maximum, np.minimum):
        same(ufunc.reduce(x), ufunc.reduce(values))
        same(ufunc.reduce(x, axis=1, keepdims=True), ufunc.reduce(values, axis=1, keepdims=True))
        same(ufunc.reduce(x, axis=None), ufunc.reduce(values, axis=None))
    same(np.add.accumulate(x, axis=1), np.add.accumulate(values, axis=1))
    same(np.multiply.accumulate(x), np.multiply.accumulate(values))
    for ufunc in (np.subtract, np.power, np.arctan2):
        for other in (2.0, [1.0, 2.0], np.arange(4.0).reshape(2, 2), x):
            plain = other.value if other is x else other
            same(ufunc.outer(x, other), ufunc.outer(values, plain), 1e-14)
            same(ufunc.outer(other, x), ufunc.outer(plain, values), 1e-14)


UNKNOWN = {
    "np.add.reduceat": lambda x: np.add.reduceat(x, [0, 1]),
    "np.add.at": lambda x: np.add.at(x, [0], 1),
    "np.subtract.reduce": lambda x: np.subtract.reduce(x),
    "np.maximum.accumulate": lambda x: np.maximum.accumulate(x),
    "np.add.reduce with initial=": lambda x: np.add.reduce(x, initial=3.0),
    "np.add.reduce with where=": lambda x: np.add.reduce(x, where=[True, False]),
    "np.sin with casting=": lambda x: np.sin(x, casting="no"),
    "np.gcd": lambda x: np.gcd(x, x),
    "np.isnat": lambda x: np.isnat(x),
    "np.jv": lambda x: scipy.special.jv(0, x),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_missing_is_named(what):
    x = tg.array([1.0, 2.0])
    name = what.replace("+", r"\+")
    with pytest.raises(tg.NotDifferentiableError, match=rf"{name}.*\.value.*{HERE}"):
        UNKNOWN[what](x)


@pytest.mark.parametrize("name", [name for name in UFUNCS if UFUNCS[name] in NONDIFF])
def test_what_has_no_derivative_says_so_and_works_under_no_grad(name):
    ufunc, x = function(name), tg.array([1.0, 2.0])
    arguments = (x, 3.0)[: ufunc.nin]
    with pytest.raises(tg.NotDifferentiableError, match=rf"{name} has no derivative.*{HERE}"):
        ufunc(*arguments)
    with tg.no_grad():
        found = ufunc(*arguments).value
    np.testing.assert_array_equal(found, ufunc(*(x.value, 3.0)[: ufunc.nin]))


def test_an_integer_operand_must_be_one():
    x = tg.array([1.0, 2.0])
    for bad in (1.5, x, np.ones(2)):
        with pytest.raises(TypeError, match=rf"operand number 2 must be an integer.*{HERE}"):
            np.ldexp(x, bad)


# -- powers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, -1, -2, 7, 2.0, 0.5, -1.0, 1.0, 0.0, 2.5])
def test_powers_by_a_constant(exponent):
    values = np.array([0.5, 1.25, 3.0])
    for x in (tg.array(values), *(tg.array(v) for v in values)):
        y = x**exponent
        same(y, x.value**exponent, 1e-15)
        np.sum(y).backward()
        expected = exponent * x.value ** (exponent - 1.0)
        np.testing.assert_allclose(x.grad, expected, rtol=1e-14)


def test_powers_at_zero():
    for exponent, slope in ((0, 0.0), (1, 1.0), (2, 0.0), (3, 0.0), (0.5, np.inf), (1.5, 0.0)):
        for x in (tg.array(0.0), tg.array([0.0])):
            np.sum(x**exponent).backward()
            assert x.grad == slope, exponent


def test_integer_powers_of_negative_numbers_are_differentiable():
    x = tg.array([-2.0, -0.5])
    (x**3 + x**-2).sum().backward()
    np.testing.assert_allclose(x.grad, 3 * x.value**2 - 2 / x.value**3, rtol=1e-15)
    x.zero_grad()
    (x ** np.array([3, 2])).sum().backward()
    np.testing.assert_allclose(x.grad, [12.0, -1.0], rtol=1e-14)


def test_integer_powers_are_exact():
    # 3**33 is the largest power of 3 that a float64 holds exactly; pow() may miss it.
    assert (tg.array(3.0) ** 33).item() == float(3**33)
