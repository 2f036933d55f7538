"""A small grid: convergence, both branches, and the fold."""

import numpy as np
import pytest

import bratu as example


@pytest.fixture(scope="module")
def problem():
    return example.Bratu(24)


def test_newton_converges_quadratically(problem):
    solution = problem.solve(6.0, np.zeros(24 * 24))
    assert solution.converged
    assert 1.7 < example.order_of(solution.norms) < 2.5
    assert problem.pattern.shape == (576, 576)
    assert len(problem.pattern.columns) == 5 * 576 - 4 * 24


def test_the_fold_is_where_the_literature_has_it(problem):
    """Second-order differences: on half the spacing, a quarter of the error."""
    errors = [example.FOLD - n_problem.fold()[0] for n_problem in (example.Bratu(11), problem)]
    assert 0 < errors[1] < 3 * example.FOLD / 25**2
    assert errors[0] / errors[1] == pytest.approx((25 / 12) ** 2, rel=0.1)


def test_there_are_two_solutions(problem):
    lower = problem.solve(6.0, np.zeros(24 * 24))
    high = problem.through(2.5, problem.through(1.6, problem.through(1.3, lower)))
    upper = problem.solve(high.strength, high.u)
    again = problem.solve(high.strength, np.zeros(24 * 24))
    assert upper.converged
    assert again.converged
    assert upper.u[problem.centre] == pytest.approx(2.5, rel=1e-6)
    assert again.u[problem.centre] < 1.3


def test_the_command_says_whether_it_worked(capsys, monkeypatch):
    assert example.main(["--points", "12"]) == 0
    assert "converges with order 2" in capsys.readouterr().out
    monkeypatch.setattr(example, "FOLD", 7.0)
    assert example.main(["--points", "12"]) == 1
