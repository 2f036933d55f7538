"""What several workloads need of one system: compilers, versions, generated code."""

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
BUILD = HERE / "build"

TORCH_VERSION = "2.13.0"


def import_torch(threads: int) -> Any:
    """Import torch, on `threads` threads; other versions would not be comparable over time."""
    import torch

    if torch.__version__.split("+")[0] != TORCH_VERSION:
        raise RuntimeError(
            f"torch {torch.__version__} is installed, figures are for {TORCH_VERSION}: "
            f"pip install torch=={TORCH_VERSION}"
        )
    torch.set_num_threads(threads)
    return torch


def compile_c(source: Path, *, optimise: str = "-O3", flags: Sequence[str] = ()) -> Path:
    """Compile `source` for this very machine, unless that has been done; return the library.

    Raises
    ------
    RuntimeError
        If no C compiler answers to cc, gcc or clang.
    """
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise RuntimeError("no C compiler found: install one that answers to cc, gcc or clang")
    BUILD.mkdir(exist_ok=True)
    library = BUILD / f"{source.stem}.so"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        flags = [optimise, "-march=native", "-shared", "-fPIC", *flags]
        unfinished = library.with_suffix(".part")
        subprocess.run([compiler, *flags, str(source), "-o", str(unfinished), "-lm"], check=True)
        unfinished.replace(library)
    return library


def compile_tapes(system: str) -> ctypes.CDLL:
    """Return tapes.cpp compiled for "ADOLC" or "CPPAD", whose headers the compiler must find.

    Raises
    ------
    RuntimeError
        If no C++ compiler answers to c++, g++ or clang++, or it does not find the system.
    """
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        raise RuntimeError("no C++ compiler found: install one that answers to c++ or g++")
    BUILD.mkdir(exist_ok=True)
    library = BUILD / f"tapes_{system.lower()}.so"
    flags = ["-O3", "-march=native", "-DNDEBUG", "-shared", "-fPIC", f"-D{system}"]
    libraries = {"ADOLC": ["-ladolc"], "CPPAD": ["-lcppad_lib"]}[system]
    command = [compiler, *flags, str(HERE / "tapes.cpp"), "-o", str(library), *libraries]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{system} is not installed: {done.stderr.strip().splitlines()[0]}")
    return ctypes.CDLL(str(library))


def tape_case(system: str, workload: str, point: Any, steps: int) -> tuple[Any, dict[str, float]]:
    """Return a call of a gradient on a recorded tape of C++, and the seconds of recording."""
    library = compile_tapes(system)
    os.chdir(BUILD)  # ADOL-C writes long tapes to files where it is
    x = np.ascontiguousarray(point, np.float64)
    gradient = np.empty_like(x)
    numbers = ctypes.POINTER(ctypes.c_double)
    place, result = (array.ctypes.data_as(numbers) for array in (x, gradient))  # keep the arrays
    n = ctypes.c_long(x.size)
    start = time.perf_counter()
    getattr(library, f"record_{workload}")(place, ctypes.c_long(steps))
    info = {"trace_s": time.perf_counter() - start}

    def sweep() -> Any:
        library.sweep(place, n, result)
        return gradient

    return sweep, info


def floors() -> Path:
    """Return the library of hand-written adjoints, floors.c: what a good C programmer gets."""
    return compile_c(HERE / "floors.c")


def fused() -> Path:
    """Return the library of fused loops over arrays, fused.c, vectorised and on all cores."""
    return compile_c(HERE / "fused.c", flags=["-ffast-math", "-fopenmp"])


def compile_casadi(function: Any, name: str) -> Any:
    """Return a CasADi function as compiled C, which CasADi writes and loads."""
    import casadi

    BUILD.mkdir(exist_ok=True)
    generator = casadi.CodeGenerator(f"{name}.c")
    generator.add(function)
    generator.generate(f"{BUILD}/")
    library = compile_c(BUILD / f"{name}.c", optimise="-O1")  # -O3 takes minutes on such a file
    return casadi.external(function.name(), str(library))


def compile_jax(
    function: Callable[..., Any], argument: Any
) -> tuple[Callable[[], Any], dict[str, float]]:
    """Return a call of the compiled `function(argument)`, and the seconds that making it took."""
    import jax

    start = time.perf_counter()
    lowered = jax.jit(function).lower(argument)
    traced = time.perf_counter()
    compiled = lowered.compile()
    info = {"trace_s": traced - start, "compile_s": time.perf_counter() - traced}
    return lambda: jax.block_until_ready(compiled(argument)), info
