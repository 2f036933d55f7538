"""A program as regions whose lanes are samples.

Every instruction of the program's tape becomes one instruction of a region
(`tapegrad.batches.unroll`). An argument of shape ``(n, k)`` is k in-windows of stride k, a result k
out-windows; so arguments are read, and results written, where they lie. The decisions of the
program are instructions as well: they give one more result, whether a sample takes the program's
way.

A program of more rows than a region can have is several regions. What one of them computes for the
next ones waits in memory, for a chunk of samples that is small enough.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import execute
from ..errors import at_caller
from ..regions import results
from ..regions.cutting import MOST_ROWS
from ..regions.region import (
    BUFFER,
    OFFSET,
    STRIDES,
    Region,
    RegionBuilder,
    run_reference,
)
from ..regions.threads import run_region
from ..window import Window
from .unroll import Unrolled, can_unroll

if TYPE_CHECKING:
    from ..programs.program import Program

Array = np.ndarray[Any, Any]

LONGEST = 1 << 20
"""Cells of a program, beyond which not even many samples are worth its lanes."""

_LAYOUTS = 8  # regions that are kept for other numbers of samples, or other strides


def run_chunk(region: Region, buffers: Sequence[Array]) -> None:
    """Run a region over a chunk of samples: the place of another executor, such as a device's."""
    family = "regions32" if region.real == "float32" else "regions"
    if execute.compiles(family, region.size * (len(region.code) + 1)):
        run_region(region, buffers)
    else:
        run_reference(region, buffers)


class Lanes:
    """A program, ready to run over samples.

    Attributes
    ----------
    tree : TreeDef
        The structure of its result.
    shapes, dtypes, constants : list
        Of each part of the result; a part that depends on nothing is a constant.
    numbers : list of int
        Which leaves of the arguments the inputs are.
    input_shapes : list of tuple of int
        The shape of each of them, for one sample.
    decided : bool
        Whether there are decisions to be checked.
    real : str
        The type that lanes compute in, "float64" or "float32", which arguments must be of if it is
        that.
    waiting : int
        Numbers a sample that wait in memory between the regions of a long program.
    """

    def __init__(self, program: Program, real: str = "float64") -> None:
        self.program = program
        self.real = real
        self.tree = program.out_tree
        outputs = program.outputs
        self.shapes = [output.shape for output in outputs]
        self.dtypes = [
            np.dtype(output.dtype) if output.cells is not None else _dtype_of(output.constant)
            for output in outputs
        ]
        self.constants = [output.constant if output.cells is None else None for output in outputs]
        known = [(i, place) for i, place in enumerate(program.inputs) if place is not None]
        self.numbers = [i for i, _ in known]
        self.input_shapes = [place.shape for _, place in known]
        self.cells, self.expected = program.decisions.looks()
        self.decided = bool(self.cells.size)
        self._results = self._layouts(looks=False)
        self._looks: _Layouts | None = None
        self.waiting = self._results.places

    @property
    def instructions(self) -> int:
        """How many instructions a sample takes, one at least."""
        return self._results.instructions + 1

    def _layouts(self, looks: bool) -> _Layouts:
        """Return the regions of results, or of what decisions look at."""
        build = RegionBuilder((1,), self.real)
        program = self.program
        # Asked now, for cells have other numbers once a program was compiled.
        places = [(known.cell, known.size) for known in program.inputs if known is not None]
        values = Unrolled(program.tape, places, lambda i, j: build.input(i, (0,), offset=j), build)
        buffer = len(places)
        if looks:
            cells, _ = program.decisions.looks()  # their numbers may have changed since
            found = [values.value(cell) for cell in cells.tolist()]
        else:
            cells = [o.flat_cells().tolist() for o in program.outputs if o.cells is not None]
            found = [values.value(cell) for part in cells for cell in part]
            if self.decided:
                found.append(self._agreement(build, values))
        for value in found:
            build.output(value, buffer, (0,))
            buffer += 1
        regions, waiting = build.fuse().finish_in_parts(buffer, MOST_ROWS)
        return _Layouts(regions, waiting, self.input_shapes)

    def _agreement(self, build: RegionBuilder, values: Unrolled) -> int:
        """Return the value that says whether all decisions are those that were recorded."""
        agreement = None
        pairs = dict.fromkeys(zip(self.cells.tolist(), self.expected.tolist(), strict=True))
        for cell, expected in pairs:
            value = values.value(cell)
            if expected == expected:
                same = build.op("equal", value, values.constant(expected))
            else:
                same = build.op("isnan", value)
            agreement = same if agreement is None else build.op("logical_and", agreement, same)
        assert agreement is not None
        return agreement

    def run(
        self, arguments: Sequence[Array], mapped: Sequence[bool], m: int, targets: Sequence[Any]
    ) -> Any:
        """Run the program for `m` samples.

        Parameters
        ----------
        arguments : sequence of ndarray
            The inputs; those that are `mapped` have `m` samples along their first axis.
        targets : sequence of ndarray
            Where the parts of the result go, samples first.

        Returns
        -------
        ndarray of bool, or None
            Which samples take the program's way; None for all of them. The results of others are
            worth nothing.
        """
        buffers, layout = self._inputs(arguments, mapped)
        kept: list[tuple[Any, Array]] = []  # results that need converting, and where they go
        strides: list[int] = []
        for target, shape, constant in zip(targets, self.shapes, self.constants, strict=True):
            if constant is not None:
                target[...] = constant
                continue
            size = int(np.prod(shape, dtype=np.int64))
            direct = target.dtype == self.real and target.flags.c_contiguous
            flat = (target if direct else np.empty(target.shape, self.real)).reshape(-1)
            if not direct:
                kept.append((target, flat))
            buffers += [flat[j:] for j in range(size)]
            strides += [size] * size
        if self.decided:
            agreement = np.empty(m, self.real)
            buffers.append(agreement)
            strides.append(1)
        if buffers[len(self.input_shapes) :]:
            self._run(self._results, m, layout, strides, buffers)
        for target, flat in kept:
            target[...] = flat.reshape(target.shape)
        if self.decided and not agreement.all():
            return agreement != 0.0
        return None

    def _run(
        self,
        layouts: _Layouts,
        m: int,
        layout: tuple[tuple[int, ...], ...],
        strides: Sequence[int],
        buffers: list[Array],
    ) -> None:
        regions = layouts.of(m, layout, strides)
        if len(regions) > 1:
            waiting = results.take(layouts.places * m)  # or half of it, in single precision
            buffers = [*buffers, waiting]
        for region in regions:
            run_chunk(region, buffers)

    def regions(
        self, m: int, layout: tuple[tuple[int, ...], ...], strides: Sequence[int]
    ) -> list[Region]:
        """Return the regions that compute results, and last whether samples take this way.

        Where there are several they are run in their order, and have one more buffer than results:
        that of `waiting` numbers for each of the `m` samples.

        Parameters
        ----------
        m : int
            Number of samples.
        layout : tuple of tuple of int
            Strides of each input: over the samples, then over its axes.
        strides : sequence of int
            Of each number of the results over the samples; each has a buffer of its own.
        """
        return self._results.of(m, layout, strides)

    def others(
        self, arguments: Sequence[Array], mapped: Sequence[bool], m: int
    ) -> Iterator[tuple[int, Any, Any]]:
        """Yield groups of samples that decide otherwise, by the first decision that differs.

        Yields
        ------
        number : int
            The decision.
        outcome : object
            How these samples decide it.
        which : ndarray of int
        """
        if self._looks is None:
            with self.program.lock:
                self._looks = self._layouts(looks=True)
        buffers, layout = self._inputs(arguments, mapped)
        columns = np.empty((self.cells.size, m), self.real)
        self._run(self._looks, m, layout, [1] * len(columns), buffers + list(columns))
        yield from self.program.decisions.grouped(columns.astype(np.float64, copy=False))

    def _inputs(
        self, arguments: Sequence[Array], mapped: Sequence[bool]
    ) -> tuple[list[Array], tuple[tuple[int, ...], ...]]:
        """Return the inputs' buffers, and their strides: over the samples, then over the axes."""
        buffers, layout = [], []
        for values, is_mapped, shape in zip(arguments, mapped, self.input_shapes, strict=True):
            found = values.shape[int(is_mapped) :]
            if found != shape:
                raise ValueError(
                    f"an argument has shape {found} in each sample, where the program needs "
                    f"{shape}{at_caller()}"
                )
            flat, steps = _flat(values if is_mapped else values.reshape(1, *shape), self.real)
            buffers.append(flat)
            layout.append((steps[0] if is_mapped else 0, *steps[1:]))
        return buffers, tuple(layout)


def _dtype_of(constant: Any) -> np.dtype[Any]:
    dtype = np.asarray(constant).dtype
    return np.dtype(np.float64) if isinstance(constant, int) else dtype


def _flat(values: Array, real: str) -> tuple[Array, tuple[int, ...]]:
    """Return values as a flat array of a type, without a copy if possible, and strides on it."""
    values = np.asarray(values)
    size = np.dtype(real).itemsize
    steps = tuple([s // size for s in values.strides])
    fits = values.dtype == real and values.dtype.isnative and values.flags.aligned
    if not fits or any(s < 0 or s % size for s in values.strides):
        values = np.ascontiguousarray(values, real)
        steps = tuple([s // size for s in values.strides])
    if values.flags.c_contiguous:
        return values.reshape(-1), steps
    extent = 1 + sum([(n - 1) * s for n, s in zip(values.shape, steps, strict=True)])
    flat = np.lib.stride_tricks.as_strided(values, (extent,), (size,), writeable=False)
    return flat, steps


class _Layouts:
    """Regions for other numbers of samples, and for arguments that lie otherwise in memory.

    Parameters
    ----------
    ones : list of Region
        The regions for one sample, to be run in their order.
    places : int
        Numbers a sample that wait, in the buffer behind those of the results.
    shapes : sequence of tuple of int
        Of the inputs.
    """

    def __init__(self, ones: list[Region], places: int, shapes: Sequence[tuple[int, ...]]) -> None:
        self._ones = ones
        self.places = places
        self._shapes = shapes
        self._known: OrderedDict[Any, list[Region]] = OrderedDict()

    @property
    def instructions(self) -> int:
        """Number of instructions."""
        return sum([len(one.code) for one in self._ones])

    def of(
        self, m: int, layout: tuple[tuple[int, ...], ...], strides: Sequence[int]
    ) -> list[Region]:
        """Return the regions for `m` samples.

        Parameters
        ----------
        m : int
        layout : tuple of tuple of int
            Strides of each input: over the samples, then over its axes.
        strides : sequence of int
            Of each result over the samples.
        """
        key = m, layout, tuple(strides)
        regions = self._known.pop(key, None)
        if regions is None:
            regions = [self._placed(one, m, layout, strides) for one in self._ones]
        self._known[key] = regions
        if len(self._known) > _LAYOUTS:
            self._known.popitem(last=False)
        return regions

    def _placed(
        self, one: Region, m: int, layout: tuple[tuple[int, ...], ...], strides: Sequence[int]
    ) -> Region:
        inputs, outputs = one.inputs.copy(), one.outputs.copy()
        number, element = inputs[:, BUFFER], inputs[:, OFFSET].copy()
        for i, (shape, (step, *steps)) in enumerate(zip(self._shapes, layout, strict=True)):
            mine = number == i
            places = Window(0, shape, tuple(steps)).cells().ravel()
            inputs[mine, OFFSET] = places[element[mine]]
            inputs[mine, STRIDES] = step
        inner = len(self._shapes) + len(strides)  # the buffer of what waits
        for windows in (inputs, outputs):
            waits = windows[:, BUFFER] == inner
            windows[waits, OFFSET] *= m
            windows[waits, STRIDES] = 1
        rest = outputs[:, BUFFER] < inner
        numbers = outputs[rest, BUFFER] - len(self._shapes)
        outputs[rest, STRIDES] = np.array(strides, np.int64)[numbers]
        return Region((m,), one.code, one.constants, inputs, outputs, one.rows, one.real, one.plain)


def lanes_of(program: Program, real: str = "float64") -> Lanes | None:
    """Return a program's lanes, or None where it is better run sample by sample.

    That is where it is very long, has structural instructions that are not taken apart, or
    decisions by functions such as ``np.argmax``.
    """
    if not can_unroll(program.tape, LONGEST) or program.decisions.by_functions:
        return None
    with program.lock:
        return Lanes(program, real)
