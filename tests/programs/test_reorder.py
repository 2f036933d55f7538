"""Sorting a program's instructions by level and opcode."""

from __future__ import annotations

import random

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.programs.reorder import reorder


def wide(seed, width=60, rounds=8):
    """Return a function of random operations on a vector, with no loop to be found in it."""
    order = random.Random(seed)
    operations = (
        lambda x, y: x + y,
        lambda x, y: x * 0.5 - y,
        lambda x, y: np.sin(x) / (1.5 + y * y),
        lambda x, y: np.where(x > y, x, y * 0.25),
        lambda x, y: np.maximum(x, 0.3 * y),
    )
    plan = [
        [(order.choice(operations), order.randrange(width), order.randrange(width))
         for _ in range(width)]
        for _ in range(rounds)
    ]  # fmt: skip

    def f(x):
        values = [x[i] for i in range(width)]
        for step in plan:
            values = [operate(values[i], values[j]) for operate, i, j in step]
        return values

    def total(x):
        values = f(x)
        while len(values) > 1:  # in pairs, not one after the other: a chain cannot be sorted
            odd = values[len(values) - len(values) % 2 :]
            values = [a + b for a, b in zip(values[::2], values[1::2], strict=False)] + odd
        return values[0]

    return total, lambda x: tg.array(f(x))


@pytest.mark.parametrize("seed", range(5))
def test_sorted_programs_give_the_same_numbers(seed):
    f, _ = wide(seed)
    x = np.linspace(-1.0, 1.0, 60)
    program = tg.record(f, x)
    expected = program.value_and_grad(x * 0.9)
    before = program.tape.arena.op.array.copy()
    program.compile()
    after = program.tape.arena.op.array
    assert np.count_nonzero(np.diff(after)) < np.count_nonzero(np.diff(before)) / 2
    value, gradient = program.value_and_grad(x * 0.9)
    assert value == expected[0]
    # Contributions to one adjoint are added in another order: a few roundings of partial sums.
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-12, atol=1e-14)


def test_outputs_decisions_and_later_uses_follow():
    _, g = wide(7)
    x = np.linspace(-1.0, 1.0, 60)

    def decided(x):
        return g(x) if x[3] < 0.0 else g(-x)

    program = tg.record(decided, x)
    outer = tg.grad(lambda x: np.sum(program(x) ** 2))
    value, jacobian, gradient = program(x), program.jacobian(x), outer(x)
    program.compile()
    np.testing.assert_array_equal(program(x), value)
    np.testing.assert_allclose(program.jacobian(x), jacobian, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(outer(x), gradient, rtol=1e-12, atol=1e-14)
    with pytest.raises(tg.ControlFlowChanged):
        program(-x)


def test_a_chain_is_left_as_it_is():
    def f(x):
        for i in range(60):
            x = np.sin(x) * (1.0 + i) if i % 3 else x * x
        return x

    program = tg.record(f, 0.3)
    assert reorder(program.tape) is None


def test_sorted_programs_can_be_saved(tmp_path):
    f, _ = wide(3)
    x = np.linspace(-1.0, 1.0, 60)
    program = tg.record(f, x).compile()
    program.save(tmp_path / "program")
    assert tg.load(tmp_path / "program").value_and_grad(x)[0] == program(x)
