"""Work on many files, or many pieces of one, at the same time; the first error ends it all."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

#: Requests for bytes under way at the same time: enough to fill a LAN, few enough for a small
#: server.
PARALLEL = 4

#: Called with bytes moved since the last call, from several threads, negative when bytes have to
#: travel again. What it raises stops the transfer.
Progress = Callable[[int], None]


def silent(moved: int) -> None:
    """Take note of nothing."""
    del moved


class _Ended(Exception):
    """Another thread of the same work has failed."""


def each(
    work: Callable[[Any, Progress], None],
    items: Iterable[Any],
    progress: Progress = silent,
    at_once: int = PARALLEL,
) -> None:
    """Call ``work`` with each item, some at a time, and a progress that is to be called meanwhile.

    The first error, or a Ctrl-C, ends it: from then on that progress raises in all threads.
    """
    items = list(items)
    if len(items) == 1:
        work(items[0], progress)
        return
    ended = threading.Event()

    def moved(count: int) -> None:
        progress(count)  # first: these bytes have moved
        if ended.is_set():
            raise _Ended

    pool = ThreadPoolExecutor(at_once, thread_name_prefix="transfer")
    try:
        futures = [pool.submit(work, item, moved) for item in items]
        if wait(futures, return_when=FIRST_EXCEPTION).not_done:
            ended.set()
    except BaseException:
        ended.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    errors = [error for f in futures if not f.cancelled() and (error := f.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, _Ended)):
        raise error
