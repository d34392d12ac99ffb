"""The header of a GGUF file: read forward, within bounds, and compared with the file's size.

A loader allocates what the header claims: counts and lengths that the file cannot hold have to be
found before. Little endian, versions 2 and 3, as llama.cpp and mlx write it.
"""

import struct
from collections.abc import Iterator
from itertools import islice
from math import prod
from typing import BinaryIO

MAGIC = b"GGUF"
VERSIONS = (2, 3)
#: Bytes that everything before the tensors' data may take; a vocabulary of 256,000 needs 12 MB.
MAX_HEADER = 64 << 20
#: Of one key, as the format's text says, and of one tensor's name, as its readers do.
MAX_KEY, MAX_NAME = 65_535, 1024
MAX_DIMENSIONS = 4
MAX_NESTING = 4
#: Metadata and tensors that real files stay far below.
MAX_COUNT = 1 << 17
_ALIGNMENT_KEY = b"general.alignment"

#: Bytes of a value, by its type; strings (8) and arrays (9) tell their own.
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_U32, _STRING, _ARRAY = 4, 8, 9
#: ggml's types by number: name, weights in a block, bytes of a block. Types that are newer are not
#: measured.
GGML_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip


class GgufFault(ValueError):
    """What is wrong with the file, as the end of a sentence that begins with its name."""


def check_gguf(file: BinaryIO, size: int) -> None:
    """Raise GgufFault unless ``file`` (of ``size`` bytes, at its start) has a sound header.

    Counts and lengths must fit the file, every tensor must be aligned and lie inside it, and no
    two may share bytes.
    """
    reading = _Reading(file, min(size, MAX_HEADER), size)
    if reading.take(4) != MAGIC:
        raise GgufFault("it does not begin as GGUF files do")
    version = reading.number("<I")
    if version not in VERSIONS:
        raise GgufFault(f"its GGUF version {version} is not 2 or 3")
    tensors, keys = reading.number("<Q"), reading.number("<Q")
    # The smallest tensor takes 32 bytes of the header, the smallest key 13.
    for what, count, least in (("tensors", tensors, 32), ("keys", keys, 13)):
        if count > MAX_COUNT or count * least > size:
            raise GgufFault(f"its header claims {count} {what} in a file of {size} bytes")
    alignment = 32
    for _ in range(keys):
        found = _key(reading)
        alignment = found or alignment
    spans = list(islice(_spans(reading, alignment), tensors))
    begin = -(-reading.position // alignment) * alignment
    _check_spans(sorted(spans), size - begin)


class _Reading:
    """A file that is read forward, and never past ``limit``."""

    def __init__(self, file: BinaryIO, limit: int, size: int) -> None:
        self._file = file
        self._limit = limit
        self._size = size
        self.position = 0

    def take(self, count: int) -> bytes:
        self._claim(count)
        data = self._file.read(count)
        if len(data) != count:
            raise GgufFault(f"its header ends at byte {self.position + len(data)}, in the middle")
        self.position += count
        return data

    def skip(self, count: int) -> None:
        self._claim(count)
        while count:
            step = min(count, 1 << 20)
            self.take(step)
            count -= step

    def number(self, form: str) -> int:
        (found,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(found)

    def text(self, most: int, what: str) -> bytes:
        length = self.number("<Q")
        if length > most:
            raise GgufFault(f"{what} claims {length} bytes; {most} are the most")
        return self.take(length)

    def _claim(self, count: int) -> None:
        if self.position + count > self._limit:
            where = f"byte {self.position + count} of its header"
            raise GgufFault(f"it claims {where}, in a file of {self._size} bytes")


def _key(reading: _Reading) -> int | None:
    """Read one key and its value; return the alignment, if it is that."""
    name = reading.text(MAX_KEY, "a key of its metadata")
    kind = reading.number("<I")
    if name != _ALIGNMENT_KEY:
        _skip_value(reading, kind, 0)
        return None
    alignment = reading.number("<I") if kind == _U32 else 0
    if not 1 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise GgufFault(f"its alignment is {alignment}, and not a power of two up to 65536")
    return alignment


def _skip_value(reading: _Reading, kind: int, depth: int) -> None:
    if kind in _WIDTHS:
        reading.skip(_WIDTHS[kind])
    elif kind == _STRING:
        reading.skip(reading.number("<Q"))
    elif kind == _ARRAY and depth < MAX_NESTING:
        inner, count = reading.number("<I"), reading.number("<Q")
        if inner in _WIDTHS:
            reading.skip(_WIDTHS[inner] * count)
            return
        for _ in range(count):  # each takes 8 bytes at least: the header's end stops it
            _skip_value(reading, inner, depth + 1)
    else:
        raise GgufFault(f"its metadata has a value of the unknown type {kind}")


def _spans(reading: _Reading, alignment: int) -> Iterator[tuple[int, int, str]]:
    """Yield the first byte of each tensor's data, its end and its name."""
    while True:
        name = reading.text(MAX_NAME, "a tensor's name").decode(errors="replace")
        dimensions = reading.number("<I")
        if dimensions > MAX_DIMENSIONS:
            raise GgufFault(f"tensor {name!r} claims {dimensions} dimensions")
        shape = [reading.number("<Q") for _ in range(dimensions)]
        kind, offset = reading.number("<I"), reading.number("<Q")
        elements = prod(shape)
        if elements >= 1 << 63:
            raise GgufFault(f"tensor {name!r} claims the shape {shape}")
        if offset % alignment:
            raise GgufFault(f"tensor {name!r} begins at byte {offset}, which is not aligned")
        _, block, width = GGML_TYPES.get(kind, ("", 1, 0))
        if shape and shape[0] % block:
            raise GgufFault(f"tensor {name!r} of shape {shape} is not made of blocks of {block}")
        yield offset, offset + elements // block * width, name


def _check_spans(spans: list[tuple[int, int, str]], there: int) -> None:
    end = 0
    for begin, stop, name in spans:
        if begin < end:
            raise GgufFault(f"tensor {name!r} begins at byte {begin}, inside of another")
        if stop > there or begin > there:
            raise GgufFault(f"tensor {name!r} ends at byte {stop} of {max(0, there)}")
        end = max(end, stop)
