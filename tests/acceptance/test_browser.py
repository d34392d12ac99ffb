"""The main job as a newcomer does it: in a browser, from the form to the GGUF file."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.acceptance.stacks import PATIENCE, Up

pytestmark = pytest.mark.browser
MILLISECONDS = 1000.0


@pytest.fixture
def page(stack: Up, browser: Browser) -> Iterator[Page]:
    """A page signed in by a login link; an error in its console fails the test."""
    context = browser.new_context(base_url=stack.url)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(stack.login_link())
    page.click("#sign-in")
    page.wait_for_url("**/jobs")
    yield page
    context.close()
    assert not faults


def _submit(page: Page) -> str:
    """Fill in the form as the README's walkthrough does; return the train job's id."""
    page.goto("/submit")
    typed = {
        "train.model": "team/tiny",
        "train.data": "team/wikisql",
        "train.iters": "200",
        "train.num_layers": "-1",
        "train.learning_rate": "1e-3",
        "train.batch_size": "2",
        "train.max_seq_length": "128",
        "name": "team/wikisql-lora",
    }
    for name, value in typed.items():
        page.locator(f'[name="{name}"]').fill(value)
    for step in ("eval", "fuse", "quantize", "export"):
        page.locator(f"#step-{step}").check()
    page.locator('[name="export.type"]').select_option("q8_0")
    page.click("#go")
    page.wait_for_url("**/jobs/*")
    return page.url.rstrip("/").split("/")[-1]


def test_the_main_job_from_the_form(stack: Up, page: Page, tiny_model: Path, wikisql: Path) -> None:
    stack.run("model", "push", str(tiny_model), "team/tiny")
    stack.run("dataset", "push", str(wikisql), "team/wikisql")
    train = _submit(page)

    # The curve appears and grows while the job runs, without a reload.
    curve = page.locator('[data-chart="loss"] canvas')
    expect(curve).to_be_visible(timeout=PATIENCE * MILLISECONDS)
    assert stack.job(train)["state"] == "running"
    expect(page.locator("#log")).to_contain_text("train loss", timeout=PATIENCE * MILLISECONDS)
    expect(page.get_by_text("succeeded").first).to_be_visible(timeout=PATIENCE * MILLISECONDS)

    pipeline = stack.job(train)["pipeline_id"]
    ids = {j["step"]: j["id"] for j in stack.json("jobs", "--pipeline", pipeline)["jobs"]}
    assert sorted(ids) == ["eval", "export", "fuse", "quantize", "train"]
    stack.run("wait", *ids.values())
    metrics = stack.job(ids["eval"])["metrics"]
    assert metrics["perplexity"] < metrics["base_perplexity"]

    page.goto(f"/jobs/{ids['export']}")
    expect(page.get_by_text("token_match").first).to_be_visible()
    page.goto("/artifacts?kind=gguf")
    page.get_by_role("link", name="wikisql-lora").first.click()
    with page.expect_download() as download:
        page.get_by_role("link", name=re.compile(r"Download .*\.gguf")).first.click()
    assert download.value.suggested_filename.endswith(".gguf")
