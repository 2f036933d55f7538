"""Programs on a CUDA device: batches of samples, as `tapegrad.batches.runs` runs them on the CPU.

The regions are those of `tapegrad.batches.lanes`. Arrays on the device are read where they lie, and
results stay there; arrays of the host are copied over in parts, and results come back to the host.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, cast

import numpy as np

from .. import trees
from ..batches.lanes import Lanes
from ..batches.runs import Map, Task, at_sample
from ..batches.samples import axes_of_arguments, in_lists
from ..decisions import Decision
from ..errors import ControlFlowChanged, at_caller
from ..programs.ports import argument_name
from ..programs.program import Program
from ..storage import Tracked
from .arrays import DeviceArray
from .device import Device
from .work import copy

PART = 1 << 22
"""Samples that are copied to the device at a time, at most."""

WAITING = 256 << 20
"""Bytes of what waits between the regions of a long program, at most."""


class DeviceMap:
    """`DeviceProgram.map`: the program run over many samples on a device.

    Attributes
    ----------
    paths : int
        How many ways through the code the samples of the last batch took.
    """

    def __init__(self, program: Program, device: Device) -> None:
        self._program, self._device = program, device
        self.paths = 0

    def __call__(self, *args: Any, in_axes: Any = 0, **kwargs: Any) -> Any:
        """Return the values of many samples.

        Parameters
        ----------
        *args, **kwargs
            The program's arguments, as `Program.map` takes them: arrays of the host, or arrays on
            the device of any library that has ``__cuda_array_interface__`` or DLPack. An array on
            the device has its samples along the first axis, and is float64 or float32, all alike.
        in_axes : int, None or tuple, optional
            Where the axis of samples is; see `Program.map`.

        Returns
        -------
        DeviceArray, or structure of DeviceArray
            In the dtype of the arguments, if one of them is on the device. The device may still be
            computing it: other libraries that take it, and its ``numpy()``, wait.
        ndarray, or structure of ndarray
            If all arguments are on the host.

        Raises
        ------
        MixedDevicesError
            If an array is on another device.
        ValueError
            For a ragged batch, one of no samples, or a wrong `in_axes`.
        MemoryError
            If results do not fit into the device's memory.
        """
        return self._run(Task("value"), args, kwargs, in_axes)

    def value_and_grad(self, *args: Any, argnums: int | Sequence[int] = 0, **options: Any) -> Any:
        """Return values and gradients of many samples."""
        return self._of("value_and_grad", argnums, args, options)

    def grad(self, *args: Any, argnums: int | Sequence[int] = 0, **options: Any) -> Any:
        """Return gradients of many samples."""
        return self._of("grad", argnums, args, options)

    def jacobian(self, *args: Any, argnums: int | Sequence[int] = 0, **options: Any) -> Any:
        """Return Jacobians of many samples."""
        return self._of("jacobian", argnums, args, options)

    def hessian(self, *args: Any, argnums: int = 0, **options: Any) -> Any:
        """Return Hessians of many samples."""
        return self._of("hessian", argnums, args, options)

    def hvp(self, *args: Any, argnums: int = 0, **options: Any) -> Any:
        """Return products of Hessians and vectors, the last argument."""
        return self._of("hvp", argnums, args, options)

    def _of(self, name: str, argnums: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        in_axes = options.pop("in_axes", 0)
        return self._run(Task(name, argnums), args, options, in_axes)

    def _run(self, task: Task, args: tuple[Any, ...], kwargs: dict[str, Any], in_axes: Any) -> Any:
        samples = Samples(self._device, args, kwargs, in_axes)
        program, here = self._programs(samples, task)
        lanes = task.lanes(program, samples.n)
        batch: _Batch | _OneByOne
        if lanes is None:
            batch = _OneByOne(samples, program, here, task)
        else:
            batch = _Batch(samples, program, here, task, lanes)
        found = batch.run()
        self.paths = batch.paths
        return found

    def _programs(self, samples: Samples, task: Task) -> tuple[Program, Map]:
        """Return the program for the device, and what runs samples of other ways on the CPU."""
        return self._program, self._program.map


class Samples:
    """The arguments of a batch, samples in front where they have any.

    Attributes
    ----------
    tree : TreeDef
        The structure of the arguments.
    names, axes, parts : list
        Of each part of them: what users call it, where its samples lie (None for what they share),
        and the part itself: an array of the device, one of the host, or anything else.
    n : int
        Number of samples.
    """

    def __init__(
        self, device: Device, args: tuple[Any, ...], kwargs: dict[str, Any], in_axes: Any
    ) -> None:
        self.device = device
        found, self.tree = trees.flatten((args, kwargs), trees.is_numeric_list)
        axes = axes_of_arguments(in_axes, self.tree)
        self.names = [argument_name(path) for path in trees.paths(self.tree)]
        self.axes = [
            None if axis is None or _is_shared(x) else axis
            for x, axis in zip(found, axes, strict=True)
        ]
        self.given = found
        self._in_list = in_lists(self.tree)
        self.parts = [
            self._leading(x, axis, name)
            for x, axis, name in zip(found, self.axes, self.names, strict=True)
        ]

    def _leading(self, x: Any, axis: int | None, name: str) -> Any:
        """Return an argument with its samples in front: a device array, or one of the host."""
        if axis is not None and not -np.ndim(x) <= axis < np.ndim(x):
            raise ValueError(
                f"{name} has {np.ndim(x)} axes, but in_axes says that samples lie along axis "
                f"{axis}; give in_axes=None for what all samples share{at_caller()}"
            )
        if isinstance(x, Tracked):
            raise TypeError(f"{name} is a tracked value; map takes plain arrays{at_caller()}")
        if isinstance(x, (np.ndarray, np.generic, list, float)):
            host = np.asarray(x, np.float64) if isinstance(x, (list, float)) else np.asarray(x)
            return host if axis is None else np.moveaxis(host, axis, 0)
        if not hasattr(x, "__cuda_array_interface__") and not hasattr(x, "__dlpack__"):
            return x  # something that is no number, which all samples share
        shown = self.device.view(x)
        if axis is not None and axis % len(shown.shape):
            raise ValueError(
                f"{name} is on the device, where samples lie along the first axis: make a "
                f"contiguous copy with them there{at_caller()}"
            )
        return shown

    @functools.cached_property
    def n(self) -> int:
        """Return the number of samples.

        Raises
        ------
        ValueError
            If there are none, no part has any, or parts have not as many.
        """
        lengths = {
            name: int(part.shape[0])
            for name, part, axis in zip(self.names, self.parts, self.axes, strict=True)
            if axis is not None
        }
        if not lengths:
            raise ValueError(f"no argument has an axis of samples{at_caller()}")
        (first, n), *others = lengths.items()
        for name, other in others:
            if other != n:
                raise ValueError(
                    f"a ragged batch: {first} has {n} samples and {name} has {other}; give "
                    f"in_axes=None for what all samples share{at_caller()}"
                )
        if not n:
            raise ValueError(f"a batch of no samples: {first} has none{at_caller()}")
        return n

    def sample(self, i: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of one sample."""
        leaves = []
        for part, axis, in_list in zip(self.parts, self.axes, self._in_list, strict=True):
            if axis is None:
                leaves.append(part)
            elif isinstance(part, DeviceArray):
                shape = part.shape[1:]
                leaves.append(part.after(i * prod(shape), prod(shape)).reshape(*shape))
            else:  # numbers in a list stay apart, as in `tapegrad.batches.samples`
                leaves.append(np.asarray(part[i]) if in_list else part[i])
        args, kwargs = trees.unflatten(self.tree, leaves)
        return tuple(args), kwargs

    def elsewhere(self, here: Map, task: Task, which: Any) -> Any:
        """Return the results of some samples from the CPU, which may record their way."""
        chosen = []
        for part, axis in zip(self.parts, self.axes, strict=True):
            host = part.numpy() if isinstance(part, DeviceArray) else part
            chosen.append(host if axis is None else np.asarray(host[which], np.float64))
        args, kwargs = trees.unflatten(self.tree, chosen)
        where, _ = trees.unflatten(self.tree, [None if axis is None else 0 for axis in self.axes])
        options = {**kwargs, "in_axes": tuple(where)}
        try:
            if task.name == "value":
                return here(*args, **options)
            return getattr(here, task.name)(*args, argnums=task.argnums, **options)
        except ControlFlowChanged as error:
            if error.sample is None:
                raise
            changed = cast(Decision, error.decision).changed(error.outcome)
            changed.number = error.number
            raise at_sample(int(which[error.sample]), changed) from None


class _Batch:
    """One run over samples on a device.

    Parameters
    ----------
    lanes : Lanes
        What computes the task.
    """

    def __init__(
        self, samples: Samples, program: Program, here: Map, task: Task, lanes: Lanes
    ) -> None:
        self.samples, self.device = samples, samples.device
        self.program, self.here, self.task, self.lanes = program, here, task, lanes
        self.paths = 0
        self.axes, self.parts = samples.axes, samples.parts
        self._expect()
        self.on_device = any(isinstance(self.parts[i], DeviceArray) for i in lanes.numbers)
        self.n = samples.n
        self.real = self._common_dtype()

    def _expect(self) -> None:
        """Raise unless arguments fit the program; those that have samples by a sample's shape."""
        program = self.lanes.program
        args, kwargs = program.example()
        known, tree = trees.flatten((args, kwargs), trees.is_numeric_list)
        if tree != self.samples.tree:
            given = trees.unflatten(self.samples.tree, self.samples.given)
            program.check_arguments(*given)  # says what is wrong
        merged = list(self.samples.given)
        for i, shape in zip(self.lanes.numbers, self.lanes.input_shapes, strict=True):
            merged[i] = known[i]
            mapped = self.axes[i] is not None
            own = tuple(np.shape(self.parts[i]) if not mapped else self.parts[i].shape[1:])
            if own != tuple(shape):
                name = self.samples.names[i]
                raise ValueError(
                    f"{name} has samples of shape {own}, and the program was recorded with "
                    f"{tuple(shape)}{at_caller()}"
                )
        args, kwargs = trees.unflatten(self.samples.tree, merged)
        program.check_arguments(tuple(args), kwargs)

    def _common_dtype(self) -> np.dtype[Any]:
        parts = [self.parts[i] for i in self.lanes.numbers]
        found = {part.dtype for part in parts if isinstance(part, DeviceArray)}
        if len(found) > 1 or any(dtype.kind != "f" for dtype in found):
            raise TypeError(
                f"arrays on the device are float64 or float32, all alike, not "
                f"{' and '.join(sorted(map(str, found)))}{at_caller()}"
            )
        return found.pop() if found else np.dtype(np.float64)

    # -- running -----------------------------------------------------------------------------------

    def run(self) -> Any:
        """Return the results, samples along the first axis."""
        lanes, n, itemsize = self.lanes, self.n, self.real.itemsize
        agreement = np.ones(n, np.bool_)
        most = n if self.on_device else PART
        if lanes.waiting:  # between the regions of a long program
            most = min(most, max(WAITING // (itemsize * lanes.waiting), 1))
        found: list[Any]
        if self.on_device:
            found = self._results(n)
            agrees = self.device.empty(n, self.real) if lanes.decided else None

            def there(start: int, stop: int) -> None:
                self._compute(start, stop, found, agrees, start)

            in_parts(n, there, most)
            if agrees is not None:
                agreement = agrees.numpy() != 0.0
        else:
            found = [
                np.empty((n, *shape), dtype)
                for shape, dtype in zip(lanes.shapes, lanes.dtypes, strict=True)
            ]

            def here(start: int, stop: int) -> None:
                results = self._results(stop - start)
                agrees = self.device.empty(stop - start, self.real) if lanes.decided else None
                self._compute(start, stop, results, agrees, 0)
                for target, result in zip(found, results, strict=True):
                    target[start:stop] = result.numpy()
                if agrees is not None:
                    agreement[start:stop] = agrees.numpy() != 0.0

            in_parts(n, here, most)
        self.paths = int(agreement.any())
        if not agreement.all():
            self._elsewhere(found, np.flatnonzero(~agreement))
        return trees.unflatten(lanes.tree, found)

    def _results(self, m: int) -> list[DeviceArray]:
        """Return arrays for the results of some samples; those that are constant hold them."""
        results = []
        for shape, constant in zip(self.lanes.shapes, self.lanes.constants, strict=True):
            if constant is None:
                results.append(self.device.empty((m, *shape), self.real))
            else:
                full = np.broadcast_to(np.asarray(constant, self.real), (m, *shape))
                results.append(self.device.put(full))
        return results

    def _compute(
        self, start: int, stop: int, results: list[DeviceArray], agrees: Any, first: int
    ) -> None:
        """Compute some samples.

        Parameters
        ----------
        start, stop : int
            Which of them.
        results : list of DeviceArray
            Where results go, those of the first of these samples at `first`.
        agrees : DeviceArray or None
            Where it goes whether samples take the program's way.
        """
        lanes, device, m = self.lanes, self.device, stop - start
        buffers: list[DeviceArray] = []
        layout: list[tuple[int, ...]] = []
        for i, shape in zip(lanes.numbers, lanes.input_shapes, strict=True):
            part, mapped = self.parts[i], self.axes[i] is not None
            size = prod(shape)
            if not isinstance(part, DeviceArray):
                part = device.put(np.asarray(part[start:stop] if mapped else part, self.real))
            elif mapped:
                part = part.after(start * size, m * size)
            steps = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
            buffers.append(part.reshape(part.size))
            layout.append((size if mapped else 0, *steps))
        strides: list[int] = []
        for result, shape, constant in zip(results, lanes.shapes, lanes.constants, strict=True):
            if constant is None:
                size = prod(shape)
                buffers += [result.after(first * size + j) for j in range(size)]
                strides += [size] * size
        if agrees is not None:
            buffers.append(agrees.after(first))
            strides.append(1)
        if not strides:
            return
        if lanes.waiting:
            buffers.append(device.empty(lanes.waiting * m, self.real))
        for region in lanes.regions(m, tuple(layout), strides):
            device.run(region, buffers)

    def _elsewhere(self, results: list[Any], which: Any) -> None:
        """Compute samples that take another way than the program on the CPU, which may record it.

        They are put in the places of what the device has computed for them.
        """
        found = self.samples.elsewhere(self.here, self.task, which)
        self.paths += self.here.paths
        for number, values in enumerate(trees.flatten_like(self.lanes.tree, found)):
            result = results[number]
            host = result.numpy() if isinstance(result, DeviceArray) else result
            host[which] = values
            if isinstance(result, DeviceArray):
                results[number] = self.device.put(host)


class _OneByOne:
    """A run, one sample after another: for programs that no region runs over samples."""

    def __init__(self, samples: Samples, program: Program, here: Map, task: Task) -> None:
        self.samples, self.program, self.here, self.task = samples, program, here, task
        self.paths = 0
        self.device = samples.device
        self._targets: list[Any] = []

    def run(self) -> Any:
        """Return the results, samples along the first axis."""
        tree: Any = None
        others = []
        for i in range(self.samples.n):
            args, kwargs = self.samples.sample(i)
            try:
                found = self._compute(args, kwargs)
            except ControlFlowChanged:
                others.append(i)
                continue
            leaves, tree = trees.flatten(found)
            self._keep(i, leaves)
        if others:
            found = self.samples.elsewhere(self.here, self.task, np.array(others))
            leaves, tree = trees.flatten(found)
            for place, i in enumerate(others):
                self._keep(i, [np.asarray(leaf[place]) for leaf in leaves])
            self.paths = self.here.paths
        self.paths += int(len(others) < self.samples.n)
        return trees.unflatten(tree, self._targets)

    def _compute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        program = self.program.to(self.device)
        if self.task.name == "value":
            return program(*args, **kwargs)
        return getattr(program, self.task.name)(*args, argnums=self.task.argnums, **kwargs)

    def _keep(self, i: int, leaves: list[Any]) -> None:
        """Put the parts of a result in their places."""
        if not self._targets:
            self._targets = [self._room_for(leaf) for leaf in leaves]
        for target, leaf in zip(self._targets, leaves, strict=True):
            if not isinstance(target, DeviceArray):
                target[i] = leaf
                continue
            size = prod(target.shape[1:])
            place = target.after(i * size, size)
            if isinstance(leaf, DeviceArray):
                copy(leaf, place)
            else:
                place.put(leaf)

    def _room_for(self, leaf: Any) -> Any:
        """Return an array for a part of all results: on the device, if an argument is there."""
        shape = (self.samples.n, *np.shape(leaf))
        for part in self.samples.parts:
            if isinstance(part, DeviceArray):
                return self.device.empty(shape, part.dtype)
        return np.empty(shape, np.asarray(leaf).dtype)


def _is_shared(x: Any) -> bool:
    """Whether a part is no array, and so the same for all samples: a string, an integer."""
    return not isinstance(x, (float, list)) and not hasattr(x, "ndim")


def in_parts(n: int, run: Callable[[int, int], None], most: int | None = None) -> None:
    """Call ``run(start, stop)`` over a batch, in halves where a device's memory does not suffice.

    Parameters
    ----------
    n : int
        Size of the batch.
    run : callable
        It may be called again for a part of what it ran out of memory for.
    most : int, optional
        Samples of a part, at most.

    Raises
    ------
    MemoryError
        If memory does not suffice for one sample.

    Examples
    --------
    >>> def run(start, stop):
    ...     if stop - start > 3:
    ...         raise MemoryError
    ...     print(start, stop)
    >>> in_parts(8, run)
    0 2
    2 4
    4 6
    6 8
    """
    size, start = min(n, most or n), 0
    while start < n:
        try:
            run(start, min(start + size, n))
            start += size
        except MemoryError:
            if size == 1:
                raise
            size = -(-size // 2)
