import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad.kernels import opcodes, reference, rules
from tapegrad.ops import structural
from tapegrad.ops.table import TABLE
from tapegrad.transforms.checking import ANALYTIC

X = np.array([0.3, 0.6, 0.85])


@pytest.fixture
def wrong_cosh(monkeypatch):
    """Give cosh the derivative -sinh, as a shipped library once had it."""

    def contribution(w, x, out):
        return (-w * float(np.sinh(x)),)

    table = list(rules.CONTRIBUTIONS)
    table[opcodes.COSH] = contribution
    monkeypatch.setattr(rules, "CONTRIBUTIONS", tuple(table))
    monkeypatch.setattr(reference, "CONTRIBUTIONS", tuple(table))
    with tg.executor("reference"):
        yield


@pytest.fixture
def wrong_cumsum(monkeypatch):
    row = structural.STRUCTURAL["cumsum"]
    monkeypatch.setattr(row, "vjp", lambda g, out, x, axis: (np.cumsum(g, axis=axis),))


# -- right gradients -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "f",
    [
        lambda x: np.sin(x) * np.exp(-x) + x**3 - 1.0 / x,
        lambda x: np.log(x) @ np.sqrt(x),
        lambda x: np.cumprod(x) + np.prod(x) - np.cumsum(x)[::-1],
        lambda x: np.arctanh(x) / np.arcsinh(x) + np.sinc(x) ** 1.5,
        lambda x: (x[0] * x[1]).reshape(1) + x.reshape(3, 1),
        lambda x: np.power(2.0, x) + x.sum(),
        lambda x: [x[0], x[1] * x[2], 1.0],
    ],
)
def test_analytic_functions_by_the_complex_step(f):
    check = tg.check_gradients(f, X)
    assert check.method == "complex step"
    assert check.largest_error < 1e-13
    assert check.unresolved == 0


def loop(x):
    total = x[0]
    while total < 5.0:
        total = total * 1.5 + x[1]
    return total


@pytest.mark.parametrize(
    "f",
    [
        loop,
        lambda x: x[0] ** 2 if x[0] > x[1] else x[0] * x[1],
        lambda x: np.abs(x - 0.5) + np.maximum(x, 0.5) * np.minimum(x, 0.7),
        lambda x: tg.special.erf(x) + tg.special.gamma(x),
        lambda x: np.hypot(x, 2.0) + np.arctan2(x, x[::-1]) + np.degrees(x),
        lambda x: np.where(x > 0.5, np.log(x), x),
        lambda x: np.max(x) - np.min(x),
        lambda x: np.floor(x * 9.0) + (x * 10.0) % 2.2,
    ],
)
def test_other_functions_by_differences(f):
    check = tg.check_gradients(f, X)
    assert check.method == "central differences"
    assert check.largest_error < 1e-8
    assert check.unresolved == 0


def test_assignment_of_elements():
    def f(x):
        y = tg.zeros(3)
        y[0], y[1:] = x[0] * x[1], x[1:] ** 2
        return y

    assert tg.check_gradients(f, X).count == 9


def test_functions_that_need_tracked_values():
    assert tg.check_gradients(lambda x: x * x.copy().squeeze() + 0.0 * x.value, X).count == 9


rows = st.sampled_from(sorted(n for n, r in TABLE.items() if r.arity == 1 and r.differentiable))


@given(name=rows, data=st.data())
def test_every_row_at_its_samples(name, data):
    row = TABLE[name]
    (x,) = data.draw(st.sampled_from([point for point in row.samples if abs(point[0]) < 1e12]))
    with np.errstate(all="ignore"):
        tg.check_gradients(lambda x: tg.recording.elementwise(name, tg.array(x)), x)


unary = st.sampled_from([np.sin, np.cos, np.exp, np.tanh, np.arctan, np.abs, np.square, np.log1p])
binary = st.sampled_from([np.add, np.multiply, np.subtract, np.maximum, np.hypot, np.logaddexp])


@given(
    steps=st.lists(st.tuples(binary, unary, st.integers(0, 9), st.integers(0, 9)), max_size=6),
    x=st.lists(st.floats(0.1, 2.0), min_size=1, max_size=4),  # at 0, kinks would meet
)
def test_random_programs(steps, x):
    def f(x):
        values = [x, x[::-1] * 0.5]
        for combine, transform, i, j in steps:
            values.append(transform(combine(values[i % len(values)], values[j % len(values)])))
        return values[-1]

    # Steeper functions oscillate faster than the differences' steps.
    assume(np.all(np.abs(tg.jacobian(f)(np.array(x))) < 1e4))
    assert tg.check_gradients(f, np.array(x)).count == len(x) ** 2


def test_the_complex_step_takes_any_slope():
    check = tg.check_gradients(lambda x: np.sin(np.exp(np.exp(x))), 4.0)
    assert check.method == "complex step"


def test_structured_arguments_and_outputs():
    @dataclasses.dataclass
    class Point:
        u: float
        v: float

    def f(p, n, q):
        return {"a": p["w"] @ p["b"] * n, "c": (q.u * q.v, 3.0), "d": None}

    p, q = {"w": np.ones((2, 3)), "b": [1, 2, 3]}, Point(2.0, 3.0)
    assert tg.check_gradients(f, p, 2, q).count == 4 * 12
    assert tg.check_gradients(f, p, 2, q, argnums=0).count == 4 * 9
    assert tg.check_gradients(f, p, 2, q, argnums=(2, 1)).count == 4 * 3


def test_single_precision_is_compared_loosely():
    x = X.astype(np.float32)
    for f in (lambda x: np.exp(x) * np.sum(x), lambda x: np.abs(x) * np.sum(x)):
        assert 1e-9 < tg.check_gradients(f, x).largest_error < 1e-5
        with pytest.raises(tg.GradientMismatch):
            tg.check_gradients(f, x, rtol=1e-12)


def test_nothing_is_left_behind():
    tg.tape.recorder.turn_over()
    y = tg.array(2.0)
    tape = tg.tape.recorder.tape
    x = X.copy()
    tg.check_gradients(lambda x: np.sum(np.abs(x)), x)
    assert tg.tape.recorder.tape is tape
    assert not tape.code
    np.testing.assert_array_equal(x, X)
    (y * y).backward()
    assert y.grad == 4.0


def test_functions_without_inputs_or_outputs():
    assert tg.check_gradients(lambda x: x, np.zeros(0)).count == 0
    assert tg.check_gradients(lambda x: x[:0], X).count == 0
    assert tg.check_gradients(lambda x: 5.0, X).largest_error == 0.0


# -- kinks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "unresolved"),
    [
        (np.abs, 0),  # the convention is what central differences give
        (lambda x: np.maximum(x, 0.0), 0),
        (lambda x: np.where(x > 0.0, x, 0.1 * x), 1),
        (np.floor, 1),
        (np.sqrt, 1),
        (np.cbrt, 1),
        (lambda x: np.hypot(x, 0.0), 0),
        (lambda x: x * np.abs(x) ** 0.5, 1),  # differences converge too slowly
        (lambda x: np.log(x - 1.0), 1),  # not defined
    ],
)
def test_conventions_at_zero_are_no_fault(f, unresolved):
    assert tg.check_gradients(f, 0.0).unresolved == unresolved
    smooth = tg.check_gradients(f, np.array([0.0, 1.5]))
    assert smooth.unresolved >= unresolved


def test_what_is_outside_a_kink_is_a_mismatch():
    def f(x):  # the slopes at zero are 0.1 and 1; the sweep sees 2
        return np.where(x > 0.0, x, 0.1 * x) if not isinstance(x, tg.Array) else 2.0 * x

    with pytest.raises(tg.GradientMismatch, match=r"is 2\.0 by the reverse sweep"):
        tg.check_gradients(f, 0.0)


def test_nan_gradients_of_smooth_functions_are_a_mismatch():
    def f(x):  # the sweep multiplies inf by 0
        return np.sqrt(x * x) if isinstance(x, tg.Array) else x * 1.0

    with pytest.raises(tg.GradientMismatch, match="is nan by the reverse sweep"):
        tg.check_gradients(f, 0.0)


# -- faults ----------------------------------------------------------------------------------------


def test_a_wrong_scalar_rule_is_named(wrong_cosh):
    with pytest.raises(tg.GradientMismatch) as caught:
        tg.check_gradients(lambda p: p["a"] * np.sin(np.cosh(p["b"][1])), {"a": 2.0, "b": X})
    (fault,) = caught.value.faults
    assert (fault.row, fault.operands) == ("cosh", (0.6,))
    message = str(caught.value)
    assert "d output / d argument 0['b'][1] is" in message
    assert "1 of 4 derivatives differ" in message
    assert f"cosh(x=0.6), instruction {fault.instruction}: its partial with respect to x" in message
    assert "test_checking.py" in message


def test_a_wrong_array_rule_is_named(wrong_cosh):
    with pytest.raises(tg.GradientMismatch, match=r"cosh\(x=0\.3\)") as caught:
        tg.check_gradients(lambda x: np.exp(np.cosh(np.sin(x)[::-1] * 0.0 + x) * 2.0) @ x, X)
    assert [fault.row for fault in caught.value.faults] == ["cosh"]


def test_a_wrong_rule_in_a_function_with_decisions(wrong_cosh):
    with pytest.raises(tg.GradientMismatch, match=r"at fault: cosh"):
        tg.check_gradients(lambda x: np.cosh(x) if x > 0.0 else x, 0.5)
    assert tg.check_gradients(lambda x: np.cosh(x) if x > 0.0 else x, -0.5).count == 1


def test_a_wrong_structural_rule_is_named(wrong_cumsum):
    with pytest.raises(tg.GradientMismatch, match=r"at fault: cumsum, instruction \d+: its rule"):
        tg.check_gradients(lambda x: np.sum(np.cumsum(np.sin(x)) * x), X)


def test_a_wrong_value_is_named(monkeypatch):
    table = list(rules.FORWARD)
    table[opcodes.SINH] = lambda x: float(np.sin(x))
    monkeypatch.setattr(rules, "FORWARD", tuple(table))
    monkeypatch.setattr(reference, "FORWARD", tuple(table))
    with tg.executor("reference"), pytest.raises(tg.GradientMismatch) as caught:
        tg.check_gradients(lambda x: np.sinh(x) * 2.0, X)
    assert "output[0] is 0.59" in str(caught.value)
    assert "as NumPy computes it" in str(caught.value)
    assert [fault.row for fault in caught.value.faults] == ["sinh"]


@pytest.mark.parametrize(
    "f", [lambda x: x * x.item(), lambda x: x * x.value, lambda x: x * tg.stop_gradient(x)]
)
def test_a_value_that_left_the_recording(f):
    with pytest.raises(tg.GradientMismatch, match="No operation is at fault") as caught:
        tg.check_gradients(f, 3.0)
    assert caught.value.faults == []
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, tg.TapeGradError)


# -- bad input -------------------------------------------------------------------------------------


def test_bad_input():
    with pytest.raises(TypeError, match="needs the arguments"):
        tg.check_gradients(np.sin)
    with pytest.raises(TypeError, match="numbers and arrays, not str"):
        tg.check_gradients(lambda x: "a", 1.0)
    with pytest.raises(TypeError, match="choose the arguments to differentiate by argnums"):
        tg.check_gradients(lambda x, s: x, 1.0, "a")
    with pytest.raises(ValueError, match="argnums=1"):
        tg.check_gradients(np.sin, 1.0, argnums=1)
    with pytest.raises(ZeroDivisionError):
        tg.check_gradients(lambda x: 1 / 0, 1.0)


def test_the_analytic_operations_exist():
    structural_rows = {name.lower() for name in opcodes.NAMES[:5]} | set(structural.STRUCTURAL)
    assert set(TABLE) | structural_rows >= ANALYTIC


def test_the_result_describes_itself():
    check = tg.check_gradients(np.sin, 0.0)
    assert repr(check) == "GradientCheck(1 derivatives by complex step; largest error 0.0e+00)"
    assert "1 of them at kinks" in repr(tg.check_gradients(np.sqrt, 0.0))
