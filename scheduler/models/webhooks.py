"""Addresses outside that are told what happens in a project's store, and what was sent to them."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from espalier.ids import new_id
from scheduler.models.base import Base, Id, Serial
from scheduler.models.people import Project


class Webhook(Base):
    """One address of a project. Its secret signs what is sent, so it is kept as it is."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    url: Mapped[str] = mapped_column(String(2000))
    secret: Mapped[str] = mapped_column(String(128))
    events: Mapped[str] = mapped_column(String(200))  # version.published alias.moved …, by spaces
    created_by: Mapped[str | None] = mapped_column(ForeignKey("users.id"))
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]  # by a person, or after too many failures

    project: Mapped[Project] = relationship()


class Delivery(Base):
    """One event for one address: written with the change it tells of, sent after the commit."""

    __tablename__ = "deliveries"
    __table_args__ = (Index("ix_deliveries_due", "state", "due_at"),)

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"), index=True)
    event: Mapped[str] = mapped_column(String(48))
    payload: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(12), default="due")  # due, sent, failed
    tries: Mapped[int] = mapped_column(Integer, default=0)
    status: Mapped[int | None] = mapped_column(Integer)  # of the last answer
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    due_at: Mapped[datetime]
    sent_at: Mapped[datetime | None]

    webhook: Mapped[Webhook] = relationship()
