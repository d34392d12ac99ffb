"""Real S3 servers for tests: ``rclone serve s3`` on a real disk, and moto's server."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from espalier.ids import new_id
from espalier.settings import Settings

ACCESS_KEY, SECRET_KEY = "espalier-test", "a-secret-for-tests-only"


@dataclass(frozen=True)
class Server:
    """A running S3 server; the bucket does not exist yet."""

    endpoint: str
    bucket: str

    @property
    def environment(self) -> dict[str, str]:
        """What ``espalier up`` needs in its environment to keep its blobs here."""
        return {
            "ESPALIER_STORE_URL": f"s3://{self.bucket}/espalier",
            "ESPALIER_S3_ENDPOINT": self.endpoint,
            "ESPALIER_S3_ACCESS_KEY": ACCESS_KEY,
            "ESPALIER_S3_SECRET_KEY": SECRET_KEY,
        }

    def settings(self, **others: Any) -> Settings:
        given: dict[str, Any] = {
            "store_url": f"s3://{self.bucket}/espalier",
            "s3_endpoint": self.endpoint,
            "s3_access_key": SecretStr(ACCESS_KEY),
            "s3_secret_key": SecretStr(SECRET_KEY),
        }
        return Settings(**given | others)


@contextmanager
def rclone_s3(root: Path, bucket: str = "models") -> Iterator[Server]:
    """Serve ``root`` by rclone on a free port; objects are files below ``root/bucket``."""
    root.mkdir(parents=True, exist_ok=True)
    rclone = Path(sys.executable).parent / "rclone"
    process = subprocess.Popen(
        [
            rclone,
            "serve",
            "s3",
            "--addr",
            "127.0.0.1:0",
            "--config",
            "",
            "--log-level",
            "NOTICE",
            root,
        ],
        env={**os.environ, "RCLONE_AUTH_KEY": f'"{ACCESS_KEY},{SECRET_KEY}"'},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr
        for line in process.stderr:
            found = re.search(r"Starting s3 server on \[(http://[^]/]+)", line)
            if found:
                yield Server(found[1], bucket)
                return
        raise AssertionError(f"rclone ended with status {process.wait()} and served nothing")
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def moto_s3() -> Iterator[Server]:
    """Serve S3 from memory by moto, in this process, on a free port."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield Server(f"http://{host}:{port}", f"models-{new_id()}")
    finally:
        server.stop()
