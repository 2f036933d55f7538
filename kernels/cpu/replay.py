"""A replay of a small program in one call: arguments in, sweeps, decisions, results out.

What is to be done stands in 64-bit words, written by `tapegrad.programs.ready`: addresses of the
tape's columns, and a list of steps, each a stretch of instructions for the interpreters or of a
compiled loop. Both are called by address, so this module holds no copy of their code, and knows
nothing of any one program.
"""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

from numba.types import float64, int64, uint32

from tapegrad.kernels.cpu.columns import COLUMNS
from tapegrad.kernels.cpu.jit import call_native, entry
from tapegrad.kernels.cpu.jit import part as helper
from tapegrad.kernels.cpu.records import Numbers, record
from tapegrad.kernels.replays import (
    CHECK,
    GIVE_ADJOINTS,
    GIVE_VALUES,
    PUT,
    RUN,
    SEED,
    STEP,
    SWEEP,
    SWEEP_BACK,
)

_CELLS, _INTS, _FLOATS = Numbers(uint32), Numbers(int64), Numbers(float64)

replay_at = record(
    "Replay",
    **COLUMNS,
    **dict(bits=_INTS, steps=int64, inputs=_CELLS, outputs=_CELLS, imports=_CELLS, values=_FLOATS),
    **dict(singles=_CELLS, expected=_INTS, looks=_CELLS, seen=_FLOATS),
    **dict(step_count=int64, input_count=int64, output_count=int64, import_count=int64),
    **dict(look_count=int64),
)
"""A program: its columns, and what its replays do.

bits, values
    The values of all cells, as integers; and arguments and results.
steps, step_count
    What a sweep consists of: see `kernels/replays.py`.
inputs, outputs, imports
    Cells, and how many.
singles, expected
    What decisions look at beside runs, in the order of cells, and the bits that they saw there.
looks, seen
    All that decisions look at, in the order in which it was looked at, and what they saw.
"""

step_at = record("Step", **dict.fromkeys(STEP, int64))
run_at = record("Run", **dict.fromkeys(RUN, int64))
STEP_BYTES, RUN_BYTES = 8 * len(STEP), 8 * len(RUN)


@helper
def changed_in_run(run, bits):
    """Return a number that is not 0 where the bits of a value are others."""
    cell = run.start
    spacing = run.spacing
    value = run.value
    changed = 0
    for _ in range(run.length):
        changed |= bits[cell] ^ value
        cell += spacing
    return changed


@helper
def sweep(program, check):
    """Sweep forward; return whether decisions may see something else, where that is asked.

    What decisions look at is compared a step at a time, while it is in the cache; as integers,
    which is quicker, and takes two zeros or nans for different that are not.
    """
    w = replay_at(program)
    bits = w.bits
    singles = w.singles
    expected = w.expected
    look = 0
    changed = 0
    at = w.steps
    for _ in range(w.step_count):
        step = step_at(at)
        if step.parameters != 0:
            call_native(step.forward, program, step.parameters, step.first, step.last)
        else:
            call_native(step.forward, program, step.first, step.last, step.cell)
        if check:
            run = step.runs
            for _ in range(step.run_count):
                changed |= changed_in_run(run_at(run), bits)
                run += RUN_BYTES
            last = step.next_look
            while look < last:
                changed |= bits[singles[look]] ^ expected[look]
                look += 1
        at += STEP_BYTES
    return changed != 0


@helper
def sweep_back(program):
    """Sweep backward."""
    w = replay_at(program)
    count = w.step_count
    at = w.steps + STEP_BYTES * count
    for _ in range(count):
        at -= STEP_BYTES
        step = step_at(at)
        if step.parameters != 0:
            call_native(step.reverse, program, step.parameters, step.first, step.last)
        else:
            call_native(step.reverse, program, step.last, step.first, step.next_cell)


@helper
def first_changed(w):
    """Return the place of the first value that a decision would not see again, -1 if none."""
    for i in range(w.look_count):
        x = w.v[w.looks[i]]
        y = w.seen[i]
        if x != y and (x == x or y == y):  # nan is as good as nan
            return i
    return -1


@entry
def replay(program, parts):
    """Do `parts` of a replay of the program whose record is at an address.

    Values of inputs are taken from the front of `values`; results are written there: values of
    outputs, and behind them adjoints of inputs. Adjoints are all zero before and afterwards.

    Returns
    -------
    int
        The place, among the values that decisions look at, of the first that differs; nothing is
        done after the sweep then. Else -1.
    """
    w = replay_at(program)
    v = w.v
    g = w.g
    values = w.values
    inputs = w.inputs
    outputs = w.outputs
    results = w.output_count
    if parts & PUT:
        for i in range(w.input_count):
            v[inputs[i]] = values[i]
    changed = parts & CHECK != 0  # maybe
    if parts & SWEEP:
        changed = sweep(program, changed)
    if changed:
        place = first_changed(w)
        if place >= 0:
            return place
    if parts & SEED:
        for i in range(results):
            g[outputs[i]] += 1.0
    if parts & SWEEP_BACK:
        sweep_back(program)
    if parts & GIVE_VALUES:
        for i in range(results):
            values[i] = v[outputs[i]]
    if parts & GIVE_ADJOINTS:
        for i in range(w.input_count):
            values[results + i] = g[inputs[i]]
        imports = w.imports
        for i in range(w.import_count):
            g[imports[i]] = 0.0
    return -1


@entry
def call(function, columns, parameters, first, last):
    """Run iterations of a compiled loop, whose function is at an address."""
    call_native(function, columns, parameters, first, last)
    return 0


def compile_all() -> dict[str, Any]:
    """Compile the replay, or load it from Numba's cache; return the kernels."""
    replay.compile("int64(int64, int64)")
    call.compile("int64(int64, int64, int64, int64, int64)")
    return {"replay": replay, "call": call}
