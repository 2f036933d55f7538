"""Executors: sweep a tape forward for values and backward for adjoints.

Two sets of kernels with the same signatures do the work: the pure-Python reference interpreter,
which is there at once, and the compiled ones of `tapegrad.kernels.cpu`, which take a while to load
(0.7 s from Numba's cache, seconds to compile; 10 ms as machine code).  Small work is answered
by the reference; once the work done so far would have paid for the loading, the compiled kernels
take over, if need be in the middle of a sweep: both read and write the same arenas.

Array instructions of a tape of some size run in regions (`tapegrad.regions.plan`), many at a time:
their values are stored only where something needs them, and `evaluate` computes them again where
somebody looks.  Small tapes, whose plan would cost more than it saves, run them one by one.

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

import numpy as np

from .kernels import reference
from .kernels.frames import with_room
from .kernels.opcodes import HOST, LANES
from .regions import results
from .regions.lowering import STREAM_BYTES
from .regions.plan import HOST_CALL, SCALARS, Plan, Step, plan_of
from .regions.threads import run_addresses, specialise
from .storage import address, stretch

if TYPE_CHECKING:
    from .programs.ready import Ready
    from .programs.rolled import Rolled
    from .storage import Floats
    from .tape import Import, Tape

# Cells that the reference interpreter sweeps (forward or backward) before compiled kernels are
# loaded: about 1 us each, against 0.7 s for importing numba and loading its cache. Machine code
# that lies ready on disk is loaded in 10 ms.
REFERENCE_WORK = 600_000
_WORK_BEFORE_STORED = 10_000
_REFERENCE_SLICE = 20_000  # cells between two looks at Ctrl-C, which Python code sees by itself
_COMPILED_SLICE = 2_000_000  # at most 40 ns each (random operands): 80 ms between two looks
REGION_CELLS = 1 << 12  # a tape of fewer cells is swept before a plan of it were made
_NOTICE_AFTER = 1.0  # seconds of loading after which stderr says why it takes long
_NOTICE_AFTER_NATIVE = 0.3  # machine code takes so long only where it is compiled

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
_NATIVE = "scalar", "lanes", "regions", "regions32", "planning", "replay"  # which `native` loads
_COLUMNS = {"scalar": 5, "lanes": 7}
"""By family, how many arrays sweeps forward are called with; those back with one more."""
FAMILIES = ("scalar", "lanes", "regions", "regions32", "planning", "vector", "derive", "replay")
_loaded = dict.fromkeys(FAMILIES, False)
_work = dict.fromkeys(FAMILIES, 0)
_stored: dict[str, bool] = {}
_forced: list[str] = []
overriding: list[Any] = []
"""Contexts in which small programs are swept as others are: the reference executor, progress."""

_load_lock = threading.Lock()


def kernels(family: str, work: int) -> Kernels:
    """Return the executor for the next slice of `work` more cells of a family's code.

    Cells of a sweep of many directions count once for each direction.
    """
    if compiles(family, work, _REFERENCE_SLICE):
        return _compiled
    return _reference


def compiles(family: str, work: int, slice_: int | None = None) -> bool:
    """Whether the next `work` cells are for compiled kernels, which are then loaded.

    If not, the next question comes after all of them, or after a slice.
    """
    if _forced:
        if _forced[-1] == "reference":
            return False
        load(family)
    if _loaded[family]:
        return True
    before = _work[family]
    if before + work > REFERENCE_WORK or (
        before + work > _WORK_BEFORE_STORED and _is_stored(family)
    ):
        load(family)
        return True
    _work[family] += work if slice_ is None else min(work, slice_)
    return False


def _is_stored(family: str) -> bool:
    """Whether a family's machine code lies ready on disk; looked for once."""
    if family not in _stored:
        from .kernels import native

        _stored[family] = family in _NATIVE and native.stored(family) is not None
    return _stored[family]


def is_loaded(family: str) -> bool:
    """Whether the compiled kernels of a family are there already."""
    return _loaded[family]


def load(family: str) -> None:
    """Load the compiled kernels of one of the `FAMILIES`, compiling where needed."""
    if _loaded[family]:
        return
    with _load_lock:
        after = _NOTICE_AFTER_NATIVE if family in _NATIVE else _NOTICE_AFTER
        notice = threading.Timer(after, _say_compiling, (family,))
        notice.daemon = True
        notice.start()
        try:
            if family in _NATIVE:
                from .kernels import native

                found = native.load(family)
                for sweep, more in (("forward", 0), ("reverse", 1)):
                    if family in _COLUMNS:
                        run = at_addresses(found[sweep], _COLUMNS[family] + more)
                        setattr(_compiled, f"{family}_{sweep}", run)
                _loaded[family] = True
                return
            module = importlib.import_module(f".kernels.cpu.{family}", __package__)
            with_room(module.compile_all)
            for sweep in ("forward", "reverse"):
                if hasattr(module, sweep):  # what runs regions or derives programs sweeps nothing
                    setattr(_compiled, f"{family}_{sweep}", getattr(module, sweep))
            _loaded[family] = True
        finally:
            notice.cancel()


def at_addresses(kernel: Kernel, count: int) -> Kernel:
    """Return a kernel that takes addresses as one that takes arrays, `count` of them, first."""

    def sweep(*args: Any) -> Any:
        return kernel(*map(address, args[:count]), *args[count:])

    return sweep


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
    if name == "reference":
        overriding.append(name)
    try:
        yield
    finally:
        if name == "reference":
            overriding.pop()
        _forced.pop()


def evaluate(tape: Tape, needed: tuple[tuple[int, int], ...] | None = None) -> None:
    """Compute the values of all instructions recorded so far.

    Parameters
    ----------
    tape : Tape
    needed : tuple of (int, int), optional
        Stretches of cells (lowest and highest), if no others need have values afterwards.
    """
    with tape.lock:
        if tape.code:
            tape.flush()
        if tape.lent:
            _copy_lent(tape)
        if needed is not None and tape.done == 0 and _pays(tape, 0):
            plan = plan_of(tape, 0, "some", needed)
            if plan.count >= 0:
                _timed(tape, _forward_by_plan, tape, plan)
                tape.sparse = plan
                return
        if tape.sparse is not None:  # a sweep by regions kept what it needed: now the others, too
            tape.sparse, tape.done, tape.done_cell = None, 0, 0
        if tape.done < tape.n:
            ready = ready_sweeps(tape)
            if ready is not None and tape.done == 0:
                ready.forward()
                tape.done, tape.done_cell = tape.n, tape.flushed_cell
            else:
                _timed(tape, _forward, tape)


def ready_sweeps(tape: Tape) -> Ready | None:
    """Return the sweeps of a program that are ready to be made, if they are to be used."""
    return None if tape.replays is None or overriding else tape.replays.ready


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


def has_values(tape: Tape, cells: Any, size: int) -> bool:
    """Whether the values of a run of cells (its first), or of an array of cells, are known."""
    if tape.code or tape.done < tape.n:
        return False
    return not tape.lent if tape.sparse is None else tape.sparse.has(cells, size)


def _copy_lent(tape: Tape) -> None:
    v = tape.arena.v.array
    for entry in tape.lent:
        v[entry.cell : entry.cell + entry.size] = entry.values
        entry.values = None
    tape.lent.clear()


def _forward(tape: Tape) -> None:
    tape.arena.v.expect(tape.flushed_cell)
    if _pays(tape, tape.done):
        plan = plan_of(tape, tape.done, "values")
        if plan.count >= 0:
            _forward_by_plan(tape, plan)
            return
    _forward_one_by_one(tape)


def compile_where_asked(tape: Tape, plan: Plan) -> None:
    """Compile the regions of a plan for a program whose loops are compiled, too."""
    if plan.compiled or tape.replays is None or tape.replays.rolled is None:
        return
    plan.compiled = True
    for step in plan.steps:
        for region in step.regions:
            specialise(region)


def _forward_by_plan(tape: Tape, plan: Plan) -> None:
    compile_where_asked(tape, plan)
    table = addresses(tape, plan, None, [])
    for step in plan.steps:
        _step_forward(tape, step, table)
        tape.done, tape.done_cell = step.stop, step.end


def _forward_one_by_one(tape: Tape) -> None:
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


# -- by regions ------------------------------------------------------------------------------------


def _pays(tape: Tape, start: int) -> bool:
    """Whether the instructions from `start` on are worth a plan, and its kernels are there."""
    cells = tape.flushed_cell - (tape.done_cell if start else 0)
    few = cells < REGION_CELLS and not (tape.replays is not None and tape.replays.planned)
    if few or not len(tape.d):
        return False
    if LANES not in tape.arena.op.array[start : tape.n].tobytes():
        return False
    return compiles("regions", cells)


def by_regions(tape: Tape) -> bool:
    """Whether all of a tape is worth a plan, and is not swept in another way."""
    return ready_sweeps(tape) is None and _pays(tape, 0)


def addresses(
    tape: Tape,
    plan: Plan,
    g: Floats | None,
    adjoints: list[Floats | None],
    ties: Floats | None = None,
) -> list[int]:
    """Return the addresses of the buffers of a plan's regions."""
    v = address(tape.arena.v.array)
    x = address(tape.x.array()) if len(tape.x) else 0  # most recordings have no indices
    table = [v, address(tape.k.array()), 0 if g is None else address(g), x]
    table.append(0 if ties is None else address(ties))
    for i, number in enumerate(plan.own):
        entry = tape.imports[number]
        table.append(v + 8 * entry.cell if entry.values is None else address(entry.values))
        adjoint = adjoints[i] if adjoints else None
        table.append(0 if adjoint is None else address(adjoint))
    return table


def forward_scalars(tape: Tape, step: Step) -> None:
    """Compute the scalar instructions of a step, from and in the tape's own arena."""
    arena = tape.arena
    op, a, b, v = arena.op.array, arena.a.array, arena.b.array, arena.v.array
    position, cell, k, loops = step.start, step.cell, tape.k.array(), _loops(tape)
    while position < step.stop:
        if loops and (loop := loops.starting_at(position)) and loop.stop <= step.stop:
            loop.forward(k, v)
            position, cell = loop.stop, cell + loop.size
            continue
        run = kernels("scalar", step.stop - position)
        stop = min(step.stop, position + run.slice)
        stop = loops.next_start(position, stop) if loops else stop
        position, cell = run.scalar_forward(op, a, b, k, v, position, stop, cell)


def reverse_scalars(tape: Tape, g: Floats, step: Step) -> None:
    """Sweep the scalar instructions of a step backward, with adjoints by cell in `g`."""
    _reverse_one_by_one(tape, g, step.stop, step.end, step.start, loops=_loops(tape))


def _step_forward(tape: Tape, step: Step, table: list[int]) -> None:
    if step.kind == SCALARS:
        if not step.idle:
            forward_scalars(tape, step)
    elif step.kind == HOST_CALL:
        v = tape.arena.v.array
        tape.hosts[tape.arena.a.array[step.start]].forward(v, v[step.cell : step.end])
    elif step.forward is not None:
        run_addresses(step.forward, table)


def gradient(
    tape: Tape,
    g: Floats,
    seeds: list[tuple[Any, Floats]],
    wanted: list[bool] | None = None,
    values: bool = True,
) -> list[tuple[Import, Floats]] | None:
    """Sweep a tape forward as far as need be and backward by regions, if that pays.

    Parameters
    ----------
    tape : Tape
        Its lock is held.
    g : ndarray
        Adjoints by cell, all zero, and so again afterwards.
    seeds : list of (cells, adjoints)
        Where adjoints start: the first of a run of cells, or an array of cells.
    wanted : list of bool, optional
        Of which imports adjoints are wanted; by default of those that stand for something.
    values : bool
        Whether sums are computed, too, that no adjoint depends on.

    Returns
    -------
    list of (Import, adjoint) or None
        The adjoints of imports that may not be zero, flat and owned by the caller. None where
        nothing was done.
    """
    if tape.code:
        tape.flush()
    if not seeds or not _pays(tape, 0):
        return None
    if wanted is None:
        wanted = [e.leaf is not None or e.source is not None for e in tape.imports]
    active = np.array(wanted, np.uint8)
    reach = tuple([stretch(cells, seed.size) for cells, seed in seeds if seed.size])
    unit = len(seeds) == 1 and seeds[0][1].size == 1 and seeds[0][1].item() == 1.0
    plan = plan_of(tape, 0, "gradient" if values else "adjoints", reach, active, unit)
    if plan.count < 0:
        return None
    if tape.lent and any(tape.imports[i].values is not None for i in plan.in_arena):
        _copy_lent(tape)
    if plan.ties and tape.done and tape.sparse is None:
        return None  # values by other means, whose last digits may keep lanes from equalling them
    if tape.sparse is not None and tape.sparse is not plan:  # which kept other values
        tape.sparse, tape.done, tape.done_cell = None, 0, 0
    fresh = tape.done == 0
    if not fresh and tape.done < tape.n:
        evaluate(tape)
    own = _room_for_adjoints(tape, plan)
    with watching.sweeps or nullcontext():
        _sweep_by_plan(tape, plan, g, own, seeds, fresh)
    return _collect(tape, plan, g, own)


def _room_for_adjoints(tape: Tape, plan: Plan) -> list[Floats | None]:
    """Return arrays for the adjoints of a plan's imports, or None for those that get none."""
    entries = [tape.imports[number] for number in plan.own]
    # Blocks of results that go past the cache begin with their lines: arguments had better, too.
    streams = 16 * sum([entry.size for entry in entries]) > STREAM_BYTES
    return [
        results.take(entry.size, entry.values if streams else None) if touched else None
        for entry, touched in zip(entries, plan.touched, strict=True)
    ]


def _sweep_by_plan(
    tape: Tape,
    plan: Plan,
    g: Floats,
    own: list[Floats | None],
    seeds: list[tuple[Any, Floats]],
    fresh: bool,
) -> None:
    """Run a plan forward, if its values are not known yet, and backward."""
    ties = results.take(plan.ties) if plan.ties else None
    compile_where_asked(tape, plan)
    table = addresses(tape, plan, g, own, ties)
    before, top, after, rest = plan.order()
    if fresh:
        for step in before:
            _step_forward(tape, step, table)
    for cells, seed in seeds:
        if isinstance(cells, (int, np.integer)):
            g[int(cells) : int(cells) + seed.size] += seed
        else:
            np.add.at(g, cells, seed)
    for step in top:
        _step_backward(tape, step, table, g, own)
    if fresh:
        for step in after:
            _step_forward(tape, step, table)
        tape.done, tape.done_cell, tape.sparse = tape.n, tape.flushed_cell, plan
    for i, step in enumerate(rest):
        _step_backward(tape, step, table, g, own)
        if watching.sweeps:
            watching.sweeps.moved("backward", i + 1, len(rest))


def _step_backward(
    tape: Tape, step: Step, table: list[int], g: Floats, own: list[Floats | None]
) -> None:
    if step.kind == SCALARS:
        if not step.idle:
            reverse_scalars(tape, g, step)
    elif step.kind == HOST_CALL:
        tape.hosts[tape.arena.a.array[step.start]].reverse(tape.arena.v.array, g, step.cell, False)
    else:
        for number, low, high in step.blanks:
            adjoint = own[number]
            if adjoint is not None:
                adjoint[low:high] = 0.0
        if step.ties is not None:
            run_addresses(step.ties, table)
        if step.backward is not None:
            run_addresses(step.backward, table)
        for low, high in step.used:
            g[low:high] = 0.0


def _collect(
    tape: Tape, plan: Plan, g: Floats, own: list[Floats | None]
) -> list[tuple[Import, Floats]]:
    """Return the adjoints of imports: their own, and what came by the adjoints of all cells."""
    numbers = {number: i for i, number in enumerate(plan.own)}
    in_arena = plan.in_arena
    found: list[tuple[Import, Floats]] = []
    for number, entry in enumerate(tape.imports):
        at = numbers.get(number)
        adjoint = None if at is None else own[at]
        if at is None or number in in_arena:
            part = g[entry.cell : entry.cell + entry.size]
            if adjoint is not None:
                adjoint += part
                part[...] = 0.0
            elif part.any() or (at is None and entry.leaf is not None):
                adjoint = part.copy()
                part[...] = 0.0
        if adjoint is None and entry.leaf is not None:
            adjoint = np.zeros(entry.size)
        if adjoint is not None:
            found.append((entry, adjoint))
    return found


# -- backward, one instruction after another -------------------------------------------------------


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
    position, cell = first_block_above(tape, top)
    _timed(tape, _reverse_one_by_one, tape, g, position, cell, bottom, strict, compiled)


def _reverse_one_by_one(
    tape: Tape,
    g: Floats,
    position: int,
    cell: int,
    bottom: int,
    strict: bool = False,
    loops: Rolled | None = None,
) -> None:
    """Sweep backward from the instruction before `position` to `bottom`."""
    arena = tape.arena
    op, a, b, v = arena.op.array, arena.a.array, arena.b.array, arena.v.array
    k, d, x = tape.k.array(), tape.d.array(), tape.x.array()
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
