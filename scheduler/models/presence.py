"""Which of the control plane's own processes are there."""

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from scheduler.models.base import Base


class Presence(Base):
    """A part of the control plane, as it was last seen.

    ``scheduler`` is a lease: of several schedulers only its holder ticks. ``web`` is the door
    through which workers report: while it is shut, nobody is declared lost.
    """

    __tablename__ = "presence"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    holder: Mapped[str] = mapped_column(String(64))
    since: Mapped[datetime]  # there without a gap
    seen_at: Mapped[datetime]
    expires_at: Mapped[datetime]
