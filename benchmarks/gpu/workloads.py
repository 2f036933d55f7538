"""What is measured on a GPU: value and derivatives of small functions, for many samples."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import tapegrad as tg
from tapegrad.kernels.opcodes import (
    BINARY,
    BINARY_KX,
    BINARY_XK,
    CARRY,
    CONST,
    INPUT,
    KINDS,
    ROW_OF,
    TERNARY,
)
from tapegrad.region import Region, RegionBuilder

STEPS = (0.11, -0.23, 0.31, 0.05, -0.17, 0.29, -0.07, 0.19)


@dataclass(frozen=True)
class Workload:
    """A function, and the limits between which its arguments are drawn.

    `function` is called with a system's namespace (`exp`, `log`, `sqrt`, `erf`) and the arguments.
    """

    name: str
    function: Callable[..., Any]
    limits: tuple[tuple[float, float], ...]

    def arguments(self, n: int) -> list[Any]:
        """Return `n` samples of each argument; at most a million differ."""
        rng = np.random.default_rng(0)
        distinct = min(n, 1_000_000)
        found = [rng.uniform(low, high, distinct) for low, high in self.limits]
        return [np.tile(x, -(-n // distinct))[:n] for x in found]

    def program(self) -> tg.Program:
        """Return the recorded value and derivatives."""
        example = [0.5 * (low + high) for low, high in self.limits]
        value = tg.record(lambda *x: self.function(_Numpy, *x), *example)
        numbers = tuple(range(len(example)))
        return tg.record(lambda *x: value.value_and_grad(*x, argnums=numbers), *example)


class _Numpy:
    exp, log, sqrt, erf = np.exp, np.log, np.sqrt, tg.special.erf


def _local_volatility(xp: Any, x: Any, a: Any, b: Any, mu: Any) -> Any:
    for z in STEPS:
        x = x + mu + a * xp.exp(-(b * x * x)) * z
    return xp.log(1.0 + xp.exp(x))


def _black_scholes(xp: Any, spot: Any, strike: Any, time: Any, rate: Any, vol: Any) -> Any:
    vs = vol * xp.sqrt(time)
    d1 = (xp.log(spot / strike) + (rate + 0.5 * vol * vol) * time) / vs
    held = spot * (0.5 * (1.0 + xp.erf(d1 * math.sqrt(0.5))))
    owed = 0.5 * (1.0 + xp.erf((d1 - vs) * math.sqrt(0.5)))
    return held - strike * xp.exp(-(rate * time)) * owed


WORKLOADS = {
    "w5": Workload("w5", _local_volatility, ((-1, 1), (0.2, 0.6), (0.1, 0.9), (-0.05, 0.05))),
    "black_scholes": Workload(
        "black_scholes",
        _black_scholes,
        ((80, 120), (80, 120), (0.2, 2.0), (0.01, 0.05), (0.1, 0.5)),
    ),
}


def region_of(program: tg.Program, n: int) -> Region:
    """Return a program of scalar instructions as a region of `n` samples.

    Buffers are the arguments, then the parts of the result, each of `n` numbers.
    """
    build = RegionBuilder((n,))
    tape = program.tape
    columns = tape.arena.op, tape.arena.a, tape.arena.b
    instructions = zip(*[column.array[: tape.n].tolist() for column in columns], strict=True)
    k = tape.k.array()
    values: list[int] = []
    carried = -1
    for op, a, b in instructions:
        kind = KINDS[op]
        if op == INPUT:
            values += [build.input(len(values) + i, (1,)) for i in range(b)]
        elif op == CONST:
            values.append(build.constant(k.item(a)))
        elif op == CARRY:
            carried = a
            values.append(-1)
        elif kind:
            operands: Sequence[int] = (values[a],)
            if kind == BINARY:
                operands = values[a], values[b]
            elif kind == BINARY_XK:
                operands = values[a], build.constant(k.item(b))
            elif kind == BINARY_KX:
                operands = build.constant(k.item(b)), values[a]
            elif kind == TERNARY:
                operands = values[carried], values[a], values[b]
            values.append(build.op(ROW_OF[op], *operands))
        else:
            raise ValueError(f"a region takes scalar instructions, not {ROW_OF[op]}")
    count = len(program._inputs)
    for i, output in enumerate(program._outputs):
        (cell,) = output.flat_cells().tolist()
        build.output(values[cell], count + i, (1,))
    return build.finish()
