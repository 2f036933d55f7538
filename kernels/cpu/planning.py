"""Finding regions in the columns of a tape: the entries of the planner's library.

`partition` cuts stretches of array instructions into regions, `find_active` says where adjoints
flow, and `schedule` in which order things are to be run; those that write programs are in
`writing.py`. `tapegrad.regions.plan` calls them and explains what surrounds them. What they work on
are records, whose addresses they are called with: see `planned.py`.
"""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

from numba.types import int64

from tapegrad.kernels.cpu.jit import entry
from tapegrad.kernels.cpu.jit import part as helper
from tapegrad.kernels.cpu.planned import (
    AXES,
    BINARY,
    BY_OTHERS,
    BY_REGIONS,
    CELLS,
    CONST,
    HOST,
    INDEXED,
    INPUT,
    LANES,
    TERNARY,
    any_active,
    extents_at,
    is_flat,
    merge_shape,
    producer,
    reach,
    rows_at,
    seeds_at,
    steps_at,
    tape_at,
)
from tapegrad.kernels.cpu.writing import choose_sets, finish, write

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
        for p in range(low if low > 0 else 0, high + 1):
            marks[p] |= mark


@helper
def producer_before(tape, i, known, cell):
    """Return what `producer` does for an operand of instruction `i`, from where it often lies."""
    if i > 0:
        first = tape.first
        if first[i - 1] <= cell and cell < first[i]:  # derived code has constants behind all cells
            return i - 1
        p = tape.low[known - 3]  # where this operand of the instruction before lies
        if first[p] <= cell and cell < first[p + 1]:
            return p
    return producer(tape.first, tape.n, cell)


@helper
def find_operand(tape, i, t, where, axes, shape, lanes, known):
    """Say at `known` which instructions an operand meets; return whether it is one, by lanes."""
    low, high = reach(t, where, axes, shape, tape.x)
    first = tape.first
    p = producer_before(tape, i, known, low)
    q = p if p >= 0 and high < first[p + 1] else producer(first, tape.n, high)
    tape.low[known] = p if p > 0 else 0
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
    merged = extents.merged
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
                if find_operand(tape, i, t, where, axes, shape, lanes, known):
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
        held += 1
        join(tape, extents, i, current, after)
        link_operands(tape, i, current, operands, exact)
    return count


@helper
def join(tape, extents, i, r, axes):
    """Let an instruction be the last of a region, whose shape has been merged with its own."""
    tape.region[i] = r
    extents.last[r] = i
    extents.axes[r] = axes
    for axis in range(axes):
        extents.shape[r, axis] = extents.merged[axis]


@helper
def link_operands(tape, i, r, operands, exact):
    """Link operands to the instructions of their region; mark those that are used from outside."""
    for k in range(operands):
        known = 3 * i + k
        p = tape.low[known]
        if exact >> k & 1 and tape.region[p] == r:
            tape.link[known] = p
            continue
        while p <= tape.high[known]:
            tape.outside[p] |= BY_REGIONS
            p += 1


# -- where adjoints flow ---------------------------------------------------------------------------


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
        Addresses of records; `Tape.active`, `entered`, `cleared` and `in_arena` are filled in.
    seeds : int
        Address of a record: `Seeds`, whose `start` is used up.

    Scalar instructions and those of the host are taken to be active.
    """
    mark_active(tape_at(tape), rows_at(rows), seeds_at(seeds))
    return 0


@helper
def mark_active(tape, rows, seeds):
    """Do what `find_active` says."""
    active = tape.active
    wanted = seeds.start
    for i in range(tape.n):
        o = tape.op[tape.i0 + i]
        if o == INPUT:
            active[i] = seeds.wanted[tape.a[tape.i0 + i]]
            if wanted[i]:  # adjoints start there, too
                tape.in_arena[tape.a[tape.i0 + i]] = 1
        elif o == CONST:
            active[i] = 0
        elif tape.region[i] < 0:
            active[i] = 1
        else:
            active[i] = depends_on_active(tape, rows, i)
        outside = tape.outside[i]
        given = (wanted[i] != 0) | (o == HOST)
        tape.entered[i] = given | (outside != 0)
        # What does not flow on may arrive all the same, but from regions, which know better.
        tape.cleared[i] = given | (outside & BY_OTHERS != 0)
    for i in range(tape.n - 1, -1, -1):
        j = tape.i0 + i
        o = tape.op[j]
        if not (wanted[i] and active[i]):
            active[i] = 0
            continue
        tape.cleared[i] |= tape.entered[i]
        if (o == INPUT) | (o == CONST):
            continue
        if tape.region[i] >= 0:
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
        Address of a record, to be filled in.
    """
    return list_steps(tape_at(tape), extents_at(extents), steps_at(steps).steps)


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


def compile_all() -> dict[str, Any]:
    """Compile the planner by itself, or load it from Numba's cache; return its kernels."""
    kernels = (partition, find_active, write, schedule, choose_sets, finish)
    for kernel in kernels:
        kernel.compile((int64,) * kernel.py_func.__code__.co_argcount)
    return {kernel.__name__: kernel for kernel in kernels}
