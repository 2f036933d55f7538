"""Orders in which straight scalar code (`rewriting.py`), or what is needed of it, can run."""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from numba import types

from tapegrad.kernels.cpu.jit import kernel
from tapegrad.kernels.cpu.rewriting import code_type


@kernel
def keep_needed(code, live):
    """Mark the instructions that marked ones need, from the last to the first."""
    for c in range(code.used[0] - 1, -1, -1):
        if live[c]:
            if code.ins[c, 1] >= 0:
                live[code.ins[c, 1]] = 1
            if code.ins[c, 2] >= 0:
                live[code.ins[c, 2]] = 1
            if code.ins[c, 3] >= 0:
                live[code.ins[c, 3]] = 1


@kernel
def order_by_need(code, wanted, first, place, waiting, order, ends):
    """Put what wanted cells need in an order: each instruction as late as what needs it allows.

    So what is computed for one of them stands together, and is read again soon.

    Parameters
    ----------
    first
        The first cell that is an instruction: those before it are inputs.
    place
        By cell: its place in the order; at first -1, and so at the end for what is not needed.
    waiting
        Scratch, by cell.
    order
        Filled in with cells.
    ends
        By wanted cell, filled in: how many cells are in order once it is.
    """
    count = 0
    for i in range(len(wanted)):
        waiting[0] = wanted[i]
        top = 0 if wanted[i] >= first and place[wanted[i]] < 0 else -1
        while top >= 0:
            c = waiting[top]
            missing = -1
            for j in range(3):
                p = code.ins[c, j + 1]
                if missing < 0 and p >= first and place[p] < 0:
                    missing = p
            if missing >= 0:
                top += 1
                waiting[top] = missing
            else:
                place[c] = count
                order[count] = c
                count += 1
                top -= 1
        ends[i] = count


@kernel
def levels(code, order, place, level, first, stop):
    """Say how many steps after the first of them instructions `first` to `stop` can run."""
    for t in range(first, stop):
        deepest = 0
        for j in range(3):
            p = code.ins[order[t], j + 1]
            if p >= 0 and place[p] >= first:
                deepest = max(deepest, level[place[p]] + 1)
        level[t] = deepest


def compile_all() -> None:
    """Compile all kernels, or load them from the cache."""
    bytes_, narrow, wide = (types.Array(t, 1, "C") for t in (types.u1, types.i4, types.i8))
    code, n = code_type(), types.i8
    keep_needed.compile((code, bytes_))
    order_by_need.compile((code, wide, n, narrow, narrow, narrow, narrow))
    levels.compile((code, narrow, narrow, narrow, n, n))
