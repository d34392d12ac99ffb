"""Webhooks: what is committed is told, signed, in order, again until it is taken."""

import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from espalier.errors import Conflict, Forbidden, InvalidInput
from espalier.refs import parse_artifact
from espalier.states import ArtifactKind
from scheduler import access
from scheduler.access import SYSTEM, actor_for
from scheduler.catalog import addresses, aliases, courier, registry, retiring, webhooks
from scheduler.catalog.courier import LIMIT, PAUSES, Courier, signature
from scheduler.db import Database
from scheduler.models import Audit, Delivery, Webhook
from tests.integration.scheduler.stack import Stack


class Receiver:
    """A real HTTP server that answers as it is told and keeps what it got."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []  # of the next requests; then 204
        self.before = threading.Event()
        self.before.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.before.wait(60)
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((dict(self.headers), body))
                status = receiver.answers.pop(0) if receiver.answers else 204
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.end_headers()
                self.wfile.write(b"the other end's secret" if status >= 500 else b"")

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://localhost:{self.server.server_port}/hook?team=a"
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    def told(self) -> list[tuple[str, Any]]:
        return [(headers["X-Espalier-Event"], json.loads(body)) for headers, body in self.got]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


class Office:
    """A stack on a clock that the test turns, and its courier."""

    def __init__(self, url: str, directory: Path) -> None:
        self.moment = datetime(2026, 3, 1, tzinfo=UTC)
        self.database = Database(url, clock=lambda: self.moment)
        self.stack = Stack.make(self.database, directory)
        self.courier = Courier(self.database)
        self.count = 0

    def add(self, url: str, *events: str) -> str:
        return webhooks.add(self.database, self.stack.actor, "team", url, events)

    def publish(self) -> str:
        self.count += 1
        line = f'{{"text": "{self.count}"}}\n'.encode()
        return self.stack.artifact("d", ArtifactKind.DATASET, {"train.jsonl": line})

    def point(self, ref: str, alias: str = "best") -> None:
        with self.database.transaction() as session:
            version = registry.resolve(session, parse_artifact(ref))
            aliases.set_alias(session, self.stack.actor, version.artifact, alias, version)

    def later(self, seconds: float) -> int:
        """Let time pass, and send what is due then."""
        self.moment += timedelta(seconds=seconds)
        return self.courier.send_due()

    def rows(self, hook: str) -> list[tuple[str, str, int, int | None]]:
        with self.database.reading() as session:
            found = session.scalars(
                select(Delivery).where(Delivery.webhook_id == hook).order_by(Delivery.id)
            )
            return [(row.event, row.state, row.tries, row.status) for row in found]


@pytest.fixture
def office(database_url: str, tmp_path: Path) -> Iterator[Office]:
    office = Office(database_url, tmp_path)
    yield office
    office.database.close()


def test_what_happens_is_told_in_order_and_signed(office: Office, receiver: Receiver) -> None:
    hook = office.add(receiver.url)
    office.publish()
    office.publish()
    office.point("team/d@v1")
    with office.database.transaction() as session:
        artifact = registry.find_artifact(session, "team", "d")
        second = registry.resolve(session, parse_artifact("team/d@v2"))
        retiring.delete_version(session, office.stack.actor, second)
        aliases.remove_alias(session, office.stack.actor, artifact, "best")
        retiring.delete_artifact(session, office.stack.actor, artifact)
    assert office.later(0) == 6
    told = receiver.told()
    assert [(event, body["event"], body["artifact"]) for event, body in told] == [
        (event, event, "team/d")
        for event in (
            "version.published",
            "version.published",
            "alias.moved",
            "version.deleted",
            "alias.moved",
            "repo.deleted",
        )
    ]
    assert told[0][1]["version"] == "team/d@v1"
    assert (told[2][1]["from"], told[2][1]["to"]) == (None, "team/d@v1")
    assert (told[4][1]["to"], told[4][1]["why"]) == (None, "removed")
    with office.database.reading() as session:
        secret = session.get_one(Webhook, hook).secret.encode()
    for headers, body in receiver.got:
        mine = hmac.new(secret, body, hashlib.sha256).hexdigest()
        assert headers["X-Espalier-Signature-256"] == f"sha256={mine}"
        assert headers["Host"].startswith("localhost:")
    numbers = [int(headers["X-Espalier-Delivery"]) for headers, _ in receiver.got]
    assert numbers == sorted(set(numbers))
    assert {row[1:] for row in office.rows(hook)} == {("sent", 1, 204)}
    assert office.later(60) == 0, "nothing is sent twice"


def test_what_is_rolled_back_is_never_told(office: Office, receiver: Receiver) -> None:
    hook = office.add(receiver.url)

    def move_and_fail() -> None:
        with office.database.transaction() as session:
            version = registry.resolve(session, parse_artifact("team/base"))
            aliases.set_alias(session, SYSTEM, version.artifact, "best", version)
            raise Conflict("something after it fails")

    with pytest.raises(Conflict, match="after it"):
        move_and_fail()
    assert office.rows(hook) == []


def test_only_what_was_asked_for_is_told(office: Office, receiver: Receiver) -> None:
    hook = office.add(receiver.url, "alias.moved")
    office.publish()
    office.point("team/d@v1")
    assert [row[0] for row in office.rows(hook)] == ["alias.moved"]


def test_a_failure_is_tried_again_and_holds_up_what_follows(
    office: Office, receiver: Receiver
) -> None:
    hook = office.add(receiver.url, "version.published")
    receiver.answers = [500, 302]
    office.publish()
    office.publish()
    assert office.later(0) == 1
    with office.database.reading() as session:
        row = session.scalars(select(Delivery).order_by(Delivery.id)).first()
        assert row is not None
        assert row.error == f"localhost:{receiver.server.server_port} answered 500."
    assert office.later(PAUSES[0] * 0.4) == 0, "not yet"
    assert office.later(PAUSES[0] * 1.2) == 1
    assert office.rows(hook)[0] == ("version.published", "due", 2, 302)
    assert office.later(PAUSES[1] * 1.6) == 2
    assert [row[1:] for row in office.rows(hook)] == [("sent", 3, 204), ("sent", 1, 204)]
    versions = [body["version"] for _, body in receiver.told()]
    assert versions == ["team/d@v1"] * 3 + ["team/d@v2"]
    first = {headers["X-Espalier-Delivery"] for headers, _ in receiver.got[:3]}
    assert len(first) == 1, "a delivery that is tried again keeps its number"


def test_a_dead_address_is_given_up_with_an_audit_row(office: Office, receiver: Receiver) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = office.add(f"http://localhost:{free.getsockname()[1]}/", "version.published")
    alive = office.add(receiver.url, "version.published")
    for _ in range(LIMIT + 1):
        office.publish()
    while any(row[1] == "due" for row in office.rows(dead)):
        office.later(max(PAUSES) * 1.6)
    assert {row[1] for row in office.rows(alive)} == {"sent"}, "one holds up no other"
    assert [row[2] for row in office.rows(dead)] == [len(PAUSES) + 1] * LIMIT + [0]
    with office.database.transaction() as session:
        hook = session.get_one(Webhook, dead)
        assert hook.disabled_at == office.moment
        last = session.scalars(select(Audit).order_by(Audit.id.desc()).limit(1)).one()
        assert (last.actor, last.action, last.subject) == ("system", "webhook.disable", "team")
        with pytest.raises(Conflict, match="is disabled"):
            webhooks.ping(session, office.stack.actor, hook.project, dead)
        webhooks.enable(session, office.stack.actor, hook.project, dead)
        webhooks.ping(session, office.stack.actor, hook.project, dead)
    assert office.rows(dead)[-1][:2] == ("ping", "due")


def test_a_try_that_nobody_ended_is_made_again(office: Office, receiver: Receiver) -> None:
    hook = office.add(receiver.url, "version.published")
    office.publish()
    assert office.courier._take(hook) is not None  # and then the process died
    assert office.later(1) == 0
    assert office.later(courier.HELD.total_seconds()) == 1
    assert office.rows(hook) == [("version.published", "sent", 2, 204)]


def test_what_was_sent_is_sent_once_more_when_asked(office: Office, receiver: Receiver) -> None:
    hook = office.add(receiver.url, "version.published")
    office.publish()
    office.later(0)
    with office.database.transaction() as session:
        row = session.scalars(select(Delivery)).one()
        project = session.get_one(Webhook, hook).project
        webhooks.redeliver(session, office.stack.actor, project, hook, row.id)
    assert office.later(0) == 1
    assert receiver.got[0][1] == receiver.got[1][1]
    office.moment += webhooks.KEPT + timedelta(days=1)
    with office.database.transaction() as session:
        assert webhooks.forget_old(session) == 1
    assert office.rows(hook) == []


def test_a_receiver_that_drips_is_cut_off(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier, "WHOLE", 0.5)
    stopping = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            peer, _ = server.accept()
            with peer:
                while not stopping.wait(0.1):
                    try:
                        peer.sendall(b"H")
                    except OSError:
                        return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        hook = office.add(f"http://127.0.0.1:{server.getsockname()[1]}/", "version.published")
        office.publish()
        assert office.later(0) == 1
        stopping.set()
        thread.join(60)
    assert office.rows(hook) == [("version.published", "due", 1, None)]


def test_the_thread_sends_what_is_due(office: Office, receiver: Receiver) -> None:
    office.add(receiver.url, "version.published")
    office.publish()
    running = Courier(office.database, every=0.02)
    receiver.before.clear()
    running.start()
    receiver.before.set()
    deadline = threading.Event()
    for _ in range(6000):
        if receiver.got:
            break
        deadline.wait(0.01)
    running.stop()
    assert len(receiver.got) == 1


# --- Where to -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost:8000/",
        "http://10.0.0.7/",
        "http://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://0.0.0.0/",
        "http://[::1]/",
        "http://[fe80::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[2002:7f00:1::]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[fd00::1]/",
        "http://100.64.0.1/",
        "http://224.0.0.1/",
        "http://2130706433/",
        "http://0x7f.1/",
    ],
)
def test_owners_send_to_no_address_within_the_network(url: str) -> None:
    with pytest.raises((Forbidden, InvalidInput)):
        addresses.check(url, anywhere=False)


def test_public_addresses_are_anybodys() -> None:
    addresses.check("https://93.184.216.34/hook", anywhere=False)
    addresses.check("http://[2606:2800:220:1::1]:8080/", anywhere=False)


def test_a_webhook_is_an_owners_once_its_admin_is_none(office: Office, receiver: Receiver) -> None:
    """Judged at each sending: whoever added it must still be allowed to, to this address."""
    with office.database.transaction() as session:
        ada = access.create_user(session, "ada", is_admin=True)
        admin = actor_for(ada)
    hook = webhooks.add(office.database, admin, "team", receiver.url, ["version.published"])
    with office.database.transaction() as session:
        session.merge(ada).is_admin = False
    office.publish()
    office.later(0)
    assert receiver.got == []
    assert office.rows(hook) == [("version.published", "due", 1, None)]


def test_the_signature_is_the_hmac_of_the_body() -> None:
    body, secret = b'{"event":"ping"}', "whsec_x"
    wanted = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    assert signature(secret, body) == f"sha256={wanted}"
