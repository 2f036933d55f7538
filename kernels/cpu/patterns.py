"""The functions of `tapegrad.kernels.patterns`, compiled."""

from __future__ import annotations

from tapegrad.kernels import patterns
from tapegrad.kernels.cpu.jit import kernel

masks_backward = kernel(patterns.masks_backward)
color_greedily = kernel(patterns.color_greedily)
