"""Which inputs an output depends on, 64 outputs at a time, and the colouring of such patterns.

Like the passes of `tapegrad.kernels.simplify`, these run as plain Python and are compiled by
`tapegrad.kernels.cpu.patterns`.
"""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from tapegrad.kernels import opcodes

# Written out for the same reason as in `tapegrad.kernels.simplify`.
INPUT, HOST, CONST, CARRY = 0, 2, 3, 4
UNARY, TERNARY = 1, 5
if (
    *(opcodes.INPUT, opcodes.HOST, opcodes.CONST, opcodes.CARRY),
    *(opcodes.UNARY, opcodes.TERNARY),
) != (INPUT, HOST, CONST, CARRY, UNARY, TERNARY):
    raise ImportError("kernels/patterns.py and kernels/opcodes.py number opcodes differently")

CELLS, INDEXED, CONSTANT, PASSIVE = 0, 1, 2, 3


def masks_backward(op, a, b, kinds, flows, d, x, host_start, host_cells, mask, start, cell):
    """Carry masks from results to operands; those of input cells remain, all others become zero.

    Parameters
    ----------
    flows
        By opcode: bit `j` says whether a derivative flows to operand `j`.
    host_start, host_cells
        The cells that host record `h` reads stand at ``host_cells`` from ``host_start[h]`` to
        ``host_start[h + 1]``.
    mask
        By cell: one bit an output.
    start, cell
        The instruction after the last one to look at, and its first cell.
    """
    for i in range(start - 1, -1, -1):
        o = op[i]
        kind = kinds[o]
        if kind == 0:
            if o == INPUT:
                cell -= b[i]
                continue
            if o == CONST or o == CARRY:
                cell -= 1
                mask[cell] = 0
                continue
            size = b[i]
            cell -= size
            if o == HOST:
                every = mask[cell] if size > 0 else 0
                for j in range(size):
                    every |= mask[cell + j]
                    mask[cell + j] = 0
                if every != 0:
                    for entry in range(host_start[a[i]], host_start[a[i] + 1]):
                        mask[host_cells[entry]] |= every
                continue
            at = a[i]
            row = d[at]
            ndim = d[at + 1]
            arity = 1 if kinds[row] == UNARY else (3 if kinds[row] == TERNARY else 2)
            for lane in range(size):
                m = mask[cell + lane]
                if m == 0:
                    continue
                mask[cell + lane] = 0
                for j in range(arity):
                    place = at + (j + 1) * (2 + ndim)
                    where = d[place]
                    if where == CONSTANT or where == PASSIVE or (flows[row] >> j) & 1 == 0:
                        continue
                    target = d[place + 1]
                    rest = lane
                    for axis in range(ndim - 1, -1, -1):
                        extent = d[at + 2 + axis]
                        target += (rest % extent) * d[place + 2 + axis]
                        rest //= extent
                    if where == INDEXED:
                        mask[x[target]] |= m
                    else:
                        mask[target] |= m
            continue
        cell -= 1
        m = mask[cell]
        if m == 0:
            continue
        mask[cell] = 0
        flow = flows[o]
        if kind == TERNARY:  # x stands in the CARRY before, y and z here
            if flow & 1:
                mask[a[i - 1]] |= m
            if flow & 2:
                mask[a[i]] |= m
            if flow & 4:
                mask[b[i]] |= m
            continue
        if flow & 1:
            mask[a[i]] |= m
        if flow & 2:
            mask[b[i]] |= m


def color_greedily(row_start, row_columns, column_start, column_rows, colors, taken):
    """Give columns that meet in no row the same colour; returns how many colours there are.

    The columns of row `r` are ``row_columns[row_start[r]:row_start[r + 1]]``, and the rows of a
    column likewise.  `taken` is scratch space of one entry a column, filled with -1.

    Each column, in order, gets the lowest colour that no column before it has that meets it in a
    row: the greedy partial distance-two colouring of Gebremedhin, Manne and Pothen, "What color is
    your Jacobian?", SIAM Review 47 (2005), algorithm 3.2.
    """
    count = 0
    for column in range(len(column_start) - 1):
        for i in range(column_start[column], column_start[column + 1]):
            r = column_rows[i]
            for j in range(row_start[r], row_start[r + 1]):
                other = row_columns[j]
                if other < column:
                    taken[colors[other]] = column
        color = 0
        while taken[color] == column:
            color += 1
        colors[column] = color
        if color >= count:
            count = color + 1
    return count
