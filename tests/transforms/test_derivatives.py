"""Derivatives of functions and of recordings: their values, their form, and bad input."""

import gc
import os
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.optimize

import tapegrad as tg
from tapegrad.ops import structural
from tapegrad.tape import recorder

HERE = os.path.basename(__file__)


@dataclass
class Model:
    weight: Any
    bias: Any
    name: Any = None


def owned(result):
    """Assert that a result is an ordinary array of its own."""
    assert type(result) is np.ndarray
    assert result.flags.c_contiguous
    assert result.flags.writeable
    return result


# -- the examples that must hold -------------------------------------------------------------------


def test_a_sum_of_squares():
    x = tg.array([1.0, 2.0, 3.0])
    z = sum(x**2 + 2)
    z.backward()
    assert z.item() == 20.0
    np.testing.assert_array_equal(x.grad, [2.0, 4.0, 6.0])


def test_outputs_assigned_element_by_element():
    def f(x):
        y = tg.zeros(3)
        y[0] = x[0] * x[1] * x[2]
        y[1] = x[0] + x[1] + x[2]
        y[2] = x[0] + x[1] * x[2]
        return y

    x = tg.array([1.0, 2.0, 3.0])
    f(x).backward([0.1, 0.2, 0.3])
    np.testing.assert_allclose(x.grad, [1.1, 1.4, 1.0], rtol=1e-15)
    J = tg.jacobian(f)([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(J, [[6.0, 3.0, 2.0], [1.0, 1.0, 1.0], [1.0, 3.0, 2.0]])
    J = tg.jacobian(lambda x: [x[0] * x[1] * x[2], x[0] + x[1] + x[2], x[0] + x[1] * x[2]])(
        np.array([1.0, 2.0, 3.0])
    )
    np.testing.assert_array_equal(J, [[6.0, 3.0, 2.0], [1.0, 1.0, 1.0], [1.0, 3.0, 2.0]])


def test_three_polynomials_and_a_cotangent():
    def f(x):
        a, b, c = x
        return tg.array([a**3 + 2 * b**2 + 3 * c, 3 * a + 2 * b**2 + c**3, 2 * a + b**3 + 3 * c**2])

    x = tg.array([1.0, 2.0, 3.0])
    f(x).backward([3.0, 2.0, 1.0])
    np.testing.assert_array_equal(x.grad, [17.0, 52.0, 81.0])
    _, pull = tg.vjp(f, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(pull([3.0, 2.0, 1.0])[0], [17.0, 52.0, 81.0])


def test_a_value_used_on_two_paths():
    expected = [1.3632775200466682, 0.19118983333660755]
    gradient = tg.grad(lambda x: np.log(x[0] * x[1]) * np.sin(x[1]))([0.5, 0.75])
    np.testing.assert_allclose(gradient, expected, rtol=1e-15)
    x = tg.array([0.5, 0.75])
    shared = x[0] * x[1]
    (np.log(shared) * np.sin(x[1]) + 0.0 * shared).backward()
    np.testing.assert_allclose(x.grad, expected, rtol=1e-15)


def network(depth, size=2):
    """Return matrices, vectors, and the loss of a linear network."""
    rng = np.random.default_rng(depth)
    matrices = [rng.normal(size=(size, size)) for _ in range(depth)]
    v, x = rng.normal(size=size), rng.normal(size=size)

    def loss(matrices):
        y = x
        for W in matrices:
            y = W @ y
        return (v @ y - 0.7) ** 2 / 2

    return matrices, v, x, loss


def test_a_linear_network_has_its_closed_form():
    (W, U), v, x, loss = network(2)
    dW, dU = tg.grad(loss)([W, U])
    residual = v @ U @ W @ x - 0.7
    np.testing.assert_allclose(dU, residual * np.outer(v, W @ x), rtol=1e-14)
    np.testing.assert_allclose(dW, residual * np.outer(v @ U, x), rtol=1e-14)


def test_a_linear_network_multiplies_vectors_and_its_work_is_linear_in_depth(monkeypatch):
    products = []
    rule = structural.STRUCTURAL["matmul"]

    def counted(function):
        def run(*args):
            products.append([np.ndim(a) for a in args])
            return function(*args)

        return run

    monkeypatch.setattr(rule, "forward", counted(rule.forward))
    monkeypatch.setattr(rule, "vjp", counted(rule.vjp))
    counts = []
    for depth in (5, 10, 20):
        matrices, _, _, loss = network(depth, 9)  # more than is written out
        products.clear()
        tg.grad(loss)(matrices)
        counts.append(len(products))
        # vjp(g, out, W, y): the adjoint that is passed down is a vector, never a matrix.
        assert all(ndims[0] <= 1 for ndims in products if len(ndims) == 4)
        assert all(min(ndims) <= 1 for ndims in products)
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0]) > 0


def test_a_million_operations_in_a_chain_need_no_recursion():
    def chain(x):
        for _ in range(500_000):
            x = x * 0.999999 + 1e-7
        return x

    value, slope = tg.value_and_grad(chain)(1.0)
    assert slope == pytest.approx(0.999999**500_000, rel=1e-9)
    assert value == pytest.approx(slope + 0.1 * (1 - slope), rel=1e-9)


def test_a_diamond_of_2_to_the_60_paths():
    def diamonds(x):
        for _ in range(60):
            x = x + x
        return x

    assert tg.grad(diamonds)(1.0) == 2.0**60
    np.testing.assert_array_equal(
        tg.grad(lambda x: diamonds(x).sum())(np.ones(3)), np.full(3, 2.0**60)
    )


def test_changing_an_operand_after_recording_changes_no_gradient():
    weights, positions = np.array([2.0, 3.0]), np.array([1, 0])
    matrix, mask = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([True, False])
    values = np.array([1.0, 1.5])
    x = tg.array(values)
    y = np.sum(x * weights) + x[positions][0] + np.sum(matrix @ x) + np.sum(np.where(mask, x, 0.0))
    expected = weights + np.array([0.0, 1.0]) + matrix.sum(0) + mask
    for changed in (weights, matrix, values):
        changed[...] = np.nan
    positions[:], mask[:] = 0, False
    y.backward()
    np.testing.assert_array_equal(x.grad, expected)


def test_the_arrays_of_the_caller_are_never_written():
    a, b = np.array([1.0, 2.0]), np.array([[3.0, 4.0]])
    a.flags.writeable = b.flags.writeable = False
    c = {"a": a, "b": [b, 2]}

    def f(p, weights):
        p["a"][0] = 5.0
        p["b"][0] *= weights
        y = p["a"] * weights
        y += p["b"][0][0]
        return np.sum(y) * p["b"][1]

    assert tg.grad(f)(c, a)["b"][1] == 5.0 + 4.0 + 3.0 + 8.0
    tg.jacobian(lambda x: x * b)(a)
    _, pull = tg.vjp(lambda x: x * b, a)
    pull(b)
    np.testing.assert_array_equal(a, [1.0, 2.0])
    np.testing.assert_array_equal(b, [[3.0, 4.0]])
    assert c["b"][1] == 2


# -- backward --------------------------------------------------------------------------------------


def test_gradients_accumulate_until_zero_grad():
    x = tg.array([1.0, 2.0])
    y = (x * x).sum()
    y.backward()
    y.backward()
    np.testing.assert_array_equal(x.grad, [4.0, 8.0])
    x.zero_grad()
    assert x.grad is None
    y.backward()
    np.testing.assert_array_equal(x.grad, [2.0, 4.0])


def test_shared_parts_of_two_backward_calls():
    x = tg.array([1.0, 2.0])
    shared = np.exp(x)
    y1, y2 = shared.sum(), (shared * x).sum()
    y1.backward()
    y2.backward()
    np.testing.assert_allclose(x.grad, np.exp(x.value) * (2 + x.value), rtol=1e-15)


def test_a_swept_value_carries_its_gradient_into_a_later_recording():
    x = tg.array(2.0)
    y = x * x
    y.backward()
    z = y * y + x
    z.backward()
    assert x.grad == 4.0 + 4 * 2.0**3 + 1.0
    w = z * y
    w.backward()
    assert x.grad == 37.0 + (4 * 8 + 1) * 4 + 18.0 * 4


def test_a_gradient_is_the_users_to_change():
    x = tg.array([1.0, 2.0])
    y = (x * x).sum()
    y.backward()
    first = owned(x.grad)
    first[:] = 100.0
    y.backward()
    np.testing.assert_array_equal(x.grad, [102.0, 104.0])
    np.testing.assert_array_equal(first, [100.0, 100.0])
    np.testing.assert_array_equal(x.value, [1.0, 2.0])


def test_the_gradient_has_the_dtype_and_shape_of_the_leaf():
    for dtype in (np.float64, np.float32):
        for shape in ((), (1,), (2, 0), (2, 3)):
            x = tg.array(np.ones(shape, dtype))
            np.sum(x * x).backward()
            assert x.grad.dtype == dtype
            assert x.grad.shape == shape
    x, y = tg.array(np.float32([1.0, 2.0])), tg.array([3.0, 4.0])
    (x * y).sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(x.grad, [3.0, 4.0])


def test_the_gradient_of_an_array_that_requires_none():
    x, w = tg.array([1.0, 2.0]), tg.array([3.0, 4.0], requires_grad=False)
    (x * w).sum().backward()
    assert w.grad is None
    assert not w.requires_grad
    assert (x * w).requires_grad
    assert not (w * w).requires_grad


def test_a_leaf_and_its_views_have_a_backward():
    x = tg.array([1.0, 2.0])
    x.backward([3.0, 4.0])
    x[1].backward()
    x[::-1].backward([10.0, 20.0])
    np.testing.assert_array_equal(x.grad, [23.0, 15.0])
    s = tg.array(2.0)
    s.backward()
    assert s.grad == 1.0


def test_detach_and_stop_gradient():
    for stop in (tg.Array.detach, tg.stop_gradient):
        x = tg.array([2.0, 3.0])
        stopped = stop(x)
        np.testing.assert_array_equal(stopped.value, x.value)
        assert not stopped.requires_grad
        (x * stopped).sum().backward()
        np.testing.assert_array_equal(x.grad, [2.0, 3.0])
        s = tg.array(2.0)
        (s * stop(s)).backward()
        assert s.grad == 2.0
    assert tg.stop_gradient(2.5) == 2.5


def test_no_grad():
    x = tg.array([1.0, 2.0])
    with tg.no_grad():
        y = x * x
        with tg.no_grad():
            z = y + x
    np.testing.assert_array_equal(z.value, [2.0, 6.0])
    assert not y.requires_grad
    with pytest.raises(tg.NoGradientError, match=HERE):
        z.sum().backward()
    (y * x).sum().backward()
    np.testing.assert_array_equal(x.grad, y.value)
    with pytest.raises(KeyError), tg.no_grad():
        raise KeyError
    assert (x * x).requires_grad


def test_gradient_descent():
    rng = np.random.default_rng(0)
    data, target = rng.normal(size=(20, 3)), rng.normal(size=20)
    w = tg.array(np.zeros(3))
    for _ in range(200):
        loss = np.mean((data @ w - target) ** 2)
        w.zero_grad()
        loss.backward()
        with tg.no_grad():
            w -= 0.1 * w.grad
    np.testing.assert_allclose(w.value, np.linalg.lstsq(data, target, rcond=None)[0], atol=1e-6)


def test_strict_shows_zero_times_infinity():
    for strict, expected in ((False, 0.0), (True, np.nan)):
        x = tg.array(0.0)
        (np.sqrt(x) * 0.0).backward(strict=strict)
        np.testing.assert_equal(x.grad, expected)


# -- grad and its like -----------------------------------------------------------------------------


def test_arguments_of_every_kind():
    square = tg.grad(lambda x: np.sum(x * x))
    assert square(3.0) == 6.0
    assert type(square(3)) is float
    assert type(square(np.int64(3))) is float
    assert type(square(np.float32(3))) is np.float32
    for x in (
        [1, 2],
        [1.0, 2.0],
        np.array([1, 2]),
        np.array([1.0, 2.0]),
        np.array([9, 1, 9, 2])[1::2],
    ):
        gradient = owned(square(x))
        assert gradient.dtype == np.float64
        np.testing.assert_array_equal(gradient, [2.0, 4.0])
    assert square(np.ones((2, 3), np.float32)).dtype == np.float32
    assert owned(square([[1, 2], [3, 4]])).shape == (2, 2)
    assert owned(square(np.ones((3, 2)).T)).shape == (2, 3)


def test_structures_of_arguments():
    def f(p):
        return np.sum(p["w"] * p["layers"][0].weight) + p["layers"][1][0] * p["layers"][0].bias

    p = {"w": np.array([1.0, 2.0]), "layers": [Model(np.array([3.0, 4.0]), 5.0), (6, None)]}
    g = tg.grad(f)(p)
    assert list(g) == ["w", "layers"]
    np.testing.assert_array_equal(owned(g["w"]), [3.0, 4.0])
    model, pair = g["layers"]
    assert isinstance(model, Model)
    np.testing.assert_array_equal(model.weight, [1.0, 2.0])
    assert (model.bias, model.name, pair) == (6.0, None, (5.0, None))


def test_argnums():
    def f(x, y, z):
        return np.sum(x * y) + z

    at = (np.array([1.0, 2.0]), 3.0, 4.0)
    np.testing.assert_array_equal(tg.grad(f)(*at), [3.0, 3.0])
    assert tg.grad(f, argnums=1)(*at) == 3.0
    assert tg.grad(f, argnums=-1)(*at) == 1.0
    z, x = tg.grad(f, argnums=(2, 0))(*at)
    assert z == 1.0
    np.testing.assert_array_equal(x, [3.0, 3.0])
    assert tg.grad(f, argnums=[1])(*at) == (3.0,)
    assert tg.grad(f, argnums=range(1, 3))(*at) == (3.0, 1.0)
    assert tg.grad(lambda x, *, scale: x * scale)(2.0, scale=3.0) == 3.0
    assert tg.grad(lambda x, n: x**n)(2.0, 3) == 12.0


def test_has_aux():
    def f(x):
        y = x * x
        return np.sum(y), {"y": y, "steps": 3, "last": y[-1], "name": "f"}

    gradient, aux = tg.grad(f, has_aux=True)([1.0, 2.0])
    np.testing.assert_array_equal(gradient, [2.0, 4.0])
    np.testing.assert_array_equal(owned(aux["y"]), [1.0, 4.0])
    assert (aux["steps"], aux["last"], aux["name"]) == (3, 4.0, "f")
    (value, aux), gradient = tg.value_and_grad(f, has_aux=True)([1.0, 2.0])
    assert value == 5.0
    J, aux = tg.jacobian(lambda x: (x * x, x.sum()), has_aux=True)([1.0, 2.0])
    np.testing.assert_array_equal(J, [[2.0, 0.0], [0.0, 4.0]])
    assert aux == 3.0
    value, pull, aux = tg.vjp(lambda x: (x * x, "aux"), 3.0, has_aux=True)
    assert (value, pull(1.0), aux) == (9.0, (6.0,), "aux")


def test_value_and_grad_gives_plain_numbers():
    value, gradient = tg.value_and_grad(lambda x: np.sum(x * x))(np.array([3.0, 4.0]))
    assert type(value) is float
    assert value == 25.0
    np.testing.assert_array_equal(gradient, [6.0, 8.0])


def test_a_constant_function_has_a_zero_gradient():
    for f in (lambda x: 3.0, lambda x: 2, lambda x: np.float32(1.0), lambda x: np.array([4.0])):
        np.testing.assert_array_equal(tg.grad(f)([1.0, 2.0]), [0.0, 0.0])
        assert np.shape(tg.jacobian(f)([1.0, 2.0]))[-1] == 2


def test_results_are_new_each_time():
    constant = np.array([5.0, 6.0])
    gradient = tg.grad(lambda x: np.sum(x * constant))
    first = gradient(np.ones(2))
    first[:] = -1.0
    np.testing.assert_array_equal(gradient(np.ones(2)), constant)
    np.testing.assert_array_equal(constant, [5.0, 6.0])
    value, pull = tg.vjp(lambda x: x * constant, np.ones(2))
    owned(value)[:] = -1.0
    owned(pull([1.0, 1.0])[0])[:] = -1.0
    np.testing.assert_array_equal(pull([1.0, 2.0])[0], [5.0, 12.0])
    identity = tg.vjp(lambda x: x, np.ones(2))[1]
    seed = np.array([1.0, 2.0])
    identity(seed)[0][:] = -1.0
    np.testing.assert_array_equal(seed, [1.0, 2.0])


def test_the_layout_of_jacobians():
    def f(x):
        return np.stack([x[0, 0] * x[1, 2], x[0, 1] ** 2, x.sum(), x[1, 0] * 0 + 1.0])

    x = np.arange(1.0, 7.0).reshape(2, 3)
    J = owned(tg.jacobian(f)(x))
    assert J.shape == (4, 2, 3)
    for i in range(4):
        np.testing.assert_array_equal(J[i], tg.grad(lambda x, i=i: f(x)[i])(x))
    assert J[0, 1, 2] == 1.0
    assert J[0, 0, 0] == 6.0
    assert type(tg.jacobian(lambda x: x * x)(3)) is float
    assert owned(tg.jacobian(lambda s: s * x)(2.0)).shape == (2, 3)
    assert owned(tg.jacobian(lambda x: np.outer(x, x))(np.ones(2))).shape == (2, 2, 2)
    assert tg.jacobian(lambda x: x[:0])(np.ones(2)).shape == (0, 2)
    assert tg.jacobian(lambda x: x)(np.ones(0)).shape == (0, 0)


def test_jacobians_of_structures():
    J = tg.jacobian(lambda p: p["a"] * p["b"])({"a": [1.0, 2.0], "b": 3})
    np.testing.assert_array_equal(J["a"], [[3.0, 0.0], [0.0, 3.0]])
    np.testing.assert_array_equal(J["b"], [1.0, 2.0])
    J = tg.jacobian(lambda x, y: x * y, argnums=(1, 0))(np.array([1.0, 2.0]), 3.0)
    np.testing.assert_array_equal(J[0], [1.0, 2.0])


def test_vjp_of_structures():
    def f(x, y):
        return {"product": x * y, "pair": (x.sum(), [y, 7.0])}

    value, pull = tg.vjp(f, np.array([1.0, 2.0]), 3.0)
    np.testing.assert_array_equal(value["product"], [3.0, 6.0])
    assert value["pair"] == (3.0, [3.0, 7.0])
    for _ in range(2):
        x, y = pull({"pair": (10.0, [100.0, 5.0]), "product": [1.0, 1.0]})
        np.testing.assert_array_equal(x, [13.0, 13.0])
        assert y == 103.0


def test_scipy_takes_the_results_as_they_are():
    def rosenbrock(x):
        return np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    found = scipy.optimize.minimize(
        tg.value_and_grad(rosenbrock), np.zeros(4), jac=True, method="BFGS"
    )
    np.testing.assert_allclose(found.x, np.ones(4), atol=1e-5)

    def residuals(x):
        return np.exp(x[0] * np.linspace(0.0, 1.0, 5)) * x[1] - 2.0

    fit = scipy.optimize.least_squares(residuals, [0.5, 0.5], jac=tg.jacobian(residuals))
    np.testing.assert_allclose(fit.x, [0.0, 2.0], atol=1e-6)


def test_names_and_docs_are_passed_on():
    def energy(x):
        """Energy of a state."""
        return x * x

    assert tg.grad(energy).__name__ == "grad_energy"
    assert tg.grad(energy).__doc__ == "Energy of a state."


# -- bad input -------------------------------------------------------------------------------------


def squares():
    x = tg.array([1.0, 2.0])
    return x, x * x


BAD_CALLS = {
    "backward without a cotangent": (
        lambda: squares()[1].backward(), ValueError, r"gradient=np\.ones\(\(2,\)\)"),
    "a cotangent of a wrong shape": (
        lambda: squares()[1].backward(np.ones(3)), ValueError, r"shape \(3,\).*shape \(2,\)"),
    "a scalar cotangent": (lambda: squares()[1].backward(1.0), ValueError, "shape"),
    "a tracked cotangent": (
        lambda: squares()[1].backward(squares()[0]), TypeError, r"\.value"),
    "a complex cotangent": (lambda: squares()[1].backward([1j, 1]), TypeError, "not real"),
    "a cotangent of text": (lambda: squares()[1].backward(["a", "b"]), TypeError, "not real"),
    "nothing to differentiate": (
        lambda: (recorder.turn_over(), (tg.ones(2) * 2).backward([1, 1])), tg.NoGradientError,
        r"tg\.array"),
    "a constant leaf": (
        lambda: tg.constant([1.0]).backward(), tg.NoGradientError, "does not require"),
    "a .grad of a wrong shape": (
        lambda: setattr(squares()[0], "grad", np.ones(3)), ValueError, "leaf's shape"),
    "a .grad of a result": (
        lambda: setattr(squares()[1], "grad", np.ones(2)), AttributeError, "only leaves"),
    "grad of an array": (
        lambda: tg.grad(lambda x: x)(np.ones(2)), TypeError, r"shape \(2,\).*tg\.jacobian"),
    "grad of a list": (lambda: tg.grad(lambda x: [x, x])(1.0), TypeError, "a list"),
    "a forgotten return": (lambda: tg.grad(lambda x: None)(1.0), TypeError, "returned None"),
    "grad of text": (lambda: tg.grad(lambda x: "a")(1.0), TypeError, "a str"),
    "grad of a truth value": (lambda: tg.grad(lambda x: x > 0)(1.0), TypeError, "dtype bool"),
    "grad of True": (lambda: tg.grad(lambda x: True)(1.0), TypeError, "a bool"),
    "a boolean argument": (
        lambda: tg.grad(lambda x: x)(True), TypeError, "argument 0 is bool.*argnums"),
    "an argument of text": (
        lambda: tg.grad(lambda p: p["a"])({"a": 1.0, "b": "c"}), TypeError,
        r"argument 0\['b'\] is str"),
    "a complex argument": (lambda: tg.grad(lambda x: x)(1j), TypeError, "complex128"),
    "an object argument": (
        lambda: tg.grad(lambda x: x)(np.array([None])), TypeError, "dtype object"),
    "argnums out of range": (
        lambda: tg.grad(lambda x: x, argnums=1)(1.0), ValueError, "1 positional"),
    "argnums given twice": (
        lambda: tg.grad(lambda x, y: x, argnums=(0, -2))(1.0, 2.0), ValueError, "twice"),
    "argnums of text": (lambda: tg.grad(lambda x: x, argnums="x")(1.0), TypeError, "integers"),
    "arguments by keyword": (lambda: tg.grad(lambda x: x)(x=1.0), ValueError, "by position"),
    "no function": (lambda: tg.grad(3), TypeError, "expected a function, got int"),
    "no function for a jacobian": (lambda: tg.jacobian("f"), TypeError, "got str"),
    "no pair": (
        lambda: tg.grad(lambda x: x, has_aux=True)(1.0), TypeError, r"a pair \(output, aux\)"),
    "jacobian of a tuple": (
        lambda: tg.jacobian(lambda x: (x, x))(1.0), TypeError, r"a tuple.*np\.stack.*tg\.vjp"),
    "jacobian of arrays": (lambda: tg.jacobian(lambda x: [x, x])(np.ones(2)), TypeError, "a list"),
    "jacobian of nothing": (lambda: tg.jacobian(lambda x: None)(1.0), TypeError, "returned None"),
    "vjp of text": (lambda: tg.vjp(lambda x: (x, "a"), 1.0), TypeError, "a str.*has_aux"),
    "vjp of nothing": (lambda: tg.vjp(lambda x: None, 1.0), TypeError, "returned None"),
    "pulling another structure": (
        lambda: tg.vjp(lambda x: (x, x), 1.0)[1](1.0), ValueError, "expected a tuple of 2"),
    "pulling another shape": (
        lambda: tg.vjp(lambda x: x, np.ones(2))[1](np.ones(3)), ValueError, r"shape \(3,\)"),
    "a derivative of a truth": (
        lambda: tg.grad(lambda x: tg.grad(lambda y: 1.0 * y)(x > 0.0))(1.0), TypeError,
        "tracked and of dtype bool"),
    "pulling a tracked value of another shape": (
        lambda: tg.vjp(lambda x: x, np.ones(2))[1](tg.array(np.ones(3))), ValueError,
        r"shape \(3,\).*shape \(2,\)"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_CALLS)
def test_bad_input_is_refused_and_the_tape_is_unharmed(what):
    call, kind, words = BAD_CALLS[what]
    x = tg.array([1.0, 2.0])
    before = x * x
    with pytest.raises(kind, match=f"(?s){words}.*{HERE}"):
        call()
    (before * x).sum().backward()
    np.testing.assert_array_equal(x.grad, [3.0, 12.0])


def test_an_error_in_the_function_passes_through_and_leaves_the_recorder_as_it_was():
    x = tg.array([1.0, 2.0])
    y = x * x
    with pytest.raises(ZeroDivisionError):
        tg.grad(lambda x: 1 / 0)(1.0)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [2.0, 4.0])


def test_a_value_that_outlives_its_recording_says_so():
    kept = []

    def f(x):
        kept.extend([x[0], x * 2])
        return np.sum(x)

    tg.grad(f)(np.ones(2))
    for value in kept:
        for use in (
            lambda v: v.value,
            lambda v: v * 2 + 1,
            lambda v: float(np.sum(v).value),
            lambda v: bool(np.all(v > 0)),
        ):
            with pytest.raises(tg.ReleasedTapeError, match=f"has_aux=True.*{HERE}"):
                use(value)
        assert "ReleasedTapeError" in repr(value)
    assert tg.grad(f)(np.ones(2)).tolist() == [1.0, 1.0]


def test_an_error_leaves_nothing_behind():
    """No reference to the arguments survives a failed call."""

    class Watched(np.ndarray):
        pass

    argument = np.ones(1000).view(Watched)
    watch = weakref.ref(argument)
    with pytest.raises(TypeError):
        tg.grad(lambda x: x)(argument)
    del argument
    gc.collect()
    assert watch() is None
