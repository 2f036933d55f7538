"""Emits kernels/cpu/scalar.py: the scalar interpreters, forward and reverse."""

from __future__ import annotations

import ast
from collections.abc import Callable

from tapegrad.kernels.emit.language import HEADER, compiled, contribution, fit, names_in, tree
from tapegrad.kernels.emit.library import preamble
from tapegrad.kernels.emit.numbering import CELLS, KX, STRUCTURAL, Opcode
from tapegrad.ops.row import Nondiff, Partial, Row, called, parse

_INPUT, _LANES, _HOST, _CONST, _CARRY = range(len(STRUCTURAL))

_IMPORTS = """import math
from typing import Any

import numpy as np
from numba.types import int64

from tapegrad.kernels.cpu.columns import bytes_at, columns_at, floats_at, places_at
from tapegrad.kernels.cpu.jit import alone, entry, native
from tapegrad.kernels.cpu.jit import part as helper"""

_FORWARD = '''@alone
def sweep(op, a, b, k, v, start, stop, cell):
    """Do what `forward` says."""
    i = np.uint64(start)
    end = np.uint64(stop)
    c = np.uint64(cell)
    one = np.uint64(1)
    # Value of the cell before: reading it back from memory would have to wait for the writing.
    result = v[c - one] if cell > 0 else 0.0
    while i < end:
        o = op[i]
        p = np.uint64(a[i])
        q = np.uint64(b[i])
        if o < {first}:
            if o == {input}:  # The values of an input are there already.
                c += q
                i += one
                if c > 0:
                    result = v[c - one]
                continue
            if o == {const}:
                result = k[p]
            elif o == {carry}:
                result = 0.0
            else:  # LANES and HOST are run by others.
                break
            v[c] = result
            c += one
            i += one
            continue
        s = result if p + one == c else v[p]
{cases}
        else:
            result = rare_forward(o, a, v, i, p, q)
        v[c] = result
        c += one
        i += one
    return np.int64(i), np.int64(c)
'''

_REVERSE = '''@alone
def sweep_back(op, a, b, k, v, g, start, stop, cell, strict):
    """Do what `reverse` says."""
    i = np.uint64(start)
    end = np.uint64(stop)
    c = np.uint64(cell)
    one = np.uint64(1)
    received = 0.0  # adjoint of the cell written last: reading it back would have to wait
    last = ~c
    while i > end:
        i -= one
        o = op[i]
        if o < {const}:
            if o == {input}:
                c -= np.uint64(b[i])
                continue
            i += one  # LANES and HOST are run by others.
            break
        c -= one
        p = np.uint64(a[i])
        q = np.uint64(b[i])
        w = received if c == last else g[c]
        g[c] = 0.0
        o *= np.uint8(w != 0.0 or strict != 0)  # one branch for both, which is quicker than two
        if o < {first}:
            continue
        s = v[p]
{cases}
        else:
            result = rare_reverse(o, a, v, g, w, c, i, p, q)
        received = g[p] + result
        g[p] = received
        last = p
    return np.int64(i), np.int64(c)
'''

_RARE_FORWARD = '''@helper
def rare_forward(o, a, v, i, p, q):
    """Return the value of a row that calls a function beyond the common ones.

    These rows have a switch of their own: one switch over all of them compiles much more slowly,
    and the call costs little beside the functions.
    """
    s = v[p]
{cases}
    else:
        result = nan  # No opcode comes here.
    return result
'''

_RARE_REVERSE = '''@helper
def rare_reverse(o, a, v, g, w, c, i, p, q):
    """Return what the adjoint of cell p receives, and add what that of cell q does."""
    s = v[p]
{cases}
    else:
        result = 0.0  # The row is constant wherever it is smooth.
    return result
'''

_ENTRIES = '''@entry
def forward(op, a, b, k, v, start, stop, cell):
    """Run instructions from `start`, whose first cell is `cell`; stop early before LANES or HOST.

    Columns are addresses.

    Returns (position, cell): the instruction not yet run, and its first cell.
    """
    return sweep(
        bytes_at(op), places_at(a), places_at(b), floats_at(k), floats_at(v), start, stop, cell
    )


@entry
def reverse(op, a, b, k, v, g, start, stop, cell, strict):
    """Run instructions `start` - 1 down to `stop`; `cell` is the first cell after them.

    Columns are addresses.

    Returns (position, cell): the sweep stopped below `position`, and `cell` is the first cell after
    what is left. Adjoints are cleared as they are used, but for those of inputs: the caller reads
    them.
    """
    return sweep_back(
        bytes_at(op), places_at(a), places_at(b), floats_at(k), floats_at(v), floats_at(g),
        start, stop, cell, strict,
    )  # fmt: skip


def forward_of(columns, start, stop, cell):
    """Do what `forward` says for the tape whose columns are in the record at an address."""
    c = columns_at(columns)
    sweep(c.op, c.a, c.b, c.k, c.v, start, stop, cell)


def reverse_of(columns, start, stop, cell):
    """Do what `reverse` says for the tape whose columns are in the record at an address."""
    c = columns_at(columns)
    sweep_back(c.op, c.a, c.b, c.k, c.v, c.g, start, stop, cell, 0)


def compile_all() -> dict[str, Any]:
    """Compile both interpreters by themselves, or load them from Numba's cache."""
    of_columns = "void(int64, int64, int64, int64)"
    forward.compile((int64,) * 8)
    reverse.compile((int64,) * 10)
    return {
        "forward": forward,
        "reverse": reverse,
        "forward_of": native(forward_of, of_columns),
        "reverse_of": native(reverse_of, of_columns),
    }
'''


COMMON_CALLS = {
    *("abs", "copysign", "cos", "exp", "integer_power", "isinf", "isnan", "log", "power", "sign"),
    *("sin", "sqrt", "tanh"),
}


def is_common(row: Row) -> bool:
    """Say whether a row belongs in the first switch: it calls nothing but common functions."""
    return all(called(expression) <= COMMON_CALLS for _, expression in row.expressions())


def emit(table: dict[str, Row], opcodes: tuple[Opcode, ...]) -> str:
    """Return the module of the scalar interpreters."""
    numbers = {
        "first": len(STRUCTURAL),
        "input": _INPUT,
        "const": _CONST,
        "carry": _CARRY,
    }
    common = tuple(opcode for opcode in opcodes if is_common(opcode.row))
    rare = tuple(opcode for opcode in opcodes if not is_common(opcode.row))
    kernels = [
        _RARE_FORWARD.format(cases=chain(rare, _forward_case, "    ")),
        _FORWARD.format(cases=chain(common, _forward_case), **numbers),
        _RARE_REVERSE.format(cases=chain(rare, _reverse_case, "    ")),
        _REVERSE.format(cases=chain(common, _reverse_case), **numbers),
        _ENTRIES,
    ]
    used = {
        name
        for row in table.values()
        for node in (parse(text) for _, text in row.expressions())
        for name in names_in(node) - {*row.operands, *row.let, "out"}
    }
    header = HEADER.format(title="The scalar interpreters: one switch over opcodes, compiled once.")
    return "\n".join([header, preamble(used | {"nan"}, _IMPORTS), "\n\n".join(kernels)])


def chain(
    opcodes: tuple[Opcode, ...], case: Callable[[Opcode], list[str]], indent: str = "        "
) -> str:
    """Return an if/elif chain over opcodes, in which opcodes with equal bodies share a case."""
    cases: dict[tuple[str, ...], list[Opcode]] = {}
    for opcode in opcodes:
        body = case(opcode)
        if body:
            cases.setdefault(tuple(body), []).append(opcode)
    lines: list[str] = []
    for statements, group in cases.items():
        word = "elif" if lines else "if"
        lines.append(f"{indent}# {', '.join(opcode.name.lower() for opcode in group)}")
        test = " or ".join(f"o == {opcode.number}" for opcode in group)
        lines.append(f"{indent}{word} {test}:")
        lines += [part for line in statements for part in fit(f"{indent}    {line}")]
    return "\n".join(lines)


def operands(opcode: Opcode) -> dict[str, tuple[str, str | None]]:
    """Return, for each operand, the expression of its value and of its cell (None: a constant).

    ``s`` is the value of the first operand cell, which every row loads before the switch.
    """
    if opcode.row.arity == 1:
        return {"x": ("s", "p")}
    if opcode.row.arity == 3:
        carried = "a[i - np.uint64(1)]"
        return {"x": (f"v[{carried}]", carried), "y": ("s", "p"), "z": ("v[q]", "q")}
    if opcode.variant == CELLS:
        return {"x": ("s", "p"), "y": ("v[q]", "q")}
    if opcode.variant == KX:
        return {"x": ("k[q]", None), "y": ("s", "p")}
    return {"x": ("s", "p"), "y": ("k[q]", None)}


def _forward_case(opcode: Opcode) -> list[str]:
    names = {name: value for name, (value, _) in operands(opcode).items()}
    return [f"result = {compiled(tree(opcode.row, opcode.row.out), names)}"]


def _reverse_case(opcode: Opcode) -> list[str]:
    """Return what adds to the adjoints: ``result`` is what goes to cell p, after the switch."""
    row = opcode.row
    names = {name: value for name, (value, _) in operands(opcode).items()} | {"out": "v[c]"}
    names |= {name: "let_" + name for name in row.let}
    body: list[str] = []
    used: set[str] = set()
    to_p = None
    for (_, cell), partial in zip(operands(opcode).values(), row.partials, strict=True):
        node = _contribution(partial)
        if cell is None or node is None:
            continue
        used |= names_in(node)
        if cell == "p":
            to_p = compiled(node, names)
        else:
            body.append(f"g[{cell}] += {compiled(node, names)}")
    if not body and to_p is None:
        return []
    lets = [f"let_{name} = {compiled(parse(text), names)}" for name, text in row.let.items()]
    return (lets if used & set(row.let) else []) + body + [f"result = {to_p or '0.0'}"]


def _contribution(partial: Partial) -> ast.expr | None:
    if isinstance(partial, Nondiff):
        return ast.Name("nan", ast.Load())
    return contribution(parse(partial)) if isinstance(partial, str) else None
