"""A replay of a small program, as words and parts.

`tapegrad.programs.ready` writes the words, and `kernels/cpu/replay.py` does what they say.
"""

from __future__ import annotations

STEP = (
    "forward",  # addresses of functions
    "reverse",
    "parameters",  # of a loop: their address; 0 for instructions
    "first",  # instructions, or iterations
    "last",
    "cell",  # the first cell, and the one after the last
    "next_cell",
    "runs",  # address of the runs of cells that decisions look at
    "run_count",
    "next_look",  # how far the step comes in what else they look at
)
"""The words of a step: a stretch of instructions for the interpreters, or of a compiled loop.

Its functions are called with the address of the tape's columns: those of a loop then with its
parameters and the iterations; the interpreters with the instructions and the cell where they begin.
"""

RUN = ("start", "length", "spacing", "value")
"""The words of a run: evenly spaced cells in which decisions see one value, and its bits."""

PUT, SWEEP, CHECK, SEED, SWEEP_BACK, GIVE_VALUES, GIVE_ADJOINTS = 1, 2, 4, 8, 16, 32, 64
"""Parts of a replay, to be added up."""
