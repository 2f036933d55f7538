"""Dense Jacobians of programs that are asked for again, against those of fresh recordings."""

from __future__ import annotations

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.errors import ControlFlowChanged
from tapegrad.programs import prepared

RNG = np.random.default_rng(3)
WEIGHTS = RNG.normal(size=(5, 5))


def layers(x):
    h = np.tanh(WEIGHTS @ x)
    return np.exp(WEIGHTS @ h) + h


def linear_first(x):
    """Products of which the tangents are the same at any point, then others."""
    return np.sin(WEIGHTS.T @ (WEIGHTS @ x)) * (WEIGHTS @ x)[::-1]


def scalars(x):
    y = x * 1.0
    for i in range(15):
        y[i % 5] = np.sin(y[i % 5 - 1]) + x[i % 5] * y[i % 5]
    return y


def structurals(x):
    y = np.outer(x, [1.0, 2.0, 3.0])
    parts = [y.sum(axis=0), y.prod(axis=1), y.max(axis=0), np.cumsum(x), y.T @ y, x @ WEIGHTS]
    return np.concatenate([np.ravel(part) for part in parts])


def relu(x):
    """Rows that are zero at some points and not at others."""
    h = np.maximum(WEIGHTS @ x, 0.0)
    return np.where(x > 0.8, WEIGHTS @ h, np.maximum(h - 1.0, 0.0))


def repeated(x):
    return np.stack([x[1], x[1] * x[2], x[1], x[0], x[1] * x[2]])


def few(x):
    return np.stack([np.sum(layers(x)), x[3] * 1.0])


FUNCTIONS = [layers, linear_first, scalars, structurals, relu, repeated, few]
POINTS = [np.array([0.7, -0.4, 1.1, 0.6, 0.9]), np.zeros(5), np.array([-1.0, 2.0, 0.3, 0.0, 0.5])]


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("mode", ["forward", "reverse", "auto"])
@pytest.mark.parametrize("f", FUNCTIONS)
def test_any_point(f, mode):
    with tg.executor("compiled"):
        program = tg.record(f, POINTS[0])
        for x in POINTS[1], POINTS[0]:
            program.jacobian(x, mode=mode)
        assert program._dense[mode, 0] is not None
        for x in POINTS:
            want = tg.jacobian(f, mode=mode)(x)
            for _ in range(2):
                got = program.jacobian(x, mode=mode)
                # The first step of a sweep, of diagonal rows, is a product of less.
                np.testing.assert_allclose(got, want, rtol=1e-14, atol=1e-15)
                assert got.flags.c_contiguous
                got[...] = np.nan  # it is the caller's


def test_several_arguments_and_outputs():
    def f(p, s):
        y = p["w"] @ np.stack([s, s * s]) + p["b"]
        return {"y": y * s, "s": s * s, "none": 3.0}

    p, s = {"w": RNG.normal(size=(3, 2)), "b": np.arange(3.0, dtype=np.float32)}, 0.5
    with tg.executor("compiled"):
        program = tg.record(f, p, s)
        for mode in ("forward", "reverse"):
            first = program.jacobian(p, s, argnums=(1, 0), mode=mode)
            for _ in range(3):
                found = program.jacobian(p, s, argnums=(1, 0), mode=mode)
                for name in ("y", "s", "none"):
                    for one, other in (
                        (found[name][0], first[name][0]),
                        (found[name][1]["w"], first[name][1]["w"]),
                        (found[name][1]["b"], first[name][1]["b"]),
                    ):
                        assert np.asarray(one).dtype == np.asarray(other).dtype
                        np.testing.assert_allclose(one, other, rtol=1e-14)
            assert program._dense[mode, 2, 0, 1] is not None


def test_decisions_are_checked():
    with tg.executor("compiled"):
        program = tg.record(lambda x: np.sin(x) if x[0] > 0.0 else x * 2.0, np.ones(2))
        for _ in range(3):
            program.jacobian(np.ones(2))
        with pytest.raises(ControlFlowChanged):
            program.jacobian(-np.ones(2))
        np.testing.assert_allclose(program.jacobian(np.ones(2)), np.diag(np.cos(np.ones(2))))


def test_other_executors_and_other_uses_in_between():
    x = POINTS[0]
    with tg.executor("compiled"):
        program = tg.record(scalars, x)
        for _ in range(3):
            want = program.jacobian(x)
        assert program._dense["auto", 0] is not None
        program(np.zeros(5))
        program.vjp(np.ones(5))[1](np.ones(5))
        np.testing.assert_array_equal(program.jacobian(x), want)
        program.compile()  # which may move cells
        for _ in range(3):
            np.testing.assert_allclose(program.jacobian(x), want, rtol=1e-14)
    with tg.executor("reference"):
        np.testing.assert_allclose(program.jacobian(x), want, rtol=1e-14)


def test_rules_of_users():
    @tg.custom_vjp
    def double(x):
        return 2.0 * x

    double.defvjp(lambda x: (2.0 * x, None), lambda _, g: (2.0 * g,))
    x = POINTS[0]
    with tg.executor("compiled"):
        program = tg.record(lambda x: double(np.sin(x)), x)
        for _ in range(3):
            np.testing.assert_allclose(program.jacobian(x), np.diag(2.0 * np.cos(x)))


def test_what_is_large_is_swept(monkeypatch):
    monkeypatch.setattr(prepared, "NUMBERS", 100)
    x = POINTS[0]
    with tg.executor("compiled"):
        program = tg.record(layers, x)
        for _ in range(3):
            np.testing.assert_allclose(program.jacobian(x), tg.jacobian(layers)(x), rtol=1e-14)
    assert program._dense["auto", 0] is None
