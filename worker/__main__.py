"""``python -m worker``: run a worker for ``ESPALIER_URL`` with the token ``ESPALIER_TOKEN``."""

import argparse
import logging
import os
import sys
from pathlib import Path

from espalier.errors import EspalierError
from espalier.settings import settings
from worker.service import Service


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("--slots", type=_positive, default=1, help="jobs at the same time")
    parser.add_argument("--state-dir", type=Path, help="default: worker-NAME in the data directory")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    for name in ("httpx", "celery.worker.strategy", "celery.app.trace", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)
    state_dir = arguments.state_dir
    try:
        return Service(
            settings(),
            slots=arguments.slots,
            state_dir=state_dir.expanduser().resolve() if state_dir else None,
        ).run()
    except EspalierError as error:
        print(f"espalier worker: {error.detail}", error.hint or "", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # A download that was left to itself would hold up an ordinary exit until it is done.
    os._exit(status)
