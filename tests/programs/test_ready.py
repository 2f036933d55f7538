"""Replays of small programs as single calls: what they answer, and when they stand aside."""

import threading

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import execute
from tapegrad.programs import ready, recorded
from tapegrad.programs.rolled import Replays


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    """Make replays ready after the second, whatever was swept before."""
    monkeypatch.setattr(recorded, "READY_AFTER", 2)
    execute.load("scalar")


def made_ready(f, *args):
    """Return a program that has been replayed often enough, and whose calls are there."""
    program = tg.record(f, *args)
    for _ in range(2):
        program(*args)
    assert program._calls is not None
    return program


def smooth(x, y, z):
    for _ in range(5):
        x = np.sin(y * x) + z / (1.0 + x * x)
    return x


POINTS = [(0.3, 1.1, -0.7), (2.0, 0.0, 1.0), (-0.0, 1e300, np.inf), (np.nan, 1.0, 2.0)]


def same(one, other):
    """Whether two results have the same structure, types, shapes and bits."""
    if isinstance(one, tuple):
        return isinstance(other, tuple) and all(map(same, one, other)) and len(one) == len(other)
    return (
        type(one) is type(other)
        and np.shape(one) == np.shape(other)
        and np.asarray(one).tobytes() == np.asarray(other).tobytes()
    )


@pytest.fixture
def never_slow(monkeypatch):
    """Refuse replays that are not single calls."""

    def refuse(*args):
        raise AssertionError("this replay should have been one call")

    def forbid():
        monkeypatch.setattr(recorded.Recorded, "_leaves", refuse)

    return forbid


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("argnums", [0, 2, -1, (0, 1, 2), (1,), (2, 0), ()])
def test_numbers_give_the_bits_of_other_replays(argnums, never_slow):
    program = made_ready(smooth, *POINTS[0])
    with tg.progress():  # under which all replays are made in the other way
        expected = [program.value_and_grad(*point, argnums=argnums) for point in POINTS]
        values = [program(*point) for point in POINTS]
    program.value_and_grad(*POINTS[0], argnums=argnums)
    never_slow()
    for point, both, value in zip(POINTS, expected, values, strict=True):
        assert same(program.value_and_grad(*point, argnums=argnums), both)
        assert same(program(*map(np.float64, point)), value)


def test_arrays_and_numbers(never_slow):
    def f(x, a, m):
        total = a * a
        for i in range(3):
            total = total + x[i] * m[i, 1] + m[0, 0] / x[i]
        return total

    rng = np.random.default_rng(0)
    points = [(rng.random(3), rng.random(), rng.random((3, 2))) for _ in range(3)]
    program = made_ready(f, *points[0])
    expected = [tg.value_and_grad(f, (0, 1, 2))(*point) for point in points]
    program.value_and_grad(*points[0], argnums=(0, 1, 2))
    never_slow()
    results = [program.value_and_grad(*point, argnums=(0, 1, 2)) for point in points]
    for found, wanted in zip(results, expected, strict=True):
        assert found[0] == pytest.approx(wanted[0], rel=1e-15)  # the tape is simplified
        for one, other in zip(found[1], wanted[1], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-15)
    assert not np.shares_memory(results[0][1][0], results[1][1][0])
    strided = rng.random((3, 4))[:, ::2].T.copy().T
    assert program(points[0][0], 1.0, strided) == pytest.approx(f(points[0][0], 1.0, strided))


def test_structured_results(never_slow):
    def f(x, y):
        return {"product": x * y, "both": (x + y, tg.array([x, y * y]))}

    program = made_ready(f, 2.0, 3.0)
    never_slow()
    found = program(4.0, 5.0)
    assert list(found) == ["product", "both"]
    assert found["product"] == 20.0
    assert found["both"][0] == 9.0
    np.testing.assert_array_equal(found["both"][1], [4.0, 25.0])


def test_other_arguments_are_sorted_out_as_before():
    program = made_ready(smooth, *POINTS[0])
    assert program(1, np.array(2.0), 3) == program(1.0, 2.0, 3.0)
    with pytest.raises(TypeError, match="3 positional arguments"):
        program(1.0, 2.0)
    with pytest.raises(ValueError, match="shape"):
        program(np.ones(1), 2.0, 3.0)
    with pytest.raises(TypeError):
        program(1.0, "2.0", 3.0)
    assert program.value_and_grad(*POINTS[0], argnums=[0, 1]) == program.value_and_grad(
        *POINTS[0], argnums=(0, 1)
    )
    assert tg.grad(lambda x: program(x, 1.1, -0.7))(0.3) == pytest.approx(
        program.value_and_grad(*POINTS[0])[1], rel=1e-14
    )


def test_shapes_and_dtypes_must_fit():
    def f(x):
        return x[0] * x[1]

    program = made_ready(f, np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="shape"):
        program(np.array([1.0, 2.0, 3.0]))
    assert program(np.array([3, 4])) == 12.0
    assert program([3.0, 4.0]) == 12.0
    assert program(np.array([3.0, 4.0], ">f8")) == 12.0


def test_a_changed_decision_is_noticed_and_leaves_no_adjoints(never_slow):
    def f(x, y):
        if x > y:
            return x * y
        return x + y

    program = made_ready(f, 2.0, 1.0)
    program.value_and_grad(2.0, 1.0, argnums=(0, 1))
    never_slow()
    for call in (program, lambda *args: program.value_and_grad(*args, argnums=(0, 1))):
        with pytest.raises(tg.ControlFlowChanged, match="truth of a value") as caught:
            call(1.0, 2.0)
        assert caught.value.number == 0
        assert not caught.value.outcome
    assert program.value_and_grad(3.0, 2.0, argnums=(0, 1)) == (6.0, (2.0, 3.0))


def bent(x, y):
    """Decide a thousand times on one line, mostly in evenly spaced cells, and elsewhere."""
    total = y
    for i in range(1000):
        total = total + (x * 0.001 if total > i * 1e-6 else y)
        if i in (7, 500):
            total = total * int(y + 0.5)
    return total


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("slice_", [1 << 12, 100, 1])
def test_of_many_decisions_the_first_that_changed_is_named(monkeypatch, slice_, compiled):
    monkeypatch.setattr(ready, "SLICE", slice_)
    program = tg.record(bent, 1.0, 1.25)
    if compiled:
        program.compile()
    with tg.progress():
        expected = program.value_and_grad(0.9, 1.3, argnums=(0, 1))
    for _ in range(3):
        program(0.9, 1.3)
    made = program.tape.replays.ready
    runs, singles = made._held[1], made._cells[4]
    assert len(runs) if slice_ > 1 else len(singles) == len(program.decisions)
    assert program.value_and_grad(0.9, 1.3, argnums=(0, 1)) == expected
    for point in ((-50.0, 1.0), (-2.0, 1.2), (1.0, 1.75), (0.1, -1.0), (-1.0, 0.9)):
        numbers = []
        for context in (tg.progress(), tg.executor("compiled")):
            with context, pytest.raises(tg.ControlFlowChanged) as caught:
                program.value_and_grad(*point)
            numbers.append((caught.value.number, caught.value.outcome))
        assert numbers[0] == numbers[1]
    assert program.value_and_grad(0.9, 1.3, argnums=(0, 1)) == expected


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_nan_that_was_looked_at_stays_a_nan():
    def f(x):
        y = x * np.inf
        y.item()
        return x + 1.0

    program = made_ready(f, 0.0)
    assert program(-0.0) == 1.0
    with pytest.raises(tg.ControlFlowChanged):
        program(1.0)


def test_captured_leaves_give_nothing_back():
    held = tg.array(3.0)
    program = made_ready(lambda x: x * held + held * held, 2.0)
    for _ in range(3):
        assert program.value_and_grad(2.0) == (15.0, 3.0)
    assert not program.tape.replays.ready.g.any()


def test_programs_of_other_arguments_or_decisions_are_left_alone():
    for f, args in (
        (lambda x, n: x * n, (1.0, 3)),
        (lambda x: x[0] * 2.0, (np.ones(2, np.float32),)),
        (lambda x: x * 2.0 if np.argmax(tg.array([x, 1.0])) else x, (3.0,)),
    ):
        program = tg.record(f, *args)
        first = program(*args)
        for _ in range(4):
            assert program(*args) == first
        assert program._calls is None


def test_loops_are_compiled_when_replays_have_taken_long(monkeypatch):
    def f(x):
        for _ in range(100):
            x = x - 0.01 * x * x
        return x

    monkeypatch.setattr(Replays, "until_due", lambda self: 5)
    program = made_ready(f, 1.0)
    expected = program.value_and_grad(0.5)
    for _ in range(10):
        assert program.value_and_grad(0.5) == expected
    assert program.tape.replays.rolled is not None
    assert len(program.tape.replays.rolled) == 1
    calls = program._calls
    assert not calls.spent
    assert program.value_and_grad(0.5) == expected


def test_a_tape_too_large_is_swept_as_others(monkeypatch):
    monkeypatch.setattr(ready, "CELLS", 3)
    program = tg.record(smooth, *POINTS[0])
    for _ in range(4):
        program(*POINTS[0])
    assert program.tape.replays.ready is None


def test_threads_share_a_program():
    program = made_ready(smooth, *POINTS[0])
    points = np.random.default_rng(1).random((200, 3)).tolist()
    expected = [program.value_and_grad(*point, argnums=(0, 1, 2)) for point in points]
    wrong = []

    def work():
        for point, wanted in zip(points, expected, strict=True):
            if program.value_and_grad(*point, argnums=(0, 1, 2)) != wanted:
                wrong.append(point)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_files_and_other_derivatives_go_on(tmp_path):
    program = made_ready(smooth, *POINTS[0])
    program.save(tmp_path / "p.tape")
    loaded = tg.load(tmp_path / "p.tape")
    for _ in range(4):
        assert loaded(*POINTS[1]) == program(*POINTS[1])
    assert loaded._calls is not None
    value, pull = program.vjp(*POINTS[0])
    assert (value, pull(1.0)) == program.value_and_grad(*POINTS[0], argnums=(0, 1, 2))
    np.testing.assert_allclose(
        program.hessian(0.3, 1.1, -0.7), tg.hessian(lambda x: smooth(x, 1.1, -0.7))(0.3), rtol=1e-12
    )
