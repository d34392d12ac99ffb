"""An answer beside its reference, word by word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from web.pages.samples import MOST_WORDS, compared


@pytest.mark.parametrize(
    ("reference", "answer", "pieces"),
    [
        ("SELECT a", "SELECT a", [("", "SELECT a")]),
        ("a b c", "a c", [("", "a "), ("old", "b "), ("", "c")]),
        ("a c", "a b c", [("", "a "), ("new", "b "), ("", "c")]),
        ("one", "two", [("old", "one"), ("new", "two")]),
        ("one", "", [("old", "one")]),
    ],
)
def test_what_differs_is_told(reference: str, answer: str, pieces: list[tuple[str, str]]) -> None:
    assert [(p.kind, p.text) for p in compared(reference, answer)] == pieces


@given(st.text(max_size=60), st.text(max_size=60))
def test_both_texts_can_be_read_from_it(reference: str, answer: str) -> None:
    pieces = compared(reference, answer)
    assert "".join(p.text for p in pieces if p.kind != "old") == answer
    assert "".join(p.text for p in pieces if p.kind != "new") == reference


def test_long_texts_are_not_compared() -> None:
    long = "word " * MOST_WORDS
    assert [p.kind for p in compared("other", long)] == [""]
