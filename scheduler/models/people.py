"""People, their tokens and projects, and the workers."""

from datetime import datetime
from typing import Any

from sqlalchemy import Float, ForeignKey, Integer, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from espalier.ids import new_id
from scheduler.models.base import Base, Id, Sha256


class User(Base):
    """A person. Signs in by a one-use link or a password; acts through sessions and tokens."""

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(96), unique=True)
    is_admin: Mapped[bool] = mapped_column(default=False)
    password_hash: Mapped[str | None] = mapped_column(String(255))  # argon2id
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]


class Token(Base):
    """A secret, kept as sha256 only. Personal and worker tokens have the shape ``hf_…``."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    digest: Mapped[str] = mapped_column(Sha256, unique=True)  # of the whole token
    kind: Mapped[str] = mapped_column(String(16))  # personal, worker, login, join, session
    name: Mapped[str] = mapped_column(String(96), default="")
    user_id: Mapped[str | None] = mapped_column(ForeignKey("users.id"), index=True)
    worker_id: Mapped[str | None] = mapped_column(ForeignKey("workers.id"), index=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    used_at: Mapped[datetime | None]  # last use; login and join tokens work once
    revoked_at: Mapped[datetime | None]

    user: Mapped["User | None"] = relationship()
    worker: Mapped["Worker | None"] = relationship()


class Project(Base):
    """A team's namespace. Artifacts and jobs belong to one."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(96), unique=True)
    weight: Mapped[float] = mapped_column(Float, default=1.0)  # in fair share
    # Its running jobs may be paused for waiting ones of higher priority.
    preemptible: Mapped[bool] = mapped_column(default=False)
    quota_bytes: Mapped[int | None]  # of all its versions' files, each blob once
    # Days after which versions go that nothing names: no alias, branch or tag, nor the newest.
    ttl_days: Mapped[int | None] = mapped_column(Integer)
    created_at: Mapped[datetime]


class ProjectMember(Base):
    __tablename__ = "project_members"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), primary_key=True, index=True)
    role: Mapped[str] = mapped_column(String(16), default="member")  # member, owner
    created_at: Mapped[datetime]


class Worker(Base):
    """One Mac (or a Linux box) that runs jobs."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(96), unique=True)
    boot_id: Mapped[str | None] = mapped_column(String(64))  # of the running process
    installation: Mapped[str | None] = mapped_column(String(64))  # messages.Hello
    machine: Mapped[dict[str, Any]] = mapped_column(default=dict)  # messages.Machine
    slots: Mapped[int] = mapped_column(Integer, default=1)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]  # of the running process
    seen_at: Mapped[datetime | None] = mapped_column(index=True)
    draining: Mapped[bool] = mapped_column(default=False)  # finishes its jobs, gets no more
    unclaimed: Mapped[int] = mapped_column(Integer, default=0)  # in a row; suspect at the limit
    shares_url: Mapped[str | None] = mapped_column(String(200))  # where siblings fetch its blobs
    shares_key: Mapped[str | None] = mapped_column(String(64))  # of the running process
    revoked_at: Mapped[datetime | None]
