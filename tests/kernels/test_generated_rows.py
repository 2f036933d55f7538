"""Every row at every point it names: value, partials, kinks, tangents and second order.

The oracle is mpmath with 50 digits, from the independent definition in the row; at the ends of the
domain, at infinities and nan it is the NumPy or SciPy ufunc that the row serves.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.special

from tapegrad.kernels.opcodes import MULTI_UFUNCS, NONDIFF, ROWS, UFUNCS
from tapegrad.kernels.rules import CONTRIBUTIONS, FORWARD, TANGENTS
from tapegrad.ops import TABLE
from tapegrad.ops.row import CONSTANTS, Point, Row, in_domain, parse
from tapegrad.ops.table import OPERATOR_ROWS

ROW_CASES = [pytest.param(row, id=name) for name, row in TABLE.items()]
SMOOTH_CASES = [
    pytest.param(row, point, id=f"{name}{point}")
    for name, row in TABLE.items()
    for point in row.samples
    if in_domain(row, point)
]
KINK_CASES = [
    pytest.param(row, point, partials, id=f"{name}{point}")
    for name, row in TABLE.items()
    for point, partials in row.kinks
]
MP_NAMES = {name: getattr(mpmath, name) for name in dir(mpmath) if not name.startswith("_")}
MP_NAMES.update(max=max, min=min, int=int)


def definition(row: Row) -> Callable[..., Any]:
    code = compile(row.mp, f"<{row.name}>", "eval")
    return lambda *point: eval(code, MP_NAMES | dict(zip(row.operands, point, strict=True)))


def derivative(row: Row, point: Point, order: tuple[int, ...]) -> Any:
    """Differentiate the definition numerically, with steps that suit the size of each operand."""
    function = definition(row)
    at = [mpmath.mpf(t) for t in point]
    sizes = [abs(t) or mpmath.mpf(1) for t in at]

    def moved(*steps: Any) -> Any:
        return function(*(t + h * n for t, h, n in zip(at, steps, sizes, strict=True)))

    factor = mpmath.fprod(size**n for size, n in zip(sizes, order, strict=True))
    return mpmath.diff(moved, (0,) * row.arity, order) / factor


def value(row: Row, point: Point) -> float:
    return float(FORWARD[ROWS[row.name][0]](*point))


def partials(row: Row, point: Point) -> list[float]:
    contributions = CONTRIBUTIONS[ROWS[row.name][0]]
    return [float(c) for c in contributions(1.0, *point, value(row, point))]


def ulps(got: float, want: Any, scale: float = 0.0) -> float:
    """Return the distance in units in the last place of the larger of `want` and `scale`."""
    if got == want:
        return 0.0
    return float(abs(mpmath.mpf(got) - want) / np.spacing(max(abs(float(want)), scale, 1e-300)))


def same(got: float, want: float) -> bool:
    """Equal up to 4 ULP, with equal signs of zeros."""
    if math.isnan(want) or math.isnan(got):
        return math.isnan(want) and math.isnan(got)
    if got == want:
        return math.copysign(1.0, got) == math.copysign(1.0, want)
    return math.isfinite(want) and abs(got - want) <= 4.0 * np.spacing(abs(want))


@pytest.mark.parametrize(("row", "point"), SMOOTH_CASES)
def test_value(row: Row, point: Point) -> None:
    with mpmath.workdps(50):
        want = definition(row)(*map(mpmath.mpf, point))
        assert ulps(value(row, point), want, row.scale) <= row.ulp


@pytest.mark.parametrize("row", [case for case in ROW_CASES if case.values[0].ufuncs])
def test_value_is_that_of_the_ufunc(row: Row) -> None:
    for name in row.ufuncs:
        base, part = re.fullmatch(r"(\w+)(?:\[(\d)\])?", name).groups()
        ufunc = getattr(np, base, None) or getattr(scipy.special, base)
        assert isinstance(ufunc, np.ufunc)
        assert (MULTI_UFUNCS[base][int(part)] if part else UFUNCS[base]) == row.name
        for point in row.points:
            operands = [int(t) if row.integer_operand == i else t for i, t in enumerate(point)]
            with np.errstate(all="ignore"):
                want = ufunc(*operands)
            want = float(want[int(part)] if part else want)
            got = value(row, point)
            near = math.isfinite(want) and ulps(got, want, row.scale) <= row.ulp
            assert same(got, want) or near, (name, point, got, want)


@pytest.mark.parametrize(("row", "point"), SMOOTH_CASES)
def test_partials(row: Row, point: Point) -> None:
    with mpmath.workdps(50):
        for i, got in enumerate(partials(row, point)):
            if i == row.integer_operand:
                assert got == 0.0
                continue
            order = tuple(int(j == i) for j in range(row.arity))
            want = derivative(row, point, order)
            # tanh and others form 1 - out**2, which is good to an absolute 4e-16, not relative.
            assert abs(got - want) <= 1e-13 * abs(want) * max(1, row.ulp / 4) + 4e-16, (i, want)


@pytest.mark.parametrize(("row", "point", "want"), KINK_CASES)
def test_partials_at_kinks_are_the_documented_ones(row: Row, point: Point, want: Point) -> None:
    got = partials(row, point)
    assert all(same(g, w) or g == w for g, w in zip(got, want, strict=True)), (got, want)


@pytest.mark.parametrize("row", ROW_CASES)
def test_a_row_without_derivative_answers_nan(row: Row) -> None:
    point = row.points[0]
    assert (row.name in NONDIFF) == (row.nondifferentiable_because is not None)
    if row.name in NONDIFF:
        assert all(math.isnan(partial) for partial in partials(row, point))


@pytest.mark.parametrize(("row", "point"), SMOOTH_CASES)
def test_tangent_is_the_transpose_of_the_contributions(row: Row, point: Point) -> None:
    opcode = ROWS[row.name][0]
    out = value(row, point)
    seeds = [0.7, -1.3, 0.2][: row.arity]
    received = CONTRIBUTIONS[opcode](0.9, *point, out)
    tangent = TANGENTS[opcode](*point, out, *seeds)
    dot = math.fsum(t * c for t, c in zip(seeds, received, strict=True))
    size = math.fsum(abs(t * c) for t, c in zip(seeds, received, strict=True))
    assert abs(0.9 * tangent - dot) <= 1e-15 * size
    assert TANGENTS[opcode](*point, out, *([0.0] * row.arity)) == 0.0


@pytest.mark.parametrize(("row", "point"), SMOOTH_CASES)
def test_second_order(row: Row, point: Point) -> None:
    """Differentiate each partial by the rows it is written in, as a recorded derivative would."""
    with mpmath.workdps(50):
        for i, partial in enumerate(row.partials):
            for j in range(row.arity):
                if not isinstance(partial, str) or j == row.integer_operand:
                    continue
                _, got = dual(row, partial, point, seed=j)
                order = tuple((n == i) + (n == j) for n in range(row.arity))
                want = derivative(row, point, order)
                tolerance = 1e-11 * abs(want) * max(1, row.ulp / 4) + 1e-13
                close = abs(got - want) <= tolerance or got == float(want)
                assert close, (i, j, got, want)


def dual(row: Row, expression: str, point: Point, seed: int) -> tuple[float, float]:
    """Evaluate an expression and its tangent for one operand, by the rows it is written in."""
    names = {name: (number, 0.0) for name, number in CONSTANTS.items()}
    for j, (operand, number) in enumerate(zip(row.operands, point, strict=True)):
        names[operand] = (number, float(j == seed))
    names["out"] = apply(row.name, [names[operand] for operand in row.operands])
    for name, text in row.let.items():
        names[name] = walk(parse(text), names)
    return walk(parse(expression), names)


def apply(name: str, pairs: list[tuple[float, float]]) -> tuple[float, float]:
    opcode = ROWS[name][0]
    values = [number for number, _ in pairs]
    out = FORWARD[opcode](*values)
    return out, TANGENTS[opcode](*values, out, *(tangent for _, tangent in pairs))


def walk(node: ast.expr, names: dict[str, tuple[float, float]]) -> tuple[float, float]:
    if isinstance(node, ast.Constant):
        return float(node.value), 0.0
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.IfExp):
        return walk(node.body if walk(node.test, names)[0] else node.orelse, names)
    if isinstance(node, ast.Call):
        return apply(node.func.id, [walk(argument, names) for argument in node.args])
    if isinstance(node, ast.BoolOp):
        return apply(OPERATOR_ROWS[type(node.op)], [walk(child, names) for child in node.values])
    if isinstance(node, ast.Compare):
        pair = [walk(node.left, names), walk(node.comparators[0], names)]
        return apply(OPERATOR_ROWS[type(node.ops[0])], pair)
    if isinstance(node, ast.UnaryOp):
        return apply(OPERATOR_ROWS[type(node.op)], [walk(node.operand, names)])
    assert isinstance(node, ast.BinOp)
    pair = [walk(node.left, names), walk(node.right, names)]
    return apply(OPERATOR_ROWS[type(node.op)], pair)


def test_a_branch_that_says_zero_contributes_zero_whatever_the_adjoint() -> None:
    where = CONTRIBUTIONS[ROWS["where"][0]]
    assert where(math.inf, 1.0, 2.0, math.nan, 2.0) == (0.0, math.inf, 0.0)
    assert where(math.inf, 0.0, math.nan, 3.0, 3.0) == (0.0, 0.0, math.inf)


def test_every_floating_point_ufunc_of_numpy_is_served() -> None:
    served = set(UFUNCS) | set(MULTI_UFUNCS)
    # On integers only, on dates, or structural.
    others = {
        *("bitwise_and", "bitwise_count", "bitwise_or", "bitwise_xor", "gcd", "invert", "isnat"),
        *("lcm", "left_shift", "right_shift", "matmul", "matvec", "vecdot", "vecmat"),
    }
    ufuncs = {f.__name__ for f in vars(np).values() if isinstance(f, np.ufunc)}
    assert ufuncs - served - others == set()
