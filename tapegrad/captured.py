"""What a program holds from outside of its arguments: variables, operands, leaves."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from .storage import Leaf


class Captured:
    """An array or number that a program holds from outside of its arguments.

    Attributes
    ----------
    name : str
        Name of the closure or global variable, or what else it is.
    file, line : str, int
        Where it met the recording; the function's own line for variables.
    """

    __slots__ = ("_read", "_snapshot", "file", "line", "name")

    def __init__(self, name: str, read: Callable[[], Any], file: str, line: int) -> None:
        self.name, self.file, self.line = name, file, line
        self._read = read
        self._snapshot = np.array(read())

    @property
    def value(self) -> Any:
        """What the variable or array holds now."""
        return self._read()

    @property
    def changed(self) -> bool:
        """Whether that differs from what was captured, which the program still uses."""
        now = np.asarray(self._read())
        kind = self._snapshot.dtype.kind
        return now.shape != self._snapshot.shape or not np.array_equal(
            now, self._snapshot, equal_nan=kind == "f" and now.dtype.kind == "f"
        )

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._snapshot.size

    def __repr__(self) -> str:
        shape = self._snapshot.shape
        what = f"shape {shape}" if shape else repr(self._snapshot.item())
        return f"Captured({self.name}: {what}, {os.path.basename(self.file)}:{self.line})"


def operands(captured: list[Any]) -> list[Captured]:
    """Return the arrays and leaves that met the recording as operands, each once.

    With them comes what programs that became part of the recording have captured.
    """
    found: dict[int, Captured] = {}
    for entry in captured:
        if isinstance(entry, Captured):
            found[id(entry)] = entry
            continue
        held, file, line = entry
        if id(held) not in found:
            name = "a leaf" if isinstance(held, Leaf) else "an operand"
            found[id(held)] = Captured(name, functools.partial(_held, held), file, line)
    return list(found.values())


def _held(x: Any) -> Any:
    """Return what a leaf, or an array itself, holds now."""
    return x.value if isinstance(x, Leaf) else x


def variables(f: Any) -> list[Captured]:
    """Return the numbers and arrays among the closure and global variables that `f` names."""
    code = getattr(f, "__code__", None)
    if code is None:
        return []
    readers: dict[str, Callable[[], Any]] = {}
    for name in code.co_names:
        if name in f.__globals__:
            readers[name] = functools.partial(f.__globals__.get, name)
    for name, cell in zip(code.co_freevars, f.__closure__ or (), strict=True):
        readers[name] = functools.partial(getattr, cell, "cell_contents", None)
    return [
        Captured(name, read, code.co_filename, code.co_firstlineno)
        for name, read in readers.items()
        if isinstance(read(), (float, int, np.number, np.ndarray))
    ]
