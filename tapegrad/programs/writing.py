"""What a program file says of a program: `describe` makes its header, and collects its arrays."""

from __future__ import annotations

import os
from collections.abc import Container
from typing import Any

import numpy as np

from .. import trees
from ..decisions import Call
from ..host import HostCall, HostOperand
from ..kernels.opcodes import CARRY, CONST, HOST, INPUT, KINDS, LANES, NAMES, UNARY
from ..tape import Import, Tape
from .ports import Output
from .program import Program
from .verify import Code, verify

DTYPES = (
    *("float64", "float32", "bool"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)
CODE = {"op": "uint8", "a": "uint32", "b": "uint32", "k": "float64", "d": "int64", "x": "uint32"}
INT64 = 1 << 63
NON_FINITE = ("nan", "inf", "-inf")

Array = np.ndarray[Any, Any]
Json = dict[str, Any]


def describe(program: Program, arrays: list[Array]) -> Json:
    """Return the header of a program's file, but for the list of its arrays, which are appended.

    Raises
    ------
    TypeError
        If a part of the program has no place in a file.
    """
    tape = program.tape
    code, imports, values = code_of(
        tape, {id(known.leaf) for known in program._inputs if known is not None}
    )
    for call in code.hosts:
        _check_known(call)
    verify(code, 1 << 32)  # what is written can be read
    opcodes = _renumber(code)
    numbers = {id(entry.leaf): i for i, entry in enumerate(imports) if entry.leaf is not None}
    sites, site, cells, expected, calls = program.decisions.to_parts()
    return {
        "program": program._name,
        "opcodes": opcodes,
        "code": {name: _add(arrays, getattr(code, name)) for name in CODE},
        "values": _add(arrays, values),
        "hosts": [_describe_host(call, arrays) for call in code.hosts],
        "structure": trees.to_data(program._tree),
        "arguments": [
            {"constant": _encode(static, "an argument", arrays)}
            if known is None
            else {
                "name": known.name,
                "input": numbers[id(known.leaf)],
                "shape": list(known.shape),
                "dtype": known.dtype.name,
            }
            for known, static in zip(program._inputs, program._static, strict=True)
        ],
        "result": trees.to_data(program._out_tree),
        "outputs": [_describe_output(output, arrays) for output in program._outputs],
        "decisions": {
            "sites": sites,
            "numbers": _add(arrays, site),
            "cells": _add(arrays, cells),
            "expected": _add(arrays, expected),
            "calls": [
                _describe_call(call, program.decisions.all[call.number].outcome, arrays)
                for call in calls
            ],
        },
        "captured": [
            {
                "name": item.name,
                "file": os.path.basename(item.file),
                "line": item.line,
                "value": _encode(item._snapshot, item.name, arrays),
            }
            for item in program.captured
            if item._snapshot.dtype.name in DTYPES
        ],
    }


def code_of(tape: Tape, inputs: Container[int] = ()) -> tuple[Code, list[Import], Array]:
    """Return a tape's code in the form that files have, its imports, and the values of those.

    Inputs, given by the ``id`` of their leaves, have the values that the program was recorded for.

    Imports and structural operations are numbered in the order in which instructions use them, and
    what operands do not need is zero.
    """
    n, arena = tape.n, tape.arena
    op, v = arena.op.array[:n].copy(), arena.v.array
    a, b = arena.a.array[:n].copy(), arena.b.array[:n].copy()
    wide = (op == INPUT) | (op == LANES) | (op == HOST)
    first = np.concatenate(([0], np.cumsum(np.where(wide, b, 1), dtype=np.int64)))
    given, hosts = np.flatnonzero(op == INPUT), np.flatnonzero(op == HOST)
    imports = [tape.imports[i] for i in a[given].tolist()]
    calls = [tape.hosts[i] for i in a[hosts].tolist()]
    a[given], a[hosts] = np.arange(given.size), np.arange(hosts.size)
    b[(np.array(KINDS)[op] == UNARY) | (op == CONST) | (op == CARRY)] = 0
    values = [
        np.ravel(entry.leaf.value)
        if entry.leaf is not None and id(entry.leaf) in inputs
        else v[first[i] : first[i + 1]]
        for entry, i in zip(imports, given.tolist(), strict=True)
    ]
    code = Code(op, a, b, tape.k.array(), tape.d.array().copy(), tape.x.array(), calls)
    return code, imports, np.concatenate([np.empty(0), *values])


def _renumber(code: Code) -> list[str]:
    """Number the opcodes as they occur; return their names, by which a reader knows them."""
    descriptors = np.unique(code.a[code.op == LANES])
    rows = code.d[descriptors]
    used = np.union1d(code.op, rows).astype(np.intp)
    table = np.zeros(256, np.uint8)
    table[used] = np.arange(used.size)
    code.op, code.d[descriptors] = table[code.op], table[rows]
    return [NAMES[opcode] for opcode in used.tolist()]


def _check_known(call: Any) -> None:
    from ..ops.structural import STRUCTURAL

    if type(call) is not HostCall or STRUCTURAL.get(call.row.name) is not call.row:
        name = getattr(getattr(call, "row", call), "name", type(call).__name__)
        raise TypeError(
            f"{name} is run by Python code, which has no place in a file; leave custom rules and "
            "checkpoints out of the function"
        )


def _add(arrays: list[Array], array: Array) -> int:
    arrays.append(array)
    return len(arrays) - 1


def _encode(value: Any, what: str, arrays: list[Array]) -> Any:
    """Return a constant as JSON has it; arrays and NumPy's numbers go to the arrays."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.name in DTYPES:
        array = np.asarray(value)
        return {"array" if isinstance(value, np.ndarray) else "scalar": _add(arrays, array)}
    if isinstance(value, int) and -INT64 <= value < INT64:
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else {"float": repr(value)}
    raise TypeError(f"{what} is a {type(value).__name__}, and a file keeps numbers, text, arrays")


def _describe_operand(place: HostOperand, arrays: list[Array]) -> Json:
    if place.window is not None:
        w = place.window
        offset = int(w.offset) if w.size else 0
        return {"window": [offset, list(w.shape), [int(step) for step in w.strides]]}
    if place.cells is not None:
        return {"cells": _add(arrays, place.cells.astype(np.uint32))}
    return {"constant": _add(arrays, place.constant)}


def _describe_call(call: Call, outcome: Any, arrays: list[Array]) -> Json:
    name = call.function.__name__
    parts = outcome if isinstance(outcome, tuple) else [outcome]
    return {
        "function": name,
        "structure": trees.to_data(call.tree),
        "parts": [
            _describe_operand(x, arrays)
            if isinstance(x, HostOperand)
            else {"value": _encode(x, f"an argument of np.{name}", arrays)}
            for x in call.places
        ],
        "several": isinstance(outcome, tuple),
        "outcome": [_encode(x, f"the answer of np.{name}", arrays) for x in parts],
    }


def _describe_host(call: HostCall, arrays: list[Array]) -> Json:
    operands = [_describe_operand(place, arrays) for place in call.operands]
    params = {k: list(x) if isinstance(x, tuple) else x for k, x in call.params.items()}
    return {
        "row": call.row.name,
        "shape": list(call.shape),
        "params": params,
        "operands": operands,
    }


def _describe_output(output: Output, arrays: list[Array]) -> Json:
    if output.cells is None:
        return {"constant": _encode(output.constant, "an output", arrays)}
    found: Json = {"shape": list(output.shape), "dtype": np.dtype(output.dtype).name}
    if isinstance(output.cells, (int, np.integer)) or not output.size:
        found["cell"] = int(output.cells) if output.size else 0
    else:
        found["cells"] = _add(arrays, np.ravel(output.cells).astype(np.uint32))
    return found
