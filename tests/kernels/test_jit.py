"""Kernels compile without a cache where there is no place for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tapegrad.kernels.cpu import jit


def add(x: float, y: float) -> float:
    return x + y


def without_cache(**options: Any) -> Callable[[Any], Any]:
    if options.get("cache"):
        raise RuntimeError("cannot cache function 'add': no locator available for file 'add.py'")
    return lambda function: (function, options)


def test_without_a_cache_the_user_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jit, "njit", without_cache)
    monkeypatch.setattr(jit, "_warned", False)
    for _ in range(2):
        function, options = jit.kernel(add)
        assert function is add
        assert not options.get("no_cpython_wrapper")
    assert capsys.readouterr().err.count("no writable cache directory") == 1


def doubled(x: Any) -> float:
    return add(x[0], x[0])


def test_parts_are_compiled_with_a_kernel() -> None:
    twice = jit.kernel(doubled, add)
    assert twice(np.array([3.0])) == doubled([3.0]) == 6.0
    assert twice.py_func.__globals__["add"] is not add
    assert doubled.__globals__["add"] is add


def test_other_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**options: Any) -> Any:
        raise RuntimeError("something else")

    monkeypatch.setattr(jit, "njit", broken)
    with pytest.raises(RuntimeError, match="something else"):
        jit.kernel(add)
