"""Emits kernels/cpu/vector.py: sweeps that carry many directions at once, directions inside.

A sweep of values needs every row's value, a sweep of adjoints what every row's partials make of an
adjoint. These sweeps need the partials themselves: computed once an instruction (or a lane of an
array instruction), they serve all directions, forward as well as backward. One switch therefore
gives the partials, and everything else is the same for all rows.
"""

from __future__ import annotations

import ast

from tapegrad.kernels.emit.lanes import IS_UNIFORM, LOCATE, digits
from tapegrad.kernels.emit.language import HEADER, compiled, names_in
from tapegrad.kernels.emit.library import preamble
from tapegrad.kernels.emit.numbering import KX, STRUCTURAL, XK, Opcode
from tapegrad.kernels.emit.scalar import chain, is_common
from tapegrad.ops.row import CONSTANTS, Nondiff, Row, parse

_BLOCK = '''BLOCK = 512
"""Lanes of an array instruction whose operands are looked up at a time."""

NOTHING = -0.0
"""What is no partial but a literal 0: no adjoint, not even nan, flows here.

Partials that are computed never are -0.0: they have 0.0 added to them.
"""

NO_CELL = np.uint64(2**64 - 1)

_INPUT, _LANES, _HOST = {input}, {lanes}, {host}
_INDEXED, _CONSTANT = 1, 2  # kinds of operands of array instructions; 0 and 3 are cells, too
_BINARY, _BINARY_XK, _BINARY_KX, _TERNARY = 2, 3, 4, 5

# A digit for each opcode: what its operands are (0: it is no row).
_KINDS = np.array(
    list(
{kinds}
    ),
    dtype=np.uint8,
)
'''

_PARTIALS = '''@helper
def rare_partials(o, x, y, z, out):
    """Return the partials of a row that calls a function beyond the common ones."""
    to_x = to_y = to_z = NOTHING
{rare}
    return to_x, to_y, to_z


@helper
def partials(o, x, y, z, out):
    """Return the partials of one row, NOTHING for an operand that it does not have."""
    to_x = to_y = to_z = NOTHING
{common}
    else:
        to_x, to_y, to_z = rare_partials(o, x, y, z, out)
    return to_x, to_y, to_z
'''

_FLOW = '''@fused
def flows(g, cell):
    """Say whether a cell that was reached has an adjoint, or tangent, in any direction."""
    if g[cell, 0] != 0.0:
        return True
    count = 0
    for j in range(g.shape[1]):
        count += g[cell, j] != 0.0
    return count > 0


@fused
def flow(g, fresh, source, target, partial):
    """Add what flows from one cell to another, in all directions.

    The first to reach a cell sets what is there, to the bits of a sum that starts at zero.  Where
    nothing flows, an infinite partial does not make it nan.
    """
    if partial == 0.0 and math.copysign(1.0, partial) < 0.0:  # NOTHING
        if fresh:
            for j in range(g.shape[1]):
                g[target, j] = 0.0
    elif partial - partial != 0.0:
        for j in range(g.shape[1]):
            before = 0.0 if fresh else g[target, j]
            g[target, j] = before + g[source, j] * partial if g[source, j] != 0.0 else before
    elif fresh:
        for j in range(g.shape[1]):
            g[target, j] = g[source, j] * partial + 0.0
    else:
        for j in range(g.shape[1]):
            g[target, j] += g[source, j] * partial


@fused
def passing(partial):
    """Return a partial for tangents: by one that is 0 a backward sweep ends, be it inf * 0."""
    return partial if partial != 0.0 else NOTHING


@helper
def receive(t, reached, o, cells, x, y, z, out):
    """Give a cell its tangents, from those of the operands of its instruction.

    `cells` are the operands' and its own; operands that have none have NO_CELL.
    """
    live = False
    for j in range(3):
        if cells[j] != NO_CELL and not reached[cells[j]]:
            cells[j] = NO_CELL
        live = live or cells[j] != NO_CELL
    if not live:
        return
    px, py, pz = partials(o, x, y, z, out)
    own, fresh = cells[3], True
    for j in range(3):
        if cells[j] != NO_CELL:
            flow(t, fresh, cells[j], own, passing(px if j == 0 else py if j == 1 else pz))
            fresh = False
    reached[own] = 1


@helper
def send(g, reached, o, cells, x, y, z, out):
    """Let the adjoints of a cell flow to the operands of its instruction.

    `cells` are the operands' and its own; operands that have none have NO_CELL. Zeros flow as well:
    what is reached does not depend on values.
    """
    own = cells[3]
    px = py = pz = NOTHING
    if flows(g, own):
        px, py, pz = partials(o, x, y, z, out)
    for j in (2, 1, 0):  # as sweeps of one direction do
        if cells[j] != NO_CELL:
            fresh = not reached[cells[j]]
            reached[cells[j]] = 1
            flow(g, fresh, own, cells[j], px if j == 0 else py if j == 1 else pz)


@helper
def look_up(d, at, ndim, shape, lane, n, x, places):
    """Write the cells (or places among the constants) of `n` lanes of an operand."""
    if is_uniform(d, at, ndim):
        for m in range(n):
            places[m] = d[at + 1]
    else:
        locate(d, at, ndim, shape, lane, n, places)
    if d[at] == _INDEXED:
        for m in range(n):
            places[m] = x[places[m]]


@fused
def lane_partials(o, d, first, size, arity, places, m, k, v, out):
    """Return the partials of one lane of an array instruction."""
    p = places[0, m]
    x = k[p] if d[first] == _CONSTANT else v[p]
    y = z = x
    if arity > 1:
        q = places[1, m]
        y = k[q] if d[first + size] == _CONSTANT else v[q]
    if arity > 2:
        r = places[2, m]
        z = k[r] if d[first + 2 * size] == _CONSTANT else v[r]
    return partials(o, x, y, z, out)


@fused
def has_cells(kind):
    """Say whether an operand of an array instruction has adjoints and tangents."""
    return kind <= _INDEXED


@fused
def scalar_values(kind, p, q, carried, k, v, cells):
    """Return the operands of a scalar instruction, and write their cells.

    `p` and `q` are what stands with it, `carried` what does with the one before.
    """
    cells[0], cells[1], cells[2] = p, NO_CELL, NO_CELL
    if kind == _BINARY:
        cells[1] = q
        return v[p], v[q], 0.0
    if kind == _BINARY_XK:
        return v[p], k[q], 0.0
    if kind == _BINARY_KX:
        cells[0], cells[1] = NO_CELL, p
        return k[q], v[p], 0.0
    if kind == _TERNARY:
        cells[0], cells[1], cells[2] = carried, p, q
        return v[carried], v[p], v[q]
    return v[p], 0.0, 0.0
'''

_KERNELS = '''@kernel
def forward(op, a, b, d, x, k, v, t, reached, start, stop, cell, lane, limit):
    """Carry tangents through instructions from `start` on, from lane `lane` of the first.

    Row c of `t` holds the tangents of cell c, a column a direction, where `reached[c]` says so;
    else it is undefined, and stands for zeros. Those of inputs are there already. What is reached
    does not depend on values.

    Returns (position, cell, lane): where to go on, which is a HOST instruction, or is `stop`, or is
    where about `limit` lanes were done.
    """
    places = np.empty((3, BLOCK), dtype=np.uint64)
    w = np.empty((3, BLOCK))
    cells = np.empty(4, dtype=np.uint64)
    position = start
    while position < stop and limit > 0:
        o = op[position]
        p = np.uint64(a[position])
        q = np.uint64(b[position])
        if o == _LANES:
            at = np.int64(p)
            count = np.int64(q)
            row = d[at]
            arity = 3 if _KINDS[row] == _TERNARY else np.int64(_KINDS[row])
            ndim = d[at + 1]
            shape = at + 2
            first = shape + ndim
            size = 2 + ndim
            while lane < count and limit > 0:
                n = min(BLOCK, count - lane)
                for j in range(arity):
                    look_up(d, first + j * size, ndim, shape, lane, n, x, places[j])
                base = np.uint64(cell + lane)
                for m in range(n):
                    c = base + np.uint64(m)
                    reached[c] = 0
                    live = False
                    for j in range(arity):
                        live |= has_cells(d[first + j * size]) and reached[places[j, m]] > 0
                    if live:
                        px, py, pz = lane_partials(
                            row, d, first, size, arity, places, m, k, v, v[c]
                        )
                        w[0, m], w[1, m], w[2, m] = px, py, pz
                for j in range(arity):
                    if has_cells(d[first + j * size]):
                        for m in range(n):
                            c = base + np.uint64(m)
                            if reached[places[j, m]]:
                                flow(t, not reached[c], places[j, m], c, passing(w[j, m]))
                                reached[c] = 1
                lane += n
                limit -= n
            if lane < count:
                break
            lane = 0
            cell += count
        elif o == _INPUT:
            cell += np.int64(q)
        elif o == _HOST:
            break
        else:
            kind = _KINDS[o]
            if kind > 0:
                carried = np.uint64(a[position - 1]) if kind == _TERNARY else p
                xs = scalar_values(kind, p, q, carried, k, v, cells)
                cells[3] = cell
                receive(t, reached, o, cells, xs[0], xs[1], xs[2], v[cells[3]])
            cell += 1
        limit -= 1
        position += 1
    return position, cell, lane


@kernel
def reverse(op, a, b, d, x, k, v, g, reached, start, stop, cell, lane, limit):
    """Carry adjoints through instructions `start` - 1 down to `stop`.

    Row c of `g` holds the adjoints of cell c, a column a direction, where `reached[c]` says so;
    else it is undefined, and stands for zeros. `cell` is the first cell after instruction
    `start` - 1, and `lane` how many of its lanes are to do, -1 for all. What is reached does not
    depend on values.

    Returns (position, cell, lane) in the same sense: instruction `position` - 1 is a HOST
    instruction, or `position` is `stop`, or about `limit` lanes were done.
    """
    places = np.empty((3, BLOCK), dtype=np.uint64)
    w = np.empty((3, BLOCK))
    cells = np.empty(4, dtype=np.uint64)
    position = start
    while position > stop and limit > 0:
        i = position - 1
        o = op[i]
        p = np.uint64(a[i])
        q = np.uint64(b[i])
        if o == _LANES:
            at = np.int64(p)
            base = cell - np.int64(q)
            if lane < 0:
                lane = np.int64(q)
            row = d[at]
            arity = 3 if _KINDS[row] == _TERNARY else np.int64(_KINDS[row])
            ndim = d[at + 1]
            shape = at + 2
            first = shape + ndim
            size = 2 + ndim
            while lane > 0 and limit > 0:
                n = min(BLOCK, lane)
                lane -= n
                limit -= n
                for j in range(arity):
                    look_up(d, first + j * size, ndim, shape, lane, n, x, places[j])
                for m in range(n):
                    c = np.uint64(base + lane + m)
                    if reached[c]:
                        px = py = pz = NOTHING
                        if flows(g, c):
                            px, py, pz = lane_partials(
                                row, d, first, size, arity, places, m, k, v, v[c]
                            )
                        w[0, m], w[1, m], w[2, m] = px, py, pz
                for j in range(arity):
                    if has_cells(d[first + j * size]):
                        for m in range(n):
                            c = np.uint64(base + lane + m)
                            if reached[c]:
                                flow(g, not reached[places[j, m]], c, places[j, m], w[j, m])
                                reached[places[j, m]] = 1
            if lane > 0:
                break
            lane = -1
            cell = base
        elif o == _INPUT:
            cell -= np.int64(q)
        elif o == _HOST:
            break
        else:
            cell -= 1
            kind = _KINDS[o]
            cells[3] = cell
            if kind > 0 and reached[cells[3]]:
                carried = np.uint64(a[i - 1]) if kind == _TERNARY else p
                xs = scalar_values(kind, p, q, carried, k, v, cells)
                send(g, reached, o, cells, xs[0], xs[1], xs[2], v[cells[3]])
        limit -= 1
        position = i
    return position, cell, lane
'''

_COMPILE = '''_COLUMNS = (
    "uint8[::1], uint32[::1], uint32[::1], int64[::1], uint32[::1], float64[::1], float64[::1]"
)
SIGNATURE = f"({_COLUMNS}, float64[:, ::1], uint8[::1], int64, int64, int64, int64, int64)"


def compile_all() -> None:
    """Compile both sweeps, or load them from the cache."""
    forward.compile(SIGNATURE)
    reverse.compile(SIGNATURE)
'''


def emit(table: dict[str, Row], opcodes: tuple[Opcode, ...]) -> str:
    """Return the module of the sweeps of many directions."""
    common = tuple(opcode for opcode in opcodes if is_common(opcode.row))
    rare = tuple(opcode for opcode in opcodes if not is_common(opcode.row))
    used = {
        name
        for row in table.values()
        for field, text in row.expressions()
        if field != "out"
        for name in names_in(parse(text)) - {*row.operands, *row.let, "out"}
    }
    kinds = [0] * len(STRUCTURAL) + [_kind(opcode) for opcode in opcodes]
    header = HEADER.format(title="Sweeps of many directions at once: partials are computed once.")
    body = [
        _BLOCK.format(
            input=STRUCTURAL.index("INPUT"),
            lanes=STRUCTURAL.index("LANES"),
            host=STRUCTURAL.index("HOST"),
            kinds=digits(kinds),
        ),
        _PARTIALS.format(rare=chain(rare, _case, "    "), common=chain(common, _case, "    ")),
        IS_UNIFORM,
        LOCATE,
        _FLOW,
        _KERNELS,
        _COMPILE,
    ]
    library = preamble(used | {"nan"}).replace("import helper", "import fused, helper")
    return "\n".join([header, library, "\n\n".join(body)])


def _kind(opcode: Opcode) -> int:
    """Return the kind of an opcode's operands, as `tapegrad.kernels.opcodes` numbers it."""
    if opcode.row.arity != 2:
        return 1 if opcode.row.arity == 1 else 5
    return {XK: 3, KX: 4}.get(opcode.variant, 2)


def _case(opcode: Opcode) -> list[str]:
    """Return the assignments of a row's partials."""
    row = opcode.row
    names = {name: "let_" + name for name in row.let}
    lines = [f"let_{name} = {compiled(parse(text), names)}" for name, text in row.let.items()]
    given = []
    for operand, partial in zip(row.operands, row.partials, strict=True):
        if isinstance(partial, Nondiff):
            given.append(f"to_{operand} = nan")  # it must not look like a zero
        elif isinstance(partial, str):
            given.append(f"to_{operand} = {compiled(_signed(parse(partial)), names)}")
    return lines + given if given else []


def _signed(node: ast.expr, negative: bool = False) -> ast.expr:
    """Return the expression of a partial whose literal zeros, and only those, are NOTHING."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _signed(node.operand, not negative)
    if isinstance(node, ast.IfExp):
        return ast.IfExp(node.test, _signed(node.body, negative), _signed(node.orelse, negative))
    if isinstance(node, ast.Constant):
        number = float(node.value)  # type: ignore[arg-type]
        if number == 0.0:
            return ast.Name("NOTHING", ast.Load())
        return ast.Constant(-number if negative else number)
    value = ast.UnaryOp(ast.USub(), node) if negative else node
    if isinstance(node, ast.Name) and node.id in CONSTANTS:
        return value
    return ast.BinOp(value, ast.Add(), ast.Constant(0.0))
