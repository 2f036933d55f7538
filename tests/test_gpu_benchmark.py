"""The benchmark for GPUs, as far as it goes without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

WITH_THE_SIMULATOR = """
import numpy as np
import tapegrad as tg
from benchmarks.gpu.run import disagreement, expected
from benchmarks.gpu.systems import tapegrad
from benchmarks.gpu.workloads import WORKLOADS, NumPy
from tapegrad.devices.device import device
from tapegrad.devices.launch import Sizes

gpu = device()
gpu.sizes = Sizes(block=2, threads=4)
for workload in WORKLOADS.values():
    function = tg.value_and_grad(lambda *x: workload.function(NumPy, *x), argnums=workload.argnums)
    if workload.one_call:
        value, gradient = function(*workload.arguments(5))
        single = [np.asarray(value), *gradient]
    else:
        single = [function(*sample) for sample in zip(*workload.arguments(5))]
        single = list(np.transpose([np.array([value, *gradient]) for value, gradient in single]))
    wanted = expected(workload, 5)
    print(disagreement(single, wanted))
    for own_kernel in (False, True):
        system = tapegrad(gpu, workload, 5, own_kernel)
        for _ in range(4):
            system.run()
        print(disagreement(system.results(), wanted))
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    env.pop("PYTHONSAFEPATH", None)
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, check=False
    )


def test_without_a_gpu_it_says_so() -> None:
    done = run("-m", "benchmarks.gpu.run", CUDA_VISIBLE_DEVICES="", NUMBA_ENABLE_CUDASIM="0")
    assert done.returncode == 2
    assert done.stderr.startswith("Nothing is measured: no CUDA device: ")
    assert "Traceback" not in done.stderr


def test_an_unknown_workload_is_named() -> None:
    done = run("-m", "benchmarks.gpu.run", "w6")
    assert done.returncode == 2
    assert "no workload w6; there are w5, black_scholes, rosenbrock" in done.stderr


def test_tapegrad_computes_the_workloads_in_the_simulator() -> None:
    done = run("-c", WITH_THE_SIMULATOR, NUMBA_ENABLE_CUDASIM="1")
    assert done.returncode == 0, done.stderr
    # Vector functions of the CPU and those of Python differ by an ULP or two an operation.
    assert max(map(float, done.stdout.split())) < 1e-13


def test_all_of_it_runs_in_the_simulator(tmp_path: Path) -> None:
    command = ["-m", "benchmarks.gpu.run", "--n", "40", "--rounds", "1", "--no-tests"]
    done = run(*command, "--into", str(tmp_path), NUMBA_ENABLE_CUDASIM="1")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu-cuda-simulator.json").read_text(encoding="utf-8"))
    assert report["device"] == "CUDA simulator"
    assert report["versions"]["numpy"]
    assert set(report["workloads"]) == {"w5", "black_scholes", "rosenbrock"}
    for found in report["workloads"].values():
        assert found["samples"] == 40
        assert found["copy_bytes_per_second"] > 0
        names = [row["system"] for row in found["systems"]]
        assert names[:2] == ["tapegrad, interpreter", "tapegrad, own kernel"]
        for row in found["systems"]:
            assert row["seconds"] > 0
            assert row["fraction_of_copy_bandwidth"] > 0
            assert row["disagree"] < 1e-12  # functions of the host and of Python, and sums of 40
