"""Dense Jacobians: two networks, of 100 numbers to 100 and of 200 to 50, and a recurrence.

`--n` chooses among the functions of `benchmarks/jacobian.py`: 1 for `layers` (the default), 2 for
`recurrence`, 3 for `funnel`.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..jacobian import FUNNEL, PROGRAMS, SIZE, funnel, point
from .case import Case, Options, Peers

PEERS = Peers()


def operations(options: Options) -> int:
    """Return the number of elements of the matrix."""
    return FUNNEL[0] * FUNNEL[-1] if _name(options) == "funnel" else SIZE * SIZE


@PEERS.add
def tapegrad(options: Options) -> Case:
    """A program, recorded once: `program.jacobian`."""
    import tapegrad as tg

    name = _name(options)
    x, f = point(name), PROGRAMS[name]()
    start = time.perf_counter()
    program = tg.record(f, x)
    info = {"trace_s": time.perf_counter() - start}
    fresh = tg.jacobian(f)

    def run(jacobian: Callable[[Any], Any]) -> Any:
        with tg.executor("compiled"):  # at once, not when that has paid
            return jacobian(x)

    return Case(
        {"jacobian": lambda: run(program.jacobian), "fresh": lambda: run(fresh)},
        lambda: run(program.jacobian),
        info,
    )


@PEERS.add
def jax_reverse(options: Options) -> Case:
    """JAX's `jacrev`, compiled."""
    return _jax(options, "jacrev")


@PEERS.add
def jax_forward(options: Options) -> Case:
    """JAX's `jacfwd`, compiled."""
    return _jax(options, "jacfwd")


def _name(options: Options) -> str:
    return {0: "layers", 1: "layers", 2: "recurrence", 3: "funnel"}[options.n]


def _jax(options: Options, mode: str) -> Case:
    import jax
    import jax.numpy as jnp

    name = _name(options)
    x = jnp.asarray(point(name))
    if name == "layers":
        weights = np.random.default_rng(0).normal(size=(3, SIZE, SIZE)) / np.sqrt(SIZE)

        def f(x):
            for w in weights:
                x = jnp.tanh(w @ x)
            return x
    elif name == "funnel":
        f = funnel(jnp)
    else:

        def f(x):
            def element(i, y):
                i = i % SIZE
                return y.at[i].set(jnp.sin(y[i - 1]) + x[i] * y[i])

            return jax.lax.fori_loop(0, 5 * SIZE, element, x * 1.0)

    start = time.perf_counter()
    compiled = jax.jit(getattr(jax, mode)(f)).lower(x).compile()
    info = {"compile_s": time.perf_counter() - start}
    return Case(
        {"jacobian": lambda: jax.block_until_ready(compiled(x))},
        lambda: np.asarray(compiled(x)),
        info,
    )
