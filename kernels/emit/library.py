"""Copies the functions that a compiled module needs out of kernels/functions.py."""

from __future__ import annotations

import ast
import functools
import re
from hashlib import sha256
from pathlib import Path

from tapegrad.kernels.emit.language import natural
from tapegrad.ops.row import CONSTANTS

SOURCE = Path(__file__).parents[1] / "functions.py"
VECTORS = tuple(
    Path(__file__).parents[1] / f"{name}.py"
    for name in ("coefficients", "vector_functions", "vector_angles")
)
SIMD = Path(__file__).parents[1] / "cpu" / "simd.py"

# What the names of guarded.py mean to Numba, which answers as IEEE 754 does by itself.
MATH = {
    **{
        name: name
        for name in (
            *("copysign", "cos", "cosh", "erf", "erfc", "exp", "expm1", "gamma", "hypot"),
            *("isfinite", "isinf", "isnan", "lgamma", "log", "log10", "log1p", "log2"),
            *("nextafter", "sin", "sinh", "sqrt", "tan", "tanh"),
        )
    },
    "arccos": "acos",
    "arccosh": "acosh",
    "arcsin": "asin",
    "arcsinh": "asinh",
    "arctan": "atan",
    "arctan2": "atan2",
    "arctanh": "atanh",
    "power": "pow",
    "scale": "ldexp",
    "split": "frexp",
}
BUILTINS = {"abs", "float", "int", "max", "min"}
FLOAT32 = '''@helper
def float32(x: float) -> float:
    """Return x rounded to single precision."""
    return float(np.float32(x))
'''


def simd_mark() -> str:
    """Return a mark of the text of cpu/simd.py, to stand in each module that is compiled with it.

    Numba's cache watches the file of a kernel and not what the kernel expands from elsewhere.
    """
    return sha256(SIMD.read_bytes().replace(b"\r\n", b"\n")).hexdigest()[:16]


@functools.cache
def _definitions(source: Path, kind: type[ast.stmt]) -> dict[str, tuple[str, set[str]]]:
    """Return the text of each function or assignment of a file, and the names it uses.

    Files are read once: programs that run ask for this, too (`tapegrad.regions.straight`).
    """
    text = source.read_text(encoding="utf-8")
    lines = text.splitlines()
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, kind):
            names = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
            made = {node.name} if isinstance(node, ast.FunctionDef) else _targets(node)
            for name in made:
                found[name] = ("\n".join(lines[node.lineno - 1 : node.end_lineno]), names)
    return found


def _targets(node: ast.stmt) -> list[str]:
    assert isinstance(node, ast.Assign)
    return [n.id for n in ast.walk(node.targets[0]) if isinstance(n, ast.Name)]


def _functions() -> dict[str, tuple[str, set[str]]]:
    return _definitions(SOURCE, ast.FunctionDef)


def _closure(used: set[str], *definitions: dict[str, tuple[str, set[str]]]) -> set[str]:
    """Return the names that these definitions need, directly or not."""
    needed = set(used)
    while True:
        more = {n for d in definitions for name in needed & set(d) for n in d[name][1]} - needed
        if not more:
            return needed
        needed |= more


def vector_names() -> dict[str, str]:
    """Return the names of functions of kernels/vector_*.py, by their scalar names."""
    return {name[1:]: name for name in _vectors(ast.FunctionDef) if name.startswith("v")}


def _vectors(kind: type[ast.stmt]) -> dict[str, tuple[str, set[str]]]:
    return {n: d for source in VECTORS for n, d in _definitions(source, kind).items()}


def vector_library(used: set[str], single: bool = False) -> tuple[list[str], str]:
    """Return what a module needs that uses these functions of kernels/vector_*.py.

    Parameters
    ----------
    used : set of str
        The functions.
    single : bool
        Whether for float32: the functions are then called, say, `vexp32`.

    Returns
    -------
    names : list of str
        What it must import from `tapegrad.kernels.cpu.simd`; it needs `simd` itself, `math`, `inf`,
        `nan`, `Any` and `helper` too.
    text : str
        The functions, and those they call, with their constants.
    """
    functions, constants = _vectors(ast.FunctionDef), _vectors(ast.Assign)
    unknown = used - set(functions)
    if unknown:
        raise ValueError(f"no function {sorted(unknown)}; write it in kernels/vector_*.py")
    needed = _closure(used, functions, constants)
    operations = set(_definitions(SIMD, ast.Assign)) | set(_definitions(SIMD, ast.FunctionDef))
    names = sorted(needed & operations)
    narrow = {name: f"{name}32" for name in (*functions, *constants) if f"{name}32" in constants}
    narrow |= {name: f"{name}32" for name in functions}
    if single:
        needed = {narrow.get(name, name) for name in needed}
    needed |= {"V", "I"}
    parts = [constants[name][0] for name in constants if name in needed]
    for name, (text, _) in functions.items():
        if single:
            text = re.sub(
                r"\w+(?=\()|[A-Z][A-Z0-9_]+", lambda word: narrow.get(word[0], word[0]), text
            )
            name = narrow[name]
        if name in needed:
            parts.append(f"\n\n@helper\n{text}")
    return names, "\n".join(dict.fromkeys(parts))


def scalar_library(used: set[str]) -> tuple[set[str], dict[str, str]]:
    """Return all names that a module needs that uses these, and the text of its functions."""
    functions = _functions()
    needed = _closure(used, functions)
    unknown = used - set(functions) - set(MATH) - set(CONSTANTS) - BUILTINS - {"float32"}
    if unknown:
        raise ValueError(f"no function {sorted(unknown)}; write it in kernels/functions.py")
    return needed, {name: text for name, (text, _) in functions.items() if name in needed}


KERNELS = """import math

import numpy as np

from tapegrad.kernels.cpu.jit import helper, kernel"""


def preamble(used: set[str], imports: str = KERNELS) -> str:
    """Return imports, constants and functions for a compiled module that uses these names."""
    needed, functions = scalar_library(used)
    aliases = {name: MATH[name] for name in needed & set(MATH) - set(functions)}
    aliases |= {name: name for name in needed & {"inf", "nan", "pi"}}
    parts = ["from __future__ import annotations\n", f"{imports}\n"]
    parts += [f"{name} = math.{aliases[name]}" for name in sorted(aliases, key=natural)]
    parts += [
        f"{name} = {CONSTANTS[name]!r}" for name in CONSTANTS if name in needed - set(aliases)
    ]
    parts += ["\n"]
    if "float32" in needed:
        parts += [FLOAT32 + "\n"]
    parts += [f"@helper\n{text}\n\n" for text in functions.values()]
    return "\n".join(parts)
