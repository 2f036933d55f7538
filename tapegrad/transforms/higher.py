"""Derivatives of derivatives, and forward derivatives: `hessian`, `hvp`, `jvp`, `linearize`.

Each is made of the derivatives that `tapegrad.transforms.derivatives` takes: within one of them,
another records its backward sweep instead of computing it, and is differentiated like any function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import recording, trees
from ..arrays.array import Array
from ..errors import at_caller
from ..storage import Tracked
from . import derivatives, directions
from .call import Call, Function, cotangent_like, float_for_no_axes, positions_of


def hessian(f: Function, argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Function:
    """Return a function that computes the Hessian matrix of `f`.

    Parameters
    ----------
    f : callable
        Returns a single number computed with NumPy from its arguments.
    argnums : int or sequence of int, optional
        Which positional arguments to differentiate with respect to.
    has_aux : bool, optional
        Whether `f` returns ``(number, aux)``; the result is then ``(hessian, aux)``.

    Returns
    -------
    callable
        For one array, ``H[i, j]`` is the second derivative with respect to elements `i` and `j`;
        arrays of more axes give their shape twice.  For a structure of arrays, and for a sequence
        of `argnums`, blocks are nested: the gradient's structure, with the argument's in each of
        its places, so that ``H["a"]["b"]`` belongs to the parts ``"a"`` and ``"b"``.

    See Also
    --------
    hvp : the product of the Hessian and a vector, without forming the matrix.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> tg.hessian(lambda x: x[0] ** 2 * x[1])(np.array([3.0, 5.0]))
    array([[10.,  6.],
           [ 6.,  0.]])
    >>> tg.hessian(lambda p: p["a"] ** 2 * p["b"])({"a": 3.0, "b": 5.0})
    {'a': {'a': 10.0, 'b': 6.0}, 'b': {'a': 6.0, 'b': 0.0}}
    """
    gradient = derivatives.grad(f, argnums, has_aux)

    @derivatives._like(f, "hessian")
    def hessian_matrix(*args: Any, **kwargs: Any) -> Any:
        form: dict[str, Any] = {}  # of the gradient

        def flat_gradient(*inner: Any, **named: Any) -> Any:
            found = gradient(*inner, **named)
            found, aux = found if has_aux else (found, None)
            parts, tree = trees.flatten(found)
            form.update(tree=tree, shapes=[np.shape(part) for part in parts])
            flat = np.concatenate([np.zeros(0), *[np.reshape(part, (-1,)) for part in parts]])
            return (flat, aux) if has_aux else flat

        found = derivatives.jacobian(flat_gradient, argnums, has_aux)(*args, **kwargs)
        columns, aux = found if has_aux else (found, None)
        result = _blocks(form["tree"], form["shapes"], columns)
        return (result, aux) if has_aux else result

    return hessian_matrix


def _blocks(tree: trees.TreeDef, shapes: list[tuple[int, ...]], columns: Any) -> Any:
    """Split the rows of Jacobians among the parts of a gradient."""
    blocks, start = [], 0
    for shape in shapes:
        stop = start + int(np.prod(shape))
        blocks.append(trees.map(_rows(start, stop, shape), columns))
        start = stop
    return trees.unflatten(tree, blocks)


def _rows(start: int, stop: int, shape: tuple[int, ...]) -> Callable[[Any], Any]:
    def block(matrix: Any) -> Any:
        part = matrix[start:stop].reshape(shape + matrix.shape[1:])
        return part.copy() if isinstance(part, Array) else _plain(part)

    return block


def _plain(part: Any) -> Any:
    return float_for_no_axes(np.array(part))


def hvp(f: Function, argnums: int = 0, has_aux: bool = False) -> Function:
    """Return a function that multiplies the Hessian of `f` by a vector.

    The Hessian is never formed: one product costs a few evaluations of `f`.

    Parameters
    ----------
    f : callable
        Returns a single number computed with NumPy from its arguments.
    argnums : int, optional
        Which positional argument to differentiate with respect to.
    has_aux : bool, optional
        Whether `f` returns ``(number, aux)``; the result is then ``(product, aux)``.

    Returns
    -------
    callable
        ``product(*args, v)``: takes the arguments of `f` and, last, a vector of the structure and
        shapes of the differentiated argument; gives the product in the same form.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> tg.hvp(lambda x: x[0] ** 2 * x[1])(np.array([3.0, 5.0]), np.array([1.0, 10.0]))
    array([70.,  6.])
    """
    if not isinstance(argnums, (int, np.integer)) or isinstance(argnums, bool):
        raise TypeError(
            f"tg.hvp differentiates with respect to one argument: argnums={argnums!r} is no "
            f"integer; gather the arguments in a tuple{at_caller()}"
        )
    gradient = derivatives.grad(f, argnums, has_aux)

    @derivatives._like(f, "hvp")
    def product(*args: Any, **kwargs: Any) -> Any:
        if len(args) < 2:
            raise TypeError(
                "the product takes the arguments of the function and the vector, as in "
                f"tg.hvp(f)(x, v){at_caller()}"
            )
        *point, v = args
        at = positions_of(argnums, len(point))[0]

        def gradient_of(x: Any) -> Any:
            return gradient(*point[:at], x, *point[at + 1 :], **kwargs)

        _, pull, *aux = derivatives._vjp(gradient_of, (point[at],), has_aux)
        return (pull(v)[0], *aux) if has_aux else pull(v)[0]

    return product


def linearize(f: Function, *primals: Any, has_aux: bool = False) -> Any:
    """Compute `f` and return its derivative there, as a linear function.

    Parameters
    ----------
    f : callable
        Any function of `primals`; it may return a structure of arrays.
    *primals
        The point.
    has_aux : bool, optional
        Whether `f` returns ``(output, aux)``.

    Returns
    -------
    value : the output of `f`
    push : callable
        ``push(*tangents)``, of the structure and shapes of `primals`, gives the tangent of the
        output.  It can be called any number of times, and does not run `f` again.
    aux : only with `has_aux`

    Notes
    -----
    The backward sweep is linear in its cotangent; what it records is differentiated with respect to
    that, which transposes it.  Where that gives no finite number, what was recorded is swept
    forward, if every operation has a forward rule and no other derivative encloses this one: so
    nothing is carried on by a partial that is zero, be the tangent infinite.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> value, push = tg.linearize(lambda x: x * x, np.array([1.0, 2.0]))
    >>> value
    array([1., 4.])
    >>> push(np.array([1.0, 0.0])), push(np.array([0.0, 10.0]))
    (array([2., 0.]), array([ 0., 40.]))
    """
    call = Call(f, primals, {}, tuple(range(len(primals))), has_aux, again=True)
    alone = call.stretch is None  # no other derivative encloses it
    value, pull, *aux = derivatives._pulled(call, has_aux)
    _, push = derivatives._vjp(pull, (trees.map(_zero, value),))

    def tangent(*tangents: Any) -> Any:
        if len(tangents) != len(primals):
            raise TypeError(
                f"{len(tangents)} tangents for {len(primals)} arguments: give one for each"
                f"{at_caller()}"
            )
        found = push(tangents)[0]
        if alone and not _is_finite(found):
            return _carried(call, tangents, found)
        return found

    return (value, tangent, *aux)


def _is_finite(found: Any) -> bool:
    """Whether plain tangents are finite; tracked ones are not looked at."""
    parts, _ = trees.flatten(found)
    return all(isinstance(part, Tracked) or np.isfinite(part).all() for part in parts)


def _carried(call: Call, tangents: tuple[Any, ...], found: Any) -> Any:
    """Return the tangents of a call's outputs by forward sweeps; `found` where there is no rule."""
    seeds = {}
    for argument, given in zip(call.arguments, tangents, strict=True):
        parts = trees.flatten_like(argument.tree, given, trees.is_numeric_list)
        for leaf, part in zip(argument.leaves, parts, strict=True):
            seeds[id(leaf)] = np.reshape(part, (leaf.value.size, 1)).astype(np.float64)
    outputs, tree = trees.flatten(call.output)
    known, _ = trees.flatten(found)
    for i, (output, like) in enumerate(zip(outputs, known, strict=True)):
        tape, cells = call.locate(output) if isinstance(output, Tracked) else (None, 0)
        if tape is None or np.isfinite(like).all():
            continue
        if not directions.carries_tangents(tape, call.recording):
            return found
        size = int(np.size(like))
        if isinstance(cells, (int, np.integer)):
            cells = np.arange(cells, cells + size)
        carried = directions.tangents(tape, cells, seeds, recording=call.recording)
        known[i] = cotangent_like(carried[:, 0], np.asarray(like))
    return trees.unflatten(tree, known)


def _zero(x: Any) -> Any:
    dtype = np.float32 if _dtype(x) == np.float32 else np.float64
    return np.zeros(recording.shape_of(x) if isinstance(x, Tracked) else np.shape(x), dtype)


def _dtype(x: Any) -> Any:
    return recording.dtype_of(x) if isinstance(x, Tracked) else np.asarray(x).dtype


def jvp(f: Function, primals: Sequence[Any], tangents: Sequence[Any], has_aux: bool = False) -> Any:
    """Compute `f` and its derivative in one direction.

    Parameters
    ----------
    f : callable
        Any function of `primals`; it may return a structure of arrays.
    primals : sequence
        The arguments of `f`.
    tangents : sequence
        The direction: for each argument, a tangent of its structure and shapes.
    has_aux : bool, optional
        Whether `f` returns ``(output, aux)``.

    Returns
    -------
    value : the output of `f`
    tangent : its derivative in the direction, in the structure of the output
    aux : only with `has_aux`

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> tg.jvp(lambda x, y: x * y, (2.0, 3.0), (1.0, 10.0))
    (6.0, 23.0)
    """
    if not isinstance(primals, (list, tuple)) or not isinstance(tangents, (list, tuple)):
        raise TypeError(
            "tg.jvp takes the arguments and their tangents as two tuples, as in "
            f"tg.jvp(f, (x,), (v,)){at_caller()}"
        )
    value, push, *aux = linearize(f, *primals, has_aux=has_aux)
    return (value, push(*tangents), *aux)


__all__ = ["hessian", "hvp", "jvp", "linearize"]
