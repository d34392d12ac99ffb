"""Is the process alive, and can it work?"""

import time
from collections.abc import Callable
from threading import Lock

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue
from sqlalchemy import text

from web.services import services

#: Seconds that an answer of ``/readyz`` stands: anybody may ask, and asking costs the store.
STANDS = 5.0


def make_blueprint() -> Blueprint:
    """Return ``/healthz`` and ``/readyz``."""
    blueprint = Blueprint("health", __name__)
    readiness = _Readiness()

    @blueprint.get("/healthz")
    def healthz() -> ResponseReturnValue:
        return jsonify(status="ok")

    @blueprint.get("/readyz")
    def readyz() -> ResponseReturnValue:
        found = readiness.look()
        ready = all(state == "ok" for state in found.values())
        return jsonify(status="ok" if ready else "unavailable", **found), 200 if ready else 503

    return blueprint


class _Readiness:
    """Whether database, store and broker can be reached, asked by one request at a time."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}
        self._until = 0.0
        self._lock = Lock()

    def look(self) -> dict[str, str]:
        """Return part → "ok" or the name of what went wrong."""
        checks: dict[str, Callable[[], object]] = {
            "database": _database,
            "store": services().blobs.driver.probe,
            "broker": _broker,
        }
        with self._lock:
            if time.monotonic() >= self._until:
                self._found = {name: _try(check) for name, check in checks.items()}
                self._until = time.monotonic() + STANDS
            return self._found


def _try(check: Callable[[], object]) -> str:
    try:
        check()
    except Exception as error:  # whatever it is, it is not ready; details stay here
        return type(error).__name__
    return "ok"


def _database() -> None:
    with services().database.reading() as session:
        session.execute(text("SELECT 1 FROM alembic_version"))


def _broker() -> None:
    waker = services().waker
    if waker is None:
        raise ConnectionError("ESPALIER_BROKER_URL is not set")
    waker.ping()
