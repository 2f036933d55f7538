"""The region kernels are packed instructions throughout, on processors with AVX2 and AVX-512.

A kernel is compiled once, for a processor with AVX2, and its optimised code then made assembly for
others: nothing of it is run, so it does not matter which processor this is.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys

import pytest

EMIT = """
import sys
from llvmlite import binding
from tapegrad.kernels.cpu import building
from tapegrad.kernels.native import LIBRARIES

code = str(building.optimised(LIBRARIES[sys.argv[1]]))
for processor in sys.argv[2:]:
    name, _, features = processor.partition(" ")
    target = binding.Target.from_triple("x86_64-unknown-linux-gnu")
    machine = target.create_target_machine(cpu=name, features=features, opt=3)
    print("processor", name)
    print(machine.emit_assembly(binding.parse_assembly(code)))
"""
# Plain skylake-avx512 would have halves of its registers used, lest its clock slow down.
AVX2, AVX512 = "skylake", ("znver4", "skylake-avx512 -prefer-256-bit")
SCALAR = re.compile(r"\tv?(add|sub|mul|div|sqrt|min|max|cmp\w*|f\w*m(add|sub)\w*)(s[sd])\b")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly")
@pytest.mark.parametrize(
    ("module", "suffix", "processors"),
    [("regions", "pd", (AVX2, AVX512[0])), ("regions32", "ps", (AVX2, AVX512[1]))],
)
def test_blocks_of_lanes_are_packed_instructions(
    module: str, suffix: str, processors: tuple[str, ...]
) -> None:
    settings = {"NUMBA_CPU_NAME": AVX2, "NUMBA_CPU_FEATURES": "+avx2,+fma"}
    found = subprocess.run(
        [sys.executable, "-c", EMIT, module, *processors],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    _, *listings = found.split("processor ")
    assert len(listings) == len(processors)
    for listing in listings:
        name, _, assembly = listing.partition("\n")
        block = _function(assembly)
        register = "ymm" if name == AVX2 else "zmm"
        for instruction in ("add", "sub", "mul", "div", "sqrt", r"fn?m\w+", r"cmp\w+", "andn?"):
            packed = rf"\tv{instruction}{suffix}\t.*%{register}"
            assert re.search(packed, block), (name, instruction)
        # All cases: one that was not packed would have arithmetic on single numbers of its type.
        # (What vectors leave to scalar functions, in the worst case, is computed in double.)
        assert "s" + suffix[1] not in {found[-1] for found in SCALAR.findall(block)}, name
        assert len(re.findall(rf"\tv\w+{suffix}\t.*%{register}", block)) > 1000


def _function(assembly: str) -> str:
    """Return the lines of the function that has a case for each row: `block`, or its entry."""
    starts = re.finditer(r"^(?:part\.|tapegrad_)block:", assembly, re.MULTILINE)
    listings = [assembly[s.start() : assembly.index(".Lfunc_end", s.end())] for s in starts]
    return max(listings, key=len)
