"""A report through the API and as Markdown: of a job, of its pipeline, and of nobody else's."""

from tests.integration.web.site import Site


def test_a_report_tells_the_whole_pipeline(site: Site) -> None:
    site.with_inputs()
    inputs = {"model": "team/base", "data": "team/sql"}
    steps = [
        {"step": "train", "spec": {"kind": "train", **inputs, "iters": 10}},
        {"step": "eval", "spec": {"kind": "eval", **inputs, "adapter": "step:train"}},
    ]
    jobs = site.ada.post("/pipelines", {"steps": steps}).json["jobs"]
    for job in jobs:
        found = site.ada.get(f"/jobs/{job['id']}/report").json
        assert [part["id"] for part in found["sections"]] == [j["id"] for j in jobs]
        assert [part["state"] for part in found["sections"]] == ["queued", "waiting"]
        assert found["markdown"].startswith("# train → eval\n")
        assert "iters: 10" in found["sections"][0]["spec"]
    assert site.eve.get(f"/jobs/{jobs[0]['id']}/report").status_code == 404


def test_a_job_alone_has_a_report_and_a_page_of_it(site: Site) -> None:
    site.with_inputs()
    job_id = site.submit(note="first <b>try</b>")
    browser = site.browser()
    browser.post("/login", {"token": site.mint("login")})
    page = browser.get(f"/jobs/{job_id}/report")
    assert (page.status_code, page.text.count("<h1>")) == (200, 1)
    assert "first &lt;b&gt;try&lt;/b&gt;" in page.text
    text = browser.get(f"/jobs/{job_id}/report.md")
    assert text.content_type == "text/markdown; charset=utf-8"
    assert "first \\<b\\>try\\</b\\>" in text.text
