"""The pages' own rules, without a browser: who sees what, forms, CSRF, and what a stream says."""

import io
import re
from collections.abc import Iterator
from itertools import islice

import pytest
from sqlalchemy.pool import QueuePool

from scheduler.models import Artifact, Job, Worker
from tests.integration.web.site import Browser, Site

HOSTILE = '"><script>alert(1)</script>'


def signed_in(site: Site, name: str = "ada") -> Browser:
    browser = site.browser()
    answer = browser.post("/login", {"token": site.mint("login", name)})
    assert answer.status_code == 302
    return browser


def text(browser: Browser, path: str) -> str:
    answer = browser.get(path)
    assert answer.status_code == 200, path
    return answer.get_data(as_text=True)


@pytest.fixture
def pages() -> tuple[str, ...]:
    return ("/jobs", "/submit", "/data", "/artifacts", "/team/sql", "/workers", "/settings")


def test_who_is_not_signed_in_is_sent_to_the_door(site: Site, pages: tuple[str, ...]) -> None:
    for path in (*pages, "/jobs/stream"):
        answer = site.browser().get(path)
        assert answer.status_code == 302
        assert answer.headers["Location"].startswith("/login?next=")


def test_members_see_their_project_and_strangers_learn_nothing(
    site: Site, pages: tuple[str, ...]
) -> None:
    site.with_inputs()
    job = site.submit(name="team/sql-lora")
    ada, eve = signed_in(site), signed_in(site, "eve")
    for path in (*pages, f"/jobs/{job}", "/team/base/v/1"):
        text(ada, path)
    assert "team/sql-lora" in text(ada, "/jobs")
    for path in (f"/jobs/{job}", f"/jobs/{job}/log", "/team/sql", "/team/base/v/1"):
        assert eve.get(path).status_code == 404, path
    assert eve.get(f"/submit?clone={job}").status_code == 404
    for path in ("/jobs", "/artifacts", "/data", "/submit"):
        said = text(eve, path).lower()
        assert not [name for name in ("team/sql", "sql-lora", "team/base") if name in said], path


def test_nothing_is_done_without_the_pages_own_token(site: Site) -> None:
    site.with_inputs()
    job = site.submit()
    ada = signed_in(site)
    answer = ada.http.post(f"/jobs/{job}/cancellation")
    assert answer.status_code == 400
    with site.database.reading() as session:
        assert session.get_one(Job, job).cancel_requested_at is None
    assert ada.post(f"/jobs/{job}/cancellation", {}, page="/settings").status_code == 303
    with site.database.reading() as session:
        assert session.get_one(Job, job).state == "cancelled"


def test_only_admins_invite_and_drain(site: Site) -> None:
    site.worker()
    with site.database.reading() as session:
        worker = session.query(Worker).one().id
    ada, admin = signed_in(site), signed_in(site, "admin")
    page = text(ada, "/workers")
    assert "Add a Mac" not in page
    assert "Drain" not in page
    for path in ("/workers/join-tokens", f"/workers/{worker}/drain"):
        assert ada.post(path, {"draining": "yes"}, page="/settings").status_code == 403
    admin.post(f"/workers/{worker}/drain", {"draining": "yes"}, page="/settings")
    with site.database.reading() as session:
        assert session.get_one(Worker, worker).draining


def test_pausing_is_a_form_that_needs_no_script(site: Site) -> None:
    site.with_inputs()
    job = site.submit()
    ada = signed_in(site)
    assert ada.http.post(f"/jobs/{job}/pause", data={"paused": "yes"}).status_code == 400
    page = text(ada, f"/jobs/{job}")
    assert f'action="/jobs/{job}/pause"' in page
    assert 'name="paused" value="yes"' in page
    ada.post(f"/jobs/{job}/pause", {"paused": "yes"}, page="/settings")
    page = text(ada, f"/jobs/{job}")
    assert "no worker gets it" in page
    assert 'name="paused" value="no"' in page
    assert f"job-{job}" in text(ada, "/jobs?paused=yes")
    assert ada.post(f"/jobs/{job}/pause", {"paused": "no"}, page="/settings").status_code == 303
    assert f"job-{job}" not in text(ada, "/jobs?paused=yes")


def test_only_owners_and_admins_have_the_switch_of_a_project(site: Site) -> None:
    ada, admin = signed_in(site), signed_in(site, "admin")
    path, form = "/settings/projects/team/preemption", {"preemptible": "yes"}
    assert path not in text(ada, "/settings")
    assert path in text(admin, "/settings")
    assert ada.post(path, form, page="/settings").status_code == 403
    assert signed_in(site, "eve").post(path, form, page="/settings").status_code == 404
    assert admin.post(path, form, page="/settings").status_code == 303
    assert "its jobs may be paused" in text(ada, "/settings")


def test_a_cloned_job_keeps_what_memory_may_change(site: Site) -> None:
    site.with_inputs()
    spec = {"kind": "train", "model": "team/base", "data": "team/sql", "iters": 10}
    spec |= {"on_oom": "fail", "micro_batch_size": 2}
    job = site.ada.post("/jobs", {"spec": spec}).json["id"]
    page = text(signed_in(site), f"/submit?clone={job}")
    assert re.search(r'name="train.micro_batch_size" value="2"', page)
    assert re.search(r'name="train.on_oom".*?<option selected>fail</option>', page, re.DOTALL)


def test_a_refused_form_comes_back_as_it_was_and_harmless(site: Site) -> None:
    site.with_inputs()
    form = {"kind": "train", "train.kind": "train", "train.model": HOSTILE, "name": HOSTILE}
    answer = signed_in(site).post("/submit", form, page="/submit")
    assert answer.status_code == 422
    html = answer.get_data(as_text=True)
    assert "<script>alert" not in html
    assert html.count("&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;") >= 2
    with site.database.reading() as session:
        assert session.query(Job).count() == 0


def test_broken_data_leaves_nothing(site: Site) -> None:
    ada = signed_in(site)
    form = {
        "csrf_token": ada.csrf("/data"),
        "name": "team/broken",
        "file": (io.BytesIO(b'{"text": "a"}\n{"text" "b"}\n'), "rows.jsonl"),
    }
    answer = ada.http.post("/data", data=form)
    assert answer.status_code == 422
    html = answer.get_data(as_text=True)
    assert "rows.jsonl" in html
    assert '<td class="num">2</td>' in html
    with site.database.reading() as session:
        assert session.query(Artifact).count() == 0


def test_a_stream_tells_what_changes_and_holds_no_connection(site: Site) -> None:
    site.with_inputs()
    ada = signed_in(site)
    answer = ada.get("/jobs/stream", buffered=False)
    assert answer.mimetype == "text/event-stream"
    told: Iterator[str] = (piece.decode() for piece in answer.iter_encoded())
    first = "".join(islice(told, 2))
    assert 'hx-target="#jobs"' in first
    pool = site.database.engine.pool
    assert isinstance(pool, QueuePool)
    job = site.submit()
    message = next(told)
    assert f"job-{job}" in message
    assert message.splitlines()[0].startswith("id: ")
    assert pool.checkedout() == 0
    answer.close()


def test_a_job_that_has_ended_ends_its_stream(site: Site) -> None:
    site.with_inputs()
    job = site.submit()
    ada = signed_in(site)
    answer = ada.get(f"/jobs/{job}/stream", buffered=False)
    told = (piece.decode() for piece in answer.iter_encoded())
    assert 'id="job_head"' in "".join(islice(told, 2))
    assert site.ada.post(f"/jobs/{job}/cancel").status_code == 200
    rest = "".join(told)
    assert "cancelled" in rest
    assert "event: end\n" in rest
