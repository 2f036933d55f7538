"""`tg.function`: a function that keeps a program for each way through its code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import trees
from .call import check_function
from .decisions import Decisions
from .errors import ControlFlowChanged
from .ports import is_input
from .program import Program
from .storage import Tracked

MAX_WAYS = 64
"""Programs that a function keeps for one kind of arguments; beyond that it starts again."""

_SMALL = 64  # elements of a captured array that is compared at each call


class _Way:
    """A node of the tree of decisions: a program that comes this way, and where it goes on."""

    __slots__ = ("next", "program")

    def __init__(self, program: Program) -> None:
        self.program = program
        self.next: dict[Any, _Way] = {}


class FunctionOfPrograms:
    """What `function` returns: call it like the function, or ask it for derivatives.

    Attributes
    ----------
    recordings : int
        How often the Python function was recorded.
    """

    def __init__(self, f: Callable[..., Any]) -> None:
        check_function(f)
        functools.update_wrapper(self, f)
        self._f = f
        self._ways: dict[Any, _Way] = {}
        self.recordings = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program that takes the way of these arguments."""
        return self.run(args, kwargs, lambda program: program(*args, **kwargs))

    def value_and_grad(self, *args: Any, argnums: int | Sequence[int] = 0, **kwargs: Any) -> Any:
        """Return the value and the gradient; see `Program.value_and_grad`."""
        return self.run(
            args, kwargs, lambda program: program.value_and_grad(*args, argnums=argnums, **kwargs)
        )

    def grad(self, *args: Any, argnums: int | Sequence[int] = 0, **kwargs: Any) -> Any:
        """Return the gradient."""
        return self.value_and_grad(*args, argnums=argnums, **kwargs)[1]

    def jacobian(
        self, *args: Any, argnums: int | Sequence[int] = 0, mode: str = "auto", **kwargs: Any
    ) -> Any:
        """Return the Jacobian; see `Program.jacobian`."""
        return self.run(
            args,
            kwargs,
            lambda program: program.jacobian(*args, argnums=argnums, mode=mode, **kwargs),
        )

    def hessian(self, *args: Any, argnums: int | Sequence[int] = 0, **kwargs: Any) -> Any:
        """Return the Hessian; see `Program.hessian`."""
        return self.run(
            args, kwargs, lambda program: program.hessian(*args, argnums=argnums, **kwargs)
        )

    def hvp(self, *args: Any, argnums: int = 0, **kwargs: Any) -> Any:
        """Return the product of the Hessian and a vector; see `Program.hvp`."""
        return self.run(
            args[:-1], kwargs, lambda program: program.hvp(*args, argnums=argnums, **kwargs)
        )

    def vjp(self, *args: Any, **kwargs: Any) -> Any:
        """Return the value and a function for vector-Jacobian products; see `Program.vjp`."""
        return self.run(args, kwargs, lambda program: program.vjp(*args, **kwargs))

    def jvp(self, primals: Sequence[Any], tangents: Sequence[Any], **kwargs: Any) -> Any:
        """Return the value and its derivative in one direction; see `Program.jvp`."""
        return self.run(
            tuple(primals), kwargs, lambda program: program.jvp(primals, tangents, **kwargs)
        )

    @property
    def programs(self) -> list[Program]:
        """The programs kept, each once."""
        found: dict[int, Program] = {}
        stack = list(self._ways.values())
        while stack:
            way = stack.pop()
            found[id(way.program)] = way.program
            stack.extend(way.next.values())
        return list(found.values())

    # -- inside ----------------------------------------------------------------------------------

    def run(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], use: Callable[[Program], Any]
    ) -> Any:
        """Return ``use(program)`` for the program that takes the way of these arguments."""
        key = _kind(args, kwargs)
        root = self._ways.get(key)
        if root is not None and any(
            item.size <= _SMALL and item.changed for item in root.program.captured
        ):
            root = None
        way, depth = root, 0
        while way is not None:
            program = way.program
            try:
                return use(program)
            except ControlFlowChanged as error:
                # Follow the decisions that hold to the one that differs, and turn off there.
                for decision in program.decisions.all[depth : error.number]:
                    way = way.next[_answer(decision.outcome)]
                depth = error.number
                way = way.next.get(_answer(error.outcome))
                depth += 1
        program = Program(self._f, args, kwargs)
        self.recordings += 1
        if root is None or len(self.programs) >= MAX_WAYS:
            root = self._ways[key] = _Way(program)
        self._plant(root, program.decisions, program)
        return use(program)

    @staticmethod
    def _plant(way: _Way, decisions: Decisions, program: Program) -> None:
        """Add a program's way to the tree; what it shares with others keeps its program."""
        for decision in decisions.all:
            way = way.next.setdefault(_answer(decision.outcome), _Way(program))


def function(f: Callable[..., Any]) -> FunctionOfPrograms:
    """Make a function that is recorded once for each way through its code, and then replayed.

    Parameters
    ----------
    f : callable
        Computes with NumPy.  Its decisions (``if``, ``while``, ``int(x)``, ``np.argmax``, ...) are
        found again at each call; where they come out otherwise, another program is used or made.

    Examples
    --------
    >>> import tapegrad as tg
    >>> @tg.function
    ... def distance(x):
    ...     return x * x if x < 1.0 else 2.0 * x - 1.0
    >>> distance.grad(0.5), distance.grad(3.0), distance.grad(0.25)
    (1.0, 2.0, 0.5)
    >>> distance.recordings
    2
    """
    return FunctionOfPrograms(f)


def _kind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return a hashable key of the structure, shapes and dtypes of arguments, and of constants."""
    leaves, tree = trees.flatten((args, dict(kwargs)), trees.is_numeric_list)
    parts: list[Any] = [tree]
    for leaf in leaves:
        if isinstance(leaf, Tracked) and not is_input(leaf):
            leaf = np.array(leaf.value)  # type: ignore[attr-defined]
        if is_input(leaf):
            parts.append((np.shape(leaf), getattr(leaf, "dtype", np.dtype(float)).str))
        elif isinstance(leaf, np.ndarray):
            parts.append((leaf.shape, leaf.dtype.str, leaf.tobytes()))
        else:
            parts.append((type(leaf), leaf))
    return tuple(parts)


def _answer(outcome: Any) -> Any:
    """Return a hashable form of a decision's outcome; all nans are one."""
    if isinstance(outcome, tuple):
        return tuple([_answer(part) for part in outcome])
    array = np.asarray(outcome)
    if array.dtype.kind == "b":
        array = array.astype(np.float64)
    if array.dtype.kind in "iu":
        array = array.astype(np.float64)
    return array.shape, tuple(["nan" if x != x else x for x in array.ravel().tolist()])
