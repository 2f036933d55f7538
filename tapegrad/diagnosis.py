"""Find the operation whose rule is wrong, by checking every instruction of a recording by itself.

Each instruction's value is compared with the reference interpreter's, and what it sends to its
operands with differences of its own value: a fault cannot hide behind other instructions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from math import frexp, isfinite, isinf
from typing import Any, cast

import numpy as np

from . import execute
from .host import HostCall
from .kernels import reference, rules
from .kernels.opcodes import BINARY_KX, BINARY_XK, HOST, INPUT, KINDS, LANES, ROW_OF, TERNARY, UNARY
from .reach import FLOWS
from .storage import Floats
from .tape import Tape
from .transforms.differences import central, one_sided

_SURE = 1e-9  # relative error of a value, or of a partial known exactly, that is a fault
_COARSE = 1e-5  # the same for a partial known by differences
_TINY = 1e-12  # absolute errors up to here are none


class Fault:
    """One operation that does not do what its row says.

    Attributes
    ----------
    row : str
        Name of the operation.
    instruction : int
        Number of the instruction in its recording.
    operands : tuple of float
        Values of the operands (of one lane); empty for structural operations.
    what : str
        What is wrong.
    """

    __slots__ = ("instruction", "operands", "row", "what")

    def __init__(self, row: str, instruction: int, operands: tuple[float, ...], what: str) -> None:
        self.row = row
        self.instruction = instruction
        self.operands = operands
        self.what = what

    def __repr__(self) -> str:
        names = zip("xyz", self.operands, strict=False)
        at = ", ".join(f"{name}={value!r}" for name, value in names)
        where = f"{self.row}({at})" if at else self.row
        return f"{where}, instruction {self.instruction}: {self.what}"


class _Step:
    """An elementwise operation on numbers: a scalar instruction, or one lane of an array's."""

    __slots__ = ("cell", "cells", "instruction", "op", "operands", "out")

    def __init__(
        self,
        instruction: int,
        op: int,
        operands: tuple[float, ...],
        cells: tuple[int, ...],
        cell: int,
        out: float,
    ) -> None:
        self.instruction = instruction
        self.op = op
        self.operands = operands
        self.cells = cells  # of the operands; -1 for what gets no adjoint
        self.cell = cell
        self.out = out

    def fault(self, what: str) -> Fault:
        return Fault(ROW_OF[self.op], self.instruction, self.operands, what)


def find_faults(tapes: Iterable[Tape], definitions: bool = False) -> list[Fault]:
    """Return the operations recorded on `tapes` that are at fault, the first instance of each.

    It takes about 0.2 ms an operation.

    Parameters
    ----------
    tapes : iterable of Tape
    definitions : bool, optional
        Also compare values with the rows' definitions in mpmath, which takes ten times as long.
    """
    found: dict[str, Fault] = {}
    for tape in tapes:
        execute.evaluate(tape)
        if tape.n == 0:
            continue
        for fault in _Recorded(tape).faults(definitions):
            found.setdefault(fault.row, fault)
    return list(found.values())


class _Recorded:
    """The columns of a tape, and its instructions as operations on numbers."""

    def __init__(self, tape: Tape) -> None:
        arena = tape.arena
        self.n, self.hosts = tape.n, tape.hosts
        self.op, self.a, self.b, self.v = (
            column.array.data for column in (arena.op, arena.a, arena.b, arena.v)
        )
        self.k, self.d, self.x = (pool.array().data for pool in (tape.k, tape.d, tape.x))
        self.g = np.zeros(tape.flushed_cell)

    def faults(self, definitions: bool) -> Iterator[Fault]:
        """Check the instructions in order."""
        v = np.asarray(self.v)
        cell = 0
        for i in range(self.n):
            op = self.op[i]
            end = cell + (self.b[i] if op in (INPUT, LANES, HOST) else 1)
            if op == HOST:
                call = self.hosts[self.a[i]]
                what = _structural_fault(call, v, v[cell:end])
                if what:
                    yield Fault(call.row.name, i, (), what)
            elif op == LANES or KINDS[op]:
                steps = list(self._lanes(i, cell)) if op == LANES else [self._scalar(i, cell)]
                faults = (_elementwise_fault(step, definitions) for step in steps)
                fault = next(filter(None, faults), None) or self._compiled_fault(steps, i, end)
                if fault is not None:
                    yield fault
            cell = end

    def _scalar(self, i: int, cell: int) -> _Step:
        op, a, b, k, v = self.op[i], self.a[i], self.b[i], self.k, self.v
        kind = KINDS[op]
        if kind == UNARY:
            cells: tuple[int, ...] = (a,)
        elif kind == TERNARY:
            cells = (self.a[i - 1], a, b)
        else:
            cells = {BINARY_XK: (a, -1), BINARY_KX: (-1, a)}.get(kind, (a, b))
        operands = tuple([k[b] if c < 0 else v[c] for c in cells])
        return _Step(i, op, operands, cells, cell, v[cell])

    def _lanes(self, i: int, cell: int) -> Iterator[_Step]:
        x = self.x
        row, shape, windows = reference._descriptor(self.d, self.a[i])
        for lane in range(self.b[i]):
            places = reference._places(shape, windows, lane)
            operands = tuple([reference._read(*place, x, self.k, self.v) for place in places])
            cells = tuple(
                [
                    x[at] if kind == reference.INDEXED else at if kind == reference.CELLS else -1
                    for kind, at in places
                ]
            )
            yield _Step(i, row, operands, cells, cell + lane, self.v[cell + lane])

    def _compiled_fault(self, steps: list[_Step], i: int, end: int) -> Fault | None:
        """Compare what the compiled kernel, if it is loaded, sends to the operands."""
        lanes = self.op[i] == LANES
        if not steps or not execute._loaded["lanes" if lanes else "scalar"]:
            return None
        expected: dict[int, float] = {}
        for step in steps:
            self.g[step.cell] = 1.0
            contribution: Any = rules.CONTRIBUTIONS[step.op]
            partials = contribution(1.0, *step.operands, step.out)
            for cell, partial in zip(step.cells, partials, strict=True):
                if cell >= 0:
                    expected[cell] = expected.get(cell, 0.0) + partial
        self._reverse(i, end, lanes)
        received = {cell: float(self.g[cell]) for cell in expected}
        self.g[[*expected, *(step.cell for step in steps)]] = 0.0
        for cell, amount in received.items():
            if not _same(amount, expected[cell], _SURE):
                step = next(step for step in steps if cell in step.cells)
                return step.fault(
                    f"its compiled kernel sends {amount!r} to an operand, but the reference "
                    f"interpreter sends {expected[cell]!r}"
                )
        return None

    def _reverse(self, i: int, end: int, lanes: bool) -> None:
        run = execute._compiled
        op, a, b, k, d, x, v = map(
            np.asarray, (self.op, self.a, self.b, self.k, self.d, self.x, self.v)
        )
        if lanes:
            limit = self.b[i] + 1
            run.lanes_reverse(op, a, b, d, x, k, v, self.g, i + 1, i, end, -1, limit, True)
        else:
            run.scalar_reverse(op, a, b, k, v, self.g, i + 1, i, end, True)


# -- elementwise rows ------------------------------------------------------------------------------


def _elementwise_fault(step: _Step, definitions: bool) -> Fault | None:
    rule: Any = rules.FORWARD[step.op]
    contribution: Any = rules.CONTRIBUTIONS[step.op]
    value = float(rule(*step.operands))
    if not _same(step.out, value, _SURE):
        return step.fault(f"its value is {step.out!r}, but the reference interpreter's {value!r}")
    exact = _exact_value(step) if definitions else None
    if exact is not None and not _same(value, exact, _COARSE):  # float32 rounds
        return step.fault(f"its value is {value!r}, but its definition's {exact!r}")
    partials = map(float, contribution(1.0, *step.operands, step.out))
    for i, (partial, cell) in enumerate(zip(partials, step.cells, strict=True)):
        if cell < 0:
            continue
        if i in FLOWS[step.op]:
            expected = _doubted(step, i, partial)
        else:
            expected = None if partial == 0.0 or partial != partial else 0.0
        if expected is not None:
            return step.fault(
                f"its partial with respect to {'xyz'[i]} is {partial!r}, but the derivative of its "
                f"value is {expected!r}"
            )
    return None


def _doubted(step: _Step, i: int, partial: float) -> float | None:
    """Return the derivative for operand `i`, if `partial` is not it.

    Differences pass most partials; for the others the definition in the table decides, by mpmath
    where it is installed.  Outside a row's domain its partial is a convention, which is no fault.
    """
    x, rule = step.operands[i], cast(Any, rules.FORWARD[step.op])

    def value(t: float) -> Floats:
        return np.array([rule(*step.operands[:i], t, *step.operands[i + 1 :])])

    found = [central(value, x, _SURE, _TINY, scale) for scale in (abs(x), 1.0)]
    slopes = [float(slope[0]) for slope, _ in found]
    error = float(max(error[0] for _, error in found))
    if any(_same(partial, slope, _COARSE) for slope in slopes):
        return None
    if not _in_domain(step):
        return None
    exact = _exact_partial(step, i)
    if exact is not None:
        # Beyond the largest float there is nothing to compare with.
        return None if isinf(exact) or _same(partial, exact, _SURE) else exact
    # Two scales that agree have not both stepped over a kink.
    trusted = error < _COARSE * max(abs(slopes[0]), abs(partial))
    return slopes[0] if trusted and _same(slopes[0], slopes[1], 10.0 * _COARSE) else None


def _same(value: float, expected: float, rtol: float) -> bool:
    if value == expected or (value != value and expected != expected):
        return True
    return isfinite(expected) and abs(value - expected) <= rtol * abs(expected) + _TINY


def _in_domain(step: _Step) -> bool:
    from .ops.row import in_domain  # the table is needed for suspects only
    from .ops.table import TABLE

    finite = all(isfinite(x) for x in step.operands)
    return finite and in_domain(TABLE[ROW_OF[step.op]], step.operands)


@cache
def _definition(row: str) -> Any:
    """Return a row's definition as a function of mpmath numbers; None without mpmath."""
    try:
        import mpmath
    except ImportError:
        return None
    from .ops.table import TABLE

    entry = TABLE[row]
    names = {**vars(mpmath), "max": max, "min": min, "int": int}
    return eval(f"lambda {', '.join(entry.operands)}: {entry.mp}", names)


def _exact_value(step: _Step) -> float | None:
    definition = _definition(ROW_OF[step.op])
    if definition is None or not _in_domain(step):
        return None
    import mpmath

    with mpmath.workdps(30):
        return float(definition(*map(mpmath.mpf, step.operands)))


def _exact_partial(step: _Step, i: int) -> float | None:
    definition = _definition(ROW_OF[step.op])
    if definition is None:
        return None
    import mpmath

    size = abs(step.operands[i])
    with mpmath.workdps(60 + max(0, frexp(size)[1])):  # digits for x + h, however large x is
        point = [mpmath.mpf(x) for x in step.operands]
        h = mpmath.mpf("1e-20") * (min(size, 1.0) or 1.0)
        up, down = (
            definition(*point[:i], point[i] + offset, *point[i + 1 :]) for offset in (h, -h)
        )
        return float((up - down) / (2 * h))


# -- structural rows -------------------------------------------------------------------------------


def _structural_fault(call: HostCall, v: Floats, out: Floats) -> str | None:
    """Say what is wrong with a structural operation, by differences along random directions."""
    with np.errstate(all="ignore"):
        values = [np.array(x.read(v), np.float64) for x in call.operands]
        again = np.ravel(call.row.forward(*values, **call.params))
        if not np.allclose(out, again, _SURE, _TINY, equal_nan=True):
            return "its value is not that of its row on the same operands"
        random = np.random.default_rng(0)
        seed = random.standard_normal(call.shape)
        sent = call.row.vjp(seed, out.reshape(call.shape), *values, **call.params)
    for i, (x, value) in enumerate(zip(call.operands, values, strict=True)):
        if x.constant is not None or value.size == 0:
            continue
        direction = random.standard_normal(value.shape)
        low, high = _directional(call, values, i, direction, seed)
        found = float(np.sum(sent[i] * direction))
        # Where a side is not finite nothing can be said; at a kink, what lies between is right.
        if np.isfinite(low + high) and not low <= found <= high:
            return (
                f"its rule sends {found!r} along a random direction of operand {i}, but the "
                f"derivative of its value is {0.5 * (low + high)!r}"
            )
    return None


def _directional(
    call: HostCall, values: list[Floats], i: int, direction: Floats, seed: Floats
) -> tuple[float, float]:
    """Return bounds of the derivative of ``sum(seed * value)`` along `direction` of operand `i`."""

    def value(t: float) -> Floats:
        moved = [*values[:i], values[i] + t * direction, *values[i + 1 :]]
        with np.errstate(all="ignore"):
            return np.ravel(call.row.forward(*moved, **call.params))

    weights = seed.ravel()
    sides = [one_sided(value, 0.0, side) for side in (-1.0, 1.0)]
    slopes = weights * np.array([slope for slope, _ in sides])
    doubt = np.abs(weights) * np.max([error for _, error in sides], axis=0)
    slack = float(np.sum(doubt)) + 1e-6 * float(np.sum(np.abs(slopes))) + _TINY
    return float(np.sum(slopes.min(axis=0))) - slack, float(np.sum(slopes.max(axis=0))) + slack
