"""SQL in a backup: in an order in which it goes in again, without what ends with a process."""

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select

from espalier.settings import Settings
from scheduler.db import Database
from scheduler.models import Version, Worker, WorkerBlob
from scheduler.store import Driver
from scheduler.upkeep import backup, restore
from tests.integration.store.shop import Shop


def test_versions_come_back_in_their_own_order_and_workers_without_their_keys(
    database: Database,
    tmp_path: Path,
    elsewhere: Driver,
    new_url: str,
    opened: Callable[[], Database],
) -> None:
    """An id tells when a row was made, by a clock that may have been set back since."""
    shop = Shop.filled(database, Settings(store_url=f"file://{tmp_path / 'store'}"))
    with shop.database.transaction() as session:
        first = session.scalars(select(Version).order_by(Version.id)).first()
        last = session.scalars(select(Version).order_by(Version.id.desc())).first()
        assert first is not None
        assert last is not None
        first.previous_id, first.number = last.id, last.number + 1000
        session.add(Worker(id="w" * 16, name="shares", created_at=last.created_at))
        session.flush()
        session.get_one(Worker, "w" * 16).shares_key = "secret"
        session.add(WorkerBlob(worker_id="w" * 16, sha256="0" * 64, size=1))
    backup.backup(shop.database, shop.driver, tmp_path / "backup")
    restore.restore(new_url, elsewhere, tmp_path / "backup")
    with opened().reading() as session:
        assert session.get_one(Version, first.id).previous_id == last.id
        assert session.get_one(Worker, "w" * 16).shares_key is None
        assert session.scalars(select(WorkerBlob)).all() == []
