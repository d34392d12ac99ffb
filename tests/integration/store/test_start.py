"""A stack whose store cannot be used says so before it starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.integration.store.servers import SECRET_KEY, Server, moto_s3


def init(tmp_path: Path, store: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ESPALIER_DATA_DIR": str(tmp_path / "data"), **store}
    return subprocess.run(
        [sys.executable, "-m", "scheduler", "init"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_store_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    done = init(tmp_path, Server("http://127.0.0.1:1", "models").environment)
    assert done.returncode == 1
    assert done.stderr.startswith("http://127.0.0.1:1, bucket models: Could not connect")
    assert "ESPALIER_S3_ENDPOINT" in done.stderr
    assert SECRET_KEY not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bucket_is_made_where_there_is_none(tmp_path: Path) -> None:
    with moto_s3() as server:
        done = init(tmp_path, server.environment)
        assert done.returncode == 0, done.stderr
        (limit,) = json.loads(done.stdout)["limits"]
        assert "bucket models-" in limit
        assert "x-amz-checksum-sha256" in limit
        assert init(tmp_path, server.environment).returncode == 0
