"""The store: blobs, uploads under way, artifacts, their versions and where they come from."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from espalier.ids import new_id
from scheduler.models.base import Base, Id, Sha256
from scheduler.models.jobs import Job
from scheduler.models.people import Project


class Blob(Base):
    """One file's bytes, verified in the store.

    ``damaged_at`` is set when the store was seen to have lost them (scheduler.upkeep): until they
    are uploaded again they count as absent.
    """

    __tablename__ = "blobs"

    sha256: Mapped[str] = mapped_column(Sha256, primary_key=True)
    size: Mapped[int]
    git_oid: Mapped[str] = mapped_column(String(40))  # sha1 of git's blob object
    created_at: Mapped[datetime]
    touched_at: Mapped[datetime]  # garbage collection waits a grace from here
    damaged_at: Mapped[datetime | None]


class Upload(Base):
    """An upload under way; it may be continued by another process of the same owner."""

    __tablename__ = "uploads"
    __table_args__ = (UniqueConstraint("owner", "sha256"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    owner: Mapped[str] = mapped_column(String(32))  # user:<id> or worker:<id>
    sha256: Mapped[str] = mapped_column(Sha256)
    size: Mapped[int]
    part_size: Mapped[int]
    driver_state: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime]
    touched_at: Mapped[datetime]


class UploadPart(Base):
    __tablename__ = "upload_parts"

    upload_id: Mapped[str] = mapped_column(
        ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    size: Mapped[int]
    etag: Mapped[str] = mapped_column(String(200))


class Artifact(Base):
    """A named line of versions: ``project/name``."""

    __tablename__ = "artifacts"
    __table_args__ = (UniqueConstraint("project_id", "name"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(96))
    kind: Mapped[str] = mapped_column(String(16), index=True)
    latest: Mapped[int] = mapped_column(Integer, default=0)  # number of the newest version
    # Counts changes of versions and aliases; ``head`` is the one that the store's copy tells of
    # (scheduler.catalog.heads).
    revision: Mapped[int] = mapped_column(Integer, default=1)
    head: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]  # to everybody it is not there; it can be brought back

    project: Mapped[Project] = relationship()
    versions: Mapped[list["Version"]] = relationship(
        back_populates="artifact", order_by="Version.number.desc()"
    )
    aliases: Mapped[list["Alias"]] = relationship(back_populates="artifact", order_by="Alias.name")


class FormerName(Base):
    """A name that an artifact had before it was moved; who asks for it is shown the way."""

    __tablename__ = "former_names"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(96), primary_key=True)
    artifact_id: Mapped[str] = mapped_column(ForeignKey("artifacts.id"), index=True)
    created_at: Mapped[datetime]

    artifact: Mapped[Artifact] = relationship()


class Version(Base):
    """An immutable bundle of files. ``commit`` is the sha1 of its canonical manifest.

    ``number`` counts an artifact's versions over all branches; what a branch points at is its
    newest version, for ``main`` as for the others.
    """

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("artifact_id", "number"),
        UniqueConstraint("artifact_id", "commit"),
        UniqueConstraint("attempt_id", "role"),
        Index("ix_versions_commit", "commit"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    artifact_id: Mapped[str] = mapped_column(ForeignKey("artifacts.id"))
    number: Mapped[int] = mapped_column(Integer)
    commit: Mapped[str] = mapped_column(String(40))
    manifest: Mapped[str] = mapped_column(ForeignKey("blobs.sha256"))
    size: Mapped[int]
    meta: Mapped[dict[str, Any]] = mapped_column(default=dict)
    branch: Mapped[str] = mapped_column(String(96), default="main")  # that it was committed to
    previous_id: Mapped[str | None] = mapped_column(ForeignKey("versions.id"))  # in its branch
    message: Mapped[str | None] = mapped_column(Text)  # a commit's title, and its text below
    role: Mapped[str | None] = mapped_column(String(32))  # of the output that it was
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    attempt_id: Mapped[str | None] = mapped_column(ForeignKey("attempts.id"))
    created_by: Mapped[str | None] = mapped_column(ForeignKey("users.id"))
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]

    artifact: Mapped[Artifact] = relationship(back_populates="versions")
    job: Mapped[Job | None] = relationship(back_populates="outputs")
    files: Mapped[list["VersionFile"]] = relationship(
        back_populates="version", order_by="VersionFile.path"
    )


class VersionFile(Base):
    __tablename__ = "version_files"

    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    path: Mapped[str] = mapped_column(String(512), primary_key=True)
    sha256: Mapped[str] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    size: Mapped[int]

    version: Mapped[Version] = relationship(back_populates="files")


class Alias(Base):
    """A name for a version; every move is an audit row, and an AliasMove.

    An ``alias`` is moved by people, a ``branch`` by commits to it, a ``tag`` never. All three
    share one space of names.
    """

    __tablename__ = "aliases"

    artifact_id: Mapped[str] = mapped_column(ForeignKey("artifacts.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(96), primary_key=True)
    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id"), index=True)
    kind: Mapped[str] = mapped_column(String(8), default="alias")  # alias, branch, tag
    updated_at: Mapped[datetime]

    artifact: Mapped[Artifact] = relationship(back_populates="aliases")
    version: Mapped[Version] = relationship()


class Lineage(Base):
    """``child`` was made from ``parent``, which was its job's input ``role``."""

    __tablename__ = "lineage"

    parent_id: Mapped[str] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    child_id: Mapped[str] = mapped_column(ForeignKey("versions.id"), primary_key=True, index=True)
    role: Mapped[str] = mapped_column(String(32), primary_key=True)
