"""Jobs through ``/api/v1``: what is asked, what comes back, and what is refused."""

from typing import Any

import pytest

from scheduler import access
from scheduler.models import Audit, Job, Project, User
from tests.integration.web.site import Site

TRAIN = {"kind": "train", "model": "team/base", "data": "team/sql"}


def nothing_started(site: Site) -> bool:
    return site.admin.get("/jobs").json["jobs"] == []


def test_submits_lists_and_returns_a_job(site: Site) -> None:
    site.with_inputs()
    job_id = site.submit(note="first try", priority=5)
    job = site.ada.get(f"/jobs/{job_id}").json
    assert job["state"] == "queued"
    assert (job["project"], job["created_by"], job["priority"]) == ("team", "ada", 5)
    assert job["spec"]["lora_parameters"]["rank"] == 8
    assert {i["role"]: (i["ref"], i["pinned"]) for i in job["inputs"]} == {
        "data": ("team/sql", "team/sql@v1"),
        "model": ("team/base", "team/base@v1"),
    }
    assert job["created_at"].endswith("Z")
    assert site.ada.get("/jobs").json == {"jobs": [job], "next": None}


def test_a_pipeline_keeps_its_order_and_its_dependencies(site: Site) -> None:
    site.with_inputs()
    steps = [
        {"step": "train", "spec": TRAIN},
        {
            "step": "fuse",
            "spec": {"kind": "fuse", "model": "team/base", "adapter": "step:train"},
        },
        {"step": "export", "spec": {"kind": "export", "model": "step:fuse"}},
    ]
    made = site.ada.post("/pipelines", {"steps": steps})
    assert made.status_code == 201
    jobs = made.json["jobs"]
    assert [job["step"] for job in jobs] == ["train", "fuse", "export"]
    assert [job["state"] for job in jobs] == ["queued", "waiting", "waiting"]
    assert jobs[1]["needs"] == [jobs[0]["id"]]
    assert site.ada.get(f"/pipelines/{made.json['id']}").json == made.json


def test_pages_and_filters(site: Site) -> None:
    site.with_inputs()
    ids = [site.submit(note=f"run {n}") for n in range(5)]
    first = site.ada.get("/jobs?limit=2").json
    second = site.ada.get(f"/jobs?limit=2&before={first['next']}").json
    rest = site.ada.get(f"/jobs?limit=2&before={second['next']}").json
    listed = [job["id"] for page in (first, second, rest) for job in page["jobs"]]
    assert listed == ids[::-1]
    assert rest["next"] is None
    site.ada.post(f"/jobs/{ids[0]}/cancel")
    assert [j["id"] for j in site.ada.get("/jobs?state=cancelled,failed").json["jobs"]] == ids[:1]
    assert [j["id"] for j in site.ada.get("/jobs?q=RUN 3").json["jobs"]] == [ids[3]]
    assert site.ada.get("/jobs?q=100%25").json["jobs"] == []
    assert site.ada.get("/jobs?kind=eval").json["jobs"] == []


def test_cancel_and_retry(site: Site) -> None:
    site.with_inputs()
    job_id = site.submit()
    cancelled = site.ada.post(f"/jobs/{job_id}/cancel").json
    assert (cancelled["state"], cancelled["reason"]) == ("cancelled", "cancelled")
    again = site.ada.post(f"/jobs/{job_id}/cancel")
    assert (again.status_code, again.json["code"]) == (409, "conflict")
    assert site.ada.post(f"/jobs/{job_id}/retry").json["state"] == "queued"


def test_a_queued_job_is_paused_and_resumed(site: Site) -> None:
    site.with_inputs()
    site.worker()
    job_id, other = site.submit(), site.submit()
    for _ in range(2):  # twice is once
        paused = site.ada.post(f"/jobs/{job_id}/pause")
        assert (paused.status_code, paused.json["state"]) == (200, "queued")
        assert paused.json["paused"] is True
    assert [j["id"] for j in site.ada.get("/jobs?paused=true").json["jobs"]] == [job_id]
    assert [j["id"] for j in site.ada.get("/jobs?paused=false").json["jobs"]] == [other]
    (ticket,) = site.tick()
    assert site.ada.get(f"/jobs/{other}").json["attempts"][0]["id"] == ticket.attempt_id
    resumed = site.ada.post(f"/jobs/{job_id}/resume").json
    assert (resumed["paused"], resumed["pause_requested_at"]) == (False, None)
    again = site.ada.post(f"/jobs/{job_id}/resume")
    assert (again.status_code, again.json["code"]) == (409, "conflict")
    site.ada.post(f"/jobs/{job_id}/cancel")
    for action in ("pause", "resume"):
        assert site.ada.post(f"/jobs/{job_id}/{action}").status_code == 409
    types = [e["type"] for e in site.ada.get(f"/jobs/{job_id}/events").json["events"]]
    assert types.count("pause_requested") == 1
    assert "resumed" in types


def test_a_running_job_pauses_when_its_worker_has_stopped(site: Site) -> None:
    site.with_inputs()
    worker, boot = site.worker()
    job_id = site.submit()
    (ticket,) = site.tick()
    attempt = f"/attempts/{ticket.attempt_id}"
    worker.post(f"{attempt}/claim", {"boot_id": boot})
    pausing = site.ada.post(f"/jobs/{job_id}/pause").json
    assert (pausing["state"], pausing["paused"]) == ("running", False)
    assert pausing["pause_requested_at"]
    orders = worker.post(f"{attempt}/report", {"boot_id": boot, "seq": 1}).json["orders"]
    assert orders == [{"order": "pause", "attempt_id": ticket.attempt_id}]
    finish = {"boot_id": boot, "state": "cancelled", "reason": "paused"}
    assert worker.post(f"{attempt}/finish", finish).status_code == 200
    paused = site.ada.get(f"/jobs/{job_id}").json
    assert (paused["state"], paused["paused"], paused["worker"]) == ("queued", True, None)
    (ended,) = paused["attempts"]
    assert (ended["reason"], ended["charged"], ended["preempted"]) == ("paused", False, False)
    assert (paused["charged"], paused["lost"]) == (0, 0)
    assert site.tick() == []


def test_what_memory_made_a_job_give_up_is_told(site: Site) -> None:
    site.with_inputs()
    worker, boot = site.worker()
    job_id = site.submit()
    for _ in range(2):
        (ticket,) = site.tick()
        worker.post(f"/attempts/{ticket.attempt_id}/claim", {"boot_id": boot})
        error = {"code": "out_of_memory", "message": "The limit is 24.0 GiB."}
        finish = {"boot_id": boot, "state": "failed", "reason": "out_of_memory", "error": error}
        worker.post(f"/attempts/{ticket.attempt_id}/finish", finish)
    job = site.ada.get(f"/jobs/{job_id}").json
    assert [(r["rung"], r["from"], r["to"]) for r in job["ladder"]] == [
        ("micro_batch_size", 4, 2),
        ("micro_batch_size", 2, 1),
    ]
    assert job["ladder"][0]["attempt"] == job["attempts"][0]["id"]
    assert job["spec"]["micro_batch_size"] is None
    assert job["effective_spec"] == {**job["spec"], "micro_batch_size": 1}
    assert (job["charged"], job["lost"], job["set_aside"]) == (0, 0, False)
    assert [a["charged"] for a in job["attempts"]] == [False, False]
    assert job["attempts"][0]["error"]["message"] == "The limit is 24.0 GiB."


def test_a_job_that_machines_end_too_often_is_set_aside(site: Site) -> None:
    site.with_inputs()
    worker, boot = site.worker()
    job_id = site.submit(max_attempts=1)
    for _ in range(site.settings.lost_limit):
        with site.database.transaction() as session:
            session.get_one(Job, job_id).not_before = None
        (ticket,) = site.tick()
        worker.post(f"/attempts/{ticket.attempt_id}/claim", {"boot_id": boot})
        finish = {"boot_id": boot, "state": "failed", "reason": "killed"}
        worker.post(f"/attempts/{ticket.attempt_id}/finish", finish)
    job = site.ada.get(f"/jobs/{job_id}").json
    assert (job["state"], job["set_aside"]) == ("failed", True)
    assert (job["charged"], job["lost"]) == (0, site.settings.lost_limit)
    assert job["error"]["hint"]
    again = site.ada.post(f"/jobs/{job_id}/retry").json
    assert (again["state"], again["set_aside"], again["lost"]) == ("queued", False, 0)


def test_owners_and_admins_let_a_projects_jobs_be_paused(site: Site) -> None:
    found = site.ada.get("/projects").json["projects"]
    assert [(p["name"], p["role"], p["preemptible"]) for p in found] == [("team", "member", False)]
    change = {"preemptible": True}
    assert site.ada.send("PATCH", "/projects/team", json=change).status_code == 403
    assert site.eve.send("PATCH", "/projects/team", json=change).status_code == 404
    assert site.admin.send("PATCH", "/projects/team", json={"weight": 9}).status_code == 422
    for _ in range(2):
        assert site.admin.send("PATCH", "/projects/team", json=change).json["preemptible"] is True
    with site.database.transaction() as session:
        ada = session.query(User).filter_by(name="ada").one()
        access.add_member(
            session, session.query(Project).filter_by(name="team").one(), ada.id, "owner"
        )
    change = {"preemptible": False}
    mine = site.ada.send("PATCH", "/projects/team", json=change)
    assert (mine.json["role"], mine.json["preemptible"]) == ("owner", False)
    with site.database.reading() as session:
        rows = session.query(Audit).filter_by(action="project.preemptible").order_by(Audit.id)
        told = [(row.actor, row.data["preemptible"]) for row in rows]
    assert told == [("user:admin", True), ("user:ada", False)]


def test_a_foreign_project_reads_as_absent(site: Site) -> None:
    site.with_inputs()
    job_id = site.submit()
    absent = site.ada.get("/jobs/0000000000000000").json["detail"]
    for method, path in (
        ("GET", ""),
        ("GET", "/metrics"),
        ("GET", "/events"),
        ("GET", "/logs"),
        ("POST", "/cancel"),
        ("POST", "/pause"),
        ("POST", "/resume"),
        ("POST", "/retry"),
    ):
        refused = site.eve.send(method, f"/jobs/{job_id}{path}")
        assert refused.status_code == 404, path
        assert refused.json["detail"] == absent.replace("0000000000000000", job_id)
    assert site.eve.get("/jobs").json["jobs"] == []
    for envelope in ({"project": "team"}, {"name": "team/mine"}, {"project": "nowhere"}):
        spec = {**TRAIN, "model": "hf:org/base", "data": "hf:org/data"}
        refused = site.eve.post("/jobs", {"spec": spec, **envelope})
        assert refused.status_code == 404, envelope
    stolen = site.eve.post("/jobs", {"spec": TRAIN, "project": "elsewhere"})
    assert stolen.status_code == 404
    assert [job["id"] for job in site.admin.get("/jobs").json["jobs"]] == [job_id]


BAD_SPECS: list[tuple[dict[str, Any], list[str], str]] = [
    ({"lora_parameters": {"rank": 4096}}, ["spec", "lora_parameters", "rank"], "1024 (got 4096)"),
    ({"iters": 0}, ["spec", "iters"], "greater than or equal to 1 (got 0)"),
    ({"learning_rate": "fast"}, ["spec", "learning_rate"], "'fast'"),
    ({"num_layers": 0}, ["spec"], "num_layers is 0"),
    ({"optimizer": "lion"}, ["spec", "optimizer"], "'lion'"),
    ({"batchsize": 4}, ["spec", "batchsize"], "not permitted"),
    ({"model": "../../etc/passwd"}, ["spec", "model"], "'../../etc/passwd'"),
    ({"model": "team/base@"}, ["spec", "model"], "nothing follows '@'"),
    ({"model": "team/a b"}, ["spec", "model"], "white space"),
    ({"data": "jobs/sql"}, ["spec", "data"], "Espalier's own pages"),
    ({"kind": "dream"}, ["spec"], "'dream'"),
]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("change", "loc", "told"), BAD_SPECS)
def test_a_spec_out_of_range_names_field_value_and_limit(
    change: dict[str, Any], loc: list[str], told: str, site: Site
) -> None:
    refused = site.ada.post("/jobs", {"spec": {**TRAIN, **change}})
    assert refused.status_code == 422
    assert refused.mimetype == "application/problem+json"
    problem = refused.json
    assert (problem["status"], problem["code"]) == (422, "invalid_input")
    faults = [fault for fault in problem["errors"] if fault["loc"] == loc]
    assert faults, problem
    assert told in faults[0]["msg"]
    assert told in problem["detail"]
    assert nothing_started(site)


def test_bad_envelopes_are_refused(site: Site) -> None:
    for envelope, field in (
        ({"priority": 101}, "priority"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"name": "team/../x"}, "name"),
        ({"name": "team/x@v2"}, "name"),
        ({"project": "api"}, "project"),
        ({"project": "a\x00b"}, "project"),
        ({"note": "x" * 2001}, "note"),
        ({"note": "a\x00b"}, "note"),
        ({"note": "\ud800"}, "note"),
        ({"name": "elsewhere/x", "project": "team"}, "name"),
    ):
        refused = site.ada.post("/jobs", {"spec": TRAIN, **envelope})
        assert refused.status_code == 422, envelope
        assert refused.json["errors"][0]["loc"][0] == field
    assert nothing_started(site)


def test_an_absent_reference_is_404_with_the_nearest_names(site: Site) -> None:
    site.with_inputs()
    refused = site.ada.post("/jobs", {"spec": {**TRAIN, "data": "team/sqk"}})
    assert (refused.status_code, refused.json["code"]) == (404, "not_found")
    assert "team/sql" in refused.json["hint"]
    assert refused.json["errors"][0]["loc"] == ["spec", "data"]
    wrong = site.ada.post("/jobs", {"spec": {**TRAIN, "model": "team/sql"}})
    assert wrong.status_code == 422
    assert "is a dataset: model needs a model" in wrong.json["detail"]
    assert nothing_started(site)


def test_a_pipeline_is_all_or_nothing(site: Site) -> None:
    site.with_inputs()
    steps = [
        {"step": "train", "spec": TRAIN},
        {"step": "eval", "spec": {"kind": "eval", "model": "team/base", "data": "team/nothing"}},
    ]
    assert site.ada.post("/pipelines", {"steps": steps}).status_code == 404
    steps[1]["spec"] = {"kind": "eval", "model": "step:later", "data": "team/sql"}
    assert site.ada.post("/pipelines", {"steps": steps}).status_code == 422
    assert nothing_started(site)


def test_requests_that_are_not_what_they_should_be(site: Site) -> None:
    malformed = site.ada.send("POST", "/jobs", data=b'{"spec": ')
    assert (malformed.status_code, malformed.json["code"]) == (400, "malformed")
    assert site.ada.send("POST", "/jobs", data=b'{"priority": NaN}').status_code == 400
    assert site.ada.send("POST", "/jobs", data=b"[" * 100_000).status_code == 400
    assert site.ada.send("POST", "/jobs", data=b'"text"').status_code == 422
    assert site.ada.post("/jobs", {}).json["errors"][0]["loc"] == ["spec"]
    assert site.ada.send("POST", "/jobs", data=b" " * (17 << 20)).status_code == 413
    assert site.ada.get("/jobs?limit=many").status_code == 422
    assert site.ada.get("/jobs?limit=1001").json["errors"][0]["loc"] == ["limit"]
    assert site.ada.get("/jobs?sate=queued").json["errors"][0]["loc"] == ["sate"]
    assert site.ada.get("/jobs?state=asleep").status_code == 422
    assert site.ada.get("/jobs?q=%00").status_code in (200, 422)
    assert site.ada.get("/jobs/%00").status_code in (404, 422)
    wrong = site.ada.send("DELETE", "/jobs")
    assert wrong.status_code == 405
    assert "POST" in wrong.headers["Allow"]
    assert site.ada.get("/nothing").json["code"] == "not_found"
