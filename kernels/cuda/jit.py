"""Decorators of CUDA kernels, and the arithmetic that must not be contracted.

Numba takes the CUDA simulator for the device where ``NUMBA_ENABLE_CUDASIM=1`` is set: kernels are
then run by Python, thread by thread, which is how they are tested without a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

# numba-cuda 0.30 looks for a name that NumPy 2.5 has dropped, and uses what it warns about.
if not hasattr(np, "row_stack"):
    np.row_stack = np.vstack  # noqa: NPY201
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from numba import config, cuda

SIMULATED: bool = bool(config.ENABLE_CUDASIM)


class Address:
    """An argument of a kernel: where elements of a dtype are on the device."""

    def __init__(self, dtype: str, address: int) -> None:
        from numba.cuda import types

        self._numba_type_ = types.CPointer(getattr(types, dtype))
        self.address = address


class _Addresses:
    """Hands an `Address` to a kernel as a pointer (an extension in the sense of `cuda.jit`)."""

    @staticmethod
    def prepare_args(kind: Any, value: Any, stream: Any, retr: Any) -> tuple[Any, Any]:
        return kind, value.address if isinstance(value, Address) else value


def kernel(function: Callable[..., Any]) -> Any:
    """Compile an entry point when it is first launched, and keep it on disk where that can be."""
    if SIMULATED:
        return cuda.jit(function)
    try:
        return cuda.jit(cache=True, extensions=[_Addresses])(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        return straight(function)


def straight(function: Callable[..., Any]) -> Any:
    """Compile an entry point that is in no file."""
    return cuda.jit(function) if SIMULATED else cuda.jit(extensions=[_Addresses])(function)


def helper(function: Callable[..., Any]) -> Any:
    """Compile a function that kernels call. It must not use `cuda` itself."""
    return function if SIMULATED else cuda.jit(device=True)(function)


# A product and the sum it goes into become one instruction with one rounding, where the compiler
# sees both. An interpreter's kernel cannot see that and a straight one can, so that results would
# change when the one takes over from the other: products are rounded by themselves.
if SIMULATED:

    def product(x: Any, y: Any) -> Any:
        """Return x * y, rounded."""
        return x * y

    product_of_singles = product
else:
    from numba.cuda import libdevice

    @helper
    def product(x: Any, y: Any) -> Any:
        """Return x * y, rounded."""
        return libdevice.dmul_rn(x, y)

    @helper
    def product_of_singles(x: Any, y: Any) -> Any:
        """Return x * y, rounded, of single precision."""
        return libdevice.fmul_rn(x, y)
