"""Progress bars: on long sweeps, on loops, and only where they are wanted."""

from __future__ import annotations

import os
import sys
import threading
import types

import numpy as np
import pytest

import tapegrad as tg

HERE = os.path.basename(__file__)


@pytest.fixture
def bars(monkeypatch):
    """The bars that were made, in the place of tqdm's."""
    made = []

    class Bar:
        def __init__(self, total, desc, unit, disable):
            self.total, self.desc, self.n, self.closed = total, desc, 0, False
            if not disable:
                made.append(self)

        def update(self, steps):
            self.n += steps

        def close(self):
            self.closed = True

    monkeypatch.setitem(sys.modules, "tqdm", types.SimpleNamespace(tqdm=Bar))
    return made


def chain(x):
    for _ in range(25_000):
        x = np.sin(x) * 1.5
    return x


def test_sweeps_have_bars_inside_of_the_context(bars):
    with tg.executor("reference"):  # which looks up every 20,000 instructions
        tg.grad(chain)(0.5)
        assert bars == []
        with tg.progress(delay=0.0):
            tg.grad(chain)(0.5)
    assert [bar.desc for bar in bars] == ["forward sweep", "backward sweep"]
    assert all(bar.closed and bar.n == bar.total > 50_000 for bar in bars)


def test_sweeps_of_many_directions_have_bars(bars):
    with tg.executor("reference"), tg.progress(delay=0.0):
        for mode in ("forward", "reverse"):
            tg.jacobian(lambda x: np.stack([chain(x[0]), x[1] * 2.0]), mode=mode)(np.ones(2))
    assert [bar.desc for bar in bars] == ["forward sweep"] * 3 + ["backward sweep"]
    assert all(bar.closed for bar in bars)


def test_short_sweeps_have_none(bars):
    with tg.progress(delay=60.0):
        tg.grad(chain)(0.5)
    with tg.progress(delay=0.0):
        tg.grad(lambda x: x * x)(0.5)
    assert bars == []


def test_a_bar_is_closed_by_an_error(bars, monkeypatch):
    def fail(self, steps):
        self.n += steps
        raise KeyboardInterrupt

    with tg.executor("reference"), tg.progress(delay=0.0):
        monkeypatch.setattr(sys.modules["tqdm"].tqdm, "update", fail)
        with pytest.raises(KeyboardInterrupt):
            tg.grad(chain)(0.5)
    assert [bar.closed for bar in bars] == [True]
    assert tg.grad(lambda x: x * x)(3.0) == 6.0


def test_other_threads_have_none(bars):
    with tg.executor("reference"), tg.progress(delay=0.0):
        thread = threading.Thread(target=lambda: tg.grad(chain)(0.5))
        thread.start()
        thread.join()
    assert bars == []


def loop(x, **options):
    return tg.checkpoint_loop(lambda x, i: np.sin(x), x, 20, snapshots=3, block=2, **options)[0]


@pytest.mark.parametrize("how", ["argument", "context"])
def test_loops_have_bars(bars, how):
    if how == "argument":
        tg.grad(lambda x: loop(x, progress=True))(0.5)
    else:
        with tg.progress():
            tg.grad(loop)(0.5)
            tg.grad(lambda x: loop(x, progress=False))(0.5)
    assert [bar.desc for bar in bars] == ["checkpoint_loop, forward", "checkpoint_loop, backward"]
    assert all(bar.closed and bar.n == bar.total for bar in bars)


def test_tqdm_itself(capsys):
    pytest.importorskip("tqdm")
    with tg.executor("reference"), tg.progress(delay=0.0):
        tg.grad(chain)(0.5)
        tg.grad(loop)(0.5)
    shown = capsys.readouterr().err
    assert all(what in shown for what in ("backward sweep", "checkpoint_loop, forward", "20/20"))


def test_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=rf"pip install tqdm.*\({HERE}"), tg.progress():
        pass
    with pytest.raises(ImportError, match=rf"pip install tqdm.*\({HERE}"):
        loop(1.0, progress=True)
    assert tg.grad(loop)(1.0) != 0.0
