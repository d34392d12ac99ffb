"""Real processes: ending the right group, and no other."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from worker.child import environment
from worker.groups import end_group, end_remembered, group_memory, remember, signal_group

SLEEP = "import time; time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1); "
Spawn = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    spawned: list[subprocess.Popen[bytes]] = []

    def spawn(code: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE
        )
        spawned.append(process)
        return process

    yield spawn
    for process in spawned:
        signal_group(process.pid, 9)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_group_that_ignores_term_is_killed(spawn: Spawn) -> None:
    process = spawn(STUBBORN + SLEEP)
    assert process.stdout is not None
    process.stdout.read(1)
    end_group(process.pid)
    assert process.wait(5) == -9


def test_a_group_that_obeys_term_is_not_killed(spawn: Spawn) -> None:
    process = spawn(SLEEP)
    end_group(process.pid)
    assert process.wait(5) == -15


def test_a_remembered_group_is_ended(spawn: Spawn, tmp_path: Path) -> None:
    process = spawn(SLEEP)
    remember(tmp_path / "group", process.pid)
    assert end_remembered(tmp_path / "group")
    assert process.wait(5) == -15
    assert not end_remembered(tmp_path / "group")


@pytest.mark.parametrize("change", [{"created": 1.0}, {"cmdline": ["something", "else"]}])
def test_a_process_that_took_the_id_is_left_alone(
    spawn: Spawn, tmp_path: Path, change: dict[str, object]
) -> None:
    process = spawn(SLEEP)
    path = tmp_path / "group"
    remember(path, process.pid)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert not end_remembered(path)
    assert process.poll() is None


def test_helpers_without_their_leader_are_ended(spawn: Spawn, tmp_path: Path) -> None:
    leader = spawn(
        "import subprocess, sys;"
        f"p = subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); print(p.pid, flush=True);"
        "sys.stdin.read(); " + SLEEP
    )
    assert leader.stdout is not None
    helper = psutil.Process(int(leader.stdout.readline()))
    remember(tmp_path / "group", leader.pid)
    leader.kill()
    leader.wait()
    assert end_remembered(tmp_path / "group")
    until = time.monotonic() + 60
    while helper.is_running() and helper.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"pid": 1, "created": 0, "cmdline": []}', '{"pid": -1}']
)
def test_a_damaged_note_ends_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "group").write_text(text)
    assert not end_remembered(tmp_path / "group")
    assert not end_remembered(tmp_path / "absent")


def test_memory_of_a_group_includes_its_helpers(spawn: Spawn) -> None:
    process = spawn("x = bytearray(50_000_000); print(1, flush=True); " + SLEEP)
    assert process.stdout is not None
    process.stdout.read(1)
    assert 50_000_000 < group_memory(process.pid) < 500_000_000
    assert group_memory(os.getpid()) > group_memory(process.pid)  # it is our child
    process.kill()
    process.wait()
    assert group_memory(process.pid) == 0


def test_a_child_inherits_what_it_needs_and_no_secret() -> None:
    got = environment(
        {
            "PATH": "/bin",
            "LC_ALL": "C",
            "MLX_METAL_FAST_SYNCH": "1",
            "ESPALIER_TOKEN": "secret",
            "HF_TOKEN": "secret",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "MY_COMPANY_PASSWORD": "secret",
        }
    )
    assert got["PATH"] == "/bin"
    assert {"LC_ALL", "MLX_METAL_FAST_SYNCH"} <= got.keys()
    assert "secret" not in got.values()
