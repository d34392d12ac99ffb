"""What a person does in the dashboard, in a real browser; named by the action."""

import gzip
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Response, Route, expect

from espalier.messages import MetricsEvent, ProgressEvent
from espalier.states import Reason
from tests.browser.conftest import Site, refused

pytestmark = pytest.mark.browser

GOOD = "\n".join(f'{{"prompt": "How many {i}?", "completion": "{i}"}}' for i in range(40)) + "\n"


def test_every_page_opens_without_a_fault(page: Page, site: Site) -> None:
    for address in (
        "/",
        f"/jobs/{site.team.running}",
        f"/jobs/{site.team.succeeded}",
        f"/jobs/{site.team.succeeded}/report",
        "/submit",
        "/submit?kind=eval",
        f"/submit?clone={site.team.succeeded}",
        "/data",
        "/artifacts",
        "/team/sql-lora",
        "/team/wikisql?tokenizer=team/qwen2.5-0.5b",
        "/workers",
        "/settings",
    ):
        answer = page.goto(address)
        assert answer is not None
        assert answer.status == 200, address
        expect(page.locator("h1").first).to_be_visible()


def test_filter_jobs_by_state_kind_and_name(page: Page, site: Site) -> None:
    page.goto("/jobs")
    page.click("#tabs >> text=failed")
    expect(page).to_have_url(re.compile("state=failed"))
    expect(page.locator("tbody tr")).to_have_count(2)
    page.click("#tabs >> text=paused")
    expect(page).to_have_url(re.compile("paused=yes"))
    expect(page.locator(f"#job-{site.team.paused} .state")).to_have_text("paused")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.goto("/jobs")
    page.select_option("#kind", "export")
    expect(page).to_have_url(re.compile("kind=export"))
    expect(page.locator("tbody tr")).to_have_count(2)
    page.fill("#q", "r16")
    page.press("#q", "Enter")
    expect(page).to_have_url(re.compile("q=r16"))
    expect(page.locator("tbody tr")).to_have_count(1)


def test_a_row_lives(page: Page, site: Site) -> None:
    page.goto("/jobs")
    row = page.locator(f"#job-{site.team.running}")
    expect(row).to_contain_text("steps")
    attempt = site.attempt(site.team.running)
    progress = ProgressEvent(done=640, total=1000, unit="steps", time=0.0)
    metrics = MetricsEvent(step=640, values={"train_loss": 0.61, "val_loss": 0.5432}, time=0.0)
    site.seed.report(attempt, progress, metrics)
    expect(row).to_contain_text("640 / 1000")
    expect(row).to_contain_text("0.5432")


def test_a_page_lives_however_slowly_its_scripts_come(page: Page, site: Site) -> None:
    def slowly(route: Route) -> None:
        page.wait_for_timeout(700)
        route.continue_()

    page.route("**/hx-sse.min.js*", slowly)
    with page.expect_request("**/workers/stream"):
        page.goto("/workers")


def test_watch_a_job(page: Page, site: Site) -> None:
    """Numbers, curve and log follow the worker; nothing is loaded again."""
    page.goto(f"/jobs/{site.team.running}")
    expect(page.locator("[data-chart=loss] canvas")).to_be_visible()
    page.evaluate("window.kept = true")
    attempt = site.attempt(site.team.running)
    progress = ProgressEvent(done=700, total=1000, unit="steps", time=0.0)
    metrics = MetricsEvent(step=700, values={"train_loss": 0.4321}, time=0.0)
    site.seed.report(attempt, progress, metrics, log="Iter 700: Train loss 0.432\n")
    expect(page.locator("#job_head")).to_contain_text("0.4321")
    expect(page.locator("#log")).to_contain_text("Iter 700: Train loss 0.432")
    assert page.locator("#log").inner_text().count("Iter 700:") == 1
    assert page.evaluate("points.get(700).train_loss") == 0.4321
    assert page.evaluate("window.kept")


def test_cancel_a_queued_job_and_retry_it(page: Page, site: Site) -> None:
    job = site.seed.submit(
        {"spec": {"kind": "eval", "model": "team/qwen2.5-0.5b", "data": "team/wikisql"}}
    )
    page.goto(f"/jobs/{job}")
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.click("text=Cancel")
    expect(page.locator("#job_head .big")).to_have_text("queued")
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("text=Cancel")
    expect(page.locator("#job_head .big")).to_have_text("cancelled")
    page.click("text=Retry")
    expect(page.locator("#job_head .big")).to_have_text("queued")
    expect(page.locator("#job_story")).to_contain_text("Retry asked for by admin")


def test_pause_a_job_and_resume_it(page: Page, site: Site) -> None:
    job = site.seed.submit(
        {"spec": {"kind": "eval", "model": "team/qwen2.5-0.5b", "data": "team/wikisql"}}
    )
    page.goto(f"/jobs/{job}")
    state, story = page.locator("#job_head .big"), page.locator("#job_story")
    page.click("button:text-is('Pause')")
    expect(state).to_have_text("paused")
    expect(page.locator("#job_head")).to_contain_text("no worker gets it")
    expect(story).to_contain_text("Pause asked for by admin")
    page.click("button:text-is('Resume')")
    expect(state).to_have_text("queued")
    expect(story).to_contain_text("Resumed by admin")
    attempt = site.seed.start(job, "studio-2")
    expect(state).to_have_text("running")
    page.click("button:text-is('Pause')")
    expect(page.locator("#job_head")).to_contain_text("Pausing: its worker writes a checkpoint")
    site.seed.stopped(attempt, Reason.PAUSED)
    expect(state).to_have_text("paused")
    expect(page.locator("#job_attempts")).to_contain_text("A person paused it.")
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("text=Cancel")
    expect(state).to_have_text("cancelled")


def test_see_what_a_job_gave_up_for_memory_and_what_its_attempts_cost(
    page: Page, site: Site
) -> None:
    page.goto(f"/jobs/{site.team.laddered}")
    attempts = page.locator("#job_attempts")
    for said in ("0 of 3 tries used", "Memory ended.", "not counted as a try", "step 80"):
        expect(attempts).to_contain_text(said)
    expect(attempts).to_contain_text("2 rows are computed at once instead of 4")
    expect(attempts.locator(".rungs li")).to_have_count(2)
    page.goto(f"/jobs/{site.team.set_aside}")
    expect(page.locator("#job_head")).to_contain_text("set aside")
    expect(attempts.locator("li")).to_have_count(5)
    expect(attempts).to_contain_text("5 ended by machines (set aside at 5)")
    attempts.locator("text=stacks in its log").first.click()
    expect(page).to_have_url(re.compile("attempt="))


def test_a_wrong_form_keeps_what_was_typed_and_points_at_the_field(page: Page) -> None:
    page.goto("/submit")
    page.fill("[name='train.model']", "team/qwen2.5-0.5b")
    page.fill("[name='train.data']", "team/wikisq")
    page.fill("[name='train.iters']", "-5")
    with refused(page, 422):
        page.click("#go")
    expect(page.locator("[name='train.iters']")).to_have_value("-5")
    expect(page.locator("[name='train.iters']")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("[id='train.iters-about']")).to_contain_text("greater than or equal to 1")
    page.fill("[name='train.iters']", "50")
    with refused(page, 404):
        page.click("#go")
    expect(page.locator("[id='train.data-about']")).to_contain_text("team/wikisq")
    expect(page.locator("#faults")).to_contain_text("team/wikisql")


def test_submit_a_pipeline(page: Page) -> None:
    page.goto("/submit?train.model=team/qwen2.5-0.5b&train.data=team/wikisql")
    page.fill("[name='train.iters']", "200")
    page.fill("#name", "from-the-form")
    for step in ("eval", "fuse", "quantize", "export"):
        page.check(f"#step-{step}")
    page.select_option("[name='export.type']", "q8_0")
    page.click("#go")
    expect(page.locator("h1")).to_have_text("team/from-the-form")
    expect(page.locator("#job_chain li")).to_have_count(5)
    expect(page.locator("#command")).to_contain_text("--iters 200")
    page.click("#job_chain >> text=export")
    expect(page.locator("h1")).to_have_text("team/from-the-form-fused-gguf")


def test_quantize_without_fuse_is_refused(page: Page) -> None:
    page.goto("/submit?train.model=team/qwen2.5-0.5b&train.data=team/wikisql")
    page.check("#step-quantize")
    with refused(page, 422):
        page.click("#go")
    expect(page.locator("#faults")).to_contain_text("tick fuse too")
    expect(page.locator("#step-quantize")).to_be_checked()


def test_clone_a_job(page: Page, site: Site) -> None:
    page.goto(f"/jobs/{site.team.failed}")
    page.click("text=Clone")
    expect(page.locator("[name='train.learning_rate']")).to_have_value("0.5")
    page.fill("[name='train.learning_rate']", "0.00001")
    page.click("#go")
    expect(page.locator("#job_head .big")).to_have_text("queued")


def test_upload_one_file(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(GOOD)
    page.goto("/data")
    page.set_input_files("#file", file)
    page.fill("#name", "team/questions")
    page.click("#go")
    expect(page.locator("h1")).to_contain_text("questions v1")
    expect(page.locator("#preview")).to_contain_text("completions")
    expect(page.locator("#preview")).to_contain_text("32 train, 4 valid, 4 test")
    page.select_option("[name=tokenizer]", "team/qwen2.5-0.5b")
    expect(page.locator("#preview h3")).to_have_text("Length of a row in tokens")


def test_a_broken_line_is_shown_where_it_is(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "broken.jsonl"
    lines = GOOD.splitlines()
    lines[6] = '{"prompt": "How many?", "completion" "7"}'
    file.write_text("\n".join(lines))
    page.goto("/data")
    page.set_input_files("#file", file)
    page.fill("#name", "team/broken")
    with refused(page, 422):
        page.click("#go")
    cells = page.locator("#faults tbody td")
    assert cells.nth(0).inner_text() == "broken.jsonl"
    assert cells.nth(1).inner_text() == "7"
    expect(page.locator("#faults pre")).to_contain_text('"completion" "7"')
    expect(page.locator("#name")).to_have_value("team/broken")
    page.goto("/artifacts?q=broken")
    expect(page.locator("main")).to_contain_text("No artifact fits")


def test_download_a_file(page: Page) -> None:
    page.goto("/team/wikisql")
    with page.expect_download() as download:
        page.click("[aria-label='Download test.jsonl']")
    assert download.value.path().read_text().startswith("{")


def test_drain_a_worker_and_let_it_work_again(page: Page, site: Site) -> None:
    page.goto("/workers")
    tile = page.locator(".panel").filter(has_text=site.team.worker)
    tile.get_by_role("button", name="Drain").click()
    expect(tile).to_contain_text("takes nothing more")
    tile.get_by_role("button", name="Resume").click()
    expect(tile.locator("header .state")).to_have_text("busy")


def test_add_a_mac_and_make_a_token(page: Page) -> None:
    page.goto("/workers")
    page.click("#join")
    expect(page.locator("#join-command")).to_have_text(
        re.compile(r"^espalier worker join http://\S+ --token hf_\w{40}$")
    )
    page.goto("/settings")
    page.fill("[name=name]", "laptop")
    page.click("text=Make a token")
    expect(page.locator("#new-token")).to_have_text(re.compile(r"^hf_\w{40}$"))
    page.goto("/settings")
    expect(page.locator("#new-token")).to_have_count(0)
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("tr").filter(has_text="laptop").get_by_role("button", name="Revoke").click()
    expect(page.locator("tr").filter(has_text="laptop")).to_have_count(0)


def test_what_is_not_there_says_so(page: Page) -> None:
    with refused(page, 404):
        page.goto("/jobs/nothing")
    expect(page.locator("h1")).to_have_text("Not found")


def test_choose_the_dark_side(page: Page) -> None:
    page.goto("/jobs")
    page.click("[data-theme-toggle]")
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 21, 19)"


def test_hostile_text_stays_text(page: Page, site: Site) -> None:
    attempt = site.attempt(site.team.running)
    page.goto(f"/jobs/{site.team.running}")
    site.seed.report(attempt, log='<img src=x onerror="alert(1)"></pre><hx-partial>\n')
    expect(page.locator("#log")).to_contain_text('<img src=x onerror="alert(1)"></pre><hx-partial>')
    page.reload()
    expect(page.locator("#log")).to_contain_text('<img src=x onerror="alert(1)"></pre><hx-partial>')
    assert page.locator("#log *").count() == 0


def test_read_and_submit_without_javascript(
    browser: Browser, site: Site, state: dict[str, object]
) -> None:
    context = browser.new_context(
        base_url=site.url,
        storage_state=state,  # type: ignore[arg-type]
        java_script_enabled=False,
    )
    page = context.new_page()
    page.goto(f"/jobs/{site.team.succeeded}")
    expect(page.locator("svg.plot polyline").first).to_be_visible()
    expect(page.locator("#log")).to_contain_text("Train loss")
    page.goto("/jobs?state=failed")
    expect(page.locator("tbody tr")).to_have_count(2)
    page.goto("/submit")
    page.fill("[name='train.model']", "team/qwen2.5-0.5b")
    page.fill("[name='train.data']", "team/wikisql")
    page.click("#go")
    expect(page.locator("#job_head .big")).to_have_text("queued")
    page.click("text=Cancel")
    expect(page.locator("#job_head .big")).to_have_text("cancelled")
    context.close()


def test_a_phone_never_scrolls_sideways(
    browser: Browser, site: Site, state: dict[str, object]
) -> None:
    context = browser.new_context(
        base_url=site.url,
        storage_state=state,  # type: ignore[arg-type]
        viewport={"width": 390, "height": 844},
    )
    page = context.new_page()
    for address in ("/jobs", f"/jobs/{site.team.succeeded}", "/submit", "/data", "/team/sql-lora"):
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, address
    context.close()


def test_the_first_page_is_light(page: Page) -> None:
    """Everything that a first visit loads, compressed as a proxy does: at most 60 kB."""
    weights: dict[str, int] = {}

    def weigh(answer: Response) -> None:
        if not answer.url.endswith("stream?"):
            weights[answer.url] = len(gzip.compress(answer.body(), 6))

    page.on("response", weigh)
    page.goto("/jobs", wait_until="load")
    assert len(weights) <= 12, weights
    assert sum(weights.values()) <= 60_000, weights
