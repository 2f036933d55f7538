"""`Program`: a finished recording with inputs and outputs, which runs again without Python."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import backward, execute, recording, trees
from .decisions import Decisions
from .derivatives import _check_function, _positions, _real, _result
from .errors import at_caller
from .recording import FLOAT32, FLOAT64
from .simplify import simplify
from .storage import Floats, Leaf, Tracked
from .tape import Recording, Tape, recorder

Function = Callable[..., Any]


class _Input:
    """One number or array among the arguments: where its values go on the tape."""

    __slots__ = ("cell", "dtype", "leaf", "name", "shape", "size")

    def __init__(self, value: Any, name: str) -> None:
        self.name = name
        self.leaf = Leaf(value, True)
        self.shape, self.size, self.dtype = value.shape, value.size, value.dtype
        self.cell = 0

    def track(self) -> Any:
        """Return the tracked value that stands for the input while recording."""
        tape = recorder.tape
        entry = tape.push_input(self.leaf.value)
        entry.leaf = self.leaf
        self.cell = entry.cell
        return recording.run(
            tape, entry.cell, self.shape, FLOAT32 if self.dtype == FLOAT32 else FLOAT64
        )

    def load(self, value: Any, v: Floats) -> None:
        """Put another value in the input's place."""
        values = _real(value, self.name)
        if values.shape != self.shape:
            raise ValueError(
                f"{self.name} has shape {values.shape}, but the program was recorded for "
                f"{self.shape}{at_caller()}"
            )
        v[self.cell : self.cell + self.size] = values.ravel()


class _Output:
    """One number or array of the result: its cells, or a constant."""

    __slots__ = ("cells", "constant", "dtype", "shape")

    def __init__(self, value: Any) -> None:
        self.cells: Any = None
        self.constant: Any = None
        self.shape, self.dtype = np.shape(value), getattr(value, "dtype", FLOAT64)
        if isinstance(value, Tracked):
            tape, cells = backward.place_of(value)
            if tape is recorder.tape:
                self.cells = cells
                return
            value = value.value  # type: ignore[attr-defined]
        self.constant = value

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape))

    def read(self, v: Floats) -> Any:
        """Return the output's value, owned by the caller."""
        if self.cells is None:
            return self.constant
        if isinstance(self.cells, (int, np.integer)):
            values = v[self.cells : self.cells + self.size]
        else:
            values = v[self.cells]
        values = np.array(values.reshape(self.shape), self.dtype)
        if values.ndim:
            return values
        return float(values) if self.dtype == FLOAT64 else values[()]


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


class Program:
    """A recorded function: it runs again, forward and backward, without running Python code.

    Make one with `tapegrad.recording`.  A program runs the way through the code that was recorded;
    where other arguments would have taken another way, it raises `ControlFlowChanged`.

    Attributes
    ----------
    captured : list of Captured
        Arrays and numbers that the function took from elsewhere than its arguments.
    """

    def __init__(self, f: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _check_function(f)
        self._name = getattr(f, "__name__", "function")
        self.lock = threading.RLock()
        self.decisions = Decisions()
        self._recording = Recording(self.decisions)
        leaves, self._tree = trees.flatten((args, dict(kwargs)), trees.is_numeric_list)
        self._count = len(args)
        names = [_argument_name(path) for path in trees.paths(self._tree)]
        # Arguments without structure of their own need no taking apart at each call.
        self._flat = not kwargs and all(part.is_leaf for part in self._tree.children[0].children)
        self._inputs: list[_Input | None] = []  # None where the argument is part of the program
        self._static: list[Any] = leaves
        outer = recorder.enter(recording=self._recording)
        try:
            values = []
            for leaf, name in zip(leaves, names, strict=True):
                known = _Input(_real(leaf, name), name) if is_input(leaf) else None
                self._inputs.append(known)
                values.append(leaf if known is None else known.track())
            positional, named = trees.unflatten(self._tree, values)
            output = f(*positional, **named)
            found, self._out_tree = trees.flatten(output)
            self._outputs = [_Output(value) for value in found]
            self.tape = recorder.tape
        except BaseException:
            recorder.leave(outer)
            self._recording.release()
            raise
        recorder.leave(outer)
        execute.evaluate(self.tape)
        self._simplify()
        self.captured = _variables(f) + _operands(self._recording.captured)

    def __repr__(self) -> str:
        return f"Program({self._name}: {self.tape.n} instructions, {len(self.decisions)} decisions)"

    def __len__(self) -> int:
        """Return the number of instructions."""
        return self.tape.n

    @classmethod
    def from_parts(
        cls,
        name: str,
        recording: Recording,
        tape: Tape,
        arguments: tuple[trees.TreeDef, int, list[_Input | None], list[Any]],
        results: tuple[trees.TreeDef, list[_Output]],
        captured: list[Captured],
    ) -> Program:
        """Return the program that a file describes; see `tapegrad.load`."""
        program = cls.__new__(cls)
        program._name, program.lock, program.captured = name, threading.RLock(), captured
        program._recording, program.decisions = recording, recording.decisions
        program.tape = tape
        program._tree, program._count, program._inputs, program._static = arguments
        program._out_tree, program._outputs = results
        positional, named = program._tree.children
        program._flat = not named.keys and all(child.is_leaf for child in positional.children)
        return program

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the program to a file, which `tapegrad.load` reads anywhere.

        The file holds the recording, not Python code: the source of the function is not needed to
        run it.  Of the arrays and numbers that the program took from elsewhere it holds the values,
        and of source files only the names.  A file of that name is replaced, all at once.

        Raises
        ------
        TypeError
            If a part of the program is run by Python code (custom rules, checkpoints, decisions by
            functions such as ``np.argmax``), or a constant is no number, text or array.
        """
        from .files import save  # with the first file

        save(self, path)

    def check_captured(self) -> list[Captured]:
        """Return what was captured and has changed since: the program still uses the old values."""
        return [item for item in self.captured if item.changed]

    # -- running ---------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program for other arguments of the same structure, shapes and dtypes.

        Raises
        ------
        ControlFlowChanged
            If these arguments take another way through the recorded code.
        ValueError, TypeError
            If the arguments do not fit those that the program was recorded for.
        """
        with self.lock:
            self.forward(args, kwargs)
            return self._read()

    def value_and_grad(self, *args: Any, argnums: int | Sequence[int] = 0, **kwargs: Any) -> Any:
        """Run the program and return its value, a single number, and the gradient.

        Examples
        --------
        >>> import numpy as np, tapegrad as tg
        >>> program = tg.record(lambda x: np.sum(x * x), np.zeros(2))
        >>> program.value_and_grad(np.array([1.0, 2.0]))
        (5.0, array([2., 4.]))
        """
        with self.lock:
            self.forward(args, kwargs)
            output = self._single_output("value_and_grad")
            if output.size != 1:
                raise TypeError(
                    f"the program returns an output of shape {output.shape}, not a single number; "
                    f"use its vjp or jacobian{at_caller()}"
                )
            totals = self._reverse([(output, np.ones(1))])
            return self._read(), self._pick(totals, argnums)

    def vjp(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; return its value and a function for vector-Jacobian products.

        The function takes a cotangent of the value's structure and returns a tuple of cotangents,
        one a positional argument; see `tapegrad.vjp`.  It runs the program again if need be.
        """
        value = self(*args, **kwargs)

        def pull(cotangent: Any) -> tuple[Any, ...]:
            parts = trees.flatten_like(self._out_tree, cotangent)
            with self.lock:
                self.forward(args, kwargs)
                seeds = [
                    (output, backward.check_cotangent(part, output.shape).ravel())
                    for output, part in zip(self._outputs, parts, strict=True)
                ]
                totals = self._reverse(seeds)
                picked: tuple[Any, ...] = self._pick(totals, range(self._count))
                return picked

        return value, pull

    def jacobian(self, *args: Any, argnums: int | Sequence[int] = 0, **kwargs: Any) -> Any:
        """Run the program and return the Jacobian of its output, an array.

        ``J[i, j]`` is the derivative of output `i` with respect to input `j`.
        """
        with self.lock:
            self.forward(args, kwargs)
            output = self._single_output("jacobian")
            rows = []
            seed = np.zeros(output.size)
            for i in range(output.size):
                seed[i] = 1.0
                rows.append(self._reverse([(output, seed)]))
                seed[i] = 0.0
            leaves = [known.leaf for known in self._inputs if known is not None]
            blocks = {id(leaf): np.zeros((output.size, leaf.value.size)) for leaf in leaves}
            for i, totals in enumerate(rows):
                for key, adjoint in totals.items():
                    blocks[key][i] = adjoint
            return self._pick(blocks, argnums, output.shape)

    # -- inside ----------------------------------------------------------------------------------

    def _simplify(self) -> None:
        """Take dead, repeated and constant instructions off the tape."""
        inputs = [known for known in self._inputs if known is not None]
        outputs = [output for output in self._outputs if output.cells is not None and output.size]
        needed = [np.atleast_1d(output.cells).ravel() for output in outputs]
        needed.append(self.decisions.cells())
        renamed = simplify(
            self.tape, [known.leaf for known in inputs], np.concatenate(needed).astype(np.int64)
        )
        if renamed is None:
            return
        for known in inputs:
            known.cell = int(renamed[known.cell]) if known.size else 0
        for output in outputs:
            run = isinstance(output.cells, (int, np.integer))
            output.cells = int(renamed[output.cells]) if run else renamed[output.cells]
        self.decisions.rename(renamed)

    def array_input(self, argnum: int) -> _Input:
        """Return the input that a positional argument is, which must be one array or number."""
        position = _positions(argnum, self._count)[0]
        values = trees.unflatten(self._tree, list(range(len(self._inputs))))[0][position]
        known = self._inputs[values] if isinstance(values, int) else None
        if known is None:
            raise TypeError(
                f"argument {position} is not one array of floats, and has no matrix of "
                f"derivatives{at_caller()}"
            )
        return known

    def array_output(self) -> Any:
        """Return the cells of the output, which must be one array, as a flat ndarray."""
        output = self._single_output("a matrix of derivatives")
        if output.cells is None:
            raise TypeError(f"the output does not depend on the arguments{at_caller()}")
        if isinstance(output.cells, (int, np.integer)):
            return np.arange(output.cells, output.cells + output.size)
        return np.ravel(output.cells).astype(np.int64)

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the program for its arguments, under its lock, and check its decisions."""
        if len(args) != self._count:
            raise TypeError(
                f"the program was recorded for {self._count} positional arguments, and got "
                f"{len(args)}{at_caller()}"
            )
        leaves: Sequence[Any] = args
        if kwargs or not self._flat:
            leaves = trees.flatten_like(self._tree, (args, kwargs), trees.is_numeric_list)
        tape = self.tape
        v = tape.arena.v.array
        for leaf, static, known in zip(leaves, self._static, self._inputs, strict=True):
            if known is not None:
                known.load(leaf, v)
            elif not _same_static(leaf, static):
                raise ValueError(
                    f"an argument that is part of the program was {static!r} when it was "
                    f"recorded, and is {leaf!r} now: record again, or let tg.function do it; only "
                    f"floats and arrays of floats are inputs{at_caller()}"
                )
        tape.done = tape.done_cell = 0
        execute.evaluate(tape)
        changed = self.decisions.check(v)
        if changed is not None:
            number, outcome = changed
            error = self.decisions.all[number].changed(outcome)
            error.number = number
            raise error

    def _read(self) -> Any:
        v = self.tape.arena.v.array
        return trees.unflatten(self._out_tree, [output.read(v) for output in self._outputs])

    def _single_output(self, what: str) -> _Output:
        if len(self._outputs) != 1:
            raise TypeError(
                f"{what} needs a program that returns one array or number, and this one returns "
                f"{len(self._outputs)}; use vjp{at_caller()}"
            )
        return self._outputs[0]

    def _reverse(self, seeds: list[tuple[_Output, Floats]]) -> dict[int, Floats]:
        totals: dict[int, Floats] = {}
        for output, cotangent in seeds:
            if output.cells is None:
                continue
            for entry, adjoint in backward.sweep(
                self.tape, output.cells, cotangent, recording=self._recording
            ):
                key = id(entry.leaf)
                totals[key] = adjoint if key not in totals else totals[key] + adjoint
        return totals

    def _pick(self, totals: dict[int, Any], argnums: Any, rows: tuple[int, ...] = ()) -> Any:
        """Return what belongs to the chosen arguments, in their structure."""
        values: list[Any] = []
        for known in self._inputs:
            if known is None:
                values.append(None)
                continue
            total = totals.get(id(known.leaf))
            if rows or (total is not None and total.ndim == 2):
                shape = rows + known.shape
                value = np.zeros(shape) if total is None else total.reshape(shape)
                values.append(np.array(value, known.dtype) if value.ndim else float(value))
            else:
                values.append(_result(total, known.leaf.value))
        positional = values if self._flat else trees.unflatten(self._tree, values)[0]
        single = isinstance(argnums, (int, np.integer))
        chosen = _positions(int(argnums) if single else list(argnums), self._count)
        for i in chosen:
            if single and positional[i] is None:
                raise TypeError(
                    f"argument {i} is a part of the program, not an input: only floats and arrays "
                    f"of floats have derivatives{at_caller()}"
                )
        return positional[chosen[0]] if single else tuple([positional[i] for i in chosen])


def record_program(f: Function, *args: Any, **kwargs: Any) -> Program:
    """Record a function for example arguments, as a program that runs again without Python.

    Parameters
    ----------
    f : callable
        Computes with NumPy.
    *args, **kwargs
        Example arguments.  Floats and arrays of floats (in dicts, lists, tuples, dataclasses)
        become inputs; everything else, such as integers and strings, a part of the program.

    Returns
    -------
    Program

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> program = tg.record(lambda x, n: np.sum(x) ** n, np.array([1.0, 2.0]), 2)
    >>> program(np.array([3.0, 4.0]), 2)
    49.0
    """
    return Program(f, args, kwargs)


def is_input(leaf: Any) -> bool:
    """Whether an argument is an input: real floating-point numbers, or a list of numbers."""
    if isinstance(leaf, Tracked):
        return True  # refused by `_real`, which says what to do
    if isinstance(leaf, list):
        return True
    return isinstance(leaf, float) or (
        isinstance(leaf, (np.ndarray, np.floating)) and leaf.dtype.kind == "f"
    )


def _same_static(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return bool(np.array_equal(one, other))
    return type(one) is type(other) and bool(one == other)


def _argument_name(path: str) -> str:
    """Return how a user calls the part of ``(args, kwargs)`` at a path such as ``[0][1]['w']``."""
    part, rest = path[1], path[3:]
    end = rest.index("]") + 1
    key = rest[1 : end - 1]
    return f"argument {key if part == '0' else key.strip(chr(39))}{rest[end:]}"


def _operands(captured: list[Any]) -> list[Captured]:
    """Return the arrays and leaves that met the recording as operands, each once."""
    found: dict[int, Captured] = {}
    for held, file, line in captured:
        if id(held) not in found:
            name = "a leaf" if isinstance(held, Leaf) else "an operand"
            found[id(held)] = Captured(name, functools.partial(_held, held), file, line)
    return list(found.values())


def _held(x: Any) -> Any:
    """Return what a leaf, or an array itself, holds now."""
    return x.value if isinstance(x, Leaf) else x


def _variables(f: Any) -> list[Captured]:
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
