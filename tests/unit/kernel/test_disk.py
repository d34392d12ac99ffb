"""Clones: on the disk that is here, and as Linux' and macOS' kernels answer elsewhere."""

import ctypes
import errno
import fcntl
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from espalier import disk


def test_a_clone_is_a_file_of_its_own_or_there_is_none(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"bytes" * 10_000)
    if disk.clone(source, target):
        target.write_bytes(b"other")
        assert source.read_bytes() == b"bytes" * 10_000
    else:
        assert not target.exists(), "a disk that cannot leaves nothing behind"


def test_what_is_there_already_is_never_replaced(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        disk.clone(source, target)
    assert target.read_bytes() == b"old"


def test_linux_shares_blocks_by_one_ioctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ioctl(target: int, request: int, source: int) -> int:
        assert request == 0x40049409, "FICLONE, as linux/fs.h has it"
        return os.write(target, os.pread(source, 1 << 20, 0)) and 0

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    (tmp_path / "a").write_bytes(b"bytes")
    assert disk.clone(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"bytes"


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY])
def test_a_file_system_without_clones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def ioctl(*_: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    (tmp_path / "a").write_bytes(b"bytes")
    assert not disk.clone(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [(0, None), (errno.ENOTSUP, None), (errno.EXDEV, None), (errno.EEXIST, FileExistsError)],
)
def test_macos_clones_by_its_own_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[OSError] | None
) -> None:
    def clonefile(source: bytes, target: bytes, flags: int) -> int:
        assert flags == 0
        ctypes.set_errno(code)
        if code:
            return -1
        shutil.copyfile(source, target)
        return 0

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(disk, "_libc", lambda: SimpleNamespace(clonefile=clonefile))
    (tmp_path / "a").write_bytes(b"bytes")
    if kind:
        with pytest.raises(kind):
            disk.clone(tmp_path / "a", tmp_path / "b")
        return
    assert disk.clone(tmp_path / "a", tmp_path / "b") is (code == 0)
    assert (tmp_path / "b").exists() is (code == 0)
