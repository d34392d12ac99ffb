"""A user of the command line, apart from the one who runs the tests."""

from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest
from typer.testing import CliRunner

from espalier.settings import settings


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An own config directory and no ESPALIER_ settings; returns the working directory."""
    for name in ("URL", "TOKEN", "DATABASE_URL", "BROKER_URL", "STORE_URL", "CONFIG"):
        monkeypatch.delenv(f"ESPALIER_{name}", raising=False)
    monkeypatch.setenv("ESPALIER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(platformdirs, "user_config_path", lambda name: tmp_path / "config" / name)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    settings.cache_clear()
    yield work
    settings.cache_clear()


@pytest.fixture
def cli() -> CliRunner:
    return CliRunner()
