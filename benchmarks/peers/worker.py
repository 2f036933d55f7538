"""One peer in a process of its own, timed on request; started by `run`.

The conversation is one line of JSON each way: the worker says what it can time, then answers
each name of a function with its times, and the word "memory" with its peak memory.
"""

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..measuring import peak_bytes, pin
from .case import Case, Options

SAMPLE_SECONDS = 0.03
WARM_UP_SECONDS = 2.0
"""Long enough for a system that compiles in the background, or only once it has work to do."""


class Stopwatch:
    """Times functions, each repeated until a sample takes about `SAMPLE_SECONDS`."""

    def __init__(self) -> None:
        self._calls: dict[Callable[[], object], int] = {}

    def __call__(self, function: Callable[[], object]) -> dict[str, float]:
        """Return the seconds of one call by both clocks."""
        calls = self._calls.get(function) or self._calibrate(function)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(calls):
            function()
        return {
            "wall": (time.perf_counter() - wall) / calls,
            "cpu": (time.process_time() - cpu) / calls,
        }

    def _calibrate(self, function: Callable[[], object]) -> int:
        end = time.perf_counter() + WARM_UP_SECONDS
        seconds = math.inf
        while time.perf_counter() < end or seconds == math.inf:
            start = time.perf_counter()
            function()
            seconds = min(seconds, max(time.perf_counter() - start, 1e-9))
        self._calls[function] = calls = max(1, int(SAMPLE_SECONDS / seconds))
        return calls


def serve(case: Case, channel: Any) -> None:
    """Answer the runner until it closes our stdin."""

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=channel, flush=True)

    before = peak_bytes()
    gradient = None if case.gradient is None else np.ravel(np.asarray(case.gradient(), float))
    say(
        {
            "functions": list(case.functions),
            "info": case.info,
            "gradient": None if gradient is None else gradient.tolist(),
        }
    )
    stopwatch = Stopwatch()
    for line in sys.stdin:
        name = line.strip()
        if name == "memory":
            peak = peak_bytes()
            say({} if math.isnan(peak) else {"peak": peak, "growth": peak - before})
        else:
            say(stopwatch(case.functions[name]))


def main() -> None:
    """Set the peer up that the command line names, and serve it."""
    workload, peer, options = sys.argv[1:]
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a system prints must not end up in the conversation
    module = importlib.import_module(f".{workload}", __package__)
    chosen = Options(**json.loads(options))
    pin(chosen.cpu, chosen.threads)
    serve(module.PEERS[peer](chosen), channel)


if __name__ == "__main__":
    main()
