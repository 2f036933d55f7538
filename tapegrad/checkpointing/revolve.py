"""Binomial checkpointing: in which order to run, store and reverse the steps of a long loop.

To reverse step i one needs the state before it.  With `s` states in store, the states in between
are recomputed.  Griewank and Walther's algorithm "revolve" (ACM Transactions on Mathematical
Software 26, 2000, Algorithm 799) recomputes as little as any schedule can: the steps that `s`
states can serve, when no step is run more than `r` times, are ``binomial(s + r, s)`` many.

These are pure functions of integers; `tapegrad.checkpoint_loop` does what they say.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import comb
from typing import NamedTuple


class Action(NamedTuple):
    """One action of a schedule.

    Attributes
    ----------
    kind : str
        - ``"store"``: put the present state, the one before step `start`, into slot `slot`.
        - ``"restore"``: the state in slot `slot`, before step `start`, becomes the present one.
        - ``"advance"``: run the steps from `start` up to, not including, `stop`.
        - ``"reverse"``: record step `start` and sweep it backward; `stop` is ``start + 1``.
    start, stop : int
    slot : int
        Slots count from 0; -1 where none is meant.
    """

    kind: str
    start: int
    stop: int
    slot: int


def longest(s: int, r: int) -> int:
    """Return how many steps `s` stored states can reverse, running no step more than `r` times.

    Examples
    --------
    >>> longest(3, 2)
    10
    """
    return comb(s + r, s) if r >= 0 else 0


def repetitions(n: int, s: int) -> int:
    """Return how often the most repeated of `n` steps must be run with `s` stored states.

    Examples
    --------
    >>> repetitions(10, 3), repetitions(11, 3)
    (2, 3)
    """
    r, reach = 0, 1  # reach is longest(s, r)
    while reach < n:
        r += 1
        reach = reach * (s + r) // r
    return r


def forward_steps(n: int, s: int) -> int:
    """Return the least number of steps to run, for reversing `n` steps with `s` stored states.

    The initial state is one of those stored.  What is not counted is that each step is run once
    more while it is recorded for its own reversal.

    Examples
    --------
    >>> forward_steps(10, 10), forward_steps(10, 3), forward_steps(10, 1)
    (9, 15, 45)
    """
    _check(n, s)
    r = repetitions(n, s)
    return r * n - (comb(s + r, s + 1) if r else 0)


def split(n: int, s: int) -> int:
    """Return after how many of `n` steps, run from a stored state, to store the next one.

    Parameters
    ----------
    n : int
        At least 2.
    s : int
        At least 2: states that may be stored, the one at the beginning included.

    Examples
    --------
    >>> split(10, 3)
    4
    """
    r = repetitions(n, s)
    # The steps before it are run once now, so that r - 1 more runs must do for them; the rest is as
    # short as it may be without being within reach of r - 1 runs and the other states.
    return min(longest(s, r - 1), n - longest(s - 1, r - 1))


def schedule(n: int, s: int) -> Iterator[Action]:
    """Yield the actions that reverse `n` steps with at most `s` states in store.

    Steps are reversed from the last to the first.  The first action stores the initial state.

    Examples
    --------
    >>> for action in schedule(3, 2):
    ...     print(action.kind, action.start, action.stop, action.slot)
    store 0 0 0
    advance 0 1 -1
    store 1 1 1
    advance 1 2 -1
    reverse 2 3 -1
    restore 1 1 1
    reverse 1 2 -1
    restore 0 0 0
    reverse 0 1 -1
    """
    _check(n, s)
    stored = [0]  # the step before which each slot's state stands
    present, end = 0, n  # the present state, and how many steps are left to reverse
    yield Action("store", 0, 0, 0)
    while end:
        start = stored[-1]
        if present != start:
            yield Action("restore", start, start, len(stored) - 1)
            present = start
        free = s - len(stored)
        if end - start > 1 and free:
            present += split(end - start, free + 1)
            yield Action("advance", start, present, -1)
            yield Action("store", present, present, len(stored))
            stored.append(present)
            continue
        end -= 1
        if present != end:
            yield Action("advance", present, end, -1)
        yield Action("reverse", end, end + 1, -1)
        present = end + 1
        if start == end:
            stored.pop()


def _check(n: int, s: int) -> None:
    if n < 1 or s < 1:
        raise ValueError(f"a schedule needs at least one step and one state, not n={n}, s={s}")
