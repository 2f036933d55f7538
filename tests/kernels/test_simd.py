"""Vectors do in every lane what NumPy does in every element."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapegrad.kernels.cpu import simd
from tapegrad.kernels.cpu.jit import helper, kernel
from tapegrad.kernels.emit import library

X = np.array([
    *(-np.inf, -5e300, -7.5, -2.0, -1.0, -0.5, -5e-324, -0.0),
    *(0.0, 5e-324, 0.5, 1.0, 2.5, 7.5, 1e300, np.nan),
])  # fmt: skip
Y = np.array(
    [2.0, 1.0, -7.5, 3.0, 0.0, 0.5, -0.0, 0.0, -0.0, 1.0, 0.25, np.nan, 2.5, 8.0, 1.0, 1.0]
)


@helper
def write_all(out: int, results: Any) -> None:
    for result in results:
        simd.store(out, result)
        out += 128


@kernel
def arithmetic(a: int, b: int, out: int) -> None:
    x, y = simd.load(a), simd.load(b)
    write_all(out, (x + y, x - y, x * y, x / y, -x, 2.0 * x, 1 - x))


@kernel
def functions(a: int, b: int, out: int) -> None:
    x, y = simd.load(a), simd.load(b)
    results = (simd.fabs(x), simd.copysign(x, y), simd.sqrt(x), simd.floor(x), simd.ceil(x))
    write_all(out, results)
    more = (simd.trunc(x), simd.rint(x), simd.minimum(x, y), simd.maximum(x, 0.0))
    write_all(out + 5 * 128, more)


@kernel
def comparisons(a: int, b: int, out: int) -> None:
    x, y = simd.load(a), simd.load(b)
    f = simd.as_numbers
    write_all(out, (f(x < y), f(x <= y), f(x > y), f(x >= y), f(x == y), f(x != y)))
    masks = (f((x < y) & (x > 0)), f((x < y) | (x > 0)), f((x < y) ^ (x > 0)), f(~(x < y)))
    write_all(out + 6 * 128, masks)
    write_all(out + 10 * 128, (simd.select(x < y, x, y), simd.select(x < y, 1.0, -2.0)))


@kernel
def integers(a: int, b: int, out: int) -> None:
    x, y = simd.load_integers(a), simd.load_integers(b)
    i, j = (x + y) * 3 - (x ^ y), (x & 255) | (y << 3)
    write_all(out, (simd.from_bits(i), simd.from_bits(j), simd.from_bits(x >> 5)))
    chosen = simd.select(x > y, x, ~y)
    write_all(out + 3 * 128, (simd.to_numbers(chosen), simd.to_numbers(-x)))
    simd.store_integers(out + 5 * 128, simd.to_integers(simd.to_numbers(x)))
    simd.store_integers(out + 6 * 128, simd.shift_down(x, 60))


def call(function: Callable[..., Any], x: Any, y: Any, rows: int) -> Any:
    out = np.empty((rows, simd.LANES))
    function(x.ctypes.data, y.ctypes.data, out.ctypes.data)
    return out


def same(got: Any, want: Any) -> None:
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got)[want == 0], np.signbit(want)[want == 0])


@pytest.mark.filterwarnings("ignore:invalid value")
def test_numbers() -> None:
    with np.errstate(all="ignore"):
        want = np.array([X + Y, X - Y, X * Y, X / Y, -X, 2.0 * X, 1 - X])
        same(call(arithmetic, X, Y, 7), want)
        named = [np.abs(X), np.copysign(X, Y), np.sqrt(X), np.floor(X), np.ceil(X), np.trunc(X)]
        chosen = [np.rint(X), np.where(X < Y, X, Y), np.where(X > 0.0, X, 0.0)]
        same(call(functions, X, Y, 9), np.array(named + chosen))


def test_masks() -> None:
    less, positive = X < Y, X > 0
    masks = [less, X <= Y, X > Y, X >= Y, X == Y, X != Y, less & positive, less | positive]
    masks += [less ^ positive, ~less]
    chosen = [np.where(less, X, Y), np.where(less, 1.0, -2.0)]
    same(call(comparisons, X, Y, 12), np.array([*np.array(masks, float), *chosen]))


def test_integers() -> None:
    x, y = np.arange(-8, 8) * 12345, np.arange(16)[::-1].copy()
    out = call(integers, x, y, 7)
    words = out.view(np.int64)
    np.testing.assert_array_equal(words[0], (x + y) * 3 - (x ^ y))
    np.testing.assert_array_equal(words[1], (x & 255) | (y << 3))
    np.testing.assert_array_equal(words[2], x >> 5)
    np.testing.assert_array_equal(out[3:5], [np.where(x > y, x, ~y), -x])
    np.testing.assert_array_equal(words[5], x)
    np.testing.assert_array_equal(words[6], x.astype(np.uint64) >> np.uint64(60))


@kernel
def lanes(a: int, out: int) -> tuple[float, bool, bool, bool]:
    x = simd.load(a)
    y = simd.with_lane(simd.splat(1.0), 3, simd.lane(x, 2))
    simd.store(out, simd.repair(math.sin, x > 2.0, x, y))
    simd.store(out + 128, simd.gather(a, simd.to_integers(simd.rint(simd.fabs(x)))))
    some, none = x > 2.0, x > 1e9
    return simd.sum_lanes(x), simd.any_lane(some), simd.any_lane(none), simd.all_lanes(~none)


def test_lanes() -> None:
    x, out = np.arange(16.0)[::-1] - 0.25, np.empty((2, 16))
    assert lanes(x.ctypes.data, out.ctypes.data) == (x.sum(), True, False, True)
    want = np.ones(16)
    want[3] = x[2]
    np.testing.assert_array_max_ulp(out[0], np.where(x > 2.0, np.sin(x), want), 1)
    np.testing.assert_array_equal(out[1], x[np.rint(np.abs(x)).astype(int)])


after_1, after_15 = simd.after(1), simd.after(15)


@kernel
def shifted(a: int, b: int, out: int) -> None:
    x, y = simd.load(a), simd.load(b)
    write_all(out, (after_1(x, y), after_15(x, y)))


def test_lanes_of_two_vectors() -> None:
    both = np.concatenate([X, Y])
    same(call(shifted, X, Y, 2), np.array([both[15:31], both[1:17]]))


@kernel
def exact(a: int, b: int, out: int) -> None:
    x, y = simd.load(a), simd.load(b)
    p = x * y
    simd.store(out, p)
    simd.store(out + 128, simd.product_error(x, y, p))
    simd.store(out + 256, simd.polynomial(x, (1.0, y, 0.25)))


def test_what_products_lose() -> None:
    random = np.random.default_rng(3)
    x, y = random.normal(size=(2, 16))
    product, error, polynomial = call(exact, x, y, 3)
    for a, b, p, e in zip(x, y, product, error, strict=True):
        lost = Fraction(a) * Fraction(b) - Fraction(p) - Fraction(e)
        # Nothing, or without fused multiplication the rounding of the product of the low halves.
        assert abs(lost) <= Fraction(2) ** -104 * abs(Fraction(p))
    # Two roundings of terms that are at most 1 + |xy| + x**2 / 4.
    np.testing.assert_allclose(polynomial, 1 + y * x + x * x / 4, rtol=0, atol=1e-14)


@kernel
def single(a: int, out: int) -> None:
    x = simd.load_f32(a)
    y = simd.select(simd.fma(x, x, 1) > 2, simd.sqrt(x), 0.1)
    simd.store_f32(out, simd.from_bits((simd.bits(y) << 1) >> 1))
    simd.write_f32(out + 128, simd.read_f32(a + 4) + 1.0)


def test_single_precision() -> None:
    x, out = np.linspace(0.0, 3.0, 32, dtype=np.float32), np.empty(33, np.float32)
    single(x.ctypes.data, out.ctypes.data)
    np.testing.assert_array_equal(out[:32], np.where(x * x + 1 > 2, np.sqrt(x), np.float32(0.1)))
    assert out[32] == np.float32(float(x[1]) + 1.0)


def test_the_mark_is_that_of_the_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = library.simd_mark()
    edited = tmp_path / "simd.py"
    edited.write_bytes(library.SIMD.read_bytes() + b"#")
    monkeypatch.setattr(library, "SIMD", edited)
    assert library.simd_mark() != before
