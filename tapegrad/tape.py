"""The tape: what is being recorded, one flat segment after another, one recorder a thread.

Recording appends three integers, an opcode and two operands, to a Python list; `Tape.flush` packs
the list into the columns of an arena a block at a time.  A scalar instruction owns the next cell,
an array instruction the next `n` cells, so that no instruction stores where its result goes.

A recorder starts a new tape after every backward sweep.  Older tapes stay alive exactly as long as
an array or a newer tape refers to them; a value of an older tape, like the value of a leaf, is
*imported* by an instruction of the current tape that links back to where it came from.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from array import array
from bisect import bisect_right
from operator import attrgetter, length_hint
from typing import TYPE_CHECKING, Any

import numpy as np

from . import execute
from .arena import Arena, CompactArena
from .errors import EnclosedError, ReleasedTapeError, ThreadError, at_caller, caller
from .kernels.opcodes import CONST, HOST, INPUT, LANES
from .pool import Pool
from .regions.plan import Plan
from .storage import Cells, Leaf, Storage, TrackedScalar

if TYPE_CHECKING:
    from .programs.rolled import Replays

BLOCK = 1 << 12  # instructions that wait in the Python list before they are packed
# A recorder starts a new tape beyond this many instructions or cells, so that what no live array
# can reach any more is reclaimed piece by piece; much earlier when somebody looks at a value, as in
# a loop that never calls backward. Cells of arrays cost nothing until they are computed, and few
# are.
SEGMENT = 1 << 24
SEGMENT_CELLS = 1 << 30
LOOK_CELLS = 1 << 20
_NEARLY_FULL = SEGMENT - 2 * BLOCK  # packed instructions: those that wait are no more than a block
SMALL_CELLS = 1 << 14  # closed tapes of up to this many cells move to arrays of just their size
LENT_SIZE = 256  # elements from which borrowing an import is worth the trouble
_LAST_CELL = (1 << 32) - 1  # operands are uint32

_serials = itertools.count()
_import_lock = threading.Lock()


class Import:
    """Cells that hold values from outside the tape, and where their adjoints go.

    Exactly one of `leaf` and `source` is set, or neither for a constant.
    """

    __slots__ = ("cell", "cells", "holder", "leaf", "size", "source", "values")

    def __init__(self, cell: int, size: int) -> None:
        self.cell = cell
        self.size = size
        self.leaf: Leaf | None = None
        self.source: Tape | None = None
        self.cells: int | Cells = 0  # first cell, or cells, in the source tape
        self.values: Any = None  # borrowed, and not yet copied into the cells
        self.holder: Any = None  # leaf scalar or storage that caches this import's place


_import_cell = attrgetter("cell")


class Tape:
    """A segment of recorded instructions, numbered from zero, and the values of its cells.

    Attributes
    ----------
    code : list of int
        Instructions not packed yet: opcode, a, b, opcode, a, b, ...
    cells : iterator of int
        Numbers of the cells still free in the current block; the recorder calls ``next`` on it.
        It is exhausted while the tape is not awake, so that nothing is appended by mistake.
    awake : bool
        Whether its thread records on this tape right now, rather than on one that it has put
        aside for (an inner derivative, ``no_grad``) or has turned to since.
    thread : RLock
        Held by the recording thread as long as it lives: ``thread._is_owned()`` is the quickest
        way to ask whether a tape is this thread's, three times as quick as a thread-local.
    constants : dict
        Index into the constant pool by value, zeros excepted (0.0 and -0.0 compare equal).
    n : int
        Instructions packed into the columns so far.
    done, done_cell : int
        Instructions evaluated by the forward sweep so far, and the cell that follows them.
    milestones : list of (cell, instruction)
        Starts of packed blocks, by which a reverse sweep finds where to begin.
    lent : list of Import
        Imports whose values are borrowed, and not copied into their cells yet.
    sparse : Plan or None
        By which sweep the values were computed, if it did not keep all of them.
    plans : dict
        Plans of this tape by what they were made for.
    detached : bool
        No adjoint leaves this tape (it records under ``no_grad``).
    recording : Recording or None
        The call (of ``tg.grad`` and its like) that this tape is recorded for.
    replays : Replays or None
        Set for the tape of a program, which is swept again and again.
    pinned : int
        How many derivatives are being recorded on this tape, which must not end meanwhile.
    """

    __slots__ = (
        "__weakref__",
        "_arena",
        "awake",
        "cells",
        "code",
        "constants",
        "d",
        "detached",
        "done",
        "done_cell",
        "flushed_cell",
        "hosts",
        "imports",
        "input_cells",
        "k",
        "known",
        "lent",
        "lock",
        "milestones",
        "n",
        "open",
        "owner",
        "pinned",
        "plans",
        "recording",
        "released",
        "replays",
        "serial",
        "sparse",
        "stop",
        "thread",
        "x",
    )

    def __init__(
        self, owner: Owner, detached: bool = False, recording: Recording | None = None
    ) -> None:
        self.owner = owner
        self.thread: Any = owner.lock
        self.detached = detached
        self.recording = recording
        if recording is not None:
            recording.tapes.append(self)
        self.serial = next(_serials)
        self.open = True
        self.pinned = 0
        self.released = False
        self.replays: Replays | None = None
        self.lock = threading.RLock()
        self.code: list[int] = []
        self.constants: dict[float, int] = {}
        self.k = Pool(np.float64)
        self.d = Pool(np.int64)
        self.x = Pool(np.uint32)
        self.hosts: list[Any] = []
        self.imports: list[Import] = []
        self.lent: list[Import] = []
        self.sparse: Plan | None = None
        self.plans: dict[Any, Plan] = {}
        self.known: dict[int, tuple[Any, int, int]] = {}
        self.milestones: list[tuple[int, int]] = []
        self._arena: Arena | CompactArena | None = None
        self.n = self.done = self.done_cell = self.flushed_cell = self.input_cells = 0
        self.awake = True
        self.stop = BLOCK
        self.cells = iter(range(BLOCK))

    # -- recording -----------------------------------------------------------------------------

    @property
    def next_cell(self) -> int:
        """The cell that the next instruction will own: how many cells there are."""
        return self.stop - length_hint(self.cells)

    @property
    def arena(self) -> Arena | CompactArena:
        """Columns of the tape, taken from the pool on first use."""
        if self._arena is None:
            if self.released:
                raise ReleasedTapeError(released_message())
            self._arena = Arena.take()
        return self._arena

    def push(self, op: int, a: int, b: int) -> int:
        """Append a scalar instruction and return the cell that it owns."""
        try:
            cell = next(self.cells)
        except StopIteration:
            self.open_block()
            cell = next(self.cells)
        self.code += (op, a, b)
        return cell

    def push_run(self, op: int, a: int, size: int) -> int:
        """Append an instruction that owns `size` cells and return the first of them."""
        if len(self.code) >= 3 * BLOCK:
            self.flush()
        cell = self.next_cell
        if cell + size > _LAST_CELL:
            raise MemoryError(
                f"an array operation of {size} elements does not fit into one recording of at "
                f"most 2**32 cells; work on smaller pieces{at_caller()}"
            )
        stop = cell + size + BLOCK
        cells = iter(range(cell + size, stop))
        # No call between these three lines: Ctrl-C cannot fall between them.
        self.code += (op, a, size)
        self.cells = cells
        self.stop = stop
        return cell

    def repair(self) -> None:
        """Drop the instruction that an exception (Ctrl-C, no memory) interrupted half-way."""
        code = self.code
        del code[len(code) - len(code) % 3 :]
        cell = self.flushed_cell
        for op, size in zip(code[0::3], code[2::3], strict=True):
            cell += size if op in (INPUT, LANES, HOST) else 1
        stop = cell + BLOCK
        cells = iter(range(cell, stop))
        self.cells, self.stop = cells, stop  # no call in between: Ctrl-C cannot part them

    def open_block(self) -> None:
        """Hand out more cells, packing the instructions that wait if they fill a block."""
        if len(self.code) >= 3 * BLOCK:
            self.flush()
        cell = self.next_cell
        stop = cell + BLOCK - len(self.code) // 3
        cells = iter(range(cell, stop))
        self.cells, self.stop, self.awake = cells, stop, True  # no call: Ctrl-C cannot part them

    def put_aside(self) -> None:
        """Hand out no more cells: values of this tape are imported by others from now on."""
        cell = self.next_cell
        none = iter(())
        self.cells, self.stop, self.awake = none, cell, False

    def flush(self) -> None:
        """Pack the instructions that wait in the list into the columns."""
        if self.released:
            raise ReleasedTapeError(released_message())
        code = self.code
        if code:
            cell = self.next_cell
            start, end = self.n, self.n + len(code) // 3
            packed = np.frombuffer(array("I", code), np.uint32)
            arena = self.arena
            arena.op.expect(end)[start:end] = packed[0::3]
            arena.a.expect(end)[start:end] = packed[1::3]
            arena.b.expect(end)[start:end] = packed[2::3]
            scalars = cell - self.flushed_cell == end - start
            (arena.v.expect if scalars else arena.v.ensure)(cell)
            self.milestones.append((self.flushed_cell, start))
            self.n, self.flushed_cell = end, cell
            del code[:]

    def push_block(
        self, op: Any, a: Any, b: Any, size: int, imports: list[Import], hosts: list[Any]
    ) -> None:
        """Append instructions that are packed already and own `size` cells, to a flushed tape.

        `imports` and `hosts` are what they refer to, numbered from those that the tape has.
        """
        start, cell = self.n, self.flushed_cell + size
        end = start + len(op)
        if cell > _LAST_CELL:
            raise MemoryError(f"one recording has at most 2**32 cells{at_caller()}")
        arena = self.arena
        arena.op.expect(end)[start:end] = op
        arena.a.expect(end)[start:end] = a
        arena.b.expect(end)[start:end] = b
        arena.v.ensure(cell)
        self.imports += imports
        self.hosts += hosts
        self.input_cells += sum([entry.size for entry in imports])
        self.milestones.append((self.flushed_cell, start))
        stop = cell + BLOCK
        cells = iter(range(cell, stop))
        self.n, self.flushed_cell, self.cells, self.stop = end, cell, cells, stop

    def constant(self, value: float) -> int:
        """Return the index of `value` in the constant pool, adding it when it is new."""
        if value:
            index = self.constants.get(value)
            if index is None:
                index = self.constants[value] = self.k.append(value)
            return index
        return self.k.append(value)

    def constant_cell(self, value: float) -> int:
        """Return a cell that holds `value`, for operands that must be cells."""
        return self.push(CONST, self.constant(value), 0)

    # -- values from outside ----------------------------------------------------------------------

    def push_input(self, values: Any, lend: bool = False) -> Import:
        """Append an input instruction whose cells hold `values`, an array of any shape.

        They are copied, unless the caller lends them: then nobody may change them while the tape
        is swept.
        """
        size = values.size
        cell = self.push_run(INPUT, len(self.imports), size)
        entry = Import(cell, size)
        if lend and size >= LENT_SIZE and values.dtype == np.float64 and values.flags.c_contiguous:
            entry.values = values.reshape(-1)
            self.lent.append(entry)
        else:
            self.arena.v.ensure(cell + size)[cell : cell + size] = values.ravel()
        self.imports.append(entry)
        self.input_cells += size
        return entry

    def captures(self, x: Any) -> None:
        """Note an array, or a leaf, that a program being recorded holds from outside."""
        recording = self.recording
        if recording is not None and recording.decisions is not None and np.ndim(x):
            recording.captured.append((x, *caller()))

    def import_scalar(self, x: TrackedScalar) -> int:
        """Return the cell of a tracked scalar in this tape, importing it on first use."""
        if x.tape is self:
            return x.cell
        known = self.known.get(id(x))
        if known is not None:
            return known[2]
        with _import_lock:
            source, cell = x.tape, x.cell if x.leaf is None else 0
        entry = self._import(x, x.leaf, source, cell, 1)
        with _import_lock:
            if self._may_rebind(x):
                x.tape, x.cell = self, entry.cell
                return entry.cell
        self.known[id(x)] = (x, 0, entry.cell)
        return entry.cell

    def import_storage(self, s: Storage) -> Storage:
        """Return `s`, or its equivalent, with cells of this tape, importing it on first use."""
        if s.tape is self:
            return s
        known = self.known.get(id(s))
        if known is not None and known[1] == s.version:
            return Storage(self, known[2], s.size)
        with _import_lock:
            source, cells = s.tape, s.base if s.index is None else s.index.copy()
        entry = self._import(s, s.leaf, source, cells, s.size)
        with _import_lock:
            if self._may_rebind(s):
                s.tape, s.base, s.index, s.peek = self, entry.cell, None, None
                return s
        self.known[id(s)] = (s, s.version, entry.cell)
        return Storage(self, entry.cell, s.size)

    def _import(
        self, holder: Any, leaf: Leaf | None, source: Tape | None, cells: Any, size: int
    ) -> Import:
        if leaf is not None:
            entry = self.push_input(leaf.value)
            if self.recording is not None and self.recording.decisions is not None:
                self.recording.captured.append((leaf, *caller()))
            if not self.detached:
                entry.leaf = leaf
        else:
            assert source is not None
            if self._is_program and source.recording in recorder.recordings[:-1]:
                raise EnclosedError(
                    "tg.record was called inside tg.grad or the like, and its function uses a "
                    "value of the derivative that encloses it: make that value an argument of the "
                    f"program{at_caller()}"
                )
            values = read_cells(source, cells, size)
            entry = self.push_input(values)
            if self._is_program and self.recording is not None:
                self.recording.captured.append((values, *caller()))
            if not self.detached and not source.detached:
                source.link(entry, cells)
        entry.holder = holder
        return entry

    def link(self, entry: Import, cells: Any) -> None:
        """Say that the import `entry` of another tape stands for `cells` of this one.

        Cells that this tape has imported itself are linked to where they come from, so that a value
        used again and again keeps its own tape alive, and none of those in between.
        """
        if isinstance(cells, int):
            at = bisect_right(self.imports, cells, key=_import_cell) - 1
            if at >= 0:
                origin = self.imports[at]
                offset = cells - origin.cell
                if offset + entry.size <= origin.size and origin.source is not None:
                    entry.source = origin.source
                    entry.cells = (
                        origin.cells + offset
                        if isinstance(origin.cells, int)
                        else origin.cells[offset : offset + entry.size]
                    )
                    return
                if entry.size == origin.size and offset == 0:
                    entry.leaf = origin.leaf  # or neither, for a constant
                    return
        entry.source, entry.cells = self, cells

    def _may_rebind(self, holder: Any) -> bool:
        """Whether `holder` may move here for good: nobody still records where it was."""
        if self.detached or (self.recording is not None and holder.leaf is None):
            return False
        return holder.tape is None or not holder.tape.open

    def outgrows(self, instructions: int, cells: int) -> bool:
        """Whether the tape is larger than that, and imports are a small part of it.

        A pinned tape and the recording of a program never are: they stay one tape.
        """
        if self.next_cell <= cells and self.n + len(self.code) // 3 <= instructions:
            return False
        return not (self.pinned or self._is_program) and self.next_cell > 4 * self.input_cells

    @property
    def _is_program(self) -> bool:
        return self.recording is not None and self.recording.decisions is not None

    def close(self) -> None:
        """End the recording: leaves forget the tape, and a small one moves to a small arena."""
        self.open = False
        self.put_aside()
        self.uncache()
        if self.released:
            return
        if self.code:
            self.flush()
        arena = self._arena
        if isinstance(arena, Arena) and self.flushed_cell <= SMALL_CELLS:
            self._arena = arena.compact(self.n, self.flushed_cell)
            arena.give_back(self.n, self.flushed_cell)

    def uncache(self) -> None:
        """Let leaves forget their place in this tape, so that they do not keep it alive."""
        for entry in self.imports:
            if entry.leaf is not None and entry.holder is not None:
                if entry.holder.tape is self and entry.holder.leaf is entry.leaf:
                    entry.holder.tape = None
                entry.holder = None
        self.known.clear()

    # -- the end ----------------------------------------------------------------------------------

    def release(self) -> None:
        """Give the memory back; values of this tape raise `ReleasedTapeError` from now on."""
        self.released, self.open = True, False
        self.put_aside()
        self.uncache()
        self.imports.clear()
        self.lent.clear()
        self.hosts.clear()
        self._give_back()

    def hand_over(self) -> Tape:
        """Return a tape with all that this closed one has; its values raise from now on.

        What a function leaked while it was recorded knows cells by their old numbers, and would
        be wrong once a program's instructions have been moved.
        """
        heir = Tape.__new__(Tape)
        for name in Tape.__slots__:
            if name != "__weakref__":
                setattr(heir, name, getattr(self, name))
        if self.recording is not None:
            tapes = self.recording.tapes
            tapes[tapes.index(self)] = heir
        self.imports, self.lent, self.hosts, self._arena = [], [], [], None
        self.released = True
        return heir

    def __del__(self) -> None:
        # While the process ends, what giving back needs may be gone already.
        if getattr(self, "_arena", None) is not None and length_hint is not None:
            self._give_back()

    def _give_back(self) -> None:
        arena, self._arena = self._arena, None
        if arena is not None:
            arena.give_back(self.n, self.flushed_cell)


def released_message() -> str:
    """Say what went wrong with a value of a released recording, and where."""
    return (
        "this value belongs to a recording that has been released: a value from inside a "
        "function given to tg.grad, tg.vjp, tg.jacobian or tg.record was used after the call; "
        f"return it (with has_aux=True where there is that), or keep its .value{at_caller()}"
    )


def read_cells(tape: Tape, cells: Any, size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the values of a run (first cell) or of an array of cells, copied."""
    _look(tape, cells, size)
    v = tape.arena.v.array
    if isinstance(cells, int):
        return v[cells : cells + size].copy()
    values: np.ndarray[Any, np.dtype[np.float64]] = v[cells]
    return values


def read_cell(tape: Any, cell: int) -> float:
    """Return the value of one cell."""
    _look(tape, cell, 1)
    value: float = tape.arena.v.array.item(cell)
    return value


def _look(tape: Tape, cells: Any, size: int) -> None:
    """Bring the values of cells of `tape` up to date."""
    check_usable(tape)
    if not execute.has_values(tape, cells, size):
        execute.evaluate(tape)
    if tape is recorder.tape and tape.outgrows(LOOK_CELLS, LOOK_CELLS):
        recorder.turn_over()


def check_usable(tape: Tape) -> None:
    """Raise unless this thread may read and sweep `tape`."""
    if tape.released:
        raise ReleasedTapeError(released_message())
    if tape.open and tape.owner is not recorder.owner and tape.owner.alive:
        raise ThreadError(
            "this value belongs to a recording that another thread is still making; pass its "
            f".value, or a leaf, between threads{at_caller()}"
        )


class Recording:
    """One recorded call of a function: the tapes that `tg.grad` and its like use up for it."""

    __slots__ = ("captured", "decisions", "tapes")

    def __init__(self, decisions: Any = None) -> None:
        self.tapes: list[Tape] = []
        self.decisions = decisions  # `tapegrad.decisions.Decisions`, for a program
        self.captured: list[Any] = []  # arrays that a program holds, and where they came from

    def release(self) -> None:
        """Free the tapes; tracked values that outlive the call raise when they are used."""
        for tape in self.tapes:
            tape.release()
        self.tapes.clear()


class _Thread:
    """Stands for a thread: its recorder keeps it, so its tapes notice when it has ended."""

    __slots__ = ("__weakref__",)


class Owner:
    """What tapes know of the thread that records them.

    Attributes
    ----------
    lock : RLock
        Held by that thread for ever.
    """

    __slots__ = ("_thread", "lock")

    def __init__(self, thread: _Thread) -> None:
        self._thread = weakref.ref(thread)
        self.lock = threading.RLock()
        self.lock.acquire()

    @property
    def alive(self) -> bool:
        """Whether the thread has not ended."""
        return self._thread() is not None


class Recorder(threading.local):
    """Where this thread records.

    Attributes
    ----------
    recordings : list of Recording
        Calls that are being recorded in this thread, outermost first.
    tape : Tape
        What operations append to.
    """

    def __init__(self) -> None:
        self._thread = _Thread()
        self.owner = Owner(self._thread)
        self.recordings: list[Recording] = []
        self.tape = Tape(self.owner)

    def current(self) -> Tape:
        """Return the tape to record on, a new one if the last has grown to its limit."""
        tape = self.tape
        if tape.n < _NEARLY_FULL and tape.stop <= SEGMENT_CELLS:
            return tape  # for sure, and the quickest way to know
        if tape.outgrows(SEGMENT, SEGMENT_CELLS):
            self.turn_over()
        return self.tape

    def block_full(self) -> None:
        """Go on with another block; called when a value's tape has no more cells to hand out."""
        if not length_hint(self.tape.cells):
            self.tape.open_block()
        self.current()

    def turn_over(self) -> None:
        """Close the current tape, unless it is pinned, and start a new one of the same kind."""
        old = self.tape
        if old.pinned:
            return
        self.tape = type(old)(self.owner, old.detached, old.recording)
        old.close()

    def enter(
        self,
        *,
        detached: bool = False,
        recording: Recording | None = None,
        kind: type[Tape] = Tape,
    ) -> Tape:
        """Put the current tape aside and record on a new one; returns the old, for `leave`."""
        outer = self.tape
        outer.put_aside()
        self.tape = kind(self.owner, detached, recording)
        if recording is not None:
            self.recordings.append(recording)
        return outer

    def leave(self, outer: Tape) -> None:
        """Close the current tape and go on recording on `outer`."""
        inner = self.tape
        if inner.recording is not None and inner.recording is not outer.recording:
            self.recordings.pop()
        self.tape = outer
        inner.close()
        outer.open_block()


recorder = Recorder()
