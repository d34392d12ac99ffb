"""What this worker runs on, and what it says of a death. With worker.stacks, all that knows macOS.

Asks the system through its own commands, never through mlx, which the Celery process must not
import. The parsers are pure, so that Linux can test what only a Mac can say.
"""

import ctypes
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import psutil

from espalier.messages import Machine

GIB = 1 << 30
#: Bytes that a job leaves to the system and to the worker itself.
RESERVE = 2 * GIB
#: Metal recommends two thirds of a small Mac's memory and three quarters of a larger one's.
_SMALL_MAC = 36 * GIB

_PACKAGES = ("espalier", "mlx", "mlx-lm")
_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
#: Where macOS writes why processes died, and, at the next start, why it did itself.
_REPORTS = Path("/Library/Logs/DiagnosticReports")
_REPORT_SECONDS = 3.0


def describe(disk: Path, memory_limit: int | None = None) -> Machine:
    """Return this machine; ``disk`` is a directory on the volume where jobs will write.

    ``memory_limit`` (bytes) is what its owner lets a job use, instead of what it would give.
    """
    common = {
        "hostname": platform.node().removesuffix(".local"),
        "disk_free": shutil.disk_usage(disk).free,
        "versions": versions(),
    }
    here = Machine.model_validate(common | (_mac() if sys.platform == "darwin" else _linux()))
    if memory_limit is None:
        return here
    return here.model_copy(update={"memory_limit": min(memory_limit, here.memory_total)})


def versions() -> dict[str, str]:
    """Return the installed versions of what decides a job's result, without importing any."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


# --- macOS --------------------------------------------------------------------------------


def _ask(*command: str) -> str:
    """Return a command's output, or nothing where it fails: an unknown sysctl is no error."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _mac() -> dict[str, object]:
    asked = _ask("sysctl", "hw.memsize", "machdep.cpu.brand_string", "iogpu.wired_limit_mb")
    facts = parse_sysctl(asked)
    total = int(facts.get("hw.memsize", 0)) or psutil.virtual_memory().total
    wired = int(facts.get("iogpu.wired_limit_mb", 0))
    version = _ask("sw_vers", "-productVersion").strip() or platform.mac_ver()[0]
    return {
        "platform": f"macOS {version}",
        "chip": facts.get("machdep.cpu.brand_string", platform.machine()),
        "memory_total": total,
        "memory_limit": mac_memory_limit(total, wired),
        "on_battery": parse_pmset(_ask("pmset", "-g", "batt")),
    }


def parse_sysctl(output: str) -> dict[str, str]:
    """Return name → value from ``sysctl name…``."""
    pairs = (line.partition(": ") for line in output.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def parse_pmset(output: str) -> bool | None:
    """Say from ``pmset -g batt`` whether the Mac runs on its battery; None when it has none."""
    source = re.search(r"drawing from '([^']+)'", output)
    if not source or "Battery" not in output:
        return None
    return source[1] == "Battery Power"


def mac_memory_limit(total: int, wired_limit_mb: int) -> int:
    """Return the bytes a job may use of ``total``.

    ``wired_limit_mb`` is the sysctl ``iogpu.wired_limit_mb``; 0 leaves it to Metal, whose
    recommended working set is two thirds of the memory below 36 GiB and three quarters above.
    """
    recommended = wired_limit_mb << 20
    if not recommended:
        recommended = total * 2 // 3 if total < _SMALL_MAC else total * 3 // 4
    return max(min(recommended, total - RESERVE), total // 2)


def keep_awake(pid: int) -> subprocess.Popen[bytes] | None:
    """Keep a Mac from sleeping while ``pid`` and the returned process live; its display may.

    Elsewhere: nothing.
    """
    if sys.platform == "darwin" and (caffeinate := shutil.which("caffeinate")):
        return subprocess.Popen(
            [caffeinate, "-is", "-w", str(pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    return None


class _RusageV2(ctypes.Structure):
    """``struct rusage_info_v2`` of <sys/resource.h>; sizes in bytes."""

    _fields_ = (
        ("uuid", ctypes.c_uint8 * 16),
        ("user_time", ctypes.c_uint64),
        ("system_time", ctypes.c_uint64),
        ("pkg_idle_wkups", ctypes.c_uint64),
        ("interrupt_wkups", ctypes.c_uint64),
        ("pageins", ctypes.c_uint64),
        ("wired_size", ctypes.c_uint64),
        ("resident_size", ctypes.c_uint64),
        ("phys_footprint", ctypes.c_uint64),
        ("proc_start_abstime", ctypes.c_uint64),
        ("proc_exit_abstime", ctypes.c_uint64),
        ("child_user_time", ctypes.c_uint64),
        ("child_system_time", ctypes.c_uint64),
        ("child_pkg_idle_wkups", ctypes.c_uint64),
        ("child_interrupt_wkups", ctypes.c_uint64),
        ("child_pageins", ctypes.c_uint64),
        ("child_elapsed_abstime", ctypes.c_uint64),
        ("diskio_bytesread", ctypes.c_uint64),
        ("diskio_byteswritten", ctypes.c_uint64),
    )


def _rusage(pid: int) -> _RusageV2 | None:
    usage = _RusageV2()
    libproc = ctypes.CDLL("libproc.dylib")
    return usage if libproc.proc_pid_rusage(pid, 2, ctypes.byref(usage)) == 0 else None


def process_memory(process: psutil.Process) -> int:
    """Return the bytes that come back only when a process ends or gives them up.

    Pages of files are not counted: the system drops those when it needs room, and a model that
    is mapped would count twice. Buffers of the GPU are in a Mac's footprint and not in the
    resident size. Raises psutil.Error when the process is gone.
    """
    if sys.platform == "darwin":
        usage = _rusage(process.pid)
        return int(usage.phys_footprint) if usage else int(process.memory_info().rss)
    info = process.memory_info()
    return int(info.rss - info.shared)


def process_disk_bytes(process: psutil.Process) -> int:
    """Return the bytes a process has read from and written to disks, not pipes and sockets.

    Raises psutil.Error when the process is gone or may not be asked.
    """
    if sys.platform == "darwin":
        usage = _rusage(process.pid)
        return int(usage.diskio_bytesread + usage.diskio_byteswritten) if usage else 0
    counters = process.io_counters()
    return int(counters.read_bytes + counters.write_bytes)


def _reports(pattern: str, since: float) -> list[Path]:
    """Return the system's reports written after ``since`` (seconds of the epoch), oldest first."""
    found = []
    for path in _REPORTS.glob(pattern):
        with suppress(OSError):
            found.append((path.stat().st_mtime, path))
    return [path for written, path in sorted(found) if written >= since]


def panic_since(moment: float) -> str | None:
    """Return what a kernel panic since ``moment`` (seconds of the epoch) said, else None.

    macOS writes the report when it has started again.
    """
    for path in _reports("*.panic", moment):
        text = ""
        with suppress(OSError):  # its existence tells enough
            text = path.read_text(encoding="utf-8", errors="replace")
        return parse_panic(text) or path.name
    return None


def parse_panic(report: str) -> str | None:
    """Return the sentence of a panic report: text, or JSON after a line of JSON."""
    with suppress(ValueError, KeyError, TypeError, IndexError):
        report = str(json.loads(report.split("\n", 1)[1])["panicString"])
    found = re.search(r"panic\(cpu[^)]*\)?[^:]*: *(.+)", report)
    return found[1].strip()[:300] if found else None


def jettisoned(pid: int, since: float) -> str | None:
    """Say why macOS ended a process for memory since ``since`` (seconds of the epoch), if so.

    Waits for the report, which is written a moment after the process is gone.
    """
    until = time.monotonic() + _REPORT_SECONDS
    while _REPORTS.is_dir():
        for path in _reports("JetsamEvent-*.ips", since):
            with suppress(OSError):
                if found := parse_jetsam(path.read_text(encoding="utf-8", errors="replace"), pid):
                    return found
        if time.monotonic() >= until:
            break
        time.sleep(0.5)
    return None


def parse_jetsam(report: str, pid: int) -> str | None:
    """Return the reason for which a jetsam report says that ``pid`` was ended, with its bytes.

    The report is JSON after a line of JSON; it lists every process, and the ended have a reason.
    """
    try:
        document = json.loads(report.split("\n", 1)[1])
        page = int(document["memoryStatus"]["pageSize"])
        for process in document["processes"]:
            if process["pid"] == pid and "reason" in process:
                return f"{process['reason']}, at {int(process['rpages']) * page:,} bytes"
    except (ValueError, KeyError, TypeError, IndexError):
        pass
    return None


# --- Linux --------------------------------------------------------------------------------


def _linux() -> dict[str, object]:
    total = psutil.virtual_memory().total
    limit = cgroup_limit(_CGROUP, _MEMBERSHIP.read_text(encoding="utf-8"))
    total = min(total, limit) if limit else total
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    release = ".".join(platform.release().split(".")[:2])
    return {
        "platform": f"Linux {release}",
        "chip": f"{platform.machine()} ({cores} cores)",
        "memory_total": total,
        "memory_limit": max(total - RESERVE, total // 2),
        "on_battery": _linux_battery(Path("/sys/class/power_supply")),
    }


def cgroup_limit(root: Path, membership: str) -> int | None:
    """Return the smallest memory limit of the process's control group and its parents, in bytes.

    ``membership`` is ``/proc/self/cgroup``; a container's root group is where ``root`` is.
    None when nothing limits it.
    """
    found = []
    for name, base, group in _memory_groups(root, membership):
        name = "memory.max" if name == "2" else "memory.limit_in_bytes"
        for directory in (group, *group.parents):
            if directory == base.parent:
                break
            found += _read_limit(directory / name)
    return min(found, default=None)


def _memory_groups(root: Path, membership: str) -> list[tuple[str, Path, Path]]:
    """Return version, root and directory of the groups that hold a process's memory."""
    found = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found.append(("2", root, root / path.lstrip("/")))
        elif "memory" in controllers.split(","):
            found.append(("1", root / "memory", root / "memory" / path.lstrip("/")))
    return found


def oom_kills() -> int:
    """Return how often the system has ended a process of this control group for memory."""
    try:
        return cgroup_oom_kills(_CGROUP, _MEMBERSHIP.read_text(encoding="utf-8"))
    except OSError:  # macOS
        return 0


def cgroup_oom_kills(root: Path, membership: str) -> int:
    """As ``oom_kills``; the arguments are those of ``cgroup_limit``."""
    total = 0
    for version, base, group in _memory_groups(root, membership):
        name = "memory.events" if version == "2" else "memory.oom_control"
        for directory in (group, base):  # a container's own group is where the root is
            with suppress(OSError):
                found = re.search(r"^oom_kill (\d+)$", (directory / name).read_text(), re.MULTILINE)
                total += int(found[1]) if found else 0
                break
    return total


def _read_limit(file: Path) -> list[int]:
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return []
    # Version 1 writes "no limit" as the largest multiple of a page.
    return [int(text)] if text.isdecimal() and int(text) < 1 << 62 else []


def _linux_battery(supplies: Path) -> bool | None:
    states = [p.read_text(encoding="ascii").strip() for p in supplies.glob("BAT*/status")]
    return any(state == "Discharging" for state in states) if states else None
