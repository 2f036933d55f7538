"""Finding regions in the columns of a tape, and writing their programs.

`partition` cuts stretches of array instructions into regions. `write` turns one into a program of
`tapegrad.regions.region`: the values, and where adjoints are wanted, behind them the adjoints, from
the programs of `kernels/adjoints.py`. `tapegrad.regions.plan` calls both and explains what
surrounds them.

Instructions are counted from the first of the stretch, and `first` has the first cell of each. A
sum, maximum or minimum over axes is a HOST instruction with a descriptor in `h`: as that of an
array instruction with one operand, how an out-window makes it in the place of the opcode, followed
by the strides of the result.

A value of a program is a number: results count from 0, in-windows are -1, -3, -5, ... and constants
-2, -4, -6, ... `NONE` is no value.
"""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from tapegrad.kernels import adjoints, opcodes
from tapegrad.kernels.cpu.jit import helper, kernel

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
        low = np.int64(x[place])
        high = low
        for i in range(place, places + 1):
            cell = np.int64(x[i])
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


@kernel
def partition(
    op, a, b, d, x, kinds, arity, host_at, h, i0, n, cell0, limit,
    first, region, outside, link, r_first, r_last, r_axes, r_shape,
):  # fmt: skip
    """Find the regions among the `n` instructions from `i0` on.

    Parameters
    ----------
    host_at
        By host instruction: place in `h` of the descriptor of a sum or extremum, or -1 minus the
        place there of a count and that many pairs (lowest and highest cell) of operands.
    limit : int
        Instructions that a region has at most.
    first
        Filled in: first cell by instruction, and the cell after the last.
    region
        Filled in: region by instruction, or -1.
    outside
        Filled in: who uses an instruction's cells other than lane by lane in its region:
        `BY_REGIONS`, or `BY_OTHERS`, which are scalar instructions and those of the host.
    link
        Filled in, by instruction and operand: the instruction of the same region whose result it
        is, lane by lane, or -1.
    r_first, r_last, r_axes, r_shape
        Filled in, by region: its first and last instruction, and its shape.

    Returns
    -------
    int
        The number of regions, or -1 where an instruction has more axes than regions can have.
    """
    cell = cell0
    for i in range(n):
        first[i] = cell
        o = op[i0 + i]
        cell += b[i0 + i] if o <= HOST else 1
        region[i] = -1
        outside[i] = 0
        link[i, 0] = link[i, 1] = link[i, 2] = -1
    first[n] = cell
    low_of, high_of = np.zeros(3, np.int64), np.zeros(3, np.int64)
    exact_of = np.zeros(3, np.bool_)
    merged = r_shape[len(r_shape) - 1]  # scratch
    count = 0
    current = -1
    size = 0
    held = 0
    for i in range(n):
        j = i0 + i
        o = op[j]
        if o in (INPUT, CONST):
            continue
        if o != LANES and not (o == HOST and host_at[a[j]] >= 0):
            current = -1
            if o == HOST:
                at = -1 - host_at[a[j]]
                for pair in range(h[at]):
                    low = producer(first, n, h[at + 1 + 2 * pair])
                    high = producer(first, n, h[at + 2 + 2 * pair])
                    for p in range(max(low, 0), high + 1):
                        outside[p] |= BY_OTHERS
            else:
                p = producer(first, n, a[j])
                if p >= 0:
                    outside[p] |= BY_OTHERS
                if kinds[o] == BINARY or kinds[o] == TERNARY:
                    p = producer(first, n, b[j])
                    if p >= 0:
                        outside[p] |= BY_OTHERS
            continue
        t = d if o == LANES else h
        at = a[j] if o == LANES else host_at[a[j]]
        axes = t[at + 1]
        shape = at + 2
        operands = arity[t[at]] if o == LANES else 1
        lanes = 1
        for axis in range(axes):
            lanes *= t[shape + axis]
        # Does it fit what is open? Operands from there must be met lane by lane.
        fits = current >= 0 and lanes == size and held < limit
        if fits:
            after = merge_shape(r_shape[current], r_axes[current], t, shape, axes, merged)
            fits = after > 0
        where = shape + axes
        for k in range(operands):
            kind = t[where]
            low_of[k] = n
            if kind in (CELLS, INDEXED):
                low, high = reach(t, where, axes, shape, x)
                p = producer(first, n, low)
                q = p if p >= 0 and high < first[p + 1] else producer(first, n, high)
                exact = (
                    p == q and p >= 0 and kind == CELLS and first[p] == low
                    and op[i0 + p] == LANES and high - low + 1 == lanes
                    and first[p + 1] - low == lanes and is_flat(t, where, axes, shape)
                )  # fmt: skip
                low_of[k] = max(p, 0)
                high_of[k] = q
                exact_of[k] = exact
                if fits and not exact:
                    for s in range(max(p, 0), q + 1):
                        if region[s] == current:
                            fits = False
                            break
            where += 2 + axes
        if not fits:
            current = count
            count += 1
            size = lanes
            held = 0
            r_first[current] = i
            after = 0
            for axis in range(axes):
                if t[shape + axis] != 1:
                    if after == AXES:
                        return -1
                    merged[after] = t[shape + axis]
                    after += 1
            if after == 0:
                merged[0] = 1
                after = 1
        r_axes[current] = after
        for axis in range(after):
            r_shape[current, axis] = merged[axis]
        region[i] = current
        r_last[current] = i
        held += 1
        for k in range(operands):
            if low_of[k] == n:
                continue
            if exact_of[k] and region[low_of[k]] == current:
                link[i, k] = low_of[k]
                continue
            for s in range(low_of[k], high_of[k] + 1):
                outside[s] |= BY_REGIONS
    return count


@helper
def any_active(active, first, n, low, high):
    """Whether an active instruction has cells from `low` to `high`."""
    for p in range(max(producer(first, n, low), 0), producer(first, n, high) + 1):
        if active[p]:
            return True
    return False


@kernel
def find_active(
    op, a, b, d, x, kinds, arity, received, host_at, h, i0, n, first, region, link, input_active,
    seeded, active,
):  # fmt: skip
    """Mark the instructions that adjoints flow through, from the seeds to the imports.

    `input_active` says by import whether its adjoint is wanted, and `seeded` by instruction whether
    the sweep starts there. Scalar instructions and those of the host are taken to be active.
    """
    for i in range(n):
        o = op[i0 + i]
        active[i] = 0
        if o == INPUT:
            active[i] = input_active[a[i0 + i]]
        elif o == CONST:
            continue
        elif region[i] < 0:
            active[i] = 1
        else:
            t = d if o == LANES else h
            at = a[i0 + i] if o == LANES else host_at[a[i0 + i]]
            axes = t[at + 1]
            shape = at + 2
            where = shape + axes
            for k in range(arity[t[at]] if o == LANES else 1):
                kind = t[where]
                if (kind in (CELLS, INDEXED)) and (o == HOST or received[t[at], k] >= 0):
                    low, high = reach(t, where, axes, shape, x)
                    if any_active(active, first, n, low, high):
                        active[i] = 1
                where += 2 + axes
    reached = np.zeros(n, np.uint8)
    for i in range(n - 1, -1, -1):
        j = i0 + i
        o = op[j]
        if seeded[i]:
            reached[i] = 1
        if not (reached[i] and active[i]):
            active[i] = 0
            continue
        if o in (INPUT, CONST):
            continue
        if region[i] >= 0:
            t = d if o == LANES else h
            at = a[j] if o == LANES else host_at[a[j]]
            axes = t[at + 1]
            shape = at + 2
            where = shape + axes
            for k in range(arity[t[at]] if o == LANES else 1):
                kind = t[where]
                if (kind in (CELLS, INDEXED)) and (o == HOST or received[t[at], k] >= 0):
                    low, high = reach(t, where, axes, shape, x)
                    last = producer(first, n, high)
                    for p in range(max(producer(first, n, low), 0), last + 1):
                        reached[p] = 1
                where += 2 + axes
        elif o == HOST:
            at = -1 - host_at[a[j]]
            for pair in range(h[at]):
                last = producer(first, n, h[at + 2 + 2 * pair])
                for p in range(max(producer(first, n, h[at + 1 + 2 * pair]), 0), last + 1):
                    reached[p] = 1
        else:
            p = producer(first, n, a[j])
            if p >= 0:
                reached[p] = 1
            if kinds[o] == BINARY or kinds[o] == TERNARY:
                p = producer(first, n, b[j])
                if p >= 0:
                    reached[p] = 1
                if kinds[o] == TERNARY:  # the CARRY before it has its first operand
                    reached[i - 1] = 1


@helper
def push(code, counts, o, x, y, z):
    """Append an instruction and return its value."""
    i = counts[0]
    code[0, i] = o
    code[1, i] = x
    code[2, i] = y
    code[3, i] = z
    counts[0] = i + 1
    return i


@helper
def find_window(inputs, table, counts, axes):
    """Return the value of the in-window that stands behind the others, which may be one of them."""
    n = counts[1]
    last = WINDOW + axes
    mask = len(table) - 1
    mixed = 0
    for word in range(1, last):
        mixed = (mixed * 31 + inputs[n, word]) & 0xFFFFFFFF
    slot = (mixed ^ (mixed >> 15)) & mask
    while table[slot] > 0:
        known = table[slot] - 1
        same = True
        for word in range(1, last):
            if inputs[known, word] != inputs[n, word]:
                same = False
                break
        if same:
            return -1 - 2 * known
        slot = (slot + 1) & mask
    table[slot] = n + 1
    counts[1] = n + 1
    return -1 - 2 * n


@helper
def source_of(op, a, first, n, i0, low, high, own, in_arena, w, side):
    """Say in `w` which buffer holds the cells from `low` to `high`: values, or adjoints (side 1).

    Returns what is to be subtracted from numbers of cells.
    """
    p = producer(first, n, low)
    if p >= 0 and op[i0 + p] == INPUT and high < first[p + 1] and own[a[i0 + p]] >= 0:
        w[1] = IMPORTS + 2 * own[a[i0 + p]] + side
        return first[p]
    w[1] = ADJOINTS if side else VALUES
    for s in range(max(p, 0), producer(first, n, high) + 1):
        if op[i0 + s] == INPUT:
            in_arena[a[i0 + s]] = 1
    return 0


@helper
def window_value(
    op, a, first, n, i0, own, in_arena, x,
    t, where, axes, shape, to, to_axes, inputs, table, counts,
):  # fmt: skip
    """Return the value of an operand that is brought in by a window."""
    kind = t[where]
    w = inputs[counts[1]]
    w[0] = 0
    w[2] = t[where + 1]
    w[3] = -1
    w[4] = 0
    w[5] = 0
    restride(t, shape, where + 2, axes, to, to_axes, w)
    if kind == CONSTANT:
        w[1] = POOL
        return find_window(inputs, table, counts, to_axes)
    low, high = reach(t, where, axes, shape, x)
    shift = source_of(op, a, first, n, i0, low, high, own, in_arena, w, 0)
    if kind == INDEXED:
        w[3] = INDICES
        w[4] = -shift
    else:
        w[2] -= shift
    return find_window(inputs, table, counts, to_axes)


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
def reduced_window(h, at, to, to_axes, w):
    """Write the strides of a window on the results of a sum or extremum."""
    axes = h[at + 1]
    restride(h, at + 2, at + 4 + 2 * axes, axes, to, to_axes, w)


@helper
def chosen_lanes(h, at, x, place, to, to_axes, inputs, table, code, counts, extremal):
    """Return the value that says which lanes have the extreme, whose cells start at `place`.

    A nan has made the extreme nan, so it is one of them.
    """
    set_window(inputs[counts[1]], 0, VALUES, place, 0)
    reduced_window(h, at, to, to_axes, inputs[counts[1]])
    out = find_window(inputs, table, counts, to_axes)
    same = push(code, counts, extremal[EQUAL], x, out, 0)
    return push(code, counts, extremal[OR], same, push(code, counts, extremal[ISNAN], x, 0, 0), 0)


@helper
def accumulate(code, counts, adjoint_of, adjoint_in, add, value, amount):
    """Add an amount to the adjoint of a value."""
    if value >= 0:
        known = adjoint_of[value]
        adjoint_of[value] = amount if known == NONE else push(code, counts, add, known, amount, 0)
    elif value % 2:
        known = adjoint_in[(-1 - value) // 2]
        if known != NONE:
            amount = push(code, counts, add, known, amount, 0)
        adjoint_in[(-1 - value) // 2] = amount


@helper
def find_constant(constants, counts, number):
    """Return the value that is a number in every lane."""
    for k in range(counts[3]):
        if constants[k] == number or (constants[k] != constants[k] and number != number):
            return -2 - 2 * k
    constants[counts[3]] = number
    counts[3] += 1
    return -2 - 2 * (counts[3] - 1)


@kernel
def write(
    op, a, b, d, x, arity, host_at, h, i0, n, first, region, outside, link, r, start, stop, to,
    to_axes, mode, active, entered, own, in_arena, ties, add, extremal,
    starts, programs, received, numbers,
    value, known_ids, code, inputs, outputs, table, constants, adjoint_of, adjoint_in, counts,
):  # fmt: skip
    """Write the program of region `r`, whose instructions lie from `start` to `stop`.

    Parameters
    ----------
    mode : int
        `STORE_ALL`, or `STORE_OUTSIDE` and `STORE_SUMS`: which values are carried out. `REVERSE`:
        their adjoints are taken from `ADJOINTS`, and those of operands carried out; or
        `COUNT_TIES`: how many lanes have each extreme.
    entered
        By instruction: whether adjoints come to it from `ADJOINTS`.
    own
        By import: the number of its own buffers, or -1.
    in_arena
        By import: set where its cells are looked for among all others.
    ties
        By instruction: where in `TIES` an extremum has its numbers of lanes; -1 where nobody asks.
    add
        The opcode of additions.
    extremal
        The opcodes `EQUAL` to `WHERE`.
    starts, programs, received, numbers
        The tables of `kernels/adjoints.py`.
    value, known_ids, code, inputs, outputs, table, constants, adjoint_of, adjoint_in
        Filled in. `table` is all zero.
    counts
        Filled in: instructions, in-windows, out-windows, constants.
    """
    counts[0] = counts[1] = counts[2] = counts[3] = 0
    ids = np.zeros(3, np.int64)
    for i in range(start, stop):
        if region[i] != r:
            continue
        o = op[i0 + i]
        t = d if o == LANES else h
        at = a[i0 + i] if o == LANES else host_at[a[i0 + i]]
        axes = t[at + 1]
        shape = at + 2
        where = shape + axes
        operands = arity[t[at]] if o == LANES else 1
        for k in range(operands):
            if link[i, k] >= 0:
                ids[k] = value[link[i, k]]
            else:
                ids[k] = window_value(
                    op, a, first, n, i0, own, in_arena, x,
                    t, where, axes, shape, to, to_axes, inputs, table, counts,
                )  # fmt: skip
            known_ids[i - start, k] = ids[k]
            where += 2 + axes
        stored = mode & STORE_ALL
        stored |= mode & STORE_OUTSIDE and outside[i]
        stored |= mode & STORE_SUMS and o == HOST
        if o == LANES:
            value[i] = push(
                code, counts, t[at], ids[0], ids[1] if operands > 1 else 0,
                ids[2] if operands > 2 else 0,
            )  # fmt: skip
        else:
            value[i] = ids[0]
        if stored:
            w = outputs[counts[2]]
            counts[2] += 1
            set_window(w, value[i], VALUES, first[i], t[at] if o == HOST else 0)
            if o == HOST:
                reduced_window(h, at, to, to_axes, w)
            else:
                step = 1
                for axis in range(to_axes - 1, -1, -1):
                    w[WINDOW + axis] = step
                    step *= to[axis]
    if mode & COUNT_TIES:
        for i in range(start, stop):
            if region[i] == r and ties[i] >= 0:
                at = host_at[a[i0 + i]]
                chosen = chosen_lanes(
                    h, at, value[i], first[i], to, to_axes, inputs, table, code, counts, extremal
                )
                set_window(outputs[counts[2]], chosen, TIES, ties[i], 0)
                reduced_window(h, at, to, to_axes, outputs[counts[2]])
                counts[2] += 1
    if not mode & REVERSE:
        return
    for i in range(counts[0]):
        adjoint_of[i] = NONE
    forward_inputs = counts[1]
    for k in range(forward_inputs):
        adjoint_in[k] = NONE
    slots = np.zeros(64, np.int64)
    for i in range(stop - 1, start - 1, -1):
        if region[i] != r or not active[i]:
            continue
        o = op[i0 + i]
        t = d if o == LANES else h
        at = a[i0 + i] if o == LANES else host_at[a[i0 + i]]
        axes = t[at + 1]
        shape = at + 2
        operands = arity[t[at]] if o == LANES else 1
        seed = NONE
        if entered[i]:
            w = inputs[counts[1]]
            set_window(w, 0, ADJOINTS, first[i], 0)
            if o == HOST:
                reduced_window(h, at, to, to_axes, w)
            else:
                step = 1
                for axis in range(to_axes - 1, -1, -1):
                    w[WINDOW + axis] = step if to[axis] != 1 else 0
                    step *= to[axis]
            seed = find_window(inputs, table, counts, to_axes)
        if o == LANES:
            known = adjoint_of[value[i]]
            if known != NONE:
                seed = known if seed == NONE else push(code, counts, add, known, seed, 0)
        if seed == NONE:
            continue
        for k in range(operands):
            ids[k] = known_ids[i - start, k]
        if o == LANES:
            slots[OUT] = value[i]
            slots[SEED] = seed
            for k in range(operands):
                slots[k] = ids[k]
            row = t[at]
            for line in range(starts[row], starts[row + 1]):
                for k in range(3):
                    slot = programs[line, 1 + k]
                    if k >= arity[programs[line, 0]]:
                        ids[k] = 0
                    elif slot >= CONSTANT_SLOT:
                        ids[k] = find_constant(constants, counts, numbers[slot - CONSTANT_SLOT])
                    else:
                        ids[k] = slots[slot]
                made = push(code, counts, programs[line, 0], ids[0], ids[1], ids[2])
                slots[TEMPORARY + line - starts[row]] = made
        if o == HOST and ties[i] >= 0:
            chosen = chosen_lanes(
                h, at, value[i], first[i], to, to_axes, inputs, table, code, counts, extremal
            )
            set_window(inputs[counts[1]], 0, TIES, ties[i], 0)
            reduced_window(h, at, to, to_axes, inputs[counts[1]])
            number = find_window(inputs, table, counts, to_axes)
            share = push(code, counts, extremal[DIVIDE], seed, number, 0)
            none = find_constant(constants, counts, 0.0)
            seed = push(code, counts, extremal[WHERE], chosen, share, none)
        where = shape + axes
        for k in range(operands):
            kind = t[where]
            slot = received[t[at], k] if o == LANES else SEED
            if slot >= 0 and (kind in (CELLS, INDEXED)):
                if link[i, k] >= 0:
                    flows = active[link[i, k]] != 0
                else:
                    low, high = reach(t, where, axes, shape, x)
                    flows = any_active(active, first, n, low, high)
                if flows:
                    amount = seed
                    if slot >= CONSTANT_SLOT:
                        amount = find_constant(constants, counts, numbers[slot - CONSTANT_SLOT])
                    elif o == LANES:
                        amount = slots[slot]
                    target = slots[k] if o == LANES else ids[0]
                    accumulate(code, counts, adjoint_of, adjoint_in, add, target, amount)
            where += 2 + axes
    for k in range(forward_inputs):
        if adjoint_in[k] == NONE:
            continue
        w = outputs[counts[2]]
        counts[2] += 1
        for word in range(WINDOW + to_axes):
            w[word] = inputs[k, word]
        w[0] = adjoint_in[k]
        w[1] = ADJOINTS if w[1] == VALUES else w[1] + 1
        w[5] = 1
