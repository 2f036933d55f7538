"""What CUDA kernels are handed: a region, and the passes around it, as runs of 64-bit words.

`tapegrad.devices.launch` writes them; the kernels of this folder read them. Places count elements
from one origin, the lowest of the addresses that a launch touches, so that a kernel sees one memory
whatever arrays it is made of. Places of index arrays count elements of the region's own copy of
them.
"""

from __future__ import annotations

SIZE, AXES, INSTRUCTIONS, ROWS, CONSTANTS, INPUTS, OUTPUTS, SUMS, EXTENTS = range(9)
"""Words of a region. Extents of the lanes follow, then in-windows, then out-windows."""

ROW, KIND, OFFSET, INDEX, BASE, STRIDES = range(6)
"""Words of a window.

A lane's place is `OFFSET` and its strides; where `INDEX` is not negative, it is
``BASE + index[INDEX + place]`` instead.
"""

SET, ADD, SUM = range(3)
"""Kinds of out-windows: replaces, adds to what is there, or one sum a thread.

Of a `SUM`, `BASE` is the row that the thread sums in, and `OFFSET` where the first thread puts it.
"""

COUNT, REDUCED, PARTS, SOURCE, ORDER, STARTS, TARGET, TARGETS, ADDS, AROUND, ALONG, REST = range(12)
"""Words of a pass that goes over elements of a buffer: how many there are, and for each of them

- how many numbers go into it (`REDUCED`), in how many `PARTS` they are added up side by side,
- where numbers lie: from `SOURCE` on, by strides; or, where `ORDER` is not negative, in the order
  ``index[ORDER + j]`` for ``j`` from ``index[STARTS + element]`` to that of the next element,
- where it is: from `TARGET` on, by strides; or, where `TARGETS` is not negative,
  ``TARGET + index[TARGETS + place]``,
- whether it `ADDS` to what is there.

`AROUND` axes count elements and `ALONG` axes the numbers of one; from `REST` on there are extents,
strides of the target and strides of the source for the former, extents and strides of the source
for the latter.
"""
