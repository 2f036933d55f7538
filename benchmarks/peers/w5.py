"""w5, a batch of a small function: its value and four derivatives for each of many samples.

The function is a path of eight steps with local volatility, and a softplus of where it ends: about
sixty operations. The size is the number of samples. Gradients are compared on some of them.
"""

import ctypes
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..workloads import PATH_OPERATIONS, PATH_STEPS, path, path_points
from .case import Case, Options, Peers
from .systems import fused, import_torch

PEERS = Peers()
EACH = (0, 1, 2, 3)
COMPARED = 997  # every so manieth sample


def operations(options: Options) -> int:
    """Return the number of elementary operations of one evaluation."""
    return samples_of(options) * PATH_OPERATIONS


def samples_of(options: Options) -> int:
    """Return the number of samples."""
    return options.n or 1_000_000


def _points(options: Options) -> list[NDArray[np.float64]]:
    return path_points(samples_of(options))


def _case(
    gradient: Callable[[], Any],
    options: Options,
    arrays: Callable[[Any], list[Any]],
    begun: float,
    function: str = "grad",
) -> Case:
    """Return the case of a system, whose first call is timed from when its set-up had begun."""
    gradient()
    info = {"first_s": time.perf_counter() - begun}

    def compared() -> list[NDArray[np.float64]]:
        return [np.asarray(part)[::COMPARED] for part in arrays(gradient())]

    return Case({function: gradient}, compared, info)


def _value_then_gradient(found: Any) -> list[Any]:
    value, gradient = found
    return [value, *gradient]


@PEERS.add
def tapegrad(options: Options) -> Case:
    """`vmap` of `value_and_grad`, which records the function once."""
    begun = time.perf_counter()
    import tapegrad as tg

    tg.set_num_threads(options.threads)
    points = _points(options)
    batch = tg.vmap(tg.value_and_grad(lambda *point: path(np, *point), argnums=EACH))
    return _case(lambda: batch(*points), options, _value_then_gradient, begun)


@PEERS.add
def tapegrad_compiled(options: Options) -> Case:
    """The same after so many calls that its region has code of its own."""
    begun = time.perf_counter()
    import tapegrad as tg

    tg.set_num_threads(options.threads)
    points = _points(options)
    batch = tg.vmap(tg.value_and_grad(lambda *point: path(np, *point), argnums=EACH))
    while time.perf_counter() - begun < 8.0:  # it takes 2.5 s of runs, and as long to compile
        batch(*points)
    return _case(lambda: batch(*points), options, _value_then_gradient, begun)


@PEERS.add
def tapegrad_recorded(options: Options) -> Case:
    """The same, recorded afresh on each call."""
    begun = time.perf_counter()
    import tapegrad as tg

    tg.set_num_threads(options.threads)
    points = _points(options)

    def gradient() -> Any:
        return tg.vmap(tg.value_and_grad(lambda *point: path(np, *point), argnums=EACH))(*points)

    return _case(gradient, options, _value_then_gradient, begun)


@PEERS.add
def c_manual(options: Options) -> Case:
    """The hand-written adjoint in C, vectorised."""
    begun = time.perf_counter()
    library = ctypes.CDLL(str(fused()))
    points = _points(options)
    found = [np.zeros(samples_of(options)) for _ in range(5)]
    steps = np.array(PATH_STEPS)
    at = [ctypes.c_void_p(array.ctypes.data) for array in (*points, steps, *found)]

    def gradient() -> Any:
        library.local_volatility(*at, ctypes.c_long(samples_of(options)))
        return found, points, steps  # whose memory `at` only points to

    return _case(gradient, options, lambda result: result[0], begun)


@PEERS.add
def numpy_primal(options: Options) -> Case:
    """NumPy, without derivatives."""
    points = _points(options)
    return Case({"primal": lambda: path(np, *points)})


@PEERS.add
def autograd(options: Options) -> Case:
    """HIPS autograd on whole arrays."""
    begun = time.perf_counter()
    import autograd.numpy as anp
    from autograd import make_vjp

    points = _points(options)

    def gradient() -> Any:
        pull, value = make_vjp(lambda point: path(anp, *point))(tuple(points))
        return value, pull(np.ones_like(value))

    return _case(gradient, options, _value_then_gradient, begun)


@PEERS.add
def jax(options: Options) -> Case:
    """JAX: jit of vmap of value_and_grad."""
    begun = time.perf_counter()
    import jax
    import jax.numpy as jnp

    points = [jnp.asarray(array) for array in _points(options)]
    batch = jax.jit(jax.vmap(jax.value_and_grad(lambda *point: path(jnp, *point), EACH)))
    return _case(
        lambda: jax.block_until_ready(batch(*points)), options, _value_then_gradient, begun
    )


def _torch(options: Options, compiled: bool) -> Case:
    begun = time.perf_counter()
    torch = import_torch(options.threads)
    points = [torch.tensor(array, requires_grad=True) for array in _points(options)]

    def function(*point: Any) -> Any:
        return path(torch, *point)

    if compiled:
        function = torch.compile(function)
    ones = torch.ones(samples_of(options), dtype=torch.float64)

    def gradient() -> Any:
        value = function(*points)
        return value, torch.autograd.grad(value, points, ones)

    def arrays(found: Any) -> list[Any]:
        return [part.detach().numpy() for part in _value_then_gradient(found)]

    return _case(gradient, options, arrays, begun)


@PEERS.add
def torch_eager(options: Options) -> Case:
    """PyTorch, one kernel an operation."""
    return _torch(options, compiled=False)


@PEERS.add
def torch_compile(options: Options) -> Case:
    """PyTorch, compiled."""
    return _torch(options, compiled=True)


@PEERS.add
def drjit(options: Options) -> Case:
    """Dr.Jit, its kernel compiled at the first call."""
    begun = time.perf_counter()
    import drjit as dr
    from drjit.llvm.ad import Float64

    dr.set_thread_count(options.threads)
    points = [Float64(array) for array in _points(options)]
    dr.eval(points)

    def gradient() -> Any:
        inputs = [Float64(dr.detach(array)) for array in points]
        for array in inputs:
            dr.enable_grad(array)
        value = path(dr, *inputs)
        dr.backward(value, flags=dr.ADFlag.Default)
        found = [dr.detach(value)] + [array.grad for array in inputs]
        dr.eval(found)
        dr.sync_thread()
        return found

    return _case(gradient, options, lambda found: [part.numpy() for part in found], begun)


@PEERS.add
def casadi(options: Options) -> Case:
    """CasADi's virtual machine, mapped over the samples."""
    begun = time.perf_counter()
    import casadi

    points = _points(options)
    symbols = [casadi.SX.sym(name) for name in "xabm"]
    value = path(casadi, *symbols)
    one = casadi.Function("one", symbols, [value, *[casadi.gradient(value, s) for s in symbols]])
    n = samples_of(options)
    many = one.map(n, "serial") if options.threads == 1 else one.map(n, "thread", options.threads)
    buffer, call = many.buffer()
    found = [np.zeros(n) for _ in range(5)]
    for i, array in enumerate(points):
        buffer.set_arg(i, memoryview(array))
    for i, array in enumerate(found):
        buffer.set_res(i, memoryview(array))

    def gradient() -> Any:
        call()
        return found, points, buffer, many  # which the call only points to

    return _case(gradient, options, lambda result: result[0], begun)
