"""What lies where: the bytes workers hold, the chunks Xet's clients know, the configs we read."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from scheduler.models.base import Base, Sha256


class WorkerBlob(Base):
    """A blob in a worker's cache, as the worker last told."""

    __tablename__ = "worker_blobs"

    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id"), primary_key=True)
    sha256: Mapped[str] = mapped_column(Sha256, primary_key=True, index=True)
    size: Mapped[int]


class XetXorb(Base):
    """A xorb that a Xet client has uploaded to a project, kept as a blob (scheduler.bytes.xet).

    Clients refer to it for weeks. Each project has its own: nobody builds files out of chunks of
    a project that they may not see. ``index`` tells where the chunks lie: for each, the offset
    behind it in the blob and its unpacked bytes, as two little-endian 32-bit numbers.
    """

    __tablename__ = "xet_xorbs"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    sha256: Mapped[str] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    size: Mapped[int]
    index: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]
    touched_at: Mapped[datetime]  # by the last shard that referred to it


class ModelConfig(Base):
    """What memory depends on in a ``config.json``, by the blob's sha256.

    Read once from the store (scheduler.placing.estimates), so that placement asks SQL alone. It may
    outlive the blob.
    """

    __tablename__ = "model_configs"

    sha256: Mapped[str] = mapped_column(Sha256, primary_key=True)
    facts: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
