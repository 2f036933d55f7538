"""Plain products and careful ones: the same numbers, whatever lanes stand beside each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad.batches import lanes
from tapegrad.kernels.opcodes import ARITY, ROW_OF, ROWS
from tapegrad.kernels.rules import FORWARD
from tapegrad.regions import plan, threads, written
from tapegrad.regions.plain import OPEN, matched, telling
from tapegrad.regions.region import Region, RegionBuilder, run_reference
from tapegrad.regions.threads import get_num_threads, run_region, set_num_threads, specialise

NASTY = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, math.inf, -math.inf, math.nan)


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Spread even the smallest region over threads, where there are any."""
    before = get_num_threads()
    monkeypatch.setattr(threads, "WORTH", 0)
    yield
    set_num_threads(before)


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[list[int]], list[float], list[int]]:
    """Return instructions on rows, of which the first four are given, and rows of results."""
    code = []
    for _ in range(draw(st.integers(1, 12))):
        row = draw(st.sampled_from([*OPEN, "maximum", "less"]))
        operands = [draw(st.integers(0, 9)) for _ in range(ARITY[row])]
        code.append([ROWS[row][0], draw(st.integers(4, 9)), *operands, 0, 0, 0][:5])
    given_ = [draw(st.sampled_from(NASTY)) for _ in range(10)]
    return code, given_, draw(st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True))


@given(programs())
def test_some_results_tell_of_a_nan_in_any(
    program: tuple[list[list[int]], list[float], list[int]],
) -> None:
    code, rows, results = program
    told = telling(np.array(code, np.uint16), results)
    computed = {line[1] for line in code} & set(results)
    assert told <= computed
    for op, result, *operands in code:
        rows[result] = FORWARD[op](*[rows[r] for r in operands[: ARITY[ROW_OF[op]]]])
    if any(math.isnan(rows[r]) for r in computed):
        assert any(math.isnan(rows[r]) for r in told)


def only_careful(region: Region) -> Region:
    """Return a region without its plain program."""
    parts = (region.shape, region.code, region.constants, region.inputs, region.outputs)
    return Region(*parts, region.rows, region.real)


def names(code: Any) -> list[str]:
    return [ROW_OF[op] for op in code[:, 0]]


def dropped(row: str, k: int, operands: list[float]) -> bool:
    """Whether the careful program drops an operand, too."""
    if row == "where":
        return k == (2 if operands[0] != 0.0 else 1)
    return row.startswith("adjoint") and k == 1 and operands[0] == 0.0


@pytest.mark.parametrize("row", OPEN)
def test_nan_passes_and_signs_of_zeros_do_not_matter(row: str) -> None:
    rule = FORWARD[ROWS[row][0]]
    for k in OPEN[row]:
        for others in itertools.product(NASTY, repeat=ARITY[row] - 1):
            operands = [*others[:k], math.nan, *others[k:]]
            if not dropped(row, k, operands):
                assert math.isnan(rule(*operands)), operands
            plus, minus = ([*others[:k], zero, *others[k:]] for zero in (0.0, -0.0))
            np.testing.assert_array_equal(rule(*plus), rule(*minus), str(plus))


def test_results_are_where_the_careful_ones_are() -> None:
    add, copy = ROWS["add"][0], ROWS["positive"][0]
    code = np.array([[add, 2, 0, 1, 0], [add, 3, 2, 2, 0], [add, 4, 3, 2, 0]], np.uint16)
    found = matched(code, [4, 0, 4, 2], [3, 0, 5, 2], fixed=2)
    expected = [[add, 2, 0, 1, 0], [add, 4, 2, 2, 0], [add, 3, 4, 2, 0], [copy, 5, 3, 0, 0]]
    assert found.tolist() == expected


# -- lanes that are singular among others ----------------------------------------------------------


def derivatives(n: int, real: str = "float64") -> RegionBuilder:
    """Return a builder of adjoints w through 0.5/x and sqrt(x), carried out in many ways."""
    build = RegionBuilder((n,), real)
    w, x = build.input(0, (1,)), build.input(1, (1,))
    half = build.constant(0.5)
    reciprocal = build.op("divide", half, x)
    flow = build.op("adjoint_multiply", build.op("negative", w), reciprocal)
    root = build.op("adjoint_divide", build.op("adjoint_multiply", w, half), build.op("sqrt", x))
    both = build.op("add", flow, root)
    chosen = build.op("where", build.op("less", x, half), both, root)
    build.output(both, 2, (1,))
    build.output(chosen, 3, (0,))  # a sum
    build.output(flow, 4, (1,), 0)  # overlaps
    build.output(root, 4, (1,), 2, add=True)
    build.output(build.op("sqrt", x), 5, (1,))
    build.output(chosen, 6, (-1,), n - 1, add=True)
    return build.fuse()


def arguments(n: int, singular: Any, real: str = "float64") -> list[Any]:
    """Return buffers for it: where lanes are `singular`, no adjoint meets an infinite partial."""
    rng = np.random.default_rng(0)
    w, x = rng.uniform(-1.0, 1.0, n), rng.uniform(0.1, 2.0, n)
    w[singular] = np.resize([0.0, -0.0], n)[singular]
    x[singular] = np.resize([0.0, -0.0, math.inf, math.nan, 0.0, 0.7, -1.0], n)[singular]
    results = [np.zeros(n), np.zeros(1), np.zeros(n + 2), np.zeros(n), rng.random(n)]
    return [buffer.astype(real) for buffer in (w, x, *results)]


def everywhere(region: Region, buffers: list[Any]) -> list[Any]:
    """Run a region interpreted and compiled, by one and three threads; all bits must be equal."""
    found = []
    for compiled, n in itertools.product((False, True), (1, 3)):
        set_num_threads(n)
        if compiled:
            specialise(region)
            assert region.lowered.straight
        copies = [buffer.copy() for buffer in buffers]
        run_region(region, copies)
        found.append(copies)
    for other in found[1:]:
        assert [b.tobytes() for b in other] == [b.tobytes() for b in found[0]]
    return found[0]


BORDERS = (0, 1, 126, 127, 128, 129, 255, 256, 1023, 1024, 4990, 4999)


@pytest.mark.parametrize("real", ["float64", "float32"])
def test_singular_lanes_among_others(real: str) -> None:
    n = 5000
    region = derivatives(n, real).finish()
    assert region.plain is not None
    assert "adjoint_divide" in names(region.code)
    assert not any(name.startswith("adjoint") for name in names(region.plain))
    careful = only_careful(region)
    rng = np.random.default_rng(1)
    cases = [np.array([at]) for at in BORDERS]
    cases += [np.arange(0), np.arange(n), rng.integers(0, n, 40)]
    for singular in cases:
        buffers = arguments(n, singular, real)
        found = everywhere(region, buffers)
        expected = [buffer.copy() for buffer in buffers]
        run_region(careful, expected)
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_a_nan_does_not_touch_other_lanes() -> None:
    """What is computed twice, careful the second time, has the bits of the first."""
    n = 5000
    region = derivatives(n).finish()
    buffers = arguments(n, np.arange(0))
    alone, beside = ([buffer.copy() for buffer in buffers] for _ in range(2))
    beside[0][BORDERS,] = math.nan
    for copies in (alone, beside):
        run_region(region, copies)
    rest = np.ones(n, np.bool_)
    rest[BORDERS,] = False
    for number in (2, 5):
        assert alone[number][rest].tobytes() == beside[number][rest].tobytes()
    assert np.isnan(beside[2][BORDERS,]).all()
    assert np.isnan(beside[3]).all()


def test_a_nan_is_a_nan_in_the_reference_too() -> None:
    n = 300
    buffers = arguments(n, np.arange(0, n, 7))
    region = derivatives(n).finish()
    expected = [buffer.copy() for buffer in buffers]
    run_reference(region, expected)
    run_region(region, buffers)
    for got, want in zip(buffers, expected, strict=True):
        # A sum of three hundred numbers, in another order.
        np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-12)


def test_parts_of_long_programs() -> None:
    n = 1000
    build = RegionBuilder((n,))
    w, x = build.input(0, (0,)), build.input(1, (0,))
    flows = [w]
    for _ in range(60):
        flows.append(build.op("adjoint_multiply", flows[-1], build.op("sqrt", x)))
        x = build.op("multiply", build.op("add", x, x), build.constant(0.5))
    for flow in reversed(flows[1:]):
        w = build.op("adjoint_divide", build.op("add", w, flow), x)
    build.output(w, 2, (0,))
    parts, places = build.fuse().finish_in_parts(3, most=24)
    assert len(parts) > 3
    waiting = np.empty(places * n)
    buffers = arguments(n, np.arange(3, n, 90))[:3]
    found = []
    for spare in (lambda region: region, only_careful):
        copies = [*[buffer.copy() for buffer in buffers], waiting]
        for part in parts:
            assert part.plain is not None
            inputs, outputs = part.inputs.copy(), part.outputs.copy()
            for windows in (inputs, outputs):
                windows[windows[:, 1] == 3, 2] *= n
                windows[:, 6] = 1
            placed = Region((n,), part.code, part.constants, inputs, outputs, part.rows)
            placed.plain = part.plain
            run_region(spare(placed), copies)
        found.append(copies[2])
    np.testing.assert_array_equal(*found)
    assert np.isfinite(found[0][:3]).all()


# -- any code --------------------------------------------------------------------------------------

TRIED = (
    *("adjoint_multiply", "adjoint_divide", "multiply", "add", "subtract", "negative"),
    *("where", "divide", "less", "maximum", "sqrt", "square"),
)
LANES = len(NASTY) ** 3
steps = st.lists(st.tuples(st.sampled_from(TRIED), *[st.integers(0, 9)] * 3), max_size=14)


@given(steps, st.lists(st.integers(0, 5), min_size=1, max_size=3))
def test_any_code_gives_the_careful_numbers(code: list[Any], results: list[int]) -> None:
    build = RegionBuilder((LANES,))
    values = [build.input(i, (1,)) for i in range(3)]
    for row, *operands in code:
        taken = [values[-1 - i % len(values)] for i in operands[: ARITY[row]]]
        values.append(build.op(row, *taken))
    for number, i in enumerate(results):
        build.output(values[-1 - i % len(values)], 3 + number, (1,))
    region = build.fuse().finish()
    points = [part.ravel() for part in np.meshgrid(*[NASTY] * 3)]
    # Singular lanes here and there: in most blocks none is.
    order = np.random.default_rng(0).permutation(LANES)
    found = []
    for each in (region, only_careful(region)):
        for places in (order, np.argsort(sum(map(np.isfinite, points)), kind="stable")):
            copies = [*[part[places] for part in points], *[np.zeros(LANES) for _ in results]]
            run_region(each, copies)
            found.append(np.array(copies)[:, np.argsort(places)])
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


# -- where regions come from -----------------------------------------------------------------------


def root(x: Any, c: Any) -> Any:
    return np.sqrt(x) * c + np.where(x > 0.5, np.log(x), x * c)


def test_batches_have_plain_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, c = np.random.default_rng(2).random((2, 5000))
    x[BORDERS,], c[BORDERS,] = 0.0, 0.0  # sqrt has an infinite slope, times 0
    seen = []
    run_chunk = lanes.run_chunk

    def noted(region: Region, buffers: Any) -> None:
        seen.append(region)
        run_chunk(region, buffers)

    monkeypatch.setattr(lanes, "run_chunk", noted)
    with tg.executor("compiled"):
        found = np.array(tg.vmap(tg.grad(root, argnums=(0, 1)))(x, c))
        assert all(region.plain is not None for region in seen)
        one = tg.record(root, 0.3, 0.3)
        some = [*BORDERS, *range(2, 5000, 50)]
        expected = np.array([one.value_and_grad(x[i], c[i], argnums=(0, 1))[1] for i in some]).T
    np.testing.assert_allclose(found[:, some], expected, rtol=1e-13)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("n", [written.FUSED, written.FUSED + 77])
def test_array_code_has_plain_programs(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    x, c = np.random.default_rng(3).random((2, n))
    x[BORDERS,], c[BORDERS,] = 0.0, 0.0

    def f(x: Any, c: Any) -> Any:
        return np.sum(root(x, c))

    def gradient() -> Any:
        plan._plans.clear()
        found = tg.grad(f, argnums=(0, 1))(x, c)
        regions = [r for p in plan._plans.values() for step in p.steps for r in step.regions]
        return found, [region.plain is not None for region in regions]

    with tg.executor("compiled"):
        found, are_plain = gradient()
        monkeypatch.setattr(written, "FUSED", 1 << 60)
        expected, are_careful = gradient()
    assert any(are_plain)
    assert not any(are_careful)
    np.testing.assert_array_equal(found, expected)
    assert np.isfinite(found).all()
