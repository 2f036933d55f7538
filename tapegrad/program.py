"""`Program`: a finished recording with inputs and outputs, which runs again without Python."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import backward, derivatives, directions, execute, higher, trees
from .adjoint import pinned
from .arena import give_back_adjoints, take_adjoints
from .call import (
    Function,
    as_real,
    check_function,
    check_seed,
    float_for_no_axes,
    positions_of,
)
from .captured import Captured, Promoted, choose, operands, variables
from .decisions import Decisions
from .errors import at_caller
from .layout import index_runs
from .ports import Input, Output, argument_name, example, gathered, is_input, own, same_static
from .reorder import reorder
from .rolled import Replays
from .simplify import simplify
from .splice import Template, run_of
from .storage import Floats, Tracked
from .tape import Recording, Tape, recorder


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
        self._gradients: dict[Any, Program] = {}
        self._chosen: dict[Any, list[int]] = {}  # positions, by argnums that were asked for
        self._template: Template | None = None
        found, self._tree = trees.flatten((args, dict(kwargs)), trees.is_numeric_list)
        leaves = [example(leaf) for leaf in found]
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
        self.tape.replays = Replays(self.tape.flushed_cell, self._output_cells())
        self._simplify()
        self._function: Function | None = f
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
        program._gradients, program._template, program._function = {}, None, None
        program._chosen = {}
        program._tree, program._count, program._inputs, program._static = arguments
        program._out_tree, program._outputs = results
        program.tape.replays = Replays(tape.flushed_cell, program._output_cells())
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

    def promote(self, *what: str | Captured) -> Program:
        """Return a program that takes captured variables as arguments, after the others.

        The function is recorded once more, for the same example arguments, while the variables hold
        these inputs: whatever it does with them is then part of the program, and differentiated.

        Parameters
        ----------
        *what : str or Captured
            Variables that hold floats or arrays of floats: their names, or entries of `captured`.

        Raises
        ------
        ValueError
            If there is no captured variable of that name.
        TypeError
            If it is no variable, or holds integers; or if this program was loaded, or derived from
            another: then there is no function to record.

        Examples
        --------
        >>> import numpy as np, tapegrad as tg
        >>> rate = 0.5
        >>> program = tg.record(lambda t: np.exp(-rate * t), 1.0)
        >>> program.promote("rate").value_and_grad(1.0, 0.0, argnums=1)
        (1.0, -1.0)
        """
        if self._function is None:
            raise TypeError(
                "this program was loaded, or derived from another, so that there is no function "
                f"to record again; promote before{at_caller()}"
            )
        items = [choose(self.captured, one) for one in what]
        args, kwargs = trees.unflatten(self._tree, self._example())
        values = [own(item._snapshot)[()] for item in items]
        return Program(Promoted(self._function, items), (*args, *values), kwargs)

    # -- running ---------------------------------------------------------------------------------

    def compile(self) -> Program:
        """Compile the loops of the program now, and return it.

        Nothing else needs compiling.  By itself a program does this once its sweeps have taken
        about as long as it takes, a second: after that a scalar loop runs as fast as compiled code.
        Scalar code without loops is sorted by level and opcode instead, where that makes long runs
        of equal opcodes, which interpreters are quick at.

        Examples
        --------
        >>> import tapegrad as tg
        >>> def f(x):
        ...     for _ in range(1000):
        ...         x = x - 0.001 * x * x
        ...     return x
        >>> program = tg.record(f, 1.0).compile()
        >>> program.value_and_grad(1.0) == tg.value_and_grad(f)(1.0)
        True
        """
        with self.lock:
            replays = self.tape.replays
            assert replays is not None
            if replays.rolled is None:
                replays.compile(self.tape)
                renamed = None if replays.rolled else reorder(self.tape)
                if renamed is not None:
                    self._rename(renamed).compile(self.tape)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program for other arguments of the same structure, shapes and dtypes.

        With tracked arguments the program becomes a part of what is being recorded: its result is
        tracked, and can be differentiated to any order.

        Raises
        ------
        ControlFlowChanged
            If these arguments take another way through the recorded code.
        ValueError, TypeError
            If the arguments do not fit those that the program was recorded for.
        """
        leaves = self._leaves(args, kwargs)
        if _any_tracked(leaves):
            return trees.unflatten(self._out_tree, self._splice(leaves))
        with self.lock:
            self._run(leaves)
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
        leaves = self._leaves(args, kwargs)
        if _any_tracked(leaves):
            return self._tracked_gradient(leaves, argnums)
        with self.lock:
            self._run(leaves)
            output = self._single_output("value_and_grad")
            if output.size != 1:
                raise TypeError(
                    f"the program returns an output of shape {output.shape}, not a single number; "
                    f"use its vjp or jacobian{at_caller()}"
                )
            found = self._reverse([(output, 1.0)])
            return self._read(), self._pick(found, argnums)

    def gradient(self, argnums: int | Sequence[int] = 0) -> Program:
        """Return the program that computes the gradient, for the same arguments.

        It is derived from this program's own instructions, once: asked again, the same program is
        returned.  It checks the same decisions, and has derivatives like any other.

        Examples
        --------
        >>> import numpy as np, tapegrad as tg
        >>> program = tg.record(lambda x: np.sum(x**3), np.ones(2))
        >>> slope = program.gradient()
        >>> slope(np.array([1.0, 2.0]))
        array([ 3., 12.])
        >>> slope.jacobian(np.array([1.0, 2.0]))
        array([[ 6.,  0.],
               [ 0., 12.]])
        """
        key = tuple(argnums) if isinstance(argnums, Sequence) else argnums
        self._single_output("gradient")
        self._check_argnums(argnums)

        def gradient(*args: Any, **kwargs: Any) -> Any:
            return self._tracked_gradient(self._leaves(args, kwargs), argnums)[1]

        with self.lock:
            derived = self._gradients.get(key)
            if derived is None:
                from .gradients import gradient_program  # which needs this module

                derived = gradient_program(self, argnums)
            if derived is None:
                args, kwargs = trees.unflatten(self._tree, self._example())
                derived = Program(functools.partial(gradient), args, kwargs)
            derived._name, derived._function = f"gradient of {self._name}", None
            self._gradients[key] = derived
        return derived

    def vjp(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; return its value and a function for vector-Jacobian products.

        The function takes a cotangent of the value's structure and returns a tuple of cotangents,
        one a positional argument; see `tapegrad.vjp`.  It runs the program again if need be.
        """
        leaves = self._leaves(args, kwargs)
        value = self(*args, **kwargs)

        def pull(cotangent: Any) -> tuple[Any, ...]:
            parts = trees.flatten_like(self._out_tree, cotangent, trees.is_numeric_list)
            if _any_tracked(leaves) or _any_tracked(parts):
                picked: tuple[Any, ...] = self._tracked_vjp(leaves, cotangent)
                return picked
            with self.lock:
                self._run(leaves)
                seeds = [
                    (output, backward.check_cotangent(part, output.shape).ravel())
                    for output, part in zip(self._outputs, parts, strict=True)
                ]
                found = self._reverse(seeds)
            picked = self._pick(found, range(self._count))
            return picked

        return value, pull

    def jvp(self, primals: Sequence[Any], tangents: Sequence[Any], **kwargs: Any) -> Any:
        """Run the program; return its value and its derivative in one direction.

        Parameters
        ----------
        primals : sequence
            The positional arguments.
        tangents : sequence
            The direction, in the structure and shapes of these.  None stands for zero, and for the
            tangent of what is not an input.
        **kwargs
            Keyword arguments, in which the direction is zero.

        Returns
        -------
        value, tangent
            Both in the structure of the program's result.

        Examples
        --------
        >>> import numpy as np, tapegrad as tg
        >>> program = tg.record(lambda x, y: x * y, 1.0, 1.0)
        >>> program.jvp((2.0, 3.0), (1.0, 10.0))
        (6.0, 23.0)
        """
        if not isinstance(primals, (list, tuple)) or not isinstance(tangents, (list, tuple)):
            raise TypeError(
                "jvp takes the arguments and their tangents as two tuples, as in "
                f"program.jvp((x,), (v,)){at_caller()}"
            )
        leaves = self._leaves(tuple(primals), kwargs)
        seeds = self._tangents(tuple(tangents))
        plain = not _any_tracked(leaves) and not _any_tracked(seeds)
        if not plain or not directions.carries_tangents(self.tape, self._recording):
            return self._tracked_jvp(leaves, seeds)
        columns = {
            id(known.leaf): np.asarray(seed, np.float64).reshape(known.size, 1)
            for known, seed in zip(self._inputs, seeds, strict=True)
            if known is not None and seed is not None
        }
        with self.lock:
            self._run(leaves)
            value, cells = self._read(), self._output_cells()
            flat = np.zeros((cells.size, 1))
            if columns:
                flat = directions.tangents(self.tape, cells, columns, recording=self._recording)
        parts = [part.reshape(output.shape) for output, part in self._rows(flat)]
        return value, trees.unflatten(self._out_tree, list(map(float_for_no_axes, parts)))

    def jacobian(
        self, *args: Any, argnums: int | Sequence[int] = 0, mode: str = "auto", **kwargs: Any
    ) -> Any:
        """Run the program and return the Jacobian of its output.

        ``J[i, j]`` is the derivative of output `i` with respect to input `j`.  Where the program
        returns a structure of arrays, so does this: in the place of each array, its Jacobian.

        Parameters
        ----------
        *args, **kwargs
            Arguments of the program.
        argnums : int or sequence of int, optional
            Which positional arguments to differentiate with respect to.
        mode : {"auto", "forward", "reverse"}, optional
            How to sweep, many directions at once; see `tapegrad.jacobian`.
        """
        derivatives.check_mode(mode)
        leaves = self._leaves(args, kwargs)
        self._check_argnums(argnums)
        if _any_tracked(leaves):
            return self._tracked_jacobian(leaves, argnums)
        with self.lock:
            self._run(leaves)
            chosen = [self._inputs[i] for i in self._numbers(argnums)]
            matrices = {
                id(known.leaf): np.zeros((self._output_cells().size, known.size), known.dtype)
                for known in chosen
                if known is not None
            }
            derivatives.fill_matrices(
                self.tape, self._output_cells(), matrices, mode, self._recording
            )
        blocks = []
        for rows, output in self._spans():
            values: list[Any] = [None] * len(self._inputs)
            for i in self._numbers(argnums):
                known = self._inputs[i]
                assert known is not None
                shape = output.shape + known.shape
                part = np.zeros(shape, known.dtype)
                if rows is not None:
                    part[...] = matrices[id(known.leaf)][rows].reshape(shape)
                values[i] = float_for_no_axes(part)
            blocks.append(self._pick(values, argnums))
        return trees.unflatten(self._out_tree, blocks)

    def hessian(self, *args: Any, argnums: int | Sequence[int] = 0, **kwargs: Any) -> Any:
        """Run the program and return the Hessian of its value, a single number.

        It is the Jacobian of `gradient`, a program that is derived at the first call; for its
        layout see `tapegrad.hessian`.

        Examples
        --------
        >>> import numpy as np, tapegrad as tg
        >>> program = tg.record(lambda x: x[0] ** 2 * x[1], np.ones(2))
        >>> program.hessian(np.array([3.0, 5.0]))
        array([[10.,  6.],
               [ 6.,  0.]])
        """
        return self.gradient(argnums).jacobian(*args, argnums=argnums, **kwargs)

    def hvp(self, *args: Any, argnums: int = 0, **kwargs: Any) -> Any:
        """Multiply the Hessian of the program's value by a vector, without forming it.

        Parameters
        ----------
        *args
            Arguments of the program and, last, a vector of the structure and shapes of the
            differentiated one.
        argnums : int, optional
            Which positional argument to differentiate with respect to.

        Examples
        --------
        >>> import numpy as np, tapegrad as tg
        >>> program = tg.record(lambda x: x[0] ** 2 * x[1], np.ones(2))
        >>> program.hvp(np.array([3.0, 5.0]), np.array([1.0, 10.0]))
        array([70.,  6.])
        """
        if len(args) != self._count + 1:
            raise TypeError(
                f"hvp takes the {self._count} arguments of the program and a vector, and got "
                f"{len(args)}{at_caller()}"
            )
        if not isinstance(argnums, (int, np.integer)) or isinstance(argnums, bool):
            raise TypeError(f"hvp differentiates one argument, not {argnums!r}{at_caller()}")
        # The Hessian is symmetric: a backward sweep of the gradient multiplies by it.
        _, pull = self.gradient(argnums).vjp(*args[:-1], **kwargs)
        return pull(args[-1])[positions_of(argnums, self._count)[0]]

    # -- on tracked values -----------------------------------------------------------------------

    def _splice(self, leaves: Sequence[Any]) -> list[Any]:
        """Append the program to the current tape; return its outputs there."""
        if len(self.decisions):
            with self.lock:
                self._run([example(leaf) for leaf in leaves])
        tape = recorder.current()
        with self.lock, pinned(tape):
            if self._template is None:
                places = [(known.cell, known.size) for known in self._inputs if known is not None]
                self._template = Template(self.tape, places)
            values = self._checked(leaves)
            to = self._template.append(tape, [run_of(tape, x) for x in values if x is not None])
        recording = tape.recording
        if recording is not None and recording.decisions is not None:
            recording.decisions.adopt(self.decisions, to)
            recording.captured += self.captured
        return [output.track(tape, to) for output in self._outputs]

    def _of_inputs(self, leaves: Sequence[Any], numbers: Sequence[int]) -> Function:
        """Return the program as a function of some of its inputs, the others given."""

        def function(*values: Any) -> Any:
            merged = list(leaves)
            for i, value in zip(numbers, values, strict=True):
                merged[i] = value
            return trees.unflatten(self._out_tree, self._splice(merged))

        return function

    def _tracked_gradient(self, leaves: Sequence[Any], argnums: Any) -> Any:
        numbers = self._numbers(argnums)
        function = self._of_inputs(leaves, numbers)
        every = tuple(range(len(numbers)))
        chosen = [leaves[i] for i in numbers]
        value, found = derivatives.value_and_grad(function, argnums=every)(*chosen)
        return value, self._pick(self._at(numbers, found), argnums)

    def _tracked_vjp(self, leaves: Sequence[Any], cotangent: Any) -> Any:
        numbers = [i for i, known in enumerate(self._inputs) if known is not None]
        function = self._of_inputs(leaves, numbers)
        _, pull = derivatives.vjp(function, *[leaves[i] for i in numbers])
        return self._pick(self._at(numbers, pull(cotangent)), range(self._count))

    def _tracked_jvp(self, leaves: Sequence[Any], seeds: Sequence[Any]) -> Any:
        numbers = [i for i, seed in enumerate(seeds) if seed is not None]
        function = self._of_inputs(leaves, numbers)
        return higher.jvp(function, [leaves[i] for i in numbers], [seeds[i] for i in numbers])

    def _tracked_jacobian(self, leaves: Sequence[Any], argnums: Any) -> Any:
        self._single_output("jacobian")
        numbers = self._numbers(argnums)
        every = tuple(range(len(numbers)))
        function = self._of_inputs(leaves, numbers)
        found = derivatives.jacobian(function, argnums=every)(*[leaves[i] for i in numbers])
        return self._pick(self._at(numbers, found), argnums)

    def _at(self, numbers: Sequence[int], found: Sequence[Any]) -> list[Any]:
        values: list[Any] = [None] * len(self._inputs)
        for i, value in zip(numbers, found, strict=True):
            values[i] = value
        return values

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
        if renamed is not None:
            self._rename(renamed)

    def _rename(self, to: Any) -> Replays:
        """Follow the cells of a tape whose instructions moved: `to` says, by old cell, the new."""
        for known in self._inputs:
            if known is not None:
                known.cell = int(to[known.cell]) if known.size else 0
        for output in self._outputs:
            if output.cells is not None and output.size:
                run = isinstance(output.cells, (int, np.integer))
                output.cells = int(to[output.cells]) if run else to[output.cells]
        self.decisions.rename(to)
        self._template = None
        replays = self.tape.replays = Replays(self.tape.flushed_cell, self._output_cells())
        return replays

    def _example(self) -> list[Any]:
        """Return the parts of arguments that take the way of this program."""
        return [
            static if known is None else known.leaf.value
            for known, static in zip(self._inputs, self._static, strict=True)
        ]

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
        return output.flat_cells()

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the program for its arguments, under its lock, and check its decisions."""
        self._run(self._leaves(args, kwargs))

    def _leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        """Return the parts of the arguments, in the order of `_inputs`."""
        if len(args) != self._count:
            raise TypeError(
                f"the program was recorded for {self._count} positional arguments, and got "
                f"{len(args)}{at_caller()}"
            )
        if kwargs or not self._flat:
            return trees.flatten_like(self._tree, (args, kwargs), trees.is_numeric_list)
        return [gathered(arg) for arg in args]

    def _checked(self, leaves: Sequence[Any]) -> list[Any]:
        """Return the values of the inputs, None for other parts; all of them must fit."""
        self._check_static(leaves)
        return [
            None if known is None else known.check(leaf)
            for leaf, known in zip(leaves, self._inputs, strict=True)
        ]

    def _check_static(self, leaves: Sequence[Any]) -> None:
        """Raise unless the arguments that are no inputs are what they were."""
        for leaf, static, known in zip(leaves, self._static, self._inputs, strict=True):
            if known is None and not same_static(leaf, static):
                raise ValueError(
                    f"an argument that is part of the program was {static!r} when it was "
                    f"recorded, and is {leaf!r} now: record again, or let tg.function do it; only "
                    f"floats and arrays of floats are inputs{at_caller()}"
                )

    def _run(self, leaves: Sequence[Any]) -> None:
        tape = self.tape
        self._check_static(leaves)
        if tape.replays is not None and tape.replays.due:
            self.compile()
        v = tape.arena.v.array
        for known, leaf in zip(self._inputs, leaves, strict=True):
            if known is not None:
                known.put(leaf, v)
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

    def _reverse(self, seeds: list[tuple[Output, Any]]) -> list[Any]:
        """Sweep backward from outputs with their cotangents; return the cotangents of inputs."""
        tape = self.tape
        ready = execute.ready_sweeps(tape)
        if ready is not None:
            for output, cotangent in seeds:
                output.seed(cotangent, ready.g)
            ready.reverse()
            return self._adjoints(ready.g)
        column = take_adjoints(tape.flushed_cell)
        clean = False
        try:
            for output, cotangent in seeds:
                output.seed(cotangent, column.array)
            execute.reverse(tape, column.array, tape.flushed_cell, loops=True)
            found = self._adjoints(column.array)
            clean = True
            return found
        finally:
            give_back_adjoints(column, clean)

    def _adjoints(self, g: Floats) -> list[Any]:
        """Take the adjoint of each input out of `g`, which is all zero then; None for no inputs."""
        found = [None if known is None else known.take(g) for known in self._inputs]
        for entry in self.tape.imports:
            g[entry.cell : entry.cell + entry.size] = 0.0
        return found

    def _pick(self, values: list[Any], argnums: Any) -> Any:
        """Return what belongs to the chosen arguments, in their structure."""
        positional = values if self._flat else trees.unflatten(self._tree, values)[0]
        single = isinstance(argnums, (int, np.integer))
        chosen = self._check_argnums(argnums)
        return positional[chosen[0]] if single else tuple([positional[i] for i in chosen])

    def _check_argnums(self, argnums: Any) -> list[int]:
        """Return the positions of the chosen arguments; one that is chosen alone is an input."""
        key = argnums if isinstance(argnums, (int, tuple)) else None
        known = None if isinstance(argnums, bool) else self._chosen.get(key)
        if known is not None:
            return known
        single = isinstance(argnums, (int, np.integer))
        chosen = positions_of(int(argnums) if single else list(argnums), self._count)
        if single and not self._numbers_at(chosen[0]):
            raise TypeError(
                f"argument {chosen[0]} is a part of the program, not an input: only floats and "
                f"arrays of floats have derivatives{at_caller()}"
            )
        if key is not None:
            self._chosen[key] = chosen
        return chosen

    def _numbers_at(self, position: int) -> list[int]:
        """Return which inputs are in a positional argument."""
        children = self._tree.children[0].children
        first = sum([child.n_leaves for child in children[:position]])
        inside = range(first, first + children[position].n_leaves)
        return [i for i in inside if self._inputs[i] is not None]

    def _numbers(self, argnums: Any) -> list[int]:
        """Return which inputs are in the chosen arguments."""
        return [i for position in self._check_argnums(argnums) for i in self._numbers_at(position)]

    def _tangents(self, tangents: tuple[Any, ...]) -> list[Any]:
        """Return the tangent of each input, or None, for tangents of the arguments."""
        if len(tangents) != self._count:
            raise TypeError(
                f"{len(tangents)} tangents for {self._count} arguments: give one for each, None "
                f"for zero{at_caller()}"
            )
        parts: list[Any] = []
        for child, tangent in zip(self._tree.children[0].children, tangents, strict=True):
            if tangent is None:
                parts += [None] * child.n_leaves
            else:
                parts += trees.flatten_like(child, tangent, _is_whole)
        parts += [None] * (len(self._inputs) - len(parts))  # of keyword arguments
        for i, (known, part) in enumerate(zip(self._inputs, parts, strict=True)):
            if known is None:
                parts[i] = None
            elif part is not None:
                parts[i] = check_seed(part, known.shape)
        return parts

    def _output_cells(self) -> Any:
        """Return the cells of all outputs that are no constants, one after the other."""
        return np.concatenate(
            [np.zeros(0, np.int64), *[o.flat_cells() for o in self._outputs if o.cells is not None]]
        )

    def _spans(self) -> list[tuple[slice | None, Output]]:
        """Return which of `_output_cells` are whose."""
        spans: list[tuple[slice | None, Output]] = []
        at = 0
        for output in self._outputs:
            if output.cells is None:
                spans.append((None, output))
            else:
                spans.append((slice(at, at + output.size), output))
                at += output.size
        return spans

    def _rows(self, flat: Any) -> list[tuple[Output, Any]]:
        """Split numbers, one a cell of `_output_cells`, among the outputs; constants have zeros."""
        return [
            (output, np.zeros(output.size) if rows is None else flat[rows].copy())
            for rows, output in self._spans()
        ]


def _any_tracked(leaves: Sequence[Any]) -> bool:
    return any([isinstance(leaf, Tracked) for leaf in leaves])


def _is_whole(x: Any) -> bool:
    return x is None or trees.is_numeric_list(x)


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
