"""The order of derived code changes nothing that it computes.

To the last bit, as long as instructions do the same arithmetic: the compiled functions of lanes and
those of scalars differ by up to 2 ULP (see docs/accuracy.md).
"""

from __future__ import annotations

import sys

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.kernels.opcodes import HOST, INPUT, LANES
from tapegrad.programs import layout
from tapegrad.sparse import derive, schedule
from tapegrad.sparse.derive import derive_hessian

WEIGHTS = np.random.default_rng(0).normal(size=40)


def chain(x):
    total = 0.0
    for i in range(x.size - 1):
        t = x[i + 1] - x[i] * x[i]
        total = total + 100.0 * t * t + np.sin(x[i]) * WEIGHTS[i]
    return total


def choices(x):
    y = np.where(x > 0.0, np.exp(x) * x, x**3 * WEIGHTS)
    return np.sum(y[1:] * y[:-1]) + np.sum(np.maximum(x, y) ** 2)


def deep(x):
    y = x[0]
    for i in range(200):
        y = np.tanh(y * x[i % 4]) + 0.1 * y
    return y * np.sum(x[2:] ** 2)


def mixed(x):
    return np.sum(2.0 ** (x * WEIGHTS)) + np.sum((1.5 - x) / (2.0 + x[::-1] ** 2)) + x[3] ** x[5]


def arithmetic(x):
    """Compute nothing but what every executor rounds in the same way."""
    y = (x[1:] - x[:-1] ** 2) * WEIGHTS[1:] / (2.0 + x[1:] * x[:-1])
    return np.sum(y * y) + np.sum(np.sqrt(1.0 + y * y)) * x[0]


def values(f, x):
    program = tg.record(f, x)
    matrix = derive_hessian(program, program.array_input(0), int(program.array_output()[0]))
    return matrix.values([x]), matrix._tape


@pytest.mark.parametrize("f", [arithmetic, chain, choices, deep, mixed])
@pytest.mark.parametrize("executor", ["reference", "compiled"])
def test_tiles_and_lanes(f, executor, monkeypatch):
    x = np.linspace(0.4, 1.2, 40)
    with tg.executor(executor):
        expected, _ = values(f, x)
        np.testing.assert_allclose(expected.sum(), tg.hessian(f)(x).sum(), rtol=1e-10)
        with monkeypatch.context() as patch:
            patch.setattr(schedule, "FEWEST_LANES", 10**9)
            by_scalars, _ = values(f, x)
        for tile, lanes in ((16, 2), (50, 10**9), (10**9, 2), (1, 1)):
            monkeypatch.setattr(schedule, "TILE", tile)
            monkeypatch.setattr(schedule, "FEWEST_LANES", lanes)
            found = values(f, x)[0]
            if executor == "reference" or f is arithmetic:
                np.testing.assert_array_equal(found, expected)
            elif lanes == 10**9:
                np.testing.assert_array_equal(found, by_scalars)
            else:  # some hundred functions one after the other, each 2 ULP off at most
                np.testing.assert_allclose(found, expected, rtol=1e-11, atol=0.0)


def test_repeated_code_becomes_array_instructions_on_runs():
    _, tape = values(lambda x: np.sum((x[1:] - x[:-1] ** 2) ** 2), np.ones(5_000))
    op = tape.arena.op.array[: tape.n]
    assert (op == INPUT).sum() == 1
    assert 5 < (op == LANES).sum() <= 15
    assert tape.n <= 17  # one or two instructions at the ends stand alone
    assert not (op == HOST).any()
    assert len(tape.x.array()) == 0  # no cell is looked up one by one


@pytest.mark.parametrize("f", [chain, choices])
def test_values_that_are_no_nonzeros_need_not_be_stored(f, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "WEIGHTS", np.linspace(-1.0, 1.0, 1_000))
    x, other = np.linspace(0.4, 1.2, 1_000), np.linspace(0.5, 1.1, 1_000)
    with tg.executor("compiled"):
        for tile in (1 << 17, 1 << 11):
            monkeypatch.setattr(schedule, "TILE", tile)
            found = []
            for cached in (1 << 30, 0):
                monkeypatch.setattr(derive, "CACHED", cached)
                program = tg.record(f, x)
                known, output = program.array_input(0), int(program.array_output()[0])
                matrix = derive.derive_hessian(program, known, output)
                found.append([matrix.values([at]) for at in (x, other, x)])
            stored = matrix._tape.sparse.stored
            assert f is choices or np.count_nonzero(stored) < 0.8 * len(stored)
            np.testing.assert_array_equal(found[0], found[1])


def test_stretches_are_those_of_instructions():
    matrix_tape = values(chain, np.linspace(0.4, 1.2, 40))[1]
    first = layout.first_cells(matrix_tape.arena.op.array, matrix_tape.arena.b.array)
    rng = np.random.default_rng(0)
    for count in (0, 1, 5, 20):
        cells = rng.integers(0, first[-1], count)
        inside = np.zeros(first[-1], bool)
        for low, high in derive.stretches(matrix_tape, cells):
            assert not inside[low : high + 1].any()
            inside[low : high + 1] = True
        owners = np.searchsorted(first, cells, "right") - 1
        expected = np.zeros(first[-1], bool)
        for i in owners:
            expected[first[i] : first[i + 1]] = True
        np.testing.assert_array_equal(inside, expected)


def test_tiles_of_equal_code_look_the_same(monkeypatch):
    monkeypatch.setattr(schedule, "TILE", 4_000)
    _, tape = values(lambda x: np.sum((x[1:] - x[:-1] ** 2) ** 2), np.ones(5_000))
    op, size = tape.arena.op.array[: tape.n], tape.arena.b.array[: tape.n]
    counts = np.unique(size[op == LANES], return_counts=True)[1]
    assert tape.n > 40  # ten tiles or so
    assert counts.max() > 0.8 * counts.sum()  # all but those of the first and the last
    assert len(tape.x.array()) == 0
