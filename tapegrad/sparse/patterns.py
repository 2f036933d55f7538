"""The structure of a Jacobian: which inputs each output of a tape depends on.

One pass gives each cell a set of inputs (`tapegrad.kernels.patterns`); sets are shared, and large
ones are only named, as unions of others.  Then the sets of the outputs are written out, one walk
each, which takes time in proportion to what is found where the Jacobian is sparse.  Once the walks
have taken longer than it, 64 outputs at a time are found as bits of a word.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels.patterns import LIMIT
from ..programs.simplify import python_or_compiled
from ..tape import Tape
from .edges import Edges, host_operands

Ints = np.ndarray[Any, np.dtype[np.int64]]

WALKS = 4
"""Visits to each set that walks may take at least; a pass with masks visits each of them, too.

Beyond, walks get a visit for each four passes that they may save: a visit takes longer.
"""


def find_pattern(tape: Tape, outputs: Ints, first: int, size: int) -> tuple[Ints, Ints]:
    """Return where the structural nonzeros of a Jacobian are, row by row.

    Parameters
    ----------
    tape : Tape
    outputs : ndarray of int
        Cells of the outputs.
    first, size : int
        The run of cells of the input.

    Returns
    -------
    indptr : ndarray of shape (number of outputs + 1,)
        The columns of row `r` are ``columns[indptr[r]:indptr[r + 1]]``, in order.
    columns : ndarray
    """
    from scipy.sparse import csr_array

    edges = Edges(tape)
    sets = _Sets(size, edges.none)
    of_cell = np.zeros(edges.none + 1, np.int64)
    of_cell[first : first + size] = np.arange(1, size + 1)
    edges.x[first : first + size] = np.arange(first, first + size)  # it keeps what it has
    cell = 0
    for host, call in edges.hosts:
        sets.unite(of_cell, edges.x, edges.y, edges.z, cell, host)
        found = sets.of_host(call, of_cell)
        cell = host + found.size
        of_cell[host:cell] = found
    sets.unite(of_cell, edges.x, edges.y, edges.z, cell, edges.none)
    indptr, columns = sets.write_out(of_cell[outputs])
    shape = (len(outputs), size)
    matrix = csr_array((np.zeros(len(columns), np.bool_), columns, indptr), shape=shape)
    matrix.sort_indices()
    return matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64)


class _Sets:
    """Numbered sets of inputs, as `tapegrad.kernels.patterns` keeps them.

    Set 0 is empty, and set `i` + 1 holds input `i` alone.
    """

    def __init__(self, inputs: int, work: int) -> None:
        self._inputs = inputs
        self._run = python_or_compiled("patterns", work)
        self._start = np.concatenate(([0], np.arange(inputs, dtype=np.int64)))
        self._size = np.ones(inputs + 1, np.int64)
        self._size[0] = 0
        self._members = np.arange(inputs, dtype=np.int64)
        self._used = np.array([inputs + 1, inputs], np.int64)

    def unite(self, sets: Ints, x: Any, y: Any, z: Any, first: int, stop: int) -> None:
        """Give cells from `first` to `stop` the unions of the sets of three others each."""
        while first < stop:
            self._make_room()
            first = self._run.unite(
                sets, x, y, z, first, stop, self._start, self._size, self._members, self._used
            )

    def _make_room(self) -> None:
        if self._used[0] + 2 > len(self._start):
            self._start, self._size = _longer(self._start), _longer(self._size)
        if self._used[1] + 4 * LIMIT > len(self._members):
            self._members = _longer(self._members)

    def of_host(self, call: Any, of_cell: Ints) -> Ints:
        """Return the sets of the results of a structural operation, flat."""
        known = [None if cells is None else of_cell[cells] for cells in host_operands(call)]
        name, size = getattr(getattr(call, "row", None), "name", ""), int(np.prod(call.shape))
        if name == "matmul":
            return self._of_matmul(call, known)
        (ids,) = known if len(known) == 1 else (None,)
        if ids is not None and name in ("sum", "prod", "min", "max"):
            axes = call.params["axis"]
            kept = [i for i in range(ids.ndim) if i not in axes]
            reduced = int(np.prod([ids.shape[i] for i in axes]))
            return self._all_of(ids.transpose(*kept, *axes).reshape(size, reduced))
        if ids is not None and name in ("cumsum", "cumprod"):
            along = np.moveaxis(ids, call.params["axis"], 0).copy()
            for i in range(1, len(along)):
                along[i] = self._pairs(along[i - 1], along[i])
            cumulated: Ints = np.moveaxis(along, 0, call.params["axis"]).ravel()
            return cumulated
        everything = np.concatenate(
            [np.zeros(0, np.int64), *[x.ravel() for x in known if x is not None]]
        )
        return np.repeat(self._all_of(everything[None, :]), size)

    def _of_matmul(self, call: Any, known: list[Any]) -> Ints:
        """Return what products depend on: a row of one matrix, a column of the other."""
        shapes = [
            np.shape(operand.constant) if ids is None else ids.shape
            for operand, ids in zip(call.operands, known, strict=True)
        ]
        vectors = [len(shape) == 1 for shape in shapes]
        none = np.zeros(call.shape, np.int64)
        rows = columns = none
        if known[0] is not None:
            rows = self._all_of(known[0])
            rows = rows if vectors[0] or vectors[1] else rows[..., :, None]
        if known[1] is not None:
            columns = self._all_of(known[1] if vectors[1] else np.moveaxis(known[1], -2, -1))
            if vectors[1]:
                columns = columns[..., None] if not vectors[0] else columns
            elif not vectors[0]:
                columns = columns[..., None, :]
        return self._pairs(
            np.broadcast_to(rows, call.shape), np.broadcast_to(columns, call.shape)
        ).ravel()

    def _all_of(self, ids: Ints) -> Ints:
        """Return the unions along the last axis, in pairs, pairs of pairs, and so on."""
        while ids.shape[-1] > 1:
            even = ids.shape[-1] // 2 * 2
            joined = self._pairs(ids[..., 0:even:2], ids[..., 1:even:2])
            ids = np.concatenate((joined, ids[..., even:]), axis=-1)
        return ids[..., 0] if ids.shape[-1] else np.zeros(ids.shape[:-1], np.int64)

    def _pairs(self, one: Ints, other: Ints) -> Ints:
        n = one.size
        sets = np.concatenate((one.ravel(), other.ravel(), np.zeros(n + 1, np.int64)))
        place = np.arange(n, dtype=np.uint32)
        x = np.concatenate((place, place, place))  # cell 2n + i: the union of cells i and n + i
        self.unite(sets, x, x + np.uint32(n), np.full(3 * n, 3 * n, np.uint32), 2 * n, 3 * n)
        return sets[2 * n : 3 * n].reshape(one.shape)

    def write_out(self, wanted: Ints) -> tuple[Ints, Ints]:
        """Return the members of sets, one set after another, and where each begins."""
        count = int(self._used[0])
        start, size = self._start[:count], self._size[:count]
        seen, seen_input = np.zeros(count, np.int64), np.zeros(self._inputs, np.int64)
        columns = np.zeros(4 * (len(wanted) + LIMIT), np.int64)
        row = np.zeros(len(wanted) + 1, np.int64)
        used = np.array([0, count * (WALKS + len(wanted) // 256)], np.int64)
        stack = np.zeros(count + 1, np.int64)
        done = 0
        while done < len(wanted):
            done = self._run.collect(
                *(wanted, done, start, size, self._members, seen, seen_input, stack),
                *(columns, row, used),
            )
            if used[1] <= 0:
                break
            if done < len(wanted):
                columns = _longer(columns)
        columns = columns[: row[done]]
        if done == len(wanted):
            return row, columns
        lengths, rest = self._by_masks(wanted[done:])
        row[done + 1 :] = row[done] + np.cumsum(lengths)
        return row, np.concatenate((columns, rest))

    def _by_masks(self, wanted: Ints) -> tuple[Ints, Ints]:
        """Return how many members each set has, and the members, 64 sets at a time."""
        count = int(self._used[0])
        mask, found = np.zeros(count, np.int64), np.zeros(self._inputs, np.int64)
        bit = (np.uint64(1) << np.arange(64, dtype=np.uint64)).view(np.int64)
        lengths, columns = [], []
        for first in range(0, len(wanted), 64):
            chunk = wanted[first : first + 64]
            np.bitwise_or.at(mask, chunk, bit[: len(chunk)])
            mask[0] = 0
            self._run.spread(mask, count, self._start, self._size, self._members, found)
            bits = np.unpackbits(
                found.astype("<i8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little"
            )
            which, column = np.nonzero(bits.T[: len(chunk)])
            lengths.append(np.bincount(which, minlength=len(chunk)))
            columns.append(column)
            found[:] = 0
        return np.concatenate(lengths), np.concatenate(columns)


def _longer(array: Ints) -> Ints:
    """Return an array with room for as much again, and some more."""
    return np.concatenate((array, np.zeros(len(array) + 8 * LIMIT, array.dtype)))
