"""Regions as data: what the builder makes, and what the reference executor answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapegrad.regions.region import ADD, HOW, ROW, SET, RegionBuilder, run_reference


def test_rows_are_shared_by_liveness() -> None:
    build = RegionBuilder((4,))
    x = build.input(0, (1,))
    for _ in range(100):
        x = build.op("multiply", x, build.constant(0.5))
    build.output(x, 1, (1,))
    region = build.finish()
    assert region.rows <= 4
    y = np.zeros(4)
    run_reference(region, [np.arange(4.0), y])
    np.testing.assert_array_equal(y, np.arange(4.0) * 0.5**100)


def test_what_nothing_needs_is_dropped() -> None:
    build = RegionBuilder((4,))
    x = build.input(0, (1,))
    build.op("exp", build.op("sin", x))
    build.output(build.op("square", x), 1, (1,))
    assert len(build.finish().code) == 1


def test_the_same_window_and_the_same_constant_are_one_value() -> None:
    build = RegionBuilder((2, 3))
    assert build.input(0, (3, 1)) == build.input(0, (3, 1))
    assert build.input(0, (3, 1)) != build.input(0, (3, 1), 1)
    assert build.constant(1.0) == build.constant(1.0)
    assert build.constant(0.0) != build.constant(-0.0)
    assert build.constant(np.nan) == build.constant(np.nan)


def test_rows_that_are_carried_out_are_written_once() -> None:
    build = RegionBuilder((4,))
    x = build.input(0, (1,))
    y = build.op("sin", x)
    build.output(y, 1, (1,))
    for _ in range(5):
        y = build.op("sin", y)
    build.output(y, 2, (1,), add=True)
    region = build.finish()
    written = region.code[:, 1].tolist()
    for row in region.outputs[:, ROW].tolist():
        assert written.count(row) == 1
    assert region.outputs[:, HOW].tolist() == [SET, ADD]


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((2, 3), (0, 0), [15.0]),
        ((2, 3), (0, 1), [3.0, 5.0, 7.0]),
        ((2, 3), (1, 0), [3.0, 12.0]),
        ((2, 3), (1, 1), [0.0, 4.0, 6.0, 5.0]),
    ],
)
def test_windows_that_meet_an_element_twice_sum(shape, strides, expected) -> None:  # type: ignore[no-untyped-def]
    build = RegionBuilder(shape)
    x = build.input(0, (shape[1], 1))
    build.output(x, 1, strides)
    build.output(x, 2, strides, add=True)
    replaced, added = np.full(len(expected), 7.0), np.full(len(expected), 7.0)
    run_reference(build.finish(), [np.arange(6.0), replaced, added])
    np.testing.assert_array_equal(replaced, expected)
    np.testing.assert_array_equal(added, np.add(expected, 7.0))


def test_gathered_windows() -> None:
    index = np.array([3, 1, 3, 0], np.uint32)
    build = RegionBuilder((4,))
    x = build.input(0, (1,), index=1, base=2)
    build.output(x, 2, (1,), index=1)
    y = np.full(4, 9.0)
    run_reference(build.finish(), [np.arange(10.0), index, y])
    np.testing.assert_array_equal(y, [2.0, 3.0, 9.0, 10.0])


def test_what_is_no_instruction_is_refused() -> None:
    build = RegionBuilder((2,))
    x = build.input(0, (1,))
    with pytest.raises(ValueError, match="no instruction"):
        build.op("add", x)
    with pytest.raises(ValueError, match="no instruction"):
        build.op(0)
    with pytest.raises(ValueError, match="do not fit the shape"):
        build.input(0, (1, 1))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=40))
def test_allocation_keeps_the_meaning(pairs: list[tuple[int, int]]) -> None:
    build = RegionBuilder((3,))
    values = [build.input(0, (1,)), build.constant(2.0)]
    columns = [np.array([1.0, 2.0, 3.0]), np.full(3, 2.0)]
    targets = []
    for n, (i, j) in enumerate(pairs):
        i, j = i % len(values), j % len(values)
        values.append(build.op("subtract", values[i], values[j]))
        columns.append(columns[i] - columns[j])
        if n % 5 == 0 or n == len(pairs) - 1:
            targets.append((np.zeros(3), columns[-1]))
            build.output(values[-1], len(targets), (1,))
    run_reference(build.finish(), [columns[0], *(target for target, _ in targets)])
    for target, expected in targets:
        np.testing.assert_array_equal(target, expected)
