"""Compiled loops of programs give the interpreters' numbers, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.kernels.emit import loop as emit
from tapegrad.kernels.emit.numbering import CELLS, number
from tapegrad.ops import TABLE
from tapegrad.programs import rolled
from tapegrad.programs.ready import Ready


@pytest.fixture(autouse=True)
def short_loops(monkeypatch):
    """Take loops of few instructions, too, and look at Ctrl-C every few iterations."""
    monkeypatch.setattr("tapegrad.programs.rerolling.LEAST_INSTRUCTIONS", 16)
    monkeypatch.setattr(rolled, "SLICE", 60)


def agree(f, *args, kinds=(), exact=True):
    """Compare a compiled program with the same program interpreted, at other points, too.

    `kinds` are operand kinds that the loops must have.  Where an operand in memory is computed by
    the same loop, adjoints are summed in another order, so that the last digits differ.
    """
    program = tg.record(f, *args)
    numbers = tuple(range(len(args)))
    points = [args, tuple(np.asarray(x) * 1.25 + 0.01 for x in args)]
    with tg.executor("compiled"):
        expected = [program.value_and_grad(*point, argnums=numbers) for point in points]
        program.compile()
        found = [program.value_and_grad(*point, argnums=numbers) for point in points]
    loops = program.tape.replays.rolled
    assert len(loops) > 0
    seen = {kind for body in loops.bodies for _, parts in body._slots for kind, _ in parts}
    assert seen >= set(kinds)
    for (value, gradients), (value_, gradients_) in zip(expected, found, strict=True):
        np.testing.assert_array_equal(value_, value)
        for g, g_ in zip(gradients, gradients_, strict=True):
            if exact:
                np.testing.assert_array_equal(g_, g)
            else:
                np.testing.assert_allclose(g_, g, rtol=1e-12)  # sums of some 100 terms
    return program


def test_local_carried_fixed_and_pooled_operands():
    def f(x, a):
        total = 0.0
        for _ in range(40):
            xx = x * x
            x = np.sin(a * x) + 0.7 * xx / (1.0 + xx)
            total = total + x
        return total

    agree(f, 0.3, 2.1, kinds=(emit.LOCAL, emit.CARRIED, emit.FIXED, emit.POOLED))


def test_every_row_can_be_part_of_a_loop():
    """Whatever is in a body, it is translated: there is nothing else to fall back on."""
    body = []
    for opcode in number(TABLE):
        operands = [emit.Operand(emit.FIXED, 0), emit.Operand(emit.POOLED, 1)]
        if opcode.row.arity == 3:
            body.append(emit.Slot(emit.CARRY, (emit.Operand(emit.FIXED, 3),), emit.NOBODY))
        if opcode.row.arity == 3 or opcode.variant == CELLS:
            operands[1] = emit.Operand(emit.FIXED, 2)
        if opcode.row.arity == 1:
            operands.pop()
        body.append(emit.Slot(opcode.number, tuple(operands), emit.OUTSIDE))
    assert all(rolled._compiled(tuple(body)))


def test_operands_in_memory():
    def f(x):
        total = 0.0
        for i in range(59):
            t = x[i + 1] - x[i] * x[i]
            u = 1.0 - x[i]
            total = total + 100.0 * t * t + u * u
        return total

    agree(f, np.linspace(-0.9, 1.1, 60), kinds=(emit.MEMORY,))


def test_results_that_are_used_later():
    def f(x):
        visited = [x]
        for _ in range(40):
            visited.append(np.tanh(visited[-1]) * 1.5)
        tail = 0.0
        for k in (3, 17, 29, 38, 40):
            tail = tail + visited[k] * visited[k]
        return tail

    agree(f, 0.4)


def test_operands_that_the_loop_computed_long_before():
    def f(x):
        visited = [x, x * 0.5, x + 1.0, x - 0.25]
        for _ in range(60):
            visited.append(0.5 * visited[-1] + 0.3 * np.cos(visited[-4]))
        return visited[-1]

    agree(f, 0.4, kinds=(emit.MEMORY,), exact=False)


def test_one_array_element_that_is_fixed_and_passed_by():
    def f(x):
        total = 0.0
        for i in range(40):
            total = total + np.exp(-x[i] * x[20]) * x[i]
        return total

    agree(f, np.linspace(0.1, 0.9, 40), exact=False)


def test_branches_without_an_adjoint_contribute_nothing():
    def f(x, y):
        total = 0.0
        for i in range(40):
            bad = np.log(x[i])  # -inf or nan for half of them
            total = total + np.where(x[i] > 0.0, bad * y, x[i])
        return total

    x = np.linspace(-1.0, 1.0, 40)
    x[7] = 0.0
    program = tg.record(f, x, 2.0).compile()
    assert len(program.tape.replays.rolled) > 0
    with np.errstate(all="ignore"):
        _, gradient = program.value_and_grad(x, 2.0)
    assert np.isfinite(gradient).all()
    agree(f, x, 2.0)


def test_ternary_instructions_at_every_phase():
    def f(x):
        for _ in range(40):
            x = np.where(x > 0.5, x * 0.25, x + 0.3)
        return x

    agree(f, 0.1)


def test_rows_of_all_kinds():
    def f(x, y):
        for _ in range(12):
            x = np.arctan2(x, y) + np.hypot(x, 0.5) * np.maximum(x, y) - np.abs(x)
            x = x**3 / (1.0 + np.exp2(-x)) + np.log1p(x * x) + 2.0**y
            x = np.cbrt(x) + np.expm1(-np.square(x)) + 1.0 / (1.0 + x * x)
        return x

    agree(f, 0.3, 0.8)


def test_several_outputs_and_a_sweep_from_elsewhere():
    def f(x):
        first = x
        for _ in range(40):
            x = x * x * 0.5 + 0.1
        return x, first * 2.0

    program = tg.record(f, 0.6)
    _, pull = program.vjp(0.6)
    expected = pull((1.0, 3.0))
    program.compile()
    assert program.vjp(0.6)[1]((1.0, 3.0)) == expected
    replays = program.tape.replays
    assert not replays.start_from(np.array([2, 3]), 2)


def test_decisions_are_still_checked():
    def f(x):
        for _ in range(30):
            x = x * 1.01
            if x > 100.0:
                break
        return x

    program = tg.record(f, 1.0).compile()
    assert program(2.0) > 2.0
    with pytest.raises(tg.ControlFlowChanged):
        program(90.0)


def test_a_program_that_is_replayed_for_long_is_compiled_by_itself(monkeypatch):
    def f(x):
        for _ in range(50):
            x = x - 0.01 * x * x
        return x

    program = tg.record(f, 1.0)
    expected = program.value_and_grad(1.5)
    assert program.tape.replays.rolled is None
    monkeypatch.setattr(rolled, "SECONDS", 0.0)
    assert program.value_and_grad(1.5) == expected
    assert len(program.tape.replays.rolled) == 1
    assert program.value_and_grad(1.5) == expected
    with tg.executor("reference"):
        np.testing.assert_allclose(program.value_and_grad(1.5), expected, rtol=1e-13)


def test_arrays_between_loops():
    def f(x):
        total = 0.0
        for i in range(20):
            total = total + x[i] * x[i] * 0.5
        y = np.exp(-x * total)
        for i in range(20):
            total = total * 0.9 + y[i]
        return total

    agree(f, np.linspace(0.1, 0.4, 20))


def test_loops_that_look_the_same_share_code():
    def f(x):
        for _ in range(30):
            x = x * x - 0.3
        x = np.exp(x)
        for _ in range(40):
            x = x * x - 0.3
        return x

    one, two = tg.record(f, 0.2).compile().tape.replays.rolled.bodies
    assert one._forward is two._forward


def test_an_interrupted_sweep_leaves_nothing_behind(monkeypatch):
    def f(x):
        for _ in range(60):
            x = x - 0.01 * x * x
        return x * x

    program = tg.record(f, 1.0).compile()
    expected = program.vjp(1.5)[1](1.0)

    def interrupt(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ready, "reverse", interrupt)
        with pytest.raises(KeyboardInterrupt):
            program.vjp(1.5)[1](1.0)
    assert program.vjp(1.5)[1](1.0) == expected
    assert program.value_and_grad(1.5, argnums=(0,))[1] == expected
