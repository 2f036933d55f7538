"""What tapegrad returns goes straight into SciPy's solvers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import (
    Bounds,
    NonlinearConstraint,
    least_squares,
    minimize,
    root,
)
from scipy.sparse import issparse
from scipy.sparse.linalg import spsolve

import tapegrad as tg

N = 12


def chained(x):
    """Return the chained Rosenbrock function, which is least at ones."""
    return np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


START = np.tile([0.5, 1.5], N // 2)


def check(result, at=1.0):
    assert result.success, result.message
    np.testing.assert_allclose(result.x, at, rtol=1e-5)


@pytest.mark.parametrize("method", ["BFGS", "L-BFGS-B", "CG", "TNC", "SLSQP"])
def test_gradients(method):
    x = np.full(N, 0.9)
    tol = 1e-14 if method in ("L-BFGS-B", "SLSQP") else 1e-9  # of values, and of gradients
    check(minimize(tg.value_and_grad(chained), x, jac=True, method=method, tol=tol))
    check(minimize(chained, x, jac=tg.grad(chained), method=method, tol=tol))
    check(minimize(chained, x, jac=tg.function(chained).grad, method=method, tol=tol))


def convex(x):
    return np.sum(np.cosh(x - 1.0)) + np.sum((x[1:] - x[:-1]) ** 2)


@pytest.mark.parametrize("method", ["trust-exact", "trust-ncg", "trust-krylov", "dogleg"])
def test_dense_hessians(method):
    f = convex if method == "dogleg" else chained  # which needs positive definite ones
    tol = 1e-6 if f is convex else 1e-8  # the conditions of the matrices are 10 and 1e3
    check(minimize(f, START, jac=tg.grad(f), hess=tg.hessian(f), method=method, tol=tol))


@pytest.mark.parametrize("method", ["Newton-CG", "trust-ncg", "trust-krylov"])
def test_products_with_hessians(method):
    found = minimize(
        chained, START, jac=tg.grad(chained), hessp=tg.hvp(chained), method=method, tol=1e-8
    )
    check(found)


def test_sparse_hessians():
    hessian = tg.sparse_hessian(chained)
    given = {"jac": tg.grad(chained), "tol": 1e-8}
    check(minimize(chained, START, hess=hessian, method="Newton-CG", **given))
    for method in ("trust-ncg", "trust-krylov"):  # which take a sparse matrix for products only
        check(minimize(chained, START, hessp=lambda x, p: hessian(x) @ p, method=method, **given))
    assert hessian.recordings == 1


def test_sparse_hessians_and_constraints():
    """Both sums of pairs are 1: the constraint's Jacobian is sparse, and so is the Hessian."""

    def sums(x):
        return x[::2] ** 2 + x[1::2]

    jacobian = tg.sparse_jacobian(sums)
    weighted = tg.sparse_hessian(lambda x, v: np.sum(v * sums(x)))
    found = minimize(
        chained,
        np.full(N, 0.5),
        jac=tg.grad(chained),
        hess=tg.sparse_hessian(chained),
        method="trust-constr",
        constraints=[NonlinearConstraint(sums, 1.0, 1.0, jac=jacobian, hess=weighted)],
        bounds=Bounds(-2.0, 2.0),
        options={"gtol": 1e-9, "xtol": 1e-12},
    )
    assert found.status in (1, 2)
    assert issparse(jacobian(found.x))
    np.testing.assert_allclose(sums(found.x), 1.0, atol=1e-8)
    # At the minimum, the gradient is a combination of the constraints' gradients.
    normal = jacobian(found.x).toarray().T
    gradient = tg.grad(chained)(found.x)
    rest = gradient - normal @ np.linalg.lstsq(normal, gradient, rcond=None)[0]
    assert np.abs(rest).max() < 1e-5


def residuals(x):
    return np.concatenate((10.0 * (x[1:] - x[:-1] ** 2), 1.0 - x[:-1]))


@pytest.mark.parametrize("jacobian", [tg.jacobian, tg.sparse_jacobian])
def test_least_squares(jacobian):
    found = least_squares(residuals, START, jac=jacobian(residuals), xtol=1e-12, ftol=1e-12)
    check(found)
    found = least_squares(residuals, START, jac=jacobian(residuals), bounds=(-3.0, 3.0))
    check(found)


def system(x):
    return np.concatenate((10.0 * (x[1:] - x[:-1] ** 2), [1.0 - x[0]]))


@pytest.mark.parametrize("method", ["hybr", "lm"])
def test_root(method):
    check(root(system, np.full(N, 0.9), jac=tg.jacobian(system), method=method))


def brusselator(t, y):
    """Return the rates of a reaction that diffuses along a line: stiff."""
    u, v = y[:N], y[N:]
    laplace_u = np.concatenate(([1.0], u[:-1])) - 2.0 * u + np.concatenate((u[1:], [1.0]))
    laplace_v = np.concatenate(([3.0], v[:-1])) - 2.0 * v + np.concatenate((v[1:], [3.0]))
    diffusion = 0.02 * (N + 1) ** 2
    reaction = u * u * v
    return np.concatenate(
        (
            1.0 + reaction - 4.0 * u + diffusion * laplace_u,
            3.0 * u - reaction + diffusion * laplace_v,
        )
    )


@pytest.mark.parametrize("method", ["BDF", "Radau"])
@pytest.mark.parametrize("kind", [tg.jacobian, tg.sparse_jacobian])
def test_stiff_equations(method, kind):
    s = np.arange(1, N + 1) / (N + 1)
    start = np.concatenate((1.0 + np.sin(2.0 * np.pi * s), np.full(N, 3.0)))
    exact = kind(brusselator, argnums=1)
    settings = {"method": method, "rtol": 1e-6, "atol": 1e-8}
    found = solve_ivp(brusselator, (0.0, 2.0), start, jac=exact, **settings)
    other = solve_ivp(brusselator, (0.0, 2.0), start, **settings)  # with finite differences
    assert found.success
    # Two solutions within tolerances of 1e-6 a step.
    np.testing.assert_allclose(found.y[:, -1], other.y[:, -1], rtol=1e-4)
    if kind is tg.sparse_jacobian:
        assert exact.recordings == 1
        assert exact.pattern.shape == (2 * N, 2 * N)


def test_sparse_solvers():
    hessian, gradient = tg.sparse_hessian(chained), tg.grad(chained)
    x = np.full(200, 0.99)
    for _ in range(6):
        x = x - spsolve(hessian(x).tocsc(), gradient(x))
    np.testing.assert_allclose(x, 1.0, rtol=1e-12)
