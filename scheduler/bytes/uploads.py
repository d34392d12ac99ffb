"""Rows of uploads under way, and what is to be seen from them."""

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from espalier.errors import InvalidInput
from scheduler.bytes.blobfaults import unknown
from scheduler.db import now
from scheduler.models import Upload, UploadPart
from scheduler.store.base import Part


def plan(upload: Upload) -> list[Part]:
    starts = range(0, upload.size, upload.part_size)
    return [
        Part(number, start, min(upload.part_size, upload.size - start))
        for number, start in enumerate(starts, 1)
    ]


def received(session: Session, upload: Upload) -> tuple[Part, ...]:
    rows = session.scalars(
        select(UploadPart).where(UploadPart.upload_id == upload.id).order_by(UploadPart.number)
    )
    return tuple(
        Part(row.number, (row.number - 1) * upload.part_size, row.size, row.etag) for row in rows
    )


def check_received(upload: Upload, received: Sequence[Part]) -> None:
    there = {part.number for part in received}
    absent = [part.number for part in plan(upload) if part.number not in there]
    if absent:
        shown = ", ".join(map(str, absent[:10])) + (", …" if len(absent) > 10 else "")
        raise InvalidInput(
            f"The upload is not complete: part {shown} of {len(plan(upload))} was not received.",
            errors=[{"loc": ["parts"], "msg": f"missing: {shown}"}],
        )


def is_complete(upload: Upload) -> bool:
    return bool(upload.driver_state.get("complete"))


def check_open(upload: Upload) -> None:
    if is_complete(upload):  # a part sent twice, the second time late
        raise unknown(upload.id)


def owned(session: Session, upload_id: str, owner: str, *, writing: bool = False) -> Upload:
    query = select(Upload).where(Upload.id == upload_id, Upload.owner == owner)
    upload = session.scalar(query.with_for_update() if writing else query)
    if upload is None:
        raise unknown(upload_id)
    return upload


def settle(session: Session, upload_id: str, sha256: str) -> Upload | None:
    """Note that an upload is the blob ``sha256``, whatever it was called while it came.

    Returns another upload of the same bytes by the same owner, which is no more: the caller
    discards what the store holds of it.
    """
    session.execute(delete(UploadPart).where(UploadPart.upload_id == upload_id))
    upload = session.scalar(select(Upload).where(Upload.id == upload_id).with_for_update())
    if upload is None:
        return None
    same = (Upload.owner == upload.owner) & (Upload.sha256 == sha256) & (Upload.id != upload_id)
    other = session.scalar(select(Upload).where(same).with_for_update())
    if other is not None:
        session.delete(other)
        session.flush()
    upload.sha256, upload.driver_state = sha256, {"complete": True}
    upload.touched_at = now(session)
    return other
