"""Emits kernels/cpu/lanes.py: interpreters of array instructions, lanes inside opcodes."""

from __future__ import annotations

from tapegrad.kernels.emit.language import HEADER, WIDTH, compiled, contribution, names_in, tree
from tapegrad.kernels.emit.library import preamble
from tapegrad.kernels.emit.numbering import CELLS, STRUCTURAL, Opcode
from tapegrad.kernels.emit.scalar import chain, is_common
from tapegrad.ops.row import Nondiff, Partial, Row, parse

IS_UNIFORM = '''@helper
def is_uniform(d, at, ndim):
    """Say whether all lanes of a window are one cell."""
    moves = 0
    for axis in range(ndim):
        moves |= d[at + 2 + axis]
    return moves == 0
'''

_IS_CONTIGUOUS = '''@helper
def is_contiguous(d, at, ndim, shape):
    """Say whether the lanes of a window are consecutive cells."""
    expected = 1
    for axis in range(ndim - 1, -1, -1):
        extent = d[shape + axis]
        if extent != 1 and d[at + 2 + axis] != expected:
            return False
        expected *= extent
    return True
'''

LOCATE = '''@helper
def locate(d, at, ndim, shape, lane, n, places):
    """Write the places of `n` lanes of a window from `lane` on, by runs of the last axis."""
    inner = d[shape + ndim - 1]
    step = d[at + 1 + ndim]
    done = 0
    while done < n:
        rest = (lane + done) // inner
        j = lane + done - rest * inner
        place = d[at + 1] + j * step
        for axis in range(ndim - 2, -1, -1):
            extent = d[shape + axis]
            outer = rest // extent
            place += (rest - outer * extent) * d[at + 2 + axis]
            rest = outer
        run = min(inner - j, n - done)
        for m in range(run):
            places[done + m] = place + m * step
        done += run
'''

_TABLES = '''BLOCK = 512
"""Lanes that are done at a time; operands that are not contiguous are copied block by block."""

_LANES = {lanes}
_CELLS, _INDEXED, _CONSTANT, _PASSIVE = 0, 1, 2, 3

_PLACES = 8 * BLOCK  # bytes: numbers of a block

room_forward, room_reverse = room(4 * _PLACES), room(7 * _PLACES)


@helper
def arity_of(o):
    """Return the number of operands of a row."""
{arity}
    else:
        count = 2
    return count


@helper
def partials_of(o):
    """Return the bits of the operands of a row that have a partial."""
{partials}
    else:
        bits = 0
    return bits
'''

_OPERANDS = '''@alone
def load(d, at, ndim, shape, lane, n, x, k, v, places, scratch):
    """Return where the values of `n` lanes of an operand lie: in place if they are contiguous."""
    kind = d[at]
    if kind != _INDEXED and kind != _CONSTANT and is_contiguous(d, at, ndim, shape):
        return v + 8 * (d[at + 1] + lane)
    cells = floats_at(v)
    values = floats_at(scratch)
    if is_uniform(d, at, ndim):
        place = d[at + 1]
        value = (
            k[place] if kind == _CONSTANT else cells[x[place]] if kind == _INDEXED else cells[place]
        )
        for m in range(n):
            values[m] = value
        return scratch
    locate(d, at, ndim, shape, lane, n, places)
    if kind == _INDEXED:
        for m in range(n):
            values[m] = cells[x[places[m]]]
    else:
        for m in range(n):
            values[m] = cells[places[m]]
    return scratch


@helper
def count_zeros(w, n):
    """Return how many lanes have no adjoint."""
    zeros = 0
    for m in range(n):
        zeros += w[m] == 0.0
    return zeros


@alone
def accumulate(d, at, ndim, shape, lane, n, x, g, w, c, places, masked):
    """Add `n` contributions to an operand's adjoints; if masked, only where w is not zero."""
    kind = d[at]
    if kind != _CELLS and kind != _INDEXED:
        return
    if masked:
        for m in range(n):
            c[m] = c[m] if w[m] != 0.0 else 0.0
    adjoints = floats_at(g)
    if is_uniform(d, at, ndim):
        total = 0.0
        for m in range(n):
            total += c[m]
        place = d[at + 1]
        if kind == _INDEXED:
            adjoints[x[place]] += total
        else:
            adjoints[place] += total
    elif kind == _CELLS and is_contiguous(d, at, ndim, shape):
        target = floats_at(g + 8 * (d[at + 1] + lane))
        for m in range(n):
            target[m] += c[m]
    else:
        locate(d, at, ndim, shape, lane, n, places)
        if kind == _INDEXED:
            for m in range(n):
                adjoints[x[places[m]]] += c[m]
        else:
            for m in range(n):
                adjoints[places[m]] += c[m]
'''

_VALUES = '''@alone
def rare_value(o, x, y, z):
    """Return one lane of a row that calls a function beyond the common ones."""
{rare}
    else:
        value = nan  # No opcode comes here.
    return value


@alone
def values(o, n, xs, ys, zs, out):
    """Compute a block of lanes of one row."""
{common}
    else:
        for m in range(n):
            out[m] = rare_value(o, xs[m], ys[m], zs[m])
'''

_CONTRIBUTIONS = '''@alone
def rare_contributions(o, w, x, y, z, out):
    """Return what each operand's adjoint receives from one lane of such a row."""
    to_x = to_y = to_z = 0.0
{rare}
    return to_x, to_y, to_z


@alone
def contributions(o, n, w, xs, ys, zs, outs, cx, cy, cz, strict):
    """Compute what each operand's adjoint receives from a block of lanes of one row."""
{common}
    else:
        for m in range(n):
            if w[m] != 0.0 or strict != 0:
                cx[m], cy[m], cz[m] = rare_contributions(o, w[m], xs[m], ys[m], zs[m], outs[m])
'''

_KERNELS = '''@entry
def forward(op, a, b, d, x, k, v, start, stop, cell, lane, limit):
    """Run LANES instructions from `start` on, from lane `lane` of the first, about `limit` lanes.

    Columns are addresses.

    Returns (position, cell, lane): where to go on, which is not a LANES instruction, or is `stop`,
    or is where the limit was reached.
    """
    return sweep(
        bytes_at(op), places_at(a), places_at(b), ints_at(d), places_at(x), floats_at(k), v,
        start, stop, cell, lane, limit,
    )  # fmt: skip


@helper
def sweep(op, a, b, d, x, k, v, start, stop, cell, lane, limit):
    """Do what `forward` says."""
    scratch = room_forward()
    places = ints_at(scratch + 3 * _PLACES)
    position = start
    while position < stop and op[position] == _LANES and limit > 0:
        at = int64(a[position])
        count = int64(b[position])
        o = d[at]
        ndim = d[at + 1]
        shape = at + 2
        first = shape + ndim
        size = 2 + ndim
        arity = arity_of(o)
        while lane < count and limit > 0:
            n = min(BLOCK, count - lane)
            xs = load(d, first, ndim, shape, lane, n, x, k, v, places, scratch)
            ys = xs
            zs = xs
            if arity > 1:
                at_y = scratch + _PLACES
                ys = load(d, first + size, ndim, shape, lane, n, x, k, v, places, at_y)
            if arity > 2:
                at_z = scratch + 2 * _PLACES
                zs = load(d, first + 2 * size, ndim, shape, lane, n, x, k, v, places, at_z)
            out = floats_at(v + 8 * (cell + lane))
            values(o, n, floats_at(xs), floats_at(ys), floats_at(zs), out)
            lane += n
            limit -= n
        if lane < count:
            break
        limit -= 1
        position += 1
        cell += count
        lane = 0
    return position, cell, lane


@entry
def reverse(op, a, b, d, x, k, v, g, start, stop, cell, lane, limit, strict):
    """Run LANES instructions `start` - 1 down to `stop`, about `limit` lanes.

    Columns are addresses. `cell` is the first cell after instruction `start` - 1, and `lane` how
    many of its lanes are to do, -1 for all. Returns (position, cell, lane) in the same sense.
    """
    return sweep_back(
        bytes_at(op), places_at(a), places_at(b), ints_at(d), places_at(x), floats_at(k), v, g,
        start, stop, cell, lane, limit, strict,
    )  # fmt: skip


@helper
def sweep_back(op, a, b, d, x, k, v, g, start, stop, cell, lane, limit, strict):
    """Do what `reverse` says."""
    scratch = room_reverse()
    received = scratch + 3 * _PLACES
    places = ints_at(scratch + 6 * _PLACES)
    position = start
    while position > stop and op[position - 1] == _LANES and limit > 0:
        at = int64(a[position - 1])
        count = int64(b[position - 1])
        base = cell - count
        if lane < 0:
            lane = count
        o = d[at]
        ndim = d[at + 1]
        shape = at + 2
        first = shape + ndim
        size = 2 + ndim
        arity = arity_of(o)
        partials = partials_of(o)
        while lane > 0 and limit > 0:
            n = min(BLOCK, lane)
            lane -= n
            limit -= n
            w = floats_at(g + 8 * (base + lane))
            zeros = 0 if strict != 0 else count_zeros(w, n)
            if partials != 0 and zeros < n:
                xs = load(d, first, ndim, shape, lane, n, x, k, v, places, scratch)
                ys = xs
                zs = xs
                if arity > 1:
                    at_y = scratch + _PLACES
                    ys = load(d, first + size, ndim, shape, lane, n, x, k, v, places, at_y)
                if arity > 2:
                    at_z = scratch + 2 * _PLACES
                    zs = load(d, first + 2 * size, ndim, shape, lane, n, x, k, v, places, at_z)
                contributions(
                    o, n, w, floats_at(xs), floats_at(ys), floats_at(zs),
                    floats_at(v + 8 * (base + lane)), floats_at(received),
                    floats_at(received + _PLACES), floats_at(received + 2 * _PLACES), strict,
                )  # fmt: skip
                for j in range(arity):
                    if partials >> j & 1:
                        operand = first + j * size
                        c = floats_at(received + j * _PLACES)
                        accumulate(d, operand, ndim, shape, lane, n, x, g, w, c, places, zeros > 0)
            for m in range(n):
                w[m] = 0.0
        if lane > 0:
            break
        limit -= 1
        position -= 1
        cell = base
        lane = -1
    return position, cell, lane


def compile_all() -> dict[str, Any]:
    """Compile both interpreters by themselves, or load them from Numba's cache."""
    forward.compile((int64,) * 12)
    reverse.compile((int64,) * 14)
    return {"forward": forward, "reverse": reverse}
'''

_IMPORTS = """import math
from typing import Any

import numpy as np
from numba.types import int64

from tapegrad.kernels.cpu.columns import bytes_at, floats_at, ints_at, places_at
from tapegrad.kernels.cpu.jit import alone, entry, room
from tapegrad.kernels.cpu.jit import part as helper"""


def emit(table: dict[str, Row], opcodes: tuple[Opcode, ...]) -> str:
    """Return the module of the lane interpreters."""
    common = tuple(o for o in opcodes if is_common(o.row) and o.variant == CELLS)
    rare = tuple(o for o in opcodes if not is_common(o.row))
    used = {
        name
        for row in table.values()
        for node in (parse(text) for _, text in row.expressions())
        for name in names_in(node) - {*row.operands, *row.let, "out"}
    }
    arity = {opcode.number: opcode.row.arity for opcode in opcodes}
    partials = {
        opcode.number: sum(1 << j for j, p in enumerate(opcode.row.partials) if _has_partial(p))
        for opcode in opcodes
    }
    header = HEADER.format(title="The lane interpreters: array instructions, a block at a time.")
    body = [
        _TABLES.format(
            lanes=STRUCTURAL.index("LANES"),
            arity=_looked_up(arity, "count", 2),
            partials=_looked_up(partials, "bits", 0),
        ),
        IS_UNIFORM,
        _IS_CONTIGUOUS,
        LOCATE,
        _OPERANDS,
        _VALUES.format(
            rare=chain(rare, _rare_value, "    "), common=chain(common, _values, "    ")
        ),
        _CONTRIBUTIONS.format(
            rare=chain(rare, _rare_contributions, "    "),
            common=chain(common, _contributions, "    "),
        ),
        _KERNELS,
    ]
    return "\n".join([header, preamble(used | {"nan"}, _IMPORTS), "\n\n".join(body)])


def _looked_up(values: dict[int, int], name: str, other: int) -> str:
    """Return the branches that set a variable by opcode, but for one value."""
    lines = []
    for value in sorted({*values.values()} - {other}):
        tests = [f"o == {opcode}" for opcode, found in values.items() if found == value]
        word = "elif" if lines else "if"
        line = f"    {word} {' or '.join(tests)}:"
        if len(line) > WIDTH:
            rows = "".join(
                [f"        {'or ' if i else ''}{test}\n" for i, test in enumerate(tests)]
            )
            line = f"    {word} (\n{rows}    ):"
        lines += [line, f"        {name} = {value}"]
    return "\n".join(lines)


def digits(values: list[int]) -> str:
    """Return a digit for each opcode, as lines of a list of strings."""
    text = "".join(map(str, values))
    return "\n".join(f'        "{text[i : i + 80]}"' for i in range(0, len(text), 80))


def _has_partial(partial: Partial) -> bool:
    return isinstance(partial, (str, Nondiff))


def _lets(row: Row, names: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return the lines of a row's temporaries, and the names that expressions know them by."""
    lines = [f"let_{name} = {compiled(parse(text), names)}" for name, text in row.let.items()]
    return lines, names | {name: "let_" + name for name in row.let}


def _received(row: Row, names: dict[str, str]) -> dict[str, str]:
    received = {}
    for operand, partial in zip(row.operands, row.partials, strict=True):
        if isinstance(partial, Nondiff):
            received[operand] = "nan"
        elif isinstance(partial, str):
            received[operand] = compiled(contribution(parse(partial)), names)
    return received


def _rare_value(opcode: Opcode) -> list[str]:
    return [f"value = {compiled(tree(opcode.row, opcode.row.out), {})}"]


def _rare_contributions(opcode: Opcode) -> list[str]:
    lines, names = _lets(opcode.row, {})
    received = _received(opcode.row, names)
    if not received:
        return []
    return lines + [f"to_{operand} = {text}" for operand, text in sorted(received.items())]


def _values(opcode: Opcode) -> list[str]:
    names = {"x": "xs[m]", "y": "ys[m]", "z": "zs[m]"}
    return [
        "for m in range(n):",
        f"    out[m] = {compiled(tree(opcode.row, opcode.row.out), names)}",
    ]


def _contributions(opcode: Opcode) -> list[str]:
    names = {"x": "xs[m]", "y": "ys[m]", "z": "zs[m]", "w": "w[m]", "out": "outs[m]"}
    lines, names = _lets(opcode.row, names)
    received = _received(opcode.row, names)
    if not received:
        return []
    lines += [f"c{operand}[m] = {text}" for operand, text in received.items()]
    return ["for m in range(n):", *("    " + line for line in lines)]
