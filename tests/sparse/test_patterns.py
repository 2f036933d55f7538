"""The structure of Jacobians: against the places where random dense Jacobians are not zero."""

from __future__ import annotations

import importlib
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad.sparse import patterns
from tapegrad.sparse.patterns import find_pattern

simplify = importlib.import_module("tapegrad.programs.simplify")


@pytest.fixture(params=["python", "compiled"], autouse=True)
def functions(request, monkeypatch):
    """Run the functions on patterns both ways."""
    monkeypatch.setattr(simplify, "COMPILED_FROM", 0 if request.param == "compiled" else 10**9)
    if request.param == "python":
        monkeypatch.setattr(simplify, "_COMPILER", "no such module")


def pattern_of(f, x):
    """Return the structure that is found, as a matrix of truths."""
    program = tg.record(f, x)
    known, cells = program.array_input(0), program.array_output()
    indptr, columns = find_pattern(program.tape, cells, known.cell, known.size)
    found = np.zeros((len(cells), known.size), np.bool_)
    for row in range(len(cells)):
        part = columns[indptr[row] : indptr[row + 1]]
        assert (np.diff(part) > 0).all()
        found[row, part] = True
    return found


def nonzeros_of(f, x):
    """Return where derivatives are not zero, at a point where none of them vanishes by chance."""
    jacobian = tg.jacobian(f)(x)
    return jacobian.reshape(-1, x.size) != 0.0


STRUCTURAL = {
    "sum of rows": lambda x: np.sum(x.reshape(3, 4) ** 2, axis=1),
    "sum of columns, kept": lambda x: np.sum(x.reshape(3, 4) ** 2, axis=0, keepdims=True),
    "sum over two axes": lambda x: np.sum(x.reshape(3, 2, 2), axis=(0, 2)),
    "product": lambda x: np.prod(x.reshape(4, 3), axis=1),
    "cumulated": lambda x: np.cumsum(x.reshape(4, 3), axis=0).ravel(),
    "cumulated product": lambda x: np.cumprod(x),
    "matrix times vector": lambda x: x[:6].reshape(2, 3) @ x[6:9],
    "vector times matrix": lambda x: x[:2] @ x[4:10].reshape(2, 3),
    "matrix times matrix": lambda x: x[:6].reshape(2, 3) @ x[6:].reshape(3, 2),
    "constant matrix": lambda x: np.ones((2, 4)) @ x.reshape(4, 3),
    "times constant matrix": lambda x: x.reshape(3, 4) @ np.ones((4, 2)),
    "inner product": lambda x: x[:6] @ x[6:] + x[:1],
    "stack of matrices": lambda x: x[:8].reshape(2, 2, 2) @ x[8:].reshape(2, 2),
    "stack times vector": lambda x: x[:8].reshape(2, 2, 2) @ x[8:10],
    "a few of many": lambda x: np.sum(x[:3]) * x[4:7],
    "where": lambda x: np.where(x > -100.0, x * x[0], 2.0),
}


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("name", STRUCTURAL)
def test_structural_operations_are_exact_to_the_element(name):
    f = STRUCTURAL[name]
    x = np.random.default_rng(0).uniform(0.5, 1.5, 12)
    flat = lambda x: f(x).reshape(-1) if np.ndim(f(x)) != 1 else f(x)  # noqa: E731
    np.testing.assert_array_equal(pattern_of(flat, x), nonzeros_of(flat, x))


@settings(max_examples=30)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from("+*s"), st.integers(0, 40), st.integers(0, 40)), max_size=60
    ),
    outputs=st.lists(st.integers(0, 60), min_size=1, max_size=100),
)
def test_any_scalar_program(steps, outputs):
    """Sums and products of positive numbers: no derivative that can flow is zero."""

    def f(x):
        values = [x[i] for i in range(30)]
        for what, i, j in steps:
            a, b = values[i % len(values)], values[j % len(values)]
            values.append(a + b if what == "+" else a * b if what == "*" else np.exp(0.01 * a))
        return np.stack([values[i % len(values)] * 1.5 for i in outputs])

    x = np.linspace(0.5, 0.9, 30)
    np.testing.assert_array_equal(pattern_of(f, x), nonzeros_of(f, x))


@pytest.mark.parametrize("limit", [0, 10**9])
def test_large_sets_are_found_by_walks_and_by_masks(limit, monkeypatch):
    """Lower triangles: sets of all sizes, most of them unions of others."""
    monkeypatch.setattr(patterns, "WALKS", limit)

    def f(x):
        y = x * 1.0
        for i in range(1, x.size):
            y[i] = y[i] * y[i - 1]
        return y

    np.testing.assert_array_equal(pattern_of(f, np.ones(150)), np.tri(150, dtype=np.bool_))


def test_a_dense_row_and_a_dense_column_take_linear_time(functions):
    """For each of them alone, some simple algorithms take quadratic time: minutes here."""

    def f(x):
        total = 0.0
        for i in range(x.size):
            total = total + x[i] * x[i]
        return np.concatenate((x[1:] * x[0], [total]))

    n = 5_000
    program = tg.record(f, np.ones(n))
    known, cells = program.array_input(0), program.array_output()
    start = time.process_time()
    indptr, _ = find_pattern(program.tape, cells, known.cell, known.size)
    assert time.process_time() - start < 10.0  # 0.2 s, and compiling where that is due
    assert indptr[-1] == 2 * (n - 1) + n
