"""A seeded stack's web app on a free port, and a real browser in front of it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect
from werkzeug.serving import make_server

from espalier.settings import Settings
from scheduler.db import migrate
from scheduler.models import Job
from tests.browser.seed import Seed, Team
from web import create_app
from web.services import Services

#: A browser's patience, for machines with other work to do.
PATIENCE = 60_000
expect.set_options(timeout=PATIENCE)


@dataclass(frozen=True)
class Site:
    """A running web app: where it is, what is in it, and the way behind its back."""

    url: str
    team: Team
    seed: Seed

    def attempt(self, job_id: str) -> str:
        """Return the id of a job's newest attempt."""
        with self.seed.database.reading() as db:
            return db.get_one(Job, job_id).attempts[-1].id


def serve(home: Path) -> Iterator[Site]:
    """Seed a database in ``home`` and serve its pages until the caller is done."""
    settings = Settings(data_dir=home, report_seconds=600)
    migrate(settings.sql_url)
    app = create_app(settings)
    services: Services = app.extensions["espalier"]
    seed = Seed(services.database, services.blobs, settings)
    team = seed.make()
    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Site(f"http://127.0.0.1:{server.server_port}", team, seed)
    server.shutdown()
    services.database.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One seeded site for the tests that change nothing others look at."""
    yield from serve(tmp_path_factory.mktemp("site"))


def sign_in(context: BrowserContext, site: Site) -> None:
    """Sign in by the login link, as the first admin does."""
    page = context.new_page()
    page.goto(f"{site.url}/login?token={site.team.login}")
    page.click("#sign-in")
    page.wait_for_url("**/jobs")
    page.close()


@pytest.fixture(scope="session")
def state(browser: Browser, site: Site) -> dict[str, object]:
    """The cookies of a signed-in admin."""
    context = browser.new_context()
    sign_in(context, site)
    found = dict(context.storage_state())
    context.close()
    return found


@pytest.fixture
def page(browser: Browser, site: Site, state: dict[str, object]) -> Iterator[Page]:
    """A signed-in page; an error in its console or against its CSP fails the test."""
    context = browser.new_context(base_url=site.url, storage_state=state)  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    faults = FAULTS[page] = []
    page.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    yield page
    context.close()
    assert not FAULTS.pop(page)


#: What the browser has complained about, by page.
FAULTS: dict[Page, list[str]] = {}


@contextmanager
def refused(page: Page, status: int) -> Iterator[None]:
    """Within it the server answers with this status: the browser's line about it is expected."""
    with page.expect_response(lambda answer: answer.status == status):
        yield
    page.wait_for_load_state("load")
    line = f"the server responded with a status of {status}"
    FAULTS[page][:] = [text for text in FAULTS[page] if line not in text]
