"""asv: programs of many operations on tiny arrays, where what surrounds an operation is the cost.

The figures that the project promises are of `mixture`, a thousand elementwise operations on 3x3
arrays, and of `products`, a hundred products of 3x3 matrices, recorded once and replayed, so that
plans are kept. They are given in nanoseconds an *instruction* and *lane group*:

- Instructions are those of the recorded tape that compute something (inputs are not counted). For
  value and gradient each counts twice, as it is swept forward and backward. What a backward sweep
  computes again, or needs several steps for, is not counted. A product of matrices is recorded as
  45 instructions, on one number each.
- A lane group is what the executor computes at a time: a vector of 16 float64
  (``WIDTH`` in kernels/cpu/regions.py). The nine lanes of a 3x3 array are one.

The time is that of the whole call, arguments and results included.
"""

import time

import numpy as np

import tapegrad as tg
from tapegrad.kernels.opcodes import INPUT
from tapegrad.programs.recorded import READY_AFTER

from .measuring import cpu_median, repeat

LANES = 16
"""Lanes of a group."""

PRODUCTS = 100
"""Products of matrices in a row."""

MATRIX = np.linspace(0.1, 0.9, 9).reshape(3, 3)
ROW = np.array([0.5, 1.0, 1.5])
MIXTURE_POINT = (MATRIX, ROW, 0.7)


def mixture(x, row, scale, operations=1000):
    """Compute with a 3x3 array, a row that is broadcast, and a number: ten operations a round."""
    y = x
    for _ in range(operations // 10):
        s = np.sin(y) * scale
        e = np.exp(-s)
        r = np.sqrt(e + row)
        y = (x - s) / r + 0.5 * y
    return y


def products(x, w, count=PRODUCTS):
    """Multiply 3x3 matrices."""
    for _ in range(count):
        x = x @ w
    return x


CODE = {
    "mixture": (mixture, MIXTURE_POINT, MATRIX.size),
    "products": (products, (MATRIX, np.linalg.qr(MATRIX + np.eye(3))[0]), 1),
}
"""Function, arguments, and how many lanes its instructions have."""


def groups(size):
    """Return how many lane groups so many lanes are."""
    return -(-size // LANES)


def instructions(program):
    """Return how many instructions of a program compute something."""
    tape = program.tape
    return int(np.count_nonzero(tape.arena.op.array[: tape.n] != INPUT))


def replay(code, gradient, times=200, rounds=15):
    """Return the seconds of a replay, and how many lane groups of instructions it sweeps."""
    tg.set_num_threads(1)
    f, args, lanes = CODE[code]
    numbers = tuple(range(len(args)))
    with tg.executor("compiled"):
        program = tg.record((lambda *args: np.sum(f(*args))) if gradient else f, *args)
        call = (
            (lambda: program.value_and_grad(*args, argnums=numbers))
            if gradient
            else (lambda: program(*args))
        )
        repeat(call, READY_AFTER + 1)()
    seconds = cpu_median(repeat(call, times), rounds) / times
    swept = instructions(program) * (2 if gradient else 1)
    return seconds, swept * groups(lanes)


def replay_nanoseconds(gradient, code="mixture", **effort):
    """Return what an instruction takes a lane group, in a replay."""
    seconds, swept = replay(code, gradient, **effort)
    return seconds * 1e9 / swept


def product_nanoseconds(**effort):
    """Return what a product of 3x3 matrices takes in a replay of value and gradient."""
    return replay("products", True, **effort)[0] * 1e9 / PRODUCTS


class Replay:
    """An instruction of many on 3x3 arrays, a lane group."""

    params = (("value", "value and gradient"), tuple(CODE))
    param_names = ("what", "code")
    unit = "ns"

    def track_instruction(self, what, code):
        return replay_nanoseconds(what == "value and gradient", code)


# -- code as users write it ------------------------------------------------------------------------


def cross(a, b):
    """Return the cross product of two vectors, written out."""
    return np.stack(
        [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
    )


def rigid_body(w, inertia, steps=50):
    """Turn a body: products of a matrix and vectors, cross products, norms."""
    for _ in range(steps):
        w = w + 0.01 * (inertia.T @ cross(inertia @ w, w))
        w = w / np.sqrt(np.sum(w * w))
    return np.sum(w)


def network(weights, steps=100):
    """Multiply 3x3 matrices again and again."""
    x = weights
    for _ in range(steps):
        x = np.tanh(x @ weights) + 0.1 * x
    return np.sum(x)


def elements(x, steps=100):
    """Update an array element by element, and as a whole."""
    y = tg.zeros(3)
    for k in range(steps):
        y[k % 3] += x[(k + 1) % 3] * np.sin(y[(k + 2) % 3])
        y = y * 0.9 + x
    return np.sum(y)


def springs(q, steps=40):
    """Move a chain of masses: slices, sums along an axis, assignment to slices."""
    v = tg.zeros((4, 3))
    for _ in range(steps):
        d = q[1:] - q[:-1]
        f = d * (1.0 - 1.0 / np.sqrt(np.sum(d * d, axis=1, keepdims=True)))
        force = tg.zeros((4, 3))
        force[:-1] += f
        force[1:] -= f
        v = v + 0.01 * force
        q = q + 0.01 * v
    return np.sum(q * q)


def rotations(angles, steps=30):
    """Multiply rotation matrices that are gathered from numbers."""
    r = np.eye(3)
    for k in range(steps):
        c, s = np.cos(angles[k % 3]), np.sin(angles[k % 3])
        r = r @ tg.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    return np.trace(r)


VECTOR = np.array([0.3, 0.5, 0.9])
CHAIN = np.arange(12.0).reshape(4, 3) + np.sin(np.arange(12.0)).reshape(4, 3)
PATTERNS = {
    "elements": (elements, (VECTOR,)),
    "network": (network, (0.5 * np.eye(3) + 0.1 * MATRIX,)),
    "rigid_body": (rigid_body, (VECTOR, np.eye(3) + 0.1 * MATRIX)),
    "rotations": (rotations, (VECTOR,)),
    "springs": (springs, (CHAIN,)),
}


class Patterns:
    """Value and gradient of code on tiny arrays: recorded afresh, replayed, by `tg.function`.

    `time_transform` is `tg.value_and_grad` of the latter.
    """

    timer = time.process_time
    params = tuple(PATTERNS)
    param_names = ("code",)

    def setup(self, code):
        tg.set_num_threads(1)
        f, self.args = PATTERNS[code]
        self.argnums = tuple(range(len(self.args)))
        self.afresh = tg.value_and_grad(f, argnums=self.argnums)
        self.function = tg.function(f)
        self.transform = tg.value_and_grad(self.function, argnums=self.argnums)
        with tg.executor("compiled"):
            self.program = tg.record(f, *self.args)
            for run in (
                self.time_afresh,
                self.time_replay,
                self.time_function,
                self.time_transform,
            ):
                repeat(lambda run=run: run(code), READY_AFTER + 1)()

    def time_afresh(self, code):
        self.afresh(*self.args)

    def time_replay(self, code):
        self.program.value_and_grad(*self.args, argnums=self.argnums)

    def time_function(self, code):
        self.function.value_and_grad(*self.args, argnums=self.argnums)

    def time_transform(self, code):
        self.transform(*self.args)
