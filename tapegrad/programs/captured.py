"""What a program holds from outside of its arguments: variables, operands, leaves."""

from __future__ import annotations

import functools
import operator
import os
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from .. import trees
from ..errors import at_caller, is_internal
from ..storage import Leaf, Tracked

MANY = 100
"""Entries of a container above which it is not searched for numbers and arrays."""

_NUMBERS = (float, int, np.number)
_OPAQUE = (types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType, Tracked)


class Captured:
    """An array or number that a program holds from outside of its arguments.

    Attributes
    ----------
    name : str
        Name of the closure or global variable (or ``config['rate']``, ``self.rate``), or what else
        it is.
    file, line : str, int
        Where it met the recording; the function's own line for variables.
    """

    __slots__ = ("_held", "_read", "_snapshot", "_write", "file", "line", "name")

    def __init__(
        self,
        name: str,
        read: Callable[[], Any],
        file: str,
        line: int,
        write: Callable[[Any], None] | None = None,
    ) -> None:
        self.name, self.file, self.line = name, file, line
        self._read, self._write = read, write
        self._held = read()
        self._snapshot = np.array(_plain(self._held))

    @property
    def value(self) -> Any:
        """What the variable or array holds now."""
        return self._read()

    @property
    def changed(self) -> bool:
        """Whether that differs from what was captured, which the program still uses."""
        try:
            value = self._read()
        except (LookupError, AttributeError, ValueError, TypeError):
            return True  # it is not there any more
        if value is self._held and isinstance(value, _NUMBERS):
            return False
        now = np.asarray(_plain(value))
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


def _plain(x: Any) -> Any:
    """Return the values of a tracked variable, anything else as it is."""
    return x._peek() if isinstance(x, Tracked) else x  # type: ignore[attr-defined]


# -- operands --------------------------------------------------------------------------------------


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
            found[id(held)] = Captured(name, functools.partial(_content, held), file, line)
    return list(found.values())


def _content(x: Any) -> Any:
    """Return what a leaf, or an array itself, holds now."""
    return x.value if isinstance(x, Leaf) else x


# -- variables -------------------------------------------------------------------------------------


def variables(f: Any) -> list[Captured]:
    """Return the numbers and arrays among the variables that `f` names, and what it calls names.

    Looked at are closures and globals, of `f` and of the Python functions among them, containers in
    these, and attributes of objects in these, if their name occurs in the code.
    """
    if isinstance(f, Promoted):
        promoted = {(item.name, item.file, item.line) for item in f.items}
        return [
            item for item in variables(f.f) if (item.name, item.file, item.line) not in promoted
        ]
    found: list[Captured] = []
    seen: set[Any] = set()
    waiting = [f]
    while waiting:
        for found_here in _variables_of(_function(waiting.pop()), seen):
            if isinstance(found_here, Captured):
                found.append(found_here)
            else:
                waiting.append(found_here)
    return found


def _function(f: Any) -> Any:
    """Return the user's function: what ``partial``, ``tg.grad`` and the like were made of."""
    while True:
        if isinstance(f, functools.partial):
            f = f.func
        elif hasattr(f, "__wrapped__") and (not hasattr(f, "__code__") or _is_library(f)):
            f = f.__wrapped__
        else:
            return f


def _variables_of(f: Any, seen: set[Any]) -> Iterator[Any]:
    """Yield what one function captures, and the functions that it names."""
    code = getattr(f, "__code__", None)
    owner = getattr(f, "__self__", None)
    key = id(getattr(f, "__func__", f)), id(owner)
    if code is None or key in seen or _is_library(f):
        return
    seen.add(key)
    names = _names(code)
    scope = f.__globals__
    places: list[tuple[str, Any, Any]] = []
    for name in sorted(names):
        if name in scope:
            read, write = functools.partial(scope.__getitem__, name), scope.__setitem__
            places.append((name, read, functools.partial(write, name)))
    for name, cell in zip(code.co_freevars, f.__closure__ or (), strict=True):
        read = functools.partial(getattr, cell, "cell_contents")
        places.append((name, read, functools.partial(setattr, cell, "cell_contents")))
    if owner is not None and code.co_varnames:
        places.append((code.co_varnames[0], lambda: owner, None))
    for name, read, write in places:
        try:
            value = read()
        except ValueError:
            continue  # a closure variable without a value yet
        if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
            yield value
            continue
        for path, read_part, write_part in _parts(name, value, read, write, names):
            yield Captured(path, read_part, code.co_filename, code.co_firstlineno, write_part)


def _is_library(f: Any) -> bool:
    path = f.__code__.co_filename
    return is_internal(path) or f"{os.sep}scipy{os.sep}" in path


def _names(code: Any) -> set[str]:
    """Return the names in a function's code, and in that of the functions that it defines."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found


def _is_number(x: Any) -> bool:
    if isinstance(x, Tracked):
        return x.leaf is not None  # type: ignore[attr-defined]
    return isinstance(x, (*_NUMBERS, np.ndarray)) and np.asarray(x).dtype.kind in "fiub"


def _parts(name: str, value: Any, read: Any, write: Any, names: set[str]) -> Iterator[Any]:
    """Yield name, reader and writer of a variable, or of the numbers and arrays inside of it."""
    if _is_number(value):
        yield name, read, write
    elif isinstance(value, _OPAQUE) or value is None:
        return
    elif hasattr(value, "__dataclass_fields__") or isinstance(value, (dict, list, tuple)):
        if isinstance(value, (dict, list, tuple)) and len(value) > MANY:
            return
        leaves, tree = trees.flatten(value)
        rows = zip(leaves, trees.paths(tree), _ways(tree), strict=True)
        for i, (leaf, path, way) in enumerate(rows):
            if _is_number(leaf):
                writer = write and functools.partial(_write_leaf, read, write, i)
                yield name + path, functools.partial(_read_leaf, read, way), writer
    else:
        for attribute, part in getattr(value, "__dict__", {}).items():
            if attribute in names and _is_number(part):
                yield (
                    f"{name}.{attribute}",
                    functools.partial(getattr, value, attribute),
                    functools.partial(setattr, value, attribute),
                )


def _ways(tree: trees.TreeDef) -> Iterator[tuple[Callable[[Any], Any], ...]]:
    """Yield what leads to each leaf of a container, step by step."""
    if tree.is_leaf:
        yield ()
        return
    fields = tree.kind is not None and not issubclass(tree.kind, (dict, list))
    for key, child in zip(tree.keys, tree.children, strict=True):
        by_name = fields and isinstance(key, str)  # of a dataclass or a named tuple
        step = operator.attrgetter(key) if by_name else operator.itemgetter(key)
        for way in _ways(child):
            yield (step, *way)


def _read_leaf(read: Callable[[], Any], way: tuple[Callable[[Any], Any], ...]) -> Any:
    part = read()
    for step in way:
        part = step(part)
    return part


def _write_leaf(
    read: Callable[[], Any], write: Callable[[Any], None], number: int, value: Any
) -> None:
    leaves, tree = trees.flatten(read())
    leaves[number] = value
    write(trees.unflatten(tree, leaves))


# -- promotion -------------------------------------------------------------------------------------


class Promoted:
    """A function some of whose variables have become positional arguments, its last ones."""

    def __init__(self, f: Callable[..., Any], items: Sequence[Captured]) -> None:
        self.f = f
        self.items = list(items)
        self.__name__ = getattr(f, "__name__", "function")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function while its variables hold the last arguments."""
        count = len(args) - len(self.items)
        with ExitStack() as stack:
            for item, value in zip(self.items, args[count:], strict=True):
                stack.enter_context(_holding(item, value))
            return self.f(*args[:count], **kwargs)


@contextmanager
def _holding(item: Captured, value: Any) -> Iterator[None]:
    assert item._write is not None
    before = item._read()
    item._write(value)
    try:
        yield
    finally:
        item._write(before)


def choose(captured: Sequence[Captured], what: Any) -> Captured:
    """Return the captured variable that a name, or an entry of the list itself, stands for.

    Raises
    ------
    ValueError
        If there is none of that name, or several.
    TypeError
        If it is no variable, or not a float or an array of floats.
    """
    found = [item for item in captured if item is what or item.name == what]
    if isinstance(what, str) and len(found) > 1:
        found = [item for item in found if item._write is not None]
    if len(found) != 1:
        names = sorted({item.name for item in captured if item._write is not None})
        raise ValueError(
            f"{what!r} is {'no' if not found else 'more than one'} captured variable; choose one "
            f"of program.captured: {', '.join(names) or 'there are none'}{at_caller()}"
        )
    (item,) = found
    if item._write is None:
        raise TypeError(
            f"{item!r} is no variable, through which all of the function would see it; let the "
            f"function take it from a variable, or as an argument{at_caller()}"
        )
    if item._snapshot.dtype.kind != "f":
        raise TypeError(
            f"{item.name} is of dtype {item._snapshot.dtype}: only floats and arrays of floats are "
            f"inputs of programs{at_caller()}"
        )
    return item
