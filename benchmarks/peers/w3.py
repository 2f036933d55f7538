"""w3, array expressions: the gradient of a sum over long arrays, by every array that goes in.

`w3` is the Rosenbrock function of one array, bound by memory; `w3bs` the value of as many
Black-Scholes calls, by all five arrays, bound by arithmetic. The size is the length of the arrays.
"""

import ctypes
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .case import Case, Options, Peers
from .systems import compile_jax, fused, import_torch

PEERS = Peers()
ROOT_HALF = math.sqrt(0.5)
OPERATIONS = 8  # of an element, about


def operations(options: Options) -> int:
    """Return the number of elementary operations of one evaluation."""
    return (options.n or 1_000_000) * OPERATIONS


def arrays(options: Options) -> list[Any]:
    """Return the arrays that go in."""
    return [np.random.default_rng(0).uniform(-1.0, 1.0, options.n or 1_000_000)]


def function(xp: Any, erf: Any) -> Callable[..., Any]:
    """Return the function in the terms of a system."""

    def rosenbrock(x: Any) -> Any:
        return xp.sum(100.0 * (x[1:] - x[:-1] * x[:-1]) ** 2 + (1.0 - x[:-1]) ** 2)

    return rosenbrock


FLOOR = "rosenbrock"


def joined(gradients: Any) -> Any:
    """Return gradients as one array, to be compared."""
    return np.concatenate([np.asarray(g) for g in gradients])


class Workload:
    """The entries of one workload: what they share but for its function and arrays."""

    def __init__(self, arrays: Any, function: Any, floor: str) -> None:
        self.arrays, self.function, self.floor = arrays, function, floor

    def tapegrad(self, options: Options) -> Case:
        """Arrays of tapegrad, recorded, planned and swept on each call."""
        import tapegrad as tg

        tg.set_num_threads(options.threads)
        values = self.arrays(options)
        f = self.function(np, tg.special.erf)
        grad = tg.grad(f, argnums=tuple(range(len(values))))
        return Case({"grad": lambda: grad(*values)}, lambda: joined(grad(*values)))

    def tapegrad_replay(self, options: Options) -> Case:
        """A program of tapegrad, recorded once and replayed."""
        import tapegrad as tg

        tg.set_num_threads(options.threads)
        values = self.arrays(options)
        start = time.perf_counter()
        program = tg.record(self.function(np, tg.special.erf), *values)
        info = {"trace_s": time.perf_counter() - start}
        everything = tuple(range(len(values)))

        def gradient() -> Any:
            return program.value_and_grad(*values, argnums=everything)[1]

        return Case({"replay": gradient}, lambda: joined(gradient()), info)

    def tapegrad_compiled(self, options: Options) -> Case:
        """The same with its regions compiled, as they are after some seconds anyway."""
        import tapegrad as tg

        tg.set_num_threads(options.threads)
        values = self.arrays(options)
        start = time.perf_counter()
        program = tg.record(self.function(np, tg.special.erf), *values)
        recorded = time.perf_counter()
        everything = tuple(range(len(values)))

        def gradient() -> Any:
            return program.value_and_grad(*values, argnums=everything)[1]

        program.compile()
        gradient()
        info = {"trace_s": recorded - start, "compile_s": time.perf_counter() - recorded}
        return Case({"replay": gradient}, lambda: joined(gradient()), info)

    def c_fused(self, options: Options) -> Case:
        """The hand-written gradient in C, one fused loop; its primal only reads and writes."""
        import os

        os.environ["OMP_NUM_THREADS"] = str(options.threads)
        library = ctypes.CDLL(str(fused()))
        values = self.arrays(options)
        results = [np.zeros_like(x) for x in values]
        pointers = [ctypes.c_void_p(x.ctypes.data) for x in values + results]

        def gradient() -> Any:
            n = ctypes.c_long(len(values[0]))  # which holds the arrays that pointers point at
            getattr(library, self.floor)(*pointers, n)
            return results

        functions = {"grad": gradient}
        if self.floor == "rosenbrock":
            functions["primal"] = lambda: library.rosenbrock_bandwidth(
                *pointers, ctypes.c_long(len(values[0]))
            )
        return Case(functions, lambda: joined(gradient()))

    def numpy_manual(self, options: Options) -> Case:
        """The value only, in NumPy and SciPy."""
        from scipy.special import erf

        values = self.arrays(options)
        f = self.function(np, erf)
        return Case({"primal": lambda: f(*values)})

    def jax_jit(self, options: Options) -> Case:
        """JAX, traced once and compiled."""
        import jax

        values = [jax.numpy.asarray(x) for x in self.arrays(options)]
        f = self.function(jax.numpy, jax.scipy.special.erf)
        grad = jax.grad(lambda p: f(*p))
        replay, info = compile_jax(grad, values)
        return Case({"replay": replay}, lambda: joined(replay()), info)

    def torch_eager(self, options: Options) -> Case:
        """PyTorch, eager."""
        torch = import_torch(options.threads)
        values = [torch.tensor(x, requires_grad=True) for x in self.arrays(options)]
        f = self.function(torch, torch.erf)

        def gradient() -> Any:
            return torch.autograd.grad(f(*values), values)

        return Case({"grad": gradient}, lambda: joined([g.numpy() for g in gradient()]))

    def drjit(self, options: Options) -> Case:
        """Dr.Jit: traced on each call, its kernel cached by structure."""
        import drjit as dr
        from drjit.llvm.ad import Float64

        dr.set_thread_count(options.threads)
        values = [Float64(x) for x in self.arrays(options)]
        f = self._drjit_function(dr)

        def gradient() -> Any:
            leaves = [Float64(dr.detach(x)) for x in values]
            for leaf in leaves:
                dr.enable_grad(leaf)
            dr.backward(f(*leaves))
            found = [leaf.grad for leaf in leaves]
            dr.eval(found)
            dr.sync_thread()
            return found

        return Case({"grad": gradient}, lambda: joined([g.numpy() for g in gradient()]))

    def _drjit_function(self, dr: Any) -> Callable[..., Any]:
        if self.floor != "rosenbrock":
            return self.function(dr, dr.erf)
        from drjit.llvm.ad import Float64, UInt32

        def rosenbrock(x: Any) -> Any:  # which has no slices
            i = dr.arange(UInt32, len(x) - 1)
            a, b = dr.gather(Float64, x, i), dr.gather(Float64, x, i + 1)
            return dr.sum(100.0 * dr.square(b - a * a) + dr.square(1.0 - a))

        return rosenbrock

    def enter(self, peers: Peers) -> None:
        """Enter all systems."""
        for name in (
            *("tapegrad", "tapegrad_replay", "tapegrad_compiled", "c_fused", "numpy_manual"),
            *("jax_jit", "torch_eager", "drjit"),
        ):
            peers[name] = getattr(self, name)


Workload(arrays, function, FLOOR).enter(PEERS)
