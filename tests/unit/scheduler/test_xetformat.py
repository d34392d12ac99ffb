"""Xet's formats: what its clients send is read, and nothing that lies is believed."""

import io
import random
import struct
from contextlib import suppress

import lz4.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.errors import TooLarge
from scheduler.bytes.xetformat import (
    MAX_CHUNK,
    Malformed,
    read_chunks,
    read_shard,
    read_xorb,
)

LAST = b"\xff" * 32 + bytes(16)
HEADER = b"HFRepoMetaData\x00" + bytes(17) + struct.pack("<QQ", 2, 0)

#: The lengths of the chunks that hf_xet 1.8.0 cut 1,500,000 bytes of random.Random(7) into.
CUT = [
    *(131072, 85310, 14783, 9358, 49281, 18775, 42337, 23696, 60594, 39795, 70547, 36524, 16697),
    *(
        20442,
        111467,
        52178,
        96535,
        131072,
        131072,
        67940,
        51564,
        27303,
        51971,
        16022,
        23761,
        119904,
    ),
]


def chunk(data: bytes, scheme: int = 0, *, length: int | None = None, packed: bytes = b"") -> bytes:
    """A chunk as clients send it; ``length`` and ``packed`` stand in for true ones."""
    if scheme == 2:
        data_grouped = b"".join(data[place::4] for place in range(4))
        packed = packed or lz4.frame.compress(data_grouped)
    elif scheme == 1:
        packed = packed or lz4.frame.compress(data)
    else:
        packed = packed or data
    size = len(data) if length is None else length
    return (
        b"\x00"
        + len(packed).to_bytes(3, "little")
        + bytes([scheme])
        + size.to_bytes(3, "little")
        + packed
    )


def entry(xorb: bytes, size: int, start: int, stop: int) -> bytes:
    return struct.pack("<32sIIII", xorb, 0, size, start, stop)


def shard(*files: tuple[bytes, list[bytes]], flags: int = 3 << 30, tail: bytes = LAST) -> bytes:
    body = b""
    for sha256, terms in files:
        body += struct.pack("<32sIIQ", b"f" * 32, flags, len(terms), 0) + b"".join(terms)
        body += bytes(48 * len(terms)) * bool(flags >> 31)
        body += (sha256 + bytes(16)) * bool(flags >> 30 & 1)
    return HEADER + body + tail


def test_a_xorb_s_name_is_what_hf_xet_gives_it() -> None:
    data = io.BytesIO(random.Random(7).randbytes(sum(CUT)))
    found = read_xorb(io.BytesIO(b"".join(chunk(data.read(size)) for size in CUT)))
    assert found.hash == "5484685c3bb136a3b030915e8125acf76827489326683b73e9d11d7cc2deb741"
    assert [length for _, length in found.index] == CUT


@pytest.mark.parametrize("scheme", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 4099, MAX_CHUNK])
def test_chunks_come_back_however_they_are_packed(scheme: int, size: int) -> None:
    data = bytes(i * i % 251 for i in range(size))
    sent = chunk(data, scheme) + chunk(b"after")
    assert list(read_chunks(io.BytesIO(sent))) == [data, b"after"]
    plain = read_xorb(io.BytesIO(chunk(data) + chunk(b"after")))
    assert read_xorb(io.BytesIO(sent)).hash == plain.hash, "a name is of content"


def test_the_table_behind_the_chunks_is_passed_over() -> None:
    chunks = chunk(b"one") + chunk(b"two")
    found = read_xorb(io.BytesIO(chunks + b"XETBLOB" + bytes(300)))
    assert found == read_xorb(io.BytesIO(chunks))
    with pytest.raises(TooLarge):
        read_xorb(io.BytesIO(chunks + b"XETBLOB" + bytes(2 << 20)))


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"XETBLOB\x01",
        chunk(b"cut")[:-1],
        chunk(b"cut")[:5],
        b"\x01" + chunk(b"version")[1:],
        chunk(b"scheme", 3),
        chunk(b"", packed=b"x"),
        chunk(b"x", length=2),
        chunk(b"x", 1, packed=b"no frame at all"),
        chunk(b"x", 1, packed=lz4.frame.compress(bytes(MAX_CHUNK * 50))),
        chunk(b"abc", 1, packed=lz4.frame.compress(b"abc")[:-9]),
        chunk(bytes(8), length=MAX_CHUNK + 1, packed=bytes(8)),
        b"\x00\xff\xff\xff\x00\x01\x00\x00" + bytes(100),
    ],
)
def test_a_xorb_that_lies_is_refused(sent: bytes) -> None:
    with pytest.raises(Malformed):
        read_xorb(io.BytesIO(sent))


def test_a_xorb_has_no_more_chunks_than_the_format_allows() -> None:
    with pytest.raises(TooLarge, match="8,192"):
        read_xorb(io.BytesIO(chunk(b"x") * 8193))


def test_a_shard_tells_how_its_files_are_made() -> None:
    terms = [entry(b"\x01" * 32, 300, 0, 3), entry(b"\x02" * 32, 7, 5, 6)]
    one, empty = read_shard(io.BytesIO(shard((b"\xab" * 32, terms), (b"\xcd" * 32, []))))
    assert (one.sha256, one.size) == ("ab" * 32, 307)
    assert [(t.xorb, t.size, t.start, t.stop) for t in one.terms()] == [
        ("01" * 32, 300, 0, 3),
        ("02" * 32, 7, 5, 6),
    ]
    assert (empty.sha256, empty.size, list(empty.terms())) == ("cd" * 32, 0, [])


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        bytes(48),
        HEADER,
        HEADER.replace(b"\x02", b"\x03"),
        shard((b"s" * 32, [entry(b"x" * 32, 5, 0, 1)]))[:-90],
        shard((b"s" * 32, [entry(b"x" * 32, 5, 0, 1)]), flags=1 << 31),
        shard((b"s" * 32, [entry(b"x" * 32, 5, 1, 1)])),
        shard((b"s" * 32, [entry(b"x" * 32, 5, 2, 1)])),
        shard((b"s" * 32, [entry(b"x" * 32, 5, 0, 9000)])),
        shard((b"s" * 32, [entry(b"x" * 32, 0, 0, 1)])),
        shard((b"s" * 32, [entry(b"x" * 32, MAX_CHUNK + 1, 0, 1)])),
    ],
)
def test_a_shard_that_lies_is_refused(sent: bytes) -> None:
    with pytest.raises(Malformed):
        read_shard(io.BytesIO(sent))


def test_counts_are_believed_only_as_far_as_a_shard_can_be_long() -> None:
    absurd = HEADER + struct.pack("<32sIIQ", b"f" * 32, 3 << 30, 0xFFFFFFFF, 0)
    with pytest.raises(TooLarge):
        read_shard(io.BytesIO(absurd + bytes(4800)))


@given(st.binary(max_size=600))
def test_no_bytes_do_more_than_be_refused(noise: bytes) -> None:
    for read in (read_xorb, read_shard):
        for sent in (noise, HEADER + noise, chunk(b"fine") + noise):
            with suppress(Malformed, TooLarge):
                read(io.BytesIO(sent))
