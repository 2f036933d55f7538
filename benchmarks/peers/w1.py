"""w1, the scalar loop: eight elementary operations a step, derivatives by (x, a, b).

The size is the number of elementary operations. Compiled systems get the loop in their own form
(`scan`, generated C); the others run `workloads.scalar_loop` as it stands.
"""

import ctypes
import math
import time
from typing import Any

import numpy as np

from ..workloads import LOOP_OPERATIONS, LOOP_POINT, scalar_loop
from .case import Case, Options, Peers
from .systems import compile_casadi, compile_jax, floors, import_torch, tape_case

PEERS = Peers()


def operations(options: Options) -> int:
    """Return the number of elementary operations of one evaluation."""
    return steps_of(options) * LOOP_OPERATIONS


def steps_of(options: Options) -> int:
    """Return the number of steps that come nearest to the size asked for."""
    return (options.n or 100_000) // LOOP_OPERATIONS


@PEERS.add
def tapegrad(options: Options) -> Case:
    """Scalars of tapegrad, recorded and swept afresh on each call."""
    import tapegrad as tg

    steps = steps_of(options)

    def gradient() -> list[float]:
        leaves = [tg.array(value) for value in LOOP_POINT]
        scalar_loop(*leaves, steps, np.sin).backward()
        return [float(leaf.grad) for leaf in leaves]

    return Case({"grad": gradient}, gradient)


@PEERS.add
def tapegrad_replay(options: Options) -> Case:
    """A program of tapegrad, recorded once, its loops compiled, and replayed."""
    import tapegrad as tg

    steps = steps_of(options)
    start = time.perf_counter()
    program = tg.record(lambda x, a, b: scalar_loop(x, a, b, steps, np.sin), *LOOP_POINT)
    recorded = time.perf_counter()
    program.compile()
    info = {"trace_s": recorded - start, "compile_s": time.perf_counter() - recorded}

    def gradient() -> list[float]:
        return list(program.value_and_grad(*LOOP_POINT, argnums=(0, 1, 2))[1])

    return Case({"replay": gradient}, gradient, info)


@PEERS.add
def c_manual(options: Options) -> Case:
    """The hand-written adjoint in C."""
    library = ctypes.CDLL(str(floors()))
    steps = ctypes.c_long(steps_of(options))
    point, result = (ctypes.c_double * 3)(*LOOP_POINT), (ctypes.c_double * 3)()
    library.loop_value.restype = ctypes.c_double
    library.loop_gradient.restype = None

    def gradient() -> list[float]:
        library.loop_gradient(point, steps, result)
        return list(result)

    return Case({"primal": lambda: library.loop_value(point, steps), "grad": gradient}, gradient)


@PEERS.add
def numba_manual(options: Options) -> Case:
    """The hand-written adjoint in Numba."""
    import numba

    steps = steps_of(options)

    @numba.njit
    def value(x, a, b, steps):
        total = 0.0
        for _ in range(steps):
            xx = x * x
            x = math.sin(a * x) + b * xx / (1.0 + xx)
            total += x
        return total

    @numba.njit
    def gradient(x, a, b, steps):
        visited = np.empty(steps)
        for i in range(steps):
            visited[i] = x
            xx = x * x
            x = math.sin(a * x) + b * xx / (1.0 + xx)
        gx = ga = gb = 0.0
        for i in range(steps - 1, -1, -1):
            gx += 1.0
            x = visited[i]
            xx = x * x
            d = 1.0 / (1.0 + xx)
            c = math.cos(a * x) * gx
            ga += c * x
            gb += gx * xx * d
            gx = c * a + gx * b * 2.0 * x * d * d
        return gx, ga, gb

    functions = {
        "primal": lambda: value(*LOOP_POINT, steps),
        "grad": lambda: gradient(*LOOP_POINT, steps),
    }
    return Case(functions, functions["grad"])


@PEERS.add
def python_float(options: Options) -> Case:
    """Plain Python floats: what the loop itself costs, without derivatives."""
    steps = steps_of(options)
    return Case({"primal": lambda: scalar_loop(*LOOP_POINT, steps, math.sin)})


@PEERS.add
def xad(options: Options) -> Case:
    """XAD's tape, from its Python wheel."""
    import xad.adj_1st as adjoint
    import xad.math

    steps = steps_of(options)

    def gradient() -> list[float]:
        with adjoint.Tape() as tape:
            leaves = [adjoint.Real(value) for value in LOOP_POINT]
            for leaf in leaves:
                tape.registerInput(leaf)
            tape.newRecording()
            out = scalar_loop(*leaves, steps, xad.math.sin)
            tape.registerOutput(out)
            out.derivative = 1.0
            tape.computeAdjoints()
            return [leaf.derivative for leaf in leaves]

    return Case({"grad": gradient}, gradient)


@PEERS.add
def autograd(options: Options) -> Case:
    """HIPS autograd."""
    import autograd
    import autograd.numpy as anp

    steps = steps_of(options)
    grad = autograd.grad(lambda p: scalar_loop(*p, steps, anp.sin))
    return Case({"grad": lambda: grad(LOOP_POINT)}, lambda: grad(LOOP_POINT))


@PEERS.add
def mygrad(options: Options) -> Case:
    """MyGrad."""
    import mygrad

    steps = steps_of(options)

    def gradient() -> list[float]:
        leaves = [mygrad.tensor(value) for value in LOOP_POINT]
        scalar_loop(*leaves, steps, mygrad.sin).backward()
        return [float(leaf.grad) for leaf in leaves]

    return Case({"grad": gradient}, gradient)


@PEERS.add
def torch_eager(options: Options) -> Case:
    """PyTorch on 0-d tensors."""
    torch = import_torch(options.threads)
    steps = steps_of(options)

    def gradient() -> list[float]:
        leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in LOOP_POINT]
        found = torch.autograd.grad(scalar_loop(*leaves, steps, torch.sin), leaves)
        return [float(value) for value in found]

    return Case({"grad": gradient}, gradient)


def _casadi(options: Options, *, generated: bool) -> Case:
    import casadi

    steps = steps_of(options)

    def trace() -> Any:
        p = casadi.SX.sym("p", 3)
        out = scalar_loop(p[0], p[1], p[2], steps, casadi.sin)
        return casadi.Function("gradient", [p], [casadi.gradient(out, p)])

    start = time.perf_counter()
    function = trace()
    info = {"trace_s": time.perf_counter() - start}
    if generated:
        start = time.perf_counter()
        function = compile_casadi(function, f"casadi_w1_{steps}")
        info["compile_s"] = time.perf_counter() - start
    functions = {"replay": lambda: function(LOOP_POINT)}
    if not generated:
        functions["grad"] = lambda: trace()(LOOP_POINT)
    return Case(functions, lambda: np.array(function(LOOP_POINT)).ravel(), info)


@PEERS.add
def adolc(options: Options) -> Case:
    """ADOL-C: a tape of C++, recorded once and replayed."""
    sweep, info = tape_case("ADOLC", "loop", LOOP_POINT, steps_of(options))
    return Case({"replay": sweep}, sweep, info)


@PEERS.add
def cppad(options: Options) -> Case:
    """CppAD: a tape of C++, recorded and optimised once and replayed."""
    sweep, info = tape_case("CPPAD", "loop", LOOP_POINT, steps_of(options))
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

    steps = steps_of(options)
    point = tuple(jax.numpy.float64(value) for value in LOOP_POINT)

    def loop(p):
        def step(carry, _):
            x, total = carry
            xx = x * x
            x = jax.numpy.sin(p[1] * x) + p[2] * xx / (1.0 + xx)
            return (x, total + x), None

        return jax.lax.scan(step, (p[0], jax.numpy.float64(0.0)), None, length=steps)[0][1]

    value, _ = compile_jax(loop, point)
    gradient, info = compile_jax(jax.grad(loop), point)
    return Case({"primal": value, "replay": gradient}, gradient, info)


@PEERS.add
def jax_unrolled(options: Options) -> Case:
    """JAX, the loop as it stands: traced once and compiled."""
    import jax

    steps = steps_of(options)
    point = tuple(jax.numpy.float64(value) for value in LOOP_POINT)

    replay, info = compile_jax(jax.grad(lambda p: scalar_loop(*p, steps, jax.numpy.sin)), point)
    return Case({"replay": replay}, replay, info)


@PEERS.add
def pytensor(options: Options) -> Case:
    """PyTensor, the loop as it stands: traced once and compiled."""
    import pytensor
    import pytensor.tensor as pt

    steps = steps_of(options)
    start = time.perf_counter()
    inputs = [pt.dscalar() for _ in LOOP_POINT]
    graph = pytensor.grad(scalar_loop(*inputs, steps, pt.sin), inputs)
    traced = time.perf_counter()
    gradient = pytensor.function(inputs, graph)
    info = {"trace_s": traced - start, "compile_s": time.perf_counter() - traced}

    def replay() -> list[float]:
        return [float(value) for value in gradient(*LOOP_POINT)]

    return Case({"replay": replay}, replay, info)


@PEERS.add
def drjit(options: Options) -> Case:
    """Dr.Jit, the loop as it stands: traced on each call, its kernel cached by structure."""
    import drjit as dr
    from drjit.llvm.ad import Float64

    dr.set_thread_count(options.threads)
    steps = steps_of(options)

    def gradient() -> list[float]:
        leaves = [Float64(value) for value in LOOP_POINT]
        for leaf in leaves:
            dr.enable_grad(leaf)
        dr.backward(scalar_loop(*leaves, steps, dr.sin))
        found = [leaf.grad for leaf in leaves]
        dr.eval(found)
        dr.sync_thread()
        return [float(value[0]) for value in found]

    return Case({"grad": gradient}, gradient)


@PEERS.add
def warp(options: Options) -> Case:
    """NVIDIA Warp, the loop rewritten as a kernel that stores what it visits."""
    import warp as wp

    wp.config.quiet = True
    wp.init()
    steps = steps_of(options)

    @wp.kernel
    def loop(
        p: wp.array(dtype=wp.float64),
        visited: wp.array(dtype=wp.float64),
        total: wp.array(dtype=wp.float64),
        steps: int,
    ):
        visited[0] = p[0]
        for i in range(steps):
            x = visited[i]
            xx = x * x
            y = wp.sin(p[1] * x) + p[2] * xx / (wp.float64(1.0) + xx)
            visited[i + 1] = y
            wp.atomic_add(total, 0, y)

    def zeros(n: int) -> Any:
        return wp.zeros(n, dtype=wp.float64, device="cpu", requires_grad=True)

    point = wp.array(np.array(LOOP_POINT), dtype=wp.float64, device="cpu", requires_grad=True)
    visited, total = zeros(steps + 1), zeros(1)
    seed = wp.ones(1, dtype=wp.float64, device="cpu")

    def gradient() -> Any:
        visited.zero_()
        total.zero_()
        with wp.Tape() as tape:
            wp.launch(loop, dim=1, inputs=[point, visited, total, steps], device="cpu")
        tape.backward(grads={total: seed})
        found = point.grad.numpy().copy()
        tape.zero()
        return found

    return Case({"grad": gradient}, gradient)
