"""The data report: rows as tokens, counted, cut, repeated, and in two splits at once."""

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx_lm.tuner.datasets import CacheDataset

from espalier.messages import EVENT, NoticeEvent, TableEvent
from tests.integration.engine.child import make_task
from tests.unit.engine.test_data import make_dataset
from worker.engine.data import Rows, padded, target_tokens
from worker.engine.report import BadInput, Job, Orders, Reporter
from worker.engine.train import survey
from worker.engine.train.survey import COLUMNS, Tokenized


def split(*lengths: int, first: int = 1) -> Any:
    """Rows of these lengths; the same length is the same row."""
    return CacheDataset(Rows([(list(range(first, first + n)), 1) for n in lengths]))


def surveyed(
    tmp_path: Path, splits: dict[str, Any], limit: int
) -> tuple[dict[str, dict[str, Any]], list[str], dict[str, Tokenized]]:
    """Return the table by split, the notices, and the splits as tokens."""
    said = StringIO()
    refs = {"model": tmp_path, "data": tmp_path}
    job = Job(make_task(tmp_path, "train", {}, refs), Reporter(said), Orders(StringIO()))
    read = survey.read(job, splits, limit)
    events = [EVENT.validate_json(line) for line in said.getvalue().splitlines()]
    (table,) = (event for event in events if isinstance(event, TableEvent))
    assert (table.name, table.columns) == ("data", COLUMNS)
    rows = {str(row[0]): dict(zip(COLUMNS, row, strict=True)) for row in table.rows}
    return rows, [e.message for e in events if isinstance(e, NoticeEvent)], read


def test_rows_are_counted_cut_and_compared(tmp_path: Path) -> None:
    train, valid, test = split(4, 9, 20, 4, 4), split(9, 30, 5, 9), split(30, 7, first=2)
    table, notices, _ = surveyed(tmp_path, {"train": train, "valid": valid, "test": test}, 16)
    assert table["train"] == {
        "split": "train",
        "rows": 5,
        "tokens": 41,
        "target_tokens": target_tokens([train[i] for i in range(5)], 16),
        "longest_row": 20,
        "median_row": 4,
        "truncated_rows": 1,
        "tokens_lost": 4,
        "duplicates": 2,
        "in_other_splits": 1,
    }
    assert [table[name]["in_other_splits"] for name in ("valid", "test")] == [2, 0]
    assert [table[name]["duplicates"] for name in ("valid", "test")] == [1, 0]
    (leak,) = [text for text in notices if "are in train, too" in text]
    assert leak.startswith("2 of 4 rows of valid")
    (cut,) = [text for text in notices if "of train are longer" in text]
    assert cut.startswith("1 of 5 rows")
    assert "4 tokens (9.8%)" in cut


def test_sound_data_is_not_talked_about(tmp_path: Path) -> None:
    _, notices, _ = surveyed(tmp_path, {"train": split(4, 5, 6), "valid": split(7)}, 64)
    assert notices == []


def test_tokens_read_at_once_are_batched_as_rows_are(tmp_path: Path) -> None:
    plain = make_dataset(40)
    _, _, read = surveyed(tmp_path, {"train": make_dataset(40)}, 64)
    assert len(read["train"]) == 40
    assert [read["train"].itemlen(i) for i in range(40)] == [plain.itemlen(i) for i in range(40)]
    numbers = [3, 17, 5]
    ours, theirs = ([d[i] for i in numbers] for d in (read["train"], plain))
    for one, other in zip(padded(ours, 48), padded(theirs, 48), strict=True):
        assert np.array_equal(np.array(one), np.array(other))


def test_all_rows_without_a_target_are_named(tmp_path: Path) -> None:
    rows: list[Any] = [(list(range(20)), offset) for offset in (3, 12, 11, 19, 2)]
    with pytest.raises(BadInput, match=r"train\.jsonl line 2 leaves no target") as caught:
        surveyed(tmp_path, {"train": CacheDataset(Rows(rows))}, 12)
    assert "So do 1 more of 5 rows (lines 4)" in caught.value.message
