"""The columns of a tape, as kernels are given them that run its instructions."""

from __future__ import annotations

from numba.types import float64, int64, uint8, uint32

from tapegrad.kernels.cpu.records import Numbers, numbers, record

bytes_at, places_at, floats_at = numbers(uint8), numbers(uint32), numbers(float64)
"""Opcodes; operands, which are cells; values, adjoints and constants."""

ints_at = numbers(int64)
"""Parameters of a loop."""

_BYTES, _PLACES, _FLOATS = Numbers(uint8), Numbers(uint32), Numbers(float64)
COLUMNS = dict(op=_BYTES, a=_PLACES, b=_PLACES, k=_FLOATS, v=_FLOATS, g=_FLOATS)
columns_at = record("Columns", **COLUMNS)
"""A tape: opcodes, operands, constants, values and adjoints."""
