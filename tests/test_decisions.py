"""Decisions by the thousand: whichever differs first is found, wherever its cell is."""

from __future__ import annotations

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.decisions import Decisions

N = 1000


def signs(x):
    """Decide a thousand times on one line, in evenly spaced cells, and elsewhere in between."""
    total = 0.0
    for i in range(N):
        y = x[i] * 2.0
        total = total + (y if y > 0.0 else y * y)
        if i in (7, 20):
            total = total * int(total) / (total.item() if i == 7 else 1.0)
    return total


@pytest.fixture(scope="module")
def program():
    return tg.record(signs, np.ones(N))


@pytest.mark.parametrize("changed", [(0,), (1,), (7,), (500,), (N - 1,), (3, 400, 900)])
def test_the_first_of_many_is_found(program, changed):
    x = np.ones(N)
    assert program(x) == signs(x)
    assert len(program.decisions._looks._runs) == 1
    x[list(changed)] = -1.0
    with pytest.raises(tg.ControlFlowChanged, match=r"was True .* and is False") as caught:
        program(x)
    recorded = [i for i, d in enumerate(program.decisions.all) if d.what.startswith("the truth")]
    assert caught.value.number == recorded[changed[0]]
    assert program.decisions.all[caught.value.number].line == signs.__code__.co_firstlineno + 5
    assert program(np.ones(N)) == signs(np.ones(N))


def test_values_among_many(program):
    x = np.ones(N)
    x[3] = 1.5
    with pytest.raises(tg.ControlFlowChanged, match=r"integer of a value at .* was 16.* is 17"):
        program(x)


@pytest.mark.parametrize("size", [1, 100, 10_000])
def test_nan_is_nan_however_many_there_are(size):
    program = tg.record(lambda x: np.sum((x * 1.0).value) + x[0], np.full(size, np.nan))
    assert np.isnan(program(np.full(size, np.nan)))
    other = np.full(size, np.nan)
    other[-1] = 0.0
    with pytest.raises(tg.ControlFlowChanged):
        program(other)


def test_zero_is_zero_whatever_its_sign():
    program = tg.record(lambda x: x if (x * 1.0).item() == 0.0 else x * 2.0, 0.0)
    assert program(-0.0) == 0.0


def test_no_decisions():
    decisions = Decisions()
    assert len(decisions) == 0
    assert decisions.check(np.zeros(3)) is None
    assert decisions.cells().size == 0
