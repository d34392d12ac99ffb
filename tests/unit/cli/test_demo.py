"""What the demo asks for, and when it says that all is well."""

from typing import Any

import pytest
from typer.testing import CliRunner

from espalier.cli.app import app
from espalier.cli.demo import Made, pipeline, verdict
from espalier.specs import TrainSpec

KINDS = ["train", "eval", "fuse", "quantize", "export"]


@pytest.mark.parametrize("model", ["team/tiny@v1", "hf:Qwen/Qwen2.5-0.5B-Instruct"])
def test_the_pipeline_is_the_main_job(model: str) -> None:
    steps = pipeline(Made(model, "team/text-to-sql@v1")).steps
    assert [step.spec.kind for step in steps] == KINDS
    train, sweep, fuse, quantize, export = (step.spec for step in steps)
    assert isinstance(train, TrainSpec)
    assert train.iters // train.save_every >= 3, "the sweep has checkpoints to compare"
    assert sweep.refs() == {"model": model, "data": "team/text-to-sql@v1", "adapter": "step:train"}
    assert fuse.refs()["adapter"] == "step:train"
    assert quantize.refs()["model"] == export.refs()["model"] == "step:fuse"
    assert (export.kind, getattr(export, "type", None)) == ("export", "q8_0")


def _jobs() -> list[dict[str, Any]]:
    return [
        {
            "kind": kind,
            "id": f"id-{kind}",
            "state": "succeeded",
            "outputs": [{"ref": f"team/{kind}@v1"}],
            "proofs": [{"ok": True}, {"ok": None}],
        }
        for kind in KINDS
    ]


def test_all_is_well_when_every_job_succeeded_and_every_proof_held() -> None:
    line = verdict(_jobs(), Made("team/tiny@v1", "team/sql@v1"), 61.234)
    assert (line["demo"], line["seconds"]) == ("ok", 61.2)
    assert line["jobs"] == {kind: f"id-{kind}" for kind in KINDS}
    assert line["artifacts"]["export"] == "team/export@v1"
    assert line["artifacts"]["dataset"] == "team/sql@v1"


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_job_that_did_not_succeed_fails_the_demo(state: str) -> None:
    jobs = _jobs()
    jobs[3] |= {"state": state, "outputs": []}
    line = verdict(jobs, Made("m", "d"), 1.0)
    assert line["demo"] == "failed"
    assert "quantize" not in line["artifacts"]


def test_a_proof_that_did_not_hold_fails_the_demo() -> None:
    jobs = _jobs()
    jobs[4]["proofs"][0]["ok"] = False
    assert verdict(jobs, Made("m", "d"), 1.0)["demo"] == "failed"


def test_a_model_that_is_no_name_is_refused_before_anything_starts(cli: CliRunner) -> None:
    result = cli.invoke(app, ["demo", "--model", "a/b/c", "--once"])
    assert result.exit_code == 2
    assert "a hub repository is org/name" in result.stderr
