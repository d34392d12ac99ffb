"""``python -m tests.browser.screenshots [DIR] [NAME…]``: every page, two widths, two themes."""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.conftest import Site, serve, sign_in
from tests.chromium import FLAGS, chromium

OUT = Path(__file__).parents[2] / "docs" / "screenshots"
TALLEST = 1600
WIDTHS = {"desktop": (1280, 860), "phone": (390, 844)}


def addresses(site: Site) -> dict[str, str]:
    """Return the name of a screenshot → where it is taken."""
    team = site.team
    return {
        "jobs": "/jobs",
        "job-running": f"/jobs/{team.running}",
        "job-succeeded": f"/jobs/{team.succeeded}",
        "job-eval": f"/jobs/{team.evaluated}",
        "samples": f"/jobs/{team.evaluated}/samples",
        "samples-wrong": f"/jobs/{team.evaluated}/samples?show=wrong&q=City",
        "job-quantize": f"/jobs/{team.quantized}",
        "job-failed": f"/jobs/{team.failed}",
        "job-paused": f"/jobs/{team.paused}",
        "job-laddered": f"/jobs/{team.laddered}",
        "job-preempted": f"/jobs/{team.preempted}",
        "job-set-aside": f"/jobs/{team.set_aside}",
        "report": f"/jobs/{team.succeeded}/report",
        "submit": "/submit?train.model=team/qwen2.5-0.5b&train.data=team/wikisql"
        "&steps=eval&steps=fuse&steps=export",
        "data": "/data",
        "dataset": "/team/wikisql?tokenizer=team/qwen2.5-0.5b",
        "artifacts": "/artifacts",
        "artifact": "/team/sql-lora",
        "card": "/team/qwen2.5-0.5b",
        "files": "/team/qwen2.5-0.5b/v/1/files/",
        "tensors": "/team/qwen2.5-0.5b/v/1/files/model.safetensors",
        "gguf": "/team/sql-lora-fused-gguf/v/1/files/model-q8_0.gguf",
        "versions": "/team/sql-tiny/versions",
        "names": "/team/sql-tiny",
        "compare": "/team/sql-tiny/compare?from=v1&to=v3",
        "storage": "/storage",
        "workers": "/workers",
        "settings": "/settings",
        "project": "/settings/projects/team",
        "gate": "/team/sql-tiny/aliases/production/gate",
    }


def take(browser: Browser, site: Site, out: Path, wanted: list[str]) -> None:
    """Write ``<page>-<width>-<theme>.png`` of every page."""
    context = browser.new_context()
    sign_in(context, site)
    state = context.storage_state()
    for width, (across, down) in WIDTHS.items():
        for theme in ("light", "dark"):
            context = browser.new_context(
                base_url=site.url,
                storage_state=state,
                viewport={"width": across, "height": down},
                color_scheme="dark" if theme == "dark" else "light",
                reduced_motion="reduce",
            )
            page = context.new_page()
            for name, address in addresses(site).items():
                if not wanted or name in wanted:
                    _shoot(page, address, out / f"{name}-{width}-{theme}.png")
            if not wanted or "login" in wanted:
                context.clear_cookies()
                _shoot(page, "/login", out / f"login-{width}-{theme}.png")
            context.close()


def _shoot(page: Page, address: str, path: Path) -> None:
    answer = page.goto(address)
    assert answer is not None
    assert answer.ok, f"{address}: {answer.status}"
    if page.locator("[data-chart=loss]").count():
        page.wait_for_selector("[data-chart=loss] canvas")
    # What is cut off at the side is a fault of the page, not of the picture.
    wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    assert not wide, f"{address} scrolls sideways"
    across, down = page.evaluate("[innerWidth, document.documentElement.scrollHeight]")
    clip = {"x": 0, "y": 0, "width": across, "height": min(down, TALLEST)}
    page.screenshot(path=path, full_page=True, clip=clip)  # type: ignore[arg-type]


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home,
        sync_playwright() as playwright,
    ):
        sites = serve(Path(home))
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        take(browser, next(sites), out, sys.argv[2:])
        browser.close()
        next(sites, None)


if __name__ == "__main__":
    main()
