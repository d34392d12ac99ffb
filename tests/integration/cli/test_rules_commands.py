"""The registry's rules from the command line, over HTTP."""

from pathlib import Path

import pytest

from espalier.settings import settings
from tests.integration.cli.conftest import Terminal
from tests.integration.web.site import ADAPTER, DATASET, safetensors


@pytest.fixture
def filled(terminal: Terminal, tmp_path: Path) -> Terminal:
    """``team/tuned`` has three versions, ``team/sql`` one."""
    for n in range(3):
        files = {**ADAPTER, "adapters.safetensors": safetensors({f"w{n}": [2, 2]})}
        made = terminal.site.ada.publish(tmp_path / str(n), "team/tuned", "adapter", files)
        assert made.status_code == 201
    made = terminal.site.ada.publish(tmp_path / "sql", "team/sql", "dataset", DATASET)
    assert made.status_code == 201
    return terminal


@pytest.fixture
def as_admin(filled: Terminal, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("ESPALIER_TOKEN", filled.site.admin.token)
    settings.cache_clear()
    return filled


def test_an_alias_is_moved_looked_at_and_rolled_back(filled: Terminal) -> None:
    moved = filled.run("alias", "set", "team/tuned@v1", "production", "--expected", "")
    assert moved.stdout == "team/tuned@production is team/tuned@v1.\n"
    filled.run("alias", "set", "team/tuned@v2", "production")
    refused = filled.run("alias", "set", "tuned@v3", "production", "--expected", "v1", code=2)
    assert "production points at v2" in refused.stderr
    assert "team/tuned@v1" in filled.run("alias", "rollback", "team/tuned", "production").stdout
    assert "nothing before" in filled.run("alias", "rollback", "tuned", "production", code=2).stderr
    lines = filled.run("alias", "history", "team/tuned", "production").stdout.splitlines()
    assert [line.split("user:ada")[1].split()[:3] for line in lines[1:]] == [
        ["rollback", "v2", "v1"],
        ["set", "v1", "v2"],
        ["set", "–", "v1"],
    ]
    refused = filled.run("alias", "remove", "tuned", "production", "--expected", "v2", code=2)
    assert "points at v1" in refused.stderr
    filled.run("alias", "remove", "team/tuned", "production")
    assert "names a version" in filled.run("alias", "remove", "tuned@v1", "x", code=2).stderr


def test_a_gate_is_set_asked_and_taken_away(as_admin: Terminal) -> None:
    gate = ("alias", "gate", "team/tuned", "production", "--data", "team/sql", "--by", "0.02")
    assert "must be at least 0.02 better" in as_admin.run(*gate).stdout
    assert "team/sql@v1" in as_admin.run("alias", "gates", "team/tuned").stdout
    words = "run `espalier eval --model MODEL --adapter team/tuned@v1 --data team/sql@v1`"
    assert words in as_admin.run("alias", "check", "team/tuned@v1", "production", code=1).stdout
    assert words in as_admin.run("alias", "set", "team/tuned@v1", "production", code=2).stderr
    as_admin.run("alias", "ungate", "team/tuned", "production")
    as_admin.run("alias", "check", "team/tuned@v1", "production")
    as_admin.run("alias", "set", "team/tuned@v1", "production")


def test_what_is_deleted_is_restored(as_admin: Terminal) -> None:
    as_admin.run("artifact", "delete", "team/tuned@v2")
    as_admin.run("artifact", "delete", "team/sql", "--yes")
    listed = as_admin.json("artifact", "deleted")
    assert [one["ref"] for one in listed["artifacts"]] == ["team/sql"]
    assert "team/tuned@v2" in as_admin.run("artifact", "deleted", "team").stdout
    as_admin.run("artifact", "restore", "team/tuned@v2")
    as_admin.run("artifact", "restore", "team/sql")
    assert as_admin.json("artifact", "deleted") == {"artifacts": [], "versions": []}
    gone = as_admin.run("artifact", "restore", "team/sql", code=2)
    assert "no deleted artifact team/sql" in gone.stderr


def test_a_project_gets_its_limits(as_admin: Terminal) -> None:
    told = as_admin.run("project", "set", "team", "--quota", "200GB", "--ttl", "30").stdout
    assert "of 200.0 GB; versions that nothing names go after 30 days." in told
    (_, team) = as_admin.json("projects")["projects"]
    assert (team["quota_bytes"], team["ttl_days"]) == (200 * 10**9, 30)
    assert "200.0 GB" in as_admin.run("projects").stdout
    changed = as_admin.json("project", "set", "team", "--quota", "1.5GiB")
    assert changed["quota_bytes"] == 1_610_612_736
    changed = as_admin.json("project", "set", "team", "--quota", "none", "--ttl", "none")
    assert (changed["quota_bytes"], changed["ttl_days"]) == (None, None)
    assert "no size" in as_admin.run("project", "set", "team", "--quota", "lots", code=2).stderr
    assert "3 to 36500" in as_admin.run("project", "set", "team", "--ttl", "1", code=2).stderr


def test_a_webhook_is_added_and_pinged(as_admin: Terminal) -> None:
    made = as_admin.json("webhook", "add", "team", "http://localhost:9/", "--event", "alias.moved")
    assert made["secret"].startswith("whsec_")
    assert "http://localhost:9/" in as_admin.run("webhook", "list", "team").stdout
    assert "whsec_" not in as_admin.run("webhook", "list", "team").stdout
    as_admin.run("webhook", "ping", "team", made["id"])
    assert "due" in as_admin.run("webhook", "deliveries", "team", made["id"]).stdout
    as_admin.run("webhook", "remove", "team", made["id"])
    assert "no webhook" in as_admin.run("webhook", "remove", "team", made["id"], code=2).stderr


def test_a_collection_is_foretold(as_admin: Terminal) -> None:
    assert "0 blobs of 0 B would go" in as_admin.run("gc", "--dry-run").stdout
    assert as_admin.json("gc", "--dry-run")["expired"] == []
