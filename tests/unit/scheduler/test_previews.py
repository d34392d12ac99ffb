"""What is in a file, from few of its bytes; a file that lies is a sentence, and costs nothing."""

import json
import struct
from typing import Any

import pytest

from scheduler.contents import previews
from scheduler.contents.previews import Odd, Read
from tests.browser.things import gguf, safetensors, weights

GIANT = 1 << 40


class Source:
    """Bytes of a file of ``size``, and how many of them were read."""

    def __init__(self, data: bytes, size: int | None = None) -> None:
        self.data, self.size, self.count = data, size or len(data), 0

    @property
    def read(self) -> Read:
        def answer(start: int, length: int) -> bytes:
            assert length >= 0
            assert start + length <= self.size
            self.count += length
            return self.data[start : start + length]

        return answer


def test_the_tensors_of_safetensors_are_told_without_their_bytes() -> None:
    source = Source(weights(layers=40))
    found = previews.safetensors(source.read, source.size)
    assert len(found.tensors) == 122
    assert found.parameters == (source.size - source.count) // 2
    assert found.metadata == {"format": "mlx"}
    assert found.types() == [("BF16", 122, 2 * found.parameters)]
    assert source.count < source.size / 50


def safe(header: Any, room: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(room)


@pytest.mark.parametrize(
    ("data", "size", "said"),
    [
        (b"", 0, "too few"),
        (struct.pack("<Q", 1 << 62) + b"{}", 10, "claims"),
        (struct.pack("<Q", previews.MAX_HEADER + 1) + b"{}", GIANT, "are shown"),
        (safe(b"[1]"), None, "not a JSON object"),
        (safe(b"\xff\xfe"), None, "not JSON"),
        (safe(b"[" * 100_000), None, "not JSON"),
        (safe({"w": 5}), None, "not described"),
        (safe({"w": {"dtype": "F32", "shape": [1 << 70], "data_offsets": [0, 4]}}), None, "impos"),
        (safe({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}), None, "impossible"),
        (safe({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}}, 4), None, "ends at"),
        (safe({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, 4), None, "ends at"),
        (safe({"w": {"dtype": "F32", "shape": 7, "data_offsets": [0, 4]}}, 4), None, "described"),
    ],
)
def test_a_lying_safetensors_header_is_a_sentence(data: bytes, size: int | None, said: str) -> None:
    source = Source(data, size)
    with pytest.raises(Odd, match=said):
        previews.safetensors(source.read, source.size)
    assert source.count <= previews.MAX_HEADER


def test_the_head_of_a_gguf_file_is_told_with_long_lists_cut() -> None:
    source = Source(gguf())
    found = previews.gguf(source.read, source.size)
    assert found.format == "GGUF 3"
    assert found.metadata["general.architecture"] == "qwen2"
    assert found.metadata["qwen2.block_count"] == "24"
    assert found.metadata["tokenizer.ggml.tokens"].endswith("token-7, … 600 in all]")
    assert [(t.name, t.dtype, t.shape, t.bytes) for t in found.tensors] == [
        ("token_embd.weight", "Q8_0", (600, 64), 40_800),
        ("output_norm.weight", "F32", (64,), 256),
    ]


def head(tensors: int, keys: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GG", "does not end"),
        (b"GGML" + bytes(60), "does not begin"),
        (b"GGUF" + struct.pack("<I", 99) + bytes(60), "version 99"),
        (head(0, 1 << 60), "more than any model"),
        (head(1 << 60, 0), "more than any model"),
        (head(0, 1, struct.pack("<Q", 1 << 60)), "claims"),
        (head(0, 1, struct.pack("<Q", 1 << 20)), "does not end"),
        (head(0, 1, key(b"k", 77, b"")), "unknown type"),
        (head(0, 1, key(b"k", 9, struct.pack("<IQ", 4, 1 << 60))), "claims"),
        (head(0, 1, key(b"k", 9, struct.pack("<IQ", 8, 1 << 60))), "claims"),
        (head(0, 1, key(b"k", 9, struct.pack("<IQ", 8, 20)) + bytes(80)), "does not end"),
        (head(0, 1, key(b"k", 9, struct.pack("<IQ", 9, 40)) + bytes(40)), "list of lists"),
        (head(1, 0, struct.pack("<Q", 1) + b"t" + struct.pack("<I", 1 << 31)), "dimensions"),
        (
            head(1, 0, struct.pack("<Q", 1) + b"t" + struct.pack("<IQQIQ", 2, 1 << 40, 9, 0, 0)),
            "does not fit",
        ),
    ],
)
def test_a_gguf_file_with_absurd_counts_is_a_sentence(data: bytes, said: str) -> None:
    source = Source(data)
    with pytest.raises(Odd, match=said):
        previews.gguf(source.read, source.size)
    assert source.count <= 2 * len(data)


def test_a_vocabulary_beyond_what_is_read_ends_the_reading() -> None:
    words = struct.pack("<IQ", 8, 20_000) + (struct.pack("<Q", 1 << 22) + bytes(64)) * 20
    source = Source(head(0, 1, key(b"k", 9, words)), GIANT)
    source.data += bytes(1 << 20)
    with pytest.raises(Odd):
        previews.gguf(source.read, source.size)
    assert source.count <= previews.MAX_GGUF


def test_rows_are_shown_a_view_at_a_time() -> None:
    lines = [json.dumps({"n": i}).encode() + b"\n" for i in range(45)]
    lines[3] = b"not json\n"
    source = Source(b"".join(lines) + b"\n")
    first = previews.rows(source.read, source.size)
    assert first.rows[:4] == [{"n": 0}, {"n": 1}, {"n": 2}, "not json\n"]
    assert first.after is not None
    second = previews.rows(source.read, source.size, first.after)
    assert second.rows[0] == {"n": 20}
    assert second.after is not None
    third = previews.rows(source.read, source.size, second.after)
    assert [row["n"] for row in third.rows] == [40, 41, 42, 43, 44]
    assert third.after is None


def test_a_row_longer_than_a_view_is_a_sentence() -> None:
    source = Source(b'"' + b"x" * (2 * previews.ROW_BYTES) + b'"\n')
    with pytest.raises(Odd, match="longer"):
        previews.rows(source.read, source.size)
    with pytest.raises(Odd, match="begins"):
        previews.rows(source.read, source.size, source.size + 1)


def test_texts_are_cut_between_letters_and_bytes_are_none() -> None:
    source = Source(("ö" * previews.MAX_TEXT).encode())
    assert set(previews.text(source.read, source.size - 1)) == {"ö"}
    for data in (b"a\0b", b"\xff\xfe\xfa"):
        with pytest.raises(Odd):
            previews.text(Source(data).read, len(data))
    deep = b"[" * 100_000
    with pytest.raises(Odd, match="JSON"):
        previews.document(Source(deep).read, len(deep))
    assert previews.document(Source(b'{"a":[1]}').read, 9).startswith('{\n  "a"')


def test_what_a_header_is_made_of_is_sound() -> None:
    """The files that other tests build are what real readers take."""
    data = safetensors({"w": (2, 2)})
    assert previews.safetensors(Source(data).read, len(data)).tensors[0].bytes == 8
