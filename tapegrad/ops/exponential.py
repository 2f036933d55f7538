"""Exponentials and logarithms."""

from math import inf, nan

from tapegrad.ops.row import op

ENDS = (inf, -inf, nan)
NUMBERS = (-30.0, -3.0, -0.6, -1e-9, -0.0, 0.0, 1e-9, 0.6, 2.5, 20.0)
POSITIVE = (1e-300, 1e-3, 0.6, 1.0, 1.0000001, 2.5, 1e10)
OUTSIDE = (-1.0, *ENDS)
LOG_SUMS = (
    *((1.0, 2.0), (-1.5, 0.7), (0.3, -2.5), (-4.0, -4.2), (0.0, 1.0), (-0.0, 1.0)),
    *((1.0, 0.0), (1.0, -0.0), (0.0, 0.0), (2.0, 2.0), (50.0, -3.0), (-700.0, -702.0)),
)
LOG_SUM_KINKS = (((-inf, -inf), (0.5, 0.5)), ((inf, inf), (0.5, 0.5)))
LOG_SUM_SPECIALS = ((inf, 1.0), (-inf, 1.0), (1.0, -inf), (inf, -inf), (nan, 1.0), (1.0, nan))

ROWS = (
    op(
        "exp",
        "x",
        out="exp(x)",
        dx="out",
        samples=NUMBERS,
        specials=(800.0, -800.0, *ENDS),
        doc="Exponential.",
    ),
    op(
        "exp2",
        "x",
        out="power(2.0, x)",
        dx="LN2 * out",
        mp="power(2, x)",
        samples=NUMBERS,
        specials=(1100.0, -1100.0, *ENDS),
        doc="2 to the power x.",
    ),
    op(
        "expm1",
        "x",
        out="expm1(x)",
        dx="exp(x)",
        samples=NUMBERS,
        specials=(800.0, -800.0, *ENDS),
        doc="exp(x) - 1, accurate near 0.",
    ),
    op(
        "log",
        "x",
        out="log(x)",
        dx="1 / x",
        domain="x > 0.0",
        kinks=((0.0, inf), (-0.0, -inf)),
        samples=POSITIVE,
        specials=OUTSIDE,
        doc="Natural logarithm.",
    ),
    op(
        "log2",
        "x",
        out="log2(x)",
        dx="LOG2E / x",
        mp="log(x, 2)",
        domain="x > 0.0",
        kinks=((0.0, inf), (-0.0, -inf)),
        samples=POSITIVE,
        specials=OUTSIDE,
        doc="Logarithm to base 2.",
    ),
    op(
        "log10",
        "x",
        out="log10(x)",
        dx="LOG10E / x",
        domain="x > 0.0",
        kinks=((0.0, inf), (-0.0, -inf)),
        samples=POSITIVE,
        specials=OUTSIDE,
        doc="Logarithm to base 10.",
    ),
    op(
        "log1p",
        "x",
        out="log1p(x)",
        dx="1 / (1 + x)",
        domain="x > -1.0",
        kinks=((-1.0, inf),),
        samples=(-0.9, -0.3, -1e-9, -0.0, 0.0, 1e-9, 0.6, 2.5, 1e10),
        specials=(-2.0, *ENDS),
        doc="log(1 + x), accurate near 0.",
    ),
    op(
        "logaddexp",
        "x y",
        out="logaddexp(x, y)",
        dx="0.5 if x == y and isinf(x) else expit(x - y)",
        dy="0.5 if x == y and isinf(x) else expit(y - x)",
        mp="log(exp(x) + exp(y))",
        domain="not isinf(x)",
        kinks=LOG_SUM_KINKS,
        samples=LOG_SUMS,
        specials=LOG_SUM_SPECIALS,
        doc="log(exp(x) + exp(y)), without overflow.",
    ),
    op(
        "logaddexp2",
        "x y",
        out="logaddexp2(x, y)",
        dx="0.5 if x == y and isinf(x) else expit(LN2 * (x - y))",
        dy="0.5 if x == y and isinf(x) else expit(LN2 * (y - x))",
        mp="log(power(2, x) + power(2, y), 2)",
        domain="not isinf(x)",
        kinks=LOG_SUM_KINKS,
        samples=LOG_SUMS,
        specials=LOG_SUM_SPECIALS,
        doc="log2(2**x + 2**y), without overflow.",
    ),
)
