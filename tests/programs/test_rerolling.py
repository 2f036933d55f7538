"""Finding loops in recorded code again."""

from __future__ import annotations

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.programs import rerolling
from tapegrad.programs.rerolling import Loop, find_loops


def loops_of(f, *args):
    arena = tg.record(f, *args).tape.arena
    return find_loops(arena.op.array, arena.a.array, arena.b.array)


def check(op, a, b, loops):
    """Every loop repeats its opcodes, and its operands move by constant steps."""
    end = 0
    for loop in loops:
        assert loop.start >= end
        end = loop.stop
        shape = loop.count, loop.period
        assert (op[loop.start : loop.stop].reshape(shape) == op[loop.start :][: loop.period]).all()
        for column in (a, b):
            steps = np.diff(column[loop.start : loop.stop].astype(np.int64).reshape(shape), axis=0)
            assert (steps == steps[:1]).all()


def test_a_recurrence():
    def f(x, n):
        for _ in range(n):
            x = np.sin(x) * 0.5 + 1.0
        return x

    (loop,) = loops_of(f, 1.0, 500)
    assert (loop.period, loop.count) == (3, 500)


def test_a_loop_in_a_loop():
    def f(u, steps):
        u = [u[i] for i in range(20)]
        for _ in range(steps):
            inner = [u[i] + 0.1 * (u[i - 1] - 2.0 * u[i] + u[i + 1]) for i in range(1, 19)]
            u = [u[0], *inner, u[19]]
        return sum(u)

    found = loops_of(f, np.arange(20.0) ** 2, 50)
    assert [loop.period for loop in found] == [90]
    found = loops_of(lambda u: f(u, 2), np.arange(20.0) ** 2)
    assert found == []


def test_two_loops_and_code_between():
    def f(x):
        for _ in range(300):
            x = x * x - 0.2
        x = np.exp(-x)
        for _ in range(200):
            x = x - 0.1 * np.tanh(x)
        return x

    found = loops_of(f, 0.3)
    assert [(loop.period, loop.count) for loop in found] == [(2, 300), (3, 200)]


def test_short_code_has_no_loops():
    assert loops_of(lambda x: x * x * x, 2.0) == []
    assert find_loops(*(np.zeros(0, np.uint32),) * 3) == []


@pytest.mark.parametrize("seed", range(20))
def test_of_random_code_with_copies_in_it(seed):
    random = np.random.default_rng(seed)
    parts = []
    for _ in range(6):
        period, count = int(random.integers(1, 40)), int(random.integers(1, 60))
        body = random.integers(3, 12, period)
        first = random.integers(0, 1000, (2, period))
        step = random.integers(0, 3, (2, period)) * period
        r = np.arange(count)[:, None]
        parts.append((np.tile(body, count), *[(first[i] + r * step[i]).ravel() for i in range(2)]))
    op, a, b = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    found = find_loops(op.astype(np.uint8), a.astype(np.uint32), b.astype(np.uint32))
    check(op, a, b, found)
    longest = max(len(part[0]) for part in parts)
    if longest >= 4 * rerolling.LEAST_INSTRUCTIONS:
        assert sum(loop.period * loop.count for loop in found) > 0.5 * longest


def test_loops_know_their_ends():
    assert Loop(3, 4, 5).stop == 23
