"""Structured arguments: nested containers taken apart into leaves, and put together again.

Containers are dicts (in insertion order), lists, tuples, named tuples and dataclass instances; None
is a container of nothing. Everything else is a leaf, arrays included.

>>> leaves, tree = flatten({"w": [1.0, 2.0], "b": 3.0})
>>> leaves
[1.0, 2.0, 3.0]
>>> unflatten(tree, [10 * leaf for leaf in leaves])
{'w': [10.0, 20.0], 'b': 30.0}
>>> paths(tree)
["['w'][0]", "['w'][1]", "['b']"]
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

IsLeaf = Callable[[Any], bool]


class TreeDef:
    """The structure of a nested container: what remains when the leaves are taken out.

    Structures compare and hash by value. `flatten` makes them.

    Attributes
    ----------
    kind : type or None
        The container's type; None for a leaf.
    keys : tuple
        What the children are called: keys of a dict, names of fields, positions.
    children : tuple of TreeDef
    default : callable or None
        The ``default_factory`` of a defaultdict.
    """

    __slots__ = ("children", "default", "keys", "kind")

    def __init__(
        self,
        kind: type | None,
        keys: tuple[Any, ...] = (),
        children: tuple[TreeDef, ...] = (),
        default: Callable[[], Any] | None = None,
    ) -> None:
        self.kind = kind
        self.keys = keys
        self.children = children
        self.default = default

    @property
    def is_leaf(self) -> bool:
        """Whether this is the structure of a single leaf."""
        return self.kind is None

    @property
    def n_leaves(self) -> int:
        """Number of leaves in it."""
        return 1 if self.kind is None else sum(child.n_leaves for child in self.children)

    def _parts(self) -> tuple[Any, ...]:
        return self.kind, self.keys, self.children, self.default

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TreeDef):
            return NotImplemented
        return self is other or self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash(self._parts())

    def __repr__(self) -> str:
        return f"TreeDef({self._show()})"

    def _show(self) -> str:
        kind = self.kind
        if kind is None:
            return "*"
        if kind is _NONE:
            return "None"
        shown = [child._show() for child in self.children]
        if kind is list:
            return f"[{', '.join(shown)}]"
        if kind is tuple:
            return f"({', '.join(shown)}{',' if len(shown) == 1 else ''})"
        if issubclass(kind, dict):
            items = ", ".join(f"{k!r}: {v}" for k, v in zip(self.keys, shown, strict=True))
            return f"{{{items}}}" if kind is dict else f"{kind.__name__}({{{items}}})"
        if _has_fields(kind):
            items = ", ".join(f"{k}={v}" for k, v in zip(self.keys, shown, strict=True))
            return f"{kind.__name__}({items})"
        return f"{kind.__name__}([{', '.join(shown)}])"


_NONE = type(None)
LEAF = TreeDef(None)
"""The structure of a single leaf."""


def flatten(obj: Any, is_leaf: IsLeaf | None = None) -> tuple[list[Any], TreeDef]:
    """Take a nested container apart.

    Parameters
    ----------
    obj : object
    is_leaf : callable, optional
        Asked about every part; where it says True, the part is a leaf although it is a container.

    Returns
    -------
    (leaves, treedef)

    Examples
    --------
    >>> flatten((1.0, None, {"a": [2.0]}))
    ([1.0, 2.0], TreeDef((*, None, {'a': [*]})))
    >>> flatten({"x": [1.0, 2.0]}, is_leaf=is_numeric_list)
    ([[1.0, 2.0]], TreeDef({'x': *}))
    """
    leaves: list[Any] = []
    return leaves, _take_apart(obj, is_leaf, leaves)


def _take_apart(part: Any, is_leaf: IsLeaf | None, leaves: list[Any]) -> TreeDef:
    # No closure: one that calls itself would keep the leaves until the garbage collector runs.
    opened = None if is_leaf is not None and is_leaf(part) else _open(part)
    if opened is None:
        leaves.append(part)
        return LEAF
    keys, parts = opened
    default = part.default_factory if isinstance(part, defaultdict) else None
    children = tuple([_take_apart(child, is_leaf, leaves) for child in parts])
    return TreeDef(type(part), keys, children, default)


def flatten_like(treedef: TreeDef, obj: Any, is_leaf: IsLeaf | None = None) -> list[Any]:
    """Return the leaves of `obj`, in the order of `treedef`, whose structure it must have.

    Parameters
    ----------
    treedef : TreeDef
    obj : object
        Its dicts may have their keys in another order.
    is_leaf : callable, optional
        Asked about containers found where `treedef` has a leaf: True accepts them as one.

    Raises
    ------
    ValueError
        Where the structures differ; it names the path.

    Examples
    --------
    >>> flatten_like(flatten({"a": 0, "b": [0]})[1], {"b": [2.0], "a": 1.0})
    [1.0, 2.0]
    >>> flatten_like(flatten({"a": 0, "b": [0]})[1], {"b": [2.0, 3.0], "a": 1.0})
    Traceback (most recent call last):
    ValueError: structures differ at ['b']: expected a list of 1, got a list of 2
    """
    leaves: list[Any] = []
    _take_like(treedef, obj, "", is_leaf, leaves)
    return leaves


def _take_like(
    node: TreeDef, part: Any, path: str, is_leaf: IsLeaf | None, leaves: list[Any]
) -> None:
    opened = _open(part)
    if node.kind is None and (opened is None or (is_leaf is not None and is_leaf(part))):
        leaves.append(part)
        return
    keys, children = opened or ((), ())
    children = list(children)
    same = opened is not None and type(part) is node.kind
    if same and issubclass(type(part), dict) and set(keys) == set(node.keys):
        children = [part[key] for key in node.keys]
    elif not same or keys != node.keys:
        expected = _describe(node.kind, node.keys)
        got = _describe(None if opened is None else type(part), keys)
        raise ValueError(
            f"structures differ at {path or 'the top'}: expected {expected}, got {got}"
        )
    for key, child, value in zip(node.keys, node.children, children, strict=True):
        _take_like(child, value, path + _step(node, key), is_leaf, leaves)


def unflatten(treedef: TreeDef, leaves: Iterable[Any]) -> Any:
    """Put leaves into a structure.

    Dataclass instances are made without calling ``__init__``: what it would check or compute for
    parameters need not hold for their gradients.

    Raises
    ------
    ValueError
        Where there are too few or too many leaves.
    """
    rest = list(leaves)
    if len(rest) != treedef.n_leaves:
        raise ValueError(f"{treedef!r} takes {treedef.n_leaves} leaves, got {len(rest)}")
    return _build(treedef, iter(rest))


def map(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply a function to each leaf, together with the leaves at its place in the other trees.

    Examples
    --------
    >>> map(lambda a, b: a + b, {"x": 1, "y": [2]}, {"x": 10, "y": [20]})
    {'x': 11, 'y': [22]}
    """
    leaves, treedef = flatten(tree)
    columns = [leaves, *[flatten_like(treedef, other) for other in rest]]
    return unflatten(treedef, [fn(*row) for row in zip(*columns, strict=True)])


def paths(treedef: TreeDef) -> list[str]:
    """Return how to reach each leaf, as one would write it: ``['w'][0].bias``."""
    if treedef.kind is None:
        return [""]
    return [
        _step(treedef, key) + path
        for key, child in zip(treedef.keys, treedef.children, strict=True)
        for path in paths(child)
    ]


def is_numeric_list(obj: Any) -> bool:
    """Whether `obj` is a list of plain numbers, or lists of them that form a rectangular array.

    Examples
    --------
    >>> is_numeric_list([[1, 2.5], [3, 4]]), is_numeric_list([[1, 2.5], [3]]), is_numeric_list([])
    (True, False, False)
    """
    return isinstance(obj, list) and _rectangle(obj) is not None


def is_whole(obj: Any) -> bool:
    """Whether `obj` stands for an array, or for none: it is None, or `is_numeric_list`."""
    return obj is None or is_numeric_list(obj)


def own(leaf: Any) -> Any:
    """Return a copy of an array, anything else as it is."""
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def _rectangle(obj: Any) -> tuple[int, ...] | None:
    """Return the shape of a number or a rectangular list of numbers, or None."""
    if not isinstance(obj, list):
        return () if isinstance(obj, (int, float, complex, np.number, np.bool_)) else None
    if not obj:
        return None
    first = _rectangle(obj[0])
    if first is None or any(_rectangle(item) != first for item in obj[1:]):
        return None
    return (len(obj), *first)


def classes(treedef: TreeDef) -> set[type]:
    """Return the named tuples and dataclasses of a structure."""
    own = {treedef.kind} if treedef.kind is not None and _has_fields(treedef.kind) else set()
    return own.union(*[classes(child) for child in treedef.children])


# -- structures in files ---------------------------------------------------------------------------

_MAX_DEPTH = 100
_KEYS = (str, int, float, type(None))  # bool is an int


def to_data(treedef: TreeDef) -> Any:
    """Return a structure as lists, dicts and strings, such as JSON has.

    Named tuples and dataclasses are described by their names and those of their fields, and a
    defaultdict becomes a dict.

    Raises
    ------
    TypeError
        For a dict with keys other than strings, numbers and None.

    Examples
    --------
    >>> to_data(flatten({"w": [1.0, 2.0], "b": (None, 3.0)})[1])
    {'dict': ['w', 'b'], 'children': [{'list': 2, 'children': ['*', '*']}, {'tuple': 2, ...}]}
    """
    kind, keys = treedef.kind, treedef.keys
    if kind is None:
        return "*"
    if kind is _NONE:
        return None
    children = [to_data(child) for child in treedef.children]
    if kind is list or kind is tuple:
        return {kind.__name__: len(keys), "children": children}
    if issubclass(kind, dict):
        wrong = [key for key in keys if not isinstance(key, _KEYS)]
        if wrong:
            raise TypeError(f"a dict with the key {wrong[0]!r}, which is no string, number or None")
        name = "OrderedDict" if kind is OrderedDict else "dict"
        return {name: list(keys), "children": children}
    return {"fields": list(keys), "class": kind.__qualname__, "children": children}


def from_data(data: Any, classes: Iterable[type] = ()) -> TreeDef:
    """Return the structure that `to_data` described.

    Parameters
    ----------
    data : object
    classes : iterable of type
        Named tuples and dataclasses that may occur; others become dicts of their fields.

    Raises
    ------
    ValueError
        Where the data describe no structure.

    Examples
    --------
    >>> tree = flatten({"w": [1.0, 2.0], "b": (None, 3.0)})[1]
    >>> from_data(to_data(tree)) == tree
    True
    """
    known = {(kind.__qualname__, _fields(kind)): kind for kind in classes}

    def build(part: Any, depth: int) -> TreeDef:
        if part == "*":
            return LEAF
        if part is None:
            return TreeDef(_NONE)
        if not isinstance(part, dict) or not isinstance(part.get("children"), list):
            raise ValueError(f"this describes no structure: {str(part)[:60]}")
        if depth > _MAX_DEPTH:
            raise ValueError(f"a structure is more than {_MAX_DEPTH} levels deep")
        children = tuple([build(child, depth + 1) for child in part["children"]])
        kind, keys = _container(part, known)
        unhashable = not all(isinstance(key, _KEYS) for key in keys)
        if unhashable or len(set(keys)) != len(keys) or len(keys) != len(children):
            raise ValueError(f"a {kind.__name__} with wrong keys: {str(keys)[:60]}")
        return TreeDef(kind, keys, children)

    return build(data, 0)


def _container(part: dict[str, Any], known: dict[Any, type]) -> tuple[Any, tuple[Any, ...]]:
    """Return the type and keys of a container in a file."""
    names: dict[str, type] = {"list": list, "tuple": tuple}
    for name, kind in names.items():
        if name in part:
            return kind, tuple(range(len(part["children"])))
    for name, kind in (("dict", dict), ("OrderedDict", OrderedDict)):
        if isinstance(part.get(name), list):
            return kind, tuple(part[name])
    if not isinstance(part.get("fields"), list):
        raise ValueError(f"an unknown container: {str(part)[:60]}")
    keys = tuple(part["fields"])
    if not all(isinstance(key, str) for key in keys):
        raise ValueError(f"fields must have names: {str(keys)[:60]}")
    return known.get((str(part.get("class")), keys), dict), keys


# -- containers -----------------------------------------------------------------------------------


def _open(part: Any) -> tuple[tuple[Any, ...], Iterable[Any]] | None:
    """Return the keys and children of a container, or None for a leaf."""
    kind = type(part)
    if kind is np.ndarray or kind is float:
        return None
    if kind is list or kind is tuple:
        return tuple(range(len(part))), part
    if part is None:
        return (), ()
    if kind is dict or kind is OrderedDict or kind is defaultdict:
        return tuple(part), part.values()
    if _has_fields(kind):
        keys = _fields(kind)
        return keys, [getattr(part, key) for key in keys]
    return None


def _build(treedef: TreeDef, leaves: Iterator[Any]) -> Any:
    kind = treedef.kind
    if kind is None:
        return next(leaves)
    if kind is _NONE:
        return None
    children = [_build(child, leaves) for child in treedef.children]
    if kind is list:
        return children
    if kind is tuple:
        return tuple(children)
    if issubclass(kind, defaultdict):
        return kind(treedef.default, zip(treedef.keys, children, strict=True))
    if issubclass(kind, dict):
        return kind(zip(treedef.keys, children, strict=True))
    if issubclass(kind, tuple):
        return tuple.__new__(kind, children)
    instance = object.__new__(kind)
    for key, child in zip(treedef.keys, children, strict=True):
        object.__setattr__(instance, key, child)  # a frozen dataclass refuses setattr
    return instance


def _has_fields(kind: type) -> bool:
    """Whether instances are named tuples or dataclass instances."""
    if hasattr(kind, "__dataclass_fields__"):
        return True
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


def _fields(kind: Any) -> tuple[str, ...]:
    if issubclass(kind, tuple):
        return tuple(kind._fields)
    import dataclasses  # whoever made the class has loaded it; importing tapegrad need not

    return tuple(field.name for field in dataclasses.fields(kind))


def _step(treedef: TreeDef, key: Any) -> str:
    """Return the way from a container to one of its children."""
    assert treedef.kind is not None
    return f".{key}" if _has_fields(treedef.kind) else f"[{key!r}]"


def _describe(kind: type | None, keys: tuple[Any, ...]) -> str:
    """Return a container in words, for a message."""
    if kind is None:
        return "a leaf"
    if kind is _NONE:
        return "None"
    if issubclass(kind, dict):
        return f"a {kind.__name__} with the keys {list(keys)}"
    if _has_fields(kind):
        return f"{kind.__name__} with the fields {list(keys)}"
    return f"a {kind.__name__} of {len(keys)}"
