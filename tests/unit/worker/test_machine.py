from pathlib import Path

import pytest

from worker.machine import GIB, cgroup_limit, describe, mac_memory_limit, parse_pmset, parse_sysctl

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
