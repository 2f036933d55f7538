"""asv: what it costs to sweep a recorded scalar tape, forward and backward.

The tape of 1e7 instructions takes seconds to record: set TAPEGRAD_BENCH_LARGE=1 to have it.
"""

import os
import time

import tapegrad as tg

from .measuring import cpu_median
from .recorded import RecordedLoop

SIZES = (10**5, 10**7) if os.environ.get("TAPEGRAD_BENCH_LARGE") else (10**5,)


class Loop:
    """The tape of the scalar loop w1."""

    timer = time.process_time
    params = SIZES
    param_names = ("operations",)

    def setup(self, operations):
        self.loop = RecordedLoop(operations)

    def time_forward(self, operations):
        self.loop.forward()

    def time_reverse(self, operations):
        self.loop.reverse()

    def track_instruction(self, operations):
        return cpu_median(self.loop.sweep) / self.loop.instructions * 1e9

    track_instruction.unit = "ns"


class Gradient:
    """Recording and sweeping together, as a user meets it."""

    timer = time.process_time
    params = SIZES
    param_names = ("operations",)

    def setup(self, operations):
        from .peers.case import Options
        from .peers.w1 import PEERS

        self.gradient = PEERS["tapegrad"](Options(operations)).functions["grad"]
        with tg.executor("compiled"):
            self.gradient()

    def time_gradient(self, operations):
        self.gradient()
