"""What a WAL holds, compared with what SQLite itself reads of it."""

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from couchestord.io.catalog.wal import committed_pages, frame_pages, salt_of
from couchestord.io.sqlite import open_writer

PAGE_BYTES = 4096
FRAME_BYTES = 24 + PAGE_BYTES


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Rows 0 to 49, each with pages of its own, all in the main file; the WAL is empty."""
    with contextlib.closing(open_writer(tmp_path / "db")) as connection:
        connection.execute("create table row (number integer primary key, text blob)")
        connection.executemany("insert into row values (?, ?)", ((number, b"0" * 3000) for number in range(50)))
        connection.execute("pragma wal_checkpoint(truncate)").fetchone()
        yield connection


def change(connection: sqlite3.Connection, *numbers: int) -> None:
    """One transaction."""
    connection.execute("begin")
    for number in numbers:
        connection.execute("update row set text=? where number=?", (bytes([number + 1]) * 3000, number))
    connection.execute("commit")


def wal_of(tmp_path: Path) -> Path:
    return tmp_path / "db-wal"


def pages_sqlite_takes(tmp_path: Path, wal: bytes) -> set[int]:
    """Pages of the main file that change when SQLite opens it with this WAL and moves all that counts."""
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    before = (tmp_path / "db").read_bytes()
    (folder / "db").write_bytes(before)
    (folder / "db-wal").write_bytes(wal)
    with contextlib.closing(sqlite3.connect(folder / "db")) as connection:
        connection.execute("pragma wal_checkpoint(full)").fetchone()
    after = (folder / "db").read_bytes()
    return {
        at // PAGE_BYTES
        for at in range(0, len(after), PAGE_BYTES)
        if after[at : at + PAGE_BYTES] != before[at : at + PAGE_BYTES]
    }


def committed(tmp_path: Path, wal: bytes) -> set[int]:
    path = tmp_path / "other-wal"
    path.write_bytes(wal)
    return committed_pages(path)


def test_no_wal_holds_nothing(tmp_path: Path) -> None:
    assert committed_pages(wal_of(tmp_path)) == set()
    assert frame_pages(wal_of(tmp_path)) == []
    assert salt_of(wal_of(tmp_path)) == b""
    wal_of(tmp_path).write_bytes(b"short")
    assert committed_pages(wal_of(tmp_path)) == set()


def test_pages_are_those_that_sqlite_takes(tmp_path: Path, database: sqlite3.Connection) -> None:
    change(database, 1, 2, 3)
    change(database, 3, 40)
    wal = wal_of(tmp_path).read_bytes()
    assert len(pages_sqlite_takes(tmp_path, wal)) >= 4
    assert committed_pages(wal_of(tmp_path)) == pages_sqlite_takes(tmp_path, wal)
    assert set(frame_pages(wal_of(tmp_path))) == committed_pages(wal_of(tmp_path))
    assert frame_pages(wal_of(tmp_path), 2) == frame_pages(wal_of(tmp_path))[2:]


def test_torn_frame_and_all_behind_it_hold_nothing(tmp_path: Path, database: sqlite3.Connection) -> None:
    change(database, 1, 2)
    first_bytes = wal_of(tmp_path).stat().st_size
    change(database, 20, 21)
    change(database, 30)
    wal = wal_of(tmp_path).read_bytes()
    whole = committed(tmp_path, wal)
    for at in range(first_bytes, len(wal), FRAME_BYTES // 3):
        torn = bytearray(wal)
        torn[at] ^= 0x10
        found = committed(tmp_path, bytes(torn))
        assert found == pages_sqlite_takes(tmp_path, bytes(torn))
        assert found < whole
        assert committed(tmp_path, wal[:at]) == pages_sqlite_takes(tmp_path, wal[:at])


def test_damaged_header_holds_nothing(tmp_path: Path, database: sqlite3.Connection) -> None:
    change(database, 1)
    wal = bytearray(wal_of(tmp_path).read_bytes())
    for at in (0, 3, 13, 25):
        wal[at] ^= 1
        assert committed(tmp_path, bytes(wal)) == set()
        wal[at] ^= 1
    assert committed(tmp_path, bytes(wal))


def test_frames_without_a_commit_hold_nothing(tmp_path: Path, database: sqlite3.Connection) -> None:
    """A transaction that outgrew the cache has frames in the WAL before it is committed."""
    change(database, 1)
    before = committed_pages(wal_of(tmp_path))
    database.execute("pragma cache_size=10")
    database.execute("begin")
    database.execute("update row set text=zeroblob(3000)")
    assert len(set(frame_pages(wal_of(tmp_path)))) > len(before)
    assert committed_pages(wal_of(tmp_path)) == before
    database.execute("rollback")


def test_frames_of_the_wal_before_hold_nothing(tmp_path: Path, database: sqlite3.Connection) -> None:
    change(database, *range(20))
    salt = salt_of(wal_of(tmp_path))
    database.execute("pragma wal_checkpoint(full)").fetchone()
    change(database, 30)
    assert salt_of(wal_of(tmp_path)) != salt
    wal = wal_of(tmp_path).read_bytes()
    assert len(wal) > 20 * FRAME_BYTES
    assert len(frame_pages(wal_of(tmp_path))) < 5
    assert committed(tmp_path, wal) == pages_sqlite_takes(tmp_path, wal)
