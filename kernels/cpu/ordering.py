"""The passes around those of `tapegrad.kernels.cpu.planning`, which share no function with them.

They put a tape's instructions into an order of steps, and give the programs of regions their last
form: which windows replace, numbers of values, rows.
"""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from tapegrad.kernels import allocation, opcodes
from tapegrad.kernels.cpu.jit import helper, kernel

# Constants of the compiled passes, written out, as in planning.py.
HOST = 2
IMPORTS = 5
WINDOW = 6
if opcodes.HOST != HOST:
    raise ImportError("kernels/cpu/ordering.py and kernels/opcodes.py number opcodes differently")


@kernel
def schedule(op, i0, n, region, r_last, steps):
    """List what is to be run, in order: (region or -1 for scalars or -2 for a host, from, to).

    A region comes where its last instruction stands. Imports and constants between its instructions
    come before it.
    """
    count = 0
    i = 0
    while i < n:
        if region[i] >= 0:
            if r_last[region[i]] == i:
                steps[count, 0] = region[i]
                steps[count, 1] = i
                steps[count, 2] = i + 1
                count += 1
            i += 1
            continue
        start = i
        host = op[i0 + i] == HOST
        i += 1
        while not host and i < n and region[i] < 0 and op[i0 + i] != HOST:
            i += 1
        steps[count, 0] = -2 if host else -1
        steps[count, 1] = start
        steps[count, 2] = i
        count += 1
    return count


@kernel
def choose_sets(outputs, count, to, to_axes, sizes, touched, blank):
    """Let the first windows on each import's adjoints replace, so that nothing need be zero.

    `touched` says, by import with its own buffers, whether its adjoints have been written before,
    and `blank` is filled with what must be made zero first: from, to, from, to.
    """
    for own in range(len(touched)):
        blank[own, 0] = blank[own, 1] = blank[own, 2] = blank[own, 3] = 0
        if touched[own]:
            continue
        lead = -1
        found = 0
        for i in range(count):
            w = outputs[i]
            if w[1] != IMPORTS + 2 * own + 1:
                continue
            found += 1
            flat = w[3] < 0
            step = 1
            for axis in range(to_axes - 1, -1, -1):
                if to[axis] != 1 and w[WINDOW + axis] != step:
                    flat = False
                step *= to[axis]
            if flat and (lead < 0 or w[2] > outputs[lead, 2]):
                lead = i
        if found == 0:
            continue
        touched[own] = 1
        if lead < 0:
            blank[own, 1] = sizes[own]
            continue
        lanes = 1
        for axis in range(to_axes):
            lanes *= to[axis]
        outputs[lead, 5] = 0
        blank[own, 1] = outputs[lead, 2]
        blank[own, 2] = outputs[lead, 2] + lanes
        blank[own, 3] = sizes[own]


allocate = kernel(allocation.allocate, allocation.find_last_uses)


@helper
def number(value, constants, fixed):
    """Return the number of a value among all: constants, in-windows, results."""
    if value >= 0:
        return fixed + value
    return constants + (-1 - value) // 2 if value % 2 else (-2 - value) // 2


@kernel
def renumber(code, outputs, counts):
    """Number values as `allocate` wants them."""
    fixed = counts[3] + counts[1]
    for i in range(counts[0]):
        for k in range(1, 4):
            code[k, i] = number(code[k, i], counts[3], fixed)
    for i in range(counts[2]):
        outputs[i, 0] = number(outputs[i, 0], counts[3], fixed)
