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

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from .kernels import reference
from .kernels.opcodes import HOST, LANES

if TYPE_CHECKING:
    from .rolled import ReadySweeps, Rolled
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
    """The six sweeps of one executor; they are the reference's until `load` replaces them."""

    def __init__(self, slice_: int) -> None:
        self.slice = slice_
        self.scalar_forward: Kernel = reference.scalar_forward
        self.scalar_reverse: Kernel = reference.scalar_reverse
        self.lanes_forward: Kernel = reference.lanes_forward
        self.lanes_reverse: Kernel = reference.lanes_reverse
        self.vector_forward: Kernel = reference.vector_forward
        self.vector_reverse: Kernel = reference.vector_reverse


_reference = Kernels(_REFERENCE_SLICE)
_compiled = Kernels(_COMPILED_SLICE)
FAMILIES = ("scalar", "lanes", "vector", "derive")
_loaded = dict.fromkeys(FAMILIES, False)
_work = dict.fromkeys(FAMILIES, 0)
_forced: list[str] = []
_load_lock = threading.Lock()


def kernels(family: str, work: int) -> Kernels:
    """Return the executor for the next slice of `work` more cells of a family's code.

    Cells of a sweep of many directions count once for each direction.
    """
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


def is_loaded(family: str) -> bool:
    """Whether the compiled kernels of a family are there already."""
    return _loaded[family]


def load(family: str) -> None:
    """Load the compiled kernels of one of the `FAMILIES`, compiling where needed."""
    if _loaded[family]:
        return
    with _load_lock:
        notice = threading.Timer(_NOTICE_AFTER, _say_compiling, (family,))
        notice.daemon = True
        notice.start()
        try:
            module = importlib.import_module(f".kernels.cpu.{family}", __package__)
            module.compile_all()
            for sweep in ("forward", "reverse"):
                if hasattr(module, sweep):  # what derives programs sweeps nothing
                    setattr(_compiled, f"{family}_{sweep}", getattr(module, sweep))
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
            ready = ready_sweeps(tape)
            if ready is not None and tape.done == 0:
                ready.forward()
                tape.done, tape.done_cell = tape.n, tape.flushed_cell
            else:
                _timed(tape, _forward, tape)


def ready_sweeps(tape: Tape) -> ReadySweeps | None:
    """Return the sweeps of a program that are ready to be made, if they are to be used."""
    if tape.replays is None or watching.sweeps is not None:
        return None
    return None if _forced and _forced[-1] == "reference" else tape.replays.ready


class _Watching(threading.local):
    """What this thread's sweeps report to: a `tapegrad.progress.Sweeps`, where it is wanted."""

    sweeps: Any = None


watching = _Watching()


def _timed(tape: Tape, sweep: Callable[..., None], *args: Any) -> None:
    """Run a sweep; that of a program counts towards the compilation of its loops."""
    with watching.sweeps or nullcontext():
        _counted(tape, sweep, *args)


def _counted(tape: Tape, sweep: Callable[..., None], *args: Any) -> None:
    if tape.replays is None:
        sweep(*args)
    else:
        start = time.perf_counter()
        sweep(*args)
        tape.replays.seconds += time.perf_counter() - start


def _loops(tape: Tape) -> Rolled | None:
    """Return the compiled loops of a tape, if there are any and they are to be used."""
    if tape.replays is None or (_forced and _forced[-1] == "reference"):
        return None
    return tape.replays.rolled


def _forward(tape: Tape) -> None:
    arena = tape.arena
    op, a, b, v = arena.op.array, arena.a.array, arena.b.array, arena.v.array
    k, d, x = tape.k.array(), tape.d.array(), tape.x.array()
    n, position, cell, lane = tape.n, tape.done, tape.done_cell, 0
    loops, sweeps = _loops(tape), watching.sweeps
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
        elif loops and (loop := loops.starting_at(position)):
            loop.forward(k, v)
            position, cell = loop.stop, cell + loop.size
        else:
            run = kernels("scalar", min(n - position, tape.flushed_cell - cell))
            stop = min(n, position + run.slice)
            stop = loops.next_start(position, stop) if loops else stop
            position, cell = run.scalar_forward(op, a, b, k, v, position, stop, cell)
        tape.done, tape.done_cell = position, cell
        if sweeps:
            sweeps.moved("forward", position, n)


def reverse(
    tape: Tape,
    g: Floats,
    top: int,
    strict: bool = False,
    bottom: int = 0,
    *,
    loops: bool = False,
) -> None:
    """Sweep backward from the cells below `top`, whose adjoints stand in `g`, to `bottom`.

    The adjoints of input cells remain in `g`; those of all other cells are used up, so that `g` is
    zero again but for the inputs.  With `loops` the sweep starts from outputs of a program, and may
    use its compiled loops.
    """
    compiled = _loops(tape) if loops and not strict else None
    _timed(tape, _reverse, tape, g, top, strict, bottom, compiled)


def _reverse(
    tape: Tape, g: Floats, top: int, strict: bool, bottom: int, loops: Rolled | None
) -> None:
    arena = tape.arena
    op, a, b, v = arena.op.array, arena.a.array, arena.b.array, arena.v.array
    k, d, x = tape.k.array(), tape.d.array(), tape.x.array()
    position, cell = first_block_above(tape, top)
    lane, first, sweeps = -1, position, watching.sweeps
    while position > bottom:
        kind = op[position - 1]
        if kind == LANES:
            run = kernels("lanes", cell)
            position, cell, lane = run.lanes_reverse(
                op, a, b, d, x, k, v, g, position, bottom, cell, lane, run.slice, strict
            )
        elif kind == HOST:
            position, cell = position - 1, cell - int(b[position - 1])
            tape.hosts[a[position]].reverse(v, g, cell, strict)
        elif loops and (loop := loops.stopping_at(position)) and loop.start >= bottom:
            loop.reverse(k, v, g)
            position, cell = loop.start, cell - loop.size
        else:
            run = kernels("scalar", min(position - bottom, cell))
            stop = max(bottom, position - run.slice)
            stop = loops.previous_stop(position, stop) if loops else stop
            position, cell = run.scalar_reverse(op, a, b, k, v, g, position, stop, cell, strict)
        if sweeps:
            sweeps.moved("backward", first - position, first - bottom)


def first_block_above(tape: Tape, top: int) -> tuple[int, int]:
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
