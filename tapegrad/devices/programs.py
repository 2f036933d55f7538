"""Programs on a CUDA device: values and derivatives, of one call or of many samples.

One call runs the regions of the program's plan (`tapegrad.devices.sweeps`); many samples are
`tapegrad.devices.batches`. Arrays on the device are read where they lie, and results stay there; if
all arguments are on the host, results come back to the host.
"""

from __future__ import annotations

import copy as copying
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backward, trees
from ..errors import at_caller
from ..kernels.opcodes import HOST, INPUT, LANES
from ..programs.ports import Input, Output
from ..programs.program import Program
from ..regions.plan import plan_of
from ..storage import Tracked, stretch
from ..transforms.call import positions_of
from .arrays import DeviceArray
from .batches import DeviceMap
from .device import Device, device
from .sweeps import Run, Sweep
from .work import Way, copy, fill, moving


def device_named(where: Any, stream: Any = None) -> Device:
    """Return the device that ``"cuda"``, ``"cuda:1"`` or a `Device` means."""
    if isinstance(where, Device):
        return where
    kind, _, number = str(where).partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise ValueError(
            f'a program goes to "cpu", "cuda" or a numbered device such as "cuda:1", not '
            f"{where!r}{at_caller()}"
        )
    return device(int(number or 0), stream)


class DeviceProgram:
    """A program on a CUDA device; `Program.to` makes it.

    Its methods are those of `tapegrad.programs.program.Program`. Arguments are numbers and arrays
    of the host, or arrays on the device of any library that has ``__cuda_array_interface__`` or
    DLPack, float64 or float32, all alike, and contiguous. If one is on the device, so are results:
    a `DeviceArray` in the place of each array and number, in the dtype of the arguments, which the
    device may still be computing. Otherwise results are those of the program on the CPU.

    Attributes
    ----------
    program : Program
    device : Device
    map : DeviceMap
        The program over many samples.
    """

    def __init__(self, program: Program, device: Device) -> None:
        self.program, self.device = program, device
        self.map = DeviceMap(program, device)
        self._sweeps: dict[Any, tuple[Any, Sweep]] = {}
        self._derived: dict[Any, DeviceProgram] = {}

    def __repr__(self) -> str:
        return f"{self.program!r} on {self.device}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program.

        Raises
        ------
        ControlFlowChanged
            If these arguments take another way through the recorded code.
        MixedDevicesError
            If an array is on another device.
        ValueError, TypeError
            If the arguments do not fit those that the program was recorded for.
        MemoryError
            If the device's memory does not suffice.
        DeviceLostError
            If the device stops working.
        """
        with self.program.lock:
            return self._value(_Arguments(self, args, kwargs))

    def value_and_grad(self, *args: Any, argnums: int | Sequence[int] = 0, **kwargs: Any) -> Any:
        """Run the program and return its value, a single number, and the gradient."""
        with self.program.lock:
            arguments = _Arguments(self, args, kwargs)
            output = self._single_number("value_and_grad")
            return self._gradient(arguments, [(output, None)], argnums, with_value=True)

    def grad(self, *args: Any, argnums: int | Sequence[int] = 0, **kwargs: Any) -> Any:
        """Run the program and return the gradient of its value, a single number."""
        with self.program.lock:
            arguments = _Arguments(self, args, kwargs)
            output = self._single_number("grad")
            return self._gradient(arguments, [(output, None)], argnums)[1]

    def vjp(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; return its value and a function for vector-Jacobian products.

        The function takes a cotangent of the value's structure, on the host or on the device, and
        returns a tuple of cotangents, one a positional argument.
        """
        value = self(*args, **kwargs)
        count = self.program._count

        def pull(cotangent: Any) -> Any:
            program = self.program
            with program.lock:
                arguments = _Arguments(self, args, kwargs)
                parts = trees.flatten_like(program.out_tree, cotangent, trees.is_numeric_list)
                seeds = [
                    (output, arguments.cotangent(part, output))
                    for output, part in zip(program.outputs, parts, strict=True)
                ]
                return self._gradient(arguments, seeds, range(count))[1]

        return value, pull

    def jvp(self, primals: Sequence[Any], tangents: Sequence[Any], **kwargs: Any) -> Any:
        """Run the program; return its value and its derivative in one direction.

        Arguments are those of `Program.jvp`. The program of values and tangents is derived at the
        first call.
        """
        if not isinstance(primals, (list, tuple)) or not isinstance(tangents, (list, tuple)):
            raise TypeError(
                "jvp takes the arguments and their tangents as two tuples, as in "
                f"program.jvp((x,), (v,)){at_caller()}"
            )
        if len(tangents) != self.program._count:
            raise TypeError(
                f"{len(tangents)} tangents for {self.program._count} arguments: give one "
                f"for each, None for zero{at_caller()}"
            )
        moving_ = tuple([i for i, tangent in enumerate(tangents) if tangent is not None])
        given = [tangents[i] for i in moving_]
        return self._pushing(moving_)(*primals, *given, **kwargs)

    def hvp(self, *args: Any, argnums: int = 0, **kwargs: Any) -> Any:
        """Multiply the Hessian of the program's value by a vector, the last argument."""
        count = self.program._count
        if len(args) != count + 1:
            raise TypeError(
                f"hvp takes the {count} arguments of the program and a vector, and got "
                f"{len(args)}{at_caller()}"
            )
        if not isinstance(argnums, (int, np.integer)) or isinstance(argnums, bool):
            raise TypeError(f"hvp differentiates one argument, not {argnums!r}{at_caller()}")
        _, pull = self.gradient(argnums).vjp(*args[:-1], **kwargs)
        return pull(args[-1])[positions_of(argnums, count)[0]]

    def jacobian(self, *args: Any, argnums: int | Sequence[int] = 0, **kwargs: Any) -> Any:
        """Run the program and return the Jacobian of its output, or of each part of it.

        It takes a sweep for each element of the output, or, where one array is differentiated by
        that has fewer elements, for each of those.
        """
        program = self.program
        chosen = program._numbers(argnums)
        inputs = [known for i in chosen if (known := program.inputs[i]) is not None]
        with program.lock:
            arguments = _Arguments(self, args, kwargs)
            if len(program.decisions):
                self._evaluated(arguments, [])
            found = [
                [self.device.empty((output.size, known.size), arguments.real) for known in inputs]
                for output in program.outputs
            ]
            rows = sum([output.size for output in program.outputs])
            single = isinstance(argnums, (int, np.integer))
            position, *_ = program._check_argnums(argnums)
            leaf = program._tree.children[0].children[position].is_leaf
            if single and leaf and inputs[0].size < rows:
                self._fill_columns([parts[0] for parts in found], args, kwargs, position)
            else:
                self._fill_rows(found, arguments, chosen)
            blocks = []
            for output, parts in zip(program.outputs, found, strict=True):
                values: list[Any] = [None] * len(program.inputs)
                for i, known, part in zip(chosen, inputs, parts, strict=True):
                    shape = (*output.shape, *known.shape)
                    values[i] = arguments.result(part, shape, known.dtype)
                blocks.append(program._pick(values, argnums))
            return trees.unflatten(program.out_tree, blocks)

    def hessian(self, *args: Any, argnums: int | Sequence[int] = 0, **kwargs: Any) -> Any:
        """Run the program and return the Hessian of its value: the Jacobian of its gradient."""
        return self.gradient(argnums).jacobian(*args, argnums=argnums, **kwargs)

    def gradient(self, argnums: int | Sequence[int] = 0) -> DeviceProgram:
        """Return the program that computes the gradient, on this device."""
        found: DeviceProgram = self.program.gradient(argnums).to(self.device)
        return found

    # -- values ------------------------------------------------------------------------------------

    def _value(self, arguments: _Arguments) -> Any:
        outputs = [output for output in self.program.outputs if output.cells is not None]
        return self._evaluated(arguments, outputs)

    def _evaluated(self, arguments: _Arguments, outputs: list[Output]) -> Any:
        """Compute values, check the decisions, and return the program's result."""
        program = self.program
        decisive = self._decisive()
        reads = [(output.cells, output.size) for output in outputs]
        sweep = self._sweep(("values",), arguments.real, [*reads, (decisive, decisive.size)])
        with sweep.run(arguments.arrays) as run:
            run.look(len(reads))
            changed = program.decisions.check(run.v)
            if changed is not None:
                raise program._refused(changed)
            return self._results(arguments, run) if outputs else None

    def _decisive(self) -> Any:
        """Return the cells that decisions need on the host."""
        decisions, tape = self.program.decisions, self.program.tape
        if not decisions.by_functions:
            return decisions.looks()[0]
        wide = np.isin(tape.arena.op.array[: tape.n], (INPUT, LANES, HOST))
        sizes = np.where(wide, tape.arena.b.array[: tape.n], 1).astype(np.int64)
        first = np.concatenate(([0], np.cumsum(sizes)))
        owners = np.unique(np.searchsorted(first, decisions.cells(), side="right") - 1)
        return np.concatenate([np.arange(first[i], first[i + 1]) for i in owners])

    def _results(self, arguments: _Arguments, run: Run) -> Any:
        """Return the program's result, of which `run` has computed all parts that are computed."""
        parts: list[Any] = []
        numbers = iter(range(len(self.program.outputs)))
        for output in self.program.outputs:
            if output.cells is None:
                parts.append(arguments.constant(output))
            else:
                parts.append(arguments.result(run.read(next(numbers)), output.shape, output.dtype))
        return trees.unflatten(self.program.out_tree, parts)

    # -- derivatives -------------------------------------------------------------------------------

    def _gradient(
        self,
        arguments: _Arguments,
        seeds: list[tuple[Output, Any]],
        argnums: Any,
        with_value: bool = False,
    ) -> tuple[Any, Any]:
        """Sweep backward; return the value, if it is wanted, and what belongs to `argnums`."""
        program = self.program
        chosen = program._numbers(argnums)
        computed = [output for output in program.outputs if output.cells is not None]
        value, seen = None, not with_value
        if len(program.decisions):
            value, seen = self._evaluated(arguments, computed if with_value else []), True
        results: list[Any] = []
        adjoints = self._adjoints(arguments, seeds, chosen, None if seen else results)
        if not seen:
            value = results[0] if results else self._evaluated(arguments, computed)
        found: list[Any] = [None] * len(program.inputs)
        for i, adjoint in zip(chosen, adjoints, strict=True):
            found[i] = arguments.gradient(adjoint, program.inputs[i])
        return value, program._pick(found, argnums)

    def _adjoints(
        self,
        arguments: _Arguments,
        seeds: list[tuple[Output, Any]],
        chosen: list[int],
        results: list[Any] | None = None,
    ) -> list[DeviceArray | None]:
        """Sweep backward; return the adjoints of inputs, flat, None for zeros.

        The program's result is appended to `results`, if the sweep computes it anyway.
        """
        program = self.program
        started = [(output, seed) for output, seed in seeds if output.cells is not None]
        if not started:
            return [None] * len(chosen)
        computed = [output for output in program.outputs if output.cells is not None]
        starts = [(output.cells, output.size) for output, _ in started]
        reads = [(output.cells, output.size) for output in computed if results is not None]
        name = "gradient", tuple([program.outputs.index(output) for output, _ in started])
        sweep = self._sweep(name, arguments.real, reads, starts, chosen)
        given = [np.ones(1) if seed is None else seed for _, seed in started]
        with sweep.run(arguments.arrays, given) as run:
            if results is not None and sweep.reads:
                results.append(self._results(arguments, run))
            return [
                run.adjoint(arguments.imports[i]) if i in arguments.imports else None
                for i in chosen
            ]

    def _sweep(
        self,
        name: tuple[Any, ...],
        real: Any,
        reads: list[tuple[Any, int]],
        seeds: Sequence[tuple[Any, int]] = (),
        chosen: Sequence[int] = (),
    ) -> Sweep:
        """Return what runs the program for a purpose, made once.

        One for gradients reads only what its plan computes anyway: everything, or nothing.
        """
        program, tape = self.program, self.program.tape
        key = *name, str(real), tuple(chosen), len(reads)
        known = self._sweeps.get(key)
        if known is not None and known[0] is tape.replays:  # cells are numbered as they were
            return known[1]
        spans = tuple([stretch(*one) for one in seeds or reads if one[1]])
        wanted: list[bool] = []
        values = plan = plan_of(tape, 0, "some", () if seeds else spans)
        if seeds:
            inputs = [program.inputs[i] for i in chosen]
            cells = {one.cell for one in inputs if one is not None and one.size}
            wanted = [bool(entry.size) and entry.cell in cells for entry in tape.imports]
            plan = plan_of(tape, 0, "gradient", spans, np.array(wanted, np.uint8))
            if plan.count >= 0 and not all(plan.has(cells, size) for cells, size in reads):
                reads = []
        if plan.count < 0:
            raise NotImplementedError(
                "a device runs array operations of up to 6 axes, and this program has some of more"
                f"{at_caller()}"
            )
        sweep = Sweep(self.device, tape, plan, values, real, reads, seeds, wanted)
        self._sweeps[key] = tape.replays, sweep
        return sweep

    def _pushing(self, moving_: tuple[int, ...]) -> DeviceProgram:
        """Return the program of value and tangent, where these arguments move."""
        found = self._derived.get(moving_)
        if found is None:
            program = self.program
            args, kwargs = program.example()
            tangents = [_zeros_like(args[i]) for i in moving_]
            pushing = functools.partial(_push, program, len(args), moving_)
            derived = Program(pushing, (*args, *tangents), kwargs)
            found = self._derived[moving_] = DeviceProgram(derived, self.device)
        return found

    # -- Jacobians ---------------------------------------------------------------------------------

    def _fill_rows(
        self, found: list[list[DeviceArray]], arguments: _Arguments, chosen: list[int]
    ) -> None:
        """Fill matrices by sweeps backward, one for each element of each output."""
        for output, parts in zip(self.program.outputs, found, strict=True):
            if output.cells is None:
                for part in parts:
                    fill(part, 0.0)
                continue
            for row in range(output.size):
                seed = np.zeros(output.size)
                seed[row] = 1.0
                adjoints = self._adjoints(arguments, [(output, seed)], chosen)
                for part, adjoint in zip(parts, adjoints, strict=True):
                    n = part.shape[1]
                    if adjoint is None:
                        fill(part.after(row * n, n), 0.0)
                    else:
                        copy(adjoint, part.after(row * n, n))

    def _fill_columns(self, found: list[DeviceArray], args: Any, kwargs: Any, argnums: int) -> None:
        """Fill matrices by sweeps forward, one for each element of the argument."""
        position = positions_of(argnums, self.program._count)[0]
        push = self._pushing((position,))
        shape = np.shape(self.program.example()[0][position])
        n = found[0].shape[1]
        sizes = [output.size for output in self.program.outputs]
        columns = [moving(Way.straight(m), Way((m,), (n,))) for m in sizes]
        for j in range(n):
            tangent = np.zeros(n)
            tangent[j] = 1.0
            arguments = _Arguments(push, (*args, tangent.reshape(shape)[()]), kwargs)
            _, tangents = push._value(arguments.there)
            leaves = trees.flatten_like(self.program.out_tree, tangents)
            for matrix, column, values in zip(found, columns, leaves, strict=True):
                if values.size:
                    column.run([values.reshape(values.size), matrix.reshape(matrix.size).after(j)])

    # -- what may be asked -------------------------------------------------------------------------

    def _single_output(self, what: str) -> Output:
        if len(self.program.outputs) != 1:
            raise TypeError(
                f"{what} needs a program that returns one array or number, and this one returns "
                f"{len(self.program.outputs)}; use vjp{at_caller()}"
            )
        return self.program.outputs[0]

    def _single_number(self, what: str) -> Output:
        output = self._single_output(what)
        if output.size != 1:
            raise TypeError(
                f"the program returns an output of shape {output.shape}, not a single number; use "
                f"its vjp or jacobian{at_caller()}"
            )
        return output


class _Arguments:
    """The arguments of one call, checked.

    Attributes
    ----------
    arrays : dict
        By number of the import on the tape: flat arrays, of the device or of the host.
    imports : dict
        By number of the input: that of the import.
    on_device : bool
        Whether results are to stay on the device.
    real : dtype
    """

    def __init__(self, owner: DeviceProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        program = owner.program
        self.device = owner.device
        leaves = [self._leaf(leaf) for leaf in program._leaves(args, kwargs)]
        program._check_static(leaves)
        at = {entry.cell: i for i, entry in enumerate(program.tape.imports) if entry.size}
        self.arrays: dict[int, Any] = {}
        self.imports: dict[int, int] = {}
        dtypes = set()
        for i, (known, leaf) in enumerate(zip(program.inputs, leaves, strict=True)):
            if known is None:
                continue
            array = _fitting(leaf, known)
            if isinstance(array, DeviceArray):
                dtypes.add(array.dtype)
            if known.size:
                self.imports[i] = at[known.cell]
                self.arrays[at[known.cell]] = array
        self.on_device = bool(dtypes)
        self.real = one_dtype(dtypes)

    @property
    def there(self) -> _Arguments:
        """These arguments, with results on the device in any case."""
        other = copying.copy(self)
        other.on_device = True
        return other

    def _leaf(self, leaf: Any) -> Any:
        """Return a part of the arguments; an array on the device as a `DeviceArray`."""
        if isinstance(leaf, Tracked):
            raise TypeError(
                "a program on a device takes plain arrays; inside of transforms use the program "
                f"on the CPU{at_caller()}"
            )
        return self.device.view(leaf) if is_elsewhere(leaf) else leaf

    # -- results -----------------------------------------------------------------------------------

    def cotangent(self, part: Any, output: Output) -> Any:
        """Return a cotangent of an output, flat, checked."""
        if is_elsewhere(part):
            array = self.device.view(part)
            if array.shape != output.shape:
                raise ValueError(
                    f"the cotangent has shape {array.shape}, but the output has shape "
                    f"{output.shape}{at_caller()}"
                )
            self.on_device = True
            one_dtype({array.dtype, self.real})
            return array.reshape(array.size)
        return backward.check_cotangent(part, output.shape).ravel()

    def result(self, found: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return a part of the result: what was computed, in its shape."""
        if self.on_device:
            array = (
                found
                if isinstance(found, DeviceArray)
                else self.device.put(found.astype(self.real))
            )
            return array.reshape(*shape)
        host = found.numpy() if isinstance(found, DeviceArray) else found
        values = np.array(host.reshape(shape), dtype)
        if values.ndim:
            return values
        return float(values) if values.dtype == np.float64 else values[()]

    def constant(self, output: Output) -> Any:
        """Return a part of the result that depends on no argument."""
        if not self.on_device:
            return np.array(output.constant)[()] if output.shape else output.constant
        return self.device.put(np.asarray(output.constant, self.real)).reshape(*output.shape)

    def gradient(self, found: DeviceArray | None, known: Input | None) -> Any:
        """Return the gradient for an input."""
        assert known is not None
        if found is None:
            found = self.device.empty(known.size, self.real)
            fill(found, 0.0)
        return self.result(found, known.shape, known.dtype)


def is_elsewhere(x: Any) -> bool:
    """Whether an argument is an array that is not NumPy's."""
    if isinstance(x, (np.ndarray, np.generic)):
        return False
    return hasattr(x, "__cuda_array_interface__") or hasattr(x, "__dlpack__")


def one_dtype(dtypes: set[Any]) -> np.dtype[Any]:
    """Return the dtype of arrays on the device; float64 where there are none."""
    if len(dtypes) > 1 or any(dtype.kind != "f" for dtype in dtypes):
        raise TypeError(
            f"arrays on the device are float64 or float32, all alike, not "
            f"{' and '.join(sorted(map(str, dtypes)))}{at_caller()}"
        )
    found: np.dtype[Any] = next(iter(dtypes), np.dtype(np.float64))
    return found


def _fitting(leaf: Any, known: Input) -> Any:
    """Return a flat array for an input: of the device as it is, or of float64 on the host."""
    if not isinstance(leaf, DeviceArray):
        return np.asarray(known.check(leaf), np.float64).ravel()
    if leaf.shape != known.shape:
        raise ValueError(
            f"{known.name} has shape {leaf.shape}, but the program was recorded for "
            f"{known.shape}{at_caller()}"
        )
    return leaf.reshape(leaf.size)


def _zeros_like(x: Any) -> Any:
    leaves, tree = trees.flatten(x, trees.is_numeric_list)
    return trees.unflatten(tree, [np.zeros(np.shape(leaf))[()] for leaf in leaves])


def _push(program: Program, count: int, moving_: tuple[int, ...], *args: Any, **kwargs: Any) -> Any:
    """Return value and tangent of a program, given its arguments and tangents of some."""
    tangents: list[Any] = [None] * count
    for i, tangent in zip(moving_, args[count:], strict=True):
        tangents[i] = tangent
    return program.jvp(args[:count], tangents, **kwargs)
