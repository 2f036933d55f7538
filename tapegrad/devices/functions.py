"""Functions on a CUDA device: `tg.function(f).to("cuda")` and `tg.vmap(f).to("cuda")`.

Programs are found, and recorded, as on the CPU; recording needs values, so what it is given is
copied to the host. Programs that are known run on the device, by `tapegrad.devices.programs` and
`tapegrad.devices.batches`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import trees
from ..batches.runs import Map, Task
from ..batches.samples import Axes
from ..batches.vmap import moved, uses_tracked
from ..errors import at_caller
from ..programs.function import FunctionOfPrograms, Given
from ..programs.program import Program
from ..storage import Tracked
from .arrays import DeviceArray
from .batches import DeviceMap, Samples
from .device import Device
from .programs import is_elsewhere


class DeviceFunction:
    """A function that keeps a program for each way, on a CUDA device.

    Its methods are those of `tapegrad.programs.function.FunctionOfPrograms`, and its arguments and
    results those of `tapegrad.devices.programs.DeviceProgram`.

    Attributes
    ----------
    function : FunctionOfPrograms
    device : Device
    map : DeviceMap
        The function over many samples.
    """

    def __init__(self, function: FunctionOfPrograms, device: Device) -> None:
        functools.update_wrapper(self, function)
        self.function, self.device = function, device
        self.map = FunctionMap(function, device)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program that takes the way of these arguments."""
        return self._run("__call__", args, kwargs)

    def value_and_grad(self, *args: Any, argnums: int | Sequence[int] = 0, **kwargs: Any) -> Any:
        """Return the value and the gradient."""
        return self._run("value_and_grad", args, kwargs, argnums=argnums)

    def grad(self, *args: Any, argnums: int | Sequence[int] = 0, **kwargs: Any) -> Any:
        """Return the gradient."""
        return self._run("grad", args, kwargs, argnums=argnums)

    def jacobian(self, *args: Any, argnums: int | Sequence[int] = 0, **kwargs: Any) -> Any:
        """Return the Jacobian."""
        return self._run("jacobian", args, kwargs, argnums=argnums)

    def hessian(self, *args: Any, argnums: int | Sequence[int] = 0, **kwargs: Any) -> Any:
        """Return the Hessian."""
        return self._run("hessian", args, kwargs, argnums=argnums)

    def hvp(self, *args: Any, argnums: int = 0, **kwargs: Any) -> Any:
        """Return the product of the Hessian and a vector, the last argument."""
        return self._use(
            args[:-1], kwargs, lambda program: program.hvp(*args, argnums=argnums, **kwargs)
        )

    def vjp(self, *args: Any, **kwargs: Any) -> Any:
        """Return the value and a function for vector-Jacobian products."""
        return self._run("vjp", args, kwargs)

    def jvp(self, primals: Sequence[Any], tangents: Sequence[Any], **kwargs: Any) -> Any:
        """Return the value and its derivative in one direction."""
        return self._use(
            tuple(primals), kwargs, lambda program: program.jvp(primals, tangents, **kwargs)
        )

    def _run(self, name: str, args: tuple[Any, ...], kwargs: Any, **options: Any) -> Any:
        return self._use(
            args, kwargs, lambda program: getattr(program, name)(*args, **options, **kwargs)
        )

    def _use(self, args: tuple[Any, ...], kwargs: dict[str, Any], use: Callable[[Any], Any]) -> Any:
        """Return ``use(program)`` for the program on the device that takes these arguments' way."""
        known, given = like(self.device, args, kwargs)
        return self.function.run(*known, lambda program: use(program.to(self.device)), given)


class FunctionMap(DeviceMap):
    """`DeviceFunction.map`: many samples, which begin with the program of the first of them."""

    def __init__(self, ways: FunctionOfPrograms, device: Device) -> None:
        self._ways, self._device = ways, device
        self.paths = 0

    def _programs(self, samples: Samples, task: Task) -> tuple[Program, Map]:
        for name, part, axis in zip(samples.names, samples.parts, samples.axes, strict=True):
            if axis is not None and part.dtype.kind != "f":
                raise TypeError(
                    f"{name} is an array of dtype {part.dtype} with an axis of samples: only "
                    f"floats are inputs of a program on a device{at_caller()}"
                )
        _ = samples.n  # raises where there are none
        args, kwargs = samples.sample(0)
        known, given = like(self._device, args[: len(args) - task.vectors], kwargs)
        program = self._ways.way(*known, given).program
        if uses_tracked(program):
            raise TypeError(
                "a function on a device uses no tracked values but its arguments, which are plain "
                f"arrays; inside of derivatives there is tg.vmap on the CPU{at_caller()}"
            )
        return program, self._ways.map


class DeviceVmap:
    """A function of many samples on a CUDA device; `Vmap.to` makes it.

    Arguments and results are those of `tapegrad.devices.batches.DeviceMap`: arrays on the device
    have their samples along the first axis, and so have results there.

    Attributes
    ----------
    device : Device
    paths : int
        How many ways through the code the samples of the last call took.
    """

    def __init__(
        self, ways: FunctionOfPrograms, in_axes: Axes, out_axes: Axes, device: Device
    ) -> None:
        functools.update_wrapper(self, ways)
        self.device = device
        self._in_axes, self._out_axes = in_axes, out_axes
        self._map = FunctionMap(ways, device)

    @property
    def paths(self) -> int:
        """Return how many ways through the code the samples of the last call took."""
        return self._map.paths

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the results of all samples."""
        found = self._map(*args, in_axes=self._in_axes, **kwargs)
        if self._out_axes == 0 and not isinstance(self._out_axes, bool):
            return found
        if any(isinstance(part, DeviceArray) for part in trees.flatten(found)[0]):
            raise ValueError(
                "results on a device have their samples along the first axis: leave out_axes out, "
                f"and move the axis there{at_caller()}"
            )
        return moved(found, self._out_axes)


def like(
    device: Device, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[tuple[Any, ...], dict[str, Any]], Given | None]:
    """Return arrays of the host that stand for those elsewhere, and how to copy these to it.

    Stand-ins have the shapes and dtypes of the arrays, and no memory.
    """
    leaves, tree = trees.flatten((args, kwargs), trees.is_numeric_list)
    if any(isinstance(leaf, Tracked) for leaf in leaves):
        raise TypeError(
            "a function on a device takes plain arrays; inside of derivatives use it on the CPU"
            f"{at_caller()}"
        )
    shown = [device.view(leaf) if is_elsewhere(leaf) else leaf for leaf in leaves]
    if not any(isinstance(part, DeviceArray) for part in shown):
        return (args, kwargs), None

    def on_host(make: Callable[[DeviceArray], Any]) -> Any:
        host = [make(part) if isinstance(part, DeviceArray) else part for part in shown]
        found_args, found_kwargs = trees.unflatten(tree, host)
        return tuple(found_args), found_kwargs

    known = on_host(lambda part: np.broadcast_to(np.zeros((), part.dtype), part.shape))
    return known, lambda: on_host(DeviceArray.numpy)
