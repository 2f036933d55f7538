"""`Program`: a recorded function, which runs again without Python, and its derivatives.

How it is recorded and swept is in `tapegrad.programs.recorded`.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backward, execute, trees
from ..errors import at_caller
from ..transforms import derivatives, directions, higher
from ..transforms.call import (
    Function,
    Replayed,
    are_plain,
    check_seed,
    float_for_no_axes,
    positions_of,
)
from .captured import Captured, Promoted, choose
from .prepared import PreparedJacobian, is_preparable, is_usable
from .recorded import Recorded, any_tracked

if TYPE_CHECKING:
    from ..batches.runs import Map


class Program(Recorded, Replayed):
    """A recorded function: it runs again, forward and backward, without running Python code.

    Make one with `tapegrad.record`.  A program runs the way through the code that was recorded;
    where other arguments would have taken another way, it raises `ControlFlowChanged`.

    Attributes
    ----------
    captured : list of Captured
        Arrays and numbers that the function took from elsewhere than its arguments.
    """

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the program to a file, which `tapegrad.load` reads anywhere.

        The file holds the recording, not Python code: the source of the function is not needed to
        run it.  Of the arrays and numbers that the program took from elsewhere it holds the values,
        and of source files only the names.  A file of that name is replaced, all at once.

        Raises
        ------
        TypeError
            If a part of the program is run by Python code (custom rules, checkpoints), or a
            constant is no number, text or array.
        """
        from .files import save  # with the first file

        save(self, path)

    def __reduce__(self) -> Any:
        # What a file would hold: pickles go to other processes, and hold no code either.
        from .files import from_bytes, to_bytes

        classes = {*trees.classes(self._tree), *trees.classes(self._out_tree)}
        return from_bytes, (to_bytes(self), tuple(classes), self.tape.flushed_cell)

    def promote(self, *what: str | Captured) -> Program:
        """Return a program that takes captured variables as arguments, after the others.

        The function is recorded once more, for the same example arguments, while the variables hold
        these inputs: whatever it does with them is then part of the program, and differentiated.
        (Other threads should not use the variables meanwhile.)

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
        args, kwargs = self.example()
        values = [trees.own(item._snapshot)[()] for item in items]
        return Program(Promoted(self._function, items), (*args, *values), kwargs)

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
        calls = self._calls
        if calls is not None and not kwargs and not execute.overriding:
            found = calls.value(args)
            if found is not None and (self._origin is None or _is_finite(found)):
                return found
        leaves = self._leaves(args, kwargs)
        if any_tracked(leaves):
            return trees.unflatten(self._out_tree, self._splice(leaves))
        with self.lock:
            self._run(leaves)
            result = self._read()
        if self._origin is not None and not _is_finite(result):
            return self._origin(*args, **kwargs)
        return result

    def value_and_grad(self, *args: Any, argnums: int | Sequence[int] = 0, **kwargs: Any) -> Any:
        """Run the program and return its value, a single number, and the gradient.

        Examples
        --------
        >>> import numpy as np, tapegrad as tg
        >>> program = tg.record(lambda x: np.sum(x * x), np.zeros(2))
        >>> program.value_and_grad(np.array([1.0, 2.0]))
        (5.0, array([2., 4.]))
        """
        calls = self._calls
        if calls is not None and not kwargs and not execute.overriding:
            try:
                run = calls.gradients.get(argnums)
            except TypeError:  # a list
                run = None
            found = None if run is None else run(args)
            if found is not None:
                return found
        leaves = self._leaves(args, kwargs)
        if any_tracked(leaves):
            return self._tracked_gradient(leaves, argnums)
        with self.lock:
            output = self._single_output("value_and_grad")
            if output.size != 1:
                raise TypeError(
                    f"the program returns an output of shape {output.shape}, not a single number; "
                    f"use its vjp or jacobian{at_caller()}"
                )
            try:
                self._run(leaves, evaluate=False)
                found = self._reverse([(output, 1.0)])
                return self._read(), self._pick(found, argnums)
            finally:
                self._give_back()

    def plain_gradient(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], argnums: int | Sequence[int]
    ) -> tuple[Any, Any] | None:
        """Return value and gradient where `tg.grad` would; see `tapegrad.transforms.call.Replayed`.

        A program that does not return a number which depends on its arguments is for `tg.grad`.
        """
        output = self._outputs[0] if self._out_tree.is_leaf else None
        if output is None or output.size != 1 or output.cells is None or "argnums" in kwargs:
            return None
        if not are_plain(args, kwargs, positions_of(argnums, len(args))):
            return None
        found: tuple[Any, Any] = self.value_and_grad(*args, argnums=argnums, **kwargs)
        return found

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
                args, kwargs = self.example()
                derived = Program(functools.partial(gradient), args, kwargs)
            derived._name, derived._function = f"gradient of {self._name}", None
            # A sweep carries on nothing that is zero, be it multiplied by infinity; what is derived
            # cannot skip, and may answer nan where a sweep does not.
            derived._origin = lambda *args, **kwargs: self.value_and_grad(
                *args, argnums=argnums, **kwargs
            )[1]
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
            if any_tracked(leaves) or any_tracked(parts):
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
        plain = not any_tracked(leaves) and not any_tracked(seeds)
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
        numbers = self._numbers(argnums)
        if any_tracked(leaves):
            return self._tracked_jacobian(leaves, argnums)
        with self.lock:
            found = self._matrices(leaves, numbers, mode)
        blocks = []
        for rows, output in self._spans():
            values: list[Any] = [None] * len(self._inputs)
            for i, matrix in zip(numbers, found, strict=True):
                known = self._inputs[i]
                assert known is not None
                shape = output.shape + known.shape
                if rows is None:
                    part = np.zeros(shape, known.dtype)
                elif len(self._outputs) == 1:
                    part = matrix.reshape(shape)
                else:
                    part = matrix[rows].copy().reshape(shape)
                values[i] = float_for_no_axes(part)
            blocks.append(self._pick(values, argnums))
        return trees.unflatten(self._out_tree, blocks)

    def _matrices(self, leaves: Sequence[Any], numbers: list[int], mode: str) -> list[Any]:
        """Run the program; return the Jacobians of its output cells, one for each input chosen."""
        chosen = [known for i in numbers if (known := self._inputs[i]) is not None]
        key, tape = (mode, *numbers), self.tape
        prepared = self._dense.get(key)
        if prepared is not None and is_usable():
            self._run(leaves, prepared=prepared)
            found = prepared.matrices()
            return [x.astype(y.dtype, copy=False) for x, y in zip(found, chosen, strict=True)]
        self._run(leaves)
        cells = self._output_cells()
        matrices = {
            id(known.leaf): np.zeros((cells.size, known.size), known.dtype) for known in chosen
        }
        derivatives.fill_matrices(tape, cells, matrices, mode, self._recording)
        if prepared is None and key in self._dense:  # asked for again
            columns = sum([known.size for known in chosen])
            forward = derivatives.sweeps_forward(tape, cells.size, columns, mode, self._recording)
            if is_preparable(tape, columns if forward else cells.size):
                places = [slice(known.cell, known.cell + known.size) for known in chosen]
                self._dense[key] = PreparedJacobian(tape, cells, places, forward)
        else:
            self._dense[key] = None
        return list(matrices.values())

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

    def sparse_jacobian(self, *args: Any, argnums: int = 0, **kwargs: Any) -> Any:
        """Run the program and return its Jacobian as a SciPy CSR array.

        Its structure is found at the first call; see `tapegrad.sparse_jacobian`.
        """
        from ..sparse.sparsity import matrix_of  # which needs this module

        return matrix_of(self, "jacobian", argnums, args, kwargs)[0]

    def sparse_hessian(self, *args: Any, argnums: int = 0, **kwargs: Any) -> Any:
        """Run the program and return the Hessian of its value, a number, as a SciPy CSR array.

        Its structure is found at the first call; see `tapegrad.sparse_hessian`.

        Examples
        --------
        >>> import numpy as np, tapegrad as tg
        >>> program = tg.record(lambda x: np.sum(x[1:] * x[:-1]), np.ones(3))
        >>> program.sparse_hessian(np.zeros(3)).toarray()
        array([[0., 1., 0.],
               [1., 0., 1.],
               [0., 1., 0.]])
        """
        from ..sparse.sparsity import matrix_of  # which needs this module

        return matrix_of(self, "hessian", argnums, args, kwargs)[0]

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

    @functools.cached_property
    def map(self) -> Map:
        """The program over many samples at once: ``map(X)``, ``map.value_and_grad(X)``, ...

        Arguments have an axis of samples more; see `tapegrad.batches.runs.Map.__call__`.

        Examples
        --------
        >>> import numpy as np, tapegrad as tg
        >>> program = tg.record(lambda x: np.sin(x) * x, 1.0)
        >>> program.map(np.array([0.0, 1.0, 2.0]))
        array([0.        , 0.84147098, 1.81859485])
        >>> program.map.grad(np.array([0.0, 1.0, 2.0]))
        array([0.        , 1.38177329, 0.07700375])
        """
        from ..batches.runs import Map  # with the first batch

        return Map.of(self)

    def to(self, where: Any, stream: Any = None) -> Any:
        """Return the program on a device.

        Parameters
        ----------
        where : str or Device
            ``"cuda"``, ``"cuda:1"``, or ``"cpu"``, which is the program itself.
        stream : int or object, optional
            The stream to work in; see `tapegrad.devices.device.device`.

        Returns
        -------
        DeviceProgram
            It has this program's methods, and its `map`, for arrays of the device and of the host;
            see `tapegrad.devices.programs.DeviceProgram`.

        Raises
        ------
        DeviceUnavailable
            If there is no such device; the program still runs on the CPU.

        Examples
        --------
        >>> import tapegrad as tg
        >>> program = tg.record(lambda x: x * x, 3.0)
        >>> program.to("cpu") is program
        True
        """
        if where == "cpu":
            return self
        from ..devices.programs import DeviceProgram, device_named

        device = device_named(where, stream)
        with self.lock:
            if device not in self.on:
                self.on[device] = DeviceProgram(self, device)
            return self.on[device]

    # -- on tracked values -----------------------------------------------------------------------

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
                parts += trees.flatten_like(child, tangent, trees.is_whole)
        parts += [None] * (len(self._inputs) - len(parts))  # of keyword arguments
        for i, (known, part) in enumerate(zip(self._inputs, parts, strict=True)):
            if known is None:
                parts[i] = None
            elif part is not None:
                parts[i] = check_seed(part, known.shape)
        return parts


def _is_finite(result: Any) -> bool:
    """Whether all numbers of a result are finite."""
    if isinstance(result, float):
        return math.isfinite(result)
    parts = [np.ravel(part) for part in trees.flatten(result)[0]]
    # Numbers whose squares overflow are looked at again.
    return all([math.isfinite(x.dot(x)) or bool(np.isfinite(x).all()) for x in parts])


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
