"""Exact derivatives of numerical Python: a flat tape, swept by kernels that are compiled once.

>>> import numpy as np
>>> import tapegrad as tg
>>> tg.grad(lambda x: np.sum(np.sin(x) * x))(np.array([0.0, 1.0]))
array([0.        , 1.38177329])
"""

# `functions` and `view` register NumPy's functions, and what results are made of.
from . import functions, special, view
from .array import Array
from .checking import GradientCheck, check_gradients
from .creation import array, constant, full, no_grad, ones, stop_gradient, zeros
from .derivatives import grad, jacobian, value_and_grad, vjp
from .errors import (
    GradientMismatch,
    LostGradientError,
    NoGradientError,
    NotDifferentiableError,
    ReleasedTapeError,
    TapeGradError,
    ThreadError,
)
from .execute import executor

__version__ = "0.1.0.dev0"

del functions, view

__all__ = [
    "Array",
    "GradientCheck",
    "GradientMismatch",
    "LostGradientError",
    "NoGradientError",
    "NotDifferentiableError",
    "ReleasedTapeError",
    "TapeGradError",
    "ThreadError",
    "array",
    "check_gradients",
    "constant",
    "executor",
    "full",
    "grad",
    "jacobian",
    "no_grad",
    "ones",
    "special",
    "stop_gradient",
    "value_and_grad",
    "vjp",
    "zeros",
]
