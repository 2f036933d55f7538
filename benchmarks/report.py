"""The figures that the project promises, measured in one run: `python -m benchmarks.report`.

Every figure is a median, of CPU seconds on one thread unless it says otherwise; what is compared is
measured in turn. The exit status is 1 where a figure misses its bound or a part breaks; a peer that
is not installed is named, and its ratio is not judged.
"""

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .cold_start import (
    COMPILED,
    MANY_OPERATIONS,
    TEN_OPERATIONS,
    first_gradient,
    import_ratio,
    median_cpu,
    region_kernels,
)
from .measuring import interleave, isolated, peak_bytes, pin, repeat
from .peers.case import Options
from .peers.run import TOLERANCE, compare

PEER_BOUNDS = {"xad": 1.4, "torch_eager": 15.0, "autograd": 40.0}
REPLAY_BOUNDS = {"c_manual": 1 / 1.4, "jax_scan": 1.0, "adolc": 1.0, "cppad": 1.0}
ARRAY_BOUNDS = {"w3": 2.5, "w3bs": 1.6}
SPARSE_BOUNDS = {"casadi_sx": 1.0, "jax": None}


@dataclass(frozen=True)
class Figure:
    """One number and the bounds that it has to keep; nan where it could not be measured here."""

    what: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def verdict(self) -> str:
        """Return "pass", "FAIL" or "not measured", or nothing where there is no bound."""
        if self.at_least is None and self.at_most is None:
            return ""
        if math.isnan(self.value):
            return "not measured"
        above = self.at_least is None or self.value >= self.at_least
        below = self.at_most is None or self.value <= self.at_most
        return "pass" if above and below else "FAIL"

    @property
    def bound(self) -> str:
        """Return the bounds in words."""
        if self.at_least is not None and self.at_least == self.at_most:
            return f"= {self.at_most:g}"
        low = "" if self.at_least is None else f">= {self.at_least:g}"
        high = "" if self.at_most is None else f"<= {self.at_most:g}"
        return f"{low} {high}".strip()


Figures = Iterator[Figure]


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    rounds: int
    large: int


# What runs in a process of its own imports tapegrad there: this process stays without it.


def sweep_seconds(large: int, rounds: int) -> dict[int, float]:
    """Return the CPU seconds an instruction of a forward and reverse sweep, by tape size."""
    from .recorded import RecordedLoop

    pin()
    loops = {n: RecordedLoop(n) for n in (10**5, large)}
    # Several in a row of the small tape: the first finds the caches filled by the large one.
    repeats = {10**5: 20, large: 1}
    calls = {n: repeat(loop.sweep, repeats[n]) for n, loop in loops.items()}
    seconds = interleave(calls, rounds)
    return {n: seconds[n] / repeats[n] / loops[n].instructions for n in loops}


def index_growth(name: str, rounds: int) -> float:
    """Return the exponent of time against n of one of the index loops."""
    from . import index_loop

    pin()
    return index_loop.growth(getattr(index_loop, name), rounds=rounds)


def sparse_growth(rounds: int) -> tuple[float, float]:
    """Return the exponents of time against n of sparse Hessians: of each, and of preparing them."""
    from . import sparse

    pin()
    return sparse.growth(rounds)


def memory(operations: int) -> tuple[float, float]:
    """Return resident bytes an instruction, and the peak of the process."""
    from .memory import bytes_per_instruction

    return bytes_per_instruction(operations), peak_bytes()


def gradients(effort: Effort) -> Figures:
    """Recording and sweeping w1, here and in the peers."""
    peers = ["tapegrad", "c_manual", *PEER_BOUNDS]
    found = compare("w1", Options(n=100_000), peers=peers, rounds=effort.rounds)
    ours = found.row("tapegrad")
    if ours is None:
        raise RuntimeError(found.absent["tapegrad"])
    yield Figure("w1, record and reverse, an operation", ours.ns_per_operation, "ns", at_most=350)
    for peer, bound in PEER_BOUNDS.items():
        row = found.row(peer)
        if row is None:
            print(f"{peer} is not measured: {found.absent[peer]}", file=sys.stderr)
        ratio = math.nan if row is None else row.ratio
        yield Figure(f"w1, time of {peer} over ours", ratio, "x", at_least=bound)
    floor = found.row("c_manual")
    if floor is not None:
        yield Figure("w1, our time over hand-written C", 1.0 / floor.ratio, "x")
    off = [row.disagreement for row in found.rows if row.disagreement is not None]
    worst = max(math.inf if math.isnan(value) else value for value in off)
    yield Figure("w1, disagreement of gradients", worst, "relative", at_most=TOLERANCE)


def sweeps(effort: Effort) -> Figures:
    """Sweeping a tape that is there."""
    seconds = isolated(sweep_seconds, effort.large, effort.rounds)
    small, large = seconds[10**5], seconds[effort.large]
    yield Figure("sweep of w1 at 1e5, an instruction", small * 1e9, "ns", at_most=8)
    yield Figure(f"sweep of w1 at {effort.large:.0e}, an instruction", large * 1e9, "ns")
    yield Figure(f"sweep of w1, {effort.large:.0e} over 1e5", large / small, "x", at_most=2)


def finishing_seconds(name: str, operations: int, rounds: int) -> float:
    """Return the median CPU seconds an instruction that finishing a program takes."""
    from .programs import finishing

    pin()
    finishing(name, 1_000)  # kernels are loaded
    found = statistics.median(finishing(name, operations) for _ in range(rounds))
    return found / operations


def finishes(effort: Effort) -> Figures:
    """Finishing programs: all that is done once their function has returned."""
    for name, what in (("loop", "w1"), ("points", "w2")):
        for operations in (10**5, 10**6):
            seconds = isolated(finishing_seconds, name, operations, effort.rounds)
            label = f"finishing {what} at {operations:.0e}, an instruction"
            yield Figure(label, seconds * 1e9, "ns", at_most=100)


def memories(effort: Effort) -> Figures:
    """Memory of the steady state."""
    resident, peak = isolated(memory, effort.large)
    yield Figure(f"memory of w1 at {effort.large:.0e}, an instruction", resident, "B", at_most=26)
    yield Figure(f"peak memory of w1 at {effort.large:.0e}", peak / 1e6, "MB")


def index_loops(effort: Effort) -> Figures:
    """Elements one by one, n = 1e3 to 1e6."""
    for name, what in (
        ("read_all", "x[i] read"),
        ("write_all", "y[i] written"),
        ("fill_and_reverse", "y[i] written, then backward"),
    ):
        value = isolated(index_growth, name, effort.rounds)
        # A backward sweep costs something at any size, which pulls the exponent below 1.
        least = None if name == "fill_and_reverse" else 0.95
        yield Figure(f"{what}, exponent in n", value, "", at_least=least, at_most=1.05)


def guards(operations: int, compiled: bool) -> float:
    """Return what checking decisions adds to a replay, in per cent."""
    from .programs import guards_share

    pin()
    return guards_share(operations, compiled)


def replays(effort: Effort) -> Figures:
    """Programs run again, w1, here and in the peers; and what their decisions cost."""
    for n in (10**3, 10**4, 10**5, 10**6):
        bounds = REPLAY_BOUNDS | ({"casadi_sx": 1.0} if n <= 10**4 else {})  # which unrolls
        ours = "tapegrad_replay"
        found = compare("w1", Options(n=n), peers=[ours, *bounds], base=ours, rounds=effort.rounds)
        for peer, bound in bounds.items():
            row = found.row(peer, "grad" if peer == "c_manual" else "replay")
            if row is None:
                print(f"{peer} is not measured: {found.absent[peer]}", file=sys.stderr)
            ratio = math.nan if row is None else row.ratio
            what = f"replay of w1 at {n:.0e}, time of {peer} over ours"
            yield Figure(what, ratio, "x", at_least=bound)
    for n in (10**2, 10**4, 10**6):
        for how in ("interpreted", "compiled"):
            share = isolated(guards, n, how == "compiled")
            what = f"a decision every 7 operations, {n:.0e}, {how}"
            yield Figure(what, share, "% of a replay", at_most=3)


def sparse_matrices(effort: Effort) -> Figures:
    """Sparse Hessians, w6, here and in the peers."""
    found = compare("w6", peers=["tapegrad", *SPARSE_BOUNDS], rounds=effort.rounds)
    ours = found.row("tapegrad", "hessian")
    if ours is None:
        raise RuntimeError(found.absent["tapegrad"])
    yield Figure("w6, a Hessian of 2,000 numbers", ours.cpu * 1e6, "us", at_most=43)
    for peer, bound in SPARSE_BOUNDS.items():
        row = found.row(peer, "hessian")
        if row is None:
            print(f"{peer} is not measured: {found.absent[peer]}", file=sys.stderr)
        ratio = math.nan if row is None else row.ratio
        yield Figure(f"w6, time of {peer} over ours", ratio, "x", at_least=bound)
    each, preparing = isolated(sparse_growth, effort.rounds)
    yield Figure("w6, exponent in n, 3e4 to 3e5", each, "", at_most=1.1)
    yield Figure("w6, preparing, exponent in n", preparing, "", at_most=1.1)


def region_ratios(rounds: int) -> tuple[float, float, float]:
    """Return what `regions` judges: planning in ns, speed-up by two threads, afresh over replay."""
    import time

    import tapegrad as tg

    from .peers import w5
    from .regions import Gradient, Planning

    planning = Planning().track_instruction()
    batch = w5.PEERS["tapegrad"](Options()).functions["grad"]
    ratios = []
    for _ in range(rounds):
        seconds = []
        for threads in (1, 2):
            tg.set_num_threads(threads)
            batch()
            start = time.perf_counter()
            batch()
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    gradient = Gradient()
    gradient.setup("rosenbrock", 1_000_000)
    ways = {"afresh": gradient.time_afresh, "replay": gradient.time_replay}
    times = interleave({k: (lambda f=f: f("rosenbrock", 0)) for k, f in ways.items()}, rounds)
    return planning, statistics.median(ratios), times["afresh"] / times["replay"]


def tiny_arrays(code: str, gradient: bool, rounds: int) -> float:
    """Return what an instruction on 3x3 arrays takes in a replay, a lane group, in ns."""
    from .small_arrays import replay_nanoseconds

    pin()
    return replay_nanoseconds(gradient, code, rounds=rounds)


def tiny_product(rounds: int) -> float:
    """Return what a product of 3x3 matrices takes in a replay of value and gradient, in ns."""
    from .small_arrays import product_nanoseconds

    pin()
    return product_nanoseconds(rounds=rounds)


def array_memory(workload: str) -> float:
    """Return the memory that a gradient of long arrays needs, as a multiple of its results."""
    from .regions import memory_share

    return memory_share(workload)


def regions(effort: Effort) -> Figures:
    """Array code: planning, threads, time and memory of gradients, tiny arrays."""
    planning, speedup, afresh = isolated(region_ratios, 2 * effort.rounds + 1)
    yield Figure("planning a gradient, an instruction", planning, "ns", at_most=300)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    speedup = speedup if cores > 1 else math.nan
    yield Figure("w5, one thread over two", speedup, "x", at_least=1.7)
    yield Figure("w3, gradient afresh over its replay", afresh, "x", at_most=1.1)
    for code, many in (("mixture", "1000 of 3x3"), ("products", "3x3 products")):
        for gradient, what in ((False, "value"), (True, "gradient")):
            each = isolated(tiny_arrays, code, gradient, 2 * effort.rounds + 1)
            label = f"{many}, {what}, instruction and lane group"
            yield Figure(label, each, "ns", at_most=15)
    product = isolated(tiny_product, 2 * effort.rounds + 1)
    yield Figure("a 3x3 product, value and gradient", product, "ns")
    for workload, bound in ARRAY_BOUNDS.items():
        found = compare(workload, peers=["tapegrad", "c_fused"], rounds=effort.rounds)
        floor = found.row("c_fused")
        if floor is None:
            print(f"c_fused is not measured: {found.absent['c_fused']}", file=sys.stderr)
        over = math.nan if floor is None else 1.0 / floor.ratio
        yield Figure(f"{workload}, our time over the loop in C", over, "x", at_most=bound)
    for workload, name in (("w3", "rosenbrock"), ("w3bs", "black_scholes")):
        share = isolated(array_memory, name)
        what = f"{workload}, extra peak memory over the results"
        yield Figure(what, share, "x", at_most=1.3)


def cold_starts(effort: Effort) -> Figures:
    """From the start of Python."""
    yield Figure("import tapegrad over import numpy", import_ratio(effort.rounds), "x", at_most=1.3)
    for cache in ("warm", "cold"):
        children = first_gradient(TEN_OPERATIONS, warm=cache == "warm", rounds=effort.rounds)
        what = f"first gradient of 10 operations, {cache}"
        yield Figure(what, median_cpu(children), "s", at_most=0.2)
        loaded = max(bool(child.value) for child in children)
        yield Figure(f"{what}: numba imported", loaded, "times", at_most=0)
    rounds = min(effort.rounds, 3)  # compiling takes seconds
    for cache, bound in (("warm", 0.4), ("cold", 3.0)):
        for code, how in ((MANY_OPERATIONS, cache), (COMPILED, f"{cache}, by kernels")):
            children = first_gradient(code, warm=cache == "warm", rounds=rounds)
            what = f"first gradient of 1e5 operations, {how}"
            yield Figure(what, median_cpu(children), "s", at_most=bound)
            if cache == "warm":
                loaded = max(bool(child.value) for child in children)
                yield Figure(f"{what}: numba imported", loaded, "times", at_most=0)
    for cache, bound in (("warm", 0.4), ("cold", 8.0)):
        seconds = region_kernels(warm=cache == "warm", rounds=rounds)
        yield Figure(
            f"all kernels of regions and their planner, {cache}", seconds, "s", at_most=bound
        )
    # The last ones compiled their kernels, and have to say so in one line.
    lines = statistics.median(len(child.stderr.splitlines()) for child in children)
    yield Figure("lines on stderr while kernels compile", lines, "", at_least=1, at_most=1)


PARTS: dict[str, Callable[[Effort], Figures]] = {
    "gradient": gradients,
    "sweep": sweeps,
    "finish": finishes,
    "memory": memories,
    "index": index_loops,
    "replays": replays,
    "sparse": sparse_matrices,
    "regions": regions,
    "cold": cold_starts,
}


def main() -> int:
    """Measure what the command line asks for, and print each figure as it comes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(PARTS)}; all by default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--quick", action="store_true", help="one round, and 1e6 operations in place of 1e7"
    )
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    asked = parser.parse_args()
    unknown = set(asked.parts).difference(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    effort = Effort(1, 10**6) if asked.quick else Effort(asked.rounds, 10**7)
    figures: list[Figure] = []
    broken = 0
    print(f"{'figure':54} {'value':>10} {'unit':8} {'bound':16} verdict")
    for name in asked.parts or PARTS:
        try:
            for figure in PARTS[name](effort):
                figures.append(figure)
                print(
                    f"{figure.what:54} {figure.value:10.4g} {figure.unit:8} {figure.bound:16} "
                    f"{figure.verdict}",
                    flush=True,
                )
        except Exception as error:  # the other parts are still worth measuring
            broken += 1
            print(f"{name}: not measured: {type(error).__name__}: {error}", flush=True)
    if asked.json:
        figures_with_verdicts = [{**asdict(f), "verdict": f.verdict} for f in figures]
        asked.json.write_text(json.dumps(figures_with_verdicts, indent=1))
    return 1 if broken or any(f.verdict == "FAIL" for f in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
