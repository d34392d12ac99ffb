"""Jobs through ``/api/v1``: what is asked, what comes back, and what is refused."""

from typing import Any

import pytest

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
