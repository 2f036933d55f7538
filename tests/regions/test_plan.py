"""Planned sweeps against the reference interpreter: regions of all kinds of array programs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import arena, execute
from tapegrad.regions import plan, threads, written
from tapegrad.regions.plan import plan_of


@pytest.fixture(autouse=True)
def _plans(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plan even the smallest tape, and let imports of few elements have buffers of their own.

    What tapes leave behind is no number: a value that a plan forgets to compute is not right
    because an earlier tape had the same one there.
    """
    give_back = arena.Arena.give_back

    def spoilt(self: arena.Arena, n_instructions: int, n_cells: int) -> None:
        self.ensure(n_instructions, n_cells)
        self.v.array[:n_cells] = np.nan
        give_back(self, n_instructions, n_cells)

    monkeypatch.setattr(arena.Arena, "give_back", spoilt)
    monkeypatch.setattr(execute, "REGION_CELLS", 0)
    monkeypatch.setattr(plan, "OWN", 8)
    plan._plans.clear()
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)
    plan._plans.clear()  # made for another OWN


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Note of each sweep whether it went by regions."""
    notes: list[bool] = []
    sweep = execute.gradient

    def noted(*args: Any, **kwargs: Any) -> Any:
        found = sweep(*args, **kwargs)
        notes.append(found is not None)
        return found

    monkeypatch.setattr(execute, "gradient", noted)
    return notes


N = 24
INDEX = np.random.default_rng(0).integers(0, N, 50)


def rosenbrock(x: Any) -> Any:
    return np.sum(100.0 * (x[1:] - x[:-1] * x[:-1]) ** 2 + (1.0 - x[:-1]) ** 2)


def gathered(x: Any) -> Any:
    return np.sum(np.exp(x[INDEX]) * INDEX)


def gathered_of_computed(x: Any) -> Any:
    y = np.sin(x)
    return np.sum(y[INDEX] * y[INDEX[::-1]])


def outer(x: Any) -> Any:
    t = np.sin(x[:12, None] * x[None, 12:])
    return np.sum(t * t)


def axis_sums(x: Any) -> Any:
    t = np.exp(x[:8, None] * x[None, 8:])
    return np.sum(np.sum(t, axis=1) ** 2) + np.sum(np.log(np.sum(t, axis=0, keepdims=True)))


def shifted_of_computed(x: Any) -> Any:
    t = np.exp(0.3 * x)
    d = t[1:] - t[:-1]
    return np.sum(d * d) + np.sum(t * x)


def two_regions(x: Any) -> Any:
    s = np.sum(x * x)
    return np.sqrt(s) * np.sum(np.sin(x))


def normalised(x: Any) -> Any:
    return np.sum(np.exp(x) / np.sum(np.exp(x)) * np.arange(N))


def means_and_variances(x: Any) -> Any:
    y = x.reshape(4, 6)
    return np.mean((y - np.mean(y, axis=1, keepdims=True)) ** 2) / np.mean(y + 2.0)


def stencil(x: Any) -> Any:
    y = x.reshape(4, 6)
    return np.sum((y[1:, 1:] - y[:-1, :-1]) ** 2)


def strided(x: Any) -> Any:
    return np.sum(x[::2] * x[1::2]) + np.sum(x[::-1] * np.arange(N)) + np.sum(x[::3])


def transposed(x: Any) -> Any:
    y = x.reshape(4, 6)
    return np.sum(y.T * np.arange(24.0).reshape(6, 4)) + np.sum(y[:, ::-1] ** 3)


def with_matmul(x: Any) -> Any:
    y = np.tanh(x.reshape(4, 6))
    return np.sum(np.tanh(y @ y.T) * 2.0)


def with_scalars(x: Any) -> Any:
    a = x[0] * x[1]
    y = a * x + x[2]
    return y[3] * np.sum(y * x[5]) + np.cos(a)


def assigned(x: Any) -> Any:
    y = np.exp(x)
    y[3:7] = x[5:9] * 2.0
    y[0] = y[5]
    return np.sum(y * y)


def piecewise(x: Any) -> Any:
    return np.sum(np.where(x > 0.5, np.sqrt(x - 0.5), x**3) + np.maximum(x, 0.7) + abs(x - 0.3))


def stacked(x: Any) -> Any:
    y = np.stack([x, np.sin(x), x * x])
    return np.sum(y * y[::-1]) + np.sum(np.concatenate([x, y[0]]) ** 2)


def unused(x: Any) -> Any:
    y = np.exp(x)
    _ = np.log(y + 1.0) * y
    return np.sum(x * 2.0)


def only_a_sum(x: Any) -> Any:
    return np.sum(x)


def without_effect(x: Any) -> Any:
    return np.sum(np.floor(x)) + 0.0 * np.sum(x)


def negative_mean(x: Any) -> Any:
    return -np.mean(np.log(x)) + 3.0


def extrema(x: Any) -> Any:
    return np.max(x * x) + np.min(np.sin(x)) * np.sum(x)


def extrema_along_axes(x: Any) -> Any:
    t = np.round(2.0 * x).reshape(2, 3, 4) * x[0]  # several are equal
    spread = np.max(t, axis=(0, 2)) - np.min(t, axis=(0, 2))
    return np.sum(np.max(t, axis=1, keepdims=True) * t) + np.sum(spread**2) + np.max(-t)


def softmax(x: Any) -> Any:
    y = x.reshape(6, 4)
    e = np.exp(y - np.max(y, axis=1, keepdims=True))
    return np.sum((e / np.sum(e, axis=1, keepdims=True)) ** 2)


def long(x: Any) -> Any:
    y = x
    for i in range(700):
        y = np.sin(y) + (0.001 * i) * x
    return np.sum(y)


def deep_broadcast(x: Any) -> Any:
    y = x.reshape(2, 3, 4)
    return np.sum(y * y[:1, :, :] * y[:, :1, :1] + y[0, 0, :] + y[1])


def constants_of_the_sweep(x: Any) -> Any:
    """Values that no adjoint flows through, but that scalar, array and host code needs."""
    y = np.cos(tg.stop_gradient(x))
    largest = np.max(np.sin(tg.stop_gradient(x)) * 2.0)
    return np.sum(y) * x[0] + np.sum(y[::-1] * x) + np.sum(np.cumsum(y) * x) * largest


def assigned_constants(x: Any) -> Any:
    y = x * 1.0
    y[np.arange(N)] = 0.25
    return np.sum(np.tanh(y)) * x[0]


FUNCTIONS = [
    rosenbrock, gathered, gathered_of_computed, outer, axis_sums, shifted_of_computed, two_regions,
    normalised, means_and_variances, stencil, strided, transposed, with_matmul, with_scalars,
    assigned, piecewise, stacked, unused, only_a_sum, without_effect, negative_mean, extrema,
    extrema_along_axes, softmax, long, deep_broadcast,
    constants_of_the_sweep, assigned_constants,
]  # fmt: skip


def point(n: int = N) -> Any:
    return np.random.default_rng(1).uniform(0.2, 1.5, n)


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_value_and_gradient_are_the_reference_s(f: Callable[..., Any], planned: Any) -> None:
    with tg.executor("reference"):
        value, gradient = tg.value_and_grad(f)(point())
    assert not any(planned)
    planned.clear()
    with tg.executor("compiled"):
        for _ in range(2):  # the second time by the plan that was kept
            got_value, got = tg.value_and_grad(f)(point())
            # Sums in another order, functions by other means: some roundings.
            np.testing.assert_allclose(got_value, value, rtol=1e-12)
            np.testing.assert_allclose(got, gradient, rtol=1e-11, atol=1e-12)
        np.testing.assert_array_equal(tg.grad(f)(point()), got)  # by a plan without the value
    adjoints = arena.take_adjoints(0)
    assert not adjoints.array[: adjoints.touched].any()
    arena.give_back_adjoints(adjoints, clean=True)
    assert planned == [f is not only_a_sum] * 3  # which has nothing to fuse


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_fused_regions_give_the_same_bits(
    f: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    with tg.executor("compiled"):
        for lanes in (1 << 60, 0):
            monkeypatch.setattr(written, "FUSED", lanes)
            monkeypatch.setattr(plan, "_plans", OrderedDict())
            found.append(tg.value_and_grad(f)(point()))
    for plain, fused in zip(*found, strict=True):
        np.testing.assert_array_equal(fused, plain)
        np.testing.assert_array_equal(np.signbit(fused), np.signbit(plain))


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_leaves_receive_gradients_and_values_can_be_looked_at(f: Callable[..., Any]) -> None:
    x = point()
    with tg.executor("reference"):
        gradient = tg.grad(f)(x)
    with tg.executor("compiled"):
        leaf = tg.array(x)
        middle = np.cos(leaf)
        y = f(leaf) + np.sum(middle * leaf)
        y.backward()
        np.testing.assert_allclose(
            leaf.grad, gradient + np.cos(x) - x * np.sin(x), rtol=1e-11, atol=1e-12
        )
        np.testing.assert_allclose(middle.value, np.cos(x), rtol=1e-15)
        np.testing.assert_allclose(middle[3:5].value, np.cos(x[3:5]), rtol=1e-15)


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_programs_are_replayed(f: Callable[..., Any]) -> None:
    program = tg.record(f, point())
    for seed in range(2):
        x = np.random.default_rng(seed).uniform(0.6, 0.69, N)
        with tg.executor("reference"):
            expected = tg.value_and_grad(f)(x)
        try:
            with tg.executor("compiled"):
                value, gradient = program.value_and_grad(x)
        except tg.ControlFlowChanged:
            continue
        np.testing.assert_allclose(value, expected[0], rtol=1e-12)
        np.testing.assert_allclose(gradient, expected[1], rtol=1e-11, atol=1e-12)


def test_large_arrays_give_the_same_bits_for_any_number_of_threads() -> None:
    x = point(20_000)
    y = point(20_000)[::-1]

    def f(x: Any, y: Any) -> Any:
        t = np.exp(x[1:] - y[:-1]) / (x[:-1] + y[1:])
        return np.sum(t) * np.mean(np.sin(x) * y)

    results = []
    with tg.executor("compiled"):
        for n in (1, 2, 3):
            threads.set_num_threads(n)
            value, gradients = tg.value_and_grad(f, argnums=(0, 1))(x, y)
            results.append((value, *[g.tobytes() for g in gradients]))
    assert results[0] == results[1] == results[2]


def test_a_branch_not_taken_stays_free_of_nan() -> None:
    x = np.concatenate([point(), [0.0, -1.0]])
    with tg.executor("compiled"):
        got = tg.grad(lambda x: np.sum(np.where(x > 0.0, np.log(x), 2.0 * x)))(x)
        np.testing.assert_array_equal(got, np.where(x > 0.0, 1 / np.where(x > 0.0, x, 1.0), 2.0))
        got = tg.grad(lambda x: np.sum(np.where(x > 0.0, np.sqrt(x) / x, 0.0)))(x)
        assert np.isfinite(got).all()


def test_strict_sweeps_visit_zero_adjoints() -> None:
    with tg.executor("compiled"):
        x = tg.array(np.concatenate([point(), [0.0]]))
        np.sum(np.log(x) * 0.0).backward(strict=True)
        assert np.isnan(x.grad[-1])


def test_intermediates_are_neither_stored_nor_given_adjoints() -> None:
    x = point()
    with tg.executor("compiled"):
        leaf = tg.array(x)
        t = np.exp(leaf) * leaf
        y = np.sum(t * t)
        tape, base = y.tape, t.storage.base
        tape.flush()
        tape.arena.v.array[base : base + N] = 7.0
        y.backward()
        assert tape.sparse is not None
        assert (tape.arena.v.array[base : base + N] == 7.0).all()
        np.testing.assert_allclose(t.value, np.exp(x) * x, rtol=1e-15)
        assert tape.sparse is None


def test_plans_are_kept_by_structure_and_not_by_values(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    make = plan.Plan

    def noted(*args: Any) -> plan.Plan:
        made.append(args)
        return make(*args)

    monkeypatch.setattr(plan, "Plan", noted)
    with tg.executor("compiled"):
        for factor in (2.0, 3.0):
            x = point() * factor
            np.testing.assert_allclose(
                tg.grad(lambda x, factor=factor: np.sum(x * x * factor))(x), 2 * factor * x
            )
        assert len(made) == 1
        tg.grad(lambda x: np.sum(x * x))(point())
        assert len(made) == 2


def test_sums_join_the_region_that_they_close() -> None:
    with tg.executor("compiled"):
        x = tg.array(point())
        y = np.sum(np.sin(x) * x)
        assert y.value == pytest.approx(float(np.sum(np.sin(point()) * point())))
        found = plan_of(y.tape, 0, "values")
        assert [step.kind for step in found.steps] == [plan.SCALARS, 0]


def test_shifted_slices_of_an_argument_share_a_region() -> None:
    with tg.executor("compiled"):
        program = tg.record(rosenbrock, point())
        assert plan_of(program.tape, 0, "values").count == 1


def test_what_nothing_depends_on_is_not_computed(planned: Any) -> None:
    with tg.executor("compiled"):
        x = tg.array(point())
        unused_value = np.log(x - 10.0)
        np.sum(x * 2.0).backward()
        assert planned == [True]
        assert np.isnan(unused_value.value).all()


@pytest.mark.parametrize("function", [np.sum, np.max, np.min])
def test_reductions_of_gathered_and_assigned_arrays_close_regions(function: Any) -> None:
    x = np.random.default_rng(5).normal(size=400)
    index = np.random.default_rng(6).integers(0, 400, 300)

    def f(x: Any) -> Any:
        y = np.sin(x)
        y[:20] = x[20:40]
        return function(y * 1.0) + function(y) + function(np.exp(x)[index])

    with tg.executor("reference"):
        expected = tg.value_and_grad(f)(x)
    with tg.executor("compiled"):
        leaf = tg.array(x)
        y = f(leaf)
        y.tape.flush()
        kinds = {step.kind for step in plan_of(y.tape, 0, "values").steps}
        assert plan.HOST_CALL not in kinds
        y.backward()
        np.testing.assert_allclose(y.value, expected[0], rtol=1e-12)
        np.testing.assert_allclose(leaf.grad, expected[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("function", [np.max, np.min])
@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1)], ids=str)
def test_extremes_join_a_region_and_ties_share(function: Any, axis: Any) -> None:
    x = np.random.default_rng(3).integers(0, 4, (300, 40)) * 1.0
    x[7, 5] = np.nan
    extreme = function(x, axis=axis, keepdims=True)
    chosen = (x == extreme) | np.isnan(x)
    weights = np.arange(1.0, extreme.size + 1).reshape(extreme.shape)
    shares = weights * chosen / np.sum(chosen, axis=axis, keepdims=True)
    with tg.executor("compiled"):
        leaf = tg.array(x)
        y = function(leaf * 1.0, axis=axis, keepdims=True)
        np.testing.assert_array_equal(y.value, extreme)
        tape = y.storage.tape
        assert [step.kind for step in plan_of(tape, 0, "values").steps] == [plan.SCALARS, 0]
        np.sum(y * weights).backward()
        np.testing.assert_array_equal(leaf.grad, shares)


def test_values_of_other_executors_are_compared_with_none_of_regions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = point(2000).reshape(500, 4)

    def f(x: Any) -> Any:
        return np.sum(np.max(np.sin(x) * np.exp(np.cos(x)), axis=1))

    with tg.executor("reference"):
        expected = tg.grad(f)(x)
    with tg.executor("compiled"):
        leaf = tg.array(x)
        y = f(leaf)
        with monkeypatch.context() as patch:
            patch.setattr(execute, "REGION_CELLS", 1 << 20)
            execute.evaluate(y.tape)  # one instruction after another: digits may differ
        y.backward()
    np.testing.assert_allclose(leaf.grad, expected, rtol=1e-13)


def test_several_seeds_meet_in_one_sweep() -> None:
    with tg.executor("compiled"):
        _value, pull = tg.vjp(lambda x: (np.exp(x)[3:9], np.sin(x)), point())
        first, second = np.ones(6), np.full(N, 2.0)
        (got,) = pull((first, second))
        expected = 2.0 * np.cos(point())
        expected[3:9] += np.exp(point())[3:9]
        np.testing.assert_allclose(got, expected, rtol=1e-14)


@pytest.mark.parametrize("n", [300, 5000])
def test_adjoints_that_start_at_an_argument(n):
    """Results that are arguments: their cotangents are met by no instruction."""
    a, b = np.linspace(0.0, 1.0, n), np.linspace(1.0, 2.0, n)

    def f(a, b):
        return b, a * b[::-1], a[1:]

    seeds = np.linspace(2.0, 3.0, n), np.linspace(3.0, 4.0, n), np.linspace(4.0, 5.0, n - 1)
    to_a, to_b = seeds[1] * b[::-1], seeds[0] + (seeds[1] * a)[::-1]
    to_a[1:] += seeds[2]
    with tg.executor("compiled"):
        program = tg.record(f, a, b)
        for _ in range(2):  # the second finds what the first has left behind
            for vjp in (program.vjp, lambda *args: tg.vjp(f, *args)):
                _, pull = vjp(a, b)
                for found, expected in zip(pull(seeds), (to_a, to_b), strict=True):
                    np.testing.assert_array_equal(found, expected)
