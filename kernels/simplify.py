"""Removing from a finished tape what it computes twice, for nothing, or once and for all.

Three passes over the columns, written so that they run as plain Python on small tapes and are
compiled by `tapegrad.kernels.cpu.simplify` for large ones: forward, backward, and forward again.
Columns are arrays of unsigned integers; `kinds` says by opcode where an instruction keeps its
operands, as in `tapegrad.kernels.opcodes.KINDS`.

Reading memory is what takes time here, so that nothing is kept that can be counted on the way, and
equal instructions are looked for near their operands first.
"""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from tapegrad.kernels import opcodes

# Constants of the compiled passes, written out: Numba's cache notices an edit of this file, but not
# of one that it imports. Numbers of rows, which a new row shifts, come in as arguments.
INPUT, LANES, HOST, CONST, CARRY = 0, 1, 2, 3, 4  # up to HOST, column b has the number of cells
UNARY, BINARY, TERNARY = 1, 2, 5
if (
    *(opcodes.INPUT, opcodes.LANES, opcodes.HOST, opcodes.CONST, opcodes.CARRY),
    *(opcodes.UNARY, opcodes.BINARY, opcodes.TERNARY),
) != (INPUT, LANES, HOST, CONST, CARRY, UNARY, BINARY, TERNARY):
    raise ImportError("kernels/simplify.py and kernels/opcodes.py number opcodes differently")

CELLS, INDEXED, CONSTANT, PASSIVE = 0, 1, 2, 3
NEAR = 4  # slots of the hash table that are tried near the operands


def canonicalise(op, a, b, kinds, commutes, v, table, first, to, constant, folded, n_k):
    """Find repeated and constant instructions; rewrite operands to the cells that remain.

    Parameters
    ----------
    op, a, b
        Columns, changed in place.
    commutes
        By opcode: whether its two operands, both cells, may be exchanged.
    v
        Values of the cells, which constants are folded to.
    table
        Hash table of instruction numbers plus one; zeros, its size a power of two above 1.5 n.
    first
        By instruction: scratch, for its first cell.
    to
        By cell: the cell that has its value; changed in place, at first the cell itself.
    constant
        By cell: whether its value is known, so far those of inputs; filled in.
    folded
        Values of new constants; filled in.  They are numbered from `n_k` on.

    Returns
    -------
    int
        How many values of `folded` are used.
    """
    count = 0
    cell = 0
    for i in range(len(op)):
        o = op[i]
        kind = kinds[o]
        first[i] = cell
        if o <= HOST:
            cell += b[i]
            continue
        if o == CARRY:
            a[i] = to[a[i]]
        elif kind != 0 and name_operands(a, b, kind, i, to, constant):
            folded[count] = v[cell]
            op[i] = CONST
            a[i] = n_k + count
            b[i] = 0
            constant[cell] = 1
            count += 1
        else:
            constant[cell] = o == CONST
            if commutes[o] and a[i] > b[i]:
                a[i], b[i] = b[i], a[i]
            to[cell] = to[first[find_equal(op, a, b, kind == TERNARY, i, table)]]
        cell += 1
    return count


def name_operands(a, b, kind, i, to, constant):
    """Rewrite the operands of an instruction by `to`; return whether all of them are constant."""
    a[i] = to[a[i]]
    known = constant[a[i]] != 0
    if kind == BINARY or kind == TERNARY:
        b[i] = to[b[i]]
        known = known and constant[b[i]] != 0
    if kind == TERNARY:
        known = known and constant[a[i - 1]] != 0
    return known


def find_equal(op, a, b, ternary, i, table):
    """Return the first instruction that is equal to instruction `i`, which may be itself.

    Where it is, it is entered into the table: in one of a few slots that belong to its later
    operand, most of which are in the cache, and if these are taken, in one of a few others.
    """
    mask = len(table) - 1
    o = op[i]
    x = a[i]
    y = b[i]
    z = a[i - 1] if ternary else 0
    slot = 2 * (x if x > y else y) & mask
    tried = 0
    while table[slot] != 0:
        j = table[slot] - 1
        if op[j] == o and a[j] == x and b[j] == y and (not ternary or a[j - 1] == z):
            return j
        tried += 1
        slot = (slot + 1) & mask
        if tried % NEAR == 0:
            step = x * 0x2545F491 + y * 0x4F6CDD1D + z * 0x1B873593 + o * 0x5BD1E995
            slot = (slot + ((step ^ step >> 15) | 1)) & mask
    table[slot] = i + 1
    return i


def mark_live(op, a, b, kinds, d, x, to, host_start, host_cells, live):
    """Mark the instructions that marked ones need, from the last to the first.

    Parameters
    ----------
    d, x
        Descriptors and index pool of LANES instructions.
    to
        By cell: the one that has its value, which operands in descriptors do not say yet.
    host_start, host_cells
        For host record `h`, one cell of each thing that it reads stands at ``host_cells`` from
        ``host_start[h]`` to ``host_start[h + 1]``.
    live
        By cell; changed in place.  An instruction is live if one of its cells is, which then holds
        for its first one, or if it is an INPUT.

    Returns
    -------
    (instructions, cells)
        How many are live.
    """
    instructions = 0
    cells = 0
    cell = len(live)
    for i in range(len(op) - 1, -1, -1):
        o = op[i]
        size = 1
        if o <= HOST:
            size = b[i]
            for c in range(cell - size, cell):
                if live[c] != 0:
                    live[cell - size] = 1
                    break
        cell -= size
        if o != INPUT and (size == 0 or live[cell] == 0):
            continue
        instructions += 1
        cells += size
        kind = kinds[o]
        if kind != 0 or o == CARRY:
            live[a[i]] = 1
            if kind == BINARY or kind == TERNARY:
                live[b[i]] = 1
            if kind == TERNARY:
                live[cell - 1] = 1
        elif o == LANES:
            mark_lanes(a[i], kinds, d, x, to, live)
        elif o == HOST:
            for entry in range(host_start[a[i]], host_start[a[i] + 1]):
                live[to[host_cells[entry]]] = 1
    return instructions, cells


def mark_lanes(at, kinds, d, x, to, live):
    """Mark what the array instruction reads whose descriptor begins at `at`."""
    row = kinds[d[at]]
    ndim = d[at + 1]
    arity = 1 if row == UNARY else (3 if row == TERNARY else 2)
    for j in range(arity):
        place = at + (j + 1) * (2 + ndim)
        where = d[place]
        offset = d[place + 1]
        if where == INDEXED:
            span = 1
            for axis in range(ndim):
                span += (d[at + 2 + axis] - 1) * d[place + 2 + axis]
            for entry in range(offset, offset + span):
                live[to[x[entry]]] = 1
        elif where != CONSTANT:
            live[to[offset]] = 1


def move_together(op, a, b, v, kinds, live, d, to, new_op, new_a, new_b, new_v):
    """Copy live instructions and their values to the beginning of other columns.

    Parameters
    ----------
    d
        Descriptors of LANES instructions, whose operands are renamed in place.
    to
        By cell, the one that has its value; at the end: its new number, 0 where it is dead.
    new_op, new_a, new_b, new_v
        Filled in.
    """
    cell = 0
    new = 0
    new_cell = 0
    for i in range(len(op)):
        o = op[i]
        kind = kinds[o]
        size = b[i] if o <= HOST else 1
        if o == INPUT or (size != 0 and live[cell] != 0):
            new_op[new] = o
            new_a[new] = to[a[i]] if kind != 0 or o == CARRY else a[i]
            new_b[new] = to[b[i]] if kind == BINARY or kind == TERNARY else b[i]
            if o == LANES:
                rename_lanes(a[i], kinds, d, to)
            new += 1
            for c in range(cell, cell + size):
                new_v[new_cell] = v[c]
                to[c] = new_cell
                new_cell += 1
        elif o > HOST and to[cell] != cell:
            to[cell] = to[to[cell]]
        else:
            for c in range(cell, cell + size):
                to[c] = 0
        cell += size


def rename_lanes(at, kinds, d, to):
    """Rename the operands of the array instruction whose descriptor begins at `at`."""
    row = kinds[d[at]]
    ndim = d[at + 1]
    arity = 1 if row == UNARY else (3 if row == TERNARY else 2)
    for j in range(arity):
        place = at + (j + 1) * (2 + ndim)
        if d[place] == CELLS or d[place] == PASSIVE:
            d[place + 1] = to[d[place + 1]]


def remap(op, a, b, kinds, to):
    """Rewrite all operand cells of scalar instructions by a map of cells."""
    for i in range(len(op)):
        kind = kinds[op[i]]
        if kind != 0 or op[i] == CARRY:
            a[i] = to[a[i]]
        if kind == BINARY or kind == TERNARY:
            b[i] = to[b[i]]


def sort_keys(op, a, b, first, kinds, levels, keys):
    """Give each instruction a key to sort by: its level, and its opcode.

    The level of an instruction is above those of its operands. A CARRY has the key of the ternary
    instruction that follows it, so that a stable sort keeps them together.

    Parameters
    ----------
    first
        First cell of each instruction.
    levels
        By cell: zeros; filled in.
    keys
        By instruction; filled in. An INPUT has key 0.
    """
    for i in range(len(op)):
        o = op[i]
        kind = kinds[o]
        if o == INPUT:
            continue
        level = 0
        if kind != 0 or o == CARRY:
            level = levels[a[i]]
        if kind == BINARY or kind == TERNARY:
            level = max(level, levels[b[i]])
        if kind == TERNARY:
            level = max(level, levels[first[i - 1]] - 1)
            levels[first[i - 1]] = level + 1
        levels[first[i]] = level + 1
        keys[i] = (level + 1) * 256 + o
        if kind == TERNARY:
            keys[i - 1] = keys[i]
