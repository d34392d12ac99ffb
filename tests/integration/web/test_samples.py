"""Samples of an evaluation: through the API and as a page, filtered, searched, page by page."""

from pathlib import Path

import pytest

from tests.browser import things
from tests.integration.web.site import Site

EVAL = {
    "kind": "eval",
    "model": "team/base",
    "data": "team/sql",
    "metrics": ["exact_match", "execution_match", "rouge_l"],
    "answer_after": "A:",
}


def evaluated(site: Site, folder: Path, rows: int = 60) -> str:
    """Let a worker finish an evaluation that kept ``rows`` samples; return the job."""
    site.with_inputs()
    job_id: str = site.ada.post("/jobs", {"spec": EVAL}).json["id"]
    worker, boot = site.worker()
    (ticket,) = site.tick()
    attempt = f"/attempts/{ticket.attempt_id}"
    assert worker.post(f"{attempt}/claim", {"boot_id": boot}).status_code == 200
    files = worker.upload(folder, {"report.json": b"{}", "samples.jsonl": things.samples(rows)})
    meta = {"samples": {"file": "samples.jsonl", "rows": rows}}
    output = {"role": "report", "kind": "report", "files": files, "meta": meta}
    finish = {"boot_id": boot, "state": "succeeded", "outputs": [output]}
    assert worker.post(f"{attempt}/finish", finish).status_code == 200
    return job_id


@pytest.mark.parametrize(
    ("show", "total", "first"),
    [("all", 60, 1), ("wrong", 8, 7), ("lost", 1, 35), ("gained", 41, 1), ("changed", 49, 1)],
)
def test_the_api_shows_what_was_asked_for(
    evaluation: tuple[Site, str], show: str, total: int, first: int
) -> None:
    site, job_id = evaluation
    found = site.ada.get(f"/jobs/{job_id}/samples?show={show}&limit=5").json
    assert found["total"] == found["counts"][show] == total
    assert found["metric"] == "exact_match"
    assert found["report"] == "team/base-eval@v1"
    assert found["samples"][0]["line"] == first
    assert len(found["samples"]) == min(5, total)


@pytest.fixture(scope="module")
def evaluation(
    migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory, broker_url: str
) -> tuple[Site, str]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "espalier.db").write_bytes(migrated_sqlite.read_bytes())
    site = Site(f"sqlite:///{folder / 'espalier.db'}", folder, broker_url)
    return site, evaluated(site, folder / "out")


def test_it_is_searched_and_turned_page_by_page(evaluation: tuple[Site, str]) -> None:
    site, job_id = evaluation
    listed = f"/jobs/{job_id}/samples?limit=20&offset="
    lines = [
        s["line"] for at in (0, 20, 40, 60) for s in site.ada.get(f"{listed}{at}").json["samples"]
    ]
    assert lines == list(range(1, 61))
    asked = f"/jobs/{job_id}/samples?q=POPULATION&limit=100"
    found = site.ada.get(asked).json
    assert 0 < found["total"] < 60
    assert all("population" in s["prompt"].lower() for s in found["samples"])
    by = site.ada.get(f"/jobs/{job_id}/samples?metric=rouge_l&show=wrong").json
    assert (by["metric"], by["total"]) == ("rouge_l", 8)


def test_what_is_not_there_is_refused(evaluation: tuple[Site, str]) -> None:
    site, job_id = evaluation
    refused = site.ada.get(f"/jobs/{job_id}/samples?metric=bleu")
    assert refused.status_code == 422
    assert "exact_match" in refused.json["hint"]
    assert site.eve.get(f"/jobs/{job_id}/samples").status_code == 404
    none = site.ada.get(f"/jobs/{site.submit()}/samples")
    assert (none.status_code, "no samples" in none.json["detail"]) == (404, True)


def test_the_page_works_without_scripts(evaluation: tuple[Site, str]) -> None:
    site, job_id = evaluation
    browser = site.browser()
    browser.post("/login", {"token": site.mint("login")})
    page = browser.get(f"/jobs/{job_id}/samples?show=wrong")
    assert (page.status_code, page.text.count("<h1>")) == (200, 1)
    assert page.text.count("<summary>Line ") == 8
    assert "<del>" in page.text
    assert browser.get(f"/jobs/{job_id}/samples?page=3").text.count("<summary>Line ") == 10
    assert "Nothing here" in browser.get(f"/jobs/{job_id}/samples?q=%3Cscript%3E").text
    assert browser.get(f"/jobs/{job_id}/samples?show=nonsense").text.count("Line ") == 25
