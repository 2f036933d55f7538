"""Compiling the libraries of `kernels/native.py`: translated to LLVM, and optimised as a whole."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from llvmlite import binding, ir
from numba.core import types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from tapegrad.kernels.cpu.images import image_of
from tapegrad.kernels.cpu.translating import Translated, Translation
from tapegrad.kernels.native import Library, entry_name

_WORD, _POINTER = ir.IntType(64), ir.IntType(8).as_pointer()

_OF_C = {"numba_frexp": "frexp", "numba_gamma": "tgamma", "numba_ldexp": "ldexp"}
"""Functions of Numba's own library, and those of the C library in their place."""


def build(library: Library, functions: Mapping[str, Any] | None = None) -> bytes:
    """Return the machine code of a library for `native.link`.

    The functions of the library are those of its module, or are given.
    """
    machine = cpu_target.target_context.codegen()._tm
    code = machine.emit_object(optimised(library, functions))
    exported = {entry_name(name) for name in (*library.entries, *library.called)}
    return image_of(code, exported).to_bytes()


@global_compiler_lock
def optimised(library: Library, functions: Mapping[str, Any] | None = None) -> Any:
    """Return the module of a library as LLVM optimised it."""
    if functions is None:
        functions = vars(importlib.import_module(f"tapegrad.kernels.cpu.{library.module}"))
    with _without_collection():
        module = binding.parse_assembly(str(_translated(library, functions)))
    module.verify()
    for function in module.functions:
        if function.is_declaration:
            function.name = _OF_C.get(function.name, function.name)
            if function.name.startswith(("numba", "NRT", "_ZN")):
                raise RuntimeError(f"{function.name} would not be there without Numba")
    # Where vectors are explicit, LLVM need not look for any.
    codegen = cpu_target.target_context.codegen()
    made = codegen._module_pass_manager(
        opt=2, loop_vectorize=library.vectorized, slp_vectorize=False
    )
    passes, *rest = made if isinstance(made, tuple) else (made,)
    passes.run(module, *rest)
    return module


def _translated(library: Library, functions: Mapping[str, Any]) -> Any:
    """Return the module of a library as it is translated."""
    codegen = cpu_target.target_context.codegen()
    module = ir.Module(f"tapegrad_{library.module}")
    module.triple, module.data_layout = codegen._tm.triple, codegen._data_layout
    translation = Translation(module)
    with translation.context.push_code_library(codegen.create_library(module.name)):
        for write, kernels in ((_entry, library.entries), (_address, library.called)):
            for name, arity in kernels.items():
                function = getattr(functions[name], "py_func", functions[name])
                write(module, name, translation.function(function, (types.int64,) * arity))
    return module


# -- entries ---------------------------------------------------------------------------------------


def _entry(module: Any, name: str, kernel: Translated) -> None:
    """Write a kernel's entry from Python, by its convention METH_FASTCALL."""

    def outer(name: str, result: Any, *arguments: Any) -> Any:
        known = module.globals.get(name)
        return known or ir.Function(module, ir.FunctionType(result, arguments), name)

    def returned(result: Any) -> Any:
        return builder.call(outer("PyLong_FromLongLong", _POINTER, _WORD), [result])

    integer = outer("PyLong_AsLongLong", _WORD, _POINTER)
    release = outer("PyEval_SaveThread", _POINTER)
    acquire = outer("PyEval_RestoreThread", ir.VoidType(), _POINTER)
    entry = outer(entry_name(name), _POINTER, _POINTER, _POINTER.as_pointer(), _WORD)
    builder = ir.IRBuilder(entry.append_basic_block())
    _, given, _ = entry.args
    arguments = [
        builder.call(integer, [builder.load(builder.gep(given, [_WORD(i)]))])
        for i in range(len(kernel.code.args))
    ]
    state = builder.call(release, [])
    result = builder.call(kernel.code, arguments)
    builder.call(acquire, [state])
    if not isinstance(kernel.result, types.BaseTuple):
        return builder.ret(returned(result if kernel.result == types.int64 else _WORD(0)))
    count = len(kernel.result)
    made = builder.call(outer("PyTuple_New", _POINTER, _WORD), [_WORD(count)])
    put = outer("PyTuple_SetItem", ir.IntType(32), _POINTER, _WORD, _POINTER)
    for i in range(count):
        builder.call(put, [made, _WORD(i), returned(builder.extract_value(result, i))])
    builder.ret(made)


def _address(module: Any, name: str, kernel: Translated) -> None:
    """Write a kernel as a function of C that returns nothing."""
    kind = ir.FunctionType(ir.VoidType(), [_WORD] * len(kernel.code.args))
    entry = ir.Function(module, kind, entry_name(name))
    builder = ir.IRBuilder(entry.append_basic_block())
    builder.call(kernel.code, entry.args)
    builder.ret_void()


@contextmanager
def _without_collection() -> Iterator[None]:
    """Compile without looking for garbage: Numba makes millions of objects that stay."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
