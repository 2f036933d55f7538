"""Programs on a GPU, where there is one; `simulated_programs.py` tests them without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import trees
from tapegrad.devices.device import Device, device
from tapegrad.devices.modules import OnHost


@pytest.fixture(scope="module", params=["own choice", "host"])
def gpu(request: Any) -> Device:
    """Return a GPU whose structural operations run where they do by default, and on the host."""
    try:
        found = device()
    except tg.DeviceUnavailable as error:
        pytest.skip(str(error))
    own = Device(found.driver, sizes=found.sizes)
    if request.param == "host":
        own.arrays = OnHost(own)
    return own


PLACES = np.random.default_rng(1).integers(0, 3000, 20_000)
CODE: dict[str, Callable[..., Any]] = {
    "elementwise": lambda a, s: np.sum(np.sin(a) * np.exp(-a * a)) * s / a.size,
    "stencil": lambda a, s: np.sum((a[2:] - 2 * a[1:-1] + a[:-2]) ** 2 * s),
    "gather": lambda a, s: np.sum(a[PLACES] ** 3) * s + a[0] * a[1],
    "products": lambda a, s: np.sum(np.tanh(a[:2500].reshape(50, 50) @ a[-50:]) ** 2) * s,
    "scans": lambda a, s: np.max(np.cumsum(a)) * s + np.prod(1.0 + 0.001 * np.cumprod(a[:40])),
}


@pytest.mark.cuda
@pytest.mark.parametrize("name", CODE)
def test_programs_on_a_gpu(gpu: Device, name: str) -> None:
    rng = np.random.default_rng(2)
    a, t = rng.normal(size=30_000), rng.normal(size=30_000)
    program = tg.record(CODE[name], a, 0.5)
    there = program.to(gpu)
    for real, rtol in (("float64", 1e-11), ("float32", 2e-3)):  # sums of 3e4 terms
        put = gpu.put(a.astype(real))
        value, gradient = there.value_and_grad(put, 0.25, argnums=(0, 1))
        expected = program.value_and_grad(a, 0.25, argnums=(0, 1))
        close((value, gradient), expected, rtol)
        again = there.value_and_grad(put, 0.25, argnums=(0, 1))
        for one, other in zip((value, *gradient), (again[0], *again[1]), strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())
    close(there.jvp((gpu.put(a), 0.25), (t, 1.0)), program.jvp((a, 0.25), (t, 1.0)), 1e-10)
    close(there(a, 0.25), program(a, 0.25), 1e-11)


@pytest.mark.cuda
def test_a_stream_and_arrays_of_cupy(gpu: Device) -> None:
    cupy = pytest.importorskip("cupy")
    stream = cupy.cuda.Stream(non_blocking=True)
    rng = np.random.default_rng(3)
    a = rng.normal(size=(200, 200))
    program = tg.record(lambda a: np.sum(np.sin(a @ a) * np.cumsum(a, axis=0)), a)
    with stream:
        value, gradient = program.to("cuda", stream=stream).value_and_grad(cupy.asarray(a))
        found = cupy.asarray(gradient)
        close((value, cupy.asnumpy(found)), program.value_and_grad(a), 1e-10)


def close(found: Any, wanted: Any, rtol: float) -> None:
    (one, _), (other, _) = trees.flatten(found), trees.flatten(wanted)
    for x, y in zip(one, other, strict=True):
        x = x.numpy() if hasattr(x, "numpy") else np.asarray(x)
        assert x.shape == np.shape(y)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * np.abs(y).max())
