import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tapegrad as tg
from tapegrad.batches import runs as batches
from tapegrad.programs import function as programs_of_functions

RNG = np.random.default_rng(5)
X = RNG.normal(size=(9, 3))
V = RNG.normal(size=(9, 3))

# Lanes and replays do the same operations; sums may be in another order, and exp, say, in another
# implementation: some units in the last place.
TOLERANCE = 1e-13


def smooth(x):
    return np.sum(np.sin(x) * x) + np.exp(x[0] * x[1]) / (2.0 + x[2] * x[2])


def branchy(x):
    total = x[0] * x[1]
    while total > 0.5:
        total = total * 0.6 + 0.01 * x[2]
    return np.sin(total) if x[2] > 0.0 else total * x[2]


def structured(point, rate, n):
    return {"sum": point["a"] * rate**n, "all": [point["b"], np.sum(point["b"]) * rate]}


def each(function, *columns):
    return np.stack([function(*row) for row in zip(*columns, strict=True)])


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.fixture
def program():
    return tg.record(smooth, X[0])


# -- results ---------------------------------------------------------------------------------------


def test_values(program):
    close(program.map(X), each(smooth, X))


def test_gradients(program):
    values, gradients = program.map.value_and_grad(X)
    close(values, each(smooth, X))
    close(gradients, each(tg.grad(smooth), X))
    close(program.map.grad(X), gradients)
    assert gradients.flags.c_contiguous
    assert gradients.flags.writeable


def test_hessians_and_their_products(program):
    hessians = each(tg.hessian(smooth), X)
    close(program.map.hessian(X), hessians)
    close(program.map.hvp(X, V), np.einsum("nij,nj->ni", hessians, V))


def test_products_with_vectors_in_structures():
    def f(p):
        return p["a"] * p["a"] * np.sum(p["b"] ** 3)

    points, vectors = {"a": X[:, 0], "b": X}, {"a": V[:, 0], "b": V}
    found = tg.record(f, {"a": 1.0, "b": X[0]}).map.hvp(points, vectors)
    total = np.sum(X**3, axis=1)
    close(found["a"], 2.0 * total * V[:, 0] + 6.0 * X[:, 0] * np.einsum("ij,ij->i", X**2, V))
    with pytest.raises(ValueError, match=r"shape \(2,\) in each sample"):
        tg.record(smooth, X[0]).map.hvp(X, V[:, :2])


def test_jacobians():
    def f(x):
        return np.cumsum(x * x) * x[0]

    program = tg.record(f, X[0])
    close(program.map.jacobian(X), each(tg.jacobian(f), X))


def test_a_vector_function_of_matrices():
    A = RNG.normal(size=(3, 3))

    def f(x, m):
        return np.max(m @ x) + np.min(A @ x) * np.prod(m[0])

    program = tg.record(f, X[0], A)
    M = RNG.normal(size=(9, 3, 3))
    value, (by_x, by_m) = program.map.value_and_grad(X, M, argnums=(0, 1))
    close(value, each(f, X, M))
    close(by_x, each(tg.grad(f), X, M))
    close(by_m, each(tg.grad(f, argnums=1), X, M))


def test_structures_and_parts_that_are_no_arrays():
    point = {"a": X[:, 0], "b": X}
    program = tg.record(structured, {"a": 1.0, "b": X[0]}, 1.5, 3)
    found = program.map(point, 2.0, 3, in_axes=(0, None, None))
    close(found["sum"], 8.0 * X[:, 0])
    close(found["all"][0], X)
    close(found["all"][1], 2.0 * X.sum(axis=1))


def test_axes_of_arguments(program):
    expected = program.map(X)
    close(program.map(np.asfortranarray(X)), expected)
    close(program.map(X.T, in_axes=1), expected)
    close(program.map(X[::-1], in_axes=(0,)), expected[::-1])
    close(program.map(np.repeat(X, 2, axis=0)[::2]), expected)
    close(program.map(X.tolist()), expected)
    close(program.map(X.astype(">f8")), expected)
    f = tg.record(lambda p, y: p["u"] * y + p["w"], {"u": 1.0, "w": 1.0}, 1.0)
    axes = ({"u": 0, "w": None}, 1 - 1)
    close(f.map({"u": X[:, 0], "w": 2.0}, X[:, 1], in_axes=axes), X[:, 0] * X[:, 1] + 2.0)


def test_integers_are_taken_for_floats(program):
    whole = np.arange(12).reshape(4, 3)
    close(program.map(whole), each(smooth, whole.astype(float)))


def test_float32():
    program = tg.record(lambda x: np.sum(x * x), X[0].astype(np.float32))
    values, gradients = program.map.value_and_grad(X.astype(np.float32))
    assert values.dtype == gradients.dtype == np.float32
    np.testing.assert_allclose(gradients, 2.0 * X, rtol=1e-6)  # twelve ulp of float32


def test_lanes_of_single_precision_round_as_the_program_does():
    points = RNG.uniform(0.5, 2.0, (500, 3)).astype(np.float32)

    def f(x):
        y = x[0] * x[1] + 0.1
        y = (y - x[2] / 3) * (y + np.sqrt(x[0])) if y > 0.9 else -y * x[1]
        return y * abs(x[2] - 1), np.maximum(y, x[0])

    program = tg.record(f, points[0])
    with tg.executor("compiled"):
        found = program.map(points)
        assert program.map.paths == 2
    task = batches.Task("value")
    assert task.lanes(program, single=True).real == "float32"
    for i in range(500):
        alone = tg.record(f, points[i])(points[i])
        for one, many in zip(alone, found, strict=True):
            assert many.dtype == np.float32
            assert np.float32(one) == many[i]


def test_gradients_of_single_precision():
    points = RNG.uniform(0.5, 2.0, (500, 3)).astype(np.float32)

    def f(x):
        return np.sum(np.tanh(x) * np.exp(-x) ** 2) / np.max(x)

    program = tg.record(f, points[0])
    values, gradients = program.map.value_and_grad(points)
    assert batches.Task("value_and_grad").lanes(program, single=True).real == "float32"
    assert values.dtype == gradients.dtype == np.float32
    double = points.astype(np.float64)
    np.testing.assert_allclose(values, each(f, double), rtol=2e-6)  # some roundings of 6e-8
    np.testing.assert_allclose(gradients, each(tg.grad(f), double), rtol=2e-5, atol=1e-6)
    # Arguments of double precision are not rounded.
    assert program.map.grad(double).dtype == gradients.dtype
    strided = np.zeros((500, 6), np.float32)
    strided[:, ::2] = points
    np.testing.assert_array_equal(program.map.grad(strided[:, ::2]), gradients)


def test_results_that_depend_on_nothing():
    program = tg.record(lambda x: (x, 3.0, np.arange(2.0)), 1.0)
    values, three, row = program.map(X[:, 0])
    close(values, X[:, 0])
    close(three, np.full(9, 3.0))
    close(row, np.tile(np.arange(2.0), (9, 1)))


def test_what_no_region_runs_is_run_sample_by_sample(monkeypatch):
    monkeypatch.setattr("tapegrad.batches.unroll.MAX_CELLS", 2)
    program = tg.record(smooth, X[0])
    assert batches.Task("value").lanes(program) is None
    values, gradients = program.map.value_and_grad(X)
    close(values, each(smooth, X))
    close(gradients, each(tg.grad(smooth), X))
    close(program.map.hvp(X, V), np.einsum("nij,nj->ni", program.map.hessian(X), V))


def test_long_programs_run_in_parts_once_they_have_met_enough_samples(monkeypatch):
    monkeypatch.setattr("tapegrad.batches.unroll.MAX_CELLS", 20)
    monkeypatch.setattr("tapegrad.batches.lanes.MOST_ROWS", 40)
    monkeypatch.setattr(batches, "LONG_SAMPLES", 15)

    def f(x):
        y = x
        for _ in range(20):
            y = np.sin(y) * x + y * y * 0.1
        return np.sum(y) if y[0] > -1.0 else y[1]

    program = tg.record(f, X[0])
    task = batches.Task("value_and_grad")
    for samples in (9, 18):  # the second time by regions
        values, gradients = program.map.value_and_grad(X)
        close(values, each(f, X))
        close(gradients, each(tg.grad(f), X))
        lanes = task.lanes(program)
        assert (lanes is None) == (samples < 15)
    assert lanes.waiting
    more = np.tile(X, (300, 1))
    with tg.executor("compiled"):
        values, gradients = program.map.value_and_grad(more, memory=1 << 12)
    close(values, each(f, more))
    close(gradients, np.tile(each(tg.grad(f), X), (300, 1)))


# -- ways through the code -------------------------------------------------------------------------


def test_samples_take_their_own_way():
    program = tg.record(branchy, np.array([0.1, 0.1, 1.0]))
    points = RNG.uniform(-2.0, 2.0, (60, 3))
    values, gradients = program.map.value_and_grad(points)
    close(values, each(branchy, points))
    close(gradients, each(tg.grad(branchy), points))
    assert program.map.paths == _ways(points) > 5


def _ways(points):
    found = set()
    for x in points:
        total, steps = x[0] * x[1], 0
        while total > 0.5:
            total, steps = total * 0.6 + 0.01 * x[2], steps + 1
        found.add((steps, x[2] > 0.0))
    return len(found)


def test_more_ways_than_are_kept(monkeypatch):
    monkeypatch.setattr(batches, "WAYS", 3)
    program = tg.record(branchy, np.array([0.1, 0.1, 1.0]))
    points = RNG.uniform(-2.0, 2.0, (40, 3))
    close(program.map(points), each(branchy, points))
    assert program.map.paths == _ways(points)


def test_a_number_that_is_looked_at():
    def f(x):
        return x * int(np.floor(x)) if x == x else -1.0 * x

    program = tg.record(f, 2.5)
    points = np.array([2.5, 0.1, 2.2, -1.5, 0.3])
    close(program.map(points), points * np.floor(points))
    assert program.map.paths == 3


def test_decisions_by_functions():
    def f(x):
        return x[np.argmax(x)] * x[0]

    program = tg.record(f, X[0])
    close(program.map.grad(X), each(tg.grad(f), X))
    assert program.map.paths == len(set(X.argmax(axis=1).tolist()))


def test_a_function_of_programs_has_batches():
    function = tg.function(branchy)
    points = RNG.uniform(-2.0, 2.0, (20, 3))
    close(function.map(points), each(branchy, points))
    known = function.recordings
    close(function.map(points), each(branchy, points))
    assert function.recordings == known == function.map.paths


def test_a_loaded_program_names_the_first_sample_that_it_cannot_run(tmp_path):
    program = tg.record(lambda x: x * x if x > 0.0 else -x, 1.0)
    program.save(tmp_path / "p.tape")
    loaded = tg.load(tmp_path / "p.tape")
    close(loaded.map(np.array([1.0, 2.0])), [1.0, 4.0])
    out = np.full(3, 7.0)
    with pytest.raises(tg.ControlFlowChanged, match=r"sample 1: .*True when"):
        loaded.map(np.array([1.0, -1.0, -2.0]), out=out)
    assert (out == 7.0).all()  # nothing half-written


def test_a_decision_that_depends_on_the_last_digit(monkeypatch):
    """Executors differ in the last digit of exp: a recording may decide otherwise than lanes."""

    def f(x):
        return x + 1.0 if np.exp(x) > 2.0 else x - 1.0

    program = tg.record(f, 3.0)
    real = tg.Program

    def other(g, args, kwargs):  # what a recording for 0.0 would have decided, had exp been wrong
        return real(g, (3.0,), kwargs)

    monkeypatch.setattr(programs_of_functions, "Program", other)
    with pytest.raises(tg.ControlFlowChanged):  # and not for ever
        program.map(np.array([0.0, 4.0]))


# -- lanes -----------------------------------------------------------------------------------------


def test_nan_and_inf_stay_in_their_lanes(program):
    points = X.copy()
    points[4, 1], points[6, 0] = np.nan, np.inf
    values, gradients = program.map.value_and_grad(points)
    clean = np.delete(np.arange(9), [4, 6])
    close(values[clean], each(smooth, X[clean]))
    close(gradients[clean], each(tg.grad(smooth), X[clean]))
    assert np.isnan(values[4])
    assert np.isnan(gradients[4]).any()


def test_threads_and_chunks_change_no_bit(program):
    points = RNG.normal(size=(5000, 3))
    before = tg.get_num_threads()
    with tg.executor("compiled"):
        expected = program.map.value_and_grad(points)
        try:
            for threads in (1, 2, 3):
                tg.set_num_threads(threads)
                found = program.map.value_and_grad(points)
                assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
        finally:
            tg.set_num_threads(before)
        found = program.map.value_and_grad(points, memory=1)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
        backwards = program.map.grad(points[::-1])
    assert np.array_equal(backwards[::-1], expected[1])
    close(expected[0], points_of(smooth, points))


def points_of(f, points):
    return np.array([f(x) for x in points])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_any_shape(n, k, seed):
    points = np.random.default_rng(seed).normal(size=(n, k, 2))

    def f(x):
        return np.sum(x[:, 0] * np.tanh(x[:, 1])) + x[0, 0] ** 2

    program = tg.record(f, points[0])
    close(program.map.grad(points), each(tg.grad(f), points))


# -- where results go ------------------------------------------------------------------------------


def test_a_batch_larger_than_its_chunks_goes_through_files(tmp_path, program):
    shape = (3000, 3)
    source = np.memmap(tmp_path / "x", np.float64, "w+", shape=shape)
    source[:] = RNG.normal(size=shape)
    target = np.memmap(tmp_path / "g", np.float64, "w+", shape=shape)
    found = program.map.grad(np.memmap(tmp_path / "x", np.float64, "r", shape=shape), out=target)
    assert found is target
    close(target[::500], each(tg.grad(smooth), source[::500]))


def test_out_of_another_dtype_or_order(program):
    expected = program.map.grad(X)
    single = np.empty(X.shape, np.float32)
    program.map.grad(X, out=single)
    np.testing.assert_allclose(single, expected, rtol=1e-6)  # rounding to float32
    turned = np.empty(X.shape[::-1]).T
    program.map.grad(X, out=turned)
    close(turned, expected)


def test_progress(program, capsys):
    pytest.importorskip("tqdm")
    program.map(X, progress=True)
    assert "batch" in capsys.readouterr().err


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((X[:0],), {}, ValueError, "no samples"),
        ((X, X[:4]), {}, ValueError, "ragged batch: argument 0 has 9 samples and argument 1 has 4"),
        ((X, X[0]), {"in_axes": (None, None)}, ValueError, "no argument has an axis of samples"),
        ((X, X), {"in_axes": 3}, ValueError, "argument 0 has 2 axes"),
        ((X, X), {"in_axes": (0,)}, ValueError, "an entry for each of the 2 positional"),
        ((X, X), {"in_axes": ("a", 0)}, ValueError, r"in_axes\[0\] is 'a'"),
        ((X, X), {"in_axes": True}, ValueError, "not True"),
        ((X, 1.0), {}, ValueError, "argument 1 is a single number"),
        ((X, X[:, :2]), {}, ValueError, r"argument 1 has shape \(2,\)"),
        ((X,), {}, TypeError, "2 positional arguments"),
        ((X, X), {"in_axis": X}, TypeError, "no keyword arguments, and got .* in_axis"),
        ((X, X), {"in_axis": 0}, TypeError, "got the keyword arguments in_axis"),
        ((X, X), {"memory": "1G"}, TypeError, "a number of bytes, not '1G'"),
        ((list(X.T), X), {}, ValueError, "list of arrays, .* np.stack"),
        ((X, X.astype(complex)), {}, TypeError, "dtype complex128"),
        ((X, np.array([X[0], X[1, :2]] * 4 + [0], object)), {}, TypeError, "make no batch"),
        ((X, X), {"out": np.empty(8)}, ValueError, r"shape \(8,\) where the result has \(9,\)"),
        ((X, X), {"out": np.empty(9, int)}, ValueError, "dtype int64"),
        ((X, X), {"out": [0.0]}, ValueError, "structure"),
        ((X, X), {"out": 0.0}, TypeError, "out holds a float"),
        ((X, X), {"out": X[:, 0]}, ValueError, "shares memory"),
    ],
)
def test_bad_input_is_named(args, options, error, message):
    program = tg.record(lambda x, y: np.sum(x * y), X[0], X[0])
    before = X.copy()
    with pytest.raises(error, match=message):
        program.map(*args, **options)
    assert np.array_equal(before, X)


def test_ways_with_results_of_different_shapes():
    program = tg.record(lambda x: x if x[0] > 0.0 else x[:2], np.ones(3))
    with pytest.raises(ValueError, match="different form"):
        program.map(X)


def test_tracked_arguments_belong_to_vmap(program):
    with pytest.raises(TypeError, match=r"tg\.vmap"):
        tg.grad(lambda x: np.sum(program.map(x)))(X)
