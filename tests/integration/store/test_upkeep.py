"""``espalier fsck``, ``backup`` and ``restore`` as a person meets them."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from espalier.cli.app import app
from espalier.settings import Settings, settings
from espalier.states import ArtifactKind
from scheduler.db import Database, migrate
from scheduler.store.base import blob_key
from tests.integration.store.shop import Shop
from tests.integration.web.site import DATASET


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("ESPALIER_DATABASE_URL", "ESPALIER_STORE_URL", "ESPALIER_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    settings.cache_clear()
    return tmp_path / "data"


@pytest.fixture
def shop(home: Path) -> Shop:
    config = Settings(data_dir=home)
    migrate(config.sql_url)
    shop = Shop(Database(config.sql_url), config)
    shop.bring("wikisql", ArtifactKind.DATASET, DATASET)
    return shop


def espalier(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_damage_is_a_line_and_an_exit_code(shop: Shop, home: Path) -> None:
    sound = espalier("fsck", "--data-dir", str(home))
    assert (sound.exit_code, sound.stdout.splitlines()[-1]) == (0, "Nothing is wrong.")
    assert "team" in sound.stdout
    lost = shop.upload(DATASET["train.jsonl"], "user:a")
    shop.driver.delete(blob_key(lost))
    wrong = espalier("fsck", "--deep", "--data-dir", str(home))
    assert wrong.exit_code == 1
    assert lost in wrong.stdout.replace("\n", "")
    assert wrong.stdout.splitlines()[-1] == "1 wrong."
    saved = espalier("backup", str(home.parent / "backup"), "--data-dir", str(home))
    assert saved.exit_code == 1
    assert lost in saved.stderr


def test_a_backup_and_a_restore_say_what_they_did(shop: Shop, home: Path) -> None:
    target, there = str(home.parent / "backup"), str(home.parent / "there")
    saved = espalier("backup", target, "--data-dir", str(home))
    assert saved.exit_code == 0, saved.output
    assert "3 blobs" in saved.stdout
    again = espalier("backup", target, "--data-dir", str(home))
    assert "0 of them (0 B) are new" in again.stdout
    assert "is whole" in espalier("restore", target, "--check").stdout
    assert "is restored" in espalier("restore", target, "--data-dir", there).stdout
    refused = espalier("restore", target, "--data-dir", there)
    assert refused.exit_code == 1
    assert "not empty" in refused.stderr
    assert espalier("fsck", "--data-dir", there, "--deep").exit_code == 0


def test_a_registry_is_rebuilt_or_not(shop: Shop, home: Path) -> None:
    refused = espalier("fsck", "--rebuild", "--data-dir", str(home))
    assert refused.exit_code == 1
    assert "not empty" in refused.stderr
    assert espalier("fsck", "--rebuild", "--repair", "--data-dir", str(home)).exit_code == 2


def test_an_embedded_postgresql_has_to_be_up(home: Path) -> None:
    (home / "postgres").mkdir(parents=True)
    answer = espalier("fsck", "--data-dir", str(home))
    assert answer.exit_code == 2
    assert "espalier up --postgres" in answer.stderr
