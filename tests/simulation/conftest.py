"""Benches for the simulation: one of each database a process, new again for every seed."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import create_database
from tests.simulation.databases import Bench
from tests.simulation.simulation import configured


@pytest.fixture(scope="session")
def sqlite_bench(
    migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    path = tmp_path_factory.mktemp("simulation") / "simulation.db"
    shutil.copy(migrated_sqlite, path)
    with configured():
        bench = Bench(f"sqlite:///{path}")
        yield bench
        bench.close()


@pytest.fixture(scope="session")
def postgres_bench(postgres_url: str, migrated_postgres: str) -> Iterator[Bench]:
    with configured():
        bench = Bench(create_database(postgres_url, migrated_postgres))
        yield bench
        bench.close()
