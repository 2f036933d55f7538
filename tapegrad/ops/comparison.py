"""Comparisons and logic as 0/1 cells, and selection."""

from math import inf, nan

from tapegrad.ops.row import ZERO, Row, op

PAIRS = (
    *((1.0, 2.0), (-1.5, 0.7), (0.3, -2.5), (-4.0, -0.2), (0.0, 1.0), (-0.0, 1.0)),
    *((1.0, 0.0), (1.0, -0.0)),
)
EQUAL = (((2.0, 2.0), (0.0, 0.0)), ((0.0, -0.0), (0.0, 0.0)))
EXTREMES = ((inf, inf), (-inf, inf), (nan, 1.0), (1.0, nan), (nan, nan))
TRUTHS = (((0.0, 0.0), (0.0, 0.0)), ((-0.0, 2.0), (0.0, 0.0)), ((2.0, 0.0), (0.0, 0.0)))
ENDS = (inf, -inf, nan)


def compare(name: str, symbol: str, doc: str) -> Row:
    """Make the row of one comparison."""
    return op(
        name,
        "x y",
        out=f"x {symbol} y",
        dx=ZERO,
        dy=ZERO,
        mp=f"1 if x {symbol} y else 0",
        domain="x != y",
        kinks=EQUAL,
        samples=PAIRS,
        specials=EXTREMES,
        result="bool",
        doc=doc,
    )


def connect(name: str, out: str, doc: str) -> Row:
    """Make the row of one logical connective of two truth values."""
    return op(
        name,
        "x y",
        out=out,
        dx=ZERO,
        dy=ZERO,
        mp=f"1 if {out} else 0",
        domain="x != 0.0 and y != 0.0",
        kinks=(*TRUTHS, ((2.0, -0.0), (0.0, 0.0))),
        samples=((1.0, 2.0), (-1.5, 0.7), (0.3, -2.5), (-4.0, -0.2)),
        specials=EXTREMES,
        result="bool",
        doc=doc,
    )


def classify(name: str, mp: str, doc: str) -> Row:
    """Make the row of one test on the kind of a floating-point number."""
    return op(
        name,
        "x",
        out=f"{name}(x)",
        dx=ZERO,
        mp=f"1 if {mp} else 0",
        samples=(-3.0, -0.0, 0.0, 2.5),
        specials=ENDS,
        result="bool",
        doc=doc,
    )


ROWS = (
    compare("equal", "==", "1 where the numbers are equal, else 0."),
    compare("not_equal", "!=", "1 where the numbers differ, else 0."),
    compare("less", "<", "1 where x is below y, else 0."),
    compare("less_equal", "<=", "1 where x is not above y, else 0."),
    compare("greater", ">", "1 where x is above y, else 0."),
    compare("greater_equal", ">=", "1 where x is not below y, else 0."),
    classify("isnan", "isnan(x)", "1 where the number is nan, else 0."),
    classify("isinf", "isinf(x)", "1 where the number is infinite, else 0."),
    classify("isfinite", "isfinite(x)", "1 where the number is finite, else 0."),
    op(
        "signbit",
        "x",
        out="copysign(1.0, x) < 0.0",
        dx=ZERO,
        mp="1 if x < 0 else 0",
        domain="x != 0.0",
        samples=(-3.0, -0.5, 0.5, 2.5),
        specials=(0.0, -0.0, inf, -inf),
        result="bool",
        doc="1 where the sign bit is set, else 0.",
    ),
    connect("logical_and", "x != 0.0 and y != 0.0", "1 where both numbers are not zero, else 0."),
    connect("logical_or", "x != 0.0 or y != 0.0", "1 where a number is not zero, else 0."),
    connect(
        "logical_xor",
        "(x != 0.0) != (y != 0.0)",
        "1 where exactly one number is not zero, else 0.",
    ),
    op(
        "logical_not",
        "x",
        out="x == 0.0",
        dx=ZERO,
        mp="1 if x == 0 else 0",
        domain="x != 0.0",
        kinks=((0.0, 0.0), (-0.0, 0.0)),
        samples=(-3.0, -0.5, 0.5, 2.5),
        specials=ENDS,
        result="bool",
        doc="1 where the number is zero, else 0.",
    ),
    op(
        "where",
        "x y z",
        out="y if x != 0.0 else z",
        dx=ZERO,
        dy="1 if x != 0.0 else 0",
        dz="0 if x != 0.0 else 1",
        ufunc=(),
        mp="y if x != 0 else z",
        domain="x != 0.0",
        kinks=(((0.0, 2.0, 3.0), (0.0, 0.0, 1.0)), ((-0.0, 2.0, nan), (0.0, 0.0, 1.0))),
        samples=(
            *((1.0, 2.0, 3.0), (-1.0, -2.0, -3.0), (1.0, 0.0, 2.0), (1.0, -0.0, 2.0)),
            *((1.0, 2.0, 0.0), (1.0, 2.0, -0.0)),
        ),
        specials=((nan, 1.0, 2.0), (1.0, inf, nan)),
        doc="y where x is not zero, else z; the branch not taken contributes exactly 0.",
    ),
    op(
        "heaviside",
        "x y",
        out="x if isnan(x) else y if x == 0.0 else 1.0 if x > 0.0 else 0.0",
        dx=ZERO,
        dy="1 if x == 0.0 else 0",
        mp="y if x == 0 else 1 if x > 0 else 0",
        domain="x != 0.0",
        kinks=(((0.0, 0.5), (0.0, 1.0)), ((-0.0, -2.0), (0.0, 1.0))),
        samples=((1.0, 2.0), (-1.0, -2.0), (2.0, 0.0), (-2.0, -0.0)),
        specials=((nan, 1.0), (1.0, nan), (0.0, nan), (inf, 2.0), (-inf, 2.0)),
        doc="The step from 0 to 1 at zero, where its value is y.",
    ),
)
