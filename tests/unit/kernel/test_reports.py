"""Reports: what is told of jobs, and that nothing in them is taken for Markdown."""

import math
from typing import Any

import pytest

from espalier.reports.compose import LOSSES, compose
from espalier.reports.markdown import markdown
from espalier.specs import EvalSpec, TrainSpec


def document(kind: str, **given: Any) -> dict[str, Any]:
    """Return a job as the API tells it."""
    spec = TrainSpec(model="team/base", data="team/sql") if kind == "train" else None
    spec = spec or EvalSpec(model="team/base", data="team/sql")
    return {
        "id": f"{kind}1",
        "kind": kind,
        "state": "succeeded",
        "name": f"team/{kind}",
        "project": "team",
        "note": "",
        "spec": spec.model_dump(mode="json"),
        "created_by": "ada",
        "created_at": "2026-11-20T10:00:00Z",
        "started_at": "2026-11-20T10:01:00Z",
        "finished_at": "2026-11-20T10:03:20Z",
        "inputs": [
            {"role": "model", "ref": "team/base", "pinned": "team/base@v1", "job": None},
            {"role": "adapter_2", "ref": "team/a", "pinned": "team/a@v2", "job": None},
        ],
        "outputs": [],
        "metrics": {},
        "proofs": [],
        "tables": [],
        "attempts": _tries([{"worker": "studio-1", "state": "succeeded", "reason": "ok"}]),
        "ladder": [],
        "error": None,
    } | {key: _tries(value) if key == "attempts" else value for key, value in given.items()}


def _tries(attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"peak_memory_bytes": 1 << 30, **attempt} for attempt in attempts]


def test_what_holds_for_all_is_told_once() -> None:
    report = compose([document("train"), document("eval")], {})
    assert report.title == "train → eval"
    pairs = {pair.name: pair.value for pair in report.pairs}
    assert pairs == {
        "project": "team",
        "model": "team/base@v1",
        "adapter": "team/a@v2",
        "submitted by": "ada, 2026-11-20 10:00 UTC",
        "workers": "studio-1",
        "took": "2 min 20 s",
    }


def test_losses_are_few_and_the_best_is_among_them() -> None:
    points = [
        {"step": s, "train_loss": 1 / (s + 1), "val_loss": 1 + abs(s - 37) / 100} for s in range(99)
    ]
    (section,) = compose([document("train")], {"train1": points}).sections
    (losses,) = section.tables
    assert len(losses.rows) <= LOSSES + 1
    assert [row[0] for row in losses.rows if row[-1] == "best"] == ["37"]
    assert (losses.rows[0][0], losses.rows[-1][0]) == ("0", "98")


def test_a_row_tells_what_was_last_reported_before_it() -> None:
    points = [
        {"step": 0, "val_loss": 2.0},
        {"step": 10, "train_loss": 1.5},
        {"step": 14, "val_loss": 1.25},
        {"step": 20, "train_loss": 1.0},
    ]
    (section,) = compose([document("train")], {"train1": points}).sections
    assert section.tables[0].columns == ("step", "train loss", "val loss", "")
    assert section.tables[0].rows == (("0", "–", "2.0000", ""), ("14", "1.5000", "1.2500", "best"))


def test_formats_of_both_engines_stand_in_one_table() -> None:
    mlx = {
        "name": "variants",
        "columns": ["variant", "size_bytes", "perplexity", "recommended"],
        "rows": [["original", 1 << 20, 2.0, False], ["4-bit", 1 << 18, math.e, True]],
    }
    both = {
        "name": "engines",
        "columns": ["engine", "type", "size_bytes", "perplexity"],
        "rows": [["mlx", "f32", 1 << 20, 2.5], ["llama.cpp", "q4_0", 300_000, 2.75]],
    }
    (table,) = compose(
        [document("quantize", tables=[mlx]), document("export", tables=[both])], {}
    ).tables
    assert table.columns == ("engine", "format", "size", "perplexity", "increase")
    assert table.rows == (
        ("MLX", "original", "1.0 MiB", "2.0000", "+0.0%"),
        ("MLX", "4-bit", "256 KiB", "2.7183", "+35.9%"),
        ("MLX", "f32", "1.0 MiB", "2.5000", "+0.0%"),
        ("llama.cpp", "q4_0", "293 KiB", "2.7500", "+10.0%"),
    )
    assert compose([document("quantize", tables=[mlx])], {}).tables == ()


def test_a_failed_job_says_why_and_what_was_tried() -> None:
    failed = document(
        "train",
        state="failed",
        error={"message": "The loss became nan by step 40.", "code": "nan_loss"},
        attempts=[
            {"worker": "studio-1", "state": "lost", "reason": "lost"},
            {"worker": "studio-2", "state": "failed", "reason": "nan_loss"},
        ],
    )
    (section,) = compose([failed], {}).sections
    pairs = {pair.name: pair.value for pair in section.pairs}
    assert pairs["error"] == "The loss became nan by step 40."
    assert pairs["attempts"] == "2 (studio-1: lost, studio-2: nan_loss)"


@pytest.mark.parametrize(
    "hostile", ["a | b", "<img src=x>", "[x](javascript:y)", "*b*\n# h", "`c`"]
)
def test_names_from_outside_stand_for_themselves(hostile: str) -> None:
    proofs = [{"name": hostile, "value": 1.0, "limit": None, "ok": None, "detail": hostile}]
    text = markdown(compose([document("eval", note=hostile, proofs=proofs)], {}))
    assert "\\" in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    for line in lines:
        assert line.replace("\\|", "").count("|") == 6
    assert "<img" not in text.replace("\\<", "")
    assert "\n# h" not in text
    assert "](java" not in text.replace("\\]", "")


def test_the_spec_cannot_leave_its_block() -> None:
    job = document("eval")
    job["spec"]["note"] = "```\n# out"
    text = markdown(compose([job], {}))
    assert "\n````yaml\n" in text
    assert text.rstrip().endswith("</details>")
