"""Rewriting of regions: fewer instructions, the same bits."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tapegrad.kernels.opcodes import ROW_OF
from tapegrad.regions.region import RegionBuilder, run_reference

UNARY = ("negative", "positive", "square", "absolute", "exp", "stop_gradient", "sqrt")
BINARY = ("add", "subtract", "multiply", "divide", "maximum")
POINTS = np.array([0.0, -0.0, 1.0, -2.5, 0.3, np.inf, -np.inf, np.nan])
LANES = len(POINTS) ** 2


def build(steps, results):
    """Return the builder of random code on all pairs of `POINTS`, and a constant."""
    builder = RegionBuilder((LANES,))
    values = [builder.input(0, (1,)), builder.input(1, (1,)), builder.constant(-0.0)]
    for row, i, j in steps:
        x, y = values[i % len(values)], values[j % len(values)]
        values.append(builder.op(row, x) if row in UNARY else builder.op(row, x, y))
    for number, i in enumerate(results):
        builder.output(values[-1 - i % len(values)], 2 + number, (1,))
    return builder


def run(region, count):
    x, y = (part.ravel() for part in np.meshgrid(POINTS, POINTS))
    found = [np.empty(LANES) for _ in range(count)]
    run_reference(region, [x.copy(), y.copy(), *found])
    return np.array(found)


steps = st.tuples(st.sampled_from(UNARY + BINARY * 2), st.integers(0, 40), st.integers(0, 40))


@given(
    st.lists(steps, min_size=1, max_size=15), st.lists(st.integers(0, 5), min_size=1, max_size=3)
)
def test_the_bits_are_the_same(steps, results):
    plain = run(build(steps, results).finish(), len(results))
    region = build(steps, results).fuse().finish()
    fused = run(region, len(results))
    np.testing.assert_array_equal(fused, plain)
    known = ~np.isnan(plain)  # a nan has no sign that means anything
    np.testing.assert_array_equal(np.signbit(fused[known]), np.signbit(plain[known]))


def rows(*steps):
    region = build(steps, [0]).fuse().finish()
    return [ROW_OF[op] for op in region.code[:, 0]]


def test_products_and_sums_join_what_uses_them():
    x_times_y = ("multiply", 0, 1)
    assert rows(x_times_y, ("add", 3, 1)) == ["multiply_add"]
    assert rows(x_times_y, ("add", 1, 3)) == ["multiply_add"]
    assert rows(x_times_y, ("subtract", 3, 1)) == ["multiply_subtract"]
    assert rows(x_times_y, ("subtract", 1, 3)) == ["subtract_product"]
    assert rows(x_times_y, ("multiply", 0, 3)) == ["multiply_thrice"]
    assert rows(x_times_y, ("negative", 3, 0)) == ["negative_product"]
    assert rows(("add", 0, 1), ("add", 1, 3)) == ["add_thrice"]
    assert rows(x_times_y, ("negative", 3, 0), ("exp", 4, 0)) == ["exp_negative_product"]
    assert rows(x_times_y, ("negative", 3, 0), ("add", 1, 4)) == ["subtract_product"]


def test_a_product_that_is_used_twice_stays():
    assert rows(("multiply", 0, 1), ("add", 3, 3)) == ["multiply", "add"]


def test_what_is_computed_twice_is_computed_once():
    assert rows(("exp", 0, 0), ("exp", 0, 0), ("multiply", 3, 4)) == ["exp", "multiply"]
    # Products commute, differences do not.
    assert rows(("multiply", 0, 1), ("multiply", 1, 0), ("divide", 3, 4)) == ["multiply", "divide"]
    assert rows(("subtract", 0, 1), ("subtract", 1, 0), ("divide", 3, 4)).count("subtract") == 2


def test_copies_disappear():
    assert rows(("positive", 0, 0), ("stop_gradient", 3, 0), ("exp", 4, 0)) == ["exp"]
