"""Programs called on tracked values: their instructions are appended to the current tape.

The call is then like any other recorded code: it can be swept, differentiated again, and become a
part of another program.  It costs some array operations, whatever the number of instructions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..host import HostCall
from ..kernels.opcodes import (
    BINARY,
    BINARY_KX,
    BINARY_XK,
    CARRY,
    CONST,
    HOST,
    INPUT,
    KINDS,
    LANES,
    TERNARY,
)
from ..recording import CELLS, INDEXED, PASSIVE_CELLS, cell_of, elementwise
from ..storage import Tracked, TrackedArray
from ..tape import Import, Tape
from .layout import Ints, first_cells, lane_operands
from .simplify import moved_operand

_KIND = np.array(KINDS + (0,) * (256 - len(KINDS)), np.uint8)


class Template:
    """A program's code, ready to be appended to tapes: what depends on the place is known apart.

    Parameters
    ----------
    tape : Tape
        A finished one, each of whose windows lies in one instruction.
    inputs : list of (int, int)
        First cell and number of cells of each input.
    """

    def __init__(self, tape: Tape, inputs: Sequence[tuple[int, int]]) -> None:
        n, arena = tape.n, tape.arena
        op = arena.op.array[:n]
        first = first_cells(op, arena.b.array[:n])
        keep = (op != INPUT) | (arena.b.array[:n] > 0)
        keep[np.searchsorted(first[:n], [cell for cell, size in inputs if size], "right") - 1] = 0
        sizes = np.diff(first)
        moved = np.concatenate(([0], np.cumsum(np.where(keep, sizes, 0))[:-1]))
        # By cell of the program: its place among those that are appended.
        self.to = np.arange(first[-1]) - np.repeat(first[:n] - moved, sizes)
        self.inputs = inputs
        self.size = int(sizes[keep].sum())
        self.op = op[keep].copy()
        self.a = arena.a.array[:n][keep].astype(np.int64)
        self.b = arena.b.array[:n][keep].astype(np.int64)
        self.k, self.d, self.x = tape.k.array(), tape.d.array(), tape.x.array().astype(np.int64)
        self.hosts = tape.hosts
        constants = self.op == INPUT
        imports = [tape.imports[number] for number in self.a[constants].tolist()]
        v = arena.v.array
        self.constants = [
            (int(self.to[entry.cell]), v[entry.cell : entry.cell + entry.size].copy())
            for entry in imports
        ]
        self.a[constants] = np.arange(len(imports))
        self._find_operands()

    def _find_operands(self) -> None:
        """Note which numbers of the code name cells, constants, indices, and so on."""
        kind, op = _KIND[self.op], self.op
        self.cells_in_a = np.flatnonzero((kind > 0) | (op == CARRY))
        self.cells_in_b = np.flatnonzero((kind == BINARY) | (kind == TERNARY))
        self.pooled_in_a = np.flatnonzero(op == CONST)
        self.pooled_in_b = np.flatnonzero((kind == BINARY_XK) | (kind == BINARY_KX))
        self.lanes = np.flatnonzero(op == LANES)
        self.structural = np.flatnonzero(op == HOST)
        self.given = np.flatnonzero(op == INPUT)
        offsets: dict[str, list[Ints]] = {"cells": [], "indices": [], "constants": []}
        for _, at in lane_operands(self.op, self.a, self.d):
            kinds = self.d[at]
            cells = (kinds == CELLS) | (kinds == PASSIVE_CELLS)
            offsets["cells"].append(at[cells] + 1)
            offsets["indices"].append(at[kinds == INDEXED] + 1)
            offsets["constants"].append(at[~cells & (kinds != INDEXED)] + 1)
        self.offsets = {
            key: np.concatenate([np.zeros(0, np.int64), *part]) for key, part in offsets.items()
        }

    def append(self, tape: Tape, bases: Sequence[int]) -> Ints:
        """Append the code to a tape, with inputs in the runs of cells from `bases` on.

        Returns
        -------
        ndarray
            By cell of the program: the cell of the tape.
        """
        tape.flush()
        to: Ints = self.to + tape.flushed_cell
        for (cell, size), base in zip(self.inputs, bases, strict=True):
            to[cell : cell + size] = np.arange(base, base + size)
        a, b, d = self.a.copy(), self.b.copy(), self.d.copy()
        a[self.cells_in_a] = to[a[self.cells_in_a]]
        b[self.cells_in_b] = to[b[self.cells_in_b]]
        pooled = tape.k.extend(self.k) if self.k.size else 0
        a[self.pooled_in_a] += pooled
        b[self.pooled_in_b] += pooled
        a[self.given] += len(tape.imports)
        a[self.structural] += len(tape.hosts)
        if self.lanes.size:
            cells, indices = self.offsets["cells"], self.offsets["indices"]
            d[cells] = to[d[cells]]
            d[indices] += tape.x.extend(to[self.x].astype(np.uint32)) if self.x.size else 0
            d[self.offsets["constants"]] += pooled
            a[self.lanes] += tape.d.extend(d)
        calls = [_moved_call(call, to) for call in self.hosts]
        shift = tape.flushed_cell
        constants = [Import(cell + shift, values.size) for cell, values in self.constants]
        tape.push_block(self.op, a, b, self.size, constants, calls)
        v = tape.arena.v.array
        for entry, (_, values) in zip(constants, self.constants, strict=True):
            v[entry.cell : entry.cell + entry.size] = values
        return to


def _moved_call(call: Any, to: Ints) -> HostCall:
    places = [moved_operand(place, to) for place in call.operands]
    from ..ops.structural import StructuralRow  # loaded with the first structural operation

    # A rule of the user's keeps what its last run has left, so that each tape needs its own.
    row = call.row if type(call.row) is StructuralRow else copy.copy(call.row)
    return HostCall(row, places, call.params, call.shape)


def run_of(tape: Tape, x: Any) -> int:
    """Return the first of consecutive cells of `tape` that hold a value, a copy if need be."""
    if not isinstance(x, Tracked):
        return tape.push_input(np.asarray(x)).cell
    if not isinstance(x, TrackedArray):
        return cell_of(tape, x)
    if not x.window.size:
        return 0
    storage = tape.import_storage(x.storage)
    if storage.index is None and x.window.is_contiguous:
        return storage.base + x.window.offset
    fresh = elementwise("positive", x)
    return cell_of(tape, fresh) if not x.window.shape else int(fresh.storage.base)
