"""Functions on a simulated device, against the same on the CPU; see `tests/test_simulated.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from simulators import close
from tapegrad.devices.arrays import DeviceArray
from tapegrad.devices.device import device

RNG = np.random.default_rng(5)
GPU = device()
PLACES = pytest.mark.parametrize("put", [np.asarray, GPU.put], ids=["host", "device"])


def bent(x: Any, a: Any) -> Any:
    """Two ways, one number."""
    return np.sum(np.sin(x) * a) if x[0] > 0.0 else x[1] * a * x[0]


X = np.array([[1.0, 2.0], [-1.0, 0.5], [0.25, -0.5], [-3.0, 1.0]])
A = np.array([0.5, -1.0, 2.0, 0.25])


@PLACES
def test_a_function_records_the_ways_that_it_meets(put: Any) -> None:
    here = tg.function(bent)
    there = tg.function(bent).to("cuda")
    for x, a in zip(X, A.tolist(), strict=True):
        close(there(put(x), a), here(x, a))
        found = there.value_and_grad(put(x), a, argnums=(0, 1))
        close(found, here.value_and_grad(x, a, argnums=(0, 1)))
        assert isinstance(found[1][0], DeviceArray) == (put is not np.asarray)
    assert there.function.recordings == 2
    x, a = put(X[1]), 0.5
    close(there.grad(x, a), here.grad(X[1], a))
    close(there.jacobian(x, a), here.jacobian(X[1], a))
    close(there.hessian(x, a), here.hessian(X[1], a))
    close(there.hvp(x, a, put(X[0])), here.hvp(X[1], a, X[0]))
    close(there.jvp((x, a), (put(X[0]), 1.0)), here.jvp((X[1], a), (X[0], 1.0)))
    close(there.vjp(x, a)[1](2.0), here.vjp(X[1], a)[1](2.0))
    assert there.function.recordings == 2


@PLACES
def test_many_samples_of_a_function(put: Any) -> None:
    here, there = tg.function(bent).map, tg.function(bent).to("cuda").map
    close(there(put(X), put(A)), here(X, A))
    assert there.paths == here.paths == 2
    close(there.hessian(put(X), put(A)), here.hessian(X, A))
    close(there.hvp(put(X), put(A), put(X[::-1].copy())), here.hvp(X, A, X[::-1]))


@PLACES
@pytest.mark.parametrize(
    "derivative", [lambda f: f, tg.value_and_grad, tg.hessian], ids=["f", "grad", "hessian"]
)
def test_vmap(derivative: Any, put: Any) -> None:
    here = tg.vmap(derivative(bent), in_axes=(0, None))
    there = here.to("cuda:0")
    for _ in range(2):
        close(there(put(X), 0.5), here(X, 0.5))
    assert there.paths == here.paths == 2
    assert here.to("cpu") is here
    assert tg.function(bent).to("cpu") is not there


@PLACES
def test_numbers_in_lists_stay_apart(put: Any) -> None:
    here = tg.vmap(lambda pair: np.exp(pair[0]) * pair[1])
    close(here.to("cuda")([put(A), put(A)]), here([A, A]))


@PLACES
def test_single_precision(put: Any) -> None:
    x, a = X.astype(np.float32), A.astype(np.float32)
    here = tg.vmap(bent)
    found, wanted = here.to("cuda")(put(x), put(a)), here(x, a)
    assert found.dtype == wanted.dtype == np.float32
    found = found.numpy() if isinstance(found, DeviceArray) else found
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    found = tg.function(bent).to("cuda")(put(x[0]), np.float32(0.5))
    assert found.dtype == np.float32


def test_axes_of_results() -> None:
    here = tg.vmap(lambda x: np.sin(x), in_axes=1, out_axes=1)
    close(here.to("cuda")(X.T), here(X.T))
    with pytest.raises(ValueError, match="leave out_axes out"):
        tg.vmap(np.sin, out_axes=1).to("cuda")(GPU.put(X))


def test_a_sample_that_is_refused_is_named() -> None:
    program = tg.record(lambda x: x * x if x > 0.0 else -x, 1.0)
    program = program.gradient()  # which has no function to record
    with pytest.raises(tg.ControlFlowChanged, match="sample 2:") as caught:
        program.map(np.array([1.0, 2.0, -1.0]))
    assert caught.value.sample == 2
    with pytest.raises(tg.ControlFlowChanged, match="sample 2:") as caught:
        program.to("cuda").map(np.array([1.0, 2.0, -1.0]))
    assert caught.value.sample == 2


def test_bad_input_is_named() -> None:
    there = tg.vmap(bent).to("cuda")
    with pytest.raises(ValueError, match="a ragged batch"):
        there(X, A[:2])
    with pytest.raises(ValueError, match="a batch of no samples"):
        there(X[:0], A[:0])
    with pytest.raises(TypeError, match="dtype int64 with an axis of samples"):
        there(X, np.arange(4))
    with pytest.raises(TypeError, match="tracked value"):
        tg.grad(lambda x: np.sum(there(x, A)))(X)
    with pytest.raises(TypeError, match="plain arrays"):
        tg.grad(lambda x: tg.function(bent).to("cuda")(x, 1.0))(X[0])
    leaf = tg.array(2.0)
    with pytest.raises(TypeError, match="no tracked values but its arguments"):
        tg.vmap(lambda x: x * leaf).to("cuda")(A)
    for target in (tg.vmap(bent), tg.function(bent)):
        with pytest.raises(ValueError, match='goes to "cpu", "cuda"'):
            target.to("tpu")
        with pytest.raises(tg.DeviceUnavailable, match="no CUDA device 7"):
            target.to("cuda:7")
