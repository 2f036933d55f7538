"""What a program file says of a program, read back: nothing is believed that is not checked."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np

from .. import trees
from ..arena import CompactArena
from ..decisions import FUNCTIONS, Call, Decisions
from ..errors import TapeFormatError
from ..host import HostCall, HostOperand
from ..kernels.opcodes import INPUT, LANES, NAMES
from ..tape import Import, Recording, Tape, recorder
from ..window import Window
from .captured import Captured
from .layout import is_split
from .ports import Input, Output
from .program import Program
from .verify import MAX_NDIM, Code, check_cells, check_decision, check_window, verify
from .writing import CODE, DTYPES, INT64, NON_FINITE, Array, Json


def read_program(
    header: Json, body: memoryview, classes: Iterable[type], max_cells: int
) -> Program:
    """Return the program that a header and the bytes of its arrays describe; see `tapegrad.load`.

    Raises
    ------
    TapeFormatError
        If they describe none that can be run safely.
    """
    file = _File(header, body)
    code, first, imports, values = _read_code(file, max_cells)
    cells = int(first[-1])
    decisions = _read_decisions(file, first, max_cells)
    tree, count = _read_structure(file, classes)
    try:
        out_tree = trees.from_data(header.get("result"), classes)
    except ValueError as error:
        raise TapeFormatError(f"the structure of the result: {error}") from None
    v = np.zeros(cells)  # pages that nothing is written to cost nothing
    at = 0
    for entry in imports:
        v[entry.cell : entry.cell + entry.size] = values[at : at + entry.size]
        at += entry.size
    inputs, static = _read_arguments(file, imports, v)
    outputs = [_read_output(file, part, first) for part in _field(header, "outputs", list)]
    if len(static) != tree.n_leaves or len(outputs) != out_tree.n_leaves:
        raise TapeFormatError("structures do not have as many parts as there are values")
    recording = Recording(decisions)
    return Program.from_parts(
        name=_field(header, "program", str),
        recording=recording,
        tape=finished(code, imports, v, recording),
        arguments=(tree, count, inputs, static),
        results=(out_tree, outputs),
        captured=[_read_captured(file, part) for part in _field(header, "captured", list)],
    )


class _File:
    """The header and the arrays of a file; what is asked for is checked."""

    def __init__(self, header: Json, body: memoryview) -> None:
        self.header = header
        self.arrays: list[Array] = []
        at = 0
        for part in _field(header, "arrays", list):
            if not isinstance(part, list) or len(part) != 2 or part[0] not in DTYPES:
                raise TapeFormatError(f"array {len(self.arrays)} of an unknown kind")
            name = f"array {len(self.arrays)}"
            shape, dtype = _shape(part[1], name), np.dtype(part[0])
            stop = at + prod(shape) * dtype.itemsize
            if stop > len(body):
                raise TapeFormatError(f"{name} of shape {shape} goes beyond the end of the file")
            # Bytes other than 0 and 1 are no booleans that NumPy could work with.
            stored = np.dtype("uint8") if dtype == np.bool_ else dtype.newbyteorder("<")
            array = np.frombuffer(body[at:stop], stored)
            self.arrays.append(
                (array != 0 if dtype == np.bool_ else array.astype(dtype)).reshape(shape)
            )
            at = stop + -stop % 8
        if at != len(body):
            raise TapeFormatError(f"{len(body) - at} bytes belong to no array")

    def array(self, number: Any, dtype: str, what: str, flat: bool = True) -> Array:
        """Return an array of the file."""
        array = self.arrays[_integer(number, 0, len(self.arrays) - 1, what)]
        if array.dtype != dtype or (flat and array.ndim != 1):
            raise TapeFormatError(f"{what}: an array of another kind")
        return array

    def decode(self, data: Any, what: str) -> Any:
        """Return a constant."""
        if not isinstance(data, dict):
            if isinstance(data, list):
                raise TapeFormatError(f"{what} is not a constant")
            return data
        kind, value = next(iter(data.items()), ("", None))
        if kind == "float" and value in NON_FINITE:
            return float(value)
        if kind not in ("array", "scalar"):
            raise TapeFormatError(f"{what} is not a constant")
        array = self.arrays[_integer(value, 0, len(self.arrays) - 1, what)]
        return array if kind == "array" else array.reshape(-1)[0] if array.size else array


def _field(data: Any, key: str, kind: type) -> Any:
    value = data.get(key) if isinstance(data, dict) else None
    if type(value) is not kind:
        raise TapeFormatError(f"the _field {key!r} of the header is missing, or no {kind.__name__}")
    return value


def _integer(value: Any, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise TapeFormatError(f"{what}: {str(value)[:40]} is not an integer from {low} to {high}")
    return value


def _shape(data: Any, what: str) -> tuple[int, ...]:
    if not isinstance(data, list) or len(data) > MAX_NDIM:
        raise TapeFormatError(f"{what} has no shape")
    shape = tuple([_integer(n, 0, INT64 - 1, what) for n in data])
    if prod([n for n in shape if n]) >> 48:  # NumPy refuses it, be the array empty or not
        raise TapeFormatError(f"{what} has the impossible shape {shape}")
    return shape


def _read_code(file: _File, max_cells: int) -> tuple[Code, Array, list[Import], Array]:
    """Return the verified code, where cells begin, the imports, and the values of those."""
    header = file.header
    table = []
    for name in _field(header, "opcodes", list):
        if name not in NAMES:
            raise TapeFormatError(f"it uses {str(name)[:40]}, which this tapegrad does not know")
        table.append(NAMES.index(name))
    parts = _field(header, "code", dict)
    columns = {name: file.array(parts.get(name), dtype, name) for name, dtype in CODE.items()}
    values = file.array(header.get("values"), "float64", "values")
    hosts = [_read_host(file, part, max_cells) for part in _field(header, "hosts", list)]
    code = Code(**columns, hosts=hosts)
    if not code.op.size == code.a.size == code.b.size:
        raise TapeFormatError("its columns are of different lengths")
    known = np.array(table, np.uint8)
    if code.op.size and int(code.op.max()) >= known.size:
        raise TapeFormatError(f"an opcode is not one of the {known.size} that have names")
    code.op = known[code.op] if known.size else code.op
    descriptors = np.unique(code.a[code.op == LANES])
    descriptors = descriptors[descriptors < code.d.size]  # `verify` names the others
    rows = code.d[descriptors]
    if ((rows < 0) | (rows >= known.size)).any():
        raise TapeFormatError(f"a descriptor's row is not one of the {known.size} that have names")
    code.d[descriptors] = known[rows]
    first = verify(code, max_cells)
    inputs = np.flatnonzero(code.op == INPUT)
    imports = [Import(int(first[i]), int(first[i + 1] - first[i])) for i in inputs.tolist()]
    if sum([entry.size for entry in imports]) != values.size:
        raise TapeFormatError(f"{values.size} values are not as many as there are input cells")
    return code, first, imports, values


def _read_host(file: _File, data: Any, max_cells: int) -> HostCall:
    from ..ops.structural import STRUCTURAL

    name = _field(data, "row", str)
    if name not in STRUCTURAL:
        raise TapeFormatError(f"it uses {name[:40]}, which this tapegrad does not know")
    operands = [
        _read_operand(file, part, name, max_cells) for part in _field(data, "operands", list)
    ]
    params = _field(data, "params", dict)
    params = {key: tuple(x) if isinstance(x, list) else x for key, x in params.items()}
    return HostCall(STRUCTURAL[name], operands, params, _shape(data.get("shape"), name))


def _read_operand(file: _File, part: Any, name: str, max_cells: int) -> HostOperand:
    place = HostOperand.__new__(HostOperand)
    place.window = place.cells = place.constant = None
    if not isinstance(part, dict):
        raise TapeFormatError(f"{name}: an operand is not described")
    if "window" in part:
        window = part["window"]
        if not isinstance(window, list) or len(window) != 3 or not isinstance(window[2], list):
            raise TapeFormatError(f"{name}: an operand's window is not described")
        strides = tuple([_integer(n, -INT64, INT64 - 1, name) for n in window[2]])
        offset = _integer(window[0], 0, INT64 - 1, name)
        place.window = Window(offset, _shape(window[1], name), strides)
    elif "cells" in part:
        place.cells = file.array(part["cells"], "uint32", name, flat=False)
    else:
        place.constant = file.array(part.get("constant"), "float64", name, flat=False)
        check_window(place.constant.shape, place.constant.shape, max_cells)
    return place


def _read_call(file: _File, data: Any, first: Array, max_cells: int) -> tuple[Call, Any]:
    """Return a function that answers a decision, and the answer that is expected."""
    name = _field(data, "function", str)
    if name not in FUNCTIONS:
        raise TapeFormatError(f"np.{name[:40]} is no function whose answers decide")
    try:
        tree = trees.from_data(data.get("structure"))
    except ValueError as error:
        raise TapeFormatError(f"the arguments of np.{name}: {error}") from None
    places = [
        file.decode(part["value"], f"np.{name}")
        if isinstance(part, dict) and "value" in part
        else _read_operand(file, part, f"np.{name}", max_cells)
        for part in _field(data, "parts", list)
    ]
    outcome = [file.decode(x, f"np.{name}") for x in _field(data, "outcome", list)]
    if not _field(data, "several", bool) and len(outcome) != 1:
        raise TapeFormatError(f"np.{name} has {len(outcome)} answers")
    call = Call(FUNCTIONS[name], tree, places, -1)
    check_decision(call, first, max_cells)
    return call, tuple(outcome) if data["several"] else outcome[0]


def _read_decisions(file: _File, first: Array, max_cells: int) -> Decisions:
    data = _field(file.header, "decisions", dict)
    sites = []
    for site in _field(data, "sites", list):
        if not isinstance(site, list) or len(site) != 5:
            raise TapeFormatError("a decision is not described")
        what, name, line, dtype, shape = site
        known = dtype is None or dtype in DTYPES
        if not isinstance(what, str) or not isinstance(name, str) or not known:
            raise TapeFormatError("a decision is not described")
        _integer(line, 0, 1 << 32, "a decision's line")
        sites.append((what, name, line, dtype, _shape(shape, "a decision")))
    numbers = file.array(data.get("numbers"), "uint32", "decisions")
    looked_at = file.array(data.get("cells"), "uint32", "decisions")
    expected = file.array(data.get("expected"), "float64", "decisions")
    check_cells(looked_at, int(first[-1]), "decisions")
    # Version 1 knew no decisions by functions.
    described = _field(data, "calls", list) if "calls" in data else []
    calls = [_read_call(file, part, first, max_cells) for part in described]
    try:
        return Decisions.from_parts(sites, numbers, looked_at, expected, calls)
    except ValueError as error:
        raise TapeFormatError(f"decisions: {error}") from None


def _read_structure(file: _File, classes: Iterable[type]) -> tuple[trees.TreeDef, int]:
    """Return the structure of ``(args, kwargs)``, and how many of the former there are."""
    try:
        tree = trees.from_data(file.header.get("structure"), classes)
    except ValueError as error:
        raise TapeFormatError(f"the structure of the arguments: {error}") from None
    kinds = [part.kind for part in tree.children]
    if tree.kind is not tuple or kinds != [tuple, dict]:
        raise TapeFormatError("the structure of the arguments is not that of a call")
    return tree, len(tree.children[0].children)


def _read_arguments(
    file: _File, imports: list[Import], v: Array
) -> tuple[list[Input | None], list[Any]]:
    inputs: list[Input | None] = []
    static: list[Any] = []
    for part in _field(file.header, "arguments", list):
        if not isinstance(part, dict) or "constant" in part:
            inputs.append(None)
            static.append(file.decode(_item(part, "constant"), "an argument"))
            continue
        name = _field(part, "name", str)
        entry = imports[_integer(part.get("input"), 0, len(imports) - 1, name)]
        shape, dtype = _shape(part.get("shape"), name), part.get("dtype")
        if prod(shape) != entry.size or entry.leaf is not None:
            raise TapeFormatError(f"{name} is no input of shape {shape}")
        if dtype not in ("float64", "float32"):
            raise TapeFormatError(f"{name} is of no dtype that inputs have")
        with np.errstate(over="ignore"):
            value = v[entry.cell : entry.cell + entry.size].reshape(shape).astype(dtype)
        known = Input(value, name)
        known.cell, entry.leaf = entry.cell, known.leaf
        inputs.append(known)
        static.append(value)
    return inputs, static


def _item(data: Any, key: str) -> Any:
    if not isinstance(data, dict) or key not in data:
        raise TapeFormatError(f"the header has {str(data)[:40]} where {key!r} belongs")
    return data[key]


def _read_output(file: _File, data: Any, first: Array) -> Output:
    if isinstance(data, dict) and "constant" in data:
        return Output(file.decode(data["constant"], "an output"))
    cells = int(first[-1])
    shape = _shape(_field(data, "shape", list), "an output")
    dtype = data.get("dtype")
    if dtype not in ("float64", "float32", "int64", "bool"):
        raise TapeFormatError("an output is of no dtype that results have")
    output, size = Output.on_cells(None, shape, dtype), prod(shape)
    if "cells" in data:
        output.cells = file.array(data["cells"], "uint32", "an output")
        check_cells(output.cells, cells, "an output")
        if output.cells.size != size:
            raise TapeFormatError(f"an output of shape {shape} has other than {size} cells")
    else:
        output.cells = _integer(data.get("cell"), 0, cells, "an output's cell")
        if output.cells + size > cells:
            raise TapeFormatError(f"an output of shape {shape} goes beyond the last cell")
        if size and is_split(first, output.cells, output.cells + size - 1):
            raise TapeFormatError(f"an output of shape {shape} reaches over several instructions")
    return output


def _read_captured(file: _File, data: Any) -> Captured:
    value = file.decode(_item(data, "value"), "a captured value")
    line = _integer(data.get("line"), 0, 1 << 32, "a captured value's line")
    return Captured(_field(data, "name", str), lambda: value, _field(data, "file", str), line)


def finished(code: Code, imports: list[Import], v: Array, recording: Recording) -> Tape:
    """Return a tape that has been recorded already; its values are computed when somebody looks."""
    tape = Tape(recorder.owner, recording=recording)
    tape._arena = CompactArena(code.op, code.a, code.b, v)
    tape.k.extend(code.k)
    tape.d.extend(code.d)
    tape.x.extend(code.x)
    tape.hosts, tape.imports = code.hosts, imports
    tape.n, tape.flushed_cell = code.op.size, v.size
    tape.input_cells = sum([entry.size for entry in imports])
    tape.cells, tape.stop = iter(range(0)), v.size
    tape.open = False
    return tape
