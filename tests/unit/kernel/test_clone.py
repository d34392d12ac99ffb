"""A clone is a file of its own, whatever the file system can do."""

import ctypes
import errno
import fcntl
import os
import shutil
import sys
from pathlib import Path

import pytest

from espalier.clone import clone


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"bytes" * 1000)
    path.chmod(0o444)
    return path


def test_a_clone_has_the_bytes_and_is_a_file_of_its_own(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    clone(source, target)
    with target.open("r+b") as file:
        file.write(b"other")
    assert source.read_bytes() == b"bytes" * 1000
    assert target.read_bytes() == b"other" + b"bytes" * 999


def test_what_is_there_is_never_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        clone(source, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"mine"


# What ext4, tmpfs, NFS, overlayfs and two disks answer to FICLONE.
@pytest.mark.parametrize("code", ["EOPNOTSUPP", "ENOTTY", "EINVAL", "EXDEV", "EPERM", "ENOSYS"])
def test_where_blocks_cannot_be_shared_the_bytes_are_copied(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(getattr(errno, code), code)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(fcntl, "ioctl", refuse)
    assert clone(source, tmp_path / "target") is False
    assert (tmp_path / "target").read_bytes() == source.read_bytes()


def test_a_full_disk_is_told_and_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(fcntl, "ioctl", full)
    with pytest.raises(OSError, match="No space"):
        clone(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()


class MacOS:
    """The one call of the system's library, as its manual describes it."""

    def __init__(self, code: int = 0) -> None:
        self.code = code

    def clonefile(self, source: bytes, target: bytes, flags: int) -> int:
        assert flags == 0
        if self.code:
            ctypes.set_errno(self.code)
            return -1
        if Path(os.fsdecode(target)).exists():
            ctypes.set_errno(errno.EEXIST)
            return -1
        shutil.copy2(source, target)  # with its permissions, as clonefile does
        return 0


@pytest.mark.parametrize("code", [0, errno.ENOTSUP, errno.EXDEV])
def test_on_macos(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_more: MacOS(code))
    target = tmp_path / "target"
    assert clone(source, target) is (code == 0)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_mode & 0o200  # the copy is its owner's to write
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "target"]


def test_a_full_disk_on_macos(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_more: MacOS(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        clone(source, tmp_path / "target")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_without_a_copy_there_is_a_clone_or_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"bytes" * 1000)
    assert clone(source, target, copy=False) is target.exists()
    assert not list(tmp_path.glob(".*"))
