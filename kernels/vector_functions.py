"""Elementary functions of vectors, at most 2 units in the last place from the truth.

Plain Python in terms of `tapegrad.kernels.cpu.simd`. As with kernels/functions.py, the generator
copies the text of these functions into each compiled module that uses them, and with it the numbers
of kernels/coefficients.py, because Numba caches a file and not what it imports. Names begin with a
`v`, so that a module can hold the scalar function beside the vector one. The text is that for
float64; for float32 each name that ends in 32 takes the place of the name without it.

All lanes take the same path: what differs is selected. Only arguments that are rare and would be
dear (powers of negative numbers, and angles beyond a million in vector_angles.py) are repaired lane
by lane by the scalar function. docs/accuracy.md has the measured errors.

The ways are the textbook's (W. J. Cody and W. Waite, Software Manual for the Elementary Functions,
1980; J.-M. Muller, Elementary Functions, 2016): reduce the argument to a small interval, keeping
what rounding loses in a second number; take a polynomial there; then undo the reduction, adding
small terms first. Where `h` is a rounded result, `h_lo` is what it lost.
"""

from __future__ import annotations

import math
from math import inf, nan
from typing import Any

from tapegrad.kernels.coefficients import (
    CBRT_FIT,
    COSH_FIT,
    ERF_FIT,
    ERFC_FIT,
    ERFC_MIDDLE,
    EXP2_FIT,
    EXP_FIT,
    LN2_PARTS,
    LOG2E_PAIR,
    LOG2E_PARTS,
    LOG10_2_PARTS,
    LOG10E_PARTS,
    LOG_ERFC_FIT,
    LOG_FINE_FIT,
    LOG_FIT,
    LOG_UNIT_FIT,
    SINH_FIT,
    TWO_THIRDS,
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
    residual,
    select,
    shift_down,
)

V = Any  # A vector of numbers; `I` is one of integers.
I = Any  # noqa: E741

NOTHING = -0.0  # Adding it changes nothing, not even the sign of a zero, so compilers drop it.

# Numbers that differ between the types: NAME for float64, NAME32 for float32.
FRACTION, BIAS = 52, 1023  # Bits of the fraction, and what is added to the exponent.
FRACTION32, BIAS32 = 23, 127
FRACTION_BITS = 0x000FFFFFFFFFFFFF
FRACTION_BITS32 = 0x007FFFFF
ONE_BITS = 0x3FF0000000000000
ONE_BITS32 = 0x3F800000
ROOT_HALF_BITS = 0x3FE6A09E667F3BCD
ROOT_HALF_BITS32 = 0x3F3504F3
# Adding 1.5 * 2**52 rounds a number to an integer, and leaves that integer in the lowest bits.
ROUNDER = 6755399441055744.0
ROUNDER32 = 12582912.0
ROUNDER_BITS = 0x4338000000000000
ROUNDER_BITS32 = 0x4B400000
COUNTER_BITS = 0x4330000000000000  # Those of 2**52, in whose last bits a small integer fits.
COUNTER_BITS32 = 0x4B000000
COUNTER = 4503599627371519.0  # 2**52 + BIAS.
COUNTER32 = 8388735.0
TINY = 2.0**-54  # Beside 1, its square does not count, nor its half.
TINY32 = 2.0**-25
CUBE_TINY = 2.0**-28  # Beside it, a sixth of its cube does not count.
CUBE_TINY32 = 2.0**-13
SMALLEST_NORMAL = 2.2250738585072014e-308
SMALLEST_NORMAL32 = 1.1754943508222875e-38
LIFT, LIFTED = 2.0**54, 54  # Makes subnormal numbers normal.
LIFT32, LIFTED32 = 2.0**24, 24
EXP_LEAST, EXP_NEAR, EXP_MOST = -746.0, 708.0, 710.0  # 0, normal, and infinite from there.
EXP_LEAST32, EXP_NEAR32, EXP_MOST32 = -104.0, 87.0, 89.0
EXP2_LEAST, EXP2_NEAR, EXP2_MOST = -1076.0, 1020.0, 1025.0
EXP2_LEAST32, EXP2_NEAR32, EXP2_MOST32 = -151.0, 125.0, 129.0
HYPERBOLIC_MOST = 711.0
HYPERBOLIC_MOST32 = 90.0
ERFC_MOST = 27.5
ERFC_MOST32 = 10.5
HEAD_BITS = -(1 << 27)  # Of these, 26 bits stay of 53, whose products are exact.
HEAD_BITS32 = -(1 << 12)
HYPOT_LARGE, HYPOT_DOWN, HYPOT_DOWN_BACK = 2.0**500, 2.0**-600, 2.0**600
HYPOT_LARGE32, HYPOT_DOWN32, HYPOT_DOWN_BACK32 = 2.0**60, 2.0**-80, 2.0**80
HYPOT_SMALL, HYPOT_UP, HYPOT_UP_BACK = 2.0**-450, 2.0**600, 2.0**-600
HYPOT_SMALL32, HYPOT_UP32, HYPOT_UP_BACK32 = 2.0**-50, 2.0**100, 2.0**-100
THIRD_OFFSET, THIRD_BIAS = 0, 341  # BIAS + THIRD_OFFSET = 3 THIRD_BIAS.
THIRD_OFFSET32, THIRD_BIAS32 = 2, 43


# Numbers in two parts ---------------------------------------------------------------------------


def two_sum(x: V, y: V) -> tuple[V, V]:
    """Return x + y, and what it lost (Knuth)."""
    h = x + y
    v = h - x
    return h, (x - (h - v)) + (y - v)


def quotient(above: V, above_lo: V, below: V, below_lo: V) -> tuple[V, V]:
    """Return (above + above_lo) / (below + below_lo) as a sum of two."""
    inverse = 1.0 / below
    q = above * inverse
    return q, fma(-q, below_lo, residual(above, q, below) + above_lo) * inverse


def root_pair(q: V, q_lo: V) -> tuple[V, V]:
    """Return the root of q + q_lo as a sum of two."""
    r = simd.sqrt(q)
    return r, (residual(q, r, r) + q_lo) / maximum(r + r, SMALLEST_NORMAL)


# Exponentials -----------------------------------------------------------------------------------


def power_of_two(n: I) -> V:
    """Return 2**n where it is a normal number."""
    return from_bits((n + BIAS) << FRACTION)


def scaled(y: V, n: I) -> V:
    """Return y * 2**n for y near 1 and -1100 < n < 1100, rounded once."""
    half = shift_down(n + 2048, 1) - 1024
    return y * power_of_two(half) * power_of_two(n - half)


def exp_reduced(x: V) -> tuple[I, V, V]:
    """Return n, r and r_lo with x = n log(2) + r + r_lo and |r| <= log(2) / 2."""
    t = fma(x, LOG2E_PARTS[0], ROUNDER)
    n = t - ROUNDER
    a = fma(n, -LN2_PARTS[0], x)  # Exact.
    b = n * LN2_PARTS[1]
    r = a - b
    return bits(t) - ROUNDER_BITS, r, (a - r) - b


def exp_parts(x: V, x_lo: V) -> tuple[I, V]:
    """Return n and y with exp(x + x_lo) = 2**n y and y between the roots of 1/2 and 2."""
    n, r, r_lo = exp_reduced(x)
    y = r + 1.0
    y_lo = fma(r_lo + x_lo, y, (1.0 - y) + r)
    return n, y + fma(r * r, polynomial(r, EXP_FIT), y_lo)


def exp_far(x: V) -> V:
    """Return e**x where it is infinite, subnormal or zero, or x is nan."""
    n, y = exp_parts(minimum(EXP_MOST, maximum(EXP_LEAST, x)), NOTHING)  # So a nan stays.
    return scaled(y, n)


def exp_of_pair(x: V, x_lo: V) -> V:
    """Return e**(x + x_lo), where x_lo is at most about the last place of x."""
    n, y = exp_parts(x, x_lo)
    y = from_bits(bits(y) + (n << FRACTION))
    far = ~(fabs(x) < EXP_NEAR)
    if any_lane(far):
        y = select(far, exp_far(x), y)
    return y


def vexp(x: V) -> V:
    """Return e**x."""
    t = fma(x, LOG2E_PARTS[0], ROUNDER)
    n = t - ROUNDER
    # What this loses is a quarter of a unit.
    r = fma(n, -LN2_PARTS[1], fma(n, -LN2_PARTS[0], x))
    y = fma(r * r, polynomial(r, EXP_FIT), r) + 1.0
    y = from_bits(bits(y) + (bits(t) << FRACTION))
    far = ~(fabs(x) < EXP_NEAR)
    if any_lane(far):
        y = select(far, exp_far(x), y)
    return y


def exp2_parts(x: V, x_lo: V) -> tuple[I, V]:
    """Return n and y with 2**(x + x_lo) = 2**n y and y between the roots of 1/2 and 2."""
    t = x + ROUNDER
    r = (x - (t - ROUNDER)) + x_lo
    p = r * 0.6931471805599453
    y = p + 1.0
    y_lo = ((1.0 - y) + p) + product_error(r, 0.6931471805599453, p)
    return bits(t) - ROUNDER_BITS, y + fma(r * r, polynomial(r, EXP2_FIT), y_lo)


def exp2_of_pair(x: V, x_lo: V) -> V:
    """Return 2**(x + x_lo), where x_lo is at most about the last place of x."""
    n, y = exp2_parts(x, x_lo)
    y = from_bits(bits(y) + (n << FRACTION))
    far = ~(fabs(x) < EXP2_NEAR)
    if any_lane(far):
        n, z = exp2_parts(minimum(EXP2_MOST, maximum(EXP2_LEAST, x)), NOTHING)
        y = select(far, scaled(z, n), y)
    return y


def vexp2(x: V) -> V:
    """Return 2**x."""
    return exp2_of_pair(x, NOTHING)


def vexpm1(x: V) -> V:
    """Return e**x - 1."""
    n, r, r_lo = exp_reduced(minimum(EXP_MOST, maximum(-40.0, x)))
    s = power_of_two(n - 1)  # Half of what it should be, so that it stays in range.
    q = fma(r * r, polynomial(r, EXP_FIT), r_lo)
    a, b = s - 0.5, s * r
    h = a + b
    y = h + fma(s, q, b - (h - a))
    return select(fabs(x) < TINY, x, y + y)


def hyperbolic(x: V) -> tuple[V, V, V, V]:
    """Return sinh(x) / 4 and cosh(x) / 4 for 0 <= x < 712, each as a sum of two.

    With x = n log(2) + r, a = 2**(n - 1) and b = 2**(-n - 1), they are (a - b) cosh(r) + (a + b)
    sinh(r) and (a + b) cosh(r) + (a - b) sinh(r).
    """
    n, r, r_lo = exp_reduced(x)
    a = power_of_two(n - 3)
    b = power_of_two(-select(n > 100, 100, n) - 3)
    difference, total = a - b, a + b
    d_lost, t_lost = (a - difference) - b, (a - total) + b
    z = r * r
    c = z * fma(z, polynomial(z, COSH_FIT), 0.5)
    s = fma(r * z, polynomial(z, SINH_FIT), r_lo)
    p = total * r
    sh = difference + p
    p_lo = product_error(total, r, p) + d_lost
    sl = (p - (sh - difference)) + fma(difference, c, fma(total, s, p_lo))
    p = difference * r
    ch = total + p
    cl = (p - (ch - total)) + fma(total, c, fma(difference, s, t_lost))
    return sh, sl, ch, cl


def vsinh(x: V) -> V:
    """Return the hyperbolic sine."""
    sh, sl, _, _ = hyperbolic(minimum(HYPERBOLIC_MOST, fabs(x)))
    return select(fabs(x) < TINY, x, simd.copysign((sh + sl) * 4.0, x))


def vcosh(x: V) -> V:
    """Return the hyperbolic cosine."""
    _, _, ch, cl = hyperbolic(minimum(HYPERBOLIC_MOST, fabs(x)))
    return (ch + cl) * 4.0


def vtanh(x: V) -> V:
    """Return the hyperbolic tangent."""
    sh, sl, ch, cl = hyperbolic(minimum(20.0, fabs(x)))
    c = ch + cl
    y, y_lo = quotient(sh, sl, c, (ch - c) + cl)
    return select(fabs(x) < TINY, x, simd.copysign(y + y_lo, x))


# Logarithms -------------------------------------------------------------------------------------


def log_reduced(x: V) -> tuple[V, V]:
    """Return k and f with x = 2**k (1 + f), 1 + f between the roots of 1/2 and 2; x is normal."""
    i = bits(x) + (ONE_BITS - ROOT_HALF_BITS)
    k = from_bits(shift_down(i, FRACTION) | COUNTER_BITS) - COUNTER
    return k, from_bits((i & FRACTION_BITS) + ROOT_HALF_BITS) - 1.0


def log_reduced_all(x: V) -> tuple[V, V]:
    """Return k and f as `log_reduced` does, for subnormal numbers too."""
    small = x < SMALLEST_NORMAL
    k, f = log_reduced(select(small, x * LIFT, x))
    return select(small, k - LIFTED, k), f


def log_tail(f: V) -> tuple[V, V]:
    """Return h and t with log(1 + f) = f - h + t, h = f**2 / 2.

    With s = f / (2 + f) it is 2 s + s R(s**2), and 2 s = f - s f = f - h + s h.
    """
    s = f / (f + 2.0)
    z = s * s
    h = 0.5 * f * f
    return h, s * fma(z, polynomial(z, LOG_FIT), h)


def log_ends(x: V, y: V) -> V:
    """Return y, the logarithm of x, or what it is where x is not positive and finite."""
    y = select(x == inf, inf, y)
    return select(x > 0.0, y, select(x == 0.0, -inf, nan))


def vlog(x: V) -> V:
    """Return the natural logarithm."""
    k, f = log_reduced_all(x)
    h, t = log_tail(f)
    y = fma(k, LN2_PARTS[0], f - (h - fma(k, LN2_PARTS[1], t)))
    return log_ends(x, y)


def log_of_base(x: V, one: Any, two: Any) -> V:
    """Return log(x) to a base; the logarithms of e and 2 to that base are given in two parts."""
    k, f = log_reduced_all(x)
    h, t = log_tail(f)
    head = from_bits(bits(f - h) & HEAD_BITS)  # Times as many of `one`, exact.
    rest = (f - head) - h + t
    a, b = k * two[0], head * one[0]
    y = a + b
    rest = fma(rest, one[0], fma(rest + head, one[1], k * two[1]))
    return log_ends(x, y + (((a - y) + b) + rest))


def vlog2(x: V) -> V:
    """Return the logarithm to base 2."""
    return log_of_base(x, LOG2E_PARTS, (1.0, 0.0))


def vlog10(x: V) -> V:
    """Return the logarithm to base 10."""
    return log_of_base(x, LOG10E_PARTS, LOG10_2_PARTS)


def log_of_pair(u: V, u_lo: V, more: V) -> V:
    """Return log(u + u_lo) + more log(2), for u normal and u_lo at most about its last place."""
    k, f = log_reduced(u)
    h, t = log_tail(f)
    k = k + more
    y = fma(k, LN2_PARTS[0], f - (h - (t + fma(k, LN2_PARTS[1], u_lo / u))))
    return log_ends(u, y)


def vlog1p(x: V) -> V:
    """Return log(1 + x)."""
    u, u_lo = two_sum(x, 1.0)
    return select(fabs(x) < TINY, x, log_of_pair(u, u_lo, 0.0))


def vlogit(x: V) -> V:
    """Return log(x / (1 - x))."""
    small = x < SMALLEST_NORMAL
    d = 1.0 - x
    q, q_lo = quotient(select(small, x * LIFT, x), 0.0, d, (1.0 - d) - x)
    return log_of_pair(q, q_lo, select(small, -LIFTED, 0.0))


def varcsinh(x: V) -> V:
    """Return the inverse hyperbolic sine, log(|x| + sqrt(x**2 + 1)) with the sign of x."""
    a = fabs(x)
    p = a * a
    q, q_lo = two_sum(p, 1.0)
    r, r_lo = root_pair(q, q_lo + product_error(a, a, p))
    u, u_lo = two_sum(a, r)
    large = a > 2.0**30  # The root is |x|.
    u, u_lo = select(large, a, u), select(large, 0.0, u_lo + r_lo)
    y = log_of_pair(u, u_lo, select(large, 1.0, 0.0))
    return select(a < CUBE_TINY, x, simd.copysign(y, x))


def varccosh(x: V) -> V:
    """Return the inverse hyperbolic cosine, log(x + sqrt(x**2 - 1))."""
    p = x * x
    q, q_lo = two_sum(p, -1.0)
    r, r_lo = root_pair(q, q_lo + product_error(x, x, p))
    u, u_lo = two_sum(x, r)
    large = x > 2.0**30
    u, u_lo = select(large, x, u), select(large, 0.0, u_lo + r_lo)
    y = log_of_pair(u, u_lo, select(large, 1.0, 0.0))
    return select(x >= 1.0, y, nan)


def varctanh(x: V) -> V:
    """Return the inverse hyperbolic tangent, log(1 + 2 |x| / (1 - |x|)) / 2 with the sign of x."""
    a = fabs(x)
    d = 1.0 - a
    q, q_lo = quotient(a + a, 0.0, d, (1.0 - d) - a)
    u, u_lo = two_sum(q, 1.0)
    y = 0.5 * log_of_pair(u, u_lo + q_lo, 0.0)
    return select(a < CUBE_TINY, x, simd.copysign(y, x))


def vxlogy(x: V, y: V) -> V:
    """Return x * log(y), and 0 where x is 0."""
    return select((x == 0.0) & (y == y), 0.0, x * vlog(y))


def vxlog1py(x: V, y: V) -> V:
    """Return x * log1p(y), and 0 where x is 0."""
    return select((x == 0.0) & (y == y), 0.0, x * vlog1p(y))


def log1p_pair(e: V) -> tuple[V, V]:
    """Return log(1 + e) as a sum of two, for 0 <= e <= 1: 2 s + s R(s**2), s = e / (2 + e)."""
    below = e + 2.0
    q, q_lo = quotient(e + e, 0.0, below, (2.0 - below) + e)
    half = 0.5 * q
    z = half * half
    return q, fma(half * z, polynomial(z, LOG_UNIT_FIT), q_lo)


def plus_log1p(x: V, e: V) -> V:
    """Return x + log(1 + e) for 0 <= e <= 1."""
    q, q_lo = log1p_pair(e)
    y, y_lo = two_sum(x, q)
    return select(fabs(x) < inf, y + (y_lo + q_lo), x + e)


def vexpit(x: V) -> V:
    """Return 1 / (1 + exp(-x))."""
    e = vexp(-fabs(x))
    below = e + 1.0
    y, y_lo = quotient(select(x >= 0.0, 1.0, e), 0.0, below, (1.0 - below) + e)
    return y + y_lo


def vsoftplus(x: V) -> V:
    """Return log(1 + exp(x))."""
    return plus_log1p(maximum(x, 0.0), vexp(-fabs(x)))


def vlog_expit(x: V) -> V:
    """Return log(expit(x))."""
    return -plus_log1p(maximum(-x, 0.0), vexp(-fabs(x)))


def larger_and_difference(x: V, y: V) -> tuple[V, V, V]:
    """Return the larger of two numbers, and the smaller less the larger as a sum of two."""
    m = maximum(x, y)  # A nan is either here or in the other, by the order of operands.
    d, d_lo = two_sum(minimum(y, x), -m)
    return m, d, d_lo


def vlogaddexp(x: V, y: V) -> V:
    """Return log(exp(x) + exp(y))."""
    m, d, d_lo = larger_and_difference(x, y)
    result = plus_log1p(m, exp_of_pair(d, d_lo))
    return select(x == y, x + 0.6931471805599453, result)  # Also of equal infinities.


def vlogaddexp2(x: V, y: V) -> V:
    """Return log2(2**x + 2**y)."""
    m, d, d_lo = larger_and_difference(x, y)
    e = exp2_of_pair(d, d_lo)
    q, q_lo = log1p_pair(e)
    p = q * LOG2E_PAIR[0]
    p_lo = fma(q_lo, LOG2E_PAIR[0], product_error(q, LOG2E_PAIR[0], p))
    h, h_lo = two_sum(m, p)
    result = select(fabs(m) < inf, h + (h_lo + p_lo), m + p)
    return select(x == y, x + 1.0, result)


# Powers -----------------------------------------------------------------------------------------


def vcbrt(x: V) -> V:
    """Return the cube root."""
    a = fabs(x)
    small = a < SMALLEST_NORMAL
    i = bits(select(small, a * LIFT, a))
    e = shift_down(i, FRACTION) + THIRD_OFFSET
    third = shift_down(e * 21846, 16)  # e // 3.
    rest = e - third * 3
    f = from_bits((i & FRACTION_BITS) | ONE_BITS)
    # Its exponent is 0, 1 or 2.
    m = from_bits((i & FRACTION_BITS) | ((rest + BIAS) << FRACTION))
    root = select(rest == 0, 1.0, select(rest == 1, 1.2599210498948732, 1.5874010519681996))
    y = polynomial(f, CBRT_FIT) * root
    inverse = 1.0 / m
    d = fma(-(y * y), y * inverse, 1.0)  # 1 - y**3 / m, of which y (1 - d)**(-1/3) is to be had.
    y = fma(y * d, fma(d, 0.2222222222222222, 0.3333333333333333), y)
    p = y * y
    short = residual(m, p, y) - product_error(y, y, p) * y
    y = fma(short * (y * inverse), 0.3333333333333333, y)
    shift = third - select(small, THIRD_BIAS + LIFTED // 3, THIRD_BIAS)
    y = y * power_of_two(shift)
    return simd.copysign(select((a == 0.0) | ~(a < inf), a, y), x)


def log2_pair(x: V) -> tuple[V, V]:
    """Return log2(x) as a sum of two, to about 2**-66 of it, for positive finite x."""
    k, f = log_reduced_all(x)
    d = f + 2.0
    s, s_lo = quotient(f, 0.0, d, f - (d - 2.0))
    z = s * s
    z_lo = fma(s + s, s_lo, product_error(s, s, z))
    # The logarithm is 2 s + s z c with c = 2/3 + z LOG_FINE_FIT(z).
    b = z * polynomial(z, LOG_FINE_FIT)
    c = b + TWO_THIRDS[0]
    c_lo = (TWO_THIRDS[0] - c) + b + TWO_THIRDS[1]
    p = z * c
    p_lo = fma(z, c_lo, fma(z_lo, c, product_error(z, c, p)))
    q = s * p
    q_lo = fma(s, p_lo, fma(s_lo, p, product_error(s, p, q)))
    h = (s + s) + q
    h_lo = ((s + s) - h) + q + (q_lo + (s_lo + s_lo))
    # Times log2(e), plus k.
    p = h * LOG2E_PAIR[0]
    p_lo = product_error(h, LOG2E_PAIR[0], p)
    p_lo = fma(h, LOG2E_PAIR[1], fma(h_lo, LOG2E_PAIR[0], p_lo))
    y = k + p
    return y, ((k - y) + p) + p_lo


def vpower(x: V, y: V) -> V:
    """Return x**y."""
    h, h_lo = log2_pair(x)
    p = y * h
    p_lo = fma(y, h_lo, product_error(y, h, p))
    inside = fabs(p) < -EXP2_LEAST
    p = select(inside, p, select(p > 0.0, EXP2_MOST, EXP2_LEAST))
    p_lo = select(inside, p_lo, 0.0)
    n, z = exp2_parts(p, p_lo)
    z = scaled(z, n)
    special = ~((x > 0.0) & (x < inf) & (fabs(y) < inf))
    if any_lane(special):
        z = repair(math.pow, special, (x, y), z)
    return z


def vhypot(x: V, y: V) -> V:
    """Return the root of x**2 + y**2."""
    a, b = fabs(x), fabs(y)
    larger = maximum(a, b)
    large, small = larger > HYPOT_LARGE, larger < HYPOT_SMALL
    scale = select(large, HYPOT_DOWN, select(small, HYPOT_UP, 1.0))
    back = select(large, HYPOT_DOWN_BACK, select(small, HYPOT_UP_BACK, 1.0))
    c, d = a * scale, b * scale
    h = simd.sqrt(fma(c, c, d * d)) * back
    return select((a == inf) | (b == inf), inf, h)


# The error function -----------------------------------------------------------------------------


def verf(x: V) -> V:
    """Return the error function."""
    a = fabs(x)
    z = a * a
    near = fma(a, polynomial(z, ERF_FIT), a)
    b = minimum(6.0, maximum(1.0, a))
    n, r, _ = exp_reduced(polynomial(b, LOG_ERFC_FIT))
    far = 1.0 - fma(r, fma(r, polynomial(r, EXP_FIT), 1.0), 1.0) * power_of_two(n)
    return simd.copysign(select(a < 1.0, near, select(a < inf, far, select(a == inf, 1.0, x))), x)


def verfc(x: V) -> V:
    """Return 1 - erf(x), accurate where that is small."""
    a = minimum(ERFC_MOST, fabs(x))
    # Its product with exp(a**2) and 1 + 2 a is a polynomial in t = (a - 3.75) / (a + 3.75).
    t = (a - 3.75) / (a + 3.75)
    p = t * polynomial(t, ERFC_FIT)
    above = p + ERFC_MIDDLE[0]
    above_lo = p - (above - ERFC_MIDDLE[0]) + ERFC_MIDDLE[1]
    below = fma(a, 2.0, 1.0)
    below_lo = select(a < 1.0, (1.0 - below) + 2.0 * a, (2.0 * a - below) + 1.0)
    q, q_lo = quotient(above, above_lo, below, below_lo)
    square = a * a
    n, r, r_lo = exp_reduced(-square)
    r_lo = r_lo - product_error(a, a, square)
    e = r + 1.0
    rest = fma(r * r, polynomial(r, EXP_FIT), (1.0 - e) + r)
    e_hi = e + rest
    e_lo = fma(e_hi, r_lo, (e - e_hi) + rest)
    y = scaled(fma(e_hi, q, fma(e_hi, q_lo, e_lo * q)), n)
    # Near 0 that quotient t loses too much.
    near = 1.0 - a
    near = near + fma(-a, polynomial(square, ERF_FIT), (1.0 - near) - a)
    y = select(a < 0.6, near, y)
    return select(x < 0.0, 2.0 - y, y)
