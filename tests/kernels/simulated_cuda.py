"""Kernels of each row in Numba's CUDA simulator, against the reference executor.

`tests/test_simulated.py` runs this file.
"""

from __future__ import annotations

import numpy as np
import pytest

from simulators import GLOBAL, SHARED, compare
from tapegrad.devices.launch import Launch
from tapegrad.kernels.cuda import float32, float64
from tapegrad.kernels.opcodes import FIRST_ROW, ROW_OF
from tapegrad.ops import TABLE
from tapegrad.regions.region import RegionBuilder

# NumPy's numbers stand for those of a GPU, and warn where that answers nan.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

BASIC = [n for n in range(FIRST_ROW, len(ROW_OF)) if ROW_OF[n - 1] != ROW_OF[n]]


def points_of(opcode: int, real: str) -> list[tuple[float, ...]]:
    """Return the row's points that the simulator can run.

    It calls Python's `math`, which raises where a GPU answers inf or nan (log(-5), exp(1000)); such
    points are left out. They are left out, too, where they or the value are beyond float32.
    """
    module = float64 if real == "float64" else float32
    build = RegionBuilder((1,))
    row = TABLE[ROW_OF[opcode]]
    build.output(build.op(opcode, *[build.input(i, (1,)) for i in range(row.arity)]), 3, (1,))
    program = Launch(build.finish(), {}, 8, SHARED).program(real)
    from tapegrad.kernels.emit.cuda import expression

    code = compile(expression(row, real, {}), "<row>", "eval")
    assert program.code[0][0] == opcode
    kept = []
    for point in row.points:
        values = [module.real(x) for x in point]
        try:
            with np.errstate(all="ignore"):
                value = eval(code, dict(vars(module)), dict(zip("xyz", values, strict=False)))
        except (ValueError, OverflowError, ZeroDivisionError):
            continue
        assert value is not None
        kept.append(point)
    return kept


@pytest.mark.parametrize("real", ["float64", "float32"])
@pytest.mark.parametrize("opcode", BASIC, ids=[ROW_OF[n] for n in BASIC])
def test_every_row(opcode: int, real: str) -> None:
    row = TABLE[ROW_OF[opcode]]
    if real == "float32" and row.name in ("spacing", "nextafter"):
        pytest.skip("Python's math.nextafter, which the simulator calls, is of double precision")
    points = np.array(points_of(opcode, real))
    assert len(points) >= len(row.samples) / 2, "too many points were left out"
    n = len(points)
    build = RegionBuilder((n,))
    value = build.op(opcode, *[build.input(0, (row.arity,), offset=i) for i in range(row.arity)])
    build.output(value, 1, (1,))
    region = build.finish()
    ulps = 4.0 if real == "float64" else 8.0
    compare(region, [points.ravel(), np.zeros(n)], SHARED, real, ulps=ulps)
    compare(region, [points.ravel(), np.zeros(n)], GLOBAL, real, ulps=ulps)
    compare(region, [points.ravel(), np.zeros(n)], SHARED, real, straight=True, ulps=ulps)
