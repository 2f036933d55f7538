"""Program files: `Program.save` writes them, `load` reads and verifies them.

A file is a JSON header, which describes, and the raw arrays that it names, which are the tape.  It
holds no code and no pickled objects, so that reading one runs nothing; `docs/program-files.md` has
the format.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np

from . import trees
from .arena import CompactArena
from .captured import Captured
from .decisions import Decisions
from .errors import TapeFormatError, at_caller
from .host import HostCall, HostOperand
from .kernels.opcodes import CARRY, CONST, HOST, INPUT, KINDS, LANES, NAMES, UNARY
from .ports import Input, Output
from .program import Program
from .tape import Import, Recording, Tape, recorder
from .verify import MAX_NDIM, Code, check_cells, check_window, verify
from .window import Window

MAGIC = b"\x89TAPE\r\n\x1a"
"""How a file begins: a byte that is no text, and line ends that a transfer as text would change."""

FORMAT = 1
"""Version of the format that is written, and the highest that is read."""

MAX_CELLS = 1 << 28
"""Cells of a program that is loaded, unless another number is allowed: 2 GiB of values."""

_PREFIX = struct.Struct("<8sIIQ")  # magic, version, bytes of the header, bytes of the file
_DIGEST = 16
_DTYPES = (
    *("float64", "float32", "bool"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)
_CODE = {"op": "uint8", "a": "uint32", "b": "uint32", "k": "float64", "d": "int64", "x": "uint32"}
_INT64 = 1 << 63
_NON_FINITE = ("nan", "inf", "-inf")

Array = np.ndarray[Any, Any]
Json = dict[str, Any]


# -- writing ---------------------------------------------------------------------------------------


def save(program: Program, path: str | os.PathLike[str]) -> None:
    """Write a program to a file; see `Program.save`."""
    data = to_bytes(program)
    name = os.fspath(path)
    temporary = f"{name}.{os.getpid()}-{threading.get_ident()}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, name)  # whoever reads meanwhile finds the old file or the new one
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def to_bytes(program: Program) -> bytes:
    """Return the contents of a program's file."""
    import json

    arrays: list[Array] = []
    with program.lock:
        try:
            header = _describe(program, arrays)
        except TypeError as error:
            raise TypeError(f"the program cannot be saved: {error}{at_caller()}") from None
    header["arrays"] = [[array.dtype.name, list(array.shape)] for array in arrays]
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    body = b"".join([_padded(text)] + [_padded(_little(array).tobytes()) for array in arrays])
    return seal(len(text), body)


def seal(header: int, body: bytes) -> bytes:
    """Put magic bytes, version and sizes before the contents of a file, and a digest after them."""
    size = _PREFIX.size + len(body) + _DIGEST
    data = _PREFIX.pack(MAGIC, FORMAT, header, size) + body
    return data + _digest(data)


def _digest(data: bytes | memoryview) -> bytes:
    import hashlib

    return hashlib.blake2b(data, digest_size=_DIGEST).digest()


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def _little(array: Array) -> Array:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _describe(program: Program, arrays: list[Array]) -> Json:
    tape = program.tape
    code, imports, values = _code(tape)
    for call in code.hosts:
        _check_known(call)
    verify(code, 1 << 32)  # what is written can be read
    opcodes = _renumber(code)
    numbers = {id(entry.leaf): i for i, entry in enumerate(imports) if entry.leaf is not None}
    sites, site, cells, expected = program.decisions.to_parts()
    return {
        "program": program._name,
        "opcodes": opcodes,
        "code": {name: _add(arrays, getattr(code, name)) for name in _CODE},
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
        },
        "captured": [
            {
                "name": item.name,
                "file": os.path.basename(item.file),
                "line": item.line,
                "value": _encode(item._snapshot, item.name, arrays),
            }
            for item in program.captured
            if item._snapshot.dtype.name in _DTYPES
        ],
    }


def _code(tape: Tape) -> tuple[Code, list[Import], Array]:
    """Return a tape's code in the form that files have, its imports, and the values of those.

    Imports and structural operations are numbered in the order in which instructions use them, and
    what operands do not need is zero.
    """
    n, arena = tape.n, tape.arena
    op, v = arena.op.array[:n].copy(), arena.v.array
    a, b = arena.a.array[:n].copy(), arena.b.array[:n].copy()
    wide = (op == INPUT) | (op == LANES) | (op == HOST)
    first = np.concatenate(([0], np.cumsum(np.where(wide, b, 1), dtype=np.int64)))
    inputs, hosts = np.flatnonzero(op == INPUT), np.flatnonzero(op == HOST)
    imports = [tape.imports[i] for i in a[inputs].tolist()]
    calls = [tape.hosts[i] for i in a[hosts].tolist()]
    a[inputs], a[hosts] = np.arange(inputs.size), np.arange(hosts.size)
    b[(np.array(KINDS)[op] == UNARY) | (op == CONST) | (op == CARRY)] = 0
    values = [v[first[i] : first[i + 1]] for i in inputs.tolist()]
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
    from .ops.structural import STRUCTURAL

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
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.name in _DTYPES:
        array = np.asarray(value)
        return {"array" if isinstance(value, np.ndarray) else "scalar": _add(arrays, array)}
    if isinstance(value, int) and -_INT64 <= value < _INT64:
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else {"float": repr(value)}
    raise TypeError(f"{what} is a {type(value).__name__}, and a file keeps numbers, text, arrays")


def _describe_host(call: HostCall, arrays: list[Array]) -> Json:
    operands: list[Json] = []
    for place in call.operands:
        if place.window is not None:
            w = place.window
            offset = int(w.offset) if w.size else 0
            operands.append({"window": [offset, list(w.shape), [int(step) for step in w.strides]]})
        elif place.cells is not None:
            operands.append({"cells": _add(arrays, place.cells.astype(np.uint32))})
        else:
            operands.append({"constant": _add(arrays, place.constant)})
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


# -- reading ---------------------------------------------------------------------------------------


def load(
    path: str | os.PathLike[str], *, classes: Iterable[type] = (), max_cells: int = MAX_CELLS
) -> Program:
    """Read a program that `Program.save` wrote; the source of the recorded function is not needed.

    The file is verified before anything of it runs, so that files from elsewhere are safe to load.

    Parameters
    ----------
    path : path
    classes : iterable of type
        Named tuples and dataclasses among the program's arguments and results.  Without them the
        program takes and returns dicts of their fields.
    max_cells : int
        How large a program may be: it will need at most 8 bytes a cell, and as much for adjoints.

    Returns
    -------
    Program

    Raises
    ------
    TapeFormatError
        If the file is truncated, altered, of another kind or of a newer version, or does not
        describe a program that can be run safely.

    Examples
    --------
    >>> import os, tempfile, numpy as np, tapegrad as tg
    >>> program = tg.record(lambda x: np.sum(x * x), np.zeros(2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     program.save(os.path.join(folder, "squares.tape"))
    ...     loaded = tg.load(os.path.join(folder, "squares.tape"))
    >>> loaded.value_and_grad(np.array([1.0, 2.0]))
    (5.0, array([2., 4.]))
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        return from_bytes(data, classes, max_cells)
    except TapeFormatError as error:
        name = os.path.basename(os.fspath(path))
        raise TapeFormatError(f"{name}: {error}{at_caller()}") from None


def from_bytes(data: bytes, classes: Iterable[type] = (), max_cells: int = MAX_CELLS) -> Program:
    """Return the program whose file has these contents."""
    header, body = _open(data)
    file = _File(header, body)
    code, first, imports, values = _read_code(file, max_cells)
    cells = int(first[-1])
    decisions = _read_decisions(file, cells)
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
    outputs = [_read_output(file, part, cells) for part in _field(header, "outputs", list)]
    if len(static) != tree.n_leaves or len(outputs) != out_tree.n_leaves:
        raise TapeFormatError("structures do not have as many parts as there are values")
    recording = Recording(decisions)
    return Program.from_parts(
        name=_field(header, "program", str),
        recording=recording,
        tape=_finished(code, imports, v, recording),
        arguments=(tree, count, inputs, static),
        results=(out_tree, outputs),
        captured=[_read_captured(file, part) for part in _field(header, "captured", list)],
    )


def _open(data: bytes) -> tuple[Json, memoryview]:
    """Check the frame of a file; return its header and its arrays, as bytes."""
    import json

    if data[: len(MAGIC)] != MAGIC:
        raise TapeFormatError("this is not a tapegrad program")
    if len(data) < _PREFIX.size + _DIGEST:
        raise TapeFormatError(f"the file ends after {len(data)} bytes: it is truncated")
    _, version, length, size = _PREFIX.unpack_from(data)
    if version != FORMAT:
        raise TapeFormatError(
            f"its format is version {version}, and this tapegrad reads version {FORMAT}: "
            + ("install a newer one" if version > FORMAT else "it was altered")
        )
    if size != len(data):
        what = "truncated" if len(data) < size else "followed by something else"
        raise TapeFormatError(f"the file has {len(data)} of {size} bytes: it is {what}")
    view = memoryview(data)
    if view[-_DIGEST:] != _digest(view[:-_DIGEST]):
        raise TapeFormatError("its digest is another one: the file was altered or damaged")
    start = _PREFIX.size + length + -length % 8
    if start > size - _DIGEST:
        raise TapeFormatError(f"a header of {length} bytes does not fit into the file")
    try:
        text = str(view[_PREFIX.size : _PREFIX.size + length], "utf-8")
        header = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise TapeFormatError(f"the header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise TapeFormatError("the header is not a JSON object")
    return header, view[start:-_DIGEST]


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class _File:
    """The header and the arrays of a file; what is asked for is checked."""

    def __init__(self, header: Json, body: memoryview) -> None:
        self.header = header
        self.arrays: list[Array] = []
        at = 0
        for part in _field(header, "arrays", list):
            if not isinstance(part, list) or len(part) != 2 or part[0] not in _DTYPES:
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
        if kind == "float" and value in _NON_FINITE:
            return float(value)
        if kind not in ("array", "scalar"):
            raise TapeFormatError(f"{what} is not a constant")
        array = self.arrays[_integer(value, 0, len(self.arrays) - 1, what)]
        return array if kind == "array" else array.reshape(-1)[0] if array.size else array


def _field(data: Any, key: str, kind: type) -> Any:
    value = data.get(key) if isinstance(data, dict) else None
    if type(value) is not kind:
        raise TapeFormatError(f"the field {key!r} of the header is missing, or no {kind.__name__}")
    return value


def _integer(value: Any, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise TapeFormatError(f"{what}: {str(value)[:40]} is not an integer from {low} to {high}")
    return value


def _shape(data: Any, what: str) -> tuple[int, ...]:
    if not isinstance(data, list) or len(data) > MAX_NDIM:
        raise TapeFormatError(f"{what} has no shape")
    shape = tuple([_integer(n, 0, _INT64 - 1, what) for n in data])
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
    columns = {name: file.array(parts.get(name), dtype, name) for name, dtype in _CODE.items()}
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
    from .ops.structural import STRUCTURAL

    name = _field(data, "row", str)
    if name not in STRUCTURAL:
        raise TapeFormatError(f"it uses {name[:40]}, which this tapegrad does not know")
    operands = []
    for part in _field(data, "operands", list):
        place = HostOperand.__new__(HostOperand)
        place.window = place.cells = place.constant = None
        if not isinstance(part, dict):
            raise TapeFormatError(f"{name}: an operand is not described")
        if "window" in part:
            window = part["window"]
            if not isinstance(window, list) or len(window) != 3 or not isinstance(window[2], list):
                raise TapeFormatError(f"{name}: an operand's window is not described")
            strides = tuple([_integer(n, -_INT64, _INT64 - 1, name) for n in window[2]])
            place.window = Window(
                _integer(window[0], 0, _INT64 - 1, name), _shape(window[1], name), strides
            )
        elif "cells" in part:
            place.cells = file.array(part["cells"], "uint32", name, flat=False)
        else:
            place.constant = file.array(part.get("constant"), "float64", name, flat=False)
            check_window(place.constant.shape, place.constant.shape, max_cells)
        operands.append(place)
    params = _field(data, "params", dict)
    params = {key: tuple(x) if isinstance(x, list) else x for key, x in params.items()}
    return HostCall(STRUCTURAL[name], operands, params, _shape(data.get("shape"), name))


def _read_decisions(file: _File, cells: int) -> Decisions:
    data = _field(file.header, "decisions", dict)
    sites = []
    for site in _field(data, "sites", list):
        if not isinstance(site, list) or len(site) != 5:
            raise TapeFormatError("a decision is not described")
        what, name, line, dtype, shape = site
        if not isinstance(what, str) or not isinstance(name, str) or dtype not in _DTYPES:
            raise TapeFormatError("a decision is not described")
        _integer(line, 0, 1 << 32, "a decision's line")
        sites.append((what, name, line, dtype, _shape(shape, "a decision")))
    numbers = file.array(data.get("numbers"), "uint32", "decisions")
    looked_at = file.array(data.get("cells"), "uint32", "decisions")
    expected = file.array(data.get("expected"), "float64", "decisions")
    check_cells(looked_at, cells, "decisions")
    try:
        return Decisions.from_parts(sites, numbers, looked_at, expected)
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


def _read_output(file: _File, data: Any, cells: int) -> Output:
    if isinstance(data, dict) and "constant" in data:
        return Output(file.decode(data["constant"], "an output"))
    shape = _shape(_field(data, "shape", list), "an output")
    dtype = data.get("dtype")
    if dtype not in ("float64", "float32", "int64", "bool"):
        raise TapeFormatError("an output is of no dtype that results have")
    output, size = Output.__new__(Output), prod(shape)
    output.constant, output.shape, output.dtype = None, shape, np.dtype(dtype)
    if "cells" in data:
        output.cells = file.array(data["cells"], "uint32", "an output")
        check_cells(output.cells, cells, "an output")
        if output.cells.size != size:
            raise TapeFormatError(f"an output of shape {shape} has other than {size} cells")
    else:
        output.cells = _integer(data.get("cell"), 0, cells, "an output's cell")
        if output.cells + size > cells:
            raise TapeFormatError(f"an output of shape {shape} goes beyond the last cell")
    return output


def _read_captured(file: _File, data: Any) -> Captured:
    value = file.decode(_item(data, "value"), "a captured value")
    line = _integer(data.get("line"), 0, 1 << 32, "a captured value's line")
    return Captured(_field(data, "name", str), lambda: value, _field(data, "file", str), line)


def _finished(code: Code, imports: list[Import], v: Array, recording: Recording) -> Tape:
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
