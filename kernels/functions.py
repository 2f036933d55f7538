"""Functions that rows call and `math` lacks, for finite numbers, infinities, nan and both zeros.

Plain Python in terms of the elementary functions of `tapegrad.kernels.guarded`. The reference
interpreter imports this module; the generator copies the text of these functions into each compiled
module, where the same names mean Numba's functions, because Numba caches a file and not what it
imports. Hence three rules: call only other functions of this file or of `guarded`, never divide by
what may be zero (Python raises, compiled code does not), and return a float on every path.
"""

from __future__ import annotations

from math import inf, nan, pi

from tapegrad.kernels.guarded import (
    copysign,
    cos,
    exp,
    gamma,
    isinf,
    isnan,
    log,
    log1p,
    nextafter,
    power,
    scale,
    sin,
    split,
    tan,
)


def sign(x: float) -> float:
    """Return -1, 0 or 1 as x is negative, zero or positive."""
    if x > 0.0:
        return 1.0
    return -1.0 if x < 0.0 else x + 0.0


def trunc(x: float) -> float:
    """Return x without its fractional part."""
    if not abs(x) < 4503599627370496.0:  # From 2**52 on every float is an integer.
        return x
    return copysign(float(int(x)), x)


def floor(x: float) -> float:
    """Return the largest integer not above x."""
    t = trunc(x)
    return t - 1.0 if t > x else t


def ceil(x: float) -> float:
    """Return the smallest integer not below x."""
    t = trunc(x)
    return copysign(t + 1.0, x) if t < x else t


def rint(x: float) -> float:
    """Return the integer nearest to x, halves to even."""
    if not abs(x) < 4503599627370496.0:
        return x
    # Beyond 2**52 the spacing is 1, so the sum is rounded to an integer, as the hardware rounds.
    return copysign((abs(x) + 4503599627370496.0) - 4503599627370496.0, x)


def fmod(x: float, y: float) -> float:
    """Return the remainder of x / y that has the sign of x."""
    if y == 0.0 or isinf(x) or isnan(x) or isnan(y):
        return nan
    if isinf(y):
        return x
    return copysign(abs(x) % abs(y), x)


def remainder(x: float, y: float) -> float:
    """Return the remainder of x / y that has the sign of y."""
    r = fmod(x, y)
    if r == 0.0:
        return copysign(0.0, y)
    if not isnan(r) and (r < 0.0) != (y < 0.0):
        r += y
    return r


def floor_divide(x: float, y: float) -> float:
    """Return the floor of the quotient, exact where the rounded quotient would not be."""
    if y == 0.0:
        if x == 0.0 or isnan(x):
            return nan
        return copysign(inf, x) * copysign(1.0, y)
    r = fmod(x, y)
    quotient = (x - r) / y
    if r != 0.0 and (r < 0.0) != (y < 0.0):
        quotient -= 1.0
    if quotient == 0.0:
        return copysign(0.0, x / y)
    whole = floor(quotient)
    return whole + 1.0 if quotient - whole > 0.5 else whole


def modf_fractional(x: float) -> float:
    """Return the fractional part of x, with its sign."""
    if isinf(x):
        return copysign(0.0, x)
    return copysign(x - trunc(x), x)


def frexp_mantissa(x: float) -> float:
    """Return m in [1/2, 1) with x = m * 2**e."""
    if x == 0.0 or isinf(x) or isnan(x):
        return x
    return split(x)[0]


def frexp_exponent(x: float) -> float:
    """Return e with x = m * 2**e and m in [1/2, 1)."""
    if x == 0.0 or isinf(x) or isnan(x):
        return 0.0
    return float(split(x)[1])


def ldexp(x: float, y: float) -> float:
    """Return x * 2**y for an integer y."""
    return nan if isnan(y) else scale(x, int(min(max(y, -2200.0), 2200.0)))


def spacing(x: float) -> float:
    """Return the distance from x to the next float away from zero."""
    if isinf(x):
        return nan
    return copysign(nextafter(abs(x), inf) - abs(x), x)


def cbrt(x: float) -> float:
    """Return the cube root of x."""
    if x == 0.0 or isinf(x) or isnan(x):
        return x
    r = power(abs(x), 1.0 / 3.0)
    r -= (r - abs(x) / (r * r)) / 3.0  # One Newton step: 1/3 itself was rounded.
    return copysign(r, x)


def integer_power(x: float, y: float) -> float:
    """Return x**y for an integer y: by multiplication up to the eighth power."""
    if not abs(y) <= 8.0:
        return power(x, y)
    n = int(abs(y))
    r = 1.0
    base = x
    while n > 0:
        if n & 1:
            r *= base
        base *= base
        n >>= 1
    if y >= 0.0:
        return r
    # Where the positive power leaves the range of floats, its reciprocal would be lost.
    return 1.0 / r if 1e-300 < abs(r) < 1e300 else power(x, y)


def logaddexp(x: float, y: float) -> float:
    """Return log(exp(x) + exp(y))."""
    if x == y:
        return x + 0.6931471805599453
    return max(x, y) + log1p(exp(-abs(x - y))) if not isnan(x - y) else nan


def logaddexp2(x: float, y: float) -> float:
    """Return log2(2**x + 2**y)."""
    if x == y:
        return x + 1.0
    if isnan(x - y):
        return nan
    return max(x, y) + 1.4426950408889634 * log1p(power(2.0, -abs(x - y)))


def expit(x: float) -> float:
    """Return 1 / (1 + exp(-x))."""
    e = exp(-abs(x))
    return 1.0 / (1.0 + e) if x >= 0.0 else e / (1.0 + e)


def log_expit(x: float) -> float:
    """Return log(expit(x))."""
    return (x if x < 0.0 else 0.0) - log1p(exp(-abs(x)))


def softplus(x: float) -> float:
    """Return log(1 + exp(x))."""
    return (x if x > 0.0 else 0.0) + log1p(exp(-abs(x)))


def logit(x: float) -> float:
    """Return log(x / (1 - x))."""
    if x == 1.0:
        return inf
    if 0.3 < x < 0.65:  # Near the root at 1/2 the quotient would lose digits; this does not.
        s = 2.0 * (x - 0.5)
        return log1p(s) - log1p(-s)
    return log(x / (1.0 - x))


def xlogy(x: float, y: float) -> float:
    """Return x * log(y), and 0 where x is 0."""
    if x == 0.0 and not isnan(y):
        return 0.0
    return x * log(y)


def xlog1py(x: float, y: float) -> float:
    """Return x * log1p(y), and 0 where x is 0."""
    if x == 0.0 and not isnan(y):
        return 0.0
    return x * log1p(y)


def digamma(x: float) -> float:
    """Return the derivative of lgamma: reflection, recurrence, asymptotic series."""
    if x == 0.0:
        return copysign(inf, -x)
    total = 0.0
    if x < 0.0:
        if x == floor(x):
            return nan
        total = -pi / tan(pi * (x - rint(x)))
        x = 1.0 - x
    while x < 10.0:
        total -= 1.0 / x
        x += 1.0
    t = 1.0 / (x * x)
    # Bernoulli numbers B(2k) / (2k), k = 1 ... 8.
    series = t * (1 / 12 - t * (1 / 120 - t * (1 / 252 - t * (1 / 240 - t * (1 / 132 - t * (
        691 / 32760 - t * (1 / 12 - t * (3617 / 8160))))))))  # fmt: skip
    return total + (log(x) - 0.5 / x - series)


def hurwitz_zeta(s: float, q: float) -> float:
    """Return the sum of (q + k)**-s over k = 0, 1, ..., for s > 1 and q > 0 (Euler-Maclaurin)."""
    total = 0.0
    while q < 10.0 + s:
        total += power(q, -s)
        q += 1.0
    tail = power(q, -s)
    total += tail * (q / (s - 1.0) + 0.5)
    # Terms B(2k) / (2k)! * s (s + 1) ... (s + 2k - 2) * q**(1 - s - 2k).
    term = tail * s / q
    k = 0.0
    for coefficient in (
        1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160,
        -691 / 1307674368000, 1 / 74724249600, -3617 / 10670622842880000,
    ):  # fmt: skip
        total += coefficient * term
        term *= (s + k + 1.0) * (s + k + 2.0) / (q * q)
        k += 2.0
    return total


def polygamma(n: float, x: float) -> float:
    """Return the n-th derivative of digamma at x, for an integer n >= 0."""
    if n == 0.0:
        return digamma(x)
    if not 0.0 < n <= 150.0 or n != floor(n) or isnan(x):
        return nan  # Beyond order 150 the factorial leaves the range of floats.
    sign = 1.0 if n % 2.0 == 1.0 else -1.0
    s = n + 1.0
    if isinf(x):
        return sign * 0.0 if x > 0.0 else nan
    if x > 0.0:
        zeta = hurwitz_zeta(s, x)
    elif x == floor(x):
        zeta = inf
    else:  # The terms below zero, from -(1 - f) down to x, are a finite stretch of another sum.
        f = x - floor(x)
        below = hurwitz_zeta(s, 1.0 - f) - hurwitz_zeta(s, 1.0 - x)
        zeta = hurwitz_zeta(s, f) + sign * below
    return sign * gamma(s) * zeta


def sinc(x: float) -> float:
    """Return sin(pi x) / (pi x)."""
    if x == 0.0:
        return 1.0
    u = pi * x
    return sin(u) / u


def sinc_derivative(n: float, x: float) -> float:
    """Return the n-th derivative of sinc at x, for an integer n >= 0.

    It is pi**n times the integral of t**n cos(pi x t + n pi / 2) over t from 0 to 1: a power series
    near zero, and beyond that the recurrence u f(n) + n f(n-1) = sin(u + n pi / 2) at u = pi x.
    """
    if not 0.0 <= n <= 150.0 or n != floor(n) or isnan(x) or isinf(x):
        return nan  # The bound on the order bounds the loops.
    u = pi * x
    if abs(u) < n + 2.0:
        odd = n % 2.0
        term = u if odd == 1.0 else 1.0
        m = odd
        total = 0.0
        while abs(term) > 1e-18 * abs(total):
            total += term / (m + n + 1.0)
            term *= -(u * u) / ((m + 1.0) * (m + 2.0))
            m += 2.0
        derivative = total if (n + odd) % 4.0 == 0.0 else -total
    else:
        derivative = sin(u) / u
        m = 1.0  # sin(u + m pi / 2) runs through sin, cos, -sin, -cos.
        while m <= n:
            quarter = m % 4.0
            wave = cos(u) if m % 2.0 == 1.0 else sin(u)
            derivative = ((wave if quarter < 2.0 else -wave) - m * derivative) / u
            m += 1.0
    return power(pi, n) * derivative
