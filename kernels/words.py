"""What the executor of regions is handed: a region as a run of 64-bit words.

`tapegrad.regions.lowering` writes them and `kernels/cpu/regions.py` reads them; the generator puts
the numbers of this file into that module. A position in the words is called a word, the address of
something in memory an address.
"""

from __future__ import annotations

HEADER = (
    "SIZE",  # lanes
    "BLOCK",  # lanes that run together, a multiple of the lanes of a vector
    "CHUNK",  # lanes that one thread does in a row; a number that depends on the region only
    "CHUNKS",
    "PEELED",  # whether a chunk's first block ends where lines of the results begin
    "CODE",  # address
    "INSTRUCTIONS",
    "OWN",  # address of a function that has this code compiled, or 0
    "CAREFUL",  # address of code that is run where a nan came out, or 0
    "CAREFUL_INSTRUCTIONS",
    "ROWS",
    "JOINS",  # groups of overlapping windows that the function above adds up itself
    "CONSTANTS",
    "VALUES",  # address of the constants
    "INPUTS",  # their windows follow the header, then those of the outputs
    "OUTPUTS",
    "AXES",
    "SHAPE",  # word of the first extent
)
"""The words of a region."""

WINDOW = (
    "KIND",
    "ROW",
    "BUFFER",
    "OFFSET",
    "INDEX",  # buffer of an index array
    "BASE",
    "HOW",  # one of `HOWS`: what lanes do to the element that they meet
    "STRIDES",  # word of the first stride
    "PLACED",  # whether the row itself lies there while a whole block runs
    "STREAMED",  # whether it is written past the cache, where it is aligned
    "ALIGNED",  # whether it is copied unless its vectors begin where lines of the cache do
    "AHEAD",  # whether the lines of the next block are asked for while this one is computed
    "ZERO",  # whether its elements are made zero before all else
    "LOW",  # the lowest place it reaches
    "EXTENT",  # places from there to the highest
    "EXTRA",  # buffer beside the user's: partial sums, or results that wait
    "SHIFT",  # overlapping windows: places beyond the lowest of the group
    "HALO",  # and how far the group reaches beyond its lanes
    "JOINED",  # whether a region's own function adds the group up itself
)
"""The words of a window."""

IN_KINDS = ("IN_PLACE", "UNIFORM", "WALKED", "GATHERED")
OUT_KINDS = (
    "FLAT",  # consecutive elements
    "SUM",  # all lanes to one element: a vector of partial sums a chunk
    "WALK",  # each lane to an element of its own, or all chunks by one thread
    "PRIVATE",  # added to a copy a chunk; copies are added up in order
    "LATER",  # put aside, and carried out by one thread in the end
    "LEAD",  # of windows on consecutive elements that overlap, the highest
    "FOLLOW",  # and the others, which add to what it has set
)
HOWS = ("SET", "ADD", "MAXIMUM", "MINIMUM")
"""As in `tapegrad.regions.region`."""

HEADER_WORDS = len(HEADER)
WINDOW_WORDS = len(WINDOW)
VECTOR = 128
"""Bytes of a vector."""
LINE = 64
"""Bytes of a line of the cache; a vector that lies across two takes twice as long to load."""
PAD = 64
"""Bytes between rows: at distances of a power of two they would meet in one place of the cache."""
