"""The systems that are measured on a GPU, each with arguments of its own on the device."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tapegrad.devices.device import Device

from .workloads import Workload

CHECKED = 20_011
"""Results that are compared with those of the CPU."""

Run = Callable[[], Any]


class System:
    """A system with its own arrays on the device.

    `run` computes all results and waits for them; `results` returns the first of them on the host.
    """

    def __init__(self, name: str, run: Run, results: Callable[[], list[Any]]) -> None:
        self.name, self.run, self.results = name, run, results
        self.first = self.disagree = float("nan")
        self.times: list[float] = []


def tapegrad(gpu: Device, workload: Workload, n: int, own_kernel: bool) -> System:
    """Return tapegrad: interpreted always, or with kernels of its own."""
    own = Device(gpu.driver, gpu.stream_number, gpu.sizes)
    own.patience = 0.0 if own_kernel else math.inf
    arguments = [own.put(x) for x in workload.arguments(n)]
    program = workload.program(n).to(own)
    runs = program if workload.one_call else program.map
    kept: list[Any] = []

    def run() -> None:
        kept.clear()
        value, gradient = runs.value_and_grad(*arguments, argnums=workload.argnums)
        own.synchronize()
        kept[:] = [value, *gradient]

    name = "tapegrad, own kernel" if own_kernel else "tapegrad, interpreter"
    return System(name, run, lambda: [_start_there(x) for x in kept])


def _start_there(x: Any) -> Any:
    return x.after(0, min(CHECKED, x.size)).numpy() if x.ndim else x.numpy()


def start_of(x: Any) -> Any:
    """Return the first results."""
    return np.asarray(x)[:CHECKED] if np.ndim(x) else np.asarray(x)


def jax(gpu: Device, workload: Workload, n: int) -> System:
    """Return JAX: jit of value_and_grad, of vmap of it where there are samples."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from jax import numpy as jnp
    from jax.scipy.special import erf

    if jax.default_backend() != "gpu":
        raise RuntimeError(f"JAX would run on the {jax.default_backend()}")

    class Names:
        exp, log, sqrt, sum = jnp.exp, jnp.log, jnp.sqrt, jnp.sum

    Names.erf = erf  # type: ignore[attr-defined]
    there = jax.devices()[gpu.number]
    arguments = [jax.device_put(x, there) for x in workload.arguments(n)]
    function = jax.value_and_grad(lambda *x: workload.function(Names, *x), workload.argnums)
    compiled = jax.jit(function if workload.one_call else jax.vmap(function))
    kept: list[Any] = []

    def run() -> None:
        kept[:] = [jax.block_until_ready(compiled(*arguments))]

    def results() -> list[Any]:
        value, gradient = kept[0]
        return [start_of(x[:CHECKED] if x.ndim else x) for x in (value, *gradient)]

    name = "JAX jit(value_and_grad)" if workload.one_call else "JAX jit(vmap(value_and_grad))"
    return System(name, run, results)


def torch(gpu: Device, workload: Workload, n: int) -> System:
    """Return PyTorch: torch.compile of the function, and autograd of what it made."""
    import torch

    device = f"cuda:{gpu.number}"
    arguments = [torch.tensor(x, device=device, requires_grad=True) for x in workload.arguments(n)]
    shape = () if workload.one_call else (n,)
    ones = torch.ones(shape, dtype=torch.float64, device=device)
    compiled = torch.compile(lambda *x: workload.function(torch, *x), fullgraph=True, dynamic=False)
    kept: list[Any] = []

    def run() -> None:
        kept.clear()
        value = compiled(*arguments)
        kept[:] = [value.detach(), *torch.autograd.grad(value, arguments, ones)]
        torch.cuda.synchronize(device)

    def results() -> list[Any]:
        return [start_of((x[:CHECKED] if x.ndim else x).cpu().numpy()) for x in kept]

    return System("torch.compile", run, results)


SYSTEMS: tuple[Callable[[Device, Workload, int], System], ...] = (
    lambda gpu, workload, n: tapegrad(gpu, workload, n, own_kernel=False),
    lambda gpu, workload, n: tapegrad(gpu, workload, n, own_kernel=True),
    jax,
    torch,
)
