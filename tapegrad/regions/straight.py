"""Regions as straight compiled code, once interpreting them has taken longer than compiling does.

The executor of regions reads instructions, and keeps values in rows of memory. That needs no
compilation, and is what a region runs by at first. One that has run for seconds gets a function of
its own, with the same instructions on values in registers: the same numbers to the bit. Regions
whose instructions are equal share it, whatever their windows.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from .plain import telling

if TYPE_CHECKING:
    from .lowering import Join
    from .region import Region

LONGEST = 500
"""Instructions of the longest region that gets a function of its own."""

# Seconds that compiling takes, which need not be exact: for the first region of a process, with
# what is imported for it; for any other; and more for what there is in it.
_FIRST, _LEAST, _PER_INSTRUCTION, _PER_FUNCTION = 0.7, 0.02, 0.002, 0.03

_compiled: dict[Any, int] = {}
_lock = threading.Lock()


def least() -> float:
    """Return the seconds that compiling any region takes at least."""
    return _LEAST if _compiled else _FIRST


def at_least(region: Region) -> float:
    """Return what compiling costs without the functions that are called, which is soon known."""
    if not 0 < len(region.tried) <= LONGEST:
        return np.inf
    return least() + _PER_INSTRUCTION * len(region.tried)


def cost(region: Region) -> float:
    """Return the seconds that compiling takes, about; infinite where it is not to be done."""
    from ..kernels.emit import straight, writing

    rest = at_least(region)
    if rest == np.inf:
        return rest
    with writing:
        opcodes = frozenset(region.tried[:, 0].tolist())
        if not straight.can_emit(opcodes):
            return np.inf
        seconds: float = _PER_FUNCTION * straight.functions(opcodes)
    return rest + seconds


def compile_region(region: Region, uniform: frozenset[int], joins: tuple[Join, ...] = ()) -> int:
    """Return the address of a region's own `block`; see kernels/cpu/regions.py.

    Parameters
    ----------
    region : Region
    uniform : frozenset of int
        Rows that hold one number in all lanes.
    joins : tuple of tuples
        Groups of overlapping windows; see `Lowered`.
    """
    code = tuple(map(tuple, region.tried.tolist()))
    rows = region.outputs[:, 0].tolist()
    carried = Counter(rows) - Counter([row for join in joins for row, _ in join])
    watched = None if region.plain is None else telling(region.plain, rows)
    single = region.real == "float32"
    key = code, uniform, frozenset(carried), single, region.places, watched, joins
    with _lock:
        if key not in _compiled:
            _compiled[key] = _compile(*key)
        return _compiled[key]


def _compile(
    code: Any,
    uniform: frozenset[int],
    stored: frozenset[int],
    single: bool,
    places: int,
    watched: frozenset[int] | None,
    joins: tuple[Join, ...],
) -> int:
    from ..kernels.cpu import jit, regions, regions32, simd
    from ..kernels.emit import writing
    from ..kernels.emit.straight import emit

    executor = regions32 if single else regions
    names = dict(vars(executor))
    names |= {f"after_{n}": simd.after(n) for join in joins for _, n in join}
    with writing:
        source = emit(code, uniform, stored, single, places, watched, joins)
        exec(compile(source, "<a region>", "exec"), names)
    names["block"].source = source
    address: int = jit.native(names["block"], executor.SIGNATURES["block"], cache=False)
    return address
