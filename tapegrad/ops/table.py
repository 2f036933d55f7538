"""Collects the rows of every family, and proves that the table is closed under differentiation."""

from __future__ import annotations

import ast

from tapegrad.ops import (
    arithmetic,
    comparison,
    exponential,
    extrema,
    fused,
    hyperbolic,
    powers,
    rounding,
    special,
    trigonometric,
)
from tapegrad.ops.row import Nondiff, Row, Zero, parse

FAMILIES = {
    "Arithmetic": arithmetic.ROWS,
    "Powers and roots": powers.ROWS,
    "Exponentials and logarithms": exponential.ROWS,
    "Trigonometric": trigonometric.ROWS,
    "Hyperbolic": hyperbolic.ROWS,
    "Rounding and parts of a number": rounding.ROWS,
    "Extrema": extrema.ROWS,
    "Comparison, logic and selection": comparison.ROWS,
    "Special functions": special.ROWS,
    "Two operations in one": fused.ROWS,
}
"""Rows by family. Opcodes number them in this order: put a new row at the end of its file."""

OPERATOR_ROWS: dict[type[ast.AST], str] = {
    ast.Add: "add",
    ast.Sub: "subtract",
    ast.Mult: "multiply",
    ast.Div: "divide",
    ast.Pow: "power",
    ast.USub: "negative",
    ast.And: "logical_and",
    ast.Or: "logical_or",
    ast.Not: "logical_not",
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
    ast.IfExp: "where",
}
"""The row behind each piece of syntax that a partial may use."""


def collect(families: dict[str, tuple[Row, ...]]) -> dict[str, Row]:
    """Return all rows by name; a name used twice is an error."""
    table: dict[str, Row] = {}
    for row in (row for rows in families.values() for row in rows):
        if row.name in table:
            raise ValueError(f"row {row.name!r} stands twice in the table")
        table[row.name] = row
    return table


def prove_closed(table: dict[str, Row]) -> None:
    """Prove that every partial is a program of rows that can be differentiated again.

    Each operator and each call must be a row, with as many arguments as that row has operands. A
    row without a derivative (`NONDIFF`) may not appear. An argument at an `INTEGER` position must
    be constant: numbers, integer operands, and results of rows that are constant where they are
    smooth.
    """
    for row in table.values():
        for field, expression in row.expressions():
            if field == "out":
                continue
            for node in ast.walk(parse(expression)):
                name = _row_of(node)
                if name is None:
                    continue
                if name not in table:
                    raise ValueError(f"row {row.name!r}, {field}: {name!r} is not a row")
                if table[name].nondifferentiable_because:
                    raise ValueError(
                        f"row {row.name!r}, {field}: {name!r} has no derivative, so the table "
                        "would not be closed under differentiation"
                    )
                if isinstance(node, ast.Call):
                    _check_call(table, row, field, node, table[name])


def _row_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.Call):
        return ast.unparse(node.func)
    if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
        return None  # A negative literal.
    if isinstance(node, ast.Compare):
        return OPERATOR_ROWS[type(node.ops[0])]
    if isinstance(node, (ast.BinOp, ast.UnaryOp, ast.BoolOp)):
        return OPERATOR_ROWS[type(node.op)]
    return OPERATOR_ROWS.get(type(node)) if isinstance(node, ast.IfExp) else None


def _check_call(table: dict[str, Row], row: Row, field: str, node: ast.Call, callee: Row) -> None:
    where = f"row {row.name!r}, {field}: {ast.unparse(node)}"
    if len(node.args) != callee.arity:
        raise ValueError(f"{where}: {callee.name!r} takes {callee.arity} operands")
    position = callee.integer_operand
    if position is not None and not _is_constant(table, row, node.args[position]):
        raise ValueError(f"{where}: operand {position + 1} of {callee.name!r} must be an integer")


def _is_constant(table: dict[str, Row], row: Row, node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.Name):
        position = row.integer_operand
        return position is not None and node.id == row.operands[position]
    if isinstance(node, ast.Call):
        partials = table[ast.unparse(node.func)].partials
        return all(isinstance(partial, Zero) for partial in partials)
    if isinstance(node, ast.UnaryOp):
        return _is_constant(table, row, node.operand)
    if isinstance(node, ast.BinOp):
        return _is_constant(table, row, node.left) and _is_constant(table, row, node.right)
    return False


TABLE = collect(FAMILIES)
prove_closed(TABLE)
__all__ = ["FAMILIES", "OPERATOR_ROWS", "TABLE", "Nondiff", "Row", "collect", "prove_closed"]
