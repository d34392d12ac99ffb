"""A place to restore to: another store, and a database of the other kind."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from espalier.settings import Settings
from scheduler.db import Database
from scheduler.store import Driver, open_driver
from tests.conftest import create_database


@pytest.fixture
def elsewhere(tmp_path: Path) -> Driver:
    return open_driver(Settings(store_url=f"file://{tmp_path / 'elsewhere'}"))


@pytest.fixture
def new_url(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> str:
    """An empty database, not migrated, of the other kind than the one that is saved."""
    if not database_url.startswith("sqlite"):
        return f"sqlite:///{tmp_path / 'new' / 'espalier.db'}"
    return create_database(request.getfixturevalue("postgres_url"))


@pytest.fixture
def opened(new_url: str) -> Iterator[Callable[[], Database]]:
    made: list[Database] = []

    def make() -> Database:
        made.append(Database(new_url))
        return made[-1]

    yield make
    for database in made:
        database.close()
