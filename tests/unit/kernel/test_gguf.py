"""GGUF headers: what llama.cpp's own writer makes is sound, and what lies is found."""

import io
import struct
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import given
from hypothesis import strategies as st

from espalier import gguf as ours
from espalier.gguf import GgufFault, check_gguf


def written(path: Path, alignment: int | None = None) -> bytes:
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_block_count(2)
    writer.add_chat_template("{{ messages }}")
    writer.add_token_list(["a", "b", "c"])
    writer.add_token_scores([0.0, 1.0, 2.0])
    writer.add_tensor("half", np.ones((4, 32), np.float16))
    blocks = np.frombuffer(bytes(68), np.uint8).reshape(2, 34)
    writer.add_tensor("q", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("gguf") / "x.gguf")


def check(data: bytes) -> None:
    check_gguf(io.BytesIO(data), len(data))


def test_what_the_format_s_writer_makes_is_sound(sound: bytes, tmp_path: Path) -> None:
    check(sound)
    check(written(tmp_path / "aligned.gguf", 256))


def test_blocks_are_those_of_the_format_s_own_library() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    known = {kind: told for kind, told in ours.GGML_TYPES.items() if kind in theirs}
    assert known == {kind: theirs[kind] for kind in known}
    assert len(known) > 30


@pytest.mark.parametrize(
    ("at", "put", "why"),
    [
        (0, b"GGML", "does not begin"),
        (4, struct.pack("<I", 1), "version 1 is not"),
        (4, struct.pack(">I", 3), "is not 2 or 3"),
        (8, struct.pack("<Q", 1 << 40), "tensors in a file of"),
        (16, struct.pack("<Q", 1 << 16), "keys in a file of"),
        (24, struct.pack("<Q", 1 << 33), "key of its metadata claims"),
    ],
)
def test_counts_that_the_file_cannot_hold(sound: bytes, at: int, put: bytes, why: str) -> None:
    with pytest.raises(GgufFault, match=why):
        check(sound[:at] + put + sound[at + len(put) :])


def test_tensors_lie_inside_of_the_file_and_apart(sound: bytes) -> None:
    with pytest.raises(GgufFault, match="ends at byte"):
        check(sound[:-64])
    where = sound.index(b"q", sound.index(b"half")) + 1  # of the second tensor's description
    offset = where + 4 + 2 * 8 + 4
    assert struct.unpack_from("<Q", sound, offset) == (256,)
    for moved, why in ((0, "inside of another"), (7, "not aligned"), (1 << 40, "ends at byte")):
        with pytest.raises(GgufFault, match=why):
            check(sound[:offset] + struct.pack("<Q", moved) + sound[offset + 8 :])


@given(st.data())
def test_no_damage_does_more_than_be_found(sound: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(sound) - 1))
    damaged = sound[:at] + data.draw(st.binary(max_size=16)) + sound[at + 8 :]
    with suppress(GgufFault):  # and nothing else: no MemoryError, no other exception
        check(damaged)
