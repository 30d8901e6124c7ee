"""A mount while the store's disks are full or lost, and while there is no daemon, or one that hangs.

Seen to fail with the bugs of `planted_bugs.py` that name a test of this file.
"""

import errno
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from builder import EXPECTED
from daemon import QUICK, Node, wait_until
from daemons import ROOT
from loops import LoopStore, need
from mounted import Mounted, mounted_box, needs_mounts, objects, tree_of
from telling import Telling
from workload import content

pytestmark = needs_mounts

DISK_BYTES = 48 << 20
FILE_BYTES = 2_000_000
ANSWER_S_MAX = 35.0
"""A call waits 30 s for a daemon."""


def error_of(call: Callable[[], object]) -> int:
    """Its number, 0 when there is none."""
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0


def write(path: Path, data: bytes) -> int:
    """Write a file and sync it; 0, or the number of the first error, whichever call told it."""
    number = -1

    def write_it() -> None:
        nonlocal number
        number = os.open(path, os.O_RDWR | os.O_CREAT)
        os.pwrite(number, data, 0)
        os.fsync(number)

    error = error_of(write_it)
    return error if number < 0 else error_of(lambda: os.close(number)) or error


def test_full_disks(tmp_path: Path) -> None:
    """Whoever writes is told; what was there is read, and can be removed, which leads to room again."""
    need("mkfs.ext4", "losetup", "mount")
    settings = {
        **QUICK,
        "COUCHESTORD_STORE__SEGMENT_SIZE": "8 MiB",
        "COUCHESTORD_STORE__RESERVE": "8 MiB",
        "COUCHESTORD_STORE__SNAPSHOT_SIZE_MIN": "256 KiB",
        "COUCHESTORD_JOURNAL__SIZE_BYTES": "16 MiB",
        "COUCHESTORD_JOURNAL__FILE_SIZE": "1 MiB",
    }
    with (
        LoopStore(tmp_path, "ext4", DISK_BYTES) as loops,
        Node(loops.data, settings=settings, log=tmp_path / "log").start() as node,
    ):
        node.s3().create_bucket(Bucket="box")
        with Mounted(node.data, tmp_path / "box") as mount:
            top = mount.folder
            for disk in loops.disks:
                disk.fill(leave_bytes=DISK_BYTES // 4)
            expected: dict[str, bytes] = {}
            for number in range(150):
                data = content(f"{number}", FILE_BYTES)
                error = write(top / f"{number}", data)
                if error:
                    break
                expected[f"{number}"] = data
            assert error == errno.ENOSPC
            assert len(expected) > 10
            # written over it keeps what it held
            assert write(top / "0", content("over", FILE_BYTES)) == errno.ENOSPC
            shown = {path.name: path.read_bytes() for path in top.iterdir()}
            assert expected.items() <= shown.items()
            assert set(shown) - set(expected) <= {f"{number}"}
            assert objects(node.s3()) == shown
            for name in sorted(shown, key=int)[: len(shown) * 3 // 4]:
                (top / name).unlink()
                expected.pop(name, None)
            wait_until(lambda: not write(top / "again", b"again"), 60, node.status)
            for name in ("new", "0"):
                wait_until(lambda name=name: not write(top / name, content(name, FILE_BYTES)), 60, node.status)  # type: ignore[misc]
                expected[name] = content(name, FILE_BYTES)
            expected["again"] = b"again"
            assert {name: objects(node.s3())[name] for name in expected} == expected
            node.restart()
            assert {name: (top / name).read_bytes() for name in expected} == expected


def build_while_disks_go(folder: Path, lost: tuple[int, ...], builds_count: int) -> None:
    need("gcc", "make", "ar", "tar")
    archive = folder / "python.tar"
    source = ROOT / "couchestord/io"
    subprocess.run(["tar", "-C", source, "--exclude=__pycache__", "-cf", archive, "catalog"], check=True)
    with mounted_box(folder) as (node, mount):

        def unused() -> set[int]:
            reasons = node.page("healthz")[1]["reasons"]
            return {index for index in range(6) if any(f"disk {index} is not used" in reason for reason in reasons)}

        with Telling("builder.py", mount.folder / "tree", archive) as builder:
            builder.wait_for(1)
            for index in lost:
                node.disks[index].rename(node.data / f"away-{index}")
                time.sleep(0.2)
            wait_until(lambda: unused() == set(lost), 60, node.status)
            builder.wait_for(builds_count)
            for index in lost:
                (node.data / f"away-{index}").rename(node.disks[index])
            wait_until(lambda: not unused(), 60, node.status)
            builder.wait_for(1)
            builder.finish()
        assert (mount.folder / "tree/said").read_text() == EXPECTED
        shown = tree_of(mount.folder / "tree")
        found = {name: each[-1] for name, each in shown.items() if each[0] == "file"}  # type: ignore[index]
        assert objects(node.s3(), "tree/") == found
        node.wait_healthy()


def test_builds_go_on_while_disks_are_lost(tmp_path: Path) -> None:
    build_while_disks_go(tmp_path, (1, 4), 2)


@pytest.mark.soak
@pytest.mark.parametrize("lost", [(0, 1), (2, 3), (4, 5), (0, 5)], ids=str)
def test_builds_go_on_while_any_disks_are_lost(tmp_path: Path, lost: tuple[int, ...]) -> None:
    build_while_disks_go(tmp_path, lost, 10)


def damage(node: Node, sample: bytes) -> None:
    """What is on the disks of these bytes is others."""
    for disk in node.disks:
        for path in disk.glob("segments/**/*"):
            offset = path.read_bytes().find(sample) if path.is_file() else -1
            if offset >= 0:
                with path.open("r+b") as file:
                    file.seek(offset)
                    file.write(bytes(len(sample)))
                return
    raise AssertionError("they are on no disk")


def test_beyond_what_the_code_makes_good_only_what_is_lost_fails(tmp_path: Path) -> None:
    files = {name: content(name, FILE_BYTES) for name in ("lost", "kept", "more")}
    lost = files["lost"]
    with Node(tmp_path / "data", settings=QUICK).start() as node:
        node.s3().create_bucket(Bucket="box")
        with Mounted(node.data, tmp_path / "box") as mount:
            for name, data in files.items():
                assert not write(mount.folder / name, data)
        node.stop()
        for offset in (0, 256 << 10, 512 << 10):  # where three shards of its first stripe begin
            damage(node, lost[offset : offset + 64])
        node.start()
        with Mounted(node.data, tmp_path / "box") as mount:
            top = mount.folder
            assert error_of(lambda: (top / "lost").read_bytes()) == errno.EIO
            with (top / "lost").open("rb") as file:
                file.seek(-100_000, os.SEEK_END)
                assert file.read() == lost[-100_000:]
            for name in ("kept", "more"):
                assert (top / name).read_bytes() == files[name]
            assert not write(top / "more", b"new")
            assert not write(top / "new", b"new")
            # what is written over what is lost is there
            assert not write(top / "lost", files["kept"][:1_500_000])
            assert (top / "lost").read_bytes() == files["kept"][:1_500_000] + lost[1_500_000:]
            assert objects(node.s3()) == {path.name: path.read_bytes() for path in top.iterdir()}


@pytest.mark.soak
def test_calls_fail_within_time_when_there_is_no_daemon(tmp_path: Path) -> None:
    """And all is as before when there is one again."""

    def fail(call: Callable[[], object]) -> tuple[int, bool]:
        began_s = time.monotonic()
        return error_of(call), time.monotonic() - began_s < ANSWER_S_MAX

    with mounted_box(tmp_path) as (node, mount):
        top = mount.folder
        (top / "file").write_bytes(b"bytes")
        node.kill()
        calls: list[Callable[[], object]] = [
            lambda: (top / "made").mkdir(),
            lambda: (top / "file").write_bytes(b"more"),
            lambda: os.stat(top / "other"),
            lambda: os.listdir(top),
        ]
        with ThreadPoolExecutor(len(calls)) as pool:
            assert list(pool.map(fail, calls)) == [(errno.EIO, True)] * len(calls)
        node.start()
        assert (top / "file").read_bytes() == b"bytes"
        assert not write(top / "after", b"after")
        assert objects(node.s3()) == {"file": b"bytes", "after": b"after"}
