"""Real processes: ending the right group, and no other."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from worker.child import environment
from worker.groups import end_group, end_remembered, group_usage, remember, signal_group
from worker.stacks import ASK, ask, sample
from worker.watchdog import Usage

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
    used = group_usage(process.pid)
    assert 50_000_000 < used.memory < 500_000_000
    assert group_usage(os.getpid()).memory > used.memory  # it is our child
    process.kill()
    process.wait()
    assert group_usage(process.pid) == Usage(0)


def test_pages_of_files_are_not_held(spawn: Spawn, tmp_path: Path) -> None:
    """They come back whenever the system wants them; a mapped model is no reason to end a job."""
    (tmp_path / "model").write_bytes(b"x" * 100_000_000)
    process = spawn(
        f"import mmap; f = open({str(tmp_path / 'model')!r}, 'rb');"
        "m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ);"
        "print(sum(m[i] for i in range(0, len(m), 4096)) and 1, flush=True);" + SLEEP
    )
    assert process.stdout is not None
    process.stdout.read(1)
    assert group_usage(process.pid).memory < 100_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_group_did_is_counted_with_its_ended_helpers(spawn: Spawn, tmp_path: Path) -> None:
    burn = "import time; t = time.process_time()\nwhile time.process_time() < t + 0.5: pass\n"
    write = (
        f"import os; f = open({str(tmp_path / 'out')!r}, 'wb'); f.write(b'x' * 5_000_000);"
        "f.flush(); os.fsync(f.fileno())\n"
    )
    process = spawn(
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])\n"
        f"{write}print(1, flush=True)\n{SLEEP}"
    )
    assert process.stdout is not None
    process.stdout.read(1)
    used = group_usage(process.pid)
    assert used.cpu_seconds >= 0.5
    assert used.io_bytes >= 5_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stopped_process_is_sampled_and_not_asked(spawn: Spawn, tmp_path: Path) -> None:
    process = spawn("import threading; print(1, flush=True); threading.Event().wait(600)")
    assert process.stdout is not None
    process.stdout.read(1)
    assert not ask(process.pid, listens=True), "the signal would end it: it catches none"
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    text = sample([process.pid], tmp_path)
    assert f"process {process.pid} (" in text
    assert "T (stopped)" in text
    assert "threading.Event" in text, "its command line"
    assert process.poll() is None
    assert "gone" in sample([999_999_999], tmp_path)


def test_a_process_that_listens_writes_its_python_stacks(spawn: Spawn) -> None:
    process = spawn(
        "import faulthandler, signal, sys;"
        f"faulthandler.register({int(ASK)}, file=sys.stdout);"
        "\ndef waits():\n import time; print('ready', flush=True); time.sleep(600)\nwaits()"
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert ask(process.pid, listens=True)
    assert b"most recent call first" in process.stdout.readline()
    assert b"in waits" in process.stdout.readline()


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
