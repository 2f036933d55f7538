"""Long loops with few stored states: gradients, recomputation, memory, bad input."""

import os
from collections import Counter

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.checkpointing import loops, revolve

HERE = os.path.basename(__file__)


def plain_loop(body, state, n, **options):
    """Run the loop that `checkpoint_loop` stands for."""
    for i in range(n):
        state = body(state, i)
    return state, None


def pendulum(run, n, **options):
    """Return the final angle as a function of its start and of the damping."""

    def final(start, k):
        def step(s, i):
            angle, speed = s["angle"], s["speed"]
            speed = speed - 0.01 * (np.sin(angle) + k * speed) + 0.001 * (i % 3)
            return {"speed": speed, "angle": angle + 0.01 * speed}

        state, _ = run(step, {"angle": start, "speed": start * 0.0}, n, **options)
        return np.sum(state["angle"] * state["speed"])

    return final


@pytest.mark.parametrize(
    "options",
    [
        {"snapshots": 1},
        {"snapshots": 4},
        {"snapshots": 100},
        {"snapshots": 3, "block": 7},
        {"memory": 3 * 32},
        {"memory": 3 * 32, "block": 1},
        {},
    ],
)
def test_the_gradients_of_the_plain_loop(options):
    start = np.array([0.3, 1.2])
    got = tg.value_and_grad(pendulum(tg.checkpoint_loop, 50, **options), (0, 1))(start, 0.2)
    expected = tg.value_and_grad(pendulum(plain_loop, 50), (0, 1))(start, 0.2)
    assert got[0] == expected[0]
    np.testing.assert_allclose(got[1][0], expected[1][0], rtol=1e-13)
    assert got[1][1] == pytest.approx(expected[1][1], rel=1e-13)


def test_leaves_jacobian_and_check_gradients():
    def f(x, run):
        return run(lambda x, i: np.sin(x) * w + x[0] * 0.1, x, 9, snapshots=2)[0]

    w = tg.array([0.9, 1.1])
    x = tg.array([0.2, 0.4])
    f(x, tg.checkpoint_loop).sum().backward()
    got = x.grad, w.grad
    x.grad = w.grad = None
    f(x, plain_loop).sum().backward()
    np.testing.assert_allclose(got[0], x.grad, rtol=1e-13)
    np.testing.assert_allclose(got[1], w.grad, rtol=1e-13)
    start = np.array([0.2, 0.4])
    # One sweep a row: the states that the first one used up are computed again.
    np.testing.assert_allclose(
        tg.jacobian(lambda x: f(x, tg.checkpoint_loop))(start),
        tg.jacobian(lambda x: f(x, plain_loop))(start),
        rtol=1e-13,
    )
    tg.check_gradients(lambda x: np.sum(f(x, tg.checkpoint_loop)), start)


def test_other_values_from_outside_in_each_step():
    def loss(weights, run):
        return run(lambda x, i: np.tanh(x * weights[i]), 0.7, 6, snapshots=2)[0]

    weights = np.linspace(0.5, 1.5, 6)
    np.testing.assert_allclose(
        tg.grad(lambda w: loss(w * w, tg.checkpoint_loop))(weights),
        tg.grad(lambda w: loss(w * w, plain_loop))(weights),
        rtol=1e-13,
    )
    leaves = [tg.array(w) for w in weights]
    loss(leaves, tg.checkpoint_loop).backward()
    expected = tg.grad(lambda w: loss(w, plain_loop))(weights)
    np.testing.assert_allclose([w.grad for w in leaves], expected, rtol=1e-13)


def test_loops_in_loops_and_checkpoints():
    def f(x, run, wrap):
        def inner(y, i):
            return np.sin(y) + 0.1 * x * i

        def outer(y, i):
            return run(inner, y * y, 4, snapshots=2)[0]

        return wrap(lambda x: run(outer, x, 3, snapshots=1)[0])(x * 1.5)

    expected = tg.grad(lambda x: f(x, plain_loop, lambda f: f))(0.4)
    got = tg.grad(lambda x: f(x, tg.checkpoint_loop, tg.checkpoint))(0.4)
    assert got == pytest.approx(expected, rel=1e-13)


def test_states_of_several_kinds():
    def loss(x, run):
        state = (x, [1, np.array([2.0, 3.0])], np.float32(0.5))

        def body(state, i):
            x, (a, b), c = state
            assert c.dtype == np.float32
            return x * 1.1, [a + x, b * x], c * np.float32(2.0)

        x, (a, b), c = run(body, state, 5, snapshots=2)[0]
        return x * a + np.sum(b) + c

    assert tg.grad(lambda x: loss(x, tg.checkpoint_loop))(0.3) == pytest.approx(
        tg.grad(lambda x: loss(x, plain_loop))(0.3), rel=1e-13
    )


def test_constants_come_back_as_they_are():
    state, plan = tg.checkpoint_loop(lambda s, i: {"x": s["x"] + i}, {"x": 1.0}, 4)
    assert state == {"x": 7.0}
    assert plan.steps == 4
    assert tg.checkpoint_loop(lambda s, i: s, "kept", 0) == ("kept", tg.LoopPlan(0, 1, 0, 0))
    with tg.no_grad():
        state, _ = tg.checkpoint_loop(lambda s, i: s * 2.0, tg.array(1.0), 3)
    assert float(state.value) == 8.0


def test_derivatives_of_derivatives():
    def f(x, run):
        return run(lambda s, i: np.sin(s) * x, x, 5, snapshots=2)[0]

    assert tg.grad(tg.grad(lambda x: f(x, tg.checkpoint_loop)))(0.7) == pytest.approx(
        tg.grad(tg.grad(lambda x: f(x, plain_loop)))(0.7), rel=1e-14
    )


def test_a_tracked_cotangent():
    def f(x, run):
        state, _ = run(lambda s, i: [np.sin(s[0]) * s[1], s[0]], [x, 0.5], 4, snapshots=2)
        return state[0] * state[1]

    _, pull = tg.vjp(lambda x: f(x, tg.checkpoint_loop), 0.5)
    slope = tg.grad(lambda x: f(x, plain_loop))(0.5)
    assert tg.grad(lambda g: pull(g * g)[0])(0.7) == pytest.approx(1.4 * slope, rel=1e-13)


def test_programs_run_the_loop_anew():
    def f(x, run=tg.checkpoint_loop):
        k = x * 0.5
        return run(lambda s, i: s + k * np.sin(s), x * 1.0, 20, snapshots=3)[0] * k

    program = tg.record(f, 0.3)
    for x in (0.3, 0.9, 0.3):
        value, gradient = program.value_and_grad(x)
        expected, slope = tg.value_and_grad(lambda x: f(x, plain_loop))(x)
        assert value == pytest.approx(expected, rel=1e-14)
        assert gradient == pytest.approx(slope, rel=1e-13)


# -- recomputation and memory ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "snapshots", "block"), [(1, 1, 1), (2, 1, 1), (40, 3, 1), (100, 5, 1), (100, 4, 7)]
)
def test_as_many_steps_as_announced(n, snapshots, block):
    runs = Counter()

    def step(x, i):
        runs[i] += 1
        return x + 0.1 * np.sin(x)

    plans = []

    def f(x):
        x, plan = tg.checkpoint_loop(step, x, n, snapshots=snapshots, block=block)
        plans.append(plan)
        return x

    tg.grad(f)(1.0)
    (plan,) = plans
    assert (plan.steps, plan.block) == (n, block)
    assert plan.snapshots <= snapshots
    assert runs.total() == n + plan.recomputed
    if block == 1:
        # The theory's steps, of which the first run is n - 1; and each once more to be reversed.
        again = revolve.forward_steps(n, plan.snapshots) - (n - 1) + n
        assert plan.recomputed == again


def test_each_sweep_needs_as_many_again():
    runs = []
    x = tg.array(0.5)
    y, plan = tg.checkpoint_loop(lambda x, i: runs.append(i) or np.sin(x), x, 20, snapshots=3)
    assert len(runs) == 20
    y.backward()
    assert len(runs) == 20 + plan.recomputed
    y.backward()  # the stored states were used up: the loop runs forward once more
    assert len(runs) == 20 + 19 + 2 * plan.recomputed
    np.testing.assert_allclose(x.grad, 2 * tg.grad(lambda x: _sines(x, 20))(0.5), rtol=1e-13)


def _sines(x, n):
    for _ in range(n):
        x = np.sin(x)
    return x


def test_no_more_states_than_allowed(monkeypatch):
    """The stored states are the rows of one array, which the budget bounds."""
    sizes = []
    run = loops._Run

    def noted(values, slots, present, rest):
        sizes.append(slots.nbytes)
        return run(values, slots, present, rest)

    monkeypatch.setattr(loops, "_Run", noted)
    size = 1000
    gradient = tg.grad(
        lambda x: np.sum(
            tg.checkpoint_loop(lambda x, i: x + 0.1 * np.sin(x), x, 60, memory=10 * 8 * size)[0]
        )
    )
    result = gradient(np.full(size, 0.3))
    assert sizes
    assert max(sizes) <= 10 * 8 * size
    slope = 1.0
    x = 0.3
    for _ in range(60):
        slope *= 1.0 + 0.1 * np.cos(x)
        x += 0.1 * np.sin(x)
    np.testing.assert_allclose(result, slope, rtol=1e-12)


def test_recordings_stay_small():
    """No recording is longer than a block, wherever the loop is."""
    from tapegrad.tape import recorder

    seen = []

    def step(x, i):
        seen.append(recorder.tape.next_cell)
        return x + 1e-6 * np.sin(x)

    n = 30_000
    tg.grad(lambda x: tg.checkpoint_loop(step, x, n, memory=1000)[0])(1.0)
    assert max(seen) < 2 * loops.BLOCK_CELLS
    assert len(seen) >= 2 * n


@pytest.mark.slow
def test_a_million_steps_in_a_megabyte():
    def f(k):
        x, plan = tg.checkpoint_loop(
            lambda x, i: x + k * x * (1.0 - x), 0.5, 1_000_000, memory=1_000_000
        )
        assert plan.steps == 1_000_000
        assert plan.snapshots * 8 <= 1_000_000
        return x

    k, x, slope = 1e-7, 0.5, 0.0
    for _ in range(1_000_000):
        slope += x * (1.0 - x) + k * (1.0 - 2.0 * x) * slope
        x += k * x * (1.0 - x)
    assert tg.grad(f)(k) == pytest.approx(slope, rel=1e-9)


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "n", "options", "error", "message"),
    [
        (1.0, -1, {}, ValueError, "integer from 0, not -1"),
        (1.0, 2.5, {}, ValueError, "integer from 0, not 2.5"),
        (1.0, 3, {"memory": 7}, ValueError, "hold no state of 8 bytes"),
        (1.0, 3, {"memory": 8, "snapshots": 1}, TypeError, "not both"),
        (1.0, 3, {"snapshots": 0}, ValueError, "at least one stored state"),
        (1.0, 3, {"block": 0}, ValueError, "at least one step"),
        ({"a": "text"}, 3, {}, TypeError, r"state\['a'\] is a str"),
        ((1.0, True), 3, {}, TypeError, r"state\[1\] is a bool"),
        ([], 3, {}, ValueError, "no elements"),
    ],
)
def test_bad_arguments(state, n, options, error, message):
    with pytest.raises(error, match=message) as caught:
        tg.checkpoint_loop(lambda s, i: s, state, n, **options)
    assert f"({HERE}:" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda s, i: [s[0]], "expected a list of 2, got a list of 1"),
        (lambda s, i: {"a": s[0], "b": s[1]}, "got a dict"),
        (lambda s, i: [s[0], s[1][:1]], r"state\[1\] was of shape \(2,\).* \(1,\)"),
        (lambda s, i: [s[0].astype(np.float32), s[1]], r"state\[0\] .*float64.*step 0.*float32"),
    ],
)
def test_a_body_that_changes_the_form_of_its_state(body, message):
    with pytest.raises(ValueError, match=f"must keep its state's form.*{message}"):
        tg.grad(lambda x: tg.checkpoint_loop(body, [x, np.ones(2) * x], 4)[0][0])(1.0)


def test_random_numbers_are_noticed():
    rng = np.random.default_rng(0)
    with pytest.raises(tg.NotDifferentiableError, match="another result than before"):
        tg.grad(lambda x: tg.checkpoint_loop(lambda x, i: x * rng.normal(), x, 5, snapshots=2)[0])(
            1.0
        )
