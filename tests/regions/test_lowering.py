"""Regions on the CPU against the reference: windows of all kinds, chunks and threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tapegrad.kernels import words
from tapegrad.kernels.opcodes import ARITY, ROWS
from tapegrad.ops.table import TABLE
from tapegrad.regions import lowering, threads
from tapegrad.regions.region import MAXIMUM, MINIMUM, Region, RegionBuilder, run_reference
from tapegrad.regions.threads import get_num_threads, lower, run_region, set_num_threads


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Spread even the smallest region over threads, where there are any."""
    before = get_num_threads()
    monkeypatch.setattr(threads, "WORTH", 0)
    yield
    set_num_threads(before)


def run_everywhere(region: Region, buffers: list[Any], rtol: float = 1e-11) -> list[Any]:
    """Run a region by the reference and by one and three threads, and compare."""
    answers = []
    for n in (0, 1, 3):
        copies = [buffer.copy() for buffer in buffers]
        if n:
            set_num_threads(n)
            run_region(region, copies)
        else:
            run_reference(region, copies)
        answers.append(copies)
    for reference, one, three in zip(*answers, strict=True):
        # Sums are taken in another order than the reference's.
        atol = 1e-11 if one.dtype == np.float64 else 1e-4
        np.testing.assert_allclose(one, reference, rtol=rtol, atol=atol)
        assert one.tobytes() == three.tobytes()
    return answers[1]


def c_strides(shape: tuple[int, ...]) -> list[int]:
    return [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]


class Random:
    """A region of random windows and instructions."""

    def __init__(self, seed: int, shape: tuple[int, ...], real: str = "float64") -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = shape
        self.build = RegionBuilder(shape, real)
        self.buffers: list[Any] = []
        self.values = [self.build.constant(0.5)]
        for _ in range(self.rng.integers(1, 4)):
            self.bring_in()
        for _ in range(self.rng.integers(0, 8)):
            self.compute()
        for _ in range(self.rng.integers(1, 4)):
            self.carry_out()
        self.region = self.build.finish()
        self.buffers = [b if b.dtype == np.uint32 else b.astype(real) for b in self.buffers]

    def window(self) -> tuple[list[int], int, int]:
        """Return strides, an offset, and how many places they need."""
        dense = c_strides(self.shape)
        strides = (
            dense,
            [0] * len(dense),
            [s if self.rng.random() < 0.5 else 0 for s in dense],
            [-s for s in dense],
            [2 * s for s in dense],
            [int(self.rng.integers(0, 4)) for _ in dense],
        )[self.rng.integers(6)]
        reach = [(n - 1) * s for n, s in zip(self.shape, strides, strict=True)]
        offset = int(self.rng.integers(0, 5)) - sum(r for r in reach if r < 0)
        return strides, offset, offset + sum(r for r in reach if r > 0) + 1

    def index(self, size: int) -> int:
        self.buffers.append(self.rng.integers(0, 50, size).astype(np.uint32))
        return len(self.buffers) - 1

    def bring_in(self) -> None:
        strides, offset, size = self.window()
        gathered = self.rng.random() < 0.3
        self.buffers.append(self.rng.uniform(0.5, 2.0, 60 if gathered else size))
        buffer = len(self.buffers) - 1
        where = {"index": self.index(size), "base": 3} if gathered else {}
        self.values.append(self.build.input(buffer, strides, offset, **where))

    def compute(self) -> None:
        row = self.rng.choice(["add", "multiply", "maximum", "where", "sqrt", "exp", "less", "sin"])
        operands = [self.values[self.rng.integers(len(self.values))] for _ in range(ARITY[row])]
        self.values.append(self.build.op(str(row), *operands))

    def carry_out(self) -> None:
        if self.rng.random() < 0.4:  # consecutive elements that overlap
            offsets = self.rng.permutation(5)[: self.rng.integers(1, 4)].tolist()
            n = int(np.prod(self.shape))
            windows = [(c_strides(self.shape), offset, offset + n) for offset in offsets]
        else:
            windows = [self.window() for _ in range(self.rng.integers(1, 3))]
        extreme = int(self.rng.choice([0, 0, MAXIMUM, MINIMUM]))
        windows = windows[:1] if extreme else windows  # which meets no other window
        gathered = self.rng.random() < 0.25
        buffer = len(self.buffers)
        self.buffers.append(
            self.rng.uniform(-1.0, 1.0, 60 if gathered else max(size for *_, size in windows))
        )
        for strides, offset, size in windows:
            value = self.values[self.rng.integers(len(self.values))]
            where = {"index": self.index(size), "base": 2} if gathered else {}
            adds = bool(self.rng.integers(2))
            adds = adds and not extreme
            self.build.output(value, buffer, strides, offset, add=adds, how=extreme, **where)


SHAPES = [(1,), (7,), (16,), (300,), (5000,), (40, 33), (3, 4, 5), (1900, 3), (2, 1500), (3, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_regions(shape: tuple[int, ...]) -> None:
    for seed in range(12):
        case = Random(seed, shape)
        run_everywhere(case.region, case.buffers)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_regions_of_singles(shape: tuple[int, ...]) -> None:
    for seed in range(12):
        case = Random(seed, shape, "float32")
        run_everywhere(case.region, case.buffers, rtol=1e-4)  # sums of up to 5,700 numbers


def test_every_kind_of_window_occurs() -> None:
    kinds_at = words.WINDOW.index("KIND")
    seen: tuple[set[int], set[int]] = set(), set()
    for shape in SHAPES:
        for seed in range(12):
            region = Random(seed, shape).region
            table = lower(region).words[words.HEADER_WORDS :]
            count = len(region.inputs) + len(region.outputs)
            table = table[: count * words.WINDOW_WORDS].reshape(count, words.WINDOW_WORDS)
            seen[0].update(table[: len(region.inputs), kinds_at].tolist())
            seen[1].update(table[len(region.inputs) :, kinds_at].tolist())
    assert seen[0] == set(range(len(words.IN_KINDS)))
    assert seen[1] == set(range(len(words.OUT_KINDS)))


@pytest.mark.parametrize("row", ROWS)
def test_every_row_at_its_points(row: str) -> None:
    points = np.array(TABLE[row].points)
    build = RegionBuilder((len(points),))
    operands = [build.input(i, (1,)) for i in range(points.shape[1])]
    build.output(build.op(row, *operands), len(operands), (1,))
    buffers = [*map(np.ascontiguousarray, points.T), np.zeros(len(points))]
    # Functions of vectors are within a few units in the last place of the reference's.
    run_everywhere(build.finish(), buffers, rtol=1e-14)


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_singles_at_its_points(row: str) -> None:
    with np.errstate(over="ignore"):
        points = np.array(TABLE[row].points).astype(np.float32)
    build = RegionBuilder((len(points),), "float32")
    operands = [build.input(i, (1,)) for i in range(points.shape[1])]
    build.output(build.op(row, *operands), len(operands), (1,))
    buffers = [*map(np.ascontiguousarray, points.T), np.zeros(len(points), np.float32)]
    copies = [buffer.copy() for buffer in buffers]
    region = build.finish()
    run_reference(region, buffers)
    run_region(region, copies)
    with np.errstate(all="ignore"):
        # Functions of vectors are within two units in the last place; rows that are made of several
        # round in between, where the reference does not.
        near = np.abs(copies[-1] - buffers[-1]) <= 8 * np.spacing(np.abs(buffers[-1]))
        scale = TABLE[row].scale * np.finfo(np.float32).eps
        near |= np.abs(copies[-1] - buffers[-1]) <= 8 * scale
    same = (copies[-1] == buffers[-1]) | (np.isnan(copies[-1]) & np.isnan(buffers[-1]))
    assert (same | near).all(), (points[~(same | near)], copies[-1], buffers[-1])


def test_a_long_region_runs_in_smaller_blocks() -> None:
    build = RegionBuilder((1000,))
    x = build.input(0, (1,))
    values = [x]
    for _ in range(900):
        values.append(build.op("sin", values[-1]))
    total = values[0]
    for value in reversed(values):
        total = build.op("add", total, value)
    build.output(total, 1, (1,))
    region = build.finish()
    assert region.rows > 900
    assert lower(region).scratch < 2 << 20
    run_everywhere(region, [np.linspace(-1.0, 1.0, 1000), np.zeros(1000)])


@pytest.mark.parametrize("shape", [(7,), (5000,), (3, 2000), (2000, 3)], ids=str)
@pytest.mark.parametrize("how", [MAXIMUM, MINIMUM])
def test_extremes_are_those_of_numpy(shape: tuple[int, ...], how: int) -> None:
    values = np.random.default_rng(3).normal(size=shape)
    for special in (0.0, np.inf, -np.inf, np.nan):
        values.flat[values.size // 3] = special
        build = RegionBuilder(shape)
        x = build.input(0, c_strides(shape))
        expected = []
        for axis in (None, *range(len(shape))):
            kept = [n for i, n in enumerate(shape) if axis is not None and i != axis]
            strides = iter(c_strides(tuple(kept)))
            out = [0 if axis is None or i == axis else next(strides) for i in range(len(shape))]
            build.output(x, len(expected) + 1, out, how=how)
            expected.append(np.ravel((np.max if how == MAXIMUM else np.min)(values, axis=axis)))
        buffers = [values.ravel(), *[np.full(e.size, 7.0) for e in expected]]
        found = run_everywhere(build.finish(), buffers)
        for got, want in zip(found[1:], expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_extremes_meet_no_other_window() -> None:
    build = RegionBuilder((9,))
    x = build.input(0, (1,))
    build.output(x, 1, (0,), how=MAXIMUM)
    build.output(x, 1, (0,))
    with pytest.raises(ValueError, match="extremes meets another"):
        lower(build.finish())


def test_no_lanes() -> None:
    build = RegionBuilder((0,))
    build.output(build.input(0, (1,)), 1, (1,))
    run_region(build.finish(), [np.zeros(0), np.zeros(0)])


def test_numbers_of_threads() -> None:
    set_num_threads(np.int64(3))  # type: ignore[arg-type]
    assert get_num_threads() == 3
    with pytest.raises(ValueError, match="at least 1"):
        set_num_threads(0)
    with pytest.raises(TypeError, match="not an integer"):
        set_num_threads(1.5)  # type: ignore[arg-type]
    assert get_num_threads() == 3


def sum_of_squares(n: int) -> float:
    build = RegionBuilder((n,))
    build.output(build.op("square", build.input(0, (1,))), 1, (0,))
    total = np.zeros(1)
    run_region(build.finish(), [np.arange(float(n)), total])
    return float(total[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded")
def test_a_forked_process_has_threads_of_its_own() -> None:
    set_num_threads(3)
    expected = sum_of_squares(5000)
    child = os.fork()
    if child == 0:
        os._exit(0 if sum_of_squares(5000) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("bytes_", [0, 1 << 60], ids=["asked for ahead", "small"])
def test_arguments_between_lines_of_the_cache_give_the_same_bits(
    bytes_: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowering, "AHEAD_BYTES", bytes_)
    n = 5000
    build = RegionBuilder((n,))
    x = total = build.input(0, (1,))
    for _ in range(lowering.READ_OFTEN):
        total = build.op("multiply_add", total, x, x)
    build.output(total, 1, (1,))
    region = build.finish()
    values = np.random.default_rng(0).uniform(-1.0, 1.0, n)
    found = []
    for offset in range(8):
        room = np.empty(n + 16)
        start = -(room.ctypes.data // 8) % 8 + offset
        x_at = room[start : start + n]
        x_at[:] = values
        result = np.empty(n)
        run_region(region, [x_at, result])
        found.append(result)
    expected = values
    for _ in range(lowering.READ_OFTEN):
        expected = expected * values + values
    for result in found:
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("real", ["float64", "float32"])
def test_where_memory_begins_changes_no_bits(real: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks begin where lines of results past the cache do, but sums do not depend on that."""
    monkeypatch.setattr(lowering, "STREAM_BYTES", 0)
    n = 5003
    values = np.random.default_rng(0).normal(size=n).astype(real)
    values[::17] = [(-1.0) ** i * 0.0 for i in range(len(values[::17]))]

    def run(offset: int, other: int) -> list[bytes]:
        build = RegionBuilder((n,), real)
        x = build.input(0, (1,))
        y = build.op("multiply_add", x, x, x)
        build.output(y, 1, (1,))
        build.output(x, 2, (1,))
        build.output(y, 3, (0,))
        build.output(x, 4, (0,), how=MAXIMUM)
        build.output(build.op("multiply", x, build.constant(0.0)), 5, (0,), how=MINIMUM)
        region = build.finish()
        buffers = [between_lines(n, real, offset), between_lines(n, real, offset + other)]
        buffers += [between_lines(n, real, 0), *np.zeros((3, 1), real)]
        buffers[0][:] = values
        assert header(region, "PEELED")
        run_everywhere(region, buffers, rtol=1e-4)
        run_region(region, buffers)
        return [buffer.tobytes() for buffer in buffers]

    expected = run(0, 0)
    for offset in range(1, 64 // np.dtype(real).itemsize):
        assert run(offset, 0) == run(offset, 1) == expected


def between_lines(n: int, real: str, offset: int) -> Any:
    """Return an array that starts so many numbers after a line of the cache does."""
    room = np.zeros(n + 256, real)
    start = -(room.ctypes.data // room.itemsize) % (64 // room.itemsize) + offset
    return room[start : start + n]


def header(region: Region, name: str) -> int:
    return int(lower(region).words[words.HEADER.index(name)])
