import numpy as np
import pytest

from tapegrad.batches.samples import Samples

X = np.arange(12.0).reshape(4, 3)


def test_samples_are_handed_out_one_by_one():
    samples = Samples(
        (X, {"w": X.T, "name": "a"}, 3), {"k": X[:, 0]}, (0, {"w": 1, "name": None}, 0)
    )
    assert samples.n == 4
    (x, p, three), kwargs = samples.sample(2)
    np.testing.assert_array_equal(x, X[2])
    np.testing.assert_array_equal(p["w"], X[2])
    assert (p["name"], three, kwargs["k"]) == ("a", 3, X[2, 0])
    assert samples.mapped == [True, True, False, False, True]


def test_nothing_is_copied():
    samples = Samples((X, X.T), {}, (0, 1))
    assert all(np.shares_memory(part, X) for part in samples.parts)


def test_integers_with_samples_are_no_inputs():
    samples = Samples((X, np.arange(4)), {}, 0)
    assert samples.fixed == [1]
    value = samples.sample(3)[0][1]
    assert value == 3
    assert type(value) is int


@pytest.mark.parametrize(
    ("in_axes", "message"),
    [
        ((0, 0, 0), "each of the 2"),
        ((0, (0, 0)), r"in_axes\[1\] is \(0, 0\)"),
        ((0, {"v": 0}), "follows the value's"),
        ((0, {"w": 5}), r"argument 1\['w'\] has 2 axes"),
    ],
)
def test_axes_that_do_not_fit(in_axes, message):
    with pytest.raises(ValueError, match=message):
        Samples((X, {"w": X}), {}, in_axes)
