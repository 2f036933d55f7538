"""`Call`: one recorded call of a function, and sweeps from its output.

What every transform is made of: it gives the function tracked arguments, keeps its output, and
sweeps backward.  Within another derivative, or at a tracked argument, the call is recorded on the
current tape, and the backward sweep too (`tapegrad.transforms.adjoint`), so that it can be
differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import backward, recording, trees
from ..errors import at_caller
from ..recording import FLOAT32, FLOAT64
from ..storage import Floats, Leaf, Tracked
from ..tape import Recording, Tape, check_usable, recorder
from .adjoint import RecordedSweep, Stretch, flat_cells, pinned

Function = Callable[..., Any]


class Replayed:
    """What has recordings of its own, which gradients are taken of: programs, and `tg.function`."""

    def plain_gradient(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], argnums: int | Sequence[int]
    ) -> tuple[Any, Any] | None:
        """Return value and gradient at plain arguments; None where a call has to be recorded.

        That is so where an argument is tracked, or one to differentiate is no floating-point
        number or array, or the result is not a single number.
        """
        raise NotImplementedError


def is_recorded_inside() -> bool:
    """Whether a derivative that is taken here is a part of what is being recorded."""
    tape = recorder.tape
    return bool(tape.pinned or (recorder.recordings and not tape.detached))


def are_plain(args: tuple[Any, ...], kwargs: dict[str, Any], positions: Sequence[int]) -> bool:
    """Whether no argument is tracked, and those at `positions` are all floating-point numbers."""
    for i, arg in enumerate(args):
        if not _is_plain(arg) and not _holds_plain(arg, i in positions):
            return False
    return not kwargs or _holds_plain(kwargs, False)


def _is_plain(x: Any) -> bool:
    """Whether this is a number, an array or a list of numbers that derivatives are of."""
    kind = type(x)
    if kind is np.ndarray:
        return bool(x.dtype == FLOAT64 or x.dtype == FLOAT32)
    if kind is list:
        return trees.is_numeric_list(x) and np.asarray(x).dtype == FLOAT64
    return kind is float or kind is np.float64 or kind is np.float32


def _holds_plain(x: Any, numbers: bool) -> bool:
    """Whether nothing in a structure is tracked, and all are such numbers, if those are wanted."""
    others = [y for y in trees.flatten(x, trees.is_numeric_list)[0] if not _is_plain(y)]
    return not (numbers and others) and not any([isinstance(y, Tracked) for y in others])


class Call:
    """One recorded call of a function: its output, and sweeps from it."""

    def __init__(
        self,
        f: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        argnums: int | Sequence[int],
        has_aux: bool = False,
        again: bool = False,
        lend: bool = False,
    ) -> None:
        check_function(f)
        positions = positions_of(argnums, len(args))
        self.single = type(argnums) is int or not isinstance(argnums, Sequence)
        self.arguments = [Argument(args[i], i, lend) for i in positions]
        self.recording = Recording()
        self.stretch: Stretch | None = None
        self.aux: Any = None
        self._places: dict[int, tuple[Tape | None, Any]] = {}
        self.tracked = any(isinstance(x.value, Tracked) for a in self.arguments for x in a.leaves)
        if self.tracked or is_recorded_inside():
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
                self.aux = trees.map(plain_value, self.aux)
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
            self.aux = trees.map(plain_value, self.aux)
        else:
            self.tracked = True

    def plain(self, output: Any) -> Any:
        """Return an output for the caller: tracked only if an enclosing derivative needs it."""
        return output if self.tracked else plain_value(output)

    def scalar_output(self) -> Any:
        """Return the output, which must be a single number."""
        output = self.output
        if is_real(output) and np.size(output) == 1:
            return output
        raise TypeError(
            "tg.grad needs a function that returns a single number, but this one returned "
            f"{described(output)}; use tg.jacobian, tg.vjp, or return its sum{at_caller()}"
        )

    def sweep(self, output: Any, cotangent: Any, values: bool = True) -> dict[int, Any]:
        """Return the cotangents of the arguments' leaves, by id, for one output.

        `values` says whether values of outputs are going to be looked at.
        """
        totals: dict[int, Any] = {}
        if not isinstance(output, Tracked):
            return totals  # a plain number does not depend on the arguments
        if self.stretch is not None or isinstance(cotangent, Tracked):
            return self._sweep_inside(output, cotangent)
        tape, cells = backward.place_of(output)
        for entry, adjoint in backward.sweep(
            tape, cells, cotangent.ravel(), recording=self.recording, values=values
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


class Argument:
    """One differentiated argument: its structure, and a leaf for each array or number in it.

    Arrays are copied, or borrowed where the caller lends them, and sweeps before it returns them.
    """

    def __init__(self, value: Any, position: int, lend: bool = False) -> None:
        leaves, self.tree = trees.flatten(value, is_leaf=trees.is_numeric_list)
        self.lend = lend
        self.leaves = [
            Leaf(as_real(leaf, f"argument {position}{name}", copy=not lend), True)
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
            entry = tape.push_input(leaf.value, self.lend)
            entry.leaf = leaf
            dtype = FLOAT32 if leaf.value.dtype == FLOAT32 else FLOAT64
            values.append(recording.run(tape, entry.cell, leaf.value.shape, dtype))
        return self.build(values)

    def build(self, values: Sequence[Any]) -> Any:
        """Return values, one a leaf, in the argument's structure."""
        return trees.unflatten(self.tree, values)

    def cotangents(self, found: dict[int, Floats]) -> Any:
        """Return the argument's cotangent, in its structure and dtypes."""
        return self.build([cotangent_like(found.get(id(leaf)), leaf.value) for leaf in self.leaves])


# -- arguments and outputs ------------------------------------------------------------------------


def as_real(value: Any, name: str, *, copy: bool = True) -> Any:
    """Return an argument as the real ndarray that derivatives are taken with respect to.

    It is the caller's array itself only without `copy`, and if that is in C order.
    """
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
    if not values.dtype.isnative:  # as files of other machines have them
        values = values.astype(values.dtype.newbyteorder("="))
    if values.dtype not in (FLOAT64, FLOAT32):
        raise TypeError(
            f"{name} is {type(value).__name__} of dtype {values.dtype}, which has no derivative; "
            f"choose the arguments to differentiate by argnums{at_caller()}"
        )
    if copy or not values.flags.c_contiguous:
        return np.array(values, order="C")
    return values


def _fresh(value: Any) -> Any:
    """Record the identity of a value: cells that nothing else refers to."""
    if isinstance(value, Tracked):
        return recording.elementwise("positive", value)
    entry = recorder.tape.push_input(value)
    dtype = FLOAT32 if value.dtype == FLOAT32 else FLOAT64
    return recording.run(recorder.tape, entry.cell, value.shape, dtype)


def cotangent_like(total: Any, like: Any) -> Any:
    """Return a cotangent as a new, contiguous, writable ndarray, or a float for no axes.

    A tracked cotangent stays tracked.
    """
    if isinstance(total, Tracked):
        shaped = total.reshape(like.shape)  # type: ignore[attr-defined]
        return shaped.astype(FLOAT32) if like.dtype == FLOAT32 else shaped
    if total is None:
        result = np.zeros(like.shape, like.dtype)
    else:
        # A sweep's adjoints are nobody else's.
        result = np.asarray(total.reshape(like.shape), like.dtype)
    return float_for_no_axes(result)


def is_real(x: Any) -> bool:
    """Whether an output is one array, or number, that has a derivative or is a constant."""
    if isinstance(x, Tracked):
        return recording.dtype_of(x).kind == "f"
    if isinstance(x, (int, float, np.number, np.ndarray)) and not isinstance(x, bool):
        return np.asarray(x).dtype.kind in "fiu"
    return False


def described(output: Any) -> str:
    """Say what kind of thing a function has returned."""
    if isinstance(output, (Tracked, np.ndarray)):
        return f"an array of dtype {output.dtype} and shape {output.shape}"  # type: ignore[union-attr]
    return "None" if output is None else f"a {type(output).__name__}"


def plain_value(x: Any) -> Any:
    """Return a tracked value without its recording, anything else as it is."""
    return plain_number(x) if isinstance(x, Tracked) else x


def plain_number(x: Any) -> Any:
    """Return a value without its recording: a writable ndarray, or a number for no axes."""
    return float_for_no_axes(np.array(x.value if isinstance(x, Tracked) else x))  # type: ignore[attr-defined]


def check_seed(cotangent: Any, shape: tuple[int, ...]) -> Any:
    """Return a cotangent of an output, which may be tracked, checked."""
    if not isinstance(cotangent, Tracked):
        return backward.check_cotangent(cotangent, shape)
    if recording.dtype_of(cotangent).kind != "f" or recording.shape_of(cotangent) != shape:
        raise ValueError(
            f"the cotangent is {described(cotangent)}, but the output has shape {shape}"
            f"{at_caller()}"
        )
    return cotangent


def float_for_no_axes(x: Any) -> Any:
    """Return an array, or the number that an array without axes is."""
    if x.ndim:
        return x
    return float(x) if x.dtype == FLOAT64 else x[()]


def _pair(output: Any) -> tuple[Any, Any]:
    if not isinstance(output, tuple) or len(output) != 2:
        raise TypeError(
            f"with has_aux=True the function must return a pair (output, aux){at_caller()}"
        )
    return output


def positions_of(argnums: int | Sequence[int], count: int) -> list[int]:
    """Return the positions, from 0, that `argnums` names among `count` positional arguments.

    Raises
    ------
    TypeError, ValueError
        If they are no integers, out of range, or repeated.
    """
    if type(argnums) is int and 0 <= argnums < count:
        return [argnums]
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


def check_function(f: Any) -> None:
    """Raise unless `f` can be called, and recorded."""
    if not callable(f):
        raise TypeError(f"expected a function, got {type(f).__name__}{at_caller()}")
    if hasattr(f, "py_func") and hasattr(f, "signatures"):
        raise NotImplementedError(
            "derivatives of Numba-compiled functions are not implemented yet; pass the Python "
            f"function, f.py_func{at_caller()}"
        )
