"""The arguments of a batch: which of them have an axis of samples, and single samples of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import trees
from ..errors import at_caller
from ..programs.ports import argument_name
from ..storage import Tracked

if TYPE_CHECKING:
    from ..programs.program import Program

SHARE = "give in_axes=None for what all samples share"
SHARE_NAMED = "what all samples share is given by position, with None in in_axes"

Axes = Any  # None, an integer, or a structure of these


class Samples:
    """Arguments taken apart: the axis of samples comes first in every part that has one.

    Attributes
    ----------
    n : int
        Number of samples.
    parts : list
        The leaves of ``(args, kwargs)``.
    mapped : list of bool
        Which of them have an axis of samples.
    names : list of str
        What a user calls them.
    """

    __slots__ = ("count", "in_list", "kinds", "mapped", "n", "names", "parts", "tree")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], in_axes: Axes) -> None:
        found, self.tree = trees.flatten((args, kwargs), trees.is_numeric_list)
        self.count = len(args)
        self.in_list = in_lists(self.tree)
        self.names = [argument_name(path) for path in trees.paths(self.tree)]
        axes = axes_of_arguments(in_axes, self.tree)
        self.parts: list[Any] = []
        self.mapped: list[bool] = []
        positional = self.tree.children[0].n_leaves
        for i, (part, axis, name) in enumerate(zip(found, axes, self.names, strict=True)):
            axis = None if axis is None or _is_single(part) else axis
            self.mapped.append(axis is not None)
            hint = SHARE if i < positional else SHARE_NAMED
            self.parts.append(part if axis is None else _leading(part, axis, name, hint))
        self.n = self._common_length()
        self.kinds: list[Any] = [None] * len(self.parts)

    def expect(self, program: Program) -> None:
        """Hand out the kinds of numbers that a program was recorded for: floats for integers.

        Raises
        ------
        ValueError
            If a list of arrays stands where the program has a list of numbers, which is one array.
        """
        own = program._tree.children[0].children
        for i, (mine, its) in enumerate(zip(self.tree.children[0].children, own, strict=False)):
            if its.is_leaf and mine.kind is list:
                raise ValueError(
                    f"argument {i} is a list of arrays, but the program was recorded with a list "
                    "of numbers, which is one array: give one with a row for each sample, as by "
                    f"np.stack(x, axis=1){at_caller()}"
                )
        if len(self.parts) < len(program.inputs):
            return  # they do not fit, which the program is going to say
        named = self.tree.children[1].n_leaves
        places = [
            *range(len(program.inputs) - named),
            *range(len(self.parts) - named, len(self.parts)),
        ]
        for i, known in zip(places, program.inputs, strict=True):
            if known is not None:
                self.kinds[i] = known.dtype

    @property
    def tracked(self) -> bool:
        """Whether any part is a tracked value."""
        return any([isinstance(part, Tracked) for part in self.parts])

    @property
    def single(self) -> bool:
        """Whether all numbers that are no parts of the program are float32."""
        kinds = [getattr(part, "dtype", None) for part in self.parts]
        return np.float32 in kinds and all(
            kind == np.float32 for kind, known in zip(kinds, self.kinds, strict=True) if known
        )

    def detach(self) -> None:
        """Take the values of tracked parts, whose derivatives nobody wants."""
        self.parts = [x.value if isinstance(x, Tracked) else x for x in self.parts]  # type: ignore[attr-defined]

    @property
    def fixed(self) -> list[int]:
        """Parts that differ from sample to sample and are no inputs: integers, booleans."""
        return [
            i
            for i, (part, mapped) in enumerate(zip(self.parts, self.mapped, strict=True))
            if mapped
            and self.kinds[i] is None
            and not isinstance(part, Tracked)
            and part.dtype.kind != "f"
        ]

    def sample(self, i: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of one sample."""
        parts = [
            _one(part, i, kind, apart) if mapped else part
            for part, mapped, kind, apart in zip(
                self.parts, self.mapped, self.kinds, self.in_list, strict=True
            )
        ]
        args, kwargs = trees.unflatten(self.tree, parts)
        return tuple(args), kwargs

    def _common_length(self) -> int:
        lengths = {
            name: part.shape[0]
            for part, mapped, name in zip(self.parts, self.mapped, self.names, strict=True)
            if mapped
        }
        if not lengths:
            raise ValueError(
                f"no argument has an axis of samples: in_axes must name one{at_caller()}"
            )
        (first, n), *others = lengths.items()
        for name, other in others:
            if other != n:
                raise ValueError(
                    f"a ragged batch: {first} has {n} samples and {name} has {other}; "
                    f"{SHARE}{at_caller()}"
                )
        if not n:
            raise ValueError(f"a batch of no samples: {first} has none{at_caller()}")
        return int(n)


def _is_single(part: Any) -> bool:
    """Whether a part is something that all samples share, being no array: a string, an integer."""
    if isinstance(part, (Tracked, np.ndarray, np.generic, list)):
        return isinstance(part, np.generic) and part.dtype.kind != "f"
    return not isinstance(part, float)


def _leading(part: Any, axis: int, name: str, hint: str) -> Any:
    """Return an argument with its axis of samples in front, without a copy."""
    if isinstance(part, list):
        part = np.asarray(part, np.float64)
    if isinstance(part, np.ndarray) and part.dtype.kind not in "fiub":
        rows = "; rows of different lengths make no batch" if part.dtype.kind == "O" else ""
        raise TypeError(f"{name} is an array of dtype {part.dtype}{rows}{at_caller()}")
    shape: tuple[int, ...] = getattr(part, "shape", ())
    ndim = len(shape)
    if not -ndim <= axis < ndim:
        what = "is a single number, without axes" if not ndim else f"has {ndim} axes"
        raise ValueError(
            f"{name} {what}, but in_axes says that samples lie along axis {axis}; "
            f"{hint}{at_caller()}"
        )
    return part if axis in (0, -ndim) else np.moveaxis(part, axis, 0)


def in_lists(tree: trees.TreeDef) -> list[bool]:
    """Return by leaf whether it is an item of a list."""
    if tree.is_leaf:
        return [False]
    found: list[bool] = []
    for child in tree.children:
        found += [tree.kind is list] if child.is_leaf else in_lists(child)
    return found


def _one(part: Any, i: int, kind: Any, in_list: bool) -> Any:
    value = part[i]
    if kind is not None and value.dtype != kind:
        return value.astype(kind)
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()  # part of the program: a plain number is one
    # A list of numbers would be one argument, an array, where the batch has several.
    return np.asarray(value) if in_list and isinstance(value, np.floating) else value


def is_axis(x: Any) -> bool:
    """Whether `x` says where samples lie: an integer, or None for nowhere."""
    return x is None or (isinstance(x, (int, np.integer)) and not isinstance(x, bool))


def axes_of_arguments(in_axes: Axes, tree: trees.TreeDef) -> list[int | None]:
    """Return the axis of each leaf; keyword arguments have their samples along axis 0."""
    positional, named = tree.children
    if is_axis(in_axes):
        in_axes = (in_axes,) * len(positional.children)
    if not isinstance(in_axes, (tuple, list)) or len(in_axes) != len(positional.children):
        given = f"of {len(in_axes)}" if isinstance(in_axes, (tuple, list)) else repr(in_axes)
        raise ValueError(
            f"in_axes is an integer, None, or a tuple with an entry for each of the "
            f"{len(positional.children)} positional arguments, not {given}{at_caller()}"
        )
    axes: list[int | None] = []
    for i, (child, entry) in enumerate(zip(positional.children, in_axes, strict=True)):
        axes += spread(entry, child, f"in_axes[{i}]")
    return axes + [0] * named.n_leaves


def spread(entry: Axes, tree: trees.TreeDef, name: str) -> list[int | None]:
    """Return the axis of each leaf of `tree`, where `entry` may stand for all those below it."""
    if is_axis(entry):
        return [entry] * tree.n_leaves
    children: Sequence[Any]
    if isinstance(entry, dict) and set(entry) == set(tree.keys):
        children = [entry[key] for key in tree.keys]
    elif isinstance(entry, (tuple, list)) and len(entry) == len(tree.children):
        children = entry
    else:
        raise ValueError(
            f"{name} is {entry!r}: an axis is an integer or None, or a structure of these that "
            f"follows the value's, which is {tree!r}{at_caller()}"
        )
    axes: list[int | None] = []
    for key, child, part in zip(tree.keys, tree.children, children, strict=True):
        axes += spread(part, child, f"{name}[{key!r}]")
    return axes
