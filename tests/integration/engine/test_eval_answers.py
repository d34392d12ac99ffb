"""Answers: generated for held-out prompts, judged by every metric, the base beside the adapter."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier.states import Reason
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


def dataset(folder: Path, *rows: dict[str, Any]) -> Path:
    """Write rows as a test split."""
    folder.mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "test.jsonl").write_text(text)
    return folder


def test_conversations_are_asked_with_their_template(
    inputs: dict[str, Path], inside: ChildRunner, tmp_path: Path
) -> None:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    said = {"role": "assistant", "content": "Ann"}
    chat = dataset(tmp_path / "chat", *({"messages": [*asked, said]} for _ in range(4)))
    spec = {"metrics": ["exact_match"], "max_tokens": 4, "test_batches": 1, "samples": 2}
    run = inside("eval", spec, inputs | {"data": chat})
    prompt = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert {(s["prompt"], s["reference"]) for s in samples(run)} == {(prompt, "Ann")}
    assert run.series("exact_match")[0] == 0
    pairs = dataset(tmp_path / "pairs", *({"prompt": "Who?", "completion": "Bob"},) * 4)
    run = inside("eval", spec, inputs | {"data": pairs})
    assert {s["reference"] for s in samples(run)} == {"Bob"}
    assert {set(s["answers"]).pop() for s in samples(run)} == {"tuned"}


TEXT = {"text": "Q: how many? A: SELECT a FROM t"}
PROSE = {"text": "Q: how many? A: about four"}


@pytest.mark.parametrize(
    ("rows", "spec", "said"),
    [
        ([TEXT], {"metrics": ["exact_match"]}, "rows with text"),
        ([TEXT, {"text": "no answer"}], {"answer_after": "A:"}, "line 2 has no 'A:'"),
        ([TEXT], {"answer_after": "t"}, "line 1 has no answer behind 't'"),
        ([PROSE], {"metrics": ["sql_match"], "answer_after": "A:"}, "sql_match cannot judge"),
        (
            [TEXT | {"s": "{}"}, TEXT],
            {"metrics": ["json_schema"], "json_schema_feature": "s", "answer_after": "A:"},
            "line 2 has no s, which json_schema_feature names",
        ),
        (
            [TEXT | {"s": "{"}],
            {"metrics": ["json_schema"], "json_schema_feature": "s", "answer_after": "A:"},
            "the schema is none",
        ),
        (
            [TEXT | {"s": "CREATE TABLE u (a)"}],
            {"metrics": ["execution_match"], "sql_schema_feature": "s", "answer_after": "A:"},
            "no such table: t",
        ),
        ([{"messages": [{"role": "user", "content": "Who?"}]}], {}, "do not end with an answer"),
    ],
)
def test_metrics_that_cannot_judge_are_refused_before_anything_is_measured(
    rows: list[dict[str, Any]],
    spec: dict[str, Any],
    said: str,
    inputs: dict[str, Path],
    inside: ChildRunner,
    tmp_path: Path,
) -> None:
    data = dataset(tmp_path / "rows", *rows)
    asked = {"metrics": ["exact_match"], "batch_size": 1, **spec}
    run = inside("eval", asked, inputs | {"data": data})
    assert (run.error.code, said in run.error.message) == (Reason.BAD_INPUT, True), run.error
    assert not run.series("test_loss")


def test_rows_that_a_metric_cannot_judge_by_are_left_out_and_told(
    inputs: dict[str, Path], inside: ChildRunner, tmp_path: Path
) -> None:
    data = dataset(tmp_path / "rows", TEXT, PROSE)
    spec = {"metrics": ["sql_match"], "answer_after": "A:", "batch_size": 1, "max_tokens": 4}
    run = inside("eval", spec, inputs | {"data": data})
    assert "sql_match leaves out 1 of 2 rows" in run.notices
    scores = [s["answers"]["tuned"]["scores"]["sql_match"] for s in samples(run)]
    assert scores[1] is None
    assert run.series("sql_match")[0] == scores[0]
