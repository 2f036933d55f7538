"""Simulated devices, some with a fault, and regions run on them as by the reference executor.

Numba simulates where `NUMBA_ENABLE_CUDASIM` says so; see `tests/test_simulated.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapegrad import trees
from tapegrad.devices.arrays import DeviceArray
from tapegrad.devices.device import Device
from tapegrad.devices.launch import Sizes
from tapegrad.kernels.cuda import driver
from tapegrad.regions.region import BUFFER, INDEX, Region, RegionBuilder, run_reference

# A thread of the simulator is a thread of Python: few of them, and lanes that are no multiple.
SHARED = Sizes(block=2, threads=4, shared=1 << 16)
GLOBAL = Sizes(block=2, threads=4, shared=0)


def on(sizes: Sizes) -> Device:
    return Device(driver.Simulator(), sizes=sizes)


class Small(driver.Simulator):
    """A device on which larger pieces of memory cannot be had."""

    def __init__(self, most: int) -> None:
        self.most = most

    def allocate(self, size: int, dtype: Any) -> Any:
        if size > self.most:
            raise MemoryError
        return super().allocate(size, dtype)


class Elsewhere(driver.Simulator):
    """A device whose arrays are all on another one."""

    number = 1

    def device_of(self, address: int) -> int:
        return 0


class Dying(driver.Simulator):
    """A device that works for so many launches."""

    def __init__(self, left: int) -> None:
        self.left = left

    def launch(self, *arguments: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError("unspecified launch failure")
        super().launch(*arguments)

    @staticmethod
    def code_of(error: BaseException) -> int | None:
        return 719 if isinstance(error, OSError) else None


class Foreign:
    """An array of another library, which only has the interface."""

    def __init__(self, array: Any, **changed: Any) -> None:
        self.array = array
        self.dtype = array.dtype
        self.__cuda_array_interface__ = {
            "data": (array.ctypes.data, False),
            "shape": array.shape,
            "strides": array.strides,
            "typestr": array.dtype.str,
            "version": 3,
            "stream": 1,
        } | changed


def close(found: Any, wanted: Any, rtol: float = 1e-13, atol: float = 1e-14) -> None:
    """Compare results of a device; functions of the CPU and Python's differ by an ULP or two."""
    (ours, tree), (theirs, other) = trees.flatten(found), trees.flatten(wanted)
    assert tree == other
    for one, two in zip(ours, theirs, strict=True):
        values = np.asarray(one.numpy() if isinstance(one, DeviceArray) else one)
        assert (values.shape, values.dtype) == (np.shape(two), np.asarray(two).dtype)
        np.testing.assert_allclose(values, two, rtol=rtol, atol=atol)


def compare(
    region: Region,
    buffers: list[Any],
    sizes: Sizes,
    real: str = "float64",
    straight: bool = False,
    ulps: float = 0.0,
) -> None:
    """Run a region in both executors; sums may round otherwise, by as much as `ulps` says."""
    indices = {int(w[INDEX]) for w in (*region.inputs, *region.outputs)} - {-1}
    expected = [
        b if i in indices else b.astype(real).astype(np.float64) for i, b in enumerate(buffers)
    ]
    device = on(sizes)
    given = [b if i in indices else device.put(b.astype(real)) for i, b in enumerate(buffers)]
    run_reference(region, expected)
    if straight:
        device.load(region, given).specialise()
    device.run(region, given)
    for number in {int(w[BUFFER]) for w in region.outputs}:
        got = given[number].numpy()
        want = expected[number].astype(real)
        scale = np.spacing(np.maximum(np.abs(want), 1.0).astype(real))
        with np.errstate(all="ignore"):
            near = np.abs(got - want) <= ulps * scale
        same = (got == want) | (np.isnan(got) & np.isnan(want))
        assert (same | near).all(), (got, want)


def program(n: int) -> tuple[Region, list[Any]]:
    """Return a region of some length, its values and their sum."""
    build = RegionBuilder((n,))
    x, y = build.input(0, (2,)), build.input(0, (2,), offset=1)
    value, k = x, build.constant(0.5)
    for _ in range(6):
        value = build.op("add", build.op("multiply", value, k), build.op("sin", y))
        y = build.op("where", build.op("less", value, y), value, y)
    build.output(value, 1, (1,))
    build.output(y, 2, (0,))
    return build.finish(), [np.linspace(-2.0, 3.0, 2 * n), np.zeros(n), np.zeros(1)]
