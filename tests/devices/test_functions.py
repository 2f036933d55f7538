"""Functions on a device: in Numba's simulator, which is asked for before Numba is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tapegrad as tg

HERE = Path(__file__).parent


def test_functions_in_the_simulator() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "simulated_functions.py"],
        cwd=HERE,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


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
