"""Derivatives of functions: `grad`, `value_and_grad`, `vjp` and `jacobian`.

Each call records the function once, on a tape of its own, and sweeps it backward.  Within another
derivative, or at a tracked argument, it records the function on the current tape, and the backward
sweep too (`tapegrad.adjoint`), so that it can be differentiated again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import backward, directions, recording, trees
from .adjoint import RecordedSweep, Stretch, flat_cells, pinned
from .creation import array
from .errors import LostGradientError, at_caller
from .recording import FLOAT32, FLOAT64
from .storage import Floats, Leaf, Tracked, TrackedArray
from .tape import Recording, Tape, check_usable, recorder

Function = Callable[..., Any]


class _Argument:
    """One differentiated argument: its structure, and a leaf for each array or number in it."""

    def __init__(self, value: Any, position: int) -> None:
        leaves, self.tree = trees.flatten(value, is_leaf=trees.is_numeric_list)
        self.leaves = [
            Leaf(_real(leaf, f"argument {position}{name}"), True)
            for leaf, name in zip(leaves, trees.paths(self.tree), strict=True)
        ]

    def track(self, stretch: Stretch | None) -> Any:
        """Return the argument with tracked values in the place of numbers and arrays.

        Within another derivative, which `stretch` tells, they are cells of their own: what the
        function captures of the same value is not differentiated with it.
        """
        tape = recorder.tape
        values = []
        for leaf in self.leaves:
            if stretch is not None:
                values.append(_fresh(leaf.value))
                stretch.arguments.append(flat_cells(tape, values[-1]))
                continue
            entry = tape.push_input(leaf.value)
            entry.leaf = leaf
            dtype = FLOAT32 if leaf.value.dtype == FLOAT32 else FLOAT64
            values.append(recording.run(tape, entry.cell, leaf.value.shape, dtype))
        return self.build(values)

    def build(self, values: Sequence[Any]) -> Any:
        """Return values, one a leaf, in the argument's structure."""
        return trees.unflatten(self.tree, values)

    def cotangents(self, found: dict[int, Floats]) -> Any:
        """Return the argument's cotangent, in its structure and dtypes."""
        return self.build([_result(found.get(id(leaf)), leaf.value) for leaf in self.leaves])


def _real(value: Any, name: str) -> Any:
    """Return an argument as the real ndarray that derivatives are taken with respect to."""
    if isinstance(value, Tracked):
        if recording.dtype_of(value).kind != "f":
            raise TypeError(
                f"{name} is tracked and of dtype {recording.dtype_of(value)}, which has no "
                f"derivative; choose the arguments to differentiate by argnums{at_caller()}"
            )
        return value.value if recorder.tape.detached else value  # type: ignore[attr-defined]
    values = np.asarray(value)
    if values.dtype.kind in "iu":
        return values.astype(np.float64)
    if values.dtype not in (FLOAT64, FLOAT32):
        raise TypeError(
            f"{name} is {type(value).__name__} of dtype {values.dtype}, which has no derivative; "
            f"choose the arguments to differentiate by argnums{at_caller()}"
        )
    return np.array(values, order="C")


def _fresh(value: Any) -> Any:
    """Record the identity of a value: cells that nothing else refers to."""
    if isinstance(value, Tracked):
        return recording.elementwise("positive", value)
    entry = recorder.tape.push_input(value)
    dtype = FLOAT32 if value.dtype == FLOAT32 else FLOAT64
    return recording.run(recorder.tape, entry.cell, value.shape, dtype)


def _result(total: Any, like: Any) -> Any:
    """Return a cotangent as a new, contiguous, writable ndarray, or a float for no axes.

    A tracked cotangent stays tracked.
    """
    if isinstance(total, Tracked):
        shaped = total.reshape(like.shape)  # type: ignore[attr-defined]
        return shaped.astype(FLOAT32) if like.dtype == FLOAT32 else shaped
    if total is None:
        result = np.zeros(like.shape, like.dtype)
    else:
        result = np.array(total.reshape(like.shape), like.dtype, order="C")
    return _float_for_no_axes(result)


class _Call:
    """One recorded call of a function: its output, and sweeps from it."""

    def __init__(
        self,
        f: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        argnums: int | Sequence[int],
        has_aux: bool = False,
        again: bool = False,
    ) -> None:
        _check_function(f)
        positions = _positions(argnums, len(args))
        self.single = not isinstance(argnums, Sequence)
        self.arguments = [_Argument(args[i], i) for i in positions]
        self.recording = Recording()
        self.stretch: Stretch | None = None
        self.aux: Any = None
        self._places: dict[int, tuple[Tape | None, Any]] = {}
        self.tracked = any(isinstance(x.value, Tracked) for a in self.arguments for x in a.leaves)
        tape = recorder.tape
        if self.tracked or tape.pinned or (recorder.recordings and not tape.detached):
            self._record_inside(f, args, kwargs, positions, has_aux)
            return
        outer = recorder.enter(recording=self.recording)
        recorder.tape.pinned += again  # a sweep that is recorded itself wants a single tape
        try:
            self._call(f, args, kwargs, positions, has_aux)
        except BaseException:
            recorder.leave(outer)
            self.recording.release()
            raise
        recorder.leave(outer)

    def _call(
        self, f: Function, args: Any, kwargs: dict[str, Any], positions: list[int], has_aux: bool
    ) -> None:
        actual = list(args)
        for i, argument in zip(positions, self.arguments, strict=True):
            actual[i] = argument.track(self.stretch)
        output = f(*actual, **kwargs)
        if has_aux:
            output, self.aux = _pair(output)
            if self.stretch is None:
                self.aux = trees.map(_plain, self.aux)
        self.output = output

    def _record_inside(
        self, f: Function, args: Any, kwargs: dict[str, Any], positions: list[int], has_aux: bool
    ) -> None:
        """Record the call on the current tape: an enclosing derivative may depend on it."""
        tape = recorder.current()
        self.stretch = Stretch(tape)
        with pinned(tape):
            self._call(f, args, kwargs, positions, has_aux)
            self.stretch.end()
        if not (self.tracked or self.stretch.depends):
            self.aux = trees.map(_plain, self.aux)
        else:
            self.tracked = True

    def plain(self, output: Any) -> Any:
        """Return an output for the caller: tracked only if an enclosing derivative needs it."""
        return output if self.tracked else _plain(output)

    def scalar_output(self) -> Any:
        """Return the output, which must be a single number."""
        output = self.output
        if _is_real(output) and np.size(output) == 1:
            return output
        raise TypeError(
            "tg.grad needs a function that returns a single number, but this one returned "
            f"{_described(output)}; use tg.jacobian, tg.vjp, or return its sum{at_caller()}"
        )

    def sweep(self, output: Any, cotangent: Any) -> dict[int, Any]:
        """Return the cotangents of the arguments' leaves, by id, for one output."""
        totals: dict[int, Any] = {}
        if not isinstance(output, Tracked):
            return totals  # a plain number does not depend on the arguments
        if self.stretch is not None or isinstance(cotangent, Tracked):
            return self._sweep_inside(output, cotangent)
        tape, cells = backward.place_of(output)
        for entry, adjoint in backward.sweep(
            tape, cells, cotangent.ravel(), recording=self.recording
        ):
            key = id(entry.leaf)
            totals[key] = adjoint if key not in totals else totals[key] + adjoint
        return totals

    def _sweep_inside(self, output: Tracked, cotangent: Any) -> dict[int, Any]:
        """Sweep over the call only, and record the sweep unless nothing outside depends on it."""
        leaves = [leaf for argument in self.arguments for leaf in argument.leaves]
        stretch = self.stretch or self._whole(leaves)
        tape = stretch.tape
        check_usable(tape)
        place, cells = self.locate(output)
        if place is not tape:
            return {}  # a value from outside the call
        found: Sequence[Any]
        if self.tracked or isinstance(cotangent, Tracked):
            found = RecordedSweep(stretch).run([(cells, cotangent)])
        else:
            found = stretch.sweep([(cells, cotangent)])
        return {
            id(leaf): adjoint
            for leaf, adjoint in zip(leaves, found, strict=True)
            if adjoint is not None
        }

    def locate(self, output: Tracked) -> tuple[Tape | None, Any]:
        """Return tape and cells of an output, as they were when first asked for.

        The caller has the output, too, and may assign to it or use it in a later recording.
        """
        known = self._places.get(id(output))
        if known is None:
            outside = output.leaf is not None  # type: ignore[attr-defined]
            known = (None, 0) if outside else backward.place_of(output)
            self._places[id(output)] = known
        return known

    def _whole(self, leaves: list[Leaf]) -> Stretch:
        """Return the recording of the call as a stretch, for a cotangent that is tracked."""
        if len(self.recording.tapes) != 1:
            raise NotImplementedError(
                "the call of tg.vjp took more than one recording, which a tracked cotangent cannot "
                f"be pulled through; call tg.vjp inside the enclosing derivative{at_caller()}"
            )
        self.stretch = stretch = Stretch(self.recording.tapes[0], whole=True)
        places = {id(entry.leaf): entry for entry in stretch.tape.imports}
        for leaf in leaves:
            entry = places[id(leaf)]
            stretch.arguments.append(np.arange(entry.cell, entry.cell + entry.size))
        return stretch

    def pick(self, results: list[Any]) -> Any:
        """Return one result for an integer argnums, a tuple for a sequence."""
        return results[0] if self.single else tuple(results)

    def release(self) -> None:
        """Free the recording; tracked values that outlive it raise when used."""
        self.recording.release()


def value_and_grad(
    f: Function, argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Function:
    """Return a function that computes `f` and its gradient.

    Parameters
    ----------
    f : callable
        Returns a single number computed with NumPy from its arguments.
    argnums : int or sequence of int, optional
        Which positional arguments to differentiate with respect to.
    has_aux : bool, optional
        Whether `f` returns ``(number, aux)``; `aux` is passed on as plain values.

    Returns
    -------
    callable
        ``(value, gradient)``, or ``((value, aux), gradient)`` with `has_aux`; see `grad`.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> tg.value_and_grad(lambda x: np.sum(x**2))(np.array([1.0, 2.0]))
    (5.0, array([2., 4.]))
    """
    _check_function(f)

    @_like(f, "value_and_grad")
    def value_and_gradient(*args: Any, **kwargs: Any) -> Any:
        call = _Call(f, args, kwargs, argnums, has_aux)
        try:
            output = call.scalar_output()
            found = call.sweep(output, np.ones(1))
            value = output if call.tracked else _plain_number(output)
            gradient = call.pick([argument.cotangents(found) for argument in call.arguments])
        finally:
            call.release()
        return ((value, call.aux) if has_aux else value), gradient

    return value_and_gradient


def grad(f: Function, argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Function:
    """Return a function that computes the gradient of `f`.

    Parameters
    ----------
    f : callable
        Returns a single number computed with NumPy from its arguments.
    argnums : int or sequence of int, optional
        Which positional arguments to differentiate with respect to.  A sequence gives a tuple.
    has_aux : bool, optional
        Whether `f` returns ``(number, aux)``; the result is then ``(gradient, aux)``.

    Returns
    -------
    callable
        The gradient has the structure of the argument: a float for a number, an ndarray of its
        shape and dtype for an array (float64 for integers and for lists of numbers), a dict, list,
        tuple or dataclass of those for a dict, list, tuple or dataclass.

    Raises
    ------
    TypeError
        If `f` returns more than one number, or an argument is not real.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> tg.grad(lambda x: np.log(x[0] * x[1]) * np.sin(x[1]))([0.5, 0.75])
    array([1.36327752, 0.19118983])
    >>> tg.grad(lambda p: p["a"] * p["b"])({"a": 2.0, "b": 3.0})
    {'a': 3.0, 'b': 2.0}
    """
    both = value_and_grad(f, argnums, has_aux)

    @_like(f, "grad")
    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, result = both(*args, **kwargs)
        return (result, value[1]) if has_aux else result

    return gradient


def vjp(f: Function, *args: Any, has_aux: bool = False) -> Any:
    """Compute `f` and return a function for its vector-Jacobian products.

    Parameters
    ----------
    f : callable
        Any function of `args`; it may return a structure of arrays.
    *args
        The point, with respect to which (all of it) products are taken.
    has_aux : bool, optional
        Whether `f` returns ``(output, aux)``.

    Returns
    -------
    value : the output of `f`, as plain values
    pull : callable
        ``pull(cotangent)``, for a cotangent of the output's structure and shapes, gives a tuple of
        the cotangents of `args`.  It can be called any number of times.
    aux : only with `has_aux`

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> value, pull = tg.vjp(lambda x, y: x * y, np.array([1.0, 2.0]), 3.0)
    >>> value
    array([3., 6.])
    >>> pull(np.array([1.0, 10.0]))
    (array([ 3., 30.]), 21.0)
    """
    return _vjp(f, args, has_aux)


def _vjp(f: Function, args: tuple[Any, ...], has_aux: bool = False, again: bool = False) -> Any:
    call = _Call(f, args, {}, tuple(range(len(args))), has_aux, again)
    call.output = _numeric_list_as_array(call.output, call)
    outputs, tree = trees.flatten(call.output)
    wrong = [output for output in outputs if not _is_real(output)]
    if wrong or call.output is None:
        call.release()
        raise TypeError(
            "tg.vjp needs a function that returns real numbers and arrays, but this one returned "
            f"{_described(wrong[0] if wrong else None)}; return other things beside them, with "
            f"has_aux=True{at_caller()}"
        )
    if call.tracked:
        for output in outputs:
            if isinstance(output, Tracked):
                call.locate(output)
    value = trees.map(call.plain, call.output)

    def pull(cotangent: Any) -> tuple[Any, ...]:
        try:
            parts = trees.flatten_like(tree, cotangent, is_leaf=trees.is_numeric_list)
        except ValueError as error:
            raise ValueError(
                f"the cotangent must have the output's structure: {error}{at_caller()}"
            ) from None
        totals: dict[int, Any] = {}
        for output, part in zip(outputs, parts, strict=True):
            seed = _seed(part, recording.shape_of(output))
            for key, adjoint in call.sweep(output, seed).items():
                totals[key] = adjoint if key not in totals else totals[key] + adjoint
        return tuple([argument.cotangents(totals) for argument in call.arguments])

    return (value, pull, call.aux) if has_aux else (value, pull)


def jacobian(
    f: Function,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    mode: str = "auto",
) -> Function:
    """Return a function that computes the Jacobian matrix of `f`.

    ``J[i, j]`` is the derivative of output `i` with respect to input `j`; for arrays of more axes
    the shape is the output's followed by the input's.  `f` is recorded once and then swept for many
    directions at once: backward for rows of the Jacobian, or forward for columns.

    Parameters
    ----------
    f : callable
        Returns an array (or a list of numbers) computed with NumPy from its arguments.
    argnums : int or sequence of int, optional
        Which positional arguments to differentiate with respect to.
    has_aux : bool, optional
        Whether `f` returns ``(output, aux)``; the result is then ``(jacobian, aux)``.
    mode : {"auto", "forward", "reverse"}, optional
        How to sweep.  "auto" sweeps forward where the arguments have fewer elements than the
        output, unless an operation has no forward rule, and backward otherwise.  Both give the same
        derivatives to rounding; where a partial is infinite, a forward sweep carries an exact zero
        past it, and a backward sweep may answer nan.  Within another derivative the sweep is always
        backward.

    Returns
    -------
    callable
        Jacobians as contiguous, writable ndarrays, in the structure of the argument.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> tg.jacobian(lambda x: np.array([1.0, 2.0]) * x**2)(np.array([3.0, 4.0]))
    array([[ 6.,  0.],
           [ 0., 16.]])
    """
    _check_function(f)
    if mode not in ("auto", "forward", "reverse"):
        raise ValueError(f"mode must be 'auto', 'forward' or 'reverse', not {mode!r}{at_caller()}")

    @_like(f, "jacobian")
    def jacobian_matrix(*args: Any, **kwargs: Any) -> Any:
        call = _Call(f, args, kwargs, argnums, has_aux)
        try:
            output = _numeric_list_as_array(call.output, call)
            if not _is_real(output):
                raise TypeError(
                    "tg.jacobian needs a function that returns one array of real numbers, but "
                    f"this one returned {_described(output)}; gather arrays by np.stack or "
                    f"np.concatenate, or use tg.vjp for structures{at_caller()}"
                )
            matrices = _matrices if call.stretch is None else _recorded_matrices
            result = call.pick(matrices(call, output, mode))
        finally:
            call.release()
        return (result, call.aux) if has_aux else result

    return jacobian_matrix


def _matrices(call: _Call, output: Any, mode: str) -> list[Any]:
    """Return the Jacobian with respect to each argument."""
    shape = recording.shape_of(output)
    leaves = [leaf for argument in call.arguments for leaf in argument.leaves]
    blocks = {id(leaf): np.zeros(shape + leaf.value.shape, leaf.value.dtype) for leaf in leaves}
    rows = math.prod(shape)
    matrices = {id(leaf): blocks[id(leaf)].reshape(rows, leaf.value.size) for leaf in leaves}
    columns = sum([leaf.value.size for leaf in leaves])
    if isinstance(output, Tracked) and rows and columns:
        tape, cells = backward.place_of(output)
        if isinstance(cells, (int, np.integer)):
            cells = np.arange(cells, cells + rows)
        forward = mode == "forward" or (mode == "auto" and columns < rows)
        if mode == "auto" and forward:
            forward = directions.carries_tangents(tape, call.recording)
        fill = _fill_columns if forward else _fill_rows
        fill(tape, cells, matrices, call.recording)
    return [
        argument.build([_float_for_no_axes(blocks[id(leaf)]) for leaf in argument.leaves])
        for argument in call.arguments
    ]


def _recorded_matrices(call: _Call, output: Any, mode: str) -> list[Any]:
    """Return the Jacobians within another derivative: backward, a row at a time."""
    shape = recording.shape_of(output)
    rows = math.prod(shape)
    leaves = [leaf for argument in call.arguments for leaf in argument.leaves]
    found = [call.sweep(output, seed.reshape(shape)) for seed in np.eye(rows)]
    blocks = {}
    for leaf in leaves:
        zero = np.zeros(leaf.value.size)
        parts = [row.get(id(leaf), zero) for row in found]
        stacked = np.stack(parts) if parts else np.zeros((0, leaf.value.size))
        block = _result(stacked, np.empty(shape + leaf.value.shape, leaf.value.dtype))
        blocks[id(leaf)] = block
    return [
        argument.build([blocks[id(leaf)] for leaf in argument.leaves])
        for argument in call.arguments
    ]


def _fill_rows(tape: Tape, cells: Any, matrices: dict[int, Any], recording: Recording) -> None:
    """Sweep backward, a chunk of rows of the Jacobians at a time."""
    step = directions.width(tape, recording)
    for start in range(0, cells.size, step):
        chunk = cells[start : start + step]
        found = directions.adjoints(tape, chunk, np.eye(chunk.size), recording=recording)
        for entry, adjoints in found:
            matrix = matrices.get(id(entry.leaf))
            if matrix is not None:  # and not a constant that the function made
                matrix[start : start + step] += adjoints.T


def _fill_columns(tape: Tape, cells: Any, matrices: dict[int, Any], recording: Recording) -> None:
    """Sweep forward, a chunk of columns of the Jacobians, side by side, at a time."""
    firsts, columns = {}, 0
    for key, matrix in matrices.items():
        firsts[key] = columns
        columns += matrix.shape[1]
    step = directions.width(tape, recording)
    for start in range(0, columns, step):
        m = min(step, columns - start)
        seeds = {
            key: np.eye(matrix.shape[1], m, firsts[key] - start)
            for key, matrix in matrices.items()
            if firsts[key] < start + m and firsts[key] + matrix.shape[1] > start
        }
        tangents = directions.tangents(tape, cells, seeds, recording=recording)
        for key in seeds:
            low = max(firsts[key], start)
            part = matrices[key][:, low - firsts[key] : start + m - firsts[key]]
            part[...] = tangents[:, low - start : low - start + part.shape[1]]


def _numeric_list_as_array(output: Any, call: _Call) -> Any:
    """Return a list of numbers, some tracked, as the array that it stands for."""
    if isinstance(output, list) and output and all(_is_number(item) for item in output):
        if not any(isinstance(item, Tracked) for item in output):
            return np.asarray(output)
        if call.stretch is not None:
            return array(output)
        outer = recorder.enter(recording=call.recording)
        try:
            return array(output)
        finally:
            recorder.leave(outer)
    return output


def _is_real(x: Any) -> bool:
    """Whether an output is one array, or number, that has a derivative or is a constant."""
    if isinstance(x, Tracked):
        return recording.dtype_of(x).kind == "f"
    if isinstance(x, (int, float, np.number, np.ndarray)) and not isinstance(x, bool):
        return np.asarray(x).dtype.kind in "fiu"
    return False


def _described(output: Any) -> str:
    if isinstance(output, (Tracked, np.ndarray)):
        return f"an array of dtype {output.dtype} and shape {output.shape}"  # type: ignore[union-attr]
    return "None" if output is None else f"a {type(output).__name__}"


def _is_number(x: Any) -> bool:
    if isinstance(x, TrackedArray):
        return x.window.shape == ()
    return isinstance(x, (Tracked, int, float, np.number))


def _plain(x: Any) -> Any:
    return _plain_number(x) if isinstance(x, Tracked) else x


def _plain_number(x: Any) -> Any:
    """Return a value without its recording: a writable ndarray, or a number for no axes."""
    return _float_for_no_axes(np.array(x.value if isinstance(x, Tracked) else x))  # type: ignore[attr-defined]


def _seed(cotangent: Any, shape: tuple[int, ...]) -> Any:
    """Return a cotangent of an output, which may be tracked, checked."""
    if not isinstance(cotangent, Tracked):
        return backward.check_cotangent(cotangent, shape)
    if recording.dtype_of(cotangent).kind != "f" or recording.shape_of(cotangent) != shape:
        raise ValueError(
            f"the cotangent is {_described(cotangent)}, but the output has shape {shape}"
            f"{at_caller()}"
        )
    return cotangent


def _float_for_no_axes(x: Any) -> Any:
    if x.ndim:
        return x
    return float(x) if x.dtype == FLOAT64 else x[()]


def _pair(output: Any) -> tuple[Any, Any]:
    if not isinstance(output, tuple) or len(output) != 2:
        raise TypeError(
            f"with has_aux=True the function must return a pair (output, aux){at_caller()}"
        )
    return output


def _positions(argnums: int | Sequence[int], count: int) -> list[int]:
    chosen = list(argnums) if isinstance(argnums, Sequence) else [argnums]
    for i in chosen:
        if not isinstance(i, (int, np.integer)) or isinstance(i, bool):
            raise TypeError(f"argnums must be integers, not {i!r}{at_caller()}")
        if not -count <= i < count:
            raise ValueError(
                f"argnums={argnums} but the function was called with {count} positional "
                f"arguments; differentiated arguments are given by position{at_caller()}"
            )
    chosen = [i % count for i in chosen]
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"argnums={argnums} names an argument twice{at_caller()}")
    return chosen


def _check_function(f: Any) -> None:
    if not callable(f):
        raise TypeError(f"expected a function, got {type(f).__name__}{at_caller()}")
    if hasattr(f, "py_func") and hasattr(f, "signatures"):
        raise NotImplementedError(
            "derivatives of Numba-compiled functions are not implemented yet; pass the Python "
            f"function, f.py_func{at_caller()}"
        )


def _like(f: Any, what: str) -> Callable[[Function], Function]:
    """Give a derived function the name and doc of its origin."""

    def decorate(derived: Function) -> Function:
        functools.update_wrapper(derived, f, assigned=("__module__", "__doc__"), updated=())
        derived.__name__ = f"{what}_{getattr(f, '__name__', 'function')}"
        derived.__qualname__ = derived.__name__
        return derived

    return decorate


__all__ = ["LostGradientError", "grad", "jacobian", "value_and_grad", "vjp"]
