"""``python -m scheduler``: the loop.

``python -m scheduler init`` makes an empty stack ready; ``gc``, ``fsck``, ``backup`` and
``restore`` are scheduler.upkeep. They print one JSON line, and exit with 1 when something is wrong.
"""

import argparse
import json
import logging
import sys
from datetime import timedelta
from functools import partial

from sqlalchemy import select
from sqlalchemy.exc import InterfaceError, OperationalError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from espalier import queue
from espalier.errors import EspalierError, Unauthorized
from espalier.settings import Settings, settings
from espalier.states import Kind
from scheduler import access
from scheduler.catalog.courier import Courier
from scheduler.catalog.heads import HeadKeeper
from scheduler.db import Database, migrate
from scheduler.ending import Ended, Ending
from scheduler.housekeeping import Housekeeping
from scheduler.models import User, Worker
from scheduler.placing import fleet
from scheduler.placing.dispatch import Dispatcher, Ticket
from scheduler.store.base import Driver
from scheduler.upkeep import commands as upkeep
from scheduler.wake import Waker

log = logging.getLogger("scheduler")
LOGIN_LINK = timedelta(hours=12)


def run(config: Settings, ending: Ending) -> None:
    """Tick, sleep until something is due or somebody rings, until told to stop."""
    if not config.broker_url:
        raise SystemExit("ESPALIER_BROKER_URL is not set: the scheduler has nowhere to publish.")
    database = Database(config.sql_url)
    app = queue.make_app(config.broker_url)

    def publish(ticket: Ticket) -> None:
        queue.publish(app, ticket.worker_id, Kind(ticket.kind), ticket.attempt_id)

    dispatcher = Dispatcher(database, publish, config)
    waker, housekeeping = Waker(config.broker_url), Housekeeping()
    heads = HeadKeeper(database, partial(_open_driver, config))
    courier = Courier(database)
    heads.start()
    courier.start()
    log.info("The scheduler runs.")
    try:
        while True:
            seconds = _tick(dispatcher, waker)
            with ending.waiting():
                waker.wait(seconds)
            housekeeping.look()
    finally:
        dispatcher.resign()
        housekeeping.stop()
        courier.stop()
        heads.stop()


def _open_driver(config: Settings) -> Driver:
    from scheduler.store import open_driver  # S3's is heavy: only once there is something to write

    return open_driver(config)


def _tick(dispatcher: Dispatcher, waker: Waker) -> float:
    try:
        if waker.forgot():
            dispatcher.send_again()
        return dispatcher.tick()
    except (OperationalError, InterfaceError, PendingRollbackError, PoolTimeout) as error:
        log.warning("The database is away; leases get their grace when it is back: %s", error)
        dispatcher.forgive()
        return 1.0


def init(config: Settings, workers: int) -> dict[str, object]:
    """Migrate, make the first admin and project, and tokens for the stack's own clients.

    The personal token is ``ESPALIER_TOKEN`` while that one works: who signed in with it stays
    signed in over a restart, and tokens do not pile up. Raises Unavailable when the store cannot
    be used: better now than at the first upload.
    """
    from scheduler.store import open_driver

    driver = open_driver(config)
    limits = [f"{driver.place} {limit}." for limit in driver.probe()]
    for limit in limits:
        log.warning("%s", limit)
    migrate(config.sql_url)
    database = Database(config.sql_url)
    with database.transaction() as session:
        admin = access.ensure_first_run(session)
        made: dict[str, object] = {
            "token": _personal_token(session, admin, config),
            "login": access.mint(session, "login", user=admin, expires_in=LOGIN_LINK),
            "workers": [_embedded_worker(session, n + 1) for n in range(workers)],
            "limits": limits,
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


def _command(arguments: argparse.Namespace) -> tuple[dict[str, object], bool]:
    try:
        if arguments.command == "init":
            return init(settings(), arguments.workers), True
        return upkeep.run(arguments, settings())
    except EspalierError as error:
        raise SystemExit(f"{error.detail} {error.hint or ''}".strip()) from None
    except OperationalError as error:
        raise SystemExit(f"The database cannot be used: {error.orig}") from None


def main() -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m scheduler", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    first = commands.add_parser("init", help="migrate, make the first admin, print tokens as JSON")
    first.add_argument("--workers", type=int, default=0, help="tokens for this many local workers")
    upkeep.add_commands(commands)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if arguments.command:
        told, well = _command(arguments)
        sys.stdout.write(json.dumps(told) + "\n")
        sys.exit(0 if well else 1)
    ending = Ending()
    try:
        run(settings(), ending)
    except Ended:
        log.info("The scheduler stops.")


if __name__ == "__main__":
    main()
