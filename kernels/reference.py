"""The reference interpreter: pure Python over `tapegrad.kernels.rules`.

Short enough to be believed, it is the oracle of every other executor, and the executor itself until
compiled kernels are there. Columns and arenas may be ndarrays, memoryviews, arrays or lists.

A LANES instruction has a descriptor at ``d[a]``: row opcode, ndim, the shape, and for each operand
its kind, offset and strides. The lane numbers of an operand's window are cells (kinds `CELLS` and
`PASSIVE`, which needs no adjoint), places in `x` where cells are written (`INDEXED`), or a place in
the pool of constants (`CONSTANT`).
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from typing import Any, TypeVar

from tapegrad.kernels.opcodes import (
    BINARY,
    BINARY_KX,
    BINARY_XK,
    CARRY,
    CONST,
    INPUT,
    KINDS,
    LANES,
    UNARY,
)
from tapegrad.kernels.rules import CONTRIBUTIONS, FORWARD, TANGENTS

CELLS, INDEXED, CONSTANT, PASSIVE = 0, 1, 2, 3
"""Kinds of operands of a LANES instruction."""

Ints = Sequence[int]
Floats = MutableSequence[float]
_T = TypeVar("_T")


def scalar_forward(
    op: Ints, a: Ints, b: Ints, k: Floats, v: Floats, start: int, stop: int, cell: int
) -> tuple[int, int]:
    """Run instructions from `start`, whose first cell is `cell`; stop early before LANES or HOST.

    Returns (position, cell): the instruction not yet run, and its first cell.
    """
    op, a, b = map(_plain, (op, a, b))
    k, v = map(_plain, (k, v))
    kinds, rules = KINDS, FORWARD
    for i in range(start, stop):
        o = op[i]
        kind = kinds[o]
        if kind == BINARY:
            v[cell] = rules[o](v[a[i]], v[b[i]])
        elif kind == UNARY:
            v[cell] = rules[o](v[a[i]])
        elif kind == BINARY_XK:
            v[cell] = rules[o](v[a[i]], k[b[i]])
        elif kind == BINARY_KX:
            v[cell] = rules[o](k[b[i]], v[a[i]])
        elif kind:
            v[cell] = rules[o](v[a[i - 1]], v[a[i]], v[b[i]])
        elif o == INPUT:  # The values of an input are there already.
            cell += b[i]
            continue
        elif o == CONST:
            v[cell] = k[a[i]]
        elif o == CARRY:
            v[cell] = 0.0
        else:  # LANES and HOST are run by others.
            return i, cell
        cell += 1
    return max(start, stop), cell


def scalar_reverse(
    op: Ints,
    a: Ints,
    b: Ints,
    k: Floats,
    v: Floats,
    g: Floats,
    start: int,
    stop: int,
    cell: int,
    strict: bool,
) -> tuple[int, int]:
    """Run instructions `start` - 1 down to `stop`; `cell` is the first cell after them.

    Returns (position, cell): the sweep stopped below `position`, and `cell` is the first cell after
    what is left. Adjoints are cleared as they are used, but for those of inputs: the caller reads
    them.
    """
    op, a, b = map(_plain, (op, a, b))
    k, v, g = map(_plain, (k, v, g))
    kinds, rules = KINDS, CONTRIBUTIONS
    for i in range(start - 1, stop - 1, -1):
        o = op[i]
        kind = kinds[o]
        if kind == 0:
            if o == INPUT:
                cell -= b[i]
                continue
            if o not in (CONST, CARRY):  # LANES and HOST are run by others.
                return i + 1, cell
        cell -= 1
        w = g[cell]
        if kind == 0 or (w == 0.0 and not strict):
            g[cell] = 0.0
            continue
        g[cell] = 0.0
        out, p, q, rule = v[cell], a[i], b[i], rules[o]
        if kind == BINARY:
            to_x, to_y = rule(w, v[p], v[q], out)
            g[q] += to_y
            g[p] += to_x
        elif kind == UNARY:
            g[p] += rule(w, v[p], out)[0]
        elif kind == BINARY_XK:
            g[p] += rule(w, v[p], k[q], out)[0]
        elif kind == BINARY_KX:
            g[p] += rule(w, k[q], v[p], out)[1]
        else:
            first = a[i - 1]
            to_x, to_y, to_z = rule(w, v[first], v[p], v[q], out)
            g[first] += to_x
            g[q] += to_z
            g[p] += to_y
    return min(start, stop), cell


def scalar_tangent(
    op: Ints,
    a: Ints,
    b: Ints,
    k: Floats,
    v: Floats,
    t: Floats,
    start: int,
    stop: int,
    cell: int,
) -> tuple[int, int]:
    """Carry tangents `t` through a tape whose values `v` are known, as `scalar_forward` does."""
    op, a, b = map(_plain, (op, a, b))
    k, v, t = map(_plain, (k, v, t))
    for i in range(start, stop):
        o, p, q = op[i], a[i], b[i]
        kind, rule = KINDS[o], TANGENTS[o]
        if kind == BINARY:
            t[cell] = rule(v[p], v[q], v[cell], t[p], t[q])
        elif kind == UNARY:
            t[cell] = rule(v[p], v[cell], t[p])
        elif kind == BINARY_XK:
            t[cell] = rule(v[p], k[q], v[cell], t[p], 0.0)
        elif kind == BINARY_KX:
            t[cell] = rule(k[q], v[p], v[cell], 0.0, t[p])
        elif kind:
            first = a[i - 1]
            t[cell] = rule(v[first], v[p], v[q], v[cell], t[first], t[p], t[q])
        elif o == INPUT:
            cell += q
            continue
        elif o in (CONST, CARRY):
            t[cell] = 0.0
        else:
            return i, cell
        cell += 1
    return max(start, stop), cell


def lanes_forward(
    op: Ints,
    a: Ints,
    b: Ints,
    d: Ints,
    x: Ints,
    k: Floats,
    v: Floats,
    start: int,
    stop: int,
    cell: int,
    lane: int,
    limit: int,
) -> tuple[int, int, int]:
    """Run LANES instructions from `start` on, from lane `lane` of the first, about `limit` lanes.

    Returns (position, cell, lane): where to go on, which is not a LANES instruction, or is `stop`,
    or is where the limit was reached.
    """
    op, a, b, d, x = map(_plain, (op, a, b, d, x))
    k, v = map(_plain, (k, v))
    position = start
    while position < stop and op[position] == LANES and limit > 0:
        row, shape, operands = _descriptor(d, a[position])
        rule = FORWARD[row]
        last = min(b[position], lane + limit)
        for n in range(lane, last):
            values = [_read(kind, place, x, k, v) for kind, place in _places(shape, operands, n)]
            v[cell + n] = rule(*values)
        limit -= max(last - lane, 1)
        lane = last
        if last == b[position]:
            position, cell, lane = position + 1, cell + last, 0
    return position, cell, lane


def lanes_reverse(
    op: Ints,
    a: Ints,
    b: Ints,
    d: Ints,
    x: Ints,
    k: Floats,
    v: Floats,
    g: Floats,
    start: int,
    stop: int,
    cell: int,
    lane: int,
    limit: int,
    strict: bool,
) -> tuple[int, int, int]:
    """Run LANES instructions `start` - 1 down to `stop`, about `limit` lanes.

    `cell` is the first cell after instruction `start` - 1, and `lane` how many of its lanes are to
    do, -1 for all. Returns (position, cell, lane) in the same sense.
    """
    op, a, b, d, x = map(_plain, (op, a, b, d, x))
    k, v, g = map(_plain, (k, v, g))
    position = start
    while position > stop and op[position - 1] == LANES and limit > 0:
        i = position - 1
        row, shape, operands = _descriptor(d, a[i])
        rule = CONTRIBUTIONS[row]
        base = cell - b[i]
        todo = b[i] if lane < 0 else lane
        first = max(todo - limit, 0)
        for n in range(first, todo):
            w, g[base + n] = g[base + n], 0.0
            if w == 0.0 and not strict:
                continue
            places = _places(shape, operands, n)
            values = [_read(kind, place, x, k, v) for kind, place in places]
            received = rule(w, *values, v[base + n])
            for (kind, place), amount in zip(places, received, strict=True):
                if kind == CELLS:
                    g[place] += amount
                elif kind == INDEXED:
                    g[x[place]] += amount
        limit -= max(todo - first, 1)
        lane = first
        if first == 0:
            position, cell, lane = i, base, -1
    return position, cell, lane


def lanes_tangent(
    op: Ints,
    a: Ints,
    b: Ints,
    d: Ints,
    x: Ints,
    k: Floats,
    v: Floats,
    t: Floats,
    start: int,
    stop: int,
    cell: int,
    lane: int,
    limit: int,
) -> tuple[int, int, int]:
    """Carry tangents `t` through LANES instructions, as `lanes_forward` carries values."""
    op, a, b, d, x = map(_plain, (op, a, b, d, x))
    k, v, t = map(_plain, (k, v, t))
    position = start
    while position < stop and op[position] == LANES and limit > 0:
        row, shape, operands = _descriptor(d, a[position])
        rule = TANGENTS[row]
        last = min(b[position], lane + limit)
        for n in range(lane, last):
            places = _places(shape, operands, n)
            values = [_read(kind, place, x, k, v) for kind, place in places]
            seeds = [
                _read(kind, place, x, k, t) if kind in (CELLS, INDEXED) else 0.0
                for kind, place in places
            ]
            t[cell + n] = rule(*values, v[cell + n], *seeds)
        limit -= max(last - lane, 1)
        lane = last
        if last == b[position]:
            position, cell, lane = position + 1, cell + last, 0
    return position, cell, lane


# Sweeps of many directions: `t` and `g` have a column for each, and the columns go one by one.


def vector_forward(
    op: Ints,
    a: Ints,
    b: Ints,
    d: Ints,
    x: Ints,
    k: Floats,
    v: Floats,
    t: Any,
    reached: Any,
    start: int,
    stop: int,
    cell: int,
    lane: int,
    limit: int,
) -> tuple[int, int, int]:
    """Carry tangents through one run of scalar or of LANES instructions from `start` on.

    Row c of `t` holds the tangents of cell c where `reached[c]` says so, and stands for zeros else.
    Returns (position, cell, lane): where to go on, which is at `start` itself before a HOST
    instruction.
    """
    t[reached == 0] = 0.0
    reached[...] = 1
    place = start, cell, lane
    for column in t.T:
        if op[start] == LANES:
            place = lanes_tangent(op, a, b, d, x, k, v, column, start, stop, cell, lane, limit)
        else:
            end = min(stop, start + limit)
            place = (*scalar_tangent(op, a, b, k, v, column, start, end, cell), lane)
    return place


def vector_reverse(
    op: Ints,
    a: Ints,
    b: Ints,
    d: Ints,
    x: Ints,
    k: Floats,
    v: Floats,
    g: Any,
    reached: Any,
    start: int,
    stop: int,
    cell: int,
    lane: int,
    limit: int,
) -> tuple[int, int, int]:
    """Carry adjoints through one run of scalar or of LANES instructions below `start`.

    Row c of `g` holds the adjoints of cell c where `reached[c]` says so, and stands for zeros else.
    Returns (position, cell, lane) as `lanes_reverse` does: at `start` itself after a HOST
    instruction.
    """
    g[reached == 0] = 0.0
    reached[...] = 1
    place = start, cell, lane
    for column in g.T:
        if op[start - 1] == LANES:
            place = lanes_reverse(
                op, a, b, d, x, k, v, column, start, stop, cell, lane, limit, False
            )
        else:
            end = max(stop, start - limit)
            swept = scalar_reverse(op, a, b, k, v, column, start, end, cell, False)
            place = (*swept, lane)
    return place


def _plain(column: _T) -> _T:
    """Return a column whose elements are Python numbers, which are fast and never warn."""
    return memoryview(column) if hasattr(column, "__array_interface__") else column  # type: ignore


def _descriptor(d: Ints, at: int) -> tuple[int, list[int], list[tuple[int, int, list[int]]]]:
    row, ndim = d[at], d[at + 1]
    shape = [d[at + 2 + j] for j in range(ndim)]
    at += 2 + ndim
    operands = []
    arity = {UNARY: 1, BINARY: 2}.get(KINDS[row], 3)
    for _ in range(arity):
        operands.append((d[at], d[at + 1], [d[at + 2 + j] for j in range(ndim)]))
        at += 2 + ndim
    return row, shape, operands


def _places(shape: Ints, operands: Sequence[Any], lane: int) -> list[tuple[int, int]]:
    """Return (kind, place) of each operand at one lane, lanes being counted in C order."""
    index = []
    for extent in reversed(shape):
        lane, j = divmod(lane, extent)
        index.append(j)
    index.reverse()
    return [
        (kind, offset + sum(j * stride for j, stride in zip(index, strides, strict=True)))
        for kind, offset, strides in operands
    ]


def _read(kind: int, place: int, x: Ints, k: Floats, v: Floats) -> float:
    if kind == INDEXED:
        return v[x[place]]
    return k[place] if kind == CONSTANT else v[place]
