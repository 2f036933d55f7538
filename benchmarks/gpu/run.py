"""Measures value and derivatives of many samples on a GPU, in tapegrad, JAX and PyTorch.

``python -m benchmarks.gpu.run`` prints a table and writes it to benchmarks/results/. Without a GPU
it says so and exits with status 2. Times are wall seconds between two points at which the device
has nothing left to do, medians; systems are measured in turn, round by round.
"""

import argparse
import gc
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tapegrad as tg
from tapegrad.devices.device import Device, device

from .workloads import WORKLOADS, Workload

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("tapegrad", "numpy", "numba", "numba-cuda", "nvidia-nvvm", "jax", "jaxlib", "torch")
CHECKED = 20_011
"""Samples whose results are compared with those of the CPU."""

WARM = 3
"""Calls after the first that are not measured; tapegrad compiles its own kernel in one of them."""

Run = Callable[[], Any]


class System:
    """A system with its own arrays on the device.

    `run` computes all results and waits for them; `results` returns the first of them on the host.
    """

    def __init__(self, name: str, run: Run, results: Callable[[], list[Any]]) -> None:
        self.name, self.run, self.results = name, run, results
        self.first = self.disagree = float("nan")
        self.times: list[float] = []


def tapegrad(gpu: Device, workload: Workload, n: int, own_kernel: bool) -> System:
    """Return tapegrad: interpreted always, or with a kernel of its own."""
    own = Device(gpu.driver, gpu.stream_number, gpu.sizes)
    own.patience = 0.0 if own_kernel else math.inf
    arguments = [own.put(x) for x in workload.arguments(n)]
    batch = workload.program().to(own).map
    kept: list[Any] = []

    def run() -> None:
        kept.clear()
        value, gradient = batch.value_and_grad(*arguments, argnums=workload.argnums)
        own.synchronize()
        kept[:] = [value, *gradient]

    name = "tapegrad, own kernel" if own_kernel else "tapegrad, interpreter"
    return System(name, run, lambda: [x.numpy()[:CHECKED] for x in kept])


def jax(gpu: Device, workload: Workload, n: int) -> System:
    """Return JAX: jit of vmap of value_and_grad."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from jax import numpy as jnp
    from jax.scipy.special import erf

    class Names:
        exp, log, sqrt = jnp.exp, jnp.log, jnp.sqrt

    Names.erf = erf  # type: ignore[attr-defined]
    arguments = [jax.device_put(x) for x in workload.arguments(n)]
    function = jax.value_and_grad(lambda *x: workload.function(Names, *x), workload.argnums)
    compiled = jax.jit(jax.vmap(function))
    kept: list[Any] = []

    def run() -> None:
        kept[:] = [jax.block_until_ready(compiled(*arguments))]

    def results() -> list[Any]:
        value, gradient = kept[0]
        return [np.asarray(x[:CHECKED]) for x in (value, *gradient)]

    return System("JAX jit(vmap(value_and_grad))", run, results)


def torch(gpu: Device, workload: Workload, n: int) -> System:
    """Return PyTorch: torch.compile of the function, and autograd of what it made."""
    import torch

    device = f"cuda:{gpu.number}"
    arguments = [torch.tensor(x, device=device, requires_grad=True) for x in workload.arguments(n)]
    ones = torch.ones(n, dtype=torch.float64, device=device)
    compiled = torch.compile(lambda *x: workload.function(torch, *x), fullgraph=True, dynamic=False)
    kept: list[Any] = []

    def run() -> None:
        value = compiled(*arguments)
        kept[:] = [value.detach(), *torch.autograd.grad(value, arguments, ones)]
        torch.cuda.synchronize()

    return System("torch.compile", run, lambda: [x[:CHECKED].cpu().numpy() for x in kept])


SYSTEMS: tuple[Callable[[Device, Workload, int], System], ...] = (
    lambda gpu, workload, n: tapegrad(gpu, workload, n, own_kernel=False),
    lambda gpu, workload, n: tapegrad(gpu, workload, n, own_kernel=True),
    jax,
    torch,
)


def expected(workload: Workload, n: int) -> list[Any]:
    """Return the first results, computed on the CPU."""
    arguments = [np.ascontiguousarray(x[:CHECKED]) for x in workload.arguments(n)]
    batch = workload.program().map
    value, gradient = batch.value_and_grad(*arguments, argnums=workload.argnums)
    return [value, *gradient]


def disagreement(found: list[Any], wanted: list[Any]) -> float:
    """Return the largest difference, relative to the largest number of each array."""
    pairs = zip(found, wanted, strict=True)
    return max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs)


def bandwidth(gpu: Device, n: int) -> float:
    """Return the bytes a second that the device's own copy reads and writes."""
    from numba import cuda

    with gpu.driver.active():
        source, target = cuda.device_array(n), cuda.device_array(n)
        times = []
        for _ in range(6):
            cuda.synchronize()
            start = time.perf_counter()
            target.copy_to_device(source)
            cuda.synchronize()
            times.append(time.perf_counter() - start)
    return 16 * n / min(times)


def measure(gpu: Device, workload: Workload, n: int, rounds: int) -> list[System]:
    """Return the systems with their times; one that fails is named and left out."""
    wanted = expected(workload, n)
    systems = []
    for make in SYSTEMS:
        try:
            system = make(gpu, workload, n)
            start = time.perf_counter()
            system.run()
            system.first = time.perf_counter() - start
            for _ in range(WARM):
                system.run()
            system.disagree = disagreement(system.results(), wanted)
            systems.append(system)
        except Exception as error:
            line = str(error).strip().split("\n")[0]
            print(f"  left out: {type(error).__name__}: {line[:200]}", flush=True)
            gc.collect()
    for _ in range(rounds):
        for system in systems:
            start = time.perf_counter()
            system.run()
            system.times.append(time.perf_counter() - start)
    return systems


def environment(gpu: Device, copy: float) -> dict[str, Any]:
    """Return what the figures depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "device": gpu.driver.name,
        "driver": asked.stdout.strip(),
        "python": platform.python_version(),
        "versions": versions,
        "copy_bytes_per_second": copy,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.run", description=__doc__.split("\n")[0]
    )
    parser.add_argument("workloads", nargs="*", help="w5, black_scholes (all by default)")
    parser.add_argument("--n", type=int, default=100_000_000, help="samples")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", type=int, default=0)
    options = parser.parse_args(arguments)
    unknown = set(options.workloads) - set(WORKLOADS)
    if unknown:
        parser.error(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        gpu = device(options.device)
    except tg.DeviceUnavailable as error:
        print(f"Nothing is measured: {error}", file=sys.stderr)
        return 2
    copy = bandwidth(gpu, options.n)
    report: dict[str, Any] = environment(gpu, copy) | {"samples": options.n, "workloads": {}}
    print(json.dumps(report, indent=2))
    for name in options.workloads or WORKLOADS:
        workload = WORKLOADS[name]
        moved = 8 * options.n * (2 * len(workload.limits) + 1)  # each number read or written once
        print(f"\n{name}, {options.n:,} samples, {len(workload.limits)} derivatives")
        rows = report["workloads"][name] = []
        for system in measure(gpu, workload, options.n, options.rounds):
            seconds = statistics.median(system.times)
            row = {
                "system": system.name,
                "seconds": seconds,
                "first_call_seconds": system.first,
                "samples_per_second": options.n / seconds,
                "fraction_of_copy_bandwidth": moved / seconds / copy,
                "disagree": system.disagree,
            }
            rows.append(row)
            print(
                f"{system.name:32s} {seconds * 1e3:9.2f} ms, first call {system.first:7.2f} s, "
                f"{row['fraction_of_copy_bandwidth']:6.1%} of the bandwidth, "
                f"disagrees by {system.disagree:.0e}"
            )
    RESULTS.mkdir(exist_ok=True)
    label = "".join(c if c.isalnum() else "-" for c in gpu.driver.name.lower())
    path = RESULTS / f"gpu-{label}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\nwrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
