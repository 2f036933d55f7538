"""Kernels and executor of regions in Numba's CUDA simulator, against the reference executor.

`tests/test_simulated.py` runs this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapegrad.devices import device as devices
from tapegrad.devices import loaded
from tapegrad.devices.device import Device
from tapegrad.devices.launch import Launch, Sizes
from tapegrad.errors import DeviceLostError, MixedDevicesError
from tapegrad.kernels.cuda import driver, float32, float64
from tapegrad.kernels.opcodes import FIRST_ROW, ROW_OF
from tapegrad.ops import TABLE
from tapegrad.regions.region import (
    ADD,
    BUFFER,
    INDEX,
    MAXIMUM,
    MINIMUM,
    SET,
    Region,
    RegionBuilder,
    run_reference,
)

# NumPy's numbers stand for those of a GPU, and warn where that answers nan.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# A thread of the simulator is a thread of Python: few of them, and lanes that are no multiple.
SHARED = Sizes(block=2, threads=4, shared=1 << 16)
GLOBAL = Sizes(block=2, threads=4, shared=0)
BASIC = [n for n in range(FIRST_ROW, len(ROW_OF)) if ROW_OF[n - 1] != ROW_OF[n]]


def on(sizes: Sizes) -> Device:
    return Device(driver.Simulator(), sizes=sizes)


def names(region: Region) -> set[int]:
    return {int(w[INDEX]) for w in (*region.inputs, *region.outputs)} - {-1}


def compare(
    region: Region,
    buffers: list[Any],
    sizes: Sizes,
    real: str = "float64",
    straight: bool = False,
    ulps: float = 0.0,
) -> None:
    """Run a region in both executors; sums may round otherwise, by as much as `ulps` says."""
    indices = names(region)
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


# -- rows ------------------------------------------------------------------------------------------


def points_of(opcode: int, real: str) -> list[tuple[float, ...]]:
    """Return the row's points that the simulator can run.

    It calls Python's `math`, which raises where a GPU answers inf or nan (log(-5), exp(1000)); such
    points are left out. They are left out, too, where they or the value are beyond float32.
    """
    module = float64 if real == "float64" else float32
    build = RegionBuilder((1,))
    row = TABLE[ROW_OF[opcode]]
    build.output(build.op(opcode, *[build.input(i, (1,)) for i in range(row.arity)]), 3, (1,))
    program = Launch(build.finish(), {}, 8, SHARED).program(real)
    from tapegrad.kernels.emit.cuda import expression

    code = compile(expression(row, real, {}), "<row>", "eval")
    assert program.code[0][0] == opcode
    kept = []
    for point in row.points:
        values = [module.real(x) for x in point]
        try:
            with np.errstate(all="ignore"):
                value = eval(code, dict(vars(module)), dict(zip("xyz", values, strict=False)))
        except (ValueError, OverflowError, ZeroDivisionError):
            continue
        assert value is not None
        kept.append(point)
    return kept


@pytest.mark.parametrize("real", ["float64", "float32"])
@pytest.mark.parametrize("opcode", BASIC, ids=[ROW_OF[n] for n in BASIC])
def test_every_row(opcode: int, real: str) -> None:
    row = TABLE[ROW_OF[opcode]]
    if real == "float32" and row.name in ("spacing", "nextafter"):
        pytest.skip("Python's math.nextafter, which the simulator calls, is of double precision")
    points = np.array(points_of(opcode, real))
    assert len(points) >= len(row.samples) / 2, "too many points were left out"
    n = len(points)
    build = RegionBuilder((n,))
    value = build.op(opcode, *[build.input(0, (row.arity,), offset=i) for i in range(row.arity)])
    build.output(value, 1, (1,))
    region = build.finish()
    ulps = 4.0 if real == "float64" else 8.0
    compare(region, [points.ravel(), np.zeros(n)], SHARED, real, ulps=ulps)
    compare(region, [points.ravel(), np.zeros(n)], GLOBAL, real, ulps=ulps)
    compare(region, [points.ravel(), np.zeros(n)], SHARED, real, straight=True, ulps=ulps)


# -- windows ---------------------------------------------------------------------------------------


def squares(
    shape: Any, window: dict[str, Any], out: dict[str, Any], add: bool = False, how: int = SET
) -> Region:
    """Return a region that reads a window, squares it, and carries it out."""
    build = RegionBuilder(shape)
    x = build.input(0, window.pop("strides"), **window)
    build.output(build.op("square", x), 1, out.pop("strides"), add=add, how=how, **out)
    return build.finish()


WINDOWS: list[Any] = [
    ((9,), {"strides": (1,)}, {"strides": (1,)}),
    ((9,), {"strides": (-2,), "offset": 20}, {"strides": (3,), "offset": 1}),
    ((3, 5), {"strides": (0, 1)}, {"strides": (5, 1)}),
    ((3, 5), {"strides": (1, 3)}, {"strides": (1, 3)}),
    ((2, 3, 4), {"strides": (12, 0, 1)}, {"strides": (4, 8, 1)}),
    ((7,), {"strides": (0,), "offset": 4}, {"strides": (1,)}),
    ((), {"strides": ()}, {"strides": ()}),
    # sums: of all lanes, along each axis, overlapping in itself, and over both kinds at once
    ((9,), {"strides": (1,)}, {"strides": (0,)}),
    ((3, 5), {"strides": (5, 1)}, {"strides": (0, 1)}),
    ((3, 5), {"strides": (5, 1)}, {"strides": (1, 0)}),
    ((3, 5), {"strides": (5, 1)}, {"strides": (1, 1)}),
    ((2, 3, 4), {"strides": (12, 4, 1)}, {"strides": (0, 1, 0)}),
    ((600,), {"strides": (0,)}, {"strides": (0,)}),  # long enough to be summed by blocks
    ((2, 300), {"strides": (0, 0)}, {"strides": (1, 0)}),
]


@pytest.mark.parametrize("sizes", [SHARED, GLOBAL], ids=["shared", "global"])
@pytest.mark.parametrize("straight", [False, True])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("case", range(len(WINDOWS)))
def test_windows(case: int, add: bool, straight: bool, sizes: Sizes) -> None:
    shape, window, out = WINDOWS[case]
    region = squares(shape, dict(window), dict(out), add)
    x = np.arange(1.0, 41.0)
    compare(region, [x, np.full(40, 7.0)], sizes, straight=straight)
    compare(region, [x, np.full(40, 7.0)], sizes, "float32", straight=straight)


@pytest.mark.parametrize("straight", [False, True])
@pytest.mark.parametrize("how", [MAXIMUM, MINIMUM])
@pytest.mark.parametrize("case", range(len(WINDOWS)))
def test_extremes(case: int, how: int, straight: bool) -> None:
    shape, window, out = WINDOWS[case]
    region = squares(shape, dict(window), dict(out), how=how)
    x = np.random.default_rng(case).normal(size=40)
    for sizes in (SHARED, GLOBAL):
        compare(region, [x, np.full(40, 7.0)], sizes, straight=straight)
    x[::7] = np.nan
    compare(region, [x, np.full(40, 7.0)], SHARED, straight=straight)


@pytest.mark.parametrize("shape", [(700,), (2, 350), (350, 2)])
@pytest.mark.parametrize("how", [SET, ADD, MAXIMUM, MINIMUM])
def test_many_numbers_of_one_element_are_met_by_blocks_in_parts(
    how: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapegrad.devices.launch._PART", 100)
    build = RegionBuilder(shape)
    x = build.input(0, np.cumprod([1, *shape[:0:-1]])[::-1].tolist())
    build.output(x, 1, (0,) * len(shape), how=how)
    build.output(x, 2, [int(n == 2) for n in shape], how=how)
    build.output(x, 3, (1,) * len(shape), how=how)
    region = build.finish()
    launch = Launch(region, {}, 8, GLOBAL)
    assert sum("by_blocks" in one.kernel for one in launch.after) == 2
    values = np.random.default_rng(how).integers(-50, 50, 700).astype(float)  # exact sums
    for x in (values, np.where(np.arange(700) == 420, np.nan, values), values * 0.0 - np.inf):
        buffers = [x, np.full(1, 7.0), np.full(2, 7.0), np.full(700, 7.0)]
        compare(region, buffers, GLOBAL)
        compare(region, buffers, SHARED, "float32")


@pytest.mark.parametrize("how", [MAXIMUM, MINIMUM])
def test_scattered_extremes_and_parts_of_them(how: int) -> None:
    index = np.array([3, 1, 3, 3, 0, 2, 1, 1, 0, 5], np.uint32)
    build = RegionBuilder((10,))
    x = build.input(0, (1,))
    build.output(x, 1, (1,), index=3, how=how)
    build.output(x, 2, (0,), how=how)
    region = build.finish()
    x = np.random.default_rng(how).normal(size=10)
    compare(region, [x, np.full(6, 7.0), np.zeros(1), index], SHARED)
    small = Device(Small(100), sizes=SHARED)
    given = [small.put(b) for b in (x, np.full(6, 7.0), np.zeros(1))]
    expected = [g.numpy() for g in given]
    small.driver.most = 5
    small.run(region, [*given, index])
    run_reference(region, [*expected, index])
    for got, want in zip(given, expected, strict=True):
        np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize("sizes", [SHARED, GLOBAL], ids=["shared", "global"])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("places", [[3, 1, 4, 0, 2], [3, 1, 3, 3, 0]], ids=["each once", "twice"])
def test_gathers_and_scatters(places: list[int], add: bool, sizes: Sizes) -> None:
    index = np.array([9, *places], np.uint32)
    build = RegionBuilder((5,))
    x = build.input(0, (1,), offset=1, index=2, base=1)
    build.output(x, 1, (1,), offset=1, index=2, base=2, add=add)
    region = build.finish()
    compare(region, [np.arange(20.0), np.full(9, 7.0), index], sizes)
    compare(region, [np.arange(20.0), np.full(9, 7.0), index], sizes, straight=True)


@pytest.mark.parametrize("adds", [(False, False, False), (True, True, True), (True, False, True)])
def test_windows_that_overlap_each_other(adds: tuple[bool, ...]) -> None:
    build = RegionBuilder((5,))
    x = build.input(0, (1,))
    build.output(x, 1, (1,), add=adds[0])
    build.output(build.op("exp", x), 1, (1,), 2, add=adds[1])
    build.output(build.op("negative", x), 1, (0,), 3, add=adds[2])
    build.output(x, 1, (1,), 20, add=adds[0])  # far from the others
    # Three numbers or more are added up in another order than the reference's.
    compare(build.finish(), [np.arange(1.0, 6.0), np.full(30, 7.0)], SHARED, ulps=2.0)


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


def test_a_kernel_of_its_own_has_the_same_bits() -> None:
    region, buffers = program(11)
    found = []
    for straight in (False, True):
        device = on(SHARED)
        given = [device.put(b) for b in buffers]
        loaded = device.load(region, given)
        if straight:
            loaded.specialise()
        device.run(region, given)
        assert (loaded.straight is not None) == straight
        found.append([g.numpy() for g in given])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_kernel_of_its_own_is_compiled_when_it_is_earned() -> None:
    region, buffers = program(3)
    device = on(SHARED)
    given = [device.put(b) for b in buffers]
    loaded = device.load(region, given)
    device.run(region, given)
    assert loaded.seconds == 0.0  # it had to be compiled
    device.run(region, given)
    assert loaded.seconds > 0.0
    loaded.seconds = 0.0
    loaded._earn()
    assert loaded.straight is None
    loaded.seconds = 0.1 + 0.004 * len(region.code)
    loaded._earn()
    kernel = loaded.straight
    assert kernel is not None
    # A region of other lanes shares the kernel: its program is the same.
    other, buffers = program(5)
    again = device.load(other, [device.put(b) for b in buffers])
    again.specialise()
    assert again.straight is kernel


def test_a_long_region_gets_no_kernel_of_its_own() -> None:
    for count in (loaded.LONGEST, loaded.LONGEST + 1):
        build = RegionBuilder((1,))
        value = build.input(0, (1,))
        for _ in range(count):
            value = build.op("negative", value)
        build.output(value, 1, (1,))
        device = on(SHARED)
        ready = device.load(build.finish(), [device.put(np.ones(1)) for _ in range(2)])
        ready.specialise()
        assert (ready.straight is not None) == (count == loaded.LONGEST)


@st.composite
def regions(draw: st.DrawFn) -> tuple[Region, list[Any]]:
    """Draw a region of small integers, whose sums are exact in any order, and its buffers."""
    shape = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    lanes = int(np.prod(shape))
    index = draw(st.lists(st.integers(0, 11), min_size=40, max_size=40))
    build = RegionBuilder(shape)

    def window() -> tuple[list[int], dict[str, int]]:
        strides = [draw(st.sampled_from([0, 1, 2, 3, -1])) for _ in shape]
        places: dict[str, int] = {"offset": draw(st.integers(6, 10))}
        if draw(st.booleans()):
            places |= {"index": 3, "base": draw(st.integers(0, 9))}
        return strides, places

    values = [build.constant(2.0)]
    for _ in range(draw(st.integers(1, 3))):
        strides, places = window()
        values.append(build.input(0, strides, **places))
    for _ in range(draw(st.integers(0, 4))):
        x, y = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        values.append(build.op(draw(st.sampled_from(["add", "subtract", "maximum"])), x, y))
    for _ in range(draw(st.integers(1, 4))):
        strides, places = window()
        add = draw(st.booleans())
        buffer = draw(st.sampled_from([1, 2]))
        build.output(draw(st.sampled_from(values)), buffer, strides, add=add, **places)
    assert lanes < 40
    buffers = [np.arange(40.0), np.full(40, 7.0), np.full(40, -7.0), np.array(index, np.uint32)]
    return build.finish(), buffers


@settings(max_examples=60)
@given(regions(), st.sampled_from([SHARED, GLOBAL]), st.booleans())
def test_any_windows(case: tuple[Region, list[Any]], sizes: Sizes, straight: bool) -> None:
    compare(*case, sizes, straight=straight)


@settings(max_examples=25)
@given(regions())
def test_any_windows_where_memory_does_not_suffice(case: tuple[Region, list[Any]]) -> None:
    region, buffers = case
    small = Device(Small(1 << 20), sizes=SHARED)
    given_ = [b if b.dtype == np.uint32 else small.put(b) for b in buffers]
    small.driver.most = 4  # numbers that can be had for what lanes leave aside
    small.run(region, given_)
    run_reference(region, buffers)
    for got, want in zip(given_[1:3], buffers[1:3], strict=True):
        np.testing.assert_array_equal(got.numpy(), want)


# -- memory and errors -----------------------------------------------------------------------------


class Small(driver.Simulator):
    """A device on which larger pieces of memory cannot be had."""

    def __init__(self, most: int) -> None:
        self.most = most

    def allocate(self, size: int, dtype: Any) -> Any:
        if size > self.most:
            raise MemoryError
        return super().allocate(size, dtype)


def test_lanes_are_run_in_parts_where_memory_does_not_suffice() -> None:
    index = np.array([3, 1, 3, 3, 0, 2, 1, 1, 0, 5], np.uint32)
    build = RegionBuilder((10,))
    x = build.input(0, (1,))
    build.output(x, 1, (1,), index=3)  # needs room for each lane
    build.output(x, 2, (1,))
    region = build.finish()
    small = Device(Small(100), sizes=SHARED)
    given = [small.put(b) for b in (np.arange(10.0), np.full(6, 7.0), np.full(10, 7.0))]
    expected = [g.numpy() for g in given]
    small.driver.most = 5
    small.run(region, [*given, index])
    run_reference(region, [*expected, index])
    for got, want in zip(given, expected, strict=True):
        np.testing.assert_array_equal(got.numpy(), want)
    # Rows in global memory are needed for a single lane, too.
    small = Device(Small(0), sizes=GLOBAL)
    with pytest.raises(MemoryError):
        small.run(region, [*(Foreign(x) for x in expected), index])


def test_memory_is_used_again_unless_another_library_knows_of_it() -> None:
    device = on(SHARED)
    first = device.put(np.ones(100))
    address = first.address
    view = first.after(50)
    del first
    other = device.empty(100)  # the view is alive
    assert other.address != address
    del view
    assert device.empty(100).address == address
    asked: dict[str, Any] = other.__cuda_array_interface__
    del other
    assert all(
        memory.address != asked["data"][0] for some in device.pool.free.values() for memory in some
    )
    device.pool.release()
    assert not device.pool.free


class Elsewhere(driver.Simulator):
    number = 1

    def device_of(self, address: int) -> int:
        return 0


def test_errors_come_before_anything_is_written() -> None:
    region, buffers = program(4)
    device = on(SHARED)
    x, y, total = (device.put(b + 7.0) for b in buffers)
    with pytest.raises(IndexError, match="buffer 1 has 3 elements"):
        device.run(region, [x, device.put(np.zeros(3)), total])
    with pytest.raises(TypeError, match="all alike, not on float32 and float64"):
        device.run(region, [x, device.put(np.zeros(4, np.float32)), total])
    with pytest.raises(TypeError, match="not an array on a CUDA device"):
        device.run(region, [x, y, Host(np.zeros(1))])
    other = Device(Elsewhere(), sizes=SHARED)
    with pytest.raises(MixedDevicesError, match="an array is on cuda:0, and not on <cuda:1"):
        other.run(region, [x, y, total])
    np.testing.assert_array_equal(y.numpy(), np.full(4, 7.0))
    np.testing.assert_array_equal(total.numpy(), [7.0])


class Host:
    """An array that is nowhere near a device."""

    def __init__(self, array: Any) -> None:
        self.dtype = array.dtype


class Dying(driver.Simulator):
    def launch(self, *arguments: Any) -> None:
        raise OSError("unspecified launch failure")

    @staticmethod
    def code_of(error: BaseException) -> int | None:
        return 719 if isinstance(error, OSError) else None


def test_a_device_that_disappears() -> None:
    region, buffers = program(4)
    device = Device(Dying(), sizes=SHARED)
    with pytest.raises(DeviceLostError, match=r"stopped working.*unspecified launch failure"):
        device.run(region, [device.put(b) for b in buffers])


# -- arrays of other libraries ---------------------------------------------------------------------


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


def test_arrays_of_other_libraries_are_used_where_they_lie() -> None:
    region, buffers = program(4)
    device = on(SHARED)
    x, y, total = (Foreign(b) for b in buffers)
    device.run(region, [x, y, total])
    expected = [b.copy() for b in buffers]
    run_reference(region, expected)
    np.testing.assert_allclose(y.array, expected[1], rtol=1e-15)
    # DLPack: NumPy's own arrays stand for those of a device here.
    shown = device.view(buffers[0])
    assert shown.address == buffers[0].ctypes.data
    assert shown.dtype == np.float64
    result = device.view(device.put(np.ones((2, 3))))
    assert result.__cuda_array_interface__["shape"] == (2, 3)
    assert result.reshape(6).after(2).shape == (4,)


def test_arrays_are_lent_to_other_libraries() -> None:
    device = on(SHARED)
    given = device.put(np.arange(6.0).reshape(2, 3))
    address = given.address
    lent = np.from_dlpack(given)  # the simulator's device is the host
    np.testing.assert_array_equal(lent, np.arange(6.0).reshape(2, 3))
    assert lent.ctypes.data == address
    lent_before = len(devices.interchange._lent)
    capsule = given.__dlpack__()
    assert len(devices.interchange._lent) == lent_before + 1
    del capsule  # nobody has taken it
    assert len(devices.interchange._lent) == lent_before
    del given
    assert device.empty((2, 3)).address != address  # that memory is somebody else's, too
    view = lent[1:]
    del lent
    np.testing.assert_array_equal(view, [[3.0, 4.0, 5.0]])
    del view
    assert len(devices.interchange._lent) == lent_before - 1
    single = device.put(np.float32(2.5))
    found = np.from_dlpack(single)
    assert (found.shape, found.dtype, float(found)) == ((), np.float32, 2.5)
    with pytest.raises(BufferError, match="is lent where it lies"):
        single.__dlpack__(dl_device=(2, 3))


def test_a_consumer_in_another_stream_waits() -> None:
    waits: list[Any] = []

    class Waiting(driver.Simulator):
        def synchronize(self, stream: Any) -> None:
            waits.append(stream)

    array = Device(Waiting(), 7, sizes=SHARED).put(np.zeros(3))
    for stream in (-1, 7):
        array.__dlpack__(stream=stream)
    assert waits == []
    array.__dlpack__(stream=9)
    array.__dlpack__()
    assert len(waits) == 2


def test_arrays_that_do_not_fit_are_refused() -> None:
    device = on(SHARED)
    with pytest.raises(ValueError, match="one after another in C order"):
        device.view(Foreign(np.zeros((4, 4))[:, 1:]))
    with pytest.raises(TypeError, match="not on an array of int64"):
        device.view(Foreign(np.zeros(4, np.int64)))
    with pytest.raises(TypeError, match=r"call \.numpy\(\)"):
        np.asarray(device.put(np.zeros(3)))
    with pytest.raises(ValueError, match="has no shape"):
        device.put(np.zeros(3)).reshape(2)


class Numba:
    """What `numba.cuda` says of a machine."""

    def __init__(self, available: bool, error: str | None, count: int = 0) -> None:
        self.is_available, self.cuda_error = lambda: available, lambda: error
        self.list_devices = lambda: [None] * count


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (Numba(False, "CUDA driver library cannot be found. "), "CUDA driver library cannot be"),
        (
            Numba(False, "Call to cuInit results in CUDA_ERROR_NO_DEVICE (100)"),
            "finds no GPU: Call",
        ),
        (Numba(True, None), "the CUDA driver finds no GPU"),
        (Numba(False, None), r"finds no NVVM .* pip install \"tapegrad\[cuda\]\""),
    ],
    ids=["no driver", "no GPU", "none listed", "no compiler"],
)
def test_what_is_missing_is_named(
    machine: Numba, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SIMULATED", False)
    monkeypatch.setattr(driver, "cuda", machine)
    with pytest.raises(devices.DeviceUnavailable, match=f"no CUDA device: .*{message}"):
        devices.device()


class Streaming(driver.Simulator):
    """A device that notes the stream of all that it is asked for, and what it waits for."""

    def __init__(self) -> None:
        self.seen: set[Any] = set()
        self.waited: list[Any] = []

    def stream(self, handle: int | None) -> Any:
        return handle

    def wait_for(self, handle: int | None) -> None:
        self.waited.append(handle)

    def launch(self, kernel: Any, blocks: int, block: int, shared: int, stream: Any,
               arguments: Any) -> None:  # fmt: skip
        self.seen.add(stream)
        super().launch(kernel, blocks, block, shared, stream, arguments)

    def download(self, address: int, out: Any, stream: Any) -> None:
        self.seen.add(stream)
        super().download(address, out, stream)

    def copy_in(self, address: int, array: Any, stream: Any) -> None:
        self.seen.add(stream)
        super().copy_in(address, array, stream)


def test_all_work_is_done_in_the_stream_that_is_given() -> None:
    build = RegionBuilder((300,))
    build.output(build.input(0, (1,)), 1, (0,))
    region = build.finish()
    own = Streaming()
    device = Device(own, devices.interchange.stream_number(7), sizes=SHARED)
    given = [device.put(np.arange(300.0)), device.put(np.zeros(1))]
    device.run(region, given)
    np.testing.assert_array_equal(given[1].numpy(), [299 * 150.0])
    assert own.seen == {7}
    assert given[1].__cuda_array_interface__["stream"] == 7
    # What another library computes in a stream of its own is waited for; in this one it is not.
    device.run(region, [Foreign(np.ones(300), stream=7), given[1]])
    assert own.waited == []
    device.run(region, [Foreign(np.ones(300), stream=9), Foreign(np.zeros(1), stream=1)])
    assert own.waited == [9, None]


@pytest.mark.parametrize("name", ["cuda_stream", "ptr", "handle"])
def test_streams_of_other_libraries(name: str) -> None:
    stream = type("Stream", (), {name: 5})()
    assert devices.interchange.stream_number(stream) == 5
    assert devices.device(0, stream).stream_number == 5


def test_the_device_is_found() -> None:
    found = devices.device()
    assert found is devices.device(0)
    assert repr(found) == "<cuda:0, CUDA simulator>"
    with pytest.raises(devices.DeviceUnavailable, match="no CUDA device 3: there are 1"):
        devices.device(3)
    with pytest.raises(TypeError, match="a stream is the number"):
        devices.device(0, stream="fast")
    found.synchronize()
