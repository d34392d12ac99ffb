"""``python -m tests.faults.consumer``: a worker whose jobs end as soon as they have begun.

The real service with the real Celery consumer, heartbeats and control plane; only what comes
after a claim is left out, so that two cores can show what happens to a thousand tickets.
"""

import logging
import sys

from espalier.errors import Conflict
from espalier.messages import Finish, Orders, Welcome
from espalier.settings import settings
from worker.control import Control, patiently
from worker.runner import Runner
from worker.service import Service
from worker.stop import Why

log = logging.getLogger("worker")


class Clerk:
    """Claims what it is called for, and finishes it at once with no output."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def run(self, attempt_id: str) -> None:
        try:
            self._control.claim(attempt_id)
        except Conflict as error:  # a ticket may be late or repeated
            log.info("ticket for %s is void: %s", attempt_id, error.detail)
            return
        finish = Finish(boot_id=self._control.boot_id, state="succeeded")
        patiently(lambda: self._control.finish(attempt_id, finish), "finish", lambda _: None)

    def running(self) -> tuple[str, ...]:
        return ()

    def obey(self, orders: Orders) -> None:
        """Orders concern what runs; nothing does."""

    def stop(self, why: Why, within: float | None = None) -> None:
        """There is nothing to stop."""

    def join(self) -> None:
        """There is nothing to wait for."""


class Counter(Service):
    """A worker with a clerk in its runner's place."""

    def _consume(self, welcome: Welcome, runner: Runner) -> int:
        return super()._consume(welcome, Clerk(self._control))  # type: ignore[arg-type]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    sys.exit(Counter(settings(), slots=int(sys.argv[1])).run())
