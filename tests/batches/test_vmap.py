import numpy as np
import pytest

import tapegrad as tg

RNG = np.random.default_rng(11)
X = RNG.normal(size=(6, 3))
W = RNG.normal(size=3)


def model(w, x):
    return np.tanh(np.sum(w * x)) ** 2


def kinked(x):
    return x * x if x > 0.0 else np.sin(x)


def loop(f, *columns):
    return np.stack([f(*row) for row in zip(*columns, strict=True)])


def close(found, expected):
    # The same operations, sums in another order.
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_values_and_shared_arguments():
    close(tg.vmap(model, in_axes=(None, 0))(W, X), loop(lambda x: model(W, x), X))


@pytest.mark.parametrize("derivative", [tg.grad, tg.jacobian, tg.hessian])
def test_of_a_derivative(derivative):
    f = derivative(lambda x: model(W, x))
    close(tg.vmap(f)(X), loop(f, X))


def test_a_derivative_of_it():
    def total(w):
        return np.sum(tg.vmap(model, in_axes=(None, 0))(w, X))

    def by_hand(w):
        return sum(model(w, x) for x in X)

    close(tg.grad(total)(W), tg.grad(by_hand)(W))
    close(tg.hessian(total)(W), tg.hessian(by_hand)(W))
    _, tangent = tg.jvp(total, (W,), (X[0],))
    close(tangent, tg.grad(by_hand)(W) @ X[0])
    close(tg.record(total, W).value_and_grad(2.0 * W)[1], tg.grad(by_hand)(2.0 * W))


def test_within_a_derivative_lanes_are_samples():
    """One array instruction an operation, whatever the number of samples."""
    many = tg.record(lambda X: np.sum(tg.vmap(lambda x: x[0] * np.sin(x[1]))(X)), X)
    few = tg.record(lambda X: np.sum(tg.vmap(lambda x: x[0] * np.sin(x[1]))(X)), X[:2])
    assert len(many) == len(few)


@pytest.mark.parametrize("extremum", [np.max, np.min])
def test_extremes_that_tie_share_within_a_derivative(extremum):
    X = np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 1.0], [2.0, 1.0, 2.0]])
    inner = tg.vmap(lambda x, y: extremum(np.append(x, [y, 1.5])), in_axes=(0, None))
    got = tg.grad(lambda X, y: np.sum(inner(X, y) * np.arange(3.0)), argnums=(0, 1))(X, 2.0)
    separate = [
        tg.grad(lambda x, y: extremum(np.append(x, [y, 1.5])), argnums=(0, 1))(x, 2.0) for x in X
    ]
    np.testing.assert_array_equal(got[0], [i * x for i, (x, _) in enumerate(separate)])
    np.testing.assert_array_equal(got[1], sum(i * y for i, (_, y) in enumerate(separate)))


def test_values_of_the_enclosing_derivative():
    def total(w):
        return np.sum(tg.vmap(lambda x: model(w, x))(X))

    close(tg.grad(total)(W), tg.grad(lambda w: sum(model(w, x) for x in X))(W))


def test_leaves_from_elsewhere():
    w = tg.array(W)
    np.sum(tg.vmap(lambda x: model(w, x))(X)).backward()
    close(w.grad, tg.grad(lambda w: sum(model(w, x) for x in X))(W))


def test_numbers_in_lists_stay_apart():
    a, b = RNG.normal(size=5), RNG.normal(size=5)
    product = lambda pair, c: pair[0] * pair[1] + c["d"][0]  # noqa: E731
    np.testing.assert_allclose(tg.vmap(product)([a, b], {"d": [b]}), a * b + b)
    np.testing.assert_allclose(
        tg.vmap(product, in_axes=([None, 0], None))([2.0, b], {"d": [3.0]}), 2.0 * b + 3.0
    )
    (by_a, by_b) = tg.vmap(tg.grad(product))([a, b], {"d": [b]})
    np.testing.assert_allclose((by_a, by_b), (b, a))
    total = lambda a: np.sum(tg.vmap(product)([a, b], {"d": [b]}))  # noqa: E731
    np.testing.assert_allclose(tg.grad(total)(a), b)


def test_nested():
    f = tg.vmap(tg.vmap(tg.grad(kinked)))
    close(f(X), np.where(X > 0.0, 2.0 * X, np.cos(X)))
    outer = tg.vmap(tg.vmap(lambda a, b: a * b, in_axes=(None, 0)), in_axes=(0, None))
    close(outer(X[:, 0], W), np.outer(X[:, 0], W))


def test_branches_within_a_derivative():
    f = tg.vmap(kinked)
    close(tg.grad(lambda x: np.sum(f(x)))(X[:, 0]), loop(tg.grad(kinked), X[:, 0]))
    assert f.paths == 2


def test_a_replay_that_would_branch_otherwise_is_noticed():
    program = tg.record(lambda x: np.sum(tg.vmap(kinked)(x)), np.array([1.0, -1.0]))
    close(program(np.array([2.0, -2.0])), 4.0 + np.sin(-2.0))
    with pytest.raises(tg.ControlFlowChanged):
        program(np.array([1.0, 1.0]))


def test_axes_of_results():
    found = tg.vmap(
        lambda x: {"a": x, "b": (x[0], np.outer(x, x))}, out_axes={"a": 1, "b": (0, 2)}
    )(X)
    close(found["a"], X.T)
    close(found["b"][0], X[:, 0])
    close(found["b"][1], np.einsum("ni,nj->ijn", X, X))
    close(
        tg.grad(lambda x: np.sum(tg.vmap(lambda r: r, 1, -1)(x)[0]))(X),
        np.eye(6, 3)[:, :] * 0 + (np.arange(6) == 0)[:, None],
    )


def test_integers_make_groups():
    powers = np.array([0, 1, 2, 3, 2, 1])
    f = tg.vmap(lambda x, n: x**n)
    close(f(X[:, 0], powers), X[:, 0] ** powers)
    close(
        tg.grad(lambda x: np.sum(f(x, powers)))(X[:, 0]),
        powers * X[:, 0] ** np.maximum(powers - 1, 0),
    )


def test_float32():
    found = tg.vmap(lambda x: x * x[0])(X.astype(np.float32))
    assert found.dtype == np.float32
    gradient = tg.grad(lambda x: np.sum(tg.vmap(lambda r: r[0] * r[1])(x)))(X.astype(np.float32))
    assert gradient.dtype == np.float32
    np.testing.assert_allclose(gradient[:, 0], X[:, 1], rtol=1e-6)  # rounding to float32


def test_a_changed_variable_is_noticed():
    scale = np.full(100, 2.0)
    f = tg.vmap(tg.grad(lambda x: np.sum(scale) * x * x))
    close(f(X[:, 0]), 400.0 * X[:, 0])
    scale *= 3.0
    close(f(X[:, 0]), 1200.0 * X[:, 0])


def test_without_gradients():
    with tg.no_grad():
        found = tg.vmap(kinked)(tg.array(X[:, 0]))
    close(found, loop(kinked, X[:, 0]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tg.vmap(3.0), TypeError, "function"),
        (lambda: tg.vmap(model)(W, X), ValueError, "ragged batch"),
        (lambda: tg.vmap(kinked)(X[:0, 0]), ValueError, "no samples"),
        (lambda: tg.vmap(kinked)(1.0), ValueError, "single number"),
        (lambda: tg.vmap(np.sin, out_axes=2)(X), ValueError, "out_axes says 2"),
        (lambda: tg.vmap(np.sin, out_axes=None)(X), ValueError, "out_axes says None"),
        (lambda: tg.vmap(lambda x: "no")(X), TypeError, "real numbers"),
        (lambda: tg.grad(lambda x: np.sum(tg.vmap(model)(x, X[:2])))(X), ValueError, "ragged"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
