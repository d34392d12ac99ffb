"""Versions, aliases and lineage, on both databases."""

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.errors import Conflict, InvalidInput, NotFound
from espalier.messages import FileEntry
from espalier.refs import parse_artifact
from espalier.settings import Settings
from espalier.states import ArtifactKind
from scheduler.access import SYSTEM
from scheduler.bytes.blobs import Blobs
from scheduler.catalog import aliases, lineage, registry, retiring
from scheduler.db import Database, now
from scheduler.models import Artifact, Audit, Job, Project, Version, VersionFile
from scheduler.store import open_driver


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    settings = Settings(store_url=f"file://{tmp_path / 'store'}")
    return Blobs(open_driver(settings), settings)


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.transaction() as session:
        session.add(Project(name="team", created_at=now(session)))
        session.flush()
        yield session


def publish(
    session: Session,
    blobs: Blobs,
    name: str = "tuned",
    files: dict[str, bytes] | None = None,
    kind: ArtifactKind = ArtifactKind.ADAPTER,
    parents: tuple[registry.Parent, ...] = (),
    meta: dict[str, object] | None = None,
    job: Job | None = None,
) -> Version:
    contents = {"adapters.safetensors": b"weights"} if files is None else files
    entries = [
        FileEntry(path=path, sha256=blobs.put_bytes(session, data), size=len(data))
        for path, data in contents.items()
    ]
    return registry.publish(
        session,
        blobs,
        project=session.scalars(select(Project).where(Project.name == "team")).one(),
        name=name,
        kind=kind,
        files=entries,
        meta=meta or {},
        parents=parents,
        created_by=None,
        job=job,
    )


def find(session: Session, ref: str) -> Version:
    return registry.resolve(session, parse_artifact(ref))


def test_a_version_is_its_canonical_manifest(session: Session, blobs: Blobs) -> None:
    base = publish(session, blobs, "base", {"config.json": b"{}"}, ArtifactKind.MODEL)
    version = publish(
        session,
        blobs,
        files={"b/x.json": b"{}", "a.json": b"[]"},
        parents=(("model", base),),
        meta={"rank": 8},
    )
    manifest = b"".join(blobs.open(version.manifest))
    assert version.commit == hashlib.sha1(manifest).hexdigest()
    document = json.loads(manifest)
    assert list(document) == sorted(document)
    assert document["artifact"] == "team/tuned"
    assert document["meta"] == {"rank": 8}
    assert document["files"]["a.json"] == {
        "sha256": hashlib.sha256(b"[]").hexdigest(),
        "size": 2,
        "git_oid": hashlib.sha1(b"blob 2\0[]").hexdigest(),
    }
    assert document["parents"] == [{"role": "model", "ref": "team/base@v1", "commit": base.commit}]
    assert (version.number, version.size) == (1, 4)
    assert registry.label(version) == "team/tuned@v1"


def test_what_is_the_same_is_not_published_twice(session: Session, blobs: Blobs) -> None:
    first = publish(session, blobs, meta={"a": 1, "b": [0.5]})
    assert publish(session, blobs, meta={"b": [0.5], "a": 1}) is first
    other = publish(session, blobs, files={"adapters.safetensors": b"others"})
    assert other.number == 2
    assert find(session, "team/tuned") is other
    base = publish(session, blobs, "base", {"m": b""}, ArtifactKind.MODEL)
    assert publish(session, blobs, parents=(("model", base),)).number == 3


def test_what_is_published_follows_the_head_of_main(session: Session, blobs: Blobs) -> None:
    first = publish(session, blobs)
    second = publish(session, blobs, files={"adapters.safetensors": b"others"})
    assert (first.branch, first.previous_id, first.message) == ("main", None, None)
    assert (second.branch, second.previous_id) == ("main", first.id)
    assert registry.head(session, second.artifact) is second
    assert registry.head(session, second.artifact, "dev") is None


def test_two_jobs_that_make_the_same_bytes_make_two_versions(
    session: Session, blobs: Blobs
) -> None:
    project = session.scalars(select(Project)).one()
    jobs = [
        Job(
            project=project,
            kind="train",
            name="team/tuned",
            state="running",
            spec={},
            created_at=now(session),
        )
        for _ in range(2)
    ]
    session.add_all(jobs)
    session.flush()
    versions = [publish(session, blobs, job=job) for job in jobs]
    assert [version.number for version in versions] == [1, 2]
    assert [job.outputs for job in jobs] == [[version] for version in versions]


def test_a_name_keeps_its_kind(session: Session, blobs: Blobs) -> None:
    publish(session, blobs)
    with pytest.raises(Conflict, match="holds versions of kind adapter; this is a model"):
        publish(session, blobs, kind=ArtifactKind.MODEL)


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        (["../x"], "unsafe path|cannot be"),
        (["a", "a/b"], "is a file and cannot be its folder"),
        (["README.md", "readme.md"], "ignores case"),
        ([], "at least one file"),
    ],
)
def test_files_that_cannot_lie_side_by_side_are_refused(
    session: Session, blobs: Blobs, paths: list[str], problem: str
) -> None:
    with pytest.raises(InvalidInput, match=problem):
        publish(session, blobs, files=dict.fromkeys(paths, b"x"))
    assert session.scalars(select(Artifact)).all() == []


def test_files_must_be_in_the_store_first(session: Session, blobs: Blobs) -> None:
    project = session.scalars(select(Project)).one()
    with pytest.raises(InvalidInput, match=r"a\.json: its blob was not uploaded") as refused:
        registry.publish(
            session,
            blobs,
            project=project,
            name="x",
            kind=ArtifactKind.MODEL,
            files=[FileEntry(path="a.json", sha256="0" * 64, size=1)],
            meta={},
            parents=[],
            created_by=None,
        )
    assert refused.value.errors == [
        {"loc": ["files", "a.json"], "msg": "its blob was not uploaded"}
    ]


def test_selectors(session: Session, blobs: Blobs) -> None:
    one, two = (
        publish(session, blobs, files={"a": b"1"}),
        publish(session, blobs, files={"a": b"2"}),
    )
    artifact = one.artifact
    aliases.set_alias(session, SYSTEM, artifact, "best", one)
    for ref, version in {
        "team/tuned": two,
        "team/tuned@latest": two,
        "team/tuned@v1": one,
        "team/tuned@2": two,
        f"team/tuned@{one.commit}": one,
        f"team/tuned@{one.commit[:9]}": one,
        "team/tuned@best": one,
    }.items():
        assert find(session, ref) is version, ref


def test_what_does_not_exist_is_answered_with_the_nearest_names(
    session: Session, blobs: Blobs
) -> None:
    version = publish(session, blobs, "sql-tuned")
    aliases.set_alias(session, SYSTEM, version.artifact, "production", version)
    with pytest.raises(NotFound) as missing:
        find(session, "team/sql-tunde")
    assert missing.value.hint == "Did you mean team/sql-tuned?"
    with pytest.raises(NotFound) as missing:
        find(session, "team/sql-tuned@v9")
    assert missing.value.hint == "It has v1, production."
    with pytest.raises(NotFound) as missing:
        find(session, "strangers/sql-tuned")
    assert missing.value.hint is None


def test_an_alias_moves_only_from_where_it_was_seen(session: Session, blobs: Blobs) -> None:
    one, two = (
        publish(session, blobs, files={"a": b"1"}),
        publish(session, blobs, files={"a": b"2"}),
    )
    artifact = one.artifact
    aliases.set_alias(session, SYSTEM, artifact, "best", one)
    with pytest.raises(Conflict, match="somebody moved it"):
        aliases.set_alias(session, SYSTEM, artifact, "best", one, expected=two.commit)
    aliases.set_alias(session, SYSTEM, artifact, "best", two, expected=one.commit)
    aliases.set_alias(session, SYSTEM, artifact, "best", two)
    aliases.remove_alias(session, SYSTEM, artifact, "best")
    moves = [(row.action, row.data) for row in session.scalars(select(Audit).order_by(Audit.id))]
    assert moves == [
        ("alias.set", {"from": None, "to": one.commit}),
        ("alias.set", {"from": one.commit, "to": two.commit}),
        ("alias.remove", {"from": two.commit}),
    ]


@pytest.mark.parametrize("alias", ["v3", "17", "deadbeef", "latest", "a b", ".."])
def test_an_alias_cannot_read_as_something_else(session: Session, blobs: Blobs, alias: str) -> None:
    version = publish(session, blobs)
    with pytest.raises(InvalidInput, match="cannot be"):
        aliases.set_alias(session, SYSTEM, version.artifact, alias, version)


def test_a_deleted_version_is_not_found_and_comes_back_when_published_again(
    session: Session, blobs: Blobs
) -> None:
    one, two = (
        publish(session, blobs, files={"a": b"1"}),
        publish(session, blobs, files={"a": b"2"}),
    )
    aliases.set_alias(session, SYSTEM, one.artifact, "best", two)
    with pytest.raises(Conflict, match="is best"):
        retiring.delete_version(session, SYSTEM, two)
    aliases.remove_alias(session, SYSTEM, one.artifact, "best")
    retiring.delete_version(session, SYSTEM, two)
    assert find(session, "team/tuned") is one
    with pytest.raises(NotFound):
        find(session, "team/tuned@v2")
    assert publish(session, blobs, files={"a": b"2"}) is two
    assert find(session, "team/tuned") is two
    files = select(VersionFile.path).where(VersionFile.version_id == two.id)
    assert session.scalars(files).all() == ["a"]


def test_lineage_goes_both_ways(session: Session, blobs: Blobs) -> None:
    base = publish(session, blobs, "base", {"m": b"1"}, ArtifactKind.MODEL)
    data = publish(session, blobs, "sql", {"train.jsonl": b"{}"}, ArtifactKind.DATASET)
    tuned = publish(session, blobs, parents=(("model", base), ("data", data)))
    fused = publish(
        session,
        blobs,
        "fused",
        {"m": b"2"},
        ArtifactKind.MODEL,
        parents=(("model", base), ("adapter", tuned)),
    )
    family = lineage.family(session, fused)
    assert family.descendants == ()
    assert {(r.version.artifact.name, r.role, r.depth) for r in family.ancestors} == {
        ("base", "model", 1),
        ("tuned", "adapter", 1),
        ("base", "model", 2),
        ("sql", "data", 2),
    }
    down = lineage.family(session, base).descendants
    assert {(r.version.artifact.name, r.role, r.of, r.depth) for r in down} == {
        ("tuned", "model", base.id, 1),
        ("fused", "model", base.id, 1),
        ("fused", "adapter", tuned.id, 2),
    }


def test_publishers_at_the_same_time_get_numbers_in_turn(database: Database, blobs: Blobs) -> None:
    with database.transaction() as session:
        session.add(Project(name="team", created_at=now(session)))
    numbers: list[int] = []
    faults: list[Exception] = []

    def run(n: int) -> None:
        try:
            with database.transaction() as session:
                numbers.append(publish(session, blobs, files={"a": b"%d" % n}).number)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert faults == []
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]
