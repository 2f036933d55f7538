"""Estimates and standard errors are the published ones, and the information is the Hessian."""

import numpy as np
import pytest

import standard_errors as example


def test_the_challenger_regression_is_the_published_one():
    estimate = example.challenger()
    found = np.round([estimate.parameters, estimate.standard_errors], 4).T.tolist()
    assert found == [list(example.PUBLISHED["intercept"]), list(example.PUBLISHED["slope"])]
    assert round(-2.0 * estimate.log_likelihood, 3) == example.PUBLISHED["deviance"]
    assert np.abs(estimate.gradient).max() < 1e-8


def test_the_flights_are_read():
    temperature, damaged = example.read_flights()
    assert (temperature.size, damaged.sum(), temperature.min()) == (23, 7, 53.0)


def test_standard_errors_of_functions_of_the_parameters():
    """Against the formula of a linear function."""
    estimate = example.challenger()
    value, error = estimate.error_of(lambda b: b[0] + b[1] * 31.0)
    weights = np.array([1.0, 31.0])
    assert value == pytest.approx(weights @ estimate.parameters, rel=1e-14)
    assert error == pytest.approx(np.sqrt(weights @ estimate.covariance @ weights), rel=1e-14)


@pytest.mark.parametrize("name", ["Misra1a", "MGH09", "Nelson"])
def test_certified_standard_deviations(name):
    reference = example.read_reference_set(example.DATA / f"{name}.dat")
    found = example.nist(reference)
    assert found.digits >= 6
    assert found.certified.size == len(reference.certified)
    # The observed information is another matrix, near the expected one.
    np.testing.assert_allclose(found.observed, found.expected, rtol=0.3)
    assert not np.array_equal(found.observed, found.expected)


def test_the_command_compares_all_figures(capsys, monkeypatch):
    monkeypatch.setattr(example, "MODELS", {"Misra1a": example.MODELS["Misra1a"]})
    assert example.main() == 0
    assert "All figures are the published ones." in capsys.readouterr().out
    monkeypatch.setitem(example.PUBLISHED, "slope", (-0.25, 0.1))
    assert example.main() == 1
