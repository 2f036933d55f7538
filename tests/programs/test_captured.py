"""What programs capture: where it is found, how changes are noticed, how it becomes an input."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

import tapegrad as tg

RATE = 2.0
COUNT = 3


def helper(x):
    return x * RATE


class Model:
    def __init__(self, scale):
        self.scale = scale
        self.unused = 7.0

    def loss(self, x):
        return np.sum(x * x) * self.scale


class Settings(NamedTuple):
    shift: float
    powers: list


@dataclass
class Options:
    weights: np.ndarray
    name: str


def names(program):
    return {item.name for item in program.captured if item.name not in ("an operand", "a leaf")}


def test_where_captured_values_are_found():
    offset, table = np.array([1.0, 2.0]), {"a": 0.5, "b": [np.ones(2), "text", None]}
    settings, options, model = Settings(1.5, [2, 3]), Options(np.ones(2), "n"), Model(3.0)
    leaf = tg.array([1.0, 2.0])

    def f(x):
        (inner,) = [x * offset for _ in range(1)]
        y = helper(inner) + table["a"] + table["b"][0] + settings.shift + options.weights
        return np.sum(y * model.scale * leaf) if x is not None else without_a_value

    program = tg.record(f, np.ones(2))
    without_a_value = 5.0
    assert names(program) == {
        "offset", "RATE", "table['a']", "table['b'][0]", "settings.shift", "settings.powers[0]",
        "settings.powers[1]", "options.weights", "model.scale", "leaf",
    }  # fmt: skip
    assert program.check_captured() == []
    table["a"] = 0.75
    options.weights[0] = 4.0
    model.scale = 3  # another object that is equal
    changed = {item.name for item in program.check_captured()}
    assert changed - {"an operand"} == {"table['a']", "options.weights"}
    table.clear()
    assert "table['b'][0]" in {item.name for item in program.check_captured()}


def test_methods_and_partial_functions():
    model = Model(3.0)
    program = tg.record(model.loss, np.ones(2))
    assert names(program) == {"self.scale"}
    model.scale = 4.0
    assert [item.name for item in program.check_captured()] == ["self.scale"]
    assert names(tg.record(functools.partial(helper), 1.0)) == {"RATE"}
    assert names(tg.record(np.sin, 1.0)) == set()


@pytest.mark.parametrize("what", ["number", "array", "container", "attribute", "global", "leaf"])
def test_a_function_of_programs_notices_changes(what, monkeypatch):
    number, array, container = 2.0, np.array([2.0]), {"deep": [2.0]}
    model, leaf = Model(2.0), tg.array([2.0])

    def f(x):
        factors = {
            "number": number,
            "array": array[0],
            "container": container["deep"][0],
            "attribute": model.scale,
            "global": helper(1.0),
            "leaf": leaf[0],
        }
        return x * factors[what]

    g = tg.function(f)
    assert (g(3.0), g(4.0), g.recordings) == (6.0, 8.0, 1)
    number = 5.0
    if what == "array":
        array[0] = 5.0
    elif what == "container":
        container["deep"][0] = 5.0
    elif what == "attribute":
        model.scale = 5.0
    elif what == "global":
        monkeypatch.setitem(globals(), "RATE", 5.0)
    elif what == "leaf":
        with tg.no_grad():
            leaf += 3.0
    assert g(3.0) == 15.0
    assert g.grad(3.0) == 5.0
    assert g.recordings == 2


# -- promotion -------------------------------------------------------------------------------------


def test_variables_become_arguments():
    offset, table = np.array([1.0, 2.0]), {"a": 0.5, "n": 2}

    def f(x):
        return np.sum((x - offset[::-1]) ** table["n"]) * table["a"] + offset[1] * RATE

    program = tg.record(f, np.ones(2))
    promoted = program.promote("offset", "table['a']", "RATE")
    assert (table["a"], offset.tolist(), RATE) == (0.5, [1.0, 2.0], 2.0)  # as they were

    def expected(x, offset, a, rate):
        return np.sum((x - offset[::-1]) ** 2) * a + offset[1] * rate

    args = np.array([0.3, 0.6]), np.array([-1.0, 4.0]), 1.5, -2.0
    every = (0, 1, 2, 3)
    value, found = promoted.value_and_grad(*args, argnums=every)
    assert value == pytest.approx(expected(*args), rel=1e-14)
    wanted = tg.grad(expected, every)(*args)
    tg.trees.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), found, wanted)
    assert names(promoted) == {"table['n']"}
    assert program(args[0]) == f(args[0])  # and the program still is the program


def test_entries_of_the_list_can_be_promoted_and_promotion_goes_on():
    a, b = 2.0, tg.array([3.0])
    program = tg.record(lambda x: x * a * b[0], 1.0)
    (entry,) = [item for item in program.captured if item.name == "a"]
    promoted = program.promote(entry).promote("b")
    assert promoted(2.0, 5.0, np.array([7.0])) == 70.0
    assert promoted.value_and_grad(2.0, 5.0, np.array([7.0]), argnums=2)[1].tolist() == [10.0]
    assert promoted.hessian(2.0, 5.0, np.array([7.0]), argnums=(0, 1))[0][1] == 7.0


def test_variables_of_what_is_called_become_arguments():
    promoted = tg.record(lambda x: helper(x) * x, 1.0).promote("RATE")
    assert promoted.value_and_grad(3.0, 5.0, argnums=(0, 1)) == (45.0, (30.0, 9.0))
    assert RATE == 2.0


def test_attributes_of_objects_become_arguments():
    model = Model(3.0)
    promoted = tg.record(model.loss, np.ones(2)).promote("self.scale")
    assert promoted(np.array([1.0, 2.0]), 10.0) == 50.0
    assert model.scale == 3.0


def test_decisions_on_what_was_promoted():
    limit = 2.0
    promoted = tg.record(lambda x: x * x if x < limit else x, 1.0).promote("limit")
    assert promoted(1.5, 2.5) == 2.25
    with pytest.raises(tg.ControlFlowChanged):
        promoted(1.5, 1.0)


def test_variables_are_restored_after_an_error():
    scale = np.ones(2)

    def f(x):
        return x * np.asarray(scale)[0]

    program = tg.record(f, 1.0)
    with pytest.raises(tg.LostGradientError):
        program.promote("scale")
    assert type(scale) is np.ndarray


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("COUNT", TypeError, "COUNT is of dtype int64: only floats"),
        ("nothing", ValueError, "'nothing' is no captured variable; choose one .*: COUNT, RATE"),
        ("an operand", TypeError, "is no variable"),
    ],
)
def test_what_cannot_be_promoted(what, kind, words):
    program = tg.record(lambda x: np.sum(x * np.array([1.0, 2.0])) * RATE**COUNT, np.ones(2))
    with pytest.raises(kind, match=words):
        program.promote(what)


def test_programs_without_a_function_cannot_be_promoted(tmp_path):
    program = tg.record(lambda x: x * RATE, 1.0)
    program.save(tmp_path / "f.tape")
    for other in (tg.load(tmp_path / "f.tape"), program.gradient()):
        with pytest.raises(TypeError, match="promote before"):
            other.promote("RATE")


def test_names_that_occur_twice():
    def outer():
        table = np.ones(2)
        return lambda x: np.sum(x * table)

    first, second = outer(), outer()
    program = tg.record(lambda x: first(x) + second(x), np.ones(2))
    with pytest.raises(ValueError, match="more than one"):
        program.promote("table")
