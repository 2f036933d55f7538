"""What the planner's kernels work on: records of a tape, of regions and of programs.

Instructions are counted from the first of the stretch that is planned. A sum, maximum or minimum
over axes is a HOST instruction with a descriptor in `h`: as that of an array instruction with one
operand, how an out-window makes it in the place of the opcode, followed by the strides of the
result.

A value of a program is a number: results count from 0, in-windows are -1, -3, -5, ... and constants
-2, -4, -6, ... `NONE` is no value.

`tapegrad.regions.plan` and `written` give the fields of each record in the order of this module.
"""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from numba import types as numba_types
from numba.types import float64, int64, uint8, uint32

from tapegrad.kernels import adjoints, opcodes
from tapegrad.kernels.cpu.jit import part as helper
from tapegrad.kernels.cpu.records import Numbers, record

# Constants of the compiled passes, written out: Numba's cache notices an edit of this file, but not
# of one that it imports. Numbers of rows, which a new row shifts, come in as arguments.
INPUT, LANES, HOST, CONST, CARRY = 0, 1, 2, 3, 4
UNARY, BINARY, BINARY_XK, BINARY_KX, TERNARY = 1, 2, 3, 4, 5
OUT, SEED, TEMPORARY, CONSTANT_SLOT = 3, 4, 8, 64
if (
    *(opcodes.INPUT, opcodes.LANES, opcodes.HOST, opcodes.CONST, opcodes.CARRY),
    *(opcodes.UNARY, opcodes.BINARY, opcodes.BINARY_XK, opcodes.BINARY_KX, opcodes.TERNARY),
    *(adjoints.OUT, adjoints.SEED, adjoints.TEMPORARY, adjoints.CONSTANT),
) != (
    *(INPUT, LANES, HOST, CONST, CARRY),
    *(UNARY, BINARY, BINARY_XK, BINARY_KX, TERNARY),
    *(OUT, SEED, TEMPORARY, CONSTANT_SLOT),
):
    raise ImportError("kernels/cpu/planned.py and the modules it mirrors differ")

CELLS, INDEXED, CONSTANT, PASSIVE = 0, 1, 2, 3  # kinds of operands
VALUES, POOL, ADJOINTS, INDICES, TIES, IMPORTS = 0, 1, 2, 3, 4, 5
"""Buffers: cells, constants, adjoints, indices, numbers of equal extremes; then values and adjoints
of one import each."""

AXES = 6  # that a region has at most
WINDOW = 6  # words of a window before its strides, as in tapegrad/regions/region.py
NONE = 1 << 40
BY_REGIONS, BY_OTHERS = 1, 2
STORE_ALL, STORE_OUTSIDE, REVERSE, COUNT_TIES, STORE_SUMS = 1, 2, 4, 8, 16
EQUAL, ISNAN, OR, DIVIDE, WHERE = 0, 1, 2, 3, 4  # rows that extremes need, by place in `extremal`


INTS, PLACES, BYTES = Numbers(int64), Numbers(uint32), Numbers(uint8)

tape_at = record(
    "Tape",
    **dict(op=BYTES, a=PLACES, b=PLACES, d=INTS, x=PLACES, host_at=INTS, h=INTS),
    **dict(first=INTS, region=INTS, ties=INTS, link=INTS, low=INTS, high=INTS),
    **dict(outside=BYTES, active=BYTES, entered=BYTES, cleared=BYTES, own=INTS, in_arena=BYTES),
    **dict(i0=int64, n=int64),
)
"""A tape, which stretch of it is planned, and what has been found out about that.

op, a, b, d, x, host_at, h
    The tape's columns and pools, and its host instructions: by their numbers, the place in `h` of
    the descriptor of a sum or extremum, or -1 minus the place there of a count and that many pairs
    (lowest and highest cell) of operands.
first, region, outside
    By instruction: its first cell (and the cell after the last); its region, or -1; who uses its
    cells other than lane by lane in its region: `BY_REGIONS`, or `BY_OTHERS`, which are scalar
    instructions and those of the host.
link, low, high
    By instruction, three operands each: the instruction of the same region whose result it is, lane
    by lane, or -1; the first and the last instruction whose cells it meets; the last comes before
    the first where there is none.
active, entered, cleared, ties
    By instruction: whether adjoints flow through it; whether they come to it from `ADJOINTS`;
    whether there is something of it in `ADJOINTS` to be made zero; where in `TIES` an extremum has
    its numbers of lanes, or -1 where nobody asks.
own, in_arena
    By import: the number of its own buffers, or -1; set where its cells are looked for among all
    others.
i0, n
    The stretch: from which instruction on, and how many.
"""


extents_at = record(
    "Extents", first=INTS, last=INTS, axes=INTS, shape=Numbers(int64, AXES + 2), merged=INTS
)
"""By region: its first and last instruction, and its shape; and room for another shape."""


rows_at = record(
    "Rows",
    **dict(kinds=BYTES, arity=BYTES, extremal=INTS, starts=INTS, programs=Numbers(int64, 4)),
    **dict(received=Numbers(int64, 3), numbers=Numbers(float64), add=int64),
)
"""What is known of the rows of the table: see `kernels/adjoints.py`.

`kinds` and `arity` are by opcode; `extremal` has the opcodes of `EQUAL` to `WHERE`, and `add` is
that of additions.
"""


WINDOWS = Numbers(int64, WINDOW + AXES)
program_at = record(
    "Program",
    **dict(op=INTS, u=INTS, v=INTS, w=INTS, inputs=WINDOWS, outputs=WINDOWS),
    **dict(constants=Numbers(float64), counts=INTS, table=INTS, value=INTS),
    **dict(operands=Numbers(int64, 3), adjoint_of=INTS, adjoint_in=INTS, slots=INTS),
    **dict(shape=INTS, axes=int64, mask=int64),
)
"""What is written: code, windows and constants, and what is known of its values.

op, u, v, w, inputs, outputs, constants, counts
    The program: opcodes and operands, and windows; `counts` are those of instructions, in-windows,
    out-windows and constants.
table, mask
    Finds in-windows again, whose first words say where. All zero in the beginning and in the end;
    `mask` is its size but one, a power of two.
value, operands
    By instruction of the tape: its value, and the values of its operands.
adjoint_of, adjoint_in
    By result and by in-window: its adjoint so far, or `NONE`.
slots
    Scratch: what a program of `kernels/adjoints.py` works with.
shape, axes
    The lanes.
"""

seeds_at = record("Seeds", wanted=BYTES, start=BYTES)
"""By import, whether its adjoint is wanted; by instruction, whether the sweep starts there."""

steps_at = record("Steps", steps=Numbers(int64, 3))
"""What is to be run: region or -1 for scalars or -2 for a host, from, to."""

imports_at = record("Imports", sizes=INTS, touched=BYTES, blank=Numbers(int64, 4), count=int64)
"""By import with its own buffers: its size; whether its adjoints have been written before; what
must be made zero first: from, to, from, to."""

room_at = record(
    "Room", kept=BYTES, last=INTS, row=INTS, free=INTS, code=Numbers(numba_types.uint16, 5)
)
"""By value: `kept` to `free` of `tapegrad.kernels.allocation.allocate`; and the code that is left.
"""


# -- what operands meet ----------------------------------------------------------------------------


@helper
def producer(first, n, cell):
    """Return the instruction that a cell belongs to, or -1 for one before the stretch."""
    if n == 0 or cell < first[0]:
        return -1
    low = 0
    high = n
    while high - low > 1:
        middle = (low + high) // 2
        if first[middle] <= cell:
            low = middle
        else:
            high = middle
    return low


@helper
def reach(t, at, axes, shape, x):
    """Return the lowest and the highest cell that an operand meets."""
    low = t[at + 1]
    high = low
    for axis in range(axes):
        step = (t[shape + axis] - 1) * t[at + 2 + axis]
        if step < 0:
            low += step
        else:
            high += step
    if t[at] == INDEXED:
        places = high
        place = low
        low = int64(x[place])
        high = low
        for i in range(place, places + 1):
            cell = int64(x[i])
            if cell < low:
                low = cell
            if cell > high:
                high = cell
    return low, high


@helper
def is_flat(t, at, axes, shape):
    """Whether the lanes of an operand are consecutive cells."""
    expected = 1
    for axis in range(axes - 1, -1, -1):
        extent = t[shape + axis]
        if extent != 1 and t[at + 2 + axis] != expected:
            return False
        expected *= extent
    return True


@helper
def merge_shape(shape, axes, t, at, more, merged):
    """Cut two shapes into their common one, in `merged`; return its axes, or -1 if there is none.

    `shape` has `axes` extents, and `t` has `more` of them from `at` on; the sizes are equal.
    """
    i = axes - 1
    j = more - 1
    left = 1
    right = 1
    count = 0
    while True:
        while left == 1 and i >= 0:
            left = shape[i]
            i -= 1
        while right == 1 and j >= 0:
            right = t[at + j]
            j -= 1
        if left == 1 and right == 1:
            break
        extent = left if left < right else right
        if left % extent or right % extent or count == AXES:
            return -1
        left //= extent
        right //= extent
        merged[count] = extent
        count += 1
    if count == 0:
        merged[0] = 1
        count = 1
    for k in range(count // 2):
        merged[k], merged[count - 1 - k] = merged[count - 1 - k], merged[k]
    return count


@helper
def restride(t, shape, strides, axes, to, to_axes, w):
    """Write the strides of a window over another cut of its shape to `w`, behind its words."""
    if axes == 1 and to_axes == 1:  # most are, and division takes long
        w[WINDOW] = t[strides] if to[0] != 1 else 0
        return
    i = axes - 1
    left = 1
    step = 0
    for k in range(to_axes - 1, -1, -1):
        extent = to[k]
        while left == 1 and i >= 0:
            left = t[shape + i]
            step = t[strides + i]
            i -= 1
        w[WINDOW + k] = step if extent != 1 else 0
        left //= extent
        step *= extent


@helper
def any_active(tape, known):
    """Whether an active instruction is among those that an operand meets."""
    found = False
    for p in range(tape.low[known], tape.high[known] + 1):
        found |= tape.active[p] != 0
    return found
