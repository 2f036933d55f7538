"""The elementary functions in pure Python, answering as IEEE 754 does where `math` raises.

Python's `math` raises for ``log(0)`` and ``exp(1000)``, and ``/`` for a zero divisor; compiled
kernels answer -inf and inf. The reference interpreter uses these functions, so that it answers the
same.
"""

from __future__ import annotations

import math
import struct
from math import copysign, erf, erfc, hypot, inf, isfinite, isinf, isnan, nan, nextafter, tanh

__all__ = [
    "arccos",
    "arccosh",
    "arcsin",
    "arcsinh",
    "arctan",
    "arctan2",
    "arctanh",
    "copysign",
    "cos",
    "cosh",
    "divide",
    "erf",
    "erfc",
    "exp",
    "expm1",
    "float32",
    "gamma",
    "hypot",
    "isfinite",
    "isinf",
    "isnan",
    "lgamma",
    "log",
    "log1p",
    "log2",
    "log10",
    "nextafter",
    "power",
    "scale",
    "sin",
    "sinh",
    "split",
    "sqrt",
    "tan",
    "tanh",
]

arcsinh = math.asinh
arctan = math.atan
arctan2 = math.atan2
split = math.frexp

_single = struct.Struct("f")


def divide(x: float, y: float) -> float:
    """Return x / y."""
    try:
        return x / y
    except ZeroDivisionError:
        if x == 0.0 or isnan(x):
            return nan
        return copysign(inf, x) * copysign(1.0, y)


def power(x: float, y: float) -> float:
    """Return x to the power y."""
    try:
        return math.pow(x, y)
    except ValueError:
        if x != 0.0:
            return nan
        return copysign(inf, x) if y % 2.0 == 1.0 else inf
    except OverflowError:
        return -inf if x < 0.0 and y % 2.0 == 1.0 else inf


def float32(x: float) -> float:
    """Return x rounded to single precision."""
    try:
        return float(_single.unpack(_single.pack(x))[0])
    except OverflowError:
        return copysign(inf, x)


def sin(x: float) -> float:
    """Return the sine of x."""
    try:
        return math.sin(x)
    except ValueError:
        return nan


def cos(x: float) -> float:
    """Return the cosine of x."""
    try:
        return math.cos(x)
    except ValueError:
        return nan


def tan(x: float) -> float:
    """Return the tangent of x."""
    try:
        return math.tan(x)
    except ValueError:
        return nan


def arcsin(x: float) -> float:
    """Return the inverse sine of x."""
    try:
        return math.asin(x)
    except ValueError:
        return nan


def arccos(x: float) -> float:
    """Return the inverse cosine of x."""
    try:
        return math.acos(x)
    except ValueError:
        return nan


def sinh(x: float) -> float:
    """Return the hyperbolic sine of x."""
    try:
        return math.sinh(x)
    except OverflowError:
        return copysign(inf, x)


def cosh(x: float) -> float:
    """Return the hyperbolic cosine of x."""
    try:
        return math.cosh(x)
    except OverflowError:
        return inf


def arccosh(x: float) -> float:
    """Return the inverse hyperbolic cosine of x."""
    try:
        return math.acosh(x)
    except ValueError:
        return nan


def arctanh(x: float) -> float:
    """Return the inverse hyperbolic tangent of x."""
    try:
        return math.atanh(x)
    except ValueError:
        return copysign(inf, x) if abs(x) == 1.0 else nan


def exp(x: float) -> float:
    """Return the exponential of x."""
    try:
        return math.exp(x)
    except OverflowError:
        return inf


def expm1(x: float) -> float:
    """Return exp(x) - 1."""
    try:
        return math.expm1(x)
    except OverflowError:
        return inf


def log(x: float) -> float:
    """Return the natural logarithm of x."""
    try:
        return math.log(x)
    except ValueError:
        return -inf if x == 0.0 else nan


def log2(x: float) -> float:
    """Return the logarithm of x to base 2."""
    try:
        return math.log2(x)
    except ValueError:
        return -inf if x == 0.0 else nan


def log10(x: float) -> float:
    """Return the logarithm of x to base 10."""
    try:
        return math.log10(x)
    except ValueError:
        return -inf if x == 0.0 else nan


def log1p(x: float) -> float:
    """Return log(1 + x)."""
    try:
        return math.log1p(x)
    except ValueError:
        return -inf if x == -1.0 else nan


def sqrt(x: float) -> float:
    """Return the square root of x."""
    try:
        return math.sqrt(x)
    except ValueError:
        return nan


def gamma(x: float) -> float:
    """Return the gamma function of x."""
    try:
        return math.gamma(x)
    except ValueError:
        return copysign(inf, x) if x == 0.0 else nan
    except OverflowError:
        return inf


def lgamma(x: float) -> float:
    """Return the logarithm of the absolute value of the gamma function of x."""
    try:
        return math.lgamma(x)
    except (ValueError, OverflowError):
        return inf


def scale(x: float, exponent: int) -> float:
    """Return x times 2 to the power `exponent`."""
    try:
        return math.ldexp(x, exponent)
    except OverflowError:
        return copysign(inf, x)
