"""What `mount` says when there can be no mount: one line that tells what to do. None of this needs a kernel's mount."""

import errno
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from daemons import result, running

from couchestord.cli import entry
from couchestord.processes.mount import Mount

DEVICE = Path("/dev/fuse")
TRANSPORT = "couchestord.frontends.posix.fuse"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data folder of a daemon that runs and has the bucket `photos`."""
    folder = tmp_path_factory.mktemp("daemon")
    with running("up", "--data", folder / "data", log=folder / "log"):
        result("bucket", "create", "photos", "--data", folder / "data")
        yield folder / "data"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to mount on, where the kernel and pyfuse3 seem to be ready: whoever gets so far has mounted."""

    async def serve(*_: object, ready: Any, **__: object) -> None:
        ready(None)

    transport = ModuleType(TRANSPORT)
    transport.serve_mount = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, TRANSPORT, transport)
    device = tmp_path / "device"
    device.touch()
    there = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: there(device if path == DEVICE else path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    made = tmp_path / "mnt"
    made.mkdir()
    return made


@pytest.fixture(autouse=True)
def cycles() -> Iterator[None]:
    """What a mount says of memory holds for this process no longer than a test."""
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `mount`; answers the exit code and what was said on standard error."""

    def run(*arguments: object) -> tuple[int, list[str]]:
        code = entry.run(["mount", *map(str, arguments)])
        told = capsys.readouterr()
        assert told.out == ""
        return code, told.err.splitlines()

    return run


def test_a_mount_that_can_be(data: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the tests below would pass whatever is wrong."""
    for said, options in (("photos", ["--bucket", "photos"]), ("all buckets", ["--read-only"])):
        assert entry.run(["mount", str(folder), "--data", str(data), *options]) == 0
        assert capsys.readouterr().out == f"{said} mounted on {folder}\n"
        assert gc.get_freeze_count() > 10_000, "what lives as long as the mount is not searched for cycles"


def test_clients_are_trusted_only_when_that_is_asked_for(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def run(_: object, mount: Mount, **__: object) -> None:
        asked.append(mount.trust_owners)

    monkeypatch.setattr("couchestord.processes.mount.run_mount", run)
    for options in ([], ["--trust-s3-owners"]):
        assert entry.run(["mount", str(folder), "--data", str(data), *options]) == 0
    assert asked == [False, True]


def test_no_such_bucket_is_3(data: Path, folder: Path, refused: Any) -> None:
    assert refused("--bucket", "nowhere", folder, "--data", data) == (
        3,
        ["couchestord: there is no bucket 'nowhere'"],
    )


def test_no_daemon(tmp_path: Path, folder: Path, refused: Any) -> None:
    for place in (tmp_path, tmp_path / "nothing"):
        line = f"couchestord: no daemon runs on {place}: start it with couchestord up --data {place}"
        assert refused(folder, "--data", place) == (1, [line])


def test_without_pyfuse3(tmp_path: Path, folder: Path, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, TRANSPORT)
    monkeypatch.setitem(sys.modules, "pyfuse3", None)
    code, (line,) = refused(folder, "--data", tmp_path)
    assert code == 1
    assert line.startswith("couchestord: pyfuse3 is needed to mount")
    assert "pip install couchestord[mount]" in line


def test_no_device(tmp_path: Path, folder: Path, refused: Any) -> None:
    (tmp_path / "device").unlink()
    code, (line,) = refused(folder, "--data", tmp_path)
    assert code == 1
    assert "modprobe fuse" in line


def test_a_user_without_fusermount3(
    tmp_path: Path, folder: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no daemon runs" in refused(folder, "--data", tmp_path)[1][0]  # root needs none
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    line = "couchestord: there is no fusermount3, by which users mount: install the package fuse3"
    assert refused(folder, "--data", tmp_path) == (1, [line])


def test_a_folder_that_is_not_there(tmp_path: Path, folder: Path, refused: Any) -> None:
    for place in (tmp_path / "none", tmp_path / "device", tmp_path / "device" / "below"):
        line = f"couchestord: {place} is no folder: make it with mkdir -p {place}"
        assert refused(place, "--data", tmp_path) == (1, [line])


def test_a_folder_that_is_mounted_on(tmp_path: Path, folder: Path, refused: Any) -> None:
    line = "couchestord: something is mounted on /proc already: unmount it with umount /proc"
    assert refused("/proc", "--data", tmp_path) == (1, [line])


def test_a_folder_that_cannot_be_looked_at(
    tmp_path: Path, folder: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> bool:
        raise OSError(errno.EACCES, "refused")

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert refused(folder, "--data", tmp_path) == (1, [f"couchestord: {folder} cannot be looked at: refused"])
