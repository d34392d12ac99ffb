"""What is found out about a data set, and what is refused with file, line and column."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from espalier.errors import InvalidInput
from scheduler.contents import datasets
from scheduler.contents.datasets import DatasetReport

TEXT = {"text": "Q: one? A: 1"}
COMPLETION = {"prompt": "one?", "completion": "1"}
CHAT = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "1"}]}
CALLS = {
    "messages": [
        {"role": "user", "content": "?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
    ],
    "tools": [{"type": "function", "function": {"name": "f"}}],
}


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def check(files: Mapping[str, bytes], features: object = None) -> DatasetReport:
    def opener(data: bytes) -> datasets.Opener:
        return lambda: io.BytesIO(data)

    return datasets.check({path: opener(data) for path, data in files.items()}, features)


def refusal(files: Mapping[str, bytes], features: object = None) -> InvalidInput:
    with pytest.raises(InvalidInput) as refused:
        check(files, features)
    return refused.value


@pytest.mark.parametrize(
    ("row", "name"),
    [(TEXT, "text"), (COMPLETION, "completions"), (CHAT, "chat"), (CALLS, "tools")],
)
def test_formats_are_detected(row: dict[str, Any], name: str) -> None:
    train = lines(row, row, row)
    report = check({"train.jsonl": train, "valid.jsonl": lines(row), "README.md": b"# data"})
    assert report.format == name
    assert {split: found.rows for split, found in report.splits.items()} == {"train": 3, "valid": 1}
    assert report.splits["train"].sha256 == hashlib.sha256(train).hexdigest()
    assert report.first == [row, row, row]
    assert report.lengths.counts[-1] == 3
    assert report.notes == ["Without test.jsonl an evaluation has to name another split."]
    assert json.loads(json.dumps(report.as_meta()))["format"] == name


def test_keys_of_ones_own() -> None:
    rows = lines({"q": "one?", "a": "1"})
    assert (
        "it needs text, prompt and completion, or messages" in refusal({"train.jsonl": rows}).detail
    )
    features = {"prompt_feature": "q", "completion_feature": "a"}
    report = check({"train.jsonl": rows}, features)
    assert (report.format, report.features) == ("completions", features)
    for wrong in ({"prompt": "q"}, {"prompt_feature": 1}, ["q"], "q"):
        assert refusal({"train.jsonl": rows}, wrong).errors[0]["loc"] == ["meta", "features"]


GOOD = lines(TEXT).strip()


@pytest.mark.parametrize(
    ("second", "column", "problem"),
    [
        (b'{"text": "a" "b"}', 14, "not JSON: Expecting ',' delimiter"),
        (b'{"text": "a"', 13, "not JSON"),
        (b'{"text": NaN}', 1, "NaN is not a JSON number"),
        (b"[" * 100_000, 1, "not JSON that can be read"),
        (b"", 1, "an empty line: remove it"),
        (b"  ", 1, "an empty line"),
        (b'["text"]', 1, "a list, not an object"),
        (b'"text"', 1, "text, not an object"),
        (b'{"text": "\xff"}', 11, "not UTF-8"),
        ('{"text": "é'.encode() + b'\xe9"}', 12, "not UTF-8"),
        (b'{"text": "a\0"}', 12, "a NUL byte"),
        (b'{"text": "a\\ud800"}', 12, "lone surrogate"),
        (b"{}", 1, "'text' missing"),
        (b'{"prompt": "a", "completion": "b"}', 1, "the rows before are text"),
        (b'{"id": 1, "text": 5}', 11, "text is a number: it must be text"),
        (b'{"text": null}', 2, "text is null"),
        (b'{"text": " \\n "}', 2, "no tokens to learn from"),
    ],
    ids=lambda value: None if isinstance(value, int) else str(value)[:20],
)
def test_a_broken_line_is_named(second: bytes, column: int, problem: str) -> None:
    error = refusal({"train.jsonl": b"\n".join([GOOD, second, GOOD]) + b"\n"})
    assert [fault["loc"] for fault in error.errors] == [["train.jsonl", 2, column]]
    assert problem in error.errors[0]["msg"]
    assert error.detail.startswith(f"train.jsonl line 2, column {column}: ")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "a", "completion": ""}, "completion is empty: no tokens to learn from"),
        ({"prompt": "", "completion": "b"}, "put a text without a prompt under 'text'"),
        ({"prompt": "a", "completion": ["b"]}, "completion is a list"),
        ({"prompt": "a"}, "it needs text, prompt and completion"),
        ({"messages": []}, "and not empty"),
        ({"messages": "hi"}, "must be a list of messages"),
        ({"messages": ["hi"]}, "messages[0] is not an object"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "messages[0] has the role 'bot'"),
        ({"messages": [{"role": "user", "content": 1}]}, "content that is a number"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no assistant message"),
        (
            {"messages": [*CHAT["messages"], {"role": "assistant", "content": " "}]},
            "no tokens to learn from",
        ),
        ({**CHAT, "tools": "f"}, "tools must be a list of objects"),
        ({"messages": [{"role": "assistant", "tool_calls": "f"}]}, "tool_calls that are not"),
    ],
)
def test_a_row_that_cannot_be_learned_from_is_refused(row: dict[str, Any], problem: str) -> None:
    error = refusal({"train.jsonl": lines(row)})
    assert error.errors[0]["loc"][:2] == ["train.jsonl", 1]
    assert problem in error.errors[0]["msg"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "it has no rows"),
        (b"\xef\xbb\xbf" + GOOD, "byte order mark"),
        (GOOD.decode().encode("utf-16"), "this is UTF-16"),
        (b"[\n" + GOOD + b"\n]", "one JSON value over many lines"),
        (b"[" + GOOD + b"," + GOOD + b"]", "a JSON list"),
        (b"\x1f\x8b\x08\x00" * 100, "a NUL byte"),
    ],
)
def test_a_file_that_is_something_else_is_refused(data: bytes, problem: str) -> None:
    error = refusal({"train.jsonl": GOOD, "valid.jsonl": data})
    assert error.errors[0]["loc"] == ["valid.jsonl", 1, 1 if b"\x1f" not in data else 4]
    assert problem in error.errors[0]["msg"]


def test_files_that_nobody_would_read_are_refused() -> None:
    error = refusal({"data/train.jsonl": GOOD, "validation.jsonl": GOOD, "test.json": GOOD})
    assert [(fault["loc"][0], fault["msg"].split(": ")[1]) for fault in error.errors] == [
        ("data/train.jsonl", "the data is in train.jsonl, at the top"),
        ("test.json", "the data is in test.jsonl, at the top"),
        ("validation.jsonl", "the data is in valid.jsonl, at the top"),
        ("train.jsonl", "train on train.jsonl, or evaluate on test.jsonl"),
    ]
    assert check({"test.jsonl": GOOD}).notes[0].startswith("Without train.jsonl")


def test_splits_have_one_format() -> None:
    error = refusal({"train.jsonl": lines(TEXT), "valid.jsonl": lines(CHAT)})
    assert error.errors[0]["loc"] == ["valid.jsonl", 1, 1]
    assert "the rows before are text (text)" in error.errors[0]["msg"]


def test_all_faults_are_told_up_to_a_limit() -> None:
    three = refusal({"train.jsonl": b"{\n" * 2 + GOOD, "test.jsonl": b"{}"})
    assert [fault["loc"][:2] for fault in three.errors] == [
        ["train.jsonl", 1],
        ["train.jsonl", 2],
        ["test.jsonl", 1],
    ]
    assert three.detail.endswith("(and 2 more).")
    many = refusal({"train.jsonl": b"{\n" * 10_000})
    assert len(many.errors) == datasets.MAX_FAULTS
    assert many.detail.endswith("(and at least 19 more).")


def test_a_huge_line_is_refused_without_being_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MAX_LINE", 1 << 20)
    data = GOOD + b"\n" + b"x" * (5 << 20) + b"\n" + b"{\n"
    error = refusal({"train.jsonl": data})
    assert [fault["loc"][1] for fault in error.errors] == [2, 3]
    assert "longer than 1 MiB" in error.errors[0]["msg"]


texts = st.text(min_size=1).filter(str.strip)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.fixed_dictionaries({"text": texts}), min_size=1, max_size=20), st.booleans())
def test_whatever_text_json_holds_is_accepted(rows: list[dict[str, str]], ascii_only: bool) -> None:
    data = "\r\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows).encode()
    report = check({"train.jsonl": data})
    assert report.splits["train"].rows == len(rows)
    assert report.splits["train"].characters == sum(len(row["text"]) for row in rows)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=300))
def test_a_histogram_counts_every_row(lengths: list[int]) -> None:
    found = datasets.histogram(Counter(lengths), "tokens")
    assert len(found.counts) <= datasets.BINS
    for low, high, count in zip(found.edges, found.edges[1:], found.counts, strict=False):
        assert count == sum(low <= length < high for length in lengths)
    assert sum(found.counts) == len(lengths)
    assert found.median == sorted(lengths)[(len(lengths) - 1) // 2]
    assert found.longest == max(lengths)


def test_tokens_are_counted_by_the_models_tokenizer() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    data = tokenizer.to_str().encode()
    found = datasets.token_lengths([{"text": "a b a"}, {"text": "x"}], data)
    assert (found.unit, found.longest, found.counts) == ("tokens", 3, (0, 1, 0, 1))
    with pytest.raises(InvalidInput, match=r"tokenizer\.json cannot be read"):
        datasets.token_lengths([], b"{}")


def test_wikisql_is_a_text_data_set() -> None:
    folder = Path(__file__).parents[3].parent / "shared" / "data" / "wikisql"
    if not folder.is_dir():
        pytest.skip("the WikiSQL files are not here")
    report = check({path.name: path.read_bytes() for path in folder.glob("*.jsonl")})
    assert report.format == "text"
    assert set(report.splits) == {"train", "valid", "test"}
