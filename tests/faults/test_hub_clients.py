"""The hub's clients with a large file: 300 MB by every version, with Xet and without."""

from pathlib import Path

import pytest

from tests.acceptance import test_hub_clients
from tests.acceptance.hub_server import client, serving


@pytest.mark.fault
@pytest.mark.parametrize("xet", [True, False], ids=["xet", "plain"])
@pytest.mark.parametrize("version", ["newest", "oldest"])
def test_300_mb_go_up_and_down_and_changed_up_again(
    tmp_path: Path, version: str, xet: bool
) -> None:
    with (
        serving(tmp_path) as server,
        client(server, tmp_path / "hf", version, xet, HUB_LARGE_BYTES="300000000") as one,
    ):
        name = test_hub_clients.test_a_large_file_is_uploaded_and_a_changed_one_again.__name__
        one.run(test_hub_clients.__name__, name)
