"""asv: what it costs to finish a program, and to replay it."""

import statistics
import time

import numpy as np

import tapegrad as tg
from tapegrad import execute
from tapegrad.kernels.replays import CHECK, GIVE_ADJOINTS, PUT, SEED, SWEEP, SWEEP_BACK
from tapegrad.programs import gradients
from tapegrad.programs.recorded import READY_AFTER

from .measuring import cpu_time, repeat
from .peers.case import Options
from .peers.w1 import PEERS as LOOPS
from .peers.w2 import PEERS as POINTS
from .workloads import LOOP_POINT, rosenbrock, rosenbrock_point, scalar_loop


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


def finishing(name, operations):
    """Return the CPU seconds that one program takes from the end of its function on."""
    if name == "loop":
        f, arguments = (lambda x, a, b: scalar_loop(x, a, b, operations // 8, np.sin)), LOOP_POINT
    else:
        n = operations // 8
        f, arguments = (lambda x: rosenbrock(x, n)), (rosenbrock_point(n),)
    ended = 0.0

    def noting_the_end(*inputs):
        nonlocal ended
        result = f(*inputs)
        ended = time.process_time()
        return result

    with tg.executor("compiled"):
        tg.record(noting_the_end, *arguments)
    return time.process_time() - ended


class Finish:
    """Finishing a program, an instruction: evaluating, simplifying, finding what it captured."""

    params = (("loop", "points"), (100_000, 1_000_000))
    param_names = ("program", "operations")
    unit = "ns"

    def setup(self, program, operations):
        finishing(program, 1_000)

    def track_instruction(self, program, operations):
        seconds = statistics.median(finishing(program, operations) for _ in range(5))
        return 1e9 * seconds / operations


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


class Derivatives:
    """Derivatives of a program: the chained Rosenbrock function of 100 elements, 800 operations."""

    timer = time.process_time

    def setup(self):
        with tg.executor("compiled"):
            self.x = rosenbrock_point(100)
            self.program = tg.record(lambda x: rosenbrock(x, 100), self.x)
            self.time_hessian()
            self.time_product()
            self.time_inside()

    def time_derive(self):
        self.program._gradients.clear()
        self.program.gradient()

    def time_hessian(self):
        self.program.hessian(self.x)

    def time_product(self):
        self.program.hvp(self.x, self.x)

    def time_inside(self):
        tg.grad(lambda x: self.program(x) * 2.0)(self.x)


class LongGradient:
    """The gradient program of 40,000 scalar operations, recorded or derived by compiled code."""

    timer = time.process_time
    params = ("recorded", "compiled")
    param_names = ("how",)

    def setup(self, how):
        with tg.executor("compiled"):
            self.program = tg.record(
                lambda x, a, b: scalar_loop(x, a, b, 5_000, np.sin), *LOOP_POINT
            )
        execute.load("derive")
        gradients.LOADED_FROM = 0 if how == "compiled" else len(self.program) + 1

    def time_derive(self, how):
        self.program._gradients.clear()
        self.program.gradient()


def _branches(x, a, steps):
    for _ in range(steps):
        x = np.sin(a * x) + x / (1.0 + x * x)
        if x > 50.0:
            x = x * 0.5
    return x


def guards_share(operations, compiled, rounds=50):
    """Return what checking decisions adds to a replay, a decision every seven operations, in %.

    The kernel of replays is called with and without the check, in turn.
    """
    with tg.executor("compiled"):
        program = tg.record(lambda x, a: _branches(x, a, operations // 7), 0.3, 1.1)
        for _ in range(READY_AFTER):
            program.value_and_grad(0.3, 1.1)
        if compiled:
            program.compile()
    ready = program.tape.replays.ready
    unguarded = PUT + SWEEP + SEED + SWEEP_BACK + GIVE_ADJOINTS
    times = max(1, 20_000 // operations)
    seconds = [[], []]
    for _ in range(rounds):
        for which, asked in enumerate((unguarded, unguarded + CHECK)):
            ready.values[:2] = 0.3, 1.1
            seconds[which].append(cpu_time(repeat(ready.call(asked), times)))
    without, with_check = map(min, seconds)
    return 100 * (with_check / without - 1)


class Guards:
    """What checking decisions adds to a replay, one decision for seven operations."""

    params = ((100, 10_000, 1_000_000), ("interpreted", "compiled"))
    param_names = ("operations", "loops")
    unit = "%"

    def track_share(self, operations, loops):
        return guards_share(operations, loops == "compiled")
