"""Gradients of scalar programs that are derived by compiled code: the same as those recorded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad import execute
from tapegrad.programs import gradients


@pytest.fixture(autouse=True)
def _derive_all(monkeypatch):
    execute.load("derive")
    monkeypatch.setattr(gradients, "LOADED_FROM", 0)
    monkeypatch.setattr(gradients, "SCALAR", 100)


def derived(program, argnums=0):
    """Return the gradient program, which must be one that was derived by compiled code."""
    found = gradients.gradient_program(program, argnums)
    assert found is not None
    slope = program.gradient(argnums)
    assert len(slope) == len(found)
    return slope


LINES = (
    "{0} + {1}", "{0} * {1}", "{0} - 1.5", "2.0 - {1}", "{0} / (2.0 + {1} * {1})",
    "3.0 / (1.5 + {0} * {0})", "np.sin({0})", "np.tanh({1})", "np.exp(-({0} * {0}))", "{0}**2",
    "{0}**3", "2.0**np.sin({1})", "np.hypot({0}, 1.0 + {1} * {1})", "np.maximum({0}, {1})",
    "np.minimum({0}, 0.3)", "abs({1})",
    "np.where({0} > 0.0, {1}, 2.5)", "np.where({0} < {1}, {0} * {1}, np.sqrt(abs({0})))",
    "np.sqrt(1.0 + {0} * {0})", "np.logaddexp({0}, {1})", "np.arctan2({0}, 2.0 + {1})", "{0} * 0.0",
    "np.sign({1}) * {0}",
)  # fmt: skip


@st.composite
def sources(draw):
    """Draw scalar code of three variables."""
    count, source = 3, ""
    for _ in range(draw(st.integers(1, 12))):
        names = [f"v{draw(st.integers(0, count - 1))}" for _ in range(2)]
        source += f"v{count} = {draw(st.sampled_from(LINES)).format(*names)}\n"
        count += 1
    return source + f"result = v{count - 1} + v{draw(st.integers(0, count - 1))}\n"


def function(source):
    code = compile(source, "<scalar code>", "exec")

    def f(x, p):
        names = {"np": np, "v0": x, "v1": p["a"][0], "v2": p["a"][1]}
        exec(code, names)
        return names["result"]

    return f


numbers = st.sampled_from([-1.3, -0.6, -0.2, 0.35, 0.8, 1.7])


@settings(max_examples=100)
@given(sources(), st.lists(numbers, min_size=3, max_size=3))
def test_scalar_code_of_all_kinds(source, values):
    f = function(source)
    program = tg.record(f, 0.5, {"a": np.array([0.4, -0.7]), "kept": 3})
    args = values[0], {"a": np.array(values[1:]), "kept": 3}
    for argnums in (0, (1, 0)):
        expected = program.value_and_grad(*args, argnums=argnums)[1]
        slope = derived(program, argnums)
        found = slope(*args)
        assert repr(tg.trees.flatten(found)[1]) == repr(tg.trees.flatten(expected)[1])
        parts = zip(tg.trees.flatten(found)[0], tg.trees.flatten(expected)[0], strict=True)
        for part, other in parts:
            if not np.isfinite(other).all():
                continue  # a factor 0 stops what is infinite in derived code, and not in a sweep
            # Both sum the same terms, in another order; none here is beyond 1e4.
            np.testing.assert_allclose(part, other, rtol=1e-12, atol=1e-11)
    x = np.array(values)
    flat = tg.record(lambda x: f(x[0], {"a": x[1:]}), np.array([0.5, 0.4, -0.7]))
    second = tg.hessian(lambda x: f(x[0], {"a": x[1:]}))(x)
    np.testing.assert_allclose(derived(flat).jacobian(x), second, rtol=1e-10, atol=1e-9)


def test_decisions_are_checked():
    def f(x, y):
        return x * y * y if x > y else x + (x * y).item() * y

    program = tg.record(f, 2.0, 1.0)
    slope = derived(program, (0, 1))
    assert slope(3.0, 1.5) == (1.5 * 1.5, 2 * 3.0 * 1.5)
    with pytest.raises(tg.ControlFlowChanged, match=r"test_gradients\.py:\d+ was True"):
        slope(1.0, 2.0)
    program = tg.record(f, 1.0, 2.0)
    assert derived(program, 1)(1.0, 2.0) == 2.0
    with pytest.raises(tg.ControlFlowChanged, match="a value at"):
        program.gradient(1)(1.0, 3.0)


def test_the_result_is_a_program_like_others(tmp_path):
    program = tg.record(lambda x: np.sin(x[0] * x[1]) + x[2] ** 3 * x[0], np.ones(3))
    slope, x = derived(program), np.array([0.3, -0.8, 1.2])
    expected = tg.hessian(program)(x)
    slope.save(tmp_path / "slope.tape")
    for one in (slope, tg.load(tmp_path / "slope.tape")):
        np.testing.assert_allclose(one.jacobian(x), expected, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(
            tg.jacobian(lambda x, one=one: one(x * 2.0))(x), 2.0 * tg.hessian(program)(2.0 * x)
        )
        np.testing.assert_allclose(one.jvp((x,), (x,))[1], expected @ x, rtol=1e-13)
    with tg.executor("reference"):
        np.testing.assert_allclose(slope(x), tg.grad(program)(x), rtol=1e-14)


def test_inputs_that_do_not_matter_and_results_that_are_inputs():
    program = tg.record(lambda x, y, n: x[1], np.ones(2), 3.0, 2)
    assert derived(program)(np.ones(2), 3.0, 2).tolist() == [0.0, 1.0]
    assert derived(program, 1)(np.ones(2), 3.0, 2) == 0.0
    square = tg.record(lambda x: x * x, np.float32(1.5))
    slope = derived(square)(np.float32(3.0))
    assert slope == 6.0
    assert slope.dtype == np.float32


def test_what_is_not_derived_so():
    constant = tg.record(lambda x: 5.0, 1.0)
    chosen = tg.record(lambda x: x[np.argmax(x)], np.array([1.0, 2.0]))
    structural = tg.record(lambda x: np.max(x), np.array([1.0, 2.0]))
    for program in (constant, chosen, structural):
        assert gradients.gradient_program(program, 0) is None
    assert chosen.gradient()(np.array([3.0, 4.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("loaded", [False, True])
def test_short_programs_are_not_worth_it(monkeypatch, loaded):
    monkeypatch.undo()
    monkeypatch.setattr(execute, "is_loaded", lambda family: loaded)
    program = tg.record(lambda x: x * x, 1.0)
    assert gradients.gradient_program(program, 0) is None
    monkeypatch.setattr(gradients, "LOADED_FROM", 1)
    assert (gradients.gradient_program(program, 0) is not None) == loaded
