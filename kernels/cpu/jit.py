"""The decorators of compiled kernels, and what to do where Numba cannot cache them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import update_wrapper
from types import FunctionType
from typing import Any

from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tapegrad.kernels.native import Library, by_library, link

# Numba's rewrites of its intermediate code fuse array expressions, of which kernels have none;
# without them kernels compile a little sooner.
_OPTIONS = {"nogil": True, "error_model": "numpy", "boundscheck": False, "no_rewrites": True}
_BORROWING = {**_OPTIONS, "_nrt": False}
_warned = False


def kernel(function: Callable[..., Any], *parts: Callable[..., Any]) -> Any:
    """Compile an entry point, cached on disk where there is a place to do so.

    `parts` are plain functions that it calls by their names, to be compiled as parts of it. Such a
    kernel allocates nothing, so that nobody counts the users of its arrays, which would take longer
    than the rest: Numba does at every call.

    Numba looks for a writable directory beside the module and then in the user's cache, and raises
    where it finds neither. The kernel is then compiled in every process, and the user told once.
    """
    return _cached(calling(function, *parts), _BORROWING) if parts else _cached(function, _OPTIONS)


def entry(function: Callable[..., Any]) -> Any:
    """Compile an entry of a library of `kernels/native.py`, which takes and returns integers.

    It allocates nothing, either.
    """
    return _cached(function, _BORROWING)


def _cached(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        warn_once()
        return njit(**options)(function)


def calling(function: Any, *parts: Callable[..., Any]) -> Any:
    """Return a copy of a plain function that calls compiled parts instead of plain ones."""
    compiled = {part.__name__: njit(inline="always", **_BORROWING)(part) for part in parts}
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


def part(function: Callable[..., Any]) -> Any:
    """Return a function of a library of `kernels/native.py`, for what compiles that as a whole.

    Where there are no libraries, Numba compiles it as a part of all that call it.
    """
    if by_library():
        return function
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **_BORROWING}
    made = njit(**options)(function)
    compile_for = made.compile
    # Numba would compile it again for each number that it is called with.
    made.compile = lambda signature: compile_for(tuple(map(types.unliteral, signature)))
    return made


def alone(function: Callable[..., Any]) -> Any:
    """Compile a part that is called wherever it is: what is long, or rarely needed."""
    function.alone = True  # type: ignore[attr-defined]
    return part(function)


_native: dict[Callable[..., Any], tuple[Any, int]] = {}


def native(function: Callable[..., Any], signature: str, cache: bool = True) -> int:
    """Compile a function by itself, and return its address for `call_native`.

    It stays compiled. What a kernel calls as a helper is optimised again as a part of it, and of
    what calls that. A large function is compiled once, this way. With `cache`, Numba keeps it on
    disk, for which it must come from a file; it may call parts of libraries where it is not.
    """
    if function not in _native:
        _native[function] = _native_address(function, signature, cache)
    return _native[function][1]


def _native_address(function: Any, signature: str, cache: bool) -> tuple[Any, int]:
    """Return the address of a compiled function, and what keeps it there."""
    if not cache and by_library():
        return None, _linked(function)[0]
    options = {"error_model": "numpy", "boundscheck": False, "no_rewrites": True}
    try:
        made = cfunc(signature, cache=cache, **options)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        warn_once()
        made = cfunc(signature, **options)(function)
    return made, made.address


def natives(signature: str, *functions: Callable[..., Any]) -> list[int]:
    """Compile functions at once, and return their addresses for `call_native`.

    They stay compiled. They come from no file, and may call parts of libraries.
    """
    if by_library():
        return _linked(*functions)
    return [native(function, signature, cache=False) for function in functions]


def _linked(*functions: Any) -> list[int]:
    """Compile functions as a library is, and return their addresses."""
    from .building import build

    known = {function.__name__: function for function in functions}
    arities = {name: function.__code__.co_argcount for name, function in known.items()}
    library = Library("_".join(known), (), {}, arities)
    found = link(library, build(library, known))
    return [found[name] for name in known]


@intrinsic  # type: ignore[misc]
def call_native(typingctx: Any, address: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Call the function of four integers at an address."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [word] * 4).as_pointer()
        builder.call(builder.inttoptr(args[0], kind), args[1:])
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 5), emit


def room(size: int) -> Any:
    """Return the function for kernels that returns the address of room on the stack, in bytes."""

    @intrinsic  # type: ignore[misc]
    def address(typingctx: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            bytes_ = ir.ArrayType(ir.IntType(8), size)
            with builder.goto_entry_block():
                place = builder.alloca(bytes_)
            place.align = 64
            return builder.ptrtoint(place, ir.IntType(64))

        return types.int64(), emit

    return address


@intrinsic  # type: ignore[misc]
def likely(typingctx: Any, truth: Any) -> Any:
    """Return a truth that holds nearly always, so that code goes one way and need not choose."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bit = ir.IntType(1)
        kind = ir.FunctionType(bit, [bit, bit])
        expect = cgutils.get_or_insert_function(builder.module, kind, "llvm.expect.i1")
        return builder.call(expect, [args[0], bit(1)])

    return types.boolean(types.boolean), emit


@intrinsic  # type: ignore[misc]
def word(typingctx: Any, address: Any, number: Any) -> Any:
    """Return the 64-bit integer that stands at an address, `number` integers on."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        base = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load(builder.gep(base, [args[1]]), align=8)

    return types.int64(types.int64, types.int64), emit


def warn_once() -> None:
    """Tell the user that there is no place for compiled kernels."""
    global _warned
    if not _warned:
        _warned = True
        print(
            "tapegrad: no writable cache directory, so kernels are compiled in every process; "
            "set NUMBA_CACHE_DIR to a directory that can be written",
            file=sys.stderr,
        )
