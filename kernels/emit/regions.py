"""Emits the executors of regions, opcodes outside and vectors inside.

That is kernels/cpu/regions.py on numbers of float64, and kernels/cpu/regions32.py on float32.
"""

from __future__ import annotations

import ast
import functools

from tapegrad.kernels.emit.language import HEADER, WIDTH, compiled, names_in, natural, tree
from tapegrad.kernels.emit.library import preamble, simd_mark, vector_library, vector_names
from tapegrad.kernels.emit.numbering import CELLS, Opcode
from tapegrad.kernels.emit.regions_driver import DRIVER, constants
from tapegrad.kernels.emit.scalar import chain
from tapegrad.ops.row import Row, called, parse

# What functions of rows are called in vectors: instructions of the processor.
_SIMD = {
    "abs": "fabs",
    "ceil": "simd.ceil",
    "copysign": "simd.copysign",
    "float32": "simd.single",
    "floor": "simd.floor",
    "rint": "simd.rint",
    "sqrt": "simd.sqrt",
    "trunc": "simd.trunc",
}
_OWN = {"integer_power": "integer_power_of_lanes"}
_COMPARED = {
    "isfinite": "(fabs({0}) < inf)",
    "isinf": "(fabs({0}) == inf)",
    "isnan": "({0} != {0})",
}

_HELPERS = '''@helper
def integer_power_of_lanes(x, y):
    """Return x**y for integers y: by multiplication, as `integer_power`, where they are alike."""
    exponent = simd.lane(y, 0)
    if not (abs(exponent) <= 8.0 and simd.all_lanes(y == exponent)):
        return integer_power_lane_by_lane(x, y)
    n = int(abs(exponent))
    r = splat(1.0)
    base = x
    while n > 0:
        if n & 1:
            r = r * base
        base = base * base
        n >>= 1
    if exponent >= 0.0:
        return r
    size = fabs(r)
    if simd.all_lanes((size > {least}) & (size < {most})):
        return 1.0 / r
    return integer_power_lane_by_lane(x, y)


@alone
def integer_power_lane_by_lane(x, y):
    """Return x**y of each lane."""
    r = x
    for i in range(WIDTH):
        value = integer_power(1.0 * simd.lane(x, i), 1.0 * simd.lane(y, i))  # in double precision
        r = simd.with_lane(r, i, value)
    return r
'''

_BLOCK = '''@alone
def rare(o, x, y, z):
    """Return one lane of a row that has no form in vectors."""
{rare}
    else:
        value = nan  # No opcode comes here.
    return value


def block(code, instructions, rows, lanes):
    """Run all instructions on one block of lanes; `rows` holds the address of each row."""
    vectors = (lanes + WIDTH - 1) // WIDTH
    stop = vectors * VECTOR
    for at in range(code, code + 10 * instructions, 10):
        o = read_u16(at)
        r = word(rows, read_u16(at + 2))
        x = word(rows, read_u16(at + 4))
        y = word(rows, read_u16(at + 6))
        z = word(rows, read_u16(at + 8))
{cases}
        else:
            for m in range(0, NUMBER * lanes, NUMBER):
                number = rare(o, read_number(x + m), read_number(y + m), read_number(z + m))
                write_number(r + m, number)
            for m in range(NUMBER * lanes, stop, NUMBER):
                write_number(r + m, read_number(r))
'''


def emit(table: dict[str, Row], opcodes: tuple[Opcode, ...], single: bool = False) -> str:
    """Return the module of the regions' executor, for numbers of float64 or of float32."""
    basic = tuple(o for o in opcodes if o.variant == CELLS)
    vectorised = tuple(o for o in basic if has_vectors(o.row))
    rare = tuple(o for o in basic if not has_vectors(o.row))
    used = (
        {"nan", "inf", "integer_power"}
        | {
            name
            for opcode in rare
            for name in names_in(parse(opcode.row.out)) - set(opcode.row.operands)
        }
        | {
            name
            for opcode in vectorised
            for name in names_in(parse(opcode.row.out))
            if name.isupper()
        }
    )
    functions = vector_names()
    expanded = {
        functions[name]
        for opcode in vectorised
        for name in called(_text(opcode.row)) & set(functions)
    }
    names, library = vector_library(expanded, single)
    case = functools.partial(_case, single=single)
    operations = _NAMED32 if single else _NAMED
    real = "float32" if single else "float64"
    header = HEADER.format(title=f"The executor of regions on {real}: programs in vectors.")
    body = [
        _NUMBERS.format(mark=simd_mark(), width=32 if single else 16, size=4 if single else 8)
        + constants()
        + "".join(f"{own} = simd.{name}\n" for own, name in operations.items()),
        library + "\n",
        _HELPERS.format(**_RANGES[single]),
        _BLOCK.format(rare=chain(rare, _rare, "    "), cases=chain(vectorised, case, "        ")),
        DRIVER,
    ]
    imported = sorted({*_SIMD_NAMES, *names}, key=natural)
    lines = "".join(f"    {name},\n" for name in imported)
    top = preamble(used).replace(_JIT, _SIMD_IMPORTS.format(names=lines))
    top = top.replace("import math\n", "import math\nfrom typing import Any\n")
    top = top.replace("\nimport numpy as np\n", "")
    return "\n".join([header, top, "\n\n".join(body)])


_JIT = "from tapegrad.kernels.cpu.jit import helper, kernel\n"
_SIMD_IMPORTS = """from tapegrad.kernels.cpu import simd
from tapegrad.kernels.cpu.jit import alone, call_native, kernel, native, word
from tapegrad.kernels.cpu.jit import part as helper
from tapegrad.kernels.cpu.simd import (
{names})
"""
_SIMD_NAMES = ("fabs", "read_u16", "read_u32", "select", "write_i64")
_NAMED = {"load": "load", "splat": "splat", "store": "store", "store_streaming": "store_streaming"}
_NAMED |= {"read_number": "read_f64", "write_number": "write_f64"}
_NAMED32 = {"load": "load_f32", "splat": "splat_f32", "store": "store_f32"}
_NAMED32 |= {"store_streaming": "store_f32_streaming"}
_NAMED32 |= {"read_number": "read_f32", "write_number": "write_f32"}
"""What an executor calls the operations of its type."""
_RANGES = ({"least": "1e-300", "most": "1e300"}, {"least": "1e-30", "most": "1e30"})
_NUMBERS = """WIDTH = {width}  # lanes of a vector
VECTOR, NUMBER = 128, {size}  # bytes of a vector and of a number
# A mark of the text of kernels/cpu/simd.py: Numba's cache does not look into what is imported.
SIMD_TEXT = "{mark}"
"""


def has_vectors(row: Row) -> bool:
    """Whether the value of a row is computed in vectors."""
    return called(_text(row)) <= {*_SIMD, *_OWN, *_COMPARED, *vector_names()}


def _text(row: Row) -> str:
    """Return the expression of a row's value: a function of its name, if vectors have that."""
    return f"{row.name}({', '.join(row.operands)})" if row.name in vector_names() else row.out


def _rare(opcode: Opcode) -> list[str]:
    return [f"value = {compiled(tree(opcode.row, opcode.row.out), {})}"]


def _case(opcode: Opcode, single: bool) -> list[str]:
    names = {name: f"load({name} + m)" for name in opcode.row.operands}
    node = in_vectors(opcode.row, single)
    twice = [n for n in opcode.row.operands if _occurrences(node, n) > 1]
    lines = [f"{n}m = load({n} + m)" for n in twice]
    text = compiled(node, names | {n: n + "m" for n in twice})
    if len(text) + len("value = ") + 16 > WIDTH:  # broken as the formatter breaks a call
        call, _, arguments = text.partition("(")
        lines += [f"value = {call}(", f"    {arguments[:-1]}", ")", "store(r + m, value)"]
    else:
        lines += [f"value = {text}", "store(r + m, value)"]
    return ["m = 0", "while m < stop:", *("    " + line for line in [*lines, "m += VECTOR"])]


def in_vectors(row: Row, single: bool) -> ast.expr:
    """Return the value of a row as an expression on vectors, of float32 numbers if `single`."""
    node = parse(vectors(parse(_text(row)), single))
    if row.result == "bool":
        return ast.Call(parse("simd.as_numbers"), [node], [])
    if not _occurrences(node, *row.operands):
        return ast.Call(parse("splat"), [node], [])
    return node


def _occurrences(node: ast.AST, *names: str) -> int:
    return sum(isinstance(n, ast.Name) and n.id in names for n in ast.walk(node))


def vectors(node: ast.expr, single: bool = False) -> str:
    """Return an expression of a row as source text on vectors."""
    return ast.unparse(_Vectors(single).visit(node))


class _Vectors(ast.NodeTransformer):
    """Branches become selections, conditions masks, and functions those of vectors."""

    def __init__(self, single: bool) -> None:
        own = vector_names()
        if single:
            own = {name: f"{function}32" for name, function in own.items()}
        self.known = own | _SIMD | _OWN

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        self.generic_visit(node)
        return ast.Call(ast.Name("select", ast.Load()), [node.test, node.body, node.orelse], [])

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        operator: ast.operator = ast.BitAnd() if isinstance(node.op, ast.And) else ast.BitOr()
        result = node.values[0]
        for value in node.values[1:]:
            result = ast.BinOp(result, operator, value)
        return result

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        truths = isinstance(node.left, ast.Compare)
        self.generic_visit(node)
        if truths and isinstance(node.ops[0], ast.NotEq):
            return ast.BinOp(node.left, ast.BitXor(), node.comparators[0])
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        return ast.UnaryOp(ast.Invert(), node.operand) if isinstance(node.op, ast.Not) else node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        assert isinstance(node.func, ast.Name)
        name = node.func.id
        arguments = [ast.unparse(argument) for argument in node.args]
        if name in _COMPARED:
            return parse(_COMPARED[name].format(*arguments))
        return parse(f"{self.known[name]}({', '.join(arguments)})")
