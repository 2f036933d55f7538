"""Running regions on the CPU: chunks of lanes, spread over threads.

The kernel holds no Python lock while it runs, so ordinary threads do. They are started with the
first region that is large enough to be worth them, and ended with the process. Which thread runs a
chunk changes nothing: where chunks begin depends on the region only, and what they put aside is
added up in their order.
"""

from __future__ import annotations

import functools
import math
import operator
import os
import threading
from array import array
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import at_caller
from . import straight
from .lowering import Lowered
from .region import Region

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_ALIGNED = 128
SMALL_EXTRA = 1 << 20
"""Bytes of partial sums and the like, up to which a thread's scratch has room for them."""

WORTH = 1 << 18
"""Instructions times lanes from which a region is spread over threads: about 50 us of work."""


def _default() -> int:
    """Return how many threads Numba would use: as many as processors we may run on."""
    try:
        available = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        available = os.cpu_count() or 1
    wanted = os.environ.get("NUMBA_NUM_THREADS", "")
    return max(min(int(wanted), available), 1) if wanted.isdigit() else available


class _Pool:
    """The helpers of whoever runs a region: one fewer than there are threads."""

    def __init__(self) -> None:
        self.size = _default()
        self.lock = threading.Lock()
        self.executor: ThreadPoolExecutor | None = None

    def start(self, work: Callable[[], None], most: int) -> list[Future[None]]:
        """Let helpers begin to work, `most` at most; there may be none."""
        with self.lock:
            if self.size == 1:
                return []
            if self.executor is None:
                from concurrent.futures import ThreadPoolExecutor  # some milliseconds

                self.executor = ThreadPoolExecutor(self.size - 1, "tapegrad")
            try:
                return [self.executor.submit(work) for _ in range(min(self.size - 1, most))]
            except RuntimeError:  # the interpreter is about to end, and starts no more threads
                return []

    def resize(self, size: int) -> None:
        with self.lock:
            old, self.executor, self.size = self.executor, None, size
        if old is not None:
            old.shutdown()

    def forget(self) -> None:
        """Start anew in a process that was forked: it has no threads but the one that forked."""
        self.lock = threading.Lock()
        self.executor = None


_pool = _Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.forget)


def set_num_threads(n: int) -> None:
    """Set how many threads run array operations; results are the same for any number, to the bit.

    Parameters
    ----------
    n : int
        At least 1.  At first it is the number of processors that the process may use, or what the
        environment variable ``NUMBA_NUM_THREADS`` says.

    Raises
    ------
    TypeError, ValueError
        If `n` is no positive integer.

    Examples
    --------
    >>> import tapegrad as tg
    >>> before = tg.get_num_threads()
    >>> tg.set_num_threads(2)
    >>> tg.get_num_threads()
    2
    >>> tg.set_num_threads(before)
    """
    try:
        n = operator.index(n)
    except TypeError:
        raise TypeError(
            f"the number of threads is a {type(n).__name__}, not an integer{at_caller()}"
        ) from None
    if n < 1:
        raise ValueError(f"the number of threads must be at least 1, not {n}{at_caller()}")
    _pool.resize(n)


def get_num_threads() -> int:
    """Return how many threads run array operations; see `set_num_threads`."""
    return _pool.size


# -- one thread a core ----------------------------------------------------------------------------


def _core_of_thread() -> Callable[[], int] | None:
    """Return a function that says on which core its caller runs, where threads can be moved."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    import ctypes

    return getattr(ctypes.CDLL(None), "sched_getcpu", None)


_core = _core_of_thread()


def spread(taken: set[int]) -> None:
    """Enter the core of this thread among those that are taken, after leaving one that is.

    Linux likes to start a thread on the core of whoever woke it, and may leave both there for
    seconds while another core idles. It is free to move the thread again afterwards.
    """
    if _core is None:
        return
    core = _core()
    if core in taken:
        allowed = os.sched_getaffinity(0)  # of this thread
        free = allowed - taken
        if free:
            core = min(free)
            os.sched_setaffinity(0, {core})
            os.sched_setaffinity(0, allowed)
    taken.add(core)


# -- running a region -----------------------------------------------------------------------------


class _Scratch(threading.local):
    """Room for the rows of a block and for small sums aside, one a thread."""

    def __init__(self) -> None:
        self.room = np.empty(0, np.uint8)
        self.start = 0

    def address(self, size: int) -> int:
        if self.room.size < size + _ALIGNED:
            self.room = room(size)
            self.start = aligned(self.room)
        return self.start


_scratch = _Scratch()


_kernels: dict[str, tuple[Any, int]] = {}


def load_kernel(real: str = "float64") -> tuple[Any, int]:
    """Load the compiled executor: its entry, and the address that it asks for."""
    from ..kernels import native

    found = native.load("regions32" if real == "float32" else "regions")
    _kernels[real] = found["run"], found["block"]
    return _kernels[real]


def direct(kernel: Any) -> Callable[..., Any]:
    """Return a kernel that was compiled for one signature as what its dispatcher calls."""
    if not hasattr(kernel, "overloads"):  # machine code from disk has no dispatcher
        entry: Callable[..., Any] = kernel
        return entry
    (compiled,) = kernel.overloads.values()
    entry = compiled.entry_point
    return entry


def aligned(room: np.ndarray[Any, Any]) -> int:
    """Return the first address in `room` that vectors like."""
    return -(-int(room.ctypes.data) // _ALIGNED) * _ALIGNED


def lower(region: Region) -> Lowered:
    """Return what the executor makes of a region, once."""
    lowered: Lowered | None = region.lowered
    if lowered is None:
        lowered = region.lowered = Lowered(region)
    return lowered


def run_region(region: Region, buffers: Sequence[np.ndarray[Any, Any]]) -> None:
    """Run a region on the CPU.

    Parameters
    ----------
    region : Region
    buffers : sequence of ndarray
        Flat and contiguous: of the region's type for values, which out-windows write, and uint32
        for index arrays.
    """
    run_addresses(region, [int(buffer.ctypes.data) for buffer in buffers])


def run_addresses(region: Region, addresses: list[int]) -> None:
    """Run a region on buffers that are known by their addresses; whoever calls keeps them alive."""
    run, blocks = _kernels.get(region.real) or load_kernel(region.real)
    lowered = region.lowered or lower(region)
    if lowered.size == 0:
        return
    if lowered.straight:
        _run(run, blocks, region, lowered, addresses)
        return
    start = perf_counter()
    _run(run, blocks, region, lowered, addresses)
    earn(region, lowered, perf_counter() - start)


def earn(region: Region, lowered: Lowered, seconds: float) -> None:
    """Count the time that a region is run; compile it once that has taken as long as compiling."""
    lowered.spent += seconds
    if lowered.spent < straight.least():  # finding out the cost takes a while, too
        return
    if lowered.cost < 0.0:
        lowered.cost = straight.cost(region)
    if lowered.spent >= lowered.cost:
        specialise(region)


def specialise(region: Region) -> None:
    """Compile a region, if that is to be done."""
    lowered = region.lowered or lower(region)
    if not lowered.straight and straight.cost(region) < math.inf:
        code = straight.compile_region(region, lowered.uniform, lowered.joins)
        lowered.use(code)  # by calls that are prepared, and threads that are running it
        region.lowered = Lowered(region, code)


def room_for(region: Region) -> int:
    """Return how many bytes `prepared` needs to run a region."""
    lowered: Lowered = region.lowered or lower(region)
    size: int = lowered.scratch + lowered.extra
    return size


def room(size: int) -> np.ndarray[Any, Any]:
    """Return memory that has so many bytes from its first aligned address on."""
    return np.empty(size + _ALIGNED, np.uint8)


def prepared(region: Region, addresses: list[int], at: int) -> tuple[Callable[[], Any], Any]:
    """Return the call that runs a region on buffers that stay where they are.

    Parameters
    ----------
    region : Region
    addresses : list of int
        Those of its buffers.
    at : int
        Address of `room_for` bytes, aligned, which calls that may be made at the same time do not
        share.

    Returns
    -------
    call : callable
    held : object
        What must live as long as it.
    """
    run, blocks = _kernels.get(region.real) or load_kernel(region.real)
    lowered = region.lowered or lower(region)
    if lowered.work >= WORTH and lowered.chunks > 1:
        return functools.partial(run_addresses, region, addresses), None
    table = _table(region, lowered, addresses, at + lowered.scratch)
    place = table.buffer_info()[0]
    call = functools.partial(direct(run), lowered.address, place, 0, lowered.chunks, 1, at, blocks)
    return call, (lowered, table)


def _table(region: Region, lowered: Lowered, addresses: list[int], extra: int) -> array[int]:
    """Return the addresses of all buffers, last those that the executor needs, from `extra` on."""
    table = array("q", addresses)
    del table[region.buffers :]
    table.extend([extra + offset for offset in lowered.extras])
    return table


def _run(run: Any, blocks: int, region: Region, lowered: Lowered, addresses: list[int]) -> None:
    extra = None  # held until the end
    if lowered.extra > SMALL_EXTRA:
        extra = room(lowered.extra)
        at = aligned(extra)
    else:
        at = _scratch.address(lowered.scratch + lowered.extra) + lowered.scratch
    table = _table(region, lowered, addresses, at)
    words, buffers = lowered.address, table.buffer_info()[0]
    chunks = lowered.chunks
    scratch = _scratch.address(lowered.scratch)
    # Some chunks at a time: few enough that threads end together, and that Ctrl-C is heard.
    some = max(1, 64 * WORTH * chunks // lowered.work)
    if lowered.work < WORTH or chunks == 1 or (_pool.size == 1 and some >= chunks):
        run(words, buffers, 0, chunks, 1, scratch, blocks)
        return
    if _pool.size > 1:
        some = max(1, min(chunks // (8 * _pool.size), some // 16))
    queue = iter(range(0, chunks, some))
    failed: list[BaseException] = []
    cores: set[int] = set()

    def work() -> None:
        own = _scratch.address(lowered.scratch)
        for c in queue:  # one thread gets each: taking the next is atomic
            if failed:
                return
            run(words, buffers, c, min(c + some, chunks), 0, own, blocks)

    def help_out() -> None:
        spread(cores)
        work()

    run(words, buffers, 0, 0, 2, scratch, blocks)
    spread(cores)
    helpers = _pool.start(help_out, chunks - 1)
    try:
        work()
    except BaseException as error:  # Ctrl-C, seen between two chunks
        failed.append(error)
        raise
    finally:
        for helper in helpers:
            helper.result()
    run(words, buffers, 0, 0, 4, scratch, blocks)
