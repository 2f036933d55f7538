"""Recomputing instead of storing: the same values and gradients, and less memory."""

import gc
import os
import threading
import weakref

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.tape import recorder

HERE = os.path.basename(__file__)


def layers(x, w, wrap):
    """Run six layers, some of whose values come from outside."""
    for row in w:
        layer = wrap(lambda x, row=row: np.tanh(row * x + np.sin(w[0, 0])))
        x = layer(x)
    return np.sum(x**2)


def same(f):
    return f


W = np.linspace(-1.0, 1.0, 12).reshape(6, 2)
X = np.array([0.3, -0.7])


def test_the_same_gradients():
    plain = tg.value_and_grad(lambda x, w: layers(x, w, same), argnums=(0, 1))(X, W)
    less = tg.value_and_grad(lambda x, w: layers(x, w, tg.checkpoint), argnums=(0, 1))(X, W)
    assert plain[0] == less[0]
    np.testing.assert_allclose(less[1][0], plain[1][0], rtol=1e-14)
    np.testing.assert_allclose(less[1][1], plain[1][1], rtol=1e-13)


def test_leaves_and_backward():
    def gradients(wrap):
        x, w = tg.array(X), tg.array(W)
        layers(x, w, wrap).backward()
        layers(x * 2, w, wrap).backward()  # and once more: gradients accumulate
        return x.grad, w.grad

    for got, expected in zip(gradients(tg.checkpoint), gradients(same), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_jacobian_vjp_and_check_gradients():
    def f(x, wrap):
        return wrap(lambda x: np.exp(x) * x[0])(x * 2.0)

    np.testing.assert_array_equal(
        tg.jacobian(lambda x: f(x, tg.checkpoint))(X), tg.jacobian(lambda x: f(x, same))(X)
    )
    _, pull = tg.vjp(lambda x: f(x, tg.checkpoint), X)
    _, expected = tg.vjp(lambda x: f(x, same), X)
    for g in ([1.0, 0.0], [2.0, -3.0]):
        np.testing.assert_array_equal(pull(g)[0], expected(g)[0])
    tg.check_gradients(lambda x: np.sum(f(x, tg.checkpoint)), X)


def test_structures_and_parts_that_are_not_tracked():
    def f(p, option, scale=1.0):
        assert option == "cubic"
        return {"y": [p["a"] ** 3 * scale, p["b"][1]], "n": 3, "none": None}

    def loss(wrap):
        def run(a, b):
            out = wrap(f)({"a": a, "b": (None, b)}, "cubic", scale=2.0 * b)
            assert out["n"] == 3
            assert out["none"] is None
            return out["y"][0] * out["y"][1]

        return run

    assert tg.grad(loss(tg.checkpoint), argnums=(0, 1))(1.5, 0.5) == tg.grad(
        loss(same), argnums=(0, 1)
    )(1.5, 0.5)


def test_nested_checkpoints():
    runs = []

    def inner(x, k):
        runs.append("inner")
        return np.sin(x) * k

    def outer(x, k, wrap):
        def body(x):
            runs.append("outer")
            for _ in range(3):
                x = wrap(lambda x: inner(x, k) + scale[0] * x)(x)
            return x

        scale = tg.array([0.5])
        scale = scale * k  # of this recording, and taken from outside by both functions
        return wrap(body)(x)

    expected = tg.grad(lambda x, k: outer(x, k, same), argnums=(0, 1))(0.4, 1.3)
    runs.clear()
    got = tg.grad(lambda x, k: outer(x, k, tg.checkpoint), argnums=(0, 1))(0.4, 1.3)
    np.testing.assert_allclose(got, expected, rtol=1e-14)
    # Once forward, once more in the sweep; the inner ones also in the sweep of the latter.
    assert (runs.count("outer"), runs.count("inner")) == (2, 9)


def test_an_argument_that_is_returned_and_one_that_is_not_used():
    f = tg.checkpoint(lambda x, y: (x, x * 2.0))
    assert tg.grad(lambda x, y: sum(f(x, y)) * x, argnums=(0, 1))(3.0, 4.0) == (18.0, 0.0)


def test_a_value_from_outside_that_is_returned():
    def loss(wrap):
        return lambda x: wrap(lambda y: (x, y * y))(2.0)[0] * x

    assert tg.grad(loss(tg.checkpoint))(3.0) == 6.0


def test_no_tracked_arguments():
    w = tg.array([1.0, 2.0])
    y = tg.checkpoint(lambda n: np.sum(w**n))(3)
    y.backward()
    np.testing.assert_array_equal(w.grad, [3.0, 12.0])
    plain = tg.checkpoint(np.sin)(X)
    assert type(plain) is np.ndarray
    np.testing.assert_array_equal(plain, np.sin(X))


def test_values_of_older_recordings():
    def gradient(wrap):
        x = tg.array([0.5, 0.25])
        old = x * x
        old.sum().backward()  # ends the recording that `old` belongs to
        f = wrap(lambda y: np.sum(old * y) + old[1])
        (f(x) + np.sum(old)).backward()
        return x.grad

    np.testing.assert_array_equal(gradient(tg.checkpoint), gradient(same))


def test_constants_from_outside():
    data = np.array([1.0, 2.0])
    fixed = tg.constant(data)
    with tg.no_grad():
        free = tg.array([3.0, 4.0]) * 1.0
    f = tg.checkpoint(lambda x: np.sum(x * data * fixed * free))
    np.testing.assert_array_equal(tg.grad(f)(X), data * data * [3.0, 4.0])


def test_decisions_integers_and_float32():
    def f(x, wrap):
        def body(x):
            y = tg.zeros(3)
            for i in range(3):
                y[i] = x[i] * 2 if x[i] > 0 else np.exp(x[i])
            return y, (x > 0).sum(), x.astype(np.float32)

        y, count, single = wrap(body)(x)
        assert int(count) == 2
        assert single.dtype == np.float32
        return np.sum(y) + np.sum(single)

    x = np.array([1.0, -1.0, 0.5])
    np.testing.assert_array_equal(
        tg.grad(lambda x: f(x, tg.checkpoint))(x), tg.grad(lambda x: f(x, same))(x)
    )


def test_arrays_are_taken_as_they_are_at_the_call():
    a, x = np.array([1.0, 2.0]), tg.array([1.0, 1.0])
    y = tg.checkpoint(lambda a, x: np.sum(a * x))(a, x)
    a[:] = 100.0
    y.backward()
    np.testing.assert_array_equal(x.grad, [1.0, 2.0])


def test_leaves_that_change_before_the_sweep():
    w, x = tg.array([2.0, 3.0]), tg.array([1.0, 1.0])
    y = tg.checkpoint(lambda x: np.sum(w * x * x))(x)
    with tg.no_grad():
        w *= 10.0
    y.backward()
    np.testing.assert_array_equal(x.grad, [4.0, 6.0])
    np.testing.assert_array_equal(w.grad, [1.0, 1.0])


def test_arrays_from_outside_that_are_assigned_to_before_the_sweep():
    def loss(x, wrap):
        y, z = x * 1.0, x * x
        for i in range(3):
            y[i % 2] = wrap(lambda a: np.sum(np.sin(y) * a) + y[0] * z[1])(x[i % 2])
        y[:] = z  # the cells of another array that was taken, too
        return np.sum(y * wrap(lambda a: y * a)(x))

    np.testing.assert_allclose(
        tg.grad(lambda x: loss(x, tg.checkpoint))(X),
        tg.grad(lambda x: loss(x, same))(X),
        rtol=1e-13,
    )


def test_under_no_grad():
    with tg.no_grad():
        y = tg.checkpoint(np.sin)(tg.array(X))
    np.testing.assert_array_equal(y.value, np.sin(X))
    assert not y.requires_grad


def test_a_custom_rule_inside():
    f = tg.custom_vjp(np.sin)
    f.defvjp(lambda x: (np.sin(x), x), lambda x, g: (g * np.cos(x),))
    assert tg.grad(tg.checkpoint(lambda x: f(x) * x))(0.3) == pytest.approx(
        np.sin(0.3) + 0.3 * np.cos(0.3), rel=1e-15
    )


def test_a_derivative_inside():
    """A gradient of the function's own, of plain numbers, is computed anew each time."""
    slope = tg.grad(np.sin)
    assert tg.grad(tg.checkpoint(lambda x: slope(0.5) * x))(2.0) == np.cos(0.5)


def test_a_sweep_in_another_thread():
    x = tg.array(X)
    y = tg.checkpoint(lambda x: np.sum(np.sin(x)))(x)
    recorder.turn_over()
    thread = threading.Thread(target=y.backward)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(x.grad, np.cos(X))


def test_recordings_beyond_the_limit(monkeypatch):
    """A tape that grows beyond its limit goes on in another one, which is as much on its own."""
    from tapegrad import tape

    monkeypatch.setattr(tape, "LOOK_CELLS", 64)

    def f(x, wrap):
        def body(x):
            for _ in range(100):
                x = x + 0.01 * np.sin(x) * w
                assert x > 0.0  # looks at the value
            return x

        w = x * 0.5
        return wrap(body)(x)

    plain = tg.grad(lambda x: f(x, same))(1.0)
    assert tg.grad(lambda x: f(x, tg.checkpoint))(1.0) == pytest.approx(plain, rel=1e-13)


@pytest.mark.parametrize(
    "derivative",
    [
        lambda w: tg.grad(tg.grad(lambda x: w(lambda y: np.sin(y) * y**3)(x)))(0.7),
        lambda w: tg.grad(lambda x: tg.grad(lambda y: w(lambda y: np.sin(y) * x**3)(y))(x))(0.7),
        lambda w: tg.grad(lambda x: w(lambda z: tg.grad(lambda y: np.sin(y * z) * x)(x))(x))(0.7),
        lambda w: tg.grad(lambda x: tg.vjp(lambda y: w(np.sin)(y) * y, 0.5)[1](x * x)[0])(0.7),
        lambda w: tg.jvp(lambda x: w(lambda y: np.sum(np.sin(y) * y))(x), (X,), (X,))[1],
        lambda w: np.sum(tg.hessian(lambda x: w(lambda y: np.sum(np.sin(y) * y[0]))(x))(X)),
        lambda w: np.sum(tg.jacobian(lambda x: w(lambda y: np.sin(y) * X)(x))(0.3)),
    ],
)
def test_derivatives_of_derivatives(derivative):
    assert derivative(tg.checkpoint) == pytest.approx(derivative(same), rel=1e-13)


def test_a_tracked_cotangent():
    """A sweep over a call that was recorded outside is recorded itself."""
    _, pull = tg.vjp(tg.checkpoint(lambda y: (np.sin(y) * y, 2.0 * y)), 0.5)
    slope = np.cos(0.5) * 0.5 + np.sin(0.5)
    assert tg.grad(lambda g: pull((g * g, g))[0])(0.7) == pytest.approx(1.4 * slope + 2.0)
    _, pull = tg.vjp(lambda y: tg.checkpoint(lambda z: np.sin(z) * y)(y), 0.5)
    with pytest.raises(tg.NotDifferentiableError, match=rf"pass these as arguments \({HERE}"):
        tg.grad(lambda g: pull(g)[0])(0.7)


def test_programs_run_the_function_anew():
    def f(x):
        w = x * 2.0
        inside = tg.checkpoint(lambda y: np.sin(y) * w if y > 0 else y * y * w)
        return inside(x + 0.1) + w

    program = tg.record(f, 0.3)
    for x in (0.3, 0.7, -0.5, 0.3):  # whatever is decided inside is decided anew
        value, gradient = program.value_and_grad(x)
        expected, slope = tg.value_and_grad(f)(x)
        assert value == pytest.approx(expected, rel=1e-14)
        assert gradient == pytest.approx(slope, rel=1e-13)


def test_a_program_notices_numbers_that_lost_their_way():
    f = tg.checkpoint(lambda x: (x * x, float(x.value)))
    program = tg.record(lambda x: f(x)[0] * f(x)[1], 2.0)
    assert program(2.0) == 8.0
    with pytest.raises(tg.NotDifferentiableError, match="must be returned tracked"):
        program(3.0)


# -- memory ----------------------------------------------------------------------------------------


def cells_and_gradient(wrap):
    peak = []

    def body(x):
        for _ in range(200):
            x = np.sin(x) + 0.1 * x
        return x

    def f(x):
        for _ in range(20):
            x = wrap(body)(x)
        peak.append(recorder.tape.next_cell)
        return x

    return tg.grad(f)(0.5), peak[0]


def test_the_interior_is_not_stored():
    gradient, stored = cells_and_gradient(tg.checkpoint)
    expected, all_cells = cells_and_gradient(same)
    assert gradient == pytest.approx(expected, rel=1e-13)
    assert all_cells > 20 * 200 * 3
    assert stored < 100


def test_recordings_are_freed_at_once():
    tapes = []

    def body(x):
        tapes.append(weakref.ref(recorder.tape))
        return np.sin(x)

    x = tg.array(X)
    gc.disable()
    try:
        y = np.sum(tg.checkpoint(body)(x))
        assert [tape() for tape in tapes] == [None]
        y.backward()
        y, _ = tg.checkpoint_loop(lambda x, i: body(x), x, 3, snapshots=2)
        y.backward(np.ones(2))
        assert len(tapes) > 6
        assert [tape() for tape in tapes] == [None] * len(tapes)
    finally:
        gc.enable()


# -- what cannot be --------------------------------------------------------------------------------


def test_random_numbers_are_noticed():
    rng = np.random.default_rng(0)
    f = tg.checkpoint(lambda x: x * rng.normal())
    with pytest.raises(tg.NotDifferentiableError, match=rf"another result.*random.*\({HERE}"):
        tg.grad(f)(1.0)


def test_other_values_from_outside_are_noticed():
    weights = iter([tg.array(2.0), tg.array(2.0)])
    f = tg.checkpoint(lambda x: x * next(weights))
    with pytest.raises(tg.NotDifferentiableError, match=rf"had not used before.*\({HERE}"):
        tg.grad(f)(1.0)


def test_constants_from_outside_that_become_tracked():
    def loss(x):
        y = tg.zeros(2)
        out = tg.checkpoint(lambda a: np.sum(y * a + a))(x)
        y[0] = x[0]
        return out

    with pytest.raises(tg.NotDifferentiableError, match=rf"has been assigned to since.*\({HERE}"):
        tg.grad(loss)(X)


def test_assignment_to_an_array_from_outside():
    def loss(x):
        y = x * 1.0

        def body(z):
            y[0] = z
            return y * 2.0

        return np.sum(tg.checkpoint(body)(x[1]))

    with pytest.raises(tg.NotDifferentiableError, match=rf"assigned to an array.*\({HERE}"):
        tg.grad(loss)(X)


def test_an_interior_value_does_not_outlive_the_call():
    leaked = []
    f = tg.checkpoint(lambda x: leaked.append(x * 2.0) or x)
    f(tg.array(1.0))
    with pytest.raises(tg.ReleasedTapeError):
        leaked[0] + 1.0


def test_an_error_inside_leaves_recording_usable():
    def fail(x):
        raise ZeroDivisionError("inside")

    x = tg.array(3.0)
    before = recorder.tape
    with pytest.raises(ZeroDivisionError, match="inside"):
        tg.checkpoint(fail)(x * x)
    assert recorder.tape is before
    (x * x).backward()
    assert float(x.grad) == 6.0


def test_not_a_function():
    with pytest.raises(TypeError, match=rf"expects a function.*\({HERE}"):
        tg.checkpoint(3.0)
