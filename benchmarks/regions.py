"""asv: array code in regions, from the executor alone to the gradient that a user asks for."""

import time

import numpy as np

import tapegrad as tg
from tapegrad.regions import threads
from tapegrad.regions.plan import Plan
from tapegrad.regions.region import RegionBuilder

from .measuring import cpu_median, peak_growth
from .peers import w3, w3bs
from .peers.case import Options

WORKLOADS = {"rosenbrock": w3, "black_scholes": w3bs}


class Gradient:
    """A gradient by all arrays, on one thread: recorded afresh, and replayed."""

    timer = time.process_time
    params = (sorted(WORKLOADS), (1_000, 1_000_000))
    param_names = ("workload", "elements")

    def setup(self, workload, elements):
        module = WORKLOADS[workload]
        tg.set_num_threads(1)
        self.arrays = module.arrays(Options(elements))
        self.argnums = tuple(range(len(self.arrays)))
        self.function = module.function(np, tg.special.erf)
        self.program = tg.record(self.function, *self.arrays)
        with tg.executor("compiled"):  # which are then there for all that follows
            self.time_afresh(workload, elements)
            self.time_replay(workload, elements)

    def time_afresh(self, workload, elements):
        tg.grad(self.function, argnums=self.argnums)(*self.arrays)

    def time_replay(self, workload, elements):
        self.program.value_and_grad(*self.arrays, argnums=self.argnums)


class GradientMemory:
    """The most memory that a gradient needs, as a multiple of its results."""

    params = sorted(WORKLOADS)
    param_names = ("workload",)

    def track_peak(self, workload):
        return memory_share(workload)

    track_peak.unit = "results"


def memory_share(workload: str, elements: int = 1_000_000) -> float:
    """Return the memory that the first gradient of a size needs, as a multiple of its results.

    Run it in a fresh process, as asv does: later gradients use memory again.
    """
    module = WORKLOADS[workload]
    function = module.function(np, tg.special.erf)
    few, many = (module.arrays(Options(n)) for n in (20_000, elements))
    gradient = tg.grad(function, argnums=tuple(range(len(many))))
    tg.set_num_threads(1)
    results = []
    with tg.executor("compiled"):
        gradient(*few)  # kernels are loaded
        growth = peak_growth(lambda: results.extend(gradient(*many)))
    return growth / sum(result.nbytes for result in results)


class Executor:
    """One instruction on one block, in a region of many."""

    def setup(self):
        threads.set_num_threads(1)

    def track_instruction(self):
        few, many = (cpu_median(self._run(count)) for count in (100, 1100))
        return (many - few) / 1000 * 1e9

    track_instruction.unit = "ns"

    def _run(self, count):
        build = RegionBuilder((3, 3))
        x = value = build.input(0, (3, 1))
        for _ in range(count):
            value = build.op("multiply", value, x)
        build.output(value, 1, (3, 1))
        region, buffers = build.finish(), [np.ones(9), np.empty(9)]
        return lambda: threads.run_region(region, buffers)


class Planning:
    """A plan of a gradient, made anew."""

    def track_instruction(self):
        with tg.executor("compiled"):
            x = tg.array(np.linspace(0.1, 0.9, 1000))
            y = x
            for i in range(1000):
                y = y * x if i % 2 else np.sin(y) + x
            total = np.sum(y)
            total.tape.flush()
        tape, cell = total.tape, total.cell
        wanted = np.ones(len(tape.imports), np.uint8)
        make = lambda: Plan(tape, 0, "gradient", ((cell, cell),), wanted)  # noqa: E731
        make()
        return cpu_median(make) / tape.n * 1e9

    track_instruction.unit = "ns"
