"""Tapes taken apart into operations on single elements."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.batches.unroll import Unrolled, can_unroll
from tapegrad.regions.region import RegionBuilder, run_reference

RNG = np.random.default_rng(3)
X = RNG.normal(size=(2, 3))
M = RNG.normal(size=(3, 2))


def one_sample(program, *args):
    """Run a program's unrolled code for one sample."""
    known = [place for place in program.inputs if place is not None]
    build = RegionBuilder((1,))
    values = Unrolled(
        program.tape,
        [(place.cell, place.size) for place in known],
        lambda number, element: build.input(number, (0,), element),
        build,
    )
    (output,) = program.outputs
    for j, cell in enumerate(output.flat_cells().tolist()):
        build.output(values.value(cell), len(known), (0,), j)
    found = np.empty(output.size)
    run_reference(build.finish(), [*map(np.ravel, args), found])
    return found.reshape(output.shape)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize(
    "f",
    [
        lambda x: np.sum(x, axis=1) + np.sum(x),
        lambda x: np.sum(x, axis=(0, 1), keepdims=True) * x,
        lambda x: np.prod(x, axis=0),
        lambda x: np.max(x, axis=1, keepdims=True) - np.min(x),
        lambda x: np.max(np.stack([x, 2.0 * x]), axis=(0, 2)),
        lambda x: np.cumsum(x, axis=1) * np.cumprod(x, axis=0),
        lambda x: x @ M + (M @ x)[:2, 1:],
        lambda x: x[0] @ x[1] * x[1],
        lambda x: np.where(x > 0.0, x, x * x) + np.clip(x, -0.5, 0.5) ** 3,
        lambda x: x[[1, 0]].T[::-1] + 2.0,
        tg.grad(lambda x: np.sum(np.tanh(x @ M) ** 2) + np.max(x)),
        lambda x: np.float32(1.5) * x.astype(np.float32),
    ],
)
def test_it_is_the_program(f):
    program = tg.record(f, X)
    assert can_unroll(program.tape)
    # Sums are taken from left to right, NumPy's in pairs or by BLAS: a few units in the last place.
    np.testing.assert_allclose(one_sample(program, X), program(X), rtol=1e-14)


def test_what_is_long_or_unknown_is_not_taken_apart():
    assert not can_unroll(tg.record(lambda x: np.sin(x), np.zeros(40_000)).tape)
    assert not can_unroll(tg.record(lambda x: x @ x, np.ones((60, 60))).tape)

    @tg.custom_vjp
    def own(x):
        return x * x

    own.defvjp(lambda x: (x * x, x), lambda x, g: (2.0 * x * g,))
    program = tg.record(lambda x: own(x), 2.0)
    assert not can_unroll(program.tape)
    np.testing.assert_array_equal(program.map.grad(np.array([1.0, 3.0])), [2.0, 6.0])
