"""The catalog's files: made, and put in each other's place."""

import sqlite3
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

from couchestord.errors import Corrupt
from couchestord.io.catalog import catalog
from couchestord.io.catalog.catalog import FILE_SUFFIXES, Catalog, put_in_place
from couchestord.io.catalog.generations import MEMORY_BYTES, Generations
from couchestord.io.catalog.kept import KeptObjects
from couchestord.io.catalog.pages import PAGE_BYTES
from couchestord.io.folder import sync_folder
from couchestord.model import Policy

STORE_ID = b"0123456789abcdef"


def test_what_sqlite_says_of_a_catalog_that_is_made_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "statements", lambda: ["create table"])
    with pytest.raises(Corrupt, match="making the catalog"):
        Catalog.create(tmp_path / "new", STORE_ID, Policy())


def test_old_files_are_gone_for_good_before_a_new_catalog_has_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut that brought the old WAL back beside it would make one catalog of both."""
    path, made = tmp_path / "db", tmp_path / "db.new"
    Catalog.create(made, STORE_ID, Policy())
    for suffix in FILE_SUFFIXES:
        Path(f"{path}{suffix}").write_bytes(b"old")
    there: list[list[str]] = []

    def sync(folder: Path) -> None:
        there.append([suffix for suffix in FILE_SUFFIXES if Path(f"{path}{suffix}").exists()])
        sync_folder(folder)

    monkeypatch.setattr(catalog, "sync_folder", sync)
    put_in_place(made, path)
    assert there == [[], ["", ".sums"]]
    assert all(Path(f"{path}{suffix}.discarded").read_bytes() == b"old" for suffix in FILE_SUFFIXES)


@pytest.mark.parametrize("fails", [False, True])
def test_what_others_read_while_a_commit_is_made_known_is_not_kept(tmp_path: Path, fails: bool) -> None:
    """It may be of before. A commit that raises may have happened all the same."""
    place = 7, b"key"
    Catalog.create(tmp_path / "db", STORE_ID, Policy())
    with closing(Catalog(tmp_path / "db")) as written:
        memory = memoryview(bytearray(MEMORY_BYTES))
        written.generations.share(memory)
        kept: KeptObjects[str] = KeptObjects(Generations(memory))

        def told(_: Catalog) -> None:
            kept.look_up(place, lambda _: ("of before", 0))

        written.tell(told)
        written.begin()
        written.applier.generations.change_object(*place)
        if fails:
            written._writer.execute("rollback")  # there is nothing to commit
        with pytest.raises(Corrupt, match="committing") if fails else nullcontext():
            written.commit()
        assert kept.get(place) is None


def test_what_cannot_be_read_before_anybody_watches_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "db"
    Catalog.create(path, STORE_ID, Policy())
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("select rootpage from sqlite_master where name = 'policy'").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE_BYTES)
        file.write(b"\xff" * PAGE_BYTES)
    with closing(Catalog(path)) as damaged, pytest.raises(Corrupt, match="cannot be read"):
        damaged.accounts.policies()
