"""Sweeps of many directions, and the Jacobians that they give, against a sweep for each row."""

from __future__ import annotations

import signal
import threading
import time

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import backward, execute
from tapegrad import tape as module
from tapegrad.ops.structural import STRUCTURAL
from tapegrad.tape import recorder
from tapegrad.transforms import directions, rows

RNG = np.random.default_rng(11)
WEIGHTS = RNG.normal(size=(4, 5))
TIMES = np.linspace(0.0, 1.0, 9)


def scalars(x):
    s, t = x[0] * x[1], x[2]
    results = []
    for i in range(5):
        s, t = np.sin(s) + 2.0 / (1.0 + t * t), np.maximum(s, x[i]) - t**3
        results += [s * x[i], 3.0 - t, s]
    return np.stack(results)


def arrays(x):
    y = np.tanh(x[:, None] * x - 0.3 * x[::-1])
    y[1] = x * x
    return np.where(y > 0.1, y, np.exp(y)) / (2.0 + np.hypot(x, 1.0))


def structurals(x):
    y = x.reshape(5, 1) * np.arange(1.0, 4.0)
    parts = [y.sum(axis=0), y.sum(), y.prod(axis=1), y.max(axis=0), y.min(), np.cumsum(y, axis=1)]
    parts += [np.cumprod(y[:, 0]), WEIGHTS @ x, y.T @ y, x @ WEIGHTS.T, x @ x, (y.T @ x) * 2.0]
    return np.concatenate([np.ravel(part) for part in parts])


def gathered(x):
    y = np.zeros(8) + x[0]
    y[::2] = np.sin(x[:4])
    y[3] = x[4] * x[4]
    rows = np.stack([y[1:5], y[:4]])
    return np.concatenate([(rows @ y[2:6]), y.reshape(2, 4).sum(axis=1), np.cumsum(y[::-1])])


def peak(b):
    return b[0] * np.exp(-b[1] * TIMES) + b[2] * np.exp(-(((TIMES - b[3]) / b[4]) ** 2))


PROGRAMS = [scalars, arrays, structurals, gathered, peak]


def by_rows(f, x):
    """Return the Jacobian of f by one reverse sweep for each element of its output."""
    value, pull = tg.vjp(f, x)
    found = []
    for index in np.ndindex(np.shape(value)):
        seed = np.zeros(np.shape(value))
        seed[index] = 1.0
        found.append(pull(seed)[0])
    return np.reshape(found, np.shape(value) + np.shape(x))


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("executor", ["reference", "compiled"])
@pytest.mark.parametrize("mode", ["forward", "reverse", "auto"])
@pytest.mark.parametrize("f", PROGRAMS)
def test_jacobians_are_those_of_row_by_row_sweeps(f, mode, executor):
    x = np.array([0.7, -0.4, 1.1, 0.6, 0.9])
    with tg.executor(executor):
        want = by_rows(f, x)
        got = tg.jacobian(f, mode=mode)(x)
    assert got.shape == want.shape
    assert got.flags.c_contiguous
    assert got.flags.writeable
    np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("width", [1, 2, 3, 5])
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_chunks_of_directions_and_several_arguments(monkeypatch, mode, width):
    def f(p, s, unused):
        y = p["w"] @ np.stack([s, s * s]) + p["b"]
        return np.concatenate([y * s, [s]])

    p = {"w": RNG.normal(size=(3, 2)), "b": np.arange(3.0, dtype=np.float32)}
    want = tg.jacobian(f, argnums=(0, 1, 2), mode=mode)(p, 0.5, np.ones(2))
    monkeypatch.setattr(directions, "WIDTH", width)
    monkeypatch.setattr(directions, "WIDEST", width)
    got = tg.jacobian(f, argnums=(0, 1, 2), mode=mode)(p, 0.5, np.ones(2))
    for one, other in zip((got[0]["w"], *got[1:]), (want[0]["w"], *want[1:]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-14)
    assert got[0]["b"].dtype == np.float32
    np.testing.assert_array_equal(got[0]["b"], np.vstack([0.5 * np.eye(3), np.zeros((1, 3))]))
    np.testing.assert_allclose(got[1][3], 1.0)
    np.testing.assert_array_equal(got[2], np.zeros((4, 2)))


@pytest.mark.parametrize(("cells", "width"), [(100, 128), (2_000, 65), (10_000, 32), (10**8, 3)])
def test_the_larger_a_recording_the_fewer_directions_at_a_time(monkeypatch, cells, width):
    monkeypatch.setattr(directions, "MEMORY", 3 * 10**8 + 5)
    monkeypatch.setattr(module.Tape, "next_cell", property(lambda tape: cells))
    assert directions.width(recorder.tape) == width


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_there_is_one_direction_at_least(monkeypatch, mode):
    monkeypatch.setattr(directions, "MEMORY", 1)
    monkeypatch.setattr(directions, "CACHE", 1)
    got = tg.jacobian(lambda x: np.sin(x) * 2.0, mode=mode)(np.zeros(3))
    np.testing.assert_array_equal(got, 2.0 * np.eye(3))


# -- which way ------------------------------------------------------------------------------------


def used(monkeypatch):
    """Note which of the two sweeps are called."""
    calls = []
    for name in ("adjoints", "tangents"):
        sweep = getattr(directions, name)

        def noting(*args, name=name, sweep=sweep, **kwargs):
            calls.append(name)
            return sweep(*args, **kwargs)

        monkeypatch.setattr(directions, name, noting)
    return calls


def test_auto_sweeps_forward_unless_there_are_more_inputs_than_outputs(monkeypatch):
    calls = used(monkeypatch)
    tg.jacobian(lambda x: x * 2.0)(np.ones(3))
    assert calls == ["tangents"]
    tg.jacobian(lambda x: x[1:] * 2.0)(np.ones(3))
    assert calls == ["tangents", "adjoints"]
    tg.jacobian(lambda x: x.sum(), mode="forward")(np.ones(3))
    assert calls == ["tangents", "adjoints", "tangents"]


def test_without_a_forward_rule_auto_sweeps_backward(monkeypatch):
    monkeypatch.setattr(STRUCTURAL["cumsum"], "jvp", None)
    calls = used(monkeypatch)

    def f(x):
        return np.cumsum(np.concatenate([x, x]))

    want = np.cumsum(np.vstack([np.eye(2)] * 2), axis=0)
    np.testing.assert_array_equal(tg.jacobian(f)(np.ones(2)), want)
    assert calls == ["adjoints"]
    with pytest.raises(NotImplementedError, match=r"cumsum has no forward rule.*mode='reverse'"):
        tg.jacobian(f, mode="forward")(np.ones(2))
    np.testing.assert_array_equal(tg.jacobian(f, mode="reverse")(np.ones(2)), want)


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match=r"'auto', 'forward' or 'reverse', not 'foward'.*\.py"):
        tg.jacobian(np.sin, mode="foward")


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_constant_empty_and_scalar_outputs(mode):
    def jacobian(f):
        return tg.jacobian(f, mode=mode)

    np.testing.assert_array_equal(jacobian(lambda x: np.ones(2))(np.ones(3)), np.zeros((2, 3)))
    assert jacobian(lambda x: x[:0] * 2.0)(np.ones(3)).shape == (0, 3)
    assert jacobian(lambda x: np.ones(2) * x.sum())(np.ones(0)).shape == (2, 0)
    assert jacobian(lambda x: x * x)(3.0) == 6.0
    np.testing.assert_array_equal(jacobian(lambda x: x)(np.ones(2)), np.eye(2))
    np.testing.assert_array_equal(
        jacobian(lambda x: [x[1], 2.0, x[1]])(np.ones(2))[:, 1], [1, 0, 1]
    )

    def with_a_constant(x):
        return x * tg.array([2.0, 3.0])  # a leaf, but no argument

    np.testing.assert_array_equal(jacobian(with_a_constant)(np.ones(2)), np.diag([2.0, 3.0]))


# -- tapes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_recordings_of_several_linked_tapes(monkeypatch, mode):
    def f(x):
        y = x
        for i in range(100):
            y = np.sin(y) * x[i % 3] + y[::-1]
            y[i % 3] = y[0] * 0.5
        return np.concatenate([y, x * y[0], [y.sum()]])

    x = np.array([0.3, 0.2, 0.5])
    want = by_rows(f, x)
    monkeypatch.setattr(module, "BLOCK", 16)
    monkeypatch.setattr(module, "SEGMENT_CELLS", 64)
    tapes = []
    widths = directions.width
    monkeypatch.setattr(
        directions,
        "width",
        lambda tape, recording: tapes.extend(recording.tapes) or widths(tape, recording),
    )
    got = tg.jacobian(f, mode=mode)(x)
    assert len(tapes) > 5
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_tangents_of_leaves_of_the_current_tape():
    """One direction, of one of two leaves: what a Jacobian-vector product is."""
    recorder.turn_over()
    x, z = tg.array([1.0, 2.0]), tg.array(3.0)
    y = x * x * z
    tape, cells = backward.place_of(y)
    seeds = {id(x.storage.leaf or x.leaf): np.array([[1.0], [10.0]])}
    got = directions.tangents(tape, np.arange(cells, cells + 2), seeds)
    np.testing.assert_array_equal(got, [[6.0], [120.0]])


class OnlyBackward:
    """A host instruction that a user's code might bring: all it can is to sweep one column."""

    def __init__(self, call):
        self.reverse = call.reverse


@pytest.mark.parametrize("seeds", [np.eye(3), np.diag([1.0, 0.0, -2.0])])
def test_host_instructions_that_know_one_direction_only(seeds):
    recorder.turn_over()
    x = tg.array(np.array([1.0, 2.0, 4.0]))
    tape, cells = backward.place_of(np.cumprod(x * 2.0) + x)
    ((_, want),) = directions.adjoints(tape, cells, seeds)
    assert directions.carries_tangents(tape)
    tape.hosts[0] = OnlyBackward(tape.hosts[0])
    ((entry, got),) = directions.adjoints(tape, cells, seeds)
    np.testing.assert_array_equal(got, want)
    assert not directions.carries_tangents(tape)
    with pytest.raises(NotImplementedError, match="OnlyBackward has no forward rule"):
        directions.tangents(tape, np.arange(cells, cells + 3), {id(entry.leaf): np.eye(3)})


@pytest.mark.parametrize("executor", ["reference", "compiled"])
@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("f", PROGRAMS)
def test_what_lies_in_memory_before_a_sweep_does_not_matter(monkeypatch, f, mode, executor):
    monkeypatch.setattr(rows.results, "take", lambda n: np.full(n, np.nan))
    x = np.array([0.7, -0.4, 1.1, 0.6, 0.9])
    with tg.executor(executor):
        np.testing.assert_allclose(
            tg.jacobian(f, mode=mode)(x), by_rows(f, x), rtol=1e-13, atol=1e-14
        )


def test_a_rule_that_fails_leaves_nothing_behind(monkeypatch):
    want = tg.jacobian(structurals, mode="reverse")(np.ones(5))

    def fail(*args, **kwargs):
        raise RuntimeError("broken rule")

    with monkeypatch.context() as patch:
        patch.setattr(STRUCTURAL["max"], "vjp", fail)
        with pytest.raises(RuntimeError, match="broken rule"):
            tg.jacobian(structurals, mode="reverse")(np.ones(5))
    np.testing.assert_array_equal(tg.jacobian(structurals, mode="reverse")(np.ones(5)), want)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_directions_without_an_adjoint_are_skipped(mode):
    """An infinite partial makes nan in no direction that does not go through it."""

    def f(x):
        return np.stack([np.sqrt(x[0]), x[1], np.where(x[1] > 0.0, x[1], np.sqrt(x[0] - x[0]))])

    got = tg.jacobian(f, mode=mode)(np.array([0.0, 4.0]))
    np.testing.assert_array_equal(got, [[np.inf, 0.0], [0.0, 1.0], [0.0, 1.0]])


def test_much_work_switches_to_compiled_kernels_in_the_middle(monkeypatch):
    monkeypatch.setattr(execute, "_loaded", dict.fromkeys(execute.FAMILIES, False))
    monkeypatch.setattr(execute, "_work", dict.fromkeys(execute.FAMILIES, 0))
    monkeypatch.setattr(execute, "REFERENCE_WORK", 5_000)
    x = np.linspace(0.1, 0.9, 5)
    for mode in ("reverse", "forward"):
        first = tg.jacobian(scalars, mode=mode)(x)
        assert execute._loaded["vector"] == (mode == "forward")
        for _ in range(15):
            np.testing.assert_allclose(tg.jacobian(scalars, mode=mode)(x), first, rtol=1e-13)
    assert execute._loaded["vector"]


@pytest.mark.parametrize("sweep", ["adjoints", "tangents"])
def test_ctrl_c_interrupts_a_long_sweep(sweep):
    recorder.turn_over()
    x = tg.array([0.5])
    z = x[0]
    for _ in range(200_000):
        z = np.sin(z)
    tape, cell = backward.place_of(z)
    leaf = tape.imports[0].leaf
    m = 32

    def run():
        if sweep == "adjoints":
            return directions.adjoints(tape, np.array([cell]), np.ones((1, m)))[0][1]
        return directions.tangents(tape, np.array([cell]), {id(leaf): np.ones((1, m))})

    def handler(signum, frame):
        raise KeyboardInterrupt

    with tg.executor("compiled"):
        want = run()
        old = signal.signal(signal.SIGINT, handler)
        sent = []

        def send():
            sent.append(time.perf_counter())
            signal.raise_signal(signal.SIGINT)

        timer = threading.Timer(0.01, send)
        try:
            timer.start()
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012
                for _ in range(300):
                    run()
            assert time.perf_counter() - sent[0] < 0.2
        finally:
            timer.join()
            signal.signal(signal.SIGINT, old)
        np.testing.assert_array_equal(run(), want)


PRODUCTS = {
    "matrix on the left": lambda x: WEIGHTS @ np.tanh(x),
    "matrix on the right": lambda x: np.tanh(x) @ WEIGHTS.T,
    "two of them": lambda x: WEIGHTS.T @ (np.sin(WEIGHTS @ x) + WEIGHTS @ x),
    "several columns": lambda x: WEIGHTS @ (np.outer(x, x[:3]) ** 2),
    "several rows": lambda x: (np.outer(x[:3], x) ** 2) @ WEIGHTS.T,
    "a stack": lambda x: np.multiply.outer(np.outer(x[:2], x[1:]), x) @ WEIGHTS.T,
    "a stack of columns": lambda x: WEIGHTS @ np.multiply.outer(np.outer(x[:2], x), x[:2]),
    "vectors on both sides": lambda x: WEIGHTS[0] @ np.tanh(x) + np.sin(x) @ WEIGHTS[1],
    "a vector and columns": lambda x: WEIGHTS[0] @ np.outer(x, x[:3]),
    "not a run": lambda x: WEIGHTS @ (x * 1.0)[::-1] + WEIGHTS[:, ::2] @ (x * x)[::2],
    "some elements": lambda x: (WEIGHTS @ np.concatenate([[2.0, 1.0], x[:3] ** 2]))[1:3],
    "its operand is used before": lambda x: WEIGHTS @ np.tanh(x) * np.sum(np.tanh(x)[:2]),
    "nothing": lambda x: np.ones((3, 0)) @ x[:0] + x[:3],
}


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_a_constant_matrix(name, mode):
    f, x = PRODUCTS[name], np.array([0.7, -0.4, 1.1, 0.6, 0.9])
    want = by_rows(f, x)
    got = tg.jacobian(f, mode=mode)(x)
    np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-14)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_a_constant_matrix_times_a_vector(bias):
    """The short way for layers, diagonal seeds and others, against one direction at a time."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 5)), rng.normal(size=(4, 4))

    def f(x):
        h = np.tanh(first @ x[1:])
        return second @ (h + bias * x[:4]) + (second @ h) * h

    x = rng.normal(size=6)
    program = tg.record(f, x)
    rows = np.stack([program.vjp(x)[1](row)[0] for row in np.eye(4)])
    np.testing.assert_allclose(program.jacobian(x, mode="reverse"), rows, rtol=1e-13, atol=1e-14)


@pytest.mark.usefixtures("products")
def test_infinite_elements_of_a_matrix_meet_only_what_flows():
    matrix = np.array([[np.inf, 1.0], [2.0, 3.0]])
    jacobian = tg.jacobian(lambda x: np.stack([(matrix @ x)[1], x[0]]), mode="reverse")
    np.testing.assert_array_equal(jacobian(np.ones(2))[1], [1.0, 0.0])
