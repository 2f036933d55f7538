"""Deriving code from code: gradients, and derivatives one by one, as straight scalar programs.

Derivatives are appended to the code that they are derived from (`rewriting.py`), and come out
nearly as short as by hand.
"""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from numba import types

from tapegrad.kernels.cpu import ordering, rewriting
from tapegrad.kernels.cpu.jit import helper, inlined, kernel
from tapegrad.kernels.cpu.rewriting import (
    ADD,
    AND,
    MULTIPLY,
    NONE,
    OR,
    ROLE,
    WHERE,
    bare,
    code_type,
    constant,
    counted_by_nobody,
    emit,
    has_room,
    int64,
    operand,
)

NOTHING = -(1 << 31)
"""In the place of a cell or constant: there is none."""

FLOWS = 3 * 256  # see below

# `programs` has for each partial, at 3 * opcode + operand, and FLOWS later for the condition under
# which it flows: the first step, or -1 for no program, the step after the last, and what names its
# value. In steps, 0, 1, 2 are operands, 3 is the result of the row, 4 + t is step t of the program,
# and negative numbers are constants.


@helper
def run(code, programs, entry, c, scratch):
    """Emit a program of `code.steps` for the operands of a cell; return what it gives."""
    x, y, z = operand(code, c, 0), operand(code, c, 1), operand(code, c, 2)
    first = programs[entry, 0]
    for t in range(first, programs[entry, 1]):
        for j in range(3):
            name = code.steps[t, j + 1]
            if name >= 4:
                scratch[j] = scratch[name]
            elif name < 0:
                scratch[j] = name
            else:
                scratch[j] = x if name == 0 else y if name == 1 else z if name == 2 else c
        o = code.steps[t, 0]
        scratch[4 + t - first] = emit(code, True, o, scratch[0], scratch[1], scratch[2])
    name = programs[entry, 2]
    if name >= 4:
        return scratch[name]
    if name < 0:
        return name
    return x if name == 0 else y if name == 1 else z if name == 2 else c


@helper
def partial(code, programs, o, j, c, scratch):
    """Return the partial of cell `c`, of opcode `o`, to its operand `j`, or NOTHING for none.

    The other answer is the condition under which something flows: a cell, or NOTHING for always.
    """
    entry = 3 * o + j
    condition = int64(NOTHING)
    result = int64(NOTHING)
    if programs[entry, 0] < 0:
        return result, condition
    for turn in range(2):
        at = entry + FLOWS if turn == 0 else entry
        if programs[at, 0] < 0:
            continue
        found = run(code, programs, at, c, scratch)
        if turn == 1:
            result = found
        elif found >= 0:
            condition = found
        elif code.k[-1 - found] == 0.0:
            return result, condition
    return result, condition


@kernel
def reach_forward(code, programs, active, stop):
    """Mark cells that derivatives may flow to from marked ones."""
    for c in range(stop):
        o = int64(code.ins[c, 0])
        if o == 0:
            continue
        for j in range(3):
            p = operand(code, c, j)
            if programs[3 * o + j, 0] >= 0 and p >= 0 and active[p]:
                active[c] = 1


@kernel
def reach_backward(code, programs, needed, stop):
    """Mark cells that derivatives of marked ones may flow from."""
    for c in range(stop - 1, -1, -1):
        o = int64(code.ins[c, 0])
        if o == 0 or needed[c] == 0:
            continue
        for j in range(3):
            p = operand(code, c, j)
            if programs[3 * o + j, 0] >= 0 and p >= 0:
                needed[p] = 1


@inlined
def received(code, zero, w, mask, d, flow, before, open_):
    """Return what the adjoint of an operand becomes, and its condition.

    That is `before` under the condition `open_`, to which w * d is added, under `mask` and `flow`.
    """
    total = w
    # Four instructions, of which some are not needed: one call of `emit` for all.
    for turn in range(5):
        if turn == 0:
            total = emit(code, True, code.roles[ROLE + MULTIPLY], w, d, NONE)
        elif turn == 1:
            if mask != NOTHING:
                total = emit(code, True, code.roles[ROLE + WHERE], mask, total, zero)
        elif turn == 2:
            if mask != NOTHING and flow != NOTHING:
                flow = emit(code, True, code.roles[ROLE + AND], mask, flow, NONE)
            elif mask != NOTHING:
                flow = mask
        elif before != NOTHING:
            if turn == 3:
                total = emit(code, True, code.roles[ROLE + ADD], before, total, NONE)
            elif open_ != NOTHING and flow != NOTHING:
                flow = emit(code, True, code.roles[ROLE + OR], open_, flow, NONE)
            else:
                flow = int64(NOTHING)
    return total, flow


@kernel
def reverse(code, programs, active, adjoint, condition, scratch, start):
    """Append a backward sweep from cell `start` - 1 down.

    Where an adjoint is zero because a branch was not taken, it has to stay zero, whatever it is
    multiplied by: it has a condition, and what is made of it is chosen by that.

    Parameters
    ----------
    active
        By cell: whether adjoints are wanted.
    adjoint, condition
        By cell: its adjoint, and the condition under which it is not zero; NOTHING for none.

    Returns
    -------
    int
        Where room ran out, or 0.
    """
    code, programs = counted_by_nobody(code), bare(programs)
    scratch, zero = bare(scratch), constant(code, 0.0)
    for c in range(start - 1, -1, -1):
        w = int64(adjoint[c])
        o = int64(code.ins[c, 0])
        if w == NOTHING or o == 0:
            continue
        if not has_room(code, 0):
            return c + 1
        mask = int64(condition[c])
        for j in range(3):
            p = operand(code, c, j)
            if programs[3 * o + j, 0] < 0 or p < 0 or active[p] == 0:
                continue
            d, flow = partial(code, programs, o, j, c, scratch)
            if d == NOTHING or (d < 0 and code.k[-1 - d] == 0.0):
                continue
            adjoint[p], condition[p] = received(
                code, zero, w, mask, d, flow, int64(adjoint[p]), int64(condition[p])
            )
    return 0


@inlined
def merged(code, zero, of, value, at, stop, slope, flow, k):
    """Write the derivatives of a cell from `k` on; return where they end.

    Those of each of its operands stand from `at` to `stop`, by ascending input; they are multiplied
    by `slope`, under the condition `flow`, and added up by input.
    """
    none = int64(1 << 62)
    while True:
        lowest = none
        for j in range(3):
            if at[j] < stop[j]:
                lowest = min(lowest, int64(of[at[j]]))
        if lowest == none:
            return k
        total = int64(NOTHING)
        for j in range(3):
            if at[j] < stop[j] and of[at[j]] == lowest:
                add, where = code.roles[ROLE + ADD], code.roles[ROLE + WHERE]
                term = emit(
                    code, True, code.roles[ROLE + MULTIPLY], slope[j], int64(value[at[j]]), NONE
                )
                if flow[j] != NOTHING:
                    term = emit(code, True, where, flow[j], term, zero)
                total = term if total == NOTHING else emit(code, True, add, total, term, NONE)
                at[j] += 1
        of[k] = lowest
        value[k] = total
        k += 1


@kernel
def tangents(code, programs, needed, start, count, of, value, filled, scratch, first, stop):
    """Append the derivatives of each needed cell with respect to each input that it depends on.

    Parameters
    ----------
    start, count
        By cell: where its derivatives stand in `of` and `value`, and how many there are.
    of, value
        The input, in ascending order, and the cell or constant that is the derivative.
    filled
        How much of `of` and `value` is used; updated.

    Returns
    -------
    int
        Where room ran out, or `stop`.
    """
    code, programs = counted_by_nobody(code), bare(programs)
    of, value = bare(of), bare(value)
    scratch, zero = bare(scratch), constant(code, 0.0)
    at, end_at = np.zeros(3, np.int64), np.zeros(3, np.int64)
    slope, flow = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for c in range(first, stop):
        o = int64(code.ins[c, 0])
        if o == 0 or needed[c] == 0:
            continue
        most = 0
        for j in range(3):
            p = operand(code, c, j)
            most += count[p] if p >= 0 else 0
        if most == 0:
            continue
        if filled[0] + most > len(of) or not has_room(code, 6 * most):
            return c
        for j in range(3):
            p = operand(code, c, j)
            at[j] = end_at[j] = 0
            if p >= 0 and count[p] > 0:
                slope[j], flow[j] = partial(code, programs, o, j, c, scratch)
                if slope[j] != NOTHING:
                    at[j] = start[p]
                    end_at[j] = start[p] + count[p]
        start[c] = filled[0]
        filled[0] = merged(code, zero, of, value, at, end_at, slope, flow, filled[0])
        count[c] = filled[0] - start[c]
    return stop


@kernel
def gather(v, cells, out):
    """Copy the values of cells; NumPy would want indices of twice the size."""
    for i in range(len(cells)):
        out[i] = v[cells[i]]


def compile_all() -> None:
    """Compile all kernels that programs are derived with, or load them from the cache."""
    rewriting.compile_all()
    ordering.compile_all()
    bytes_, narrow, wide = (types.Array(t, 1, "C") for t in (types.u1, types.i4, types.i8))
    matrix, numbers = types.Array(types.i8, 2, "C"), types.Array(types.f8, 1, "C")
    code, n = code_type(), types.i8
    reach_forward.compile((code, matrix, bytes_, n))
    reach_backward.compile((code, matrix, bytes_, n))
    reverse.compile((code, matrix, bytes_, narrow, narrow, wide, n))
    tangents.compile((code, matrix, bytes_, wide, narrow, narrow, narrow, wide, wide, n, n))
    gather.compile((numbers, types.Array(types.u4, 1, "C"), numbers))
