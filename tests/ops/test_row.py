"""Rows that are incomplete or wrong are refused on import, with what is missing."""

from __future__ import annotations

from typing import Any

import pytest

from tapegrad.ops import TABLE
from tapegrad.ops.row import INTEGER, NONDIFF, ZERO, Row, in_domain, op
from tapegrad.ops.table import FAMILIES, collect, prove_closed

SIGNS = (-2.0, -0.0, 0.0, 3.0)


def make(**changes: Any) -> Row:
    fields: dict[str, Any] = {
        "name": "twice",
        "operands": "x",
        "out": "2 * x",
        "dx": "2",
        "samples": SIGNS,
        "doc": "Twice the number.",
    }
    return op(**(fields | changes))


def test_defaults() -> None:
    row = make()
    assert (row.ufuncs, row.mp, row.result, row.arity) == (("twice",), "twice(x)", "float", 1)
    assert row.differentiable
    assert in_domain(row, (1.0,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dx": None}, "misses dx"),
        ({"dy": "1"}, "needless dy"),
        ({"operands": "y", "dx": None, "dy": "1"}, "operands are 'x'"),
        ({"result": "complex"}, "result is 'float'"),
        ({"doc": "No full stop"}, "full stop"),
        ({"samples": ((1.0, 2.0),)}, "needs 1 numbers"),
        ({"kinks": ((0.0, 1.0),)}, "lies inside the domain"),
        ({"dx": "q"}, "unknown name 'q'"),
        ({"out": "out + x"}, "unknown name 'out'"),
        ({"dx": "[x]"}, "not part of the expression language"),
        ({"dx": "x.real"}, "not part of the expression language"),
        ({"dx": "1 if x > 10.0 else 2"}, "takes the other branch"),
        ({"dx": "1 if floor(x) else 2"}, "conditions may use operands"),
        ({"out": "x < 100.0", "result": "bool", "dx": ZERO}, "takes the other branch"),
    ],
)
def test_a_faulty_row_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize("missing", SIGNS)
def test_each_sign_and_zero_is_sampled(missing: float) -> None:
    samples = [t for t in SIGNS if str(t) != str(missing)]
    with pytest.raises(ValueError, match="no sample or special has"):
        make(samples=samples)
    with pytest.raises(ValueError, match="no sample inside the domain has"):
        make(samples=samples, specials=(missing,))


def test_a_domain_excuses_what_it_excludes() -> None:
    row = make(domain="x > 0.0", samples=(3.0,), specials=(-2.0, 0.0, -0.0))
    assert not in_domain(row, (0.0,))


def test_properties_of_partials() -> None:
    assert make(dx=NONDIFF("of a reason")).nondifferentiable_because == "of a reason"
    assert make(dx=INTEGER).integer_operand == 0
    assert not make(dx=ZERO).differentiable


@pytest.mark.parametrize(
    ("partial", "message"),
    [
        ("thrice(x)", "'thrice' is not a row"),
        ("sin(x, x)", "takes 1 operands"),
        ("spacing(x)", "not be closed under differentiation"),
        ("polygamma(x, 1.0)", "must be an integer"),
        ("polygamma(x + floor(x), 1.0)", "must be an integer"),
    ],
)
def test_partials_must_be_programs_of_rows(partial: str, message: str) -> None:
    table = TABLE | {"twice": make(dx=partial)}
    with pytest.raises(ValueError, match=message):
        prove_closed(table)


@pytest.mark.parametrize("partial", ["polygamma(floor(x), x)", "polygamma(1.0 + 1, x)", "x**x"])
def test_partials_that_are_closed(partial: str) -> None:
    prove_closed(TABLE | {"twice": make(dx=partial)})


def test_names_are_unique() -> None:
    rows = FAMILIES["Arithmetic"]
    with pytest.raises(ValueError, match="'add' stands twice"):
        collect({"one": rows, "two": rows[:1]})
    assert list(collect(FAMILIES)) == list(TABLE)


def test_unknown_attribute_of_the_package() -> None:
    import tapegrad.ops

    with pytest.raises(AttributeError, match="no attribute 'TABEL'"):
        _ = tapegrad.ops.TABEL
