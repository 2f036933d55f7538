"""Compiles every CUDA kernel to PTX, without a GPU, and compares registers with a table.

``python -m tapegrad.kernels.cuda.ptx`` compiles all kernels for sm_80 and sm_90. Where NVIDIA's
assembler is found (``ptxas``, by ``pip install nvidia-cuda-nvcc``), it also asks how many registers
each takes and how much it spills, and compares that with registers.txt; ``--write`` writes the
table. With other versions of the compilers than the table's, only new spills are a failure.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TABLE = Path(__file__).with_name("registers.txt")
ARCHITECTURES = ((8, 0), (9, 0))
REALS = ("float64", "float32")
COMPILERS = ("numba-cuda", "nvidia-nvvm", "nvidia-cuda-nvcc")
_PASSES = (
    *("clear", "clear_maximum", "clear_minimum", "sum_by_threads", "sum_by_blocks"),
    *("maximum_by_threads", "maximum_by_blocks", "minimum_by_threads", "minimum_by_blocks"),
)
TITLE = "kernel numbers architecture registers spilled stack"


@contextmanager
def without_gpu(cc: tuple[int, int]) -> Iterator[None]:
    """Let Numba compile what kernels call for an architecture, instead of asking a GPU."""
    from numba.cuda import dispatcher

    asked = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=cc)
    try:
        yield
    finally:
        dispatcher.get_current_device = asked


def kernels(real: str) -> dict[str, tuple[Callable[..., None], tuple[str, ...]]]:
    """Return the kernels for numbers of a type, with the types that their arguments point to."""
    from tapegrad.kernels.cuda import driver

    around = real, "int64", "uint32"
    inside = real, "int64", "uint16", real, "uint32"
    module = driver.kernels(real)
    found: dict[str, Any] = {
        "interpret_in_shared": (module.interpret_in_shared, inside),
        "interpret_in_global": (module.interpret_in_global, (*inside, real)),
        "straight": (driver.compile_straight(example(real)), around),
    }
    for name in _PASSES:
        found[name] = driver.pass_kernel(name, real), around
    return {name: (kernel.py_func, types) for name, (kernel, types) in found.items()}


def example(real: str) -> Any:
    """Return the program of a straight kernel: a few of everything that such a kernel may have."""
    from tapegrad.kernels.cuda import words as W
    from tapegrad.kernels.emit.cuda import Straight
    from tapegrad.kernels.opcodes import ADD, EXP, LOG, MULTIPLY, TANH

    return Straight(
        real,
        (
            (EXP, 3, 1, 0, 0),
            (ADD, 4, 2, 3, 0),
            (LOG, 4, 4, 0, 0),
            (MULTIPLY, 4, 4, 0, 0),
            (TANH, 5, 4, 0, 0),
        ),
        ((0.5).hex(),),
        ((1, W.SET, False, (3,)), (2, W.SET, True, (1,))),
        ((4, W.ADD, False, (1,)), (5, W.SUM, False, (0,))),
    )


def compile_one(
    function: Callable[..., None], arguments: tuple[str, ...], cc: tuple[int, int]
) -> str:
    """Return the PTX of a kernel."""
    from numba import cuda, types

    signature = tuple(types.CPointer(getattr(types, argument)) for argument in arguments)
    with without_gpu(cc):
        text, _ = cuda.compile_ptx(function, signature, cc=cc)
    return str(text)


def assembler() -> str | None:
    """Return the path of ptxas, or None."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        for path in sorted(Path(folder).glob("*/bin/ptxas*")):
            return str(path)
    return shutil.which("ptxas")


def assemble(ptxas: str, text: str, cc: tuple[int, int]) -> tuple[int, int, int]:
    """Return registers, bytes spilled and bytes of stack of the kernel in a PTX text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(text, encoding="utf-8")
        done = subprocess.run(
            [ptxas, "-v", f"-arch=sm_{cc[0]}{cc[1]}", "-o", os.devnull, str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"ptxas: {done.stderr}")
    numbers = {
        what: [int(n) for n in re.findall(rf"(\d+) {what}", done.stderr)]
        for what in ("bytes spill stores", "bytes spill loads", "bytes stack frame")
    }
    registers = max(int(n) for n in re.findall(r"Used (\d+) registers", done.stderr))
    spilled = sum(numbers["bytes spill stores"]) + sum(numbers["bytes spill loads"])
    return registers, spilled, max(numbers["bytes stack frame"])


def measure(task: tuple[str, tuple[int, int], str | None]) -> list[str]:
    """Return the lines of the table for numbers of a type on an architecture."""
    real, cc, ptxas = task
    start = time.perf_counter()
    lines = []
    for name, kernel in kernels(real).items():
        text = compile_one(*kernel, cc=cc)
        found = assemble(ptxas, text, cc) if ptxas else ("-", "-", "-")
        lines.append(" ".join(map(str, (name, real, f"sm_{cc[0]}{cc[1]}", *found))))
    seconds = time.perf_counter() - start
    print(f"{len(lines)} kernels on {real} for sm_{cc[0]}{cc[1]}: {seconds:.0f} s", flush=True)
    return lines


def versions() -> str:
    """Return the versions of the compilers, as they stand in the table."""
    found = []
    for name in COMPILERS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} none")
    return "# " + ", ".join(found)


def compare(known: str, lines: list[str], compilers: str) -> list[str]:
    """Return what is wrong with measured lines, by the table as it is known."""
    head, title, *old = known.splitlines()
    if title != TITLE or {line.split(" ")[0] for line in old} != {x.split(" ")[0] for x in lines}:
        return ["the table has other kernels: write it again with --write"]
    if head == compilers:
        return [
            f"{one!r}, and the table says {other!r}"
            for one, other in zip(lines, old, strict=True)
            if one != other
        ]
    spilling = [
        f"{one!r} spills, and with {head[2:]} it was {other!r}"
        for one, other in zip(lines, old, strict=True)
        if int(one.split(" ")[4]) > int(other.split(" ")[4])
    ]
    if lines != old:
        print(f"The table was made with {head[2:]}; here it is {compilers[2:]}:")
        print("\n".join(line for line, other in zip(lines, old, strict=True) if line != other))
    return spilling


def main(arguments: list[str] | None = None) -> int:
    """Compile all kernels, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tapegrad.kernels.cuda.ptx", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--write", action="store_true", help="write the table of registers")
    write = parser.parse_args(arguments).write
    if importlib.util.find_spec("numba_cuda") is None:
        parser.error('numba-cuda is not installed; pip install "tapegrad[ptx]"')
    ptxas = assembler()
    if ptxas is None and write:
        parser.error("ptxas is not installed; pip install nvidia-cuda-nvcc")
    tasks = [(real, cc, ptxas) for cc in ARCHITECTURES for real in REALS]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        lines = [line for part in pool.map(measure, tasks) for line in part]
    if ptxas is None:
        print("ptxas is not installed: registers are not compared")
        return 0
    text = "\n".join([versions(), TITLE, *lines, ""])
    if write:
        TABLE.write_bytes(text.encode())
        print(f"wrote {TABLE}")
        return 0
    wrong = compare(TABLE.read_text(encoding="utf-8"), lines, versions())
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
