"""Memory for results: used again, and never by two."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.regions import results
from tapegrad.regions.results import take

N = 10_000


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    results._owners.clear()
    yield
    results._owners.clear()


def test_what_nobody_holds_is_used_again() -> None:
    first = take(N)
    address = first.ctypes.data
    assert address % 64 == 0
    assert address % 4096 == 8 * results._SHIFT
    assert take(N).ctypes.data != address
    del first
    assert address in {take(N).ctypes.data for _ in range(2)}


def test_it_lies_in_lines_as_what_is_read_with_it() -> None:
    room = np.empty(N)
    for shift in range(8):
        array = room[shift:]
        result = take(N, array)
        assert result.size == N
        assert (result.ctypes.data - array.ctypes.data) % 4096 == 2048  # 32 lines
        del result
    assert len(results._owners) == 1


def test_a_view_keeps_its_array() -> None:
    tail = take(N)[N // 2 :][::2]
    tail[:] = 3.0
    for _ in range(3):
        take(N)[:] = 0.0
    assert (tail == 3.0).all()


def test_sizes_do_not_mix_and_small_arrays_are_not_kept() -> None:
    assert take(N).size == N
    assert take(N + 1).size == N + 1
    assert take(5).size == 5
    assert {owner.size for owner in results._owners} == {N + 512, N + 513}


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "KEEP_BYTES", 3 * 8 * N)
    held = [take(N + i) for i in range(10)]
    assert sum(owner.nbytes for owner in results._owners) <= 4 * 8 * (N + 522)
    for i, array in enumerate(held):
        array[:] = i
    assert all((array == i).all() for i, array in enumerate(held))


def test_gradients_are_the_caller_s() -> None:
    x = np.linspace(0.1, 1.0, N)
    with tg.executor("compiled"):
        gradient = tg.grad(lambda x: np.sum(np.exp(x)))
        first, second = gradient(x), gradient(2.0 * x)
        np.testing.assert_allclose(first, np.exp(x), rtol=1e-15)
        first[:] = 0.0
        np.testing.assert_allclose(second, np.exp(2.0 * x), rtol=1e-15)
        assert second.flags.writeable
        assert second.flags.c_contiguous
    np.testing.assert_array_equal(x, np.linspace(0.1, 1.0, N))
