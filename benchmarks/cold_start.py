"""asv: what the first import and the first gradient cost, in CPU seconds of a fresh process."""

import statistics
import tempfile
from collections.abc import Sequence

from .measuring import Child, run_child

TIMED_IMPORT = """
import time
start = time.process_time()
import {module}
value = time.process_time() - start
"""

TEN_OPERATIONS = """
import sys
import numpy as np, tapegrad as tg
def f(x):
    return np.sin(x[0] * x[1]) + x[2] * x[0] / (1.0 + x[1] * x[1]) - x[0] * (x[0] + x[2])
tg.grad(f)(np.array([0.3, 0.7, 1.1]))
value = "numba" in sys.modules
"""

# The scalar loop of `workloads`, with 1e5 operations. Its adjoints stay away from zero, so that no
# instruction is skipped; in a plain chain of contractions they would soon underflow.
_LOOP = """
import sys
import numpy as np, tapegrad as tg
def f(p):
    x, a, b = p
    total = 0.0
    for _ in range(12_500):
        xx = x * x
        x = np.sin(a * x) + b * xx / (1.0 + xx)
        total = total + x
    return total
point = np.array([0.3, 2.1, 0.7])
"""
_CHECK = """
assert np.all(np.isfinite(gradient)) and np.all(gradient != 0.0), gradient
value = "numba" in sys.modules
"""
MANY_OPERATIONS = _LOOP + "gradient = tg.grad(f)(point)" + _CHECK
# The same, where kernels are loaded whether this much work asks for them or not.
COMPILED = _LOOP + "with tg.executor('compiled'): gradient = tg.grad(f)(point)" + _CHECK


# All kernels of lanes, float64 and float32, and their planner: compiled, or loaded.
REGION_KERNELS = """
import time
import tapegrad as tg
from tapegrad import execute
start = time.process_time()
for family in ("regions", "regions32", "planning"):
    execute.load(family)
value = time.process_time() - start
"""


def import_ratio(rounds: int = 7) -> float:
    """Return the CPU time of `import tapegrad` over that of `import numpy`: a paired median."""
    ratios = []
    for number in range(rounds + 1):
        ours, numpy = (
            run_child(TIMED_IMPORT.format(module=module)).value for module in ("tapegrad", "numpy")
        )
        if number:  # the first import may compile Python's byte code
            ratios.append(ours / numpy)
    return statistics.median(ratios)


def region_kernels(*, warm: bool, rounds: int = 3) -> float:
    """Return the CPU seconds, Numba's import included, until regions can run: a median."""
    seconds = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            if warm:
                run_child(REGION_KERNELS, NUMBA_CACHE_DIR=cache)
                children = [run_child(REGION_KERNELS, NUMBA_CACHE_DIR=cache) for _ in range(rounds)]
                return statistics.median(child.value for child in children)
            seconds.append(run_child(REGION_KERNELS, NUMBA_CACHE_DIR=cache).value)
    return statistics.median(seconds)


def first_gradient(code: str, *, warm: bool, rounds: int = 3) -> list[Child]:
    """Return the children that ran `code` with a warm or an empty cache of kernels.

    The cache lies in a folder of its own: neither a user's cache is touched, nor what a
    former run has left is used.
    """
    with tempfile.TemporaryDirectory() as cache:
        if warm:
            run_child(COMPILED, NUMBA_CACHE_DIR=cache)
            return [run_child(code, NUMBA_CACHE_DIR=cache) for _ in range(rounds)]
    children = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            children.append(run_child(code, NUMBA_CACHE_DIR=cache))
    return children


def median_cpu(children: Sequence[Child]) -> float:
    """Return the median CPU seconds of some children."""
    return statistics.median(child.cpu for child in children)


class Import:
    """`import tapegrad` against `import numpy`."""

    unit = "ratio"

    def track_ratio(self):
        return import_ratio(rounds=3)


class FirstGradient:
    """From the start of Python to the first gradient."""

    params = ("warm", "cold")
    param_names = ("cache",)
    unit = "s"
    timeout = 300

    def track_ten_operations(self, cache):
        return median_cpu(first_gradient(TEN_OPERATIONS, warm=cache == "warm"))

    def track_region_kernels(self, cache):
        return region_kernels(warm=cache == "warm", rounds=1)

    def track_many_operations(self, cache):
        return median_cpu(first_gradient(MANY_OPERATIONS, warm=cache == "warm", rounds=1))

    def track_compiled(self, cache):
        return median_cpu(first_gradient(COMPILED, warm=cache == "warm", rounds=1))
