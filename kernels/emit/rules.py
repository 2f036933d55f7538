"""Emits kernels/rules.py: forward values, contributions and tangents as Python functions."""

from __future__ import annotations

import ast

from tapegrad.kernels.emit.language import HEADER, contribution, guarded, names_in, tree
from tapegrad.kernels.emit.library import MATH, SOURCE
from tapegrad.kernels.emit.numbering import STRUCTURAL, Opcode
from tapegrad.ops.row import CONSTANTS, Nondiff, Row, parse

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
    constants = [
        f"{name} = {CONSTANTS[name]!r}"
        for name in CONSTANTS
        if name in used - {"inf", "nan", "pi"}
    ]
    return "\n".join(
        [
            HEADER.format(title="What each row computes, in Python: the reference of all kernels."),
            "from __future__ import annotations\n",
            "from collections.abc import Callable",
            _imports("math", used & {"inf", "nan", "pi"}) + "\n",
            _imports("tapegrad.kernels.functions", used & own),
            _imports("tapegrad.kernels.guarded", used & ((set(MATH) | _PYTHON_ONLY) - own)) + "\n",
            *constants,
            "\n",
            functions + "\n",
            _by_opcode("FORWARD", "Callable[..., float] | None", "forward_", opcodes),
            '"""By opcode: f(x, ...) gives the value."""\n',
            _by_opcode("CONTRIBUTIONS", "Callable[..., tuple[float, ...]] | None", "reverse_", opcodes),
            '"""By opcode: f(w, x, ..., out) gives what each operand\'s adjoint receives."""\n',
            _by_opcode("TANGENTS", "Callable[..., float] | None", "tangent_", opcodes),
            '"""By opcode: f(x, ..., out, tx, ...) gives the tangent of the value."""\n',
        ]
    )


def _imports(module: str, names: set[str]) -> str:
    if not names:
        return ""
    return f"from {module} import (\n" + "".join(f"    {name},\n" for name in sorted(names)) + ")"


def _by_opcode(name: str, kind: str, prefix: str, opcodes: tuple[Opcode, ...]) -> str:
    lines = ["    None,\n"] * len(STRUCTURAL)
    lines += [f"    {prefix}{opcode.row.name},\n" for opcode in opcodes]
    return f"{name}: tuple[{kind}, ...] = (\n{''.join(lines)})"


def _row(row: Row) -> str:
    operands = ", ".join(f"{name}: float" for name in row.operands)
    seeds = ", ".join(f"t{name}: float" for name in row.operands)
    tuple_type = ", ".join(["float"] * row.arity)
    partials = [_partial(partial) for partial in row.partials]
    received = [guarded(contribution(partial)) for partial in partials]
    received_text = ", ".join(received) + ("," if row.arity == 1 else "")
    flows = []
    for name, partial in zip(row.operands, partials, strict=True):
        if not _is_zero(partial):
            flow = guarded(contribution(partial, "t" + name))
            flows.append(f"({flow} if t{name} else 0.0)")
    lines = [
        f"def forward_{row.name}({operands}) -> float:",
        f"    return {guarded(tree(row, row.out))}",
        "",
        "",
        f"def reverse_{row.name}(w: float, {operands}, out: float) -> tuple[{tuple_type}]:",
        *_temporaries(row),
        f"    return ({received_text})",
        "",
        "",
        f"def tangent_{row.name}({operands}, out: float, {seeds}) -> float:",
        *(_temporaries(row) if flows else []),
        f"    return {' + '.join(flows) or '0.0'}",
        "",
    ]
    return "\n".join(lines)


def _temporaries(row: Row) -> list[str]:
    return [f"    {name} = {guarded(parse(text))}" for name, text in row.let.items()]


def _partial(partial: object) -> ast.expr:
    if isinstance(partial, str):
        return parse(partial)
    # Asking for a derivative that does not exist is an error of the tape; should one get here, it
    # must not look like a zero.
    return ast.Name("nan", ast.Load()) if isinstance(partial, Nondiff) else ast.Constant(0.0)


def _is_zero(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value == 0
