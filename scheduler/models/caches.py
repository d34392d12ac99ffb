"""What lies where: the bytes that workers hold, and the chunks that Xet's clients know."""

from datetime import datetime

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from scheduler.models.base import Base, Sha256


class WorkerBlob(Base):
    """A blob in a worker's cache, as the worker last told."""

    __tablename__ = "worker_blobs"

    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id"), primary_key=True)
    sha256: Mapped[str] = mapped_column(Sha256, primary_key=True, index=True)
    size: Mapped[int]


class XetXorb(Base):
    """A xorb that a Xet client has uploaded, kept as a blob: clients refer to it for weeks."""

    __tablename__ = "xet_xorbs"

    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    sha256: Mapped[str] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    size: Mapped[int]
    created_at: Mapped[datetime]
    touched_at: Mapped[datetime]
