"""Windows of regions on a simulated device, against the reference executor.

`tests/test_simulated.py` runs this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators import GLOBAL, SHARED, Foreign, Small, compare
from tapegrad.devices.device import Device
from tapegrad.devices.launch import Launch, Sizes
from tapegrad.regions.region import (
    ADD,
    MAXIMUM,
    MINIMUM,
    SET,
    Region,
    RegionBuilder,
    run_reference,
)

# NumPy's numbers stand for those of a GPU, and warn where that answers nan.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


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
