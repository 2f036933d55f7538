"""A replay of a small program in one call: arguments in, sweeps, decisions, results out.

What is to be done stands in 64-bit words, written by `tapegrad.programs.ready`: addresses of the
tape's columns, and a list of steps, each a stretch of instructions for the interpreters or a
compiled loop. Both are called by address, so this module holds no copy of their code, and knows
nothing of any one program.
"""

# Types are left to the compiler, which needs none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from tapegrad.kernels.cpu.jit import helper, kernel, word

# Words of a program: addresses first, then sizes.
OP, A, B, K, V, G = 0, 1, 2, 3, 4, 5
STEPS, INPUTS, OUTPUTS, IMPORTS, VALUES = 6, 7, 8, 9, 10
SINGLES, EXPECTED, LOOKS, SEEN = 11, 12, 13, 14
INSTRUCTIONS, CONSTANTS, CELLS = 15, 16, 17
STEP_COUNT, INPUT_COUNT, OUTPUT_COUNT, IMPORT_COUNT = 18, 19, 20, 21
SINGLE_COUNT, LOOK_COUNT = 22, 23
WORDS = 24

# Words of a step. A loop has parameters, and counts its iterations from `FIRST` = 0 to `LAST`; the
# interpreters are told instructions instead, and the cells before and after them.
FORWARD, REVERSE, PARAMETERS, PARAMETER_COUNT, FIRST, LAST, CELL, NEXT_CELL = range(8)
RUNS, RUN_COUNT, NEXT_LOOK = 8, 9, 10
STEP = 11

# Words of a run: evenly spaced cells in which decisions see one value. What they look at otherwise
# is in SINGLES and EXPECTED, in the order of cells, `NEXT_LOOK` saying how far a step comes. All of
# it once more is in LOOKS and SEEN, in the order in which it was looked at.
RUN_START, RUN_LENGTH, RUN_SPACING, RUN_VALUE = range(4)
RUN = 4

# Parts of a replay, to be added up.
PUT, SWEEP, CHECK, SEED, SWEEP_BACK, GIVE_VALUES, GIVE_ADJOINTS = 1, 2, 4, 8, 16, 32, 64

_PAIR = types.UniTuple(types.int64, 2)


def _pointer_to(element: Any) -> Any:
    """Return the function that makes a pointer of an address."""

    @intrinsic  # type: ignore[misc]
    def pointer(typingctx: Any, address: Any) -> Any:
        result = types.CPointer(element)

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(result))

        return result(types.int64), emit

    return pointer


_bytes, _indices = _pointer_to(types.uint8), _pointer_to(types.uint32)
_words, _floats = _pointer_to(types.int64), _pointer_to(types.float64)


def _emit_call(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """Call the function at an address, which Numba compiled for the arguments that follow."""
    kinds = [context.get_value_type(kind) for kind in sig.args[1:]]
    kind = ir.FunctionType(context.get_value_type(sig.return_type), kinds)
    result = builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
    return context.get_dummy_value() if sig.return_type == types.none else result


@intrinsic  # type: ignore[misc]
def _interpret(typingctx, address, op, a, b, k, v, start, stop, cell):
    return _PAIR(address, op, a, b, k, v, start, stop, cell), _emit_call


@intrinsic  # type: ignore[misc]
def _interpret_back(typingctx, address, op, a, b, k, v, g, start, stop, cell, strict):
    return _PAIR(address, op, a, b, k, v, g, start, stop, cell, strict), _emit_call


@intrinsic  # type: ignore[misc]
def _loop(typingctx, address, k, v, m, first, last):
    return types.none(address, k, v, m, first, last), _emit_call


@intrinsic  # type: ignore[misc]
def _loop_back(typingctx, address, k, v, g, m, first, last):
    return types.none(address, k, v, g, m, first, last), _emit_call


@helper
def _changed_in_run(run, bits):
    """Return a number that is not 0 where the bits of a value are others."""
    cell, spacing = np.uint64(word(run, RUN_START)), np.uint64(word(run, RUN_SPACING))
    value, changed = word(run, RUN_VALUE), 0
    for _ in range(word(run, RUN_LENGTH)):
        changed |= bits[cell] ^ value
        cell += spacing
    return changed


@helper
def _sweep(w, k, v, check):
    """Sweep forward; return whether decisions may see something else, where that is asked.

    What decisions look at is compared a step at a time, while it is in the cache; as integers,
    which is quicker, and takes two zeros or nans for different that are not.
    """
    looks = carray(_indices(word(w, SINGLES)), word(w, SINGLE_COUNT))
    expected = carray(_words(word(w, EXPECTED)), word(w, SINGLE_COUNT))
    bits = carray(_words(word(w, V)), word(w, CELLS))
    look, one, changed = np.uint64(0), np.uint64(1), 0
    op = carray(_bytes(word(w, OP)), word(w, INSTRUCTIONS))
    a = carray(_indices(word(w, A)), word(w, INSTRUCTIONS))
    b = carray(_indices(word(w, B)), word(w, INSTRUCTIONS))
    step = word(w, STEPS)
    for _ in range(word(w, STEP_COUNT)):
        first, last = word(step, FIRST), word(step, LAST)
        m = carray(_words(word(step, PARAMETERS)), word(step, PARAMETER_COUNT))
        if m.size:
            _loop(word(step, FORWARD), k, v, m, first, last)
        else:
            _interpret(word(step, FORWARD), op, a, b, k, v, first, last, word(step, CELL))
        if check:
            run = word(step, RUNS)
            for _ in range(word(step, RUN_COUNT)):
                changed |= _changed_in_run(run, bits)
                run += 8 * RUN
            last_look = np.uint64(word(step, NEXT_LOOK))
            while look < last_look:
                changed |= bits[looks[look]] ^ expected[look]
                look += one
        step += 8 * STEP
    return changed != 0


@helper
def _sweep_back(w, k, v, g):
    op = carray(_bytes(word(w, OP)), word(w, INSTRUCTIONS))
    a = carray(_indices(word(w, A)), word(w, INSTRUCTIONS))
    b = carray(_indices(word(w, B)), word(w, INSTRUCTIONS))
    step = word(w, STEPS) + 8 * STEP * word(w, STEP_COUNT)
    for _ in range(word(w, STEP_COUNT)):
        step -= 8 * STEP
        first, last = word(step, FIRST), word(step, LAST)
        m = carray(_words(word(step, PARAMETERS)), word(step, PARAMETER_COUNT))
        if m.size:
            _loop_back(word(step, REVERSE), k, v, g, m, first, last)
        else:
            cell = word(step, NEXT_CELL)
            _interpret_back(word(step, REVERSE), op, a, b, k, v, g, last, first, cell, False)


@helper
def _changed(w, v):
    """Return the place of the first value that a decision would not see again, -1 if none."""
    looks = carray(_indices(word(w, LOOKS)), word(w, LOOK_COUNT))
    seen = carray(_floats(word(w, SEEN)), word(w, LOOK_COUNT))
    for i in range(looks.size):
        x, y = v[looks[i]], seen[i]
        if x != y and (x == x or y == y):  # nan is as good as nan
            return i
    return -1


@kernel
def replay(w, parts):
    """Do `parts` of a replay of the program whose words are at the address `w`.

    Values of inputs are taken from the front of VALUES; results are written there: values of
    outputs, and behind them adjoints of inputs. Adjoints are all zero before and afterwards.

    Returns
    -------
    int
        The place, among the values that decisions look at, of the first that differs; nothing is
        done after the sweep then. Else -1.
    """
    v = carray(_floats(word(w, V)), word(w, CELLS))
    g = carray(_floats(word(w, G)), word(w, CELLS))
    k = carray(_floats(word(w, K)), word(w, CONSTANTS))
    inputs = carray(_indices(word(w, INPUTS)), word(w, INPUT_COUNT))
    outputs = carray(_indices(word(w, OUTPUTS)), word(w, OUTPUT_COUNT))
    values = carray(_floats(word(w, VALUES)), outputs.size + inputs.size)
    if parts & PUT:
        for i in range(inputs.size):
            v[inputs[i]] = values[i]
    changed = parts & CHECK != 0  # maybe
    if parts & SWEEP:
        changed = _sweep(w, k, v, changed)
    if changed:
        place = _changed(w, v)
        if place >= 0:
            return place
    if parts & SEED:
        for i in range(outputs.size):
            g[outputs[i]] += 1.0
    if parts & SWEEP_BACK:
        _sweep_back(w, k, v, g)
    if parts & GIVE_VALUES:
        for i in range(outputs.size):
            values[i] = v[outputs[i]]
    if parts & GIVE_ADJOINTS:
        for i in range(inputs.size):
            values[outputs.size + i] = g[inputs[i]]
        imports = carray(_indices(word(w, IMPORTS)), word(w, IMPORT_COUNT))
        for i in range(imports.size):
            g[imports[i]] = 0.0
    return -1


def address_of(compiled: Any) -> int:
    """Return the address at which a function that `numba.njit` compiled once takes Numba's types.

    Numba makes such an entry beside the one for Python: it is what functions are called by where
    they are passed as arguments.
    """
    (entry,) = compiled.overloads.values()
    place: int = entry.library.get_pointer_to_function(entry.fndesc.llvm_cfunc_wrapper_name)
    return place


def compile_all() -> None:
    """Compile the replay, or load it from the cache."""
    replay.compile("int64(int64, int64)")
