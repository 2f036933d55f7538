"""`tg.progress`: bars for sweeps and loops that take long, drawn by tqdm."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from . import execute
from .errors import at_caller


def progress(delay: float = 0.5) -> AbstractContextManager[None]:
    """Show progress bars for what takes long inside this context.

    These are the forward and backward sweeps of this thread, and the steps of `checkpoint_loop`.
    The bars are drawn by the package ``tqdm``, on stderr.

    Parameters
    ----------
    delay : float, optional
        Seconds that a sweep takes before its bar appears.

    Raises
    ------
    ImportError
        If ``tqdm`` is not installed.

    Examples
    --------
    >>> import numpy as np, tapegrad as tg
    >>> with tg.progress():
    ...     tg.grad(lambda x: np.sum(x * x))(np.array([1.0, 2.0]))
    array([2., 4.])
    """
    bar("", 1, "").close()  # if tqdm is missing, say so now
    return _watching(Sweeps(delay))


@contextmanager
def _watching(sweeps: Sweeps) -> Iterator[None]:
    before = execute.watching.sweeps
    execute.watching.sweeps = sweeps
    execute.overriding.append(sweeps)
    try:
        yield
    finally:
        execute.overriding.remove(sweeps)
        execute.watching.sweeps = before


def wanted() -> bool:
    """Whether this thread is inside of `progress`."""
    return execute.watching.sweeps is not None


def bar(what: str, total: int, unit: str) -> Any:
    """Return a tqdm bar that shows nothing for one thing to do."""
    try:
        from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise ImportError(
            f"a progress bar needs tqdm: pip install tqdm, or leave progress out{at_caller()}"
        ) from None
    return tqdm(total=total, desc=what, unit=unit, disable=total < 2)


class Sweeps:
    """The sweeps of one thread, of which the outermost is shown once it has taken long."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self._depth = 0
        self._start = 0.0
        self._bar: Any = None

    def __enter__(self) -> None:
        """Begin a sweep, maybe inside of another."""
        self._depth += 1
        if self._depth == 1:
            self._start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        """End a sweep."""
        self._depth -= 1
        if not self._depth and self._bar is not None:
            self._bar.close()
            self._bar = None

    def moved(self, what: str, done: int, total: int) -> None:
        """Say how many of its instructions the innermost sweep has done."""
        if self._depth != 1:
            return
        if self._bar is None:
            if done >= total or time.perf_counter() - self._start < self.delay:
                return
            self._bar = bar(f"{what} sweep", total, "instruction")
        self._bar.update(done - self._bar.n)


def steps(
    what: str, total: int, shown: bool, unit: str = "step"
) -> AbstractContextManager[Callable[[int], Any]]:
    """Return a context that gives what counts the steps of a loop, shown in a bar if wanted."""
    return _counting(bar(what, total, unit)) if shown else nullcontext(_count_nothing)


@contextmanager
def _counting(shown: Any) -> Iterator[Callable[[int], Any]]:
    try:
        yield shown.update
    finally:
        shown.close()


def _count_nothing(count: int) -> None:
    pass
