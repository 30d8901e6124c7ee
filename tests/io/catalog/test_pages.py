"""Sums of the catalog's pages: what is damage, and what a checkpoint that was cut off may leave."""

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from couchestord.errors import Corrupt
from couchestord.io.catalog.pages import (
    PAGE_BYTES,
    MainFile,
    checkpoint_ahead,
    checkpoint_with_sums,
    store_sums,
    sums_path,
    verify_pages,
)
from couchestord.io.sqlite import open_writer

FRAME_BYTES = 24 + PAGE_BYTES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db"


@pytest.fixture
def main(path: Path) -> Iterator[MainFile]:
    path.touch()
    with contextlib.closing(MainFile(path)) as main:
        yield main


@pytest.fixture
def database(path: Path, main: MainFile) -> Iterator[sqlite3.Connection]:
    """Forty rows, each with a page of its own, in the main file, with sums."""
    with contextlib.closing(open_writer(path)) as connection:
        connection.execute("create table state (sequence integer)")
        connection.execute("insert into state values (0)")
        connection.execute("create table row (number integer primary key, text blob)")
        connection.executemany("insert into row values (?, ?)", ((number, b"0" * 3000) for number in range(40)))
        assert checkpoint_with_sums(main)
        yield connection


def rot(path: Path, page: int) -> None:
    with path.open("r+b") as file:
        file.seek(page * PAGE_BYTES + 100)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def change(connection: sqlite3.Connection, number: int) -> None:
    connection.execute("update row set text=? where number=?", (b"1" * 3000, number))


def last_frame_page(path: Path) -> int:
    frame = Path(f"{path}-wal").read_bytes()[-FRAME_BYTES:]
    return int.from_bytes(frame[:4], "big") - 1


@pytest.mark.usefixtures("database")
def test_page_that_differs_is_damage(path: Path) -> None:
    verify_pages(path)
    for page in (0, 7, path.stat().st_size // PAGE_BYTES - 1):
        rot(path, page)
        with pytest.raises(Corrupt, match=f"1 of its .* pages fail their checksum, the first is page {page}"):
            verify_pages(path)
        rot(path, page)
    verify_pages(path)


@pytest.mark.usefixtures("database")
def test_pages_that_are_missing_are_damage_and_more_of_them_are_not(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(PAGE_BYTES))  # a checkpoint that was cut off while it made the file longer
    verify_pages(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 2 * PAGE_BYTES)
    with pytest.raises(Corrupt, match=r"1 of its .* pages are missing"):
        verify_pages(path)


def test_page_that_the_wal_holds_may_differ(path: Path, database: sqlite3.Connection) -> None:
    change(database, 7)
    page = last_frame_page(path)
    rot(path, page)
    verify_pages(path)
    rot(path, page + 1)
    with pytest.raises(Corrupt, match=f"the first is page {page + 1}"):
        verify_pages(path)


def test_page_of_a_torn_frame_may_not_differ(path: Path, database: sqlite3.Connection) -> None:
    """SQLite drops a frame that fails its checksum: no checkpoint ever wrote that page."""
    change(database, 7)
    kept = last_frame_page(path)
    change(database, 30)
    page = last_frame_page(path)
    assert page != kept
    wal = Path(f"{path}-wal")
    torn = bytearray(wal.read_bytes())
    torn[-1] ^= 1
    wal.write_bytes(bytes(torn))
    verify_pages(path)
    rot(path, kept)
    verify_pages(path)
    rot(path, page)
    with pytest.raises(Corrupt, match=f"1 of its .* pages fail their checksum, the first is page {page}"):
        verify_pages(path)


def test_checkpoint_sums_no_page_that_was_not_committed(
    path: Path, main: MainFile, database: sqlite3.Connection
) -> None:
    """Frames of a transaction that was rolled back lie behind the end of the WAL: what they name may have rotted."""
    change(database, 1)
    database.execute("pragma cache_size=5")
    database.execute("begin")
    database.execute("update row set text=zeroblob(3000)")
    database.execute("rollback")
    page = last_frame_page(path)
    rot(path, page)
    assert checkpoint_with_sums(main)
    with pytest.raises(Corrupt, match=f"the first is page {page}"):
        verify_pages(path)


@pytest.mark.parametrize("ahead", [False, True])
def test_sums_follow_what_was_moved(path: Path, main: MainFile, database: sqlite3.Connection, ahead: bool) -> None:
    for number in range(10):
        change(database, number)
    if ahead:
        moved = checkpoint_ahead(main)
        assert moved.frames > 0
        change(database, 20)
        assert checkpoint_with_sums(main, moved)
    else:
        assert checkpoint_with_sums(main)
    assert Path(f"{path}-wal").stat().st_size == 0
    verify_pages(path)
    page = path.read_bytes().rindex(b"1" * 3000) // PAGE_BYTES
    rot(path, page)
    with pytest.raises(Corrupt):
        verify_pages(path)


def test_sums_are_damaged_or_missing(path: Path, main: MainFile, database: sqlite3.Connection) -> None:
    stored = sums_path(path).read_bytes()
    for damaged in (b"", stored[:-1], stored[:10], b"X" + stored[1:], stored[:-1] + bytes([stored[-1] ^ 1])):
        sums_path(path).write_bytes(damaged)
        with pytest.raises(Corrupt, match="sums of its pages are damaged"):
            verify_pages(path)
    change(database, 3)
    assert checkpoint_with_sums(main), "damaged sums are all taken anew"
    verify_pages(path)
    sums_path(path).unlink()
    verify_pages(path)
    store_sums(path)
    assert sums_path(path).exists()


CHECKPOINTING = """
import fcntl, sys
with open(sys.argv[1], "r+b") as shm:
    fcntl.lockf(shm, fcntl.LOCK_EX, 1, 121)  # as whoever checkpoints does
    print("held", flush=True)
    sys.stdin.read()
"""


def test_checkpoint_does_not_count_while_another_program_is_at_one(
    path: Path, main: MainFile, database: sqlite3.Connection
) -> None:
    change(database, 7)
    command = [sys.executable, "-c", CHECKPOINTING, f"{path}-shm"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"held\n"
        assert checkpoint_ahead(main).frames == 0
        assert not checkpoint_with_sums(main)
        other.communicate()
    assert checkpoint_with_sums(main)
    verify_pages(path)
