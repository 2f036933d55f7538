"""The benchmark for GPUs, as far as it goes without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

WITH_THE_SIMULATOR = """
import numpy as np
import tapegrad as tg
from benchmarks.gpu.run import disagreement, expected, tapegrad
from benchmarks.gpu.workloads import WORKLOADS, NumPy
from tapegrad.devices.device import device
from tapegrad.devices.launch import Sizes

gpu = device()
gpu.sizes = Sizes(block=2, threads=4)
for workload in WORKLOADS.values():
    function = tg.value_and_grad(lambda *x: workload.function(NumPy, *x), argnums=workload.argnums)
    single = [function(*sample) for sample in zip(*workload.arguments(5))]
    single = [np.array([value, *gradient]) for value, gradient in single]
    wanted = expected(workload, 5)
    print(disagreement(list(np.transpose(single)), wanted))
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
    assert "no workload w6; there are w5, black_scholes" in done.stderr


def test_tapegrad_computes_the_workloads_in_the_simulator() -> None:
    done = run("-c", WITH_THE_SIMULATOR, NUMBA_ENABLE_CUDASIM="1")
    assert done.returncode == 0, done.stderr
    # Vector functions of the CPU and those of Python differ by an ULP or two an operation.
    assert max(map(float, done.stdout.split())) < 1e-13
