"""The compiled sweeps of many directions against the reference, a direction at a time."""

from __future__ import annotations

import ast
import platform
import re
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest

import tapegrad as tg
from tapegrad import backward, execute
from tapegrad.kernels import reference
from tapegrad.kernels.cpu import vector
from tapegrad.kernels.emit.vector import _signed
from tapegrad.kernels.opcodes import HOST, NONDIFF, ROWS
from tapegrad.ops import TABLE
from tapegrad.recording import elementwise
from tapegrad.tape import Tape, recorder

DIFFERENTIABLE = [row for row in TABLE if row not in NONDIFF]
DIRECTIONS = 5
ALL = 10**9


def recorded(f: Callable[..., Any], *values: Any) -> Tape:
    """Return an evaluated tape of its own that holds f of tracked values."""
    recorder.turn_over()
    y = f(*[tg.array(value) for value in values])
    tape, _ = backward.place_of(y)
    execute.evaluate(tape)
    return tape


def columns(tape: Tape) -> tuple[Any, ...]:
    arena = tape.arena
    pools = tape.d.array(), tape.x.array(), tape.k.array()
    return arena.op.array, arena.a.array, arena.b.array, *pools, arena.v.array


def inputs(tape: Tape) -> Any:
    """Return which cells are inputs."""
    mask = np.zeros(tape.flushed_cell, bool)
    for entry in tape.imports:
        mask[entry.cell : entry.cell + entry.size] = True
    return mask


def run_reverse(tape: Tape, seeds: Any, executor: str, limit: int = ALL) -> Any:
    """Return the adjoints of inputs, and zeros for other cells."""
    sweep = vector.reverse if executor == "compiled" else reference.vector_reverse
    g, reached = with_undefined(seeds, seeds.any(axis=1))
    place = tape.n, tape.flushed_cell, -1
    while place[0] > 0:
        place = sweep(*columns(tape), g, reached, place[0], 0, place[1], place[2], limit)
    assert place == (0, 0, -1)
    return np.where((inputs(tape) & (reached > 0))[:, None], g, 0.0)


def run_forward(tape: Tape, seeds: Any, executor: str, limit: int = ALL) -> Any:
    sweep = vector.forward if executor == "compiled" else reference.vector_forward
    t, reached = with_undefined(seeds, inputs(tape) & seeds.any(axis=1))
    place = 0, 0, 0
    while place[0] < tape.n:
        place = sweep(*columns(tape), t, reached, place[0], tape.n, place[1], place[2], limit)
    assert place == (tape.n, tape.flushed_cell, 0)
    return np.where(reached[:, None] > 0, t, 0.0)


def with_undefined(seeds: Any, defined: Any) -> tuple[Any, Any]:
    """Return rows of which only some are defined, the others being nan, and which."""
    return np.where(defined[:, None], seeds, np.nan), defined.astype(np.uint8)


def seeds_for(tape: Tape, seed: int = 0) -> Any:
    """Return a number for each cell and direction; some, and all of some cells, are zero."""
    rng = np.random.default_rng(seed)
    seeds = rng.normal(size=(tape.flushed_cell, DIRECTIONS))
    seeds[rng.random(seeds.shape) < 0.3] = 0.0
    seeds[rng.random(len(seeds)) < 0.2] = 0.0
    return seeds


def compare(tape: Tape, rtol: float, atol: float = 0.0, limit: int = ALL) -> None:
    """Compare both sweeps of both executors."""
    with np.errstate(all="ignore"):
        for run in (run_forward, run_reverse):
            seeds = seeds_for(tape)
            got, want = run(tape, seeds, "compiled", limit), run(tape, seeds, "reference")
            np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=run.__name__)


# -- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", DIFFERENTIABLE)
def test_array_instructions_on_every_point_of_every_row(row: str) -> None:
    points = np.array(TABLE[row].points).T
    # A partial is rounded before it is multiplied: w * (1 / x) stands for w / x. Each executor has
    # a gamma of its own, and the recurrences of polygamma cancel some digits.
    tape = recorded(lambda *xs: elementwise(row, *xs), *points)
    compare(tape, rtol=1e-11 if "gamma" in row else 1e-14)


@pytest.mark.parametrize("row", DIFFERENTIABLE)
def test_scalar_instructions_on_every_point_of_every_row(row: str) -> None:
    def every_variant(*xs: Any) -> Any:
        results = []
        for i, point in enumerate(TABLE[row].points):
            operands = [x[i] for x in xs]
            results.append(elementwise(row, *operands))
            if len(operands) == 2:
                results.append(elementwise(row, operands[0], point[1]))
                results.append(elementwise(row, point[0], operands[1]))
        return np.stack(results)

    tape = recorded(every_variant, *np.array(TABLE[row].points).T)
    compare(tape, rtol=1e-11 if "gamma" in row else 1e-14)


def test_a_literal_zero_and_a_computed_one() -> None:
    """Nothing flows along the first, 0 * inf is nan along the second, as in a single direction."""
    tape = recorded(lambda x: np.sqrt(x * x), [0.0, 1.0])
    g = np.zeros((tape.flushed_cell, 2))
    g[-2:] = [[1.0, 0.0], [0.0, 1.0]]
    for executor in ("compiled", "reference"):
        got = run_reverse(tape, g, executor)[inputs(tape)]
        np.testing.assert_array_equal(got, [[np.nan, 0.0], [0.0, 1.0]])
    tape = recorded(lambda x: np.where(x > 0.5, x, np.sqrt(x - x)), [0.0, 1.0])
    g = np.zeros((tape.flushed_cell, 2))
    g[-2:] = [[np.inf, 0.0], [np.nan, np.inf]]
    for executor in ("compiled", "reference"):
        got = run_reverse(tape, g, executor)[inputs(tape)]
        np.testing.assert_array_equal(got[1], [np.nan, np.inf])


@pytest.mark.parametrize(
    ("partial", "expected"),
    [
        ("0", "NOTHING"),
        ("-0.0", "NOTHING"),
        ("1", "1.0"),
        ("-1", "-1.0"),
        ("pi", "pi"),
        ("-x", "-x + 0.0"),
        (
            "0 if x > y else -(1 if y > 0 else x)",
            "NOTHING if x > y else -1.0 if y > 0 else -x + 0.0",
        ),
    ],
)
def test_only_literal_zeros_are_nothing(partial: str, expected: str) -> None:
    assert ast.unparse(_signed(ast.parse(partial, mode="eval").body)) == expected


# -- programs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_arithmetic_in_random_order_is_bitwise_equal(seed: int) -> None:
    def program(x: Any) -> Any:
        rng = np.random.default_rng(seed)
        cells = [x[i] for i in range(8)]
        for _ in range(200):
            row = ["add", "subtract", "multiply", "maximum", "where", "absolute"][rng.integers(6)]
            operands: list[Any] = [cells[i] for i in rng.integers(len(cells), size=3)]
            operands = operands[: TABLE[row].arity]
            if len(operands) == 2 and rng.random() < 0.3:
                operands[rng.integers(2)] = float(rng.normal())
            cells.append(elementwise(row, *operands))
        return np.stack(cells)

    compare(recorded(program, np.random.default_rng(seed).normal(size=8)), rtol=0.0)


@pytest.mark.parametrize("limit", [1, 7, ALL])
def test_windows_of_array_instructions(limit: int) -> None:
    def program(x: Any, s: Any) -> Any:
        y = np.sin(x[::-1, 1:]) * x[:, :1] + s  # negative strides, two kinds of broadcasting
        z = np.arctan2(y.T, np.arange(1.0, 13.0).reshape(3, 4))  # a constant array
        z[1] = y[:, 0]
        w = np.where(z > 0.0, z * z[::-1], y.T)  # gathered cells
        return w[1:] * 2.0 - w[[0, 0]] + np.broadcast_to(s, (2, 4))

    tape = recorded(program, np.linspace(-1.0, 1.0, 16).reshape(4, 4), 0.3)
    compare(tape, rtol=1e-13, atol=1e-14, limit=limit)


@pytest.mark.parametrize("limit", [1, 600, ALL])
def test_long_instructions_go_on_where_they_were_interrupted(limit: int) -> None:
    n = 2 * vector.BLOCK + 17
    tape = recorded(lambda x: x[::-1] * x * x[5] + x[3:4], np.linspace(-1.0, 1.0, n))
    compare(tape, rtol=1e-13, atol=1e-13, limit=limit)


@pytest.mark.parametrize("executor", ["compiled", "reference"])
def test_sweeps_stop_at_host_instructions(executor: str) -> None:
    tape = recorded(lambda x: np.sin(np.sum(x * x) * 2.0), [1.0, 2.0])
    module = {"compiled": (vector.forward, vector.reverse)}.get(
        executor, (reference.vector_forward, reference.vector_reverse)
    )
    at = int(np.flatnonzero(columns(tape)[0][: tape.n] == HOST)[0])
    t = np.zeros((tape.flushed_cell, 2)), np.zeros(tape.flushed_cell, np.uint8)
    place = 0, 0, 0
    while place[0] < at:
        place = module[0](*columns(tape), *t, place[0], tape.n, place[1], place[2], ALL)
    assert place == (at, 4, 0)
    assert module[0](*columns(tape), *t, *(at, tape.n, 4, 0), ALL) == (at, 4, 0)
    place = tape.n, tape.flushed_cell, -1
    while place[0] > at + 1:
        place = module[1](*columns(tape), *t, place[0], 0, place[1], place[2], ALL)
    assert place == (at + 1, 5, -1)
    assert module[1](*columns(tape), *t, *(at + 1, 0, 5, -1), ALL) == (at + 1, 5, -1)


@pytest.mark.parametrize("seed", range(5))
def test_forward_is_the_transpose_of_reverse(seed: int) -> None:
    def program(x: Any) -> Any:
        y = np.exp(np.sin(x)) / (1.0 + x * x)
        y[2] = y[0] * np.hypot(x[1], 2.0) ** 1.5
        return y * y[::-1]

    tape = recorded(program, np.random.default_rng(seed).normal(size=6))
    seeds, mask = seeds_for(tape, seed), inputs(tape)
    tangents = run_forward(tape, seeds, "compiled")
    g = np.zeros_like(seeds)
    g[-6:] = np.random.default_rng(seed + 100).normal(size=(6, DIRECTIONS))
    adjoints = run_reverse(tape, g, "compiled")
    left = np.sum(tangents * g, axis=0)
    np.testing.assert_allclose(np.sum((adjoints * seeds)[mask], axis=0), left, rtol=1e-12)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly")
def test_directions_are_vectorised() -> None:
    # Compiled anew, because Numba cannot show the assembly of what it loaded from its cache.
    flow = numba.njit(error_model="numpy")(vector.flow.py_func)
    flow.compile("(float64[:, ::1], uint8[::1], uint64, uint64, float64)")
    assembly = flow.inspect_asm(flow.signatures[0])
    for instruction in ("addpd", "mulpd"):
        assert re.search(rf"\bv?{instruction}\b", assembly), instruction


def test_every_opcode_has_a_kind() -> None:
    assert len(vector._KINDS) == 1 + max(opcode for row in ROWS.values() for opcode in row)
