"""A project's page and the form of a gate: limits, what was deleted, webhooks; who may, and what

is said beside a field.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.web.site import DATASET, MODEL, Browser, Site

HOME = "/settings/projects/team"


@pytest.fixture
def site(database_url: str, tmp_path: Path) -> Iterator[Site]:
    site = Site(database_url, tmp_path / "site", None)
    yield site
    site.close()


def signed_in(site: Site, name: str) -> Browser:
    browser = site.browser()
    assert browser.post("/login", {"token": site.mint("login", name)}).status_code == 302
    return browser


def page(browser: Browser, path: str, status: int = 200) -> str:
    answer = browser.get(path)
    assert answer.status_code == status, path
    return answer.get_data(as_text=True)


def test_limits_are_set_and_what_is_wrong_is_said_beside_it(site: Site) -> None:
    admin = signed_in(site, "admin")
    limits = {"quota_bytes": "200GB", "ttl_days": "30"}
    assert admin.post(f"{HOME}/limits", limits).status_code == 303
    told = site.admin.get("/projects").get_json()["projects"]
    (team,) = [project for project in told if project["name"] == "team"]
    assert (team["quota_bytes"], team["ttl_days"]) == (200 * 10**9, 30)
    refused = admin.post(f"{HOME}/limits", {"quota_bytes": "many", "ttl_days": "30"})
    said = refused.get_data(as_text=True)
    assert refused.status_code == 422
    assert 'value="many"' in said
    assert re.search(r'id="quota_bytes-about"><span class="fault">[^<]*many', said)
    refused = admin.post(f"{HOME}/limits", {"quota_bytes": "", "ttl_days": "1"})
    assert re.search(r'id="ttl_days-about"><span class="fault">', refused.get_data(as_text=True))
    (team,) = [p for p in site.admin.get("/projects").get_json()["projects"] if p["name"] == "team"]
    assert (team["quota_bytes"], team["ttl_days"]) == (200 * 10**9, 30), "one refused, none set"
    assert admin.post(f"{HOME}/limits", {"quota_bytes": "", "ttl_days": ""}).status_code == 303
    (team,) = [p for p in site.admin.get("/projects").get_json()["projects"] if p["name"] == "team"]
    assert (team["quota_bytes"], team["ttl_days"]) == (None, None)


def test_members_see_the_page_and_strangers_do_not(site: Site) -> None:
    ada = signed_in(site, "ada")
    shown = page(ada, HOME)
    assert "Set the limits" not in shown
    assert "Add a webhook" not in shown
    assert ada.post(f"{HOME}/limits", {"ttl_days": "30"}).status_code == 403
    page(signed_in(site, "eve"), HOME, 404)


def test_a_webhook_s_secret_is_shown_once(site: Site) -> None:
    admin = signed_in(site, "admin")
    wrong = admin.post(f"{HOME}/webhooks", {"url": "ftp://x", "events": "alias.moved"})
    assert wrong.status_code == 422
    said = wrong.get_data(as_text=True)
    assert 'value="ftp://x"' in said
    assert re.search(r'id="url-about"><span class="fault">', said)
    made = admin.post(
        f"{HOME}/webhooks", {"url": "http://127.0.0.1:9/hook", "events": "alias.moved"}
    )
    assert made.status_code == 200
    assert "whsec_" in made.get_data(as_text=True)
    shown = page(admin, HOME)
    assert "whsec_" not in shown
    assert "alias.moved" in shown
    found = re.search(rf"{HOME}/webhooks/(\w+)", shown)
    assert found
    hook = found[0]
    assert admin.post(f"{hook}/ping", {}).status_code == 303
    sent = page(admin, hook)
    (delivery,) = re.findall(r"/deliveries/(\d+)/again", sent)
    assert admin.post(f"{hook}/deliveries/{delivery}/again", {}).status_code == 303
    assert "whsec_" not in page(admin, hook)
    page(signed_in(site, "ada"), hook, 403)
    assert admin.post(f"{hook}/removal", {}).status_code == 303
    assert hook not in page(admin, HOME)
    page(admin, hook, 404)


def test_what_was_deleted_is_brought_back_from_the_project_s_page(
    site: Site, tmp_path: Path
) -> None:
    site.ada.publish(tmp_path / "m", "team/base", "model", MODEL)
    assert site.admin.send("DELETE", "/artifacts/team/base").status_code == 204
    admin = signed_in(site, "admin")
    assert "/team/base/restoration" in page(admin, HOME)
    assert admin.post("/team/base/restoration", {}).status_code == 303
    assert "/team/base/restoration" not in page(admin, HOME)
    assert site.ada.get("/artifacts/team/base").status_code == 200


def test_a_gate_is_set_changed_and_taken_away(site: Site, tmp_path: Path) -> None:
    site.ada.publish(tmp_path / "m", "team/base", "model", MODEL)
    site.ada.publish(tmp_path / "d", "team/sql", "dataset", DATASET)
    admin, gate = signed_in(site, "admin"), "/team/base/aliases/production/gate"
    assert 'value="team/sql"' not in page(admin, gate)
    asked = {"data": "team/nothing", "metric": "accuracy", "min_delta": "0.02", "proofs": "on"}
    wrong = admin.post(gate, asked)
    assert wrong.status_code == 404
    said = wrong.get_data(as_text=True)
    assert 'value="team/nothing"' in said
    assert 'value="accuracy" selected' in said
    assert re.search(r'id="data-about"><span class="fault">', said)
    wrong = admin.post(gate, {**asked, "data": "team/sql", "min_delta": "a bit"})
    assert re.search(r'id="min_delta-about"><span class="fault">', wrong.get_data(as_text=True))
    assert admin.post(gate, {**asked, "data": "team/sql"}).status_code == 303
    (kept,) = site.ada.get("/artifacts/team/base/gates").get_json()["gates"]
    assert (kept["data"], kept["metric"]) == ("team/sql@v1", "accuracy")
    assert (kept["min_delta"], kept["proofs"]) == (0.02, True)
    assert 'value="0.02"' in page(admin, gate)
    assert "Gate" in page(admin, "/team/base")
    ada = signed_in(site, "ada")
    assert "Set the gate" not in page(ada, gate)
    assert ada.post(gate, {**asked, "data": "team/sql"}).status_code == 403
    assert admin.post(f"{gate}/removal", {}).status_code == 303
    assert site.ada.get("/artifacts/team/base/gates").get_json()["gates"] == []
