"""What jobs and aliases need of the hub behind."""

import hashlib
from typing import Any

import pytest
from sqlalchemy.orm import Session

from espalier.states import ArtifactKind, JobState
from scheduler import access
from scheduler.db import Database, now
from scheduler.models import Alias, Artifact, Blob, Job, JobInput, Lineage, Project, Version
from scheduler.queries.upstream import needed_upstream


class Shop:
    """Rows as the registry and submission leave them."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.project: Project = access.project_for(session, access.SYSTEM, "team", create=True)
        self.count = 0

    def add(self, row: Any) -> Any:
        self.session.add(row)
        self.session.flush()
        return row

    def job(self, state: JobState, **inputs: str) -> Job:
        job: Job = self.add(
            Job(
                project_id=self.project.id,
                kind="train",
                name="team/x",
                state=state,
                spec={},
                created_at=now(self.session),
            )
        )
        for role, repo in inputs.items():
            self.add(JobInput(job_id=job.id, role=role, ref=f"hf:{repo}", hub_repo=repo))
        return job

    def version(self, kind: ArtifactKind, job: Job | None, *parents: Version) -> Version:
        self.count += 1
        digest = hashlib.sha256(str(self.count).encode()).hexdigest()
        moment = now(self.session)
        self.add(
            Blob(sha256=digest, size=1, git_oid=digest[:40], created_at=moment, touched_at=moment)
        )
        artifact = self.add(
            Artifact(
                project_id=self.project.id,
                name=f"a{self.count}",
                kind=kind,
                latest=1,
                created_at=moment,
                updated_at=moment,
            )
        )
        version: Version = self.add(
            Version(
                artifact_id=artifact.id,
                number=1,
                commit=digest[:40],
                manifest=digest,
                size=1,
                job_id=job.id if job else None,
                created_at=moment,
            )
        )
        for parent in parents:
            self.add(Lineage(parent_id=parent.id, child_id=version.id, role="adapter"))
        return version

    def alias(self, version: Version, kind: str = "alias") -> None:
        moment = now(self.session)
        self.add(
            Alias(
                artifact_id=version.artifact_id,
                name="production",
                version_id=version.id,
                kind=kind,
                updated_at=moment,
            )
        )


def test_what_open_jobs_wait_for(database: Database) -> None:
    with database.transaction() as session:
        shop = Shop(session)
        shop.job(JobState.QUEUED, model="o/waiting", data="o/rows")
        shop.job(JobState.SUCCEEDED, model="o/over")
        assert needed_upstream(session) == {("models", "o/waiting"), ("datasets", "o/rows")}


def test_the_base_of_an_aliased_adapter_and_of_what_it_came_from(database: Database) -> None:
    with database.transaction() as session:
        shop = Shop(session)
        first = shop.job(JobState.SUCCEEDED, model="o/base", data="o/rows")
        second = shop.job(JobState.SUCCEEDED)
        begun = shop.version(ArtifactKind.ADAPTER, first)
        shop.alias(shop.version(ArtifactKind.ADAPTER, second, begun))
        assert needed_upstream(session) == {("models", "o/base")}


@pytest.mark.parametrize("kind", [ArtifactKind.MODEL, ArtifactKind.GGUF])
def test_what_is_whole_needs_no_base(database: Database, kind: ArtifactKind) -> None:
    with database.transaction() as session:
        shop = Shop(session)
        shop.alias(shop.version(kind, shop.job(JobState.SUCCEEDED, model="o/base")))
        assert needed_upstream(session) == set()


def test_a_branch_and_a_deleted_version_need_nothing(database: Database) -> None:
    with database.transaction() as session:
        shop = Shop(session)
        job = shop.job(JobState.SUCCEEDED, model="o/base")
        shop.alias(shop.version(ArtifactKind.ADAPTER, job), "branch")
        gone = shop.version(ArtifactKind.ADAPTER, shop.job(JobState.SUCCEEDED, model="o/gone"))
        shop.alias(gone)
        gone.deleted_at = now(session)
        session.flush()
        assert needed_upstream(session) == set()
