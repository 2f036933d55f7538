"""Emits kernels/opcodes.py: numbers and names, as literals that import in no time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from tapegrad.kernels.emit.language import HEADER
from tapegrad.kernels.emit.numbering import CELLS, KX, STRUCTURAL, XK, Opcode
from tapegrad.ops.row import Integer, Row, Zero

_INDEXED = re.compile(r"(\w+)\[(\d)\]")


def emit(table: dict[str, Row], opcodes: tuple[Opcode, ...]) -> str:
    """Return the module of opcodes."""
    kinds = [0] * len(STRUCTURAL) + [_kind(opcode) for opcode in opcodes]
    row_names = [name.lower() for name in STRUCTURAL] + [opcode.row.name for opcode in opcodes]
    constants = [*enumerate(STRUCTURAL), *((opcode.number, opcode.name) for opcode in opcodes)]
    return "\n".join(
        [
            HEADER.format(title="Opcodes of the tape, and what the tape asks about rows."),
            "from __future__ import annotations\n",
            *(f"{name} = {number}" for number, name in constants),
            f"\nFIRST_ROW = {len(STRUCTURAL)}",
            '"""The first opcode that is a row; those below are structural."""\n',
            _sequence("NAMES", "tuple[str, ...]", (name for _, name in constants)),
            '"""Names by opcode."""\n',
            _sequence("ROW_OF", "tuple[str, ...]", row_names),
            '"""Row names by opcode."""\n',
            "UNARY, BINARY, BINARY_XK, BINARY_KX, TERNARY = 1, 2, 3, 4, 5",
            _sequence("KINDS", "tuple[int, ...]", kinds),
            '"""Kinds by opcode; 0 is structural."""\n',
            *_by_row(list(table.values()), opcodes),
        ]
    )


def _by_row(rows: list[Row], opcodes: tuple[Opcode, ...]) -> list[str]:
    """Return what the tape asks about a row by name."""
    by_name = {(opcode.row.name, opcode.variant): opcode.number for opcode in opcodes}
    numbers = {
        row.name: tuple(by_name.get((row.name, variant), -1) for variant in (CELLS, XK, KX))
        for row in rows
    }
    single, multiple = _ufuncs(rows)
    results = {r.name: r.result for r in rows if r.result != "float"}
    integers = {r.name: r.integer_operand for r in rows if r.integer_operand is not None}
    flat = {
        r.name: tuple(i for i, p in enumerate(r.partials) if isinstance(p, (Zero, Integer)))
        for r in rows
        if r.differentiable and not all(isinstance(p, str) for p in r.partials)
    }
    zeros = (r.name for r in rows if all(isinstance(p, Zero) for p in r.partials))
    reasons = {
        r.name: r.nondifferentiable_because for r in rows if r.nondifferentiable_because is not None
    }
    return [
        _mapping("ROWS", "dict[str, tuple[int, int, int]]", numbers),
        '"""Row to (opcode, opcode with y constant or -1, opcode with x constant or -1)."""\n',
        _mapping("ARITY", "dict[str, int]", {row.name: row.arity for row in rows}),
        '"""Row to its number of operands."""\n',
        _mapping("UFUNCS", "dict[str, str]", single),
        '"""NumPy or SciPy ufunc to the row that serves it."""\n',
        _mapping("MULTI_UFUNCS", "dict[str, tuple[str, ...]]", multiple),
        '"""Ufuncs of several results to the row of each result."""\n',
        _mapping("RESULT", "dict[str, str]", results),
        '"""Rows whose result is not a float, with the kind that NumPy gives."""\n',
        _mapping("INTEGER_OPERAND", "dict[str, int]", integers),
        '"""Rows one operand of which must be an integer, with its position."""\n',
        _mapping("FLAT_OPERANDS", "dict[str, tuple[int, ...]]", flat),
        '"""Differentiable rows to the positions of those operands that have no partial."""\n',
        _sequence("ZERO_DERIVATIVE", "frozenset[str]", zeros, ("frozenset(\n    {", "}\n)")),
        '"""Rows that are constant wherever they are smooth."""\n',
        _mapping("NONDIFF", "dict[str, str]", reasons),
        '"""Rows without a derivative, with the reason to state in the error."""\n',
    ]


def _kind(opcode: Opcode) -> int:
    if opcode.row.arity == 2:
        return {CELLS: 2, XK: 3, KX: 4}[opcode.variant]
    return 1 if opcode.row.arity == 1 else 5


def _ufuncs(rows: list[Row]) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    single: dict[str, str] = {}
    multiple: dict[str, dict[int, str]] = {}
    for row in rows:
        for ufunc in row.ufuncs:
            indexed = _INDEXED.fullmatch(ufunc)
            if indexed:
                multiple.setdefault(indexed[1], {})[int(indexed[2])] = row.name
            elif ufunc in single:
                raise ValueError(f"rows {single[ufunc]!r} and {row.name!r} both serve {ufunc!r}")
            else:
                single[ufunc] = row.name
    return single, {
        name: tuple(parts[i] for i in range(len(parts))) for name, parts in multiple.items()
    }


def literal(value: object) -> str:
    """Return a literal as the formatter writes it, with double quotes."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        return "(" + ", ".join(map(literal, value)) + ("," if len(value) == 1 else "") + ")"
    return repr(value)


def _sequence(
    name: str,
    annotation: str,
    values: Iterable[object],
    brackets: tuple[str, str] = ("(", ")"),
) -> str:
    inner = "    " if brackets == ("(", ")") else "        "
    lines = "".join(f"{inner}{literal(value)},\n" for value in values)
    return f"{name}: {annotation} = {brackets[0]}\n{lines}{inner[4:]}{brackets[1]}"


def _mapping(name: str, annotation: str, values: Mapping[str, object]) -> str:
    lines = "".join(f"    {literal(key)}: {literal(value)},\n" for key, value in values.items())
    return f"{name}: {annotation} = {{\n{lines}}}"
