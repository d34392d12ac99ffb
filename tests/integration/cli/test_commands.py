"""The commands against the web app, over HTTP."""

import hashlib
import json
import stat
import threading
from pathlib import Path

import pytest
from flask import Flask, request, request_finished

from espalier.cli import common, workers
from espalier.settings import settings
from tests.integration.cli.conftest import Terminal
from tests.integration.web.site import ADAPTER, DATASET, MACHINE, MODEL, Door

TRAIN = ("train", "--model", "team/base", "--data", "team/sql", "--iters", "10")


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def _finish(worker: Door, boot: str, attempt: str, folder: Path) -> None:
    outputs = [{"role": "adapter", "kind": "adapter", "files": worker.upload(folder, ADAPTER)}]
    body = {"boot_id": boot, "state": "succeeded", "outputs": outputs}
    assert worker.post(f"/attempts/{attempt}/finish", body).status_code == 200


# --- Artifacts ----------------------------------------------------------------------------


def test_what_is_pushed_is_pulled_again(terminal: Terminal, tmp_path: Path) -> None:
    source = _write(tmp_path / "model", MODEL)
    version = terminal.json("model", "push", str(source), "team/base")
    assert version["ref"] == "team/base@v1"
    assert "team/base@v1" in terminal.run("model", "push", str(source), "team/base").stdout
    pulled = terminal.json("pull", "team/base", str(tmp_path / "pulled"))
    assert pulled["commit"] == version["commit"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "pulled").iterdir()} == MODEL
    assert not list(tmp_path.glob(".*")), "no half of a download stays"
    listed = terminal.json("artifacts", "--kind", "model", "-q", "base")
    assert [one["latest"]["ref"] for one in listed["artifacts"]] == ["team/base@v1"]
    assert "team/base@v1" in terminal.run("artifacts").stdout


def test_an_adapter_keeps_its_parents(terminal: Terminal, tmp_path: Path) -> None:
    terminal.site.with_inputs()
    folder = _write(tmp_path / "adapter", ADAPTER)
    version = terminal.json("adapter", "push", str(folder), "team/a", "--parent", "team/base")
    assert [parent["ref"] for parent in version["parents"]] == ["team/base@v1"]


def test_pull_goes_on_where_it_stopped_and_spares_what_is_there(
    terminal: Terminal, tmp_path: Path
) -> None:
    terminal.site.with_inputs()
    target = tmp_path / "pulled"
    half = _write(tmp_path / ".pulled.pull", {})
    weights = MODEL["model.safetensors"]
    part = half / f".{hashlib.sha256(weights).hexdigest()}.part"
    part.write_bytes(weights[:10])
    (half / "stale").write_bytes(b"of another version")
    terminal.run("pull", "team/base@v1", str(target))
    assert {p.name: p.read_bytes() for p in target.iterdir()} == MODEL

    (target / "notes.txt").write_text("mine")
    before = (target / "config.json").stat().st_mtime_ns
    terminal.run("pull", "team/base", str(target))
    assert (target / "config.json").stat().st_mtime_ns == before
    assert (target / "notes.txt").read_text() == "mine"


def test_pull_never_overwrites_what_is_not_its_own(terminal: Terminal, tmp_path: Path) -> None:
    terminal.site.with_inputs()
    target = _write(tmp_path / "here", {"config.json": b"mine", "notes.txt": b"mine"})
    refused = terminal.run("pull", "team/base", str(target), code=2)
    assert "has another config.json already" in refused.stderr
    assert "--force" in refused.stderr
    assert [p.name for p in target.iterdir() if p.read_bytes() != b"mine"] == []
    terminal.run("pull", "team/base", str(target), "--force")
    expected = {**MODEL, "notes.txt": b"mine"}
    assert {p.name: p.read_bytes() for p in target.iterdir()} == expected


def test_a_folder_of_code_is_refused_before_it_travels(terminal: Terminal, tmp_path: Path) -> None:
    folder = _write(tmp_path / "model", {**MODEL, "modeling.py": b"import os"})
    refused = terminal.run("model", "push", str(folder), "team/bad", code=2)
    assert "modeling.py is refused" in refused.stderr
    terminal.run("pull", "team/bad", str(tmp_path / "x"), code=2)
    assert not (tmp_path / "x").exists()


def test_one_file_is_dealt_out_and_faults_are_told_at_its_own_lines(
    terminal: Terminal, tmp_path: Path
) -> None:
    lines = [json.dumps({"text": f"row {n}"}) for n in range(30)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines) + "\n")
    version = terminal.json("dataset", "push", str(file), "team/rows")
    assert {f["path"] for f in version["files"]} == {"train.jsonl", "valid.jsonl", "test.jsonl"}
    lines[6], lines[20] = '{"text": "cut', '{"text": 5}'
    file.write_text("\n".join(lines) + "\n")
    refused = terminal.run("dataset", "push", str(file), "team/rows", code=2)
    assert f"{file}:7:" in refused.stderr
    assert f"{file}:21:" in refused.stderr


def test_a_folder_of_data_is_refused_with_file_line_and_column(
    terminal: Terminal, tmp_path: Path
) -> None:
    broken = {**DATASET, "valid.jsonl": b'{"prompt": "p", "completion": "c"}\n{"prompt": }\n'}
    folder = _write(tmp_path / "data", broken)
    refused = terminal.run("dataset", "push", str(folder), "team/bad", code=2)
    assert "valid.jsonl" in refused.stderr
    assert "line 2" in refused.stderr or "valid.jsonl:2:" in refused.stderr


# --- Jobs ---------------------------------------------------------------------------------


def test_a_job_from_submission_to_its_outputs(terminal: Terminal, tmp_path: Path) -> None:
    terminal.site.with_inputs()
    worker, boot = terminal.site.worker()
    job = terminal.json(*TRAIN, "--name", "team/tuned", "--priority", "5", "--rank", "4")
    assert (job["state"], job["name"], job["priority"]) == ("queued", "team/tuned", 5)
    assert job["spec"]["lora_parameters"]["rank"] == 4

    attempt = terminal.claim(worker, boot)
    report = {
        "boot_id": boot,
        "seq": 1,
        "events": [
            {"type": "metrics", "step": 10, "values": {"train_loss": 2.5}, "time": 1.0},
            {"type": "proof", "name": "better", "value": 1.5, "limit": 2.0, "ok": True, "time": 1},
        ],
        "log": [{"offset": 0, "text": "a log\n"}],
    }
    assert worker.post(f"/attempts/{attempt}/report", report).status_code == 200
    assert "running" in terminal.run("job", job["id"]).stdout
    assert terminal.run("logs", job["id"]).stdout == "a log\n"
    assert job["id"] in terminal.run("workers").stdout
    _finish(worker, boot, attempt, tmp_path / "out")

    waited = terminal.run("wait", job["id"])
    assert "team/tuned@v1" in waited.stdout
    assert "proved better: 1.5 (limit 2)" in waited.stdout
    assert terminal.json("wait", job["id"])["state"] == "succeeded"
    page = terminal.run("job", job["id"]).stdout
    assert "team/base" in page
    assert attempt in page
    assert terminal.run("logs", "-f", job["id"]).stdout == "a log\n"
    listed = terminal.json("jobs", "--state", "succeeded", "--state", "failed", "--kind", "train")
    assert [one["id"] for one in listed["jobs"]] == [job["id"]]
    assert job["id"] in terminal.run("jobs", "-q", "tuned").stdout
    types = [event["type"] for event in terminal.json("events", job["id"])["events"]]
    assert (types[0], types[-1]) == ("submitted", "succeeded")
    assert "submitted" in terminal.run("events", job["id"]).stdout


def test_wait_follows_a_job_to_its_failure(terminal: Terminal) -> None:
    terminal.site.with_inputs()
    worker, boot = terminal.site.worker()
    job = terminal.json(*TRAIN)
    attempt = terminal.claim(worker, boot)
    error = {"code": "bad_input", "message": "Row 3 is odd.", "hint": "Mend it."}
    body = {"boot_id": boot, "state": "failed", "reason": "bad_input", "error": error}
    looked = threading.Event()

    def look(_app: Flask, **_: object) -> None:
        if request.path.endswith(job["id"]):
            looked.set()

    def fail() -> None:
        looked.wait(60)  # until the command has seen it run
        worker.post(f"/attempts/{attempt}/finish", body)

    failing = threading.Thread(target=fail)
    failing.start()
    with request_finished.connected_to(look):
        waited = terminal.run("wait", job["id"], code=1)
    failing.join()
    assert "running" in waited.stderr
    assert "Row 3 is odd." in waited.stdout
    assert "Mend it." in waited.stdout


def test_a_cancelled_job_is_told_by_its_exit_code_and_can_be_retried(terminal: Terminal) -> None:
    terminal.site.with_inputs()
    job = terminal.json(*TRAIN)
    assert "cancelled" in terminal.run("cancel", job["id"]).stdout
    terminal.run("wait", job["id"], code=3)
    assert terminal.json("retry", job["id"])["state"] == "queued"


def test_a_job_is_paused_waited_for_and_resumed(terminal: Terminal) -> None:
    terminal.site.with_inputs()
    first, second = (terminal.json(*TRAIN, "--seed", n)["id"] for n in ("1", "2"))
    paused = terminal.json("pause", first, second)["jobs"]
    assert [job["paused"] for job in paused] == [True, True]
    assert "paused" in terminal.run("jobs").stdout
    assert len(terminal.json("jobs", "--paused")["jobs"]) == 2
    assert terminal.site.tick() == []
    assert terminal.run("resume", second).stdout == f"{second} queued\n"
    assert [job["id"] for job in terminal.json("jobs", "--paused")["jobs"]] == [first]
    refused = terminal.run("resume", second, code=2)
    assert "is queued and not paused" in refused.stderr

    looked = threading.Event()

    def look(_app: Flask, **_: object) -> None:
        if request.path.endswith(first):
            looked.set()

    def cancel() -> None:
        looked.wait(60)  # until the command has seen that it is paused
        terminal.site.ada.post(f"/jobs/{first}/cancel")

    cancelling = threading.Thread(target=cancel)
    cancelling.start()
    with request_finished.connected_to(look):
        waited = terminal.run("wait", first, code=3)
    cancelling.join()
    assert waited.stderr.count(f"paused: goes on after `espalier resume {first}`") == 1


def test_a_job_tells_its_ladder_and_what_its_attempts_cost(terminal: Terminal) -> None:
    terminal.site.with_inputs()
    worker, boot = terminal.site.worker()
    job = terminal.json(*TRAIN, "--batch-size", "4")["id"]
    for reason in ("out_of_memory", "code_error"):
        attempt = terminal.claim(worker, boot)
        error = {"code": reason, "message": "So it ended."}
        body = {"boot_id": boot, "state": "failed", "reason": reason, "error": error}
        assert worker.post(f"/attempts/{attempt}/finish", body).status_code == 200
    found = terminal.json("job", job)
    assert [rung["rung"] for rung in found["ladder"]] == ["micro_batch_size"]
    assert found["effective_spec"]["micro_batch_size"] == 2
    assert found["spec"]["micro_batch_size"] is None
    assert [one["charged"] for one in found["attempts"]] == [False, True]
    page = terminal.run("job", job).stdout
    assert "ladder    Out of memory on studio-1" in page
    assert "Memory ended." in page
    assert "The program raised an error." in page
    assert "1 of 3 used" in page


def test_a_projects_owner_lets_its_jobs_be_paused(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "member" in terminal.run("projects").stdout
    refused = terminal.run("project", "set", "team", "--preemptible", code=2)
    assert "Only an owner of team or an admin" in refused.stderr
    monkeypatch.setenv("ESPALIER_TOKEN", terminal.site.admin.token)
    settings.cache_clear()
    assert "may be paused" in terminal.run("project", "set", "team", "--preemptible").stdout
    assert terminal.json("projects")["projects"][1]["preemptible"] is True
    assert terminal.json("project", "set", "team", "--no-preemptible")["preemptible"] is False
    assert "--preemptible" in terminal.run("project", "set", "team", code=2).stderr


def test_a_pipeline_is_submitted_whole(terminal: Terminal, tmp_path: Path) -> None:
    terminal.site.with_inputs()
    file = tmp_path / "main.yaml"
    file.write_text(
        "name: nightly\n"
        "steps:\n"
        "  - {step: tune, spec: {kind: train, model: team/base, data: team/sql,"
        " learning_rate: 1e-4}}\n"
        "  - {step: merge, spec: {kind: fuse, model: team/base, adapter: 'step:tune'}}\n"
    )
    made = terminal.json("pipeline", str(file), "--priority", "7")
    assert [(j["step"], j["state"], j["priority"]) for j in made["jobs"]] == [
        ("tune", "queued", 7),
        ("merge", "waiting", 7),
    ]
    assert made["jobs"][0]["spec"]["learning_rate"] == 1e-4
    file.write_text(file.read_text().replace("step:tune", "step:tuen"))
    assert "tuen" in terminal.run("pipeline", str(file), code=2).stderr


def test_a_reference_that_does_not_exist_is_answered_with_the_nearest(terminal: Terminal) -> None:
    terminal.site.with_inputs()
    refused = terminal.run("train", "--model", "team/bse", "--data", "team/sql", code=2)
    assert "team/base" in refused.stderr
    refused = terminal.run("job", "absent", code=2)
    assert "There is no job 'absent'" in refused.stderr


def test_a_directory_that_looks_like_a_reference_is_recognized(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.site.with_inputs()
    (tmp_path / "my" / "rows").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    refused = terminal.run("train", "--model", "team/base", "--data", "my/rows", code=2)
    assert "espalier dataset push my/rows PROJECT/NAME" in refused.stderr


# --- People and machines ------------------------------------------------------------------


def test_login_keeps_a_token_that_works(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.run("login", terminal.url, stdin="hf_wrong\n", code=2)
    assert not common.credentials_file().exists()
    said = terminal.run("login", terminal.url, stdin=f"{terminal.site.ada.token}\n")
    assert "ada" in said.stdout
    for name in ("ESPALIER_URL", "ESPALIER_TOKEN"):
        monkeypatch.delenv(name)
    settings.cache_clear()
    assert terminal.json("jobs")["jobs"] == []


def test_a_machine_joins_and_keeps_its_token_to_itself(terminal: Terminal) -> None:
    invitation = terminal.site.admin.post("/workers/join-tokens").json["token"]
    joined = terminal.json(
        "worker", "join", terminal.url, "--token", invitation, "--name", "mini-1"
    )
    assert joined["name"] == "mini-1"
    kept = workers.identity_file()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    token = json.loads(kept.read_text())["token"]
    hello = {"boot_id": "b", "machine": {**MACHINE, "hostname": "mini"}}
    door = Door(terminal.site.app, token, "/agent/v1")
    assert door.post("/hello", hello).json["name"] == "mini-1"
    terminal.run("worker", "join", terminal.url, "--token", invitation, "--name", "x", code=2)
    assert "mini-1" in terminal.run("workers").stdout


def test_a_worker_is_drained_by_an_admin(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.site.worker()
    terminal.run("worker", "drain", "studio-1", code=2)
    monkeypatch.setenv("ESPALIER_TOKEN", terminal.site.admin.token)
    settings.cache_clear()
    assert "drains" in terminal.run("worker", "drain", "studio-1").stdout
    assert terminal.json("worker", "drain", "studio-1", "--undo")["state"] == "idle"


def test_doctor_looks_at_what_it_reaches(terminal: Terminal) -> None:
    found = {check["name"]: check for check in terminal.json("doctor")["checks"]}
    for name in ("python", "versions", "mlx", "disk", "memory", "web", "clock", "token"):
        assert found[name]["status"] in ("ok", "warn"), found[name]
    assert found["token"]["detail"] == "signed in as ada"
    assert terminal.url in found["web"]["detail"]


def test_doctor_fails_when_the_broker_is_away(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPALIER_BROKER_URL", "redis://127.0.0.1:1/0")
    settings.cache_clear()
    said = terminal.run("doctor", code=1).stdout
    assert "fail broker" in said
    assert "ESPALIER_BROKER_URL" in said
