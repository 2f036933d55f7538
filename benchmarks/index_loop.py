"""asv: elements read and written one by one in a Python loop; the time must be linear in n."""

import time
from collections.abc import Callable, Sequence

import numpy as np

import tapegrad as tg

from .measuring import exponent, interleave, repeat
from .workloads import fill, read, rosenbrock, rosenbrock_point

SIZES = (10**3, 10**4, 10**5, 10**6)

Call = Callable[[], object]


def read_all(n: int) -> Call:
    """Return a call that reads each element of an array of n."""
    x = tg.array(np.ones(n))
    return lambda: read(x, n)


def write_all(n: int) -> Call:
    """Return a call that assigns a tracked value to each element of an array of n."""
    value = tg.array(2.0) * 1.0
    return lambda: fill(tg.zeros(n), value, n)


def fill_and_reverse(n: int) -> Call:
    """Return a call that fills an array of n element by element, and sweeps back from its sum."""
    value = tg.array(2.0)
    return lambda: fill(tg.zeros(n), value, n).sum().backward()


def rosenbrock_gradient(n: int) -> Call:
    """Return a call of the gradient of a function that reads its n elements one by one."""
    x, grad = rosenbrock_point(n), tg.grad(lambda x: rosenbrock(x, n))
    return lambda: grad(x)


def growth(workload: Callable[[int], Call], sizes: Sequence[int] = SIZES, rounds: int = 5) -> float:
    """Return the exponent of the CPU time of `workload(n)()` against n."""
    repeats = {n: max(1, 10**5 // n) for n in sizes}  # as many accesses at every small size
    seconds = interleave({n: repeat(workload(n), repeats[n]) for n in sizes}, rounds)
    return exponent(sizes, [seconds[n] / repeats[n] for n in sizes])


class Access:
    """One pass over n elements."""

    timer = time.process_time
    params = SIZES
    param_names = ("n",)

    def setup(self, n):
        self.read, self.write = read_all(n), write_all(n)

    def time_read(self, n):
        self.read()

    def time_write(self, n):
        self.write()


class Growth:
    """The exponent of time against n, over n = 1e3 to 1e6: 1 is linear."""

    timeout = 300
    unit = "exponent"

    def track_read(self):
        return growth(read_all)

    def track_write(self):
        return growth(write_all)

    def track_fill_and_reverse(self):
        return growth(fill_and_reverse)

    def track_rosenbrock_gradient(self):
        return growth(rosenbrock_gradient, SIZES[:3])  # 1e6 elements are 8e6 operations
