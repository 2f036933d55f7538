"""Emits kernels/adjoints.py: what operands receive from adjoints, as instructions of regions."""

from __future__ import annotations

import ast
from math import isfinite

from tapegrad.kernels.emit.language import HEADER
from tapegrad.kernels.emit.numbering import CELLS, STRUCTURAL, Opcode
from tapegrad.kernels.emit.opcodes import literal
from tapegrad.ops.row import CONSTANTS, Nondiff, Partial, Row, parse
from tapegrad.ops.table import OPERATOR_ROWS, TABLE

OUT, SEED, TEMPORARY, CONSTANT = 3, 4, 8, 64
NOTHING = -1

_DOC = """\
# Slots: 0 to 2 are the operands x, y, z, 3 is the value and 4 its adjoint; from 8 on come the
# results of the row's own instructions, and from 64 on the constants.
OUT, SEED, TEMPORARY, CONSTANT = 3, 4, 8, 64
"""


def emit(table: dict[str, Row], opcodes: tuple[Opcode, ...]) -> str:
    """Return the module of adjoint programs."""
    numbers = {o.row.name: o.number for o in opcodes if o.variant == CELLS}
    constants: list[float] = []
    starts, code, received = [], [], []
    last = max(o.number for o in opcodes)
    rows = {numbers[name]: row for name, row in table.items()}
    for number in range(last + 1):
        starts.append(len(code))
        if number in rows:
            program = _Program(rows[number], numbers, constants)
            code += program.code
            received.append(program.received)
        else:
            received.append((NOTHING,) * 3)
    starts.append(len(code))
    assert len(STRUCTURAL) <= min(rows)
    return "\n".join(
        [
            HEADER.format(title="What operands receive from adjoints, as instructions of regions."),
            "from __future__ import annotations\n",
            "from math import inf, nan\n",
            _DOC,
            _sequence("CONSTANTS", "tuple[float, ...]", constants),
            _sequence("STARTS", "tuple[int, ...]", starts),
            '"""By opcode: where its instructions start in `CODE`, and those of the next."""\n',
            _sequence("CODE", "tuple[tuple[int, int, int, int], ...]", code),
            '"""Opcode and slots of the operands of each instruction."""\n',
            _sequence("RECEIVED", "tuple[tuple[int, int, int], ...]", received),
            '"""By opcode and operand: the slot that is added to its adjoint, or -1."""\n',
        ]
    )


def _sequence(name: str, annotation: str, values: list[object]) -> str:
    lines = "".join(f"    {literal(value)},\n" for value in values)
    return f"{name}: {annotation} = (\n{lines})"


class _Program:
    """The instructions of one row: expressions taken apart, equal parts shared."""

    def __init__(self, row: Row, numbers: dict[str, int], constants: list[float]) -> None:
        self.numbers = numbers
        self.constants = constants
        self.code: list[tuple[int, int, int, int]] = []
        self.known: dict[tuple[int, ...], int] = {}
        self.slots = {name: i for i, name in enumerate(row.operands)} | {"out": OUT}
        self.lets = {name: parse(text) for name, text in row.let.items()}
        received = [self._partial(partial) for partial in row.partials]
        self.received = (*received, *(NOTHING,) * (3 - len(received)))

    def _partial(self, partial: Partial) -> int:
        if isinstance(partial, Nondiff):
            return self._constant(float("nan"))
        return self._flow(parse(partial), SEED) if isinstance(partial, str) else NOTHING

    def _flow(self, partial: ast.expr, seed: int) -> int:
        """Return what flows of an adjoint through a partial: exactly 0 where there is none.

        As `language.contribution`, with the quotients of several operands shared.
        """
        if isinstance(partial, ast.Name) and partial.id in self.lets:
            return self._flow(self.lets[partial.id], seed)
        if isinstance(partial, ast.Constant) or _is_number(partial):
            value = _number(partial)
            if value in (0.0, 1.0):
                return seed if value else self._constant(0.0)
            if value == -1.0:
                return self._row("negative", seed)
            row = "multiply" if isfinite(value) else "adjoint_multiply"
            return self._row(row, seed, self._constant(value))
        if isinstance(partial, ast.UnaryOp) and isinstance(partial.op, ast.USub):
            return self._row("negative", self._flow(partial.operand, seed))
        if isinstance(partial, ast.IfExp):
            return self._choice(
                partial.test, self._flow(partial.body, seed), self._flow(partial.orelse, seed)
            )
        if (
            isinstance(partial, ast.BinOp)
            and isinstance(partial.op, ast.Div)
            and not isinstance(partial.left, ast.BinOp)  # whose factors may balance the divisor
        ):
            quotient = self._row("adjoint_divide", seed, self._value(partial.right))
            return self._flow(partial.left, quotient)
        return self._row("adjoint_multiply", seed, self._value(partial))

    def _choice(self, test: ast.expr, body: int, orelse: int) -> int:
        if isinstance(test, ast.Compare) and _is_zero(test.comparators[0]):
            if isinstance(test.ops[0], ast.NotEq):
                return self._row("where", self._value(test.left), body, orelse)
            if isinstance(test.ops[0], ast.Eq):
                return self._row("where", self._value(test.left), orelse, body)
        return self._row("where", self._value(test), body, orelse)

    def _value(self, node: ast.expr) -> int:
        if isinstance(node, ast.Name):
            if node.id in self.lets:
                return self._value(self.lets[node.id])
            return self.slots[node.id] if node.id in self.slots else self._constant(_number(node))
        if isinstance(node, ast.Constant) or _is_number(node):
            return self._constant(_number(node))
        if isinstance(node, ast.IfExp):
            return self._choice(node.test, self._value(node.body), self._value(node.orelse))
        if isinstance(node, ast.BinOp):
            row = OPERATOR_ROWS[type(node.op)]
            return self._row(row, self._value(node.left), self._value(node.right))
        if isinstance(node, ast.UnaryOp):
            return self._row(OPERATOR_ROWS[type(node.op)], self._value(node.operand))
        if isinstance(node, ast.BoolOp):
            result = self._value(node.values[0])
            for other in node.values[1:]:
                result = self._row(OPERATOR_ROWS[type(node.op)], result, self._value(other))
            return result
        if isinstance(node, ast.Compare):
            row = OPERATOR_ROWS[type(node.ops[0])]
            return self._row(row, self._value(node.left), self._value(node.comparators[0]))
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Name)
        return self._row(node.func.id, *map(self._value, node.args))

    def _row(self, name: str, *operands: int) -> int:
        assert len(operands) == TABLE[name].arity
        padded = (*operands, 0, 0)[:3]
        key = (self.numbers[name], *padded)
        if key not in self.known:
            self.known[key] = TEMPORARY + len(self.code)
            self.code.append((key[0], padded[0], padded[1], padded[2]))
        return self.known[key]

    def _constant(self, value: float) -> int:
        for i, known in enumerate(self.constants):
            if repr(known) == repr(value):
                return CONSTANT + i
        self.constants.append(value)
        return CONSTANT + len(self.constants) - 1


def _is_number(node: ast.expr) -> bool:
    """Whether an expression is a number: a literal, a named constant, or the opposite of one."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _is_number(node.operand)
    return isinstance(node, ast.Constant) or (isinstance(node, ast.Name) and node.id in CONSTANTS)


def _number(node: ast.expr) -> float:
    return float(eval(ast.unparse(node), {"__builtins__": {}}, dict(CONSTANTS)))


def _is_zero(node: ast.expr) -> bool:
    return _is_number(node) and _number(node) == 0.0
