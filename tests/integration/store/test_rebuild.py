"""Histories come back from the store: branches, tags, gates, former names, and heads of old."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.refs import parse_artifact
from espalier.settings import Settings
from scheduler.access import Actor
from scheduler.catalog import branches, commits, gates, heads, registry, repositories, retiring
from scheduler.db import Database, migrate
from scheduler.models import Artifact, Gate, Version
from scheduler.queries import history, hub
from scheduler.store.base import REGISTRY
from scheduler.upkeep import fsck, rebuild
from tests.integration.store.shop import Shop, contents


@pytest.fixture
def shop(database: Database, tmp_path: Path) -> Shop:
    shop = Shop.filled(database, Settings(store_url=f"file://{tmp_path / 'store'}"))
    heads.write_due(database, lambda: shop.driver)
    return shop


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'new' / 'espalier.db'}"
    migrate(url)
    database = Database(url)
    yield database
    database.close()


def test_branches_tags_and_names_before_come_back(
    shop: Shop, empty: Database, database: Database
) -> None:
    def line(session: Session, version: Version) -> list[tuple[str, str, str]]:
        """Without authors and jobs: they do not come back."""
        documents = history.commit_documents(session, version, 0, 100)
        return [(one["id"], one["title"], one["date"]) for one in documents]

    def told(where: Database) -> dict[str, Any]:
        with where.reading() as session:
            admin = Actor(None, "admin", is_admin=True)
            artifact = hub.repository(session, admin, "models", "team", "tuned")
            assert registry.path_of(artifact) == "team/renamed"
            main = registry.head(session, artifact)
            dev = registry.head(session, artifact, "dev")
            assert main is not None
            assert dev is not None
            gates = session.scalars(select(Gate)).all()
            return {
                "refs": history.refs_document(session, artifact),
                "main": line(session, main),
                "dev": line(session, dev),
                "latest": artifact.latest,
                "gates": [(g.alias, g.data, g.metric, g.min_delta, g.proofs) for g in gates],
                "gone": session.scalars(
                    select(Artifact.name).where(Artifact.deleted_at.is_not(None))
                ).all(),
            }

    bring_history(shop)
    heads.write_due(database, lambda: shop.driver)
    assert heads.key("team", "tuned") not in {o.key for o in shop.driver.list(REGISTRY)}
    before = told(database)
    assert [b["name"] for b in before["refs"]["branches"]] == ["main", "dev", "production"]
    assert "first" in [t["name"] for t in before["refs"]["tags"]]
    assert [title for _, title, _ in before["dev"]] == ["On dev", "A card", "v2", "v1"]
    assert before["gone"] == ["base"]

    made = rebuild.rebuild(empty, shop.driver)
    assert made.lost == []
    assert told(empty) == before
    assert fsck.check(empty, shop.driver).findings == []
    heads.write_due(empty, lambda: shop.driver)
    assert fsck.check(empty, shop.driver, deep=True).findings == []


def bring_history(shop: Shop) -> None:
    """Commit to main and to a branch, tag, gate and move ``tuned``, and delete ``base``."""
    owner = f"user:{shop.actor.user_id}"

    def commit(branch: str, title: str, files: dict[str, bytes]) -> None:
        added = {entry.path: entry for entry in shop.files(files, owner)}
        wanted = commits.Commit("team", "tuned", title, branch, additions=added)
        commits.commit(shop.database, shop.blobs, shop.actor, wanted)

    commit("main", "A card", {"README.md": b"# Tuned"})
    with shop.database.transaction() as session:
        artifact = registry.find_artifact(session, "team", "tuned")
        main = registry.head(session, artifact)
        assert main is not None
        branches.create(session, shop.actor, artifact, "dev", "branch", main)
        first = registry.resolve(session, parse_artifact("team/tuned@v1"))
        branches.create(session, shop.actor, artifact, "first", "tag", first)
        gates.set_gate(
            session,
            shop.actor,
            artifact,
            "production",
            data="team/wikisql@v1",
            metric="test_loss",
            min_delta=0.5,
            proofs=False,
        )
    commit("dev", "On dev", {"notes.md": b"of dev"})
    with shop.database.transaction() as session:
        artifact = registry.find_artifact(session, "team", "tuned")
        repositories.move(session, shop.actor, artifact, "team", "renamed")
    with shop.database.transaction() as session:
        base = registry.find_artifact(session, "team", "base")
        retiring.delete_artifact(session, shop.actor, base)


def test_a_head_of_the_first_format_is_read(shop: Shop, empty: Database) -> None:
    for key, head in list(heads.read_all(shop.driver)):
        assert head is not None
        old = {k: head[k] for k in ("project", "name", "kind")} | {"format": 1}
        old["aliases"] = {name: said["version"] for name, said in head["names"].items()}
        dropped = ("branch", "previous", "message")
        old["versions"] = [
            {k: v for k, v in entry.items() if k not in dropped} for entry in head["versions"]
        ]
        shop.driver.put(key, json.dumps(old).encode())
    assert rebuild.rebuild(empty, shop.driver).lost == []
    before, after = contents(shop.database), contents(empty)
    assert len(before.pop("blobs") - after.pop("blobs")) == 1, "a checkpoint's"
    assert after == before
