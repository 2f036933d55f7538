"""Emits kernels/cpu/lanes.py: interpreters of array instructions, lanes inside opcodes."""

from __future__ import annotations

from tapegrad.kernels.emit.language import HEADER, compiled, contribution, names_in, tree
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

# A digit for each opcode: the number of operands, and the bits of the operands that have a partial.
_ARITY = np.array(
    list(
{arity}
    ),
    dtype=np.uint8,
)
_PARTIALS = np.array(
    list(
{partials}
    ),
    dtype=np.uint8,
)
'''

_OPERANDS = '''@helper
def load(d, at, ndim, shape, lane, n, x, k, v, places, scratch):
    """Return the values of `n` lanes of an operand: in place where they are contiguous."""
    kind = d[at]
    if kind != _INDEXED and kind != _CONSTANT and is_contiguous(d, at, ndim, shape):
        first = d[at + 1] + lane
        return v[first : first + n]
    values = scratch[:n]
    if is_uniform(d, at, ndim):
        place = np.uint64(d[at + 1])
        value = k[place] if kind == _CONSTANT else v[x[place]] if kind == _INDEXED else v[place]
        for m in range(n):
            values[m] = value
        return values
    locate(d, at, ndim, shape, lane, n, places)
    if kind == _INDEXED:
        for m in range(n):
            values[m] = v[x[places[m]]]
    else:
        for m in range(n):
            values[m] = v[places[m]]
    return values


@helper
def count_zeros(w):
    """Return how many lanes have no adjoint."""
    zeros = 0
    for m in range(w.size):
        zeros += w[m] == 0.0
    return zeros


@helper
def accumulate(d, at, ndim, shape, lane, n, x, g, w, c, places, masked):
    """Add `n` contributions to an operand's adjoints; if masked, only where w is not zero."""
    kind = d[at]
    if kind != _CELLS and kind != _INDEXED:
        return
    if masked:
        for m in range(n):
            c[m] = c[m] if w[m] != 0.0 else 0.0
    if is_uniform(d, at, ndim):
        total = 0.0
        for m in range(n):
            total += c[m]
        place = np.uint64(d[at + 1])
        if kind == _INDEXED:
            g[x[place]] += total
        else:
            g[place] += total
    elif kind == _CELLS and is_contiguous(d, at, ndim, shape):
        first = d[at + 1] + lane
        target = g[first : first + n]
        for m in range(n):
            target[m] += c[m]
    else:
        locate(d, at, ndim, shape, lane, n, places)
        if kind == _INDEXED:
            for m in range(n):
                g[x[places[m]]] += c[m]
        else:
            for m in range(n):
                g[places[m]] += c[m]
'''

_VALUES = '''@helper
def rare_value(o, x, y, z):
    """Return one lane of a row that calls a function beyond the common ones."""
{rare}
    else:
        value = nan  # No opcode comes here.
    return value


@helper
def values(o, xs, ys, zs, out):
    """Compute a block of lanes of one row."""
    n = out.size
{common}
    else:
        for m in range(n):
            out[m] = rare_value(o, xs[m], ys[m], zs[m])
'''

_CONTRIBUTIONS = '''@helper
def rare_contributions(o, w, x, y, z, out):
    """Return what each operand's adjoint receives from one lane of such a row."""
    to_x = to_y = to_z = 0.0
{rare}
    return to_x, to_y, to_z


@helper
def contributions(o, w, xs, ys, zs, outs, cx, cy, cz, strict):
    """Compute what each operand's adjoint receives from a block of lanes of one row."""
    n = w.size
{common}
    else:
        for m in range(n):
            if w[m] != 0.0 or strict:
                cx[m], cy[m], cz[m] = rare_contributions(o, w[m], xs[m], ys[m], zs[m], outs[m])
'''

_KERNELS = '''@kernel
def forward(op, a, b, d, x, k, v, start, stop, cell, lane, limit):
    """Run LANES instructions from `start` on, from lane `lane` of the first, about `limit` lanes.

    Returns (position, cell, lane): where to go on, which is not a LANES instruction, or is `stop`,
    or is where the limit was reached.
    """
    scratch = np.empty((3, BLOCK))
    places = np.empty(BLOCK, dtype=np.uint64)
    position = start
    while position < stop and op[position] == _LANES and limit > 0:
        at = np.int64(a[position])
        count = np.int64(b[position])
        o = d[at]
        ndim = d[at + 1]
        shape = at + 2
        first = shape + ndim
        size = 2 + ndim
        arity = _ARITY[o]
        while lane < count and limit > 0:
            n = min(BLOCK, count - lane)
            xs = load(d, first, ndim, shape, lane, n, x, k, v, places, scratch[0])
            ys = xs
            zs = xs
            if arity > 1:
                ys = load(d, first + size, ndim, shape, lane, n, x, k, v, places, scratch[1])
            if arity > 2:
                zs = load(d, first + 2 * size, ndim, shape, lane, n, x, k, v, places, scratch[2])
            values(o, xs, ys, zs, v[cell + lane : cell + lane + n])
            lane += n
            limit -= n
        if lane < count:
            break
        limit -= 1
        position += 1
        cell += count
        lane = 0
    return position, cell, lane


@kernel
def reverse(op, a, b, d, x, k, v, g, start, stop, cell, lane, limit, strict):
    """Run LANES instructions `start` - 1 down to `stop`, about `limit` lanes.

    `cell` is the first cell after instruction `start` - 1, and `lane` how many of its lanes are to
    do, -1 for all. Returns (position, cell, lane) in the same sense.
    """
    scratch = np.empty((6, BLOCK))
    places = np.empty(BLOCK, dtype=np.uint64)
    position = start
    while position > stop and op[position - 1] == _LANES and limit > 0:
        at = np.int64(a[position - 1])
        count = np.int64(b[position - 1])
        base = cell - count
        if lane < 0:
            lane = count
        o = d[at]
        ndim = d[at + 1]
        shape = at + 2
        first = shape + ndim
        size = 2 + ndim
        arity = _ARITY[o]
        partials = _PARTIALS[o]
        while lane > 0 and limit > 0:
            n = min(BLOCK, lane)
            lane -= n
            limit -= n
            w = g[base + lane : base + lane + n]
            zeros = 0 if strict else count_zeros(w)
            if partials and zeros < n:
                xs = load(d, first, ndim, shape, lane, n, x, k, v, places, scratch[0])
                ys = xs
                zs = xs
                if arity > 1:
                    ys = load(d, first + size, ndim, shape, lane, n, x, k, v, places, scratch[1])
                if arity > 2:
                    zs = load(
                        d, first + 2 * size, ndim, shape, lane, n, x, k, v, places, scratch[2]
                    )
                outs = v[base + lane : base + lane + n]
                contributions(o, w, xs, ys, zs, outs, scratch[3], scratch[4], scratch[5], strict)
                for j in range(arity):
                    if partials >> j & 1:
                        operand = first + j * size
                        c = scratch[3 + j]
                        accumulate(d, operand, ndim, shape, lane, n, x, g, w, c, places, zeros > 0)
            w[:] = 0.0
        if lane > 0:
            break
        limit -= 1
        position -= 1
        cell = base
        lane = -1
    return position, cell, lane
'''

_COMPILE = '''_COLUMNS = (
    "uint8[::1], uint32[::1], uint32[::1], int64[::1], uint32[::1], float64[::1], float64[::1]"
)
SIGNATURES = {
    "forward": f"({_COLUMNS}, int64, int64, int64, int64, int64)",
    "reverse": f"({_COLUMNS}, float64[::1], int64, int64, int64, int64, int64, boolean)",
}


def compile_all() -> None:
    """Compile both interpreters, or load them from the cache."""
    forward.compile(SIGNATURES["forward"])
    reverse.compile(SIGNATURES["reverse"])
'''


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
    padding = [0] * len(STRUCTURAL)
    arity = padding + [opcode.row.arity for opcode in opcodes]
    partials = padding + [
        sum(1 << j for j, p in enumerate(opcode.row.partials) if _has_partial(p))
        for opcode in opcodes
    ]
    header = HEADER.format(title="The lane interpreters: array instructions, a block at a time.")
    body = [
        _TABLES.format(
            lanes=STRUCTURAL.index("LANES"), arity=digits(arity), partials=digits(partials)
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
        _COMPILE,
    ]
    return "\n".join([header, preamble(used | {"nan"}), "\n\n".join(body)])


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
