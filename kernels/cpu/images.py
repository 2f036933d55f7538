"""Object files in the format ELF for x86-64, laid out as `kernels/native.py` loads them.

An object file has its code in sections that a linker puts where it likes, and lists the places that
hold addresses. What compiled kernels consist of is the simplest of that kind: no data that can be
written, and addresses of 64 bits only. Anything else is refused.

The format is described in the System V ABI, "Object Files", and its supplement for AMD64.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from tapegrad.kernels.native import Image

_RELOCATIONS, _NO_BITS, _UNWINDING = 4, 8, 0x70000001  # types of sections, this and the next line
_SYMBOLS = 2
_WRITABLE, _IN_MEMORY = 1, 2  # bits of their flags
_ADDRESS = 1  # the relocation R_X86_64_64
_LINE = 64


class _Section(NamedTuple):
    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry: int


def image_of(code: bytes, entries: Collection[str]) -> Image:
    """Return an object file as an image of memory, whose entries have these names."""
    if code[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", code, 18) != (62,):
        raise ValueError("machine code is not in ELF for x86-64")
    (start,) = struct.unpack_from("<Q", code, 0x28)
    (count,) = struct.unpack_from("<H", code, 0x3C)
    sections = [
        _Section(*struct.unpack_from("<IIQQQQIIQQ", code, start + 64 * i)) for i in range(count)
    ]
    memory, places = bytearray(), {}
    for i, section in enumerate(sections):
        if section.flags & _IN_MEMORY and section.type != _UNWINDING and section.size:
            if section.flags & _WRITABLE or section.type == _NO_BITS:
                raise ValueError("machine code has data that can be written")
            memory += bytes(-len(memory) % max(section.align, _LINE))
            places[i] = len(memory)
            memory += code[section.offset : section.offset + section.size]
    (symbols,) = [section for section in sections if section.type == _SYMBOLS]
    known = [
        _symbol(code, sections[symbols.link], symbols.offset + at, places)
        for at in range(0, symbols.size, 24)
    ]
    relative, outer = [], {}
    for section in sections:
        if section.type != _RELOCATIONS or section.info not in places:
            continue
        for at in range(section.offset, section.offset + section.size, 24):
            offset, info, addend = struct.unpack_from("<QQq", code, at)
            if info & 0xFFFFFFFF != _ADDRESS:
                raise ValueError(f"machine code has a relocation of type {info & 0xFFFFFFFF}")
            place = places[section.info] + offset
            name, value = known[info >> 32]
            if value is not None:
                struct.pack_into("<Q", memory, place, value + addend)
                relative.append(place)
            elif addend:
                raise ValueError(f"machine code has an address behind {name}")
            else:
                outer.setdefault(name, []).append(place)
    found = dict(known)
    return Image(
        {name: found[name] for name in entries}, outer, np.array(relative, np.uint32), bytes(memory)
    )


def _symbol(code: bytes, names: _Section, at: int, places: dict[int, int]) -> tuple[str, Any]:
    """Return a symbol's name and its place in memory, or None where it is not of this file."""
    name, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", code, at)
    start = names.offset + name
    text = code[start : code.index(b"\0", start)].decode()
    return text, places[section] + value if section in places else None
