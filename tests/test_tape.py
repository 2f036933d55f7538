"""The tape: blocks, segments, imports, threads, interruptions, and what memory it keeps."""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
import weakref

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import execute
from tapegrad import tape as module
from tapegrad.tape import recorder


@pytest.fixture(autouse=True)
def fresh_tape():
    recorder.turn_over()
    yield
    recorder.turn_over()


def chain(x, n):
    y = x
    for _ in range(n):
        y = y * 1.0 + x * 1e-6
    return y


# -- blocks and segments -------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 8, 9, 100])
def test_recording_goes_on_across_blocks(monkeypatch, n):
    monkeypatch.setattr(module, "BLOCK", 8)
    recorder.turn_over()
    x = tg.array(2.0)
    y = chain(x, n)
    y.backward()
    assert y.value == pytest.approx(2.0 + n * 2e-6, rel=1e-12)
    assert x.grad == pytest.approx(1.0 + n * 1e-6, rel=1e-12)


def test_segments_link_to_each_other(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 16)
    monkeypatch.setattr(module, "SEGMENT_CELLS", 64)
    recorder.turn_over()
    x = tg.array(2.0)
    first = recorder.tape
    y = chain(x, 500)
    assert recorder.tape is not first
    y.backward()
    assert x.grad == pytest.approx(1.0 + 500e-6, rel=1e-12)


def test_arrays_move_between_segments(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 16)
    monkeypatch.setattr(module, "SEGMENT_CELLS", 64)
    recorder.turn_over()
    x = tg.array(np.linspace(1.0, 2.0, 10))
    y = tg.zeros(10)
    for _ in range(20):
        for i in range(10):
            y[i] = y[i] + x[i] * x[i]
    (y * x).sum().backward()
    np.testing.assert_allclose(x.grad, 20 * 3 * x.value**2, rtol=1e-13)


def test_gradients_through_an_earlier_swept_recording():
    x = tg.array(3.0)
    y = x * x
    y.backward()
    z = y * y  # y belongs to the tape that was swept already
    z.backward()
    assert x.grad == 6.0 + 4 * 27.0
    z.backward()
    assert x.grad == 6.0 + 2 * 4 * 27.0


def test_two_outputs_share_their_parts():
    x = tg.array([1.0, 2.0])
    shared = np.exp(x)
    y1, y2 = shared.sum(), (shared * x).sum()
    y1.backward()
    y2.backward()
    np.testing.assert_allclose(x.grad, np.exp(x.value) * (2 + x.value), rtol=1e-15)


def test_a_chain_of_swept_recordings():
    x = tg.array(1.0)
    y = x
    for _ in range(200):
        y = y * 1.001
        y.backward()
    expected = sum(1.001**k for k in range(1, 201))
    assert x.grad == pytest.approx(expected, rel=1e-12)


def test_a_million_operations_and_a_diamond_of_two_to_the_sixty_paths():
    x = tg.array(1.0)
    y = x
    for _ in range(1_000_000):
        y = y + x
    y.backward()
    assert x.grad == 1_000_001.0
    x = tg.array(1.0)
    y = x
    for _ in range(60):
        y = y + y
    before = recorder.tape.next_cell
    y.backward()
    assert x.grad == 2.0**60
    assert before < 100


def test_a_long_chain_of_tapes_is_freed_without_recursion():
    x = tg.array(1.0)
    y = x
    for _ in range(20_000):
        y = y * 1.0
        recorder.turn_over()
    y.backward()
    assert x.grad == 1.0
    del y
    gc.collect()


# -- memory --------------------------------------------------------------------------------------


def resident_bytes():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_a_training_loop_runs_in_flat_memory():
    execute.load("scalar")  # not in the middle of the loop, where it would look like a leak
    execute.load("lanes")
    w = tg.array([1.0, 2.0])
    b = tg.array(0.5)
    data = np.linspace(0.0, 1.0, 3)

    def step(w, b):
        loss = ((w[0] * data + w[1] * b) ** 2).sum()
        loss.backward()
        return tg.array(w.value - 1e-6 * w.grad), tg.array(b.value - 1e-6 * b.grad), loss

    losses = None
    for _ in range(2000):
        w, b, losses = step(w, b)
    before = resident_bytes()
    tapes = weakref.WeakSet()
    for _ in range(20_000):
        w, b, losses = step(w, b)
        tapes.add(losses.tape)
    assert resident_bytes() - before < 4 << 20
    assert len(tapes) <= 3


def test_swept_tapes_are_freed_with_their_last_value():
    x = tg.array(2.0)
    y = x * x
    tape = weakref.ref(y.tape)
    y.backward()
    assert tape() is not None
    del y
    assert tape() is None


def test_a_leaf_does_not_keep_its_last_tape():
    x = tg.array([1.0, 2.0])
    (x * x).sum().backward()
    assert x.storage.tape is None


@linux
@pytest.mark.parametrize("look", ["value", "decision", "drop"])
def test_a_loop_without_backward_runs_in_bounded_memory(monkeypatch, look):
    monkeypatch.setattr(module, "LOOK_CELLS", 1 << 12)
    monkeypatch.setattr(module, "SEGMENT_CELLS", 1 << 14)
    x = tg.array(2.0)
    kept = x * x  # a live value of the first tape
    tapes = weakref.WeakSet()
    for _ in range(20_000):
        y = kept * x + 1.0
        if look == "value":
            assert y.value == 9.0
        elif look == "decision":
            assert y > 8.0
        tapes.add(recorder.tape)
    assert len(tapes) < 4
    assert y.value == 9.0
    y.backward()
    assert x.grad == 12.0


def test_many_live_small_tapes():
    losses = []
    x = tg.array(1.0)
    for k in range(3000):
        y = x * float(k + 1)
        y.backward()
        losses.append(y)
    assert sum(y.value for y in losses) == 3000 * 3001 / 2
    assert recorder.tape.next_cell == 0


def test_what_is_recorded_under_no_grad_has_no_gradient():
    x = tg.array([1.0, 2.0])
    with tg.no_grad():
        y = (x * x).sum()
        assert not y.requires_grad
        with pytest.raises(tg.NoGradientError):
            y.backward()
    z = (x * y).sum()
    z.backward()
    np.testing.assert_array_equal(x.grad, [5.0, 5.0])


# -- released values -----------------------------------------------------------------------------


def test_a_value_that_escapes_from_grad_raises():
    escaped = []

    def f(x):
        escaped.append(x * 2.0)
        escaped.append(x)
        return x * x

    assert tg.grad(f)(3.0) == 6.0
    for value in escaped:
        for use in (lambda v: v.value, lambda v: v + 1.0, lambda v: v.backward(), str, bool):
            with pytest.raises(tg.ReleasedTapeError, match=r"has_aux=True.*test_tape\.py"):
                use(value)
    x = tg.array(2.0)
    y = x * x
    y.backward()
    assert x.grad == 4.0


# -- threads -------------------------------------------------------------------------------------


def in_thread(work):
    result = []

    def run():
        try:
            result.append(work())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result[0]


def test_threads_do_not_see_each_other():
    shared = tg.array(1.5)
    gradients = {}
    start = threading.Barrier(4)

    def work(k):
        start.wait()
        totals = []
        for _ in range(50):
            y = tg.array(float(k))
            z = y
            for _ in range(100):
                z = z * 1.01 + y * 0.01
            w = z * shared.detach()
            w.backward()
            totals.append(y.grad)
        gradients[k] = totals

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = gradients[0][0]
    assert all(g == expected for totals in gradients.values() for g in totals)


def test_a_leaf_is_shared_by_threads():
    w = tg.array([1.0, 2.0, 3.0])

    def work():
        for _ in range(200):
            y = (w * w).sum() + w[0]
            assert y.value == 15.0
        return "fine"

    results = []
    threads = [threading.Thread(target=lambda: results.append(work())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["fine"] * 4


def test_a_value_that_another_thread_is_recording_raises():
    x = tg.array(2.0)
    y = x * x
    for work in (lambda: y * 2.0, lambda: y.value, y.backward, lambda: y > 1.0):
        error = in_thread(work)
        assert isinstance(error, tg.ThreadError)
        assert "test_tape.py" in str(error)
    z = y * 3.0
    z.backward()
    assert x.grad == 12.0


def test_a_value_of_a_finished_thread_links():
    x = tg.array(2.0)
    y = in_thread(lambda: x * x)
    z = y * y
    z.backward()
    assert x.grad == 4 * 8.0


def test_a_swept_value_of_another_thread_links():
    x = tg.array(2.0)
    y = x * x
    y.backward()

    def work():
        z = y * 3.0
        z.backward()
        return x.grad

    assert in_thread(work) == 4.0 + 12.0


# -- interruptions -------------------------------------------------------------------------------


def test_an_interrupted_instruction_leaves_no_trace():
    x = tg.array(2.0)
    y = x * x
    tape = recorder.tape

    class Interrupting(list):
        count = 0

        def append(self, item):
            self.count += 1
            if self.count == 2:
                raise KeyboardInterrupt
            super().append(item)

    tape.code = Interrupting(tape.code)
    with pytest.raises(KeyboardInterrupt):
        y * y
    tape.code = list(tape.code)
    z = y * x
    z.backward()
    assert x.grad == 12.0


def test_a_failed_operation_leaves_the_tape_usable():
    x = tg.array([1.0, 2.0, 3.0])
    y = x * x
    for mistake in (
        lambda: y + np.ones(2),
        lambda: y @ np.ones((2, 2)),
        lambda: y[5],
        lambda: y.reshape(2, 2),
        lambda: y + 1j,
        lambda: y.sum(axis=3),
    ):
        with pytest.raises((ValueError, IndexError, TypeError)):
            mistake()
    (y * x).sum().backward()
    np.testing.assert_array_equal(x.grad, 3 * x.value**2)


def test_the_first_operation_of_a_thread_may_be_any(monkeypatch):
    x, y = tg.array(2.0), tg.array([1.0, 2.0])
    z = x * x
    z.backward()  # a swept value, which links
    for work in (
        lambda: (x * x).value,
        lambda: (-x).value,
        lambda: (2.0 - x).value,
        lambda: np.exp(x).value,
        lambda: bool(x > 1.0),
        lambda: y[1].value,
        lambda: (z * 3.0).value,
    ):
        assert isinstance(in_thread(work), (float, bool, np.floating))


def test_a_tape_that_was_put_aside_is_not_appended_to():
    x = tg.array(2.0)
    y = x * x
    outer = recorder.tape

    def inner(z):
        before = len(outer.code) // 3 + outer.n
        w = y * 3.0 + y * z
        assert len(outer.code) // 3 + outer.n == before
        return w

    assert tg.grad(inner)(1.0) == 4.0
    z = y * y
    assert recorder.tape is outer
    z.backward()
    assert x.grad == 4 * 8.0


def test_a_context_copied_to_another_thread_does_not_record_there():
    x = tg.array(2.0)
    y = x * x
    context = contextvars.copy_context()
    error = in_thread(lambda: context.run(lambda: y * 2.0))
    assert isinstance(error, tg.ThreadError)
    y.backward()
    assert x.grad == 4.0
