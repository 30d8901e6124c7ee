"""Full disks: refused clearly, everything else works, room comes back by itself and so do the writes."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from daemon import QUICK, Node, error_of, wait_until
from loops import Kind, LoopDisk, LoopStore, need
from workload import BUCKET, Expected, content, digest_of, read

DISK_BYTES = 48 << 20
ALL_BYTES = 256 << 20
RESERVE_BYTES = 8 << 20
OBJECT_BYTES = 2_000_000
SETTINGS = {
    **QUICK,
    "COUCHESTORD_STORE__SEGMENT_SIZE": "8 MiB",
    "COUCHESTORD_STORE__RESERVE": str(RESERVE_BYTES),
    "COUCHESTORD_STORE__SNAPSHOT_SIZE_MIN": "256 KiB",
    "COUCHESTORD_JOURNAL__SIZE_BYTES": "16 MiB",
    "COUCHESTORD_JOURNAL__FILE_SIZE": "1 MiB",
    "COUCHESTORD_JOURNAL__PREALLOCATE": "64 KiB",
}


@contextmanager
def small_store(folder: Path, kind: Kind = "ext4") -> Iterator[tuple[LoopStore, Node, Expected]]:
    need(f"mkfs.{kind}", "losetup", "mount")
    with LoopStore(folder, kind, DISK_BYTES) as loops, Node(loops.data, settings=SETTINGS, log=folder / "log") as node:
        node.start().s3().create_bucket(Bucket=BUCKET)
        if kind == "xfs":
            # it is never made so small
            for disk in loops.disks:
                disk.fill(leave_bytes=DISK_BYTES)
        yield loops, node, Expected()


@contextmanager
def on_one_file_system(folder: Path) -> Iterator[tuple[LoopDisk, Node, Expected]]:
    """Six folders and the catalog share what two disks of the other stores have."""
    need("mkfs.ext4", "losetup", "mount")
    disk = LoopDisk(folder / "all.img", folder / "data", "ext4", ALL_BYTES)
    try:
        disk.mount()
        with Node(disk.folder, settings=SETTINGS, log=folder / "log") as node:
            node.start().s3().create_bucket(Bucket=BUCKET)
            yield disk, node, Expected()
    finally:
        disk.destroy()


def write_until_refused(node: Node, expected: Expected, length: int, count_max: int) -> tuple[int, str]:
    """Put objects until one is refused; how it was."""
    client = node.s3()
    for number in range(count_max):
        key = f"{length}/{number}"
        data = content(key, length)
        code = error_of(partial(client.put_object, Bucket=BUCKET, Key=key, Body=data))
        if code[0] != 200:
            return code
        expected.keys[key] = {digest_of(data)}
    raise AssertionError(f"{count_max} objects of {length} bytes fit")


def check_full(node: Node, expected: Expected) -> None:
    """Reads, listings and deletes work; deletes lead to room, and writes resume without a restart."""
    client = node.s3()
    expected.verify(client)
    assert node.is_running()
    present = sorted(key for key, may_be in expected.keys.items() if may_be != {None})
    for key in present[: len(present) * 3 // 4]:
        assert expected.delete(client, key), f"a delete was refused: {expected.first_failure}"
        assert read(client, BUCKET, key) is None

    def writes() -> bool:
        data = content("again", OBJECT_BYTES)
        code, _ = error_of(lambda: client.put_object(Bucket=BUCKET, Key="again", Body=data))
        return code == 200

    wait_until(writes, 60, node.status)
    for number in range(5):
        assert expected.put(client, f"after/{number}", content(f"after {number}", OBJECT_BYTES))
    assert read(client, BUCKET, "again") == content("again", OBJECT_BYTES)
    client.delete_object(Bucket=BUCKET, Key="again")
    expected.verify(client)
    node.restart()
    expected.verify(node.s3())


def test_filled_by_large_objects(tmp_path: Path) -> None:
    with small_store(tmp_path) as (loops, node, expected):
        refusal = write_until_refused(node, expected, OBJECT_BYTES, 150)
        assert refusal in ((507, "InsufficientStorage"), (503, "SlowDown"), (503, "ServiceUnavailable"))
        # what is left is the reserve: nothing new is taken, but deletes are, and the bytes they free are room again
        for disk in loops.disks:
            disk.fill(leave_bytes=DISK_BYTES // 50)  # the reserve is clipped to a 25th
        wait_until(lambda: "are full" in str(node.page("healthz")[1]["reasons"]), 30, node.status)
        small = error_of(lambda: node.s3().put_object(Bucket=BUCKET, Key="small", Body=b"x"))
        assert small == (507, "InsufficientStorage")
        check_full(node, expected)


def test_filled_by_another_program(tmp_path: Path) -> None:
    """Disks that have no room left from one moment to the next, the file system of the catalog too."""
    with small_store(tmp_path) as (loops, node, expected):
        for number in range(12):
            expected.put(node.s3(), f"before/{number}", content(f"{number}", 40_000 * number))
        for disk in (*loops.disks, loops.root):
            disk.fill()
        client = node.s3()
        expected.verify(client)
        data = content("x", OBJECT_BYTES)
        code, _ = error_of(lambda: client.put_object(Bucket=BUCKET, Key="x", Body=data))
        assert code in (503, 507), node.said()[-2000:]
        expected.keys["x"] = {None, digest_of(data)}
        expected.verify(client, settled=False)
        for disk in (*loops.disks, loops.root):
            (disk.folder / "filler").unlink()
        wait_until(lambda: expected.put(client, "resumed", b"yes"), 60, node.status)
        expected.verify(client, settled=False)
        node.restart()
        expected.verify(node.s3())
        node.wait_healthy()


def test_six_folders_on_one_file_system(tmp_path: Path) -> None:
    """With the catalog beside them: large objects, then small ones, leave what deletes need."""
    with on_one_file_system(tmp_path) as (disk, node, expected):
        assert {found["shared_by"] for found in node.status()["disks"]} == {6}
        for length in (OBJECT_BYTES, 100_000):
            refusal = write_until_refused(node, expected, length, 3000)
            assert refusal == (507, "InsufficientStorage")
            assert disk.free_bytes() > RESERVE_BYTES, "for deletes, with what the catalog needs"
        check_full(node, expected)


def test_start_without_a_free_byte(tmp_path: Path) -> None:
    """What was kept for deletes takes the tail of the log, and the deletes; twice, since the first start may be cut."""
    with small_store(tmp_path) as (loops, node, expected):
        client = node.s3()
        for number in range(18):
            expected.put(client, f"large/{number}", content(f"{number}", OBJECT_BYTES))
        for number in range(20):
            expected.put(client, f"small/{number}", content(f"s{number}", 9000))
        wait_until(lambda: all("spare" in names(disk.folder / "journal") for disk in loops.disks), 30, node.status)
        node.kill()
        for disk in loops.disks:
            disk.fill_wholly()
        assert node.spawn(), node.said()[-4000:]
        expected.verify(node.s3())
        assert expected.delete(node.s3(), "small/0")
        node.kill()
        assert node.spawn(), node.said()[-4000:]
        client = node.s3()
        expected.verify(client)
        for length in (10, OBJECT_BYTES):
            refused = error_of(partial(client.put_object, Bucket=BUCKET, Key="new", Body=bytes(length)))
            assert refused == (507, "InsufficientStorage")
        for key in [key for key in expected.keys if key.startswith("large/")]:
            assert expected.delete(client, key)
        wait_until(lambda: expected.put(client, "resumed", content("resumed", OBJECT_BYTES)), 60, node.status)
        expected.verify(client, settled=False)
        wait_until(lambda: all("spare" in names(disk.folder / "journal") for disk in loops.disks), 30, node.status)


def test_start_without_a_free_byte_and_nothing_kept(tmp_path: Path) -> None:
    """What is there is read. Nothing is written, until there is room: then by itself, and without a restart."""
    with small_store(tmp_path) as (loops, node, expected):
        for number in range(6):
            expected.put(node.s3(), f"{number}", content(f"{number}", 100_000 * number))
        node.kill()
        for disk in loops.disks:
            (disk.folder / "journal" / "spare").unlink(missing_ok=True)
            disk.fill_wholly()
        assert node.spawn(), node.said()[-4000:]
        pid, client = node.pid, node.s3(attempts=4)
        expected.verify(client)
        for refused in (
            error_of(partial(node.s3().put_object, Bucket=BUCKET, Key="new", Body=b"new")),
            error_of(partial(node.s3().delete_object, Bucket=BUCKET, Key="1")),
        ):
            assert refused == (507, "InsufficientStorage")
        code, page = node.page("healthz")
        assert code == 503
        assert "the disks were full at the start" in page["reasons"][0]
        for disk in loops.disks:
            (disk.folder / "filler").unlink()
        wait_until(lambda: node.page("readyz")[0] == 200, 60, node.said)
        assert expected.put(client, "new", b"new")
        assert expected.delete(client, "1")
        expected.verify(client)
        assert node.pid == pid
        node.restart()
        expected.verify(node.s3())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("length", [16_384, 100_000, 300_000, 9_000_000])
def test_filled_by_objects_of_a_size(tmp_path: Path, kind: Kind, length: int) -> None:
    with small_store(tmp_path, kind) as (_, node, expected):
        refusal = write_until_refused(node, expected, length, 1 << 20)
        assert refusal[0] in (503, 507)
        check_full(node, expected)
