"""Programs on a simulated device, against the same on the CPU; see `tests/test_simulated.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from simulators import SHARED, close
from tapegrad.batches import lanes
from tapegrad.batches.runs import Task
from tapegrad.devices import batches
from tapegrad.devices.device import device

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

RNG = np.random.default_rng(3)
GPU = device()
GPU.sizes = SHARED


def path(x: Any, a: Any) -> Any:
    """Return a number for a vector of two and a number."""
    y = np.sin(x[0]) * a + x[1]
    return np.log(1.0 + y * y) * np.sum(x)


PATH = tg.record(path, np.ones(2), 0.5)


@pytest.mark.parametrize("where", ["host", "device"])
def test_values_and_derivatives(where: str) -> None:
    x, a, v = RNG.normal(size=(5, 2)), RNG.normal(size=5), RNG.normal(size=(5, 2))
    put = GPU.put if where == "device" else np.asarray
    there, here = PATH.to("cuda").map, PATH.map
    close(there(put(x), put(a)), here(x, a))
    close(there(put(x), 0.7, in_axes=(0, None)), here(x, 0.7, in_axes=(0, None)))
    close(
        there.value_and_grad(put(x), put(a), argnums=(0, 1)),
        here.value_and_grad(x, a, argnums=(0, 1)),
    )
    close(there.grad(put(x), put(a)), here.grad(x, a))
    close(there.hessian(put(x), put(a)), here.hessian(x, a))
    close(there.hvp(put(x), put(a), put(v)), here.hvp(x, a, v))
    result = there(put(x), put(a))
    assert isinstance(result, np.ndarray) == (where == "host")


def test_single_precision() -> None:
    x, a = RNG.normal(size=(3, 2)).astype(np.float32), RNG.normal(size=3).astype(np.float32)
    found = PATH.to("cuda").map(GPU.put(x), GPU.put(a))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.numpy(), PATH.map(x, a), rtol=1e-5)
    with pytest.raises(TypeError, match="all alike, not float32 and float64"):
        PATH.to("cuda").map(GPU.put(x), GPU.put(a.astype(float)))


@pytest.mark.parametrize("where", ["host", "device"])
def test_samples_that_take_another_way_are_right(where: str) -> None:
    program = tg.record(lambda x: x * 2.0 if x > 0.0 else np.exp(x), 1.0)
    x = np.array([1.0, -1.0, 3.0, -2.0])
    there = program.to("cuda").map
    put = GPU.put if where == "device" else np.asarray
    close(there(put(x)), program.map(x))
    close(there.grad(put(x)), program.map.grad(x))


def test_parts_where_memory_does_not_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    long = several_regions(monkeypatch)
    x, a = RNG.normal(size=(7, 2)), RNG.normal(size=7)
    whole = PATH.map(x, a)
    allocate = GPU.driver.allocate

    def small(size: int, dtype: Any) -> Any:
        if size > 4:
            raise MemoryError
        return allocate(size, dtype)

    monkeypatch.setattr(GPU.driver, "allocate", small)
    close(PATH.to("cuda").map(x, a), whole)
    monkeypatch.undo()
    # What waits is more than can be had, and results on the device are not.
    x, a = RNG.normal(size=(40, 2)), RNG.normal(size=40)
    given, whole = (GPU.put(x), GPU.put(a)), long.map(x, a)
    GPU.pool.release()

    def smaller(size: int, dtype: Any) -> Any:
        if size > 80:
            raise MemoryError
        return allocate(size, dtype)

    monkeypatch.setattr(GPU.driver, "allocate", smaller)
    close(long.to("cuda").map(*given), whole)


def test_bad_batches_are_named() -> None:
    there = PATH.to("cuda").map
    x, a = np.ones((3, 2)), np.ones(3)
    with pytest.raises(ValueError, match=r"a ragged batch: .* has 3 samples and .* has 4"):
        there(x, np.ones(4))
    with pytest.raises(ValueError, match="a batch of no samples"):
        there(np.ones((0, 2)), np.ones(0))
    with pytest.raises(ValueError, match=r"samples of shape \(3,\)"):
        there(np.ones((3, 3)), a)
    with pytest.raises(ValueError, match="samples lie along the first axis"):
        there(GPU.put(x.T.copy()), a, in_axes=(1, 0))
    with pytest.raises(ValueError, match="has 0 axes, but in_axes says"):
        there(x, 1.0)
    with pytest.raises(ValueError, match="no argument has an axis"):
        there(x[0], 1.0, in_axes=None)


def several_regions(monkeypatch: pytest.MonkeyPatch) -> tg.Program:
    """Return a program whose lanes are in several regions, with decisions."""
    monkeypatch.setattr(lanes, "MOST_ROWS", 9)

    def steps(x: Any, a: Any) -> Any:
        y = [x[0], x[1], x[0] * a, x[1] * a, x[0] + x[1]]
        for _ in range(4):
            y = [np.sin(y[i]) * y[i - 1] + y[i - 2] for i in range(5)]
        return sum(y) if x[0] > -1.0 else y[0], y[3]

    return tg.record(steps, np.ones(2), 0.5)


@pytest.mark.parametrize("where", ["host", "device"])
def test_long_programs_wait_in_memory_between_their_regions(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = several_regions(monkeypatch)
    x, a = RNG.normal(size=(7, 2)), RNG.normal(size=7)
    x[:, 0] = np.abs(x[:, 0])
    x[3, 0] = -2.0
    there = program.to("cuda").map
    put = GPU.put if where == "device" else np.asarray
    for bytes_ in (batches.WAITING, 1):  # all samples at once, and one by one
        monkeypatch.setattr(batches, "WAITING", bytes_)
        close(there(put(x), put(a)), program.map(x, a))
        close(
            there.jacobian(put(x), 0.5, in_axes=(0, None)),
            program.map.jacobian(x, 0.5, in_axes=(0, None)),
        )
    found = Task("value").lanes(program, len(x))
    assert found is not None
    assert found.waiting > 0


@pytest.mark.parametrize("where", ["host", "device"])
def test_what_no_region_runs_is_run_one_sample_after_another(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapegrad.batches.unroll.MAX_PRODUCTS", 8)
    put = GPU.put if where == "device" else np.asarray
    matrix = RNG.normal(size=(5, 4))
    large = tg.record(lambda x, a: np.sum(np.tanh(matrix @ np.outer(x, x)) * a), np.ones(4), 0.5)
    again = tg.record(lambda x: np.sum(tg.checkpoint(np.exp)(x)), np.ones(3))
    x, a, v = RNG.normal(size=(3, 4)), RNG.normal(size=3), RNG.normal(size=(3, 4))
    there, here = large.to("cuda").map, large.map
    close(there(put(x), put(a)), here(x, a))
    close(there(put(x), 0.5, in_axes=(0, None)), here(x, 0.5, in_axes=(0, None)))
    found = there.value_and_grad(put(x), put(a), argnums=(0, 1))
    close(found, here.value_and_grad(x, a, argnums=(0, 1)))
    assert all(isinstance(part, np.ndarray) == (where == "host") for part in (found[0], *found[1]))
    close(there.hvp(put(x), put(a), put(v)), here.hvp(x, a, v), atol=1e-12)  # large terms cancel
    close(again.to("cuda").map.grad(put(x[:, :3].copy())), again.map.grad(x[:, :3]))
    with pytest.raises(ValueError, match=r"a ragged batch: .* has 3 samples and .* has 2"):
        there(put(x), put(a[:2]))
    with pytest.raises(ValueError, match=r"has shape \(3,\), but the program was recorded"):
        there(put(x[:, 1:].copy()), put(a))


def test_samples_of_another_way_are_right_one_after_another() -> None:
    program = tg.record(
        lambda x: np.sum(x[: int(np.argmax(x)) + 1] ** 2), np.array([1.0, 3.0, 2.0])
    )
    x = np.array([[1.0, 3.0, 2.0], [3.0, 1.0, 2.0], [0.0, 2.0, 1.0]])
    for put in (np.asarray, GPU.put):
        close(program.to("cuda").map.grad(put(x)), program.map.grad(x))


def test_where_programs_go() -> None:
    assert PATH.to("cpu") is PATH
    assert PATH.to(GPU).device is GPU
    assert repr(PATH.to("cuda:0")).endswith("on <cuda:0, CUDA simulator>")
    with pytest.raises(ValueError, match='goes to "cpu", "cuda"'):
        PATH.to("tpu")
    with pytest.raises(tg.DeviceUnavailable, match="no CUDA device 7"):
        PATH.to("cuda:7")
