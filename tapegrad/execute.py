"""Executors: sweep a tape forward for values and backward for adjoints.

Two sets of kernels with the same signatures do the work: the pure-Python reference interpreter,
which is there at once, and the compiled ones of `tapegrad.kernels.cpu`, which take a while to load
(0.7 s from Numba's cache, seconds to compile).  Small work is answered by the reference; once the
work done so far would have paid for the loading, the compiled kernels take over, if need be in the
middle of a sweep: both read and write the same arenas.

A sweep returns to Python every few million instructions, which is where Ctrl-C is noticed.  It is
also resumable: what is evaluated stays evaluated.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .kernels import reference
from .kernels.opcodes import HOST, LANES

if TYPE_CHECKING:
    from .storage import Floats
    from .tape import Tape

# Cells that the reference interpreter sweeps (forward or backward) before compiled kernels are
# loaded: about 1 us each, against 0.7 s for importing numba and loading its cache.
REFERENCE_WORK = 600_000
_REFERENCE_SLICE = 20_000  # cells between two looks at Ctrl-C, which Python code sees by itself
_COMPILED_SLICE = 2_000_000  # at most 40 ns each (random operands): 80 ms between two looks
_NOTICE_AFTER = 1.0  # seconds of loading after which stderr says why it takes long

Kernel = Callable[..., Any]


class Kernels:
    """The four sweeps of one executor."""

    def __init__(
        self, scalar: tuple[Kernel, Kernel], lanes: tuple[Kernel, Kernel], slice_: int
    ) -> None:
        self.scalar_forward, self.scalar_reverse = scalar
        self.lanes_forward, self.lanes_reverse = lanes
        self.slice = slice_


_reference = Kernels(
    (reference.scalar_forward, reference.scalar_reverse),
    (reference.lanes_forward, reference.lanes_reverse),
    _REFERENCE_SLICE,
)
_compiled = Kernels(
    (reference.scalar_forward, reference.scalar_reverse),
    (reference.lanes_forward, reference.lanes_reverse),
    _COMPILED_SLICE,
)
FAMILIES = ("scalar", "lanes")
_loaded = dict.fromkeys(FAMILIES, False)
_work = dict.fromkeys(FAMILIES, 0)
_forced: list[str] = []
_load_lock = threading.Lock()


def kernels(family: str, work: int) -> Kernels:
    """Return the executor for the next slice of `work` more cells of scalar or array code."""
    if _forced:
        if _forced[-1] == "reference":
            return _reference
        load(family)
    if _loaded[family]:
        return _compiled
    if _work[family] + work > REFERENCE_WORK:
        load(family)
        return _compiled
    _work[family] += min(work, _REFERENCE_SLICE)
    return _reference


def load(family: str) -> None:
    """Load the compiled kernels of a family ("scalar" or "lanes"), compiling where needed."""
    if _loaded[family]:
        return
    with _load_lock:
        notice = threading.Timer(_NOTICE_AFTER, _say_compiling, (family,))
        notice.daemon = True
        notice.start()
        try:
            if family == "scalar":
                from .kernels.cpu import scalar

                scalar.compile_all()
                _compiled.scalar_forward, _compiled.scalar_reverse = scalar.forward, scalar.reverse
            else:
                from .kernels.cpu import lanes

                lanes.compile_all()
                _compiled.lanes_forward, _compiled.lanes_reverse = lanes.forward, lanes.reverse
            _loaded[family] = True
        finally:
            notice.cancel()


def _say_compiling(family: str) -> None:
    print(
        f"tapegrad: compiling the {family} kernels, once for this machine "
        "(python -m tapegrad warmup does it ahead of time)",
        file=sys.stderr,
    )


@contextmanager
def executor(name: str) -> Iterator[None]:
    """Sweep with the "reference" or the "compiled" executor inside this context.

    Examples
    --------
    >>> import tapegrad as tg
    >>> with tg.executor("reference"):
    ...     tg.grad(lambda x: x * x)(3.0)
    6.0
    """
    if name not in ("reference", "compiled"):
        raise ValueError(f"executor must be 'reference' or 'compiled', not {name!r}")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def evaluate(tape: Tape) -> None:
    """Compute the values of all instructions recorded so far."""
    with tape.lock:
        if tape.code:
            tape.flush()
        if tape.done < tape.n:
            _forward(tape)


def _forward(tape: Tape) -> None:
    arena = tape.arena
    op, a, b, v = arena.op.array, arena.a.array, arena.b.array, arena.v.array
    k, d, x = tape.k.array(), tape.d.array(), tape.x.array()
    n, position, cell, lane = tape.n, tape.done, tape.done_cell, 0
    while position < n:
        kind = op[position]
        if kind == LANES:
            run = kernels("lanes", tape.flushed_cell - cell)
            position, cell, lane = run.lanes_forward(
                op, a, b, d, x, k, v, position, n, cell, lane, run.slice
            )
            if lane:
                continue
        elif kind == HOST:
            size = int(b[position])
            tape.hosts[a[position]].forward(v, v[cell : cell + size])
            position, cell = position + 1, cell + size
        else:
            run = kernels("scalar", min(n - position, tape.flushed_cell - cell))
            stop = min(n, position + run.slice)
            position, cell = run.scalar_forward(op, a, b, k, v, position, stop, cell)
        tape.done, tape.done_cell = position, cell


def reverse(tape: Tape, g: Floats, top: int, strict: bool = False) -> None:
    """Sweep backward from the cells below `top`, whose adjoints stand in `g`.

    The adjoints of input cells remain in `g`; those of all other cells are used up, so that `g` is
    zero again but for the inputs.
    """
    arena = tape.arena
    op, a, b, v = arena.op.array, arena.a.array, arena.b.array, arena.v.array
    k, d, x = tape.k.array(), tape.d.array(), tape.x.array()
    position, cell = _first_block_above(tape, top)
    lane = -1
    while position > 0:
        kind = op[position - 1]
        if kind == LANES:
            run = kernels("lanes", cell)
            position, cell, lane = run.lanes_reverse(
                op, a, b, d, x, k, v, g, position, 0, cell, lane, run.slice, strict
            )
        elif kind == HOST:
            position, cell = position - 1, cell - int(b[position - 1])
            tape.hosts[a[position]].reverse(v, g, cell, strict)
        else:
            run = kernels("scalar", min(position, cell))
            stop = max(0, position - run.slice)
            position, cell = run.scalar_reverse(op, a, b, k, v, g, position, stop, cell, strict)


def _first_block_above(tape: Tape, top: int) -> tuple[int, int]:
    """Return an instruction, and its first cell, such that no cell below `top` comes later."""
    marks = tape.milestones
    low, high = 0, len(marks)
    while low < high:
        middle = (low + high) // 2
        if marks[middle][0] >= top:
            high = middle
        else:
            low = middle + 1
    if low == len(marks):
        return tape.n, tape.flushed_cell
    return marks[low][1], marks[low][0]
