"""Emits a region as straight source for the CPU: its instructions once, values in registers.

What is computed is what `block` of kernels/cpu/regions.py computes, row by row from the same
expressions; only where values are kept differs. The source is compiled while a program runs
(`tapegrad.regions.straight`), and is not committed.
"""

from __future__ import annotations

import functools

from tapegrad.kernels.emit.language import compiled
from tapegrad.kernels.emit.library import vector_names
from tapegrad.kernels.emit.numbering import Opcode, number
from tapegrad.kernels.emit.regions import has_vectors, in_vectors
from tapegrad.ops import TABLE

TOTALS = 4
"""Sums that results are added to in turn: a sum waits for its last addition."""

Line = tuple[int, int, int, int, int]  # opcode, row of the result, rows of the operands


@functools.cache
def _opcodes() -> dict[int, Opcode]:
    return {opcode.number: opcode for opcode in number(TABLE)}


@functools.cache
def can_emit(opcodes: frozenset[int]) -> bool:
    """Whether all of these are computed in vectors."""
    return all(has_vectors(_opcodes()[opcode].row) for opcode in opcodes)


@functools.cache
def functions(opcodes: frozenset[int]) -> int:
    """Return how many of these are functions such as `exp`, not instructions of the processor."""
    return len(vector_names().keys() & {_opcodes()[opcode].row.name for opcode in opcodes})


def emit(
    code: tuple[Line, ...],
    uniform: frozenset[int],
    stored: frozenset[int],
    single: bool = False,
    watch: int = -1,
    watched: frozenset[int] = frozenset(),
) -> str:
    """Return the source of ``block``, with the arguments of the one that interprets.

    Parameters
    ----------
    code : tuple of tuples
        The instructions of a region.
    uniform : frozenset of int
        Rows that hold one number in all lanes.
    stored : frozenset of int
        Rows that are read afterwards.
    single : bool
        Whether numbers are float32.
    watch : int
        The word behind the addresses of rows in which to say whether there may be a nan among the
        results; -1 where nobody asks.
    watched : frozenset of int
        The rows of results that tell of one. It is looked for in their sums, where none hides.
    """
    lines: list[str] = []
    before: list[str] = []
    known: dict[int, str] = {}  # variable that holds a row
    additions = 0

    def value_of(row: int) -> str:
        """Return the variable that holds a row, loading it on first use."""
        if row not in known:
            known[row] = f"r{row}"
            if row in uniform:
                before.append(f"r{row} = splat(read_number(word(rows, {row})))")
            else:
                before.append(f"a{row} = word(rows, {row})")
                lines.append(f"r{row} = load(a{row} + m)")
        return known[row]

    for i, (opcode, result, *rows) in enumerate(code):
        row = _opcodes()[opcode].row
        names = {name: value_of(n) for name, n in zip(row.operands, rows, strict=False)}
        lines.append(f"x{i} = {compiled(in_vectors(row, single), names)}")
        known[result] = f"x{i}"
        if result in stored:
            before.append(f"b{i} = word(rows, {result})")
            lines.append(f"store(b{i} + m, x{i})")
            if result in watched:
                total = f"total{additions % TOTALS}"
                lines.append(f"{total} = {total} + x{i}")
                additions += 1
    after = []
    if watch >= 0:
        totals = [f"total{k}" for k in range(min(max(additions, 1), TOTALS))]
        before += [f"{total} = splat(0.0)" for total in totals]
        found = " | ".join([f"({total} != {total})" for total in totals])
        after.append(f"write_i64(rows + {8 * watch}, 1 if simd.any_lane({found}) else 0)")
    return "\n".join(
        [
            "def block(code, instructions, rows, lanes):",
            *[f"    {line}" for line in before],
            "    for m in range(0, (lanes + WIDTH - 1) // WIDTH * VECTOR, VECTOR):",
            *[f"        {line}" for line in lines],
            *[f"    {line}" for line in after],
            "",
        ]
    )
