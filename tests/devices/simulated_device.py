"""A simulated device: how it is found, its memory, and errors.

`tests/test_simulated.py` runs this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulators import SHARED, Dying, Elsewhere, on, program
from tapegrad.devices import device as devices
from tapegrad.devices.device import Device
from tapegrad.errors import DeviceLostError, MixedDevicesError
from tapegrad.kernels.cuda import driver


def test_the_device_is_found() -> None:
    found = devices.device()
    assert found is devices.device(0)
    assert repr(found) == "<cuda:0, CUDA simulator>"
    with pytest.raises(devices.DeviceUnavailable, match="no CUDA device 3: there are 1"):
        devices.device(3)
    with pytest.raises(TypeError, match="a stream is the number"):
        devices.device(0, stream="fast")
    found.synchronize()


class Numba:
    """What `numba.cuda` says of a machine."""

    def __init__(self, available: bool, error: str | None, count: int = 0) -> None:
        self.is_available, self.cuda_error = lambda: available, lambda: error
        self.list_devices = lambda: [None] * count


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (Numba(False, "CUDA driver library cannot be found. "), "CUDA driver library cannot be"),
        (
            Numba(False, "Call to cuInit results in CUDA_ERROR_NO_DEVICE (100)"),
            "finds no GPU: Call",
        ),
        (Numba(True, None), "the CUDA driver finds no GPU"),
        (Numba(False, None), r"finds no NVVM .* pip install \"tapegrad\[cuda\]\""),
    ],
    ids=["no driver", "no GPU", "none listed", "no compiler"],
)
def test_what_is_missing_is_named(
    machine: Numba, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SIMULATED", False)
    monkeypatch.setattr(driver, "cuda", machine)
    with pytest.raises(devices.DeviceUnavailable, match=f"no CUDA device: .*{message}"):
        devices.device()


def test_memory_is_used_again_unless_another_library_knows_of_it() -> None:
    device = on(SHARED)
    first = device.put(np.ones(100))
    address = first.address
    view = first.after(50)
    del first
    other = device.empty(100)  # the view is alive
    assert other.address != address
    del view
    assert device.empty(100).address == address
    asked: dict[str, Any] = other.__cuda_array_interface__
    del other
    assert all(
        memory.address != asked["data"][0] for some in device.pool.free.values() for memory in some
    )
    device.pool.release()
    assert not device.pool.free


def test_errors_come_before_anything_is_written() -> None:
    region, buffers = program(4)
    device = on(SHARED)
    x, y, total = (device.put(b + 7.0) for b in buffers)
    with pytest.raises(IndexError, match="buffer 1 has 3 elements"):
        device.run(region, [x, device.put(np.zeros(3)), total])
    with pytest.raises(TypeError, match="all alike, not on float32 and float64"):
        device.run(region, [x, device.put(np.zeros(4, np.float32)), total])
    with pytest.raises(TypeError, match="not an array on a CUDA device"):
        device.run(region, [x, y, Host(np.zeros(1))])
    other = Device(Elsewhere(), sizes=SHARED)
    with pytest.raises(MixedDevicesError, match="an array is on cuda:0, and not on <cuda:1"):
        other.run(region, [x, y, total])
    np.testing.assert_array_equal(y.numpy(), np.full(4, 7.0))
    np.testing.assert_array_equal(total.numpy(), [7.0])


class Host:
    """An array that is nowhere near a device."""

    def __init__(self, array: Any) -> None:
        self.dtype = array.dtype


def test_a_device_that_disappears() -> None:
    region, buffers = program(4)
    device = Device(Dying(0), sizes=SHARED)
    with pytest.raises(DeviceLostError, match=r"stopped working.*unspecified launch failure"):
        device.run(region, [device.put(b) for b in buffers])
