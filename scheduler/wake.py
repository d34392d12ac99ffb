"""Waking the scheduler: a one-element list on the broker, because it works for every database.

A lost wake-up costs nothing but time: the loop looks by itself every few seconds.
"""

import logging
import time

from redis import Redis
from redis.exceptions import RedisError

KEY = "espalier:wake"
#: Is there as long as the broker remembers what it was given.
MARK = "espalier:remembers"
log = logging.getLogger(__name__)


class Waker:
    """Both ends of the bell. Safe to share between threads."""

    def __init__(self, broker_url: str) -> None:
        self._redis: Redis = Redis.from_url(
            broker_url, socket_connect_timeout=1.0, socket_timeout=None
        )
        self._ring: Redis = Redis.from_url(
            broker_url, socket_connect_timeout=0.5, socket_timeout=0.5
        )

    def wake(self) -> None:
        """Ring, after a commit. Never raises: the row in SQL is what counts."""
        try:
            with self._ring.pipeline(transaction=True) as pipe:
                pipe.lpush(KEY, "1")
                pipe.ltrim(KEY, 0, 0)
                pipe.execute()
        except RedisError as error:
            log.warning("The broker is away; the scheduler will find the work itself: %s", error)

    def forgot(self) -> bool:
        """Return whether the broker has forgotten everything since it was last asked.

        True also when it was never asked before; False while it is away.
        """
        try:
            return bool(self._ring.set(MARK, 1, nx=True))
        except RedisError:
            return False

    def ping(self) -> None:
        """Raise RedisError when the broker does not answer."""
        self._ring.ping()

    def wait(self, seconds: float) -> bool:
        """Sleep until somebody rings or ``seconds`` have passed; True if somebody rang."""
        try:
            return self._redis.blpop([KEY], timeout=max(seconds, 0.01)) is not None
        except RedisError:
            time.sleep(min(seconds, 1.0))
            return False
