"""Replays of small programs with arrays as lists of calls: what they answer, and when."""

import gc

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import execute
from tapegrad.programs import planned, recorded
from tapegrad.regions import threads

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    """Make replays ready after the second."""
    monkeypatch.setattr(recorded, "READY_AFTER", 2)
    execute.load("scalar")
    execute.load("regions")


def made_ready(f, *args):
    """Return a program that has been replayed often enough, and whose calls are there."""
    program = tg.record(f, *args)
    for _ in range(2):
        program(*args)
    assert program._calls is not None
    gc.collect()  # what the calls refer to by addresses has to stay
    return program


def elementwise(x, row, a):
    for _ in range(4):
        x = np.sin(x) * row + a / (1.0 + x * x)
    return np.sum(x) + a


def structural(x, m, b):
    """Use products, scans, sums along axes, and numbers in between."""
    y = np.tanh(x @ m + b)
    y = y + np.cumsum(y, axis=1) * np.prod(b)
    scale = np.sqrt(np.sum(y * y))
    z = m.T @ (y / scale)[0]
    return z @ z + scale * b[1]


def extremes(x, m):
    return np.max(x * m) + np.sum(np.min(x + m, axis=1)) * 2.0


def gathered(x, m):
    y = x[[2, 0, 1, 0]] * 2.0
    w = tg.zeros((3, 2))
    w[0] = x[:2]
    w[1:] = m[::2, ::-1]
    z = w @ m.T
    z[0, 0] += y[1]
    return np.sum(np.exp(-z)) + np.sum(y) * np.sum(w[:, 1])


def long_arguments(x, m):
    """Have imports that regions, a product and numbers use."""
    return np.sum(x * x) + x[3] * x[0] + (m @ x)[1] + np.sum(np.where(x > 0.5, x, 0.0))


def constants(x):
    held = np.linspace(0.0, 1.0, 6).reshape(2, 3)
    return np.sum(held * x) * 3.0 + np.sum((held @ x) ** 2)


def many_lanes(x, a):
    """Have regions that are spread over threads."""
    for _ in range(20):
        x = x * a + 0.1 / (1.0 + x * x)
    return np.sum(x)


CASES = {
    "elementwise": (elementwise, lambda: (rng.random((3, 3)), rng.random(3), rng.random())),
    "structural": (structural, lambda: (rng.random((4, 3)), rng.random((3, 3)), rng.random(3))),
    "extremes": (extremes, lambda: (rng.integers(0, 3, (4, 5)) / 2.0, np.ones((4, 5)))),
    "gathered": (gathered, lambda: (rng.random(3), rng.random((3, 2)))),
    "long_arguments": (long_arguments, lambda: (rng.random(300), rng.random((2, 300)))),
    "many_lanes": (many_lanes, lambda: (rng.random(8000), rng.random())),
    "constants": (constants, lambda: (rng.random(3),)),
}


@pytest.fixture
def never_slow(monkeypatch):
    """Refuse replays that are not made by calls."""

    def refuse(*args):
        raise AssertionError("this replay should have been made by calls")

    def forbid():
        monkeypatch.setattr(recorded.Recorded, "_leaves", refuse)

    return forbid


def close(found, wanted):
    # The same functions in vectors and one by one, which differ in the last places; sums of some
    # hundred terms in another order.
    np.testing.assert_allclose(found, wanted, rtol=1e-13, atol=1e-14)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, never_slow):
    f, arguments = CASES[name]
    points = [arguments() for _ in range(4)]
    argnums = tuple(range(len(points[0])))
    program = made_ready(f, *points[0])
    expected = [tg.value_and_grad(f, argnums)(*point) for point in points]
    program.value_and_grad(*points[0], argnums=argnums)
    never_slow()
    for point, (value, gradients) in zip(points, expected, strict=True):
        for _ in range(2):  # the second finds what the first has left behind
            found = program.value_and_grad(*point, argnums=argnums)
            close(found[0], value)
            for one, other in zip(found[1], gradients, strict=True):
                close(one, other)
            close(program(*point), value)


@pytest.mark.usefixtures("products")
def test_the_bits_of_other_replays(never_slow):
    def f(x, row):
        for _ in range(300):
            x = np.sin(x) * row + np.exp(-x)
        return np.sum(x)

    points = [(rng.random((3, 3)), rng.random(3)) for _ in range(3)]
    program = made_ready(f, *points[0])
    assert program.tape.flushed_cell > execute.REGION_CELLS  # so that those are by regions, too
    with tg.progress():  # under which replays are made in the other way
        expected = [program.value_and_grad(*point, argnums=(0, 1)) for point in points]
        values = [program(*point) for point in points]
    program.value_and_grad(*points[0], argnums=(0, 1))
    never_slow()
    for point, (value, gradients), other in zip(points, expected, values, strict=True):
        found = program.value_and_grad(*point, argnums=(0, 1))
        assert found[0] == value
        assert program(*point) == other
        for one, two in zip(found[1], gradients, strict=True):
            np.testing.assert_array_equal(one, two)


def test_arrays_and_structures_are_given(never_slow):
    def f(x, m):
        y = m @ x
        return {"y": y, "parts": (np.sum(y), np.exp(y)[None, :] * m)}

    points = [(rng.random(3), rng.random((3, 3))) for _ in range(2)]
    program = made_ready(f, *points[0])
    never_slow()
    results = [program(*point) for point in points]
    for (x, m), found in zip(points, results, strict=True):
        close(found["y"], m @ x)
        close(found["parts"][0], np.sum(m @ x))
        close(found["parts"][1], np.exp(m @ x)[None, :] * m)
    assert not np.shares_memory(results[0]["y"], results[1]["y"])


def test_a_changed_decision_is_noticed_and_leaves_no_adjoints(never_slow):
    def f(x):
        y = x * x
        if np.sum(y) > 1.0:
            return np.sum(y * y)
        return np.sum(y)

    program = made_ready(f, np.ones(3))
    program.value_and_grad(np.ones(3))
    never_slow()
    for call in (program, program.value_and_grad):
        with pytest.raises(tg.ControlFlowChanged):
            call(np.full(3, 0.1))
        with pytest.raises(tg.ControlFlowChanged):
            call(np.full(3, np.nan))
    value, gradient = program.value_and_grad(np.array([1.0, 2.0, 3.0]))
    assert value == 98.0
    np.testing.assert_array_equal(gradient, [4.0, 32.0, 108.0])


def test_what_is_interrupted_leaves_nothing_behind(monkeypatch):
    made = threads.prepared
    broken = []

    def prepared(region, addresses, at):
        call, held = made(region, addresses, at)

        def perhaps():
            if broken and len(region.code) > 3:
                raise KeyboardInterrupt
            call()

        return perhaps, held

    monkeypatch.setattr(threads, "prepared", prepared)
    program = made_ready(lambda x: np.sum((x @ x) * np.exp(x) * x), rng.random((3, 3)))
    x = rng.random((3, 3))
    expected = program.value_and_grad(x)
    broken.append(True)
    with pytest.raises(KeyboardInterrupt):
        program.value_and_grad(x)
    broken.clear()
    found = program.value_and_grad(x)
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1], expected[1])


def test_other_ways_of_the_program_go_on(tmp_path):
    f, arguments = CASES["structural"]
    point = arguments()
    program = made_ready(f, *point)
    value, gradients = program.value_and_grad(*point, argnums=(0, 1, 2))
    assert program(*map(np.ndarray.tolist, point)) == value
    other, pull = program.vjp(*point)
    close(other, value)
    for one, two in zip(pull(1.0), gradients, strict=True):
        close(one, two)
    close(program.jacobian(*point), gradients[0])
    close(program.hvp(*point, np.ones((4, 3))), tg.hvp(f)(*point, np.ones((4, 3))))
    close(tg.grad(lambda x: program(x, *point[1:]))(point[0]), gradients[0])
    program.save(tmp_path / "p.tape")
    loaded = made_ready(tg.load(tmp_path / "p.tape"), *point)
    close(loaded(*point), value)
    with pytest.raises(ValueError, match="shape"):
        program(point[0][:2], *point[1:])


def test_captured_leaves_give_nothing_back(never_slow):
    held = tg.array([1.0, 2.0, 3.0])
    program = made_ready(lambda x: np.sum(x * held * held), np.ones(3))
    program.value_and_grad(np.ones(3))
    never_slow()
    for _ in range(3):
        value, gradient = program.value_and_grad(np.ones(3))
        assert value == 14.0
        np.testing.assert_array_equal(gradient, [1.0, 4.0, 9.0])


def test_compiling_alone_changes_no_bits(monkeypatch):
    """Few cells are computed one by one at first, by other functions than those of vectors."""

    def f(x):
        return np.sum(np.exp(np.sin(x) * x))

    monkeypatch.setattr(recorded, "READY_AFTER", 100)
    x = rng.random((3, 3))
    program = tg.record(f, x)
    with tg.executor("compiled"):
        expected = tg.value_and_grad(f)(x)
        for _ in range(2):
            found = program.value_and_grad(x)
            assert found[0] == expected[0]
            np.testing.assert_array_equal(found[1], expected[1])
            program.compile()
    assert program._calls is None


def test_regions_are_compiled_when_replays_have_taken_long(monkeypatch):
    monkeypatch.setattr(planned.Planned, "replays_until_due", lambda self: 5)
    monkeypatch.setattr(planned.straight, "cost", lambda region: 0.0)  # though it takes longer
    program = made_ready(lambda x: np.sum(x * x * 0.5 + x), np.ones(3))
    x = rng.random(3)
    expected = program.value_and_grad(x)
    for _ in range(10):
        found = program.value_and_grad(x)
        assert found[0] == expected[0]
        np.testing.assert_array_equal(found[1], expected[1])
    assert program.tape.replays.rolled is not None
    assert any(region.lowered.straight for plan in program.tape.plans.values()
               for step in plan.steps for region in step.regions if region.lowered)  # fmt: skip
    assert not program._calls.spent


def test_programs_that_are_large_or_call_python_are_left_alone(monkeypatch):
    @tg.custom_vjp
    def square(x):
        return x * x

    square.defvjp(lambda x: (x * x, x), lambda x, g: (2.0 * x * g,))
    with monkeypatch.context() as patched:
        patched.setattr(planned, "NUMBERS", 3)
        program = tg.record(lambda x: np.sum(x * x), np.ones(3))
        for _ in range(4):
            assert program(np.ones(3)) == 3.0
        assert program._calls is None
    for f, x in (
        (lambda x: np.sum(np.sin(square(x))), np.ones(3)),
        (lambda x: np.sum(np.sin(x)), np.ones((2, 1, 2, 1, 2, 1, 2)).swapaxes(0, 6)),
    ):
        program = tg.record(f, x)
        for _ in range(4):
            program(x)
        assert (program._calls is None) == (x.ndim == 1)
