"""The passes of `tapegrad.kernels.simplify`, compiled."""

from __future__ import annotations

from tapegrad.kernels import simplify
from tapegrad.kernels.cpu.jit import kernel

canonicalise = kernel(simplify.canonicalise)
mark_live = kernel(simplify.mark_live)
remap = kernel(simplify.remap)
move_together = kernel(simplify.move_together)
sort_keys = kernel(simplify.sort_keys)
