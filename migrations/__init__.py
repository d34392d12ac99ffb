"""Alembic's migrations: one schema for SQLite and PostgreSQL."""
