"""Regions with a kernel of their own, on a simulated device.

`tests/test_simulated.py` runs this file.
"""

from __future__ import annotations

import numpy as np

from simulators import SHARED, on, program
from tapegrad.devices import loaded
from tapegrad.regions.region import (
    RegionBuilder,
)


def test_a_kernel_of_its_own_has_the_same_bits() -> None:
    region, buffers = program(11)
    found = []
    for straight in (False, True):
        device = on(SHARED)
        given = [device.put(b) for b in buffers]
        loaded = device.load(region, given)
        if straight:
            loaded.specialise()
        device.run(region, given)
        assert (loaded.straight is not None) == straight
        found.append([g.numpy() for g in given])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_kernel_of_its_own_is_compiled_when_it_is_earned() -> None:
    region, buffers = program(3)
    device = on(SHARED)
    given = [device.put(b) for b in buffers]
    loaded = device.load(region, given)
    device.run(region, given)
    assert loaded.seconds == 0.0  # it had to be compiled
    device.run(region, given)
    assert loaded.seconds > 0.0
    loaded.seconds = 0.0
    loaded._earn()
    assert loaded.straight is None
    loaded.seconds = 0.1 + 0.004 * len(region.code)
    loaded._earn()
    kernel = loaded.straight
    assert kernel is not None
    # A region of other lanes shares the kernel: its program is the same.
    other, buffers = program(5)
    again = device.load(other, [device.put(b) for b in buffers])
    again.specialise()
    assert again.straight is kernel


def test_a_long_region_gets_no_kernel_of_its_own() -> None:
    for count in (loaded.LONGEST, loaded.LONGEST + 1):
        build = RegionBuilder((1,))
        value = build.input(0, (1,))
        for _ in range(count):
            value = build.op("negative", value)
        build.output(value, 1, (1,))
        device = on(SHARED)
        ready = device.load(build.finish(), [device.put(np.ones(1)) for _ in range(2)])
        ready.specialise()
        assert (ready.straight is not None) == (count == loaded.LONGEST)
