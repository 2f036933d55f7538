"""asv: what it costs to record one operation, in CPU time of 1,000 of them."""

import time

import numpy as np

import tapegrad as tg

COUNT = 1000


class Scalars:
    """Operators and functions on scalars. Each call starts from a leaf."""

    timer = time.process_time

    def setup(self):
        self.x, self.y = tg.array(1.01), tg.array(0.99)

    def time_multiply(self):
        z, y = self.x, self.y
        for _ in range(COUNT):
            z = z * y

    def time_multiply_constant(self):
        z = self.x
        for _ in range(COUNT):
            z = z * 1.01

    def time_sin(self):
        z, sin = self.x, np.sin
        for _ in range(COUNT):
            z = sin(z)


class Arrays:
    """Operators, functions and windows on arrays: recording does not depend on their size."""

    timer = time.process_time
    params = (10, 1000)
    param_names = ("size",)

    def setup(self, size):
        self.x = tg.array(np.linspace(0.5, 1.5, size))
        self.y = self.x * 1.01  # not a leaf: windows on a recorded value

    def time_multiply(self, size):
        x, y = self.x, self.y
        for _ in range(COUNT):
            x * y

    def time_sin(self, size):
        y, sin = self.y, np.sin
        for _ in range(COUNT):
            sin(y)

    def time_slice(self, size):
        y = self.y
        for _ in range(COUNT):
            y[1:-1]
