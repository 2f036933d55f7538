"""Mutated program files: each is refused by name, or is a program that runs.

``python tests/fuzz_files.py 100000`` loads that many (add a seed, and ``compiled`` for the compiled
executor, which indexes without checks); `tests/programs/test_files.py` loads some hundreds.
"""

from __future__ import annotations

import json
import random
import sys
import time
import warnings
from collections import Counter

import numpy as np

import tapegrad as tg
from tapegrad.programs import files

MAX_CELLS = 4096
"""Few, so that a mutated size cannot make a run long; the originals have some hundred."""

WEIGHTS = np.tile(np.arange(12.0).reshape(3, 4) / 6.0 - 1.0, (6, 1))
"""So many rows that a product with a vector is a structural instruction."""

INTERESTING = (0, 1, 2, 7, 8, 127, 128, 255, 2**31, 2**32 - 1, 2**62, 2**63 - 1, -1, -8, -(2**63))


def scalars(x, n):
    """Scalar rows of all kinds: a ternary, constants, powers, decisions."""
    for _ in range(n):
        x = np.sin(x) * 1.5 + 2.0 / (1.0 + x**2) if x > 0.2 else x + 1.0
    return np.where(x > 1.0, x, np.exp(x)) + np.hypot(x, 3.0) ** 3


def arrays(x, p):
    """Windows, indices, broadcasts, structural operations."""
    y = (WEIGHTS @ x)[:3]
    y = np.where(y > 0.0, y, np.sin(y) * p["s"])
    z = x.copy()
    z[1] = y[0] * p["s"] ** 3
    grid = np.maximum(z[:, None] * y, np.array([0.1, 0.2, 0.3]))
    total = np.cumsum(grid[::-1], axis=1)
    total = total + z[np.argmax(y, axis=0)] * np.searchsorted([-99.0, 99.0], y)[0]
    return {
        "a": np.max(total, axis=0),
        "b": (np.sum(grid), np.prod(y), np.tile(total.T, (6, 1)) @ z, 7),
    }


def originals():
    """Return files of programs that have everything that files can have."""
    examples = [(scalars, (0.3, 4)), (arrays, (np.arange(4.0), {"s": 1.5}))]
    return [(files.to_bytes(tg.record(f, *args)), args) for f, args in examples]


def resealed(data):
    """Return a file's contents with a fitting digest and size, as a forger would have them."""
    _, _, length, _ = files._PREFIX.unpack_from(data)
    return files.seal(length, data[files._PREFIX.size : -files._DIGEST])


def with_header(data, header):
    """Return a file with another header."""
    _, _, length, _ = files._PREFIX.unpack_from(data)
    start = files._PREFIX.size + length + -length % 8
    text = json.dumps(header).encode()
    return files.seal(len(text), files._padded(text) + data[start : -files._DIGEST])


def header_of(data):
    """Return the header of a file."""
    _, _, length, _ = files._PREFIX.unpack_from(data)
    return json.loads(data[files._PREFIX.size : files._PREFIX.size + length])


def mutated(data, rng):
    """Return a file with a few changes of one sort."""
    sort = rng.randrange(5)
    if sort == 0:  # any bytes, unsealed
        return _changed(data, rng, 0, len(data))
    if sort == 1:  # truncated, or something behind it
        at = rng.randrange(len(data))
        return data[:at] if rng.random() < 0.5 else data + data[at:]
    if sort == 2:  # words of the header
        header = header_of(data)
        for _ in range(rng.randint(1, 2)):
            _change_json(header, rng)
        return with_header(data, header)
    _, _, length, _ = files._PREFIX.unpack_from(data)
    start = files._PREFIX.size + length + -length % 8
    if sort == 3:  # any bytes of the arrays
        return resealed(_changed(data, rng, start, len(data) - files._DIGEST))
    return resealed(_word_changed(data, rng, start))


def _changed(data, rng, start, stop):
    new = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        new[rng.randrange(start, stop)] = rng.choice((0, 1, 255, rng.randrange(256)))
    return bytes(new)


def _word_changed(data, rng, start):
    """Return a file with one integer of one array changed: what bytes alone seldom hit."""
    header, new, at = header_of(data), bytearray(data), start
    chosen = rng.choice([i for i, (_, shape) in enumerate(header["arrays"]) if np.prod(shape)])
    for i, (dtype, shape) in enumerate(header["arrays"]):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if i == chosen:
            word = np.frombuffer(new, dtype, int(np.prod(shape)), at)
            j = rng.randrange(word.size)
            near = int(np.nan_to_num(word[j])) + rng.choice((-2, -1, 1, 2))
            value = rng.choice((near, rng.choice(INTERESTING)))
            if word.dtype.kind in "iu":
                bits = 8 * word.itemsize
                value &= (1 << bits) - 1
                if word.dtype.kind == "i" and value >> (bits - 1):
                    value -= 1 << bits
            word[j] = value
        at += size + -size % 8
    return bytes(new)


def _change_json(header, rng):
    """Change one value, somewhere inside."""
    places, stack = [], [header]
    while stack:
        part = stack.pop()
        keys = list(part) if isinstance(part, dict) else range(len(part))
        for key in keys:
            places.append((part, key))
            if isinstance(part[key], (dict, list)):
                stack.append(part[key])
    part, key = rng.choice(places)
    old = part[key]
    choices = [None, True, "", "x", 1.5, [], {}, rng.choice(INTERESTING), rng.randrange(20)]
    if isinstance(old, int):
        choices += [old + 1, old - 1, 2 * old, rng.randrange(8), rng.randrange(100)]
    if isinstance(old, list) and old:
        choices += [old[:-1], old[::-1], old + old[:1], [*old[:-1], rng.randrange(5)]]
    if rng.random() < 0.1 and isinstance(part, dict):
        del part[key]
    else:
        part[key] = rng.choice(choices)


def outcome(data, args):
    """Load a file, run what it holds, and say what came of it; anything unforeseen is raised."""
    try:
        program = files.from_bytes(data, max_cells=MAX_CELLS)
    except tg.TapeFormatError:
        return "refused"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wild values overflow and are cast
        return _run(program, args)


def _run(program, args):
    repr(program)
    repr(program.captured)
    try:
        result = program(*args)
    except tg.ControlFlowChanged:
        result = None
    except (ValueError, TypeError):  # the arguments are of the original's structure
        leaves = [
            static if known is None else known.leaf.value
            for static, known in zip(program._static, program._inputs, strict=True)
        ]
        args, kwargs = tg.trees.unflatten(program._tree, leaves)
        try:
            result = program(*args, **kwargs)
        except tg.ControlFlowChanged:
            result = None
    seeds = [(out, np.ones(out.size)) for out in program._outputs]
    program._reverse(seeds)
    _run_inside(program)
    return "ran" if result is not None else "took another way"


def _run_inside(program):
    """Append the program to a tape, and sweep there."""
    leaves = [
        static if known is None else tg.array(known.leaf.value)
        for static, known in zip(program._static, program._inputs, strict=True)
    ]
    args, kwargs = tg.trees.unflatten(program._tree, leaves)
    try:
        result = program(*args, **kwargs)
    except tg.ControlFlowChanged:
        return
    for output in tg.trees.flatten(result)[0]:
        if isinstance(output, tg.Array) and output.requires_grad and output.dtype.kind == "f":
            output.backward(np.ones(output.shape))


def main(count, seed=0, executor="reference"):
    """Load `count` mutated files; print how many were refused, and how many ran."""
    rng, found, start = random.Random(seed), Counter(), time.perf_counter()
    known = originals()
    for i in range(count):
        data, args = rng.choice(known)
        state = rng.getstate()
        try:
            with tg.executor(executor):
                found[outcome(mutated(data, rng), args)] += 1
        except BaseException:
            rng.setstate(state)
            with open("fuzz-failure.tape", "wb") as file:
                file.write(mutated(data, rng))
            print(f"mutation {i} of seed {seed} is in fuzz-failure.tape")
            raise
    print(f"{count} files in {time.perf_counter() - start:.0f} s: {dict(found)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:])
