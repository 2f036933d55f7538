import numpy as np
import pytest

import tapegrad as tg


@pytest.fixture
def x():
    return tg.array([1.0, 2.0, 3.0])


@pytest.fixture
def c():
    """A constant array, which is no leaf that requires a gradient."""
    return tg.constant([1.0, 2.0, 3.0])


def test_leaves_answer_for_themselves(x, c):
    assert x.requires_grad
    assert not c.requires_grad
    assert x[1:].requires_grad
    assert not c[1:].requires_grad


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize(
    "depends",
    [
        lambda x, c: x * c,
        lambda x, c: c - x,
        lambda x, c: 2.0 / x[0],
        lambda x, c: x[0] ** 2 + c[0],
        lambda x, c: np.sin(x)[::-1] * 2.0,
        lambda x, c: np.sum(x * x),
        lambda x, c: c @ x,
        lambda x, c: x @ x[::-1],
        lambda x, c: np.where(c > 0.0, c, x),
        lambda x, c: np.where(c[0] > 0.0, c[0], x[0]),
        lambda x, c: np.heaviside(c, x),
        lambda x, c: np.copysign(x, c),
        lambda x, c: np.maximum(x, 5.0),
        lambda x, c: tg.array([c[0], x[0]]),
        lambda x, c: x[[2, 0]] + c[[1, 1]],
        lambda x, c: x.astype(np.float32) * 2,
        lambda x, c: np.broadcast_to(x, (2, 3)) + c[:, None][:2],
    ],
)
def test_what_depends_on_a_leaf(depends, x, c):
    assert depends(x, c).requires_grad
    assert not depends(c, c).requires_grad


@pytest.mark.parametrize(
    "flat",
    [
        lambda x, c: tg.stop_gradient(x) * c,
        lambda x, c: x.detach()[0] + c[0],
        lambda x, c: x > 0.0,
        lambda x, c: x[0] > 0.0,
        lambda x, c: np.floor(x) + np.sign(x),
        lambda x, c: np.where(x > 0.0, c, 1.0),
        lambda x, c: np.where(x, c, 1.0),
        lambda x, c: np.heaviside(x, 0.5),
        lambda x, c: np.heaviside(x[0], c[0]),
        lambda x, c: np.copysign(c, x),
        lambda x, c: np.copysign(c[0], x[0]),
        lambda x, c: np.sum(tg.stop_gradient(x)),
        lambda x, c: x.value * c,
    ],
)
def test_what_no_derivative_flows_through(flat, x, c):
    assert not flat(x, c).requires_grad


def test_the_walk_is_exact_to_the_element(x, c):
    mixed = tg.zeros(3)
    mixed[1] = x[0]
    doubled = mixed * 2.0
    assert [doubled[i].requires_grad for i in range(3)] == [False, True, False]
    assert not doubled[::2].requires_grad
    assert doubled[[2, 1]].requires_grad
    column = (mixed[:, None] + c)[:, 2]  # element i depends on mixed[i] and on c
    assert [column[i].requires_grad for i in range(3)] == [False, True, False]


def test_an_overwritten_element_is_forgotten(x):
    y = x * 2.0
    y[0] = 1.0
    assert not (y[:1] + 1.0).requires_grad
    assert (y[1:] + 1.0).requires_grad


def test_another_value_on_the_same_tape_does_not_count(x, c):
    product = x * x
    assert not (c * c).requires_grad
    assert product.requires_grad


def test_older_recordings_are_followed(x, c):
    carried, flat = x * x, c * c
    carried.sum().backward()  # closes the recording
    assert (carried[1] + 1.0).requires_grad
    assert not (flat[1] + 1.0).requires_grad
    both = tg.array([flat[0], carried[0]])
    both.sum().backward()
    assert [(both * 1.0)[i].requires_grad for i in range(2)] == [False, True]


def test_nothing_recorded_under_no_grad_requires_a_gradient(x):
    with tg.no_grad():
        y = x * x
    assert not y.requires_grad
    assert not (y + 1.0).requires_grad
    assert (y + x).requires_grad


def test_arguments_of_a_transform_require_a_gradient():
    seen = []

    def f(x, c):
        seen.extend(
            [(x * c).requires_grad, (c * c).requires_grad, tg.stop_gradient(x).requires_grad]
        )
        return np.sum(x * c)

    tg.grad(f)(np.ones(3), tg.constant(np.ones(3)))
    assert seen == [True, False, False]


def test_a_long_chain_needs_no_recursion(x):
    y, z = x[0], tg.stop_gradient(x[0])
    for _ in range(20_000):
        y, z = y * 1.0001, z * 1.0001
    assert y.requires_grad
    assert not z.requires_grad


def test_looking_changes_nothing(x):
    y = np.sum(x * x)
    assert y.requires_grad
    y.backward()
    assert x.grad.tolist() == [2.0, 4.0, 6.0]


def test_empty_arrays():
    x = tg.array(np.zeros((0, 2)))
    assert x.requires_grad
    assert not np.exp(x).requires_grad  # no element depends on anything
