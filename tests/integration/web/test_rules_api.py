"""The registry's rules over the API: aliases and gates, deletion, quota, webhooks."""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.web.site import ADAPTER, DATASET, Door, Site, safetensors
from tests.integration.web.test_openapi import document, hold


def adapter(n: int) -> dict[str, bytes]:
    return {**ADAPTER, "adapters.safetensors": safetensors({f"w{n}": [2, 2]})}


@pytest.fixture
def filled(site: Site, tmp_path: Path) -> Site:
    """``team/tuned`` has three versions, ``team/sql`` one; the team's member is ada."""
    for n in range(3):
        made = site.ada.publish(tmp_path / str(n), "team/tuned", "adapter", adapter(n))
        assert made.status_code == 201, made.json
    assert site.ada.publish(tmp_path / "d", "team/sql", "dataset", DATASET).status_code == 201
    return site


def put(door: Door, path: str, body: dict[str, Any]) -> Any:
    return door.send("PUT", path, json=body)


def test_an_alias_moves_by_what_was_seen_and_goes_back(filled: Site) -> None:
    at = "/artifacts/team/tuned/aliases/production"
    ada, eve = filled.ada, filled.eve
    assert put(ada, at, {"version": "v1", "expected": ""}).status_code == 200
    refused = put(ada, at, {"version": "v2", "expected": ""})
    assert refused.status_code == 409
    assert "production points at v1" in refused.json["detail"]
    assert put(ada, at, {"version": "v2", "expected": "v1"}).json["ref"] == "team/tuned@v2"
    assert ada.post(f"{at}/rollback", {"expected": "v3"}).status_code == 409
    assert ada.post(f"{at}/rollback").json["ref"] == "team/tuned@v1"
    assert "nothing before" in ada.post(f"{at}/rollback").json["detail"]
    told = ada.get(f"{at}/history").json
    moves = [(m["why"], m["from"], m["to"], m["actor"]) for m in told["moves"]]
    assert moves == [
        ("rollback", "team/tuned@v2", "team/tuned@v1", "user:ada"),
        ("set", "team/tuned@v1", "team/tuned@v2", "user:ada"),
        ("set", None, "team/tuned@v1", "user:ada"),
    ]
    assert eve.get(f"{at}/history").status_code == 404
    assert eve.post(f"{at}/rollback").status_code == 404
    assert ada.send("DELETE", f"{at}?expected=v2").status_code == 409
    assert ada.send("DELETE", f"{at}?expected=v1").status_code == 204
    assert ada.get(f"{at}/history").json["rollback"] == "team/tuned@v1"


def test_a_gate_refuses_with_the_command_that_is_missing(filled: Site) -> None:
    at = "/artifacts/team/tuned/aliases/production"
    gate = {"data": "team/sql", "metric": "test_loss", "min_delta": 0.02}
    assert put(filled.ada, f"{at}/gate", gate).status_code == 403
    assert put(filled.admin, f"{at}/gate", {**gate, "metric": "x"}).status_code == 422
    made = put(filled.admin, f"{at}/gate", gate).json
    assert made["data"] == "team/sql@v1"
    assert made["text"] == (
        "test_loss on team/sql@v1 must be at least 0.02 better than the incumbent's,"
        " and no proof may have failed."
    )
    refused = put(filled.ada, at, {"version": "v1"})
    assert (refused.status_code, refused.json["code"]) == (409, "gate_refused")
    words = "run `espalier eval --model MODEL --adapter team/tuned@v1 --data team/sql@v1`"
    assert words in refused.json["detail"]
    verdict = filled.ada.get(f"{at}/verdict", query_string={"version": "v1"}).json
    assert (verdict["passed"], words in verdict["text"]) == (False, True)
    listed = filled.ada.get("/artifacts/team/tuned/gates").json["gates"]
    assert [one["alias"] for one in listed] == ["production"]
    assert filled.ada.send("DELETE", f"{at}/gate").status_code == 403
    assert filled.admin.send("DELETE", f"{at}/gate").status_code == 204
    assert put(filled.ada, at, {"version": "v1"}).status_code == 200


def test_what_is_deleted_is_listed_and_comes_back(filled: Site) -> None:
    ada, admin = filled.ada, filled.admin
    assert ada.send("DELETE", "/artifacts/team/tuned/versions/v2").status_code == 204
    assert ada.get("/artifacts/team/tuned/versions/v2").status_code == 404
    assert ada.send("DELETE", "/artifacts/team/sql").status_code == 403
    assert admin.send("DELETE", "/artifacts/team/sql").status_code == 204
    assert ada.get("/artifacts/team/sql").status_code == 404
    gone = ada.get("/projects/team/deleted").json
    assert [one["ref"] for one in gone["versions"]] == ["team/tuned@v2"]
    assert [one["ref"] for one in gone["artifacts"]] == ["team/sql"]
    assert filled.eve.get("/projects/team/deleted").status_code == 404
    assert ada.post("/artifacts/team/tuned/versions/v2/restore").json["number"] == 2
    assert ada.post("/artifacts/team/tuned/versions/v9/restore").status_code == 404
    assert ada.post("/artifacts/team/sql/restore").status_code == 403
    assert admin.post("/artifacts/team/sql/restore").status_code == 204
    assert ada.get("/artifacts/team/sql").json["latest"]["ref"] == "team/sql@v1"
    assert ada.get("/projects/team/deleted").json == {"artifacts": [], "versions": []}


def test_a_full_project_takes_no_more(filled: Site, tmp_path: Path) -> None:
    ada, admin = filled.ada, filled.admin
    (team,) = ada.get("/projects").json["projects"]
    used = team["used_bytes"]
    assert used > 0
    change = {"quota_bytes": used + 10}
    assert ada.send("PATCH", "/projects/team", json=change).status_code == 403
    admin.send("PATCH", "/projects/team", json=change)
    refused = ada.publish(tmp_path / "x", "team/more", "adapter", adapter(7))
    assert (refused.status_code, refused.json["code"]) == (507, "quota_exceeded")
    assert f"team uses {used} bytes of its quota of {used + 10} bytes" in refused.json["detail"]
    assert ada.get("/artifacts/team/more").status_code == 404
    room = "/projects/team/room"
    assert ada.post(room, {"files": {"a" * 64: 10}}).status_code == 204
    assert ada.post(room, {"files": {"a" * 64: 11}}).json["code"] == "quota_exceeded"
    assert filled.eve.post(room, {"files": {}}).status_code == 404
    again = ada.publish(tmp_path / "y", "team/again", "adapter", adapter(0))
    assert again.status_code == 201, "what the project holds already costs nothing"
    admin.send("PATCH", "/projects/team", json={"quota_bytes": used})
    spec = {"kind": "eval", "model": "team/base", "data": "team/sql"}
    refused = ada.post("/jobs", {"spec": spec, "project": "team"})
    assert (refused.status_code, refused.json["code"]) == (507, "quota_exceeded")
    admin.send("PATCH", "/projects/team", json={"quota_bytes": None})
    assert ada.publish(tmp_path / "z", "team/more", "adapter", adapter(7)).status_code == 201
    for wrong in ({"quota_bytes": -1}, {"ttl_days": 0}, {"quota_bytes": 1 << 70}, {}):
        assert admin.send("PATCH", "/projects/team", json=wrong).status_code == 422, wrong
    assert admin.send("PATCH", "/projects/team", json={"ttl_days": 30}).json["ttl_days"] == 30


def test_webhooks_are_owners_to_manage(filled: Site) -> None:
    ada, admin = filled.ada, filled.admin
    hooks = "/projects/team/webhooks"
    body = {"url": "http://127.0.0.1:9/x", "events": ["alias.moved"]}
    assert ada.post(hooks, body).status_code == 403
    for wrong in ("ftp://x/", "file:///etc/passwd", "http://", "http://a:b@localhost/", "no url"):
        refused = admin.post(hooks, {"url": wrong})
        assert (refused.status_code, refused.json["code"]) == (422, "invalid_input"), wrong
    assert "no event" in admin.post(hooks, {**body, "events": ["x"]}).json["detail"]
    made = admin.post(hooks, body)
    assert made.status_code == 201
    assert made.json["secret"].startswith("whsec_")
    (listed,) = admin.get(hooks).json["webhooks"]
    assert "secret" not in listed
    assert ada.get(hooks).status_code == 403
    assert filled.eve.get(hooks).status_code == 404
    one = f"{hooks}/{listed['id']}"
    put(ada, "/artifacts/team/tuned/aliases/best", {"version": "v1"})
    assert admin.post(f"{one}/ping").status_code == 202
    told = admin.get(f"{one}/deliveries").json["deliveries"]
    assert [(d["event"], d["state"]) for d in told] == [("ping", "due"), ("alias.moved", "due")]
    assert told[1]["payload"]["to"] == "team/tuned@v1"
    assert admin.post(f"{one}/deliveries/999/redeliver").status_code == 404
    assert admin.post(f"{one}/deliveries/{told[0]['id']}/redeliver").status_code == 202
    assert admin.send("DELETE", one).status_code == 204
    assert admin.get(f"{one}/deliveries").status_code == 404


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_answers_are_what_the_document_says(filled: Site) -> None:
    at, hooks = "/artifacts/team/tuned/aliases/production", "/projects/team/webhooks"
    put(filled.ada, at, {"version": "v1"})
    put(filled.ada, at, {"version": "v2"})
    put(filled.admin, f"{at}/gate", {"data": "team/sql"})
    filled.ada.send("DELETE", "/artifacts/team/tuned/versions/v1")
    hook = filled.admin.post(hooks, {"url": "http://localhost:9/"}).json["id"]
    filled.admin.post(f"{hooks}/{hook}/ping")
    found = document(filled)
    alias = "/artifacts/{project}/{name}/aliases/{alias}"
    for path, actual in (
        (f"{alias}/history", f"{at}/history"),
        (f"{alias}/verdict", f"{at}/verdict?version=v3"),
        ("/artifacts/{project}/{name}/gates", "/artifacts/team/tuned/gates"),
        ("/projects/{project}/deleted", "/projects/team/deleted"),
        ("/projects/{project}/webhooks", hooks),
        (
            "/projects/{project}/webhooks/{webhook}/deliveries",
            f"{hooks}/{hook}/deliveries",
        ),
        ("/gc", "/gc"),
    ):
        answer = filled.admin.get(actual)
        assert answer.status_code == 200, (actual, answer.json)
        operation = found["paths"][f"/api/v1{path}"]["get"]
        hold(found, operation["responses"]["200"]["content"]["application/json"], answer.json)
    assert filled.ada.get("/gc").status_code == 403
