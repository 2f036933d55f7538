"""`Recorded`: a finished recording with inputs and outputs, and its sweeps."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .. import execute, trees
from ..arena import give_back_adjoints, take_adjoints
from ..decisions import Decisions
from ..errors import ControlFlowChanged, at_caller
from ..recording import FLOAT64
from ..storage import Floats, Tracked, stretch
from ..tape import LENT_SIZE, Recording, Tape, recorder
from ..transforms.adjoint import pinned
from ..transforms.call import (
    Function,
    as_real,
    check_function,
    positions_of,
)
from .captured import Captured, operands, variables
from .layout import index_runs
from .planned import Planned, is_plannable
from .ports import Input, Output, argument_name, example, gathered, is_input, same_static
from .ready import Calls, Ready, is_small
from .reorder import reorder
from .rolled import Replays
from .simplify import simplify
from .splice import Template, run_of

if TYPE_CHECKING:
    from .prepared import PreparedJacobian

P = TypeVar("P", bound="Recorded")

READY_AFTER = 100
"""Replays after which those of a small program are single calls."""


class Recorded:
    """What programs are made of: a tape, its inputs and outputs, and how they are run.

    `tapegrad.programs.program.Program` is what users meet.
    """

    def __init__(self, f: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        check_function(f)
        self._name = getattr(f, "__name__", "function")
        self.lock = threading.RLock()
        self.decisions = Decisions()
        self._recording = Recording(self.decisions)
        self._gradients: dict[Any, Any] = {}  # programs, by argnums
        self._sparse: dict[tuple[str, int], Any] = {}  # see `tapegrad.sparse.sparsity`
        self._dense: dict[Any, PreparedJacobian | None] = {}  # by inputs and mode; None: used once
        self._chosen: dict[Any, list[int]] = {}  # positions, by argnums that were asked for
        self._template: Template | None = None
        self._origin: Function | None = None  # what a gradient is computed by in case of doubt
        self._calls: Calls | None = None
        self.lanes: dict[Any, Any] = {}  # `batches.lanes.Lanes` or None, by what they compute
        self.single: bool | None = None  # whether it computes in float32, if that is known
        self.on: dict[Any, Any] = {}  # `devices.programs.DeviceProgram` by device
        self.samples_met: dict[Any, int] = {}  # by a long program that has no lanes yet
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
        self.tape = self.tape.hand_over()
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
        cls: type[P],
        name: str,
        recording: Recording,
        tape: Tape,
        arguments: tuple[trees.TreeDef, int, list[Input | None], list[Any]],
        results: tuple[trees.TreeDef, list[Output]],
        captured: list[Captured],
    ) -> P:
        """Return the program that a file describes; see `tapegrad.load`."""
        program = cls.__new__(cls)
        program._name, program.lock, program.captured = name, threading.RLock(), captured
        program._recording, program.decisions = recording, recording.decisions
        program.tape = tape
        program._gradients, program._sparse, program._dense = {}, {}, {}
        program._template, program._function = None, None
        program._origin, program._calls = None, None
        program._chosen, program.lanes, program.samples_met = {}, {}, {}
        program.single, program.on = None, {}
        program._tree, program._count, program._inputs, program._static = arguments
        program._out_tree, program._outputs = results
        program.tape.replays = Replays(tape.flushed_cell, program._output_cells())
        positional, named = program._tree.children
        program._flat = not named.keys and all(child.is_leaf for child in positional.children)
        return program

    @property
    def function(self) -> Function | None:
        """What was recorded; None for a program that was loaded, or derived from another."""
        return self._function

    @property
    def inputs(self) -> Sequence[Input | None]:
        """The inputs, and None for each argument that is a part of the program."""
        return self._inputs

    @property
    def outputs(self) -> Sequence[Output]:
        """The parts of the result."""
        return self._outputs

    @property
    def out_tree(self) -> trees.TreeDef:
        """The structure of the result."""
        return self._out_tree

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return arguments that take the way of this program."""
        args, kwargs = trees.unflatten(self._tree, self._example())
        return tuple(args), kwargs

    def check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise unless the arguments are of the structure and the shapes that were recorded."""
        self._checked(self._leaves(args, kwargs))

    def check_captured(self) -> list[Captured]:
        """Return what was captured and has changed since: the program still uses the old values."""
        return [item for item in self.captured if item.changed]

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the program for its arguments, under its lock, and check its decisions."""
        self._run(self._leaves(args, kwargs))

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

    def compile(self: P) -> P:
        """Compile the loops of the program now, and its array code with its next sweep.

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
                due = self._calls is not None or replays.count >= READY_AFTER
                replays.compile(self.tape)
                renamed = None if replays.rolled else reorder(self.tape)
                if renamed is not None:
                    self._rename(renamed).compile(self.tape)
                if due or is_small(self.tape):
                    self._make_ready_or_later()
        return self

    # -- inside ----------------------------------------------------------------------------------

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
        self._template = self._calls = None
        self._dense.clear()
        replays = self.tape.replays = Replays(self.tape.flushed_cell, self._output_cells())
        return replays

    def _example(self) -> list[Any]:
        """Return the parts of arguments that take the way of this program."""
        return [
            static if known is None else known.leaf.value
            for known, static in zip(self._inputs, self._static, strict=True)
        ]

    def _leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        """Return the parts of the arguments, in the order of `_inputs`."""
        if len(args) != self._count:
            raise TypeError(
                f"the program was recorded for {self._count} positional arguments, and got "
                f"{len(args)}{at_caller()}"
            )
        if kwargs or not self._flat:
            own = self._tree.children[1].keys
            if set(kwargs) != set(own):
                raise TypeError(
                    f"the program was recorded with {_named(own)}, and got {_named(kwargs)}"
                    f"{at_caller()}"
                )
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
        if None not in self._inputs:
            return
        for leaf, static, known in zip(leaves, self._static, self._inputs, strict=True):
            if known is None and not same_static(leaf, static):
                raise ValueError(
                    f"an argument that is part of the program was {static!r} when it was "
                    f"recorded, and is {leaf!r} now: record again, or let tg.function do it; only "
                    f"floats and arrays of floats are inputs{at_caller()}"
                )

    def _run(
        self,
        leaves: Sequence[Any],
        evaluate: bool = True,
        prepared: PreparedJacobian | None = None,
    ) -> None:
        """Put arguments in their places and compute, unless a backward sweep is going to do that.

        Decisions are checked, so where there are any, all is computed.
        """
        tape = self.tape
        self._check_static(leaves)
        self._compile_where_due()
        v = tape.arena.v.array
        later = not evaluate and not len(self.decisions) and execute.by_regions(tape)
        for known, leaf in zip(self._inputs, leaves, strict=True):
            if known is not None and not (later and self._borrow(known, leaf)):
                known.put(leaf, v)
        tape.done, tape.done_cell, tape.sparse = 0, 0, None
        if later:
            return
        ready = execute.ready_sweeps(tape)
        if ready is not None and prepared is None and not self.decisions.by_functions:
            place = ready.forward(check=True)
            tape.done, tape.done_cell = tape.n, tape.flushed_cell
            if place >= 0:
                raise self._seen(place)
            return
        if prepared is not None:
            prepared.evaluate()
        else:
            regions = execute.by_regions(tape)
            execute.evaluate(tape, self._needed() if regions else None)
        changed = self.decisions.check(v)
        if changed is not None:
            raise self._refused(changed)

    def _borrow(self, known: Input, leaf: Any) -> bool:
        """Let a long argument stay where it is while a sweep by regions reads it, if it can."""
        fits = type(leaf) is np.ndarray and leaf.shape == known.shape and leaf.dtype == FLOAT64
        if not fits or leaf.size < LENT_SIZE or not leaf.flags.c_contiguous:
            return False
        for entry in self.tape.imports:
            if entry.cell == known.cell and entry.leaf is known.leaf:
                entry.values = leaf.reshape(-1)
                self.tape.lent.append(entry)
                return True
        return False

    def _give_back(self) -> None:
        """Forget arguments that were borrowed: their values are nowhere now."""
        tape = self.tape
        if tape.lent:
            for entry in tape.lent:
                entry.values = None
            tape.lent.clear()
            tape.done, tape.done_cell, tape.sparse = 0, 0, None

    def _compile_where_due(self) -> None:
        """Compile what has been replayed often enough for that to pay."""
        replays, calls = self.tape.replays, self._calls
        assert replays is not None
        replays.count += 1
        if replays.rolled is None and (replays.due or (calls is not None and calls.spent)):
            self.compile()
        elif replays.count == READY_AFTER:
            self._make_ready_or_later()

    def _make_ready_or_later(self) -> None:
        if not self._make_ready():
            assert self.tape.replays is not None
            self.tape.replays.count = 0

    def _make_ready(self) -> bool:
        """Write the replay of a small program down as calls, which later ones then are.

        Returns
        -------
        bool
            Whether there is no reason to ask again, as there is while kernels are not loaded.
        """
        tape, replays = self.tape, self.tape.replays
        assert replays is not None
        inputs = [known for known in self._inputs if known is not None]
        outputs = [output for output in self._outputs if output.cells is not None]
        ports: list[Any] = [*self._inputs, *self._outputs]
        callable_ = self._flat and len(ports) == len(inputs) + len(outputs)
        callable_ = callable_ and all([port.dtype == FLOAT64 for port in ports])
        callable_ = callable_ and not self.decisions.by_functions
        if is_small(tape):
            if not execute.is_loaded("scalar"):
                return False
            execute.evaluate(tape)
            ready = Ready(tape, replays.rolled, self.decisions, inputs, outputs)
            replays.ready = ready
            left = replays.until_due()
        elif callable_ and is_plannable(tape, ports):
            if not execute.compiles("regions", READY_AFTER * tape.flushed_cell):
                return False
            execute.evaluate(tape)
            ready = Planned(tape, self.decisions, inputs, outputs, self._needed())
            left = ready.replays_until_due()
            callable_ = replays.planned = ready.works
        else:
            return True
        if callable_:
            budget = None if replays.rolled is not None else left
            tree = self._out_tree
            self._calls = Calls(ready, inputs, outputs, tree, self.lock, self._seen, budget)
            for argnums, positions in self._chosen.items():
                self._calls.know(argnums, positions)
        return True

    def _seen(self, place: int) -> Exception:
        """Return the error for a value that a decision looks at and that has changed."""
        return self._refused(self.decisions.differing(place, self.tape.arena.v.array))

    def _refused(self, changed: tuple[int, Any]) -> ControlFlowChanged:
        number, outcome = changed
        error = self.decisions.all[number].changed(outcome)
        error.number = number
        return error

    def _needed(self) -> tuple[tuple[int, int], ...]:
        """Return stretches of cells that outputs and decisions are among."""
        needed = [
            stretch(output.cells, output.size)
            for output in self._outputs
            if output.cells is not None and output.size
        ]
        decisive = self.decisions.cells()
        if decisive.size:
            needed.append(stretch(decisive, decisive.size))
        return tuple(needed)

    def _read(self) -> Any:
        if self.tape.sparse is not None:
            for output in self._outputs:
                known = output.cells is None or execute.has_values(
                    self.tape, output.cells, output.size
                )
                if not known:
                    execute.evaluate(self.tape)
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
            execute.evaluate(tape)
            try:
                for output, cotangent in seeds:
                    output.seed(cotangent, ready.g)
                ready.reverse()
                return self._adjoints(ready.g)
            except BaseException:  # Ctrl-C: the next sweep starts from zeros again
                ready.g[:] = 0.0
                raise
        column = take_adjoints(tape.flushed_cell)
        clean = False
        try:
            if execute.by_regions(tape):
                swept = self._reverse_by_regions(seeds, column.array)
                if swept is not None:
                    clean = True
                    return swept
                execute.evaluate(tape)
            column.expect(tape.flushed_cell)
            for output, cotangent in seeds:
                output.seed(cotangent, column.array)
            execute.reverse(tape, column.array, tape.flushed_cell, loops=True)
            found = self._adjoints(column.array)
            clean = True
            return found
        finally:
            give_back_adjoints(column, clean)

    def _reverse_by_regions(self, seeds: list[tuple[Output, Any]], g: Floats) -> list[Any] | None:
        """Sweep by regions, forward too where that has not been done, if that pays."""
        at = {known.cell: i for i, known in enumerate(self._inputs) if known is not None}
        starts = [
            (output.cells, np.ravel(np.broadcast_to(cotangent, output.size)))
            for output, cotangent in seeds
            if output.cells is not None
        ]
        wanted = [entry.cell in at for entry in self.tape.imports]
        swept = execute.gradient(self.tape, g, starts, wanted)
        if swept is None:
            return None
        adjoints = {at[entry.cell]: adjoint for entry, adjoint in swept if entry.cell in at}
        return [
            None if known is None else known.shaped(adjoints.get(i))
            for i, known in enumerate(self._inputs)
        ]

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
            if self._calls is not None:
                self._calls.know(key, chosen)
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


def any_tracked(leaves: Sequence[Any]) -> bool:
    """Whether an argument is tracked."""
    return any([isinstance(leaf, Tracked) for leaf in leaves])


def _named(keywords: Iterable[str]) -> str:
    """Say which keyword arguments these are."""
    names = sorted(keywords)
    return f"the keyword arguments {', '.join(names)}" if names else "no keyword arguments"
