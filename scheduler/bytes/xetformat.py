"""Xet's formats, as its clients upload them: pure, streaming, every count and length bounded.

A *chunk* is up to 128 KiB of a file. A *xorb* is a row of chunks, each behind an 8-byte header, up
to 64 MiB; its name is the root of a Merkle tree over its chunks' hashes. A *shard* tells how files
are put together from ranges of chunks (*terms*). Where the formats are written down:
https://huggingface.co/docs/xet
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import lz4.frame
from blake3 import blake3

from espalier.errors import InvalidInput, TooLarge
from scheduler.store.base import Readable

MAX_CHUNK = 128 << 10
MAX_CHUNKS = 8 << 10
#: Bytes of a xorb's chunks, headers included, and of the table that may follow them.
MAX_XORB = (64 << 20) + 8 * MAX_CHUNKS
_MAX_TABLE = 1 << 20
#: Clients begin another shard at 64 MiB.
MAX_SHARD = 72 << 20
#: A chunk that would grow is sent as it is; LZ4's frame is a few bytes more than its content.
_MAX_PACKED = MAX_CHUNK + 64

_CHUNK_KEY = bytes.fromhex("6697f5775b9550de3135cbaca597181c9de421109beb2b58b4d0b04b93adf229")
_NODE_KEY = bytes.fromhex("017ec5c7a5472996fd946666b48a02e65ddd536f37c76dd2f86352e64a53713f")
_XORB_TABLE = b"XETBLOB"  # what a table behind the chunks begins with
_SHARD_TAG, _SHARD_VERSION = b"HFRepoMetaData\x00", 2
_ENTRY = 48  # bytes of everything in a shard
_LAST = b"\xff" * 32  # instead of a file's hash: no more files
_VERIFIED, _WITH_SHA256 = 1 << 31, 1 << 30


class Malformed(InvalidInput):
    """Not the format that was promised; 400, which clients of Xet do not send again."""

    status, code, title = 400, "malformed_xet", "Malformed"


def hexed(raw: bytes) -> str:
    """Return a hash of 32 bytes as Xet writes it: four little-endian 64-bit numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


# --- Xorbs --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Xorb:
    """What was read: its name, and for each chunk the offset behind it and its unpacked bytes."""

    hash: str
    index: tuple[tuple[int, int], ...]


def read_xorb(source: Readable) -> Xorb:
    """Unpack and hash every chunk of ``source``, which is read to its end; nothing is kept.

    Raises Malformed, TooLarge.
    """
    hashes: list[tuple[bytes, int]] = []
    index: list[tuple[int, int]] = []
    end = 0
    while header := _read(source, 8, optional=True):
        if header.startswith(_XORB_TABLE):
            _drain(source, _MAX_TABLE, "The table behind a xorb's chunks")
            break
        packed, scheme, length = _chunk_header(header)
        if len(index) == MAX_CHUNKS:
            raise TooLarge(f"A xorb holds at most {MAX_CHUNKS:,} chunks.")
        data = _unpack(_read(source, packed), scheme, length)
        end += 8 + packed
        if end > MAX_XORB:
            raise TooLarge(f"A xorb is at most {MAX_XORB:,} bytes.")
        hashes.append((blake3(data, key=_CHUNK_KEY).digest(), length))
        index.append((end, length))
    if not index:
        raise Malformed("The xorb holds no chunk.")
    return Xorb(hexed(_root(hashes)), tuple(index))


def read_chunks(source: Readable) -> Iterator[bytes]:
    """Yield what the chunks of ``source``, a part of a xorb that was read before, unpack to."""
    while header := _read(source, 8, optional=True):
        packed, scheme, length = _chunk_header(header)
        yield _unpack(_read(source, packed), scheme, length)


def _chunk_header(header: bytes) -> tuple[int, int, int]:
    packed = int.from_bytes(header[1:4], "little")
    length = int.from_bytes(header[5:8], "little")
    if header[0] != 0:
        raise Malformed(f"A chunk has version {header[0]}; this server reads version 0.")
    if not 0 < length <= MAX_CHUNK or not 0 < packed <= _MAX_PACKED:
        raise Malformed(
            f"A chunk of {packed:,} bytes, unpacked {length:,}, is not possible: at most"
            f" {MAX_CHUNK:,} are."
        )
    return packed, header[4], length


def _unpack(data: bytes, scheme: int, length: int) -> bytes:
    if scheme not in (0, 1, 2):
        raise Malformed(f"A chunk is packed in way {scheme}; this server knows 0, 1 and 2.")
    if scheme:
        frame = lz4.frame.LZ4FrameDecompressor()
        try:  # never more than was promised, whatever the frame says
            data = frame.decompress(data, max_length=length + 1)
        except (RuntimeError, EOFError) as error:
            raise Malformed(f"A chunk cannot be unpacked: {error}.") from error
    if len(data) != length:
        raise Malformed(f"A chunk of {length:,} bytes unpacks to {len(data):,}, or more.")
    return _ungroup(data) if scheme == 2 else data


def _ungroup(data: bytes) -> bytes:
    """Undo "byte grouping": the first bytes of all groups of four, then the second, …"""
    quarter, rest = divmod(len(data), 4)
    found, start = bytearray(len(data)), 0
    for place in range(4):
        size = quarter + (place < rest)
        found[place::4] = data[start : start + size]
        start += size
    return bytes(found)


def _root(nodes: Sequence[tuple[bytes, int]]) -> bytes:
    """Return the root over (hash, bytes): groups of two to nine, cut where a hash says so."""
    while len(nodes) > 1:
        above, start = [], 0
        while start < len(nodes):
            stop = _cut(nodes, start)
            above.append(_node(nodes[start:stop]))
            start = stop
        nodes = above
    return nodes[0][0]


def _cut(nodes: Sequence[tuple[bytes, int]], start: int) -> int:
    stop = min(start + 9, len(nodes))
    if len(nodes) - start > 2:
        for place in range(start + 2, stop):
            if nodes[place][0][24] % 4 == 0:  # the last of its four numbers
                return place + 1
    return stop


def _node(group: Sequence[tuple[bytes, int]]) -> tuple[bytes, int]:
    text = "".join(f"{hexed(digest)} : {size}\n" for digest, size in group)
    return blake3(text.encode(), key=_NODE_KEY).digest(), sum(size for _, size in group)


# --- Shards -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Term:
    """``size`` bytes of a file: the chunks from ``start`` to before ``stop`` of a xorb."""

    xorb: str
    size: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A file of a shard; its terms stay packed, as there may be a hundred thousand."""

    sha256: str
    size: int
    packed: bytes

    def terms(self) -> Iterator[Term]:
        for xorb, _, size, start, stop in struct.iter_unpack("<32sIIII", self.packed):
            yield Term(hexed(xorb), size, start, stop)


def read_shard(source: Readable) -> list[ShardFile]:
    """Return the files that a shard tells of; ``source`` is read to its end.

    What else is in it, the new xorbs' chunks, was seen when the xorbs were uploaded. Raises
    Malformed, TooLarge.
    """
    header = _read(source, _ENTRY)
    version = int.from_bytes(header[32:40], "little")
    if not header.startswith(_SHARD_TAG) or version != _SHARD_VERSION:
        raise Malformed(f"This is no shard of version {_SHARD_VERSION}.")
    files: list[ShardFile] = []
    room = MAX_SHARD - _ENTRY
    while (entry := _read(source, _ENTRY))[:32] != _LAST:
        flags, count = struct.unpack_from("<II", entry, 32)
        extra = count * bool(flags & _VERIFIED) + 1
        room -= _ENTRY * (1 + count + extra)
        if room < 0:
            raise TooLarge(f"A shard is at most {MAX_SHARD:,} bytes.")
        if not flags & _WITH_SHA256:
            raise Malformed(
                f"The shard tells no sha256 of its file {len(files) + 1}.",
                hint="Upload with HF_HUB_DISABLE_XET=1, or with a newer hf_xet.",
            )
        terms = _read(source, _ENTRY * count)
        sha256 = hexed(_read(source, _ENTRY * extra)[-_ENTRY : -_ENTRY + 32])
        files.append(_shard_file(sha256, terms))
    _drain(source, room, "A shard")
    return files


def _shard_file(sha256: str, packed: bytes) -> ShardFile:
    size = 0
    for _, _, length, start, stop in struct.iter_unpack("<32sIIII", packed):
        chunks = stop - start
        if not (start < stop <= MAX_CHUNKS and chunks <= length <= chunks * MAX_CHUNK):
            raise Malformed(
                f"{length:,} bytes from chunks {start:,} to {stop:,} of a xorb are not possible."
            )
        size += length
    return ShardFile(sha256, size, packed)


# --- Reading ------------------------------------------------------------------------------


def _read(source: Readable, size: int, *, optional: bool = False) -> bytes:
    """Return exactly ``size`` bytes; nothing at the end, if that is ``optional``."""
    pieces, left = [], size
    while left and (piece := source.read(left)):
        pieces.append(piece)
        left -= len(piece)
    if left and (pieces or not optional):
        raise Malformed(f"The body ends early: {left:,} of {size:,} bytes are missing.")
    return b"".join(pieces)


def _drain(source: Readable, room: int, what: str) -> None:
    while data := source.read(1 << 16):
        room -= len(data)
        if room < 0:
            raise TooLarge(f"{what} is too long.")
