"""Guards: what Python decided from values while a program was recorded, to be found again.

A replay runs the instructions of one way through the code.  Wherever Python looked at a value while
that way was taken (``if x > 0``, ``int(x)``, ``x.item()``, ``np.argmax(x)``, a mask used as an
index), the outcome is noted here, and every replay is checked against it before its result is given
out.
"""

from __future__ import annotations

import copy
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from . import trees
from .errors import ControlFlowChanged, caller
from .host import HostOperand
from .pool import Pool
from .programs.simplify import anchors, moved_operand
from .recording import cells_of
from .storage import Floats, Tracked, TrackedArray, TrackedScalar
from .tape import Tape

Outcome = Any

FUNCTIONS = {
    function.__name__: function
    for function in (
        *(np.all, np.any, np.argmax, np.argmin, np.argsort, np.argpartition, np.argwhere),
        *(np.nonzero, np.flatnonzero, np.count_nonzero, np.searchsorted, np.digitize),
        *(np.isclose, np.allclose, np.array_equal, np.array_equiv, np.isneginf, np.isposinf),
    )
}
"""NumPy's functions whose answers are decisions, by the names that files know them by."""

BROADCASTING = (np.isclose, np.allclose, np.array_equiv)
"""Those of them that compute with their operands broadcast together."""


class Decision:
    """One look at a value: what was asked, where, and the answer.

    Attributes
    ----------
    what : str
        The question, such as ``"the truth of a value"``.
    file, line : str, int
        Where the user's code asked it.
    outcome : float, ndarray or other
        The answer while recording.
    """

    __slots__ = ("file", "line", "outcome", "what")

    def __init__(self, what: str, outcome: Outcome, place: tuple[str, int] | None = None) -> None:
        self.what = what
        self.outcome = outcome
        self.file, self.line = place or caller()

    def changed(self, outcome: Outcome) -> ControlFlowChanged:
        """Return the error that says how a replay answered instead."""
        return ControlFlowChanged(
            f"{self.what} at {os.path.basename(self.file)}:{self.line} was {_say(self.outcome)} "
            f"when the program was recorded, and is {_say(outcome)} for these arguments; record "
            "again, or let tg.function keep a program for each way",
            self,
            outcome,
        )


class Decisions:
    """The decisions of one recording, in the order in which they were taken."""

    def __init__(self) -> None:
        self.all: list[Decision] = []
        self._cells = Pool(np.uint32)
        self._expected = Pool(np.float64)
        self._starts: list[int] = []  # of each decision on values in `_cells`
        self._numbers: list[int] = []  # and which one of `all` it is
        self._calls: list[Call] = []
        self._looks: _Looks | None = None

    def __len__(self) -> int:
        return len(self.all)

    def look(self, x: Tracked, values: Any, what: str) -> None:
        """Note that the values of `x` were looked at."""
        if isinstance(x, TrackedScalar):
            cells = np.array([x.cell], np.uint32)
        else:
            assert isinstance(x, TrackedArray)
            assert x.storage.tape is not None
            cells = cells_of(x.storage.tape, x).ravel().astype(np.uint32)
        self._looks = None
        self._starts.append(self._cells.extend(cells))
        self._expected.extend(np.asarray(values, np.float64).ravel())
        self._numbers.append(len(self.all))
        self.all.append(Decision(what, np.array(values)[()]))

    def call(
        self, tape: Tape, function: Callable[..., Any], args: Any, kwargs: Any, outcome: Any
    ) -> None:
        """Note that a function of values, such as ``np.argmax``, was answered."""
        leaves, tree = trees.flatten((list(args), dict(kwargs)))
        places = [HostOperand(tape, x) if isinstance(x, Tracked) else trees.own(x) for x in leaves]
        self._calls.append(Call(function, tree, places, len(self.all)))
        self.all.append(Decision(f"np.{function.__name__}", outcome))

    def adopt(self, other: Decisions, to: np.ndarray[Any, Any]) -> None:
        """Note the decisions of a program that becomes part of this one, `to` saying where."""
        before = len(self.all)
        self._looks = None
        start = self._cells.extend(to[other._cells.array()].astype(np.uint32))
        self._expected.extend(other._expected.array())
        self._starts += [start + place for place in other._starts]
        self._numbers += [before + number for number in other._numbers]
        self._calls += [call.moved(to, before) for call in other._calls]
        self.all += other.all

    @property
    def by_functions(self) -> bool:
        """Whether functions of values, such as ``np.argmax``, took some of the decisions."""
        return bool(self._calls)

    def begin_with(self, outcomes: Sequence[Outcome]) -> bool:
        """Whether the first decisions came out like this."""
        pairs = zip(self.all, outcomes, strict=False)
        return len(self) >= len(outcomes) and all(same_outcome(d.outcome, x) for d, x in pairs)

    @property
    def key(self) -> int:
        """A number that tells ways through the code apart."""
        return hash(tuple([answer_key(decision.outcome) for decision in self.all]))

    def looks(self) -> tuple[Any, Any]:
        """Return the cells that were looked at, and what was seen."""
        return self._cells.array().astype(np.int64), self._expected.array()

    def grouped(self, seen: Floats) -> Iterator[tuple[int, Outcome, Any]]:
        """Yield the samples that decide otherwise, those with the same answer together.

        Parameters
        ----------
        seen : ndarray of shape (cells, samples)
            The values of the cells of `looks`.

        Yields
        ------
        number, outcome, samples
            The first decision that differs, the answer, and an array of the samples that give it.
        """
        expected = self._expected.array()[:, None]
        differs = (seen != expected) & ~(np.isnan(seen) & np.isnan(expected))
        wrong = np.flatnonzero(differs.any(axis=0))
        starts = np.array(self._starts)
        at = np.searchsorted(starts, differs[:, wrong].argmax(axis=0), "right") - 1
        for i in np.unique(at).tolist():
            samples = wrong[at == i]
            stop = self._starts[i + 1] if i + 1 < len(starts) else len(seen)
            answers = seen[starts[i] : stop, samples].T + 0.0  # -0.0 is 0.0, and nans are one nan
            answers[np.isnan(answers)] = np.nan
            rows = np.ascontiguousarray(answers).view(np.dtype((np.void, 8 * answers.shape[1])))
            _, first, group = np.unique(rows.ravel(), return_index=True, return_inverse=True)
            number = self._numbers[i]
            recorded = np.asarray(self.all[number].outcome)
            for j, one in enumerate(first.tolist()):
                outcome = answers[one].reshape(recorded.shape).astype(recorded.dtype)[()]
                yield number, outcome, samples[group == j]

    def operands(self) -> list[HostOperand]:
        """Return where functions of values find their arguments."""
        return [x for call in self._calls for x in call.places if isinstance(x, HostOperand)]

    def cells(self) -> np.ndarray[Any, Any]:
        """Return cells of all instructions that decisions look at."""
        found = [self._cells.array().astype(np.int64)]
        found += [np.array(call.anchors(), np.int64) for call in self._calls]
        return np.concatenate(found)

    def rename(self, to: np.ndarray[Any, Any]) -> None:
        """Follow the cells of a tape that was simplified."""
        renamed = Pool(np.uint32)
        renamed.extend(to[self._cells.array()].astype(np.uint32))
        self._cells, self._looks = renamed, None
        for call in self._calls:
            call.rename(to)

    def to_parts(self) -> tuple[list[Any], Any, Any, Any, list[Any]]:
        """Return what a file keeps.

        That is: sites in the code (for answers of functions, without a dtype), which of them each
        decision is of, the cells looked at, their values, and the functions that answered.

        Raises
        ------
        TypeError
            Where a function decided that files do not know.
        """
        answered = {call.number for call in self._calls}
        sites: dict[Any, int] = {}
        numbers = np.zeros(len(self.all), np.uint32)
        for i, decision in enumerate(self.all):
            place = decision.what, os.path.basename(decision.file), decision.line
            outcome = np.zeros(()) if i in answered else np.asarray(decision.outcome)
            dtype = None if i in answered else outcome.dtype.name
            site = (*place, dtype, outcome.shape)
            numbers[i] = sites.setdefault(site, len(sites))
        for call in self._calls:
            if FUNCTIONS.get(call.function.__name__) is not call.function:
                decision = self.all[call.number]
                raise TypeError(
                    f"the answer of {decision.what} at {os.path.basename(decision.file)}:"
                    f"{decision.line} decided what was recorded, and files do not know this "
                    "function; compare the values by >, < or == instead"
                )
        return list(sites), numbers, self._cells.array(), self._expected.array(), self._calls

    @classmethod
    def from_parts(
        cls, sites: list[Any], numbers: Any, cells: Any, expected: Any, calls: list[Any]
    ) -> Decisions:
        """Return the decisions that `to_parts` took apart.

        `calls` are pairs of a call and its answer, whose numbers are given here.

        Raises
        ------
        ValueError
            Where the parts do not fit together.
        """
        if cells.size != expected.size or (numbers.size and int(numbers.max()) >= len(sites)):
            raise ValueError("their parts are of different lengths")
        new, start, answers = cls(), 0, iter(calls)
        for number in numbers.tolist():
            what, file, line, dtype, shape = sites[number]
            if dtype is None:
                call, outcome = next(answers, (None, None))
                if call is None:
                    raise ValueError("fewer functions answered than decisions say")
                call.number = len(new.all)
                new._calls.append(call)
                new.all.append(Decision(what, outcome, (file, line)))
                continue
            stop = start + prod(shape)
            if stop > expected.size:
                raise ValueError("they look at more cells than there are")
            with np.errstate(invalid="ignore"):
                outcome = expected[start:stop].reshape(shape).astype(dtype)[()]
            new._starts.append(start)
            new._numbers.append(len(new.all))
            new.all.append(Decision(what, outcome, (file, line)))
            start = stop
        if start != cells.size or next(answers, None) is not None:
            raise ValueError("they look at fewer cells than there are")
        new._cells.extend(cells)
        new._expected.extend(expected)
        return new

    def sites(self) -> Any:
        """Return, for each of the cells of `looks`, a number for the line of code that looked."""
        lines: dict[Any, int] = {}
        sites = [
            lines.setdefault((self.all[i].file, self.all[i].line), len(lines))
            for i in self._numbers
        ]
        counts = np.diff([*self._starts, len(self._cells)])
        return np.repeat(np.array(sites, np.intp), counts)

    def check(self, v: Floats) -> tuple[int, Outcome] | None:
        """Return the first decision that the values `v` would take otherwise, and how."""
        looks = self._looks
        if looks is None:
            if not self.all:
                return None
            cells, expected = self._cells.array(), self._expected.array()
            looks = self._looks = _Looks(cells, expected, self.sites())
        place = None if looks.unchanged(v) else looks.first_changed(v)
        found = None if place is None else self.differing(place, v)
        for call in self._calls:
            if found is not None and call.number > found[0]:
                break
            try:
                outcome = call.answer(v)
            except (ValueError, TypeError, IndexError) as error:  # for the values that came now
                return call.number, error
            if not _equal(outcome, self.all[call.number].outcome):
                return call.number, outcome
        return found

    def differing(self, place: int, v: Floats) -> tuple[int, Outcome]:
        """Return the decision that looked at a place among all values looked at, and its answer."""
        i = bisect_right(self._starts, place) - 1
        cells = self._cells.array()
        stop = self._starts[i + 1] if i + 1 < len(self._starts) else len(cells)
        number = self._numbers[i]
        recorded = np.asarray(self.all[number].outcome)
        answer = v[cells[self._starts[i] : stop]].reshape(recorded.shape)
        return number, answer.astype(recorded.dtype)[()]


_FEW = 4096  # numbers that are compared sooner by their bytes
_RUN = 256  # decisions of one line, in evenly spaced cells, that are compared without an index


class _Looks:
    """All values that decisions looked at, ready to be compared at once.

    A loop decides the same way again and again, by cells that are evenly spaced: these are read
    from where they are.  The others are gathered.

    Parameters
    ----------
    cells, expected : ndarray
        The cells looked at, and the values that were there.
    sites : ndarray of int
        For each of them, which line of code looked.
    """

    __slots__ = ("_bytes", "_cells", "_expected", "_gathered", "_runs", "_values", "actual")

    def __init__(
        self, cells: np.ndarray[Any, Any], expected: Floats, sites: np.ndarray[Any, Any]
    ) -> None:
        self._cells = cells.astype(np.intp)  # which `take` would make of others each time
        self._expected = expected
        self.actual = np.empty(expected.size)  # what the last replay had there, where it differs
        self._runs: list[tuple[slice, float, bytes | None]] = []
        rest = np.ones(cells.size, bool)
        if cells.size > _RUN:
            order = np.argsort(sites, kind="stable")
            for places in np.split(order, np.flatnonzero(np.diff(sites[order])) + 1):
                self._find_run(places, rest)
        self._gathered = self._cells[rest]
        self._values = np.empty(self._gathered.size)
        given = expected[rest]
        self._bytes = given.tobytes() if given.size <= _FEW else None

    def _find_run(self, places: np.ndarray[Any, Any], rest: np.ndarray[Any, Any]) -> None:
        """Find evenly spaced cells, with one value in all of them, at the end of `places`."""
        steps, values = np.diff(self._cells[places]), self._expected[places]
        if not steps.size:
            return
        breaks = np.flatnonzero((steps != steps[-1]) | (values[:-1] != values[-1]))
        places = places[breaks[-1] + 1 if breaks.size else 0 :]
        if places.size > _RUN and steps[-1] > 0:
            first, last = self._cells[places[0]], self._cells[places[-1]]
            run = slice(int(first), int(last) + 1, int(steps[-1]))
            packed = self._expected[places].tobytes() if places.size <= _FEW else None
            self._runs.append((run, float(values[-1]), packed))
            rest[places] = False

    def unchanged(self, v: Floats) -> bool:
        """Whether all values have the same bits; if not, they may still be the same."""
        v.take(self._gathered, out=self._values, mode="clip")  # "raise" would make a copy
        if self._values.tobytes() != self._bytes:
            return False
        for run, value, packed in self._runs:
            if packed is not None:
                if v[run].tobytes() != packed:
                    return False
            elif not (v[run] == value).all():
                return False
        return True

    def first_changed(self, v: Floats) -> int | None:
        """Return the place of the first value that differs; nan is as good as nan."""
        v.take(self._cells, out=self.actual, mode="clip")
        same = self.actual == self._expected
        if same.all():
            return None
        same |= np.isnan(self.actual) & np.isnan(self._expected)
        return None if same.all() else int(np.argmin(same))


class Call:
    """A function of values that was asked for a decision, and where its arguments are.

    Attributes
    ----------
    function : callable
    tree : TreeDef
        Structure of the list of arguments and the dict of keyword arguments.
    places : list
        Their parts: a HostOperand, or a constant.
    number : int
        Which decision it is.
    """

    __slots__ = ("function", "number", "places", "tree")

    def __init__(
        self, function: Callable[..., Any], tree: trees.TreeDef, places: list[Any], number: int
    ) -> None:
        self.function = function
        self.tree = tree
        self.places = places
        self.number = number

    def anchors(self) -> list[int]:
        """Return cells of all instructions that the arguments come from."""
        found = [x for x in self.places if isinstance(x, HostOperand)]
        return [cell for place in found for cell in anchors(place)]

    def rename(self, to: np.ndarray[Any, Any]) -> None:
        """Follow the cells of a tape that was simplified."""
        self.places = [
            moved_operand(x, to) if isinstance(x, HostOperand) else x for x in self.places
        ]

    def moved(self, to: np.ndarray[Any, Any], before: int) -> Call:
        """Return a copy for another tape, where `before` decisions were taken before these."""
        new = copy.copy(self)
        new.rename(to)
        new.number += before
        return new

    def answer(self, v: Floats) -> Outcome:
        """Ask again, with other values."""
        leaves = [x.read(v) if isinstance(x, HostOperand) else x for x in self.places]
        args, kwargs = trees.unflatten(self.tree, leaves)
        with np.errstate(all="ignore"):
            return self.function(*args, **kwargs)


def deciding(x: Any) -> Decisions | None:
    """Return where a look at `x` has to be noted: None unless a program is being recorded."""
    tape = x.storage.tape if isinstance(x, TrackedArray) else x.tape
    if tape is None or tape.recording is None:
        return None
    decisions: Decisions | None = tape.recording.decisions
    return decisions


def same_outcome(one: Outcome, other: Outcome) -> bool:
    """Whether two answers to one question agree."""
    return _equal(one, other)


def answer_key(outcome: Outcome) -> Any:
    """Return a hashable form of a decision's outcome; all nans are one."""
    if isinstance(outcome, tuple):
        return tuple([answer_key(part) for part in outcome])
    array = np.asarray(outcome)
    if array.dtype.kind in "biu":
        array = array.astype(np.float64)
    return array.shape, tuple(["nan" if x != x else x for x in array.ravel().tolist()])


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    a, b = np.asarray(one), np.asarray(other)
    return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def _say(outcome: Outcome) -> str:
    if isinstance(outcome, Exception):
        return f"an error ({outcome})"
    value = np.asarray(outcome) if not isinstance(outcome, tuple) else None
    if value is None or value.size > 6:
        return "another selection" if value is None else f"an array of shape {value.shape}"
    return str(value.tolist())
