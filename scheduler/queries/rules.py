"""The registry's rules as documents: moves, gates, what was deleted, webhooks, deliveries."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from scheduler.bytes.gc import GRACE, Collected
from scheduler.catalog import aliases, gates, quota, retiring
from scheduler.catalog.registry import label, path_of
from scheduler.db import now
from scheduler.models import Alias, AliasMove, Artifact, Delivery, Gate, Project, Version, Webhook
from scheduler.queries import Document, stamp


def history(session: Session, artifact: Artifact, alias: str) -> Document:
    """Return where a name has been, newest first, and where a rollback would go."""
    row = session.get(Alias, (artifact.id, alias))
    back = aliases.before(session, artifact, alias) if row is None or row.kind == "alias" else None
    return {
        "alias": alias,
        "ref": label(row.version) if row else None,
        "rollback": label(back) if back else None,
        "moves": [_move(move) for move in aliases.history(session, artifact, alias)],
    }


def _move(move: AliasMove) -> Document:
    return {
        "time": stamp(move.created_at),
        "actor": move.actor,
        "why": move.why,
        "from": label(move.before) if move.before else None,
        "to": label(move.after) if move.after else None,
        "detail": move.detail,
    }


def gate(found: Gate) -> Document:
    return {
        "alias": found.alias,
        "data": found.data,
        "metric": found.metric,
        "min_delta": found.min_delta,
        "proofs": found.proofs,
        "updated_at": stamp(found.updated_at),
        "text": gates.words(found),
    }


def verdict(session: Session, artifact: Artifact, alias: str, version: Version) -> Document:
    """Return whether the alias may move to the version, and why."""
    row = session.get(Alias, (artifact.id, alias))
    said = gates.judge(session, artifact, alias, version, row.version if row else None)
    return {"alias": alias, "ref": label(version), "passed": said.passed, "text": said.words}


def deleted(session: Session, project: Project) -> Document:
    """Return what of the project can still be brought back, and until when."""
    artifacts = retiring.deleted_artifacts(session, project)
    versions = session.scalars(
        select(Version)
        .join(Version.artifact)
        .where(Artifact.project_id == project.id, Artifact.deleted_at.is_(None))
        .where(Version.deleted_at >= now(session) - GRACE)
        .order_by(Version.deleted_at.desc(), Version.id)
    )
    return {
        "artifacts": [_gone(path_of(one), one) for one in artifacts],
        "versions": [_gone(label(one), one) for one in versions],
    }


def _gone(ref: str, row: Artifact | Version) -> Document:
    assert row.deleted_at is not None
    return {
        "ref": ref,
        "deleted_at": stamp(row.deleted_at),
        "until": stamp(row.deleted_at + GRACE),
    }


def usage(session: Session, project: Project) -> Document:
    """Return the bytes that count against the project's quota, and the quota."""
    return {
        "project": project.name,
        "used_bytes": quota.usage(session, project),
        "quota_bytes": project.quota_bytes,
    }


def forecast(found: Collected) -> Document:
    """Return what a collection would free; nobody's bytes are of no project."""
    return {
        "held": found.held,
        "blobs": found.blobs,
        "bytes": found.bytes,
        "uploads": found.uploads,
        "projects": [
            {"project": name or None, "bytes": size}
            for name, size in sorted(found.projects.items(), key=lambda item: -item[1])
        ],
    }


def webhook(hook: Webhook) -> Document:
    """Without its secret, which is shown once."""
    return {
        "id": hook.id,
        "project": hook.project.name,
        "url": hook.url,
        "events": hook.events.split(),
        "created_at": stamp(hook.created_at),
        "disabled_at": stamp(hook.disabled_at) if hook.disabled_at else None,
    }


def delivery(row: Delivery) -> Document:
    return {
        "id": row.id,
        "event": row.event,
        "state": row.state,
        "tries": row.tries,
        "status": row.status,
        "error": row.error,
        "payload": row.payload,
        "created_at": stamp(row.created_at),
        "due_at": stamp(row.due_at),
        "sent_at": stamp(row.sent_at) if row.sent_at else None,
    }
