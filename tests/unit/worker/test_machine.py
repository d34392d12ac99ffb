import os
from pathlib import Path

import pytest

from worker import machine
from worker.machine import (
    GIB,
    cgroup_limit,
    cgroup_oom_kills,
    describe,
    jettisoned,
    mac_memory_limit,
    panic_since,
    parse_jetsam,
    parse_panic,
    parse_pmset,
    parse_sysctl,
)

STUDIO = """\
hw.memsize: 103079215104
machdep.cpu.brand_string: Apple M3 Ultra
iogpu.wired_limit_mb: 0
"""
OLD_MACOS = """\
hw.memsize: 17179869184
machdep.cpu.brand_string: Apple M1
"""
ON_BATTERY = """\
Now drawing from 'Battery Power'
 -InternalBattery-0 (id=22806627)\t84%; discharging; 6:12 remaining present: true
"""
PLUGGED_IN = """\
Now drawing from 'AC Power'
 -InternalBattery-0 (id=22806627)\t100%; charged; 0:00 remaining present: true
"""
NO_BATTERY = "Now drawing from 'AC Power'\n"
#: As macOS writes them, with the other processes and most keys left out.
JETSAM = """\
{"bug_type":"298","timestamp":"2026-03-04 02:11:08.00 +0100","os_version":"macOS 26.1 (25B78)"}
{
  "memoryStatus" : {"compressorSize" : 612345, "pageSize" : 16384},
  "largestProcess" : "python3.11",
  "processes" : [
    {"pid" : 401, "name" : "WindowServer", "rpages" : 21000, "states" : ["active"]},
    {"pid" : 4624, "name" : "python3.11", "rpages" : 1900000, "lifetimeMax" : 1950000,
     "reason" : "vm-compressor-space-shortage", "killDelta" : 13593}
  ]
}
"""
PANIC = (
    '{"bug_type":"210","timestamp":"2026-03-04 02:12:40.00 +0100","os_version":"macOS 26.1"}\n'
    '{"product":"Mac15,14","panicString":"panic(cpu 4 caller 0xfffffe0026a5d2c8):'
    ' \\"completeMemory() prepare count underflow\\" @IOGPUMemory.cpp:550\\nDebugger message:'
    ' panic\\nMemory ID: 0x6"}\n'
)
OLD_PANIC = """\
panic(cpu 0 caller 0xfffffff01a2b3c4d): watchdog timeout: no checkins from watchdogd in 91 seconds
Debugger message: panic
"""


def test_sysctl() -> None:
    assert parse_sysctl(STUDIO) == {
        "hw.memsize": "103079215104",
        "machdep.cpu.brand_string": "Apple M3 Ultra",
        "iogpu.wired_limit_mb": "0",
    }
    assert "iogpu.wired_limit_mb" not in parse_sysctl(OLD_MACOS)
    assert parse_sysctl("") == {}


@pytest.mark.parametrize(
    ("output", "expected"),
    [(ON_BATTERY, True), (PLUGGED_IN, False), (NO_BATTERY, None), ("", None)],
)
def test_battery(output: str, expected: bool | None) -> None:
    assert parse_pmset(output) is expected


@pytest.mark.parametrize(
    ("total", "wired_mb", "expected"),
    [
        (96 * GIB, 0, 72 * GIB),
        (36 * GIB, 0, 27 * GIB),
        (24 * GIB, 0, 16 * GIB),  # Metal's own figure on such a Mac
        (8 * GIB, 0, 8 * GIB * 2 // 3),
        (64 * GIB, 57344, 56 * GIB),  # raised by its owner
        (64 * GIB, 65536, 62 * GIB),  # all of it: the system needs some
    ],
)
def test_what_a_mac_gives_to_a_job(total: int, wired_mb: int, expected: int) -> None:
    assert mac_memory_limit(total, wired_mb) == expected


def test_the_smallest_limit_of_a_control_group_and_its_parents_counts(tmp_path: Path) -> None:
    group = tmp_path / "user.slice" / "job.scope"
    group.mkdir(parents=True)
    membership = "0::/user.slice/job.scope\n"
    assert cgroup_limit(tmp_path, membership) is None
    (group / "memory.max").write_text("max\n")
    assert cgroup_limit(tmp_path, membership) is None
    (tmp_path / "user.slice" / "memory.max").write_text("4294967296\n")
    assert cgroup_limit(tmp_path, membership) == 4 * GIB
    (group / "memory.max").write_text("1073741824\n")
    assert cgroup_limit(tmp_path, membership) == GIB


def test_version_1_of_control_groups(tmp_path: Path) -> None:
    group = tmp_path / "memory" / "docker" / "abc"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("2147483648\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    membership = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n"
    assert cgroup_limit(tmp_path, membership) == 2 * GIB


def test_this_machine_describes_itself(tmp_path: Path) -> None:
    machine = describe(tmp_path)
    assert 0 < machine.memory_limit < machine.memory_total
    assert machine.disk_free > 0
    assert machine.platform.split()[0] in ("Linux", "macOS")
    assert {"python", "espalier"} <= machine.versions.keys()


def test_an_owners_limit_counts_instead_of_the_machines(tmp_path: Path) -> None:
    assert describe(tmp_path, memory_limit=GIB // 2).memory_limit == GIB // 2
    total = describe(tmp_path).memory_total
    assert describe(tmp_path, memory_limit=total * 2).memory_limit == total, "what is not there"


def test_kills_for_memory_are_counted_in_both_versions(tmp_path: Path) -> None:
    membership = "0::/job.scope\n"
    assert cgroup_oom_kills(tmp_path, membership) == 0
    (tmp_path / "job.scope").mkdir()
    events = tmp_path / "job.scope" / "memory.events"
    events.write_text("low 0\nhigh 12\nmax 31\noom 2\noom_kill 2\noom_group_kill 0\n")
    assert cgroup_oom_kills(tmp_path, membership) == 2
    (tmp_path / "memory").mkdir()
    control = tmp_path / "memory" / "memory.oom_control"
    control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    seen_from_inside = "4:memory:/docker/abc\n"  # that directory is not there in the container
    assert cgroup_oom_kills(tmp_path, seen_from_inside) == 3
    assert machine.oom_kills() >= 0


def test_a_jetsam_report_names_who_was_ended() -> None:
    assert parse_jetsam(JETSAM, 4624) == "vm-compressor-space-shortage, at 31,129,600,000 bytes"
    assert parse_jetsam(JETSAM, 401) is None
    assert parse_jetsam(JETSAM, 7) is None
    for damaged in ("", "{}", "{}\n[]", JETSAM[:-40]):
        assert parse_jetsam(damaged, 4624) is None


def test_a_panic_report() -> None:
    expected = '"completeMemory() prepare count underflow" @IOGPUMemory.cpp:550'
    assert parse_panic(PANIC) == expected
    assert parse_panic(OLD_PANIC) == ("watchdog timeout: no checkins from watchdogd in 91 seconds")
    assert parse_panic("") is None


def test_only_reports_since_then_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_REPORTS", tmp_path)
    monkeypatch.setattr(machine, "_REPORT_SECONDS", 0.0)
    assert panic_since(0.0) is None
    assert jettisoned(4624, 0.0) is None
    panic = tmp_path / "panic-full-2026-03-04-021240.0002.panic"
    panic.write_text(PANIC)
    jetsam = tmp_path / "JetsamEvent-2026-03-04-021108.ips"
    jetsam.write_text(JETSAM)
    for path in (panic, jetsam):
        os.utime(path, (1000.0, 1000.0))
    assert panic_since(1000.5) is None
    assert jettisoned(4624, 1000.5) is None
    assert "IOGPUMemory" in (panic_since(999.0) or "")
    assert "vm-compressor" in (jettisoned(4624, 999.0) or "")
    panic.write_text("?")
    assert panic_since(999.0) == panic.name
