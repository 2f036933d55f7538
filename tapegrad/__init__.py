"""Exact derivatives of numerical Python: a flat tape, swept by kernels that are compiled once.

>>> import numpy as np
>>> import tapegrad as tg
>>> tg.grad(lambda x: np.sum(np.sin(x) * x))(np.array([0.0, 1.0]))
array([0.        , 1.38177329])
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from . import special

# `functions` and `view` register NumPy's functions, and what results are made of.
from .arrays import functions, view
from .arrays.array import Array
from .arrays.creation import array, constant, full, no_grad, ones, stop_gradient, zeros
from .checkpointing.checkpoint import checkpoint
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
from .progress import progress
from .regions.threads import get_num_threads, set_num_threads
from .transforms.custom import custom_jvp, custom_vjp
from .transforms.derivatives import grad, jacobian, value_and_grad, vjp
from .transforms.higher import hessian, hvp, jvp, linearize

if _TYPE_CHECKING:
    from .batches.vmap import vmap
    from .checkpointing.loops import LoopPlan, checkpoint_loop
    from .programs.files import load
    from .programs.function import function
    from .programs.program import Program
    from .programs.program import record_program as record
    from .sparse.sparsity import sparse_hessian, sparse_jacobian
    from .transforms.checking import GradientCheck, check_gradients

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
    "GradientCheck": "transforms.checking",
    "LoopPlan": "checkpointing.loops",
    "Program": "programs.program",
    "check_gradients": "transforms.checking",
    "checkpoint_loop": "checkpointing.loops",
    "function": "programs.function",
    "load": "programs.files",
    "record": "programs.program",
    "sparse_hessian": "sparse.sparsity",
    "sparse_jacobian": "sparse.sparsity",
    "vmap": "batches.vmap",
}
_ELSEWHERE = {"record": "record_program"}  # what their modules call them


def __getattr__(name: str) -> _Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f".{_LATER[name]}", __name__)
    value = globals()[name] = getattr(module, _ELSEWHERE.get(name, name))
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
