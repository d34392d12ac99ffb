"""huggingface_hub in a process of its own: its version and its settings are read when it starts.

A test that ``in_client`` decorates is written here and runs there: the client's process imports
the test's module, makes a `Hub` for it and calls it. What it raises fails the test.
"""

import hashlib
import importlib
import io
import json
import os
import sys
import tempfile
import traceback
import urllib.request
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from huggingface_hub import HfApi, HfFileSystem

Body = Callable[["Hub"], None]


def in_client(body: Body) -> Callable[[Any], None]:
    """Make the test's body run in each client's process."""

    def test(client: Any) -> None:
        client.run(body.__module__, body.__name__)

    test.__name__, test.__doc__, test.__module__ = body.__name__, body.__doc__, body.__module__
    test.body = body  # type: ignore[attr-defined]
    return test


@dataclass
class Hub:
    """What a test in the client's process works with."""

    url: str
    token: str
    stranger_token: str
    label: str  # of this client, for names of repositories
    folder: Path  # empty, the test's own
    api: "HfApi" = field(init=False)
    stranger: "HfApi" = field(init=False)
    fs: "HfFileSystem" = field(init=False)

    def __post_init__(self) -> None:
        from huggingface_hub import HfApi, HfFileSystem

        self.api = HfApi(endpoint=self.url, token=self.token)
        self.stranger = HfApi(endpoint=self.url, token=self.stranger_token)
        self.fs = HfFileSystem(endpoint=self.url, token=self.token, skip_instance_cache=True)

    def new(self, name: str, **options: Any) -> str:
        """Create a repository of this client's own; return its name."""
        repo = f"team/{name}-{self.label}"
        self.api.create_repo(repo, **options)
        return repo

    def write(self, files: dict[str, bytes]) -> Path:
        """Write files into a new folder; return that."""
        root = Path(tempfile.mkdtemp(dir=self.folder))
        for path, data in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
        return root

    def received(self) -> int:
        """The bytes of bodies that the server was sent until now, by anybody."""
        with urllib.request.urlopen(f"{self.url}/bytes-received") as answer:
            return int(answer.read())

    def hf(self, *arguments: str) -> str:
        """Run the `hf` command of this version, in this process; return what it printed."""
        from huggingface_hub.cli.hf import main as command

        printed, before, code = io.StringIO(), sys.argv, None
        sys.argv = ["hf", *arguments]
        try:
            with redirect_stdout(printed):
                command()
        except SystemExit as end:
            code = end.code
        finally:
            sys.argv = before
        assert not code, f"hf {arguments}: {code}\n{printed.getvalue()}"
        return printed.getvalue()


def read(folder: str | Path) -> dict[str, bytes]:
    """Return a folder's files; what the client keeps beside them is left out."""
    root = Path(folder)
    files = (p for p in root.rglob("*") if p.is_file() and ".cache" not in p.parts)
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    """Run the tests that are named on standard input, each answered by a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    known = {key: os.environ[f"HUB_{key.upper()}"] for key in ("url", "token", "stranger_token")}
    for line in sys.stdin:
        module, name = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            try:
                hub = Hub(**known, label=os.environ["HUB_LABEL"], folder=Path(folder))
                getattr(importlib.import_module(module), name).body(hub)
                failure = None
            except BaseException:  # the test's, whatever it is
                failure = traceback.format_exc()
        answers.write(json.dumps(failure) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
