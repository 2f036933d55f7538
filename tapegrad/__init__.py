"""Exact derivatives of numerical Python: a flat tape, swept by kernels that are compiled once.

>>> import numpy as np
>>> import tapegrad as tg
>>> tg.grad(lambda x: np.sum(np.sin(x) * x))(np.array([0.0, 1.0]))
array([0.        , 1.38177329])
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

# `functions` and `view` register NumPy's functions, and what results are made of.
from . import functions, special, view
from .array import Array
from .checkpoint import checkpoint
from .creation import array, constant, full, no_grad, ones, stop_gradient, zeros
from .custom import custom_jvp, custom_vjp
from .derivatives import grad, jacobian, value_and_grad, vjp
from .errors import (
    ControlFlowChanged,
    DeviceLostError,
    DeviceUnavailable,
    GradientMismatch,
    LostGradientError,
    MixedDevicesError,
    NoGradientError,
    NotDifferentiableError,
    ReleasedTapeError,
    TapeFormatError,
    TapeGradError,
    ThreadError,
)
from .execute import executor
from .function import function
from .higher import hessian, hvp, jvp, linearize
from .program import Program
from .program import record_program as record
from .progress import progress
from .threads import get_num_threads, set_num_threads
from .vmap import vmap

if _TYPE_CHECKING:
    from .checking import GradientCheck, check_gradients
    from .files import load
    from .loops import LoopPlan, checkpoint_loop
    from .sparsity import sparse_hessian, sparse_jacobian

__version__ = "0.1.0.dev0"

del functions, view

__all__ = [
    "Array",
    "ControlFlowChanged",
    "DeviceLostError",
    "DeviceUnavailable",
    "GradientCheck",
    "GradientMismatch",
    "LoopPlan",
    "LostGradientError",
    "MixedDevicesError",
    "NoGradientError",
    "NotDifferentiableError",
    "Program",
    "ReleasedTapeError",
    "TapeFormatError",
    "TapeGradError",
    "ThreadError",
    "array",
    "check_gradients",
    "checkpoint",
    "checkpoint_loop",
    "constant",
    "custom_jvp",
    "custom_vjp",
    "executor",
    "full",
    "function",
    "get_num_threads",
    "grad",
    "hessian",
    "hvp",
    "jacobian",
    "jvp",
    "linearize",
    "load",
    "no_grad",
    "ones",
    "progress",
    "record",
    "set_num_threads",
    "sparse_hessian",
    "sparse_jacobian",
    "special",
    "stop_gradient",
    "value_and_grad",
    "vjp",
    "vmap",
    "zeros",
]

# Modules that not every script needs are loaded when it asks for one of these.
_LATER = {
    "GradientCheck": "checking",
    "LoopPlan": "loops",
    "check_gradients": "checking",
    "checkpoint_loop": "loops",
    "load": "files",
    "sparse_hessian": "sparsity",
    "sparse_jacobian": "sparsity",
}


def __getattr__(name: str) -> _Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f".{_LATER[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
