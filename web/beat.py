"""The web process says that it is there: while it is not, no worker could have reported."""

import logging
import os
import socket
import threading

from scheduler import leader
from scheduler.db import Database

log = logging.getLogger(__name__)

#: Beats while one of them lasts: two may be missed before the door counts as shut.
BEATS = 3


class Beat:
    """A thread that renews this process's presence; one a process, made after the fork.

    A beat lasts less than an attempt's lease (``lease_seconds``): a door that was shut for so
    long that a lease may have ended has to be seen as one.
    """

    def __init__(self, database: Database, lease_seconds: float) -> None:
        self._database = database
        self._lasts = min(leader.DOOR, lease_seconds / 2)
        self._holder = f"{socket.gethostname()[:48]}:{os.getpid()}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Beat no more, and wait for the last one to end."""
        self._over.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        away = False
        while not self._over.is_set():
            try:
                with self._database.transaction() as session:
                    leader.beat(session, leader.WEB, self._holder, self._lasts)
            except Exception as error:  # whatever it is, the next beat tries again
                if not away:
                    log.warning("The database does not take a beat: %s", type(error).__name__)
                away = True
            else:
                if away:
                    log.info("The database takes beats again")
                away = False
            self._over.wait(self._lasts / BEATS)
