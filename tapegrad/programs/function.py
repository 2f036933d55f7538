"""`tg.function`: a function that keeps a program for each way through its code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import trees
from ..decisions import answer_key
from ..errors import ControlFlowChanged
from ..storage import Tracked
from ..transforms.call import Replayed, are_plain, check_function, positions_of
from .ports import is_input
from .program import Program

if TYPE_CHECKING:
    from ..batches.runs import Map

MAX_WAYS = 64
"""Programs that a function keeps for one kind of arguments; beyond that it starts again."""

Given = Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]

_SMALL = 64  # elements of a captured array that is compared at each call


class Way:
    """A node of the tree of decisions: a program that comes this way, and where it goes on.

    The root of a tree knows the `latest` of its programs that was used.
    """

    __slots__ = ("latest", "next", "program")

    def __init__(self, program: Program) -> None:
        self.program = self.latest = program
        self.next: dict[Any, Way] = {}

    def follow(self, outcomes: Iterable[Any]) -> Way | None:
        """Return where decisions that come out like this lead to, if that is known."""
        way: Way | None = self
        for outcome in outcomes:
            way = way.next.get(answer_key(outcome)) if way is not None else None
        return way

    def plant(self, program: Program, depth: int) -> None:
        """Add the way of a program, from its decision `depth` on, which is taken here.

        What it shares with other ways keeps its program.
        """
        way = self
        for decision in program.decisions.all[depth:]:
            way = way.next.setdefault(answer_key(decision.outcome), Way(program))


class FunctionOfPrograms(Replayed):
    """What `function` returns: call it like the function, or ask it for derivatives.

    Attributes
    ----------
    recordings : int
        How often the Python function was recorded.
    """

    def __init__(
        self, f: Callable[..., Any], compared: int = _SMALL, most: int | None = None
    ) -> None:
        check_function(f)
        functools.update_wrapper(self, f)
        self._f = f
        self._compared = compared  # elements of a captured array that is looked at each time
        self._most = MAX_WAYS if most is None else most  # programs that are kept
        self._kept = 0
        self._ways: dict[Any, Way] = {}
        self._plain: dict[Any, Way] = {}  # the same, by what is quicker to find out
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

    def plain_gradient(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], argnums: int | Sequence[int]
    ) -> tuple[Any, Any] | None:
        """Return value and gradient where `tg.grad` would; see `Program.plain_gradient`."""
        if not are_plain(args, kwargs, positions_of(argnums, len(args))):
            return None
        found: tuple[Any, Any] | None = self.run(
            args, kwargs, lambda program: program.plain_gradient(args, kwargs, argnums)
        )
        return found

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

    def to(self, where: Any, stream: Any = None) -> Any:
        """Return the function on a device; see `Program.to`.

        Returns
        -------
        DeviceFunction
            It has this function's methods, and its `map`; see
            `tapegrad.devices.functions.DeviceFunction`.

        Raises
        ------
        DeviceUnavailable
            If there is no such device; the function still runs on the CPU.
        """
        if where == "cpu":
            return self
        from ..devices.functions import DeviceFunction
        from ..devices.programs import device_named

        return DeviceFunction(self, device_named(where, stream))

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
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        use: Callable[[Program], Any],
        given: Given | None = None,
    ) -> Any:
        """Return ``use(program)`` for the program that takes the way of these arguments.

        Parameters
        ----------
        args, kwargs
            The arguments, or arrays like them: only their structure, shapes and dtypes are used.
        use : callable
        given : callable, optional
            Returns the arguments to record with, if those are others.
        """
        root = self.way(args, kwargs, given)
        program: Program | None = root.latest  # arguments often take the way of those before
        while program is not None:
            if program is not root.program and self._captured_changed(program):
                root = self._start(_kind(args, kwargs), self._recorded(args, kwargs, given))
                program = root.program
                self.keep(root, program, 0)
            try:
                found = use(program)
            except ControlFlowChanged as error:
                # Follow the decisions that hold to the one that differs, and turn off there.
                held = [decision.outcome for decision in program.decisions.all[: error.number]]
                way = root.follow([*held, error.outcome])
                program = None if way is None else way.program
            else:
                root.latest = program
                return found
        program = self._recorded(args, kwargs, given)
        if self.full:
            root = self._start(_kind(args, kwargs), program)
            self._kept = len(self.programs) - 1
        self.keep(root, program, 0)
        root.latest = program
        return use(program)

    def way(self, args: tuple[Any, ...], kwargs: dict[str, Any], given: Given | None = None) -> Way:
        """Return the root of the ways for arguments of this kind, with a program."""
        plain = None if kwargs else _plain_kind(args)
        root = None if plain is None else self._plain.get(plain)
        if root is None:
            root = self._ways.get(_kind(args, kwargs))
        if root is None or self._captured_changed(root.program):
            root = self._start(_kind(args, kwargs), self._recorded(args, kwargs, given))
            self.keep(root, root.program, 0)
        if plain is not None:
            self._plain[plain] = root
        return root

    def _start(self, key: Any, program: Program) -> Way:
        """Make a program the first of its kind."""
        self._plain.clear()
        root = self._ways[key] = Way(program)
        return root

    def _captured_changed(self, program: Program) -> bool:
        return any([item.changed for item in program.captured if item.size <= self._compared])

    def keep(self, way: Way, program: Program, depth: int) -> None:
        """Keep a program, which takes its decision `depth` where `way` is."""
        way.plant(program, depth)
        self._kept += 1

    def begin_with(self, root: Way) -> None:
        """Keep a program that was recorded elsewhere."""
        args, kwargs = root.program.example()
        self._plain.clear()
        self._ways[_kind(args, kwargs)] = root

    def record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
        """Record the function once more."""
        self.recordings += 1
        return Program(self._f, args, kwargs)

    def _recorded(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], given: Given | None
    ) -> Program:
        return self.record(args, kwargs) if given is None else self.record(*given())

    @property
    def full(self) -> bool:
        """Whether there are as many programs as are kept."""
        return self._kept >= self._most

    @functools.cached_property
    def map(self) -> Map:
        """The function over many samples at once; see `Program.map`."""
        from ..batches.runs import Map  # with the first batch

        return Map(self)


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


_NUMBERS = {float, np.float64}


def _plain_kind(args: tuple[Any, ...]) -> Any:
    """Return a key of what `_kind` finds out, of numbers and arrays; None for anything else."""
    kinds = tuple(map(type, args))
    if _NUMBERS.issuperset(kinds):
        return len(kinds)
    parts: list[Any] = []
    for arg, kind in zip(args, kinds, strict=True):
        if kind is np.ndarray and arg.dtype.kind == "f":
            parts.append((arg.shape, arg.dtype))
        elif kind in _NUMBERS:
            parts.append(float)
        else:
            return None
    return tuple(parts)
