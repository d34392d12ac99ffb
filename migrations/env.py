"""Alembic's environment: the URL comes from the caller, the metadata from scheduler.models."""

from alembic import context

from scheduler.db import connect
from scheduler.models import Base, Timestamp


def render_item(kind: str, item: object, _context: object) -> str | bool:
    """Migrations stand alone: they name SQLAlchemy's own types, not the models' (Alembic hook)."""
    if kind == "type" and isinstance(item, Timestamp):
        return "sa.DateTime(timezone=True)"
    return False


engine = connect(context.config.attributes["url"])
try:
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            # Two processes that start together must not migrate together.
            connection.exec_driver_sql("SELECT pg_advisory_lock(7265736)")
            connection.commit()
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=True,
            compare_type=True,
            render_item=render_item,
            transaction_per_migration=False,
        )
        with context.begin_transaction():
            context.run_migrations()
        if connection.in_transaction():
            connection.commit()
finally:
    engine.dispose()
