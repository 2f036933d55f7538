"""Writing the programs of regions, as `tapegrad.regions.region` describes them.

`write` writes what a region computes, and where adjoints are wanted, behind it the adjoints, from
the programs of `kernels/adjoints.py`. `choose_sets` says which windows replace, and `finish` gives
values their rows.
"""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from numba.types import int64

from tapegrad.kernels import allocation
from tapegrad.kernels.cpu.jit import calling, entry
from tapegrad.kernels.cpu.jit import part as helper
from tapegrad.kernels.cpu.planned import (
    ADJOINTS,
    CONSTANT,
    CONSTANT_SLOT,
    COUNT_TIES,
    DIVIDE,
    EQUAL,
    HOST,
    IMPORTS,
    INDEXED,
    INDICES,
    INPUT,
    ISNAN,
    LANES,
    NONE,
    OR,
    OUT,
    POOL,
    REVERSE,
    SEED,
    STORE_ALL,
    STORE_OUTSIDE,
    STORE_SUMS,
    TEMPORARY,
    TIES,
    VALUES,
    WHERE,
    WINDOW,
    any_active,
    imports_at,
    program_at,
    reach,
    restride,
    room_at,
    rows_at,
    tape_at,
)

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
    mask = to.mask
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


# -- the last form of programs ---------------------------------------------------------------------


@entry
def choose_sets(to, imports):
    """Let the first windows on each import's adjoints replace, so that nothing need be zero.

    Parameters
    ----------
    to, imports : int
        Addresses of records: `Program`, and `Imports`, where `blank` is filled in.
    """
    replace(program_at(to), imports_at(imports))
    return 0


@helper
def replace(to, imports):
    """Do what `choose_sets` says."""
    touched, sizes, blank = imports.touched, imports.sizes, imports.blank
    for own in range(imports.count):
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
        Address of a record.
    """
    return give_rows(program_at(to), rows_at(rows), room_at(room))


@helper
def give_rows(to, rows, room):
    """Do what `finish` says."""
    kept, row = room.kept, room.row
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
        m, to.op, to.u, to.v, to.w, rows.arity, fixed, kept, room.last, row, room.free, room.code
    )
    for k in range(to.counts[1]):
        to.inputs[k, 0] = constants + k
    for i in range(to.counts[2]):
        to.outputs[i, 0] = row[to.outputs[i, 0]]
    to.counts[0] = left
    return count


allocate = helper(calling(allocation.allocate, allocation.find_last_uses))
