"""Finishing a program: dead, repeated and constant instructions are taken off its tape."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..arena import CompactArena
from ..host import HostCall, HostOperand
from ..kernels.opcodes import ADD, KINDS, MULTIPLY
from ..storage import Cells, Floats
from ..tape import Tape
from ..window import Window

COMPILED_FROM = 50_000
"""Instructions, of one program or of several, from which on such code is compiled; before, Python
takes less than loading it."""

LONG_ARRAYS, MANY_CELLS = 64, 4_000_000
"""Cells an instruction, on average, and cells in all, beyond which a tape is left as it is.

The passes look at each cell, and could take off a few instructions of many lanes: simplifying a
Black-Scholes program of 1e6 options took 15 times as long as recording it.
"""

_KINDS = np.array(KINDS + (0,) * (256 - len(KINDS)), np.uint8)
_COMMUTES = np.zeros(256, np.uint8)
_COMMUTES[[ADD, MULTIPLY]] = 1

_COMPILER = "numba"  # where it is there already, compiled passes cost little more
_work = [0]  # instructions that Python's passes have gone over


def simplify(tape: Tape, inputs: Iterable[Any], needed: Cells) -> Cells | None:
    """Simplify a closed, evaluated tape in place.

    Parameters
    ----------
    tape : Tape
    inputs : iterable of Leaf
        The leaves that are inputs; the values of all other imports are part of the program.
    needed : ndarray of uint32
        Cells that must remain: of outputs and decisions.

    Returns
    -------
    ndarray of uint32, or None
        By old cell, the new one; None where nothing was changed, because the tape holds host
        instructions that the passes know nothing of, or long arrays.
    """
    if tape.n == 0 or tape.flushed_cell > LONG_ARRAYS * tape.n + MANY_CELLS:
        return None
    if not all(type(call) is HostCall for call in tape.hosts):
        return None
    n, arena = tape.n, tape.arena
    op, a, b = (column.array[:n] for column in (arena.op, arena.a, arena.b))
    v = arena.v.array[: tape.flushed_cell]
    run = python_or_compiled("simplify", n)
    to = _name_values(run, tape, op, a, b, v, {id(leaf) for leaf in inputs})

    # Where structural operations read is kept in Python.
    reads = [[cell for x in call.operands for cell in anchors(x)] for call in tape.hosts]
    host_start = np.concatenate(([0], np.cumsum([len(part) for part in reads]))).astype(np.int64)
    host_cells = np.array([cell for part in reads for cell in part], np.int64)
    d, x = tape.d.array(), tape.x.array()
    live = np.zeros(len(v), np.uint8)
    live[to[needed]] = 1
    sizes = run.mark_live(op, a, b, _KINDS, d, x, to, host_start, host_cells, live)

    finished = CompactArena.of_size(*sizes)
    columns = [c.array for c in (finished.op, finished.a, finished.b, finished.v)]
    run.move_together(op, a, b, v, _KINDS, live, d, to, *columns)
    x[:] = to[x]
    for call in tape.hosts:
        call.operands = [moved_operand(place, to) for place in call.operands]
    for entry in tape.imports:
        entry.cell = int(to[entry.cell]) if entry.size else 0
    arena.give_back(n, len(v))
    tape._arena = finished
    tape.n, tape.flushed_cell = tape.done, tape.done_cell = sizes
    tape.plans.clear()
    tape.milestones = []
    return to


def _name_values(
    run: Any, tape: Tape, op: Any, a: Any, b: Any, v: Floats, inputs: set[int]
) -> Cells:
    """Fold constant instructions of a tape, and return by cell the first one that has its value."""
    n, cells = len(op), len(v)
    constant = np.zeros(cells, np.uint8)
    for entry in tape.imports:
        if id(entry.leaf) not in inputs:
            constant[entry.cell : entry.cell + entry.size] = 1
    slots = 1 << (2 * min(cells, 2 * n)).bit_length()  # two a cell, but not for long arrays
    table = np.zeros(slots, np.int32 if n < 1 << 30 else np.int64)
    first, to = np.empty(n, np.uint32), np.arange(cells, dtype=np.uint32)
    folded, known = np.empty(n), len(tape.k)
    count = run.canonicalise(
        *(op, a, b, _KINDS, _COMMUTES, v, table, first, to, constant, folded, known)
    )
    tape.k.extend(folded[:count])
    return to


class _Python:
    """Functions of a kernel module as plain Python, on memoryviews: quicker than on ndarrays."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)

        def run(*args: Any) -> Any:
            return function(*[x.data if isinstance(x, np.ndarray) else x for x in args])

        return run


def python_or_compiled(name: str, work: int) -> Any:
    """Return a kernel module that is written as plain Python, compiled where that pays.

    That is where all the work so far has taken as long as loading the compiler, or this is there.
    """
    _work[0] += work
    if _work[0] < COMPILED_FROM and _COMPILER not in sys.modules:
        return _Python(importlib.import_module(f"..kernels.{name}", __package__))
    return importlib.import_module(f"..kernels.cpu.{name}", __package__)


def moved_operand(place: HostOperand, to: np.ndarray[Any, Any]) -> HostOperand:
    """Return an operand of a structural operation with its cells renamed."""
    copy = HostOperand.__new__(HostOperand)
    copy.constant, copy.cells, copy.window = place.constant, place.cells, place.window
    if place.cells is not None:
        copy.cells = to[place.cells]
    elif place.window is not None and place.window.size:
        w = place.window
        copy.window = Window(int(to[w.offset]), w.shape, w.strides)
    return copy


def anchors(place: HostOperand) -> list[int]:
    """Return cells of all instructions that an operand reads."""
    if place.cells is not None:
        cells: list[int] = np.ravel(place.cells).tolist()
        return cells
    if place.window is not None and place.window.size:
        return [place.window.offset]
    return []
