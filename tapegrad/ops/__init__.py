"""The operation table: one row an operation, pure data.

`TABLE` holds the elementwise rows and `tapegrad.ops.structural.STRUCTURAL` the structural ones. The
table is built and checked when it is first asked for: generator, tests and tools need it, a running
program does not, because what it uses was generated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tapegrad.ops.row import Row

    TABLE: dict[str, Row]

__all__ = ["TABLE"]


def __getattr__(name: str) -> object:
    if name == "TABLE":
        from tapegrad.ops.table import TABLE

        return TABLE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
