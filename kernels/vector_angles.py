"""Trigonometric functions of vectors: see vector_functions.py."""

from __future__ import annotations

import math
from math import inf, nan
from typing import Any

from tapegrad.kernels.coefficients import (
    ASIN_FIT,
    ATAN_FIT,
    COS_FIT,
    HALF_PI_PAIR,
    HALF_PI_PARTS,
    SIN_FIT,
    SIN_WIDE_FIT,
)
from tapegrad.kernels.cpu import simd
from tapegrad.kernels.cpu.simd import (
    any_lane,
    bits,
    fabs,
    fma,
    from_bits,
    maximum,
    minimum,
    polynomial,
    product_error,
    repair,
    select,
)
from tapegrad.kernels.vector_functions import ROUNDER, TINY, I, V, quotient, root_pair, two_sum

SIGN = 63  # Where the bit of the sign is.
SIGN32 = 31
ANGLE_LIMIT = 1.0e6  # The multiples of pi / 2 below it have 20 bits.
ANGLE_LIMIT32 = 3000.0  # Here they have 11.
STEEPEST = 1e300  # Of a larger number the arctangent is as good as pi / 2.
STEEPEST32 = 1e30
# Powers of 2 that bring a reciprocal, and what rounding loses of a quotient, in range.
QUOTIENT_LARGE, QUOTIENT_DOWN, QUOTIENT_UP = 2.0**400, 2.0**-30, 2.0**500
QUOTIENT_LARGE32, QUOTIENT_DOWN32, QUOTIENT_UP32 = 2.0**40, 2.0**-10, 2.0**60


def less_quarters(x: V, m: V) -> tuple[V, V]:
    """Return x - m pi / 2 as a sum of two, for an integer m of at most 20 bits, in float32 11."""
    a = fma(m, -HALF_PI_PARTS[0], x)  # Exact.
    b = m * HALF_PI_PARTS[1]
    r, r_lo = two_sum(a, -b)
    r_lo = fma(m, -HALF_PI_PARTS[2], r_lo - product_error(m, HALF_PI_PARTS[1], b))
    h = r + r_lo
    return h, (r - h) + r_lo


def sine_and_cosine(x: V) -> tuple[I, V, V, V, V]:
    """Return n, and sine and cosine of x - n pi / 2, at most pi / 4, as sums; |x| < a million."""
    t = fma(x, 0.6366197723675814, ROUNDER)
    h, h_lo = less_quarters(x, t - ROUNDER)
    z = h * h
    half = 0.5 * z
    w = 1.0 - half
    s_lo = fma(z * h, polynomial(z, SIN_FIT), fma(-half, h_lo, h_lo))
    c_lo = ((1.0 - w) - half) + fma(z * z, polynomial(z, COS_FIT), -(h * h_lo))
    return bits(t), h, s_lo, w, c_lo


def sine_beyond(x: V, m: V) -> V:
    """Return the sine of x - m pi / 2, which is at most pi / 2; |x| < a million."""
    h, h_lo = less_quarters(x, m)
    z = h * h
    c = fma(z, fma(z, 0.041666666666666664, -0.5), 1.0)  # The cosine, roughly.
    # By how much rounding z changes z SIN(z), whose slope is about -0.135 where that counts.
    slope = -0.135 * product_error(h, h, z)
    return h + fma(z * h, polynomial(z, SIN_WIDE_FIT), fma(slope, h, h_lo * c))


def vsin(x: V) -> V:
    """Return the sine."""
    t = fma(x, 0.3183098861837907, ROUNDER)
    n = t - ROUNDER
    y = sine_beyond(x, n + n)
    y = from_bits(bits(y) ^ (bits(t) << SIGN))
    y = select(fabs(x) < TINY, x, y)
    far = ~(fabs(x) < ANGLE_LIMIT)
    if any_lane(far):
        y = repair(math.sin, far, x, y)
    return y


def vcos(x: V) -> V:
    """Return the cosine, which is the sine of pi / 2 - x."""
    t = fma(x, 0.3183098861837907, 0.5) + ROUNDER
    n = t - ROUNDER
    y = sine_beyond(x, (n + n) - 1.0)
    y = from_bits(bits(y) ^ (bits(t) << SIGN))
    far = ~(fabs(x) < ANGLE_LIMIT)
    if any_lane(far):
        y = repair(math.cos, far, x, y)
    return y


def vtan(x: V) -> V:
    """Return the tangent."""
    n, s, s_lo, c, c_lo = sine_and_cosine(x)
    odd = (n & 1) != 0
    below, below_lo = select(odd, s, c), select(odd, s_lo, c_lo)
    sum_ = below + below_lo
    below_lo = (below - sum_) + below_lo
    y, y_lo = quotient(select(odd, -c, s), select(odd, -c_lo, s_lo), sum_, below_lo)
    y = select(fabs(x) < TINY, x, y + y_lo)
    far = ~(fabs(x) < ANGLE_LIMIT)
    if any_lane(far):
        y = repair(math.tan, far, x, y)
    return y


def angle(above: V, above_lo: V, below: V, below_lo: V) -> tuple[V, V]:
    """Return the arctangent of (above + above_lo) / (below + below_lo), at most 1/2, as a sum."""
    t, t_lo = quotient(above, above_lo, below, below_lo)
    z = t * t
    return t, fma(t * z, polynomial(z, ATAN_FIT), t_lo)


def quotient_angle(a: V, b: V) -> tuple[V, V]:
    """Return the arctangent of a / b as a sum of two, for a, b >= 0 and not both 0.

    Below tan(pi / 8) it is that of a / b, above tan(3 pi / 8) pi / 2 less that of b / a, and
    between pi / 4 more than that of (a - b) / (a + b).
    """
    low, high = a < 0.4142135623730951 * b, a > 2.414213562373095 * b
    total, total_lo = two_sum(a, b)
    difference, difference_lo = two_sum(a, -b)
    above = select(low, a, select(high, -b, difference))
    below = select(low, b, select(high, a, total))
    middle = ~(low | high)
    above_lo, below_lo = select(middle, difference_lo, 0.0), select(middle, total_lo, 0.0)
    t, t_lo = angle(above, above_lo, below, below_lo)
    base = select(low, 0.0, select(high, HALF_PI_PAIR[0], 0.5 * HALF_PI_PAIR[0]))
    base_lo = select(low, 0.0, select(high, HALF_PI_PAIR[1], 0.5 * HALF_PI_PAIR[1]))
    h = base + t
    return h, ((base - h) + t) + (t_lo + base_lo)


def varctan(x: V) -> V:
    """Return the inverse tangent."""
    a = minimum(STEEPEST, fabs(x))
    h, h_lo = quotient_angle(a, 1.0)
    return simd.copysign(h + h_lo, x)


def varctan2(y: V, x: V) -> V:
    """Return the angle of the point (x, y)."""
    a, b = fabs(y), fabs(x)
    infinite = (a == inf) | (b == inf)
    a = select(infinite, select(a == inf, 1.0, 0.0), a)
    b = select(infinite, select(b == inf, 1.0, 0.0), b)
    larger = maximum(a, b)
    b = select(larger == 0.0, 1.0, b)
    scale = select(larger > QUOTIENT_LARGE, QUOTIENT_DOWN, QUOTIENT_UP)
    h, h_lo = quotient_angle(a * scale, b * scale)
    left = simd.copysign(1.0, x) < 0.0
    far = HALF_PI_PAIR[0] * 2.0 - h
    far_lo = (HALF_PI_PAIR[0] * 2.0 - far) - h + (HALF_PI_PAIR[1] * 2.0 - h_lo)
    angle = select(left, far + far_lo, h + h_lo)
    return select((x != x) | (y != y), nan, simd.copysign(angle, y))


def arcsine_parts(x: V) -> tuple[Any, V, V]:
    """Return whether |x| > 1/2, and if so the inverse sine of sqrt((1 - |x|) / 2), else of |x|."""
    a = fabs(x)
    outer = a > 0.5
    z = select(outer, 0.5 - 0.5 * a, a * a)
    root, root_lo = root_pair(z, 0.0)
    t = select(outer, root, a)
    t_lo = select(outer, root_lo, 0.0)
    return outer, t, fma(t * z, polynomial(z, ASIN_FIT), t_lo)


def varcsin(x: V) -> V:
    """Return the inverse sine."""
    outer, t, t_lo = arcsine_parts(x)
    h = HALF_PI_PAIR[0] - (t + t)
    h_lo = (HALF_PI_PAIR[0] - h) - (t + t) + (HALF_PI_PAIR[1] - (t_lo + t_lo))
    return simd.copysign(select(outer, h + h_lo, t + t_lo), x)


def varccos(x: V) -> V:
    """Return the inverse cosine."""
    outer, t, t_lo = arcsine_parts(x)
    negative = x < 0.0
    # pi - 2 t where x < -1/2, 2 t where x > 1/2, pi / 2 - x between.
    t = select(outer, t + t, t)
    t_lo = select(outer, t_lo + t_lo, t_lo)
    sign = select(outer ^ negative, 1.0, -1.0)
    base = select(outer, select(negative, 2.0, 0.0), 1.0)
    t, t_lo = t * sign, t_lo * sign
    b = HALF_PI_PAIR[0] * base
    h = b + t
    h_lo = (b - h) + t + (HALF_PI_PAIR[1] * base + t_lo)
    return h + h_lo
