"""Special functions: the rows of the table that NumPy has no function for.

Each takes tracked values, which it records, and also plain numbers and ndarrays, so that a
function written with it runs with and without derivatives.  On tracked values SciPy's own ufuncs
work just as well (``scipy.special.erf(x)``), and on large ndarrays they are faster: these evaluate
one element after another.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import at_caller
from .kernels.opcodes import ROWS
from .kernels.rules import FORWARD
from .recording import elementwise
from .storage import Tracked

__all__ = [
    *("digamma", "erf", "erfc", "expit", "gamma", "lgamma", "log_expit", "logit", "polygamma"),
    *("sinc", "softplus", "xlog1py", "xlogy"),
]


def erf(x: Any) -> Any:
    """Error function.

    Examples
    --------
    >>> erf(0.5)
    0.5204998778130465
    """
    return _apply("erf", x)


def erfc(x: Any) -> Any:
    """Complementary error function, 1 - erf(x).

    Examples
    --------
    >>> print(f"{erfc(6.0):.12e}")
    2.151973671250e-17
    """
    return _apply("erfc", x)


def gamma(x: Any) -> Any:
    """Gamma function.

    Examples
    --------
    >>> gamma(np.array([1.0, 2.0, 3.0, 4.0]))
    array([1., 1., 2., 6.])
    """
    return _apply("gamma", x)


def lgamma(x: Any) -> Any:
    """Logarithm of the absolute value of the gamma function.

    Examples
    --------
    >>> import tapegrad as tg
    >>> round(tg.grad(lgamma)(3.0), 12)  # digamma(3) = 3/2 - Euler's constant
    0.922784335098
    """
    return _apply("lgamma", x)


def digamma(x: Any) -> Any:
    """Derivative of lgamma; accurate in the absolute near its roots.

    Examples
    --------
    >>> round(digamma(1.0), 12)
    -0.577215664902
    """
    return _apply("digamma", x)


def polygamma(n: Any, x: Any) -> Any:
    """Derivative of digamma, n times, at x; n is an integer.

    Raises
    ------
    TypeError
        If `n` is tracked, or no integer.

    Examples
    --------
    >>> round(polygamma(1, 1.0), 12)  # pi**2 / 6
    1.644934066848
    """
    if isinstance(n, Tracked) or not np.all(np.equal(np.mod(n, 1), 0)):
        raise TypeError(
            f"polygamma(n, x) is differentiated with respect to x only: n must be an integer, "
            f"not {n!r}{at_caller()}"
        )
    return _apply("polygamma", n, x)


def expit(x: Any) -> Any:
    """Logistic function, 1 / (1 + exp(-x)).

    Examples
    --------
    >>> expit(0.0)
    0.5
    """
    return _apply("expit", x)


def logit(x: Any) -> Any:
    """Inverse of the logistic function, log(x / (1 - x)).

    Examples
    --------
    >>> logit(0.5)
    0.0
    """
    return _apply("logit", x)


def log_expit(x: Any) -> Any:
    """Logarithm of the logistic function.

    Examples
    --------
    >>> log_expit(-1000.0)
    -1000.0
    """
    return _apply("log_expit", x)


def softplus(x: Any) -> Any:
    """log(1 + exp(x)), without overflow.

    Examples
    --------
    >>> softplus(1000.0)
    1000.0
    """
    return _apply("softplus", x)


def xlogy(x: Any, y: Any) -> Any:
    """x log(y), which is 0 where x is 0.

    Examples
    --------
    >>> import tapegrad as tg
    >>> p = np.array([0.0, 0.5, 0.5])
    >>> tg.value_and_grad(lambda p: -np.sum(xlogy(p, p)))(p)[0]
    0.6931471805599453
    """  # noqa: D403
    return _apply("xlogy", x, y)


def xlog1py(x: Any, y: Any) -> Any:
    """x log(1 + y), which is 0 where x is 0.

    Examples
    --------
    >>> xlog1py(2.0, 0.0), xlog1py(0.0, -1.0)
    (0.0, 0.0)
    """  # noqa: D403
    return _apply("xlog1py", x, y)


def sinc(x: Any) -> Any:
    """sin(pi x) / (pi x), as `numpy.sinc`.

    Examples
    --------
    >>> import tapegrad as tg
    >>> tg.value_and_grad(sinc)(0.0)
    (1.0, 0.0)
    """
    return _apply("sinc", x)


def _apply(row: str, *operands: Any) -> Any:
    """Record a row on tracked operands, or compute it on plain ones."""
    if any(isinstance(x, Tracked) for x in operands):
        result = elementwise(row, *operands)
        if result is not NotImplemented:
            return result
        raise TypeError(f"{row} takes numbers and arrays{at_caller()}")
    rule: Any = FORWARD[ROWS[row][0]]
    if all(type(x) in (float, int) for x in operands):
        return rule(*map(float, operands))
    strong = [np.asarray(x).dtype for x in operands if type(x) not in (float, int)]
    dtype = np.result_type(*strong)
    if dtype.kind not in "fiub":
        raise TypeError(f"{row} takes real numbers, not {dtype}{at_caller()}")
    arrays = [np.asarray(x, np.float64) for x in operands]
    with np.errstate(all="ignore"):
        values = np.frompyfunc(rule, len(operands), 1)(*arrays)
    return np.asarray(values, dtype if dtype.kind == "f" else np.float64)[()]
