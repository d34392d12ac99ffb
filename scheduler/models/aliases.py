"""Names that move over versions: where they have been, and what they ask of a version."""

from datetime import datetime

from sqlalchemy import Float, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from scheduler.models.base import Base, Serial
from scheduler.models.store import Artifact, Version


class AliasMove(Base):
    """One move of an alias, a branch or a tag; what it pointed at before can be brought back."""

    __tablename__ = "alias_moves"
    __table_args__ = (Index("ix_alias_moves_name", "artifact_id", "alias", "id"),)

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    artifact_id: Mapped[str] = mapped_column(ForeignKey("artifacts.id"))
    alias: Mapped[str] = mapped_column(String(96))
    kind: Mapped[str] = mapped_column(String(8))  # alias, branch, tag
    from_id: Mapped[str | None] = mapped_column(ForeignKey("versions.id"))  # None: it was not there
    to_id: Mapped[str | None] = mapped_column(ForeignKey("versions.id"))  # None: it was removed
    actor: Mapped[str] = mapped_column(String(120))  # as in audit rows
    why: Mapped[str] = mapped_column(String(16))  # set, rollback, commit, removed, deleted
    detail: Mapped[str] = mapped_column(Text, default="")  # what a gate measured, in words
    created_at: Mapped[datetime]

    before: Mapped[Version | None] = relationship(foreign_keys=from_id)
    after: Mapped[Version | None] = relationship(foreign_keys=to_id)


class Gate(Base):
    """What an alias asks of a version before it moves there.

    An eval of the version on the data must beat the incumbent's on the same data by ``min_delta``
    of ``metric``, and, where asked for, the proofs of the job that made it must hold.
    """

    __tablename__ = "gates"

    artifact_id: Mapped[str] = mapped_column(ForeignKey("artifacts.id"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(96), primary_key=True)
    data: Mapped[str] = mapped_column(String(320))  # project/name@vN of the data set
    metric: Mapped[str] = mapped_column(String(64))  # test_loss, perplexity, exact_match, …
    min_delta: Mapped[float] = mapped_column(Float, default=0.0)
    proofs: Mapped[bool] = mapped_column(default=True)
    number: Mapped[int] = mapped_column(Integer, default=1)  # counts its changes
    updated_by: Mapped[str | None] = mapped_column(ForeignKey("users.id"))
    updated_at: Mapped[datetime]

    artifact: Mapped[Artifact] = relationship()
