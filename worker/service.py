"""The worker process: says hello, consumes its own queue, ends cleanly."""

import fcntl
import hashlib
import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from celery import signals
from celery.exceptions import SecurityWarning
from celery.worker import state as celery_state

from espalier.client import Client
from espalier.errors import Conflict, EspalierError, Forbidden, Unauthorized
from espalier.ids import new_id
from espalier.messages import Heartbeat, Held, Hello, Machine, Welcome
from espalier.queue import make_app
from espalier.refs import check_name
from espalier.settings import Settings
from espalier.transfer import Transfer
from worker.cache import TRUSTED, BlobCache
from worker.control import PREFIX, Control, patiently
from worker.disk import sync, sync_path, write_whole
from worker.holdings import Holdings
from worker.idle import Idle, Limits
from worker.inputs import Inputs
from worker.ledger import Ledger
from worker.machine import describe
from worker.runner import Runner
from worker.salvage import leftovers
from worker.sharing import Sharing
from worker.stop import Why
from worker.tasks import register
from worker.tools import Tools

log = logging.getLogger("worker")

#: Seconds for an answer of the control plane; a lease is many times longer.
READ_TIMEOUT = 30.0
#: Seconds before a second and a third try inside the client; all longer patience is the
#: attempt's, which hears of orders while it waits.
BACKOFF = (0.2, 0.5)
#: Seconds beyond the child's own grace in which a stopping worker tries to publish and finish.
STOP_SECONDS = 5.0
#: Seconds from the end of all grace to the end of this process.
KILL_SECONDS = 3.0
#: Seconds for which a refused hello is tried again: a machine that has this worker's name, and has
#: just ended for good, counts as there for a while.
REFUSED_SECONDS = 30.0
#: Names this token's state directory, beside its lock.
_DIRECTORY = "directory"
#: Heartbeats between two looks at disk and battery.
_MACHINE_EVERY = 12
#: Heartbeats between two tellings of all that lies in the cache.
_WHOLE_EVERY = 720


class Service:
    """One worker process, from hello to the end."""

    def __init__(
        self,
        settings: Settings,
        *,
        slots: int = 1,
        state_dir: Path | None = None,
        engine: str = "worker.engine",
    ) -> None:
        self._settings = settings
        self._slots = slots
        self._state_dir = state_dir
        self._engine = engine
        self._ended = threading.Event()
        token = settings.token.get_secret_value() if settings.token else ""
        self._identity = hashlib.sha256(token.encode()).hexdigest()[:16]
        self._client = Client(settings.url, token, backoff=BACKOFF, read_timeout=READ_TIMEOUT)
        self._control = Control(self._client, new_id())
        self._transfer = Transfer(self._client, PREFIX, sync=sync, mode=TRUSTED)
        self._cache = BlobCache(
            settings.home / "cache" / "blobs",
            settings.cache_bytes,
            self._transfer,
            settings.disk_reserve_bytes,
        )
        self._holdings = Holdings(self._cache)
        self._sharing: Sharing | None = None
        self._runner: Runner | None = None
        self._idle: Idle | None = None
        self._terms = 0
        self._status = 0

    def run(self) -> int:
        """Serve until told to end; return the process's exit status."""
        home = self._settings.home
        here = home / "workers-here" / self._identity
        # Before hello: a second process of one worker would have the first one's jobs taken away.
        with ExitStack() as locks:
            locks.enter_context(_alone(here))
            known = self._state_dir or _remembered(here)
            if known:
                locks.enter_context(_alone(known))
            left = leftovers(known / "attempts") if known else []
            machine = self._describe()
            self._share(locks)
            welcome = self._hello(machine, left)
            log.info("this is worker %s (%s)", welcome.name, welcome.worker_id)
            directory = known or home / f"worker-{check_name(welcome.name)}"
            if not known:
                locks.enter_context(_alone(directory))
                write_whole(here / _DIRECTORY, str(directory).encode())
            return self._serve(welcome, machine, directory, left)

    def _serve(
        self, welcome: Welcome, machine: Machine, directory: Path, left: list[Ledger]
    ) -> int:
        attempts = directory / "attempts"
        attempts.mkdir(exist_ok=True)
        self._idle = self._children(directory / "idle", machine)
        self._idle.start()
        self._runner = Runner(self._tools(welcome, machine), attempts, self.drain)
        for ledger in left:
            if ledger.attempt_id in welcome.inherited:
                ledger.inherit(self._control.boot_id)
                self._runner.salvage(ledger)
            else:
                log.info("attempt %s is not this worker's any more", ledger.attempt_id)
                ledger.remove()
        return self._consume(welcome, self._runner)

    def drain(self) -> None:
        """Take no more tickets; end when the running attempts have."""
        log.info("draining: no more jobs are taken")
        celery_state.should_stop = 0

    def stop(self) -> None:
        """Let children write a checkpoint and end; their jobs go on elsewhere."""
        log.info("stopping")
        grace = self._settings.cancel_grace_seconds + STOP_SECONDS
        if self._idle:
            self._idle.close()
        if self._runner:
            self._runner.stop(Why.WORKER_STOPPED, grace)
        celery_state.should_stop = 0
        self._exit_after(grace + KILL_SECONDS)

    def kill(self) -> None:
        """End all children at once, and this process whatever it still does."""
        log.warning("stopping at once")
        if self._runner:
            self._runner.stop(Why.KILLED)
        self._exit_after(KILL_SECONDS)

    def _exit_after(self, seconds: float) -> None:
        """End this process if it has not ended by then; a frozen control plane holds threads up."""
        if not self._ended.wait(seconds):
            log.warning("not ended in %.0f s: leaving all the same", seconds)
            os._exit(1)

    def _share(self, locks: ExitStack) -> None:
        """Serve the cache to siblings, where the owner wants it; a worker works without."""
        if not self._settings.share_blobs:
            return
        try:
            self._sharing = Sharing(self._cache, self._settings.share_blobs)
        except (EspalierError, OSError) as error:
            log.error("blobs are not shared: %s: %s", self._settings.share_blobs, error)
            return
        self._sharing.start()
        locks.callback(self._sharing.close)
        log.info("blobs are shared at %s", self._sharing.url)

    def _describe(self) -> Machine:
        return describe(self._settings.home, self._settings.memory_limit_bytes)

    def _hello(self, machine: Machine, left: list[Ledger]) -> Welcome:
        boot_id = self._control.boot_id
        hello = Hello(
            boot_id=boot_id,
            machine=machine,
            slots=self._slots,
            installation=installation(self._settings.home),
            held=tuple(
                Held(attempt_id=ledger.attempt_id, boot_id=boot)
                for ledger in left
                for boot in ledger.ask(boot_id)
            ),
            blobs=self._holdings.whole(),
            shares_url=self._sharing.url if self._sharing else None,
            shares_key=self._sharing.key if self._sharing else None,
        )
        until = time.monotonic() + REFUSED_SECONDS
        while True:
            try:
                welcome = patiently(lambda: self._control.hello(hello), "Hello", time.sleep)
            except Conflict as error:  # another machine has this name, or had it a moment ago
                if time.monotonic() > until:
                    raise
                log.warning("not welcome yet: %s", error.detail)
                time.sleep(REFUSED_SECONDS / 10)
            else:
                self._holdings.heard()
                return welcome

    def _tools(self, welcome: Welcome, machine: Machine) -> Tools:
        hub = self._settings.home / "cache" / "hub"
        token = self._settings.token.get_secret_value() if self._settings.token else ""
        return Tools(
            control=self._control,
            transfer=self._transfer,
            inputs=Inputs(self._cache, hub, self._settings.url, token),
            memory_limit=machine.memory_limit,
            cancel_grace_seconds=self._settings.cancel_grace_seconds,
            engine=self._engine,
            hang_first_seconds=self._settings.hang_first_seconds,
            hang_floor_seconds=self._settings.hang_floor_seconds,
            idle=self._idle,
        )

    def _children(self, directory: Path, machine: Machine) -> Idle:
        config = self._settings
        limits = Limits(
            self._slots,
            config.warm_engine,
            config.keep_base_seconds,
            config.keep_base_bytes or machine.memory_limit // 2,
        )
        return Idle(directory, limits, self._engine)

    def _consume(self, welcome: Welcome, runner: Runner) -> int:
        """Run Celery's worker in this thread until it is told to stop."""
        app = make_app(welcome.broker_url, welcome.worker_id)
        register(app, runner)
        warnings.filterwarnings("ignore", category=SecurityWarning)  # of pickle: here is only JSON
        # Celery would set up logging and signal handlers of its own; ours come last.
        signals.setup_logging.connect(_leave_logging, weak=False)
        signals.worker_ready.connect(self._on_ready, weak=False)
        beat = threading.Thread(
            target=self._beat, args=(runner, welcome.report_seconds), name="heartbeat", daemon=True
        )
        beat.start()
        worker = app.Worker(
            hostname=f"espalier@{welcome.name}",
            pool="threads",
            # One more than jobs: Celery looks for tickets only while a thread is free, and up to
            # a second late. The scheduler fills slots; a thread more takes what it sends meanwhile.
            concurrency=self._slots + 1,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
        )
        try:
            worker.start()
            runner.join()
        finally:
            if self._idle:
                self._idle.close()
            self._ended.set()
            self._client.close()
        return self._status or worker.exitcode or 0

    def _on_ready(self, **_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        log.info("ready")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._terms += 1
        # A handler interrupts the main thread anywhere, perhaps while it holds a lock.
        work = self.stop if self._terms == 1 else self.kill
        threading.Thread(target=work, name="stop", daemon=True).start()

    def _beat(self, runner: Runner, seconds: float) -> None:
        """Send heartbeats while idle; reports are the heartbeats of a busy worker.

        A busy one sends them too when something in its cache has changed.
        """
        count = 0
        while not self._ended.wait(seconds):
            if runner.running() and not self._holdings.has_changed():
                continue
            count += 1
            machine = None if count % _MACHINE_EVERY else self._describe()
            beat = Heartbeat(
                boot_id=self._control.boot_id, machine=machine, running=runner.running()
            )
            if (whole := count % _WHOLE_EVERY == 0) or self._holdings.has_changed():
                beat = self._holdings.tell(beat, whole=whole)
            try:
                orders = self._control.heartbeat(beat)
                self._holdings.heard()
            except (Unauthorized, Forbidden, Conflict) as error:
                log.error("this worker is not welcome any more: %s", error.detail)
                self._status = 1
                self.stop()
                return
            except EspalierError as error:
                log.warning("heartbeat: %s", error.detail)
                continue
            seconds = orders.report_seconds
            runner.obey(orders)


def _leave_logging(**_: object) -> None:
    """Connected to setup_logging: its presence keeps Celery from configuring any."""


def installation(home: Path) -> str:
    """Return what tells this data directory from another machine's: made once, kept in it.

    A copy of the directory has the same; the control plane tells the two by their hosts' names.
    """
    path = home / "installation"
    home.mkdir(parents=True, exist_ok=True)
    fresh = home / f".installation-{new_id()}"
    if not path.exists():
        fresh.write_text(f"{new_id()}{new_id()}", encoding="ascii")
        sync_path(fresh)
        # Several workers may start at once: one makes it, and whole.
        try:
            path.hardlink_to(fresh)
        except FileExistsError:
            pass
        except OSError:  # a volume without links
            fresh.replace(path)
        fresh.unlink(missing_ok=True)
    return path.read_text(encoding="ascii")


def _remembered(here: Path) -> Path | None:
    """Return the directory that this token's worker had, which has to be known before hello."""
    try:
        return Path((here / _DIRECTORY).read_text(encoding="utf-8"))
    except OSError:
        return None


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold ``directory`` for this process: two in one would end each other's children."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"Another worker process uses {directory}.",
                hint="End it first, or give this one another --state-dir.",
            ) from None
        yield
