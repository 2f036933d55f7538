"""Two operations in one: what batches are made of after `tapegrad.regions.fusing`.

They round as the two operations do. Where lanes are in the cache, storing a result costs as much as
computing it, so that an intermediate result that is not stored saves half.
"""

from math import inf, nan

from tapegrad.ops.row import op

TRIPLES = (
    *((2.0, 3.0, 0.5), (-1.5, 0.7, -2.0), (0.3, -2.5, 4.0), (-4.0, -0.2, -0.3)),
    *((0.0, 1.0, 2.0), (-0.0, 1.0, -2.0), (1.0, 0.0, 3.0), (1.0, -0.0, 3.0)),
    *((2.0, 3.0, 0.0), (2.0, 3.0, -0.0)),
)
EXTREMES = ((inf, 1.0, -inf), (nan, 1.0, 2.0), (1.0, 2.0, nan), (0.0, inf, 1.0))

ROWS = (
    op(
        "multiply_add",
        "x y z",
        out="x * y + z",
        dx="y",
        dy="x",
        dz="1",
        ufunc=(),
        mp="x * y + z",
        samples=TRIPLES,
        specials=EXTREMES,
        doc="Product of x and y, rounded, plus z: two operations in one, for lanes.",
    ),
    op(
        "multiply_subtract",
        "x y z",
        out="x * y - z",
        dx="y",
        dy="x",
        dz="-1",
        ufunc=(),
        mp="x * y - z",
        samples=TRIPLES,
        specials=EXTREMES,
        doc="Product of x and y, rounded, minus z: two operations in one, for lanes.",
    ),
    op(
        "subtract_product",
        "x y z",
        out="z - x * y",
        dx="-y",
        dy="-x",
        dz="1",
        ufunc=(),
        mp="z - x * y",
        samples=TRIPLES,
        specials=EXTREMES,
        doc="z minus the rounded product of x and y: two operations in one, for lanes.",
    ),
    op(
        "multiply_thrice",
        "x y z",
        out="x * y * z",
        dx="y * z",
        dy="x * z",
        dz="x * y",
        ufunc=(),
        mp="x * y * z",
        samples=TRIPLES,
        specials=EXTREMES,
        doc="Product of x, y and z: two operations in one, for lanes.",
    ),
    op(
        "add_thrice",
        "x y z",
        out="x + y + z",
        dx="1",
        dy="1",
        dz="1",
        ufunc=(),
        mp="x + y + z",
        samples=TRIPLES,
        specials=((inf, 1.0, -inf), (nan, 1.0, 2.0), (-0.0, -0.0, -0.0)),
        doc="Sum of x, y and z: two operations in one, for lanes.",
    ),
    op(
        "negative_product",
        "x y",
        out="-(x * y)",
        dx="-y",
        dy="-x",
        ufunc=(),
        mp="-(x * y)",
        samples=tuple(triple[:2] for triple in TRIPLES),
        specials=((inf, 0.0), (nan, 1.0), (1.0, nan)),
        doc="The negative of a product: two operations in one, for lanes.",
    ),
    op(
        "exp_negative_product",
        "x y",
        out="exp(-(x * y))",
        dx="-y * out",
        dy="-x * out",
        ufunc=(),
        mp="exp(-(x * y))",
        samples=tuple(triple[:2] for triple in TRIPLES),
        specials=((inf, 0.0), (nan, 1.0), (1.0, nan), (inf, 1.0), (inf, -1.0)),
        doc="A Gaussian, a decay, a discount: exp of the negative of a product, for lanes.",
    ),
)
