"""The decorators of compiled kernels, and what to do where Numba cannot cache them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from numba import njit

# Numba's rewrites of its intermediate code fuse array expressions, of which kernels have none;
# without them kernels compile a little sooner.
_OPTIONS = {"nogil": True, "error_model": "numpy", "boundscheck": False, "no_rewrites": True}
_warned = False


def kernel(function: Callable[..., Any]) -> Any:
    """Compile an entry point, cached on disk where there is a place to do so.

    Numba looks for a writable directory beside the module and then in the user's cache, and raises
    where it finds neither. The kernel is then compiled in every process, and the user told once.
    """
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        _warn_once()
        return njit(**_OPTIONS)(function)


def helper(function: Callable[..., Any]) -> Any:
    """Compile a function that only kernels call; it is cached as a part of them."""
    return njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(function)


def part(function: Callable[..., Any]) -> Any:
    """Compile a function as a part of the one that calls it, as if it were written there."""
    return njit(inline="always", **_OPTIONS)(function)


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        print(
            "tapegrad: no writable cache directory, so kernels are compiled in every process; "
            "set NUMBA_CACHE_DIR to a directory that can be written",
            file=sys.stderr,
        )
