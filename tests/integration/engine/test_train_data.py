"""Rows under keys of their own, of one data set or several, are those under mlx-lm's keys."""

import json
from collections.abc import Callable, Sequence
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tuner.datasets import CacheDataset
from mlx_lm.utils import load_tokenizer

from espalier.specs import TrainSpec
from espalier.states import Reason
from tests.integration.engine.child import Child, make_task
from tests.integration.engine.conftest import SHORT
from worker.engine import data
from worker.engine.collection import open_data
from worker.engine.report import BadInput, Job, Orders, Reporter
from worker.engine.train import survey

ChildRunner = Callable[..., Child]

PAIRS = [(f"What is {n} and {n}?", f"SELECT {2 * n}") for n in range(10)]
SPEC = SHORT | {"iters": 2, "steps_per_report": 1, "mask_prompt": True, "lr_schedule": None}


def folder(path: Path, question: str, answer: str, pairs: Sequence[tuple[str, str]]) -> Path:
    path.mkdir(parents=True)
    lines = "".join(json.dumps({question: q, answer: a}) + "\n" for q, a in pairs)
    for split in ("train", "valid"):
        (path / f"{split}.jsonl").write_text(lines)
    return path


def test_features_name_the_keys_of_rows(model: Path, inside: ChildRunner, tmp_path: Path) -> None:
    plain = {"model": model, "data": folder(tmp_path / "plain", "prompt", "completion", PAIRS)}
    named = {"model": model, "data": folder(tmp_path / "named", "question", "sql", PAIRS)}
    features = {"prompt_feature": "question", "completion_feature": "sql"}
    ours, same = inside("train", SPEC | features, named), inside("train", SPEC, plain)
    assert len(ours.series("train_loss")) == 2
    assert ours.series("train_loss") == same.series("train_loss")
    assert ours.series("val_loss") == same.series("val_loss")
    table = ours.tables()["data"]
    (train,) = (dict(zip(table.columns, row, strict=True)) for row in table.rows[:1])
    assert (train["rows"], train["in_other_splits"]) == (10, 10)
    assert isinstance(train["tokens"], int)
    assert isinstance(train["target_tokens"], int)
    assert 0 < train["target_tokens"] < train["tokens"]
    assert "10 of 10 rows of valid are in train, too" in ours.notices
    wrong = inside("train", SPEC | features | {"completion_feature": "query"}, named)
    assert wrong.error.code is Reason.BAD_INPUT


def opened(tmp_path: Path, model: Path, entries: list[dict[str, Any]], split: str) -> Any:
    """Return a split of ``hf_dataset`` over ``one`` and ``two`` of the store."""
    inputs = {"model": model, "data": tmp_path / "one"}
    task = make_task(tmp_path / "job", "train", SPEC, inputs)
    spec = TrainSpec.model_validate(SPEC | {"model": "team/m", "hf_dataset": entries})
    more = {**task.inputs, "data_2": str(tmp_path / "two")}
    task = task.model_copy(update={"inputs": more, "spec": spec})
    job = Job(task, Reporter(StringIO()), Orders(StringIO()))
    return open_data(job, split, load_tokenizer(model), spec)


def test_several_data_sets_follow_one_another(model: Path, tmp_path: Path) -> None:
    folder(tmp_path / "one", "question", "sql", PAIRS[:6])
    folder(tmp_path / "two", "prompt", "completion", PAIRS[6:])
    folder(tmp_path / "all", "prompt", "completion", PAIRS)
    one = {"path": "team/one", "prompt_feature": "question", "completion_feature": "sql"}
    one |= {"train_split": "train[:50%]", "valid_split": "valid"}
    two = {"path": "team/two", "train_split": "train", "valid_split": "valid[-1:]"}
    train = opened(tmp_path, model, [one, two], "train")
    valid = opened(tmp_path, model, [one, two], "valid")

    (tmp_path / "one").rename(tmp_path / "kept")
    (tmp_path / "all").rename(tmp_path / "one")
    every = {"path": "team/all", "train_split": "train", "valid_split": "valid"}
    whole = opened(tmp_path, model, [every], "train")
    rows = [whole[i] for i in range(10)]
    assert [train[i] for i in range(len(train))] == rows[:3] + rows[6:]
    assert [valid[i] for i in range(len(valid))] == rows[:6] + rows[9:]
    with pytest.raises(BadInput, match=r"no test\.jsonl"):
        opened(tmp_path, model, [every | {"train_split": "test"}], "train")


ASKED = {"role": "user", "content": "How many?"}
TOLD = {"role": "assistant", "content": "Two."}
FORMATS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": f"Row {n} of some"} for n in range(7)],
    "completions": [{"prompt": f"Ask {n}", "completion": "one two" * n} for n in range(1, 8)],
    "chat": [{"messages": [ASKED, TOLD] * n} for n in range(1, 4)]
    + [{"messages": [ASKED, TOLD, ASKED]}],
    "tools": [
        {"messages": [ASKED, TOLD], "tools": [{"name": "count"}]},
        {"messages": [ASKED, TOLD]},
    ],
}


@pytest.mark.parametrize(
    ("name", "masked"),
    [("text", False), *product(("completions", "chat", "tools"), (False, True))],
)
def test_rows_encoded_together_are_those_that_mlx_lm_encodes(
    name: str, masked: bool, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "_CHUNK", 3)
    rows = FORMATS[name]
    raw = data.checked(f"{name}.jsonl", rows, load_tokenizer(model), None, masked)
    found = survey.Tokenized(name, CacheDataset(raw), lambda: None)
    assert [(tokens.tolist(), offset) for tokens, offset in found._rows] == [
        raw.process(row) for row in rows
    ]


def test_a_conversation_that_the_template_refuses_is_named(model: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [ASKED, TOLD]},
        {"messages": [ASKED, TOLD]},
        {"messages": [ASKED, 7]},
    ]
    raw = data.checked("train.jsonl", rows, load_tokenizer(model), None, True)
    with pytest.raises(BadInput, match=r"train\.jsonl line 3 cannot be made into tokens"):
        survey.Tokenized("train", CacheDataset(raw), lambda: None)
