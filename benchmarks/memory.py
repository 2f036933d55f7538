"""asv: memory of a tape, and of a loop that records again and again."""

import os

import numpy as np

import tapegrad as tg

from .measuring import resident_bytes
from .workloads import LOOP_OPERATIONS, LOOP_POINT, scalar_loop

SIZES = (10**5, 10**7) if os.environ.get("TAPEGRAD_BENCH_LARGE") else (10**5,)


def loop_gradient(operations: int) -> tg.Array:
    """Record the scalar loop, sweep it, and return its value while its tape is still alive."""
    leaves = [tg.array(value) for value in LOOP_POINT]
    out = scalar_loop(*leaves, operations // LOOP_OPERATIONS, np.sin)
    out.backward()
    return out


def bytes_per_instruction(operations: int) -> float:
    """Return the memory that one more instruction keeps resident, in a steady state.

    Run it in a fresh process. It is the slope between two sizes of tape, recorded and swept and
    still alive; each is the third of its size in a row, when the pools are full.
    """
    small = operations // 4
    resident = {}
    alive = []
    with tg.executor("compiled"):
        for size in (small, operations):
            for _ in range(3):
                alive.clear()  # else the former tape would still be there beside the next one
                alive.append(loop_gradient(size))
            resident[size] = resident_bytes()
    return (resident[operations] - resident[small]) / (operations - small)


def train(steps: int) -> tg.Array:
    """Run gradient descent on a small function; the last loss of each step stays referenced."""
    x = tg.array([0.5, -0.5, 1.5])
    for _ in range(steps):
        loss = ((x * x - 1.0) ** 2).sum()
        loss.backward()
        x = tg.array(x.value - 0.01 * x.grad)
    return loss


class Peak:
    """The most memory that is ever resident."""

    def peakmem_import(self):
        pass

    def peakmem_training_loop(self):
        train(2000)


class LoopPeak:
    """The most memory that recording and sweeping the scalar loop needs."""

    params = SIZES
    param_names = ("operations",)

    def peakmem_gradient(self, operations):
        loop_gradient(operations)
