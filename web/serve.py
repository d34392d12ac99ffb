"""``python -m web --port N --host H``: the app under gunicorn, one process and many threads.

A process with threads, as live pages hold a thread each and mostly wait; the database, the store
and hashing release the lock.
"""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from flask import Flask

#: Threads: every open live page takes one, and requests need theirs beside them.
THREADS = 64
#: Seconds that requests get to end at a stop; live pages come back by themselves.
GRACE = 3


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn with our settings; the app is made in the worker process, after the fork."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        super().__init__()

    def load_config(self) -> None:
        for key, value in self._options.items():
            if key in self.cfg.settings:  # the control socket is newer than the oldest gunicorn
                self.cfg.set(key, value)

    def load(self) -> Flask:
        from web import create_app
        from web.beat import Beat
        from web.services import Services

        app = create_app()
        found: Services = app.extensions["espalier"]
        beat = Beat(found.database, found.settings.lease_seconds)
        beat.start()
        found.prefetcher.start()

        def end(_server: Any, _worker: Any) -> None:
            beat.stop()
            found.prefetcher.stop()

        self.cfg.set("worker_exit", end)
        return app


def main() -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m web", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--fd", type=int, help="a listening socket, instead of host and port")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--access-log", action="store_true", help="log every request")
    arguments = parser.parse_args()
    listen = f"{arguments.host}:{arguments.port}"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    Server(
        {
            "bind": listen if arguments.fd is None else f"fd://{arguments.fd}",
            "worker_class": "gthread",
            "workers": arguments.workers,
            "threads": arguments.threads,
            "graceful_timeout": GRACE,
            "timeout": 120,
            "keepalive": 15,
            "accesslog": "-" if arguments.access_log else None,
            # Query strings carry login links: only the path is logged.
            "access_log_format": '%(h)s "%(m)s %(U)s" %(s)s %(b)s %(M)sms',
            "control_socket_disable": True,
        }
    ).run()


if __name__ == "__main__":
    main()
