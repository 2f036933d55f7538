"""Threads that run regions: one a core."""

from __future__ import annotations

import os
import threading

import pytest

from tapegrad.regions import threads

needs_cores = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2 or not threads._core,
    reason="threads cannot be moved, or there is one core",
)


@needs_cores
def test_a_thread_leaves_a_core_that_is_taken() -> None:
    allowed = os.sched_getaffinity(0)
    found: list[tuple[set[int], set[int], set[int]]] = []

    def run() -> None:
        for core in allowed:
            os.sched_setaffinity(0, {core})  # here it is
            os.sched_setaffinity(0, allowed)
            taken = {core}
            threads.spread(taken)
            found.append(({core}, taken, os.sched_getaffinity(0)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(found) == len(allowed)
    for before, after, may_use in found:
        # It may have been moved between two lines; that it left is what two entries say.
        assert after >= before
        assert len(after) <= 2
        assert may_use == allowed
    assert any(len(after) == 2 for _, after, _ in found)


@needs_cores
def test_a_thread_stays_where_it_is_alone_or_nothing_is_free() -> None:
    taken: set[int] = set()
    threads.spread(taken)
    assert len(taken) == 1
    everything = set(os.sched_getaffinity(0))
    threads.spread(everything)
    assert everything == os.sched_getaffinity(0)
