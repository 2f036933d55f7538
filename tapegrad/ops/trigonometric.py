"""Trigonometric functions and their inverses."""

from math import inf, nan

from tapegrad.ops.row import op

ENDS = (inf, -inf, nan)
ANGLES = (-100.0, -3.0, -0.6, -1e-9, -0.0, 0.0, 1e-9, 0.6, 2.5, 1e5)
COSINES = (-0.999, -0.6, -1e-9, -0.0, 0.0, 1e-9, 0.6, 0.999)

ROWS = (
    op("sin", "x", out="sin(x)", dx="cos(x)", samples=ANGLES, specials=ENDS, doc="Sine."),
    op("cos", "x", out="cos(x)", dx="-sin(x)", samples=ANGLES, specials=ENDS, doc="Cosine."),
    op("tan", "x", out="tan(x)", dx="1 + out * out", samples=ANGLES, specials=ENDS, doc="Tangent."),
    op(
        "arcsin",
        "x",
        out="arcsin(x)",
        dx="1 / sqrt((1 - x) * (1 + x))",
        mp="asin(x)",
        domain="-1.0 < x < 1.0",
        kinks=((1.0, inf), (-1.0, inf)),
        samples=COSINES,
        specials=(2.0, -2.0, *ENDS),
        doc="Inverse sine.",
    ),
    op(
        "arccos",
        "x",
        out="arccos(x)",
        dx="-1 / sqrt((1 - x) * (1 + x))",
        mp="acos(x)",
        domain="-1.0 < x < 1.0",
        kinks=((1.0, -inf), (-1.0, -inf)),
        samples=COSINES,
        specials=(2.0, -2.0, *ENDS),
        doc="Inverse cosine.",
    ),
    op(
        "arctan",
        "x",
        out="arctan(x)",
        dx="1 / (1 + x * x)",
        mp="atan(x)",
        samples=(-1e5, -3.0, -0.6, -0.0, 0.0, 1e-9, 0.6, 2.5, 1e5),
        specials=ENDS,
        doc="Inverse tangent.",
    ),
    op(
        "arctan2",
        "x y",
        out="arctan2(x, y)",
        let={"r": "hypot(x, y)"},
        dx="0.0 if x == 0.0 and y == 0.0 else y / r / r",
        dy="0.0 if x == 0.0 and y == 0.0 else -x / r / r",
        mp="atan2(x, y)",
        domain="x != 0.0 or y > 0.0",
        kinks=(((0.0, 0.0), (0.0, 0.0)), ((-0.0, 0.0), (0.0, 0.0)), ((0.0, -2.0), (-0.5, 0.0))),
        samples=(
            *((1.0, 2.0), (-1.5, 0.7), (0.3, -2.5), (-4.0, -0.2), (2.0, 0.0), (-2.0, -0.0)),
            *((0.0, 1.0), (-0.0, 1.0), (1e200, 1e200), (1e-100, -3e-100)),
        ),
        specials=((0.0, -0.0), (-0.0, -0.0), (-0.0, -1.0), (inf, -inf), (-inf, 1.0), (nan, 1.0)),
        doc="Angle of the point whose ordinate is x and whose abscissa is y.",
    ),
    op(
        "degrees",
        "x",
        out="x * DEGREES_PER_RADIAN",
        dx="DEGREES_PER_RADIAN",
        ufunc=("degrees", "rad2deg"),
        mp="x * 180 / pi",
        samples=ANGLES,
        specials=ENDS,
        doc="Radians to degrees.",
    ),
    op(
        "radians",
        "x",
        out="x * RADIANS_PER_DEGREE",
        dx="RADIANS_PER_DEGREE",
        ufunc=("radians", "deg2rad"),
        mp="x * pi / 180",
        samples=ANGLES,
        specials=ENDS,
        doc="Degrees to radians.",
    ),
)
