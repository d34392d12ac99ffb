"""What this worker runs on. The only file that knows macOS.

Asks the system through its own commands, never through mlx, which the Celery process must not
import. The parsers are pure, so that Linux can test what only a Mac can say.
"""

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
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


def describe(disk: Path) -> Machine:
    """Return this machine; ``disk`` is a directory on the volume where jobs will write."""
    common = {
        "hostname": platform.node().removesuffix(".local"),
        "disk_free": shutil.disk_usage(disk).free,
        "versions": versions(),
    }
    here = _mac() if sys.platform == "darwin" else _linux()
    return Machine.model_validate(common | here)


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


def keep_awake(pid: int) -> None:
    """Keep a Mac from sleeping while ``pid`` lives; its display may. Elsewhere: nothing."""
    if sys.platform == "darwin" and (caffeinate := shutil.which("caffeinate")):
        subprocess.Popen(
            [caffeinate, "-is", "-w", str(pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


class _RusageV0(ctypes.Structure):
    """``struct rusage_info_v0`` of <sys/resource.h>; sizes in bytes."""

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
    )


def process_memory(process: psutil.Process) -> int:
    """Return the bytes a process holds: resident, and on a Mac what Metal holds for it too.

    Buffers of the GPU are in a Mac's footprint and not in the resident size. Raises
    psutil.Error when the process is gone.
    """
    if sys.platform == "darwin":
        usage = _RusageV0()
        libproc = ctypes.CDLL("libproc.dylib")
        if libproc.proc_pid_rusage(process.pid, 0, ctypes.byref(usage)) == 0:
            return int(usage.phys_footprint)
    return int(process.memory_info().rss)


# --- Linux --------------------------------------------------------------------------------


def _linux() -> dict[str, object]:
    total = psutil.virtual_memory().total
    limit = cgroup_limit(_CGROUP, Path("/proc/self/cgroup").read_text(encoding="utf-8"))
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
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = base / path.lstrip("/")
        for directory in (group, *group.parents):
            if directory == base.parent:
                break
            found += _read_limit(directory / name)
    return min(found, default=None)


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
