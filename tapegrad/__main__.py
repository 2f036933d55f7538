"""Command line: ``python -m tapegrad warmup`` compiles and caches every kernel."""

from __future__ import annotations

import argparse
import time

from . import execute


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tapegrad", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("warmup", help="compile all kernels and cache them on disk")
    parser.parse_args(arguments)
    for family in execute.FAMILIES:
        start = time.perf_counter()
        execute.load(family)
        print(f"{family} kernels ready in {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
