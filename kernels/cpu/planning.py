"""Finding regions in the columns of a tape, and writing their programs.

`partition` cuts stretches of array instructions into regions. `write` turns one into a program of
`tapegrad.regions.region`: the values, and where adjoints are wanted, behind them the adjoints, from
the programs of `kernels/adjoints.py`. `tapegrad.regions.plan` calls them and explains what
surrounds them. What they work on comes as records (`kernels/cpu/records.py`), which the `_at`
functions read: plan.py writes their fields in the same order.

Instructions are counted from the first of the stretch. A sum, maximum or minimum over axes is a
HOST instruction with a descriptor in `h`: as that of an array instruction with one operand, how an
out-window makes it in the place of the opcode, followed by the strides of the result.

A value of a program is a number: results count from 0, in-windows are -1, -3, -5, ... and constants
-2, -4, -6, ... `NONE` is no value.
"""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any, NamedTuple

from numba import int64 as numba_int64
from numpy import float64, int64, uint8, uint16, uint32

from tapegrad.kernels import adjoints, allocation, opcodes
from tapegrad.kernels.cpu.jit import calling, entry, word
from tapegrad.kernels.cpu.jit import part as helper
from tapegrad.kernels.cpu.records import array_at, table_at

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
    raise ImportError("kernels/cpu/planning.py and the modules it mirrors differ")

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


class Tape(NamedTuple):
    """A tape, which stretch of it is planned, and what has been found out about that.

    Attributes
    ----------
    op, a, b, d, x, host_at, h
        The tape's columns and pools, and its host instructions: by their numbers, the place in `h`
        of the descriptor of a sum or extremum, or -1 minus the place there of a count and that many
        pairs (lowest and highest cell) of operands.
    first, region, outside
        By instruction: its first cell (and the cell after the last); its region, or -1; who uses
        its cells other than lane by lane in its region: `BY_REGIONS`, or `BY_OTHERS`, which are
        scalar instructions and those of the host.
    link, low, high
        By instruction, three operands each: the instruction of the same region whose result it is,
        lane by lane, or -1; the first and the last instruction whose cells it meets; the last comes
        before the first where there is none.
    active, entered, ties
        By instruction: whether adjoints flow through it; whether they come to it from `ADJOINTS`;
        where in `TIES` an extremum has its numbers of lanes, or -1 where nobody asks.
    own, in_arena
        By import: the number of its own buffers, or -1; set where its cells are looked for among
        all others.
    i0, n
        The stretch: from which instruction on, and how many.
    """

    op: Any
    a: Any
    b: Any
    d: Any
    x: Any
    host_at: Any
    h: Any
    first: Any
    region: Any
    outside: Any
    link: Any
    low: Any
    high: Any
    active: Any
    entered: Any
    ties: Any
    own: Any
    in_arena: Any
    i0: Any
    n: Any


@helper
def tape_at(w):
    """Return the tape that a record describes."""
    return Tape(
        array_at(w, 0, uint8), array_at(w, 2, uint32), array_at(w, 4, uint32),
        array_at(w, 6, int64), array_at(w, 8, uint32), array_at(w, 10, int64),
        array_at(w, 12, int64), array_at(w, 14, int64), array_at(w, 16, int64),
        array_at(w, 18, uint8), array_at(w, 20, int64), array_at(w, 22, int64),
        array_at(w, 24, int64), array_at(w, 26, uint8), array_at(w, 28, uint8),
        array_at(w, 30, int64), array_at(w, 32, int64), array_at(w, 34, uint8),
        word(w, 36), word(w, 37),
    )  # fmt: skip


class Extents(NamedTuple):
    """By region: its first and last instruction, and its shape."""

    first: Any
    last: Any
    axes: Any
    shape: Any


@helper
def extents_at(w):
    """Return the extents of regions that a record describes."""
    return Extents(
        array_at(w, 0, int64), array_at(w, 2, int64), array_at(w, 4, int64),
        table_at(w, 6, AXES + 2, int64),
    )  # fmt: skip


class Rows(NamedTuple):
    """What is known of the rows of the table: see `kernels/adjoints.py`.

    `kinds` and `arity` are by opcode; `extremal` has the opcodes of `EQUAL` to `WHERE`, and `add`
    is that of additions.
    """

    kinds: Any
    arity: Any
    extremal: Any
    starts: Any
    programs: Any
    received: Any
    numbers: Any
    add: Any


@helper
def rows_at(w):
    """Return the rows that a record describes."""
    return Rows(
        array_at(w, 0, uint8), array_at(w, 2, uint8), array_at(w, 4, int64), array_at(w, 6, int64),
        table_at(w, 8, 4, int64), table_at(w, 10, 3, int64), array_at(w, 12, float64), word(w, 14),
    )  # fmt: skip


class Program(NamedTuple):
    """What is written: code, windows and constants, and what is known of its values.

    Attributes
    ----------
    op, u, v, w, inputs, outputs, constants, counts
        The program: opcodes and operands, and windows; `counts` are those of instructions,
        in-windows, out-windows and constants.
    table
        Finds in-windows again. All zero in the beginning.
    value, operands
        By instruction of the tape: its value, and the values of its operands.
    adjoint_of, adjoint_in
        By result and by in-window: its adjoint so far, or `NONE`.
    slots
        Scratch: what a program of `kernels/adjoints.py` works with.
    shape, axes
        The lanes.
    """

    op: Any
    u: Any
    v: Any
    w: Any
    inputs: Any
    outputs: Any
    constants: Any
    counts: Any
    table: Any
    value: Any
    operands: Any
    adjoint_of: Any
    adjoint_in: Any
    slots: Any
    shape: Any
    axes: Any


@helper
def program_at(w):
    """Return the program that a record describes."""
    return Program(
        array_at(w, 0, int64), array_at(w, 2, int64), array_at(w, 4, int64), array_at(w, 6, int64),
        table_at(w, 8, WINDOW + AXES, int64), table_at(w, 10, WINDOW + AXES, int64),
        array_at(w, 12, float64), array_at(w, 14, int64), array_at(w, 16, int64),
        array_at(w, 18, int64), table_at(w, 20, 3, int64), array_at(w, 22, int64),
        array_at(w, 24, int64), array_at(w, 26, int64), array_at(w, 28, int64), word(w, 30),
    )  # fmt: skip


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
        extent = min(left, right)
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


# -- regions ---------------------------------------------------------------------------------------


@helper
def start_columns(tape, cell0):
    """Number cells, and say that nothing is known of any instruction."""
    cell = cell0
    for i in range(tape.n):
        tape.first[i] = cell
        cell += tape.b[tape.i0 + i] if tape.op[tape.i0 + i] <= HOST else 1
        tape.region[i] = -1
        tape.outside[i] = 0
        for k in range(3 * i, 3 * i + 3):
            tape.link[k] = -1
            tape.low[k] = 0
            tape.high[k] = -1
    tape.first[tape.n] = cell


@helper
def mark_scalar(tape, rows, j, marks, mark):
    """Mark the instructions whose cells a scalar instruction reads."""
    p = producer(tape.first, tape.n, tape.a[j])
    if p >= 0:
        marks[p] |= mark
    kind = rows.kinds[tape.op[j]]
    if (kind == BINARY) | (kind == TERNARY):
        p = producer(tape.first, tape.n, tape.b[j])
        if p >= 0:
            marks[p] |= mark


@helper
def mark_host(tape, j, marks, mark):
    """Mark the instructions whose cells a host instruction reads."""
    at = -1 - tape.host_at[tape.a[j]]
    for pair in range(tape.h[at]):
        low = producer(tape.first, tape.n, tape.h[at + 1 + 2 * pair])
        high = producer(tape.first, tape.n, tape.h[at + 2 + 2 * pair])
        for p in range(max(low, 0), high + 1):
            marks[p] |= mark


@helper
def find_operand(tape, t, where, axes, shape, lanes, known):
    """Say at `known` which instructions an operand meets; return whether it is one, by lanes."""
    low, high = reach(t, where, axes, shape, tape.x)
    first = tape.first
    p = producer(first, tape.n, low)
    q = p if p >= 0 and high < first[p + 1] else producer(first, tape.n, high)
    tape.low[known] = max(p, 0)
    tape.high[known] = q
    return (
        p == q and p >= 0 and t[where] == CELLS and first[p] == low
        and tape.op[tape.i0 + p] == LANES and high - low + 1 == lanes
        and first[p + 1] - low == lanes and is_flat(t, where, axes, shape)
    )  # fmt: skip


@helper
def uses_inside(tape, r, known):
    """Whether an operand meets instructions of a region."""
    found = False
    for p in range(tape.low[known], tape.high[known] + 1):
        found |= tape.region[p] == r
    return found


@helper
def own_shape(t, shape, axes, merged):
    """Copy a shape without its axes of one element; return how many are left, -1 for too many."""
    count = 0
    for axis in range(axes):
        if t[shape + axis] != 1:
            if count == AXES:
                return -1
            merged[count] = t[shape + axis]
            count += 1
    if count == 0:
        merged[0] = 1
        count = 1
    return count


@entry
def partition(tape, rows, extents, cell0, limit):
    """Find the regions among the instructions of a stretch of a tape.

    Parameters
    ----------
    tape, rows, extents : int
        Addresses of records: `Tape`, of which `first` to `high` are filled in, `Rows`, and
        `Extents`, which are filled in.
    cell0 : int
        The first cell of the stretch.
    limit : int
        Instructions that a region has at most, times the lanes that it runs them on together.

    Returns
    -------
    int
        The number of regions, or -1 where an instruction has more axes than regions can have.
    """
    return find_regions(tape_at(tape), rows_at(rows), extents_at(extents), cell0, limit)


@helper
def find_regions(tape, rows, extents, cell0, limit):
    """Do what `partition` says."""
    start_columns(tape, cell0)
    merged = extents.shape[len(extents.shape) - 1]  # scratch
    count = 0
    current = -1
    size = 0
    held = 0
    for i in range(tape.n):
        j = tape.i0 + i
        o = tape.op[j]
        if (o == INPUT) | (o == CONST):
            continue
        if o == HOST and tape.host_at[tape.a[j]] < 0:
            current = -1
            mark_host(tape, j, tape.outside, BY_OTHERS)
            continue
        if o != HOST and o != LANES:
            current = -1
            mark_scalar(tape, rows, j, tape.outside, BY_OTHERS)
            continue
        t = tape.d if o == LANES else tape.h
        at = int64(tape.a[j]) if o == LANES else tape.host_at[tape.a[j]]
        axes = t[at + 1]
        shape = at + 2
        operands = rows.arity[t[at]] if o == LANES else 1
        lanes = 1
        for axis in range(axes):
            lanes *= t[shape + axis]
        # Does it fit what is open? Operands from there must be met lane by lane.
        fits = current >= 0 and lanes == size and held * min(max(lanes, 16), 128) < limit
        after = 0
        if fits:
            after = merge_shape(
                extents.shape[current], extents.axes[current], t, shape, axes, merged
            )
            fits = after > 0
        where = shape + axes
        exact = 0  # a bit for each operand
        for k in range(operands):
            if t[where] == CELLS or t[where] == INDEXED:
                known = 3 * i + k
                if find_operand(tape, t, where, axes, shape, lanes, known):
                    exact |= 1 << k
                elif fits and uses_inside(tape, current, known):
                    fits = False
            where += 2 + axes
        if not fits:
            current = count
            count += 1
            size = lanes
            held = 0
            extents.first[current] = i
            after = own_shape(t, shape, axes, merged)
            if after < 0:
                return -1
        extents.axes[current] = after
        for axis in range(after):
            extents.shape[current, axis] = merged[axis]
        tape.region[i] = current
        extents.last[current] = i
        held += 1
        for k in range(operands):
            known = 3 * i + k
            p = tape.low[known]
            if exact >> k & 1 and tape.region[p] == current:
                tape.link[known] = p
                continue
            while p <= tape.high[known]:
                tape.outside[p] |= BY_REGIONS
                p += 1
    return count


# -- where adjoints flow ---------------------------------------------------------------------------


@helper
def any_active(tape, known):
    """Whether an active instruction is among those that an operand meets."""
    found = False
    for p in range(tape.low[known], tape.high[known] + 1):
        found |= tape.active[p] != 0
    return found


@helper
def receives(tape, rows, j, k):
    """Whether operand `k` of an instruction of a region has an adjoint."""
    return tape.op[j] == HOST or rows.received[tape.d[tape.a[j]], k] >= 0


@helper
def depends_on_active(tape, rows, i):
    """Whether an instruction of a region has an operand that adjoints flow to."""
    for k in range(3):
        if any_active(tape, 3 * i + k) and receives(tape, rows, tape.i0 + i, k):
            return 1
    return 0


@entry
def find_active(tape, rows, seeds):
    """Mark the instructions that adjoints flow through, from the seeds to the imports.

    Parameters
    ----------
    tape, rows : int
        Addresses of records; `Tape.active` is filled in.
    seeds : int
        Address of a record of two arrays: by import, whether its adjoint is wanted; and by
        instruction whether the sweep starts there, which is used up.

    Scalar instructions and those of the host are taken to be active.
    """
    mark_active(tape_at(tape), rows_at(rows), array_at(seeds, 0, uint8), array_at(seeds, 2, uint8))
    return 0


@helper
def mark_active(tape, rows, input_active, wanted):
    """Do what `find_active` says."""
    active = tape.active
    for i in range(tape.n):
        o = tape.op[tape.i0 + i]
        if o == INPUT:
            active[i] = input_active[tape.a[tape.i0 + i]]
        elif o == CONST:
            active[i] = 0
        elif tape.region[i] < 0:
            active[i] = 1
        else:
            active[i] = depends_on_active(tape, rows, i)
    for i in range(tape.n - 1, -1, -1):
        j = tape.i0 + i
        o = tape.op[j]
        if not (wanted[i] and active[i]):
            active[i] = 0
        elif (o == INPUT) | (o == CONST):
            continue
        elif tape.region[i] >= 0:
            for k in range(3):
                known = 3 * i + k
                if tape.high[known] >= tape.low[known] and receives(tape, rows, j, k):
                    for p in range(tape.low[known], tape.high[known] + 1):
                        wanted[p] = 1
        elif o == HOST:
            mark_host(tape, j, wanted, 1)
        else:
            mark_scalar(tape, rows, j, wanted, 1)
            if rows.kinds[o] == TERNARY:  # the CARRY before it has its first operand
                wanted[i - 1] = 1


# -- programs --------------------------------------------------------------------------------------


@helper
def append(to, o, x, y, z):
    """Append an instruction and return its value."""
    i = to.counts[0]
    to.op[i] = o
    to.u[i] = x
    to.v[i] = y
    to.w[i] = z
    to.counts[0] = i + 1
    return i


@helper
def window_found(to):
    """Return the value of the in-window that was begun, which may be one of those before it."""
    inputs = to.inputs
    table = to.table
    n = to.counts[1]
    last = WINDOW + to.axes
    mask = len(table) - 1
    mixed = 0
    for place in range(1, last):
        mixed = (mixed * 31 + inputs[n, place]) & 0xFFFFFFFF
    slot = (mixed ^ (mixed >> 15)) & mask
    while table[slot] > 0:
        known = table[slot] - 1
        same = True
        for place in range(1, last):
            if inputs[known, place] != inputs[n, place]:
                same = False
                break
        if same:
            return -1 - 2 * known
        slot = (slot + 1) & mask
    table[slot] = n + 1
    to.counts[1] = n + 1
    return -1 - 2 * n


@helper
def set_window(w, value, buffer, place, how):
    """Write the words of a window that come before its strides."""
    w[0] = value
    w[1] = buffer
    w[2] = place
    w[3] = -1
    w[4] = 0
    w[5] = how


@helper
def next_window(to, value, buffer, place):
    """Begin the in-window `to.inputs[to.counts[1]]`; `window_found` ends it."""
    set_window(to.inputs[to.counts[1]], value, buffer, place, 0)


@helper
def next_output(to, value, buffer, place, how):
    """Append an out-window, but for its strides; return its number."""
    number = to.counts[2]
    to.counts[2] = number + 1
    set_window(to.outputs[number], value, buffer, place, how)
    return number


@helper
def result_window(tape, to, i, w):
    """Write the strides of a window on the cells of an instruction."""
    j = tape.i0 + i
    if tape.op[j] == HOST:
        at = tape.host_at[tape.a[j]]
        axes = tape.h[at + 1]
        restride(tape.h, at + 2, at + 4 + 2 * axes, axes, to.shape, to.axes, w)
        return
    step = 1
    for axis in range(to.axes - 1, -1, -1):
        w[WINDOW + axis] = step if to.shape[axis] != 1 else 0
        step *= to.shape[axis]


@helper
def source_of(tape, known, low, high, w):
    """Say in `w` which buffer holds the values of the cells from `low` to `high`.

    Returns what is to be subtracted from numbers of cells.
    """
    p = tape.low[known]
    if tape.high[known] == p and low >= tape.first[p] and tape.op[tape.i0 + p] == INPUT:
        own = tape.own[tape.a[tape.i0 + p]]
        if own >= 0:
            w[1] = IMPORTS + 2 * own
            return tape.first[p]
    w[1] = VALUES
    for s in range(p, tape.high[known] + 1):
        if tape.op[tape.i0 + s] == INPUT:
            tape.in_arena[tape.a[tape.i0 + s]] = 1
    return 0


@helper
def window_value(tape, to, t, where, axes, shape, known):
    """Return the value of an operand that is brought in by a window."""
    kind = t[where]
    next_window(to, 0, POOL, t[where + 1])
    w = to.inputs[to.counts[1]]
    restride(t, shape, where + 2, axes, to.shape, to.axes, w)
    if kind != CONSTANT:
        low, high = reach(t, where, axes, shape, tape.x)
        shift = source_of(tape, known, low, high, w)
        if kind == INDEXED:
            w[3] = INDICES
            w[4] = -shift
        else:
            w[2] -= shift
    return window_found(to)


@helper
def find_constant(to, number):
    """Return the value that is a number in every lane."""
    constants = to.constants
    for k in range(to.counts[3]):
        if constants[k] == number or (constants[k] != constants[k] and number != number):
            return -2 - 2 * k
    constants[to.counts[3]] = number
    to.counts[3] += 1
    return -2 - 2 * (to.counts[3] - 1)


@helper
def write_values(tape, rows, to, r, start, stop, mode):
    """Write what a region computes, and carry out what is stored."""
    for i in range(start, stop):
        if tape.region[i] != r:
            continue
        o = tape.op[tape.i0 + i]
        t = tape.d if o == LANES else tape.h
        at = int64(tape.a[tape.i0 + i]) if o == LANES else tape.host_at[tape.a[tape.i0 + i]]
        axes = t[at + 1]
        where = at + 2 + axes
        ids = to.operands[i - start]
        ids[0] = ids[1] = ids[2] = 0
        for k in range(rows.arity[t[at]] if o == LANES else 1):
            if tape.link[3 * i + k] >= 0:
                ids[k] = to.value[tape.link[3 * i + k]]
            else:
                ids[k] = window_value(tape, to, t, where, axes, at + 2, 3 * i + k)
            where += 2 + axes
        to.value[i] = append(to, t[at], ids[0], ids[1], ids[2]) if o == LANES else ids[0]
        stored = mode & STORE_ALL
        stored |= mode & STORE_OUTSIDE and tape.outside[i]
        stored |= mode & STORE_SUMS and o == HOST
        if stored:
            how = t[at] if o == HOST else 0
            number = next_output(to, to.value[i], VALUES, tape.first[i], how)
            result_window(tape, to, i, to.outputs[number])


@helper
def chosen_lanes(tape, rows, to, i):
    """Return the value that says which lanes have the extreme that instruction `i` is.

    A nan has made the extreme nan, so it is one of them.
    """
    x = to.value[i]
    next_window(to, 0, VALUES, tape.first[i])
    result_window(tape, to, i, to.inputs[to.counts[1]])
    same = append(to, rows.extremal[EQUAL], x, window_found(to), 0)
    return append(to, rows.extremal[OR], same, append(to, rows.extremal[ISNAN], x, 0, 0), 0)


@helper
def count_ties(tape, rows, to, r, start, stop):
    """Carry out how many lanes have each extreme."""
    for i in range(start, stop):
        if tape.region[i] == r and tape.ties[i] >= 0:
            chosen = chosen_lanes(tape, rows, to, i)
            number = next_output(to, chosen, TIES, tape.ties[i], 0)
            result_window(tape, to, i, to.outputs[number])


@helper
def share_of(tape, rows, to, i, seed):
    """Return the adjoint of an extreme's operand: lanes that have the extreme share alike."""
    chosen = chosen_lanes(tape, rows, to, i)
    next_window(to, 0, TIES, tape.ties[i])
    result_window(tape, to, i, to.inputs[to.counts[1]])
    share = append(to, rows.extremal[DIVIDE], seed, window_found(to), 0)
    return append(to, rows.extremal[WHERE], chosen, share, find_constant(to, 0.0))


@helper
def adjoint_of(tape, rows, to, i):
    """Return the adjoint of an instruction's result: what came from outside, and from inside."""
    seed = NONE
    if tape.entered[i]:
        next_window(to, 0, ADJOINTS, tape.first[i])
        result_window(tape, to, i, to.inputs[to.counts[1]])
        seed = window_found(to)
    if tape.op[tape.i0 + i] == LANES:
        known = to.adjoint_of[to.value[i]]
        if known != NONE:
            seed = known if seed == NONE else append(to, rows.add, known, seed, 0)
    return seed


@helper
def operand_of(rows, to, slot):
    """Return the value that a slot of a program of `kernels/adjoints.py` stands for."""
    if slot >= CONSTANT_SLOT:
        return find_constant(to, rows.numbers[slot - CONSTANT_SLOT])
    return to.slots[slot]


@helper
def write_partials(rows, to, row):
    """Write the adjoints of a row's operands; `to.slots` has operands, result and adjoint."""
    slots = to.slots
    start = rows.starts[row]
    for line in range(start, rows.starts[row + 1]):
        o = rows.programs[line, 0]
        arity = rows.arity[o]
        x = operand_of(rows, to, rows.programs[line, 1])
        y = operand_of(rows, to, rows.programs[line, 2]) if arity > 1 else 0
        z = operand_of(rows, to, rows.programs[line, 3]) if arity > 2 else 0
        slots[TEMPORARY + line - start] = append(to, o, x, y, z)


@helper
def accumulate(rows, to, value, amount):
    """Add an amount to the adjoint of a value."""
    if value >= 0:
        known = to.adjoint_of[value]
        to.adjoint_of[value] = amount if known == NONE else append(to, rows.add, known, amount, 0)
    elif value % 2:
        known = to.adjoint_in[(-1 - value) // 2]
        if known != NONE:
            amount = append(to, rows.add, known, amount, 0)
        to.adjoint_in[(-1 - value) // 2] = amount


@helper
def write_adjoints(tape, rows, to, r, start, stop):
    """Write the adjoints of a region's values, from the last to the first."""
    for i in range(stop - 1, start - 1, -1):
        if tape.region[i] != r or not tape.active[i]:
            continue
        seed = adjoint_of(tape, rows, to, i)
        if seed == NONE:
            continue
        ids = to.operands[i - start]
        if tape.op[tape.i0 + i] == HOST:
            if tape.ties[i] >= 0:
                seed = share_of(tape, rows, to, i, seed)
            if any_active(tape, 3 * i):
                accumulate(rows, to, ids[0], seed)
            continue
        row = tape.d[tape.a[tape.i0 + i]]
        slots = to.slots
        for k in range(3):
            slots[k] = ids[k]
        slots[OUT] = to.value[i]
        slots[SEED] = seed
        write_partials(rows, to, row)
        for k in range(3):
            slot = rows.received[row, k]
            if slot >= 0 and any_active(tape, 3 * i + k):
                accumulate(rows, to, ids[k], operand_of(rows, to, slot))


@helper
def carry_adjoints(to, count):
    """Carry the adjoints of the first in-windows to where their values came from."""
    for k in range(count):
        if to.adjoint_in[k] != NONE:
            w = to.outputs[to.counts[2]]
            to.counts[2] += 1
            for place in range(WINDOW + to.axes):
                w[place] = to.inputs[k, place]
            w[0] = to.adjoint_in[k]
            w[1] = ADJOINTS if w[1] == VALUES else w[1] + 1
            w[5] = 1


@entry
def write(tape, rows, to, r, start, stop, mode):
    """Write the program of region `r`, whose instructions lie from `start` to `stop`.

    Parameters
    ----------
    tape, rows, to : int
        Addresses of records; `Program` is filled in.
    mode : int
        `STORE_ALL`, or `STORE_OUTSIDE` and `STORE_SUMS`: which values are carried out. `REVERSE`:
        their adjoints are taken from `ADJOINTS`, and those of operands carried out; or
        `COUNT_TIES`: how many lanes have each extreme.
    """
    write_program(tape_at(tape), rows_at(rows), program_at(to), r, start, stop, mode)
    return 0


@helper
def write_program(tape, rows, to, r, start, stop, mode):
    """Do what `write` says."""
    for k in range(4):
        to.counts[k] = 0
    write_values(tape, rows, to, r, start, stop, mode)
    if mode & COUNT_TIES:
        count_ties(tape, rows, to, r, start, stop)
    if mode & REVERSE:
        for i in range(to.counts[0]):
            to.adjoint_of[i] = NONE
        forward = to.counts[1]
        for k in range(forward):
            to.adjoint_in[k] = NONE
        write_adjoints(tape, rows, to, r, start, stop)
        carry_adjoints(to, forward)


# -- what is to be run, in which order -------------------------------------------------------------


@entry
def schedule(tape, extents, steps):
    """List what is to be run, in order; return how many steps that takes.

    A region comes where its last instruction stands. Imports and constants between its instructions
    come before it.

    Parameters
    ----------
    tape, extents : int
        Addresses of records.
    steps : int
        Address of a record of one table, to be filled in: region or -1 for scalars or -2 for a
        host, from, to.
    """
    return list_steps(tape_at(tape), extents_at(extents), table_at(steps, 0, 3, int64))


@helper
def list_steps(tape, extents, steps):
    """Do what `schedule` says."""
    count = 0
    i = 0
    while i < tape.n:
        start = i
        kind = tape.region[i]
        i += 1
        if kind >= 0:
            if extents.last[kind] != start:
                continue
        elif tape.op[tape.i0 + start] == HOST:
            kind = -2
        else:
            while i < tape.n and tape.region[i] < 0 and tape.op[tape.i0 + i] != HOST:
                i += 1
        steps[count, 0] = kind
        steps[count, 1] = start
        steps[count, 2] = i
        count += 1
    return count


# -- the last form of programs ---------------------------------------------------------------------


@entry
def choose_sets(to, imports):
    """Let the first windows on each import's adjoints replace, so that nothing need be zero.

    Parameters
    ----------
    to : int
        Address of a record: `Program`.
    imports : int
        Address of a record of arrays by import with its own buffers: its size; whether its adjoints
        have been written before; and, to be filled in, what must be made zero first: from, to,
        from, to.
    """
    replace(
        program_at(to), array_at(imports, 0, int64), array_at(imports, 2, uint8),
        table_at(imports, 4, 4, int64),
    )  # fmt: skip
    return 0


@helper
def replace(to, sizes, touched, blank):
    """Do what `choose_sets` says."""
    for own in range(len(touched)):
        for k in range(4):
            blank[own, k] = 0
        if touched[own]:
            continue
        lead = -1
        found = 0
        for i in range(to.counts[2]):
            w = to.outputs[i]
            if w[1] != IMPORTS + 2 * own + 1:
                continue
            found += 1
            flat = w[3] < 0
            step = 1
            for axis in range(to.axes - 1, -1, -1):
                if to.shape[axis] != 1 and w[WINDOW + axis] != step:
                    flat = False
                step *= to.shape[axis]
            if flat and (lead < 0 or w[2] > to.outputs[lead, 2]):
                lead = i
        if found == 0:
            continue
        touched[own] = 1
        if lead < 0:
            blank[own, 1] = sizes[own]
            continue
        lanes = 1
        for axis in range(to.axes):
            lanes *= to.shape[axis]
        to.outputs[lead, 5] = 0
        blank[own, 1] = to.outputs[lead, 2]
        blank[own, 2] = to.outputs[lead, 2] + lanes
        blank[own, 3] = sizes[own]


@helper
def number(value, constants, fixed):
    """Return the number of a value among all: constants, in-windows, results."""
    if value >= 0:
        return fixed + value
    return constants + (-1 - value) // 2 if value % 2 else (-2 - value) // 2


@entry
def finish(to, rows, room):
    """Give values rows, as few as liveness allows; return how many, and in `counts` the code left.

    Parameters
    ----------
    to, rows : int
        Addresses of records.
    room : int
        Address of a record of arrays by value: `kept` to `free` of
        `tapegrad.kernels.allocation.allocate`; and the code that is left.
    """
    return give_rows(
        program_at(to), rows_at(rows), array_at(room, 0, uint8), array_at(room, 2, int64),
        array_at(room, 4, int64), array_at(room, 6, int64), table_at(room, 8, 5, uint16),
    )  # fmt: skip


@helper
def give_rows(to, rows, kept, last, row, free, code):
    """Do what `finish` says."""
    m, constants = to.counts[0], to.counts[3]
    fixed = constants + to.counts[1]
    for i in range(m):
        to.u[i] = number(to.u[i], constants, fixed)
        to.v[i] = number(to.v[i], constants, fixed)
        to.w[i] = number(to.w[i], constants, fixed)
    for value in range(fixed + m):
        kept[value] = 0
    for i in range(to.counts[2]):
        value = number(to.outputs[i, 0], constants, fixed)
        to.outputs[i, 0] = value
        kept[value] = 1
    left, count = allocate(
        to.op[:m], to.u, to.v, to.w, rows.arity, fixed, kept, last, row, free, code
    )
    for k in range(to.counts[1]):
        to.inputs[k, 0] = constants + k
    for i in range(to.counts[2]):
        to.outputs[i, 0] = row[to.outputs[i, 0]]
    to.counts[0] = left
    return count


allocate = helper(calling(allocation.allocate, allocation.find_last_uses))


def compile_all() -> dict[str, Any]:
    """Compile the planner by itself, or load it from Numba's cache; return its kernels."""
    kernels = (partition, find_active, write, schedule, choose_sets, finish)
    for kernel in kernels:
        kernel.compile((numba_int64,) * kernel.py_func.__code__.co_argcount)
    return {kernel.__name__: kernel for kernel in kernels}
