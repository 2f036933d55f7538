"""Functions where there is no GPU; `simulated_functions.py` tests them in Numba's simulator."""

from __future__ import annotations

import numpy as np
import pytest

import tapegrad as tg


def test_without_a_device() -> None:
    try:
        tg.record(np.sin, 1.0).to("cuda")
    except tg.DeviceUnavailable as error:
        message = str(error).split(" (")[0]
    else:
        pytest.skip("there is a GPU")
    for target in (tg.vmap(np.sin), tg.function(np.sin)):
        with pytest.raises(tg.DeviceUnavailable) as caught:
            target.to("cuda")
        assert str(caught.value).startswith(message)
    assert tg.vmap(np.sin)(np.zeros(2)).tolist() == [0.0, 0.0]
