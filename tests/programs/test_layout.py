"""Windows over several instructions: programs of derivatives, whose adjoints lie as they come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad.programs import layout
from tapegrad.storage import Storage
from tapegrad.tape import recorder
from tapegrad.window import Window


def products(order):
    def f(x):
        y = x[order[0]]
        for i in order[1:]:
            y = y * x[i]
        return y

    return f


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6))
def test_gradients_in_consecutive_cells_survive_simplification(order):
    f, x = products(order), np.array([0.3, 0.7, -1.1, 2.0])
    expected = tg.grad(f)(x)
    for g, scale in ((tg.grad(f), 1.0), (lambda x: 2.0 * tg.grad(f)(x), 2.0)):
        program = tg.record(g, np.arange(4.0) + 0.5)
        np.testing.assert_array_equal(program(x), scale * expected)
    program = tg.record(lambda x: np.sum(np.argsort(tg.grad(f)(x)) * x), x)
    np.testing.assert_array_equal(program(x), np.sum(np.argsort(expected) * x))


@pytest.mark.parametrize(
    "shape_of_window",
    [((5,), (1,), 0), ((5,), (-1,), 4), ((2, 2), (2, 1), 0), ((3,), (2,), 0), ((2, 3), (0, 2), 0)],
)
def test_windows_over_several_instructions_become_indices(shape_of_window):
    """Six scalars of instructions of their own, looked at through one window."""
    shape, strides, offset = shape_of_window

    def f(x):
        first = np.sin(x[0])
        for i in range(1, 6):
            last = x[i] * x[0] if i % 2 else np.exp(x[i])
        run = Storage(recorder.tape, first.cell, last.cell - first.cell + 1)
        assert run.size == 6
        window = tg.recording.array(run, Window(offset, shape, strides))
        return np.exp(window) * 2.0, window.sum(), window

    x, y = np.arange(6.0) / 7 + 0.1, np.cos(np.arange(6.0))
    program = tg.record(f, x)
    values = [np.sin(y[0]), y[1] * y[0], np.exp(y[2]), y[3] * y[0], np.exp(y[4]), y[5] * y[0]]
    seen = Window(offset, shape, strides).view(np.array(values))
    doubled, total, whole = program(y)
    np.testing.assert_allclose(doubled, 2.0 * np.exp(seen), rtol=1e-15)
    np.testing.assert_allclose(total, seen.sum(), rtol=1e-14)
    np.testing.assert_array_equal(whole, seen)


def test_first_cells_of_a_tape():
    program = tg.record(lambda x: np.sum(x * 2.0) + x[0], np.ones(3))
    arena, n = program.tape.arena, program.tape.n
    first = layout.first_cells(arena.op.array[:n], arena.b.array[:n])
    assert first[-1] == program.tape.flushed_cell
    assert first.tolist() == [0, 3, 6, 7, 8]
