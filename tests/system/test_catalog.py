"""A catalog that is lost, old, cut short or damaged: the next start says so, and all tables are as before."""

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from daemon import NO_DESTAGE, QUICK, Node, wait_until
from mounted import orphans
from workload import BUCKET, Expected, fill

from couchestord.io.catalog.catalog import dump

CATALOG = "catalog.sqlite"
PAGE_BYTES = 4096
Rows = dict[str, list[tuple[object, ...]]]
Damage = Callable[[Path, Path], None]
"""Called with the data folder and one that holds an older copy of the catalog."""


def rows_of(node: Node) -> Rows:
    """Every row of every table, from a copy: looking must not touch the files."""
    copy = node.data.with_name("copy")
    copy_catalog(node.data, copy)
    try:
        return dump(copy / CATALOG)
    finally:
        shutil.rmtree(copy)


def copy_catalog(data: Path, to: Path) -> None:
    to.mkdir()
    for path in data.glob(f"{CATALOG}*"):
        if not path.name.endswith("-shm"):
            shutil.copy(path, to)


def make_history(node: Node, expected: Expected, part: str) -> None:
    """Something in every table that a client can write to."""
    s3 = node.s3()
    for bucket in (f"plain-{part}", f"versions-{part}", f"gone-{part}"):
        s3.create_bucket(Bucket=bucket)
    s3.delete_bucket(Bucket=f"gone-{part}")
    fill(expected, s3, part, (0, 10, 4096, 100_000, 400_000, 1_500_000))
    assert expected.put(s3, f"{part}/0", b"overwritten")
    assert expected.delete(s3, f"{part}/2")
    s3.put_object(
        Bucket=f"plain-{part}", Key="a//b/\u00e9", Body=b"x", Metadata={"name": "value"}, ContentType="text/x"
    )
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key=f"{part}/open")["UploadId"]
    s3.upload_part(Bucket=BUCKET, Key=f"{part}/open", UploadId=upload, PartNumber=3, Body=b"p" * 300_000)
    parts = [bytes(5 << 20), b"tail"] if part == "first" else [b"alone"]
    assert expected.upload(s3, f"{part}/parts", parts)
    node.ask("key add", user=f"user-{part}", admin=False)


def delete(data: Path, _older: Path) -> None:
    for path in data.glob(f"{CATALOG}*"):
        path.unlink()


def put_older_back(data: Path, older: Path) -> None:
    delete(data, older)
    for path in older.iterdir():
        shutil.copy(path, data)


def drop_wal(data: Path, _older: Path) -> None:
    (data / f"{CATALOG}-wal").unlink(missing_ok=True)


def overwrite_page(data: Path, _older: Path) -> None:
    """A page in the midst of the main file. The WAL goes too: it may hold the page still, and then nothing is lost."""
    path = data / CATALOG
    drop_wal(data, _older)
    pages = path.stat().st_size // PAGE_BYTES
    assert pages > 8
    with path.open("r+b") as file:
        file.seek(pages // 2 * PAGE_BYTES)
        file.write(os.urandom(PAGE_BYTES))


def truncate(data: Path, _older: Path) -> None:
    path = data / CATALOG
    drop_wal(data, _older)
    os.truncate(path, path.stat().st_size // PAGE_BYTES // 2 * PAGE_BYTES)


def foreign(data: Path, _older: Path) -> None:
    """The catalog of another store."""
    other = data.with_name("other")
    shutil.rmtree(other, ignore_errors=True)
    with Node(other) as node:
        node.start().stop()
    delete(data, other)
    copy = data.with_name("other-copy")
    copy_catalog(other, copy)
    put_older_back(data, copy)


BEHIND = "catalog was behind the log"
# damage -> what the log must say: the first when the log reaches back far enough, else the second
DAMAGES: dict[Damage, tuple[str, ...]] = {
    delete: ("catalog rebuilt from the log",),
    put_older_back: (BEHIND, "before the log begins"),
    drop_wal: (BEHIND,),
    overwrite_page: ("fail their checksum",),
    truncate: ("pages are missing",),
    foreign: ("it belongs to another store",),
}


def place_less(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """An extent without where it lies."""
    return (*row[:3], *row[6:])


def unsealed(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """A segment without state and stripes_end: a start seals what was open."""
    return (*row[:2], *row[3:9])


def same(before: Rows, after: Rows, *, compacted: bool) -> None:
    """All tables; the rows of `state` and of jobs may have moved on, as every start seals and records.

    `compacted`: compaction may have gone on at once, so segments and places may have changed. Bytes are compared apart.
    """
    for table in before:
        if table in ("state", "job") or (compacted and table == "segment"):
            continue
        kept: Callable[[tuple[Any, ...]], tuple[Any, ...]] = tuple
        if table == "segment":
            kept = unsealed
        elif table == "extent" and compacted:
            kept = place_less
        assert [kept(row) for row in after[table]] == [kept(row) for row in before[table]], table
    assert after["state"][0][0] == before["state"][0][0]


def damage_and_start(folder: Path, damages: Iterable[Damage], *, missing: int | None, snapshot: bool) -> None:
    """One damage after the other to one store, with something new in every table each time."""
    expected = Expected()
    settings = dict(NO_DESTAGE)
    if snapshot:
        # a snapshot is due at once, and journal files are small enough to be trimmed behind it
        settings = {
            **QUICK,
            "COUCHESTORD_STORE__SNAPSHOT_SIZE_MIN": "64 KiB",
            "COUCHESTORD_JOURNAL__FILE_SIZE": "64 KiB",
        }
    with Node(folder / "data", settings=settings) as node:
        node.start().s3().create_bucket(Bucket=BUCKET)
        make_history(node, expected, "first")
        node.stop()
        if missing is not None:
            node.disks[missing].rename(folder / "away")
        for damage in damages:
            name = damage.__name__.replace("_", "-")
            older = folder / f"older-{name}"
            copy_catalog(node.data, older)
            node.settings["COUCHESTORD_JOURNAL__DESTAGE_INTERVAL"] = settings["COUCHESTORD_JOURNAL__DESTAGE_INTERVAL"]
            node.start()
            taken = node.status()["catalog"]["snapshot_sequence"]
            make_history(node, expected, name)
            if snapshot:
                node.wait_destaged()
                wait_snapshot(node, taken)
                make_history(node, expected, f"{name}-2")
                node.wait_destaged()
            # beside a mount, what was replaced is freed a little later: not between the two states that are compared
            wait_until(lambda: not orphans(node), 150, node.status)
            if damage is drop_wal or damage is put_older_back:
                node.kill()  # else the WAL holds nothing, and the older copy lacks nothing
            else:
                node.stop()
            check_repaired(node, expected, damage, older, compacted=snapshot)
        if missing is not None:
            (folder / "away").rename(node.disks[missing])
            node.start()
            node.wait_healthy()
            expected.verify(node.s3())


def check_repaired(node: Node, expected: Expected, damage: Damage, older: Path, *, compacted: bool) -> None:
    """Damages the catalog of a store that was stopped; it is stopped again on return."""
    before = rows_of(node)
    assert all(before[table] for table in ("entry", "content", "upload", "part", "account", "access_key", "extent"))
    damage(node.data, older)
    node.settings["COUCHESTORD_JOURNAL__DESTAGE_INTERVAL"] = "1 d"
    node.start()
    assert any(words in node.said() for words in DAMAGES[damage]), f"{damage.__name__}: {node.said()}"
    assert "Traceback" not in node.said()
    expected.verify(node.s3())
    node.stop()
    same(before, rows_of(node), compacted=compacted)


def wait_snapshot(node: Node, after: int) -> None:
    wait_until(lambda: node.status()["catalog"]["snapshot_sequence"] > after, 60, lambda: node.status()["jobs"])


def test_log_alone_gives_all_tables(tmp_path: Path) -> None:
    damage_and_start(tmp_path, DAMAGES, missing=None, snapshot=False)


def test_log_alone_with_a_disk_missing(tmp_path: Path) -> None:
    damage_and_start(tmp_path, (delete, put_older_back, drop_wal, overwrite_page), missing=3, snapshot=False)


def test_snapshot_and_log_with_a_disk_missing(tmp_path: Path) -> None:
    damage_and_start(tmp_path, (delete, put_older_back, drop_wal, overwrite_page), missing=0, snapshot=True)


@pytest.mark.soak
@pytest.mark.parametrize("missing", [None, *range(6)])
@pytest.mark.parametrize("snapshot", [False, True], ids=["log", "snapshot"])
def test_every_damage(tmp_path: Path, snapshot: bool, missing: int | None) -> None:
    damage_and_start(tmp_path, DAMAGES, missing=missing, snapshot=snapshot)
