"""Which programs compute in single precision throughout, so that their lanes may."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels.opcodes import (
    BINARY,
    BINARY_KX,
    BINARY_XK,
    CARRY,
    CONST,
    HOST,
    INPUT,
    KINDS,
    LANES,
    RESULT,
    ROW_OF,
    TERNARY,
)
from ..recording import CONSTANT, FLOAT32, INDEXED, PASSIVE_CELLS
from ..transforms.adjoint import descriptor
from ..window import Window

if TYPE_CHECKING:
    from ..programs.program import Program

_ROUNDED = frozenset(["float32", *(row for row, kind in RESULT.items() if kind == "bool")])


def is_single(program: Program) -> bool:
    """Whether a program rounds every result to float32 before it is used.

    Then its inputs and outputs are float32, too. Truth values count as rounded.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> x = np.ones(3, np.float32)
    >>> is_single(tg.record(lambda x: np.sum(np.exp(x) * 0.1), x))
    True
    >>> is_single(tg.record(lambda x: np.sum(np.exp(x) * np.float64(0.1)), x))
    False
    """
    if any(place is not None and place.dtype != FLOAT32 for place in program.inputs):
        return False
    if any(out.cells is not None and out.dtype != FLOAT32 for out in program.outputs):
        return False
    if not any(place is not None for place in program.inputs):
        return False
    with program.lock:
        rounded = _Rounded(program)
        looks, _ = program.decisions.looks()
        outputs = [out.flat_cells() for out in program.outputs if out.cells is not None]
        return rounded.throughout and all(rounded.known[c].all() for c in (looks, *outputs))


class _Rounded:
    """Which cells of a program's tape hold numbers of float32.

    Attributes
    ----------
    known : ndarray of bool
    throughout : bool
        Whether nothing but the rounding itself uses others.
    """

    def __init__(self, program: Program) -> None:
        tape = program.tape
        self._tape = tape
        self.known = np.zeros(tape.flushed_cell, np.bool_)
        self._k = _exact(tape.k.array())
        self.throughout = True
        n, cell, carried = tape.n, 0, 0
        columns = [c.array[:n].tolist() for c in (tape.arena.op, tape.arena.a, tape.arena.b)]
        for op, a, b in zip(*columns, strict=True):
            size = b if op in (INPUT, LANES, HOST) else 1
            used: Any = True
            row = ROW_OF[op]
            if op == INPUT:
                row = "float32"
            elif op == CONST:
                row = "float32" if self._k[a] else row
            elif op == CARRY:
                carried = a
            elif op == LANES:
                row, used = self._lanes(a)
            elif op == HOST:
                used = all(self._is_rounded(x) for x in tape.hosts[a].operands)
            else:
                used = self.known[a]
                if KINDS[op] in (BINARY, TERNARY):
                    used = used and self.known[b]
                elif KINDS[op] in (BINARY_XK, BINARY_KX):
                    used = used and self._k[b]
                if KINDS[op] == TERNARY:
                    used = used and self.known[carried]
            if row in _ROUNDED:
                self.known[cell : cell + size] = True
            if not used and row != "float32":
                self.throughout = False
                return
            cell += size

    def _lanes(self, at: int) -> tuple[str, bool]:
        """Return the row of an array instruction, and whether its operands are rounded."""
        row, shape, operands = descriptor(self._tape, at)
        used = True
        for kind, offset, strides in operands:
            window = Window(offset, shape, strides)
            if kind == CONSTANT:
                used = used and bool(window.view(self._k).all())
            elif kind == PASSIVE_CELLS:
                used = used and bool(_exact(window.view(self._tape.arena.v.array)).all())
            else:
                cells = window.cells()
                cells = self._tape.x.array()[cells] if kind == INDEXED else cells
                used = used and bool(self.known[cells].all())
        return row, used

    def _is_rounded(self, operand: Any) -> bool:
        """Whether the operand of a structural instruction is."""
        if operand.window is not None:
            return bool(self.known[operand.window.cells()].all())
        if operand.cells is not None:
            return bool(self.known[operand.cells].all())
        return bool(_exact(operand.constant).all())


def _exact(values: Any) -> Any:
    with np.errstate(over="ignore"):
        return (values == np.float32(values)) | np.isnan(values)
