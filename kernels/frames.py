"""Calling what recurses deeply, such as a compiler, with room for its frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

_ROOM = 70_000
"""Words that a frame asks for: the chunk that has it has as many again for those that follow."""


def with_room(function: Callable[[], Result]) -> Result:
    """Return `function()`, whose calls find their frames in one chunk of memory.

    CPython (3.11 and later) keeps frames in chunks of 16 KB. At the end of one, each call maps
    another and each return unmaps it; where Numba's recursion works at such a place, that is up to
    half the time of a compilation. A frame that asks for much gets a chunk of a megabyte.

    Examples
    --------
    >>> with_room(lambda: 2 + 2)
    4
    """

    def call() -> Result:
        return function()

    call.__code__ = call.__code__.replace(co_stacksize=_ROOM)
    return call()
