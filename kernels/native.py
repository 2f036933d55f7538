"""Compiled kernels that are kept on disk as machine code, and load without Numba.

Importing Numba and loading a kernel from its cache takes half a second, most of which goes into
what only a compiler needs.  Kernels that are called with integers alone (numbers and addresses) are
nothing but machine code: one file a library, which is copied into memory and given addresses, in
some milliseconds.  Where there is no such file, or it belongs to other sources, other versions or
another processor, it is compiled (`kernels/cpu/building.py`).

That leans on the inside of Numba and of CPython, and is tested on Linux for x86-64.  Elsewhere, and
wherever anything of it fails, Numba compiles and caches the same kernels, as it does all others.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import itertools
import json
import mmap
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .frames import with_room

FORMAT = 1
"""What the files look like, and what kernels expect of those who call them."""

_HERE = Path(__file__).parent
_FASTCALL = 0x0080


class Library(NamedTuple):
    """Kernels that are compiled together.

    Attributes
    ----------
    module : str
        The module of `kernels/cpu` that has them.
    sources : tuple of str
        Files whose text their code depends on, from here.
    entries : dict of str to int
        How many integers each kernel is called with from Python; it returns one, or a tuple of
        some, or nothing.
    called : dict of str to int
        Those that other code calls at their addresses, likewise.
    vectorized : bool
        Whether loops are made to work on vectors, where that can be.
    """

    module: str
    sources: tuple[str, ...]
    entries: dict[str, int]
    called: dict[str, int]
    vectorized: bool = False


_COMMON = (
    *("native.py", "cpu/building.py", "cpu/images.py", "cpu/translating.py"),
    *("cpu/walking.py", "cpu/syntax.py"),
    *("cpu/jit.py", "cpu/simd.py"),
)
LIBRARIES = {
    name: Library(name, (*_COMMON, f"cpu/{name}.py"), {"run": 7}, {"block": 4})
    for name in ("regions", "regions32")
}
_COLUMNS = ("cpu/records.py", "cpu/columns.py")
_PLANNER = (
    *("cpu/planning.py", "cpu/writing.py", "cpu/planned.py", "cpu/records.py"),
    *("allocation.py", "adjoints.py", "opcodes.py"),
)
LIBRARIES["planning"] = Library(
    "planning",
    (*_COMMON, *_PLANNER),
    {"partition": 5, "find_active": 3, "schedule": 3, "write": 7, "choose_sets": 2, "finish": 3},
    {},
)
LIBRARIES["scalar"] = Library(
    "scalar",
    (*_COMMON, *_COLUMNS, "cpu/scalar.py"),
    {"forward": 8, "reverse": 10},
    {"forward_of": 4, "reverse_of": 4},
)
LIBRARIES["lanes"] = Library(
    "lanes", (*_COMMON, *_COLUMNS, "cpu/lanes.py"), {"forward": 12, "reverse": 14}, {}, True
)
LIBRARIES["replay"] = Library(
    "replay",
    (*_COMMON, *_COLUMNS, "cpu/replay.py", "replays.py"),
    {"replay": 2, "call": 5},
    {},
)

Kernels = dict[str, Any]
"""Kernels by name: functions, or the addresses of those that are called at them."""

failures: dict[str, Exception] = {}
"""Why libraries are compiled by Numba's own means."""

_loaded: dict[str, Kernels] = {}
_lock = threading.RLock()
_kept: list[Any] = []
"""What functions consist of: their code, and Python's descriptions of them.

It outlives even this module: Python looks at functions again when it has taken the modules apart.
"""
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_kept))

_supported = (
    sys.platform == "linux"
    and platform.machine() == "x86_64"
    and sys.maxsize > 1 << 32
    and sys.implementation.name == "cpython"
)


def load(name: str) -> Kernels:
    """Return the kernels of a library by name, compiled if need be.

    They are called with integers, and let other threads run meanwhile.
    """
    with _lock:
        if name not in _loaded:
            _loaded[name] = _load(name)
        return _loaded[name]


def _load(name: str) -> Kernels:
    library = LIBRARIES[name]
    if by_library():
        try:
            code = stored(name)
            return link(library, compiled(name) if code is None else code)
        except Exception as error:  # of the inside of Numba, LLVM, Python, or a file system
            _give_up(name, error)
    module = importlib.import_module(_full_name(library))
    return with_room(module.compile_all)  # type: ignore[no-any-return]


def by_library() -> bool:
    """Whether kernels are compiled as libraries, not one by one."""
    return _supported and not failures


def _give_up(name: str, error: Exception) -> None:
    """Let Numba compile kernels from now on, those too whose functions wait to be made parts."""
    failures[name] = error
    for library in LIBRARIES.values():
        if module := sys.modules.get(_full_name(library)):
            importlib.reload(module)


def _full_name(library: Library) -> str:
    return f"{__package__}.cpu.{library.module}"


def compiled(name: str) -> bytes:
    """Compile a library, keep it on disk where there is a place to do so, and return its code."""
    from .cpu.building import build

    code = with_room(lambda: build(LIBRARIES[name]))
    _store(name, code)
    return code


# -- files -----------------------------------------------------------------------------------------


def stored(name: str) -> bytes | None:
    """Return the code of a library from disk, or None where it has to be compiled."""
    key = _key(LIBRARIES[name])
    for folder in _folders():
        with suppress(OSError):
            content = (folder / _file_name(name)).read_bytes()
            head, code = content[:64], content[64:]
            if head == key + hashlib.sha256(code).digest():
                return code
    return None


def _store(name: str, code: bytes) -> None:
    content = _key(LIBRARIES[name]) + hashlib.sha256(code).digest() + code
    for folder in _folders():
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            own = folder / f"{_file_name(name)}.{os.urandom(8).hex()}"
            try:
                own.write_bytes(content)
                own.replace(folder / _file_name(name))  # whole, or not at all
            except OSError:
                own.unlink(missing_ok=True)
                raise
            return
    from .cpu.jit import warn_once

    warn_once()


def _folders() -> Iterator[Path]:
    """Yield where libraries may lie, the best first: the places where Numba keeps its cache."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        yield Path(chosen)
        return
    yield _HERE / "cpu" / "__pycache__"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(base):
        yield Path(base) / "tapegrad"


def _file_name(name: str) -> str:
    """Return the name of a library's file: machines that share a folder have one each."""
    machine = hashlib.sha256("\n".join(_machine()).encode()).hexdigest()[:12]
    return f"tapegrad-{name}-{machine}.o"


@cache
def _processor() -> str:
    """Return what the system says of the first processor: its model, and what it can."""
    told = ("vendor_id", "cpu family", "model", "stepping", "flags")
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        lines = itertools.takewhile(str.strip, file)
        return "".join([line for line in lines if line.startswith(told)])


def _machine() -> list[str]:
    """Return what code is compiled for, and by."""
    # Variables that change what Numba makes of the sources.
    settings = sorted(
        f"{name}={value}"
        for name, value in os.environ.items()
        if name.startswith("NUMBA_") and not name.startswith(("NUMBA_CACHE", "NUMBA_NUM_THREADS"))
    )
    return [_processor(), sys.version, _version_of("numba"), _version_of("llvmlite"), *settings]


def _version_of(package: str) -> str:
    """Return what a package says of its version, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed")
    return Path(spec.origin).with_name("_version.py").read_text(encoding="utf-8")


def _key(library: Library) -> bytes:
    """Return what tells whether code was compiled from these sources: 32 bytes."""
    key = hashlib.sha256(f"{FORMAT}\n{library.entries}\n{library.called}\n".encode())
    key.update("\n".join(_machine()).encode())
    for source in library.sources:
        key.update((_HERE / source).read_bytes())
    return key.digest()


# -- linking ---------------------------------------------------------------------------------------


class Image(NamedTuple):
    """Machine code as it lies in memory, but for addresses.

    Attributes
    ----------
    entries : dict of str to int
        Where functions start.
    outer : dict of str to list of int
        Functions of C and of Python, and the places that are to hold their addresses.
    relative : ndarray of uint32
        Places that hold offsets from the start, and are to hold addresses.
    memory : bytes
    """

    entries: dict[str, int]
    outer: dict[str, list[int]]
    relative: np.ndarray[Any, np.dtype[np.uint32]]
    memory: bytes

    def to_bytes(self) -> bytes:
        """Return it as a file has it."""
        head = [self.entries, self.outer, self.relative.size]
        return json.dumps(head).encode() + b"\0" + self.relative.tobytes() + self.memory

    @classmethod
    def from_bytes(cls, content: bytes) -> Image:
        """Return what `to_bytes` made."""
        head, _, rest = content.partition(b"\0")
        entries, outer, count = json.loads(head)
        return cls(entries, outer, np.frombuffer(rest, np.uint32, count), rest[4 * count :])


class _Method(ctypes.Structure):
    """CPython's description of a function in C."""

    _fields_ = [
        *[("name", ctypes.c_char_p), ("address", ctypes.c_void_p)],
        *[("flags", ctypes.c_int), ("doc", ctypes.c_char_p)],
    ]


def entry_name(kernel: str) -> str:
    """Return what the entry of a kernel is called in machine code."""
    return f"tapegrad_{kernel}"


def link(library: Library, code: bytes) -> Kernels:
    """Link machine code, the bytes of an `Image`, into the process."""
    image = Image.from_bytes(code)
    memory = mmap.mmap(-1, len(image.memory))
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    content = np.frombuffer(memory, np.uint8)
    content[: len(image.memory)] = np.frombuffer(image.memory, np.uint8)
    bytes_of = image.relative[:, None].astype(np.int64) + np.arange(8)
    content[bytes_of] = (content[bytes_of].view(np.uint64) + np.uint64(start)).view(np.uint8)
    for name, places in image.outer.items():
        address = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0
        for place in places:
            memory[place : place + 8] = address.to_bytes(8, "little")
    size = ctypes.c_size_t(len(memory))
    if ctypes.pythonapi.mprotect(ctypes.c_void_p(start), size, mmap.PROT_READ | mmap.PROT_EXEC):
        raise PermissionError("memory may not be made executable")
    _kept.append((memory, content))
    addresses = {
        name: start + image.entries[entry_name(name)]
        for name in (*library.entries, *library.called)
    }
    return {**addresses, **{name: _callable(name, addresses[name]) for name in library.entries}}


def _callable(name: str, address: int) -> Callable[..., int]:
    """Return a function at an address as Python calls functions in C: without any conversion."""
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.POINTER(_Method), ctypes.c_void_p, ctypes.c_void_p]
    method = _Method(name.encode(), address, _FASTCALL, None)
    _kept.append(method)
    made: Callable[..., int] = make(ctypes.byref(method), None, None)
    return made
