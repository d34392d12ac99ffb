"""Answers: generated for held-out prompts, judged by every metric, the base beside the adapter."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.engine.child import Child

ChildRunner = Callable[..., Child]

#: Everything at once, over few rows.
ASKED: dict[str, Any] = {
    "test_batches": 1,
    "samples": 6,
    "max_tokens": 24,
    "answer_after": "A:",
    "metrics": ["exact_match", "sql_match", "execution_match", "regex", "rouge_l"],
    "pattern": "^SELECT ",
    "bootstrap": 200,
}


def samples(run: Child) -> list[dict[str, Any]]:
    lines = (run.output("report") / "samples.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_base_and_adapter_answer_the_same_prompts(
    trained: Child, inputs: dict[str, Path], child: ChildRunner
) -> None:
    run = child("eval", ASKED, inputs | {"adapter": trained.output("adapter")})
    assert run.done.state == "succeeded"
    found = samples(run)
    assert len(found) == 6
    for sample in found:
        assert sample["prompt"].endswith("A:")
        assert sample["reference"].startswith("SELECT ")
        assert set(sample["answers"]) == {"base", "tuned"}
        for answer in sample["answers"].values():
            assert set(answer["scores"]) == set(ASKED["metrics"])
            assert 0 <= answer["tokens"] <= 24
    values = run.series("rouge_l"), run.series("base_rouge_l")
    rouge = [s["answers"]["tuned"]["scores"]["rouge_l"] for s in found]
    assert values[0][24] == pytest.approx(sum(rouge) / 6)
    # The tiny model was pre-trained on such rows: it answers with SQL before and after.
    assert run.series("regex")[24] > 0
    assert values[1][24] > 0
    rows = {row[0]: row for row in run.tables()["metrics"].rows}
    assert {"test_loss", *ASKED["metrics"]} < set(rows)
    assert rows["rouge_l"][2] == values[0][24]
    again = child("eval", ASKED, inputs | {"adapter": trained.output("adapter")})
    assert samples(again) == found
