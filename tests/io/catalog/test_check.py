import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from decide_rig import DecideRig
from file_rig import make, there, write
from small_store import SMALL, STRIPE_BYTES, body_of, catalog_of, faults_of, make_store

from couchestord.io import filerequests as fr
from couchestord.io.catalog.check import SHOWN_MAX, find_faults
from couchestord.model import PART_BYTES_MIN
from couchestord.store.door import ObjectStore

FAULTS = {
    "insert into entry select 9999, 'x', child, inode, cookie, content, size, etag, modified_ns, flags, "
    "attributes from entry where child=0 limit 1": "entries in directories that do not exist",
    "update entry set child=9999 where child<>0": "entries that name a directory that does not exist",
    "update directory set name='other' where parent<>0": "directories that no entry names",
    "delete from bucket": "roots that no bucket names",
    "delete from inode where id=(select min(inode) from entry where child=0)": "entries whose inode does not exist",
    "delete from inode where id in (select id from version)": "versions whose inode does not exist",
    "delete from entry where inode=(select min(inode) from entry where child=0)": "inodes that nothing names",
    "update link set name='none' where name=x'6c696e6b6564'": "hard links that are no entry and no version",
    "delete from link": "files that do not count what holds them",
    "update inode set name='none' where id=(select inode from link)": "inodes that say another name than those they",
    "update inode set name=x'6c696e6b6564' where id=(select inode from link)": "inodes that say an older version",
    "delete from content where id=(select min(content) from inode)": "inodes whose content does not exist",
    "update piece set inode=inode+9999": "pieces of inodes that do not exist",
    "update extent set length=length+1 where segment=0": "contents whose extents do not cover them",
    "insert into content values (9999, 0, 0, 0, 0)": "contents that nothing refers to",
    "insert into extent (id, start, length, segment, stripe, stripe_start) "
    "values (9999, 0, 5, 0, 1, 0)": "extents of no content",
    "update extent set segment=9999 where segment<>0": "extents in segments that do not exist",
    "update content set policy=7": "policies that do not exist",
    "update segment set policy=7": "extents that lie under another policy than their content",
    "update segment set live_bytes=live_bytes-1": "segments whose live bytes are miscounted",
    "update part set upload='none'": "parts of uploads that do not exist",
    "update worn set pieces=pieces+1": "files that miscount their pieces",
    "update worn set live=live+1": "files that miscount their pieces",
    "update worn set held=held-1": "files that miscount their pieces",
    "insert into worn values (9999, 1, 1024, 1, 1)": "files that miscount their pieces",
    "update state set next_id=17": "ids at or above the next id",
    "update segment set disks=x'0000'": "does not have 6 places",
    "update content set refs=refs+1 where id=(select min(id) from content)": "references, there are 1",
    "delete from content where id in (select content from piece)": "is named and does not exist",
}


@asynccontextmanager
async def filled(path: Path) -> AsyncIterator[ObjectStore]:
    """A store with something in every table."""
    await make_store(path)
    async with ObjectStore.open(path, SMALL) as store:
        for number in range(4):
            await store.put("box", b"a/%d/key" % number, body_of(1000 * number))
        await store.put("box", b"long", body_of(5 * STRIPE_BYTES))
        await store.copy("box", b"copy", "box", b"long")
        await write(store, there(store, b"long").id, (1000, b"written over"))
        linked = await make(store, b"linked")
        for name in (b"other", b"third"):
            await store.files.change(fr.LinkNode(linked, store.files.root("box"), name))
        await store.set_versioning("box", "Enabled")
        await store.put("box", b"linked", b"new")
        for body in (b"one", b"two"):
            await store.put("box", b"versioned", body)
        await store.delete("box", b"versioned")
        upload = (await store.create_upload("box", b"big")).upload_id
        await store.put_part("box", b"big", upload, 1, body_of(PART_BYTES_MIN))
        done = (await store.create_upload("box", b"done")).upload_id
        parts = [
            (number, (await store.put_part("box", b"done", done, number, body)).etag)
            for number, body in ((1, body_of(PART_BYTES_MIN)), (2, b"the end"))
        ]
        await store.complete_upload("box", b"done", done, parts)
        yield store


async def test_sound_catalog(tmp_path: Path) -> None:
    async with filled(tmp_path):
        pass
    assert faults_of(tmp_path) == []


async def test_each_contradiction_is_named(tmp_path: Path) -> None:
    async with filled(tmp_path):
        pass
    for statement, said in FAULTS.items():
        with closing(sqlite3.connect(catalog_of(tmp_path), isolation_level=None)) as connection:
            connection.execute("begin")
            changed = connection.execute(statement).rowcount
            assert changed, f"{statement} changes nothing"
            found = find_faults(connection)
            connection.execute("rollback")
        assert [fault for fault in found if said in fault], f"{said!r} is not among {found}"
    assert faults_of(tmp_path) == []


async def test_directory_that_nobody_keeps(tmp_path: Path) -> None:
    async with filled(tmp_path):
        pass
    with closing(sqlite3.connect(catalog_of(tmp_path))) as connection:
        connection.execute("delete from entry where directory in (select id from directory where name=x'332f')")
        connection.commit()
    assert any("empty directories that nobody keeps" in fault for fault in faults_of(tmp_path))


async def test_list_of_what_is_wrong_is_short(tmp_path: Path) -> None:
    await make_store(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        for number in range(3 * SHOWN_MAX):
            await store.put("box", b"%d" % number, b"body")
    with closing(sqlite3.connect(catalog_of(tmp_path))) as connection:
        connection.execute("update content set refs=7")
        connection.commit()
    assert len(faults_of(tmp_path)) == SHOWN_MAX


def test_four_times_as_much_takes_four_times_as_long(tmp_path: Path) -> None:
    """Not sixteen times: of a million objects that was a day."""
    steps = []
    for count in (200, 800):
        folder = tmp_path / f"{count}"
        folder.mkdir()
        rig = DecideRig(folder)
        rig.bucket()
        for number in range(count):
            rig.put(b"%d/%d/key" % (number % 7, number))
        rig.close()
        with closing(sqlite3.connect(rig.path)) as connection:
            taken: list[None] = []
            connection.set_progress_handler(lambda taken=taken: taken.append(None), 100)  # type: ignore[misc]
            assert find_faults(connection) == []
        steps.append(len(taken))
    assert steps[1] < 6 * steps[0], steps


@pytest.mark.parametrize("table", ["entry", "inode", "content", "extent", "segment", "part", "piece"])
async def test_every_table_matters(tmp_path: Path, table: str) -> None:
    """Rows that vanish from any of them are noticed."""
    async with filled(tmp_path):
        pass
    with closing(sqlite3.connect(catalog_of(tmp_path))) as connection:
        assert connection.execute(f"delete from {table}").rowcount
        connection.commit()
    assert faults_of(tmp_path)
