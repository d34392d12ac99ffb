"""What is deleted is hidden, comes back whole within the grace, and frees its name."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from espalier.errors import Conflict, Forbidden, NotFound
from espalier.refs import parse_artifact
from espalier.states import ArtifactKind
from scheduler import access
from scheduler.access import SYSTEM, actor_for
from scheduler.catalog import aliases, gates, registry, retiring, ttl
from scheduler.db import Database
from scheduler.models import Alias, Artifact, Audit, Project, Version
from tests.integration.scheduler.stack import Stack

DAY = timedelta(days=1)


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 3, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.moment

    def pass_by(self, time: timedelta) -> None:
        self.moment += time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stack(database_url: str, clock: Clock, tmp_path: Path) -> Stack:
    return Stack.make(Database(database_url, clock=clock), tmp_path)


def publish(stack: Stack, name: str, *texts: str) -> None:
    for text in texts:
        line = f'{{"text": "{text}"}}\n'.encode()
        stack.artifact(name, ArtifactKind.DATASET, {"train.jsonl": line})


def act(stack: Stack, ref: str, do: Callable[..., object]) -> None:
    """Do something with a version, or with an artifact where no version is named."""
    with stack.database.transaction() as session:
        wanted = parse_artifact(ref)
        project = access.project_for(session, SYSTEM, wanted.project)
        mine = Artifact.project_id == project.id, Artifact.name == wanted.name
        artifact = session.scalars(select(Artifact).where(*mine)).one()
        if wanted.version is None:
            do(session, stack.actor, artifact)
            return
        numbered = Version.artifact_id == artifact.id, Version.number == wanted.version
        do(session, stack.actor, session.scalars(select(Version).where(*numbered)).one())


def point(stack: Stack, ref: str, alias: str) -> None:
    with stack.database.transaction() as session:
        version = registry.resolve(session, parse_artifact(ref))
        aliases.set_alias(session, stack.actor, version.artifact, alias, version)


def there(stack: Stack, ref: str) -> str | None:
    with stack.database.reading() as session:
        try:
            return registry.label(registry.resolve(session, parse_artifact(ref)))
        except NotFound:
            return None


def test_a_version_comes_back_within_the_grace(stack: Stack, clock: Clock) -> None:
    publish(stack, "d", "one", "two")
    act(stack, "team/d@v2", retiring.delete_version)
    act(stack, "team/d@v2", retiring.delete_version)  # again: nothing
    assert (there(stack, "team/d@v2"), there(stack, "team/d")) == (None, "team/d@v1")
    clock.pass_by(6 * DAY)
    act(stack, "team/d@v2", retiring.restore_version)
    assert there(stack, "team/d") == "team/d@v2"
    act(stack, "team/d@v2", retiring.delete_version)
    clock.pass_by(8 * DAY)
    with pytest.raises(Conflict, match=r"team/d@v2 was deleted more than 7 days ago"):
        act(stack, "team/d@v2", retiring.restore_version)
    with stack.database.reading() as session:
        told = select(Audit.action, Audit.subject).where(Audit.action.startswith("version."))
        actions = [tuple(row) for row in session.execute(told.order_by(Audit.id))]
    assert actions == [
        ("version.delete", "team/d@v2"),
        ("version.restore", "team/d@v2"),
        ("version.delete", "team/d@v2"),
    ]


def test_what_is_needed_is_not_deleted(stack: Stack) -> None:
    publish(stack, "d", "one", "two")
    point(stack, "team/d@v1", "best")
    with pytest.raises(Conflict, match=r"team/d@v1 is best \(alias\)"):
        act(stack, "team/d@v1", retiring.delete_version)
    job = stack.submit({"data": "team/d@v2"})
    with pytest.raises(Conflict, match=f"team/d@v2 is an input of job {job}"):
        act(stack, "team/d@v2", retiring.delete_version)
    with pytest.raises(Conflict, match=f"team/d is an input of job {job}"):
        act(stack, "team/d", retiring.delete_artifact)
    stack.cancel(job)
    with stack.database.transaction() as session:
        base = registry.find_artifact(session, "team", "base")
        gates.set_gate(session, stack.actor, base, "production", data="team/d@v2")
    with pytest.raises(Conflict, match=r"gate of team/base@production measures on team/d@v2"):
        act(stack, "team/d@v2", retiring.delete_version)
    with pytest.raises(Conflict, match=r"gate of team/base@production measures on team/d@v2"):
        act(stack, "team/d", retiring.delete_artifact)


def test_an_artifact_comes_back_with_everything(stack: Stack, clock: Clock) -> None:
    publish(stack, "d", "one", "two", "three")
    point(stack, "team/d@v1", "best")
    act(stack, "team/d@v2", retiring.delete_version)
    act(stack, "team/d", retiring.delete_artifact)
    assert there(stack, "team/d") is None
    with stack.database.reading() as session:
        project = session.scalars(select(Project).where(Project.name == "team")).one()
        assert [a.name for a in retiring.deleted_artifacts(session, project)] == ["d"]
    clock.pass_by(6 * DAY)
    act(stack, "team/d", retiring.restore_artifact)
    assert there(stack, "team/d@best") == "team/d@v1"
    assert there(stack, "team/d") == "team/d@v3"
    assert there(stack, "team/d@v2") is None, "it was deleted by itself"
    act(stack, "team/d", retiring.delete_artifact)
    clock.pass_by(8 * DAY)
    with pytest.raises(Conflict, match="more than 7 days ago"):
        act(stack, "team/d", retiring.restore_artifact)


def test_a_name_that_is_free_begins_anew_and_numbers_go_on(stack: Stack) -> None:
    publish(stack, "d", "one", "two")
    point(stack, "team/d@v1", "best")
    act(stack, "team/d", retiring.delete_artifact)
    publish(stack, "d", "three")
    assert there(stack, "team/d") == "team/d@v3"
    assert (there(stack, "team/d@v1"), there(stack, "team/d@best")) == (None, None)
    act(stack, "team/d@v2", retiring.restore_version)
    assert there(stack, "team/d@v2") == "team/d@v2"
    with stack.database.reading() as session:
        assert session.scalars(select(Alias).where(Alias.name == "best")).all() == []
        artifact = registry.find_artifact(session, "team", "d")
        gone, came = aliases.history(session, artifact, "best")
        assert (gone.why, gone.actor, came.why) == ("deleted", "system", "set")


def test_a_name_taken_up_by_another_kind_lets_no_old_version_in(stack: Stack) -> None:
    publish(stack, "d", "one")
    act(stack, "team/d", retiring.delete_artifact)
    stack.artifact("d", ArtifactKind.ADAPTER, {"adapter_config.json": b"{}", "a.safetensors": b""})
    with pytest.raises(Conflict, match="is of kind adapter now"):
        act(stack, "team/d@v1", retiring.restore_version)


def test_members_do_not_delete_artifacts(stack: Stack) -> None:
    publish(stack, "d", "one")
    with stack.database.transaction() as session:
        ada = access.create_user(session, "ada")
        access.add_member(session, access.project_for(session, SYSTEM, "team"), ada.id)
        artifact = registry.find_artifact(session, "team", "d")
        with pytest.raises(Forbidden, match="Only an owner of team"):
            retiring.delete_artifact(session, actor_for(ada), artifact)


# --- Age ----------------------------------------------------------------------------------


def test_age_takes_what_nothing_names(stack: Stack, clock: Clock) -> None:
    stack.worker()
    publish(stack, "d", *(f"text {n}" for n in range(5)))
    point(stack, "team/d@v2", "best")
    adapter = stack.submit({"data": "team/d@v3"}, name="team/tuned")
    stack.finish(stack.claimed())
    assert stack.outputs(adapter) == ["team/tuned@v1"]
    clock.pass_by(40 * DAY)
    stack.submit({"data": "team/d@v4"})  # open: v4 stays
    publish(stack, "young", "one", "two")
    assert ttl.expire(stack.database) == [], "no project has a limit"
    with stack.database.transaction() as session:
        access.project_for(session, SYSTEM, "team").ttl_days = 30
    assert ttl.expire(stack.database, dry_run=True) == ["team/d@v1", "team/d@v3"]
    assert there(stack, "team/d@v1") == "team/d@v1"
    assert ttl.expire(stack.database) == ["team/d@v1", "team/d@v3"]
    assert ttl.expire(stack.database) == []
    assert there(stack, "team/d") == "team/d@v5", "the newest stays, however old"
    with stack.database.reading() as session:
        row = session.scalars(select(Audit).order_by(Audit.id.desc()).limit(1)).one()
        assert (row.actor, row.action, row.subject) == ("system", "version.delete", "team/d@v3")
        assert row.data["why"] == "older than 30 days, and nothing names it"
    act(stack, "team/d@v1", retiring.restore_version)
    assert there(stack, "team/d@v1") == "team/d@v1"


def test_age_leaves_what_a_gated_version_was_made_from(stack: Stack, clock: Clock) -> None:
    stack.worker()
    publish(stack, "d", "one", "two")
    stack.submit({"data": "team/d@v1"}, name="team/tuned")
    stack.finish(stack.claimed())
    publish(stack, "measure", "one", "two")
    point(stack, "team/tuned@v1", "production")
    with stack.database.transaction() as session:
        access.project_for(session, SYSTEM, "team").ttl_days = 30
        tuned = registry.find_artifact(session, "team", "tuned")
        gates.set_gate(session, stack.actor, tuned, "production", data="team/measure@v1")
    clock.pass_by(40 * DAY)
    assert ttl.expire(stack.database) == []
    with stack.database.transaction() as session:
        tuned = registry.find_artifact(session, "team", "tuned")
        gates.remove_gate(session, stack.actor, tuned, "production")
    assert ttl.expire(stack.database) == ["team/d@v1", "team/measure@v1"]
