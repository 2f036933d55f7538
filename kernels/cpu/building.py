"""Compiling the libraries of `kernels/native.py`: Numba's front end, and LLVM once for all of it.

Numba would optimise each function when it is compiled, again in each function that calls it, and
make machine code of it every time.  Here functions are only lowered (`jit.part`), linked into one
module, and optimised together.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import register_pass
from numba.core.registry import cpu_target
from numba.core.typed_passes import NativeLowering
from numba.core.untyped_passes import InlineClosureLikes, WithLifting

from tapegrad.kernels.cpu.images import image_of
from tapegrad.kernels.native import Library, entry_name

_OF_C = {"numba_frexp": "frexp", "numba_gamma": "tgamma", "numba_ldexp": "ldexp"}
"""Functions of Numba's own library, and those of the C library in their place."""


# -- parts -----------------------------------------------------------------------------------------


class _Part(JITCodeLibrary):  # type: ignore[misc]
    """Code that is neither optimised nor made machine code: whoever links it does both, once."""

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout

    def finalize(self) -> None:
        """Leave it at that: not even the functions that are called are linked."""
        self._finalize_dynamic_globals()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _PartLowering(NativeLowering):  # type: ignore[misc]
    """Numba's lowering, but for the machine code."""

    _name = "part_lowering"

    def run_pass(self, state: Any) -> bool:
        state.library = _Part(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        state.flags.no_compile = True
        super().run_pass(state)
        if getattr(state.func_id.func, "alone", False):
            function = state.library.get_function(state["cr"].fndesc.llvm_func_name)
            function.add_function_attribute("noinline")
        # Numba knows a function by what Python would call; nobody calls this one from there.
        name = object().__reduce__
        found = state["cr"]
        state["cr"] = found._replace(cfunc=name)
        state.targetctx.insert_user_function(name, found.fndesc, [state.library])
        return True


class PartCompiler(Compiler):  # type: ignore[misc]
    """How Numba compiles a part: up to its lowering."""

    def define_pipelines(self) -> list[Any]:
        """Return Numba's own pipeline, but for the last step, and for steps that find nothing."""
        (passes,) = super().define_pipelines()
        passes.passes = [
            (_PartLowering if step is NativeLowering else step, name)
            for step, name in passes.passes
            if step not in (InlineClosureLikes, WithLifting)
        ]
        passes._finalized = False
        passes.finalize()
        return [passes]


# -- the whole -------------------------------------------------------------------------------------


def build(library: Library, functions: Mapping[str, Any] | None = None) -> bytes:
    """Return the machine code of a library for `native.link`.

    The functions of the library are those of its module, or are given.
    """
    whole = optimised(library, functions)
    code = whole.codegen._tm.emit_object(whole.code)
    return image_of(code, whole.exported).to_bytes()


@global_compiler_lock
def optimised(library: Library, functions: Mapping[str, Any] | None = None) -> Whole:
    """Return a library as LLVM optimised it."""
    from .jit import part

    if functions is None:
        functions = vars(importlib.import_module(f"tapegrad.kernels.cpu.{library.module}"))
    context = cpu_target.target_context
    context.refresh()
    whole = Whole(context.codegen(), f"tapegrad_{library.module}")
    with _without_collection(), _remembering(cpu_target.typing_context):
        for write, kernels in ((_entry, library.entries), (_address, library.called)):
            for name, arity in kernels.items():
                function = functions[name]
                dispatcher = part(getattr(function, "py_func", function))
                signature = (types.int64,) * arity
                dispatcher.compile(signature)
                found = dispatcher.overloads[signature]
                whole.add_ir_module(write(context, whole, name, found.fndesc))
                whole.add_all(found.library)
        whole.exported = {entry_name(name) for name in (*library.entries, *library.called)}
        whole.finalize()
    return whole


class Whole(JITCodeLibrary):  # type: ignore[misc]
    """All code of a library.

    Attributes
    ----------
    exported : set of str
        Functions that are called from elsewhere.
    """

    exported: set[str]

    def add_all(self, library: Any) -> None:
        """Link a part and the parts that it calls, each once."""
        if library not in self._linking_libraries:
            self.add_linking_library(library)
            if isinstance(library, _Part):
                for called in library._linking_libraries:
                    self.add_all(called)

    @property
    def code(self) -> Any:
        """The module of LLVM."""
        return self._final_module

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        for function in self.code.functions:
            if function.is_declaration:
                function.name = _OF_C.get(function.name, function.name)
            elif function.name not in self.exported:
                function.linkage = "linkonce_odr"
        # Its vectors are explicit, so LLVM need not look for any.
        made = self._codegen._module_pass_manager(loop_vectorize=False, slp_vectorize=False)
        passes, *rest = made if isinstance(made, tuple) else (made,)
        passes.run(self.code, *rest)
        for name in [function.name for function in self.code.functions if function.is_declaration]:
            if name.startswith(("numba", "NRT", "_ZN")):
                raise RuntimeError(f"{name} would not be there without Numba")

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        if self._dynamic_globals:
            raise RuntimeError("what is at an address of this process would not be in others")
        self._finalized = True


# -- entries ---------------------------------------------------------------------------------------


def _entry(context: Any, library: Any, name: str, described: Any) -> Any:
    """Return a module with a kernel's entry from Python, by its convention METH_FASTCALL."""
    module = library.create_ir_module(f"entry.{name}")
    word, pointer = ir.IntType(64), ir.IntType(8).as_pointer()

    def outer(name: str, result: Any, *arguments: Any) -> Any:
        return ir.Function(module, ir.FunctionType(result, arguments), name)

    integer = outer("PyLong_AsLongLong", word, pointer)
    made = outer("PyLong_FromLongLong", pointer, word)
    release = outer("PyEval_SaveThread", pointer)
    acquire = outer("PyEval_RestoreThread", ir.VoidType(), pointer)
    entry = outer(entry_name(name), pointer, pointer, pointer.as_pointer(), word)
    builder = ir.IRBuilder(entry.append_basic_block())
    _, given, _ = entry.args
    arguments = [
        builder.call(integer, [builder.load(builder.gep(given, [word(i)]))])
        for i in range(len(described.argtypes))
    ]
    state = builder.call(release, [])
    result = _call(context, builder, described, arguments)
    builder.call(acquire, [state])
    builder.ret(builder.call(made, [result]))
    return module


def _address(context: Any, library: Any, name: str, described: Any) -> Any:
    """Return a module with a kernel as a function of C that returns nothing."""
    module = library.create_ir_module(f"address.{name}")
    word = ir.IntType(64)
    kind = ir.FunctionType(ir.VoidType(), [word] * len(described.argtypes))
    entry = ir.Function(module, kind, entry_name(name))
    builder = ir.IRBuilder(entry.append_basic_block())
    _call(context, builder, described, entry.args)
    builder.ret_void()
    return module


def _call(context: Any, builder: Any, described: Any, arguments: Any) -> Any:
    """Call what Numba compiled, and return the integer that it returned, or 0."""
    function = context.declare_function(builder.module, described)
    _, result = context.call_conv.call_function(
        builder, function, described.restype, described.argtypes, arguments
    )
    return result if described.restype == types.int64 else ir.IntType(64)(0)


@contextmanager
def _remembering(context: Any) -> Iterator[None]:
    """Let Numba find out once what an operation on operands of some types is, not at each place."""
    find = context._resolve_user_function_type
    known: dict[Any, Any] = {}

    def found(function: Any, args: Any, kws: Any, literals: Any = None) -> Any:
        if isinstance(function, types.Dispatcher) or kws or literals:
            return find(function, args, kws, literals)
        key = function, args
        if key not in known:
            known[key] = find(function, args, kws)
        return known[key]

    context._resolve_user_function_type = found
    try:
        yield
    finally:
        del context._resolve_user_function_type


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
