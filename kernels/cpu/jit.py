"""The decorators of compiled kernels, and what to do where Numba cannot cache them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import update_wrapper
from types import FunctionType
from typing import Any

from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

# Numba's rewrites of its intermediate code fuse array expressions, of which kernels have none;
# without them kernels compile a little sooner.
_OPTIONS = {"nogil": True, "error_model": "numpy", "boundscheck": False, "no_rewrites": True}
_warned = False


def kernel(function: Callable[..., Any], *parts: Callable[..., Any]) -> Any:
    """Compile an entry point, cached on disk where there is a place to do so.

    `parts` are plain functions that it calls by their names, to be compiled as parts of it. Such a
    kernel allocates nothing, so that nobody counts the users of its arrays, which would take longer
    than the rest: Numba does at every call.

    Numba looks for a writable directory beside the module and then in the user's cache, and raises
    where it finds neither. The kernel is then compiled in every process, and the user told once.
    """
    options = {**_OPTIONS, "_nrt": not parts}
    function = _calling(function, parts, options)
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        _warn_once()
        return njit(**options)(function)


def _calling(function: Any, parts: tuple[Any, ...], options: dict[str, bool]) -> Any:
    """Return a copy of a plain function that calls compiled parts instead of plain ones."""
    if not parts:
        return function
    compiled = {part.__name__: njit(inline="always", **options)(part) for part in parts}
    copy = FunctionType(function.__code__, {**function.__globals__, **compiled}, function.__name__)
    return update_wrapper(copy, function)


def helper(function: Callable[..., Any]) -> Any:
    """Compile a function that only kernels call; it is cached as a part of them."""
    return njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(function)


def fused(function: Callable[..., Any]) -> Any:
    """Compile a helper that is made a part of all that call it: what is short, and called often."""
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "forceinline": True}
    return njit(**options, **_OPTIONS)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function as a part of the one kernel that calls it, which takes less time."""
    return njit(inline="always", **_OPTIONS)(function)


_native: dict[Callable[..., Any], Any] = {}


def native(function: Callable[..., Any], signature: str, cache: bool = True) -> int:
    """Compile a function by itself, and return its address for `call_native`.

    It stays compiled, and with `cache` is kept on disk, for which it must come from a file. What a
    kernel calls as a helper is optimised again as a part of it, and of what calls that. A large
    function is compiled once, this way.
    """
    if function not in _native:
        options = {"error_model": "numpy", "boundscheck": False, "no_rewrites": True}
        try:
            _native[function] = cfunc(signature, cache=cache, **options)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            _warn_once()
            _native[function] = cfunc(signature, **options)(function)
    address: int = _native[function].address
    return address


@intrinsic  # type: ignore[misc]
def call_native(typingctx: Any, address: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Call the function of four integers at an address."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [word] * 4).as_pointer()
        builder.call(builder.inttoptr(args[0], kind), args[1:])
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 5), emit


@intrinsic  # type: ignore[misc]
def word(typingctx: Any, address: Any, number: Any) -> Any:
    """Return the 64-bit integer that stands at an address, `number` integers on."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        base = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load(builder.gep(base, [args[1]]), align=8)

    return types.int64(types.int64, types.int64), emit


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        print(
            "tapegrad: no writable cache directory, so kernels are compiled in every process; "
            "set NUMBA_CACHE_DIR to a directory that can be written",
            file=sys.stderr,
        )
