"""The passes of `tapegrad.kernels.simplify`, compiled."""

from __future__ import annotations

from tapegrad.kernels import simplify
from tapegrad.kernels.cpu.jit import kernel

canonicalise = kernel(simplify.canonicalise, simplify.name_operands, simplify.find_equal)
mark_live = kernel(simplify.mark_live, simplify.mark_lanes)
move_together = kernel(simplify.move_together, simplify.rename_lanes)
remap = kernel(simplify.remap)
sort_keys = kernel(simplify.sort_keys)
