"""Extrema of two numbers."""

from math import inf, nan

from tapegrad.ops.row import op

PAIRS = (
    *((1.0, 2.0), (-1.5, 0.7), (0.3, -2.5), (-4.0, -0.2), (0.0, 1.0), (-0.0, 1.0)),
    *((1.0, 0.0), (1.0, -0.0)),
)
TIES = (
    ((2.0, 2.0), (0.5, 0.5)),
    ((-3.0, -3.0), (0.5, 0.5)),
    ((0.0, 0.0), (0.5, 0.5)),
    ((inf, inf), (0.5, 0.5)),
)
INFINITE = ((inf, 1.0), (1.0, -inf), (-inf, inf))
NANS = ((nan, 1.0), (1.0, nan), (nan, nan))

ROWS = (
    op(
        "maximum",
        "x y",
        out="x if x >= y or isnan(x) else y",
        dx="0.5 if x == y else 1 if x > y or isnan(x) else 0",
        dy="0.5 if x == y else 0 if x > y or isnan(x) else 1",
        mp="max(x, y)",
        domain="x != y",
        kinks=TIES,
        samples=PAIRS,
        specials=INFINITE + NANS,
        doc="The larger number; nan if one is nan. The gradient goes where the value came from.",
    ),
    op(
        "minimum",
        "x y",
        out="x if x <= y or isnan(x) else y",
        dx="0.5 if x == y else 1 if x < y or isnan(x) else 0",
        dy="0.5 if x == y else 0 if x < y or isnan(x) else 1",
        mp="min(x, y)",
        domain="x != y",
        kinks=TIES,
        samples=PAIRS,
        specials=INFINITE + NANS,
        doc="The smaller number; nan if one is nan. The gradient goes where the value came from.",
    ),
    op(
        "fmax",
        "x y",
        out="x if x >= y or isnan(y) else y",
        dx="0.5 if x == y else 1 if x > y or isnan(y) else 0",
        dy="0.5 if x == y else 0 if x > y or isnan(y) else 1",
        mp="max(x, y)",
        domain="x != y",
        kinks=TIES,
        samples=PAIRS,
        specials=INFINITE + NANS,
        doc="The larger number; a nan beside a number is ignored.",
    ),
    op(
        "fmin",
        "x y",
        out="x if x <= y or isnan(y) else y",
        dx="0.5 if x == y else 1 if x < y or isnan(y) else 0",
        dy="0.5 if x == y else 0 if x < y or isnan(y) else 1",
        mp="min(x, y)",
        domain="x != y",
        kinks=TIES,
        samples=PAIRS,
        specials=INFINITE + NANS,
        doc="The smaller number; a nan beside a number is ignored.",
    ),
)
