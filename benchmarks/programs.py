"""asv: what it costs to finish a program, and to replay it."""

import time

import numpy as np

import tapegrad as tg

from .peers.case import Options
from .peers.w1 import PEERS as LOOPS
from .peers.w2 import PEERS as POINTS
from .workloads import LOOP_POINT, scalar_loop


class Replay:
    """Value and gradient of a program of scalar instructions."""

    timer = time.process_time
    params = (1_000, 100_000)
    param_names = ("operations",)

    def setup(self, operations):
        with tg.executor("compiled"):
            self.loop = LOOPS["tapegrad_replay"](Options(operations)).functions["replay"]
            self.points = POINTS["tapegrad_replay"](Options(operations // 8)).functions["replay"]
            self.loop()
            self.points()

    def time_loop(self, operations):
        self.loop()

    def time_points(self, operations):
        self.points()


class Record:
    """Recording 40,000 operations and finishing the program."""

    timer = time.process_time

    def setup(self):
        self.record = lambda: tg.record(
            lambda x, a, b: scalar_loop(x, a, b, 5_000, np.sin), *LOOP_POINT
        )
        with tg.executor("compiled"):
            self.record()

    def time_record(self):
        self.record()
