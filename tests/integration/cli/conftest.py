"""A control plane that answers on a port, and a user of the command line who is signed in."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from typer.testing import CliRunner
from werkzeug.serving import make_server

from espalier.settings import settings
from tests.integration.web.site import Door, Site


class Terminal:
    """``espalier …`` in this process, as ada of the project team."""

    def __init__(self, site: Site, url: str) -> None:
        self.site = site
        self.url = url

    def run(self, *arguments: str, code: int = 0, stdin: str | None = None) -> Any:
        from espalier.cli.app import app

        result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)
        assert result.exit_code == code, f"{arguments}: {result.output}\n{result.exception!r}"
        return result

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code).stdout)

    def claim(self, worker: Door, boot: str) -> str:
        """Place the next job and let the worker claim it; return the attempt."""
        (ticket,) = self.site.tick()
        claim = worker.post(f"/attempts/{ticket.attempt_id}/claim", {"boot_id": boot})
        assert claim.status_code == 200
        return ticket.attempt_id


@pytest.fixture
def terminal(
    migrated_sqlite: Path, tmp_path: Path, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Terminal]:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(migrated_sqlite, home / "espalier.db")
    site = Site(f"sqlite:///{home / 'espalier.db'}", home, broker_url)
    server = make_server("127.0.0.1", 0, site.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("ESPALIER_URL", url)
    monkeypatch.setenv("ESPALIER_TOKEN", site.ada.token)
    monkeypatch.setenv("ESPALIER_DATA_DIR", str(home))
    monkeypatch.setattr(platformdirs, "user_config_path", lambda name: tmp_path / "config" / name)
    settings.cache_clear()
    yield Terminal(site, url)
    settings.cache_clear()
    server.shutdown()
    thread.join()
    server.server_close()
    site.close()
