"""Straight scalar code: columns of instructions, and how one is appended to them.

Each instruction gives one cell: an opcode, and operands that are cells or constants.  Constants
have negative numbers: -1 - i is number `i` of their pool; an operand that a row does not have is
-1.  New instructions go through `emit`, which computes with constants, drops what changes nothing,
and finds what is there already.

Whoever calls `emit` gets a copy of it from the compiler, so that kernels call it in few places.
Numba's cache does not notice an edit here in the kernels of `derive.py`: remove it then.

Columns are narrow; `int64` makes each number that is read one of the same type, for which alone the
helpers are compiled.
"""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from math import isfinite
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tapegrad.kernels.cpu.jit import helper, inlined, kernel

int64 = np.int64

NONE = int64(-1)
"""An operand that a row does not have."""

# Roles: what `emit` knows of some rows. Their opcodes come as data, since new rows shift them.
ROLES = (
    *("", "add", "subtract", "multiply", "divide", "negative", "positive", "square"),
    *("integer_power", "where", "equal", "not_equal", "less", "less_equal", "greater"),
    *("greater_equal", "logical_and", "logical_or", "logical_not"),
)
ADD, SUBTRACT, MULTIPLY, DIVIDE, NEGATIVE, POSITIVE, SQUARE, INTEGER_POWER, WHERE = range(1, 10)
EQUAL, NOT_EQUAL, LESS, LESS_EQUAL, GREATER, GREATER_EQUAL, AND, OR, NOT = range(10, 19)

KEEP, AGAIN, VALUE = 0, 1, 2
ROLE = 256  # see `Code.roles`
NEAR = 4  # slots of the hash table that are tried near the operands
ROOM = 256  # instructions and constants that one operation may take, and more


class Code(NamedTuple):
    """The columns of code, and what `emit` needs beside them.

    Attributes
    ----------
    ins
        By cell: opcode, which is 0 for an input, and operands x, y and z.
    k
        The pool of constants.
    table, k_table
        Hash tables of cells, and of constants, plus one; at least twice as large as the columns.
    roles
        By opcode: its role; by ROLE + role: its opcode.
    steps
        Rows of opcode and operands of the programs of partials, one step after another.
    used
        How many cells and constants there are.
    """

    ins: Any
    k: Any
    table: Any
    k_table: Any
    roles: Any
    steps: Any
    used: Any


@intrinsic
def bare(context, array):
    """Return an array without an owner: helpers would count its users at each call."""

    def without_owner(context, builder, signature, args):
        result = context.make_array(array)(context, builder, value=args[0])
        result.meminfo = cgutils.get_null_value(result.meminfo.type)
        return result._getvalue()

    return array(array), without_owner


@helper
def counted_by_nobody(code):
    """Return code whose columns have no owners."""
    ins, table, k_table = bare(code.ins), bare(code.table), bare(code.k_table)
    roles, steps, used = bare(code.roles), bare(code.steps), bare(code.used)
    return Code(ins, bare(code.k), table, k_table, roles, steps, used)


@helper
def mixed(o, x, y, z):
    """Return a hash of four numbers, whose low bits are as good as any."""
    h = (x + 1) * int64(-7046029254386353131) + (y + 1) * int64(-4417276706812531889)
    h += z * int64(1609587929392839161) + o * int64(-8796714831421723037)
    return h ^ (h >> 29) ^ (h >> 43)


@helper
def constant(code, value):
    """Return the number of a constant, which is negative."""
    mask = len(code.k_table) - 1
    slot = mixed(np.float64(value).view(int64), 0, 0, 0) & mask
    while code.k_table[slot] != 0:
        known = code.k[code.k_table[slot] - 1]
        if known == value and (value != 0.0 or 1.0 / known == 1.0 / value):
            return -int64(code.k_table[slot])
        slot = (slot + 1) & mask
    n = code.used[1]
    code.k[n] = value
    code.k_table[slot] = n + 1
    code.used[1] = n + 1
    return -1 - n


@inlined
def multiple(code, c):
    """Return factor and cell of which a cell is the product; the factor is a constant."""
    if code.roles[code.ins[c, 0]] == MULTIPLY and code.ins[c, 1] < 0:
        return code.k[-1 - code.ins[c, 1]], int64(code.ins[c, 2])
    return 1.0, c


# Rewriting: each of these returns what to do (KEEP the instruction, look AGAIN at what it has
# become, or take the VALUE instead, which stands in the place of x) and the instruction.


@inlined
def rewritten_sum(code, free, r, o, x, y, z):
    """Rewrite a sum, a difference or a negative."""
    roles, k = code.roles, code.k
    if r == NEGATIVE:
        if x < 0:
            return VALUE, o, constant(code, -k[-1 - x]), y, z
        inner = roles[code.ins[x, 0]]
        if inner == NEGATIVE:
            return VALUE, o, int64(code.ins[x, 1]), y, z
        if inner == MULTIPLY and code.ins[x, 1] < 0:
            factor = constant(code, -k[-1 - code.ins[x, 1]])
            return AGAIN, int64(code.ins[x, 0]), factor, int64(code.ins[x, 2]), z
        if inner == SUBTRACT:
            return AGAIN, int64(code.ins[x, 0]), int64(code.ins[x, 2]), int64(code.ins[x, 1]), z
        return KEEP, o, x, y, z
    if r == SUBTRACT and y < 0:
        return AGAIN, code.roles[ROLE + ADD], x, constant(code, -k[-1 - y]), z
    if r == ADD and y < 0:
        x, y = y, x
    if x < 0:  # a constant comes first
        if y < 0:
            return VALUE, o, constant(code, k[-1 - x] + k[-1 - y]), y, z
        if k[-1 - x] == 0.0:
            if r == ADD:
                return VALUE, o, y, y, z
            return AGAIN, code.roles[ROLE + NEGATIVE], y, NONE, z
        if r == ADD and free and roles[code.ins[y, 0]] == ADD and code.ins[y, 1] < 0:
            both = constant(code, k[-1 - x] + k[-1 - code.ins[y, 1]])
            return AGAIN, o, both, int64(code.ins[y, 2]), z
        return KEEP, o, x, y, z
    opposite = code.roles[ROLE + (SUBTRACT if r == ADD else ADD)]
    if r == ADD and x == y:
        return AGAIN, code.roles[ROLE + MULTIPLY], constant(code, 2.0), y, z
    if roles[code.ins[y, 0]] == NEGATIVE:
        return AGAIN, opposite, x, int64(code.ins[y, 1]), z
    if r == ADD and roles[code.ins[x, 0]] == NEGATIVE:
        return AGAIN, opposite, y, int64(code.ins[x, 1]), z
    if free and x != y:
        factor_x, base_x = multiple(code, x)
        factor_y, base_y = multiple(code, y)
        if base_x == base_y:
            factor = factor_x + factor_y if r == ADD else factor_x - factor_y
            return AGAIN, code.roles[ROLE + MULTIPLY], constant(code, factor), base_y, z
    if r == ADD and x > y:
        x, y = y, x
    return KEEP, o, x, y, z


@inlined
def rewritten_product(code, free, r, o, x, y, z):
    """Rewrite a product, a quotient or an integer power."""
    roles, k = code.roles, code.k
    if r == SQUARE:
        return AGAIN, code.roles[ROLE + MULTIPLY], x, x, z
    if r == INTEGER_POWER or r == DIVIDE:
        if y >= 0:
            return KEEP, o, x, y, z
        if k[-1 - y] == 1.0:
            return VALUE, o, x, y, z
        if r == DIVIDE:
            if x < 0 and k[-1 - y] != 0.0:
                return VALUE, o, constant(code, k[-1 - x] / k[-1 - y]), y, z
        elif k[-1 - y] == 0.0:
            return VALUE, o, constant(code, 1.0), y, z
        elif k[-1 - y] == 2.0:
            return AGAIN, code.roles[ROLE + MULTIPLY], x, x, z
        return KEEP, o, x, y, z
    if y < 0:
        x, y = y, x
    if x < 0:  # a constant comes first
        factor = k[-1 - x]
        if y < 0:
            return VALUE, o, constant(code, factor * k[-1 - y]), y, z
        if factor == 1.0:
            return VALUE, o, y, y, z
        if factor == -1.0:
            return AGAIN, code.roles[ROLE + NEGATIVE], y, NONE, z
        inner = roles[code.ins[y, 0]]
        if inner == NEGATIVE:
            return AGAIN, o, constant(code, -factor), int64(code.ins[y, 1]), z
        if free and inner == MULTIPLY and code.ins[y, 1] < 0:
            product = factor * k[-1 - code.ins[y, 1]]
            if isfinite(product) and abs(product) > 1e-290:
                return AGAIN, o, constant(code, product), int64(code.ins[y, 2]), z
        return KEEP, o, x, y, z
    if roles[code.ins[x, 0]] == NEGATIVE and roles[code.ins[y, 0]] == NEGATIVE:
        return AGAIN, o, int64(code.ins[x, 1]), int64(code.ins[y, 1]), z
    if x > y:
        x, y = y, x
    return KEEP, o, x, y, z


@inlined
def rewritten_choice(code, r, o, x, y, z):
    """Rewrite a choice, a comparison or a logical operation, where its operands are known."""
    roles, k = code.roles, code.k
    if r == WHERE:
        if x < 0:
            return VALUE, o, y if k[-1 - x] != 0.0 else z, y, z
        if y == z:
            return VALUE, o, y, y, z
        if y >= 0 and roles[code.ins[y, 0]] == WHERE and code.ins[y, 1] == x:
            return AGAIN, o, x, int64(code.ins[y, 2]), z
        if z >= 0 and roles[code.ins[z, 0]] == WHERE and code.ins[z, 1] == x:
            return AGAIN, o, x, y, int64(code.ins[z, 3])
        return KEEP, o, x, y, z
    one = k[-1 - x] if x < 0 else 0.0
    other = k[-1 - y] if y < 0 else 0.0
    if r == NOT:
        if x < 0:
            return VALUE, o, constant(code, 1.0 if one == 0.0 else 0.0), y, z
        return KEEP, o, x, y, z
    if r == AND or r == OR:
        decided = r == OR  # by one operand that is so
        if (x < 0 and (one != 0.0) == decided) or (y < 0 and (other != 0.0) == decided):
            return VALUE, o, constant(code, 1.0 if decided else 0.0), y, z
        if x < 0 and y < 0:
            return VALUE, o, constant(code, 0.0 if decided else 1.0), y, z
        return KEEP, o, x, y, z
    if x >= 0 or y >= 0:
        return KEEP, o, x, y, z
    holds = (
        (r == EQUAL and one == other)
        or (r == NOT_EQUAL and one != other)
        or (r == LESS and one < other)
        or (r == LESS_EQUAL and one <= other)
        or (r == GREATER and one > other)
        or (r == GREATER_EQUAL and one >= other)
    )
    return VALUE, o, constant(code, 1.0 if holds else 0.0), y, z


@inlined
def place(code, o, x, y, z):
    """Return the slot of the hash table where an instruction stands, or where it would.

    A few slots belong to the latest operand, most of which are in the cache; if these are taken,
    the instruction stands in one of a few others.
    """
    mask = len(code.table) - 1
    slot = 2 * max(x, y, z) & mask
    tried = 0
    while code.table[slot] != 0:
        c = int64(code.table[slot]) - 1
        if (
            code.ins[c, 0] == o
            and code.ins[c, 1] == x
            and code.ins[c, 2] == y
            and code.ins[c, 3] == z
        ):
            break
        tried += 1
        slot = (slot + 1) & mask
        if tried % NEAR == 0:
            slot = (slot + (mixed(o, x, y, z) | 1)) & mask
    return slot


@helper
def emit(code, free, o, x, y, z):
    """Return the cell, or constant, that has the value of an operation, appended if it is new.

    Where `free`, rounding may differ from that of the operation as it stands.
    """
    state = AGAIN
    while state == AGAIN:
        r = code.roles[o]
        if r == 0:
            break
        if r == POSITIVE:
            return x
        if r == ADD or r == SUBTRACT or r == NEGATIVE:
            state, o, x, y, z = rewritten_sum(code, free, r, o, x, y, z)
        elif r == MULTIPLY or r == DIVIDE or r == SQUARE or r == INTEGER_POWER:
            state, o, x, y, z = rewritten_product(code, free, r, o, x, y, z)
        else:
            state, o, x, y, z = rewritten_choice(code, r, o, x, y, z)
        if state == VALUE:
            return x
    slot = place(code, o, x, y, z)
    if code.table[slot] != 0:
        return int64(code.table[slot]) - 1
    n = code.used[0]
    code.ins[n, 0] = o
    code.ins[n, 1] = x
    code.ins[n, 2] = y
    code.ins[n, 3] = z
    code.table[slot] = n + 1
    code.used[0] = n + 1
    return n


@inlined
def operand(code, c, j):
    """Return operand `j` of a cell."""
    return int64(code.ins[c, j + 1])


@inlined
def has_room(code, more):
    """Say whether one more operation fits, and `more` instructions and constants."""
    need = ROOM + more
    return code.used[0] + need <= len(code.ins) and code.used[1] + need <= len(code.k)


@kernel
def rehash(code):
    """Fill the hash tables anew, which must be zero."""
    code = counted_by_nobody(code)
    for c in range(code.used[0]):
        if code.ins[c, 0] != 0:
            x, y, z = operand(code, c, 0), operand(code, c, 1), operand(code, c, 2)
            code.table[place(code, int64(code.ins[c, 0]), x, y, z)] = c + 1
    mask = len(code.k_table) - 1
    for i in range(code.used[1]):
        slot = mixed(np.float64(code.k[i]).view(int64), 0, 0, 0) & mask
        while code.k_table[slot] != 0:
            slot = (slot + 1) & mask
        code.k_table[slot] = i + 1


@kernel
def copy(code, op, x, y, z, to, first, stop):
    """Append instructions; `to` says, by old cell, which new one has its value.

    Returns the instruction where room ran out, or `stop`.
    """
    code = counted_by_nobody(code)
    for c in range(first, stop):
        if op[c] == 0:
            continue
        if not has_room(code, 0):
            return c
        p = int64(x[c] if x[c] < 0 else to[x[c]])
        q = int64(y[c] if y[c] < 0 else to[y[c]])
        r = int64(z[c] if z[c] < 0 else to[z[c]])
        to[c] = emit(code, False, int64(op[c]), p, q, r)
    return stop


def compile_all() -> None:
    """Compile all kernels, or load them from the cache."""
    bytes_, narrow, n = types.Array(types.u1, 1, "C"), types.Array(types.i4, 1, "C"), types.i8
    rehash.compile((code_type(),))
    copy.compile((code_type(), bytes_, narrow, narrow, narrow, narrow, n, n))


def code_type() -> types.Type:
    """Return Numba's type of `Code`."""
    narrow, wide = types.Array(types.i4, 1, "C"), types.Array(types.i8, 1, "C")
    rows, matrix = types.Array(types.i4, 2, "C"), types.Array(types.i8, 2, "C")
    numbers = types.Array(types.f8, 1, "C")
    return types.NamedTuple((rows, numbers, narrow, narrow, wide, matrix, wide), Code)
