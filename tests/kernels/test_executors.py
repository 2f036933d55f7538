"""The compiled executors against the reference interpreter: on every row, and on random tapes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tapegrad import execute
from tapegrad.kernels import native, reference
from tapegrad.kernels.cpu import building
from tapegrad.kernels.cpu.lanes import BLOCK
from tapegrad.kernels.opcodes import (
    ARITY,
    BINARY_KX,
    BINARY_XK,
    CARRY,
    CONST,
    FIRST_ROW,
    HOST,
    INPUT,
    INTEGER_OPERAND,
    KINDS,
    LANES,
    NONDIFF,
    ROW_OF,
    ROWS,
    TERNARY,
    UNARY,
)
from tapegrad.ops import TABLE

execute.load("scalar")
execute.load("lanes")
compiled = execute._compiled  # which take arrays, as the reference does

COMMON = ["add", "subtract", "multiply", "maximum", "where", "absolute", "less"]
FUNCTIONS = [row for row in ROWS if row not in NONDIFF and row not in INTEGER_OPERAND]


class Code:
    """A tape under construction, in plain columns."""

    def __init__(self, values: Any = ()) -> None:
        self.columns: tuple[list[int], list[int], list[int]] = ([], [], [])
        self.d: list[int] = []
        self.x: list[int] = []
        self.k: list[float] = [0.0, 1.0, -1.0, 0.5, 2.0, -0.0]
        self.values = list(map(float, values))
        self.cells = 0
        self.append(INPUT, 0, len(self.values), owns=len(self.values))

    def append(self, op: int, a: int, b: int, owns: int = 1) -> int:
        for column, entry in zip(self.columns, (op, a, b), strict=True):
            column.append(int(entry))
        self.cells += owns
        return self.cells - owns

    def lanes(self, row: str, shape: Any, operands: Any) -> int:
        at = len(self.d)
        self.d += [ROWS[row][0], len(shape), *shape]
        for kind, offset, strides in operands:
            self.d += [kind, offset, *strides]
        n = int(np.prod(shape, dtype=int))
        return self.append(LANES, at, n, owns=n)

    def arrays(self) -> tuple[Any, ...]:
        op, a, b = self.columns
        v = np.zeros(self.cells + 1)
        v[: len(self.values)] = self.values
        return (
            *(np.array(op, np.uint8), np.array(a, np.uint32), np.array(b, np.uint32)),
            *(np.array(self.d, np.int64), np.array(self.x, np.uint32), np.array(self.k), v),
        )


def run_scalar(code: Code, seeds: Any, strict: bool, executor: str) -> tuple[Any, Any]:
    op, a, b, _, _, k, v = code.arrays()
    n = len(op)
    forward = compiled.scalar_forward if executor == "compiled" else reference.scalar_forward
    backward = compiled.scalar_reverse if executor == "compiled" else reference.scalar_reverse
    assert forward(op, a, b, k, v, 0, n, 0) == (n, code.cells)
    g = np.array(seeds)
    assert backward(op, a, b, k, v, g, n, 0, code.cells, strict) == (0, 0)
    assert not g[len(code.values) :].any()
    return v, g


def run_lanes(
    code: Code, seeds: Any, strict: bool, executor: str, limit: int = 10**9
) -> tuple[Any, Any]:
    op, a, b, d, x, k, v = code.arrays()
    n = len(op)
    forward = compiled.lanes_forward if executor == "compiled" else reference.lanes_forward
    backward = compiled.lanes_reverse if executor == "compiled" else reference.lanes_reverse
    place = (1, len(code.values), 0)
    while place[0] < n:
        place = forward(op, a, b, d, x, k, v, place[0], n, place[1], place[2], limit)
    assert place == (n, code.cells, 0)
    g = np.array(seeds)
    place = (n, code.cells, -1)
    while place[0] > 1:
        place = backward(op, a, b, d, x, k, v, g, place[0], 1, place[1], place[2], limit, strict)
    assert place == (1, len(code.values), -1)
    assert not g[len(code.values) :].any()
    return v, g


def assert_close(got: Any, want: Any, allowed: Any) -> None:
    """Compare in units in the last place; nan equals nan."""
    with np.errstate(all="ignore"):
        size = np.maximum(np.minimum(np.abs(want), 1e308), 1e-300)
        near = np.abs(got - want) <= allowed * np.spacing(size)
    wrong = ~((got == want) | (np.isnan(got) & np.isnan(want)) | near)
    assert not wrong.any(), [(int(i), got[i], want[i]) for i in np.flatnonzero(wrong)[:5]]


# libm as Numba calls it and as Python does may differ by an ULP or two; gamma and its like are
# implemented separately in each.
def tolerance(row: str) -> float:
    return 64.0 * TABLE[row].ulp if row in ("gamma", "lgamma") else 4.0


def code_at_points(opcode: int) -> Code:
    """One instruction for each point of the row, each with operand cells of its own."""
    row = TABLE[ROW_OF[opcode]]
    code = Code(np.array(row.points).ravel())
    for n, point in enumerate(row.points):
        first = n * row.arity
        kind = KINDS[opcode]
        if kind == TERNARY:
            code.append(CARRY, first, 0)
            code.append(opcode, first + 1, first + 2)
        elif kind in (BINARY_XK, BINARY_KX):
            code.k.append(point[1 if kind == BINARY_XK else 0])
            code.append(opcode, first + (kind == BINARY_KX), len(code.k) - 1)
        else:
            code.append(opcode, first, 0 if kind == UNARY else first + 1)
    return code


def seeded(code: Code, every: int) -> Any:
    """Give an adjoint to each cell that is no input, except that some have none."""
    g = np.zeros(code.cells + 1)
    cells = np.arange(len(code.values), code.cells)
    g[cells] = np.where(cells % every == 0, 0.0, 0.5 + cells % 3)
    return g


@pytest.mark.parametrize("opcode", range(FIRST_ROW, len(ROW_OF)), ids=ROW_OF[FIRST_ROW:])
@pytest.mark.parametrize("strict", [False, True])
def test_scalar_on_every_point_of_every_row(opcode: int, strict: bool) -> None:
    code = code_at_points(opcode)
    seeds = seeded(code, every=4)
    got, got_g = run_scalar(code, seeds, strict, "compiled")
    want, want_g = run_scalar(code, seeds, strict, "reference")
    assert_close(got, want, tolerance(ROW_OF[opcode]))
    assert_close(got_g, want_g, 2.0 * tolerance(ROW_OF[opcode]))


@pytest.mark.parametrize("row", list(TABLE))
@pytest.mark.parametrize("strict", [False, True])
def test_lanes_on_every_point_of_every_row(row: str, strict: bool) -> None:
    points = np.array(TABLE[row].points)
    code = Code(points.ravel())
    n, arity = points.shape
    code.lanes(row, (n,), [(reference.CELLS, j, (arity,)) for j in range(arity)])
    seeds = seeded(code, every=4)
    got, got_g = run_lanes(code, seeds, strict, "compiled")
    want, want_g = run_lanes(code, seeds, strict, "reference")
    assert_close(got, want, tolerance(row))
    assert_close(got_g, want_g, 2.0 * tolerance(row))


def random_scalar_code(rng: np.random.Generator, rows: list[str], length: int) -> Code:
    code = Code(rng.normal(size=20))
    for _ in range(length):
        row = rows[rng.integers(len(rows))]
        opcodes = [o for o in ROWS[row] if o >= 0]
        opcode = opcodes[rng.integers(len(opcodes))]
        first, second, third = rng.integers(0, code.cells, 3)
        if rng.random() < 0.05:
            code.append(CONST, rng.integers(len(code.k)), 0)
        if ARITY[row] == 3:
            code.append(CARRY, third, 0)
        constant = KINDS[opcode] in (BINARY_XK, BINARY_KX)
        code.append(opcode, first, rng.integers(len(code.k)) if constant else second)
    return code


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("strict", [False, True])
def test_scalar_on_random_arithmetic_is_bitwise_equal(seed: int, strict: bool) -> None:
    code = random_scalar_code(np.random.default_rng(seed), COMMON, 300)
    seeds = np.zeros(code.cells + 1)
    seeds[code.cells - 1] = 1.0
    got, got_g = run_scalar(code, seeds, strict, "compiled")
    want, want_g = run_scalar(code, seeds, strict, "reference")
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(got_g, want_g)


@pytest.mark.parametrize("seed", range(10))
def test_scalar_on_random_functions(seed: int) -> None:
    code = random_scalar_code(np.random.default_rng(seed), FUNCTIONS, 40)
    op, a, b, _, _, k, v = code.arrays()
    compiled.scalar_forward(op, a, b, k, v, 0, len(op), 0)
    # Values differ in the last place, and chaotic programs enlarge that, so that the reverse sweeps
    # are compared on the same values.
    seeds = np.zeros(code.cells + 1)
    seeds[20 : code.cells] = 1.0
    got, want = np.array(seeds), np.array(seeds)
    compiled.scalar_reverse(op, a, b, k, v, got, len(op), 0, code.cells, False)
    reference.scalar_reverse(op, a, b, k, v, want, len(op), 0, code.cells, False)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("seed", range(10))
def test_tangent_sweep_is_the_transpose_of_the_reverse_sweep(seed: int) -> None:
    rng = np.random.default_rng(seed)
    code = random_scalar_code(rng, ["add", "multiply", "sin", "tanh", "where", "arctan2"], 60)
    op, a, b, _, _, k, v = code.arrays()
    n = len(op)
    reference.scalar_forward(op, a, b, k, v, 0, n, 0)
    t = np.zeros(code.cells + 1)
    t[:20] = rng.normal(size=20)
    assert reference.scalar_tangent(op, a, b, k, v, t, 0, n, 0) == (n, code.cells)
    g = np.zeros(code.cells + 1)
    g[code.cells - 1] = 1.0
    reference.scalar_reverse(op, a, b, k, v, g, n, 0, code.cells, False)
    assert t[code.cells - 1] == pytest.approx(t[:20] @ g[:20], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("executor", ["compiled", "reference"])
@pytest.mark.parametrize("structural", [LANES, HOST])
def test_scalar_stops_at_what_others_run(executor: str, structural: int) -> None:
    code = Code([2.0, 3.0])
    product = code.append(ROWS["multiply"][0], 0, 1)
    code.append(structural, 0, 4, owns=4)
    code.append(ROWS["sin"][0], product, 0)
    op, a, b, _, _, k, v = code.arrays()
    forward = compiled.scalar_forward if executor == "compiled" else reference.scalar_forward
    backward = compiled.scalar_reverse if executor == "compiled" else reference.scalar_reverse
    assert forward(op, a, b, k, v, 0, 4, 0) == (2, 3)
    assert forward(op, a, b, k, v, 3, 4, 7) == (4, 8)
    assert v[7] == pytest.approx(np.sin(6.0))
    g = np.zeros(9)
    g[7] = 1.0
    assert backward(op, a, b, k, v, g, 4, 0, 8, False) == (3, 7)
    assert backward(op, a, b, k, v, g, 2, 0, 3, False) == (0, 0)
    assert g[:3] == pytest.approx([3.0 * np.cos(6.0), 2.0 * np.cos(6.0), 0.0])


@pytest.mark.parametrize("executor", ["compiled", "reference"])
def test_zero_adjoints_are_skipped_unless_strict(executor: str) -> None:
    code = Code([0.0])
    code.append(ROWS["sqrt"][0], 0, 0)
    for strict in (False, True):
        _, g = run_scalar(code, np.zeros(3), strict, executor)
        assert np.isnan(g[0]) == strict  # 0 times the infinite slope of sqrt at 0.
        lane = Code([0.0])
        lane.lanes("sqrt", (), [(reference.CELLS, 0, ())])
        _, g = run_lanes(lane, np.zeros(3), strict, executor)
        assert np.isnan(g[0]) == strict


def test_plain_lists_serve_the_reference() -> None:
    code = Code([2.0, 3.0])
    code.append(ROWS["multiply"][0], 0, 1)
    op, a, b = code.columns
    v, g = [2.0, 3.0, 0.0], [0.0, 0.0, 1.0]
    assert reference.scalar_forward(op, a, b, code.k, v, 0, 2, 0) == (2, 3)
    assert reference.scalar_reverse(op, a, b, code.k, v, g, 2, 0, 3, False) == (0, 0)
    assert (v, g) == ([2.0, 3.0, 6.0], [3.0, 2.0, 0.0])


def random_window(rng: np.random.Generator, code: Code, shape: tuple[int, ...]) -> Any:
    """A window of this shape on earlier cells: contiguous, strided, indexed, constant."""
    n = int(np.prod(shape, dtype=int))
    choice = rng.integers(6)
    dense = [int(np.prod(shape[i + 1 :], dtype=int)) for i in range(len(shape))]
    if choice == 0:
        return reference.CONSTANT, int(rng.integers(len(code.k))), [0] * len(shape)
    if choice == 1 and code.cells >= n:  # Consecutive cells, perhaps passive.
        kind = reference.PASSIVE if rng.random() < 0.2 else reference.CELLS
        return kind, int(rng.integers(code.cells - n + 1)), dense
    if choice == 2:  # Gathered, with repetitions.
        code.x += rng.integers(0, code.cells, n).tolist()
        return reference.INDEXED, len(code.x) - n, dense
    if choice == 3:  # One place for all.
        kind = (reference.CELLS, reference.INDEXED)[rng.integers(2)]
        code.x.append(int(rng.integers(code.cells)))
        offset = len(code.x) - 1 if kind == reference.INDEXED else int(rng.integers(code.cells))
        return kind, offset, [0] * len(shape)
    # Any strides that stay inside: negative, zero, overlapping.
    strides = [int(s) for s in rng.integers(-3, 4, len(shape))]
    low = sum(min(0, s * (e - 1)) for s, e in zip(strides, shape, strict=True))
    high = sum(max(0, s * (e - 1)) for s, e in zip(strides, shape, strict=True))
    if high - low >= code.cells:
        return reference.CELLS, int(rng.integers(code.cells)), [0] * len(shape)
    return reference.CELLS, int(rng.integers(-low, code.cells - high)), strides


@pytest.mark.parametrize("seed", range(40))
def test_lanes_on_random_windows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    code = Code(rng.normal(size=30))
    rows = ["add", "subtract", "multiply", "maximum", "where", "sin", "arctan2", "floor", "expit"]
    for _ in range(12):
        row = rows[rng.integers(len(rows))]
        shape = tuple(int(n) for n in rng.integers(1, 6, rng.integers(0, 4)))
        code.lanes(row, shape, [random_window(rng, code, shape) for _ in range(ARITY[row])])
    seeds = np.zeros(code.cells + 1)
    seeds[code.cells - 5 : code.cells] = [0.0, 1.0, -2.0, 0.5, 0.0]
    want, want_g = run_lanes(code, seeds, False, "reference")
    for executor, limit in (("compiled", 10**9), ("compiled", 1), ("reference", 7)):
        got, got_g = run_lanes(code, seeds, False, executor, limit)
        np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-13)
        # Lanes that meet in one cell are added in another order.
        np.testing.assert_allclose(got_g, want_g, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("limit", [1, 600, 10**9])
def test_long_instructions_go_on_where_they_were_interrupted(limit: int) -> None:
    n = 3 * BLOCK + 17
    code = Code(np.linspace(-1.0, 1.0, n))
    square = code.lanes("multiply", (n,), [(reference.CELLS, 0, (1,))] * 2)
    scaled = [(reference.CELLS, square + n - 1, (-1,)), (reference.CELLS, 5, (0,))]
    code.lanes("multiply", (n,), scaled)
    code.lanes("sin", (0,), [(reference.CELLS, 0, (1,))])
    seeds = np.zeros(code.cells + 1)
    seeds[2 * n : 3 * n] = np.arange(n) % 5
    want, want_g = run_lanes(code, seeds, False, "reference")
    got, got_g = run_lanes(code, seeds, False, "compiled", limit)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_allclose(got_g, want_g, rtol=1e-13)


@pytest.mark.skipif(not native.by_library(), reason="compiled by Numba's own means")
def test_arithmetic_lanes_are_vectorised() -> None:
    module = building.optimised(native.LIBRARIES["lanes"])
    assembly = building.cpu_target.target_context.codegen()._tm.emit_assembly(module)
    for instruction in ("addpd", "mulpd", "divpd", "sqrtpd"):
        assert re.search(rf"\bv?{instruction}\b", assembly), instruction
