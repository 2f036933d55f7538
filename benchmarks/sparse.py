"""asv: sparse derivatives, in CPU time: what is done once, apart from what each matrix takes."""

import time

import numpy as np

import tapegrad as tg

from .measuring import exponent, interleave, repeat
from .recorded import prepared, swept_hessian
from .workloads import rosenbrock, rosenbrock_point


def bratu(u):
    """Return the residual of a nonlinear PDE on a square grid."""
    n = round(u.size**0.5)
    grid = u.reshape(n, n)
    r = 4.0 * grid - np.exp(grid) / (n + 1) ** 2
    r[1:] -= grid[:-1]
    r[:-1] -= grid[1:]
    r[:, 1:] -= grid[:, :-1]
    r[:, :-1] -= grid[:, 1:]
    return r.ravel()


def growth(rounds):
    """Return the exponents of CPU time against n of computing Hessians, and of preparing them."""
    sizes = (30_000, 100_000, 300_000)  # all beyond the caches
    matrices, preparing = {}, {}
    for n in sizes:
        x = rosenbrock_point(n)
        hessian = tg.sparse_hessian(lambda x, n=n: rosenbrock(x, n))
        preparing[n] = prepared(hessian, x, derive=True)
        matrices[n] = repeat(lambda hessian=hessian, x=x: hessian(x), 10)
    found = (interleave(matrices, rounds), interleave(preparing, min(rounds, 3)))
    return tuple([exponent(sizes, [seconds[n] for n in sizes]) for seconds in found])


class Hessian:
    """The Hessian of the chained Rosenbrock function, tridiagonal."""

    timer = time.process_time
    params = ((2_000, 20_000), ("derived", "swept"))
    param_names = ("length", "way")

    def setup(self, length, way):
        self.x = rosenbrock_point(length)
        f = lambda x: rosenbrock(x, length)  # noqa: E731
        self.hessian = tg.sparse_hessian(f) if way == "derived" else swept_hessian(f, self.x)[0]
        self.prepare = prepared(self.hessian, self.x, derive=way == "derived")
        self.time_matrix(length, way)

    def time_matrix(self, length, way):
        with tg.executor("compiled"):
            self.hessian(self.x)

    def time_prepare(self, length, way):
        self.prepare()


class Jacobian:
    """The Jacobian of a PDE, five nonzeros a row."""

    timer = time.process_time
    params = (10_000,)
    param_names = ("unknowns",)

    def setup(self, unknowns):
        self.u = np.zeros(unknowns)
        self.jacobian = tg.sparse_jacobian(bratu)
        self.prepare = prepared(self.jacobian, self.u, derive=True)
        self.time_matrix(unknowns)

    def time_matrix(self, unknowns):
        with tg.executor("compiled"):
            self.jacobian(self.u)

    def time_prepare(self, unknowns):
        self.prepare()
