import sys

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import diagnosis, execute
from tapegrad.diagnosis import find_faults
from tapegrad.kernels import opcodes, reference, rules
from tapegrad.kernels.opcodes import NONDIFF, ROWS
from tapegrad.ops import structural
from tapegrad.ops.row import in_domain
from tapegrad.ops.table import TABLE
from tapegrad.recording import elementwise
from tapegrad.tape import Tape, recorder


@pytest.fixture
def tape(monkeypatch):
    """Record on a new tape, with the reference interpreter; no compiled kernels are loaded."""
    for family in execute._loaded:
        monkeypatch.setitem(execute._loaded, family, False)
    fresh = Tape(recorder.owner)
    outer, recorder.tape = recorder.tape, fresh
    with tg.executor("reference"):
        yield fresh
    recorder.tape = outer


@pytest.fixture
def replace(monkeypatch):
    """Return a function that replaces an entry of FORWARD or CONTRIBUTIONS."""

    def put(table, row, rule):
        entries = list(getattr(rules, table))
        for op in set(ROWS[row]) - {-1}:
            entries[op] = rule
        for module in (rules, reference):
            monkeypatch.setattr(module, table, tuple(entries))

    return put


@pytest.fixture(params=[True, False], ids=["mpmath", "without mpmath"])
def oracle(request, monkeypatch):
    """Decide with mpmath, and without."""
    diagnosis._definition.cache_clear()
    if not request.param:
        monkeypatch.setitem(sys.modules, "mpmath", None)
    yield
    diagnosis._definition.cache_clear()


X = np.array([0.3, 0.6, 0.85])


@pytest.mark.parametrize("name", [name for name in TABLE if name not in NONDIFF])
def test_no_row_is_at_fault_anywhere(name, tape, oracle):
    """Samples, kinks and specials: conventions, infinities and nan are no faults."""
    row = TABLE[name]
    points = np.array(row.points).T
    operands = [
        column if i == row.integer_operand else tg.array(column) for i, column in enumerate(points)
    ]
    elementwise(name, *operands)
    for point in row.points:
        if row.integer_operand is None:
            elementwise(name, *map(tg.array, point))
            elementwise(name, *map(tg.array, point[:-1]), point[-1])
    assert find_faults([tape], definitions=True) == []


WRONG = {
    "sin": lambda w, x, out: (-w * np.cos(x),),
    "divide": lambda w, x, y, out: (w / y, w * out / y),
    "maximum": lambda w, x, y, out: (w, w),
    "where": lambda w, x, y, z, out: (0.0, 0.0, w),
    "floor": lambda w, x, out: (w,),
    "exp": lambda w, x, out: (w * (1.0 + 1e-3) * out,),
    "square": lambda w, x, out: (w * np.inf,),
    "tanh": lambda w, x, out: (w * np.nan,),
}


@pytest.mark.parametrize("row", WRONG)
def test_wrong_partials_are_found(row, tape, replace, oracle):
    replace("CONTRIBUTIONS", row, WRONG[row])
    x = tg.array(X)
    np.cos(x) * 2.0
    operands = [x, x[::-1] * 1.1, x[0] + x][: TABLE[row].arity]
    elementwise(row, *operands)
    elementwise(row, *[operand[1] for operand in operands])
    (fault,) = find_faults([tape])
    assert fault.row == row
    assert fault.operands[0] == 0.3
    assert "its partial with respect to" in fault.what
    assert f"instruction {fault.instruction}" in repr(fault)


@pytest.mark.parametrize("constant", ["first", "second"])
def test_constant_operands(constant, tape, replace):
    replace("CONTRIBUTIONS", "multiply", lambda w, x, y, out: (w * x, w * y))
    y = tg.array(0.3) * 1.0
    y * 2.0 if constant == "second" else 2.0 * y
    faults = find_faults([tape])
    assert [fault.operands for fault in faults] == [(0.3, 1.0)]  # the first instance
    assert "with respect to x is 0.3, but the derivative of its value is 1.0" in repr(faults[0])


def test_every_faulty_row_is_named_once(tape, replace):
    replace("CONTRIBUTIONS", "sin", WRONG["sin"])
    replace("CONTRIBUTIONS", "exp", WRONG["exp"])
    x = tg.array(0.5)
    np.exp(np.sin(np.exp(np.sin(x))))
    assert [fault.row for fault in find_faults([tape])] == ["sin", "exp"]


def test_a_wrong_value_in_the_arena(tape):
    y = np.sin(tg.array(X))
    assert find_faults([tape]) == []
    tape.arena.v.array[y.storage.base + 1] = 0.5
    (fault,) = find_faults([tape])
    assert "its value is 0.5, but the reference interpreter's 0.56" in repr(fault)


def test_a_wrong_forward_rule_needs_the_definitions(tape, replace):
    replace("FORWARD", "sinh", lambda x: float(np.sin(x)))
    replace("CONTRIBUTIONS", "sinh", lambda w, x, out: (w * float(np.cos(x)),))
    np.sinh(tg.array(X))
    assert find_faults([tape]) == []
    (fault,) = find_faults([tape], definitions=True)
    assert "its definition's 0.30" in fault.what


STRUCTURAL = {
    "sum": lambda x: x.sum(axis=1),
    "prod": lambda x: x.prod(axis=0),
    "max": lambda x: x.max(axis=1),
    "min": lambda x: x.min(),
    "cumsum": lambda x: x.cumsum(axis=1),
    "cumprod": lambda x: x.T.cumprod(axis=0),
    "matmul": lambda x: np.tile(x, (6, 1)) @ x[:, ::-1].T,  # more than are written out
}


@pytest.mark.parametrize("name", structural.STRUCTURAL)
def test_structural_rows(name, tape, monkeypatch):
    x = tg.array([[0.3, 0.6, 0.5], [-1.0, 0.0, 2.0]])
    STRUCTURAL[name](x)
    STRUCTURAL[name](x * 0.0)  # ties, and factors that are zero
    assert find_faults([tape]) == []
    row = structural.STRUCTURAL[name]
    right = row.vjp
    monkeypatch.setattr(row, "vjp", lambda *args, **kw: [1.001 * g for g in right(*args, **kw)])
    (fault,) = find_faults([tape])
    assert (fault.row, fault.operands) == (name, ())
    assert "along a random direction of operand 0" in repr(fault)


def test_a_structural_value(tape):
    y = tg.array(X).cumsum()
    y.value  # noqa: B018
    tape.arena.v.array[y.storage.base] = 7.0
    assert "not that of its row" in repr(find_faults([tape])[0])


@pytest.mark.parametrize("family", ["scalar", "lanes"])
def test_a_wrong_compiled_kernel_is_found(family, tape, monkeypatch):
    """The compiled kernels are the reference's here, but for the adjoints of one operation."""
    right = getattr(reference, f"{family}_reverse")
    x = tg.array(X)
    y = np.exp(x) * x[::-1] if family == "lanes" else np.exp(x[0]) * x[1] * x[1]
    np.sin(y)

    def wrong(*args):
        result = right(*args)
        args[7 if family == "lanes" else 5][x_cell] *= factor
        return result

    x_cell, factor = tape.imports[0].cell, 1.0
    monkeypatch.setattr(execute._compiled, f"{family}_reverse", wrong)
    monkeypatch.setitem(execute._loaded, family, True)
    assert find_faults([tape]) == []
    factor = 1.01
    (fault, *_) = find_faults([tape])
    assert fault.row == "exp"
    assert "its compiled kernel sends" in fault.what


def test_the_compiled_kernels_are_the_reference(tape):
    x = tg.array(X)
    y = np.exp(x[0] * 2.0) * np.where(x[1] > 0.5, x[2], 1.0) + 1.0 / x[1]
    np.sum(np.tanh(x) * y + np.where(x > 0.5, x, 2.0) + x[[0, 0, 1]] ** 2.5)
    with tg.executor("compiled"):
        execute.evaluate(tape)
        assert find_faults([tape]) == []
    assert execute._loaded["scalar"]
    assert execute._loaded["lanes"]


def test_large_and_small_operands(tape):
    for x in (3.8e24, 1e-300, -1e300):
        y = tg.array(x)
        np.sin(y), np.arctan(y), np.cbrt(y), np.tanh(y), np.square(y)
    assert find_faults([tape]) == []


def test_points_outside_the_domain_are_conventions(tape):
    assert not in_domain(TABLE["absolute"], (0.0,))
    x = tg.array(0.0)
    np.abs(x), np.sqrt(x), np.maximum(x, 0.0), np.hypot(x, 0.0)
    assert find_faults([tape]) == []
    assert opcodes.ABSOLUTE in tape.arena.op.array[: tape.n]
