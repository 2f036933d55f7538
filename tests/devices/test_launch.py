"""From regions to launches: where rows are kept, what is left aside, how much memory it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tapegrad.devices.launch import Launch, Sizes
from tapegrad.kernels.cuda import words as W
from tapegrad.regions.region import Region, RegionBuilder


def chain(lanes: int, rows: int) -> Region:
    """Return a region that needs about so many rows."""
    build = RegionBuilder((lanes,))
    values = [build.op("add", build.input(0, (0,)), build.constant(float(i))) for i in range(rows)]
    total = values[0]
    for value in values[1:]:
        total = build.op("multiply", total, value)
    build.output(total, 1, (1,))
    build.output(total, 2, (0,))
    return build.finish()


def kinds(launch: Launch) -> list[int]:
    n, step = len(launch.inputs), W.STRIDES + len(launch.shape)
    rows = launch.words.words[W.EXTENTS + len(launch.shape) :].reshape(-1, step)
    found: list[int] = rows[n:, W.KIND].tolist()
    return found


def test_few_rows_are_in_shared_memory_and_sums_with_them() -> None:
    launch = Launch(chain(10**9, 5), {}, 8, Sizes())
    assert 0 < launch.shared <= Sizes().shared
    assert launch.scratch == 0
    assert kinds(launch) == [W.SET, W.SUM]
    assert launch.extras[0] == launch.threads  # a sum a thread


@pytest.mark.parametrize("rows", [200, 2000])
def test_many_rows_are_in_global_memory_whatever_the_number_of_lanes(rows: int) -> None:
    sizes = Sizes()
    one, other = (Launch(chain(n, rows), {}, 8, sizes) for n in (10**7, 10**9))
    assert one.shared == 0
    assert one.scratch == other.scratch == one.region.rows * one.threads
    assert one.threads >= sizes.least
    assert 8 * one.scratch <= max(sizes.resident, 8 * one.region.rows * sizes.least)
    # Sums do not depend on the number of threads: each lane's number is left aside.
    assert kinds(one) == [W.SET, W.SET]
    assert one.extras[0] == 10**7


def passes_of(region: Region, **indices: Any) -> list[tuple[str, int]]:
    arrays = {int(name[1:]): np.array(array, np.uint32) for name, array in indices.items()}
    launch = Launch(region, arrays, 8, Sizes())
    return [(one.kernel, one.count) for one in (*launch.before, *launch.after)]


def test_each_lane_with_an_element_of_its_own_needs_no_pass() -> None:
    build = RegionBuilder((3, 4))
    x = build.input(0, (4, 1))
    build.output(x, 1, (1, 3))
    build.output(x, 2, (-8, 2), 99, add=True)
    build.output(x, 3, (4, 1), index=4)
    assert passes_of(build.finish(), _4=np.arange(12)[::-1]) == []


def test_sums_along_axes_and_scatters_are_passes() -> None:
    build = RegionBuilder((3, 4))
    x = build.input(0, (4, 1))
    build.output(x, 1, (1, 0))
    build.output(x, 2, (0, 1))
    build.output(x, 3, (4, 1), index=4)
    found = passes_of(build.finish(), _4=np.arange(12) // 2)
    assert found == [("sum_by_threads", 3), ("sum_by_threads", 4), ("sum_by_threads", 6)]


def test_windows_that_overlap_are_cleared_once_and_added_one_after_another() -> None:
    build = RegionBuilder((5,))
    x = build.input(0, (1,))
    build.output(x, 1, (1,))
    build.output(x, 1, (1,), 1)
    assert passes_of(build.finish()) == [("clear", 5), ("clear", 5), ("sum_by_threads", 5)]


def test_one_window_that_replaces_needs_no_clearing_where_others_add() -> None:
    build = RegionBuilder((5,))
    x = build.input(0, (1,))
    build.output(x, 1, (1,), add=True)
    build.output(x, 1, (1,), 1)
    build.output(x, 1, (1,), 2, add=True)
    launch = Launch(build.finish(), {}, 8, Sizes())
    assert [one.kernel for one in (*launch.before, *launch.after)] == ["sum_by_threads"] * 2
    assert kinds(launch) == [W.SET, W.SET, W.SET]  # the first and the last are put aside
    assert len(launch.extras) == 2


def test_an_index_array_that_is_too_short() -> None:
    build = RegionBuilder((5,))
    build.output(build.input(0, (1,), index=2), 1, (1,))
    with pytest.raises(IndexError, match="reaches beyond index array 2"):
        passes_of(build.finish(), _2=[1, 2, 3])
