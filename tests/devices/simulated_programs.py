"""Programs on a simulated device, one call at a time; see `tests/test_simulated.py`."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import simulators
import stand_in
import tapegrad as tg
from simulators import SHARED, Dying, Elsewhere, Small
from tapegrad import trees
from tapegrad.devices.device import Device, device
from tapegrad.devices.modules import OnDevice, OnHost

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

RNG = np.random.default_rng(4)
GPU = device()
GPU.sizes = SHARED
LONG = 300  # elements: more than those that are copied together with other values


@pytest.fixture(params=["CuPy", "host"])
def gpu(request: Any) -> Device:
    """Return a device whose structural operations run there, or on the host."""
    own = simulators.on(SHARED)
    own.arrays = OnDevice(own, stand_in) if request.param == "CuPy" else OnHost(own)
    stand_in.calls.clear()
    return own


def close(found: Any, wanted: Any, tol: float = 1e-11) -> None:
    simulators.close(found, wanted, tol, tol)


def cotangent_like(value: Any) -> Any:
    parts, tree = trees.flatten(value)
    return trees.unflatten(tree, [RNG.normal(size=np.shape(x))[()] for x in parts])


def check(f: Any, *args: Any, on: Device = GPU) -> None:
    """Compare all of a program's methods with those on the CPU, for arrays here and there."""
    here = tg.record(f, *args)
    there = here.to(on)
    value, pull = here.vjp(*args)
    seed = cotangent_like(value)
    tangents = tuple([RNG.normal(size=np.shape(x))[()] for x in args])
    for put in (np.asarray, on.put):
        given_ = tuple([put(x) if np.ndim(x) else x for x in args])
        close(there(*given_), here(*args))
        found, back = there.vjp(*given_)
        close(found, value)
        close(back(seed), pull(seed))
        close(there.jvp(given_, tangents), here.jvp(args, tangents))
        if not isinstance(value, tuple) and np.ndim(value) == 0:
            every = tuple(range(len(args)))
            found = there.value_and_grad(*given_, argnums=every)
            close(found, here.value_and_grad(*args, argnums=every))
            close(there.grad(*given_), here.value_and_grad(*args)[1])
        stays = put is not np.asarray and any(map(np.ndim, args))
        assert all(hasattr(x, "numpy") == stays for x in trees.flatten(found)[0])


# -- array code ------------------------------------------------------------------------------------

x, y, m = RNG.normal(size=LONG), RNG.normal(size=LONG), RNG.normal(size=(20, 20))


@pytest.mark.parametrize("n", [7, LONG], ids=["small", "long"])
def test_elementwise_code_and_sums(n: int) -> None:
    a, b = RNG.normal(size=n), RNG.normal(size=n)
    check(lambda a, b: np.sum(np.sin(a) * b), a, b)
    check(lambda a, b: np.exp(a) * b, a, b)
    check(lambda a, b: 3.0 * np.sum(np.sin(a) * b) / np.sum(b * b), a, b)
    check(lambda a, b: (np.mean(a * b), b, a + 1.0, 2.0, a), a, b)
    # No adjoint flows through the cosines, if only `a` moves.
    check(lambda a, b: np.sum(np.cos(b)) * a[0] + np.sum(np.cos(b)[::-1] * a), a, b)


@pytest.mark.parametrize("n", [7, LONG], ids=["small", "long"])
def test_windows_that_overlap_are_gathered_and_reversed(n: int) -> None:
    a = RNG.normal(size=n)
    places = RNG.integers(0, n, 2 * n)
    check(lambda a: (a[2:] - 2 * a[1:-1] + a[:-2]) * a[0], a)
    check(lambda a: np.sum(a[places] ** 3) + a[1] * a[2], a)
    check(lambda a: np.concatenate([a[2:], np.sin(a)])[::3] * 2.0, a)
    check(lambda a: np.sum((a * a)[::-1] * a), a)


def filled(a: Any) -> Any:
    """Return an array whose elements are assigned one by one, and in stretches."""
    out = tg.zeros(a.size)
    out[0] = a[0]
    for i in range(1, 5):
        out[i] = out[i - 1] * a[i]
    out[5:] = np.cos(a[:-5])
    return out


def test_scalar_code_between_array_code() -> None:
    def steps(a: Any, s: Any) -> Any:
        t = a[0] * s
        for i in range(1, 20):
            t = np.sin(t) + a[i] * t
        return np.sum(a * t) * t + np.sum(filled(a) * t)

    check(steps, x, 0.3)
    check(filled, x)
    check(lambda s, t: (s * t, np.sin(s)), 0.3, 2.0)


def test_matrices_of_several_axes() -> None:
    check(lambda a: np.sum(a * a.T, axis=0) * a[:, 0], m)
    check(lambda a: np.sum(np.exp(a)[None] * a[:, :, None], axis=(0, 2)), m[:4, :4])


@pytest.mark.parametrize("shape", [(3, 4), (20, 20)])
def test_structural_operations(gpu: Device, shape: tuple[int, int]) -> None:
    a = RNG.normal(size=shape)
    fixed = RNG.normal(size=(8, shape[0]))
    check(lambda a: np.sum(np.tanh(fixed @ a) ** 2), a, on=gpu)
    check(lambda a: (a @ a.T)[::2, 1] * 2.0, a, on=gpu)
    check(lambda a: np.cumsum(a * a, axis=1)[::-1].T * np.max(a, axis=0)[:, None], a, on=gpu)
    check(lambda a: np.cumprod(a, axis=0) + np.prod(a[:2], axis=0) * np.min(a), a, on=gpu)
    check(lambda a: np.prod(a[:, :2], axis=(0, 1)) * np.max(a[1:3] @ a[0]), a, on=gpu)
    on_device = isinstance(gpu.arrays, OnDevice)
    assert ({"matmul", "cumsum", "cumprod", "prod"} <= set(stand_in.calls)) == on_device


def test_nothing_is_copied_to_the_host_that_is_on_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = simulators.on(SHARED)
    own.arrays = OnDevice(own, stand_in)
    program = tg.record(lambda a: np.sum((a @ a) * np.cumsum(a, axis=0)), m)
    given_ = own.put(m)

    def refuse(*args: Any) -> None:
        raise AssertionError("a copy to the host")

    with monkeypatch.context() as patch:
        patch.setattr(own.driver, "download", refuse)
        value, gradient = program.to(own).value_and_grad(given_)
    close((value, gradient), program.value_and_grad(m))


def test_custom_rules_and_checkpoints_run_on_the_host(gpu: Device) -> None:
    @tg.custom_vjp
    def scaled(a: Any) -> Any:
        return 2.0 * a

    scaled.defvjp(lambda a: (2.0 * a, None), lambda kept, g: (2.0 * g,))
    for f in (lambda a: np.sum(scaled(a) * a), lambda a: np.sum(tg.checkpoint(np.exp)(a) * a)):
        program = tg.record(f, x)
        there = program.to(gpu)
        close(there.value_and_grad(gpu.put(x)), program.value_and_grad(x))
        close(there.value_and_grad(x), program.value_and_grad(x))


def test_where_nothing_flows_infinite_values_make_no_nan(gpu: Device) -> None:
    program = tg.record(lambda a: np.where(a[0] > 0.0, a[0], np.max(a @ m * np.inf)), m[0])
    given_ = np.abs(m[0])
    close(program.to(gpu).grad(given_), program.value_and_grad(given_)[1])


def test_derivatives_of_higher_order_and_jacobians() -> None:
    for f in (lambda a: np.sin(a[::2]) * a[1::2], lambda a: np.outer(a, a) * a[0]):
        program = tg.record(f, np.ones(4))
        a = RNG.normal(size=4)
        close(program.to(GPU).jacobian(a), program.jacobian(a))
        close(program.to(GPU).jacobian(GPU.put(a)), program.jacobian(a))
    program = tg.record(lambda a, b: (a @ b * a, np.sum(b), 3.0), np.ones(3), np.ones(3))
    for argnums in (1, (0, 1)):
        wanted = program.jacobian(m[0, :3], m[1, :3], argnums=argnums)
        close(program.to(GPU).jacobian(m[0, :3], m[1, :3], argnums=argnums), wanted)
    program = tg.record(lambda a, b: np.sum(np.exp(a @ b * a)), m[0], m[1])
    close(program.to(GPU).hvp(x[:20], y[:20], m[0]), program.hvp(x[:20], y[:20], m[0]))
    program = tg.record(lambda a: np.sum(np.exp(a @ a * a)), np.ones(3))
    close(program.to(GPU).hessian(m[0, :3]), program.hessian(m[0, :3]))


def test_single_precision(gpu: Device) -> None:
    a = m.astype(np.float32)
    program = tg.record(lambda a, s: np.sum(np.tanh(a @ a) * s) * a[0, 0], a, 0.5)
    value, (one, two) = program.to(gpu).value_and_grad(gpu.put(a), 0.25, argnums=(0, 1))
    assert value.dtype == one.dtype == two.dtype == np.float32
    wanted, (first, second) = program.value_and_grad(a, 0.25, argnums=(0, 1))
    for found, expected in ((value, wanted), (one, first), (two, second)):
        # products of 20 terms, twice
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="all alike, not float32 and float64"):
        program.to(gpu)(gpu.put(a), gpu.put(np.float64(0.5)))


def test_nan_stays_in_its_lane() -> None:
    a = x.copy()
    a[[3, 40]] = np.nan
    program = tg.record(lambda a: a * np.exp(a) + np.maximum(a, 0.0), x)
    close(program.to(GPU)(GPU.put(a)), program(a))
    _, pull = program.to(GPU).vjp(GPU.put(a))
    (found,) = pull(np.ones(LONG))
    assert np.flatnonzero(np.isnan(found.numpy())).tolist() == [3, 40]
    one = tg.record(lambda a: a * np.exp(a), 1.0)
    close(one.to(GPU).map.value_and_grad(GPU.put(a)), one.map.value_and_grad(a))


OPERATIONS: list[Any] = [
    lambda a, b: a + b,
    lambda a, b: a * b,
    lambda a, b: np.sin(a),
    lambda a, b: a[::-1],
    lambda a, b: np.where(a > 0.0, a, b),
    lambda a, b: np.concatenate([a[3:], b[:3]]),
    lambda a, b: np.cumsum(a),
    lambda a, b: b * np.sum(a),
    lambda a, b: a[0] * b[1] + a,
    lambda a, b: np.maximum(a, b),
    lambda a, b: a.reshape(2, -1)[::-1].ravel(),
    lambda a, b: np.roll(a, 1) * 0.5,
    lambda a, b: np.max(a) * b + np.min(a[1:]),
    lambda a, b: (a.reshape(2, -1) @ b.reshape(2, -1).T)[0, 1] * a,
    lambda a, b: (a.reshape(2, -1).T @ np.tanh(b[:4].reshape(2, 2))).ravel(),
    lambda a, b: assigned(a, b),
    lambda a, b: np.repeat(np.max(a.reshape(-1, 2), axis=1), 2) - b,
    lambda a, b: np.cumprod(np.tanh(a)) + a[np.arange(a.size)[::-1]],
]


def assigned(a: Any, b: Any) -> Any:
    """Return an array of which some elements, and a stretch, were assigned."""
    out = tg.zeros(a.size)
    out[:] = a * 0.5
    out[2] = b[0] * a[1]
    out[3:] = b[3:] * b[:-3]
    return out


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, len(OPERATIONS) - 1), st.integers(0, 9), st.integers(0, 9)),
             min_size=1, max_size=8),
    st.sampled_from([6, 260]),
    st.booleans(),
)  # fmt: skip
def test_any_program(code: list[tuple[int, int, int]], n: int, total: bool) -> None:
    def f(a: Any, b: Any) -> Any:
        known = [a, b]
        for number, i, j in code:
            known.append(OPERATIONS[number](known[i % len(known)], known[j % len(known)]))
        return np.sum(known[-1]) if total else tuple(known[1:])

    rng = np.random.default_rng(len(code))
    a, b = 0.5 * rng.normal(size=n), 0.5 * rng.normal(size=n)
    program = tg.record(f, a, b)
    there = program.to(GPU)
    value, pull = program.vjp(a, b)
    seed = cotangent_like(value)
    for put in (np.asarray, GPU.put):
        found, back = there.vjp(put(a), put(b))
        close(found, value, 1e-9)
        close(back(seed), pull(seed), 1e-9)


# -- what results are ------------------------------------------------------------------------------


def test_results_share_no_memory() -> None:
    program = tg.record(lambda a: (a, a, np.sin(a), np.sin(a)[1:], np.sin(a)), x)
    given_ = GPU.put(x)
    arrays = [given_, *program.to(GPU)(given_)]
    spans = sorted((one.address, one.address + 8 * one.size) for one in arrays)
    assert all(stop <= start for (_, stop), (start, _) in pairwise(spans))
    _, pull = program.to(GPU).vjp(given_)
    seed = GPU.put(y)
    (found,) = pull((seed, 0 * x, 0 * x, 0 * x[1:], 0 * x))
    assert found.address != seed.address
    close(found, y)


def test_runs_are_the_same_to_the_bit() -> None:
    places = RNG.integers(0, 20, LONG)
    program = tg.record(lambda a: np.sum(a[places] ** 3) + np.sum(a[1:] * a[:-1]), x)
    one, other = (program.to(GPU).value_and_grad(GPU.put(x)) for _ in range(2))
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first.numpy(), second.numpy())


def test_the_program_on_the_cpu_is_left_as_it_was() -> None:
    program = tg.record(lambda a, s: np.sum(np.sin(a) * s) * s, x, 0.5)
    wanted = program.value_and_grad(x, 0.5)
    program.to(GPU).value_and_grad(GPU.put(y), 2.0)
    close(program.value_and_grad(x, 0.5), wanted, 0.0)
    assert program.to(GPU) is program.to(GPU)


def test_a_program_whose_cells_were_numbered_anew() -> None:
    def wide(s: Any, a: Any) -> Any:
        parts = [[np.sin, np.exp, np.cos][i % 3](s * (0.1 * i)) * a[i % 3] for i in range(90)]
        while len(parts) > 1:
            parts = [p + q if i % 2 else p * q for i, (p, q) in enumerate(pairwise(parts[::2]))]
        return parts[0]

    program = tg.record(wide, 0.5, np.ones(3))
    wanted = program.value_and_grad(0.25, x[:3], argnums=(0, 1))
    there = program.to(GPU)
    close(there.value_and_grad(0.25, x[:3], argnums=(0, 1)), wanted)
    before = program.tape.arena.op.array[: program.tape.n].copy()
    program.compile()  # which sorts it
    assert not np.array_equal(program.tape.arena.op.array[: program.tape.n], before)
    close(there.value_and_grad(0.25, x[:3], argnums=(0, 1)), wanted)
    close(there.value_and_grad(0.25, GPU.put(x[:3]), argnums=(0, 1)), wanted)


def test_intermediates_take_no_memory_for_longer_than_they_are_used() -> None:
    def chain(a: Any) -> Any:
        for _ in range(20):
            a = np.cumsum(a) * 0.5
        return a

    own = simulators.on(SHARED)
    own.arrays = OnHost(own)
    tg.record(chain, x).to(own)(own.put(x))
    assert len(own.pool.free[8 * LONG]) <= 4


# -- decisions and bad input -----------------------------------------------------------------------


def test_decisions_are_checked() -> None:
    def guarded(a: Any) -> Any:
        total = np.sum(a * a)
        return total * 2.0 if total > 0.0 else total

    for f in (guarded, lambda a: np.sum(a[: int(np.argmax(a)) + 1] ** 2)):
        a = np.append(x[:-1], 9.0)
        program = tg.record(f, a)
        close(program.to(GPU).value_and_grad(GPU.put(a)), program.value_and_grad(a))
        with pytest.raises(tg.ControlFlowChanged, match="when the program was recorded"):
            program.to(GPU).value_and_grad(GPU.put(0.0 * a))
        with pytest.raises(tg.ControlFlowChanged, match="when the program was recorded"):
            program.to(GPU)(0.0 * a)


def test_bad_arguments_are_named() -> None:
    program = tg.record(lambda a, k: np.sum(a * k), x, 3)
    there = program.to(GPU)
    with pytest.raises(ValueError, match=r"argument 0 has shape \(3,\), but the program was"):
        there(GPU.put(np.ones(3)), 3)
    with pytest.raises(ValueError, match=r"argument 0 has shape \(3,\), but the program was"):
        there(np.ones(3), 3)
    with pytest.raises(ValueError, match="record again"):
        there(GPU.put(x), 4)
    with pytest.raises(TypeError, match="recorded for 2 positional arguments"):
        there(GPU.put(x))
    with pytest.raises(TypeError, match="takes plain arrays"):
        tg.grad(lambda a: there(a, 3))(x)
    with pytest.raises(TypeError, match="argument 1 is a part of the program"):
        there.grad(x, 3, argnums=1)
    with pytest.raises(tg.MixedDevicesError, match="an array is on cuda:0, and not on <cuda:1"):
        program.to(Device(Elsewhere(), sizes=SHARED))(GPU.put(x), 3)
    _, pull = tg.record(np.sin, x).to(GPU).vjp(x)
    with pytest.raises(ValueError, match=r"has shape \(2,\), but the output has shape"):
        pull(GPU.put(np.ones(2)))
    with pytest.raises(TypeError, match="not a single number"):
        tg.record(np.sin, x).to(GPU).grad(x)
    deep = tg.record(lambda a: a * np.transpose(a, (6, 5, 4, 3, 2, 1, 0)), np.ones((2,) * 7))
    with pytest.raises(NotImplementedError, match="up to 6 axes"):
        deep.to(GPU)(np.ones((2,) * 7))


@pytest.mark.parametrize("launches", [0, 1, 2, 3])
def test_a_device_that_disappears_in_the_middle(launches: int) -> None:
    own = Device(Dying(launches), sizes=SHARED)
    own.arrays = OnHost(own)
    program = tg.record(lambda a, s: np.sum(np.cumsum(np.sin(a)) * s) * s, x, 0.5)
    given_ = own.put(x)
    wanted = program.value_and_grad(x, 0.5)
    with pytest.raises(tg.DeviceLostError, match=r"stopped working.*the CPU still works"):
        program.to(own).value_and_grad(given_, 0.25)
    close(program.value_and_grad(x, 0.5), wanted, 0.0)  # the CPU does work
    np.testing.assert_array_equal(given_.numpy(), x)


def test_memory_that_does_not_suffice() -> None:
    program = tg.record(lambda a: np.sum(np.cumsum(a)), x)
    with pytest.raises(MemoryError, match=r"the memory of <cuda:0, .*> does not suffice"):
        program.to(Device(Small(100), sizes=SHARED))(x)
    close(program(x), np.sum(np.cumsum(x)))


def test_memory_pools_give_back_what_the_other_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    own = simulators.on(SHARED)
    own.arrays = OnDevice(own, stand_in)
    program = tg.record(lambda a: np.sum(np.cumsum(a) * a), x)
    expected = program.value_and_grad(x)
    there, given_ = program.to(own), own.put(x)
    close(there.value_and_grad(given_), expected)
    assert own.pool.free[8 * LONG]
    cumsum, failures = np.cumsum, [1, 1]

    def short_of_memory(*args: Any, **kwargs: Any) -> Any:
        if failures and failures.pop():
            raise MemoryError
        return cumsum(*args, **kwargs)

    row = program.tape.hosts[0].row
    monkeypatch.setattr(row, "forward", short_of_memory)
    with pytest.raises(MemoryError, match="does not suffice"):
        there(given_)  # twice in a row
    failures.append(1)
    close(there(given_), expected[0])
    # The other way round: memory of this pool cannot be had before CuPy's is given back.
    stand_in.released.clear()
    allocate = own.driver.allocate

    def full(size: int, dtype: Any) -> Any:
        if not stand_in.released:
            raise MemoryError
        return allocate(size, dtype)

    own.pool.release()
    monkeypatch.setattr(own.driver, "allocate", full)
    close(there.value_and_grad(given_), expected)
    assert stand_in.released == [1]
