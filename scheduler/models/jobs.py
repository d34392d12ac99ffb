"""What was asked for, and every try of it."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import ForeignKey, Index, Integer, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from espalier.ids import new_id
from scheduler.models.base import Base, Id
from scheduler.models.people import Project, User, Worker

if TYPE_CHECKING:
    from scheduler.models.store import Version


class Job(Base):
    """What somebody asked for. `state` changes only in scheduler.lifecycle.jobs."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_state_priority", "state", "priority", "created_at"),
        Index("ix_jobs_project_created", "project_id", "created_at"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    created_by: Mapped[str | None] = mapped_column(ForeignKey("users.id"))
    pipeline_id: Mapped[str | None] = mapped_column(Id, index=True)  # shared by its jobs
    step: Mapped[str | None] = mapped_column(String(96))  # its name in the pipeline
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(200))  # project/name of its output
    note: Mapped[str] = mapped_column(Text, default="")
    state: Mapped[str] = mapped_column(String(16))
    spec: Mapped[dict[str, Any]]
    priority: Mapped[int] = mapped_column(Integer, default=0)
    max_attempts: Mapped[int] = mapped_column(Integer, default=3)
    charged: Mapped[int] = mapped_column(Integer, default=0)  # attempts that count against it
    lost: Mapped[int] = mapped_column(Integer, default=0)  # attempts that the machines lost
    cancel_requested_at: Mapped[datetime | None]
    pause_requested_at: Mapped[datetime | None]  # while set, it is not placed
    overrides: Mapped[dict[str, Any]] = mapped_column(default=dict)  # of the spec, by the ladder
    rungs: Mapped[list[dict[str, Any]]] = mapped_column(default=list)  # of the ladder, as taken
    min_memory_bytes: Mapped[int | None]  # only workers that have this to give
    created_at: Mapped[datetime]
    queued_at: Mapped[datetime | None]
    not_before: Mapped[datetime | None]  # backoff before the next attempt
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    reason: Mapped[str | None] = mapped_column(String(32))
    error: Mapped[dict[str, Any] | None]  # {code, message, hint}
    phase: Mapped[str | None] = mapped_column(String(64))  # what its child does now
    progress: Mapped[dict[str, Any] | None]  # {done, total, unit}
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)  # last values
    proofs: Mapped[list[dict[str, Any]]] = mapped_column(default=list)
    tables: Mapped[list[dict[str, Any]]] = mapped_column(default=list)

    project: Mapped[Project] = relationship()
    user: Mapped[User | None] = relationship()
    attempts: Mapped[list["Attempt"]] = relationship(
        back_populates="job", order_by="Attempt.number"
    )
    inputs: Mapped[list["JobInput"]] = relationship(
        back_populates="job", order_by="JobInput.role", foreign_keys="JobInput.job_id"
    )
    outputs: Mapped[list["Version"]] = relationship(
        back_populates="job", order_by="Version.created_at"
    )


class JobDependency(Base):
    __tablename__ = "job_dependencies"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    needs_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True, index=True)


class JobInput(Base):
    """An input as it was asked for, and the version it was pinned to at submission.

    An input that is another job's output is pinned when that job succeeds.
    """

    __tablename__ = "job_inputs"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    role: Mapped[str] = mapped_column(String(32), primary_key=True)
    ref: Mapped[str] = mapped_column(String(320))
    version_id: Mapped[str | None] = mapped_column(ForeignKey("versions.id"), index=True)
    from_job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    from_role: Mapped[str | None] = mapped_column(String(32))
    hub_repo: Mapped[str | None] = mapped_column(String(200))
    hub_revision: Mapped[str | None] = mapped_column(String(200))

    job: Mapped[Job] = relationship(back_populates="inputs", foreign_keys=[job_id])
    version: Mapped["Version | None"] = relationship()


class Attempt(Base):
    """One try of a job on one worker. Its id is the fencing token: a new try is a new id."""

    __tablename__ = "attempts"
    __table_args__ = (
        UniqueConstraint("job_id", "number"),
        Index("ix_attempts_state_lease", "state", "lease_expires_at"),
        # The database itself refuses a second live attempt of one job.
        Index(
            "uq_attempts_live_job",
            "job_id",
            unique=True,
            sqlite_where=text("state IN ('placed', 'running')"),
            postgresql_where=text("state IN ('placed', 'running')"),
        ),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id"), index=True)
    number: Mapped[int] = mapped_column(Integer)  # 1, 2, …
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(32))
    boot_id: Mapped[str | None] = mapped_column(String(64))  # of the process that claimed it
    placed_at: Mapped[datetime]
    published_at: Mapped[datetime | None]  # of the last ticket
    published: Mapped[int] = mapped_column(Integer, default=0)  # tickets sent
    claimed_at: Mapped[datetime | None]
    lease_expires_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    last_seq: Mapped[int] = mapped_column(Integer, default=0)  # of the last report taken in
    log_bytes: Mapped[int] = mapped_column(default=0)
    memory_bytes: Mapped[int | None]  # now, sampled from outside
    peak_memory_bytes: Mapped[int | None]
    resumed_from_step: Mapped[int | None]
    preempt_requested_at: Mapped[datetime | None]
    error: Mapped[dict[str, Any] | None]
    answer: Mapped[dict[str, Any] | None]  # {digest of its finish, what was answered}
    machine: Mapped[dict[str, Any] | None]  # messages.Machine, as it was when this was claimed

    job: Mapped[Job] = relationship(back_populates="attempts")
    worker: Mapped[Worker] = relationship()


class Checkpoint(Base):
    """A published checkpoint of a job: another attempt continues from the newest."""

    __tablename__ = "checkpoints"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id"), index=True)
    files: Mapped[list[dict[str, Any]]]  # messages.FileEntry
    created_at: Mapped[datetime]
