"""Emits kernels/partials.py: partials as short programs in rows, for code that derives code."""

from __future__ import annotations

import ast

from tapegrad.kernels.emit.language import HEADER
from tapegrad.kernels.emit.traced import flow
from tapegrad.ops.row import CONSTANTS, Nondiff, Row, parse
from tapegrad.ops.table import OPERATOR_ROWS

_HEAD = '''from __future__ import annotations

Steps = tuple[str, ...]
"""A row and what it is applied to: operands x, y, z, the result out, numbers, or an earlier step.

Step 2 is called #2.  What is asked for is the last step, or the only word of the only step.
"""
'''

_PARTIALS_DOC = '''"""By row and operand: its partial; no steps where no derivative flows."""
'''
_FLOWS_DOC = '''"""Likewise, the condition for an adjoint to flow; no steps where it always does."""
'''


def emit(table: dict[str, Row]) -> str:
    """Return the module of partials."""
    partials = [_entry(row, [_partial(row, p) for p in row.partials]) for row in table.values()]
    flows = [_entry(row, [_flow(row, p) for p in row.partials]) for row in table.values()]
    return (
        "\n".join(
            [
                HEADER.format(title="Partials as short programs in rows."),
                _HEAD,
                _mapping("PARTIALS", partials) + _PARTIALS_DOC,
                _mapping("FLOWS", flows) + _FLOWS_DOC,
            ]
        ).rstrip("\n")
        + "\n"
    )


def _partial(row: Row, partial: object) -> list[str]:
    if isinstance(partial, Nondiff):
        return ["nan"]  # recording has refused it before
    return _Steps(row, parse(partial)).all if isinstance(partial, str) else []


def _flow(row: Row, partial: object) -> list[str]:
    condition = flow(parse(partial)) if isinstance(partial, str) else ast.Constant(True)
    return [] if isinstance(condition, ast.Constant) else _Steps(row, condition).all


class _Steps:
    """The steps that compute one expression of a row."""

    def __init__(self, row: Row, node: ast.expr) -> None:
        self.row = row
        self.all: list[str] = []
        self._known: dict[str, str] = {}
        last = self._place(node)
        if last != f"#{len(self.all) - 1}":
            assert not self.all
            self.all.append(last)

    def _place(self, node: ast.expr) -> str:
        """Return the name of an expression's value, after appending the steps that it needs."""
        text = ast.unparse(node)
        if text not in self._known:
            self._known[text] = self._new(node)
        return self._known[text]

    def _new(self, node: ast.expr) -> str:
        if isinstance(node, ast.Constant):
            return repr(float(node.value))  # type: ignore[arg-type]
        if isinstance(node, ast.Name):
            if node.id in self.row.let:
                return self._place(parse(self.row.let[node.id]))
            return repr(CONSTANTS[node.id]) if node.id in CONSTANTS else node.id
        if isinstance(node, ast.Call):
            return self._step(ast.unparse(node.func), node.args)
        if isinstance(node, ast.Compare):
            return self._step(OPERATOR_ROWS[type(node.ops[0])], [node.left, *node.comparators])
        if isinstance(node, ast.IfExp):
            return self._step("where", [node.test, node.body, node.orelse])
        if isinstance(node, ast.BoolOp):
            left, *rest = node.values
            right = rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
            return self._step(OPERATOR_ROWS[type(node.op)], [left, right])
        assert isinstance(node, (ast.BinOp, ast.UnaryOp))
        operands = [node.operand] if isinstance(node, ast.UnaryOp) else [node.left, node.right]
        return self._step(OPERATOR_ROWS[type(node.op)], operands)

    def _step(self, row: str, operands: list[ast.expr]) -> str:
        self.all.append(" ".join([row, *map(self._place, operands)]))
        return f"#{len(self.all) - 1}"


def _entry(row: Row, programs: list[list[str]]) -> str:
    lines = []
    for steps in programs:
        if len(steps) < 2:
            lines.append(f'        ("{steps[0]}",),\n' if steps else "        (),\n")
        else:
            body = "".join(f'            "{step}",\n' for step in steps)
            lines.append(f"        (\n{body}        ),\n")
    if len(lines) == 1 and "\n" not in lines[0].strip():
        return f'    "{row.name}": ({lines[0].strip()}),\n'
    return f'    "{row.name}": (\n{"".join(lines)}    ),\n'


def _mapping(name: str, entries: list[str]) -> str:
    return f"{name}: dict[str, tuple[Steps, ...]] = {{\n{''.join(entries)}}}\n"
