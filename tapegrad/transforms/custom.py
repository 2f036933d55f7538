"""`custom_vjp` and `custom_jvp`: functions whose derivative the user gives.

A call of such a function is one instruction of the tape.  Its rules are the user's and work on
plain numbers and arrays, so that they may call anything.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import numpy as np

from .. import execute, host, recording, trees
from ..errors import LostGradientError, NotDifferentiableError, at_caller
from ..recording import BOOL, FLOAT32, FLOAT64, INT64
from ..storage import Floats, Tracked
from ..tape import Tape, recorder
from ..window import Shape
from . import derivatives

Function = Callable[..., Any]
_OPERAND = object()  # stands where a tracked part of an argument was


class Arguments:
    """A call's arguments taken apart: tracked parts become operands, the others are kept.

    Attributes
    ----------
    tree : TreeDef
        Structure of the tuple of arguments.
    parts : list
        Its parts, with a mark in the place of tracked ones.  Arrays are copied: what they hold when
        the call is recorded is what its derivative uses.
    dtypes : list of dtype
        Of the tracked parts.
    """

    __slots__ = ("dtypes", "parts", "tree")

    def __init__(self, leaves: Sequence[Any], tree: trees.TreeDef) -> None:
        self.tree = tree
        self.dtypes = [recording.dtype_of(x) for x in leaves if isinstance(x, Tracked)]
        self.parts = [_OPERAND if isinstance(x, Tracked) else trees.own(x) for x in leaves]

    def build(self, values: Iterable[Any]) -> tuple[Any, ...]:
        """Return the arguments with `values` in the place of tracked parts."""
        rest = iter(values)
        parts = [next(rest) if part is _OPERAND else trees.own(part) for part in self.parts]
        built: tuple[Any, ...] = trees.unflatten(self.tree, parts)
        return built

    def plain(self, values: Sequence[Floats]) -> tuple[Any, ...]:
        """Return the arguments with copies of `values`, in the dtypes of the tracked parts."""
        return self.build(
            [np.array(x, dtype)[()] for x, dtype in zip(values, self.dtypes, strict=True)]
        )


class Outputs:
    """The form of a function's output: which parts are in cells, one after the other."""

    __slots__ = ("dtypes", "parts", "shapes", "tree")

    def __init__(
        self, leaves: Sequence[Any], tree: trees.TreeDef, is_carried: Callable[[Any], bool]
    ) -> None:
        self.tree = tree
        self.parts = [_OPERAND if is_carried(x) else x for x in leaves]
        carried = [x for x in leaves if is_carried(x)]
        self.shapes = [recording.shape_of(x) for x in carried]
        self.dtypes = [_carried_dtype(x) for x in carried]

    @property
    def size(self) -> int:
        """Number of cells."""
        return sum(map(prod, self.shapes))

    def agrees(self, other: Outputs) -> bool:
        """Whether another output has the same form, and the same parts outside cells."""
        same = self.tree == other.tree and self.shapes == other.shapes
        return same and all(map(_agree, self.parts, other.parts))

    def plain(self, flat: Floats) -> Any:
        """Return the output made of ordinary numbers and arrays."""
        parts = zip(self.split(flat), self.dtypes, strict=True)
        return self.build([np.array(part, dtype)[()] for part, dtype in parts])

    def build(self, values: Iterable[Any]) -> Any:
        """Return an output made of `values`."""
        rest = iter(values)
        return trees.unflatten(
            self.tree, [next(rest) if part is _OPERAND else part for part in self.parts]
        )

    def track(self, tape: Tape, base: int) -> Any:
        """Return the output on the cells of `tape` from `base` on."""
        values = []
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            values.append(recording.run(tape, base, shape, dtype))
            base += prod(shape)
        return self.build(values)

    def split(self, flat: Any) -> list[Any]:
        """Return the parts of a flat array, in their shapes."""
        parts, at = [], 0
        for shape in self.shapes:
            parts.append(flat[at : at + prod(shape)].reshape(shape))
            at += prod(shape)
        return parts


def flat_values(leaves: Iterable[Any]) -> Floats:
    """Return numbers and arrays as one flat array."""
    return np.concatenate([np.empty(0), *[np.ravel(np.asarray(x, np.float64)) for x in leaves]])


def place(operands: Iterable[Any]) -> tuple[Tape, list[host.HostOperand], list[Floats]]:
    """Bring tracked operands into the current tape; return it, their places and their values."""
    tape = recorder.current()
    places = [host.HostOperand(tape, x) for x in operands]
    execute.evaluate(tape)
    v = tape.arena.v.array
    return tape, places, [np.array(x.read(v), np.float64) for x in places]


def is_numeric(x: Any) -> bool:
    """Whether `x` is a number or an array, tracked or not."""
    return isinstance(x, (Tracked, np.ndarray, np.generic, int, float, complex))


def _carried_dtype(x: Any) -> np.dtype[Any]:
    """Return the dtype in which cells stand for an output."""
    dtype = recording.dtype_of(x if isinstance(x, Tracked) else np.asarray(x))
    if dtype.kind not in "fiub":
        raise TypeError(f"an output of dtype {dtype} is not real{at_caller()}")
    if dtype.kind == "f":
        return FLOAT64 if dtype.itemsize > 4 else FLOAT32
    return BOOL if dtype.kind == "b" else INT64


class custom_vjp:  # named as the decorator that it is
    """A function with a backward rule of the user's, as a decorator.

    Parameters
    ----------
    f : callable
        Any function of numbers, arrays, and dicts, lists, tuples or dataclasses of them.
    nondiff_argnums : sequence of int, optional
        Positions of arguments that have no derivative, such as functions or options.

    See Also
    --------
    custom_vjp.defvjp : gives the rules.

    Notes
    -----
    Called without tracked values, `f` itself runs.  With some, ``fwd`` runs once, while the call is
    recorded, and ``bwd`` in each backward sweep that arrives there.  Both get plain numbers and
    ndarrays, so they may call SciPy, or C code.

    Examples
    --------
    A fixed point, whose derivative follows from the implicit function theorem:

    >>> import numpy as np, tapegrad as tg
    >>> @tg.custom_vjp
    ... def root(a):
    ...     x = 1.0
    ...     while abs(x * x - a) > 1e-15 * a:
    ...         x = 0.5 * (x + a / x)
    ...     return x
    >>> def fwd(a):
    ...     x = root(a)
    ...     return x, x
    >>> def bwd(x, cotangent):
    ...     return (cotangent / (2.0 * x),)
    >>> root.defvjp(fwd, bwd)
    >>> tg.grad(lambda a: 3.0 * root(a))(4.0)
    0.75
    """

    def __init__(self, f: Function, nondiff_argnums: Sequence[int] = ()) -> None:
        if not callable(f):
            raise TypeError(f"custom_vjp expects a function, got {type(f).__name__}{at_caller()}")
        self.f = f
        self.fwd: Function | None = None
        self.bwd: Function | None = None
        self.nondiff = tuple(nondiff_argnums)
        if not all(isinstance(i, int) and i >= 0 for i in self.nondiff):
            raise ValueError(f"nondiff_argnums must be positions from 0{at_caller()}")
        functools.update_wrapper(self, f)

    def defvjp(self, fwd: Function, bwd: Function) -> None:
        """Set the rules.

        Parameters
        ----------
        fwd : callable
            Takes the arguments of the function; returns ``(output, residuals)``, where the
            residuals are whatever `bwd` needs.
        bwd : callable
            ``bwd(*nondiff, residuals, cotangent)``, where the cotangent has the structure of the
            output, returns a tuple: for each differentiable argument its cotangent, which has the
            argument's structure and shapes.  None stands for zero.
        """
        if not callable(fwd) or not callable(bwd):
            raise TypeError(f"defvjp expects two functions, fwd and bwd{at_caller()}")
        self.fwd, self.bwd = fwd, bwd

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function; record the call where an argument is tracked."""
        leaves, tree = trees.flatten((args, kwargs))
        if not any(isinstance(x, Tracked) for x in leaves):
            return self.f(*args, **kwargs)
        if self.fwd is None or self.bwd is None:
            raise NotDifferentiableError(
                f"{_name(self)} has no backward rule yet: call {_name(self)}.defvjp(fwd, bwd)"
                f"{at_caller()}"
            )
        args = self._positional(args, kwargs)
        leaves, tree = trees.flatten(args)
        for i in self.nondiff:
            if any(isinstance(x, Tracked) for x in trees.flatten(args[i : i + 1])[0]):
                raise NotDifferentiableError(
                    f"argument {i} of {_name(self)} is tracked, but nondiff_argnums says that it "
                    f"has no derivative{at_caller()}"
                )
        rule = _Rule(self, Arguments(leaves, tree))
        tape, places, values = place(x for x in leaves if isinstance(x, Tracked))
        flat = rule.run(values)
        return run_once(tape, rule, places, flat, rule.outputs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def _positional(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return all arguments by position, defaults included: `bwd` answers for each of them."""
        import inspect  # slow to load, and not needed for importing tapegrad

        if isinstance(self.f, np.ufunc):  # whose options are no arguments
            return args
        bound = inspect.signature(self.f).bind(*args, **kwargs)
        if bound.kwargs:
            raise TypeError(
                f"{_name(self)} takes {sorted(bound.kwargs)} by keyword only, which custom_vjp "
                f"does not support; make them positional{at_caller()}"
            )
        bound.apply_defaults()
        return bound.args


class custom_jvp:  # named as the decorator that it is
    """A function with a forward derivative rule of the user's, as a decorator.

    Backward sweeps transpose the rule: it is linear in the tangents, so that it is recorded as a
    function of these and swept backward.  A rule that does not work on tracked values is run once
    for each element of the arguments instead; `custom_vjp` is then the better choice.

    Parameters
    ----------
    f : callable
        Any function of numbers, arrays, and dicts, lists, tuples or dataclasses of them.
    nondiff_argnums : sequence of int, optional
        Positions of arguments that have no derivative, such as functions or options.

    See Also
    --------
    custom_jvp.defjvp : gives the rule.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> @tg.custom_jvp
    ... def softplus(x):
    ...     return np.logaddexp(0.0, x)
    >>> @softplus.defjvp
    ... def rule(primals, tangents):
    ...     (x,), (t,) = primals, tangents
    ...     return softplus(x), t / (1.0 + np.exp(-x))
    >>> tg.grad(softplus)(0.0), tg.grad(tg.grad(softplus))(0.0)
    (0.5, 0.25)
    """

    def __init__(self, f: Function, nondiff_argnums: Sequence[int] = ()) -> None:
        if not callable(f):
            raise TypeError(f"custom_jvp expects a function, got {type(f).__name__}{at_caller()}")
        self.rule: Function | None = None
        self._transposed = custom_vjp(f, nondiff_argnums)
        functools.update_wrapper(self, f)

    def defjvp(self, rule: Function) -> Function:
        """Set the rule, and return it.

        Parameters
        ----------
        rule : callable
            ``rule(*nondiff, primals, tangents)`` takes two tuples, the differentiable arguments
            and their tangents, and returns ``(output, tangent)``.  The tangent has the structure
            and shapes of the output, and is linear in the tangents.
        """
        if not callable(rule):
            raise TypeError(f"defjvp expects a function{at_caller()}")
        self.rule = rule
        self._transposed.defvjp(self._forward, self._backward)
        return rule

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function; record the call where an argument is tracked."""
        if self.rule is None and any(
            isinstance(x, Tracked) for x in trees.flatten((args, kwargs))[0]
        ):
            raise NotDifferentiableError(
                f"{_name(self)} has no rule yet: call {_name(self)}.defjvp(rule){at_caller()}"
            )
        return self._transposed(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def _forward(self, *args: Any) -> tuple[Any, Any]:
        kept = trees.map(trees.own, args)
        return self._transposed.f(*args), kept

    def _backward(self, *given: Any) -> tuple[Any, ...]:
        *nondiff, args, cotangent = given
        skip = self._transposed.nondiff
        primals = tuple([x for i, x in enumerate(args) if i not in skip])

        def linear(*tangents: Any) -> Any:
            assert self.rule is not None
            pair = self.rule(*nondiff, primals, tangents)
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise TypeError(
                    f"the rule of {_name(self)} must return a pair (output, tangent), not "
                    f"{_described(pair)}"
                )
            self._check_form(pair[1], cotangent)
            return pair[1]

        zeros = trees.map(_zero, primals)
        try:
            value, pull = derivatives.vjp(linear, *zeros)
        except LostGradientError:
            if any(isinstance(x, Tracked) for x in trees.flatten((args, cotangent))[0]):
                raise
            return _by_columns(linear, zeros, cotangent)
        for part in trees.flatten(value)[0]:
            # An infinite slope times zero is nan, which says nothing.
            if not isinstance(part, Tracked) and np.any(np.nan_to_num(part, nan=0.0)):
                raise ValueError(
                    f"the rule of {_name(self)} is not linear in the tangents: its tangent is not "
                    "zero where these are"
                )
        pulled: tuple[Any, ...] = pull(cotangent)
        return pulled

    def _check_form(self, tangent: Any, cotangent: Any) -> None:
        leaves, tree = trees.flatten(cotangent)
        try:
            parts = trees.flatten_like(tree, tangent)
        except ValueError as error:
            raise ValueError(
                f"the tangent that the rule of {_name(self)} returned has not the output's "
                f"structure: {error}"
            ) from None
        for part, leaf, path in zip(parts, leaves, trees.paths(tree), strict=True):
            if np.shape(part) != np.shape(leaf):
                raise ValueError(
                    f"the tangent{path} that the rule of {_name(self)} returned has shape "
                    f"{np.shape(part)}, but the output has shape {np.shape(leaf)}"
                )


def _zero(x: Any) -> Any:
    if not is_numeric(x):
        return x
    dtype = recording.dtype_of(x if isinstance(x, Tracked) else np.asarray(x))
    return np.zeros(recording.shape_of(x), dtype if dtype.kind == "f" else FLOAT64)[()]


def _by_columns(linear: Function, zeros: tuple[Any, ...], cotangent: Any) -> tuple[Any, ...]:
    """Return a linear function's transpose times a cotangent, by running it on unit vectors."""
    seeds = flat_values(trees.flatten(cotangent)[0])
    leaves, tree = trees.flatten(zeros)
    found = []
    for i, leaf in enumerate(leaves):
        total = np.zeros(np.shape(leaf))
        for place in np.ndindex(total.shape):
            unit = np.zeros(total.shape)
            unit[place] = 1.0
            tangents = trees.unflatten(tree, [*leaves[:i], unit[()], *leaves[i + 1 :]])
            total[place] = flat_values(trees.flatten(linear(*tangents))[0]) @ seeds
        found.append(total)
    columns: tuple[Any, ...] = trees.unflatten(tree, found)
    return columns


def run_once(
    tape: Tape, rule: Any, places: list[host.HostOperand], flat: Floats, outputs: Outputs
) -> Any:
    """Append a rule whose result at the present values is known; return its tracked output."""
    rule.pending = flat
    try:
        base = host.append(tape, rule, places, {}, (flat.size,))
        execute.evaluate(tape)
    finally:
        rule.pending = None
    return outputs.track(tape, base)


class _Rule:
    """One call of a `custom_vjp` function, as the row of a structural instruction."""

    __slots__ = ("arguments", "function", "outputs", "pending", "place", "residuals", "values")

    outputs: Outputs

    def __init__(self, function: custom_vjp, arguments: Arguments) -> None:
        self.function = function
        self.arguments = arguments
        self.pending: Floats | None = None
        self.place = at_caller()
        self.residuals: Any = None
        self.values: list[Floats] = []  # that the residuals belong to

    @property
    def name(self) -> str:
        """Name of the function."""
        return _name(self.function)

    def run(self, values: Sequence[Floats]) -> Floats:
        """Run ``fwd`` and keep the residuals; return the output, flat."""
        # The user's code may record and sweep as it likes: it does so on a tape of its own.
        outer = recorder.enter()
        try:
            output, residuals = self._pair(self.arguments.plain(values))
        finally:
            recorder.leave(outer)
        leaves, tree = trees.flatten(output)
        if any(isinstance(x, Tracked) for x in (*leaves, *trees.flatten(residuals)[0])):
            raise NotDifferentiableError(
                f"the fwd rule of {self.name} returned a tracked value: it works on plain values, "
                f"so what it uses from outside must be an argument{self.place}"
            )
        outputs = Outputs(leaves, tree, is_numeric)
        flat = flat_values(x for x in leaves if is_numeric(x))
        if self.values and outputs.shapes != self.outputs.shapes:
            raise ValueError(
                f"{self.name} returned shapes {outputs.shapes} where it had returned "
                f"{self.outputs.shapes}{self.place}"
            )
        self.outputs, self.residuals = outputs, residuals
        self.values = [np.array(x) for x in values]
        return flat

    def _pair(self, args: tuple[Any, ...]) -> tuple[Any, Any]:
        assert self.function.fwd is not None
        pair = self.function.fwd(*args)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(
                f"the fwd rule of {self.name} must return a pair (output, residuals), not "
                f"{_described(pair)}{self.place}"
            )
        return pair

    def forward(self, *values: Floats) -> Floats:
        """Compute the output from operands."""
        return self.run(values) if self.pending is None else self.pending

    def vjp(self, g: Any, out: Any, *values: Any) -> list[Any]:
        """Return the operands' cotangents."""
        if any(isinstance(x, Tracked) for x in (g, *values)):
            return self._recorded_vjp(g, values)
        if not all(map(_same, values, self.values)):
            self.run(values)
        parts = [
            np.array(part, dtype if dtype.kind == "f" else FLOAT64)[()]
            for part, dtype in zip(self.outputs.split(g), self.outputs.dtypes, strict=True)
        ]
        outer = recorder.enter()
        try:
            return self._backward(self.residuals, parts)
        finally:
            recorder.leave(outer)

    def _recorded_vjp(self, g: Any, values: Sequence[Any]) -> list[Any]:
        """Return tracked cotangents: both rules run once more, on tracked values."""
        try:
            _, residuals = self._pair(self.arguments.build(values))
            return self._backward(residuals, self.outputs.split(g))
        except (LostGradientError, NotDifferentiableError) as error:
            raise NotDifferentiableError(
                f"tg.jvp and second derivatives of {self.name} need rules that work on tracked "
                f"values, as NumPy's functions do, but its rules do not: {error}"
            ) from error

    def _backward(self, residuals: Any, parts: list[Any]) -> list[Any]:
        """Run ``bwd`` and return the operands' cotangents, checked."""
        args = self.arguments.build([_OPERAND] * len(self.arguments.dtypes))
        nondiff = [args[i] for i in self.function.nondiff if i < len(args)]
        assert self.function.bwd is not None
        found = self.function.bwd(*nondiff, residuals, self.outputs.build(parts))
        positions = [i for i in range(len(args)) if i not in self.function.nondiff]
        if not isinstance(found, (tuple, list)) or len(found) != len(positions):
            raise TypeError(
                f"the bwd rule of {self.name} must return a tuple of {len(positions)} cotangents, "
                f"one an argument, not {_described(found)}{self.place}"
            )
        cotangents = []
        for i, cotangent in zip(positions, found, strict=True):
            cotangents += self._checked(i, cotangent)
        return cotangents

    def _checked(self, i: int, cotangent: Any) -> list[Any]:
        """Return the cotangents of the operands in argument `i`."""
        node = self.arguments.tree.children[i]
        first = sum(child.n_leaves for child in self.arguments.tree.children[:i])
        parts = self.arguments.parts[first : first + node.n_leaves]
        operand = sum(part is _OPERAND for part in self.arguments.parts[:first])
        shapes = [x.shape for x in self.values[operand:]]
        if cotangent is None:
            leaves: list[Any] = [None] * len(parts)
        else:
            try:
                leaves = trees.flatten_like(node, cotangent, is_leaf=trees.is_whole)
            except ValueError as error:
                raise ValueError(self._complaint(i, "", str(error))) from None
        checked: list[Any] = []
        for part, path, leaf in zip(parts, trees.paths(node), leaves, strict=True):
            if part is not _OPERAND:
                continue
            shape = shapes[len(checked)]
            checked.append(np.zeros(shape) if leaf is None else self._array(i, path, leaf, shape))
        return checked

    def _array(self, i: int, path: str, cotangent: Any, shape: Shape) -> Any:
        if not isinstance(cotangent, Tracked):
            cotangent = np.asarray(cotangent)
            if cotangent.dtype.kind not in "fiu":
                raise TypeError(self._complaint(i, path, f"dtype {cotangent.dtype} is not real"))
            cotangent = cotangent.astype(np.float64)
        if recording.shape_of(cotangent) != shape:
            what = (
                f"it has shape {recording.shape_of(cotangent)}, but the argument has shape {shape}"
            )
            raise ValueError(self._complaint(i, path, what))
        return cotangent

    def _complaint(self, i: int, path: str, what: str) -> str:
        return (
            f"the cotangent that the bwd rule of {self.name} returned for argument {i}{path} is "
            f"wrong: {what}{self.place}"
        )


def _agree(x: Any, y: Any) -> bool:
    if not is_numeric(x) or not is_numeric(y):
        return type(x) is type(y)
    return np.array_equal(x, y, equal_nan=True)


def _same(x: Floats, y: Floats) -> bool:
    """Whether two arrays hold the same bits (nan equals itself, 0.0 is not -0.0)."""
    x = np.asarray(x, np.float64, order="C")
    return np.array_equal(x.view(np.int64), y.view(np.int64))


def _name(f: Any) -> str:
    return getattr(f, "__name__", type(f).__name__)


def _described(x: Any) -> str:
    if isinstance(x, (tuple, list)):
        return f"a {type(x).__name__} of {len(x)}"
    return "None" if x is None else f"a {type(x).__name__}"
