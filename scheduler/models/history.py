"""What happened: events, curves, logs, and who did what."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from scheduler.models.base import Base, Id, Serial, Sha256


class Event(Base):
    """Everything that happened to a job, in order; pages follow it by id."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_job", "job_id", "id"),)

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    attempt_id: Mapped[str | None] = mapped_column(Id)
    worker_id: Mapped[str | None] = mapped_column(Id)
    type: Mapped[str] = mapped_column(String(32))  # submitted, queued, placed, claimed, …
    message: Mapped[str] = mapped_column(Text, default="")
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime]


class Metric(Base):
    """One point of a job's curves. A resumed attempt overwrites the steps it runs again."""

    __tablename__ = "metrics"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    attempt_id: Mapped[str] = mapped_column(Id)
    values: Mapped[dict[str, Any]]  # train_loss, val_loss, tokens_per_second, …
    created_at: Mapped[datetime]


class LogChunk(Base):
    """A piece of an attempt's log; ``offset`` in bytes from its start."""

    __tablename__ = "log_chunks"

    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id"), primary_key=True)
    offset: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    size: Mapped[int] = mapped_column(Integer)
    text: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]


class Audit(Base):
    """Who did what. Append-only; each row holds the hash of the one before."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    actor: Mapped[str] = mapped_column(String(120))  # user:name, worker:name, system
    action: Mapped[str] = mapped_column(String(48))
    subject: Mapped[str] = mapped_column(String(320))
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime]
    previous: Mapped[str] = mapped_column(Sha256)
    digest: Mapped[str] = mapped_column(Sha256)
