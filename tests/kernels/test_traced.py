"""The recorded rules answer what the numeric ones do, at every point of every row."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.kernels.opcodes import NONDIFF, ROWS
from tapegrad.kernels.rules import CONTRIBUTIONS as NUMERIC
from tapegrad.kernels.rules import FORWARD
from tapegrad.kernels.traced import CONTRIBUTIONS, FLOWS
from tapegrad.ops import TABLE
from tapegrad.ops.row import Integer, Zero
from tapegrad.transforms.adjoint import call, choose

CASES = [
    pytest.param(name, point, id=f"{name}{point}")
    for name, row in TABLE.items()
    for point in row.points
    if name not in NONDIFF
]


def number(x):
    return float(x.value) if isinstance(x, tg.Array) else float(x)


def recorded(name, position, point, *, arrays, constants):
    """Return contribution and flow for one operand, the others constants or not."""
    make = (lambda t: tg.array([t, t])[:1]) if arrays else tg.array
    w, out = make(0.9), make(FORWARD[ROWS[name][0]](*point))
    operands = [t if constants and j != position else make(t) for j, t in enumerate(point)]
    c = CONTRIBUTIONS[name][position](call, choose, w, *operands, out)
    flows = FLOWS[name][position]
    flow = 1.0 if flows is None else flows(call, choose, *operands, out)
    return number(c[0] if arrays and isinstance(c, tg.Array) else c), bool(flow)


@pytest.mark.parametrize(("name", "point"), CASES)
def test_contributions_are_those_of_a_sweep_of_numbers(name, point):
    opcode = ROWS[name][0]
    wanted = NUMERIC[opcode](0.9, *point, FORWARD[opcode](*point))
    for position, want in enumerate(wanted):
        rule = CONTRIBUTIONS[name][position]
        if rule is None:
            assert isinstance(TABLE[name].partials[position], (Zero, Integer))
            continue
        for arrays in (False, True):
            for constants in (False, True):
                got, flow = recorded(name, position, point, arrays=arrays, constants=constants)
                assert got == pytest.approx(want, rel=1e-14, abs=0.0, nan_ok=True)
                # Where nothing flows, the contribution is exactly zero, whatever the adjoint.
                assert flow or want == 0.0


def test_an_adjoint_does_not_flow_into_a_branch_not_taken():
    where = FLOWS["where"]
    assert where[0] is None
    for test, expected in ((1.0, (True, False)), (0.0, (False, True))):
        flows = [flow(call, choose, tg.array(test), math.nan, math.nan, 0.0) for flow in where[1:]]
        assert tuple(map(bool, flows)) == expected
    assert not FLOWS["maximum"][0](call, choose, tg.array(1.0), tg.array(2.0), tg.array(2.0))


def test_rows_without_derivative_raise():
    for name in NONDIFF:
        for rule in CONTRIBUTIONS[name]:
            with pytest.raises(TypeError, match="no derivative"):
                rule(call, choose, 1.0, 2.0, 3.0)


def test_what_is_constant_is_computed_and_not_recorded():
    assert call("log", 1.0) == 0.0
    assert type(call("digamma", 2.0)) is float
    assert choose(True, lambda: 1.0, lambda: 1 / 0) == 1.0
    assert choose(np.False_, lambda: 1 / 0, lambda: 2.0) == 2.0
