"""Emits the CUDA kernels of regions: kernels/cuda/float64.py and float32.py, and straight kernels.

One thread runs a lane after another. The interpreter's kernel looks up each instruction in a
balanced tree of comparisons, because compilers for CUDA make no jump table of a long chain; its
rows are in shared memory where they fit, else in global memory, a column for each thread that is
resident. A straight kernel is one region's program as source, its rows local variables.
"""

from __future__ import annotations

import ast
import copy
import functools
import re
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from tapegrad.kernels.cuda import words as W
from tapegrad.kernels.emit.language import HEADER, WIDTH, fit, names_in, natural, tree
from tapegrad.kernels.emit.library import FLOAT32, MATH, scalar_library
from tapegrad.kernels.emit.numbering import CELLS, Opcode, number
from tapegrad.ops import TABLE
from tapegrad.ops.row import CONSTANTS, Row, parse

CUDA = Path(__file__).parents[1] / "cuda"

# What double precision cannot stand in for: it asks for the next float of its own type.
_OF_ITS_TYPE = {"spacing"}

# Numba makes of % an inexact instruction of CUDA.
_FMOD = '''def fmod(x: float, y: float) -> float:
    """Return the remainder of x / y that has the sign of x."""
    if y == 0.0 or isinf(x) or isnan(x) or isnan(y):
        return nan
    return x if isinf(y) else math.fmod(x, y)'''

_TOP = """from __future__ import annotations

import math

import numpy as np
from numba import cuda, types

from tapegrad.kernels.cuda.jit import {product}
from tapegrad.kernels.cuda.passes import place
from tapegrad.kernels.cuda.words import (
    ADD,
    AXES,
    BASE,
    CONSTANTS,
    EXTENTS,
    INPUTS,
    INSTRUCTIONS,
    KIND,
    OFFSET,
    OUTPUTS,
    ROW,
    ROWS,
    SIZE,
    STRIDES,
    SUM,
    SUMS,
)

real = np.{real}
# A mark of what kernels take from other files: Numba's cache does not look into what is imported.
TEXTS = "{mark}"
"""

_KERNEL = '''@kernel
def {name}(memory, words, code, constants, index{parameter}):
    """Run a region, a thread a lane; rows are in {where}."""
    blocks, block = np.int64(cuda.gridDim.x), np.int64(cuda.blockDim.x)
    threads = blocks * block
    thread = np.int64(cuda.blockIdx.x) * block + np.int64(cuda.threadIdx.x)
{scratch}
    size, axes, instructions = words[SIZE], words[AXES], words[INSTRUCTIONS]
    first = EXTENTS + axes
    step = STRIDES + axes
    for j in range(words[CONSTANTS]):
        rows[{number}(j) * pitch + t] = constants[j]
    for s in range(words[SUMS]):
        rows[{number}(words[ROWS] + s) * pitch + t] = real(-0.0)
    lane = thread
    while lane < size:
        window = first
        for _ in range(words[INPUTS]):
            at = place(words, index, EXTENTS, axes, window, lane)
            rows[{number}(words[window + ROW]) * pitch + t] = memory[at]
            window += step
        at = np.int64(0)
        for _ in range(instructions):
            o = code[at]
            r = {number}(code[at + 1]) * pitch + t
            x = rows[{number}(code[at + 2]) * pitch + t]
            second, third = code[at + 3], code[at + 4]
            at += 5
{cases}
            rows[r] = value
        for _ in range(words[OUTPUTS]):
            value = rows[{number}(words[window + ROW]) * pitch + t]
            kind = words[window + KIND]
            if kind == SUM:
                rows[{number}(words[window + BASE]) * pitch + t] += value
            else:
                at = place(words, index, EXTENTS, axes, window, lane)
                memory[at] = memory[at] + value if kind == ADD else value
            window += step
        lane += threads
    window = first + words[INPUTS] * step
    for _ in range(words[OUTPUTS]):
        if words[window + KIND] == SUM:
            total = rows[{number}(words[window + BASE]) * pitch + t]
            memory[words[window + OFFSET] + thread] = total
        window += step
'''

_IN_GLOBAL = {
    "name": "interpret_in_global",
    "parameter": ", rows",
    "where": "global memory, [row, thread]",
    "scratch": "    t, pitch = thread, threads",
    "number": "np.int64",
}
_IN_SHARED = {
    "name": "interpret_in_shared",
    "parameter": "",
    "where": "shared memory, [row, thread of the block]",
    "scratch": """    rows = cuda.shared.array(0, types.{real})
    t, pitch = np.uint32(cuda.threadIdx.x), np.uint32(block)""",
    "number": "np.uint32",
}


def emit(table: dict[str, Row], opcodes: tuple[Opcode, ...], real: str) -> str:
    """Return the module of the kernels for numbers of a type."""
    basic = tuple(opcode for opcode in opcodes if opcode.variant == CELLS)
    used = {
        name
        for opcode in basic
        for name in names_in(parse(opcode.row.out)) - set(opcode.row.operands)
    } | {"inf", "nan"}
    product = "helper, kernel, product"
    if real == "float32":
        product = (
            "helper, kernel\nfrom tapegrad.kernels.cuda.jit import product_of_singles as product"
        )
    header = HEADER.format(title=f"CUDA kernels of regions on numbers of type {real}.")
    parts = [f"{header}\n{_TOP.format(real=real, product=product, mark=_mark())}"]
    parts[0] += "\n" + _library(used)
    for kind in (_IN_GLOBAL, _IN_SHARED):
        body = functools.partial(_case, real=real, index=kind["number"])
        cases = "\n".join(_dispatch(basic, body, "            "))
        parts.append(
            _KERNEL.format(cases=cases, **kind | {"scratch": kind["scratch"].format(real=real)})
        )
    return "\n\n\n".join(part.strip("\n") for part in parts) + "\n"


def _mark() -> str:
    texts = [(CUDA / f"{name}.py").read_bytes() for name in ("jit", "passes", "words")]
    return sha256(b"".join(texts).replace(b"\r\n", b"\n")).hexdigest()[:16]


def _library(used: set[str]) -> str:
    """Return the functions and numbers that rows use."""
    needed, functions = scalar_library(used)
    aliases = {name: MATH[name] for name in needed & set(MATH) - set(functions)}
    aliases |= {name: name for name in needed & {"inf", "nan", "pi"}}
    parts = ["\n".join(f"{n} = math.{aliases[n]}" for n in sorted(aliases, key=natural))]
    numbers = [n for n in CONSTANTS if n in needed - set(aliases)]
    parts[0] += "".join(f"\n{n} = {CONSTANTS[n]!r}" for n in numbers)
    if "float32" in needed:
        parts.append(FLOAT32.strip("\n"))
    for name, text in functions.items():
        parts.append("@helper\n" + (_FMOD if name == "fmod" else with_products(text)))
    return "\n\n\n".join(parts)


def with_products(text: str) -> str:
    """Return source in which each ``a * b`` is ``product(a, b)``, and all else as it was."""
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def span(node: ast.AST) -> tuple[int, int]:
        return (
            starts[node.lineno - 1] + node.col_offset,  # type: ignore[attr-defined]
            starts[node.end_lineno - 1] + node.end_col_offset,  # type: ignore[attr-defined]
        )

    def write(node: ast.AST) -> str:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            return f"product({write(node.left)}, {write(node.right)})"
        if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Mult):
            target = write(node.target)
            return f"{target} = product({target}, {write(node.value)})"
        at, end = (0, len(text)) if isinstance(node, ast.Module) else span(node)
        done = ""
        children = [c for c in ast.iter_child_nodes(node) if hasattr(c, "lineno")]
        for child in sorted(children, key=span):
            low, high = span(child)
            done, at = done + text[at:low] + write(child), high
        return done + text[at:end]

    return write(ast.parse(text))


# -- instructions ----------------------------------------------------------------------------------


def expression(row: Row, real: str, names: dict[str, str]) -> str:
    """Return the value of a row as source, its operands by these names."""
    known = {name: name for name in row.operands} | names
    return ast.unparse(_Typed(real, known).visit(copy.deepcopy(tree(row, row.out))))


class _Typed(ast.NodeTransformer):
    """Makes numbers those of a type, and products calls; operands get other names."""

    def __init__(self, real: str, names: dict[str, str]) -> None:
        self.single = real == "float32"
        self.names = names

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        number = ast.Constant(float(node.value))
        return _call("real", number) if self.single else number

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in self.names:
            return parse(self.names[node.id])
        return _call("real", node) if self.single else node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.op, ast.Mult):
            return _call("product", node.left, node.right)
        if isinstance(node.op, ast.Pow):
            return _call("power", node.left, node.right)
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        assert isinstance(node.func, ast.Name)
        name = node.func.id
        arguments = [self.visit(argument) for argument in node.args]
        if not self.single or name in MATH or name == "abs":
            return _call(name, *arguments)
        if name not in _OF_ITS_TYPE:
            arguments = [_call("float", argument) for argument in arguments]
        return _call("real", _call(name, *arguments))


def _call(name: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def _case(opcode: Opcode, real: str, index: str) -> list[str]:
    others = zip(opcode.row.operands[1:], ("second", "third"), strict=False)
    lines = [f"{name} = rows[{index}({row}) * pitch + t]" for name, row in others]
    return [*lines, f"value = {expression(opcode.row, real, {})}"]


def _dispatch(
    opcodes: tuple[Opcode, ...], body: Callable[[Opcode], list[str]], indent: str
) -> list[str]:
    """Return a balanced tree of comparisons of the opcode `o`."""
    if len(opcodes) == 1:
        lines = [f"{indent}# {opcodes[0].row.name}"]
        for line in body(opcodes[0]):
            lines += _fit(indent + line)
        return lines
    half = len(opcodes) // 2
    return [
        f"{indent}if o < {opcodes[half].number}:",
        *_dispatch(opcodes[:half], body, indent + "    "),
        f"{indent}else:",
        *_dispatch(opcodes[half:], body, indent + "    "),
    ]


def _fit(line: str) -> list[str]:
    """Break a line that is too long, and then its branches, as the formatter does."""
    lines = fit(line)
    if len(lines) == 3 and len(lines[1]) > WIDTH:
        indent = lines[1][: len(lines[1]) - len(lines[1].lstrip())]
        parts = re.split(r" (?=if |else )", lines[1].strip())
        lines[1:2] = [indent + part for part in parts]
    return lines


# -- straight kernels ------------------------------------------------------------------------------


class Straight(NamedTuple):
    """What a straight kernel is made from; regions that agree in it share the kernel.

    Attributes
    ----------
    real : str
        The type of the numbers.
    code : tuple of tuple of int
        Instructions, as those of `tapegrad.regions.region.Region`.
    constants : tuple of str
        The numbers of the first rows, as `float.hex` writes them: it tells the zeros apart.
    inputs, outputs : tuple of (row, kind, gathered, strides)
        Windows.
    """

    real: str
    code: tuple[tuple[int, ...], ...]
    constants: tuple[str, ...]
    inputs: tuple[tuple[int, int, bool, tuple[int, ...]], ...]
    outputs: tuple[tuple[int, int, bool, tuple[int, ...]], ...]


def emit_straight(program: Straight) -> str:
    """Return the source of ``straight(memory, words, index)``, which runs one region's program."""
    windows = program.inputs + program.outputs
    axes = len(windows[0][3])
    at = [W.EXTENTS + axes + i * (W.STRIDES + axes) for i in range(len(windows))]
    inside = [
        f"r{row} = memory[{_place(i, at[i], gathered, strides)}]"
        for i, (row, _, gathered, strides) in enumerate(program.inputs)
    ]
    inside += [_instruction(program.real, line) for line in program.code]
    after = []
    for i, (row, kind, gathered, strides) in enumerate(program.outputs, len(program.inputs)):
        if kind == W.SUM:
            inside.append(f"s{i} += r{row}")
            after.append(f"memory[o{i} + thread] = s{i}")
        else:
            sign = "+=" if kind == W.ADD else "="
            inside.append(f"memory[{_place(i, at[i], gathered, strides)}] {sign} r{row}")
    sums = [i for i, w in enumerate(windows) if w[1] == W.SUM and i >= len(program.inputs)]
    lines = [
        "def straight(memory, words, index):",
        "    blocks, block = np.int64(cuda.gridDim.x), np.int64(cuda.blockDim.x)",
        "    threads = blocks * block",
        "    thread = np.int64(cuda.blockIdx.x) * block + np.int64(cuda.threadIdx.x)",
        *(f"    r{row} = {_number(text)}" for row, text in enumerate(program.constants)),
        *(f"    o{i} = words[{w + W.OFFSET}]" for i, w in enumerate(at)),
        *(f"    s{i} = real(-0.0)" for i in sums),
        "    lane = thread",
        "    while lane < words[SIZE]:",
        *(f"        {line}" for line in inside),
        "        lane += threads",
        *(f"    {line}" for line in after),
    ]
    return "\n".join(lines) + "\n"


def _place(i: int, at: int, gathered: bool, strides: Sequence[int]) -> str:
    if len(strides) != 1:
        return f"place(words, index, EXTENTS, words[AXES], {at}, lane)"
    (step,) = strides
    text = f"o{i}" + ("" if step == 0 else f" + lane * {step}" if step != 1 else " + lane")
    if gathered:
        return f"words[{at + W.BASE}] + np.int64(index[words[{at + W.INDEX}] + {text}])"
    return text


def _number(text: str) -> str:
    return f"real({float.fromhex(text)!r})"  # the module has names for inf and nan


def _instruction(real: str, line: Sequence[int]) -> str:
    opcode = _opcodes()[line[0]]
    names = {name: f"r{row}" for name, row in zip(opcode.row.operands, line[2:], strict=False)}
    return f"r{line[1]} = {expression(opcode.row, real, names)}"


@functools.cache
def _opcodes() -> dict[int, Opcode]:
    return {opcode.number: opcode for opcode in number(TABLE)}
