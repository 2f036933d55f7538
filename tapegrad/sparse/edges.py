"""What each cell is computed from: the tape as columns of operand cells, one entry a cell.

Questions about structure (which outputs depend on which inputs) are asked of cells, whether a
scalar instruction computes them or a lane of an array instruction.  Structural operations (sums,
products of matrices) have any number of operands and stay apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels.opcodes import (
    BINARY,
    BINARY_KX,
    BINARY_XK,
    HOST,
    INPUT,
    KINDS,
    LANES,
    TERNARY,
    UNARY,
)
from ..kernels.reference import CELLS, INDEXED
from ..reach import FLOWS
from ..tape import Tape
from ..window import Window

_POSITIONS = {UNARY: "a", BINARY: "ab", BINARY_XK: "a-", BINARY_KX: "-a", TERNARY: "cab"}


class Edges:
    """Operands through which a derivative flows, for each cell of a tape.

    Attributes
    ----------
    x, y, z : ndarray of uint32
        By cell: cells that it is computed from; `none` where there are fewer than three.
    none : int
        Stands for no cell: one more than the last.
    hosts : list of (int, HostCall)
        Structural operations, with their first cells, in the order of the tape.
    """

    __slots__ = ("hosts", "none", "x", "y", "z")

    def __init__(self, tape: Tape) -> None:
        n, self.none = tape.n, tape.flushed_cell
        arena = tape.arena
        op, a, b = arena.op.array[:n], arena.a.array[:n], arena.b.array[:n]
        wide = (op == INPUT) | (op == LANES) | (op == HOST)
        first = np.cumsum(np.where(wide, b, 1)) - np.where(wide, b, 1)
        self.x, self.y, self.z = (np.full(self.none, self.none, np.uint32) for _ in range(3))
        before = np.concatenate(([0], a[:-1]))  # where the x of a ternary row is: in the CARRY
        for letter, column in (("a", a), ("b", b), ("c", before)):
            for place, position in ((self.x, 0), (self.y, 1), (self.z, 2)):
                chosen = np.flatnonzero(_SCALAR[letter, position][op])
                place[first[chosen]] = column[chosen]
        for i in np.flatnonzero(op == LANES).tolist():
            self._add_lanes(tape, int(a[i]), int(first[i]), int(b[i]))
        self.hosts = [
            (int(first[i]), tape.hosts[a[i]]) for i in np.flatnonzero(op == HOST).tolist()
        ]

    def _add_lanes(self, tape: Tape, at: int, first: int, size: int) -> None:
        d = tape.d.array()
        row, ndim = int(d[at]), int(d[at + 1])
        shape = tuple(d[at + 2 : at + 2 + ndim].tolist())
        for position in range(len(_POSITIONS[KINDS[row]])):
            place = (self.x, self.y, self.z)[position]
            at += 2 + ndim
            kind, offset, *strides = d[at : at + 2 + ndim].tolist()
            if kind in (CELLS, INDEXED) and position in FLOWS[row]:
                cells = Window(offset, shape, tuple(strides)).cells().ravel()
                place[first : first + size] = tape.x.array()[cells] if kind == INDEXED else cells


def host_operands(call: Any) -> list[Any]:
    """Return the cells of each operand of a structural operation, in its shape.

    The cells of an operand that is constant are None.
    """
    found: list[Any] = []
    for operand in call.operands:
        if operand.window is not None:
            found.append(operand.window.cells())
        else:
            found.append(None if operand.cells is None else np.asarray(operand.cells))
    return found


def _scalar_positions(letter: str, position: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return, by opcode, whether a derivative flows to an operand that stands in a column."""
    found = np.zeros(256, np.bool_)
    for op, flow in enumerate(FLOWS):
        places = _POSITIONS.get(KINDS[op], "")
        found[op] = position in flow and places[position : position + 1] == letter
    return found


_SCALAR = {(letter, j): _scalar_positions(letter, j) for letter in "abc" for j in range(3)}

__all__ = ["Edges", "host_operands"]
