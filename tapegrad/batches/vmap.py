"""`tg.vmap`: a function of one sample as a function of many.

On plain arrays it is a batch of the programs that the function is recorded as
(`tapegrad.batches.runs`).

Within a derivative, at tracked arguments, the samples become a part of what is being recorded. The
function is recorded once, by itself, and its instructions are appended with an array in the place
of each number, one element a sample: so the sweeps of the enclosing derivative run over lanes, too.
Samples that decide otherwise are recorded by themselves. Where that is not possible (long programs,
structural operations that are not taken apart, functions that use values of the enclosing
derivative), the function is called for one sample after another.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import recording, trees
from ..errors import EnclosedError, at_caller
from ..programs.function import FunctionOfPrograms
from ..programs.program import Program
from ..progress import wanted
from ..recording import FLOAT64
from ..storage import Tracked, TrackedArray
from ..tape import recorder
from ..transforms.adjoint import call
from ..transforms.call import check_function
from .runs import WAYS, Batch, Task
from .samples import Axes, Samples, spread
from .unroll import Unrolled, can_unroll


class Vmap:
    """What `vmap` returns: call it with arguments that have an axis of samples.

    Attributes
    ----------
    paths : int
        How many ways through the code the samples of the last call took.
    """

    def __init__(
        self, f: Callable[..., Any], in_axes: Axes = 0, out_axes: Axes = 0, progress: bool = False
    ) -> None:
        check_function(f)
        functools.update_wrapper(self, f)
        self._f = f
        self._in_axes, self._out_axes = in_axes, out_axes
        self._progress = progress
        self._ways = FunctionOfPrograms(f, compared=sys.maxsize, most=WAYS)
        self.paths = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the results of all samples."""
        samples = Samples(args, kwargs, self._in_axes)
        if recorder.tape.detached:
            samples.detach()
        found = None if samples.tracked else self._plain(samples)
        if found is None:
            found = self._tracked(samples)
        return moved(found, self._out_axes)

    def to(self, where: Any, stream: Any = None) -> Any:
        """Return the function of many samples on a device; see `Program.to`.

        Returns
        -------
        DeviceVmap
            It is called like this one; see `tapegrad.devices.functions.DeviceVmap`.

        Raises
        ------
        DeviceUnavailable
            If there is no such device; `vmap` still works on the CPU.
        """
        if where == "cpu":
            return self
        from ..devices.functions import DeviceVmap
        from ..devices.programs import device_named

        device = device_named(where, stream)
        return DeviceVmap(self._ways, self._in_axes, self._out_axes, device)

    def _plain(self, samples: Samples) -> Any:
        """Return plain results; None where the function uses tracked values from elsewhere."""
        try:
            root = self._ways.way(*samples.sample(0))
            if uses_tracked(root.program):
                return None
            batch = Batch(samples, Task("value"), self._ways, None)
            found = batch.run(self._progress or wanted())
        except EnclosedError:
            return None
        self.paths = batch.paths
        return found

    # -- within a derivative -----------------------------------------------------------------------

    def _tracked(self, samples: Samples) -> Any:
        """Append all samples to what is being recorded."""
        ways: set[int] = set()
        waiting, order, found = [np.arange(samples.n)], [], []
        while waiting:
            indices = waiting.pop()
            which, results = self._some(samples, indices, ways)
            order.append(indices[which])
            found.append(results)
            rest = np.delete(indices, which)
            if rest.size:
                waiting.append(rest)
        self.paths = len(ways)
        if len(found) == 1:
            return found[0]
        back = np.argsort(np.concatenate(order))
        return _joined(found, lambda column: np.concatenate(column)[back])

    def _some(self, samples: Samples, indices: Any, ways: set[int]) -> tuple[Any, Any]:
        """Record results for those of some samples that go the way of the first of them."""
        args, kwargs = samples.sample(int(indices[0]))
        try:
            program = self._ways.record(args, kwargs)
        except EnclosedError:
            return self._called(samples, indices, ways)
        if (
            uses_tracked(program)
            or samples.fixed
            or program.decisions.by_functions
            or not can_unroll(program.tape)
        ):
            return self._called(samples, indices, ways)
        arrays = _Arrays(samples, indices, program)
        which = arrays.agreeing()
        if (
            not which.size or which[0] != 0
        ):  # the first does not agree with itself, to the last digit
            return self._called(samples, indices[:1], ways)
        if which.size < indices.size:
            arrays = _Arrays(samples, indices[which], program)
        ways.add(program.decisions.key)
        return which, arrays.results()

    def _called(self, samples: Samples, indices: Any, ways: set[int]) -> tuple[Any, Any]:
        """Call the function for each of some samples."""
        found = []
        for i in indices.tolist():
            args, kwargs = samples.sample(i)
            found.append(self._f(*args, **kwargs))
            ways.add(-1 - i)  # nobody knows: each may be a way of its own
        return np.arange(indices.size), _joined(found, np.stack)


def uses_tracked(program: Program) -> bool:
    """Whether the recorded function used tracked values from elsewhere than its arguments."""
    own = {id(known.leaf) for known in program.inputs if known is not None}
    return any(
        entry.source is not None
        or (entry.leaf is not None and id(entry.leaf) not in own and entry.leaf.requires_grad)
        for entry in program.tape.imports
    )


class _Arrays:
    """A program whose numbers are arrays, one element a sample, on the current tape.

    It is a target of `tapegrad.batches.unroll`: values are tracked arrays, tracked scalars that all
    samples share, and floats.
    """

    def __init__(self, samples: Samples, indices: Any, program: Program) -> None:
        self._program = program
        self._n = indices.size
        places, self._inputs = [], []
        for i, known in enumerate(program.inputs):
            if known is None:
                continue
            part, mapped = samples.parts[i], samples.mapped[i]
            if mapped and self._n < samples.n:
                part = part[indices]
            shape = (self._n, known.size) if mapped else (known.size,)
            self._inputs.append((mapped, _on_tape(part).reshape(shape)))
            places.append((known.cell, known.size))
        self._cells = Unrolled(program.tape, places, self._given, self)

    def _given(self, number: int, element: int) -> Any:
        mapped, values = self._inputs[number]
        return values[:, element] if mapped else values[element]

    def constant(self, value: float) -> Any:
        """Return a number."""
        return value

    def op(self, row: str, *values: Any) -> Any:
        """Record a row of the table, or compute it."""
        found = call(row, *values)
        if isinstance(found, TrackedArray):
            found.dtype = FLOAT64  # numbers of a tape are of one kind: no promotion here
        return found

    def extremum(self, row: str, values: Sequence[Any]) -> Any:
        """Record the extreme of each sample's numbers, which share its adjoint where they tie."""
        columns = [np.broadcast_to(value, (self._n,)) for value in values]
        return (np.max if row == "max" else np.min)(np.stack(columns), axis=0)

    def agreeing(self) -> Any:
        """Return which samples decide as the program did."""
        agree = np.ones(self._n, np.bool_)
        cells, expected = self._program.decisions.looks()
        pairs = dict.fromkeys(zip(cells.tolist(), expected.tolist(), strict=True))
        for cell, outcome in pairs:
            value = self._cells.value(cell)
            seen = value.value if isinstance(value, Tracked) else value  # type: ignore[attr-defined]
            agree &= (seen == outcome) | (np.isnan(seen) & np.isnan(outcome))
        return np.flatnonzero(agree)

    def results(self) -> Any:
        """Return the program's result, samples first."""
        found = []
        for output in self._program.outputs:
            shape = (self._n, *output.shape)
            if output.cells is None:
                found.append(np.broadcast_to(output.constant, shape).copy())
                continue
            columns = [self._column(cell) for cell in output.flat_cells().tolist()]
            whole = np.stack(columns, axis=1) if columns else np.zeros((self._n, 0))
            whole = whole.reshape(shape)
            found.append(whole if output.dtype == FLOAT64 else whole.astype(output.dtype))
        return trees.unflatten(self._program.out_tree, found)

    def _column(self, cell: int) -> Any:
        value = self._cells.value(cell)
        return np.broadcast_to(value, (self._n,))


def _on_tape(x: Any) -> Any:
    """Return an argument as a tracked array of float64."""
    if isinstance(x, Tracked):
        x = x.reshape(-1)  # type: ignore[attr-defined]
        if x.dtype == FLOAT64:
            return x
        return recording.array(x.storage, x.window)
    values = np.ascontiguousarray(x, np.float64)
    recorder.current().captures(x)
    entry = recorder.current().push_input(values)
    return recording.run(recorder.tape, entry.cell, (values.size,))


def _joined(found: Sequence[Any], join: Callable[..., Any]) -> Any:
    """Return results of samples, or of groups of them, joined part by part."""
    parts, structures = zip(*[trees.flatten(one) for one in found], strict=True)
    tree = structures[0]
    for other in structures:
        if other != tree:
            raise ValueError(
                f"samples have results of different form: {tree!r} and {other!r}{at_caller()}"
            )
    return trees.unflatten(tree, [join(column) for column in zip(*parts, strict=True)])


def moved(found: Any, out_axes: Axes) -> Any:
    """Put the axis of samples where it is wanted."""
    if out_axes == 0 and not isinstance(out_axes, bool):
        return found
    parts, tree = trees.flatten(found)
    moved = []
    for part, axis in zip(parts, spread(out_axes, tree, "out_axes"), strict=True):
        ndim = len(part.shape)
        if axis is None or not -ndim <= axis < ndim:
            raise ValueError(
                f"out_axes says {axis}, and a result has {ndim} axes with that of the samples: "
                f"give an integer from {-ndim} to {ndim - 1}{at_caller()}"
            )
        moved.append(np.moveaxis(part, 0, axis))
    return trees.unflatten(tree, moved)


def vmap(
    f: Callable[..., Any], in_axes: Axes = 0, out_axes: Axes = 0, *, progress: bool = False
) -> Vmap:
    """Return a function that computes `f` for many samples at once.

    Parameters
    ----------
    f : callable
        A function of one sample, computed with NumPy.  It may be a derivative (``tg.grad(g)``), or
        `vmap` of another function.  It is recorded once for each kind of argument, and for each way
        through its code that samples take, as by `tapegrad.function`; and once more where numbers
        or arrays that it uses have changed.
    in_axes : int, None or tuple, optional
        Where the samples of each positional argument lie; None for what all of them share.  For a
        dict, list or tuple the answer may follow its structure.  Keyword arguments have their
        samples first.  Integers, strings and whatever else is no array are shared.
    out_axes : int or structure of int, optional
        Where results are to have their axis of samples.
    progress : bool, optional
        Show a bar of samples (needs ``tqdm``).

    Returns
    -------
    Vmap
        A callable.  Its attribute ``paths`` says how many ways the samples of the last call took.

    Raises
    ------
    ValueError
        When called with a ragged batch, one of no samples, or axes that are not there.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> distance = lambda x, y: np.sqrt(np.sum((x - y) ** 2))
    >>> X = np.array([[0.0, 0.0], [6.0, 8.0]])
    >>> tg.vmap(distance, in_axes=(0, None))(X, np.array([3.0, 4.0]))
    array([5., 5.])
    >>> tg.vmap(tg.grad(distance), in_axes=(0, None))(X, np.array([3.0, 4.0]))
    array([[-0.6, -0.8],
           [ 0.6,  0.8]])
    """
    return Vmap(f, in_axes, out_axes, progress)
