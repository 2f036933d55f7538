"""Rows of a region by liveness: two passes over its instructions, as plain Python or compiled.

`tapegrad.kernels.cpu.allocation` compiles `allocate` for regions that are planned in a hurry.
"""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations


def allocate(m, op, a, b, c, arity, fixed, kept, last, row, free, code):
    """Drop what nothing needs and give every result a row, as few rows as liveness allows.

    Values are numbered: `fixed` constants and in-windows first, which keep the row of their number,
    then one result an instruction.

    Parameters
    ----------
    m : int
        How many instructions there are.
    op, a, b, c
        Opcode and operands (values) of each instruction.
    arity
        Number of operands by opcode.
    fixed : int
        How many values are not results.
    kept
        By value: whether an out-window reads it. Such a result has a row of its own.
    last, row, free
        By value: scratch; `row` is filled in, -1 for a result that nothing needs.
    code
        Filled in: opcode, result row and operand rows of each instruction that is left.

    Returns
    -------
    (instructions, rows)
    """
    find_last_uses(m, op, a, b, c, arity, fixed, kept, last)
    for value in range(fixed + m):
        row[value] = value if value < fixed else -1
    rows = fixed
    waiting = 0
    count = 0
    for i in range(m):
        if last[fixed + i] < 0:
            continue
        n = arity[op[i]]
        x = a[i]
        y = b[i] if n > 1 else x
        z = c[i] if n > 2 else x
        # The result may take the row of an operand that is used for the last time.
        if x >= fixed and last[x] == i:
            free[waiting] = row[x]
            waiting += 1
        if y != x and y >= fixed and last[y] == i:
            free[waiting] = row[y]
            waiting += 1
        if z != x and z != y and z >= fixed and last[z] == i:
            free[waiting] = row[z]
            waiting += 1
        if waiting and not kept[fixed + i]:
            waiting -= 1
            row[fixed + i] = free[waiting]
        else:
            row[fixed + i] = rows
            rows += 1
        code[count, 0] = op[i]
        code[count, 1] = row[fixed + i]
        code[count, 2] = row[x]
        code[count, 3] = row[y] if n > 1 else 0
        code[count, 4] = row[z] if n > 2 else 0
        count += 1
    return count, rows


def find_last_uses(m, op, a, b, c, arity, fixed, kept, last):
    """Fill in by value which instruction uses it last, the number of all for those kept, or -1."""
    for value in range(fixed + m):
        last[value] = m if kept[value] else -1
    for i in range(m - 1, -1, -1):
        if last[fixed + i] < 0:
            continue
        n = arity[op[i]]
        if last[a[i]] < i:
            last[a[i]] = i
        if n > 1 and last[b[i]] < i:
            last[b[i]] = i
        if n > 2 and last[c[i]] < i:
            last[c[i]] = i
