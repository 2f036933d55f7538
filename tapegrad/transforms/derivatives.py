"""Derivatives of functions: `grad`, `value_and_grad`, `vjp` and `jacobian`.

Each call records the function once (`tapegrad.transforms.call`), and sweeps it backward, or forward
for the columns of a Jacobian.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import backward, recording, trees
from ..arrays.creation import array
from ..errors import at_caller
from ..storage import Tracked, TrackedArray
from ..tape import Recording, Tape, recorder
from . import directions
from .call import (
    Call,
    Function,
    Replayed,
    check_function,
    check_seed,
    cotangent_like,
    described,
    float_for_no_axes,
    is_real,
    is_recorded_inside,
    plain_number,
)


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
    check_function(f)

    @_like(f, "value_and_grad")
    def value_and_gradient(*args: Any, **kwargs: Any) -> Any:
        value, gradient, aux = _value_and_gradient(f, args, kwargs, argnums, has_aux)
        return ((value, aux) if has_aux else value), gradient

    return value_and_gradient


def _value_and_gradient(
    f: Function,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    argnums: int | Sequence[int],
    has_aux: bool,
    wants_value: bool = True,
) -> tuple[Any, Any, Any]:
    """Return value, or None where it is not wanted, gradient and what else `f` returned."""
    if isinstance(f, Replayed) and not has_aux and not is_recorded_inside():
        found = f.plain_gradient(args, kwargs, argnums)
        if found is not None:
            return (*found, None)
    call = Call(f, args, kwargs, argnums, has_aux, lend=True)
    try:
        output = call.scalar_output()
        found = call.sweep(output, np.ones(1), values=wants_value)
        value = None
        if wants_value:
            value = output if call.tracked else plain_number(output)
        gradient = call.pick([argument.cotangents(found) for argument in call.arguments])
    finally:
        call.release()
    return value, gradient, call.aux


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
    check_function(f)

    @_like(f, "grad")
    def gradient(*args: Any, **kwargs: Any) -> Any:
        _, result, aux = _value_and_gradient(f, args, kwargs, argnums, has_aux, wants_value=False)
        return (result, aux) if has_aux else result

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


def _vjp(f: Function, args: tuple[Any, ...], has_aux: bool = False) -> Any:
    return _pulled(Call(f, args, {}, tuple(range(len(args))), has_aux), has_aux)


def _pulled(call: Call, has_aux: bool) -> Any:
    """Return what `vjp` does, for a call that was recorded."""
    call.output = _numeric_list_as_array(call.output, call)
    outputs, tree = trees.flatten(call.output)
    wrong = [output for output in outputs if not is_real(output)]
    if wrong or call.output is None:
        call.release()
        raise TypeError(
            "tg.vjp needs a function that returns real numbers and arrays, but this one returned "
            f"{described(wrong[0] if wrong else None)}; return other things beside them, with "
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
            seed = check_seed(part, recording.shape_of(output))
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
        How to sweep.  "auto" sweeps backward where the arguments have more elements than the
        output, or an operation has no forward rule, and forward otherwise.  Both give the same
        derivatives to rounding; where a partial is infinite and another one zero, a forward sweep
        carries nothing on, and a backward sweep may answer nan.  Within another derivative the
        sweep is always backward.

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
    check_function(f)
    check_mode(mode)

    @_like(f, "jacobian")
    def jacobian_matrix(*args: Any, **kwargs: Any) -> Any:
        call = Call(f, args, kwargs, argnums, has_aux)
        try:
            output = _numeric_list_as_array(call.output, call)
            if not is_real(output):
                raise TypeError(
                    "tg.jacobian needs a function that returns one array of real numbers, but "
                    f"this one returned {described(output)}; gather arrays by np.stack or "
                    f"np.concatenate, or use tg.vjp for structures{at_caller()}"
                )
            matrices = _matrices if call.stretch is None else _recorded_matrices
            result = call.pick(matrices(call, output, mode))
        finally:
            call.release()
        return (result, call.aux) if has_aux else result

    return jacobian_matrix


def _matrices(call: Call, output: Any, mode: str) -> list[Any]:
    """Return the Jacobian with respect to each argument."""
    shape = recording.shape_of(output)
    leaves = [leaf for argument in call.arguments for leaf in argument.leaves]
    blocks = {id(leaf): np.zeros(shape + leaf.value.shape, leaf.value.dtype) for leaf in leaves}
    rows = math.prod(shape)
    matrices = {id(leaf): blocks[id(leaf)].reshape(rows, leaf.value.size) for leaf in leaves}
    if isinstance(output, Tracked) and rows:
        tape, cells = backward.place_of(output)
        if isinstance(cells, (int, np.integer)):
            cells = np.arange(cells, cells + rows)
        fill_matrices(tape, cells, matrices, mode, call.recording)
    return [
        argument.build([float_for_no_axes(blocks[id(leaf)]) for leaf in argument.leaves])
        for argument in call.arguments
    ]


def _recorded_matrices(call: Call, output: Any, mode: str) -> list[Any]:
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
        block = cotangent_like(stacked, np.empty(shape + leaf.value.shape, leaf.value.dtype))
        blocks[id(leaf)] = block
    return [
        argument.build([blocks[id(leaf)] for leaf in argument.leaves])
        for argument in call.arguments
    ]


def check_mode(mode: str) -> None:
    """Raise unless a Jacobian can be computed in this mode."""
    if mode not in ("auto", "forward", "reverse"):
        raise ValueError(f"mode must be 'auto', 'forward' or 'reverse', not {mode!r}{at_caller()}")


def fill_matrices(
    tape: Tape, cells: Any, matrices: dict[int, Any], mode: str, recording: Recording
) -> None:
    """Compute Jacobians of `cells` with respect to leaves, whose `matrices` are zero, by ``id``."""
    columns = sum([matrix.shape[1] for matrix in matrices.values()])
    if not cells.size or not columns:
        return
    forward = sweeps_forward(tape, cells.size, columns, mode, recording)
    fill = _fill_columns if forward else _fill_rows
    fill(tape, cells, matrices, recording)


def sweeps_forward(tape: Tape, rows: int, columns: int, mode: str, recording: Recording) -> bool:
    """Whether a Jacobian of so many rows and columns is swept forward."""
    if mode != "auto":
        return mode == "forward"
    return columns <= rows and directions.carries_tangents(tape, recording)


def _fill_rows(tape: Tape, cells: Any, matrices: dict[int, Any], recording: Recording) -> None:
    """Sweep backward, a chunk of rows of the Jacobians at a time."""
    step = directions.width(tape, recording)
    for start in range(0, cells.size, step):
        chunk = cells[start : start + step]
        found = directions.adjoints(tape, chunk, np.eye(chunk.size), recording=recording)
        set_: set[int] = set()
        for entry, adjoints in found:
            matrix = matrices.get(id(entry.leaf))
            if matrix is None:  # a constant that the function made
                continue
            part = matrix[start : start + step]
            if id(entry.leaf) in set_:
                part += adjoints.T
            else:
                part[...] = adjoints.T
                set_.add(id(entry.leaf))


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


def _numeric_list_as_array(output: Any, call: Call) -> Any:
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


def _is_number(x: Any) -> bool:
    if isinstance(x, TrackedArray):
        return x.window.shape == ()
    return isinstance(x, (Tracked, int, float, np.number))


def _like(f: Any, what: str) -> Callable[[Function], Function]:
    """Give a derived function the name and doc of its origin."""

    def decorate(derived: Function) -> Function:
        functools.update_wrapper(derived, f, assigned=("__module__", "__doc__"), updated=())
        derived.__name__ = f"{what}_{getattr(f, '__name__', 'function')}"
        derived.__qualname__ = derived.__name__
        return derived

    return decorate


__all__ = ["grad", "jacobian", "value_and_grad", "vjp"]
