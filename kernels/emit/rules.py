"""Emits kernels/rules.py: forward values, contributions and tangents as Python functions."""

from __future__ import annotations

import ast

from tapegrad.kernels.emit.language import (
    HEADER,
    WIDTH,
    contribution,
    fit,
    guarded,
    names_in,
    natural,
    tree,
)
from tapegrad.kernels.emit.library import BUILTINS, MATH, SOURCE
from tapegrad.kernels.emit.numbering import STRUCTURAL, Opcode
from tapegrad.ops.row import CONSTANTS, Nondiff, Row, parse

_STRUCTURAL = '''def structural(*operands: float) -> NoReturn:
    """Stand for the rule of an opcode that is no row."""
    raise TypeError("a structural opcode has no rule; it is run by the interpreter itself")


'''
_PYTHON_ONLY = {"divide", "float32"}


def emit(table: dict[str, Row], opcodes: tuple[Opcode, ...]) -> str:
    """Return the module of rules."""
    functions = "\n\n".join(_row(row) for row in table.values())
    used = names_in(ast.parse(functions))
    own = {
        node.name
        for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    unknown = {
        node.func.id
        for node in ast.walk(ast.parse(functions))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    } - (own | set(MATH) | _PYTHON_ONLY | BUILTINS)
    if unknown:
        raise ValueError(f"no function {sorted(unknown)}; write it in kernels/functions.py")
    named = [name for name in CONSTANTS if name in used - {"inf", "nan", "pi"}]
    constants = [f"{name} = {CONSTANTS[name]!r}" for name in named]
    return "\n".join(
        [
            HEADER.format(title="What each row computes, in Python: the reference of all kernels."),
            "from __future__ import annotations\n",
            "from collections.abc import Callable",
            _imports("math", used & {"inf", "nan", "pi"}),
            "from typing import NoReturn\n",
            _imports("tapegrad.kernels.functions", used & own),
            _imports("tapegrad.kernels.guarded", used & ((set(MATH) | _PYTHON_ONLY) - own)) + "\n",
            *constants,
            "\n",
            _STRUCTURAL.rstrip() + "\n\n",
            functions + "\n",
            _by_opcode("FORWARD", "float", "forward_", opcodes),
            '"""By opcode: f(x, ...) gives the value."""\n',
            _by_opcode("CONTRIBUTIONS", "tuple[float, ...]", "reverse_", opcodes),
            '"""By opcode: f(w, x, ..., out) gives what each operand\'s adjoint receives."""\n',
            _by_opcode("TANGENTS", "float", "tangent_", opcodes),
            '"""By opcode: f(x, ..., out, tx, ...) gives the tangent of the value."""\n',
        ]
    )


def _imports(module: str, names: set[str]) -> str:
    if not names:
        return ""
    return (
        f"from {module} import (\n"
        + "".join(f"    {name},\n" for name in sorted(names, key=natural))
        + ")"
    )


def _by_opcode(name: str, kind: str, prefix: str, opcodes: tuple[Opcode, ...]) -> str:
    lines = ["    structural,\n"] * len(STRUCTURAL)
    lines += [f"    {prefix}{opcode.row.name},\n" for opcode in opcodes]
    return f"{name}: tuple[Callable[..., {kind}], ...] = (\n{''.join(lines)})"


def _row(row: Row) -> str:
    operands = ", ".join(f"{name}: float" for name in row.operands)
    seeds = ", ".join(f"t{name}: float" for name in row.operands)
    answers = ", ".join(["float"] * row.arity)
    lines = [
        f"def forward_{row.name}({operands}) -> float:",
        *_returned([guarded(tree(row, row.out))], "", ""),
        "\n",
        *_signature(
            f"def reverse_{row.name}(",
            f"w: float, {operands}, out: float",
            f") -> tuple[{answers}]:",
        ),
        *_temporaries(row),
        *_returned([guarded(contribution(_partial(p))) for p in row.partials], "(", ")"),
        "\n",
        *_signature(f"def tangent_{row.name}(", f"{operands}, out: float, {seeds}", ") -> float:"),
        *_tangent(row),
        "",
    ]
    return "\n".join(lines)


def _tangent(row: Row) -> list[str]:
    """Return the body of a tangent rule: where tangent or partial are 0, 0 * inf adds nothing.

    By a partial that is 0 a backward sweep ends; a forward one stands for the same derivative.
    """
    lines, flows = _temporaries(row), {}
    for name, partial in zip(row.operands, map(_partial, row.partials), strict=True):
        if isinstance(partial, ast.Constant) and partial.value == 0:
            continue
        condition: ast.expr = ast.Name("t" + name, ast.Load())
        if names_in(partial):
            slope: ast.expr = partial
            if not isinstance(partial, ast.Name):
                slope = ast.Name("slope_" + name, ast.Load())
                lines += fit(f"    {slope.id} = {guarded(partial)}")
            condition = ast.BoolOp(ast.And(), [condition, slope])
        flow = ast.IfExp(condition, contribution(partial, "t" + name), ast.Constant(0.0))
        flows["from_" + name] = guarded(flow)
    if len(flows) < 2:
        return [*(lines if flows else []), *_returned(list(flows.values()) or ["0.0"])]
    lines += [part for name, flow in flows.items() for part in fit(f"    {name} = {flow}")]
    return [*lines, f"    return {' + '.join(flows)}"]


def _returned(items: list[str], left: str = "", right: str = "") -> list[str]:
    """Return a return statement of one expression, or of a tuple, broken where it is too long."""
    comma = "," if left and len(items) == 1 else ""
    line = f"    return {left}{', '.join(items)}{comma}{right}"
    if len(line) <= WIDTH:
        return [line]
    comma = "," if left else ""
    return ["    return (", *(f"        {item}{comma}" for item in items), "    )"]


def _signature(left: str, parameters: str, right: str) -> list[str]:
    if len(left + parameters + right) <= WIDTH:
        return [left + parameters + right]
    return [left, "    " + parameters, right]


def _temporaries(row: Row) -> list[str]:
    return [f"    {name} = {guarded(parse(text))}" for name, text in row.let.items()]


def _partial(partial: object) -> ast.expr:
    if isinstance(partial, str):
        return parse(partial)
    # Asking for a derivative that does not exist is an error of the tape; should one get here, it
    # must not look like a zero.
    return ast.Name("nan", ast.Load()) if isinstance(partial, Nondiff) else ast.Constant(0.0)
