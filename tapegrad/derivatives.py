"""Derivatives of functions: `grad`, `value_and_grad`, `vjp` and `jacobian`.

Each call records the function once, on a tape of its own, and sweeps it backward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import backward, record, trees
from .creation import array
from .errors import LostGradientError, at_caller
from .record import FLOAT32, FLOAT64
from .storage import Floats, Leaf, Tracked, TrackedArray
from .tape import Recording, recorder

Function = Callable[..., Any]


class _Argument:
    """One differentiated argument: its structure, and a leaf for each array or number in it."""

    def __init__(self, value: Any, position: int) -> None:
        leaves, self.tree = trees.flatten(value, is_leaf=trees.is_numeric_list)
        self.leaves = [
            Leaf(_real(leaf, f"argument {position}{name}"), True)
            for leaf, name in zip(leaves, trees.paths(self.tree), strict=True)
        ]

    def track(self) -> Any:
        """Return the argument with tracked values in the place of numbers and arrays."""
        tape = recorder.tape
        values = []
        for leaf in self.leaves:
            entry = tape.push_input(leaf.value)
            entry.leaf = leaf
            dtype = FLOAT32 if leaf.value.dtype == FLOAT32 else FLOAT64
            values.append(record.run(tape, entry.cell, leaf.value.shape, dtype))
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
        raise NotImplementedError(
            f"{name} is a tracked value already; derivatives of derivatives are not implemented "
            f"yet: pass its .value{at_caller()}"
        )
    values = np.asarray(value)
    if values.dtype.kind in "iu":
        return values.astype(np.float64)
    if values.dtype not in (FLOAT64, FLOAT32):
        raise TypeError(
            f"{name} is {type(value).__name__} of dtype {values.dtype}, which has no derivative; "
            f"choose the arguments to differentiate by argnums{at_caller()}"
        )
    return np.array(values, order="C")


def _result(total: Floats | None, like: Any) -> Any:
    """Return a cotangent as a new, contiguous, writable ndarray, or a float for no axes."""
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
    ) -> None:
        _check_function(f)
        positions = _positions(argnums, len(args))
        self.single = not isinstance(argnums, Sequence)
        self.arguments = [_Argument(args[i], i) for i in positions]
        self.recording = Recording()
        outer = recorder.enter(recording=self.recording)
        try:
            actual = list(args)
            for i, argument in zip(positions, self.arguments, strict=True):
                actual[i] = argument.track()
            output = f(*actual, **kwargs)
            self.aux: Any = None
            if has_aux:
                output, aux = _pair(output)
                self.aux = trees.map(_plain, aux)
            self.output = output
        except BaseException:
            recorder.leave(outer)
            self.recording.release()
            raise
        recorder.leave(outer)

    def scalar_output(self) -> Any:
        """Return the output, which must be a single number."""
        output = self.output
        if _is_real(output) and np.size(output) == 1:
            return output
        raise TypeError(
            "tg.grad needs a function that returns a single number, but this one returned "
            f"{_described(output)}; use tg.jacobian, tg.vjp, or return its sum{at_caller()}"
        )

    def sweep(self, output: Any, cotangent: Floats) -> dict[int, Floats]:
        """Return the cotangents of the arguments' leaves, by id, for one output."""
        totals: dict[int, Floats] = {}
        if not isinstance(output, Tracked):
            return totals  # a plain number does not depend on the arguments
        tape, cells = backward.place_of(output)
        for entry, adjoint in backward.sweep(
            tape, cells, cotangent.ravel(), recording=self.recording
        ):
            key = id(entry.leaf)
            totals[key] = adjoint if key not in totals else totals[key] + adjoint
        return totals

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
            value = _plain_number(output)
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
    call = _Call(f, args, {}, tuple(range(len(args))), has_aux)
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
    value = trees.map(_plain, call.output)

    def pull(cotangent: Any) -> tuple[Any, ...]:
        try:
            parts = trees.flatten_like(tree, cotangent, is_leaf=trees.is_numeric_list)
        except ValueError as error:
            raise ValueError(
                f"the cotangent must have the output's structure: {error}{at_caller()}"
            ) from None
        totals: dict[int, Floats] = {}
        for output, part in zip(outputs, parts, strict=True):
            seed = backward.check_cotangent(part, record.shape_of(output))
            for key, adjoint in call.sweep(output, seed).items():
                totals[key] = adjoint if key not in totals else totals[key] + adjoint
        return tuple([argument.cotangents(totals) for argument in call.arguments])

    return (value, pull, call.aux) if has_aux else (value, pull)


def jacobian(f: Function, argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Function:
    """Return a function that computes the Jacobian matrix of `f`.

    ``J[i, j]`` is the derivative of output `i` with respect to input `j`; for arrays of more axes
    the shape is the output's followed by the input's.  `f` is recorded once and swept backward
    once for each element of its output.

    Parameters
    ----------
    f : callable
        Returns an array (or a list of numbers) computed with NumPy from its arguments.
    argnums : int or sequence of int, optional
        Which positional arguments to differentiate with respect to.
    has_aux : bool, optional
        Whether `f` returns ``(output, aux)``; the result is then ``(jacobian, aux)``.

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
            result = call.pick(_rows(call, output))
        finally:
            call.release()
        return (result, call.aux) if has_aux else result

    return jacobian_matrix


def _rows(call: _Call, output: Any) -> list[Any]:
    """Return the Jacobian with respect to each argument, one sweep a row."""
    shape = record.shape_of(output)
    leaves = [leaf for argument in call.arguments for leaf in argument.leaves]
    blocks = {id(leaf): np.zeros(shape + leaf.value.shape, leaf.value.dtype) for leaf in leaves}
    size = int(np.prod(shape))
    rows = {id(leaf): blocks[id(leaf)].reshape(size, *leaf.value.shape) for leaf in leaves}
    seed = np.zeros(shape)
    for i, element in enumerate(np.ndindex(shape)):
        seed[element] = 1.0
        for key, adjoint in call.sweep(output, seed).items():
            if key in rows:  # and not a constant that the function made
                rows[key][i] = adjoint.reshape(rows[key].shape[1:])
        seed[element] = 0.0
    return [
        argument.build([_float_for_no_axes(blocks[id(leaf)]) for leaf in argument.leaves])
        for argument in call.arguments
    ]


def _numeric_list_as_array(output: Any, call: _Call) -> Any:
    """Return a list of numbers, some tracked, as the array that it stands for."""
    if isinstance(output, list) and output and all(_is_number(item) for item in output):
        if not any(isinstance(item, Tracked) for item in output):
            return np.asarray(output)
        outer = recorder.enter(recording=call.recording)
        try:
            return array(output)
        finally:
            recorder.leave(outer)
    return output


def _is_real(x: Any) -> bool:
    """Whether an output is one array, or number, that has a derivative or is a constant."""
    if isinstance(x, Tracked):
        return record.dtype_of(x).kind == "f"
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
