"""Generates the interpreters and their companions from the operation table.

``python -m tapegrad.kernels.generate`` writes what changed; with ``--check`` it writes nothing,
names the files that are stale, and exits with status 1 if there are any.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tapegrad.kernels.emit import (
    adjoints,
    cuda,
    lanes,
    numbering,
    opcodes,
    page,
    partials,
    regions,
    rules,
    scalar,
    traced,
    vector,
)
from tapegrad.ops.structural import STRUCTURAL
from tapegrad.ops.table import FAMILIES, TABLE

KERNELS = Path(__file__).parent


def outputs() -> dict[Path, str]:
    """Return the text of every generated file."""
    numbered = numbering.number(TABLE)
    return {
        KERNELS / "adjoints.py": adjoints.emit(TABLE, numbered),
        KERNELS / "opcodes.py": opcodes.emit(TABLE, numbered),
        KERNELS / "partials.py": partials.emit(TABLE),
        KERNELS / "rules.py": rules.emit(TABLE, numbered),
        KERNELS / "traced.py": traced.emit(TABLE),
        KERNELS.parent / "docs" / "operations.md": page.emit(FAMILIES, STRUCTURAL),
        KERNELS / "cpu" / "lanes.py": lanes.emit(TABLE, numbered),
        KERNELS / "cpu" / "regions.py": regions.emit(TABLE, numbered),
        KERNELS / "cpu" / "regions32.py": regions.emit(TABLE, numbered, single=True),
        KERNELS / "cpu" / "scalar.py": scalar.emit(TABLE, numbered),
        KERNELS / "cpu" / "vector.py": vector.emit(TABLE, numbered),
        KERNELS / "cuda" / "float32.py": cuda.emit(TABLE, numbered, "float32"),
        KERNELS / "cuda" / "float64.py": cuda.emit(TABLE, numbered, "float64"),
    }


def main(arguments: list[str] | None = None) -> int:
    """Write or check the generated files, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tapegrad.kernels.generate", description=__doc__
    )
    parser.add_argument("--check", action="store_true", help="only say which files are stale")
    check = parser.parse_args(arguments).check
    if not (KERNELS.parent / "docs").is_dir():
        parser.error("the generator works on a checkout of the repository, not an installed copy")
    stale = 0
    for path, text in outputs().items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if check:
            print(f"stale: {path}; run python -m tapegrad.kernels.generate", file=sys.stderr)
        else:
            path.write_bytes(text.encode())
            print(f"wrote {path}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
