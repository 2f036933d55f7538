"""Sweeps from 1 against sweeps from other numbers: the same bits, from fewer instructions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.regions import plan
from tapegrad.regions.region import BUFFER
from tapegrad.regions.written import ADJOINTS

N = 20_000  # enough that programs are fused
RNG = np.random.default_rng(0)
X = RNG.uniform(-2.0, 2.0, N)

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "products": lambda x: np.sum(x * np.sin(x)),
    "a difference": lambda x: np.sum(np.exp(x) - x * x * 3.0),
    "minus": lambda x: np.sum(-(x * x)),
    "the argument itself": lambda x: np.sum(x),
    "quotients": lambda x: np.sum(1.0 / (x * x + 1.0) - 2.0 / (3.0 + x)),
    "overlapping": lambda x: np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2),
    "used twice": lambda x: (lambda s: s * s)(np.sum(x * x)),
    "used in a region": lambda x: np.sum(x / np.sum(x * x)),
    "a mean": lambda x: np.mean(x * x),
    "an extreme": lambda x: np.max(x * x),
    "two sums": lambda x: np.sum(x * x) + np.sum(x),
}


@pytest.fixture(autouse=True)
def _plans() -> None:
    plan._plans.clear()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_sweep_from_one(name: str) -> None:
    f = FUNCTIONS[name]
    with tg.executor("compiled"):
        gradient = tg.grad(f)(X)
        value, pull = tg.vjp(f, X)
        # Powers of two: multiplying by them is exact.
        (twice,) = pull(2.0)
        assert tg.value_and_grad(f)(X)[0] == value
    np.testing.assert_array_equal(gradient, 0.5 * twice)


def regions(f: Callable[[Any], Any], seed: float) -> list[Any]:
    """Return the regions that a sweep from a number runs backward."""
    plan._plans.clear()
    with tg.executor("compiled"):
        _, pull = tg.vjp(f, X)
        pull(seed)
    steps = [step for made in plan._plans.values() for step in made.steps]
    return [step.backward for step in steps if step.backward is not None]


@pytest.mark.parametrize("name", ["products", "a difference", "overlapping"])
def test_a_sweep_from_one_takes_fewer_instructions(name: str) -> None:
    f = FUNCTIONS[name]
    ((one,), (other,)) = regions(f, 1.0), regions(f, 2.0)
    assert len(one.code) < len(other.code)


@pytest.mark.parametrize("name", ["used twice", "used in a region", "two sums"])
def test_what_else_arrives_is_not_left_out(name: str) -> None:
    for region in regions(FUNCTIONS[name], 1.0):
        assert ADJOINTS in region.inputs[:, BUFFER]


def test_infinities_and_zeros() -> None:
    x = np.concatenate([X, [0.0, -0.0, np.inf, -np.inf, np.nan]])
    f: Callable[[Any], Any] = lambda x: np.sum(np.sqrt(x * x) - x)  # noqa: E731
    with tg.executor("compiled"), np.errstate(all="ignore"):
        _, pull = tg.vjp(f, x)
        np.testing.assert_array_equal(tg.grad(f)(x), 0.5 * pull(2.0)[0])
