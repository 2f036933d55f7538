"""Adjoint programs of rows against the rows' contributions."""

from __future__ import annotations

import numpy as np
import pytest

from tapegrad.kernels import adjoints
from tapegrad.kernels.opcodes import ROWS
from tapegrad.kernels.rules import CONTRIBUTIONS, FORWARD
from tapegrad.ops.table import TABLE


def received(opcode: int, w: float, point: tuple[float, ...]) -> list[float | None]:
    slots = dict(enumerate(point))
    slots |= {adjoints.OUT: FORWARD[opcode](*point), adjoints.SEED: w}
    slots |= {adjoints.CONSTANT + i: value for i, value in enumerate(adjoints.CONSTANTS)}
    start, stop = adjoints.STARTS[opcode : opcode + 2]
    for i, (op, *operands) in enumerate(adjoints.CODE[start:stop]):
        values = [slots[x] for x in operands[: TABLE_ARITY[op]]]
        slots[adjoints.TEMPORARY + i] = FORWARD[op](*values)
    return [slots[x] if x >= 0 else None for x in adjoints.RECEIVED[opcode][: len(point)]]


TABLE_ARITY = {ROWS[name][0]: row.arity for name, row in TABLE.items()}


@pytest.mark.parametrize("name", ROWS)
def test_adjoint_programs_give_the_contributions(name: str) -> None:
    row, opcode = TABLE[name], ROWS[name][0]
    for point in row.samples + tuple(point for point, _ in row.kinks):
        for w in (1.0, -0.75, 0.0):
            expected = CONTRIBUTIONS[opcode](w, *point, FORWARD[opcode](*point))
            for got, want in zip(received(opcode, w, point), expected, strict=True):
                if w == 0.0:
                    want = 0.0  # what does not flow is not even nan
                # Quotients are taken in another order: a few roundings.
                np.testing.assert_allclose(got or 0.0, want, rtol=1e-14, err_msg=str(point))
