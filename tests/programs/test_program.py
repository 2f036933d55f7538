"""Programs: replay, decisions, what is captured, derivatives, arguments that do not fit."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad import execute
from tapegrad.programs.ports import Input

numbers = st.floats(-3.0, 3.0)


def rosen(x):
    return np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def loop(x, a, n):
    for _ in range(n):
        x = np.sin(a * x) + x / (1.0 + x * x)
    return x


@given(st.lists(numbers, min_size=4, max_size=4), st.lists(numbers, min_size=4, max_size=4))
def test_a_replay_is_the_function(first, second):
    program = tg.record(rosen, np.array(first))
    x = np.array(second)
    assert program(x) == rosen(x)
    value, gradient = program.value_and_grad(x)
    expected_value, expected = tg.value_and_grad(rosen)(x)
    assert value == expected_value
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("executor", ["reference", "compiled"])
def test_a_replay_of_a_loop_of_scalars(executor):
    with tg.executor(executor):
        program = tg.record(loop, 0.3, 1.1, 50)
        for x, a in ((0.3, 1.1), (-0.7, 0.4), (2.0, -1.5)):
            value, (dx, da) = program.value_and_grad(x, a, 50, argnums=(0, 1))
            assert value == pytest.approx(loop(x, a, 50), rel=1e-12)
            expected = tg.grad(loop, argnums=(0, 1))(x, a, 50)
            assert (dx, da) == pytest.approx(expected, rel=1e-12)


def test_nothing_of_python_runs_in_a_replay():
    calls = []

    def f(x):
        calls.append(1)
        return x * x

    program = tg.record(f, 2.0)
    assert [program(3.0), program.value_and_grad(4.0)] == [9.0, (16.0, 8.0)]
    assert calls == [1]


@dataclass
class Parameters:
    w: np.ndarray
    b: float


def test_structures_go_in_and_come_out():
    def f(p, data, *, scale):
        return {"fit": data["t"] * p.w + p.b, "scaled": [p.b * scale]}

    p = Parameters(np.array([1.0, 2.0]), 3.0)
    program = tg.record(f, p, {"t": np.array([1.0, 1.0])}, scale=2.0)
    q = Parameters(np.array([3.0, 4.0]), 1.0)
    out = program(q, {"t": np.array([2.0, 5.0])}, scale=10.0)
    np.testing.assert_array_equal(out["fit"], [7.0, 21.0])
    assert out["scaled"] == [10.0]
    value, pull = program.vjp(q, {"t": np.array([2.0, 5.0])}, scale=10.0)
    np.testing.assert_array_equal(value["fit"], [7.0, 21.0])
    to_p, to_data = pull({"fit": np.array([1.0, 1.0]), "scaled": [1.0]})
    np.testing.assert_array_equal(to_p.w, [2.0, 5.0])
    assert to_p.b == 12.0
    np.testing.assert_array_equal(to_data["t"], [3.0, 4.0])


def test_a_structure_of_one_array_is_no_array():
    program = tg.record(lambda p: p["x"] * 2.0, {"x": np.ones(2)})
    np.testing.assert_array_equal(program({"x": np.array([3.0, 4.0])}), [6.0, 8.0])
    _, pull = program.vjp({"x": np.ones(2)})
    np.testing.assert_array_equal(pull(np.ones(2))[0]["x"], [2.0, 2.0])


def test_a_pull_is_of_its_own_arguments():
    program = tg.record(lambda x: x * x, 1.0)
    _, pull = program.vjp(3.0)
    assert program(10.0) == 100.0
    assert pull(1.0) == (6.0,)


def test_the_jacobian_and_its_layout():
    program = tg.record(lambda x, y: x[:, None] * y, np.zeros(2), np.zeros(3))
    x, y = np.array([1.0, 2.0]), np.array([3.0, 4.0, 5.0])
    dx, dy = program.jacobian(x, y, argnums=(0, 1))
    expected = tg.jacobian(lambda x, y: x[:, None] * y, argnums=(0, 1))(x, y)
    np.testing.assert_array_equal(dx, expected[0])
    np.testing.assert_array_equal(dy, expected[1])
    assert dx.shape == (2, 3, 2)


def least_squares(p, data, n, *, scale):
    fit = p["rate"] * data.x**n + np.tanh(p["offset"]) * scale
    return np.sum((fit - data.y) ** 2), {"fit": fit}


@dataclass
class Data:
    x: np.ndarray
    y: np.ndarray


STRUCTURED = (
    {"rate": 0.5, "offset": np.array([1.0, -0.5])},
    Data(np.array([1.0, 2.0]), np.array([0.5, -1.0])),
    2,
)


def value_only(p, data, n, *, scale):
    return least_squares(p, data, n, scale=scale)[0]


def same(found, expected, rtol=1e-12):
    """Compare two structures."""
    tg.trees.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-13), found, expected
    )


@pytest.mark.parametrize("argnums", [0, 1, (0,), (1, 0)])
def test_gradients_and_hessians_are_programs_with_structures(argnums):
    program = tg.record(value_only, *STRUCTURED, scale=1.0)
    slope = program.gradient(argnums)
    assert isinstance(slope, tg.Program)
    assert program.gradient(argnums) is slope
    other = {"rate": -0.25, "offset": np.array([0.3, 0.8])}
    for p in (STRUCTURED[0], other):
        args = (p, *STRUCTURED[1:])

        def f(p, data, n=2):
            return value_only(p, data, n, scale=3.0)

        same(slope(*args, scale=3.0), tg.grad(f, argnums)(*args))
        expected = tg.hessian(f, argnums)(*args)
        same(program.hessian(*args, argnums=argnums, scale=3.0), expected)
        for mode in ("forward", "reverse"):
            same(slope.jacobian(*args, argnums=argnums, mode=mode, scale=3.0), expected)
    assert program.value_and_grad(*STRUCTURED, scale=1.0)[1].keys() == {"rate", "offset"}


@pytest.mark.parametrize("argnums", [0, 1])
def test_products_with_the_hessian(argnums):
    program = tg.record(value_only, *STRUCTURED, scale=1.0)
    v = tg.trees.map(lambda x: np.cos(np.asarray(x) + 1.0)[()], STRUCTURED[argnums])
    expected = tg.hvp(lambda *a: value_only(*a, 2, scale=3.0), argnums)(*STRUCTURED[:2], v)
    same(program.hvp(*STRUCTURED, v, argnums=argnums, scale=3.0), expected)


def test_jvp_with_structures_and_nothing():
    program = tg.record(least_squares, *STRUCTURED, scale=1.0)
    p, data, n = STRUCTURED
    direction = {"rate": 0.5, "offset": [1.0, -2.0]}
    value, tangent = program.jvp((p, data, n), (direction, None, None), scale=3.0)
    expected = tg.jvp(lambda p: least_squares(p, data, n, scale=3.0), (p,), (direction,))
    same((value, tangent), expected)
    same(
        program.jvp(STRUCTURED, (None, None, None), scale=3.0), (value, (0.0, {"fit": np.zeros(2)}))
    )
    _, (partly, _) = program.jvp(
        STRUCTURED, ({"rate": None, "offset": np.ones(2)}, None, None), scale=3.0
    )
    slope = program.vjp(*STRUCTURED, scale=3.0)[1]((1.0, {"fit": np.zeros(2)}))[0]
    same(partly, np.sum(slope["offset"]))


def test_the_jacobian_of_a_structure():
    program = tg.record(least_squares, *STRUCTURED, scale=1.0)
    for mode in ("auto", "forward", "reverse"):
        total, parts = program.jacobian(*STRUCTURED, argnums=(0, 1), mode=mode, scale=3.0)
        expected = tg.jacobian(
            lambda p, d: least_squares(p, d, 2, scale=3.0)[1]["fit"], argnums=(0, 1)
        )(*STRUCTURED[:2])
        same(parts["fit"], expected)
        assert type(total[1]) is Data
        same(total, tg.grad(lambda p, d: value_only(p, d, 2, scale=3.0), (0, 1))(*STRUCTURED[:2]))


@given(st.lists(numbers, min_size=4, max_size=4))
def test_jacobians_by_all_modes(values):
    def f(x, a):
        y = np.tanh(np.outer(x, x)) * a
        return np.concatenate([y.ravel(), [np.sum(x**3)]])[::-1]

    x, a = np.array(values), 0.7
    program = tg.record(f, np.ones(4), 1.0)
    expected = tg.jacobian(f, argnums=(0, 1), mode="reverse")(x, a)
    for mode in ("auto", "forward", "reverse"):
        found = program.jacobian(x, a, argnums=(0, 1), mode=mode)
        same(found, expected)
        assert all(block.flags.c_contiguous and block.flags.writeable for block in found)


def test_programs_of_programs_to_fourth_order():
    program = tg.record(lambda x: np.exp(2.0 * x) * x, 0.1)
    derived = program
    for order in range(1, 5):
        derived = derived.gradient()
        x = -0.4
        # The n-th derivative of x e^(2x) is (2^n x + n 2^(n-1)) e^(2x).
        expected = (2**order * x + order * 2 ** (order - 1)) * np.exp(2.0 * x)
        assert derived(x) == pytest.approx(expected, rel=1e-13)


def test_nothing_of_python_runs_for_derivatives_either():
    calls = []

    def f(x):
        calls.append(1)
        return np.sum(x**3)

    program = tg.record(f, np.ones(2))
    x = np.array([1.0, 2.0])
    program.hessian(x), program.hvp(x, x), program.jvp((x,), (x,)), program.jacobian(x)
    tg.grad(program)(x), tg.hessian(program)(x)
    assert calls == [1]


def test_a_gradient_with_masked_branches_is_free_of_nan():
    program = tg.record(lambda x: np.sum(np.where(x > 0.0, np.sqrt(x), -x)), np.array([1.0, -1.0]))
    x = np.array([0.0, 4.0])
    np.testing.assert_array_equal(program.gradient()(x), [-1.0, 0.25])
    np.testing.assert_array_equal(program.hessian(x), [[0.0, 0.0], [0.0, -1.0 / 32]])


@pytest.mark.parametrize(
    ("use", "kind", "words"),
    [
        (lambda p, x: p.gradient(3), ValueError, "argnums"),
        (lambda p, x: p.gradient(1), TypeError, "part of the program"),
        (lambda p, x: p.hessian(x, 2, argnums=1), TypeError, "part of the program"),
        (lambda p, x: p.jacobian(x, 2, mode="sideways"), ValueError, "mode must be"),
        (lambda p, x: p.jvp(x, x), TypeError, "two tuples"),
        (lambda p, x: p.jvp((x, 2), (x,)), TypeError, "1 tangents for 2 arguments"),
        (lambda p, x: p.jvp((x, 2), (np.ones(3), None)), ValueError, "shape"),
        (lambda p, x: p.hvp(x, 2), TypeError, "the 2 arguments of the program and a vector"),
        (lambda p, x: p.hvp(x, 2, x, argnums=(0,)), TypeError, "differentiates one argument"),
        (lambda p, x: p.hvp(x, 2, np.ones(3)), ValueError, "shape"),
        (lambda p, x: p.vjp(x, 2)[1](np.ones(2)), ValueError, "shape"),
    ],
)
def test_derivatives_that_are_asked_for_wrongly(use, kind, words):
    program = tg.record(lambda x, n: np.sum(x**n), np.ones(2), 2)
    with pytest.raises(kind, match=words):
        use(program, np.ones(2))
    assert program.hessian(np.ones(2), 2).tolist() == [[2.0, 0.0], [0.0, 2.0]]


def test_a_gradient_of_several_numbers_is_refused():
    with pytest.raises(TypeError, match=r"shape \(2,\)"):
        tg.record(lambda x: x * 2.0, np.ones(2)).gradient()
    with pytest.raises(TypeError, match="returns 2; use vjp"):
        tg.record(lambda x: (x, x), 1.0).hessian(1.0)


def test_results_are_the_callers_own():
    program = tg.record(lambda x: x * 2.0, np.zeros(2))
    first = program(np.array([1.0, 2.0]))
    first[:] = 99.0
    np.testing.assert_array_equal(program(np.array([1.0, 2.0])), [2.0, 4.0])
    x = np.array([3.0, 4.0])
    program(x)
    np.testing.assert_array_equal(x, [3.0, 4.0])


def test_float32_stays_float32():
    program = tg.record(lambda x: x * x, np.ones(2, np.float32))
    out = program(np.array([3.0, 4.0], np.float32))
    assert out.dtype == np.float32


def test_threads_replay_one_program():
    program = tg.record(loop, 0.3, 1.1, 20)
    expected = [program.value_and_grad(0.1 * k, 1.0, 20) for k in range(20)]
    results = [None] * 20

    def work(k):
        for _ in range(20):
            results[k] = program.value_and_grad(0.1 * k, 1.0, 20)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == expected


# -- decisions -----------------------------------------------------------------------------------


def branch(x):
    return x * x if x < 1.0 else 2.0 * x - 1.0


def while_loop(x):
    steps = 0.0
    while x > 1.0:
        x = x / 2.0
        steps += 1.0
    return x + steps


DECISIONS = {
    "if": (branch, 0.5, 0.7, 3.0),
    "while": (while_loop, 5.0, 6.0, 9.0),
    "and": (lambda x: x * 2.0 if x > 0.0 and x < 2.0 else x * 3.0, 1.0, 1.5, 5.0),
    "max": (lambda x: max(x * 1.0, 1.0), 3.0, 2.0, 0.5),
    "int": (lambda x: x * int(x), 2.5, 2.7, 3.1),
    "truth": (lambda x: x * 2.0 if x else x + 7.0, 1.0, -3.0, 0.0),
    "item": (lambda x: x * (x * 1.0).item(), 2.0, 2.0, 3.0),
    "value": (lambda x: np.sum(x * x.value), np.ones(2), np.ones(2), np.array([1.0, 2.0])),
    "argmax": (lambda x: x[np.argmax(x)] * 2.0, np.array([1.0, 3.0]), np.array([0.0, 9.0]),
               np.array([5.0, 4.0])),
    "sort": (lambda x: x[np.argsort(x)] @ np.array([1.0, 10.0]), np.array([1.0, 3.0]),
             np.array([0.0, 9.0]), np.array([5.0, 4.0])),
    "mask": (lambda x: np.sum(x[x > 0.0] ** 2), np.array([1.0, -3.0]), np.array([2.0, -9.0]),
             np.array([1.0, 1.0])),
    "compress": (lambda x: np.sum(np.compress(x > 0.0, x)), np.array([1.0, -3.0]),
                 np.array([2.0, -9.0]), np.array([1.0, 1.0])),
    "any": (lambda x: np.sum(x) if np.any(x < 0.0) else np.prod(x), np.array([1.0, -3.0]),
            np.array([-1.0, 2.0]), np.array([1.0, 2.0])),
    "assigned mask": (lambda x: clipped(x), np.array([1.0, -3.0]), np.array([2.0, -9.0]),
                      np.array([1.0, 1.0])),
    "isclose": (lambda x: x if np.isclose(x, 1.0) else x * x, 2.0, 3.0, 1.0),
    "or": (lambda x: x * 2.0 if x < 0.0 or x > 2.0 else x * 3.0, -1.0, -3.0, 1.0),
    "not": (lambda x: x * 2.0 if not x > 0.0 else x * 3.0, -1.0, -2.0, 1.0),
    "min": (lambda x: min(x * 1.0, 1.0), 0.5, 0.25, 3.0),
    "min of an array": (lambda x: min(x) * 2.0, np.array([1.0, 2.0]), np.array([2.0, 9.0]),
                        np.array([2.0, 1.0])),
    "sorted": (lambda x: sorted(x)[0] * 3.0, np.array([1.0, 2.0]), np.array([2.0, 9.0]),
               np.array([2.0, 1.0])),
    "in": (lambda x: x[0] if 2.0 in x else x[1], np.array([1.0, 2.0]), np.array([3.0, 2.0]),
           np.array([1.0, 3.0])),
    "equality": (lambda x: x * 2.0 if x == 1.0 else x * 3.0, 2.0, 3.0, 1.0),
    "range": (lambda x: sum([x * k for k in range(int(x))]), 2.5, 2.7, 3.1),
    "a shape": (lambda x: np.sum(tg.full(int(x[0]), 2.0) * x[1]), np.array([3.2, 1.0]),
                np.array([3.9, 5.0]), np.array([4.0, 1.0])),
    "a slice": (lambda x: np.sum(x[: int(x[0])]), np.array([1.5, 2.0]), np.array([1.9, 5.0]),
                np.array([2.0, 1.0])),
    "np.where": (lambda x: np.sum(x[np.where(x > 0.0)] ** 2), np.array([1.0, -3.0]),
                 np.array([2.0, -9.0]), np.array([1.0, 1.0])),
    "tolist": (lambda x: x[0] * x[1:].tolist()[0], np.array([1.0, 2.0]), np.array([3.0, 2.0]),
               np.array([1.0, 3.0])),
    "item used later": (lambda x: later(x), np.array([1.0, 2.0]), np.array([3.0, 2.0]),
                        np.array([1.0, 3.0])),
    "argmax of an axis": (lambda x: x.argmax(axis=0)[0] * np.sum(x), np.eye(2), 3.0 * np.eye(2),
                          np.eye(2)[::-1]),
    "any of a mask": (lambda x: np.sum(x) if (x < 0.0).any() else np.prod(x),
                      np.array([1.0, -3.0]), np.array([-1.0, 2.0]), np.array([1.0, 2.0])),
    "trunc": (lambda x: x * int(np.floor(x)), 2.5, 2.7, 3.1),
}  # fmt: skip


def later(x):
    factor = (x[1] * 1.0).item()
    y = np.exp(x[0])
    return y * factor


def clipped(x):
    y = x * 1.0
    y[y < 0.0] = 0.0
    return np.sum(y * x)


@pytest.mark.parametrize("name", DECISIONS)
def test_a_decision_is_found_again_or_the_replay_refused(name):
    f, recorded, same, other = DECISIONS[name]
    program = tg.record(f, recorded)
    assert len(program.decisions) > 0
    np.testing.assert_array_equal(program(same), tg.value_and_grad(lambda x: np.sum(f(x)))(same)[0])
    for run in (program, program.value_and_grad, program.vjp):
        with pytest.raises(
            tg.ControlFlowChanged, match=r"test_program\.py:\d+ was .*is "
        ) as caught:
            run(other)
        assert caught.value.decision.file.endswith("test_program.py")
    np.testing.assert_array_equal(program(same), tg.value_and_grad(lambda x: np.sum(f(x)))(same)[0])


def test_the_first_decision_that_differs_is_named():
    def f(x):
        if x > 1.0:
            x = x + 1.0
        if np.any(x > 5.0):
            x = x * 2.0
        if x > 100.0:
            x = x + 3.0
        return x

    program = tg.record(f, 2.0)
    with pytest.raises(tg.ControlFlowChanged, match=r"was True .* is False") as caught:
        program(0.0)
    assert caught.value.number == 0
    with pytest.raises(tg.ControlFlowChanged, match=r"np\.any .* was False .* is True") as caught:
        program(7.0)
    assert caught.value.number == 1


def test_nan_decides_like_nan():
    program = tg.record(lambda x: x * (x * 1.0).item(), float("nan"))
    assert np.isnan(program(float("nan")))
    with pytest.raises(tg.ControlFlowChanged):
        program(1.0)


def test_printing_is_no_decision():
    def f(x):
        y = x * 2.0
        _ = f"{y} {y:.3f} {y!r} %s %r" % (y, y)
        print(y, file=io.StringIO())
        z = np.stack([y, y])
        _ = np.array2string(z), np.array_str(z), np.array_repr(z), str(z), z.shape, len(z), z.dtype
        return y

    program = tg.record(f, 1.0)
    assert len(program.decisions) == 0
    assert program(5.0) == 10.0


def test_decisions_outside_of_programs_are_not_noted():
    x = tg.array(1.0)
    y = x * 2.0
    assert y > 1.0
    assert tg.grad(branch)(3.0) == 2.0


# -- what is captured ----------------------------------------------------------------------------

SCALE = 2.0


def test_captured_arrays_and_numbers_are_listed_and_compared():
    data = np.array([1.0, 2.0])
    offset = 5.0
    leaf = tg.array([1.0, 1.0])

    def f(x):
        return np.sum(x * data * SCALE + offset + leaf)

    program = tg.record(f, np.zeros(2))
    names = {item.name for item in program.captured}
    assert {"data", "offset", "SCALE", "a leaf"} <= names
    assert all(item.file.endswith("test_program.py") for item in program.captured)
    assert "data: shape (2,)" in repr(program.captured)
    assert program.check_captured() == []
    data[0] = 7.0
    with tg.no_grad():
        leaf += 1.0
    changed = {item.name for item in program.check_captured()}
    assert changed == {"data", "leaf", "an operand", "a leaf"}
    assert program(np.ones(2)) == 2.0 * 3.0 + 10.0 + 2.0  # the program uses what it captured


# -- arguments that do not fit -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kind", "words"),
    [
        ((), TypeError, "recorded for 2 positional arguments, and got 0"),
        ((np.zeros(3), 2), ValueError, r"argument 0 has shape \(3,\)"),
        ((np.zeros(2), 3), ValueError, "was 2 when it was recorded, and is 3"),
        ((np.zeros(2), 2.0), ValueError, "was 2 when"),
        (([[1.0, 2.0]], 2), ValueError, r"argument 0 has shape \(1, 2\)"),
        (({"x": np.zeros(2)}, 2), TypeError, "no derivative"),
        ((np.array([1j, 0]), 2), TypeError, "complex128"),
        ((np.array(["a", "b"]), 2), TypeError, "no derivative"),
    ],
)
def test_arguments_that_do_not_fit(args, kind, words):
    program = tg.record(lambda x, n: np.sum(x) ** n, np.ones(2), 2)
    with pytest.raises(kind, match=words):
        program(*args)
    assert program(np.ones(2), 2) == 4.0


def test_outputs_that_do_not_fit():
    program = tg.record(lambda x: (x, x * x), np.ones(2))
    with pytest.raises(TypeError, match="use vjp"):
        program.value_and_grad(np.ones(2))
    program = tg.record(lambda x: x * x, np.ones(2))
    with pytest.raises(TypeError, match=r"shape \(2,\), not a single number"):
        program.value_and_grad(np.ones(2))
    program = tg.record(lambda x, n: x * n, 1.0, 2)
    with pytest.raises(TypeError, match="part of the program"):
        program.value_and_grad(1.0, 2, argnums=1)
    with pytest.raises(ValueError, match="argnums"):
        program.value_and_grad(1.0, 2, argnums=5)


def test_an_output_that_does_not_depend_on_the_input():
    program = tg.record(lambda x: (5.0, x * 0.0 + 1.0), 1.0)
    assert program(2.0) == (5.0, 1.0)
    constant = tg.record(lambda x: 5.0, 1.0)
    assert constant.value_and_grad(2.0) == (5.0, 0.0)


def test_an_error_while_recording_passes_through():
    with pytest.raises(ZeroDivisionError):
        tg.record(lambda x: 1 / 0, 1.0)
    assert tg.grad(lambda x: x * x)(3.0) == 6.0


def test_long_arguments_are_borrowed_and_given_back(monkeypatch):
    def f(x, y):
        return np.sum(np.sin(x) * y[::-1] + x * x)

    rng = np.random.default_rng(0)
    execute.load("regions")
    x, y = rng.random(5000), rng.random(5000)
    program = tg.record(f, np.ones(5000), np.ones(5000))
    expected = tg.value_and_grad(f, (0, 1))
    put = []
    monkeypatch.setattr(Input, "put", lambda self, value, v: put.append(self.name))
    found = program.value_and_grad(x, y, argnums=(0, 1))
    monkeypatch.undo()
    assert not put
    execute.load("regions")
    value, slopes = expected(x, y)
    assert found[0] == pytest.approx(value, rel=1e-13)  # another order of additions
    for one, other in zip(found[1], slopes, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not program.tape.lent
    assert all(entry.values is None for entry in program.tape.imports)
    x[:] = 2.0  # what was borrowed is the caller's again
    assert program(y, x) == pytest.approx(f(y, x), rel=1e-13)
    # What does not lie there as it should is copied, also where only one of two does.
    wide = np.ones((5000, 2)) * 0.3
    (one, other) = program.value_and_grad(wide[:, 0], y, argnums=(0, 1))[1]
    np.testing.assert_array_equal(one, expected(np.full(5000, 0.3), y)[1][0])
    np.testing.assert_array_equal(other, expected(np.full(5000, 0.3), y)[1][1])
    x.flags.writeable = False
    np.testing.assert_array_equal(program.value_and_grad(x, x)[1], expected(x, x)[1][0])


def test_borrowed_arguments_are_given_back_after_an_error(monkeypatch):
    program = tg.record(lambda x: np.sum(x * x), np.ones(5000))
    execute.load("regions")
    x = np.full(5000, 3.0)

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(execute, "gradient", interrupt)
        with pytest.raises(KeyboardInterrupt):
            program.value_and_grad(x)
    assert not program.tape.lent
    assert program(np.full(5000, 2.0)) == 20_000.0
    np.testing.assert_array_equal(program.value_and_grad(x)[1], 6.0)


def test_values_that_leak_out_of_a_recording_are_of_no_use_afterwards():
    leaked = []

    def f(x):
        np.cos(x)  # nothing needs it: what follows is moved
        y = np.sin(x)
        leaked.extend([y, y * 3.0, np.sum(tg.array([y, y]))])
        return leaked[1] + 1.0

    program = tg.record(f, 0.5)
    for value in leaked:
        with pytest.raises(tg.ReleasedTapeError, match="recording that has been released"):
            np.sum(value.value)
        with pytest.raises(tg.ReleasedTapeError):
            np.exp(value)
    assert program(1.0) == np.sin(1.0) * 3.0 + 1.0
    assert program.value_and_grad(1.0)[1] == np.cos(1.0) * 3.0
