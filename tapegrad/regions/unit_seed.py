"""Sweeps that start from 1, as those of `grad` do: nothing is multiplied by that adjoint.

A region whose sum's adjoint is known to be 1 has products by 1, or by -1 once it has been
subtracted. They become copies and changes of sign, which `tapegrad.regions.fusing` takes along: the
same bits from fewer instructions.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..kernels.opcodes import ROWS

_COPY, _NEGATIVE = ROWS["positive"][0], ROWS["negative"][0]
_PRODUCTS = frozenset((ROWS["multiply"][0], ROWS["adjoint_multiply"][0]))

Instruction = list[int]  # opcode, then the values of the operands


def from_one(code: Sequence[Instruction], seed: int, one: int) -> list[Instruction]:
    """Return code in which a value is known to be 1.

    Parameters
    ----------
    code : sequence of list of int
        Each instruction's opcode and operands, without padding; a value is the number of its
        instruction, or negative where it comes from elsewhere.
    seed, one : int
        That value, and the constant that takes its place.

    Examples
    --------
    An adjoint is subtracted, which makes it -1, and flows through a product:

    >>> minus, flow = (ROWS[name][0] for name in ("negative", "adjoint_multiply"))
    >>> from_one([[minus, -1], [flow, 0, -3]], seed=-1, one=-2) == [[minus, -2], [minus, -3]]
    True
    """
    negative = {seed: False}  # values known to be 1 or -1, and whether they are -1
    result = []
    for i, (op, *operands) in enumerate(code):
        if op == _NEGATIVE and operands[0] in negative:
            negative[i] = not negative[operands[0]]
        elif op in _PRODUCTS and operands[0] in negative:
            op = _NEGATIVE if negative[operands[0]] else _COPY
            operands = operands[1:]
        result.append([op, *[one if x == seed else x for x in operands]])
    return result
