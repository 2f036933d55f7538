"""Hyperbolic functions and their inverses."""

from math import inf, nan

from tapegrad.ops.row import op

ENDS = (inf, -inf, nan)
NUMBERS = (-20.0, -3.0, -0.6, -1e-9, -0.0, 0.0, 1e-9, 0.6, 2.5, 20.0)

ROWS = (
    op(
        "sinh",
        "x",
        out="sinh(x)",
        dx="cosh(x)",
        samples=NUMBERS,
        specials=(800.0, -800.0, *ENDS),
        doc="Hyperbolic sine.",
    ),
    op(
        "cosh",
        "x",
        out="cosh(x)",
        dx="sinh(x)",
        samples=NUMBERS,
        specials=(800.0, -800.0, *ENDS),
        doc="Hyperbolic cosine.",
    ),
    op(
        "tanh",
        "x",
        out="tanh(x)",
        dx="1 - out * out",
        samples=NUMBERS,
        specials=ENDS,
        doc="Hyperbolic tangent.",
    ),
    op(
        "arcsinh",
        "x",
        out="arcsinh(x)",
        dx="1 / hypot(x, 1.0)",
        mp="asinh(x)",
        samples=(*NUMBERS, -1e200),
        specials=ENDS,
        doc="Inverse hyperbolic sine.",
    ),
    op(
        "arccosh",
        "x",
        out="arccosh(x)",
        dx="1 / (sqrt(x - 1) * sqrt(x + 1))",
        mp="acosh(x)",
        domain="x > 1.0",
        kinks=((1.0, inf),),
        samples=(1.001, 1.5, 3.0, 1e200),
        specials=(0.0, -0.0, 0.5, -2.0, *ENDS),
        doc="Inverse hyperbolic cosine.",
    ),
    op(
        "arctanh",
        "x",
        out="arctanh(x)",
        dx="1 / ((1 - x) * (1 + x))",
        mp="atanh(x)",
        domain="-1.0 < x < 1.0",
        kinks=((1.0, inf), (-1.0, inf)),
        samples=(-0.99, -0.6, -1e-9, -0.0, 0.0, 1e-9, 0.6, 0.99),
        specials=(2.0, -2.0, *ENDS),
        doc="Inverse hyperbolic tangent.",
    ),
)
