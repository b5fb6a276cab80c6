"""What the compiler made of a kernel: registers, memory on the stack, shared memory, constants.

Read from a cubin's own ELF sections, so that neither a driver nor cuobjdump is needed:

    .nv.info              registers, stack frame and least stack, by symbol
    .nv.shared.<kernel>   as long as the kernel's static shared memory, and from sm_90 on 1024 bytes
                          longer, which the system keeps of every block's
    .nv.constant0.<kernel>  launch parameters, behind what the driver keeps there
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

# Attributes of .nv.info: u8 format, u8 attribute, u16 value or size, then a payload where the
# format says so. These three hold (u32 symbol, u32 number).
_SIZED = 0x04
_FRAME_SIZE, _MIN_STACK_SIZE, _REGISTERS = 0x11, 0x12, 0x2F


@dataclass(frozen=True)
class Usage:
    """What one kernel takes: registers a thread, bytes of the rest."""

    registers: int
    #: Stack of a thread, in local memory: spilled registers, and arrays indexed at run time.
    local: int
    #: Static shared memory of a block.
    shared: int
    #: Constant bank 0: the arguments, and in front of them the driver's own 352 to 896 bytes.
    constant: int


@dataclass(frozen=True)
class _Section:
    name: str
    offset: int
    size: int
    link: int


def usage(cubin: bytes) -> dict[str, Usage]:
    """What each kernel of `cubin` takes, by its mangled name."""
    sections = {s.name: s for s in _sections(cubin)}
    info = sections.get(".nv.info")
    if info is None:
        return {}
    names = _symbols(cubin, sections[".symtab"], sections[".strtab"])
    numbers: dict[str, dict[int, int]] = {}
    for attribute, symbol, number in _attributes(cubin, info):
        numbers.setdefault(names[symbol], {})[attribute] = number

    reserved = 1024 if ".nv.shared.reserved.0" in sections else 0

    def size(section: str) -> int:
        return sections[section].size if section in sections else 0

    return {
        name: Usage(
            registers=found[_REGISTERS],
            local=max(found.get(_FRAME_SIZE, 0), found.get(_MIN_STACK_SIZE, 0)),
            shared=max(0, size(f".nv.shared.{name}") - reserved),
            constant=size(f".nv.constant0.{name}"),
        )
        for name, found in numbers.items()
        if _REGISTERS in found and f".text.{name}" in sections
    }


def _sections(cubin: bytes) -> list[_Section]:
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError(f"not a 64-bit ELF file: it begins with {cubin[:5]!r}")
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    entry, count, of_names = struct.unpack_from("<HHH", cubin, 0x3A)
    # name, type, flags, address, offset, size, link, info, alignment, entry size
    rows = [struct.unpack_from("<IIQQQQIIQQ", cubin, table + i * entry) for i in range(count)]
    start = rows[of_names][4]
    return [_Section(_text(cubin, start + row[0]), row[4], row[5], row[6]) for row in rows]


def _symbols(cubin: bytes, table: _Section, texts: _Section) -> list[str]:
    """Names by index; an entry is 24 bytes, the first 4 the name's place."""
    places = (
        struct.unpack_from("<I", cubin, table.offset + i)[0] for i in range(0, table.size, 24)
    )
    return [_text(cubin, texts.offset + place) for place in places]


def _attributes(cubin: bytes, info: _Section) -> Iterator[tuple[int, int, int]]:
    """(attribute, symbol, number) of those that are about a symbol."""
    at, end = info.offset, info.offset + info.size
    while at < end:
        form, attribute, size = struct.unpack_from("<BBH", cubin, at)
        at += 4
        if form != _SIZED:
            continue
        if attribute in (_FRAME_SIZE, _MIN_STACK_SIZE, _REGISTERS):
            yield attribute, *struct.unpack_from("<II", cubin, at)
        at += size


def _text(cubin: bytes, at: int) -> str:
    return cubin[at : cubin.index(b"\0", at)].decode()
