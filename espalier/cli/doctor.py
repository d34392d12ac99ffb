"""``espalier doctor``: what this machine lacks, and what to do about it."""

import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psutil
import typer
from rich.markup import escape

import espalier
from espalier.cli.common import FAILED, JsonFlag, print_json, size_text, stdout, target
from espalier.client import Client
from espalier.errors import EspalierError
from espalier.settings import settings

_GB = 10**9
#: Seconds that two clocks may differ; leases go by the database's clock, sessions by the web's.
_CLOCK = 30.0
_MARKS = {"ok": "[green]ok  [/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}


@dataclass(frozen=True, slots=True)
class Finding:
    """``next`` is what to do when the status is not ok."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    next: str = ""


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(as_json: JsonFlag = False) -> None:
    """Check this machine and what it can reach; exit 1 when something fails."""
    found = []
    for check in _CHECKS:
        for finding in check():
            found.append(finding)
            if not as_json:
                _print(finding)
    good = all(finding.status != "fail" for finding in found)
    if as_json:
        print_json({"ok": good, "checks": [asdict(finding) for finding in found]})
    raise typer.Exit(0 if good else FAILED)


def _print(finding: Finding) -> None:
    console = stdout()
    console.print(f"{_MARKS[finding.status]} {finding.name:<10} {escape(finding.detail)}")
    if finding.next and finding.status != "ok":
        console.print(f"{'':<15} → {escape(finding.next)}")


def _python() -> Iterator[Finding]:
    text = f"{platform.python_version()} ({sys.executable})"
    good = sys.version_info >= (3, 11)
    yield Finding("python", "ok" if good else "fail", text, "Install Python 3.11 or newer.")


def _versions() -> Iterator[Finding]:
    parts = []
    for name in ("mlx", "mlx-lm", "celery", "flask"):
        try:
            parts.append(f"{name} {installed(name)}")
        except PackageNotFoundError:
            parts.append(f"{name} absent")
    absent = any("absent" in part for part in parts)
    text = ", ".join([f"espalier {espalier.__version__}", *parts])
    next_step = "For `espalier up` and workers: pip install 'espalier[all]'."
    yield Finding("versions", "warn" if absent else "ok", text, next_step)


def _compiler() -> Iterator[Finding]:
    if sys.platform != "linux":
        return
    found = shutil.which(os.environ.get("CXX", "g++"))
    next_step = "MLX compiles its CPU kernels: install g++ (apt-get install g++)."
    yield Finding("compiler", "ok" if found else "fail", found or "no g++ on the PATH", next_step)


def _mlx() -> Iterator[Finding]:
    code = (
        "import mlx.core as mx; a = mx.ones((8, 8)); mx.eval(a @ a);"
        " print(mx.default_device(), end='')"
    )
    try:
        # Away from this process: MLX may abort, and must never be imported beside Celery.
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        yield Finding("mlx", "fail", "a multiplication took 120 s", "Restart this machine.")
        return
    if done.returncode == 0:
        yield Finding("mlx", "ok", f"computes on {done.stdout}")
        return
    lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
    next_step = "A worker needs it: pip install 'espalier[worker]'."
    yield Finding("mlx", "warn" if "No module named 'mlx" in lines[-1] else "fail",
                  lines[-1], next_step)  # fmt: skip


def _disk() -> Iterator[Finding]:
    home = settings().home
    there = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(there).free
    status: Literal["ok", "warn", "fail"] = (
        "ok" if free >= 20 * _GB else "warn" if free >= 2 * _GB else "fail"
    )
    text = f"{size_text(free)} free for {home}"
    yield Finding("disk", status, text, "Models are large: free some, or set ESPALIER_DATA_DIR.")


def _memory() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    text = f"{size_text(memory.available)} free of {size_text(memory.total)}"
    status: Literal["ok", "warn"] = "ok" if memory.available >= 2 * _GB else "warn"
    yield Finding("memory", status, text, "End other programs before training.")


def _web() -> Iterator[Finding]:
    url, token = target()
    try:
        with Client(url, token, backoff=(), read_timeout=5.0) as client:
            asked = time.time()
            response = client.send("GET", "/readyz")
            yield Finding("web", "ok", f"{url} answers")
            if "date" in response.headers:
                yield _clock(response.headers["date"], (asked + time.time()) / 2)
            if token:
                who = client.get("/api/v1/whoami")
                yield Finding("token", "ok", f"signed in as {who['user']}")
            else:
                yield Finding("token", "warn", "none", f"Run `espalier login {url}`.")
    except EspalierError as error:
        hint = error.hint or "Start one with `espalier up`, or run `espalier login URL`."
        yield Finding("web", "warn", error.detail, hint)


def _clock(theirs: str, ours: float) -> Finding:
    difference = abs(parsedate_to_datetime(theirs).astimezone(UTC).timestamp() - ours)
    # The header has whole seconds.
    text = f"within {max(1, round(difference))} s of the server's"
    good = difference <= _CLOCK
    return Finding("clock", "ok" if good else "warn", text, "Let both machines set their clocks.")


def _services() -> Iterator[Finding]:
    """Database and broker, where this machine was told of them: those of a team's server."""
    config = settings()
    for name, url in (("database", config.database_url), ("broker", config.broker_url)):
        if url and (host := urlsplit(url).hostname):
            yield _reach(name, host, urlsplit(url).port or (5432 if name == "database" else 6379))
    store = config.store_url or ""
    if store.startswith("file://"):
        folder = Path(urlsplit(store).path)
        good = os.access(folder, os.W_OK)
        yield Finding("store", "ok" if good else "fail", str(folder), "Make it, and writable.")
    elif store.startswith("s3://") and config.s3_endpoint:
        at = urlsplit(config.s3_endpoint)
        port = at.port or (443 if at.scheme == "https" else 80)
        yield _reach("store", at.hostname or "", port)


def _reach(name: str, host: str, port: int) -> Finding:
    try:
        with socket.create_connection((host, port), timeout=5.0):
            return Finding(name, "ok", f"{host}:{port} answers")
    except OSError as error:
        next_step = f"Is it running, and is ESPALIER_{name.upper()}_URL right?"
        return Finding(name, "fail", f"{host}:{port}: {error}", next_step)


_CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python, _versions, _compiler, _mlx, _disk, _memory, _services, _web,
)  # fmt: skip
