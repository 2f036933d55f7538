"""A finished tape as straight scalar code, an instruction a cell: what derivatives derive from.

Array instructions become an instruction for each of their lanes, and sums and products of matrices
the additions and multiplications that they stand for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels.opcodes import (
    ADD,
    BINARY,
    BINARY_KX,
    BINARY_XK,
    CONST,
    HOST,
    INPUT,
    KINDS,
    LANES,
    MULTIPLY,
    ROW_OF,
    ROWS,
    TERNARY,
)
from ..kernels.reference import CONSTANT, INDEXED
from ..tape import Tape
from ..window import Window

Ints = np.ndarray[Any, np.dtype[np.int64]]

EXPANSION = 4
"""Structural operations become no more instructions than this many times those of the tape."""


class Unsupported(Exception):
    """Why a tape has no straight code: it is swept instead."""


class Straight:
    """The instructions of a tape, one a cell.

    Parameters
    ----------
    tape : Tape
        Finished, and evaluated.
    passive : list of Import
        Inputs whose values are part of the program.

    Raises
    ------
    Unsupported
        Where a structural operation has no straight code, or too much.

    Attributes
    ----------
    op : ndarray of uint8
        0 for cells that are no instruction: inputs, constants and copies.
    x, y, z : ndarray of int32
        Operands: cells, or -1 - i for constant i; -1 where a row has fewer.
    k : list of ndarray
        The constants, in pieces.
    cells : ndarray of int64
        By cell of the tape: the cell here, or a constant.
    """

    def __init__(self, tape: Tape, passive: list[Any]) -> None:
        self._tape = tape
        self._passive = passive
        self.k: list[Any] = [np.zeros(1), tape.k.array()]
        self._constants = 1 + len(self.k[1])
        self._columns: list[tuple[Any, Any, Any, Any]] = []
        self._size = 0
        n = tape.n
        arena = tape.arena
        op, a, b = (column.array[:n] for column in (arena.op, arena.a, arena.b))
        sizes = np.where((op == INPUT) | (op == LANES) | (op == HOST), b, 1).astype(np.int64)
        self._first = np.cumsum(sizes) - sizes
        self.cells: Ints = np.zeros(tape.flushed_cell + 1, np.int64)
        hosts = np.flatnonzero(op == HOST).tolist()
        start = 0
        for i in [*hosts, n]:
            self._add_instructions(op, a, b, start, i)
            if i < n:
                first = int(self._first[i])
                found = self._host(tape.hosts[a[i]])
                self.cells[first : first + int(b[i])] = found
            start = i + 1
        self.op, self.x, self.y, self.z = (
            np.concatenate(columns) if columns else np.zeros(0, np.uint8)
            for columns in (zip(*self._columns, strict=True) if self._columns else ((),) * 4)
        )

    # -- pieces -----------------------------------------------------------------------------------

    def _numbers(self, values: Any) -> Ints:
        """Return the numbers of new constants."""
        values = np.ravel(values)
        self.k.append(values.astype(np.float64))
        self._constants += values.size
        numbers: Ints = -1 - np.arange(self._constants - values.size, self._constants)
        return numbers

    def _append(self, op: Any, x: Any, y: Any, z: Any) -> Ints:
        """Append instructions and return their cells."""
        size = len(x)
        x, y, z = (np.broadcast_to(np.asarray(part, np.int32), size) for part in (x, y, z))
        self._columns.append((np.broadcast_to(np.asarray(op, np.uint8), size), x, y, z))
        self._size += size
        return np.arange(self._size - size, self._size)

    # -- scalar and array instructions -------------------------------------------------------------

    def _add_instructions(self, op: Any, a: Any, b: Any, start: int, stop: int) -> None:
        """Append instructions `start` to `stop`, none of which is a structural operation."""
        if start == stop:
            return
        low = int(self._first[start])
        high = int(self._first[stop]) if stop < len(op) else self._tape.flushed_cell
        self.cells[low:high] = self._size + np.arange(high - low)
        new = np.zeros(high - low, np.uint8)
        x, y, z = (np.full(high - low, -1, np.int64) for _ in range(3))
        part = slice(start, stop)
        ops, at = op[part], self._first[part] - low
        kinds = _KINDS[ops]
        rows = np.flatnonzero(kinds)
        new[at[rows]] = _CELLS_OPCODE[ops[rows]]
        left, right = a[part].astype(np.int64), b[part].astype(np.int64)
        constants = -2 - right  # the pool comes after one number of our own
        chosen = np.flatnonzero(ops == CONST)
        self.cells[self._first[part][chosen]] = -2 - left[chosen]
        for entry in self._passive:
            if low <= entry.cell < high:
                place = slice(entry.cell, entry.cell + entry.size)
                self.cells[place] = self._numbers(self._tape.arena.v.array[place])
        for kind, places in _OPERANDS.items():
            chosen = np.flatnonzero(kinds == kind)
            where = at[chosen]
            carried = left[chosen - 1] if kind == TERNARY else left[:0]
            for column, letter in zip((x, y, z), places, strict=True):
                if letter == "a":
                    column[where] = self.cells[left[chosen]]
                elif letter == "b":
                    column[where] = self.cells[right[chosen]]
                elif letter == "k":
                    column[where] = constants[chosen]
                elif letter == "c":
                    column[where] = self.cells[carried]
        for i in np.flatnonzero(ops == LANES).tolist():
            self._add_lanes(int(left[i]), int(at[i]), int(right[i]), (new, x, y, z))
        self._append(new, x, y, z)

    def _add_lanes(self, at: int, first: int, size: int, columns: Any) -> None:
        d = self._tape.d.array()
        row, ndim = int(d[at]), int(d[at + 1])
        shape = tuple(d[at + 2 : at + 2 + ndim].tolist())
        columns[0][first : first + size] = row
        for position in range(len(_OPERANDS[KINDS[row]].strip("-"))):
            at += 2 + ndim
            kind, offset, *strides = d[at : at + 2 + ndim].tolist()
            places = Window(offset, shape, tuple(strides)).cells().ravel()
            if kind == CONSTANT:
                found = -2 - places
            elif kind == INDEXED:
                found = self.cells[self._tape.x.array()[places]]
            else:
                found = self.cells[places]
            columns[1 + position][first : first + size] = found

    # -- structural operations ---------------------------------------------------------------------

    def _host(self, call: Any) -> Ints:
        name = getattr(getattr(call, "row", None), "name", "")
        if name not in ("sum", "prod", "matmul", "cumsum"):
            raise Unsupported(f"{name or type(call).__name__} has no straight code")
        operands = [self._operand(x) for x in call.operands]
        if name == "matmul":
            return self._matmul(call, *operands)
        (x,) = operands
        if name == "cumsum":
            along = np.moveaxis(x, call.params["axis"], 0).copy()
            for i in range(1, len(along)):
                along[i] = self._binary(ADD, along[i - 1], along[i])
            cumulated: Ints = np.moveaxis(along, 0, call.params["axis"]).ravel()
            return cumulated
        axes = call.params["axis"]
        kept = [i for i in range(x.ndim) if i not in axes]
        reduced = int(np.prod([x.shape[i] for i in axes]))
        outputs = int(np.prod([x.shape[i] for i in kept]))
        return self._reduced(
            ADD if name == "sum" else MULTIPLY, x.transpose(*kept, *axes).reshape(outputs, reduced)
        )

    def _operand(self, operand: Any) -> Ints:
        """Return the cells, or constants, of an operand of a structural operation."""
        if operand.constant is not None:
            return self._numbers(operand.constant).reshape(np.shape(operand.constant))
        cells = operand.cells if operand.window is None else operand.window.cells()
        found: Ints = self.cells[cells]
        return found

    def _binary(self, op: int, x: Ints, y: Ints) -> Ints:
        if self._size + x.size > EXPANSION * self._tape.flushed_cell + (1 << 16):
            raise Unsupported("structural operations are too large to be written out")
        return self._append(op, x.ravel(), y.ravel(), -1).reshape(x.shape)

    def _reduced(self, op: int, x: Ints) -> Ints:
        """Return sums or products along the last axis, in pairs, pairs of pairs, and so on."""
        if x.shape[-1] == 0:
            empty = self._numbers(np.full(x.shape[:-1], 0.0 if op == ADD else 1.0))
            return empty.reshape(x.shape[:-1])
        while x.shape[-1] > 1:
            even = x.shape[-1] // 2 * 2
            pairs = self._binary(op, x[..., 0:even:2], x[..., 1:even:2])
            x = np.concatenate((pairs, x[..., even:]), axis=-1)
        return x[..., 0]

    def _matmul(self, call: Any, x: Ints, y: Ints) -> Ints:
        x = x[None, :] if x.ndim == 1 else x
        y = y[:, None] if y.ndim == 1 else y
        rows, columns = x[..., :, None, :], np.moveaxis(y, -2, -1)[..., None, :, :]
        products = self._binary(MULTIPLY, *np.broadcast_arrays(rows, columns))
        return self._reduced(ADD, products).ravel()


_OPERANDS = {1: "a--", BINARY: "ab-", BINARY_XK: "ak-", BINARY_KX: "ka-", TERNARY: "cab"}
_KINDS = np.array(KINDS + (0,) * (256 - len(KINDS)), np.uint8)
# `emit` knows rules of the usual rows only, so recorded sweeps are taken for such. That they make
# zero of zero times infinity is lost, as it is for all derived code: what is nan is swept.
_USUAL = {"adjoint_multiply": "multiply", "adjoint_divide": "divide"}
_CELLS_OPCODE = np.array(
    [ROWS[_USUAL.get(row, row)][0] if row in ROWS else 0 for row in ROW_OF]
    + [0] * (256 - len(ROW_OF)),
    np.uint8,
)
