"""Emits a loop of one program as straight source: its body once, operands in local variables.

The statements are the ones of the scalar interpreters, case by case; only where operands come from
differs.  The source is compiled while a program runs (`tapegrad.programs.rolled`), and is not
committed.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable
from typing import NamedTuple

from tapegrad.kernels.emit.language import compiled, contribution, names_in, tree
from tapegrad.kernels.emit.numbering import KX, STRUCTURAL, Opcode, number
from tapegrad.ops import TABLE
from tapegrad.ops.row import Nondiff, parse

CONST, CARRY = STRUCTURAL.index("CONST"), STRUCTURAL.index("CARRY")

LOCAL, CARRIED, FIXED, MEMORY, POOLED = "local", "carried", "fixed", "memory", "pooled"
"""Where an operand comes from: this iteration, the one before, one cell for all, a cell that moves
by a constant step, the constant pool."""

NOBODY, OUTSIDE = "nobody", "outside"


class Operand(NamedTuple):
    """Where an operand of the loop body comes from.

    Attributes
    ----------
    kind : str
        LOCAL, CARRIED, FIXED, MEMORY or POOLED.
    number : int
        The instruction of the body that computes it (LOCAL, CARRIED), or the number of the
        parameter that tells the first place and the step.
    """

    kind: str
    number: int


class Slot(NamedTuple):
    """One instruction of the loop body.

    Attributes
    ----------
    opcode : int
    operands : tuple of Operand
        Of a ternary row the two that its own instruction names; the first is with its CARRY.
    exposed : str
        Who else uses its value, so that a part of its adjoint lies in memory: NOBODY, code OUTSIDE
        of the loop (which has been swept before), or operands of the loop that are in MEMORY.
    """

    opcode: int
    operands: tuple[Operand, ...]
    exposed: str


@functools.cache
def _opcodes() -> dict[int, Opcode]:
    return {opcode.number: opcode for opcode in number(TABLE)}


def emit(body: tuple[Slot, ...]) -> str:
    """Return the source of ``forward`` and ``reverse`` for a loop body."""
    return "\n".join([*_forward(body), "", "", *_reverse(body), ""])


def _head(name: str, *columns: str) -> list[str]:
    """Return the first lines of a function: where the columns are that it works on."""
    return [
        f"def {name}(columns, parameters, first, last):",
        "    t = columns_at(columns)",
        *[f"    {column} = t.{column}" for column in columns],
        "    m = ints_at(parameters)",
    ]


def _parameters(body: Iterable[Slot]) -> dict[int, str]:
    """Return the kind of each parameter."""
    return {
        operand.number: operand.kind
        for slot in body
        for operand in slot.operands
        if operand.kind in (FIXED, MEMORY, POOLED)
    }


def _carried(body: tuple[Slot, ...]) -> list[int]:
    found = {o.number for slot in body for o in slot.operands if o.kind == CARRIED}
    return sorted(found)


def _starting_places(parameters: dict[int, str], at: str) -> list[str]:
    """Return statements that set the place of each parameter at an iteration."""
    lines = []
    for p, kind in parameters.items():
        first, step = f"np.uint64(m[{1 + 2 * p}])", f"np.uint64(m[{2 + 2 * p}])"
        if kind == FIXED:
            lines += [f"i{p} = {first}", f"f{p} = v[i{p}]"]
        else:
            lines += [f"d{p} = {step}", f"i{p} = {first} + {at} * d{p}"]
    return lines


def _named(body: tuple[Slot, ...], j: int, values: list[str]) -> dict[str, str]:
    """Return the expression of each operand of the row of instruction `j`."""
    opcode = _opcodes()[body[j].opcode]
    if opcode.row.arity == 1:
        return {"x": values[0]}
    if opcode.row.arity == 3:
        return {"x": values[2], "y": values[0], "z": values[1]}
    if opcode.variant == KX:
        return {"x": values[1], "y": values[0]}
    return {"x": values[0], "y": values[1]}


def _operands(body: tuple[Slot, ...], j: int) -> tuple[Operand, ...]:
    """Return the operands of instruction `j`, those of its CARRY last."""
    operands = body[j].operands
    if body[j].opcode >= len(STRUCTURAL) and _opcodes()[body[j].opcode].row.arity == 3:
        return (*operands, *body[j - 1].operands)
    return operands


# -- forward ---------------------------------------------------------------------------------------


def _forward(body: tuple[Slot, ...]) -> list[str]:
    parameters = _parameters(body)
    period = len(body)
    lines = [
        *_head("forward", "k", "v"),
        "    r = np.uint64(first)",
        f"    c = np.uint64(m[0]) + r * np.uint64({period})",
    ]
    lines += [f"    {line}" for line in _starting_places(parameters, "r")]
    lines += [f"    p{j} = v[c + np.uint64({j}) - np.uint64({period})]" for j in _carried(body)]
    lines.append("    for _ in range(first, last):")
    for j, slot in enumerate(body):
        lines.append(f"        x{j} = {_value(body, j)}")
        lines.append(f"        v[c + np.uint64({j})] = x{j}")
        assert slot.opcode >= CONST
    lines += [f"        p{j} = x{j}" for j in _carried(body)]
    lines += [f"        i{p} += d{p}" for p, kind in parameters.items() if kind != FIXED]
    lines.append(f"        c += np.uint64({period})")
    return lines


_FORWARD_SOURCE = {
    LOCAL: "x{}",
    CARRIED: "p{}",
    FIXED: "f{}",
    MEMORY: "v[i{}]",
    POOLED: "k[i{}]",
}


def _value(body: tuple[Slot, ...], j: int) -> str:
    slot = body[j]
    values = [_FORWARD_SOURCE[o.kind].format(o.number) for o in _operands(body, j)]
    if slot.opcode == CONST:
        return values[0]
    if slot.opcode == CARRY:
        return "0.0"
    row = _opcodes()[slot.opcode].row
    return compiled(tree(row, row.out), _named(body, j, values))


# -- reverse ---------------------------------------------------------------------------------------


def _reverse(body: tuple[Slot, ...]) -> list[str]:
    return _Reverse(body).lines


class _Reverse:
    """Writes the reverse sweep: adjoints in local variables, the first contribution sets."""

    def __init__(self, body: tuple[Slot, ...]) -> None:
        self.body = body
        self.carried = _carried(body)
        self.loaded: set[str] = set()
        self.started: set[str] = set()
        parameters = _parameters(body)
        period = np_int(len(body))
        self.lines = [
            *_head("reverse", "k", "v", "g"),
            f"    c = np.uint64(m[0]) + np.uint64(last) * {period}",
            *[f"    {line}" for line in _starting_places(parameters, "np.uint64(last)")],
            *[f"    g{p} = g[i{p}]" for p, kind in parameters.items() if kind == FIXED],
        ]
        for j in self.carried:
            place = f"g[c + {np_int(j)} - {period}]"
            self.lines += [f"    h{j} = {place}", f"    {place} = 0.0"]
        self.lines.append("    for _ in range(first, last):")
        self.lines += [f"        i{p} -= d{p}" for p, kind in parameters.items() if kind != FIXED]
        self.lines.append(f"        c -= {period}")
        for j in range(len(body) - 1, -1, -1):
            self._instruction(j)
        for j in self.carried:
            if f"n{j}" not in self.started:
                self._add(f"n{j}", "0.0")
            self.lines.append(f"        h{j} = n{j}")
        self.lines += [f"    g[c + {np_int(j)} - {period}] += h{j}" for j in self.carried]
        self.lines += [f"    g[i{p}] = g{p}" for p, kind in parameters.items() if kind == FIXED]

    def _add(self, target: str, text: str) -> None:
        """Add to an adjoint; the order of additions is that of the interpreter."""
        if target.startswith("g"):
            self.lines.append(f"        {target} += {text}")
            return
        if target not in self.started:
            self.started.add(target)
            j = int(target[1:])
            if self.body[j].exposed != OUTSIDE or (target[0] == "w" and j in self.carried):
                self.lines.append(f"        {target} = {text}")
                return
            before = f" - {np_int(len(self.body))}" if target[0] == "n" else ""
            self._take(target, f"g[c + {np_int(j)}{before}]")
        self.lines.append(f"        {target} += {text}")

    def _take(self, target: str, place: str) -> None:
        self.lines += [f"        {target} = {place}", f"        {place} = 0.0"]

    def _instruction(self, j: int) -> None:
        slot = self.body[j]
        w = f"w{j}"
        if j in self.carried:
            self._add(w, f"h{j}")
        place = f"g[c + {np_int(j)}]"
        if slot.exposed == MEMORY:
            self._add(w, place)
            self.lines.append(f"        {place} = 0.0")
        elif slot.exposed == OUTSIDE and w not in self.started:
            self._take(w, place)
            self.started.add(w)
        if slot.opcode < len(STRUCTURAL) or w not in self.started:
            return
        opcode = _opcodes()[slot.opcode]
        row = opcode.row
        operands = _operands(self.body, j)
        which = _named(self.body, j, ["0", "1", "2"])
        by_name = {name: operands[int(i)] for name, i in which.items()}
        names = {"out": f"x{j}"}
        contributions: list[tuple[Operand, ast.expr | None]] = []
        needed: set[str] = set()
        for name, partial in zip(row.operands, row.partials, strict=True):
            operand = by_name[name]
            if operand.kind == POOLED:
                continue
            if isinstance(partial, Nondiff):
                contributions.append((operand, None))
            elif isinstance(partial, str):
                node = contribution(parse(partial), w)
                needed |= names_in(node)
                contributions.append((operand, node))
        for name in row.let:
            if name in needed:
                needed |= names_in(parse(row.let[name]))
        for name, operand in by_name.items():
            names[name] = self._load(operand, name in needed)
        if "out" in needed:
            self._load(Operand(LOCAL, j), True)
        guard = f" if likely({w} != 0.0) else 0.0"
        for name, text in row.let.items():
            if name in needed:
                names[name] = f"let{j}_{name}"
                self.lines.append(f"        let{j}_{name} = {compiled(parse(text), names)}")
        for operand, node in contributions:
            text = "nan" if node is None else compiled(node, names)
            linear = text in (w, f"-{w}")
            self._add(self._target(operand), text if linear else f"({text}){guard}")

    def _load(self, operand: Operand, needed: bool) -> str:
        """Return the variable that holds an operand's value, loading it on first use."""
        if operand.kind == FIXED:
            return f"f{operand.number}"
        if operand.kind == POOLED:
            return f"k[i{operand.number}]"
        name, place = {
            LOCAL: (f"x{operand.number}", f"c + {np_int(operand.number)}"),
            CARRIED: (
                f"y{operand.number}",
                f"c + {np_int(operand.number)} - {np_int(len(self.body))}",
            ),
            MEMORY: (f"z{operand.number}", f"i{operand.number}"),
        }[operand.kind]
        if needed and name not in self.loaded:
            self.loaded.add(name)
            self.lines.append(f"        {name} = v[{place}]")
        return name

    def _target(self, operand: Operand) -> str:
        return {
            LOCAL: f"w{operand.number}",
            CARRIED: f"n{operand.number}",
            FIXED: f"g{operand.number}",
            MEMORY: f"g[i{operand.number}]",
        }[operand.kind]


def np_int(value: int) -> str:
    """Return a literal that does not turn unsigned arithmetic into that of floats."""
    return f"np.uint64({value})"
