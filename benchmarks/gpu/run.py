"""Tests tapegrad on a GPU, then measures it beside JAX and PyTorch, on the same card in one run.

``python -m benchmarks.gpu.run`` prints a table and writes it to benchmarks/results/, anew after
each workload. Without a GPU it says so and exits with status 2. Times are wall seconds between two
points at which the device has nothing left to do, medians; systems are measured in turn, round by
round. Each workload has a process of its own, so that none finds the memory of another.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import tapegrad as tg
from tapegrad.devices.device import Device, device

from .systems import SYSTEMS, System, start_of
from .workloads import WORKLOADS, Workload

ROOT = Path(__file__).parents[2]
PACKAGES = (
    *("tapegrad", "numpy", "numba", "numba-cuda", "nvidia-nvvm", "cuda-bindings", "cupy-cuda13x"),
    *("jax", "jaxlib", "torch", "triton"),
)
WARM = 3
"""Calls after the first that are not measured; tapegrad compiles its own kernel in one of them."""

RIGHT = 1e-9
"""How far results may be from the CPU's: sums of 1e8 numbers, and functions good to some ULP."""


def expected(workload: Workload, n: int) -> list[Any]:
    """Return the first results, computed on the CPU."""
    program = workload.program(n)
    arguments = workload.arguments(n)
    if workload.one_call:
        value, gradient = program.value_and_grad(*arguments, argnums=workload.argnums)
    else:
        arguments = [np.ascontiguousarray(start_of(x)) for x in arguments]
        value, gradient = program.map.value_and_grad(*arguments, argnums=workload.argnums)
    return [start_of(x) for x in (value, *gradient)]


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
            line = (str(error).strip().split("\n") or [""])[0]
            print(f"  left out: {type(error).__name__}: {line[:200]}", flush=True)
            gc.collect()
    for _ in range(rounds):
        for system in systems:
            start = time.perf_counter()
            system.run()
            system.times.append(time.perf_counter() - start)
    return systems


def rows_of(gpu: Device, workload: Workload, n: int, rounds: int) -> dict[str, Any]:
    """Measure a workload, print its table, and return what is kept of it."""
    copy = bandwidth(gpu, n)
    print(f"\n{workload.name}, {n:,} samples, {len(workload.limits)} derivatives each", flush=True)
    rows = []
    for system in measure(gpu, workload, n, rounds):
        seconds = statistics.median(system.times)
        row = {
            "system": system.name,
            "seconds": seconds,
            "first_call_seconds": system.first,
            "samples_per_second": n / seconds,
            "fraction_of_copy_bandwidth": workload.bytes_moved(n) / seconds / copy,
            "disagree": system.disagree,
        }
        rows.append(row)
        print(
            f"{system.name:32s} {seconds * 1e3:9.2f} ms, first call {system.first:7.2f} s, "
            f"{row['fraction_of_copy_bandwidth']:6.1%} of the bandwidth, "
            f"disagrees by {system.disagree:.0e}{'' if system.disagree < RIGHT else '  <- WRONG'}",
            flush=True,
        )
    return {"samples": n, "copy_bytes_per_second": copy, "systems": rows}


def in_a_process(name: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """Return what is kept of a workload that is measured by another process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.json")
        command = [sys.executable, "-m", "benchmarks.gpu.run", name, "--alone", str(path)]
        for option in ("n", "rounds", "device"):
            command += [f"--{option}", str(getattr(options, option))]
        subprocess.run(command, check=False, cwd=ROOT)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def tests() -> str:
    """Run the tests that need a GPU, and return the last line of what they say."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "--maxfail=20", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]]
    if done.returncode:
        print("\n".join(lines[-60:]), file=sys.stderr)
    return lines[-1]


def environment(gpu: Device) -> dict[str, Any]:
    """Return what the figures depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": gpu.driver.name,
        "driver": _said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "commit": _said("git", "rev-parse", "HEAD"),
        "python": platform.python_version(),
        "versions": versions,
    }


def _said(*command: str) -> str:
    """Return what a program says; nothing where there is none."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.run", description=__doc__.split("\n")[0]
    )
    parser.add_argument("workloads", nargs="*", help=f"{', '.join(WORKLOADS)} (all by default)")
    parser.add_argument("--n", type=int, default=100_000_000, help="samples")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--no-tests", action="store_true", help="do not run `pytest -m cuda` first")
    parser.add_argument("--into", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = set(options.workloads) - set(WORKLOADS)
    if unknown:
        parser.error(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Test and measure, and return the exit status: 1 where something is wrong."""
    options = _options(arguments)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        gpu = device(options.device)
    except tg.DeviceUnavailable as error:
        print(f"Nothing is measured: {error}", file=sys.stderr)
        return 2
    if options.alone:
        (name,) = options.workloads
        found = rows_of(gpu, WORKLOADS[name], options.n, options.rounds)
        options.alone.write_text(json.dumps(found), encoding="utf-8")
        return 0
    report = environment(gpu) | {"tests": "not run", "workloads": {}}
    if not options.no_tests:
        report["tests"] = tests()
    print(json.dumps(report, indent=2), flush=True)
    options.into.mkdir(parents=True, exist_ok=True)
    label = "".join(c if c.isalnum() else "-" for c in gpu.driver.name.lower())
    path = options.into / f"gpu-{label}.json"
    right = "failed" not in report["tests"] and "error" not in report["tests"]
    for name in options.workloads or WORKLOADS:
        found = in_a_process(name, options)
        report["workloads"][name] = found
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        ours = [row for row in (found or {"systems": []})["systems"] if "tapegrad" in row["system"]]
        right = right and len(ours) == 2 and all(row["disagree"] < RIGHT for row in ours)
    print(f"\nwrote {path}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
