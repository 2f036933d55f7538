"""Plain products in the place of adjoints': quicker code, unless a nan comes out of it.

A sweep carries on nothing that is zero, whatever the partial: the rows ``adjoint_multiply`` and
``adjoint_divide`` answer 0 where an adjoint of 0 meets infinity or nan. That is rare, and takes
more than a product does: a comparison and a choice, and no sign, product or sum becomes one with
it (`tapegrad.regions.fusing`). So a region has two programs. In the plain one, those rows are
ordinary products and quotients. They differ where 0 meets infinity or nan, and then are nan. The
executor looks at what a block is about to carry out, and where a lane of it is nan, runs that
block again by the careful program.

That is right where a nan comes out, unless it is dropped as the careful number would have been. So
a product is made plain if all that is computed from it, up to the results, is by operands that let
a nan through (`OPEN`). They do not tell 0.0 from -0.0 either, whose sign a plain product may give
where the careful one is 0.0. Results that are zero may then have another sign.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.opcodes import ROWS

if TYPE_CHECKING:
    from .region import Codes

_PLAIN = {
    ROWS[careful][0]: ROWS[row][0]
    for careful, row in (("adjoint_multiply", "multiply"), ("adjoint_divide", "divide"))
}
_COPY = ROWS["positive"][0]

_UNARY = ("negative", "positive", "conjugate", "stop_gradient", "square", "absolute", "fabs")
_BINARY = ("add", "subtract", "multiply", "adjoint_multiply", "negative_product")
_TERNARY = (
    *("multiply_add", "multiply_subtract", "subtract_product", "multiply_thrice"),
    "add_thrice",
)
OPEN: dict[str, tuple[int, ...]] = {
    **dict.fromkeys((*_UNARY, "float32"), (0,)),
    **dict.fromkeys(_BINARY, (0, 1)),
    **dict.fromkeys(("divide", "adjoint_divide"), (0,)),  # 1/0.0 is not 1/-0.0
    **dict.fromkeys(_TERNARY, (0, 1, 2)),
    "where": (1, 2),
}
"""By row: operands, of which a nan makes the result one, and zeros of either sign equal results.

Unless the careful program drops that operand, too: what `where` does not choose, and what an
adjoint of 0 is multiplied by.
"""

_OPEN = {ROWS[name][0]: operands for name, operands in OPEN.items() if name in ROWS}
_DROPS = {ROWS[name][0] for name in ("where", "adjoint_multiply", "adjoint_divide")}

Instruction = list[int]  # opcode, then the values of the operands


def can_be_plain(code: Sequence[Instruction], closed: Collection[int] = ()) -> list[bool]:
    """Return which instructions may be plain products or quotients.

    Parameters
    ----------
    code : sequence of list of int
        Each instruction's opcode and operands, without padding; a value is the number of its
        instruction, or negative where it comes from elsewhere.
    closed : collection of int
        Values that are to have their careful bits.

    Examples
    --------
    An adjoint that is compared is not what it was multiplied to be; another one just adds up:

    >>> flow, less, add = (ROWS[name][0] for name in ("adjoint_multiply", "less", "add"))
    >>> can_be_plain([[flow, -1, -3], [flow, -1, -5], [less, 0, -1], [add, 1, 2]])
    [False, True, False, False]
    """
    if not any([line[0] in _PLAIN for line in code]):
        return [False] * len(code)
    shut = [False] * len(code)
    for value in closed:
        if value >= 0:
            shut[value] = True
    for i in range(len(code) - 1, -1, -1):
        op, *operands = code[i]
        through = () if shut[i] else _OPEN.get(op, ())
        for k, value in enumerate(operands):
            if value >= 0 and k not in through:
                shut[value] = True
    return [line[0] in _PLAIN and not is_shut for line, is_shut in zip(code, shut, strict=True)]


def made_plain(code: Sequence[Instruction], which: Sequence[bool]) -> list[Instruction]:
    """Return code with plain rows in the place of those chosen."""
    return [
        [_PLAIN[line[0]], *line[1:]] if chosen else line
        for line, chosen in zip(code, which, strict=True)
    ]


def matched(code: Codes, found: Sequence[int], wanted: Sequence[int], fixed: int) -> Codes:
    """Return a program with its results in other rows.

    Parameters
    ----------
    code : ndarray of uint16, shape (m, 5)
    found, wanted : sequence of int
        By result: the row it is in, which no instruction writes again, and the row it is to be in.
    fixed : int
        Rows that nothing writes come first, and stay where they are.
    """
    places = {row: row for row in range(fixed)}
    copies = []
    for row, place in zip(found, wanted, strict=True):
        if places.setdefault(row, place) != place:  # it is in another row already
            copies.append((_COPY, place, places[row], 0, 0))
    rows = range(fixed, int(code[:, 1].max(initial=0)) + 1)
    others = iter(set(range(fixed, len(rows) + fixed + len(wanted))).difference(wanted))
    moved = [*range(fixed), *[places[row] if row in places else next(others) for row in rows]]
    result = code.copy()
    result[:, 1:] = np.array(moved, np.uint16)[code[:, 1:]]
    return np.concatenate([result, np.array(copies, np.uint16).reshape(-1, 5)])


def telling(code: Codes, results: Collection[int]) -> frozenset[int]:
    """Return those rows of results that tell whether there is a nan in any of them.

    A nan in one of the others makes one of these nan, too, whatever else they are computed from.

    Parameters
    ----------
    code : ndarray of uint16, shape (m, 5)
    results : collection of int
        Rows that are carried out.

    Examples
    --------
    >>> multiply, add = (ROWS[name][0] for name in ("multiply", "add"))
    >>> code = np.array([[multiply, 3, 0, 1, 0], [multiply, 4, 0, 2, 0], [add, 5, 3, 2, 0]])
    >>> sorted(telling(code, [3, 4, 5]))
    [4, 5]
    """
    last: dict[int, int] = {}  # by row: the instruction that wrote it
    sources: list[list[int]] = []
    for i, (op, result, *rows) in enumerate(code.tolist()):
        sure = () if op in _DROPS else _OPEN.get(op, ())
        sources.append([last[rows[k]] for k in sure if rows[k] in last])
        last[result] = i
    final = {last[row]: row for row in results if row in last}
    told: set[int] = set()
    for i in range(len(sources) - 1, -1, -1):
        if i in final or i in told:
            told.update(sources[i])
    return frozenset([row for i, row in final.items() if i not in told])
