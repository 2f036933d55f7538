"""`Program`: a finished recording with inputs and outputs, which runs again without Python."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import backward, execute, trees
from .call import as_real, check_function, cotangent_like, positions_of
from .captured import Captured, operands, variables
from .decisions import Decisions
from .errors import at_caller
from .layout import index_runs
from .ports import Input, Output, argument_name, is_input, same_static
from .simplify import simplify
from .storage import Floats
from .tape import Recording, Tape, recorder

Function = Callable[..., Any]


class Program:
    """A recorded function: it runs again, forward and backward, without running Python code.

    Make one with `tapegrad.record`.  A program runs the way through the code that was recorded;
    where other arguments would have taken another way, it raises `ControlFlowChanged`.

    Attributes
    ----------
    captured : list of Captured
        Arrays and numbers that the function took from elsewhere than its arguments.
    """

    def __init__(self, f: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        check_function(f)
        self._name = getattr(f, "__name__", "function")
        self.lock = threading.RLock()
        self.decisions = Decisions()
        self._recording = Recording(self.decisions)
        leaves, self._tree = trees.flatten((args, dict(kwargs)), trees.is_numeric_list)
        self._count = len(args)
        names = [argument_name(path) for path in trees.paths(self._tree)]
        # Arguments without structure of their own need no taking apart at each call.
        self._flat = not kwargs and all(part.is_leaf for part in self._tree.children[0].children)
        self._inputs: list[Input | None] = []  # None where the argument is part of the program
        self._static: list[Any] = leaves
        outer = recorder.enter(recording=self._recording)
        try:
            values = []
            for leaf, name in zip(leaves, names, strict=True):
                known = Input(as_real(leaf, name), name) if is_input(leaf) else None
                self._inputs.append(known)
                values.append(leaf if known is None else known.track())
            positional, named = trees.unflatten(self._tree, values)
            output = f(*positional, **named)
            found, self._out_tree = trees.flatten(output)
            self._outputs = [Output(value) for value in found]
            self.tape = recorder.tape
        except BaseException:
            recorder.leave(outer)
            self._recording.release()
            raise
        recorder.leave(outer)
        execute.evaluate(self.tape)
        self._simplify()
        self.captured = variables(f) + operands(self._recording.captured)

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
        arguments: tuple[trees.TreeDef, int, list[Input | None], list[Any]],
        results: tuple[trees.TreeDef, list[Output]],
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
        index_runs(self.tape, outputs, self.decisions.operands())
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

    def array_input(self, argnum: int) -> Input:
        """Return the input that a positional argument is, which must be one array or number."""
        position = positions_of(argnum, self._count)[0]
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
            elif not same_static(leaf, static):
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

    def _single_output(self, what: str) -> Output:
        if len(self._outputs) != 1:
            raise TypeError(
                f"{what} needs a program that returns one array or number, and this one returns "
                f"{len(self._outputs)}; use vjp{at_caller()}"
            )
        return self._outputs[0]

    def _reverse(self, seeds: list[tuple[Output, Floats]]) -> dict[int, Floats]:
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
                values.append(cotangent_like(total, known.leaf.value))
        positional = values if self._flat else trees.unflatten(self._tree, values)[0]
        single = isinstance(argnums, (int, np.integer))
        chosen = positions_of(int(argnums) if single else list(argnums), self._count)
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
