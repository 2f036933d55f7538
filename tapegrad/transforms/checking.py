"""`check_gradients`: compare derivatives with numerical ones, and name the operation at fault.

The numerical derivatives know nothing of tapes: the function is called with plain NumPy numbers.
Those by the complex step are exact to rounding.  Where an operation is not analytic, or has no
complex counterpart, they are differences; at a kink, a derivative must lie between those to
either side.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import trees
from ..arrays.creation import array
from ..errors import GradientMismatch, at_caller
from ..kernels.opcodes import HOST, LANES, ROW_OF
from ..recording import FLOAT32, shape_of
from ..storage import Floats, Tracked
from ..tape import recorder
from .call import Call, positions_of
from .differences import central, one_sided

if TYPE_CHECKING:
    from ..diagnosis import Fault

# Operations through which the complex step is exact: analytic, and NumPy's function is complex.
ANALYTIC = frozenset((
    "input", "lanes", "host", "const", "carry", "add", "subtract", "multiply", "divide", "negative",
    "positive", "float32", "stop_gradient", "power", "integer_power", "square", "reciprocal",
    "sqrt", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "arcsin",
    "arccos", "arctan", "sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh", "sinc", "sum",
    "prod", "cumsum", "cumprod", "matmul",
))  # fmt: skip
_COMPLEX_STEP = 1e-100  # small enough for any slope: nothing is subtracted
_KINK = 1e-3  # relative difference of the derivatives to both sides from which on it is a kink


class GradientCheck:
    """What `check_gradients` found, when all is well.

    Attributes
    ----------
    largest_error : float
        Largest difference from the numerical derivatives.
    method : str
        ``"complex step"`` or ``"central differences"``.
    count : int
        How many derivatives were compared.
    unresolved : int
        How many of them could only be compared with the derivatives to either side, or not at all:
        at kinks, and where the function is not finite.
    """

    __slots__ = ("count", "largest_error", "method", "unresolved")

    def __init__(self, largest_error: float, method: str, count: int, unresolved: int) -> None:
        self.largest_error = largest_error
        self.method = method
        self.count = count
        self.unresolved = unresolved

    def __repr__(self) -> str:
        rest = f", {self.unresolved} of them at kinks or undefined" if self.unresolved else ""
        return (
            f"GradientCheck({self.count} derivatives by {self.method}{rest}; "
            f"largest error {self.largest_error:.1e})"
        )


def check_gradients(
    f: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> GradientCheck:
    """Compare the derivatives of `f` by the reverse sweep with numerical ones.

    Parameters
    ----------
    f : callable
        Returns a number, an array, or a structure of them, computed from `args`.
    *args
        The point: numbers, arrays, or structures of them.
    argnums : int or sequence of int, optional
        Which arguments to differentiate with respect to; by default all of them.
    rtol, atol : float, optional
        A derivative may differ by ``atol + rtol * abs(numerical)``, and by the estimated error of
        the differences.  By default `rtol` is 1e-6, and 1e-3 where an argument is float32, whose
        every operation rounds to 6e-8; `atol` is a hundredth of that, times the largest output
        where that exceeds 1.

    Returns
    -------
    GradientCheck

    Raises
    ------
    GradientMismatch
        If a derivative, or the value, is wrong.  It names the output and the input, both values,
        and the operation at fault.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> check = tg.check_gradients(lambda x, y: np.sin(x) * y, np.array([1.0, 2.0]), 3.0)
    >>> check.method, check.count, check.largest_error < 1e-15
    ('complex step', 6, True)
    >>> tg.check_gradients(lambda x: np.where(x > 0.0, x, 0.1 * x), 0.0)  # 0.1 is the left slope
    GradientCheck(1 derivatives by central differences, 1 of them at kinks or undefined; ...)
    """
    if not args:
        raise TypeError(
            f"check_gradients needs the arguments to call the function with{at_caller()}"
        )
    chosen = range(len(args)) if argnums is None else argnums
    call = Call(f, args, {}, chosen)
    try:
        function = _Function(call, f, args, positions_of(chosen, len(args)))
        return _Comparison(call, function, rtol, atol).run()
    finally:
        call.release()


class _Comparison:
    """One recorded call, and the same function on plain numbers."""

    def __init__(
        self,
        call: Call,
        function: _Function,
        rtol: float | None,
        atol: float | None,
    ) -> None:
        self.call = call
        self.function = function
        self.outputs, tree = trees.flatten(call.output)
        self.output_names = list(_names("output", tree, map(shape_of, self.outputs)))
        values = [np.ravel(_value(output)) for output in self.outputs]
        self.values: Floats = np.concatenate([np.empty(0), *values])
        self.x: Floats = self.function.x
        single = any(leaf.value.dtype == FLOAT32 for leaf in self.function.leaves)
        self.rtol = (1e-3 if single else 1e-6) if rtol is None else rtol
        size = np.max(np.abs(self.values), initial=1.0, where=np.isfinite(self.values))
        self.atol = 0.01 * self.rtol * float(size) if atol is None else atol

    def run(self) -> GradientCheck:
        """Compare the values, and then the derivatives."""
        plain = self.function(self.x)
        wrong = ~self._close(self.values, plain)
        if wrong.any():
            first = int(np.argmax(wrong))
            self._fail(
                f"{self.output_names[first]} is {self.values[first]} as recorded, but "
                f"{plain[first]} as NumPy computes it",
                definitions=True,
            )
        reverse = self._jacobian()
        numerical = self._complex_step() if self._is_analytic() else None
        if numerical is not None and self._close(reverse, numerical).all():
            return GradientCheck(
                _largest(np.abs(reverse - numerical)), "complex step", reverse.size, 0
            )
        return self._compare_differences(reverse)

    def _close(self, found: Floats, expected: Floats) -> Any:
        return np.isclose(found, expected, self.rtol, self.atol, equal_nan=True)

    def _jacobian(self) -> Floats:
        """Return the derivatives of all outputs (rows) with respect to all inputs (columns)."""
        rows = []
        for output in self.outputs:
            seed = np.zeros(int(np.prod(shape_of(output))))
            for i in range(seed.size):
                seed[i] = 1.0
                found = self.call.sweep(output, seed)
                seed[i] = 0.0
                rows.append(
                    [
                        np.ravel(found.get(id(leaf), np.zeros(leaf.value.size)))
                        for leaf in self.function.leaves
                    ]
                )
        flat = [np.concatenate([np.empty(0), *row]) for row in rows]
        return np.array(flat).reshape(self.values.size, self.x.size)

    def _is_analytic(self) -> bool:
        """Whether everything that was recorded is an analytic function NumPy has."""
        rows: set[str] = set()
        for tape in self.call.recording.tapes:
            tape.flush()
            arena = tape.arena
            op, a = arena.op.array[: tape.n], arena.a.array[: tape.n]
            rows.update(ROW_OF[o] for o in np.unique(op))
            rows.update(ROW_OF[tape.d.array()[at]] for at in a[op == LANES])
            rows.update(tape.hosts[at].row.name for at in a[op == HOST])
        return rows <= ANALYTIC

    def _complex_step(self) -> Floats | None:
        """Return the derivatives by the complex step, or None where it does not apply."""
        result = np.zeros((self.values.size, self.x.size))
        for j in range(self.x.size):
            moved = self.x.astype(complex)
            moved[j] += _COMPLEX_STEP * 1j
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", np.exceptions.ComplexWarning)
                    value = self.function(moved)
            except Exception:  # whatever does not take complex numbers
                return None
            if not self._close(self.values, value.real).all():
                return None  # another branch
            result[:, j] = value.imag / _COMPLEX_STEP
        return result if np.isfinite(result).all() else None

    def _compare_differences(self, reverse: Floats) -> GradientCheck:
        numerical, doubt = np.zeros(reverse.shape), np.zeros(reverse.shape)
        for j in range(self.x.size):
            numerical[:, j], doubt[:, j] = central(
                self.function.along(j), self.x[j], 0.1 * self.rtol, 0.1 * self.atol
            )
        with np.errstate(invalid="ignore"):
            error = np.abs(reverse - numerical)
            resolved = doubt <= self.atol + _KINK * np.abs(numerical)
            good = resolved & (error <= self.atol + self.rtol * np.abs(numerical) + doubt)
        excused = np.zeros(reverse.shape, bool)
        for j in np.flatnonzero(~good.all(axis=0)).tolist():
            excused[:, j] = ~good[:, j] & self._at_kink(j, reverse[:, j], resolved[:, j])
        wrong = ~good & ~excused
        if wrong.any():
            worst = np.where(wrong, np.nan_to_num(error, nan=np.inf), -1.0)
            i, j = divmod(int(np.argmax(worst)), self.x.size)
            self._fail(
                f"d {self.output_names[i]} / d {self.function.names[j]} is {reverse[i, j]} by the "
                f"reverse sweep, but {numerical[i, j]} by central differences "
                f"({wrong.sum()} of {wrong.size} derivatives differ)"
            )
        return GradientCheck(
            _largest(error[good]), "central differences", good.size, int(excused.sum())
        )

    def _at_kink(self, j: int, reverse: Floats, resolved: Any) -> Any:
        """Whether derivatives by input `j` lie between those to either side, where these differ."""
        sides = [one_sided(self.function.along(j), self.x[j], side) for side in (-1.0, 1.0)]
        with np.errstate(invalid="ignore"):
            slopes = np.array([slope for slope, _ in sides])
            defined = np.isfinite(slopes) & np.isfinite([error for _, error in sides])
            low = np.min(slopes, axis=0, where=defined, initial=np.inf)
            high = np.max(slopes, axis=0, where=defined, initial=-np.inf)
            doubt = np.max([error for _, error in sides], axis=0, where=defined, initial=0.0)
            slack = self.atol + 1e-4 * np.max(np.abs(slopes), axis=0, where=defined, initial=0.0)
            kink = ~resolved | (high - low > 10.0 * slack + doubt)
            between = (low - slack - doubt <= reverse) & (reverse <= high + slack + doubt)
        known = defined.any(axis=0) & np.isfinite(reverse)
        # What cannot be compared: infinities where differences grow without limit, and derivatives
        # where the function itself is not defined.
        unknown = np.where(np.isinf(reverse), ~resolved, ~defined.all(axis=0))
        return np.where(known, kink & between, unknown)

    def _fail(self, what: str, definitions: bool = False) -> None:
        from ..diagnosis import find_faults  # when something is wrong only

        faults = find_faults(self.call.recording.tapes, definitions)
        raise GradientMismatch(f"{what}{at_caller()}\n{_explanation(faults)}", faults)


class _Function:
    """The function as one of a flat vector of numbers, with a flat vector as its result.

    Attributes
    ----------
    x : ndarray
        The point.
    names : list of str
        What each element of it is called.
    """

    def __init__(
        self, call: Call, f: Callable[..., Any], args: tuple[Any, ...], positions: list[int]
    ) -> None:
        self.f = f
        self.args = args
        self.arguments = call.arguments
        self.positions = positions
        self.leaves = [leaf for argument in call.arguments for leaf in argument.leaves]
        self.x = np.concatenate([np.empty(0), *[np.ravel(leaf.value) for leaf in self.leaves]])
        self.names = [
            name
            for position, argument in zip(positions, call.arguments, strict=True)
            for name in _names(
                f"argument {position}",
                argument.tree,
                [leaf.value.shape for leaf in argument.leaves],
            )
        ]
        self.tracked = False

    def __call__(self, x: Any) -> Any:
        """Return the outputs at `x`, real or complex.

        A function that does not take plain numbers (it asks for ``x.value``, say) is given tracked
        ones.
        """
        outer = recorder.enter(detached=True)  # for tg.zeros and the like
        try:
            with np.errstate(all="ignore"):
                if not self.tracked:
                    try:
                        return self._evaluate(x.copy())
                    except (AttributeError, TypeError):
                        if x.dtype.kind == "c":
                            raise
                        self.tracked = True
                return self._evaluate(x)
        finally:
            recorder.leave(outer)

    def along(self, j: int) -> Callable[[float], Floats]:
        """Return the function of input `j` alone."""

        def moved(t: float) -> Floats:
            x = self.x.copy()
            x[j] = t
            result: Floats = self(x)
            return result

        return moved

    def _evaluate(self, x: Any) -> Any:
        args = list(self.args)
        start = 0
        for position, argument in zip(self.positions, self.arguments, strict=True):
            parts = []
            for leaf in argument.leaves:
                part = x[start : start + leaf.value.size].reshape(leaf.value.shape)
                parts.append(array(part, requires_grad=False) if self.tracked else part[()])
                start += leaf.value.size
            args[position] = argument.build(parts)
        outputs, _ = trees.flatten(self.f(*args))
        return np.concatenate([np.empty(0), *[np.ravel(_value(output)) for output in outputs]])


def _value(output: Any) -> Any:
    value = np.asarray(output.value if isinstance(output, Tracked) else output)  # type: ignore[attr-defined]
    if value.dtype.kind not in "biufc":
        raise TypeError(
            f"check_gradients needs a function that returns numbers and arrays, not "
            f"{type(output).__name__}{at_caller()}"
        )
    return value


def _names(what: str, tree: trees.TreeDef, shapes: Any) -> Iterator[str]:
    """Yield what each number of a structure of arrays is called, as one would write it."""
    for path, shape in zip(trees.paths(tree), shapes, strict=True):
        for index in np.ndindex(*shape):
            yield what + path + (f"[{', '.join(map(str, index))}]" if index else "")


def _largest(errors: Floats) -> float:
    return float(np.max(errors, initial=0.0, where=np.isfinite(errors)))


def _explanation(faults: list[Fault]) -> str:
    if faults:
        return "\n".join(f"at fault: {fault!r}" for fault in faults)
    return (
        "No operation is at fault.  Likely reasons: a value that left the recording by .value, "
        ".item() or tg.stop_gradient; a kink or a jump close by; an infinite derivative times 0, "
        "as in sqrt(x * x) at 0; a function whose values are too noisy for differences, or that "
        "answers differently when it is called again."
    )
