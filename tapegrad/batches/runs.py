"""Batches: a program, or each of the programs that a function needs, run over many samples.

Samples are the lanes of regions (`tapegrad.batches.lanes`), a chunk of them at a time. Those that
do not take the way of the program they met are set apart, by the decision that they took otherwise,
and go on with the program of that way, recorded now if it is not known: the tree of programs is
that of `tapegrad.function`. What no region can run is run sample by sample.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from .. import trees
from ..decisions import Decision
from ..errors import ControlFlowChanged, at_caller
from ..programs.function import FunctionOfPrograms, Way
from ..programs.program import Program
from ..progress import steps, wanted
from ..regions import results
from . import unroll
from .lanes import LONGEST, Array, Lanes, lanes_of
from .samples import Samples
from .singles import is_single

MEMORY = 64 << 20
"""Bytes that a batch may use for itself, besides its arguments and results, by default."""

WAYS = 1 << 10
"""Programs that are kept for one function, at most."""

CHUNK_WORK = 1 << 27
"""Samples times instructions of a chunk: between two of them Ctrl-C is noticed, the bar moves."""

LONG_SAMPLES = 1 << 13
"""Samples of a long program that take as long by replays as its lanes take to be made."""

WAITING = 16 << 20
"""Bytes that the regions of a long program leave for each other at a time, about."""

_FACTOR = 4  # of instructions that a derivative has more than its program, about
_MOST, _LEAST = 1 << 20, 1 << 10  # samples of a chunk, whatever the work and the memory
_LEAST_WAITING = 1 << 6  # where numbers of each sample wait in memory
_DERIVED_CELLS = 1 << 20  # outputs times instructions, beyond which no Jacobian is recorded


class Task:
    """What is computed of each sample: a method of programs.

    Parameters
    ----------
    name : str
        "value", "value_and_grad", "grad", "jacobian", "hessian" or "hvp".
    argnums : int or sequence of int
    """

    def __init__(self, name: str, argnums: Any = 0) -> None:
        self.name = name
        self.argnums: Any = argnums if isinstance(argnums, (int, np.integer)) else tuple(argnums)
        self.vectors = int(name == "hvp")  # arguments that are not the program's

    def __call__(self, program: Program, *args: Any, **kwargs: Any) -> Any:
        """Compute it for one sample."""
        if self.name == "value":
            return program(*args, **kwargs)
        if self.name == "grad":
            return program.value_and_grad(*args, argnums=self.argnums, **kwargs)[1]
        return getattr(program, self.name)(*args, argnums=self.argnums, **kwargs)

    def lanes(self, program: Program, samples: int = 0, single: bool = False) -> Lanes | None:
        """Return the lanes that compute it, made once a program; None where there are none.

        Those of a long program are made once it has met enough samples. With `single` they compute
        in single precision, if the program does.
        """
        with program.lock:
            if single:
                if program.single is None:
                    program.single = is_single(program)
                single = program.single
            key = self.name, self.argnums, single
            if key not in program.lanes:
                if (
                    unroll.length(program.tape) * (1 if self.name == "value" else _FACTOR)
                    > unroll.MAX_CELLS
                ):
                    met = program.samples_met.get(key, 0) + samples
                    program.samples_met[key] = met
                    if met < LONG_SAMPLES:
                        return None
                derived = self._derived(program)
                real = "float32" if single else "float64"
                program.lanes[key] = None if derived is None else lanes_of(derived, real)
        found: Lanes | None = program.lanes[key]
        return found

    def _derived(self, program: Program) -> Program | None:
        if self.name == "value":
            return program
        if not unroll.can_unroll(program.tape, LONGEST) or program.decisions.by_functions:
            return None
        if self.name in ("jacobian", "hessian"):
            args, _ = program.example()
            rows = sum([output.size for output in program.outputs])
            if self.name == "hessian":
                rows = np.size(args[self.argnums]) if isinstance(self.argnums, int) else rows
            if len(program.outputs) != 1 or rows * len(program) > _DERIVED_CELLS:
                return None
        args, kwargs = program.example()
        vectors = [_ones_like(args[self.argnums]) for _ in range(self.vectors)]
        return Program(functools.partial(self, program), (*args, *vectors), kwargs)


def _ones_like(x: Any) -> Any:
    leaves, tree = trees.flatten(x, trees.is_numeric_list)
    return trees.unflatten(tree, [np.ones(np.shape(leaf))[()] for leaf in leaves])


class Batch:
    """One run over samples.

    Parameters
    ----------
    samples : Samples
    task : Task
    ways : FunctionOfPrograms or None
        Where programs are found and recorded; None if only `root` may be used.
    root : Way or None
        The program to begin with; None to find it.
    out : structure of ndarray, optional
        Where the results go.
    memory : int
    """

    def __init__(
        self,
        samples: Samples,
        task: Task,
        ways: FunctionOfPrograms | None,
        root: Way | None,
        out: Any = None,
        memory: int = MEMORY,
    ) -> None:
        self.samples, self.task, self.ways, self.root = samples, task, ways, root
        self.memory = memory
        self.single = samples.single
        self.tree: trees.TreeDef | None = None
        self.targets: list[Any] = []
        self._form: tuple[trees.TreeDef, list[Any], list[Any]] | None = None
        self._out = out
        self._used: set[int] = set()
        self._alone: list[int] = []  # samples that no region can be trusted with
        self._shared: dict[int, Array] = {}

    @property
    def paths(self) -> int:
        """How many ways through the code the samples took."""
        return len(self._used)

    def run(self, shown: bool = False) -> Any:
        """Return the results, samples along the first axis."""
        groups = list(self._groups())
        if self._out is not None:
            # Whatever may go wrong on the way is to go wrong before anything is written.
            for where, root in groups:
                for chunk in self._chunks(where, root):
                    self._solve(chunk, root, rehearsal=True)
            self._alone.clear()
        with steps("batch", self.samples.n, shown, "sample") as done:
            for where, root in groups:
                for chunk in self._chunks(where, root):
                    self._solve(chunk, root)
                    done(_size(chunk))
            self._one_by_one(np.array(self._alone, np.int64))
        assert self.tree is not None
        return trees.unflatten(self.tree, self.targets)

    # -- which samples meet which program ----------------------------------------------------------

    def _groups(self) -> Iterator[tuple[Any, Way]]:
        """Yield samples whose parts that are no inputs agree, with the program they begin with."""
        samples = self.samples
        fixed = samples.fixed
        if not fixed:
            yield slice(0, samples.n), self._root_for(0)
            return
        rows = [np.ascontiguousarray(samples.parts[i]).reshape(samples.n, -1) for i in fixed]
        kinds = [row.view(np.uint8).reshape(samples.n, -1) for row in rows]
        bytes_ = np.ascontiguousarray(np.concatenate(kinds, axis=1))
        keys = bytes_.view(np.dtype((np.void, bytes_.shape[1]))).ravel()
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        for j, one in enumerate(first.tolist()):
            yield np.flatnonzero(group == j), self._root_for(one)

    def _root_for(self, i: int) -> Way:
        args, kwargs = self._arguments(i)
        if self.root is None:
            assert self.ways is not None
            return self.ways.way(args, kwargs)
        self.root.program.check_arguments(args, kwargs)
        return self.root

    def _chunks(self, where: Any, root: Way) -> Iterator[Any]:
        """Yield pieces of the samples `where` of a size that the memory allows."""
        lanes = self.task.lanes(root.program, _size(where), self.single)
        size = self._chunk_size(lanes) if lanes is not None else _LEAST
        for start in range(0, _size(where), size):
            if isinstance(where, slice):
                yield slice(start, min(start + size, where.stop))
            else:
                yield where[start : start + size]

    def _chunk_size(self, lanes: Lanes) -> int:
        samples = self.samples
        apart = lanes.decided or bool(samples.fixed)  # some samples may be gathered into copies
        bytes_ = 16 * lanes.decided
        for i in lanes.numbers:
            part = samples.parts[i]
            if samples.mapped[i] and (apart or part.dtype != lanes.real):
                bytes_ += 8 * part[:1].size
        for shape, dtype in zip(lanes.shapes, lanes.dtypes, strict=True):
            if apart or dtype != lanes.real or self._out is not None:
                bytes_ += 8 * prod(shape)
        size = min(CHUNK_WORK // lanes.instructions, self.memory // max(bytes_, 1), _MOST)
        least = _LEAST
        if lanes.waiting:
            size, least = min(size, WAITING // (8 * lanes.waiting)), _LEAST_WAITING
        return max(size // least, 1) * least

    # -- one chunk ---------------------------------------------------------------------------------

    def _solve(self, chunk: Any, root: Way, rehearsal: bool = False) -> None:
        """Compute the results of some samples, or only find the programs that they need."""
        waiting: list[tuple[Any, Way, int]] = [(chunk, root, 0)]
        while waiting:
            where, way, depth = waiting.pop()
            met = 0 if way is root else _size(where)
            lanes = self.task.lanes(way.program, met, self.single)
            if lanes is None:
                if not rehearsal:
                    self._one_by_one(where)
                continue
            parts, mapped = self._take(where, lanes)
            if rehearsal:
                failing = np.arange(_size(where) if lanes.decided else 0)
                self._prepare(lanes.tree, lanes.shapes, lanes.dtypes)
            else:
                failing = self._run(lanes, parts, mapped, where)
                if _size(where) > failing.size:
                    self._used.add(way.program.decisions.key)
            step = max(self.memory // (16 * lanes.cells.size + 1), 1)
            for start in range(0, failing.size, step):
                some = failing[start : start + step]
                chosen = [x[some] if m else x for x, m in zip(parts, mapped, strict=True)]
                for number, outcome, which in lanes.others(chosen, mapped, some.size):
                    indices = _indices(where)[some[which]]
                    waiting += self._turn_off(indices, way, depth, number, outcome)

    def _take(self, where: Any, lanes: Lanes) -> tuple[list[Array], list[bool]]:
        """Return the inputs of some samples, and which of them have samples."""
        samples = self.samples
        parts = []
        for i in lanes.numbers:
            part = samples.parts[i]
            if samples.mapped[i]:
                parts.append(part[where])
                continue
            if i not in self._shared:
                self._shared[i] = np.array(part, lanes.real)
            parts.append(self._shared[i])
        return parts, [samples.mapped[i] for i in lanes.numbers]

    def _run(self, lanes: Lanes, parts: list[Array], mapped: list[bool], where: Any) -> Any:
        """Compute results, put them where they belong, and return which samples go elsewhere."""
        m = _size(where)
        self._prepare(lanes.tree, lanes.shapes, lanes.dtypes)
        if isinstance(where, slice):
            agree = lanes.run(parts, mapped, m, [target[where] for target in self.targets])
            return np.zeros(0, np.int64) if agree is None else np.flatnonzero(~agree)
        found = [
            np.empty((m, *shape), dtype)
            for shape, dtype in zip(lanes.shapes, lanes.dtypes, strict=True)
        ]
        agree = lanes.run(parts, mapped, m, found)
        for target, values in zip(self.targets, found, strict=True):
            if agree is None:
                target[where] = values
            else:
                target[where[agree]] = values[agree]
        return np.zeros(0, np.int64) if agree is None else np.flatnonzero(~agree)

    def _turn_off(
        self, indices: Any, way: Way, depth: int, number: int, outcome: Any
    ) -> list[tuple[Any, Way, int]]:
        """Return what is to be done for samples that decide otherwise than a program."""
        decisions: list[Decision] = way.program.decisions.all
        if self.ways is None:
            error = decisions[number].changed(outcome)
            error.number = number
            raise at_sample(int(indices.min()), error)
        taken = [decision.outcome for decision in decisions[:number]] + [outcome]
        found = way.follow(taken[depth:])
        if found is not None:
            return [(indices, found, number + 1)]
        args, kwargs = self._arguments(int(indices[0]))
        program = self.ways.record(args, kwargs)
        if not program.decisions.begin_with(taken):
            # The last digit of exp, say, differs between executors, and here a decision with it:
            # such a sample runs by itself.
            self._alone.append(int(indices[0]))
            return [(indices[1:], way, depth)] if indices.size > 1 else []
        if self.ways.full:
            return [(indices, Way(program), number + 1)]
        self.ways.keep(way, program, depth)
        found = way.follow(taken[depth:])
        assert found is not None
        return [(indices, found, number + 1)]

    def _one_by_one(self, where: Any) -> None:
        """Compute the results of some samples by replays, one after another."""
        for i in _indices(where).tolist():
            args, kwargs = self.samples.sample(i)
            compute = functools.partial(self._replay, args, kwargs)
            if self.ways is not None:
                found = self.ways.run(*self._arguments(i), compute)
            else:
                assert self.root is not None
                try:
                    found = compute(self.root.program)
                except ControlFlowChanged as error:
                    raise at_sample(i, error) from None
            parts, tree = trees.flatten(found)
            self._prepare(
                tree, [np.shape(part) for part in parts], [_dtype_of(part) for part in parts]
            )
            for target, part in zip(self.targets, parts, strict=True):
                target[i] = part

    def _replay(self, args: tuple[Any, ...], kwargs: dict[str, Any], program: Program) -> Any:
        found = self.task(program, *args, **kwargs)
        self._used.add(program.decisions.key)
        return found

    def _arguments(self, i: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a sample that are the program's."""
        args, kwargs = self.samples.sample(i)
        return args[: len(args) - self.task.vectors], kwargs

    # -- results -----------------------------------------------------------------------------------

    def _prepare(
        self, tree: trees.TreeDef, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[Any]
    ) -> None:
        """Make room for results of this form, or see that they have the form of the others."""
        form = tree, list(shapes), list(dtypes)
        if self._form is None:
            wrong = [dtype for dtype in dtypes if dtype.kind not in "fiub"]
            if wrong:
                raise TypeError(
                    "a batch collects real numbers and arrays, but the function returns values of "
                    f"dtype {wrong[0]}{at_caller()}"
                )
            self._form, self.tree = form, tree
            self.targets = self._own() if self._out is None else self._given()
        elif form[:2] != self._form[:2]:
            raise ValueError(
                f"samples have results of different form: {_say(self._form)} and "
                f"{_say(form)}{at_caller()}"
            )

    def _own(self) -> list[Array]:
        assert self._form is not None
        n, (_, shapes, dtypes) = self.samples.n, self._form
        arguments = zip(self.samples.parts, self.samples.mapped, strict=True)
        first = next((part for part, mapped in arguments if mapped), None)
        beside = first if isinstance(first, np.ndarray) else None
        return [
            results.take(n * prod(shape), beside).reshape(n, *shape)
            if dtype == np.float64
            else np.empty((n, *shape), dtype)
            for shape, dtype in zip(shapes, dtypes, strict=True)
        ]

    def _given(self) -> list[Array]:
        """Return the caller's arrays, which must fit."""
        assert self._form is not None
        tree, shapes, dtypes = self._form
        try:
            found = trees.flatten_like(tree, self._out)
        except ValueError as error:
            raise ValueError(
                f"out must have the result's structure: {error}{at_caller()}"
            ) from None
        for target, shape, dtype in zip(found, shapes, dtypes, strict=True):
            if not isinstance(target, np.ndarray):
                raise TypeError(f"out holds a {type(target).__name__}, not an array{at_caller()}")
            if target.shape != (self.samples.n, *shape):
                raise ValueError(
                    f"out has an array of shape {target.shape} where the result has "
                    f"{(self.samples.n, *shape)}{at_caller()}"
                )
            if not np.can_cast(dtype, target.dtype, "same_kind") or not target.flags.writeable:
                raise ValueError(
                    f"out has an array of dtype {target.dtype}, "
                    f"{'writable' if target.flags.writeable else 'read-only'}, which cannot take "
                    f"results of dtype {dtype}{at_caller()}"
                )
            for part in self.samples.parts:
                if isinstance(part, np.ndarray) and np.may_share_memory(part, target):
                    raise ValueError(
                        f"out shares memory with an argument, which is read again after results "
                        f"are written; give another array{at_caller()}"
                    )
        return found


def at_sample(i: int, error: ControlFlowChanged) -> ControlFlowChanged:
    """Return the error of one sample as that of its batch."""
    found = ControlFlowChanged(f"sample {i}: {error}{at_caller()}", error.decision, error.outcome)
    found.number, found.sample = error.number, i
    return found


def _size(where: Any) -> int:
    return int(where.stop - where.start) if isinstance(where, slice) else int(where.size)


def _indices(where: Any) -> Any:
    return np.arange(where.start, where.stop) if isinstance(where, slice) else where


def _dtype_of(part: Any) -> np.dtype[Any]:
    return np.asarray(part).dtype


def _say(form: Any) -> str:
    tree, shapes, _ = form
    return f"{tree!r} of shapes {', '.join(map(str, shapes))}"


class Map:
    """`Program.map`: the program run over many samples at once.

    Attributes
    ----------
    paths : int
        How many ways through the code the samples of the last batch took.
    """

    def __init__(self, ways: FunctionOfPrograms | None, root: Way | None = None) -> None:
        self._ways = ways
        self._root = root
        self.paths = 0

    @classmethod
    def of(cls, program: Program) -> Map:
        """Return the map of a program: other ways are recorded from its function, if it has one."""
        root = Way(program)
        root.plant(program, 0)
        function = program.function
        if function is None:
            return cls(None, root)
        ways = FunctionOfPrograms(function, most=WAYS)
        ways.begin_with(root)
        return cls(ways, root)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Return the values of many samples.

        Parameters
        ----------
        *args
            The program's arguments, in their structure, with an axis of ``n`` samples more.
            Integers, strings and whatever else is no array are the same for all samples.
        in_axes : int, None or tuple, optional
            Where the axis of samples is: one answer for all positional arguments, or a tuple with
            one for each, None for an argument that all samples share.  The answer for a dict, list
            or tuple may follow its structure.  Keyword arguments have it first.
        out : ndarray or structure of ndarray, optional
            Where results are written, ``np.memmap`` included; by default they are new arrays.
        memory : int, optional
            Bytes that chunks of samples may take, besides arguments and results; 64 MiB by default.
        progress : bool, optional
            Show a bar of samples (needs ``tqdm``).
        **kwargs
            The program's keyword arguments.

        Returns
        -------
        ndarray or structure of ndarray
            In the structure of the program's result, samples along the first axis.

        Raises
        ------
        ControlFlowChanged
            If a sample takes another way, and the program has no function to record (it was loaded
            from a file, or derived).
        ValueError
            For a ragged batch, one of no samples, a wrong `in_axes` or an `out` that does not fit.

        Examples
        --------
        >>> import numpy as np, tapegrad as tg
        >>> program = tg.record(lambda x, a: a * x if x > 0.0 else -x, 1.0, 2.0)
        >>> program.map(np.array([3.0, -1.0, 2.0]), 10.0, in_axes=(0, None))
        array([30.,  1., 20.])
        >>> program.map.paths
        2
        """
        return self._run(Task("value"), args, options)

    def value_and_grad(self, *args: Any, argnums: int | Sequence[int] = 0, **options: Any) -> Any:
        """Return values and gradients of many samples; see `Program.value_and_grad`.

        Examples
        --------
        >>> import numpy as np, tapegrad as tg
        >>> program = tg.record(lambda x: np.sum(x**3), np.ones(2))
        >>> program.map.value_and_grad(np.array([[1.0, 2.0], [0.0, -1.0]]))
        (array([ 9., -1.]), array([[ 3., 12.],
               [ 0.,  3.]]))
        """
        return self._run(Task("value_and_grad", argnums), args, options)

    def grad(self, *args: Any, argnums: int | Sequence[int] = 0, **options: Any) -> Any:
        """Return gradients of many samples."""
        return self._run(Task("grad", argnums), args, options)

    def jacobian(self, *args: Any, argnums: int | Sequence[int] = 0, **options: Any) -> Any:
        """Return Jacobians of many samples; see `Program.jacobian`."""
        return self._run(Task("jacobian", argnums), args, options)

    def hessian(self, *args: Any, argnums: int = 0, **options: Any) -> Any:
        """Return Hessians of many samples; see `Program.hessian`."""
        return self._run(Task("hessian", argnums), args, options)

    def hvp(self, *args: Any, argnums: int = 0, **options: Any) -> Any:
        """Return products of Hessians and vectors, the last argument; see `Program.hvp`.

        Vectors have an entry of their own in an `in_axes` that is a tuple.
        """
        return self._run(Task("hvp", argnums), args, options)

    def _run(self, task: Task, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        in_axes, out = options.pop("in_axes", 0), options.pop("out", None)
        memory, shown = options.pop("memory", MEMORY), options.pop("progress", False)
        if not isinstance(memory, (int, np.integer)) or memory < 0:
            raise TypeError(f"memory is a number of bytes, not {memory!r}{at_caller()}")
        samples = Samples(args, options, in_axes)
        if self._root is not None:
            samples.expect(self._root.program)
        if samples.tracked:
            raise TypeError(
                "map takes plain arrays; for batches inside of a derivative there is tg.vmap"
                f"{at_caller()}"
            )
        batch = Batch(samples, task, self._ways, self._root, out, int(memory))
        found = batch.run(shown or wanted())
        self.paths = batch.paths
        return found
