"""w2, the index loop: the chained Rosenbrock function, its elements read one by one as x[i].

The size is the length of x; each element adds eight elementary operations.
"""

import ctypes
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..workloads import CHAIN_OPERATIONS, rosenbrock, rosenbrock_point
from .case import Case, Options, Peers
from .systems import compile_casadi, compile_jax, floors, import_torch, tape_case

PEERS = Peers()


def operations(options: Options) -> int:
    """Return the number of elementary operations of one evaluation."""
    return (length_of(options) - 1) * CHAIN_OPERATIONS


def length_of(options: Options) -> int:
    """Return the length of x."""
    return options.n or 1000


def _point(options: Options) -> tuple[NDArray[np.float64], int]:
    n = length_of(options)
    return rosenbrock_point(n), n


@PEERS.add
def tapegrad(options: Options) -> Case:
    """An array of tapegrad, recorded and swept afresh on each call."""
    import tapegrad as tg

    x, n = _point(options)
    grad = tg.grad(lambda x: rosenbrock(x, n))
    return Case({"grad": lambda: grad(x)}, lambda: grad(x))


@PEERS.add
def tapegrad_replay(options: Options) -> Case:
    """A program of tapegrad, recorded once, its loops compiled, and replayed."""
    import tapegrad as tg

    x, n = _point(options)
    start = time.perf_counter()
    program = tg.record(lambda x: rosenbrock(x, n), x)
    recorded = time.perf_counter()
    program.compile()
    info = {"trace_s": recorded - start, "compile_s": time.perf_counter() - recorded}
    return Case(
        {"replay": lambda: program.value_and_grad(x)},
        lambda: program.value_and_grad(x)[1],
        info,
    )


@PEERS.add
def c_manual(options: Options) -> Case:
    """The hand-written adjoint in C."""
    library = ctypes.CDLL(str(floors()))
    x, n = _point(options)
    result = np.zeros(n)
    at = ctypes.c_void_p(x.ctypes.data), ctypes.c_long(n)
    into = ctypes.c_void_p(result.ctypes.data)
    library.rosenbrock_value.restype = ctypes.c_double
    library.rosenbrock_gradient.restype = None

    def gradient() -> NDArray[np.float64]:
        library.rosenbrock_gradient(*at, into)
        return result

    # The lambda holds x, whose memory `at` only points to.
    return Case({"primal": lambda: (library.rosenbrock_value(*at), x), "grad": gradient}, gradient)


@PEERS.add
def numba_manual(options: Options) -> Case:
    """The hand-written adjoint in Numba."""
    import numba

    x, n = _point(options)
    value = numba.njit(rosenbrock)

    @numba.njit
    def gradient(x):
        result = np.zeros(len(x))
        for i in range(len(x) - 1):
            t = x[i + 1] - x[i] * x[i]
            result[i + 1] += 200.0 * t
            result[i] += -400.0 * t * x[i] - 2.0 * (1.0 - x[i])
        return result

    return Case({"primal": lambda: value(x, n), "grad": lambda: gradient(x)}, lambda: gradient(x))


@PEERS.add
def python_list(options: Options) -> Case:
    """A list of Python floats, without derivatives."""
    x, n = _point(options)
    values = x.tolist()
    return Case({"primal": lambda: rosenbrock(values, n)})


@PEERS.add
def numpy_array(options: Options) -> Case:
    """A NumPy array, without derivatives."""
    x, n = _point(options)
    return Case({"primal": lambda: rosenbrock(x, n)})


@PEERS.add
def xad(options: Options) -> Case:
    """A list of XAD's scalars, from its Python wheel."""
    import xad.adj_1st as adjoint

    x, n = _point(options)
    values = x.tolist()

    def gradient() -> list[float]:
        with adjoint.Tape() as tape:
            leaves = [adjoint.Real(value) for value in values]
            for leaf in leaves:
                tape.registerInput(leaf)
            tape.newRecording()
            out = rosenbrock(leaves, n)
            tape.registerOutput(out)
            out.derivative = 1.0
            tape.computeAdjoints()
            return [leaf.derivative for leaf in leaves]

    return Case({"grad": gradient}, gradient)


@PEERS.add
def autograd(options: Options) -> Case:
    """HIPS autograd."""
    import autograd

    x, n = _point(options)
    grad = autograd.grad(lambda x: rosenbrock(x, n))
    return Case({"grad": lambda: grad(x)}, lambda: grad(x))


@PEERS.add
def mygrad(options: Options) -> Case:
    """MyGrad."""
    import mygrad

    x, n = _point(options)

    def gradient() -> Any:
        leaf = mygrad.tensor(x)
        rosenbrock(leaf, n).backward()
        return leaf.grad

    return Case({"grad": gradient}, gradient)


@PEERS.add
def torch_index(options: Options) -> Case:
    """PyTorch, elements read as x[i]."""
    torch = import_torch(options.threads)
    x, n = _point(options)
    leaf = torch.tensor(x, requires_grad=True)

    def gradient() -> Any:
        return torch.autograd.grad(rosenbrock(leaf, n), leaf)[0]

    return Case({"grad": gradient}, lambda: gradient().numpy())


@PEERS.add
def torch_unbind(options: Options) -> Case:
    """PyTorch, all elements taken out at once by `unbind` beforehand."""
    torch = import_torch(options.threads)
    x, n = _point(options)
    leaf = torch.tensor(x, requires_grad=True)

    def gradient() -> Any:
        return torch.autograd.grad(rosenbrock(leaf.unbind(), n), leaf)[0]

    return Case({"grad": gradient}, lambda: gradient().numpy())


def _casadi(options: Options, *, generated: bool) -> Case:
    import casadi

    x, n = _point(options)

    def trace() -> Any:
        p = casadi.SX.sym("p", n)
        out = rosenbrock(casadi.vertsplit(p), n)
        return casadi.Function("gradient", [p], [casadi.gradient(out, p)])

    start = time.perf_counter()
    function = trace()
    info = {"trace_s": time.perf_counter() - start}
    if generated:
        start = time.perf_counter()
        function = compile_casadi(function, f"casadi_w2_{n}")
        info["compile_s"] = time.perf_counter() - start
    functions = {"replay": lambda: function(x)}
    if not generated:
        functions["grad"] = lambda: trace()(x)
    return Case(functions, lambda: np.array(function(x)).ravel(), info)


@PEERS.add
def adolc(options: Options) -> Case:
    """ADOL-C: a tape of C++, recorded once and replayed."""
    x, n = _point(options)
    sweep, info = tape_case("ADOLC", "rosenbrock", x, n)
    return Case({"replay": sweep}, sweep, info)


@PEERS.add
def cppad(options: Options) -> Case:
    """CppAD: a tape of C++, recorded and optimised once and replayed."""
    x, n = _point(options)
    sweep, info = tape_case("CPPAD", "rosenbrock", x, n)
    return Case({"replay": sweep}, sweep, info)


@PEERS.add
def casadi_sx(options: Options) -> Case:
    """CasADi's scalar expressions in its virtual machine."""
    return _casadi(options, generated=False)


@PEERS.add
def casadi_c(options: Options) -> Case:
    """CasADi's scalar expressions as generated C."""
    return _casadi(options, generated=True)


@PEERS.add
def jax_scan(options: Options) -> Case:
    """JAX, the loop rewritten as `lax.scan`."""
    import jax

    point, n = _point(options)
    x = jax.numpy.asarray(point)

    def loop(x):
        def step(total, i):
            t = x[i + 1] - x[i] * x[i]
            u = 1.0 - x[i]
            return total + 100.0 * t * t + u * u, None

        return jax.lax.scan(step, jax.numpy.float64(0.0), jax.numpy.arange(n - 1))[0]

    replay, info = compile_jax(jax.grad(loop), x)
    return Case({"replay": replay}, replay, info)


@PEERS.add
def jax_unrolled(options: Options) -> Case:
    """JAX, the loop as it stands: traced once and compiled."""
    import jax

    point, n = _point(options)
    grad = jax.grad(lambda x: rosenbrock(x, n))
    replay, info = compile_jax(grad, jax.numpy.asarray(point))
    return Case({"replay": replay}, replay, info)


@PEERS.add
def pytensor(options: Options) -> Case:
    """PyTensor, the loop as it stands: traced once and compiled."""
    import pytensor
    import pytensor.tensor as pt

    x, n = _point(options)
    start = time.perf_counter()
    p = pt.dvector()
    graph = pytensor.grad(rosenbrock(p, n), p)
    traced = time.perf_counter()
    gradient = pytensor.function([p], graph)
    info = {"trace_s": traced - start, "compile_s": time.perf_counter() - traced}
    return Case({"replay": lambda: gradient(x)}, lambda: gradient(x), info)


@PEERS.add
def drjit(options: Options) -> Case:
    """Dr.Jit, elements gathered one by one: traced on each call, its kernel cached."""
    import drjit as dr
    from drjit.llvm.ad import Float64

    dr.set_thread_count(options.threads)
    x, n = _point(options)

    def gradient() -> Any:
        leaf = Float64(x)
        dr.enable_grad(leaf)
        dr.backward(rosenbrock([dr.gather(Float64, leaf, i) for i in range(n)], n))
        return leaf.grad.numpy()

    return Case({"grad": gradient}, gradient)
