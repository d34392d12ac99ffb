"""Parts that are away or full: said plainly to programs and people, and over when they are back."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.engine import make_url

from scheduler.db import connect
from tests.integration.web.site import MODEL, Site
from tests.integration.web.test_pages import signed_in

TRAIN = {"kind": "train", "model": "team/base", "data": "team/sql"}
NOTE = "x" * 2000


@contextmanager
def gone(engine: Engine) -> Iterator[None]:
    """Shut a PostgreSQL database and end the connections it has, as a restart does."""
    url = make_url(engine.url)
    server = connect(url.set(database="postgres").render_as_string(hide_password=False))
    alter = f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS'
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
    with server.execution_options(isolation_level="AUTOCOMMIT").connect() as admin:
        admin.execute(text(f"{alter} false"))
        admin.execute(text(end), {"name": url.database})
        yield
        admin.execute(text(f"{alter} true"))
    server.dispose()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_database_that_restarts_is_away_for_a_moment(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.with_inputs()
    browser = signed_in(site)
    with gone(site.database.engine):
        for answer in (site.ada.get("/jobs"), site.ada.post("/jobs", {"spec": TRAIN})):
            assert (answer.status_code, answer.json["code"]) == (503, "unavailable")
            assert answer.mimetype == "application/problem+json"
            assert int(answer.headers["Retry-After"]) > 0
        page = browser.get("/jobs")
        assert page.status_code == 503
        assert "The database is away or busy." in page.get_data(as_text=True)
        assert "Try again" in page.get_data(as_text=True)
    assert "Traceback" not in caplog.text
    assert site.ada.post("/jobs", {"spec": TRAIN}).status_code == 201
    assert browser.get("/jobs").status_code == 200


def test_a_full_database_is_507_and_keeps_nothing_of_it(site: Site) -> None:
    site.with_inputs()
    with full(site.database.engine):
        made = 0
        while (refused := site.ada.post("/jobs", {"spec": TRAIN, "note": NOTE})).status_code == 201:
            made += 1  # there is some room in the pages that the file has
            assert made < 100
        assert (refused.status_code, refused.json["code"]) == (507, "storage_full")
        assert int(refused.headers["Retry-After"]) > 0
        assert len(site.ada.get("/jobs").json["jobs"]) == made
    assert site.ada.post("/jobs", {"spec": TRAIN}).status_code == 201


@contextmanager
def full(engine: Engine) -> Iterator[None]:
    """Let SQLite's file grow no more; PostgreSQL has no quota, so its own error is raised there."""
    if engine.dialect.name != "sqlite":
        raising = (
            "CREATE FUNCTION no_room() RETURNS trigger AS $$ BEGIN"
            " RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'; END $$ LANGUAGE plpgsql",
            "CREATE TRIGGER no_room BEFORE INSERT ON jobs EXECUTE FUNCTION no_room()",
        )
        with engine.begin() as connection:
            for statement in raising:
                connection.execute(text(statement))
        yield
        with engine.begin() as connection:
            connection.execute(text("DROP FUNCTION no_room CASCADE"))
        return

    def limit(connection: object, _record: object, _proxy: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # type: ignore[attr-defined]  # as it is

    event.listen(engine, "checkout", limit)
    yield
    event.remove(engine, "checkout", limit)
    engine.dispose()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_store_that_is_away_is_503_and_takes_uploads_afterwards(site: Site) -> None:
    site.with_inputs()
    store = site.directory / "store"
    aside = store.rename(site.directory / "aside")
    store.write_bytes(b"no folder")
    refused = site.ada.get("/artifacts/team/base/versions/latest/files/model.safetensors")
    assert (refused.status_code, refused.json["code"]) == (503, "unavailable")
    assert int(refused.headers["Retry-After"]) > 0
    assert str(store) in refused.json["detail"]
    store.unlink()
    aside.rename(store)
    back = site.ada.get("/artifacts/team/base/versions/latest/files/model.safetensors")
    assert back.data == MODEL["model.safetensors"]
