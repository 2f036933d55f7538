"""Arrays and streams of other libraries, on a simulated device.

`tests/test_simulated.py` runs this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulators import SHARED, Foreign, on, program
from tapegrad.devices import device as devices
from tapegrad.devices.device import Device
from tapegrad.kernels.cuda import driver
from tapegrad.regions.region import RegionBuilder, run_reference


def test_arrays_of_other_libraries_are_used_where_they_lie() -> None:
    region, buffers = program(4)
    device = on(SHARED)
    x, y, total = (Foreign(b) for b in buffers)
    device.run(region, [x, y, total])
    expected = [b.copy() for b in buffers]
    run_reference(region, expected)
    np.testing.assert_allclose(y.array, expected[1], rtol=1e-15)
    # DLPack: NumPy's own arrays stand for those of a device here.
    shown = device.view(buffers[0])
    assert shown.address == buffers[0].ctypes.data
    assert shown.dtype == np.float64
    result = device.view(device.put(np.ones((2, 3))))
    assert result.__cuda_array_interface__["shape"] == (2, 3)
    assert result.reshape(6).after(2).shape == (4,)


def test_arrays_are_lent_to_other_libraries() -> None:
    device = on(SHARED)
    given = device.put(np.arange(6.0).reshape(2, 3))
    address = given.address
    lent = np.from_dlpack(given)  # the simulator's device is the host
    np.testing.assert_array_equal(lent, np.arange(6.0).reshape(2, 3))
    assert lent.ctypes.data == address
    lent_before = len(devices.interchange._lent)
    capsule = given.__dlpack__()
    assert len(devices.interchange._lent) == lent_before + 1
    del capsule  # nobody has taken it
    assert len(devices.interchange._lent) == lent_before
    del given
    assert device.empty((2, 3)).address != address  # that memory is somebody else's, too
    view = lent[1:]
    del lent
    np.testing.assert_array_equal(view, [[3.0, 4.0, 5.0]])
    del view
    assert len(devices.interchange._lent) == lent_before - 1
    single = device.put(np.float32(2.5))
    found = np.from_dlpack(single)
    assert (found.shape, found.dtype, float(found)) == ((), np.float32, 2.5)
    with pytest.raises(BufferError, match="is lent where it lies"):
        single.__dlpack__(dl_device=(2, 3))


def test_a_consumer_in_another_stream_waits() -> None:
    waits: list[Any] = []

    class Waiting(driver.Simulator):
        def synchronize(self, stream: Any) -> None:
            waits.append(stream)

    array = Device(Waiting(), 7, sizes=SHARED).put(np.zeros(3))
    for stream in (-1, 7):
        array.__dlpack__(stream=stream)
    assert waits == []
    array.__dlpack__(stream=9)
    array.__dlpack__()
    assert len(waits) == 2


def test_arrays_that_do_not_fit_are_refused() -> None:
    device = on(SHARED)
    with pytest.raises(ValueError, match="one after another in C order"):
        device.view(Foreign(np.zeros((4, 4))[:, 1:]))
    with pytest.raises(TypeError, match="not on an array of int64"):
        device.view(Foreign(np.zeros(4, np.int64)))
    with pytest.raises(TypeError, match=r"call \.numpy\(\)"):
        np.asarray(device.put(np.zeros(3)))
    with pytest.raises(ValueError, match="has no shape"):
        device.put(np.zeros(3)).reshape(2)


class Streaming(driver.Simulator):
    """A device that notes the stream of all that it is asked for, and what it waits for."""

    def __init__(self) -> None:
        self.seen: set[Any] = set()
        self.waited: list[Any] = []

    def stream(self, handle: int | None) -> Any:
        return handle

    def wait_for(self, handle: int | None) -> None:
        self.waited.append(handle)

    def launch(self, kernel: Any, blocks: int, block: int, shared: int, stream: Any,
               arguments: Any) -> None:  # fmt: skip
        self.seen.add(stream)
        super().launch(kernel, blocks, block, shared, stream, arguments)

    def download(self, address: int, out: Any, stream: Any) -> None:
        self.seen.add(stream)
        super().download(address, out, stream)

    def copy_in(self, address: int, array: Any, stream: Any) -> None:
        self.seen.add(stream)
        super().copy_in(address, array, stream)


def test_all_work_is_done_in_the_stream_that_is_given() -> None:
    build = RegionBuilder((300,))
    build.output(build.input(0, (1,)), 1, (0,))
    region = build.finish()
    own = Streaming()
    device = Device(own, devices.interchange.stream_number(7), sizes=SHARED)
    given = [device.put(np.arange(300.0)), device.put(np.zeros(1))]
    device.run(region, given)
    np.testing.assert_array_equal(given[1].numpy(), [299 * 150.0])
    assert own.seen == {7}
    assert given[1].__cuda_array_interface__["stream"] == 7
    # What another library computes in a stream of its own is waited for; in this one it is not.
    device.run(region, [Foreign(np.ones(300), stream=7), given[1]])
    assert own.waited == []
    device.run(region, [Foreign(np.ones(300), stream=9), Foreign(np.zeros(1), stream=1)])
    assert own.waited == [9, None]


@pytest.mark.parametrize("name", ["cuda_stream", "ptr", "handle"])
def test_streams_of_other_libraries(name: str) -> None:
    stream = type("Stream", (), {name: 5})()
    assert devices.interchange.stream_number(stream) == 5
    assert devices.device(0, stream).stream_number == 5
