"""The functions of `tapegrad.kernels.patterns`, compiled."""

from __future__ import annotations

from tapegrad.kernels import patterns
from tapegrad.kernels.cpu.jit import kernel

unite = kernel(patterns.unite, patterns.merge)
collect = kernel(patterns.collect)
spread = kernel(patterns.spread)
