"""Sparse Jacobians: their exact structure, a colouring of it, and a few directions instead of many.

A pattern is found on the tape by sweeping sets of outputs backward, 64 at a time as bits of a word.
Columns (or rows) that never meet in a row (column) share a colour, and one sweep in the sum of
their directions gives them all.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from . import directions
from .errors import at_caller
from .function import FunctionOfPrograms
from .kernels.opcodes import KINDS
from .program import Program
from .reach import FLOWS
from .simplify import python_or_compiled
from .storage import Floats
from .tape import Tape

_FLOWS = np.array([sum(1 << j for j in flow) for flow in FLOWS], np.int64)
_KINDS = np.array(KINDS, np.int64)


class Pattern:
    """Where a Jacobian can be nonzero, and in which directions it is computed.

    Attributes
    ----------
    shape : (int, int)
    rows, columns : ndarray of int64
        Places of the nonzeros, row by row.
    colors : ndarray of int64
        The colour of each column, or of each row where `forward` is False.
    count : int
        Number of colours: directions that a sweep needs.
    forward : bool
        Whether columns are coloured, for forward sweeps.
    """

    __slots__ = ("colors", "columns", "count", "forward", "indptr", "rows", "shape")

    def __init__(
        self, shape: tuple[int, int], rows: Any, columns: Any, forward_allowed: bool
    ) -> None:
        self.shape = shape
        order = np.lexsort((columns, rows))
        self.rows, self.columns = rows[order], columns[order]
        self.indptr = _starts(self.rows, shape[0])
        across = np.lexsort((self.rows, self.columns))
        by_row = (self.indptr, self.columns)
        by_column = (_starts(self.columns[across], shape[1]), self.rows[across])
        self.forward = True
        self.count, self.colors = _color(by_row, by_column, shape[1])
        count, colors = _color(by_column, by_row, shape[0])
        if count < self.count or not forward_allowed:
            self.forward, self.count, self.colors = False, count, colors

    def __repr__(self) -> str:
        sweeps = "forward" if self.forward else "reverse"
        return (
            f"Pattern({self.shape[0]} x {self.shape[1]}, {len(self.rows)} nonzeros, "
            f"{self.count} {sweeps} directions)"
        )


def _starts(sorted_places: Any, size: int) -> Any:
    return np.searchsorted(sorted_places, np.arange(size + 1)).astype(np.int64)


def _color(by_row: Any, by_column: Any, size: int) -> tuple[int, Any]:
    colors = np.zeros(size, np.int64)
    taken = np.full(size + 1, -1, np.int64)
    run = python_or_compiled("patterns", len(by_row[1]))
    count = run.color_greedily(*by_row, *by_column, colors, taken)
    return int(count), colors


def find_pattern(tape: Tape, outputs: Any, first: int, size: int) -> tuple[Any, Any]:
    """Return rows and columns of the structural nonzeros of a Jacobian.

    Parameters
    ----------
    tape : Tape
    outputs : ndarray of int
        Cells of the outputs.
    first, size : int
        The run of cells of the input.
    """
    n = tape.n
    arena = tape.arena
    op = arena.op.array[:n]
    a, b = arena.a.array[:n].astype(np.int64), arena.b.array[:n].astype(np.int64)
    reads = [[_all_cells(place) for place in call.operands] for call in tape.hosts]
    cells = [np.concatenate([np.zeros(0, np.int64), *part]) for part in reads]
    host_start = np.concatenate(([0], np.cumsum([len(part) for part in cells]))).astype(np.int64)
    host_cells = np.concatenate([np.zeros(0, np.int64), *cells])
    d, x = tape.d.array(), tape.x.array().astype(np.int64)
    mask = np.zeros(tape.flushed_cell, np.int64)  # 64 bits; their sign means nothing
    bit = (np.uint64(1) << np.arange(64, dtype=np.uint64)).view(np.int64)
    run = python_or_compiled("patterns", tape.flushed_cell * (1 + len(outputs) // 64))
    rows, columns = [], []
    for start in range(0, len(outputs), 64):
        chunk = outputs[start : start + 64]
        np.bitwise_or.at(mask, chunk, bit[: len(chunk)])
        run.masks_backward(
            op, a, b, _KINDS, _FLOWS, d, x, host_start, host_cells, mask, n, tape.flushed_cell
        )
        reached = np.flatnonzero(mask[first : first + size])
        words = mask[first : first + size][reached].astype("<i8")
        bits = np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
        which, row = np.nonzero(bits)
        rows.append(row + start)
        columns.append(reached[which])
        for entry in tape.imports:
            mask[entry.cell : entry.cell + entry.size] = 0
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(rows), np.concatenate(columns)


def _all_cells(place: Any) -> Any:
    if place.cells is not None:
        return np.ravel(place.cells).astype(np.int64)
    return np.zeros(0, np.int64) if place.window is None else place.window.cells().ravel()


class SparseJacobian:
    """What `sparse_jacobian` returns: call it with the arguments of the function.

    Attributes
    ----------
    pattern : Pattern or None
        Structure and colouring used by the last call; found once for each way through the code.
    """

    def __init__(self, f: Callable[..., Any], argnum: int) -> None:
        self._function = FunctionOfPrograms(f)
        self._argnum = argnum
        self._patterns: weakref.WeakKeyDictionary[Program, Pattern] = weakref.WeakKeyDictionary()
        self.pattern: Pattern | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the Jacobian as a `scipy.sparse.csr_array`."""
        return self._function.run(
            args, kwargs, lambda program: self._compute(program, args, kwargs)
        )

    def _compute(self, program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from scipy.sparse import csr_array

        with program.lock:
            program.forward(args, kwargs)
            known, cells = program.array_input(self._argnum), program.array_output()
            pattern = self._patterns.get(program)
            if pattern is None:
                rows, columns = find_pattern(program.tape, cells, known.cell, known.size)
                pattern = Pattern(
                    (len(cells), known.size),
                    rows,
                    columns,
                    directions.carries_tangents(program.tape),
                )
                self._patterns[program] = pattern
            self.pattern = pattern
            data = _values(program.tape, cells, known.leaf, pattern)
        return csr_array((data, pattern.columns.copy(), pattern.indptr.copy()), shape=pattern.shape)


def _values(tape: Tape, cells: Any, leaf: Any, pattern: Pattern) -> Floats:
    """Return the nonzeros of a Jacobian, in the order of its pattern."""
    data = np.zeros(len(pattern.rows))
    seeded = pattern.columns if pattern.forward else pattern.rows
    swept = pattern.rows if pattern.forward else pattern.columns
    of_entry = pattern.colors[seeded]
    step = directions.width(tape)
    for low in range(0, pattern.count, step):
        high = min(low + step, pattern.count)
        seeds = np.zeros((len(pattern.colors), high - low))
        chosen = np.flatnonzero((pattern.colors >= low) & (pattern.colors < high))
        seeds[chosen, pattern.colors[chosen] - low] = 1.0
        entries = np.flatnonzero((of_entry >= low) & (of_entry < high))
        if pattern.forward:
            found = directions.tangents(tape, cells, {id(leaf): seeds})
            data[entries] = found[swept[entries], of_entry[entries] - low]
            continue
        for entry, rows in directions.adjoints(tape, cells, seeds):
            if entry.leaf is leaf:
                data[entries] += rows[swept[entries], of_entry[entries] - low]
    return data


def sparse_jacobian(f: Callable[..., Any], argnums: int = 0) -> SparseJacobian:
    """Return a function that computes the Jacobian of `f` as a sparse matrix.

    The structure is that of the computation, exactly: an entry is stored where a derivative can
    flow, be it zero at this point.  `f` is recorded once for each way through its code, and the
    structure and its colouring are found once for each recording.

    Parameters
    ----------
    f : callable
        Returns an array computed with NumPy from its arguments.
    argnums : int, optional
        The argument, an array, to differentiate with respect to.

    Returns
    -------
    SparseJacobian
        Gives a `scipy.sparse.csr_array` with a row an output and a column an input.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> jacobian = tg.sparse_jacobian(lambda x: x[1:] ** 2 - x[:-1])
    >>> jacobian(np.array([1.0, 2.0, 3.0])).toarray()
    array([[-1.,  4.,  0.],
           [ 0., -1.,  6.]])
    >>> jacobian.pattern
    Pattern(2 x 3, 4 nonzeros, 2 forward directions)
    """
    if not isinstance(argnums, (int, np.integer)) or isinstance(argnums, bool):
        raise TypeError(
            f"tg.sparse_jacobian differentiates one argument: argnums must be an integer, not "
            f"{argnums!r}{at_caller()}"
        )
    return SparseJacobian(f, int(argnums))
