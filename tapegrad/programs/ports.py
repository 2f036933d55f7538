"""Inputs and outputs of programs: where the values of arguments go, and where results come from."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from .. import backward, recording, trees
from ..arrays.indexing import on_cells
from ..errors import at_caller
from ..recording import FLOAT32, FLOAT64
from ..storage import Floats, Leaf, Tracked
from ..tape import Tape, recorder
from ..transforms.call import as_real


class Input:
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

    def check(self, value: Any) -> Any:
        """Return another value for the input, tracked or an ndarray, which must fit it."""
        values = as_real(value, self.name)
        if values.shape != self.shape:
            raise ValueError(
                f"{self.name} has shape {values.shape}, but the program was recorded for "
                f"{self.shape}{at_caller()}"
            )
        return values

    def put(self, value: Any, v: Floats) -> None:
        """Put another value, which must not be tracked, in the input's place."""
        if type(value) is float and not self.shape:
            v[self.cell] = value  # without an ndarray in between: a replay can be that short
        else:
            v[self.cell : self.cell + self.size] = self.check(value).ravel()

    def take(self, g: Floats) -> Any:
        """Return the input's adjoint as a number, or as an array that the caller owns."""
        if not self.shape and self.dtype == FLOAT64:
            return g.item(self.cell)
        return self.shaped(g[self.cell : self.cell + self.size].copy())

    def shaped(self, adjoint: Floats | None) -> Any:
        """Return a flat adjoint, which nobody else has, as the input's."""
        if adjoint is None:
            adjoint = np.zeros(self.size)
        if not self.shape:
            return adjoint.item() if self.dtype == FLOAT64 else self.dtype.type(adjoint[0])
        return np.asarray(adjoint.reshape(self.shape), self.dtype)


class Output:
    """One number or array of the result: its cells, or a constant."""

    __slots__ = ("cells", "constant", "dtype", "shape", "size")

    def __init__(self, value: Any) -> None:
        self.cells: Any = None
        self.constant: Any = None
        self.shape, self.dtype = np.shape(value), getattr(value, "dtype", FLOAT64)
        self.size = prod(self.shape)
        if isinstance(value, Tracked):
            tape, cells = backward.place_of(value)
            if tape is recorder.tape:
                self.cells = cells
                return
            value = value.value  # type: ignore[attr-defined]
        self.constant = trees.own(value)

    @classmethod
    def on_cells(cls, cells: Any, shape: tuple[int, ...], dtype: Any) -> Output:
        """Return the output that is in given cells: the first of a run, or an array of them."""
        output = cls.__new__(cls)
        output.cells, output.constant = cells, None
        output.shape, output.dtype, output.size = shape, np.dtype(dtype), prod(shape)
        return output

    def flat_cells(self) -> Any:
        """Return its cells, flat."""
        if isinstance(self.cells, (int, np.integer)):
            return np.arange(self.cells, self.cells + self.size)
        return np.ravel(self.cells).astype(np.int64)

    def track(self, tape: Tape, to: Any) -> Any:
        """Return the output as a tracked value, where `to` says where its cells are in `tape`."""
        if self.cells is None:
            return trees.own(self.constant)
        if self.shape == () or isinstance(self.cells, (int, np.integer)):
            first = int(to[np.ravel(self.cells)[0]]) if self.size else 0
            return recording.run(tape, first, self.shape, self.dtype)
        return on_cells(tape, to[self.cells].reshape(self.shape), self.dtype)

    def seed(self, cotangent: Any, g: Floats) -> None:
        """Add a cotangent (flat, or a number) to the adjoints of its cells."""
        if isinstance(self.cells, (int, np.integer)):
            g[self.cells : self.cells + self.size] += cotangent
        elif self.cells is not None:
            np.add.at(g, self.cells, cotangent)

    def read(self, v: Floats) -> Any:
        """Return the output's value, owned by the caller."""
        if self.cells is None:
            return trees.own(self.constant)
        if isinstance(self.cells, (int, np.integer)):
            if not self.shape and self.dtype == FLOAT64:
                return v.item(self.cells)
            values = v[self.cells : self.cells + self.size]
        else:
            values = v[self.cells]
        values = np.array(values.reshape(self.shape), self.dtype)
        if values.ndim:
            return values
        return float(values) if self.dtype == FLOAT64 else values[()]


def gathered(x: Any) -> Any:
    """Return a list that holds tracked numbers as the array that it stands for."""
    return recording.operand(x) if type(x) is list and recording.holds_tracked(x) else x


def example(x: Any) -> Any:
    """Return the present value of a tracked argument, anything else as it is."""
    return np.array(x._peek())[()] if isinstance(x, Tracked) else x  # type: ignore[attr-defined]


def is_input(leaf: Any) -> bool:
    """Whether an argument is an input: real floating-point numbers, or a list of numbers."""
    if isinstance(leaf, Tracked):
        return recording.dtype_of(leaf).kind == "f"
    if isinstance(leaf, list):
        return True
    return isinstance(leaf, float) or (
        isinstance(leaf, (np.ndarray, np.floating)) and leaf.dtype.kind == "f"
    )


def same_static(one: Any, other: Any) -> bool:
    """Whether an argument that is part of a program is the one that it was recorded for."""
    if isinstance(one, Tracked):
        # Its value is a decision, where a program is being recorded.
        return bool(np.array_equal(one.value, other))  # type: ignore[attr-defined]
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return bool(np.array_equal(one, other))
    return type(one) is type(other) and bool(one == other)


def argument_name(path: str) -> str:
    """Return how a user calls the part of ``(args, kwargs)`` at a path such as ``[0][1]['w']``."""
    part, rest = path[1], path[3:]
    end = rest.index("]") + 1
    key = rest[1 : end - 1]
    return f"argument {key if part == '0' else key.strip(chr(39))}{rest[end:]}"
