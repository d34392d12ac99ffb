"""Many seeds, in several processes, each with a database of its own."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.simulation.databases import Bench, postgres_server
from tests.simulation.simulation import Outcome, configured, simulate

#: Where there is memory to be a disk.
SHM = Path("/dev/shm")  # Linux's; elsewhere the temporary directory


@contextmanager
def bench(database: str) -> Iterator[Bench]:
    """A bench of its own for this process, and nothing left of it afterwards."""
    with ExitStack() as stack:
        stack.enter_context(configured())
        place = SHM if database == "sqlite" and SHM.is_dir() else None
        folder = TemporaryDirectory(prefix="espalier-", dir=place, ignore_cleanup_errors=True)
        directory = Path(stack.enter_context(folder))
        url = f"sqlite:///{directory / 'simulation.db'}"
        if database == "postgresql":
            from tests.conftest import create_database, forget_durability

            server = os.environ.get("ESPALIER_TEST_DATABASE_URL")
            if not server:
                server = stack.enter_context(postgres_server(directory))
                forget_durability(server)
            url = create_database(server.replace("postgresql://", "postgresql+psycopg://", 1))
        made = Bench(url)
        stack.callback(made.close)
        yield made


def _share(database: str, seeds: range, results: "multiprocessing.Queue[Outcome | None]") -> None:
    # Told to end, it still ends its database.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with bench(database) as made:
        for seed in seeds:
            results.put(simulate(seed, made))
    results.put(None)


def run(database: str, seeds: range, jobs: int) -> Iterator[Outcome]:
    """Yield the seeds' outcomes as they come, from so many processes."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[Outcome | None] = context.Queue()
    workers = [
        context.Process(target=_share, args=(database, seeds[n::jobs], results))
        for n in range(jobs)
    ]
    for worker in workers:
        worker.start()
    running = jobs
    try:
        while running:
            outcome = results.get(timeout=600)
            if outcome is None:
                running -= 1
            else:
                yield outcome
    finally:
        for worker in workers:
            if running:
                worker.terminate()
            worker.join()
