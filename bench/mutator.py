"""Damage to a file's bytes: what disks, cut transfers, editors and attackers do."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

Damage = Callable[[bytes, random.Random], bytes]


def _span(data: bytes, chance: random.Random) -> tuple[int, int]:
    """A part of `data`, short or long."""
    begin = chance.randrange(len(data) + 1)
    return begin, min(len(data), begin + int(2 ** chance.uniform(0, 12)))


def flipped(data: bytes, chance: random.Random) -> bytes:
    """A few bits, more often near the beginning, where headers are."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4) if out else 0):
        end = len(out) if chance.random() < 0.5 else min(len(out), 256)
        out[chance.randrange(end)] ^= 1 << chance.randrange(8)
    return bytes(out)


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def extended(data: bytes, chance: random.Random) -> bytes:
    return data + chance.randbytes(chance.randint(1, 4096))


def without_a_part(data: bytes, chance: random.Random) -> bytes:
    begin, end = _span(data, chance)
    return data[:begin] + data[end:]


def with_a_part_twice(data: bytes, chance: random.Random) -> bytes:
    begin, end = _span(data, chance)
    return data[:end] + data[begin:]


def zeroed(data: bytes, chance: random.Random) -> bytes:
    begin, end = _span(data, chance)
    return data[:begin] + bytes(end - begin) + data[end:]


def overwritten(data: bytes, chance: random.Random) -> bytes:
    begin, end = _span(data, chance)
    return data[:begin] + chance.randbytes(end - begin) + data[end:]


def with_a_huge_size(data: bytes, chance: random.Random) -> bytes:
    """A header field that claims 2^60, or all that fits into it."""
    order = chance.choice(["little", "big"])
    size = chance.choice([4, 8])
    value = chance.choice([2 ** (8 * size) - 1, 2 ** (8 * size - 4), 2 ** (8 * size - 1)])
    begin = chance.choice([0, 4, 8, 12, chance.randrange(len(data) + 1)])
    return data[:begin] + value.to_bytes(size, order) + data[begin + size :]  # type: ignore[arg-type]


_TOKEN = re.compile(rb'-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|"[^"]{0,200}"|null|true|false')
_VALUES = (
    *(b"null", b"true", b"[]", b"{}", b'""', b"-1", b"0", b"1.5", b"NaN", b"Infinity", b"1e999"),
    *(b"9" * 30, b"9" * 5000, b"1152921504606846976", b'"../../../etc/passwd"', b'"\\u0000"'),
    *(b"[" * 100_000, b'{"a":' * 50_000, b'"\\ud800"', b"\xff\xfe"),
)


def with_another_value(data: bytes, chance: random.Random) -> bytes:
    """A number, name or text of JSON (or of a header that has some) is something else."""
    tokens = list(_TOKEN.finditer(data[: 1 << 16]))
    if not tokens:
        return flipped(data, chance)
    token = chance.choice(tokens)
    return data[: token.start()] + chance.choice(_VALUES) + data[token.end() :]


def retyped(data: bytes, chance: random.Random) -> bytes:
    """A few digits and letters are others: what was well-formed still is."""
    out = bytearray(data)
    places = [i for i, byte in enumerate(data[: 1 << 16]) if chr(byte) in _LETTERS + _DIGITS]
    for _ in range(chance.randint(1, 3) if places else 0):
        i = chance.choice(places)
        out[i] = ord(chance.choice(_DIGITS if chr(out[i]) in _DIGITS else _LETTERS))
    return bytes(out)


_DIGITS, _LETTERS = "0123456789", "abcdefghijklmnopqrstuvwxyz"

DAMAGES: tuple[Damage, ...] = (
    flipped, cut, extended, without_a_part, with_a_part_twice, zeroed, overwritten,
    with_a_huge_size, with_another_value, retyped,
)  # fmt: skip


def damaged(data: bytes, chance: random.Random) -> bytes:
    """`data` after one or two kinds of damage; other than it was."""
    while True:
        out = data
        for _ in range(chance.choice([1, 1, 1, 2])):
            out = chance.choice(DAMAGES)(out, chance)
        if out != data:
            return out
