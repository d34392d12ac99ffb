"""The JSON of ``/api/v1`` beyond the specs: what is answered about the registry's rules."""

from typing import Any, Literal

from pydantic import Field

from web.api.models import Answer, Time


class MoveAnswer(Answer):
    """``why``: set, rollback, commit, removed or deleted; ``detail`` what a gate measured."""

    time: Time
    actor: str
    why: str
    from_: str | None = Field(alias="from")
    to: str | None
    detail: str


class HistoryAnswer(Answer):
    """Newest first. ``rollback`` is the version that one would go to, None when there is none."""

    alias: str
    ref: str | None
    rollback: str | None
    moves: list[MoveAnswer]


class GateAnswer(Answer):
    alias: str
    data: str
    metric: str
    min_delta: float
    proofs: bool
    updated_at: Time
    text: str


class GatesAnswer(Answer):
    gates: list[GateAnswer]


class VerdictAnswer(Answer):
    alias: str
    ref: str
    passed: bool
    text: str


class GoneAnswer(Answer):
    """``until``: after that it may be collected."""

    ref: str
    deleted_at: Time
    until: Time


class DeletedAnswer(Answer):
    artifacts: list[GoneAnswer]
    versions: list[GoneAnswer]


class FreedAnswer(Answer):
    """``project`` None: bytes of no version, such as checkpoints of jobs long past."""

    project: str | None
    bytes: int


class ForecastAnswer(Answer):
    """``held``: a backup runs, and no blob goes meanwhile."""

    held: bool
    blobs: int
    bytes: int
    uploads: int
    projects: list[FreedAnswer]


class WebhookAnswer(Answer):
    id: str
    project: str
    url: str
    events: list[str]
    created_at: Time
    disabled_at: Time | None


class WebhookMade(WebhookAnswer):
    """``secret`` is shown this one time."""

    secret: str


class WebhooksAnswer(Answer):
    webhooks: list[WebhookAnswer]


class DeliveryAnswer(Answer):
    id: int
    event: str
    state: Literal["due", "sent", "failed"]
    tries: int
    status: int | None
    error: str | None
    payload: dict[str, Any]
    created_at: Time
    due_at: Time
    sent_at: Time | None


class DeliveriesAnswer(Answer):
    deliveries: list[DeliveryAnswer]
