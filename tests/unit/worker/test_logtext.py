from hypothesis import given
from hypothesis import strategies as st

from worker.logtext import CHUNK_BYTES, PENDING_BYTES, TAIL_BYTES, LogText


def test_an_unfinished_line_waits_for_its_end() -> None:
    log = LogText()
    log.write(b"one\ntwo\nthr")
    chunk = log.take()
    assert chunk is not None
    assert (chunk.offset, chunk.text) == (0, "one\ntwo\n")
    assert log.take() is None
    log.write("ée\n".encode())
    chunk = log.take()
    assert chunk is not None
    assert (chunk.offset, chunk.text) == (8, "thrée\n")


def test_the_end_comes_without_a_line_end() -> None:
    log = LogText()
    log.write(b"killed in mid-")
    assert log.take() is None
    chunk = log.take(final=True)
    assert chunk is not None
    assert chunk.text == "killed in mid-"
    assert log.take(final=True) is None


def test_what_is_no_text_becomes_a_mark() -> None:
    log = LogText()
    log.write(b"a\0b\xff\n")
    chunk = log.take()
    assert chunk is not None
    assert chunk.text == "a\ufffdb\ufffd\n"
    log.write(b"next\n")
    chunk = log.take()
    assert chunk is not None
    assert chunk.offset == len("a\ufffdb\ufffd\n".encode())  # bytes of the text, not of the junk


def test_a_flood_is_counted_not_kept() -> None:
    log = LogText()
    line = b"x" * 1023 + b"\n"
    for _ in range(PENDING_BYTES // len(line) + 10):
        log.write(line)
    kept = 0
    while chunk := log.take():
        kept += len(chunk.text)
    assert kept == PENDING_BYTES
    log.write(b"the end\n")
    chunk = log.take()
    assert chunk is not None
    assert chunk.text == "\n[10240 bytes of output were dropped here]\nthe end\n"


def test_the_tail_is_kept() -> None:
    log = LogText()
    log.write(b"x" * TAIL_BYTES + b"the end")
    assert len(log.tail) == TAIL_BYTES
    assert log.tail.endswith("the end")


@given(st.text(st.sampled_from("aé€😀\n"), max_size=60), st.integers(1, 7), st.booleans())
def test_pieces_join_to_the_whole(text: str, size: int, long_line: bool) -> None:
    text = "é" * CHUNK_BYTES + text if long_line else text  # longer than a chunk, and no line end
    data = text.encode()
    log = LogText()
    got = ""
    for start in range(0, len(data), size if not long_line else CHUNK_BYTES // size):
        step = size if not long_line else CHUNK_BYTES // size
        log.write(data[start : start + step])
        while chunk := log.take():
            assert chunk.offset == len(got.encode())
            got += chunk.text
    while chunk := log.take(final=True):
        assert chunk.offset == len(got.encode())
        got += chunk.text
    assert got == text
