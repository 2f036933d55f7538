"""Finishing a program: dead, repeated and constant instructions are taken off its tape."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..arena import CompactArena
from ..host import HostCall, HostOperand
from ..kernels.opcodes import ADD, HOST, INPUT, KINDS, LANES, MULTIPLY
from ..pool import Pool
from ..storage import Cells
from ..tape import Tape
from ..window import Window

COMPILED_FROM = 50_000
"""Instructions from which on such code is compiled; below, Python takes less than loading it."""

LONG_ARRAYS, MANY_CELLS = 64, 4_000_000
"""Cells an instruction, on average, and cells in all, beyond which a tape is left as it is.

The passes look at each cell, and could take off a few instructions of many lanes: simplifying a
Black-Scholes program of 1e6 options took 15 times as long as recording it.
"""

_NUMBA_KERNELS = "tapegrad.kernels.cpu.scalar"  # loaded: compiled passes cost little more


def simplify(
    tape: Tape, inputs: Iterable[Any], needed: Cells
) -> np.ndarray[Any, np.dtype[np.int64]] | None:
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
    ndarray or None
        By old cell, the new one; None where nothing was changed, because the tape holds host
        instructions that the passes know nothing of, or long arrays.
    """
    if tape.n == 0 or tape.flushed_cell > LONG_ARRAYS * tape.n + MANY_CELLS:
        return None
    if not all(type(call) is HostCall for call in tape.hosts):
        return None
    n, cells = tape.n, tape.flushed_cell
    arena = tape.arena
    op = arena.op.array[:n].copy()
    a = arena.a.array[:n].astype(np.int64)
    b = arena.b.array[:n].astype(np.int64)
    v = arena.v.array[:cells]
    d, x = tape.d.array().copy(), tape.x.array().copy()
    run = python_or_compiled("simplify", n)
    kinds = np.array(KINDS + (0,) * (256 - len(KINDS)), np.int64)
    wide = (op == INPUT) | (op == LANES) | (op == HOST)
    sizes = np.where(wide, b, 1)
    first = np.concatenate(([0], np.cumsum(sizes)[:-1]))

    # Repeated and constant instructions.
    leaves = {id(leaf) for leaf in inputs}
    constant_input = np.array([id(e.leaf) not in leaves for e in tape.imports] + [True], np.uint8)
    table = np.zeros(1 << (n + n // 2).bit_length(), np.int32 if n < 1 << 30 else np.int64)
    to = np.arange(cells, dtype=np.int64)
    folded = np.empty(n)
    n_k = len(tape.k)
    commutes = np.zeros(256, np.uint8)
    commutes[[ADD, MULTIPLY]] = 1
    count = run.canonicalise(
        op,
        a,
        b,
        first,
        kinds,
        commutes,
        v,
        constant_input,
        table,
        to,
        np.zeros(cells, np.uint8),
        folded,
        n_k,
    )
    run.remap(op, a, b, kinds, d, to)
    x = to[x]
    calls = [[moved_operand(place, to) for place in call.operands] for call in tape.hosts]

    # Dead ones.
    owner = np.repeat(np.arange(n), sizes)
    live = np.zeros(n, np.uint8)
    live[op == INPUT] = 1
    live[owner[to[needed]]] = 1
    reads = [[cell for place in places for cell in anchors(place)] for places in calls]
    host_start = np.concatenate(([0], np.cumsum([len(part) for part in reads]))).astype(np.int64)
    host_cells = np.array([cell for part in reads for cell in part], np.int64)
    run.mark_live(op, a, b, kinds, owner, d, x, host_start, host_cells, live)

    # What remains moves together.
    keep = live.astype(bool)
    moved = np.zeros(cells, np.int64)
    run.move_together(first, sizes, live, moved)
    op, a, b = op[keep], a[keep], b[keep]
    run.remap(op, a, b, kinds, d, moved)
    x = moved[x]
    for call, places in zip(tape.hosts, calls, strict=True):
        call.operands = [moved_operand(place, moved) for place in places]
    for entry in tape.imports:
        entry.cell = int(moved[entry.cell]) if entry.size else 0
    values = v[keep[owner]]
    _install(tape, op, a, b, values, d, x, folded[:count])
    renamed: np.ndarray[Any, Any] = moved[to]
    return renamed


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
    """Return a kernel module that is written as plain Python, compiled where that pays."""
    if work < COMPILED_FROM and _NUMBA_KERNELS not in sys.modules:
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


def _install(
    tape: Tape,
    op: Any,
    a: Any,
    b: Any,
    values: Any,
    d: Any,
    x: Any,
    folded: Any,
) -> None:
    """Put the new columns, values and pools in the place of the old ones."""
    old = tape.arena
    used, cells = tape.n, tape.flushed_cell
    tape._arena = CompactArena(op, a, b, values)
    old.give_back(used, cells)
    k = tape.k.array()
    tape.k = Pool(np.float64)
    tape.k.extend(np.concatenate((k, folded)))
    tape.d, tape.x = Pool(np.int64), Pool(np.uint32)
    tape.d.extend(d)
    tape.x.extend(x.astype(np.uint32))
    tape.n = tape.done = len(op)
    tape.plans.clear()
    tape.flushed_cell = tape.done_cell = len(values)
    tape.milestones = []
