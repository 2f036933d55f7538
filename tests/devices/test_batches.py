"""Batches on a GPU, where there is one; `simulated_batches.py` tests them without."""

from __future__ import annotations

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.devices.device import device


@pytest.mark.cuda
def test_a_program_on_a_gpu() -> None:
    try:
        gpu = device()
    except tg.DeviceUnavailable as error:
        pytest.skip(str(error))
    program = tg.record(lambda x: np.sum(np.sin(x) * np.exp(x)) if x[0] > -3 else x[1], np.ones(3))
    x = np.random.default_rng(0).normal(size=(10_001, 3))
    value, gradient = program.to("cuda").map.value_and_grad(gpu.put(x))
    expected = program.map.value_and_grad(x)
    np.testing.assert_allclose(value.numpy(), expected[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradient.numpy(), expected[1], rtol=1e-12, atol=1e-12)
