"""The supervisor with real processes: what ends is started again, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from espalier import supervise
from espalier.errors import Conflict, EspalierError
from espalier.processes import end, identity, is_alive
from espalier.supervise import Role, Supervisor

SLEEP = "import time; time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + (
    "print('deaf', flush=True); " + SLEEP
)
PARENT = (
    "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]],"
    " start_new_session=True); print(p.pid, flush=True); p.wait()"
)
KEEPER = """
import sys
from pathlib import Path
from espalier.supervise import Role, Supervisor
directory = Path(sys.argv[1])
with Supervisor(directory / "run", directory / "logs", print) as supervisor:
    for name in ("first", "second"):
        supervisor.start(Role(name, (sys.executable, "-c", sys.argv[2]), {}, grace=0.5))
    print(*supervisor.pids().values(), flush=True)
    sys.stdin.read()
"""


def _until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def _role(name: str, code: str, *more: str, grace: float = 5.0) -> Role:
    return Role(name, (sys.executable, "-c", code, *more), {}, grace)


def _supervisor(directory: Path, said: list[str] | None = None) -> Supervisor:
    notify = said.append if said is not None else print
    return Supervisor(directory / "run", directory / "logs", notify)


def test_stopping_leaves_nothing_behind(tmp_path: Path) -> None:
    with _supervisor(tmp_path) as supervisor:
        supervisor.start(_role("parent", PARENT, SLEEP, grace=0.3))
        log = supervisor.log_of("parent")
        _until(lambda: log.read_text().endswith("\n"))
        pids = [*supervisor.pids().values(), int(log.read_text())]
        assert all(map(_runs, pids))
    assert not any(map(_runs, pids))


def test_a_process_deaf_to_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    with _supervisor(tmp_path) as supervisor:
        supervisor.start(_role("deaf", STUBBORN, grace=0.3))
        _until(lambda: "deaf" in supervisor.log_of("deaf").read_text())
        pid = supervisor.pids()["deaf"]
        began = time.monotonic()
    assert not _runs(pid)
    assert time.monotonic() - began >= 0.3


def test_what_ends_is_started_again(tmp_path: Path) -> None:
    said: list[str] = []
    with _supervisor(tmp_path, said) as supervisor:
        supervisor.start(_role("worker-1", SLEEP))
        before = supervisor.pids()["worker-1"]
        os.kill(before, signal.SIGKILL)
        _until(lambda: supervisor.pids()["worker-1"] != before)
        assert _runs(supervisor.pids()["worker-1"])
    assert said[0].startswith("worker-1 ended (signal 9); again in 0.5 s")


def test_what_was_steady_comes_back_soon_however_often_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "STEADY", 0.0)  # at once
    said: list[str] = []
    with _supervisor(tmp_path, said) as supervisor:
        supervisor.start(_role("worker-1", SLEEP))
        for _ in range(3):
            before = supervisor.pids()["worker-1"]
            os.kill(before, signal.SIGKILL)
            _until(lambda before=before: supervisor.pids()["worker-1"] != before)
    assert [line.partition(". Its log")[0] for line in said] == [
        "worker-1 ended (signal 9); again in 0.5 s"
    ] * 3


def test_what_does_not_stay_up_is_tried_later_each_time(tmp_path: Path) -> None:
    said: list[str] = []
    with _supervisor(tmp_path, said) as supervisor:
        supervisor.start(_role("web", "raise SystemExit('no')"))
        _until(lambda: len(said) == 3)
    assert [line.partition("again in ")[2].split()[0] for line in said] == ["0.5", "1", "2"]


def test_what_never_stays_up_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    with _supervisor(tmp_path, []) as supervisor:
        supervisor.start(_role("web", "raise SystemExit('the port is taken')"))

        def failed() -> bool:
            try:
                supervisor.check("web", limit=2)
            except EspalierError as error:
                return "the port is taken" in error.detail
            return False

        _until(failed)


def test_two_supervisors_do_not_share_a_directory(tmp_path: Path) -> None:
    with _supervisor(tmp_path), pytest.raises(Conflict) as refused, _supervisor(tmp_path):
        pass
    assert str(os.getpid()) in refused.value.detail
    with _supervisor(tmp_path):
        pass


def _keeper(directory: Path, code: str) -> tuple[subprocess.Popen[str], list[int]]:
    keeper = subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(directory), code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert keeper.stdout is not None
    return keeper, [int(pid) for pid in keeper.stdout.readline().split()]


def test_a_killed_supervisor_leaves_nothing_behind(tmp_path: Path) -> None:
    keeper, pids = _keeper(tmp_path, STUBBORN)
    with keeper:
        [guard] = [p.pid for p in psutil.Process(keeper.pid).children() if p.pid not in pids]
        keeper.kill()
    _until(lambda: not any(map(_runs, [*pids, guard])))


def test_what_a_killed_supervisor_and_guard_left_is_ended_by_the_next(tmp_path: Path) -> None:
    keeper, pids = _keeper(tmp_path, SLEEP)
    with keeper:
        for child in psutil.Process(keeper.pid).children():
            if child.pid not in pids:
                child.kill()
        keeper.kill()
    assert all(map(_runs, pids))
    said: list[str] = []
    with _supervisor(tmp_path, said):
        assert not any(map(_runs, pids))
    assert said == ["ending 2 processes of a stack that crashed here"]


def test_a_recorded_pid_that_is_another_process_now_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEP]) as innocent:
        began = identity(innocent.pid)
        assert began is not None
        (tmp_path / "run").mkdir()
        row = {"role": "web", "pid": innocent.pid, "began": began - 60}
        (tmp_path / "run" / "pids.json").write_text(json.dumps([row]))
        with _supervisor(tmp_path):
            pass
        assert _runs(innocent.pid)
        end([innocent.pid], grace=5.0)
