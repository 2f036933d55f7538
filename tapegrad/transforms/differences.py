"""Derivatives by differences, with an estimate of how far they may be off."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..storage import Floats

EPSILON = 2.0**-52
_SMALLEST = 2.0**-1022
# Relative steps: the first serves smooth functions (the error of the extrapolated difference goes
# with h**4, that of rounding with 1/h); the others come closer where a kink or the end of the
# domain is near, or the function is steep.
_STEPS = (2.0**-10, 2.0**-14, 2.0**-18, 2.0**-22)


def central(
    g: Callable[[float], Floats], t: float, rtol: float, atol: float, scale: float | None = None
) -> tuple[Floats, Floats]:
    """Differentiate a vector-valued function of one number by central differences.

    Differences with steps h and h/2 are extrapolated to h = 0; how far that goes beyond the better
    of the two, and the rounding of the function's values, estimate the error.  Smaller steps are
    tried until the estimate meets the tolerances in every element, and the best one counts.  They
    are relative to `scale`, by default to `t`, or to 1 where that is larger.

    Returns
    -------
    derivative, error : ndarray
        The error is inf where no step gave a finite difference.

    Examples
    --------
    >>> slope, error = central(lambda t: np.array([t * t, abs(t)]), 3.0, 1e-9, 1e-9)
    >>> slope.round(9), bool(np.all(error < 1e-9))
    (array([6., 1.]), True)
    """
    best = error = ratio = np.empty(0)
    steps = [step * (scale or max(1.0, abs(t))) for step in _STEPS]
    if scale is None and 0.0 < abs(t) < _STEPS[0]:
        steps.append(_STEPS[0] * abs(t))  # something may happen at 0, as for log and cbrt
    for h in steps:
        points = [t + offset for offset in (h, -h, 0.5 * h, -0.5 * h)]
        values = [g(point) for point in points]
        with np.errstate(all="ignore"):
            wide = (values[0] - values[1]) / np.float64(points[0] - points[1])
            narrow = (values[2] - values[3]) / np.float64(points[2] - points[3])
            found = narrow + (narrow - wide) / 3.0
            size = np.max(np.abs(values), axis=0)
            doubt = np.abs(found - narrow) + 4.0 * EPSILON * size / h
            doubt[~np.isfinite(doubt + found)] = np.inf
            quality = doubt / (atol + rtol * np.abs(found) + _SMALLEST)
            quality[np.isinf(doubt)] = np.inf
        if best.shape != found.shape:
            best, error, ratio = found, doubt, quality
        better = quality < ratio
        best, error = np.where(better, found, best), np.where(better, doubt, error)
        ratio = np.where(better, quality, ratio)
        if np.all(ratio <= 1.0):
            break
    return best, error


def one_sided(g: Callable[[float], Floats], t: float, side: float) -> tuple[Floats, Floats]:
    """Differentiate a vector-valued function of one number to one side, 1.0 or -1.0.

    Returns
    -------
    derivative, error : ndarray
        As `central` has them; both are nan where the function is not defined on that side.

    Examples
    --------
    >>> [float(one_sided(lambda t: np.array([abs(t)]), 0.0, side)[0][0]) for side in (-1.0, 1.0)]
    [-1.0, 1.0]
    """
    h = side * 2.0**-16 * max(1.0, abs(t))
    middle = g(t)
    full, half, quarter = g(t + h), g(t + 0.5 * h), g(t + 0.25 * h)
    with np.errstate(all="ignore"):
        wide = (4.0 * half - 3.0 * middle - full) / h
        narrow = 2.0 * (4.0 * quarter - 3.0 * middle - half) / h
        # The factor covers steps that converge as slowly as those of x**1.5 at 0.
        noise = 32.0 * EPSILON * np.max(np.abs([middle, full]), axis=0) / abs(h)
        return narrow, 4.0 * np.abs(wide - narrow) + noise
