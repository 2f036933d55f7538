"""Functions with a backward rule of the user's: values, derivatives, structure, bad rules."""

import math
import os
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.linalg

import tapegrad as tg

HERE = os.path.basename(__file__)


@dataclass
class Pair:
    left: Any
    right: Any


def custom(f, fwd, bwd, **options):
    """Return `f` with its rules."""
    function = tg.custom_vjp(f, **options)
    function.defvjp(fwd, bwd)
    return function


def solver():
    """Linear systems by SciPy, which knows nothing of tracked values; counts what it does."""
    calls = {"f": 0, "fwd": 0, "bwd": 0}

    def f(a, b):
        calls["f"] += 1
        return scipy.linalg.solve(a, b)

    def fwd(a, b):
        calls["fwd"] += 1
        assert type(a) is np.ndarray
        factors = scipy.linalg.lu_factor(a)
        x = scipy.linalg.lu_solve(factors, b)
        return x, (factors, x)

    def bwd(residuals, g):
        calls["bwd"] += 1
        factors, x = residuals
        to_b = scipy.linalg.lu_solve(factors, g, trans=1)
        return -np.outer(to_b, x), to_b

    return custom(f, fwd, bwd), calls


A = np.array([[4.0, 1.0, 0.0], [1.0, 3.0, 0.5], [-0.5, 0.2, 5.0]])
B = np.array([1.0, -2.0, 0.5])


def test_plain_arguments_run_the_function_itself():
    solve, calls = solver()
    x = solve(A, B)
    assert type(x) is np.ndarray
    assert calls == {"f": 1, "fwd": 0, "bwd": 0}


def test_the_rules_run_once_a_call():
    solve, calls = solver()
    a, b = tg.array(A), tg.array(B)
    x = solve(a, b)
    np.testing.assert_array_equal(x.value, scipy.linalg.solve(A, B))
    (x * x).sum().backward()
    assert calls == {"f": 0, "fwd": 1, "bwd": 1}
    y = scipy.linalg.solve(A, B)
    to_b = np.linalg.solve(A.T, 2 * y)
    np.testing.assert_allclose(b.grad, to_b, rtol=1e-13)
    np.testing.assert_allclose(a.grad, -np.outer(to_b, y), rtol=1e-13)


def test_inside_the_transforms():
    solve, _ = solver()
    np.testing.assert_allclose(
        tg.jacobian(lambda b: solve(A, b))(B), np.linalg.inv(A), rtol=1e-13, atol=1e-15
    )
    value, gradient = tg.value_and_grad(lambda b: np.sum(solve(A, np.sin(b))))(B)
    assert value == pytest.approx(np.linalg.solve(A, np.sin(B)).sum(), rel=1e-14)
    expected = np.linalg.solve(A.T, np.ones(3)) * np.cos(B)
    np.testing.assert_allclose(gradient, expected, rtol=1e-13)
    tg.check_gradients(lambda a, b: np.sum(solve(a, b) ** 2), A, B)


def test_check_gradients_names_a_wrong_rule():
    wrong = custom(np.sin, lambda x: (np.sin(x), x), lambda x, g: (g * np.sin(x),))
    wrong.__name__ = "wrong_sine"
    with pytest.raises(tg.GradientMismatch, match="wrong_sine"):
        tg.check_gradients(lambda x: 2.0 * wrong(x), 0.3)


def test_structured_arguments_and_outputs():
    def f(p, scale):
        return {"sum": p.left + p.right["b"][0], "scaled": (scale * p.left, 7.0)}

    def bwd(residuals, g):
        p, scale = residuals
        assert set(g) == {"sum", "scaled"}
        to_left = g["sum"] + scale * g["scaled"][0]
        return Pair(to_left, {"b": [g["sum"].sum()]}), np.sum(g["scaled"][0] * p.left)

    combine = custom(f, lambda p, scale: (f(p, scale), (p, scale)), bwd)

    def loss(function):
        def run(p, scale):
            out = function(p, scale)
            assert float(out["scaled"][1].value if function is combine else 7.0) == 7.0
            return np.sum(np.sin(out["sum"]) * np.exp(out["scaled"][0]))

        return run

    p = Pair(np.array([0.1, 0.2]), {"b": [0.3]})
    got = tg.grad(loss(combine), argnums=(0, 1))(p, 0.7)
    expected = tg.grad(loss(f), argnums=(0, 1))(p, 0.7)
    np.testing.assert_allclose(got[0].left, expected[0].left, rtol=1e-14)
    np.testing.assert_allclose(got[0].right["b"][0], expected[0].right["b"][0], rtol=1e-14)
    assert got[1] == pytest.approx(expected[1], rel=1e-14)


def test_none_stands_for_zero():
    f = custom(lambda x, y: x * y, lambda x, y: (x * y, y), lambda y, g: (g * y, None))
    assert tg.grad(f, argnums=(0, 1))(2.0, 3.0) == (3.0, 0.0)
    inner = custom(
        lambda p: p["a"] * p["b"],
        lambda p: (p["a"] * p["b"], p),
        lambda p, g: ({"a": g, "b": None},),
    )
    assert tg.grad(inner)({"a": 2.0, "b": 3.0}) == {"a": 1.0, "b": 0.0}


def test_keywords_and_defaults_become_positions():
    f = custom(
        lambda x, power=2: x**power,
        lambda x, power: (x**power, (x, power)),
        lambda r, g: (g * r[1] * r[0] ** (r[1] - 1), None),
    )
    assert tg.grad(lambda x: f(x))(3.0) == 6.0
    assert tg.grad(lambda x: f(power=3, x=x))(3.0) == 27.0


def test_nondiff_arguments():
    f = custom(
        lambda rule, x: rule(x),
        lambda rule, x: (rule(x), x),
        lambda rule, x, g: (g * (np.exp(x) if rule is np.exp else np.cos(x)),),
        nondiff_argnums=(0,),
    )
    assert tg.grad(lambda x: f(np.sin, x))(0.5) == np.cos(0.5)
    assert tg.grad(lambda x: f(np.exp, x))(0.5) == np.exp(0.5)
    with pytest.raises(tg.NotDifferentiableError, match=rf"argument 0 .* is tracked.*{HERE}"):
        tg.grad(lambda x: f(x, x))(0.5)


def test_an_output_without_axes_and_one_without_elements():
    f = custom(
        lambda x: (x.sum(), x[:0]),
        lambda x: ((x.sum(), x[:0]), x.size),
        lambda n, g: (np.full(n, g[0]),),
    )
    np.testing.assert_array_equal(tg.grad(lambda x: f(x)[0])(np.ones(3)), np.ones(3))
    x = tg.array(np.ones(3))
    assert f(x)[0].shape == ()
    assert f(x)[1].shape == (0,)


def test_integer_outputs_are_carried():
    def f(x):
        return x[x > 0].sum(), np.count_nonzero(x > 0)

    positive = custom(f, lambda x: (f(x), x > 0), lambda mask, g: (g[0] * mask,))
    x = tg.array([1.0, -1.0, 3.0])
    total, count = positive(x)
    assert int(count.value) == 2
    assert count.dtype == np.int64
    total.backward()
    np.testing.assert_array_equal(x.grad, [1.0, 0.0, 1.0])


def test_float32_stays_float32():
    seen = []

    def bwd(x, g):
        seen.append(g.dtype)
        return (2 * x * g,)

    f = custom(lambda x: x * x, lambda x: (x * x, x), bwd)
    x = tg.array(np.array([0.1, 0.2], np.float32))
    y = f(x)
    assert y.dtype == np.float32
    y.sum().backward()
    assert x.grad.dtype == np.float32
    assert seen == [np.float32]


def test_a_call_on_views_assigned_elements_and_other_recordings():
    def run(function):
        x = tg.array(np.arange(1.0, 7.0).reshape(2, 3))
        y = x * x
        y.sum().backward()  # ends the recording that y belongs to
        z = tg.zeros((3, 2))
        z[...] = (x * y).T
        z[1, 1] = x[0, 0] * 2
        out = function(z[::2, ::-1]) + function(z[1])[0]
        out.sum().backward()
        return x.grad

    f = custom(np.sin, lambda x: (np.sin(x), x), lambda x, g: (g * np.cos(x),))
    np.testing.assert_allclose(run(f), run(np.sin), rtol=1e-14)


def test_arrays_are_taken_as_they_are_at_the_call():
    f = custom(
        lambda a, x: np.sum(a * x), lambda a, x: (np.sum(a * x), a), lambda a, g: (None, g * a)
    )
    a, x = np.array([1.0, 2.0]), tg.array([1.0, 1.0])
    y = f(a, x)
    a[:] = 100.0
    y.backward()
    np.testing.assert_array_equal(x.grad, [1.0, 2.0])


def test_rules_may_change_their_arguments_and_record():
    def fwd(x):
        x[0] = 100.0  # of a copy
        t = tg.array([1.0, 2.0])
        (t * t).sum().backward()
        return x.sum() - 100.0, t.grad

    f = custom(lambda x: x[1:].sum(), fwd, lambda r, g: (g * np.array([0.0, r[0]]),))
    x = tg.array([5.0, 6.0])
    y = f(x) * x[0]
    y.backward()
    np.testing.assert_array_equal(x.value, [5.0, 6.0])
    np.testing.assert_array_equal(x.grad, [6.0, 10.0])


def test_methods():
    class Model:
        def __init__(self):
            self.scale = 3.0

        @tg.custom_vjp
        def apply(self, x):
            return self.scale * x

        apply.defvjp(lambda self, x: (self.scale * x, None), lambda self, r, g: (7.0 * g,))
        apply.nondiff = (0,)

    assert tg.grad(Model().apply)(2.0) == 7.0


def test_under_no_grad():
    solve, calls = solver()
    with tg.no_grad():
        x = solve(tg.array(A), B)
    np.testing.assert_array_equal(x.value, scipy.linalg.solve(A, B))
    assert calls["bwd"] == 0


# -- derivatives of derivatives, programs ----------------------------------------------------------


def cube_sine():
    """A function whose rules work on tracked values, too."""
    return custom(
        lambda x: x**3 * np.sin(x),
        lambda x: (x**3 * np.sin(x), x),
        lambda x, g: (g * (3 * x**2 * np.sin(x) + x**3 * np.cos(x)),),
    )


def test_second_derivatives_by_rules_of_numpy():
    f = cube_sine()
    x = np.array([0.3, 0.9])
    got = tg.hessian(lambda x: np.sum(f(x) * x[0]))(x)
    expected = tg.hessian(lambda x: np.sum(x**3 * np.sin(x) * x[0]))(x)
    np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-15)
    third = tg.grad(tg.grad(tg.grad(f)))(0.3)
    expected = tg.grad(tg.grad(tg.grad(lambda x: x**3 * np.sin(x))))(0.3)
    assert third == pytest.approx(expected, rel=1e-13)


def test_second_derivatives_by_rules_that_are_not_of_numpy():
    f = custom(math.sin, lambda x: (math.sin(x), x), lambda x, g: (g * math.cos(x),))
    assert tg.grad(f)(0.3) == math.cos(0.3)
    with pytest.raises(tg.NotDifferentiableError, match=r"second derivatives of sin need rules"):
        tg.grad(tg.grad(f))(0.3)


def test_a_rule_that_takes_derivatives():
    f = custom(
        lambda x: x * x,
        lambda x: (x * x, tg.grad(lambda y: y * y)(x)),
        lambda slope, g: (g * slope,),
    )
    assert tg.grad(lambda x: f(x) * x)(3.0) == 27.0
    assert tg.grad(tg.grad(lambda x: f(x) * x))(3.0) == 18.0


def test_programs_run_the_rules_anew():
    f = cube_sine()
    program = tg.record(lambda x: f(x) * x, 0.3)
    for x in (0.3, 0.9, -0.4):
        value, gradient = program.value_and_grad(x)
        assert value == pytest.approx(x**4 * np.sin(x), rel=1e-14)
        assert gradient == pytest.approx(4 * x**3 * np.sin(x) + x**4 * np.cos(x), rel=1e-13)


def test_a_program_notices_another_shape():
    f = custom(lambda x: x[x > 0], lambda x: (x[x > 0], x > 0), lambda m, g: (np.bincount(m, g),))
    program = tg.record(lambda x: np.sum(f(x)), np.array([1.0, -1.0]))
    assert program(np.array([3.0, -1.0])) == 3.0
    with pytest.raises(ValueError, match=r"returned shapes \[\(2,\)\] where it had"):
        program(np.array([3.0, 1.0]))


# -- forward rules ---------------------------------------------------------------------------------


def forward(f, rule, **options):
    """Return `f` with its forward rule."""
    function = tg.custom_jvp(f, **options)
    assert function.defjvp(rule) is rule
    return function


def mixed(x, p):
    return {"a": np.sin(x) * p["k"], "b": (x[0] * p["k"] ** 2, x[1:])}


def mixed_rule(primals, tangents):
    (x, p), (tx, tp) = primals, tangents
    k, tk = p["k"], tp["k"]
    tangent = {
        "a": np.cos(x) * tx * k + np.sin(x) * tk,
        "b": (tx[0] * k**2 + 2.0 * x[0] * k * tk, tx[1:]),
    }
    return mixed(x, p), tangent


def mixed_loss(f):
    def loss(x, p):
        out = f(x, p)
        return np.sum(out["a"] ** 2) + out["b"][0] * np.sum(out["b"][1])

    return loss


def test_a_forward_rule_is_transposed():
    f = forward(mixed, mixed_rule)
    x, p = np.array([0.2, 0.4, -0.3]), {"k": 1.7}
    got = tg.grad(mixed_loss(f), argnums=(0, 1))(x, p)
    expected = tg.grad(mixed_loss(mixed), argnums=(0, 1))(x, p)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-14)
    assert got[1]["k"] == pytest.approx(expected[1]["k"], rel=1e-14)
    hessian = tg.hessian(lambda x: mixed_loss(f)(x, p))(x)
    expected = tg.hessian(lambda x: mixed_loss(mixed)(x, p))(x)
    np.testing.assert_allclose(hessian, expected, rtol=1e-13, atol=1e-15)
    _, tangent = tg.jvp(lambda x: mixed_loss(f)(x, p), (x,), (x,))
    assert tangent == pytest.approx(got[0] @ x, rel=1e-13)


def test_a_forward_rule_that_is_not_of_numpy_is_run_on_unit_vectors():
    def rule(primals, tangents):
        (a, b), (ta, tb) = primals, tangents
        x = scipy.linalg.solve(a, b)
        return x, scipy.linalg.solve(a, np.asarray(tb) - np.asarray(ta) @ x)

    solve = forward(lambda a, b: scipy.linalg.solve(a, b), rule)
    got = tg.grad(lambda a, b: np.sum(solve(a, b) ** 2), argnums=(0, 1))(A, B)
    reference, _ = solver()
    expected = tg.grad(lambda a, b: np.sum(reference(a, b) ** 2), argnums=(0, 1))(A, B)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-12)
    with pytest.raises(tg.NotDifferentiableError, match="second derivatives of <lambda>"):
        tg.hessian(lambda b: np.sum(solve(A, b)))(B)


def test_forward_rules_with_arguments_that_have_no_derivative():
    f = forward(
        lambda g, x: g(x),
        lambda g, primals, tangents: (g(primals[0]), tangents[0] * np.cos(primals[0])),
        nondiff_argnums=(0,),
    )
    assert tg.grad(lambda x: f(np.sin, x))(0.5) == np.cos(0.5)
    assert f(np.sin, 0.5) == np.sin(0.5)


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (lambda p, t: t[0], TypeError, r"must return a pair \(output, tangent\)"),
        (lambda p, t: (p[0], np.sum(t[0])), ValueError, r"has shape \(\), but .* shape \(2,\)"),
        (lambda p, t: (p[0], [t[0]]), ValueError, "has not the output's structure"),
        (lambda p, t: (p[0], t[0] + 1.0), ValueError, "is not linear"),
    ],
)
def test_a_forward_rule_of_the_wrong_form(rule, error, message):
    f = forward(lambda x: 2.0 * x, rule)
    f.__name__ = "doubled"
    with pytest.raises(error, match=message) as caught:
        tg.grad(lambda x: np.sum(f(x)))(np.ones(2))
    assert "doubled" in str(caught.value)


def test_no_forward_rule():
    f = tg.custom_jvp(np.sin)
    assert f(0.5) == np.sin(0.5)
    with pytest.raises(tg.NotDifferentiableError, match=rf"sin.defjvp\(rule\) \({HERE}"):
        tg.grad(f)(1.0)
    with pytest.raises(TypeError, match="expects a function"):
        f.defjvp(3.0)
    with pytest.raises(TypeError, match="expects a function"):
        tg.custom_jvp(3.0)


# -- bad rules -------------------------------------------------------------------------------------


def swept(bwd, x=None):
    f = custom(lambda x: 2.0 * x["a"], lambda x: (2.0 * x["a"], None), bwd)
    f.__name__ = "doubled"
    return tg.grad(lambda a: np.sum(f({"a": a})))(np.ones(2) if x is None else x)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (np.ones(2), TypeError, "must return a tuple of 1 cotangents"),
        ((1.0, 2.0), TypeError, "one an argument, not a tuple of 2"),
        (({"a": np.ones(3)},), ValueError, r"argument 0\['a'\] is wrong: it has shape \(3,\)"),
        (({"a": 1.0},), ValueError, r"has shape \(\), but the argument has shape \(2,\)"),
        (({"b": np.ones(2)},), ValueError, "structures differ"),
        (({"a": np.ones(2) * 1j},), TypeError, r"argument 0\['a'\].*complex128 is not real"),
        (({"a": "zero"},), TypeError, "is not real"),
    ],
)
def test_a_cotangent_of_the_wrong_form(answer, error, message):
    with pytest.raises(error, match=message) as caught:
        swept(lambda r, g: answer)
    assert "doubled" in str(caught.value)
    assert re.search(rf"\({HERE}:\d+\)", str(caught.value))


def test_no_rule():
    f = tg.custom_vjp(lambda x: x)
    with pytest.raises(tg.NotDifferentiableError, match=rf"defvjp\(fwd, bwd\) \({HERE}"):
        tg.grad(f)(1.0)
    with pytest.raises(TypeError, match="two functions"):
        f.defvjp(np.sin, None)
    with pytest.raises(TypeError, match="expects a function"):
        tg.custom_vjp(3.0)
    with pytest.raises(ValueError, match="positions from 0"):
        tg.custom_vjp(np.sin, nondiff_argnums=(-1,))


def test_a_fwd_rule_of_the_wrong_form():
    with pytest.raises(TypeError, match="must return a pair"):
        tg.grad(custom(np.sin, np.sin, lambda r, g: (g,)))(1.0)
    with pytest.raises(TypeError, match="complex128 is not real"):
        tg.grad(custom(np.sin, lambda x: (x * 1j, None), lambda r, g: (g,)))(1.0)


def test_tracked_values_from_outside_are_refused():
    def outer(x):
        f = custom(lambda y: x * y, lambda y: (x * y, x), lambda r, g: (r * g,))
        return f(2.0 * x)

    with pytest.raises(tg.NotDifferentiableError, match="must be an argument"):
        tg.grad(outer)(1.0)


def test_keyword_only_arguments_are_refused():
    def f(x, *, n):
        return x * n

    with pytest.raises(TypeError, match="by keyword only"):
        tg.grad(lambda x: custom(f, f, f)(x, n=2))(1.0)


def test_an_error_inside_a_rule_leaves_recording_usable():
    def fail(r, g):
        raise ZeroDivisionError("of the rule")

    x = tg.array(2.0)
    y = custom(lambda x: x, lambda x: (x, None), fail)(x * x)
    with pytest.raises(ZeroDivisionError, match="of the rule"):
        y.backward()
    z = x * x
    z.backward()
    assert float(x.grad) == 4.0
