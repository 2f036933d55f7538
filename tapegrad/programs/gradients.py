"""Gradient programs of long scalar code, derived by compiled code.

`Program.gradient` records a backward sweep over a program, at some microseconds an instruction.
For long scalar programs the sweep is derived by `tapegrad.kernels.cpu.derive` instead, much sooner,
and shorter; what comes out is put together as a program here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import execute, trees
from ..decisions import Decisions
from ..kernels.opcodes import ARITY, CARRY, CONST, INPUT, ROWS
from ..tape import Import, Recording
from .ports import Input, Output
from .reading import finished
from .verify import Code

if TYPE_CHECKING:
    from ..sparse.straight import Ints
    from .program import Program

LOADED_FROM, COMPILED_FROM = 5_000, 500_000
"""Instructions from which on code is derived so: where the kernels are loaded, and where not."""

SCALAR = 2
"""Programs of more cells an instruction than this are array code, and stay it."""


def gradient_program(program: Program, argnums: Any) -> Program | None:
    """Return the gradient of a long scalar program as a program; None where it is not one.

    Parameters
    ----------
    program : Program
        Returns a single number.
    argnums
        As in `Program.gradient`, checked.
    """
    from ..sparse.derive import derive_gradient
    from ..sparse.straight import Unsupported
    from .program import Program

    (output,) = program._outputs
    if output.size != 1 or output.cells is None or not _is_long_and_scalar(program):
        return None
    try:
        code, cells, adjoints = derive_gradient(program, int(output.flat_cells()[0]))
    except Unsupported:
        return None
    starts: dict[int, int] = {}
    size = 0
    for i, known in enumerate(program._inputs):
        if known is not None:
            starts[i] = size
            size += known.size
    names = [i if i in starts else None for i in range(len(program._inputs))]
    chosen, tree = trees.flatten(program._pick(names, argnums))
    zero = -1 - int(np.flatnonzero(code.k[: code.used[1]] == 0.0)[0])
    derivatives = [
        adjoints[starts[i] : starts[i] + x.size] for i, x in enumerate(program._inputs) if x
    ]
    derivatives = [derivatives[list(starts).index(i)] for i in chosen]
    derivatives = [np.where(part < -code.used[1], zero, part) for part in derivatives]
    looked_at = program.decisions.cells()
    written = _Written(code, size, np.concatenate([*derivatives, cells[looked_at]]))

    decisions, to = Decisions(), np.zeros(program.tape.flushed_cell, np.int64)
    to[looked_at] = written.places[len(written.places) - looked_at.size :]
    decisions.adopt(program.decisions, to)
    recording = Recording(decisions)
    inputs = [x and _input_like(x, starts[i]) for i, x in enumerate(program._inputs)]
    outputs, at = [], 0
    for i, part in zip(chosen, derivatives, strict=True):
        like, stop = program._inputs[i], at + part.size
        assert like is not None
        outputs.append(Output.on_cells(written.places[at:stop], like.shape, like.dtype))
        at = stop
    return Program.from_parts(
        name=program._name,
        recording=recording,
        tape=written.tape([x for x in inputs if x], recording),
        arguments=(program._tree, program._count, inputs, program._example()),
        results=(tree, outputs),
        captured=program.captured,
    )


def _is_long_and_scalar(program: Program) -> bool:
    tape, inputs = program.tape, [x.size for x in program._inputs if x is not None]
    if tape.n < (LOADED_FROM if execute.is_loaded("derive") else COMPILED_FROM):
        return False
    if program.decisions.operands() or not inputs:  # functions look at windows, which get lost
        return False
    cells: int = tape.flushed_cell - sum(inputs)
    return cells <= SCALAR * tape.n


def _input_like(known: Input, cell: int) -> Input:
    copy = Input(known.leaf.value, known.name)
    copy.cell = cell
    return copy


class _Written:
    """Straight code as the instructions of a tape: inputs, constants that need cells, the rest.

    Parameters
    ----------
    code : Code
        See `tapegrad.kernels.cpu.rewriting`.
    inputs : int
        How many inputs there are, the first of its cells.
    wanted : ndarray of int
        Cells, or constants, that are needed.

    Attributes
    ----------
    places : ndarray of int
        Where those are.
    """

    def __init__(self, code: Any, inputs: int, wanted: Ints) -> None:
        from ..kernels.cpu import ordering

        live = np.zeros(code.used[0], np.uint8)
        live[wanted[wanted >= 0]] = 1
        ordering.keep_needed(code, live)
        chosen = np.flatnonzero(live[inputs:]) + inputs
        op, *operands = code.ins[chosen].astype(np.int64).T
        arity = _ARITY[op]
        variant, by_constant = op.copy(), [np.zeros(op.size, bool) for _ in operands]
        for j, table in ((1, _XK), (0, _KX)):  # which operand may be a constant without a cell
            is_one = (arity == 2) & (operands[j] < 0) & (operands[1 - j] >= 0) & (table[op] >= 0)
            variant[is_one], by_constant[j] = table[op[is_one]], is_one
        # All other constants get cells, each once.
        in_cells = [
            (operand < 0) & (arity > j) & ~by_constant[j] for j, operand in enumerate(operands)
        ]
        parts = [operand[need] for operand, need in zip(operands, in_cells, strict=True)]
        self._constants = np.unique(np.concatenate([*parts, wanted[wanted < 0]]))
        start = inputs + self._constants.size
        carries = (arity == 3).astype(np.int64)
        to = np.zeros(code.used[0], np.int64)
        to[:inputs] = np.arange(inputs)
        to[chosen] = start + np.arange(chosen.size) + np.cumsum(carries)
        self._inputs, self._k = inputs, code.k[: code.used[1]]
        self.places = self._cells(to, wanted)
        a, b, c = (
            np.where(fixed, -1 - operand, self._cells(to, np.where(fixed, 0, operand)))
            for operand, fixed in zip(operands, by_constant, strict=True)
        )
        a, b = np.where(by_constant[0], b, a), np.where(by_constant[0], a, b)  # the cell is in a
        b[arity == 1] = 0
        self._fill(variant, a, b, c, carries.astype(bool))

    def _cells(self, to: Ints, names: Ints) -> Ints:
        """Return the cells of names: what is no operand at all has any."""
        found = self._inputs + np.searchsorted(self._constants, np.minimum(names, -1))
        places: Ints = np.where(names >= 0, to[np.maximum(names, 0)], found)
        return places

    def _fill(self, op: Ints, a: Ints, b: Ints, c: Ints, ternary: Any) -> None:
        """Set the columns: an operation of three operands has the first in a CARRY before it."""
        at = np.arange(op.size) + np.cumsum(ternary)
        size = op.size + int(ternary.sum())
        columns = [np.zeros(size, np.int64) for _ in range(3)]
        rest = np.where(ternary, b, a), np.where(ternary, c, b)
        for column, values in zip(columns, (op, *rest), strict=True):
            column[at] = values
        carries = at[ternary] - 1
        columns[0][carries], columns[1][carries], columns[2][carries] = CARRY, a[ternary], 0
        n = self._constants.size
        head = np.full(n, CONST), -1 - self._constants, np.zeros(n, np.int64)
        self._columns = [np.concatenate(pair) for pair in zip(head, columns, strict=True)]

    def tape(self, inputs: list[Input], recording: Recording) -> Any:
        """Return the tape; the values of its inputs are those that it was recorded for."""
        sizes = [known.size for known in inputs]
        head = np.full(len(inputs), INPUT), np.arange(len(inputs)), np.array(sizes, np.int64)
        op, a, b = (
            np.concatenate(pair).astype(dtype)
            for *pair, dtype in zip(
                head, self._columns, (np.uint8, np.uint32, np.uint32), strict=True
            )
        )
        imports, v = [], np.zeros(self._inputs + len(self._columns[0]))
        for known in inputs:
            entry = Import(known.cell, known.size)
            entry.leaf = known.leaf
            imports.append(entry)
            v[known.cell : known.cell + known.size] = known.leaf.value.ravel()
        none = np.zeros(0, np.int64)
        return finished(Code(op, a, b, self._k, none, none, []), imports, v, recording)


def _by_opcode(values: dict[str, int], default: int) -> Ints:
    table = np.full(256, default, np.int64)
    for row, value in values.items():
        table[ROWS[row][0]] = value
    return table


_ARITY = _by_opcode({row: ARITY[row] for row in ROWS if row in ARITY}, 0)
_XK = _by_opcode({row: numbers[1] for row, numbers in ROWS.items()}, -1)
_KX = _by_opcode({row: numbers[2] for row, numbers in ROWS.items()}, -1)
