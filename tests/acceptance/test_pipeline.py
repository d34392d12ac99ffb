"""The main job from the command line, and what came out of it in other people's programs."""

import ast
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from espalier.client import Client
from tests.acceptance.stacks import Up, pipeline_file

PROMPT = "table: employees\ncolumns: id, name, age, city\nQ: What is the age when city is Oslo?\nA:"


@pytest.fixture(scope="module")
def jobs(
    stack: Up, tiny_model: Path, main_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The pipeline's jobs by step, all ended."""
    stack.run("model", "push", str(tiny_model), "team/tiny")
    stack.run("dataset", "push", str(main_data), "team/textsql")
    file = pipeline_file(
        tmp_path_factory.mktemp("yaml") / "main.yaml",
        model="team/tiny",
        data="team/textsql",
        iters=200,
        name="team/sql",
    )
    answer = stack.json("pipeline", str(file), "--wait")
    return {job["step"]: job for job in answer["jobs"]}


def test_every_job_succeeded_and_every_proof_held(jobs: dict[str, Any]) -> None:
    assert list(jobs) == ["train", "eval", "fuse", "quantize", "export"]
    for job in jobs.values():
        assert job["state"] == "succeeded", job["error"]
        assert all(p["ok"] is not False for p in job["proofs"])
    for step in ("eval", "fuse", "quantize", "export"):
        assert any(p["ok"] for p in jobs[step]["proofs"]), f"{step} proved nothing"


def test_the_tuned_model_is_better_than_its_base(jobs: dict[str, Any]) -> None:
    metrics = jobs["eval"]["metrics"]
    assert metrics["perplexity"] < metrics["base_perplexity"]
    assert metrics["tokens"] > 100


def test_the_curve_is_there_in_order(stack: Up, jobs: dict[str, Any]) -> None:
    with Client(stack.url, stack.token) as client:
        points = client.get(f"/api/v1/jobs/{jobs['train']['id']}/metrics")["points"]
    steps = [p["step"] for p in points]
    assert steps == sorted(steps)
    losses = [p["train_loss"] for p in points if p.get("train_loss") is not None]
    assert len(losses) == 20
    assert losses[-1] < losses[0]
    assert any(p.get("val_loss") is not None for p in points)


def test_the_sweep_tested_every_checkpoint(jobs: dict[str, Any]) -> None:
    (table,) = [t for t in jobs["eval"]["tables"] if t["name"] == "checkpoints"]
    steps = {row[table["columns"].index("step")] for row in table["rows"]}
    assert {50, 100, 150, 200} <= steps


def test_lineage_goes_back_to_base_and_data(stack: Up, jobs: dict[str, Any]) -> None:
    with Client(stack.url, stack.token) as client:
        gguf = client.get("/api/v1/artifacts/team/sql-gguf/versions/latest")
        assert {p["ref"] for p in gguf["parents"]} >= {"team/sql-fused@v1", "team/textsql@v1"}
        adapter = client.get("/api/v1/artifacts/team/sql/versions/latest")
        assert {p["ref"] for p in adapter["parents"]} == {"team/tiny@v1", "team/textsql@v1"}
        assert any(c["ref"] == "team/sql-fused@v1" for c in adapter["children"])


def _generate(*arguments: str, **environment: str) -> str:
    command = [sys.executable, "-m", "mlx_lm.generate", "--temp", "0", "--max-tokens", "12"]
    done = subprocess.run(
        [*command, "--prompt", PROMPT, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return done.stdout


def test_a_model_runs_by_its_name_in_plain_mlx_lm(
    stack: Up, jobs: dict[str, Any], tmp_path: Path
) -> None:
    text = _generate(
        *("--model", "team/sql-fused"),
        HF_ENDPOINT=stack.url,
        HF_TOKEN=stack.token,
        HF_HOME=str(tmp_path),
        HF_HUB_OFFLINE="0",
    )
    assert "Generation:" in text


def test_the_adapter_loads_in_plain_mlx_lm(
    stack: Up, jobs: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    stack.run("pull", "team/sql", str(tmp_path / "adapter"))
    text = _generate("--model", str(tiny_model), "--adapter-path", str(tmp_path / "adapter"))
    assert "Generation:" in text
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert str(stack.data_dir) not in json.dumps(config), "no path of the worker's machine"


@pytest.mark.parametrize("name", ["sql-fused", "sql-q4"])
def test_models_load_in_plain_mlx_lm(
    stack: Up, jobs: dict[str, Any], tmp_path: Path, name: str
) -> None:
    stack.run("pull", f"team/{name}", str(tmp_path / name))
    assert "Generation:" in _generate("--model", str(tmp_path / name))


def test_the_gguf_loads_in_llama_cpp(stack: Up, jobs: dict[str, Any], tmp_path: Path) -> None:
    stack.run("pull", "team/sql-gguf", str(tmp_path))
    (path,) = tmp_path.glob("*.gguf")
    script = (
        "import sys, xllamacpp as x\n"
        "p = x.CommonParams(); p.model.path = sys.argv[1]; p.n_ctx = 256; p.n_parallel = 1\n"
        "s = x.Server(p)\n"
        "print(s.handle_completions({'prompt': sys.argv[2], 'n_predict': 12, 'temperature': 0}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), PROMPT],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert ast.literal_eval(done.stdout)["choices"][0]["text"].strip()


def test_what_is_pulled_is_what_was_published(
    stack: Up, jobs: dict[str, Any], tmp_path: Path
) -> None:
    stack.run("pull", "team/sql", str(tmp_path))
    (output,) = [o for o in jobs["train"]["outputs"] if o["kind"] == "adapter"]
    for file in output["files"]:
        data = (tmp_path / file["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file["sha256"]


def test_logs_events_and_tables_on_the_command_line(stack: Up, jobs: dict[str, Any]) -> None:
    train = jobs["train"]["id"]
    assert train in stack.run("jobs")
    types = [e["type"] for e in stack.json("events", train)["events"]]
    assert types[0] == "submitted"
    assert types[-1] == "succeeded"
    assert stack.run("logs", train)
    assert "local-1" in stack.run("workers")


def test_a_reference_that_does_not_exist_names_the_nearest(stack: Up, jobs: object) -> None:
    said = stack.refused("train", "--model", "team/tin", "--data", "team/textsql")
    assert "team/tiny" in said
