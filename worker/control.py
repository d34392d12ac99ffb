"""What a worker says to the control plane, typed (espalier.messages has both ends)."""

import logging
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel

from espalier.client import Client
from espalier.errors import Conflict, EspalierError, LeaseLost, Unavailable
from espalier.messages import (
    Assignment,
    CheckpointPublished,
    Claim,
    Finish,
    Finished,
    Heartbeat,
    Hello,
    Orders,
    Report,
    Welcome,
)

PREFIX = "/agent/v1"
#: Seconds between tries while the control plane is away; the last one repeats for ever.
BACKOFF = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0)

#: Times an internal error of the control plane is answered with another try.
FAULT_TRIES = 6
#: The same for the outputs of a job: about ten minutes.
WORK_TRIES = 40
CONFLICT_TRIES = 3

T = TypeVar("T")
log = logging.getLogger("worker")


class Control:
    """The agent API of one control plane, as one worker with one ``boot_id``."""

    def __init__(self, client: Client, boot_id: str) -> None:
        self._client = client
        self.boot_id = boot_id

    def _post(self, path: str, message: BaseModel, *, again: bool = True) -> object:
        body = message.model_dump(mode="json", exclude_none=True)
        return self._client.post(f"{PREFIX}{path}", body, idempotent=again)

    def hello(self, hello: Hello) -> Welcome:
        return Welcome.model_validate(self._post("/hello", hello, again=False))

    def heartbeat(self, heartbeat: Heartbeat) -> Orders:
        return Orders.model_validate(self._post("/heartbeat", heartbeat, again=False))

    def claim(self, attempt_id: str) -> Assignment:
        """Raises Conflict when the attempt is not placed here (any more)."""
        claim = Claim(boot_id=self.boot_id)
        return Assignment.model_validate(self._post(f"/attempts/{attempt_id}/claim", claim))

    def report(self, attempt_id: str, report: Report) -> Orders:
        """Tried once: the reporter has its own patience. Raises LeaseLost."""
        answer = self._post(f"/attempts/{attempt_id}/report", report, again=False)
        return Orders.model_validate(answer)

    def checkpoint(self, attempt_id: str, published: CheckpointPublished) -> None:
        """Raises LeaseLost."""
        self._post(f"/attempts/{attempt_id}/checkpoints", published)

    def finish(self, attempt_id: str, finish: Finish) -> Finished:
        """Raises LeaseLost. A repeat of one that arrived gets the same answer."""
        answer = self._post(f"/attempts/{attempt_id}/finish", finish)
        return Finished.model_validate(answer)


def is_final(error: EspalierError, tries: int) -> bool:
    """Say whether trying again after so many tries is pointless: an outage never is."""
    if isinstance(error, Unavailable):
        return False
    return error.status < 500 or tries >= FAULT_TRIES


def is_final_for_work(error: EspalierError, tries: int) -> bool:
    """The same for what hours of work depend on: faults of the control plane are borne longer.

    A Conflict that does not end the lease is somebody else's write at the same moment.
    """
    if isinstance(error, Conflict) and not isinstance(error, LeaseLost):
        return tries >= CONFLICT_TRIES
    return is_final(error, tries) and (error.status < 500 or tries >= WORK_TRIES)


def patiently(
    work: Callable[[], T],
    what: str,
    wait: Callable[[float], object],
    final: Callable[[EspalierError, int], bool] = is_final,
) -> T:
    """Call ``work`` until the control plane is there again; its inner errors are borne a while.

    ``wait`` sleeps the seconds it is given, or raises to give up. Raises what ``work`` is refused
    with.
    """
    tries = 0
    while True:
        try:
            return work()
        except EspalierError as error:
            if final(error, tries):
                raise
            seconds = BACKOFF[min(tries, len(BACKOFF) - 1)]
            log.warning("%s: %s Again in %.1f s.", what, error.detail, seconds)
        tries += 1
        wait(seconds)
