"""Colourings: every element of the matrix can be read, and there are few directions."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapegrad.sparse import coloring

simplify = importlib.import_module("tapegrad.programs.simplify")


@pytest.fixture(params=["python", "compiled"], autouse=True)
def functions(request, monkeypatch):
    """Run the functions both ways."""
    monkeypatch.setattr(simplify, "COMPILED_FROM", 0 if request.param == "compiled" else 10**9)
    if request.param == "python":
        monkeypatch.setattr(simplify, "_COMPILER", "no such module")


def read_back(matrix, compression):
    """Return the elements of a matrix, read from its products with the directions."""
    rows, columns = np.nonzero(matrix)
    products = matrix @ compression.seeds(0, compression.count)
    return matrix[rows, columns], products[compression.at, compression.direction]


@st.composite
def matrices(draw):
    n, m = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    places = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, m - 1)), max_size=40))
    matrix = np.zeros((n, m))
    for k, (i, j) in enumerate(places):
        matrix[i, j] = k + 1.0
    return matrix


@given(matrices())
def test_columns_can_be_told_apart(matrix):
    rows, columns = np.nonzero(matrix)
    known, found = read_back(matrix, coloring.compress_columns(rows, columns, matrix.shape))
    np.testing.assert_array_equal(found, known)


@given(matrices())
def test_a_symmetric_matrix_can_be_read(matrix):
    n = max(matrix.shape)
    square = np.zeros((n, n))
    square[: matrix.shape[0], : matrix.shape[1]] = matrix
    square = square + square.T
    rows, columns = np.nonzero(square)
    known, found = read_back(square, coloring.compress_symmetric(rows, columns, n))
    np.testing.assert_array_equal(found, known)


def arrow(n):
    matrix = np.eye(n)
    matrix[-1] = matrix[:, -1] = 1.0
    return matrix


def band(n, width):
    return np.abs(np.subtract.outer(np.arange(n), np.arange(n))) <= width


def grid(n):
    line = 1.0 * band(n, 1)
    return np.kron(line, np.eye(n)) + np.kron(np.eye(n), line)


SYMMETRIC = {
    "diagonal": (np.eye(50), 1),
    "tridiagonal": (band(50, 1), 3),
    "pentadiagonal": (band(50, 2), 5),
    "arrow": (arrow(50), 2),
    "grid": (grid(8), 6),  # greedily; a colouring of columns takes at least 5
    "dense": (np.ones((70, 70)), 70),  # more than a word of colours
}


@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric_matrices_take_few_directions(name):
    matrix, most = SYMMETRIC[name]
    matrix = matrix * np.add.outer(np.arange(len(matrix)), np.arange(len(matrix)) + 1.0)
    rows, columns = np.nonzero(matrix)
    compression = coloring.compress_symmetric(rows, columns, len(matrix))
    assert compression.count <= most
    known, found = read_back(matrix, compression)
    np.testing.assert_array_equal(found, known)


def test_a_dense_row_takes_a_colour_for_each_column():
    matrix = np.eye(200)
    matrix[3] = 1.0
    compression = coloring.compress_columns(*np.nonzero(matrix), matrix.shape)
    assert compression.count == coloring.most_in_line(np.nonzero(matrix)[0], 200) == 200
    known, found = read_back(matrix, compression)
    np.testing.assert_array_equal(found, known)


def test_where_masks_would_outgrow_memory_each_column_is_a_direction(monkeypatch):
    monkeypatch.setattr(coloring, "MAX_WORDS", 10)
    matrix = np.ones((50, 50))
    compression = coloring.compress_symmetric(*np.nonzero(matrix), 50)
    assert compression.count == 50
