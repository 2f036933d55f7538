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
Join = tuple[tuple[int, int], ...]  # rows, each with what the sum before it is shifted by


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
    places: int = 0,
    watched: frozenset[int] | None = None,
    joins: tuple[Join, ...] = (),
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
    places : int
        How many rows there are. Behind their addresses is a word in which to say whether there may
        be a nan among the results, and then the addresses of head and tail of each join.
    watched : frozenset of int or None
        The rows of results that tell of a nan, which is looked for in their sums, where none hides;
        None where nobody asks.
    joins : tuple of tuples
        Groups of rows that are added up on their way out.
    """
    source = _Source(uniform, single)
    source.compute(code, stored, watched or frozenset())
    for k, join in enumerate(joins):
        source.join(k, join, places + 1 + 2 * k)
    if watched is not None:
        source.tell_of_nans(places)
    return source.text()


class _Source:
    """Lines before, within and after the loop over vectors."""

    def __init__(self, uniform: frozenset[int], single: bool) -> None:
        self.uniform, self.single = uniform, single
        self.before: list[str] = []
        self.lines: list[str] = []
        self.after: list[str] = []
        self.known: dict[int, str] = {}  # variable that holds a row
        self.additions = 0

    def value_of(self, row: int) -> str:
        """Return the variable that holds a row, loading it on first use."""
        if row not in self.known:
            self.known[row] = f"r{row}"
            if row in self.uniform:
                self.before.append(f"r{row} = splat(read_number(word(rows, {row})))")
            else:
                self.before.append(f"a{row} = word(rows, {row})")
                self.lines.append(f"r{row} = load(a{row} + m)")
        return self.known[row]

    def compute(
        self, code: tuple[Line, ...], stored: frozenset[int], watched: frozenset[int]
    ) -> None:
        """Write the instructions; instruction i gives the variable ``xi``."""
        for i, (opcode, result, *rows) in enumerate(code):
            row = _opcodes()[opcode].row
            names = {name: self.value_of(n) for name, n in zip(row.operands, rows, strict=False)}
            value = compiled(in_vectors(row, self.single), names)
            if row.name == "negative_product" and self.uniform.intersection(rows[:2]):
                value = self._negated_once(rows)
            self.lines.append(f"x{i} = {value}")
            self.known[result] = f"x{i}"
            if result in stored:
                self.before.append(f"b{i} = word(rows, {result})")
                self.lines.append(f"store(b{i} + m, x{i})")
            if result in watched:
                total = f"total{self.additions % TOTALS}"
                self.lines.append(f"{total} = {total} + x{i}")
                self.additions += 1

    def _negated_once(self, rows: list[int]) -> str:
        """Return the negative of a product, one factor of which is negated before the loop."""
        constant, other = sorted(rows[:2], key=lambda row: row not in self.uniform)
        negated = f"n{constant}"
        line = f"{negated} = -{self.known[constant]}"
        if line not in self.before:
            self.before.append(line)
        return f"{negated} * {self.known[other]}"

    def join(self, k: int, join: Join, at: int) -> None:
        """Add up the rows of a group, each shifted against the sum of those before it.

        A shifted sum begins with lanes of the vector before; those of the first vector lie at the
        head, and those that the last one leaves go to the tail.
        """
        self.before += [f"head{k} = word(rows, {at})", f"tail{k} = word(rows, {at + 1})"]
        place = sum(step for _, step in join)  # of a row's first lane, from the head
        joined = ""
        for i, (row, step) in enumerate(join):
            place -= step
            if step:
                joined = self._shifted(k, i, joined, step, place)
            value = self.value_of(row)
            self.lines.append(f"joined{k}_{i} = {f'{joined} + {value}' if joined else value}")
            joined = f"joined{k}_{i}"
        self.lines.append(f"store(head{k} + m, {joined})")

    def _shifted(self, k: int, i: int, joined: str, step: int, place: int) -> str:
        """Return the variable that holds a sum, shifted by some lanes."""
        last = f"last{k}_{i}"
        self.before.append(f"{last} = splat(0.0)")
        for j in range(step):
            lane, number = f"WIDTH - {step - j}", f"NUMBER * {place + j}"
            begun = f"read_number(head{k} + {number})"
            self.before.append(f"{last} = simd.with_lane({last}, {lane}, {begun})")
            self.after.append(f"write_number(tail{k} + {number}, simd.lane({last}, {lane}))")
        self.lines.append(f"shifted{k}_{i} = after_{step}({last}, {joined})")
        self.lines.append(f"{last} = {joined}")
        return f"shifted{k}_{i}"

    def tell_of_nans(self, at: int) -> None:
        """Say in a word whether there is a nan among the results that are watched."""
        totals = [f"total{k}" for k in range(min(max(self.additions, 1), TOTALS))]
        self.before += [f"{total} = splat(0.0)" for total in totals]
        found = " | ".join([f"({total} != {total})" for total in totals])
        self.after.append(f"write_i64(rows + {8 * at}, 1 if simd.any_lane({found}) else 0)")

    def text(self) -> str:
        """Return the source."""
        return "\n".join(
            [
                "def block(code, instructions, rows, lanes):",
                *[f"    {line}" for line in self.before],
                "    for m in range(0, (lanes + WIDTH - 1) // WIDTH * VECTOR, VECTOR):",
                *[f"        {line}" for line in self.lines],
                *[f"    {line}" for line in self.after],
                "",
            ]
        )
