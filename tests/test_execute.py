"""Executors: which one answers, how sweeps are resumed and interrupted, what a cold start costs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import ClassVar

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import execute
from tapegrad.ops.structural import STRUCTURAL
from tapegrad.tape import recorder


@pytest.fixture(autouse=True)
def fresh_tape():
    recorder.turn_over()
    yield
    recorder.turn_over()


def python(code, **environment):
    """Run Python code in a fresh process and return what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


def loop(x, n):
    y = x
    for _ in range(n):
        y = np.sin(y) * 1.5 + x * 0.1
    return y


def test_small_work_does_not_import_numba():
    out, err = python(
        "import sys, numpy as np, tapegrad as tg\n"
        "print(tg.grad(lambda x: np.sum(np.sin(x) * x))(np.ones(3)))\n"
        "print('numba' in sys.modules)"
    )
    assert out.split() == ["[1.38177329", "1.38177329", "1.38177329]", "False"]
    assert err == ""


def test_much_work_switches_to_compiled_kernels_in_the_middle(monkeypatch):
    monkeypatch.setattr(execute, "_loaded", {"scalar": False, "lanes": False})
    monkeypatch.setattr(execute, "_work", {"scalar": 0, "lanes": 0})
    monkeypatch.setattr(execute, "_stored", {"scalar": False})
    monkeypatch.setattr(execute, "REFERENCE_WORK", 50_000)
    x = tg.array(0.5)
    y = loop(x, 2_000)
    y.backward()
    reference = x.grad
    assert not execute._loaded["scalar"]
    for _ in range(4):
        x.zero_grad()
        y = loop(x, 2_000)
        y.backward()
    assert execute._loaded["scalar"]
    assert x.grad == pytest.approx(reference, rel=1e-13)


@pytest.mark.parametrize("stored", [True, False])
def test_kernels_that_lie_ready_are_loaded_soon(monkeypatch, stored):
    """A sweep by regions asks once for all of its cells, and counts as that many."""
    monkeypatch.setattr(execute, "_loaded", {**execute._loaded, "regions": False})
    monkeypatch.setattr(execute, "_work", {**execute._work, "regions": 0})
    monkeypatch.setattr(execute, "_stored", {"regions": stored})
    program = tg.record(lambda v: np.exp(v[0]), np.ones(1))
    samples = np.linspace(0.0, 1.0, 60_000)[:, None]
    calls = 0
    while not execute._loaded["regions"]:
        program.map(samples)
        calls += 1
    assert calls == 1 if stored else 2 < calls < execute.REFERENCE_WORK / samples.size


def test_executors_agree_and_can_be_chosen():
    def f(x):
        return loop(x[0] * x[1], 50)

    x = np.array([0.3, 0.8])
    with tg.executor("reference"):
        expected = tg.grad(f)(x)
    with tg.executor("compiled"):
        np.testing.assert_allclose(tg.grad(f)(x), expected, rtol=1e-13)
    with pytest.raises(ValueError, match="'reference' or 'compiled'"), tg.executor("gpu"):
        pass


def test_values_are_computed_once_and_only_when_asked():
    x = tg.array(2.0)
    y = x * x
    tape = y.tape
    assert tape.done == 0
    assert y.value == 4.0
    done = tape.done
    z = y * 3.0
    assert tape.done == done
    assert z.value == 12.0
    assert tape.done == tape.n


@pytest.mark.parametrize("sweep", ["forward", "reverse"])
def test_ctrl_c_interrupts_a_long_sweep_and_leaves_the_tape_usable(sweep):
    execute.load("scalar")
    x = tg.array(0.5)
    y = loop(x, 100)
    tape = y.tape
    y.backward()
    expected = x.grad
    # A long tape at little cost: the same instructions again and again, each on the last result.
    long = tg.array(0.5)
    z = long
    for _ in range(1_000_000):
        z = np.sin(z)
    if sweep == "reverse":
        assert np.isfinite(z.value)

    class Interrupt(Exception):
        pass

    # A kernel call holds the signal back until it returns, as it does Ctrl-C.
    import signal

    def handler(signum, frame):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGINT, handler)
    sent = []

    def send():
        sent.append(time.perf_counter())
        signal.raise_signal(signal.SIGINT)

    try:
        for delay in (0.002, 0.01):
            timer = threading.Timer(delay, send)
            try:
                timer.start()  # on a busy machine, the signal comes before this has returned
                for _ in range(100):
                    if sweep == "forward":
                        z.tape.done = z.tape.done_cell = 0
                        assert z.value is not None
                    else:
                        z.backward()
            except KeyboardInterrupt:
                assert time.perf_counter() - sent[-1] < 0.2
            else:
                pytest.fail("the sweep was not interrupted")
            finally:
                timer.join()
    finally:
        signal.signal(signal.SIGINT, old)
    long.zero_grad()
    z.backward()
    derivative = long.grad
    long.zero_grad()
    z.backward()
    assert long.grad == derivative
    x.zero_grad()
    y.backward()
    assert x.grad == expected
    assert tape.released is False


def test_strict_visits_zero_adjoints():
    x = tg.array([0.0, 1.0])
    y = (np.sqrt(x) * np.array([0.0, 1.0])).sum()
    y.backward()
    np.testing.assert_array_equal(x.grad, [0.0, 0.5])
    x.zero_grad()
    y.backward(strict=True)
    assert np.isnan(x.grad[0])
    assert x.grad[1] == 0.5


def test_without_a_writable_cache_directory_it_works_and_says_so_once(tmp_path):
    code = (
        "import numpy as np, tapegrad as tg\n"
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from tapegrad.kernels.cpu.jit import kernel\n"
        "f = kernel(lambda x: x + 1.0)\n"
        "g = kernel(lambda x: x + 2.0)\n"
        "print(f(1.0), g(1.0))\n"
    )
    out, err = python(code)
    assert out.split() == ["2.0", "3.0"]
    assert err.count("no writable cache directory") == 1


class Counting(np.ndarray):
    """An ndarray that notes the shapes of the products that it takes part in."""

    products: ClassVar[list[tuple[tuple[int, ...], tuple[int, ...]]]] = []

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        plain = [np.asarray(x) for x in inputs]
        if ufunc is np.matmul:
            self.products.append((plain[0].shape, plain[1].shape))
        return getattr(ufunc, method)(*plain, **kwargs).view(Counting)


def test_a_linear_network_is_swept_by_products_of_vectors_only(monkeypatch):
    row = STRUCTURAL["matmul"]
    rule = row.vjp
    monkeypatch.setattr(
        row, "vjp", lambda *args: rule(*[np.asarray(x).view(Counting) for x in args])
    )
    rng = np.random.default_rng(0)
    v, x, t = rng.normal(size=9), rng.normal(size=9), 0.7
    counts = []
    for depth in (2, 4, 8):
        weights = [rng.normal(size=(9, 9)) / 3.0 for _ in range(depth)]

        def loss(weights):
            y = v
            for w in weights:
                y = y @ w
            y = y @ x
            return (y - t) ** 2 / 2

        rights = [x]
        for w in reversed(weights):
            rights.append(w @ rights[-1])
        rights.reverse()
        left, y = v, v @ rights[0]
        Counting.products.clear()
        gradients = tg.grad(loss)(weights)
        for gradient, w, right in zip(gradients, weights, rights[1:], strict=True):
            np.testing.assert_allclose(gradient, (y - t) * np.outer(left, right), rtol=1e-13)
            left = left @ w
        assert all(len(a) == 1 or len(b) == 1 for a, b in Counting.products)
        counts.append(len(Counting.products))
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0]) > 0
