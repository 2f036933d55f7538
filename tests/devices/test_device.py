"""Devices: what is said where there is none, and what needs none."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.devices import device as devices
from tapegrad.devices.batches import in_parts
from tapegrad.devices.loaded import cut
from tapegrad.regions.region import RegionBuilder, run_reference


def run(code: str, **environment: str) -> str:
    """Run code in a process of its own, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ASK = """
import tapegrad as tg
from tapegrad.devices.device import device
try:
    device()
except tg.DeviceUnavailable as error:
    print(error)
print(tg.grad(lambda x: x * x)(3.0))
"""


def test_without_the_package_the_message_says_what_to_install() -> None:
    hide = "import importlib.util as u; find = u.find_spec\n"
    hide += "u.find_spec = lambda name, *a: None if name == 'numba_cuda' else find(name, *a)\n"
    message, gradient = run(hide + ASK, NUMBA_ENABLE_CUDASIM="0").splitlines()
    assert 'numba-cuda is not installed; pip install "tapegrad[cuda]"' in message
    assert gradient == "6.0"


def test_a_package_that_cannot_be_imported_is_named() -> None:
    break_ = "import sys, importlib.util as u; find = u.find_spec\n"
    break_ += (
        "u.find_spec = lambda name, *a: object() if name == 'numba_cuda' else find(name, *a)\n"
    )
    break_ += "sys.modules['tapegrad.kernels.cuda.driver'] = None\n"
    message, gradient = run(break_ + ASK, NUMBA_ENABLE_CUDASIM="0").splitlines()
    assert message.startswith("no CUDA device: numba-cuda cannot be imported (")
    assert gradient == "6.0"


@pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="needs numba-cuda")
def test_without_a_gpu_the_message_says_so() -> None:
    # A GPU that is there is hidden from the driver.
    message, gradient = run(ASK, CUDA_VISIBLE_DEVICES="", NUMBA_ENABLE_CUDASIM="0").splitlines()
    assert message.startswith("no CUDA device: ")
    assert gradient == "6.0"


@pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="needs numba-cuda")
def test_numba_cuda_works_with_a_numpy_that_has_no_row_stack() -> None:
    code = "import numpy as np\nif hasattr(np, 'row_stack'): del np.row_stack\n"
    code += "from tapegrad.kernels.cuda import float64, ptx\n"
    code += "ptx.compile_one(*ptx.kernels('float64')['clear'], cc=(8, 0))"
    run(code, NUMBA_ENABLE_CUDASIM="0")


def test_numba_cuda_is_imported_when_a_device_is_asked_for() -> None:
    code = "import sys, tapegrad, tapegrad.devices.device, tapegrad.devices.launch\n"
    code += "print([m for m in sys.modules if m.startswith(('numba', 'cuda', 'cupy'))])"
    assert run(code).strip() == "[]"


def test_exported() -> None:
    assert issubclass(tg.DeviceUnavailable, RuntimeError)
    assert devices.DeviceUnavailable is tg.DeviceUnavailable


def test_parts_of_a_batch() -> None:
    done: list[tuple[int, int]] = []

    def run(start: int, stop: int) -> None:
        if stop - start > 4:
            raise MemoryError
        done.append((start, stop))

    in_parts(10, run)
    assert [low for low, _ in done] == [0, *(high for _, high in done[:-1])]
    assert done[-1][1] == 10
    done.clear()
    in_parts(0, run)
    assert not done
    with pytest.raises(MemoryError):
        in_parts(3, lambda start, stop: (_ for _ in ()).throw(MemoryError))


def test_parts_of_a_region_add_up_to_it() -> None:
    build = RegionBuilder((3, 5))
    x = build.input(0, (5, 1))
    build.output(x, 1, (0, 1))
    build.output(x, 2, (5, 1), add=True)
    region = build.finish()
    values = np.arange(15.0)
    whole = [values, np.zeros(5), np.ones(15)]
    run_reference(region, whole)
    parts = [values, np.zeros(5), np.ones(15)]
    run_reference(cut(region, 1, 0, 2), parts)
    run_reference(cut(region, 1, 2, 5), parts)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)
