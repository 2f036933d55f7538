"""Removing from a finished tape what it computes twice, for nothing, or once and for all.

Three passes over the columns, written so that they run as plain Python on small tapes and are
compiled by `tapegrad.kernels.cpu.simplify` for large ones.  Columns are arrays of unsigned
integers; `kinds` says by opcode where an instruction keeps its operands, as in
`tapegrad.kernels.opcodes.KINDS`.
"""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from tapegrad.kernels import opcodes

# Constants of the compiled passes, written out: Numba's cache notices an edit of this file, but not
# of one that it imports. Numbers of rows, which a new row shifts, come in as arguments.
INPUT, LANES, HOST, CONST, CARRY = 0, 1, 2, 3, 4
UNARY, BINARY, TERNARY = 1, 2, 5
if (
    *(opcodes.INPUT, opcodes.LANES, opcodes.HOST, opcodes.CONST, opcodes.CARRY),
    *(opcodes.UNARY, opcodes.BINARY, opcodes.TERNARY),
) != (INPUT, LANES, HOST, CONST, CARRY, UNARY, BINARY, TERNARY):
    raise ImportError("kernels/simplify.py and kernels/opcodes.py number opcodes differently")

CELLS, INDEXED, CONSTANT, PASSIVE = 0, 1, 2, 3


def canonicalise(
    op, a, b, first, kinds, commutes, v, constant_input, table, to, constant, folded, n_k
):
    """Find repeated and constant instructions; rewrite operands to the cells that remain.

    Parameters
    ----------
    op, a, b
        Columns, changed in place.
    first
        First cell of each instruction.
    commutes
        By opcode: whether its two operands, both cells, may be exchanged.
    v
        Values of the cells, which constants are folded to.
    constant_input
        By import number: whether its values are part of the program.
    table
        Hash table of instruction numbers plus one; zeros, its size a power of two above 1.5 n.
    to
        By cell: the cell that has its value; changed in place, at first the cell itself.
    constant
        By cell: whether its value is known; filled in.
    folded
        Values of new constants; filled in.  They are numbered from `n_k` on.

    Returns
    -------
    int
        How many values of `folded` are used.
    """
    mask = len(table) - 1
    count = 0
    for i in range(len(op)):
        o = op[i]
        kind = kinds[o]
        cell = first[i]
        if kind == 0:
            if o == INPUT:
                if constant_input[a[i]]:
                    for j in range(b[i]):
                        constant[cell + j] = 1
                continue
            if o == LANES or o == HOST:
                continue
            if o == CARRY:
                a[i] = to[a[i]]
                continue
            constant[cell] = 1  # CONST
        else:
            a[i] = to[a[i]]
            known = constant[a[i]] != 0
            if kind == BINARY or kind == TERNARY:
                b[i] = to[b[i]]
                known = known and constant[b[i]] != 0
            if kind == TERNARY:
                known = known and constant[a[i - 1]] != 0
            if known:
                folded[count] = v[cell]
                op[i] = o = CONST
                a[i] = n_k + count
                b[i] = 0
                count += 1
                constant[cell] = 1
                continue
            if commutes[o] and a[i] > b[i]:
                a[i], b[i] = b[i], a[i]
        third = a[i - 1] if kind == TERNARY else 0
        slot = (a[i] * 40503 + b[i] * 30011 + third * 20011 + o * 977) & mask
        while table[slot] != 0:
            j = table[slot] - 1
            if op[j] == o and a[j] == a[i] and b[j] == b[i]:
                if kind != TERNARY or a[j - 1] == third:
                    to[cell] = to[first[j]]
                    break
            slot = (slot + 1) & mask
        else:
            table[slot] = i + 1
    return count


def mark_live(op, a, b, kinds, owner, d, x, host_start, host_cells, live):
    """Mark the instructions that marked ones need, from the last to the first.

    Parameters
    ----------
    owner
        By cell: the instruction that it belongs to.
    d, x
        Descriptors and index pool of LANES instructions.
    host_start, host_cells
        For host record `h`, one cell of each thing that it reads stands at ``host_cells`` from
        ``host_start[h]`` to ``host_start[h + 1]``.
    live
        By instruction; changed in place.
    """
    for i in range(len(op) - 1, -1, -1):
        if live[i] == 0:
            continue
        o = op[i]
        kind = kinds[o]
        if kind == 0:
            if o == CARRY:
                live[owner[a[i]]] = 1
            elif o == LANES:
                at = a[i]
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
                            live[owner[x[entry]]] = 1
                    elif where != CONSTANT:
                        live[owner[offset]] = 1
            elif o == HOST:
                for entry in range(host_start[a[i]], host_start[a[i] + 1]):
                    live[owner[host_cells[entry]]] = 1
            continue
        live[owner[a[i]]] = 1
        if kind == BINARY or kind == TERNARY:
            live[owner[b[i]]] = 1
        if kind == TERNARY:
            live[i - 1] = 1


def remap(op, a, b, kinds, d, to):
    """Rewrite all operand cells, also those in descriptors, by a map of cells."""
    for i in range(len(op)):
        o = op[i]
        kind = kinds[o]
        if kind == 0:
            if o == CARRY:
                a[i] = to[a[i]]
            elif o == LANES:
                at = a[i]
                row = kinds[d[at]]
                ndim = d[at + 1]
                arity = 1 if row == UNARY else (3 if row == TERNARY else 2)
                for j in range(arity):
                    place = at + (j + 1) * (2 + ndim)
                    if d[place] == CELLS or d[place] == PASSIVE:
                        d[place + 1] = to[d[place + 1]]
            continue
        a[i] = to[a[i]]
        if kind == BINARY or kind == TERNARY:
            b[i] = to[b[i]]


def move_together(first, sizes, live, moved):
    """Number the cells of live instructions one after the other.

    Parameters
    ----------
    first, sizes
        By instruction: its first cell, and how many it has.
    moved
        By old cell: the new one; filled in, and left as it is for cells of dead instructions.

    Returns
    -------
    int
        How many cells there are.
    """
    count = 0
    for i in range(len(first)):
        if live[i] != 0:
            cell = first[i]
            for j in range(sizes[i]):
                moved[cell + j] = count + j
            count += sizes[i]
    return count


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
