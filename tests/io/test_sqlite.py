"""The connections to SQLite."""

import sqlite3
from pathlib import Path

import pytest

from couchestord.errors import Corrupt, NotFound
from couchestord.io.sqlite import checkpoint, open_reader, open_writer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "a name with ? and #.sqlite"
    connection = open_writer(made)
    connection.execute("create table t (a)")
    connection.close()
    return made


def test_the_writer_is_as_the_catalog_needs_it(path: Path) -> None:
    connection = open_writer(path)
    for pragma, value in (
        ("journal_mode", "wal"),
        ("synchronous", 1),
        ("wal_autocheckpoint", 0),
        ("trusted_schema", 0),
    ):
        assert connection.execute(f"pragma {pragma}").fetchone() == (value,)
    connection.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_reader_sees_what_is_committed_and_writes_nothing(path: Path) -> None:
    writer, reader = open_writer(path), open_reader(path)
    writer.execute("begin immediate")
    writer.execute("insert into t values (1)")
    assert reader.execute("select count(*) from t").fetchone() == (0,)
    writer.execute("commit")
    assert reader.execute("select count(*) from t").fetchone() == (1,)
    with pytest.raises(sqlite3.OperationalError):
        reader.execute("insert into t values (2)")
    writer.close()
    reader.close()


def test_a_reader_that_closes_last_leaves_the_wal(path: Path) -> None:
    before = path.read_bytes()
    writer, reader = open_writer(path), open_reader(path)
    writer.execute("insert into t values (1)")
    writer.close()
    reader.close()
    assert path.read_bytes() == before
    again = open_reader(path)
    assert again.execute("select a from t").fetchall() == [(1,)]
    again.close()


def test_checkpoint_moves_what_was_committed(path: Path) -> None:
    writer, reader = open_writer(path), open_reader(path)
    writer.execute("insert into t values (1)")
    before = path.read_bytes()
    frames, moved = checkpoint(path)
    assert frames == moved > 0
    assert path.read_bytes() != before
    reader.execute("begin")
    reader.execute("select * from t").fetchall()
    writer.execute("insert into t values (2)")
    writer.execute("begin immediate")
    writer.execute("insert into t values (3)")
    assert checkpoint(path)[1] >= 0, "neither a writer nor a reader blocks it"
    writer.execute("rollback")
    writer.close()
    reader.close()


def test_errors_are_in_our_tree(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        open_reader(tmp_path / "missing.sqlite")
    noise = tmp_path / "noise.sqlite"
    noise.write_bytes(b"no database at all, for sure. " * 300)
    with pytest.raises(Corrupt):
        open_writer(noise)
    with pytest.raises(Corrupt):
        checkpoint(noise)
    with pytest.raises(Corrupt):
        checkpoint(tmp_path / "missing.sqlite")
    assert not (tmp_path / "missing.sqlite").exists()
