"""A large upload, killed -9 on either side at five points: it goes on, and repeats no part.

Two GiB, or ``ESPALIER_TEST_UPLOAD_MIB``. Sent by ``espalier model push``, no byte of a part that
the server has finished travels twice. A hub client cannot be told to leave a part out: it begins
to send each, and the server answers at once for those that it has; what that costs is printed.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.uploads import MIB, Relay, hub, interrupted, model, push

SIZE = int(os.environ.get("ESPALIER_TEST_UPLOAD_MIB", "2048")) * MIB
SETTINGS = {"ESPALIER_PART_BYTES": str(max(5 * MIB, SIZE // 32))}
#: Shares of the whole that have been sent when one side is killed.
POINTS = (0.15, 0.35, 0.5, 0.7, 0.9)

HUB_CLIENT = """
import sys
from huggingface_hub import HfApi
folder, endpoint, token = sys.argv[1:]
api = HfApi(endpoint=endpoint, token=token)
api.create_repo("team/big", exist_ok=True)
api.upload_folder(repo_id="team/big", folder_path=folder)
"""


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_native_upload(tmp_path: Path, side: str) -> None:
    folder = model(tmp_path / "big", SIZE)
    with hub(tmp_path / "hub", SETTINGS) as stack, Relay(stack.port) as relay:
        walk = interrupted(stack, relay, side, lambda: push(stack, relay, folder), POINTS, SIZE)
        assert len(walk.repeated) == len(POINTS) + 1
        assert walk.spared > SIZE // 2, "hardly a part was kept over five kills"
        assert walk.repeated == [0] * (len(POINTS) + 1)
        stack.check(folder)


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_hub_client_s_upload(tmp_path: Path, side: str) -> None:
    folder = model(tmp_path / "big", SIZE)
    with hub(tmp_path / "hub", SETTINGS) as stack, Relay(stack.port) as relay:

        def start() -> subprocess.Popen[bytes]:
            arguments = (sys.executable, "-c", HUB_CLIENT, str(folder), relay.url, stack.token)
            return stack.client(relay.url, *arguments, HF_HUB_DISABLE_XET="1")

        walk = interrupted(stack, relay, side, start, POINTS, SIZE)
        assert walk.spared > SIZE // 2, "hardly a part was kept over five kills"
        last = walk.repeated[-1]
        print(f"LFS, {side} killed: {last / MIB:.1f} MiB of {walk.spared / MIB:.0f} begun again")
        assert last < walk.spared
        stack.check(folder)
