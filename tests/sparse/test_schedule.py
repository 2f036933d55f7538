"""The order of derived code changes nothing that it computes.

To the last bit, as long as instructions do the same arithmetic: the compiled functions of lanes and
those of scalars differ by up to 2 ULP (see docs/accuracy.md).
"""

from __future__ import annotations

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.kernels.opcodes import HOST, INPUT, LANES
from tapegrad.sparse import schedule
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
