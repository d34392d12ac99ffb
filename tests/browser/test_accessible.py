"""The store's pages held to axe-core's rules (WCAG 2.2 A and AA, best practices), in both themes.

Themes differ in colours alone: the second is held to the rules of those.
"""

from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, StorageState

from tests.browser.conftest import Site

pytestmark = pytest.mark.browser

PAGES = (
    "/artifacts",
    "/team/qwen2.5-0.5b",
    "/team/sql-tiny",
    "/team/sql-tiny/versions",
    "/team/sql-tiny/compare?from=v1&to=v3",
    "/team/sql-tiny/aliases/production/gate",
    "/team/qwen2.5-0.5b/v/1/files/",
    "/team/qwen2.5-0.5b/v/1/files/model.safetensors",
    "/team/wikisql",
    "/storage",
    "/settings",
    "/settings/projects/team",
)


RULES: dict[Literal["light", "dark"], dict[str, object]] = {
    "light": {},
    "dark": {"runOnly": {"type": "rule", "values": ["color-contrast"]}},
}


@pytest.mark.parametrize("theme", RULES)
def test_nobody_is_kept_out_of_the_store(
    browser: Browser, site: Site, state: StorageState, theme: Literal["light", "dark"]
) -> None:
    context = browser.new_context(storage_state=state, color_scheme=theme, base_url=site.url)
    page, found = context.new_page(), []
    for address in PAGES:
        page.goto(address)
        for fault in Axe().run(page, options=RULES[theme]).response["violations"]:
            found += [
                f"{address}: {fault['id']}: {node['html'][:200]}: {node['failureSummary']}"
                for node in fault["nodes"]
            ]
    context.close()
    assert not found, "\n".join(found)
