"""Addresses that are told what happens in a project's store.

What happens is written down as deliveries in the transaction of the change itself: what is rolled
back is never told, what is committed always. They are sent after the commit
(scheduler.catalog.courier).
"""

import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from espalier.errors import Conflict, InvalidInput, NotFound
from scheduler import access
from scheduler.access import Actor, audit
from scheduler.catalog import addresses, projects
from scheduler.db import Database, now
from scheduler.models import Artifact, Delivery, Project, Version, Webhook

#: What can be listened for; ``ping`` is sent when somebody asks for it.
EVENTS = ("version.published", "version.deleted", "alias.moved", "repo.moved", "repo.deleted")
PING = "ping"
#: Webhooks that a project can have.
MAX_WEBHOOKS = 20
#: How long deliveries that are over are kept, for people to look at.
KEPT = timedelta(days=30)

DUE, SENT, FAILED = "due", "sent", "failed"


def announce(session: Session, artifact: Artifact, event: str, data: Mapping[str, Any]) -> None:
    """Write down what is to be sent of a change, in the transaction that makes it.

    ``data`` goes into the payload beside event, time, artifact (``project/name``) and kind. A
    project without webhooks costs one query.
    """
    hooks = session.scalars(
        select(Webhook).where(
            Webhook.project_id == artifact.project_id, Webhook.disabled_at.is_(None)
        )
    ).all()
    listening = [hook for hook in hooks if event in hook.events.split()]
    if not listening:
        return
    told = {"artifact": f"{artifact.project.name}/{artifact.name}", "kind": artifact.kind, **data}
    for hook in listening:
        _write(session, hook, event, told)


def told_of(version: Version) -> dict[str, Any]:
    """Return what an event tells of a version."""
    artifact = version.artifact
    return {
        "version": f"{artifact.project.name}/{artifact.name}@v{version.number}",
        "number": version.number,
        "commit": version.commit,
        "branch": version.branch,
        "size": version.size,
        "job": version.job_id,
    }


def _write(session: Session, hook: Webhook, event: str, told: Mapping[str, Any]) -> Delivery:
    moment = now(session)
    payload = {"event": event, "time": moment.isoformat(), "project": hook.project.name, **told}
    delivery = Delivery(webhook=hook, event=event, payload=payload, state=DUE, tries=0)
    delivery.created_at = delivery.due_at = moment
    session.add(delivery)
    return delivery


# --- What people do with them -------------------------------------------------------------


def add(
    database: Database, actor: Actor, project: str, url: str, events: Sequence[str] = ()
) -> str:
    """Tell ``url`` of these events, or of all; return the webhook's id.

    Raises NotFound for a foreign project, Forbidden for anybody but owners and admins,
    InvalidInput for an event there is none of, and for an address that may not be sent to
    (scheduler.catalog.addresses), Conflict when there are too many.
    """
    with database.reading() as session:
        projects.require_manager(session, actor, access.project_for(session, actor, project))
    _check_events(events)
    addresses.check(url, anywhere=actor.is_admin)
    with database.transaction() as session:
        found = access.project_for(session, actor, project)
        projects.require_manager(session, actor, found)
        count = select(func.count()).where(Webhook.project_id == found.id)
        if (session.scalar(count) or 0) >= MAX_WEBHOOKS:
            raise Conflict(
                f"{project} has {MAX_WEBHOOKS} webhooks, which is the limit.",
                hint="Remove one that nobody needs.",
            )
        hook = Webhook(
            project=found,
            url=url,
            secret="whsec_" + secrets.token_urlsafe(32),
            events=" ".join(event for event in EVENTS if not events or event in events),
            created_by=actor.user_id,
            created_at=now(session),
        )
        session.add(hook)
        session.flush()
        audit(session, actor, "webhook.add", project, {"webhook": hook.id, "url": url})
        return hook.id


def _check_events(events: Sequence[str]) -> None:
    unknown = sorted(set(events) - set(EVENTS))
    if unknown:
        raise InvalidInput(
            f"There is no event {unknown[0]!r}.",
            hint=f"There are {', '.join(EVENTS)}.",
            errors=[{"loc": ["events"], "msg": f"no such event (got {unknown[0]!r})"}],
        )


def webhooks_of(session: Session, actor: Actor, project: Project) -> list[Webhook]:
    """Return the project's webhooks, oldest first. Raises Forbidden."""
    projects.require_manager(session, actor, project)
    mine = select(Webhook).where(Webhook.project_id == project.id)
    return list(session.scalars(mine.order_by(Webhook.created_at, Webhook.id)))


def find(session: Session, actor: Actor, project: Project, webhook_id: str) -> Webhook:
    """Return one of the project's webhooks. Raises Forbidden, NotFound."""
    projects.require_manager(session, actor, project)
    hook = session.get(Webhook, webhook_id)
    if hook is None or hook.project_id != project.id:
        raise NotFound(
            f"{project.name} has no webhook {webhook_id!r}.",
            hint=f"`espalier webhook list {project.name}` lists them.",
        )
    return hook


def remove(session: Session, actor: Actor, project: Project, webhook_id: str) -> None:
    """Take a webhook away, with what it has been sent and was still to be."""
    hook = find(session, actor, project, webhook_id)
    session.execute(delete(Delivery).where(Delivery.webhook_id == hook.id))
    session.delete(hook)
    session.flush()
    audit(session, actor, "webhook.remove", project.name, {"webhook": webhook_id, "url": hook.url})


def enable(session: Session, actor: Actor, project: Project, webhook_id: str) -> Webhook:
    """Send again to a webhook that was disabled; what happened meanwhile it is not told."""
    hook = find(session, actor, project, webhook_id)
    if hook.disabled_at is not None:
        hook.disabled_at = None
        session.flush()
        audit(session, actor, "webhook.enable", project.name, {"webhook": hook.id})
    return hook


def disable(session: Session, actor: Actor, hook: Webhook, why: str) -> None:
    """Send nothing more to a webhook; what was still to be sent is given up."""
    hook.disabled_at = now(session)
    session.execute(
        update(Delivery)
        .where(Delivery.webhook_id == hook.id, Delivery.state == DUE)
        .values(state=FAILED, error=why)
    )
    session.flush()
    audit(session, actor, "webhook.disable", hook.project.name, {"webhook": hook.id, "why": why})


def deliveries(session: Session, hook: Webhook, limit: int = 50) -> list[Delivery]:
    """Return what was sent and is to be, newest first."""
    sent = select(Delivery).where(Delivery.webhook_id == hook.id)
    return list(session.scalars(sent.order_by(Delivery.id.desc()).limit(limit)))


def ping(session: Session, actor: Actor, project: Project, webhook_id: str) -> Delivery:
    """Send a ``ping``, to see whether the other end works. Raises Conflict while disabled."""
    hook = _enabled(find(session, actor, project, webhook_id))
    delivery = _write(session, hook, PING, {"by": actor.name})
    session.flush()
    return delivery


def redeliver(
    session: Session, actor: Actor, project: Project, webhook_id: str, delivery_id: int
) -> Delivery:
    """Send once more what was sent or given up; it keeps its number and what it says.

    Raises NotFound, and Conflict while the webhook is disabled.
    """
    hook = _enabled(find(session, actor, project, webhook_id))
    delivery = session.get(Delivery, delivery_id, with_for_update=True)
    if delivery is None or delivery.webhook_id != hook.id:
        raise NotFound(f"Webhook {hook.id} has no delivery {delivery_id}.")
    if delivery.state != DUE:
        delivery.state, delivery.tries, delivery.error = DUE, 0, None
        delivery.due_at = now(session)
        session.flush()
        audit(
            session, actor, "webhook.redeliver", project.name,
            {"webhook": hook.id, "delivery": delivery.id},
        )  # fmt: skip
    return delivery


def _enabled(hook: Webhook) -> Webhook:
    if hook.disabled_at is not None:
        raise Conflict(
            f"Webhook {hook.id} is disabled: nothing is sent to it.",
            hint=f"`espalier webhook enable {hook.project.name} {hook.id}`",
        )
    return hook


def forget_old(session: Session) -> int:
    """Delete deliveries that have been over for KEPT; return how many."""
    before = now(session) - KEPT
    gone = delete(Delivery).where(Delivery.state != DUE, Delivery.created_at < before)
    return len(session.execute(gone.returning(Delivery.id)).all())
