"""The demo's data: WikiSQL's format, the same bytes for the same seed, no row in two splits."""

import json
import re
from pathlib import Path

import pytest

from espalier.textsql import write_dataset

_ROW = re.compile(
    r"table: (1-\d+-\d)\ncolumns: (.+)\nQ: .+\?\nA: SELECT (?:(?:COUNT|MAX|MIN|AVG|SUM) )?(\w+)"
    r" FROM \1 WHERE (\w+) [=<>] '.+'"
)


def read(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_rows_are_wikisqls(tmp_path: Path) -> None:
    assert write_dataset(tmp_path, rows=200, seed=1) == {"train": 200, "valid": 32, "test": 32}
    splits = {name: read(tmp_path / f"{name}.jsonl") for name in ("train", "valid", "test")}
    assert [len(rows) for rows in splits.values()] == [200, 32, 32]
    assert len({row for rows in splits.values() for row in rows}) == 264
    for row in splits["train"]:
        match = _ROW.fullmatch(row)
        assert match, row
        assert {match[3], match[4]} <= set(match[2].split(", "))


def test_a_seed_gives_the_same_bytes_and_another_gives_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_dataset(tmp_path / name, rows=50, seed=seed)
    first, second, third = ((tmp_path / name / "train.jsonl").read_bytes() for name in "abc")
    assert first == second != third


@pytest.mark.parametrize("rows", [0, 100_001])
def test_rows_out_of_range_are_refused(rows: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(rows)):
        write_dataset(tmp_path, rows=rows)
