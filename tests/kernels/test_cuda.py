"""CUDA kernels as far as the driver, and on a GPU; `simulated_cuda.py` tests them without."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.devices.device import Device, device
from tapegrad.devices.launch import Sizes
from tapegrad.kernels.opcodes import FIRST_ROW, ROW_OF
from tapegrad.ops import TABLE
from tapegrad.regions.region import Region, RegionBuilder, run_reference

BASIC = [n for n in range(FIRST_ROW, len(ROW_OF)) if ROW_OF[n - 1] != ROW_OF[n]]


@pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="needs numba-cuda")
def test_a_launch_as_far_as_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: kernels compile for the arguments they get, which arrive as addresses."""
    from tapegrad.kernels.cuda import driver, ptx  # isort: skip  (it knows how to import Numba's)

    from numba.cuda import dispatcher
    from numba.cuda.cudadrv import devices

    seen: list[Any] = []

    def launch(self: Any, args: Any, grid: Any, block: Any, stream: Any, shared: int) -> None:
        words: list[Any] = []
        for kind, value in zip(self.argument_types, args, strict=True):
            self._prepare_args(kind, value, stream, [], words)
        seen.append((tuple(map(str, self.argument_types)), grid[0], block[0], shared, words))

    a_gpu = SimpleNamespace(compute_capability=(9, 0))
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: a_gpu)
    monkeypatch.setattr(devices, "get_context", lambda *args: SimpleNamespace(device=a_gpu))
    monkeypatch.setattr(dispatcher._Kernel, "launch", launch)
    monkeypatch.setattr(dispatcher._Kernel, "bind", lambda self: None)
    for real in ("float64", "float32"):
        kernel = driver.compile_straight(ptx.example(real))
        arguments = [(real, 1 << 40, 9), ("int64", 4096, 9), ("uint32", 8192, 1)]
        driver.Gpu.launch(SimpleNamespace(), kernel, 3, 64, 512, 0, arguments)
        types = (f"{real}*", "int64*", "uint32*")
        assert seen.pop() == (types, 3, 64, 512, [1 << 40, 4096, 8192])


@pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="needs numba-cuda")
def test_numbers_of_errors() -> None:
    from tapegrad.kernels.cuda import driver  # isort: skip  (it knows how to import Numba's)

    from numba.cuda.cudadrv.driver import CudaAPIError

    of_cupy = type("CUDARuntimeError", (RuntimeError,), {"status": 719})
    assert driver.Gpu.code_of(of_cupy()) == 719
    assert driver.Gpu.code_of(CudaAPIError(2, "out of memory")) == driver.OUT_OF_MEMORY
    assert driver.Gpu.code_of(RuntimeError()) is None


@pytest.fixture(scope="module")
def gpu() -> Device:
    try:
        return device()
    except tg.DeviceUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.cuda
@pytest.mark.parametrize("straight", [False, True])
@pytest.mark.parametrize("opcode", BASIC, ids=[ROW_OF[n] for n in BASIC])
def test_every_row_on_a_gpu(gpu: Device, opcode: int, straight: bool) -> None:
    row = TABLE[ROW_OF[opcode]]
    points = np.array(row.points)
    build = RegionBuilder((len(points),))
    value = build.op(opcode, *[build.input(0, (row.arity,), offset=i) for i in range(row.arity)])
    build.output(value, 1, (1,))
    got, want = both(gpu, build.finish(), [points.ravel(), np.zeros(len(points))], straight)
    with np.errstate(all="ignore"):
        # CUDA's functions are within 2 ULP, pow within 2, gamma within 11 (CUDA C++ Programming
        # Guide, Mathematical Functions); the host's are within 1, and rows call a few of them.
        near = np.abs(got[1] - want[1]) <= 64 * np.spacing(np.maximum(np.abs(want[1]), row.scale))
    assert (near | (got[1] == want[1]) | (np.isnan(got[1]) & np.isnan(want[1]))).all()


@pytest.mark.cuda
@pytest.mark.parametrize("sizes", [Sizes(), Sizes(shared=0)], ids=["shared", "global"])
@pytest.mark.parametrize("straight", [False, True])
def test_windows_sums_and_scatters_on_a_gpu(gpu: Device, straight: bool, sizes: Sizes) -> None:
    n, rng = 10007, np.random.default_rng(1)
    index = rng.integers(0, 50, n).astype(np.uint32)
    build = RegionBuilder((n,))
    x = build.op("square", build.input(0, (2,), offset=1))
    build.output(x, 1, (-1,), n - 1)
    build.output(x, 2, (0,))
    build.output(x, 3, (1,), index=4, add=True)
    build.output(x, 5, (1,))
    build.output(x, 5, (1,), 3, add=True)
    buffers = [rng.normal(size=2 * n), np.zeros(n), np.zeros(1), np.ones(50), index, np.ones(n + 9)]
    own = Device(gpu.driver, sizes=sizes)
    got, want = both(own, build.finish(), buffers, straight)
    again, _ = both(own, build.finish(), buffers, straight)
    for i in (1, 2, 3, 5):
        np.testing.assert_allclose(got[i], want[i], rtol=1e-12)  # sums of 1e4 terms, another order
        np.testing.assert_array_equal(got[i], again[i])


def both(gpu: Device, region: Region, buffers: list[Any], straight: bool) -> Any:
    """Return all buffers, as the device and as the reference executor leave them."""
    indices = {i for i, b in enumerate(buffers) if b.dtype == np.uint32}
    given = [b if i in indices else gpu.put(b) for i, b in enumerate(buffers)]
    if straight:
        gpu.load(region, given).specialise()
    gpu.run(region, given)
    expected = [b.copy() for b in buffers]
    run_reference(region, expected)
    return [b if i in indices else b.numpy() for i, b in enumerate(given)], expected
