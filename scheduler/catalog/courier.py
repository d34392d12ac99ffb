"""Sends what webhooks are to be told, in a thread of the scheduler's process.

What that is was written down with the change itself (scheduler.catalog.webhooks). Each delivery is
sent until the other end answers 2xx: at least once, and in order for each webhook, one behind the
other. A try that fails is made again with growing pauses; a delivery that is out of tries is given
up, and so is a webhook that too many of them failed at in a row. Who tries marks the row first, so
that of two processes one sends.
"""

import hashlib
import hmac
import json
import logging
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast
from urllib.parse import urlunsplit

import httpx
from sqlalchemy import CursorResult, func, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

import espalier
from espalier.errors import EspalierError
from scheduler.access import SYSTEM
from scheduler.catalog import addresses, webhooks
from scheduler.catalog.webhooks import DUE, FAILED, SENT
from scheduler.db import Database, now
from scheduler.models import Delivery, User, Webhook

log = logging.getLogger(__name__)

#: Seconds between looks for what is due.
EVERY = 1.0
#: Seconds: to connect and for each answer's part, and for a whole try.
TIMEOUT, WHOLE = 10.0, 20.0
#: Seconds that the last tries may take when the process ends.
LAST = 5.0
#: Pauses before the second, third, … try; each is drawn from half to one and a half of it.
PAUSES = (10.0, 60.0, 300.0, 1800.0, 7200.0)
#: A try that nobody ended, since its process died, is made again after this.
HELD = timedelta(seconds=60)
#: Deliveries given up in a row after which a webhook is disabled.
LIMIT = 5
#: Webhooks that are sent to at the same time, and deliveries to one in a round.
_AT_ONCE, _ROUND = 4, 50


@dataclass(frozen=True, slots=True)
class _Try:
    """One delivery, taken: what is sent where. The secret signs the body."""

    id: int
    webhook_id: str
    url: str
    secret: str
    event: str
    payload: dict[str, Any]
    anywhere: bool


@dataclass(frozen=True, slots=True)
class _Outcome:
    status: int | None
    error: str | None  # None: it was taken


class Courier:
    """Sends what is due in a thread of its own: a slow receiver holds nobody up."""

    def __init__(self, database: Database, every: float = EVERY) -> None:
        self._database = database
        self._every = every
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing new, and wait a while for what is being sent; cut off, it is sent again."""
        self._stopping.set()
        self._thread.join(LAST)

    def _run(self) -> None:
        while not self._stopping.wait(self._every):
            try:
                self.send_due()
            except (EspalierError, SQLAlchemyError, OSError) as error:
                log.warning("Webhooks are not sent to, and will be: %s", error)

    def send_due(self) -> int:
        """Send what is due now, to several webhooks at once; return how many tries were made."""
        with self._database.reading() as session:
            first = (
                select(Delivery.webhook_id, func.min(Delivery.id).label("id"))
                .where(Delivery.state == DUE)
                .group_by(Delivery.webhook_id)
                .subquery()
            )
            due = session.scalars(
                select(Delivery.webhook_id)
                .join(first, first.c.id == Delivery.id)
                .where(Delivery.due_at <= now(session))
            ).all()
        if not due:
            return 0
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="webhook") as pool:
            return sum(pool.map(self._send_to, due))

    def _send_to(self, webhook_id: str) -> int:
        """Send a webhook's deliveries one behind the other, until one fails or none is due."""
        for tried in range(_ROUND):
            taken = None if self._stopping.is_set() else self._take(webhook_id)
            if taken is None:
                return tried
            outcome = send(taken)
            self._note(taken, outcome)
            if outcome.error is not None:
                return tried + 1
        return _ROUND

    def _take(self, webhook_id: str) -> _Try | None:
        """Mark the webhook's first delivery as being tried, unless it is not due or taken."""
        with self._database.transaction() as session:
            moment = now(session)
            head = session.scalar(
                select(Delivery)
                .where(Delivery.webhook_id == webhook_id, Delivery.state == DUE)
                .order_by(Delivery.id)
                .limit(1)
            )
            if head is None or head.due_at > moment:
                return None
            mine = update(Delivery).where(
                Delivery.id == head.id, Delivery.state == DUE, Delivery.due_at == head.due_at
            )
            values = {"due_at": moment + HELD, "tries": Delivery.tries + 1}
            result = session.execute(
                mine.values(values).execution_options(synchronize_session=False)
            )
            if not cast("CursorResult[tuple[()]]", result).rowcount:
                return None
            hook = session.get_one(Webhook, webhook_id)
            by = session.get(User, hook.created_by) if hook.created_by else None
            anywhere = by is not None and by.is_admin and by.disabled_at is None
            return _Try(head.id, hook.id, hook.url, hook.secret, head.event, head.payload, anywhere)

    def _note(self, taken: _Try, outcome: _Outcome) -> None:
        """Write down how a try ended, and what follows from it."""
        with self._database.transaction() as session:
            row = session.get(Delivery, taken.id, with_for_update=True)
            if row is None or row.state != DUE:  # the webhook was removed or disabled meanwhile
                return
            moment = now(session)
            row.status, row.error = outcome.status, outcome.error
            if outcome.error is None:
                row.state, row.sent_at = SENT, moment
                return
            if row.tries <= len(PAUSES):
                pause = PAUSES[row.tries - 1] * random.uniform(0.5, 1.5)  # noqa: S311
                row.due_at = moment + timedelta(seconds=pause)
                return
            row.state = FAILED
            session.flush()
            hook = session.get_one(Webhook, taken.webhook_id, with_for_update=True)
            if hook.disabled_at is None and _failed_in_a_row(session, hook.id) >= LIMIT:
                why = f"{LIMIT} deliveries in a row failed; the last: {outcome.error}"
                webhooks.disable(session, SYSTEM, hook, why)
                log.warning("Webhook %s of %s is disabled: %s", hook.id, hook.project.name, why)


def _failed_in_a_row(session: Session, webhook_id: str) -> int:
    """Count the deliveries that were given up since the last one that was taken."""
    mine = Delivery.webhook_id == webhook_id
    last = select(func.max(Delivery.id)).where(mine, Delivery.state == SENT)
    since = select(func.count()).where(
        mine, Delivery.state == FAILED, Delivery.id > (session.scalar(last) or 0)
    )
    return session.scalar(since) or 0


def send(taken: _Try) -> _Outcome:
    """POST one delivery; nothing of the answer's body is read, and no redirect followed."""
    body = json.dumps(taken.payload, separators=(",", ":")).encode()
    try:
        parts, address = addresses.target(taken.url, anywhere=taken.anywhere)
    except EspalierError as error:
        return _Outcome(None, error.detail)
    host = f"[{address}]" if ":" in address else address
    place = parts._replace(netloc=f"{host}:{parts.port}" if parts.port else host, fragment="")
    headers = {
        "Host": parts.netloc,
        "Content-Type": "application/json",
        "User-Agent": f"espalier/{espalier.__version__}",
        "X-Espalier-Event": taken.event,
        "X-Espalier-Delivery": str(taken.id),
        "X-Espalier-Signature-256": signature(taken.secret, body),
    }
    try:
        with _client() as client:
            # The connection goes to the address that was judged; certificate and Host are the
            # name's.
            request = client.build_request(
                "POST",
                urlunsplit(place),
                content=body,
                headers=headers,
                extensions={"sni_hostname": parts.hostname},
            )
            response = client.send(request, stream=True)
            response.close()
    except (httpx.HTTPError, httpx.InvalidURL, OSError, RuntimeError) as error:
        return _Outcome(None, f"{parts.netloc} does not answer: {error or type(error).__name__}.")
    if response.is_success:
        return _Outcome(response.status_code, None)
    more = ": redirects are not followed" if response.is_redirect else ""
    return _Outcome(response.status_code, f"{parts.netloc} answered {response.status_code}{more}.")


def signature(secret: str, body: bytes) -> str:
    """Return what ``X-Espalier-Signature-256`` says: ``sha256=`` and the HMAC of the body."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


@contextmanager
def _client() -> Iterator[httpx.Client]:
    """A client for one try, cut off at its end: a receiver may drip headers for ever."""
    with httpx.Client(timeout=TIMEOUT, follow_redirects=False, trust_env=False) as client:
        watch = threading.Timer(WHOLE, client.close)
        watch.daemon = True
        watch.start()
        try:
            yield client
        finally:
            watch.cancel()
