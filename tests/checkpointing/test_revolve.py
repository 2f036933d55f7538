"""Binomial schedules: optimal, complete, and within the states they may store."""

from functools import cache

import pytest

from tapegrad.checkpointing import revolve

GRID = [(n, s) for n in (*range(1, 41), 64, 100, 257) for s in (*range(1, 9), 20, 300)]


@cache
def least(n, s):
    """The least number of forward steps, by trying every place for the next stored state."""
    if n == 1:
        return 0
    if s == 1:
        return n * (n - 1) // 2
    return min(m + least(n - m, s - 1) + least(m, s) for m in range(1, n))


def replay(n, s):
    """Carry a schedule out on step numbers; return steps run, steps reversed, states at most."""
    slots, present, run, reverted, peak = {}, 0, 0, [], 0
    for kind, start, stop, slot in revolve.schedule(n, s):
        if kind == "store":
            assert present == start
            slots[slot] = start
        elif kind == "restore":
            assert slots[slot] == start
            present = start
        elif kind == "advance":
            assert present == start < stop
            present, run = stop, run + stop - start
        else:
            assert kind == "reverse"
            assert (present, stop) == (start, start + 1)
            reverted.append(start)
            slots = {k: at for k, at in slots.items() if at < start}
        assert all(0 <= k < s for k in slots)
        peak = max(peak, len(slots))
    return run, reverted, peak


@pytest.mark.parametrize("s", range(1, 8))
def test_the_theory_is_the_least_of_all_schedules(s):
    for n in range(1, 61):
        assert revolve.forward_steps(n, s) == least(n, s)


def test_schedules_run_as_few_steps_as_the_theory_says():
    for n, s in GRID:
        run, reverted, peak = replay(n, s)
        assert run == revolve.forward_steps(n, s), (n, s)
        assert reverted == list(range(n))[::-1]
        assert peak <= min(s, n)


def test_no_step_is_run_more_often_than_announced():
    for n, s in GRID:
        runs = [0] * n
        for kind, start, stop, _ in revolve.schedule(n, s):
            if kind == "advance":
                for i in range(start, stop):
                    runs[i] += 1
        assert max(runs) <= revolve.repetitions(n, s)


def test_a_state_for_each_step_recomputes_nothing():
    assert revolve.forward_steps(1000, 1000) == 999
    assert all(
        action.kind != "restore" or action.start == action.slot
        for action in revolve.schedule(50, 50)
    )


def test_one_state_recomputes_all():
    assert revolve.forward_steps(100, 1) == 4950


def test_long_loops_take_no_deep_recursion():
    n = 20_000
    run, reverted, peak = replay(n, 20)
    assert run == revolve.forward_steps(n, 20)
    assert len(reverted) == n
    assert peak == 20


@pytest.mark.parametrize(("n", "s"), [(0, 1), (1, 0), (-3, 2)])
def test_nothing_to_schedule(n, s):
    with pytest.raises(ValueError, match=f"n={n}, s={s}"):
        list(revolve.schedule(n, s))
    with pytest.raises(ValueError, match="at least one step"):
        revolve.forward_steps(n, s)
