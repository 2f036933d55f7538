"""Opcodes: the structural ones, then each row followed by its constant-operand variants."""

from __future__ import annotations

from dataclasses import dataclass

from tapegrad.ops.row import Row, called

STRUCTURAL = ("INPUT", "LANES", "HOST", "CONST", "CARRY")
"""Opcodes that are no rows, numbered from 0."""

CELLS, XK, KX = "", "_XK", "_KX"
"""The variants of a row: all operands cells; y a constant; x a constant."""


@dataclass(frozen=True)
class Opcode:
    """One opcode of a row: its number, and which of its operands is a constant."""

    number: int
    row: Row
    variant: str

    @property
    def name(self) -> str:
        """The name of its constant."""
        return self.row.name.upper() + self.variant


def variants(row: Row) -> tuple[str, ...]:
    """Return the variants that a row has.

    Cheap binary rows have both, and integer powers the one they are used with. A row that calls a
    function is not made faster by a variant: its constants are cells, and the kernels compile
    sooner.
    """
    if row.name == "integer_power":
        return (CELLS, XK)
    if row.arity == 2 and called(row.out) <= {"isnan", "power"}:
        return (CELLS, XK, KX)
    return (CELLS,)


def number(table: dict[str, Row]) -> tuple[Opcode, ...]:
    """Number the opcodes of a table."""
    pairs = [(row, variant) for row in table.values() for variant in variants(row)]
    if len(STRUCTURAL) + len(pairs) > 256:
        raise ValueError("the table needs more opcodes than fit a byte; widen the opcode column")
    return tuple(
        Opcode(len(STRUCTURAL) + i, row, variant) for i, (row, variant) in enumerate(pairs)
    )
