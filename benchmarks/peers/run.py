"""Time every system on one workload: `python -m benchmarks.peers.run w1 --n 100000`.

Each system works in a process of its own. Their gradients are compared first; then all functions
of all systems are timed in turn, round by round, and medians of paired ratios are printed, so that
a slow spell of the machine does not favour one of them. On one thread the figures are CPU seconds.
"""

import argparse
import contextlib
import importlib
import json
import os
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..measuring import environment
from .case import Options

ROOT = Path(__file__).resolve().parents[2]
WORKLOADS = ("w1", "w2", "w3", "w3bs", "w5", "w6", "dense")
TOLERANCE = 1e-10
"""Relative disagreement of gradients above which a run fails: rounding on 1e5 operations."""


class Failure(RuntimeError):
    """A system that is absent, fails or takes too long; the message says which."""


class Worker:
    """The process of one system, and what it has answered so far."""

    def __init__(self, workload: str, peer: str, options: Options, timeout: float) -> None:
        self.peer = peer
        self.times: dict[str, list[dict[str, float]]] = {}
        self.memory: dict[str, float] = {}
        self._timeout = timeout
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", f"{__package__}.worker"),
                *(workload, peer, json.dumps(asdict(options))),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(options.threads),
            cwd=ROOT,
            text=True,
            start_new_session=True,  # so that `close` reaches a compiler that a system has started
        )
        # A thread waits for the answers: Windows cannot wait for a pipe with a time limit.
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            ready = self._answer()
        except Failure:
            self.close()
            raise
        self.functions: list[str] = ready["functions"]
        self.info: dict[str, float] = ready["info"]
        self.gradient = None if ready["gradient"] is None else np.array(ready["gradient"])

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=self._timeout)
        except queue.Empty:
            raise Failure(f"no answer within {self._timeout:.0f} s") from None
        if not line:
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines() or ["it died without a word"]
            raise Failure(said[-1][:150])
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, request: str) -> dict[str, float]:
        """Return the answer to one request."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it is dead: the answer says why
        return self._answer()

    def sample(self) -> None:
        """Time each function once more."""
        for name in self.functions:
            self.times.setdefault(name, []).append(self.ask(name))

    def close(self) -> None:
        """End the process and what it started."""
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


@dataclass
class Row:
    """One function of one system: seconds a call, and how it stands to the base and to itself."""

    peer: str
    function: str
    wall: float
    cpu: float
    best_cpu: float
    ns_per_operation: float
    ratio: float
    against_primal: float | None
    disagreement: float | None
    memory: dict[str, float]
    info: dict[str, float]

    @property
    def agrees(self) -> bool:
        """Whether the gradient is the base's, or none was computed; nan disagrees."""
        return self.disagreement is None or self.disagreement <= TOLERANCE


@dataclass
class Comparison:
    """The outcome of a run; `absent` says why the other systems are not in `rows`."""

    workload: str
    base: str
    rows: list[Row] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def row(self, peer: str, function: str = "grad") -> Row | None:
        """Return one row, or None where the system is absent."""
        found = (r for r in self.rows if (r.peer, r.function) == (peer, function))
        return next(found, None)


def compare(
    workload: str,
    options: Options | None = None,
    *,
    peers: Sequence[str] = (),
    base: str = "tapegrad",
    rounds: int = 7,
    timeout: float = 120.0,
) -> Comparison:
    """Run a workload in each of `peers` (all of them by default) and compare it with `base`."""
    module = importlib.import_module(f".{workload}", __package__)
    options = options or Options()
    unknown = set(peers).difference(module.PEERS)
    if unknown:
        known = ", ".join(module.PEERS)
        raise ValueError(f"{workload} has no peer {', '.join(sorted(unknown))}: it has {known}")
    workers: dict[str, Worker] = {}
    absent: dict[str, str] = {}
    try:
        for peer in peers or module.PEERS:
            try:
                workers[peer] = Worker(workload, peer, options, timeout)
            except Failure as failure:
                absent[peer] = str(failure)
        for request in ["time"] * rounds + ["memory"]:
            for peer, worker in list(workers.items()):
                try:
                    if request == "time":
                        worker.sample()
                    else:
                        worker.memory = worker.ask("memory")
                except Failure as failure:
                    absent[peer] = str(failure)
                    workers.pop(peer).close()
    finally:
        for worker in workers.values():
            worker.close()
    if not workers:
        return Comparison(workload, base, [], absent)
    if base not in workers:
        base = next(iter(workers))
    clock = "cpu" if options.threads == 1 else "wall"
    operations = module.operations(options)
    rows = [
        _row(worker, function, workers[base], clock, operations)
        for worker in workers.values()
        for function in worker.functions
    ]
    return Comparison(workload, base, rows, absent)


def _row(worker: Worker, function: str, base: Worker, clock: str, operations: int) -> Row:
    def median(key: str) -> float:
        return statistics.median(sample[key] for sample in worker.times[function])

    def ratio(to: list[dict[str, float]]) -> float:
        pairs = zip(worker.times[function], to, strict=True)
        return statistics.median(ours[clock] / theirs[clock] for ours, theirs in pairs)

    # A function that the base lacks (a replay, say) is held against the base's gradient.
    counterpart = next(f for f in (function, "grad", base.functions[0]) if f in base.times)
    primal = worker.times.get("primal")
    return Row(
        peer=worker.peer,
        function=function,
        wall=median("wall"),
        cpu=median("cpu"),
        best_cpu=min(sample["cpu"] for sample in worker.times[function]),
        ns_per_operation=median(clock) / operations * 1e9,
        ratio=ratio(base.times[counterpart]),
        against_primal=None if primal is None else ratio(primal),
        disagreement=_disagreement(worker.gradient, base.gradient),
        memory=worker.memory,
        info=worker.info,
    )


def _disagreement(gradient: Any, reference: Any) -> float | None:
    if gradient is None or reference is None:
        return None
    if gradient.shape != reference.shape:
        return float("inf")
    return float(np.max(np.abs(gradient - reference)) / max(1e-300, np.max(np.abs(reference))))


def show(comparison: Comparison) -> None:
    """Print the table."""
    print(
        f"{'peer':14} {'function':8} {'wall ms':>10} {'cpu ms':>10} {'best cpu':>10} {'ns/op':>9} "
        f"{'x base':>9} {'x own f':>8} {'disagree':>8}  {'peak MB':>7} {'work MB':>7}  info"
    )
    for row in comparison.rows:
        own = "" if row.against_primal is None else f"{row.against_primal:.2f}"
        off = "" if row.disagreement is None else f"{row.disagreement:.1e}"
        memory = [f"{v / 1e6:.0f}" for v in row.memory.values()] or ["", ""]
        print(
            f"{row.peer:14} {row.function:8} {row.wall * 1e3:10.4f} {row.cpu * 1e3:10.4f} "
            f"{row.best_cpu * 1e3:10.4f} {row.ns_per_operation:9.2f} {row.ratio:9.3g} {own:>8} "
            f"{off:>8}{' ' if row.agrees else '!'} {memory[0]:>7} {memory[1]:>7}  "
            + " ".join(f"{key}={value:.3g}" for key, value in row.info.items())
        )
    for peer, reason in comparison.absent.items():
        print(f"{peer:14} not measured: {reason}")


def main() -> int:
    """Run what the command line asks for; the exit status is 1 where gradients disagree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.run", description=__doc__)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--n", type=int, default=0, help="size; 0: the workload's usual one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu", type=int, default=-1, help="the core to stay on; -1: the last")
    parser.add_argument("--peers", default="", help="comma-separated names; all by default")
    parser.add_argument("--base", default="tapegrad", help="what ratios are taken to")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one answer")
    parser.add_argument("--json", type=Path, help="a file to write all figures to")
    asked = parser.parse_args()
    comparison = compare(
        asked.workload,
        Options(asked.n, asked.threads, asked.cpu),
        peers=[name for name in asked.peers.split(",") if name],
        base=asked.base,
        rounds=asked.rounds,
        timeout=asked.timeout,
    )
    show(comparison)
    if asked.json:
        asked.json.write_text(json.dumps(asdict(comparison), indent=1))
    return 0 if all(row.agrees for row in comparison.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
