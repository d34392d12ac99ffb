"""The migrations and the models must describe one schema, on both databases."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from scheduler.db import Database, migrate
from scheduler.models import Base


def _differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return list(compare_metadata(context, Base.metadata))


def test_migrations_equal_models(database: Database) -> None:
    with database.engine.connect() as connection:
        assert _differences(connection) == []


def test_a_difference_would_be_seen(database: Database) -> None:
    with database.engine.connect() as connection:
        connection.exec_driver_sql("DROP TABLE metrics")
        assert _differences(connection)


def test_migrating_twice_changes_nothing(database: Database) -> None:
    migrate(database.url)
    with database.engine.connect() as connection:
        assert _differences(connection) == []
