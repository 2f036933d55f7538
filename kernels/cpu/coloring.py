"""The functions of `tapegrad.kernels.coloring`, compiled."""

from __future__ import annotations

from tapegrad.kernels import coloring
from tapegrad.kernels.cpu.jit import kernel

color_columns = kernel(coloring.color_columns)
color_star = kernel(coloring.color_star)
