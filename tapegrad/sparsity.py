"""Sparse Jacobians and Hessians, as SciPy's CSR arrays with a fixed structure.

The function is recorded once for each way through its code.  The structure of a recording is found
once (`tapegrad.patterns`), and from it a few directions that give all elements
(`tapegrad.coloring`); each call then replays the recording and sweeps it in those directions.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from . import derivatives, directions
from .coloring import Compression, Ints, compress_columns, compress_symmetric, most_in_line
from .errors import at_caller
from .function import FunctionOfPrograms
from .patterns import find_pattern
from .program import Program
from .storage import Floats
from .tape import Tape


class Pattern:
    """Where a matrix of derivatives can be nonzero, and in which directions it is computed.

    Attributes
    ----------
    shape : (int, int)
    rows, columns : ndarray of int64
        Places of the nonzeros, row by row.
    indptr : ndarray of int64
        Where each row begins in `columns`.
    symmetric : bool
        Whether it is a Hessian's.
    """

    __slots__ = ("_chosen", "_forward_allowed", "columns", "indptr", "rows", "shape", "symmetric")

    def __init__(
        self,
        shape: tuple[int, int],
        indptr: Ints,
        columns: Ints,
        forward_allowed: bool = True,
        symmetric: bool = False,
    ) -> None:
        self.shape, self.indptr, self.columns = shape, indptr, columns
        self.rows = np.repeat(np.arange(shape[0]), np.diff(indptr))
        self.symmetric = symmetric
        self._forward_allowed = forward_allowed
        self._chosen: tuple[bool, Compression] | None = None

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
        sweeps = "forward" if self.forward else "reverse"
        return (
            f"Pattern({self.shape[0]} x {self.shape[1]}, {len(self.columns)} nonzeros, "
            f"{self.count} {sweeps} directions)"
        )


class _SparseDerivative:
    """A function that returns a sparse matrix of derivatives; called like the one it comes from.

    Attributes
    ----------
    pattern : Pattern or None
        Structure and directions of the last call; found once for each way through the code.
    """

    _symmetric = False

    def __init__(self, f: Callable[..., Any], argnum: int) -> None:
        self._function = FunctionOfPrograms(f)
        self._argnum = argnum
        self._patterns: weakref.WeakKeyDictionary[Program, Pattern] = weakref.WeakKeyDictionary()
        self.pattern: Pattern | None = None

    @property
    def recordings(self) -> int:
        """How often the Python function was recorded."""
        return self._function.recordings

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the matrix as a `scipy.sparse.csr_array`.

        Its index arrays belong to the caller, too; they are equal at each call, as long as the
        arguments take the same way through the code.
        """
        return self._function.run(
            args, kwargs, lambda program: self._compute(program, args, kwargs)
        )

    def _compute(self, program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from scipy.sparse import csr_array

        with program.lock:
            program.forward(args, kwargs)
            known, cells = program.array_input(self._argnum), self._cells(program)
            pattern = self._patterns.get(program)
            if pattern is None:
                pattern = self._find_pattern(program.tape, cells, known)
                self._patterns[program] = pattern
            self.pattern = pattern
            data = _values(program.tape, cells, known.leaf, pattern)
        return csr_array(
            (data.astype(known.dtype, copy=False), pattern.columns.copy(), pattern.indptr.copy()),
            shape=pattern.shape,
        )

    def _cells(self, program: Program) -> Ints:
        cells: Ints = program.array_output()
        return cells

    def _find_pattern(self, tape: Tape, cells: Ints, known: Any) -> Pattern:
        indptr, columns = find_pattern(tape, cells, known.cell, known.size)
        shape = len(cells), known.size
        return Pattern(shape, indptr, columns, directions.carries_tangents(tape))


class SparseJacobian(_SparseDerivative):
    """What `sparse_jacobian` returns: call it with the arguments of the function."""


class SparseHessian(_SparseDerivative):
    """What `sparse_hessian` returns: call it with the arguments of the function."""

    def __init__(self, f: Callable[..., Any], argnum: int) -> None:
        super().__init__(f, argnum)
        self._gradient = derivatives.grad(f, argnum)
        self._gradients: weakref.WeakKeyDictionary[Program, Program] = weakref.WeakKeyDictionary()

    def _compute(self, program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # The program of the gradient takes the same decisions as that of the function.
        gradient = self._gradients.get(program)
        if gradient is None:
            _check_single(program)
            gradient = self._gradients[program] = Program(self._gradient, args, kwargs)
        return super()._compute(gradient, args, kwargs)

    def _cells(self, program: Program) -> Ints:
        output = program._single_output("a Hessian")
        if output.cells is None:  # the gradient is constant
            return np.zeros(0, np.int64)
        return super()._cells(program)

    def _find_pattern(self, tape: Tape, cells: Ints, known: Any) -> Pattern:
        from scipy.sparse import csr_array

        n = known.size
        shape = n, n
        if not cells.size:
            return Pattern(shape, np.zeros(n + 1, np.int64), np.zeros(0, np.int64))
        indptr, columns = find_pattern(tape, cells, known.cell, n)
        # Equal derivatives may have been recorded in unequal ways: the structure is made symmetric.
        half = csr_array((np.ones(len(columns), np.int8), columns, indptr), shape=shape)
        whole = csr_array(half + half.T)
        whole.sort_indices()
        return Pattern(
            shape,
            whole.indptr.astype(np.int64),
            whole.indices.astype(np.int64),
            directions.carries_tangents(tape),
            symmetric=True,
        )


def _check_single(program: Program) -> None:
    shapes = [output.shape for output in program._outputs]
    if len(shapes) != 1 or np.prod(shapes[0]) != 1:
        what = f"an array of shape {shapes[0]}" if len(shapes) == 1 else f"{len(shapes)} values"
        raise TypeError(
            "tg.sparse_hessian needs a function that returns a single number, but this one "
            f"returned {what}; return its sum, or use tg.sparse_jacobian{at_caller()}"
        )


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
    Pattern(2 x 3, 4 nonzeros, 2 forward directions)
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
    What is compressed is the Jacobian of the gradient.  It is symmetric, and a star colouring
    (Gebremedhin, Manne and Pothen, "What color is your Jacobian?", SIAM Review 47, 2005) makes use
    of that.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> hessian = tg.sparse_hessian(lambda x: np.sum(x[1:] * x[:-1] ** 2))
    >>> hessian(np.array([1.0, 2.0, 3.0])).toarray()
    array([[4., 2., 0.],
           [2., 6., 4.],
           [0., 4., 0.]])
    >>> hessian.pattern
    Pattern(3 x 3, 6 nonzeros, 2 forward directions)
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
