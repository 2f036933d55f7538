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
