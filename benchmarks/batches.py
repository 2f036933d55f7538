"""asv: what it costs to run a program over many samples."""

import time

import numpy as np

import tapegrad as tg

from .peers.case import Options
from .peers.w5 import PEERS
from .workloads import path


class Batch:
    """Value and four derivatives of a small function, a sample a lane."""

    timer = time.process_time
    params = (1_000, 1_000_000)
    param_names = ("samples",)

    def setup(self, samples):
        with tg.executor("compiled"):
            self.run = PEERS["tapegrad"](Options(samples)).functions["grad"]

    def time_batch(self, samples):
        self.run()


class Singles:
    """The same in single precision."""

    timer = time.process_time
    params = (1_000, 1_000_000)
    param_names = ("samples",)

    def setup(self, samples):
        self.points = [np.linspace(0.1, 0.5, samples, dtype=np.float32) for _ in range(4)]
        self.program = tg.record(lambda *p: path(np, *p), *[p[0] for p in self.points])
        with tg.executor("compiled"):
            self.time_batch(samples)

    def time_batch(self, samples):
        self.program.map.value_and_grad(*self.points, argnums=(0, 1, 2, 3))


class Long:
    """Value and two derivatives of 50,000 instructions a sample: rows of some megabytes a block."""

    timer = time.process_time

    def setup(self):
        self.points = np.random.default_rng(0).uniform(0.5, 1.0, (8192, 2))
        self.program = tg.record(self._path, self.points[0])
        with tg.executor("compiled"):
            self.time_long()

    @staticmethod
    def _path(point):
        x, v = point[0], point[1]
        for _ in range(5_000):
            a = np.sin(x) * 0.3 - 0.7 * x - 0.1 * v * v
            v = v + 0.01 * a
            x = x + 0.01 * v
        return x * x + v

    def time_long(self):
        self.program.map.value_and_grad(self.points)


class First:
    """Recording a function, deriving what it needs, and the first thousand samples."""

    timer = time.process_time

    def setup(self):
        self.points = [np.linspace(0.1, 0.5, 1000) for _ in range(4)]
        with tg.executor("compiled"):
            self.time_first()

    def time_first(self):
        f = tg.value_and_grad(lambda *point: path(np, *point), argnums=(0, 1, 2, 3))
        tg.vmap(f)(*self.points)
