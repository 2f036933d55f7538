"""Programs that are cut into several regions give what they give in one."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tapegrad.kernels.opcodes import ARITY
from tapegrad.regions.cutting import NONE, Cut
from tapegrad.regions.region import BUFFER, OFFSET, STRIDES, RegionBuilder, run_reference
from tapegrad.regions.threads import run_region

LANES = 3


@st.composite
def programs(draw: st.DrawFn) -> RegionBuilder:
    build = RegionBuilder((LANES,))
    values = [build.constant(0.25), build.input(0, (1,)), build.input(0, (0,), 2)]
    for _ in range(draw(st.integers(1, 40))):
        row = draw(st.sampled_from(["add", "multiply", "maximum", "negative", "where"]))
        near = values[-6:] if draw(st.booleans()) else values
        values.append(build.op(row, *[draw(st.sampled_from(near)) for _ in range(ARITY[row])]))
    for j in range(draw(st.integers(1, 5))):
        build.output(draw(st.sampled_from(values)), 1, (1,), LANES * j)
    return build


@given(programs(), st.integers(8, 20))
def test_parts_give_what_the_whole_gives(build: RegionBuilder, most: int) -> None:
    x = np.array([0.5, -2.0, 3.0])
    expected, found = np.zeros(5 * LANES), np.zeros(5 * LANES)
    run_reference(build.finish(), [x, expected])
    regions, places = build.finish_in_parts(2, most)
    waiting = np.full(max(places, 1) * LANES, np.nan)
    for region in regions:
        assert region.rows <= most or len(regions) == 1
        for windows in (region.inputs, region.outputs):
            waits = windows[:, BUFFER] == 2
            windows[waits, OFFSET] *= LANES
            windows[waits, STRIDES] = 1
        read = {int(w[OFFSET]) for w in region.inputs if w[BUFFER] == 2}
        assert not read & {int(w[OFFSET]) for w in region.outputs if w[BUFFER] == 2}
        run_reference(region, [x, found, waiting])
    np.testing.assert_array_equal(found, expected)


def test_cuts_are_where_few_values_wait() -> None:
    # Ten values, which are added up, and so eight times; all of the sums are needed in the end.
    lines: list[Any] = []
    for _ in range(8):
        first = len(lines)
        lines += [[-1, NONE]] * 10
        lines += [[first, first + 1]]
        lines += [[first + j, first + 8 + j] for j in range(2, 10)]
    n = len(lines)
    sums = list(range(18, n, 19))
    lines += [[sums[0], sums[1]], *[[n + j, sums[2 + j]] for j in range(6)]]
    cut = Cut(np.array(lines), most=15)
    assert len(cut.parts) > 2
    for part in cut.parts[:-1]:
        assert {value for value, _ in part.carried} <= {*sums, *range(n, len(lines))}


def test_many_windows_on_one_buffer_run_in_parts() -> None:
    n, lanes = 3000, 40
    build = RegionBuilder((lanes,))
    values = [build.input(0, (1,))]
    for _ in range(n):
        values.append(build.op("sin", values[-1]))
    total = values[0]
    for value in reversed(values):
        total = build.op("add", total, value)
    build.output(total, 1, (1,))
    regions, places = build.finish_in_parts(2, 500)
    assert len(regions) > n // 500
    x, whole, found = np.linspace(-1.0, 1.0, lanes), np.zeros(lanes), np.zeros(lanes)
    waiting = np.zeros(places * lanes)
    run_region(build.finish(), [x, whole])
    for region in regions:
        for windows in (region.inputs, region.outputs):
            waits = windows[:, BUFFER] == 2
            windows[waits, OFFSET] *= lanes
            windows[waits, STRIDES] = 1
        run_region(region, [x, found, waiting])
    np.testing.assert_array_equal(found, whole)
