"""w6, sparse Hessians: that of the chained Rosenbrock function, which is tridiagonal.

The size is the length of x. What is timed is the Hessian at another point, after whatever a system
does once: `trace_s` for recording or tracing, and `prepare_s`, `pattern_s` and `color_s` for
deriving a program, or for finding the structure and a colouring of it, apart.
"""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..workloads import rosenbrock, rosenbrock_point
from .case import Case, Options, Peers
from .systems import compile_casadi

PEERS = Peers()


def operations(options: Options) -> int:
    """Return the number of nonzeros."""
    return 3 * length_of(options) - 2


def length_of(options: Options) -> int:
    """Return the length of x."""
    return options.n or 2000


def _point(options: Options) -> tuple[NDArray[np.float64], int]:
    n = length_of(options)
    return rosenbrock_point(n), n


def _bands(matrix: Any) -> NDArray[np.float64]:
    """Return the diagonal of a Hessian and the one above it, which are compared."""
    return np.concatenate([matrix.diagonal(), matrix.diagonal(1)])


@PEERS.add
def tapegrad(options: Options) -> Case:
    """A program of the nonzeros, derived from one recording; a new CSR array on each call."""
    import tapegrad as tg

    x, n = _point(options)
    hessian = tg.sparse_hessian(lambda x: rosenbrock(x, n))
    start = time.perf_counter()
    tg.record(lambda x: rosenbrock(x, n), x)
    recorded = time.perf_counter()
    hessian(x)
    done = time.perf_counter()
    info = {"trace_s": recorded - start, "prepare_s": done - 2 * recorded + start}
    return Case({"hessian": lambda: hessian(x)}, lambda: _bands(hessian(x)), info)


@PEERS.add
def tapegrad_swept(options: Options) -> Case:
    """Sweeps in as many directions as a star colouring has colours, of the gradient's program."""
    import tapegrad as tg

    from ..recorded import swept_hessian

    x, n = _point(options)
    hessian, info = swept_hessian(lambda x: rosenbrock(x, n), x)

    def run() -> Any:
        with tg.executor("compiled"):  # at once, not when that has paid
            return hessian(x)

    return Case({"hessian": run}, lambda: _bands(run()), info)


@PEERS.add
def numpy_manual(options: Options) -> Case:
    """The two diagonals, written by hand."""
    x, n = _point(options)

    def diagonals() -> NDArray[np.float64]:
        main = np.zeros(n)
        main[:-1] = 1200.0 * x[:-1] ** 2 - 400.0 * x[1:] + 2.0
        main[1:] += 200.0
        return np.concatenate([main, -400.0 * x[:-1]])

    return Case({"hessian": diagonals}, diagonals)


@PEERS.add
def casadi_sx(options: Options) -> Case:
    """CasADi's scalar graph, of one half of the matrix, in its virtual machine."""
    return _casadi(options, generated=False)


@PEERS.add
def casadi_c(options: Options) -> Case:
    """The same as C, which CasADi writes."""
    return _casadi(options, generated=True)


def _casadi(options: Options, generated: bool) -> Case:
    import casadi

    x, n = _point(options)
    start = time.perf_counter()
    symbols = casadi.SX.sym("x", n)
    value = rosenbrock(casadi.vertsplit(symbols), n)
    matrix = casadi.triu(casadi.hessian(value, symbols)[0])
    function = casadi.Function("hessian", [symbols], [matrix])
    info = {"trace_s": time.perf_counter() - start}
    if generated:
        start = time.perf_counter()
        function = compile_casadi(function, f"w6_{n}")
        info["compile_s"] = time.perf_counter() - start
    rows, columns = map(np.array, matrix.sparsity().get_triplet())
    buffer, call = function.buffer()
    nonzeros = np.zeros(matrix.nnz())
    buffer.set_arg(0, memoryview(x))
    buffer.set_res(0, memoryview(nonzeros))
    held = buffer, function, x

    def bands() -> NDArray[np.float64]:
        call()
        return np.concatenate([nonzeros[rows == columns], nonzeros[rows != columns]])

    return Case({"hessian": lambda: (call(), held)}, bands, info)


@PEERS.add
def jax(options: Options) -> Case:
    """The function in whole arrays, three Hessian-vector products coloured by hand, compiled."""
    import jax
    import jax.numpy as jnp

    x, n = _point(options)
    gradient = jax.grad(lambda x: jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2))
    i = jnp.arange(n)
    seeds = jnp.stack([(i % 3 == color).astype(x.dtype) for color in range(3)])

    def bands(x: Any) -> tuple[Any, Any]:
        products = jax.vmap(lambda seed: jax.jvp(gradient, (x,), (seed,))[1])(seeds)
        return products[i % 3, i], products[i[1:] % 3, i[:-1]]

    start = time.perf_counter()
    point = jnp.asarray(x)
    compiled = jax.jit(bands).lower(point).compile()
    info = {"compile_s": time.perf_counter() - start}
    return Case(
        {"hessian": lambda: jax.block_until_ready(compiled(point))},
        lambda: np.concatenate(compiled(point)),
        info,
    )


@PEERS.add
def jax_dense(options: Options) -> Case:
    """The whole matrix, as JAX's `hessian` gives it."""
    import jax
    import jax.numpy as jnp

    x, n = _point(options)
    if n > 5000:
        raise RuntimeError(f"a dense matrix of {n} x {n} numbers is not made")
    hessian = jax.jit(
        jax.hessian(lambda x: jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2))
    )
    point = jnp.asarray(x)
    hessian(point).block_until_ready()
    return Case(
        {"hessian": lambda: hessian(point).block_until_ready()},
        lambda: _bands(np.asarray(hessian(point))),
    )
