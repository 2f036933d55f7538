"""Sparse Jacobians and Hessians, as SciPy's CSR arrays with a fixed structure.

The function is recorded once for each way through its code, and each recording prepared once. There
are two ways to do that.  Most code is turned into a program of its own that computes the nonzeros
one by one (`tapegrad.sparse.derive`).  Where that is not possible, or would be too long, the
recording is swept in a few directions that give all nonzeros together: the structure is found first
(`tapegrad.sparse.patterns`), and then coloured (`tapegrad.sparse.coloring`).
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import ControlFlowChanged, at_caller
from ..programs.function import _SMALL, FunctionOfPrograms
from ..programs.program import Program
from ..programs.simplify import _COMPILER
from ..storage import Floats
from ..tape import Tape
from ..transforms import directions
from .coloring import Compression, Ints, compress_columns, compress_symmetric, most_in_line
from .derive import DerivedMatrix, derive_hessian, derive_jacobian
from .patterns import find_pattern
from .straight import Unsupported

DERIVED_FROM = 2_000
"""Cells from which on a program of the nonzeros is derived even if Numba must be loaded for it."""


class Pattern:
    """Where a matrix of derivatives can be nonzero, and a few directions that give all of it.

    The directions are found when somebody asks for them.

    Attributes
    ----------
    shape : (int, int)
    rows, columns : ndarray of int64
        Places of the nonzeros, row by row.
    indptr : ndarray of int64
        Where each row begins in `columns`.
    symmetric : bool
        Whether it is a Hessian's.
    dtype : dtype
        Of matrices that have the pattern.
    """

    __slots__ = (
        *("_chosen", "_forward_allowed", "_model", "columns", "dtype", "indptr", "rows", "shape"),
        "symmetric",
    )

    def __init__(
        self,
        shape: tuple[int, int],
        indptr: Ints,
        columns: Ints,
        forward_allowed: bool = True,
        symmetric: bool = False,
        dtype: Any = np.float64,
    ) -> None:
        self.shape, self.indptr, self.columns = shape, indptr, columns
        self.rows = np.repeat(np.arange(shape[0]), np.diff(indptr))
        self.symmetric = symmetric
        self._forward_allowed = forward_allowed
        self._chosen: tuple[bool, Compression] | None = None
        self._model: Any = None
        self.dtype = dtype

    def matrix(self, data: Floats) -> Any:
        """Return a `scipy.sparse.csr_array` of nonzeros, which owns its structure."""
        if data.dtype != self.dtype:
            data = data.astype(self.dtype)
        if self._model is None:
            from scipy.sparse import csr_array

            # Solvers want 32 bits where these are enough, and they are read in half the time.
            few = max(len(self.columns), *self.shape) < 1 << 31
            structure = [
                part.astype(np.int32 if few else np.int64) for part in (self.columns, self.indptr)
            ]
            self._model = csr_array((data, *structure), shape=self.shape)
        # What SciPy checks when it makes a matrix takes longer than computing a small one.
        matrix = copy.copy(self._model)
        matrix.data, matrix.indices = data, self._model.indices.copy()
        matrix.indptr = self._model.indptr.copy()
        return matrix

    @property
    def forward(self) -> bool:
        """Whether its directions are swept forward: those of columns."""
        return self._choice()[0]

    @property
    def colors(self) -> Ints:
        """The direction (colour) of each column, or of each row where `forward` is False."""
        return self._choice()[1].colors

    @property
    def count(self) -> int:
        """Number of directions."""
        return self._choice()[1].count

    @property
    def compression(self) -> Compression:
        """How the nonzeros are read from what sweeps give."""
        return self._choice()[1]

    def _choice(self) -> tuple[bool, Compression]:
        if self._chosen is None:
            self._chosen = self._choose()
        return self._chosen

    def _choose(self) -> tuple[bool, Compression]:
        """Colour the columns or the rows, whichever takes fewer colours, or a Hessian's both."""
        rows, columns, shape = self.rows, self.columns, self.shape
        if self.symmetric:
            return self._forward_allowed, compress_symmetric(rows, columns, shape[0])
        at_least = {True: most_in_line(rows, shape[0]), False: most_in_line(columns, shape[1])}
        best: tuple[bool, Compression] | None = None
        for forward in (True, False) if at_least[True] <= at_least[False] else (False, True):
            if (forward and not self._forward_allowed) or (
                best is not None and at_least[forward] >= best[1].count
            ):
                continue
            found = (
                compress_columns(rows, columns, shape)
                if forward
                else compress_columns(columns, rows, shape[::-1])
            )
            if best is None or found.count < best[1].count:
                best = forward, found
        assert best is not None  # rows are always allowed
        return best

    def __repr__(self) -> str:
        return f"Pattern({self.shape[0]} x {self.shape[1]}, {len(self.columns)} nonzeros)"


def _still_fits(program: Program, x: Any) -> bool:
    """Whether a program of one argument is the one to try: the short way to find it again."""
    known = program._inputs[0]
    return (
        type(x) is np.ndarray
        and len(program._inputs) == 1
        and known is not None
        and known.dtype == x.dtype
        and known.shape == x.shape
        and not any(item.size <= _SMALL and item.changed for item in program.captured)
    )


class _Derived:
    """A recording prepared as a program that computes the nonzeros."""

    def __init__(self, matrix: DerivedMatrix, pattern: Pattern, argnum: int) -> None:
        self._matrix, self.pattern, self._argnum = matrix, pattern, argnum
        self._sweeps: tuple[_Swept, Ints, Ints] | None = None

    def values(self, program: Program, leaves: Sequence[Any]) -> Floats:
        """Return the nonzeros for other arguments of the recording."""
        if len(program.decisions):
            program._run(leaves)
        data = self._matrix.values([x for x in program._checked(leaves) if x is not None])
        # Numbers whose squares overflow are looked at again, and found to be finite.
        if not math.isfinite(data.dot(data)) and not np.isfinite(data).all():
            return self._swept(program, leaves)
        return data

    def _swept(self, program: Program, leaves: Sequence[Any]) -> Floats:
        """Return the nonzeros as sweeps give them, which know where nothing flows."""
        if self._sweeps is None:
            prepare = _sweep_hessian if self.pattern.symmetric else _sweep_jacobian
            swept = prepare(program, self._argnum)
            self._sweeps = swept, *_common(swept.pattern, self.pattern)
        swept, theirs, mine = self._sweeps
        data = np.zeros(len(self.pattern.columns))
        data[mine] = swept.values(program, leaves)[theirs]
        return data


def _common(one: Pattern, other: Pattern) -> tuple[Ints, Ints]:
    """Return where two patterns have the nonzeros that they have in common."""
    theirs, mine = (x.rows * x.shape[1] + x.columns for x in (one, other))
    _, at, to = np.intersect1d(theirs, mine, assume_unique=True, return_indices=True)
    return at, to


class _Swept:
    """A recording prepared for sweeps, of its tape or of its gradient's, in a few directions."""

    def __init__(self, cells: Ints, pattern: Pattern, argnum: int) -> None:
        self._cells, self._argnum, self.pattern = cells, argnum, pattern

    def values(self, program: Program, leaves: Sequence[Any]) -> Floats:
        """Return the nonzeros for other arguments of the recording."""
        swept = program.gradient(self._argnum) if self.pattern.symmetric else program
        with swept.lock:
            swept._run(leaves)
            leaf = swept.array_input(self._argnum).leaf
            return _values(swept.tape, self._cells, leaf, self.pattern)


def matrix_of(
    program: Program, kind: str, argnum: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Pattern]:
    """Return a sparse Jacobian or Hessian of a program, and its pattern.

    Parameters
    ----------
    program : Program
        Keeps what it was prepared to.
    kind : {"jacobian", "hessian"}
    argnum : int
        The argument, one array, to differentiate with respect to.
    args, kwargs
        The arguments of the program.
    """
    with program.lock:
        leaves = program._leaves(args, kwargs)
        prepared: _Derived | _Swept | None = program._sparse.get((kind, argnum))
        if prepared is None:
            program._run(leaves)  # which may find that it is the wrong one
            prepare = _prepare_hessian if kind == "hessian" else _prepare_jacobian
            prepared = program._sparse[kind, argnum] = prepare(program, argnum)
        return prepared.pattern.matrix(prepared.values(program, leaves)), prepared.pattern


def _prepare_jacobian(program: Program, argnum: int) -> _Derived | _Swept:
    known, cells = program.array_input(argnum), program.array_output()
    shape = len(cells), known.size
    if _may_derive(program.tape):
        try:
            derived = derive_jacobian(program, known, cells)
        except Unsupported:
            pass
        else:
            structure = derived.indptr, derived.columns
            return _Derived(derived, Pattern(shape, *structure, dtype=known.dtype), argnum)
    return _sweep_jacobian(program, argnum)


def _sweep_jacobian(program: Program, argnum: int) -> _Swept:
    known, cells = program.array_input(argnum), program.array_output()
    carries = directions.carries_tangents(program.tape)
    indptr, columns = find_pattern(program.tape, cells, known.cell, known.size)
    pattern = Pattern((len(cells), known.size), indptr, columns, carries, dtype=known.dtype)
    return _Swept(cells, pattern, argnum)


def _prepare_hessian(program: Program, argnum: int) -> _Derived | _Swept:
    known, output = program.array_input(argnum), _single_number(program)
    n = known.size
    if _may_derive(program.tape) and output.cells is not None:
        try:
            derived = derive_hessian(program, known, int(program.array_output()[0]))
        except Unsupported:
            pass
        else:
            structure = derived.indptr, derived.columns
            pattern = Pattern((n, n), *structure, symmetric=True, dtype=known.dtype)
            return _Derived(derived, pattern, argnum)
    return _sweep_hessian(program, argnum)


def _sweep_hessian(program: Program, argnum: int) -> _Swept:
    known, gradient = program.array_input(argnum), program.gradient(argnum)
    n = known.size
    if gradient._single_output("a Hessian").cells is None:  # it is constant
        nothing = np.zeros(n + 1, np.int64), np.zeros(0, np.int64)
        pattern = Pattern((n, n), *nothing, symmetric=True, dtype=known.dtype)
        return _Swept(np.zeros(0, np.int64), pattern, argnum)
    cells = gradient.array_output()
    pattern = _symmetric_pattern(gradient.tape, cells, gradient.array_input(argnum))
    return _Swept(cells, pattern, argnum)


class _SparseDerivative:
    """A function that returns a sparse matrix of derivatives; called like the one it comes from.

    Attributes
    ----------
    pattern : Pattern or None
        Structure of the last matrix; found once for each way through the code.
    """

    _kind = ""

    def __init__(self, f: Callable[..., Any], argnum: int) -> None:
        self._function = FunctionOfPrograms(f)
        self._argnum = argnum
        self.pattern: Pattern | None = None
        self._last: Program | None = None

    @property
    def recordings(self) -> int:
        """How often the Python function was recorded."""
        return self._function.recordings

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the matrix as a `scipy.sparse.csr_array`, which the caller owns.

        As long as arguments take the same way through the code, the structure is the same.
        """
        last = self._last
        if last is not None and len(args) == 1 and not kwargs and _still_fits(last, args[0]):
            try:
                return self._compute(last, args, kwargs)
            except ControlFlowChanged:
                pass  # look for another way
        return self._function.run(
            args, kwargs, lambda program: self._compute(program, args, kwargs)
        )

    def _compute(self, program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        matrix, pattern = matrix_of(program, self._kind, self._argnum, args, kwargs)
        self._last, self.pattern = program, pattern
        return matrix


class SparseJacobian(_SparseDerivative):
    """What `sparse_jacobian` returns: call it with the arguments of the function."""

    _kind = "jacobian"


class SparseHessian(_SparseDerivative):
    """What `sparse_hessian` returns: call it with the arguments of the function."""

    _kind = "hessian"


def _may_derive(tape: Tape) -> bool:
    return tape.flushed_cell >= DERIVED_FROM or _COMPILER in sys.modules


def _symmetric_pattern(tape: Tape, cells: Ints, known: Any) -> Pattern:
    """Return the structure of a Hessian, which is the Jacobian of a gradient."""
    from scipy.sparse import csr_array

    n = known.size
    indptr, columns = find_pattern(tape, cells, known.cell, n)
    # Equal derivatives may have been recorded in unequal ways: the structure is made symmetric.
    half = csr_array((np.ones(len(columns), np.int8), columns, indptr), shape=(n, n))
    whole = csr_array(half + half.T)
    whole.sort_indices()
    return Pattern(
        (n, n),
        whole.indptr.astype(np.int64),
        whole.indices.astype(np.int64),
        directions.carries_tangents(tape),
        symmetric=True,
        dtype=known.dtype,
    )


def _single_number(program: Program) -> Any:
    """Return the output of a program, which must be a single number."""
    shapes = [output.shape for output in program._outputs]
    if len(shapes) != 1 or np.prod(shapes[0]) != 1:
        what = f"an array of shape {shapes[0]}" if len(shapes) == 1 else f"{len(shapes)} values"
        raise TypeError(
            "tg.sparse_hessian needs a function that returns a single number, but this one "
            f"returned {what}; return its sum, or use tg.sparse_jacobian{at_caller()}"
        )
    return program._outputs[0]


def _values(tape: Tape, cells: Ints, leaf: Any, pattern: Pattern) -> Floats:
    """Return the nonzeros of a Jacobian, in the order of its pattern."""
    data = np.zeros(len(pattern.columns))
    if not data.size:
        return data
    compression, forward = pattern.compression, pattern.forward
    step = directions.width(tape)
    for low in range(0, compression.count, step):
        high = min(low + step, compression.count)
        seeds = compression.seeds(low, high)
        entries: Any = slice(None)
        if high - low < compression.count:
            entries = np.flatnonzero(
                (compression.direction >= low) & (compression.direction < high)
            )
        place = compression.at[entries], compression.direction[entries] - low
        if forward:
            data[entries] = directions.tangents(tape, cells, {id(leaf): seeds})[place]
            continue
        for entry, rows in directions.adjoints(tape, cells, seeds):
            if entry.leaf is leaf:
                data[entries] += rows[place]
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
    Pattern(2 x 3, 4 nonzeros)
    """
    return SparseJacobian(f, _one(argnums, "sparse_jacobian"))


def sparse_hessian(f: Callable[..., Any], argnums: int = 0) -> SparseHessian:
    """Return a function that computes the Hessian of `f` as a sparse matrix.

    An entry is stored where two elements of the argument meet in a nonlinear operation, be the
    second derivative zero at this point.  `f` is recorded once for each way through its code, and
    the structure and the directions that give it are found once for each recording.

    Parameters
    ----------
    f : callable
        Returns a single number computed with NumPy from its arguments.
    argnums : int, optional
        The argument, an array, to differentiate with respect to.

    Returns
    -------
    SparseHessian
        Gives a `scipy.sparse.csr_array`, both halves of it, with a row and a column for each
        element of the argument.

    Raises
    ------
    TypeError
        When it is called: if `f` returns more than one number, or the argument is not one array.

    See Also
    --------
    hessian : the matrix as an ndarray.
    hvp : its product with a vector.

    Notes
    -----
    The nonzeros are computed by a program of their own, which is derived from the recording once.
    Where that would be too long, the Jacobian of the gradient is computed in a few directions,
    found by a star colouring (Gebremedhin, Manne and Pothen, "What color is your Jacobian?", SIAM
    Review 47, 2005).

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> hessian = tg.sparse_hessian(lambda x: np.sum(x[1:] * x[:-1] ** 2))
    >>> hessian(np.array([1.0, 2.0, 3.0])).toarray()
    array([[4., 2., 0.],
           [2., 6., 4.],
           [0., 4., 0.]])
    >>> hessian.pattern
    Pattern(3 x 3, 6 nonzeros)
    """
    return SparseHessian(f, _one(argnums, "sparse_hessian"))


def _one(argnums: Any, name: str) -> int:
    if not isinstance(argnums, (int, np.integer)) or isinstance(argnums, bool):
        raise TypeError(
            f"tg.{name} differentiates one argument: argnums must be an integer, not "
            f"{argnums!r}{at_caller()}"
        )
    return int(argnums)


__all__ = ["Pattern", "SparseHessian", "SparseJacobian", "sparse_hessian", "sparse_jacobian"]
