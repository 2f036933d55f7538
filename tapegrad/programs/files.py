"""Program files: `Program.save` writes them, `load` reads and verifies them.

A file is a JSON header, which describes, and the raw arrays that it names, which are the tape.  It
holds no code and no pickled objects, so that reading one runs nothing; `docs/program-files.md` has
the format.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import TapeFormatError, at_caller
from .program import Program
from .reading import read_program
from .writing import Array, Json, describe

MAGIC = b"\x89TAPE\r\n\x1a"
"""How a file begins: a byte that is no text, and line ends that a transfer as text would change."""

FORMAT = 2
"""Version of the format that is written, and the highest that is read."""

MAX_CELLS = 1 << 28
"""Cells of a program that is loaded, unless another number is allowed: 2 GiB of values."""

_PREFIX = struct.Struct("<8sIIQ")  # magic, version, bytes of the header, bytes of the file
_DIGEST = 16


# -- writing ---------------------------------------------------------------------------------------


def save(program: Program, path: str | os.PathLike[str]) -> None:
    """Write a program to a file; see `Program.save`."""
    data = to_bytes(program)
    name = os.fspath(path)
    temporary = f"{name}.{os.getpid()}-{threading.get_ident()}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, name)  # whoever reads meanwhile finds the old file or the new one
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def to_bytes(program: Program) -> bytes:
    """Return the contents of a program's file."""
    import json

    arrays: list[Array] = []
    with program.lock:
        try:
            header = describe(program, arrays)
        except TypeError as error:
            raise TypeError(f"the program cannot be saved: {error}{at_caller()}") from None
    header["arrays"] = [[array.dtype.name, list(array.shape)] for array in arrays]
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    body = b"".join([_padded(text)] + [_padded(_little(array).tobytes()) for array in arrays])
    return seal(len(text), body)


def seal(header: int, body: bytes) -> bytes:
    """Put magic bytes, version and sizes before the contents of a file, and a digest after them."""
    size = _PREFIX.size + len(body) + _DIGEST
    data = _PREFIX.pack(MAGIC, FORMAT, header, size) + body
    return data + _digest(data)


def _digest(data: bytes | memoryview) -> bytes:
    import hashlib

    return hashlib.blake2b(data, digest_size=_DIGEST).digest()


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def _little(array: Array) -> Array:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


# -- reading ---------------------------------------------------------------------------------------


def load(
    path: str | os.PathLike[str], *, classes: Iterable[type] = (), max_cells: int = MAX_CELLS
) -> Program:
    """Read a program that `Program.save` wrote; the source of the recorded function is not needed.

    The file is verified before anything of it runs, so that files from elsewhere are safe to load.

    Parameters
    ----------
    path : path
    classes : iterable of type
        Named tuples and dataclasses among the program's arguments and results.  Without them the
        program takes and returns dicts of their fields.
    max_cells : int
        How large a program may be: it will need at most 8 bytes a cell, and as much for adjoints.

    Returns
    -------
    Program

    Raises
    ------
    TapeFormatError
        If the file is truncated, altered, of another kind or of a newer version, or does not
        describe a program that can be run safely.

    Examples
    --------
    >>> import os, tempfile, numpy as np, tapegrad as tg
    >>> program = tg.record(lambda x: np.sum(x * x), np.zeros(2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     program.save(os.path.join(folder, "squares.tape"))
    ...     loaded = tg.load(os.path.join(folder, "squares.tape"))
    >>> loaded.value_and_grad(np.array([1.0, 2.0]))
    (5.0, array([2., 4.]))
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        return from_bytes(data, classes, max_cells)
    except TapeFormatError as error:
        name = os.path.basename(os.fspath(path))
        raise TapeFormatError(f"{name}: {error}{at_caller()}") from None


def from_bytes(data: bytes, classes: Iterable[type] = (), max_cells: int = MAX_CELLS) -> Program:
    """Return the program whose file has these contents."""
    header, body = _open(data)
    return read_program(header, body, classes, max_cells)


def _open(data: bytes) -> tuple[Json, memoryview]:
    """Check the frame of a file; return its header and its arrays, as bytes."""
    import json

    if data[: len(MAGIC)] != MAGIC:
        raise TapeFormatError("this is not a tapegrad program")
    if len(data) < _PREFIX.size + _DIGEST:
        raise TapeFormatError(f"the file ends after {len(data)} bytes: it is truncated")
    _, version, length, size = _PREFIX.unpack_from(data)
    if not 1 <= version <= FORMAT:
        raise TapeFormatError(
            f"its format is version {version}, and this tapegrad reads versions 1 to {FORMAT}: "
            + ("install a newer one" if version > FORMAT else "it was altered")
        )
    if size != len(data):
        what = "truncated" if len(data) < size else "followed by something else"
        raise TapeFormatError(f"the file has {len(data)} of {size} bytes: it is {what}")
    view = memoryview(data)
    if view[-_DIGEST:] != _digest(view[:-_DIGEST]):
        raise TapeFormatError("its digest is another one: the file was altered or damaged")
    start = _PREFIX.size + length + -length % 8
    if start > size - _DIGEST:
        raise TapeFormatError(f"a header of {length} bytes does not fit into the file")
    try:
        text = str(view[_PREFIX.size : _PREFIX.size + length], "utf-8")
        header = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise TapeFormatError(f"the header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise TapeFormatError("the header is not a JSON object")
    return header, view[start:-_DIGEST]


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
