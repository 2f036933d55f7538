"""Overlapping windows that a region's own code adds up: the bits of the interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad.kernels import words
from tapegrad.regions import lowering, plan, threads
from tapegrad.regions.region import Region, RegionBuilder, run_reference
from tapegrad.regions.threads import get_num_threads, lower, run_region, set_num_threads, specialise

NASTY = np.array([-0.0, 0.0, 1.0, -1.0, 0.1, -3.7, 1e-300, 1e300, 5e-324, np.inf, -np.inf])


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Spread even the smallest region over threads, in blocks as long as large ones have."""
    before = get_num_threads()
    monkeypatch.setattr(threads, "WORTH", 0)
    monkeypatch.setattr(lowering, "_WORK", 0)
    yield
    set_num_threads(before)


@contextmanager
def chunks_of(lanes: int) -> Iterator[None]:
    """Let chunks have so many lanes, or what is left of them in whole blocks."""

    def size(n: int, instructions: int, block: int, outs: list[Any]) -> int:
        return max(lanes // block, 1) * block

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "_chunk_size", size)
        yield


def stencil(n: int, offsets: tuple[int, ...], real: str = "float64") -> Region:
    """Return a region with windows at these offsets on one buffer; the highest one sets."""
    build = RegionBuilder((n,), real)
    x, y, c = build.input(0, (1,)), build.input(0, (1,), 1), build.input(1, (0,))
    values = [build.op("multiply", x, y), x, c, build.op("subtract", x, y)]
    values.append(build.op("negative", values[0]))
    lead = max(range(len(offsets)), key=offsets.__getitem__)
    for i, offset in enumerate(offsets):
        build.output(values[i % len(values)], 2, (1,), offset, add=i != lead)
    build.output(values[0], 3, (1,))  # one of them goes to another place, too
    build.output(values[3], 4, (0,))
    return build.finish()


def buffers_of(n: int, offsets: tuple[int, ...], real: str, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n + 1)
    where = rng.integers(0, n + 1, n // 7)
    x[where] = rng.choice(NASTY[:-2], len(where))
    made = [x, rng.normal(size=1), rng.normal(size=n + max(offsets)), np.zeros(n), np.zeros(1)]
    with np.errstate(over="ignore", under="ignore"):
        return [buffer.astype(real) for buffer in made]


def answers(make: Any, buffers: list[Any], numbers: tuple[int, ...] = (0, 1, 2, 3)) -> list[Any]:
    """Run a region interpreted (0), and by its own code on so many threads."""
    found = []
    for n in numbers:
        region = make()
        copies = [buffer.copy() for buffer in buffers]
        if n:
            set_num_threads(n)
            specialise(region)
            assert region.lowered.straight
        run_region(region, copies)
        found.append(copies)
    return found


def same_bits(make: Any, buffers: list[Any]) -> list[Any]:
    first, *others = answers(make, buffers)
    for other in others:
        for x, y in zip(first, other, strict=True):
            assert x.tobytes() == y.tobytes()
    return first


OFFSETS = [
    (1, 0),
    (0, 1),
    (0, 2, 1),
    (3, 0, 3, 1, 1),  # several at one place
    (15, 0),
    (0, 7, 15, 4),
    (2, 0, 1, 2, 1, 0),
    (9, 10),  # none at the buffer's begin
]
FAR = [(16, 0), (0, 40), (31, 16, 0)]  # too far apart for a vector of float64


@pytest.mark.parametrize("offsets", [*OFFSETS, *FAR], ids=str)
@pytest.mark.parametrize("real", ["float64", "float32"])
def test_what_is_added_up_in_registers(offsets: tuple[int, ...], real: str) -> None:
    region = stencil(100_000, offsets, real)
    reach = max(offsets) - min(offsets)
    near = reach < (16 if real == "float64" else 32)
    assert len(lower(region).joins) == near
    if near:
        (join,) = region.lowered.joins
        order = sorted(range(len(offsets)), key=lambda i: -offsets[i])
        assert [row for row, _ in join] == [int(region.outputs[i, 0]) for i in order]
        assert np.cumsum([step for _, step in join]).tolist() == [
            max(offsets) - offsets[i] for i in order
        ]


@pytest.mark.parametrize("offsets", OFFSETS[:-1], ids=str)
@settings(max_examples=25, deadline=None)
@given(n=st.integers(33, 6000), chunk=st.integers(1, 3000), seed=st.integers(0, 99))
def test_bits_of_the_interpreter(offsets: tuple[int, ...], n: int, chunk: int, seed: int) -> None:
    with chunks_of(chunk):
        same_bits(lambda: stencil(n, offsets), buffers_of(n, offsets, "float64", seed))


@pytest.mark.parametrize("offsets", [(0, 1), (0, 2, 1), (0, 31)], ids=str)
@settings(max_examples=15, deadline=None)
@given(n=st.integers(33, 9000), chunk=st.integers(1, 4000), seed=st.integers(0, 99))
def test_bits_of_single_precision(offsets: tuple[int, ...], n: int, chunk: int, seed: int) -> None:
    with chunks_of(chunk):
        same_bits(lambda: stencil(n, offsets, "float32"), buffers_of(n, offsets, "float32", seed))


@pytest.mark.parametrize("m", [1000, 1601, 1603])
def test_chunks_that_end_between_vectors(m: int) -> None:
    """Axis sums ask for chunks of whole runs, which then are no multiple of a vector's lanes."""

    def make() -> Region:
        build = RegionBuilder((m, 7))
        x, y = build.input(0, (7, 1)), build.input(0, (7, 1), 7)
        z = build.op("multiply", x, y)
        build.output(z, 1, (7, 1), 9)
        build.output(build.op("subtract", x, y), 1, (7, 1), 2, add=True)
        build.output(x, 1, (7, 1), 0, add=True)
        build.output(z, 2, (1, 0))
        return build.finish()

    region = make()
    assert len(lower(region).joins) == 1
    assert region.lowered.words[words.HEADER.index("CHUNK")] % 16
    rng = np.random.default_rng(m)
    same_bits(make, [rng.normal(size=size) for size in (7 * m + 7, 7 * m + 9, m)])


# -- blocks that are run again with care -----------------------------------------------------------


def flows(n: int, real: str = "float64") -> Region:
    """Return a region whose plain program has nan where an adjoint of 0 meets infinity."""
    build = RegionBuilder((n,), real)
    w, x, y = build.input(0, (1,)), build.input(1, (1,)), build.input(1, (1,), 1)
    first = build.op("adjoint_multiply", w, x)
    second = build.op("adjoint_multiply", build.op("negative", w), y)
    third = build.op("subtract", build.op("adjoint_multiply", first, x), second)
    build.output(first, 2, (1,), 2)
    build.output(third, 2, (1,), 0, add=True)
    build.output(second, 2, (1,), 1, add=True)
    build.output(first, 3, (1,), 1)  # another group
    build.output(second, 3, (1,), 0, add=True)
    build.output(third, 4, (1,))
    build.fuse()
    region = build.finish()
    assert region.plain is not None
    return region


def check_flows(n: int, where: Any, real: str = "float64") -> None:
    """Compare, where adjoints of 0 meet infinity at these lanes."""
    rng = np.random.default_rng(n)
    w, x = rng.uniform(0.5, 1.0, n), rng.uniform(0.5, 1.0, n + 1)
    w[where] = w[np.maximum(where, 1) - 1] = 0.0
    x[where] = np.inf
    x[min(n, 5)] = -np.inf  # which an adjoint meets that is not 0
    results = [rng.normal(size=size) for size in (n + 2, n + 1, n)]
    buffers = [buffer.astype(real) for buffer in (w, x, *results)]
    interpreted, one, *others = answers(lambda: flows(n, real), buffers)
    for found, expected in zip(one, interpreted, strict=True):
        np.testing.assert_array_equal(found, expected)  # zeros may have another sign
    for other in others:
        for found, expected in zip(other, one, strict=True):
            assert found.tobytes() == expected.tobytes()
    run_reference(flows(n, real), buffers)
    for found, expected in zip(one, buffers, strict=True):
        # The reference adds three windows in another order: numbers of at most 3, two additions.
        np.testing.assert_allclose(found, expected, rtol=0, atol=8 * np.finfo(real).eps)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(600, 6000),
    chunk=st.integers(1, 3000),
    places=st.lists(st.floats(0.0, 1.0), max_size=12),
)
def test_careful_blocks_are_added_once(n: int, chunk: int, places: list[float]) -> None:
    with chunks_of(chunk):
        check_flows(n, np.array([int(p * (n - 1)) for p in places], int))


@pytest.mark.parametrize("real", ["float64", "float32"])
@pytest.mark.parametrize("every", [1, 100, 1024, 1025])
def test_careful_blocks_beside_each_other(every: int, real: str) -> None:
    n = 9000
    with chunks_of(4096):
        assert lower(flows(n, real)).chunks == 3
        check_flows(n, np.arange(3, n, every), real)
        for edge in (0, 1023, 1024, 4095, 4096, 8191, 8192, n - 1):
            check_flows(n, np.array([edge]), real)


# -- where such regions come from ------------------------------------------------------------------


def test_gradients_of_neighbours() -> None:
    """Gradients of slices that overlap, with infinite slopes that no adjoint flows through."""
    n = 20_011

    def f(x: Any) -> Any:
        rough = np.where(x[1:-1] > 0.0, np.sqrt(x[1:-1]), 0.0)
        bend = x[:-2] - 2.0 * x[1:-1] + x[2:]
        return np.sum(bend * bend * rough + x[:-2] * x[2:])

    x = np.random.default_rng(0).uniform(0.1, 1.0, n)
    x[[0, 1, 511, 1024, 5000, n - 2, n - 1]] = 0.0
    with tg.executor("compiled"):
        gradient = tg.grad(f)
        expected = gradient(x)
        regions = [
            step.backward
            for made in plan._plans.values()
            for step in made.steps
            if step.backward is not None and step.backward.shape == (n - 2,)
        ]
        assert any(region.lowered.joins and region.plain is not None for region in regions)
        for region in regions:
            specialise(region)
            assert region.lowered.straight
        for count in (1, 2, 3):
            set_num_threads(count)
            np.testing.assert_array_equal(gradient(x), expected)
    assert np.isfinite(expected).all()
    with tg.executor("reference"):
        np.testing.assert_allclose(gradient(x), expected, rtol=1e-12, atol=1e-12)


def test_calls_that_are_prepared_have_room_for_what_is_kept() -> None:
    """Code of a region's own may be given to words that were made for the interpreter."""
    n = 9000
    region = flows(n)
    before = lower(region)
    specialise(region)
    assert before.straight == region.lowered.straight
    assert before.words[words.HEADER.index("JOINS")] == 2
    room = region.places * (8 * int(before.words[words.HEADER.index("BLOCK")]) + 8 + words.PAD)
    assert before.scratch >= room + 2 * (16 + words.VECTOR)
