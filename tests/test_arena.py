"""Columns that grow, pools that bound what they keep, and memory that goes back."""

import gc
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tapegrad import arena as module
from tapegrad.arena import (
    Arena,
    Column,
    Pool,
    drain_pools,
    give_back_adjoints,
    take_adjoints,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux reserves address space")


@pytest.fixture(autouse=True)
def _empty_pools():
    drain_pools()
    yield
    drain_pools()


@pytest.fixture(params=["reserved", "growing"])
def backing(request, monkeypatch):
    """Run a test on reserved columns, where the system has them, and on growing ones."""
    if request.param == "growing":
        monkeypatch.setattr(module, "_reserve", lambda nbytes: None)
    return request.param


# -- columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.float64])
def test_growth_keeps_what_was_written(backing, dtype):
    column = Column(dtype)
    written = 0
    rng = np.random.default_rng(0)
    expected = rng.integers(1, 100, 40_000).astype(dtype)
    for n in (1, 10, 4096, 4097, 8192, 20_000, 40_000):  # around the sizes where it grows
        array = column.ensure(n)
        assert array is column.array
        assert column.capacity >= n
        assert array.dtype == dtype
        array[written:n] = expected[written:n]
        written = n
    np.testing.assert_array_equal(column.array[:written], expected)
    assert not column.array[written : 2 * written].any()  # what was never written is zero
    assert column.touched == written


@linux
def test_a_reserved_column_does_not_move():
    column = Column(np.float64)
    if column._map is None:
        pytest.skip("this system refuses to reserve")
    before = column.ensure(1).ctypes.data
    assert column.ensure(10_000_000).ctypes.data == before


def test_a_column_outgrows_its_reservation(backing):
    column = Column(np.uint32, reserve=1000)
    column.ensure(1000)[:1000] = np.arange(1000)
    assert column.capacity == 1000
    grown = column.ensure(1001)
    assert column.capacity >= 2000
    np.testing.assert_array_equal(grown[:1001], [*range(1000), 0])


def test_a_full_memory_is_said_and_leaves_the_column_alone(backing):
    column = Column(np.float64, reserve=100)
    column.ensure(100)[:] = 7.0
    with pytest.raises(
        MemoryError, match=r"no memory for 1,000,000,000,000,000,000 items.*shorter"
    ):
        column.ensure(10**18)
    assert column.capacity == 100
    assert column.touched == 100
    assert (column.array == 7.0).all()


@linux
def test_a_refused_reservation_grows_instead(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(module.mmap, "mmap", refuse)
    column = Column(np.float64)
    assert column.capacity == module.FIRST_ITEMS
    column.ensure(100_000)[99_999] = 1.0
    assert column.array[99_999] == 1.0


@linux
def test_a_limit_on_address_space_is_not_eaten_up(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 34, 1 << 34))
    assert Column(np.float64).capacity == module.FIRST_ITEMS


def test_reservations_are_bounded_and_freed(monkeypatch):
    gc.collect()
    monkeypatch.setattr(module, "MAX_RESERVED", len(module._reserved) + 8)
    for _ in range(3):
        arenas = [Arena() for _ in range(6)]
        for i, arena in enumerate(arenas):
            arena.ensure(10, 10)
            arena.v.array[:10] = i
        assert [arena.v.array[9] for arena in arenas] == [0, 1, 2, 3, 4, 5]
        assert len(module._reserved) <= module.MAX_RESERVED
        if sys.platform == "linux" and arenas[0].v._map is not None:
            assert arenas[5].v._map is None
        del arenas, arena
        gc.collect()


def test_release_leaves_zeros_zero(backing):
    column = Column(np.float64)
    column.ensure(1_000_000)[:1_000_000] = 0.0
    column.release(4096)
    assert column.touched <= 512
    assert not column.ensure(1_000_000)[:1_000_000].any()


# -- arenas ---------------------------------------------------------------------------------------


def test_the_last_arena_given_back_is_taken_first(backing):
    first, second = Arena.take(), Arena.take()
    assert first is not second
    first.give_back(10, 10)
    second.give_back(10, 10)
    assert Arena.take() is second
    assert Arena.take() is first
    assert Arena.take() is not first


def test_compact_is_a_copy_of_what_is_used(backing):
    arena = Arena.take()
    arena.ensure(3, 5)
    arena.op.array[:3] = [1, 2, 3]
    arena.a.array[:3] = [4, 5, 6]
    arena.b.array[:3] = [7, 8, 2**32 - 1]
    arena.v.array[:5] = np.linspace(0, 1, 5)
    code = arena.compact(3, 5)
    arena.op.array[:3] = arena.a.array[:3] = arena.b.array[:3] = 0
    arena.v.array[:5] = 0
    arena.give_back(3, 5)
    np.testing.assert_array_equal(code.op.array, np.array([1, 2, 3], np.uint8), strict=True)
    np.testing.assert_array_equal(code.a.array, np.array([4, 5, 6], np.uint32), strict=True)
    np.testing.assert_array_equal(code.b.array, np.array([7, 8, 2**32 - 1], np.uint32), strict=True)
    np.testing.assert_array_equal(code.v.array, np.linspace(0, 1, 5), strict=True)


def test_thousands_of_compact_tapes_share_one_arena():
    tapes = []
    for i in range(5000):
        arena = Arena.take()
        arena.ensure(2, 3)
        arena.op.array[:2] = i % 256
        arena.v.array[:3] = i
        tapes.append(arena.compact(2, 3))
        arena.give_back(2, 3)
    assert len(module._arenas) == 1
    assert all(tape.op.array[1] == i % 256 and tape.v.array[2] == i for i, tape in enumerate(tapes))


def test_the_pool_is_bounded_in_count():
    arenas = [Arena.take() for _ in range(module.POOL_COUNT + 4)]
    for arena in arenas:
        arena.give_back(1, 1)
    assert len(module._arenas) == module.POOL_COUNT
    assert Arena.take() is arenas[-1]


def test_the_pool_is_bounded_in_bytes(backing, monkeypatch):
    monkeypatch.setattr(module, "POOL_BYTES", 8 << 20)
    monkeypatch.setattr(module, "SMALL_BYTES", 64 << 10)
    arenas = [Arena.take() for _ in range(6)]
    for arena in arenas:
        arena.ensure(200_000, 400_000)  # about 5 MB
        arena.give_back(200_000, 400_000)
    slack = 4 * (module.POOL_COUNT + 1) * (64 << 10)
    assert module._arenas.touched_bytes <= (8 << 20) + slack
    assert len(module._arenas) == 6


def resident():
    """Memory of this process that is in memory, in bytes."""
    import mmap

    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@linux
def test_a_large_arena_does_not_stay_resident(monkeypatch):
    monkeypatch.setattr(module, "POOL_BYTES", 16 << 20)
    before = resident()
    arena = Arena.take()
    n = 8_000_000
    arena.ensure(n, n)
    for column in (arena.op, arena.a, arena.b, arena.v):
        column.array[:n] = 1
    assert resident() - before > 100 << 20  # 136 MB: the test sees what it measures
    arena.give_back(n, n)
    assert resident() - before < 40 << 20
    assert Arena.take() is arena


@linux
def test_one_item_of_many_costs_a_page():
    column = Column(np.float64)
    array = column.ensure(10_000_000)
    before = resident()
    array[5_000_000] = array[9_000_000] = 1.0
    assert resident() - before <= 64 << 10  # two pages; they would be two of 2 MiB


@pytest.mark.parametrize("n", [100, 1_000_000, 3_000_000])
def test_what_is_expected_is_there(backing, n):
    column = Column(np.float64, shift=832)
    column.expect(n // 2)[: n // 2] = 1.0
    array = column.expect(n)
    array[n // 2 : n] = 2.0
    assert array is column.array
    assert column.touched == n
    assert (array[: n // 2] == 1.0).all()
    assert not array[n:].any()


@linux
def test_a_new_arena_costs_next_to_no_memory():
    before = resident()
    arenas = [Arena() for _ in range(50)]
    assert resident() - before < 8 << 20
    assert len(arenas) == 50


def test_threads_never_share_an_arena():
    wrong = []

    def work(mark):
        for _ in range(300):
            arena = Arena.take()
            g = take_adjoints(50)
            arena.ensure(50, 50)
            arena.v.array[:50] = mark
            if g.array[:50].any():
                wrong.append("an adjoint column was not zero")
            g.array[:50] = mark
            arena.op.array[:50] = mark
            if (arena.v.array[:50] != mark).any() or (arena.op.array[:50] != mark).any():
                wrong.append("an arena was shared")
            if (g.array[:50] != mark).any():
                wrong.append("an adjoint column was shared")
            arena.give_back(50, 50)
            give_back_adjoints(g, clean=False)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 9)]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # many more switches than usual
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert wrong == []
    assert len(module._arenas) <= 8


def test_an_empty_pool_has_nothing():
    assert Pool().take() is None


# -- adjoints -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 5000, 1_000_000])
def test_adjoints_are_zero_whatever_was_left_in_them(backing, n):
    g = take_adjoints(n)
    assert g.array.dtype == np.float64
    assert not g.array[:n].any()
    g.array[:n] = np.nan
    give_back_adjoints(g, clean=False)
    again = take_adjoints(2 * n)
    assert again is g
    assert not again.array[: 2 * n].any()


def test_clean_adjoints_are_not_cleared_again():
    g = take_adjoints(10)
    give_back_adjoints(g, clean=True)
    again = take_adjoints(5)
    assert again is g
    assert again.touched == 10
    again.array[7] = 1.0  # written earlier than this use: `touched` still covers it
    give_back_adjoints(again, clean=False)
    assert not take_adjoints(10).array[:10].any()


def test_large_adjoints_are_trimmed(monkeypatch, backing):
    monkeypatch.setattr(module, "POOL_BYTES", 2 << 20)
    g = take_adjoints(2_000_000)
    give_back_adjoints(g, clean=True)
    assert module._adjoints.touched_bytes <= 2 << 20
    assert not take_adjoints(2_000_000).array[:2_000_000].any()


def test_columns_start_at_different_places_of_a_page(backing):
    arena = Arena()
    arena.ensure(2 * module.FIRST_ITEMS, 2 * module.FIRST_ITEMS)
    small = arena.compact(2 * module.FIRST_ITEMS, 2 * module.FIRST_ITEMS)
    for columns in (arena, small):
        found = [getattr(columns, name).array.ctypes.data % 4096 for name in ("op", "a", "b", "v")]
        assert found == [module.STAGGER[name] for name in ("op", "a", "b", "v")]
