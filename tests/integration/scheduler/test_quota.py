"""A project's quota: what counts, who is refused, and that two do not share the last room."""

import threading
from pathlib import Path

import pytest

from espalier.errors import QuotaExceeded
from espalier.refs import parse_artifact
from espalier.settings import Settings
from espalier.states import ArtifactKind
from scheduler import access
from scheduler.access import SYSTEM
from scheduler.catalog import quota, registry, retiring
from scheduler.db import Database
from scheduler.models import Artifact, Project, Version
from tests.integration.store.shop import Shop
from tests.integration.web.site import MODEL

#: A data set of this many bytes is published by `bring`, another one for each letter.
SIZE = 300


@pytest.fixture
def shop(database: Database, tmp_path: Path) -> Shop:
    return Shop(database, Settings(store_url=f"file://{tmp_path / 'store'}"))


def bring(shop: Shop, name: str, letter: str) -> str:
    row = f'{{"text": "{letter * (SIZE // 3 - 13)}"}}\n'.encode()
    return shop.bring(name, ArtifactKind.DATASET, {"train.jsonl": row * 3})


def used(shop: Shop) -> int:
    with shop.database.reading() as session:
        return quota.usage(session, access.project_for(session, SYSTEM, "team"))


def limit(shop: Shop, size: int | None) -> None:
    with shop.database.transaction() as session:
        access.project_for(session, SYSTEM, "team").quota_bytes = size


def test_each_blob_counts_once_and_what_is_deleted_not_at_all(shop: Shop) -> None:
    first = bring(shop, "a", "x")
    bring(shop, "b", "x")  # the same bytes under another name
    assert used(shop) == SIZE
    bring(shop, "a", "y")
    assert used(shop) == 2 * SIZE
    with shop.database.transaction() as session:
        retiring.delete_artifact(session, SYSTEM, registry.find_artifact(session, "team", "b"))
        version = session.get_one(Version, first)
        retiring.delete_version(session, SYSTEM, version)
    assert used(shop) == SIZE


def test_what_does_not_fit_is_refused_with_what_is_used_and_wanted(shop: Shop) -> None:
    bring(shop, "a", "x")
    limit(shop, 2 * SIZE - 1)
    with pytest.raises(QuotaExceeded) as refused:
        bring(shop, "b", "y")
    assert refused.value.detail == (
        "team uses 300 bytes of its quota of 599 bytes: there is no room for 300 bytes more."
    )
    with shop.database.reading() as session:
        assert [a.name for a in session.query(Artifact)] == ["a"]
    bring(shop, "b", "x")
    limit(shop, 2 * SIZE)
    bring(shop, "b", "y")
    assert used(shop) == 2 * SIZE


def test_bringing_back_asks_for_the_room_again(shop: Shop) -> None:
    first = bring(shop, "a", "x")
    bring(shop, "a", "y")
    with shop.database.transaction() as session:
        retiring.delete_version(session, SYSTEM, session.get_one(Version, first))
    limit(shop, SIZE)
    with (
        pytest.raises(QuotaExceeded, match="no room for 300 bytes more"),
        shop.database.transaction() as session,
    ):
        retiring.restore_version(session, SYSTEM, session.get_one(Version, first))


def test_a_jobs_output_is_taken_and_no_further_job(shop: Shop) -> None:
    shop.bring("base", ArtifactKind.MODEL, MODEL)
    bring(shop, "wikisql", "x")
    ticket = shop.begin("tuned")
    limit(shop, used(shop))
    shop.stack.finish(ticket)
    with shop.database.reading() as session:
        made = registry.resolve(session, parse_artifact("team/tuned"))
        assert made.attempt_id == ticket.attempt_id
        project = access.project_for(session, SYSTEM, "team")
        assert project.quota_bytes is not None
        assert quota.usage(session, project) > project.quota_bytes
    with pytest.raises(QuotaExceeded, match="no job is taken that would make more"):
        shop.stack.submit()
    limit(shop, None)
    shop.stack.submit()


def test_of_two_that_want_the_last_room_one_gets_it(shop: Shop) -> None:
    """Whoever is first: both have seen that there is room before either publishes."""
    bring(shop, "a", "x")
    limit(shop, 2 * SIZE)
    together, ended = threading.Barrier(2, timeout=60), []

    def take(letter: str) -> None:
        with shop.database.reading() as session:
            project = session.query(Project).filter_by(name="team").one()
            quota.check(session, project, {letter * 64: SIZE})
        together.wait()
        try:
            ended.append(bring(shop, f"by-{letter}", letter))
        except QuotaExceeded as error:
            ended.append(error.code)

    threads = [threading.Thread(target=take, args=(letter,)) for letter in "yz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(ended) == 2
    assert ended.count("quota_exceeded") == 1
    assert used(shop) == 2 * SIZE
