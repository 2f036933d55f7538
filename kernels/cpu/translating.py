"""From functions of Python to code of LLVM, for the libraries of `kernels/native.py`.

The functions are plain ones: they compute with numbers, vectors and addresses, in variables that
have one type each, and know `if`, `while`, `for` over a range, and calls of one another. One walk
over the syntax tree of such a function writes its code (`walking.py`). What an operation on some
types is, and how it is done, Numba says. Its own compiler makes the same of these functions, and is
used where libraries are not, but takes several times as long: it goes from bytecode through two
codes of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.callconv import create_error_model
from numba.core.registry import cpu_target
from numba.core.typing import signature

from tapegrad.kernels.cpu.walking import Translated, Walk

_OF_C = {math.hypot: "hypot"}
"""Functions of numbers that Numba compiles a function of its own for, to call that of C."""


class Translation:
    """Functions of Python in a module of LLVM, each once for types of arguments."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.typing = cpu_target.typing_context
        target = cpu_target.target_context
        target.refresh()
        self.context = target.subtarget(error_model=create_error_model("numpy", target))
        self._functions: dict[Any, Translated] = {}
        self._operations: dict[Any, Any] = {}

    def function(self, function: Any, kinds: tuple[Any, ...]) -> Translated:
        """Return a function of Python for arguments of some types.

        Raises
        ------
        NotImplementedError
            For anything that kernels do without.
        """
        key = function, kinds
        if key not in self._functions:
            walk = Walk(self, function, kinds)
            while (found := walk.attempt()) is None:
                pass
            self._functions[key] = found
        return self._functions[key]

    def operation(self, function: Any, kinds: tuple[Any, ...]) -> tuple[Any, Callable[..., Any]]:
        """Return the signature of an operation that Numba knows, and what writes its code."""
        key = function, kinds
        if function in _OF_C:
            numbers = (types.float64,) * len(kinds)
            return signature(types.float64, *numbers), self._of_c(_OF_C[function], len(kinds))
        if key not in self._operations:
            known = self.typing.resolve_value_type(function)
            sig = known.get_call_type(self.typing, kinds, {})
            for registry in tuple(self.context._registries):  # what typing has come by
                self.context.install_registry(registry)
            self._operations[key] = sig, self.context.get_function(known, sig)
        return self._operations[key]

    def _of_c(self, name: str, arity: int) -> Callable[..., Any]:
        """Return what writes a call of a function of the C library."""
        number = self.context.get_value_type(types.float64)
        kind = ir.FunctionType(number, [number] * arity)
        code = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        return lambda builder, arguments: builder.call(code, arguments)

    def type_of(self, function: Any, plain: bool) -> Any:
        """Return the type of a function as an argument; a plain one of Python is translated."""
        return Called(self, function) if plain else self.typing.resolve_value_type(function)

    def unified(self, kinds: Sequence[Any]) -> Any:
        """Return the type that all of these are converted to."""
        found = self.typing.unify_types(*kinds)
        if found is None:
            raise NotImplementedError(f"values of types {kinds} in one place")
        return found


class Called(types.Callable):  # type: ignore[misc]
    """The type of a function that is an argument of an operation, which calls it."""

    def __init__(self, translation: Translation, function: Any) -> None:
        self.translation, self.function = translation, function
        super().__init__(name=f"Called({function.__qualname__}, {id(function)})")

    def get_call_type(self, context: Any, args: Any, kws: Any) -> Any:
        """Return the signature for arguments of some types."""
        return signature(self.translation.function(self.function, args).result, *args)

    def get_call_signatures(self) -> Any:
        """Return none: it takes what it is called with."""
        return (), False

    def get_impl_key(self, sig: Any) -> Any:
        """Return what it is known by."""
        return self.name

    def writer(self, sig: Any) -> Callable[[Any, Sequence[Any]], Any]:
        """Return what writes a call."""
        code = self.translation.function(self.function, sig.args).code
        return lambda builder, arguments: builder.call(code, arguments)
