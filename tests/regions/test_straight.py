"""Regions with code of their own: the same bits as interpreted ones, and when they are made."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import execute
from tapegrad.kernels import words
from tapegrad.kernels.emit.straight import can_emit, functions
from tapegrad.kernels.opcodes import ARITY, ROWS
from tapegrad.ops.table import TABLE
from tapegrad.regions import plan, straight, threads
from tapegrad.regions.region import MAXIMUM, Region, RegionBuilder
from tapegrad.regions.threads import (
    get_num_threads,
    lower,
    run_region,
    set_num_threads,
    specialise,
)


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Spread even the smallest region over threads, where there are any."""
    before = get_num_threads()
    monkeypatch.setattr(threads, "WORTH", 0)
    yield
    set_num_threads(before)


def same_bits(make: Any, buffers: list[Any]) -> Region:
    """Run a region as it is interpreted, and compiled by one and three threads; compare."""
    answers = []
    for n in (0, 1, 3):
        region: Region = make()
        copies = [buffer.copy() for buffer in buffers]
        if n:
            set_num_threads(n)
            specialise(region)
            assert region.lowered.straight
        run_region(region, copies)
        answers.append([copy.tobytes() for copy in copies])
    assert answers[0] == answers[1] == answers[2]
    return region


def is_emitted(name: str) -> bool:
    return can_emit(frozenset({ROWS[name][0]}))


def is_quick(name: str) -> bool:
    """Whether it compiles soon: functions are called alike, and two of them stand for all."""
    return not functions(frozenset({ROWS[name][0]})) or name in ("exp", "sin")


EMITTED = [name for name in ROWS if is_emitted(name) and is_quick(name)]


def test_most_rows_are_emitted() -> None:
    assert len(EMITTED) > 50


@pytest.mark.parametrize("first", range(0, len(EMITTED), 8))
def test_rows_at_their_points(first: int) -> None:
    names = EMITTED[first : first + 8]
    lanes = max(len(TABLE[name].points) for name in names)
    buffers: list[Any] = []
    for name in names:
        points = np.resize(np.array(TABLE[name].points), (lanes, ARITY[name]))
        buffers += map(np.ascontiguousarray, points.T)
    count = len(buffers)
    buffers.append(np.zeros(len(names) * lanes))

    def make() -> Region:
        build = RegionBuilder((lanes,))
        operands = [build.input(i, (1,)) for i in range(count)]
        for i, name in enumerate(names):
            taken = [operands.pop(0) for _ in range(ARITY[name])]
            build.output(build.op(name, *taken), count, (1,), i * lanes)
        return build.finish()

    same_bits(make, buffers)


@pytest.mark.parametrize("shape", [(1,), (16,), (300,), (5000,), (40, 33), (1900, 3)], ids=str)
def test_windows_of_all_sorts(shape: tuple[int, ...]) -> None:
    dense = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    size = int(np.prod(shape))
    rng = np.random.default_rng(0)
    index = rng.integers(0, 40, size + 1).astype(np.uint32)

    def make() -> Region:
        build = RegionBuilder(shape)
        x = build.input(0, dense)
        y = build.input(0, dense, 3)
        z = build.input(1, [0] * len(shape), 5)  # one for all
        w = build.input(1, [0] * (len(shape) - 1) + [-2], 2 * shape[-1])
        u = build.input(1, dense, index=2, base=3)
        t = build.op("multiply", build.op("add", x, y), z)
        s = build.op("where", build.op("less", t, build.constant(0.5)), u, w)
        r = build.op("sqrt", build.op("square", build.op("subtract", s, t)))
        build.output(r, 3, dense)
        build.output(s, 3, dense, 2, add=True)  # overlaps
        build.output(t, 4, [0] * len(shape))  # a sum
        build.output(r, 5, dense, 1, index=2, add=True)
        build.output(x, 6, dense)  # what was brought in
        build.output(z, 7, dense)
        return build.finish()

    sizes = (size + 3, 2 * size + 60, 0, size + 2, 1, 60, size, size)
    buffers = [rng.uniform(-1.0, 1.0, n) for n in sizes]
    buffers[2] = index
    same_bits(make, buffers)


@pytest.mark.parametrize("real", ["float64", "float32"])
def test_longer_blocks(real: str) -> None:
    n = 100_003

    def make() -> Region:
        build = RegionBuilder((n,), real)
        x, y = build.input(0, (1,)), build.input(0, (1,), 1)
        z = build.op("multiply", build.op("subtract", x, y), build.input(0, (-2,), 2 * n))
        build.output(build.op("square", z), 1, (1,))
        build.output(z, 1, (1,), 1, add=True)
        build.output(build.op("add", z, y), 2, (0,))  # a sum
        build.output(build.op("maximum", z, x), 3, (0,), how=MAXIMUM)
        return build.finish()

    rng = np.random.default_rng(0)
    buffers = [rng.uniform(-1.0, 1.0, size).astype(real) for size in (2 * n + 3, n + 1, 1, 1)]
    compiled = same_bits(make, buffers)
    lanes = 512 if real == "float64" else 1024
    assert compiled.lowered.words[words.HEADER.index("BLOCK")] == lanes
    interpreted = make()
    assert lower(interpreted).words[words.HEADER.index("BLOCK")] == lanes // 4


@pytest.mark.parametrize("real", ["float64", "float32"])
def test_a_factor_that_all_lanes_share_is_negated_once(real: str) -> None:
    n = 1003

    def make() -> Region:
        build = RegionBuilder((n,), real)
        x, c, two = build.input(0, (1,)), build.input(1, (0,)), build.constant(2.0)
        pairs = [(x, c), (c, x), (two, x), (two, c), (c, c), (x, x), (two, x)]
        for i, (a, b) in enumerate(pairs):
            build.output(build.op("negative_product", a, b), 2, (1,), i * n)
        return build.finish()

    rng = np.random.default_rng(0)
    x = rng.normal(size=n).astype(real)
    x[:4] = 0.0, -0.0, np.finfo(real).tiny, np.finfo(real).max
    for c in (-3.0, 0.0, -0.0):
        same_bits(make, [x, np.array([c], real), np.zeros(7 * n, real)])


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_a_nan_that_comes_out_is_seen(special: float) -> None:
    """An adjoint of 0 carries nothing on by a partial that is infinite, in compiled code, too."""
    n = 20_000

    def f(x: Any, y: Any) -> Any:
        return np.sum(np.where(x > 0.0, np.sqrt(x), 0.0) * y)

    x, y = np.linspace(-1.0, 1.0, n), np.linspace(0.0, 2.0, n)
    x[[0, 700, n - 1]], y[[5, 9_000]] = 0.0, special
    with tg.executor("compiled"):
        gradient = tg.grad(f, (0, 1))
        expected = gradient(x, y)
        for made in plan._plans.values():
            for step in made.steps:
                if step.backward is not None:
                    specialise(step.backward)
                    assert step.backward.lowered.straight
        found = gradient(x, y)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.isfinite(found[0][10:8_000]).all()


def test_numbers_of_single_precision() -> None:
    def make() -> Region:
        build = RegionBuilder((1000,), "float32")
        x, y = build.input(0, (1,)), build.input(1, (0,))
        z = build.op("multiply", build.op("exp", x), build.op("add", y, build.constant(0.1)))
        build.output(z, 2, (1,))
        build.output(build.op("where", build.op("less", z, x), x, z), 3, (0,))
        return build.finish()

    rng = np.random.default_rng(0)
    buffers = [rng.random(n).astype(np.float32) for n in (1000, 1, 1000, 1)]
    region = same_bits(make, buffers)
    assert region.real == "float32"


def test_equal_instructions_share_code() -> None:
    def make(n: int) -> Region:
        build = RegionBuilder((n,))
        build.output(build.op("negative", build.op("square", build.input(0, (1,)))), 1, (1,))
        return build.finish()

    regions = [make(10), make(1000)]
    for region in regions:
        specialise(region)
    assert regions[0].lowered.straight == regions[1].lowered.straight


def test_what_is_not_compiled_goes_on_as_before() -> None:
    rare = next(
        name for name in ROWS if not can_emit(frozenset({ROWS[name][0]})) and ARITY[name] == 1
    )
    build = RegionBuilder((4,))
    build.output(build.op(rare, build.input(0, (1,))), 1, (1,))
    region = build.finish()
    assert straight.cost(region) == np.inf
    specialise(region)
    run_region(region, [np.ones(4), np.zeros(4)])
    assert not region.lowered.straight
    build = RegionBuilder((4,))
    x = build.input(0, (1,))
    for _ in range(straight.LONGEST + 1):
        x = build.op("square", x)
    build.output(x, 1, (1,))
    assert straight.cost(build.finish()) == np.inf


def test_a_region_earns_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    build = RegionBuilder((100,))
    x = build.input(0, (1,))
    build.output(build.op("multiply", x, build.op("add", x, x)), 1, (1,))
    region = build.finish()
    x, y = np.arange(100.0), np.zeros(100)
    asked: list[Any] = []
    monkeypatch.setattr(straight, "cost", lambda region: asked.append(region) or 1.0)
    monkeypatch.setattr(straight, "_compiled", {})
    run_region(region, [x, y])
    assert 0.0 < region.lowered.spent < straight.least()
    assert not asked  # which takes the op table: a third of a second in a process that is short
    region.lowered.spent = 0.9
    run_region(region, [x, y])
    assert asked
    assert not region.lowered.straight
    region.lowered.spent = 1.0
    run_region(region, [x, y])
    assert region.lowered.straight
    y[:] = 0.0
    run_region(region, [x, y])
    np.testing.assert_array_equal(y, 2.0 * x * x)


def test_many_threads_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    compile_ = straight._compile

    def counted(*key: Any) -> int:
        made.append(key)
        return compile_(*key)

    monkeypatch.setattr(straight, "_compile", counted)
    build = RegionBuilder((100,))
    x = build.input(0, (1,))
    build.output(build.op("add", build.op("multiply", x, x), build.op("negative", x)), 1, (1,))
    region = build.finish()
    workers = [threading.Thread(target=specialise, args=(region,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(made) == 1


def test_a_compiled_program_compiles_its_regions() -> None:
    def f(x: Any) -> Any:
        return np.sum(np.sqrt(1.0 + x[1:] * x[:-1]) * x[1:])

    x = np.random.default_rng(0).random(6000)
    execute.load("regions")
    program = tg.record(f, x)
    expected = program.value_and_grad(x)
    program.compile()
    value, gradient = program.value_and_grad(x)
    assert value == expected[0]
    np.testing.assert_array_equal(gradient, expected[1])
    steps = [step for kept in plan._plans.values() if kept.compiled for step in kept.steps]
    regions = [step.backward for step in steps if step.backward is not None]
    assert regions
    assert all(region.lowered.straight for region in regions)
