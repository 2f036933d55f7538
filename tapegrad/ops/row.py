"""What a row of the operation table is, and the checks that every row passes on import.

A row says everything about one elementwise operation: how its value is computed, its partial
derivatives, where it is differentiable, what it answers at its kinks, and the points at which it is
tested. Interpreters, tangent rules, tests and the reference page are generated from rows.

Expressions are ordinary Python expressions over the operands ``x``, ``y``, ``z``. A partial may
also use ``out``, the names of ``let``, the constants below, the names of other rows as functions,
arithmetic, comparisons, ``and``/``or``/``not`` and ``A if c else B``; nothing else, so that a
partial is itself a program in rows and can be differentiated again.
"""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

CONSTANTS = {
    "pi": math.pi,
    "inf": math.inf,
    "nan": math.nan,
    "LN2": 0.6931471805599453,
    "LOG2E": 1.4426950408889634,
    "LOG10E": 0.4342944819032518,
    "TWO_OVER_SQRT_PI": 1.1283791670955126,
    "RADIANS_PER_DEGREE": math.pi / 180.0,
    "DEGREES_PER_RADIAN": 180.0 / math.pi,
}
"""Names that expressions may use for numbers."""

OPERANDS = ("x", "y", "z")

# What the conditions of branches may call: enough to decide, on import, which way a sample takes.
_CONDITION_CALLS = {"isnan": math.isnan, "isinf": math.isinf}

_ALLOWED_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call, ast.Name,
    ast.Constant, ast.Load, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.USub, ast.And, ast.Or,
    ast.Not, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip


@dataclass(frozen=True)
class Zero:
    """The partial of an operation that is constant wherever it is smooth, such as ``floor``."""


@dataclass(frozen=True)
class Integer:
    """Marks an operand that is an integer: it is carried, and never differentiated."""


@dataclass(frozen=True)
class Nondiff:
    """The partial of an operation that has none; asking for it is an error that states `reason`."""

    reason: str


ZERO = Zero()
INTEGER = Integer()
NONDIFF = Nondiff

Partial = str | Zero | Integer | Nondiff
Point = tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """One elementwise operation. Build it with `op`, which checks it."""

    name: str
    operands: tuple[str, ...]
    out: str
    partials: tuple[Partial, ...]
    let: Mapping[str, str]
    ufuncs: tuple[str, ...]
    mp: str
    domain: str
    kinks: tuple[tuple[Point, Point], ...]
    samples: tuple[Point, ...]
    specials: tuple[Point, ...]
    result: str
    ulp: float
    scale: float
    doc: str

    @property
    def arity(self) -> int:
        """The number of operands."""
        return len(self.operands)

    @property
    def differentiable(self) -> bool:
        """Whether some partial is an expression, so that a reverse sweep has something to do."""
        return any(isinstance(partial, str) for partial in self.partials)

    @property
    def nondifferentiable_because(self) -> str | None:
        """The reason of the first NONDIFF partial, or None."""
        return next((p.reason for p in self.partials if isinstance(p, Nondiff)), None)

    @property
    def integer_operand(self) -> int | None:
        """The position of the operand that must be an integer, or None."""
        return next((i for i, p in enumerate(self.partials) if isinstance(p, Integer)), None)

    @property
    def points(self) -> tuple[Point, ...]:
        """Every point the row is tested at: samples, kinks and specials."""
        return self.samples + tuple(point for point, _ in self.kinks) + self.specials

    def expressions(self) -> Iterator[tuple[str, str]]:
        """Yield (field, expression) for the value, the temporaries and the partials."""
        yield "out", self.out
        yield from self.let.items()
        for operand, partial in zip(self.operands, self.partials, strict=True):
            if isinstance(partial, str):
                yield "d" + operand, partial


def op(
    name: str,
    operands: str,
    *,
    out: str,
    doc: str,
    samples: Iterable[float | Sequence[float]],
    dx: Partial | None = None,
    dy: Partial | None = None,
    dz: Partial | None = None,
    let: Mapping[str, str] | None = None,
    ufunc: str | tuple[str, ...] | None = None,
    mp: str | None = None,
    domain: str = "True",
    kinks: Iterable[tuple[float | Point, float | Point]] = (),
    specials: Iterable[float | Sequence[float]] = (),
    result: str = "float",
    ulp: float = 4.0,
    scale: float = 0.0,
) -> Row:
    """Make a row, and refuse one that is incomplete.

    Parameters
    ----------
    name
        Name of the operation, which other rows may call in their partials.
    operands
        ``"x"``, ``"x y"`` or ``"x y z"``.
    out
        The value. It may call the functions of ``kernels/functions.py`` and of `math`.
    dx, dy, dz
        The partial for each operand: an expression, `ZERO`, `INTEGER` or ``NONDIFF("reason")``.
    let
        Temporaries shared by the partials, in order.
    ufunc
        Names of the NumPy or SciPy ufuncs served; by default the row's own name. ``"frexp[0]"`` is
        the first result of a ufunc that has two. An empty tuple serves none.
    mp
        Independent definition in names of mpmath, the oracle of tests; by default ``name(x, ...)``.
    domain
        Condition that holds where the operation is differentiable.
    kinks
        Pairs (point, partials there): what is answered where the derivative does not exist.
    samples
        Points at which value and partials are tested.
    specials
        Points at which only the value is tested, against NumPy or SciPy.
    result
        ``"float"``, ``"bool"`` or ``"int"``: the kind of number NumPy answers.
    ulp
        How far the value may be from the mpmath oracle, in units in the last place...
    scale
        ... of the value, or of this number where the value is smaller: near a root a function may
        be accurate in the absolute only.
    doc
        One sentence, for the reference page.
    """
    names = tuple(operands.split())
    partials = (dx, dy, dz)
    _check_partials(name, names, partials)
    row = Row(
        name=name,
        operands=names,
        out=out,
        partials=tuple(p for p in partials if p is not None),
        let=dict(let or {}),
        ufuncs=(name,) if ufunc is None else (ufunc,) if isinstance(ufunc, str) else ufunc,
        mp=mp or f"{name}({', '.join(names)})",
        domain=domain,
        kinks=tuple((_point(point), _point(partials)) for point, partials in kinks),
        samples=tuple(map(_point, samples)),
        specials=tuple(map(_point, specials)),
        result=result,
        ulp=ulp,
        scale=scale,
        doc=doc,
    )
    _check_fields(row)
    _check_names(row)
    _check_signs(row)
    _check_branches(row)
    return row


def _check_partials(name: str, names: Sequence[str], partials: Iterable[Partial | None]) -> None:
    for operand, partial in zip(OPERANDS, partials, strict=True):
        if (operand in names) != (partial is not None):
            fault = "misses" if operand in names else "has a needless"
            raise ValueError(
                f"row {name!r} {fault} d{operand}: give an expression, ZERO, INTEGER or "
                "NONDIFF('reason') for each operand, and nothing else"
            )


def parse(expression: str) -> ast.expr:
    """Return the syntax tree of one expression of a row."""
    return ast.parse(expression, mode="eval").body


def called(expression: str) -> set[str]:
    """Return the names that an expression calls as functions."""
    return {
        node.func.id
        for node in ast.walk(parse(expression))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


def in_domain(row: Row, point: Point) -> bool:
    """Say whether `row` is differentiable at `point`."""
    return bool(_evaluate(row, row.domain, point))


def _point(values: float | Sequence[float]) -> Point:
    return (float(values),) if isinstance(values, (int, float)) else tuple(map(float, values))


def _check_fields(row: Row) -> None:
    if row.operands != OPERANDS[: row.arity] or not row.operands:
        raise ValueError(f"row {row.name!r}: operands are 'x', 'x y' or 'x y z', in this order")
    if row.result not in ("float", "bool", "int"):
        raise ValueError(
            f"row {row.name!r}: result is 'float', 'bool' or 'int', not {row.result!r}"
        )
    if not row.doc.endswith("."):
        raise ValueError(f"row {row.name!r}: doc is a sentence, and ends with a full stop")
    for point in itertools.chain(row.points, (partials for _, partials in row.kinks)):
        if len(point) != row.arity:
            raise ValueError(f"row {row.name!r}: point {point} needs {row.arity} numbers")
    for point, _ in row.kinks:
        if in_domain(row, point):
            raise ValueError(f"row {row.name!r}: kink {point} lies inside the domain {row.domain}")


def _check_names(row: Row) -> None:
    for field, expression in row.expressions():
        known = {*row.operands, *CONSTANTS}
        if field != "out":
            known |= {"out"} | set(row.let)
        for node in ast.walk(parse(expression)):
            if not isinstance(node, _ALLOWED_NODES):
                raise ValueError(
                    f"row {row.name!r}, {field}: {type(node).__name__} is not part of the "
                    "expression language; see the docstring of tapegrad/ops/row.py"
                )
        functions = called(expression)
        for node in ast.walk(parse(expression)):
            if isinstance(node, ast.Name) and node.id not in known | functions:
                raise ValueError(
                    f"row {row.name!r}, {field}: unknown name {node.id!r}; an expression may use "
                    f"{', '.join(sorted(known))}"
                )


_SIGNS: dict[str, Callable[[float], bool]] = {
    "a positive value": lambda t: t > 0.0,
    "a negative value": lambda t: t < 0.0,
    "0.0": lambda t: t == 0.0 and math.copysign(1.0, t) > 0.0,
    "-0.0": lambda t: t == 0.0 and math.copysign(1.0, t) < 0.0,
}
_PROBES = (-7.0, -2.0, -1.0, -0.6, -0.3, -0.0, 0.0, 0.2, 0.4, 0.9, 1.0, 2.0, 3.0, 7.0)


def _check_signs(row: Row) -> None:
    """Each operand meets both signs and both zeros, and within the domain those it allows."""
    inside = [p for p in itertools.product(_PROBES, repeat=row.arity) if in_domain(row, p)]
    smooth = [point for point in row.samples if in_domain(row, point)]
    for position, operand in enumerate(row.operands):
        for sign, holds in _SIGNS.items():
            if not any(holds(point[position]) for point in row.points):
                raise ValueError(f"row {row.name!r}: no sample or special has {sign} for {operand}")
            allowed = any(holds(point[position]) for point in inside)
            if allowed and not any(holds(point[position]) for point in smooth):
                raise ValueError(
                    f"row {row.name!r}: no sample inside the domain has {sign} for {operand}"
                )


def _check_branches(row: Row) -> None:
    """Each condition, and each 0/1 result, turns out both ways at some sample."""
    conditions = [("out", row.out)] if row.result == "bool" and not called(row.out) else []
    for field, expression in row.expressions():
        conditions += [
            (field, ast.unparse(node.test))
            for node in ast.walk(parse(expression))
            if isinstance(node, ast.IfExp)
        ]
    for field, condition in conditions:
        answers = {bool(_evaluate(row, condition, point)) for point in row.points}
        if answers != {True, False}:
            raise ValueError(
                f"row {row.name!r}, {field}: {condition!r} is {answers.pop()} at every sample; "
                "add one that takes the other branch"
            )


def _evaluate(row: Row, condition: str, point: Point) -> float:
    names = {**CONSTANTS, **_CONDITION_CALLS, **dict(zip(row.operands, point, strict=True))}
    try:
        return float(eval(condition, {"__builtins__": {}}, names))
    except NameError as error:
        raise ValueError(
            f"row {row.name!r}: condition {condition!r}: {error}; conditions may use operands, "
            f"numbers and {', '.join(_CONDITION_CALLS)}"
        ) from error
