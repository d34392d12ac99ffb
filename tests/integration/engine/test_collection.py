"""mlx-lm's ``hf_dataset`` over our data sets: splits, keys and several of them in one training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tuner.datasets import CacheDataset
from mlx_lm.utils import load_tokenizer

from espalier.specs import TrainSpec, parse
from tests.integration.engine.child import Child
from worker.engine.collection import open_data
from worker.engine.report import BadInput


class Inputs:
    """The part of a job that is asked here."""

    def __init__(self, **directories: Path) -> None:
        self._directories = directories

    def need(self, role: str) -> Path:
        return self._directories[role]


def rows(directory: Path, **splits: list[dict[str, Any]]) -> Path:
    directory.mkdir()
    for name, found in splits.items():
        text = "".join(json.dumps(row) + "\n" for row in found)
        (directory / f"{name}.jsonl").write_text(text)
    return directory


@pytest.fixture
def two(tmp_path: Path) -> dict[str, Path]:
    articles = [{"article": f"number {n}", "other": "x"} for n in range(20)]
    asked = [{"q": f"what is {n}", "a": f"it is {n}"} for n in range(10)]
    return {
        "data": rows(tmp_path / "articles", train=articles),
        "data_2": rows(tmp_path / "asked", train=asked, valid=asked[:4]),
    }


SPEC: dict[str, Any] = {
    "model": "team/model",
    "hf_dataset": [
        {"path": "team/articles", "train_split": "train[:50%]", "text_feature": "article"},
        {"path": "team/asked", "train_split": "train[2:5]", "valid_split": "valid",
         "prompt_feature": "q", "completion_feature": "a"},
    ],
}  # fmt: skip


def test_rows_are_those_of_the_splits_in_their_order(model: Path, two: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(model)
    spec = parse(TrainSpec, SPEC)
    job: Any = Inputs(**two)
    train = open_data(job, "train", tokenizer, spec)
    assert isinstance(train, CacheDataset)
    assert len(train) == 10 + 3
    assert "number 9" in tokenizer.decode(train[9][0])
    assert "what is 2" in tokenizer.decode(train[10][0])
    assert "it is 4" in tokenizer.decode(train[12][0])
    valid = open_data(job, "valid", tokenizer, spec)
    assert valid is not None
    assert len(valid) == 2 + 4
    assert "number 18" in tokenizer.decode(valid[0][0])
    assert open_data(job, "test", tokenizer, spec) is None


def test_a_split_that_is_not_there_names_data_set_and_file(
    model: Path, two: dict[str, Path]
) -> None:
    job: Any = Inputs(**two)
    given = {**SPEC, "hf_dataset": [{**SPEC["hf_dataset"][0], "valid_split": "valid"}]}
    with pytest.raises(BadInput, match=r"team/articles has no valid\.jsonl"):
        open_data(job, "valid", load_tokenizer(model), parse(TrainSpec, given))
    given = {**SPEC, "hf_dataset": [{**SPEC["hf_dataset"][0], "train_split": "train[:0%]"}]}
    with pytest.raises(BadInput, match="has no rows"):
        open_data(job, "train", load_tokenizer(model), parse(TrainSpec, given))


def test_a_training_runs_on_both(
    model: Path, two: dict[str, Path], inside: Callable[..., Child]
) -> None:
    spec = {"hf_dataset": [dict(item) for item in SPEC["hf_dataset"]], "data": "team/articles",
            "iters": 2, "batch_size": 2, "num_layers": 1, "val_batches": 1,
            "steps_per_report": 1, "lora_parameters": {"rank": 2}}  # fmt: skip
    done = inside("train", spec, {"model": model, **two})
    assert done.status == 0, done.log
    assert set(done.series("train_loss")) == {1, 2}
    config = json.loads((done.output("adapter") / "adapter_config.json").read_text())
    assert [item["path"] for item in config["hf_dataset"]] == ["team/articles", "team/asked"]
