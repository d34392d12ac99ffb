"""``python -m scheduler``: the loop.

``python -m scheduler init`` makes an empty stack ready; ``python -m scheduler gc`` removes from the
store what nothing refers to.
"""

import argparse
import json
import logging
import signal
import sys
from dataclasses import asdict
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from espalier import queue
from espalier.errors import EspalierError, Unauthorized
from espalier.settings import Settings, settings
from espalier.states import Kind
from scheduler import access, fleet
from scheduler.db import Database, migrate
from scheduler.dispatch import Dispatcher, Ticket
from scheduler.housekeeping import Housekeeping
from scheduler.models import User, Worker
from scheduler.wake import Waker

log = logging.getLogger("scheduler")
LOGIN_LINK = timedelta(hours=12)


class _Stop(Exception):
    """SIGTERM or SIGINT arrived."""


def _stop(_signal: int, _frame: object) -> None:
    raise _Stop


def run(config: Settings) -> None:
    """Tick, sleep until something is due or somebody rings, until told to stop."""
    if not config.broker_url:
        raise SystemExit("ESPALIER_BROKER_URL is not set: the scheduler has nowhere to publish.")
    database = Database(config.sql_url)
    app = queue.make_app(config.broker_url)

    def publish(ticket: Ticket) -> None:
        queue.publish(app, ticket.worker_id, Kind(ticket.kind), ticket.attempt_id)

    dispatcher = Dispatcher(database, publish, config)
    waker, housekeeping = Waker(config.broker_url), Housekeeping()
    log.info("The scheduler runs.")
    try:
        while True:
            waker.wait(_tick(dispatcher))
            housekeeping.look()
    finally:
        housekeeping.stop()


def _tick(dispatcher: Dispatcher) -> float:
    try:
        return dispatcher.tick()
    except OperationalError as error:
        log.warning("The database is away; leases get their grace when it is back: %s", error)
        dispatcher.forgive()
        return 1.0


def collect_garbage(config: Settings, dry_run: bool) -> dict[str, object]:
    """Sweep the store; return what was removed, or would be."""
    from scheduler import gc  # the S3 driver is heavy, and the loop does not need it
    from scheduler.blobs import Blobs
    from scheduler.store import open_driver

    database = Database(config.sql_url)
    found = gc.collect(database, Blobs(open_driver(config), config), dry_run=dry_run)
    database.close()
    return asdict(found)


def init(config: Settings, workers: int) -> dict[str, object]:
    """Migrate, make the first admin and project, and tokens for the stack's own clients.

    The personal token is ``ESPALIER_TOKEN`` while that one works: who signed in with it stays
    signed in over a restart, and tokens do not pile up. Raises Unavailable when the store cannot
    be used: better now than at the first upload.
    """
    from scheduler.store import open_driver

    driver = open_driver(config)
    for limit in driver.probe():
        log.warning("%s %s.", driver.place, limit)
    migrate(config.sql_url)
    database = Database(config.sql_url)
    with database.transaction() as session:
        admin = access.ensure_first_run(session)
        made: dict[str, object] = {
            "token": _personal_token(session, admin, config),
            "login": access.mint(session, "login", user=admin, expires_in=LOGIN_LINK),
            "workers": [_embedded_worker(session, n + 1) for n in range(workers)],
        }
    database.close()
    return made


def _personal_token(session: Session, admin: User, config: Settings) -> str:
    given = config.token.get_secret_value() if config.token else ""
    try:
        access.authenticate(session, given, "personal")
    except Unauthorized:
        return access.mint(session, "personal", user=admin, name="espalier up")
    return given


def _embedded_worker(session: Session, number: int) -> dict[str, str]:
    name = f"local-{number}"
    worker = session.scalar(select(Worker).where(Worker.name == name))
    if worker is None:
        worker, token = fleet.join(session, name)
    else:
        access.revoke_tokens_of(session, worker)  # those of the stack that ran before
        token = access.mint(session, "worker", worker=worker, name=name)
    return {"name": name, "token": token}


def _command(arguments: argparse.Namespace) -> dict[str, object]:
    try:
        if arguments.command == "init":
            return init(settings(), arguments.workers)
        return collect_garbage(settings(), arguments.dry_run)
    except EspalierError as error:
        raise SystemExit(f"{error.detail} {error.hint or ''}".strip()) from None


def main() -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m scheduler", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    first = commands.add_parser("init", help="migrate, make the first admin, print tokens as JSON")
    first.add_argument("--workers", type=int, default=0, help="tokens for this many local workers")
    sweep = commands.add_parser("gc", help="remove from the store what nothing refers to")
    sweep.add_argument("--dry-run", action="store_true", help="only say what it would be")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if arguments.command:
        sys.stdout.write(json.dumps(_command(arguments)) + "\n")
        return
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        run(settings())
    except _Stop:
        log.info("The scheduler stops.")


if __name__ == "__main__":
    main()
