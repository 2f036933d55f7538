"""Clocks, memory and child processes: what every benchmark measures with.

Figures are CPU seconds on one thread, not wall seconds: on a shared machine they depend far less
on what else runs.
"""

import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Result = TypeVar("Result")

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)


def environment(threads: int = 1, **extra: str) -> dict[str, str]:
    """Return the environment of a measured process: `threads` threads in every library.

    Libraries read these variables while they load, so they have to be there before the start.
    """
    result = dict(os.environ)
    result.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    result.pop("PYTHONDONTWRITEBYTECODE", None)  # imports are measured with their byte code cached
    result.update(JAX_ENABLE_X64="1", JAX_PLATFORMS="cpu")
    if threads == 1:
        result["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    result.update(extra)
    return result


def pin(cpu: int = -1, threads: int = 1) -> None:
    """Keep this process on one core when it uses one thread, where the system allows that.

    A negative `cpu` means the last of the cores that this process may use. macOS and Windows offer
    no such call to Python: there, the scheduler decides.
    """
    if threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cpu if cpu >= 0 else max(os.sched_getaffinity(0))})


def cpu_time(function: Callable[[], object]) -> float:
    """Return the CPU seconds of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def repeat(function: Callable[[], object], times: int) -> Callable[[], None]:
    """Return a function that calls `function` so many times."""

    def repeated() -> None:
        for _ in range(times):
            function()

    return repeated


def cpu_median(function: Callable[[], object], rounds: int = 5) -> float:
    """Return the median CPU seconds of a call, after one call that does not count."""
    function()
    return statistics.median(cpu_time(function) for _ in range(rounds))


def interleave(functions: Mapping[Any, Callable[[], object]], rounds: int) -> dict[Any, float]:
    """Return the median CPU seconds of each function, measured in turn, round by round.

    A slow spell of the machine then falls on all of them and not on one.
    """
    for function in functions.values():
        function()
    samples = [{key: cpu_time(f) for key, f in functions.items()} for _ in range(rounds)]
    return {key: statistics.median(sample[key] for sample in samples) for key in functions}


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the slope of log(seconds) against log(size), by least squares: 1 is linear time."""
    return statistics.linear_regression(
        [math.log(size) for size in sizes], [math.log(s) for s in seconds]
    ).slope


def resident_bytes() -> float:
    """Return the memory resident for this process now; nan where the system does not say."""
    try:
        with open("/proc/self/statm") as statm:
            return float(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return math.nan


def peak_bytes() -> float:
    """Return the most memory that was resident for this process; nan on Windows."""
    try:
        import resource
    except ImportError:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def peak_growth(function: Callable[[], object]) -> float:
    """Return how much memory a call needs at most, beyond what is resident before it.

    The answer is nan where the system does not say: Linux does.
    """
    try:
        with open("/proc/self/clear_refs", "w") as marks:
            marks.write("5")  # the peak starts anew from what is resident now
        before = resident_bytes()
        function()
        with open("/proc/self/status") as status:
            (peak,) = [line.split()[1] for line in status if line.startswith("VmHWM:")]
    except OSError:
        return math.nan
    return 1024.0 * int(peak) - before


@dataclass(frozen=True)
class Child:
    """What a fresh Python process did, measured from its start to the end of its code."""

    cpu: float
    wall: float
    value: Any
    stderr: str


# The process reads its own clock at the end, so that the interpreter's shutdown is not counted.
# `os.times` adds what its children used: some peers run a compiler.
_EPILOGUE = """
import json, os, time
_used = time.process_time() + sum(os.times()[2:4])
print("\\n" + json.dumps({"cpu": _used, "value": globals().get("value")}))
"""


def run_child(code: str, **extra_environment: str) -> Child:
    """Run `code` in a fresh Python process; whatever it leaves in `value` comes back.

    Raises
    ------
    RuntimeError
        If the process fails; the message is the last line of its stderr.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code + _EPILOGUE],
        env=environment(**extra_environment),
        cwd=tempfile.gettempdir(),  # the installed package is measured, not one that lies in `.`
        capture_output=True,
        text=True,
        check=False,
    )
    wall = time.perf_counter() - start
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(lines[-1])
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return Child(answer["cpu"], wall, answer["value"], done.stderr)


def isolated(function: Callable[..., Result], *arguments: Any) -> Result:
    """Return `function(*arguments)` from a fresh process, which nothing has warmed or filled."""
    saved = dict(os.environ)
    os.environ.update(environment())  # a spawned process inherits it
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(function, arguments)
    finally:
        os.environ.clear()
        os.environ.update(saved)
