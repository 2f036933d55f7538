"""Fewer instructions for a region: copies and signs disappear, and two operations become one.

Results are the same to the bit: a rewriting is made only where the rounded numbers, and the signs
of zeros, are those of the instructions that it replaces.

What is computed twice is computed once. Signs are taken along as far as they go: ``(-a) * b`` is
``-(a * b)``, and ``c + -(a * b)`` a difference. Then products and sums that only one other
instruction uses become a part of it, by the rows of `tapegrad.ops.fused`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..kernels.opcodes import ROWS

_OPCODES = {
    name: ROWS[name][0]
    for name in (
        *("add", "subtract", "multiply", "divide", "negative", "positive", "conjugate"),
        *("stop_gradient", "square", "absolute", "fabs", "multiply_add", "multiply_subtract"),
        *("subtract_product", "multiply_thrice", "add_thrice", "negative_product"),
        *("exp", "exp_negative_product"),
    )
}
_ADD, _SUBTRACT, _MULTIPLY, _DIVIDE = (
    _OPCODES[name] for name in ("add", "subtract", "multiply", "divide")
)
_NEGATIVE = _OPCODES["negative"]
_COPIES = frozenset(_OPCODES[name] for name in ("positive", "conjugate", "stop_gradient"))
_EVEN = frozenset(_OPCODES[name] for name in ("square", "absolute", "fabs"))

# What an instruction becomes with an operand of its own, by its row and the operand's.
_JOINS = {
    _ADD: ((_MULTIPLY, "multiply_add"), (_ADD, "add_thrice")),
    _SUBTRACT: ((_MULTIPLY, "subtract_product"),),  # or, on the left, multiply_subtract
    _MULTIPLY: ((_MULTIPLY, "multiply_thrice"),),
    _NEGATIVE: ((_MULTIPLY, "negative_product"),),
    _OPCODES["exp"]: ((_OPCODES["negative_product"], "exp_negative_product"),),
}

Instruction = list[int]  # opcode, then the values of the operands


class Fusing:
    """Rewrites straight-line code.

    Values are integers: the number of the instruction that computes them, or a negative number for
    what comes from elsewhere.

    Parameters
    ----------
    code : sequence of list of int
        Each instruction's opcode and operands, without padding.
    results : sequence of int
        The values that are wanted.

    Attributes
    ----------
    code : list of list of int
        The new instructions, some of which nothing needs.
    results : list of int
        The wanted values, as the new code numbers them.

    Examples
    --------
    ``a + -(b * c)``, with a, b and c from elsewhere, is one instruction:

    >>> fused = Fusing([[_MULTIPLY, -2, -3], [_NEGATIVE, 0], [_ADD, -1, 1]], [2])
    >>> fused.code[fused.results[0]] == [_OPCODES["subtract_product"], -3, -2, -1]
    True
    """

    def __init__(self, code: Sequence[Instruction], results: Sequence[int]) -> None:
        self.code: list[Instruction] = []
        self._signed: list[tuple[int, bool]] = []  # by old value: new value, and whether minus it
        self._known: dict[tuple[int, ...], int] = {}
        for op, *operands in code:
            self._signed.append(self._signless(op, operands))
        self.results = [self._plain(value) for value in results]
        self._fuse()

    def table(self) -> Any:
        """Return the code as an array of int64: opcode and three values, 0 where unused."""
        lines = [[*line, 0, 0, 0][:4] for line in self.code]
        return np.array(lines, np.int64).reshape(-1, 4)

    # -- signs -------------------------------------------------------------------------------------

    def _append(self, op: int, *operands: int) -> int:
        """Append an instruction, unless it is there already; return its value."""
        if op in (_ADD, _MULTIPLY):
            operands = tuple(sorted(operands))
        value = self._known.setdefault((op, *operands), len(self.code))
        if value == len(self.code):
            self.code.append([op, *operands])
        return value

    def _seen(self, value: int) -> tuple[int, bool]:
        return (value, False) if value < 0 else self._signed[value]

    def _plain(self, value: int) -> int:
        """Return a value with its sign, as a value of the new code."""
        new, minus = self._seen(value)
        return self._append(_NEGATIVE, new) if minus else new

    def _signless(self, op: int, operands: list[int]) -> tuple[int, bool]:
        """Append an instruction; return its value but for the sign, and the sign."""
        if op in _COPIES:
            return self._seen(operands[0])
        if op == _NEGATIVE:
            new, minus = self._seen(operands[0])
            return new, not minus
        if op in (_MULTIPLY, _DIVIDE):
            (a, a_minus), (b, b_minus) = map(self._seen, operands)
            return self._append(op, a, b), a_minus != b_minus
        if op in _EVEN:
            return self._append(op, self._seen(operands[0])[0]), False
        if op in (_ADD, _SUBTRACT):
            (a, a_minus), (b, b_minus) = map(self._seen, operands)
            b_minus ^= op == _SUBTRACT
            if a_minus and not b_minus:
                return self._append(_SUBTRACT, b, a), False
            if a_minus:  # not -(a + b): zero would come out as -0.0
                a = self._append(_NEGATIVE, a)
            return self._append(_SUBTRACT if b_minus else _ADD, a, b), False
        return self._append(op, *map(self._plain, operands)), False

    # -- two in one --------------------------------------------------------------------------------

    def _fuse(self) -> None:
        """Let products and sums that are used once be computed where they are used."""
        uses = self._uses()
        for instruction in self.code:
            op, *operands = instruction
            for inner, row in _JOINS.get(op, ()):
                found = [
                    i
                    for i, value in enumerate(operands)
                    if value >= 0 and uses[value] == 1 and self.code[value][0] == inner
                ]
                if not found:
                    continue
                i = found[-1]
                others = operands[:i] + operands[i + 1 :]
                if op == _SUBTRACT and i == 0:
                    row = "multiply_subtract"
                instruction[:] = [_OPCODES[row], *self.code[operands[i]][1:], *others]
                break

    def _uses(self) -> list[int]:
        """Return how often each value is used by what leads to results."""
        uses = [0] * len(self.code)
        for value in self.results:
            if value >= 0:
                uses[value] += 2  # a result has to be somewhere
        for i in range(len(self.code) - 1, -1, -1):
            if uses[i]:
                for value in self.code[i][1:]:
                    if value >= 0:
                        uses[value] += 1
        return uses
