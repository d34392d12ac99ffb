"""What workers may do, and that each sees its own attempts only."""

from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from scheduler import access
from scheduler.db import now
from scheduler.models import Worker
from tests.integration.web.site import ADAPTER, Door, Site


def claimed(site: Site) -> tuple[Door, str, str, dict[str, Any]]:
    """Return a worker's door, its boot id, its attempt and the assignment."""
    site.with_inputs()
    worker, boot = site.worker()
    site.submit(name="team/tuned")
    (ticket,) = site.tick()
    answer = worker.post(f"/attempts/{ticket.attempt_id}/claim", {"boot_id": boot})
    assert answer.status_code == 200, answer.json
    return worker, boot, ticket.attempt_id, answer.json


def test_a_machine_joins_once_with_a_join_token(site: Site) -> None:
    assert site.ada.post("/workers/join-tokens").status_code == 403
    made = site.admin.post("/workers/join-tokens")
    assert made.status_code == 201
    assert made.json["expires_at"].endswith("Z")
    door = Door(site.app, made.json["token"], "/agent/v1")
    assert door.post("/join", {"name": "../x"}).status_code == 422
    joined = door.post("/join", {"name": "studio-1"})
    assert joined.status_code == 201
    assert joined.json["token"].startswith("hf_")
    assert door.post("/join", {"name": "studio-2"}).status_code == 401
    again = Door(site.app, site.admin.post("/workers/join-tokens").json["token"], "/agent/v1")
    assert again.post("/join", {"name": "studio-1"}).status_code == 409
    assert again.post("/join", {"name": "studio-2"}).status_code == 201
    assert (
        Door(site.app, site.ada.token, "/agent/v1").post("/join", {"name": "x"}).status_code == 401
    )


def test_hello_tells_the_queue_and_shows_the_worker(site: Site) -> None:
    worker, boot = site.worker()
    beat = worker.post("/heartbeat", {"boot_id": boot})
    assert beat.json["orders"] == []
    assert worker.post("/heartbeat", {"boot_id": "older"}).status_code == 409
    (shown,) = site.ada.get("/workers").json["workers"]
    assert (shown["name"], shown["state"], shown["running"]) == ("studio-1", "idle", [])
    assert shown["machine"]["chip"] == "x86_64"
    assert site.ada.post("/workers/studio-1/drain", {"draining": True}).status_code == 403
    assert site.admin.post("/workers/studio-1/drain").json["state"] == "draining"
    assert worker.post("/heartbeat", {"boot_id": boot}).json["orders"][0]["order"] == "drain"
    assert site.admin.post("/workers/nobody/drain").status_code == 404


def test_an_attempt_from_claim_to_finish(site: Site, tmp_path: Path) -> None:
    worker, boot, attempt, assignment = claimed(site)
    assert {item["role"]: item["ref"] for item in assignment["inputs"]} == {
        "model": "team/base@v1",
        "data": "team/sql@v1",
    }
    again = worker.post(f"/attempts/{attempt}/claim", {"boot_id": boot})
    assert again.json == assignment
    time = 1.0
    events = [
        {"type": "phase", "name": "train\x00ing", "time": time},
        {"type": "metrics", "step": 10, "values": {"train_loss": 2.5}, "time": time},
    ]
    log = [{"offset": 0, "text": "zero\x00one\n"}]
    report = {"boot_id": boot, "seq": 1, "events": events, "log": log, "memory_bytes": 1 << 30}
    for _ in range(2):  # its answer may be lost on the way
        assert worker.post(f"/attempts/{attempt}/report", report).json["orders"] == []
    saved = worker.upload(tmp_path / "c", {"adapters.safetensors": b"step 10"})
    checkpoint = {"boot_id": boot, "step": 10, "files": saved}
    assert worker.post(f"/attempts/{attempt}/checkpoints", checkpoint).status_code == 204
    job_id = assignment["job_id"]
    points = site.ada.get(f"/jobs/{job_id}/metrics").json["points"]
    assert [(p["step"], p["train_loss"]) for p in points] == [(10, 2.5)]
    told = site.ada.get(f"/jobs/{job_id}/logs").json
    assert told["next_offset"] == len("zero\x00one\n")
    assert told["text"].startswith("zero")
    assert not told["ended"]
    tail = site.ada.get(f"/jobs/{job_id}/logs?offset={told['next_offset'] - 4}").json
    assert tail["text"] == "one\n"
    types = [e["type"] for e in site.ada.get(f"/jobs/{job_id}/events").json["events"]]
    assert {"submitted", "placed", "claimed", "phase", "checkpoint"} <= set(types)
    outputs = [{"role": "adapter", "kind": "adapter", "files": worker.upload(tmp_path, ADAPTER)}]
    finish = {"boot_id": boot, "state": "succeeded", "outputs": outputs}
    for _ in range(2):
        finished = worker.post(f"/attempts/{attempt}/finish", finish)
        assert finished.json == {
            "job_state": "succeeded",
            "outputs": {"adapter": "team/tuned@v1"},
        }
    job = site.ada.get(f"/jobs/{job_id}").json
    assert (job["state"], job["worker"]) == ("succeeded", "studio-1")
    assert job["outputs"][0]["ref"] == "team/tuned@v1"
    assert site.ada.get(f"/jobs/{job_id}/logs").json["ended"]
    made = site.ada.get("/artifacts/team/tuned/versions/latest").json
    assert {p["ref"] for p in made["parents"]} == {"team/base@v1", "team/sql@v1"}
    assert made["job"] == job_id


def test_a_job_that_is_watched_is_reported_more_often(site: Site) -> None:
    worker, boot, attempt, assignment = claimed(site)
    report = {"boot_id": boot, "seq": 1}
    seldom = worker.post(f"/attempts/{attempt}/report", report).json["report_seconds"]
    site.ada.get(f"/jobs/{assignment['job_id']}/logs")
    often = worker.post(f"/attempts/{attempt}/report", {**report, "seq": 2}).json["report_seconds"]
    assert (seldom, often) == (
        site.settings.report_seconds,
        site.settings.watched_report_seconds,
    )


def test_another_workers_attempt_does_not_exist(site: Site, tmp_path: Path) -> None:
    _, boot, attempt, assignment = claimed(site)
    other, other_boot = site.worker("studio-2")
    for call, body in (
        ("claim", {}),
        ("report", {"seq": 1}),
        ("checkpoints", {"step": 1, "files": []}),
        ("finish", {"state": "succeeded"}),
    ):
        for as_boot in (boot, other_boot):
            answer = other.post(f"/attempts/{attempt}/{call}", {"boot_id": as_boot, **body})
            assert answer.status_code == 404, call
    needed = assignment["inputs"][0]["files"][0]["sha256"]
    assert other.get(f"/blobs/{needed}").status_code == 404
    assert site.ada.get(f"/jobs/{assignment['job_id']}").json["state"] == "running"


def test_a_worker_reads_what_its_live_attempts_need(site: Site, tmp_path: Path) -> None:
    worker, boot, attempt, assignment = claimed(site)
    saved = worker.upload(tmp_path / "c", {"adapters.safetensors": b"step 10"})
    body = {"boot_id": boot, "step": 10, "files": saved}
    worker.post(f"/attempts/{attempt}/checkpoints", body)
    needed = [file["sha256"] for item in assignment["inputs"] for file in item["files"]]
    for sha256 in (*needed, saved[0]["sha256"]):
        assert worker.get(f"/blobs/{sha256}").status_code == 200
    site.ada.publish(tmp_path / "x", "team/other", "adapter", {**ADAPTER, "README.md": b"secret"})
    version = site.ada.get("/artifacts/team/other/versions/1").json
    secret = next(f["sha256"] for f in version["files"] if f["path"] == "README.md")
    assert worker.get(f"/blobs/{secret}").status_code == 404
    failed = {"boot_id": boot, "state": "failed", "reason": "bad_input"}
    assert worker.post(f"/attempts/{attempt}/finish", failed).status_code == 200
    assert worker.get(f"/blobs/{needed[0]}").status_code == 404


def test_a_revoked_worker_is_out(site: Site) -> None:
    worker, boot = site.worker()
    with site.database.transaction() as session:
        session.execute(update(Worker).values(revoked_at=now(session)))
    assert worker.post("/heartbeat", {"boot_id": boot}).status_code == 401
    assert site.ada.get("/workers").json["workers"] == []
    with site.database.reading() as session:
        assert session.scalars(select(Worker)).one().name == "studio-1"
        assert access.first_broken_audit(session) is None


def test_work_wakes_the_scheduler(site: Site) -> None:
    site.with_inputs()
    waker = site.services.waker
    assert waker is not None
    while waker.wait(0.01):
        pass
    site.submit()
    assert waker.wait(1.0)
