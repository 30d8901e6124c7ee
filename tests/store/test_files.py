"""Files of a small store, and what S3 shows of them."""

import hashlib
import stat
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest
from file_rig import laid, make, there, write
from replica_rig import pair
from small_store import STRIPE_BYTES, body_of, core_of, faults_of, new_store, read

from couchestord.errors import (
    AcrossBuckets,
    InvalidRange,
    IsADirectory,
    NoSuchBucket,
    NoSuchKey,
    NotADirectory,
    NotPermitted,
    ReadOnlyBucket,
    StaleInode,
)
from couchestord.io import filerequests as fr
from couchestord.model import PART_BYTES_MIN, Attributes, ByteRange, ListEntry, Policy
from couchestord.store import Objects, ObjectStore
from couchestord.store.names import ESCAPE

Writing = AbstractAsyncContextManager[tuple[ObjectStore, Objects]]


class Opened(Protocol):
    def __call__(self, path: Path) -> Writing: ...


@asynccontextmanager
async def alone(path: Path) -> AsyncIterator[tuple[ObjectStore, Objects]]:
    async with new_store(path) as store:
        yield store, store


@asynccontextmanager
async def beside(path: Path) -> AsyncIterator[tuple[ObjectStore, Objects]]:
    async with pair(path) as both:
        yield both.store, both.replica


either = pytest.mark.parametrize("opened", [alone, beside])
"""In the process of the store, and in one that reads beside it."""
SAFE = Policy(name="safe", k=2, m=4, stripe_bytes=STRIPE_BYTES)
PARTS = [
    (5, b"short"),
    (70_000, body_of(3 * STRIPE_BYTES + 17)),
    (300_000, body_of(30_000)),
    (400_000, b"end"),
]


@either
async def test_published_bytes_are_read_wherever_they_lie(tmp_path: Path, opened: Opened) -> None:
    async with opened(tmp_path) as (store, objects):
        id_ = await make(objects, b"f")
        assert await objects.files.read(id_, 0, 10) == b""
        whole = laid(*PARTS)
        await write(objects, id_, *PARTS)
        for _ in range(2):
            files = objects.files
            assert files.node(id_).size == len(whole)
            assert await files.read(id_, 0, len(whole)) == whole
            assert await files.read(id_, 0, 1 << 40) == whole
            for first, length in [(0, 3), (3, 9), (69_990, 20), (130_000, 70_000), (310_000, 100_000), (399_999, 2)]:
                assert await files.read(id_, first, length) == whole[first : first + length]
            assert await files.read(id_, len(whole), 1) == b""
            assert await files.read(id_, 1 << 40, 1) == b""
            await store.destage()
        over = [(2, body_of(60_001, 1)), (290_000, b"x" * 20_000), (500_000, b"more")]
        await write(objects, id_, *over)
        whole = laid(*over, over=whole)
        assert await objects.files.read(id_, 0, 1 << 40) == whole
        await write(objects, id_, (300_010, b"after the cut"), cut=300_003)
        whole = laid((300_010, b"after the cut"), over=whole[:300_003])
        await store.destage()
        assert await objects.files.read(id_, 0, 1 << 40) == whole
    assert faults_of(tmp_path) == []


@either
async def test_s3_sees_what_was_published(tmp_path: Path, opened: Opened) -> None:
    async with opened(tmp_path) as (store, objects):
        directory = await make(objects, b"d", stat.S_IFDIR | 0o755)
        id_ = await make(objects, b"f", directory=directory)
        assert await read(objects, b"d/f") == b""
        empty = await objects.head("box", b"d/f")
        await write(objects, id_, *PARTS)
        info = await objects.head("box", b"d/f")
        assert info.size_bytes == len(laid(*PARTS))
        assert info.etag != empty.etag
        assert info.etag.endswith("-1")  # it is no MD5
        for _ in range(2):
            assert await read(objects, b"d/f") == laid(*PARTS)
            assert await read(objects, b"d/f", byte_range=ByteRange(69_998, 300_001)) == laid(*PARTS)[69_998:300_002]
            assert await read(objects, b"d/f", byte_range=ByteRange(20, 60_000)) == bytes(59_981)
            await store.destage()
        (entry,) = (await objects.list("box")).entries
        assert entry == ListEntry(b"d/f", info.size_bytes, info.etag, info.modified_ns)
        assert (await objects.list("box", delimiter=b"/")).prefixes == (b"d/",)
        await write(objects, id_, cut=0)
        assert await read(objects, b"d/f") == b""
        assert (await objects.head("box", b"d/f")).etag not in (info.etag, empty.etag)


@either
async def test_an_empty_directory_is_an_object_without_bytes(tmp_path: Path, opened: Opened) -> None:
    async with opened(tmp_path) as (store, objects):
        directory = await make(objects, b"d", stat.S_IFDIR | 0o755)
        await make(objects, b"in it", stat.S_IFDIR | 0o755, directory)
        info = await objects.head("box", b"d/in it/")
        assert (info.key, info.size_bytes, info.attributes.headers) == (
            b"d/in it/",
            0,
            {"content-type": "application/x-directory"},
        )
        assert (await objects.list("box")).entries == (ListEntry(b"d/in it/", 0, info.etag, info.modified_ns),)
        assert await read(objects, b"d/in it/") == b""
        with pytest.raises(InvalidRange):
            await read(objects, b"d/in it/", byte_range=ByteRange(0, 0))
        await objects.copy("box", b"copied", "box", b"d/in it/")
        assert await read(objects, b"copied") == b""
        await objects.put("box", b"d/in it/file", b"1")
        with pytest.raises(NoSuchKey):
            await objects.head("box", b"d/in it/")
        await objects.delete("box", b"d/in it/file")
        assert await objects.head("box", b"d/in it/") == info
        await objects.delete("box", b"d/in it/")
        assert [entry.key for entry in (await objects.list("box")).entries] == [b"copied"]
        with pytest.raises(StaleInode):
            objects.files.node(directory)
        await objects.delete("box", b"copied")
        await store.delete_bucket("box")
    assert faults_of(tmp_path) == []


async def test_sparse_files_are_copied(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        parts = [*PARTS, (PART_BYTES_MIN + 90, b"across the cut"), (PART_BYTES_MIN + 100_000, body_of(20_000))]
        whole, cut = laid(*parts), PART_BYTES_MIN + 100
        id_ = await make(store, b"f")
        await write(store, id_, *parts)
        for round_ in range(2):  # from the journal, and from stripes
            copied = await store.copy("box", b"copy %d" % round_, "box", b"f")
            assert copied.size_bytes == len(whole)
            joined = b"joined %d" % round_
            upload = (await store.create_upload("box", joined)).upload_id
            given = []
            for number, (low, high) in enumerate([(0, cut), (cut, len(whole))], start=1):
                asked = ByteRange(low, high - 1)
                part = await store.copy_part("box", joined, upload, number, "box", b"f", byte_range=asked)
                given.append((number, part.etag))
            await store.complete_upload("box", joined, upload, given)
            await store.destage()
        await write(store, id_, (0, b"later"), cut=0)
        await store.delete("box", b"f")
        for round_ in range(2):
            assert await read(store, b"copy %d" % round_) == whole
            assert await read(store, b"joined %d" % round_) == whole
            asked = ByteRange(cut - 50, cut + 50)
            assert await read(store, b"joined %d" % round_, byte_range=asked) == whole[cut - 50 : cut + 51]
    assert faults_of(tmp_path) == []


async def test_what_s3_put_is_written_through_files(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        body = body_of(200_000)
        put = await store.put("box", b"k", body)
        id_ = there(store, b"k").id
        assert await store.files.read(id_, 100, 1000) == body[100:1100]
        await write(store, id_, (150_000, b"new"), (250_000, b"end"))
        assert await read(store, b"k") == laid((150_000, b"new"), (250_000, b"end"), over=body)
        assert (await store.head("box", b"k")).etag != put.etag
        assert there(store, b"k").id == id_


async def test_numbers_of_buckets_and_directories(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await store.create_bucket("another")
        files = store.files
        root = files.root("box")
        assert files.buckets() == [(b"another", files.root("another")), (b"box", root)]
        with pytest.raises(NoSuchBucket):
            files.root("none")
        await store.put("box", b"a/b/c", b"x")
        directory = there(store, b"a")
        below = there(store, b"b", directory.id)
        assert (directory.is_directory, below.is_directory) == (True, True)
        assert (files.parent(below.id), files.parent(directory.id), files.parent(root)) == (directory.id, root, root)
        assert there(store, b"c", below.id).size == 1
        assert files.lookup(root, b"c") is None
        await store.delete("box", b"a/b/c")
        for gone in (files.parent, files.node):
            with pytest.raises(StaleInode):
                gone(below.id)
        with pytest.raises(NotADirectory):
            files.entries(below.id, None, 10)
        with pytest.raises(StaleInode):
            await files.read(below.id, 0, 1)


async def test_entries_come_in_pages(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        files = store.files
        keys = [b"a", b"a.b", b"a/x", b"b/y", b"b/z", b"c", b"n" * 256, b"./x"]
        for key in keys:
            await store.put("box", key, b"")
        whole = files.entries(files.root("box"), None, 100)
        assert [each.row.name for each in whole] == sorted({key.split(b"/")[0] + b"/" * (b"/" in key) for key in keys})
        plain = {each.row.name: each.name for each in whole if not each.name.startswith(ESCAPE)}
        assert plain == {b"a.b": b"a.b", b"a/": b"a", b"b/": b"b", b"c": b"c"}
        paged, after = [], None
        while page := files.entries(files.root("box"), after, 3):
            assert len(page) <= 3
            paged += page
            after = page[-1].row.name
        assert paged == whole
        for name, row in whole:
            assert files.lookup(files.root("box"), name) == row.node


async def test_version_grows_with_each_change(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        before = store.files.version
        assert store.files.version == before
        id_ = await make(store, b"f")
        made = store.files.version
        assert made > before
        await store.put("box", b"k", b"x")
        assert store.files.version > made
        node = await store.files.change(fr.ChangeInode(id_, 0o640, 7, None, None, 5))
        assert node is not None
        assert (node.mode, node.uid, node.gid, node.modified_ns) == (stat.S_IFREG | 0o640, 7, 0, 5)
        assert store.files.node(id_) == node._replace(published_ns=store.files.node(id_).published_ns)


async def test_policy_of_a_file_is_that_of_its_bucket(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        policy = (await store.policies.add(SAFE)).id
        await store.create_bucket("other", policy="safe")
        files = store.files
        assert files.policy_of(await make(store, b"f")) == 0
        directory = await make(store, b"d", stat.S_IFDIR | 0o755, files.root("other"))
        id_ = await make(store, b"f", directory=directory)
        assert files.policy_of(id_) == policy
        await write(store, id_, (0, body_of(200_000)))
        assert {each.policy for each in core_of(store).catalog.reading.segments()} == {policy}
        await files.change(fr.UnlinkNode(directory, b"f", keep=True))
        assert files.policy_of(id_) == 0
        await write(store, id_, (1, b"x"))
        assert await files.read(id_, 0, 3) == body_of(200_000)[:1] + b"x" + body_of(200_000)[2:3]


@either
async def test_bytes_are_held_while_they_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Opened
) -> None:
    async with opened(tmp_path) as (_, objects):
        body = body_of(3 * STRIPE_BYTES + 5)

        async def pieces() -> AsyncGenerator[bytes | bytearray, None]:
            yield body[:1000]
            yield bytearray(body[1000:])

        with monkeypatch.context() as patch:
            patch.setattr(hashlib, "md5", None)  # nobody wants it
            for given in (body, pieces()):
                async with objects.files.take(given, len(body), 0) as taken:
                    assert taken.size == len(body) == sum(each.length for each in taken.extents)
                    assert taken.inline == body[len(body) - len(taken.inline) :]
                    assert len(taken.extents) == 2
            async with objects.files.take(b"short", 5, 0) as taken:
                assert (taken.inline, taken.policy, taken.md5) == (b"short", 0, b"")


@either
async def test_extended_attributes(tmp_path: Path, opened: Opened) -> None:
    async with opened(tmp_path) as (_, objects):
        files, id_ = objects.files, await make(objects, b"d", stat.S_IFDIR | 0o755)
        assert files.xattrs(id_) == []
        await files.change(fr.SetXattr(id_, b"user.b", b"xyz"))
        await files.change(fr.SetXattr(id_, b"user.a", b""))
        assert files.xattrs(id_) == [b"user.a", b"user.b"]
        assert (files.xattr(id_, b"user.b"), files.xattr(id_, b"user.a"), files.xattr(id_, b"c")) == (b"xyz", b"", None)
        await files.change(fr.SetXattr(id_, b"user.b", None))
        assert files.xattrs(id_) == [b"user.a"]


@either
async def test_what_s3_keeps_is_among_the_extended_attributes(tmp_path: Path, opened: Opened) -> None:
    async with opened(tmp_path) as (store, objects):
        said = Attributes(
            {"content-type": "text/plain"}, {"colour": "red"}, {"crc32": "AAAAAA==", "type": "FULL_OBJECT"}
        )
        info = await store.put("box", b"f", b"bytes", attributes=said)
        files, id_ = objects.files, there(objects, b"f").id
        await files.change(fr.SetXattr(id_, b"user.own", b"1"))
        shown = {
            b"user.s3.content-type": b"text/plain",
            b"user.s3.checksum-crc32": b"AAAAAA==",
            b"user.s3.checksum-type": b"FULL_OBJECT",
            b"user.s3.meta.colour": b"red",
        }
        assert files.xattrs(id_) == [b"user.own", *shown]
        assert {name: files.xattr(id_, name) for name in shown} == shown
        assert files.xattr(id_, b"user.s3.etag") == info.etag.encode()
        assert files.xattr(id_, b"user.s3.meta.size") is files.xattr(id_, b"user.s3.") is None
        await write(objects, id_, (0, b"other"))
        etag = (await store.head("box", b"f")).etag
        assert etag != info.etag
        assert files.xattr(id_, b"user.s3.etag") == etag.encode()
        # its checksum was that of other bytes
        assert files.xattrs(id_) == [b"user.own", b"user.s3.content-type", b"user.s3.meta.colour"]
        info = await store.put("box", b"f", b"anew")
        id_ = there(objects, b"f").id
        assert (files.xattrs(id_), files.xattr(id_, b"user.s3.etag")) == ([], info.etag.encode())


async def test_hard_links_show_what_s3_keeps_and_files_without_a_name_nothing(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        files, id_ = store.files, await make(store, b"f")
        await files.change(fr.LinkNode(id_, files.root("box"), b"g"))
        await files.change(fr.UnlinkNode(files.root("box"), b"f"))
        assert files.xattr(id_, b"user.s3.etag") == (await store.head("box", b"g")).etag.encode()
        await files.change(fr.UnlinkNode(files.root("box"), b"g", keep=True))
        assert (files.xattrs(id_), files.xattr(id_, b"user.s3.etag")) == ([], None)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR])
async def test_what_is_no_plain_file_shows_nothing_of_s3(tmp_path: Path, kind: int) -> None:
    """No kernel lets anybody ask for it: who copies what is listed would only hear errors."""
    async with new_store(tmp_path) as store:
        root = store.files.root("box")
        node = await store.files.change(fr.MakeNode(root, b"odd", kind | 0o777, 0, 0, 0, b"to" * stat.S_ISLNK(kind)))
        assert node is not None
        assert (await store.head("box", b"odd")).attributes.headers["content-type"].startswith("inode/")
        for id_ in (node.id, root):
            assert (store.files.xattrs(id_), store.files.xattr(id_, b"user.s3.etag")) == ([], None)


async def test_older_versions_show_nothing_of_the_live_one(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await store.put("box", b"f", b"old")
        await store.set_versioning("box", "Enabled")
        old = there(store, b"f").id
        info = await store.put("box", b"f", b"new")
        assert store.files.xattr(old, b"user.s3.etag") is None
        assert store.files.xattr(there(store, b"f").id, b"user.s3.etag") == info.etag.encode()


@pytest.mark.parametrize("replaced", [True, False])
async def test_a_version_that_is_deleted_leaves_other_names_of_its_file(tmp_path: Path, replaced: bool) -> None:
    async with new_store(tmp_path) as store:
        id_ = await make(store, b"a")
        await write(store, id_, (0, body_of(30_000)))
        info = await store.head("box", b"a")
        await store.files.change(fr.LinkNode(id_, store.files.root("box"), b"b"))
        await store.set_versioning("box", "Enabled")
        if replaced:
            await store.put("box", b"a", b"new")
        for _ in range(2):
            assert store.files.node(id_).published_ns == there(store, b"b").published_ns
            assert store.files.xattr(id_, b"user.s3.etag") == info.etag.encode()
            assert await read(store, b"b") == body_of(30_000)
            await store.delete("box", b"a", version_id="null")
        assert there(store, b"b").nlink == 1
        assert faults_of(tmp_path) == []
        await store.delete("box", b"b", version_id="null")
        with pytest.raises(StaleInode):
            store.files.node(id_)
    assert faults_of(tmp_path) == []


async def test_what_s3_keeps_cannot_be_set_through_files(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        id_, files = await make(store, b"f"), store.files
        etag, version = files.xattr(id_, b"user.s3.etag"), files.version
        for name in (b"user.s3.etag", b"user.s3.meta.new", b"user.s3."):
            for value in (b"x", None):
                with pytest.raises(NotPermitted):
                    await files.change(fr.SetXattr(id_, name, value))
        assert (files.xattrs(id_), files.xattr(id_, b"user.s3.etag")) == ([], etag)
        assert files.version == version
        await files.change(fr.SetXattr(id_, b"user.s3", b"own"))
        assert files.xattr(id_, b"user.s3") == b"own"
        assert (await store.head("box", b"f")).attributes == Attributes()


async def test_a_bucket_that_keeps_versions_is_not_written_as_files(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        files, root = store.files, store.files.root("box")
        directory = await make(store, b"d", stat.S_IFDIR | 0o755)
        id_ = await make(store, b"f")
        await write(store, id_, (0, b"bytes"))
        await store.set_versioning("box", "Enabled")
        for state in ("Enabled", "Suspended"):
            await store.set_versioning("box", state)
            refused: list[fr.MakeNode | fr.LinkNode | fr.UnlinkNode | fr.RemoveDirectory | fr.RenameNode] = [
                fr.MakeNode(root, b"n", stat.S_IFREG | 0o600, 0, 0),
                fr.MakeNode(directory, b"n", stat.S_IFDIR | 0o700, 0, 0),
                fr.LinkNode(id_, root, b"n"),
                fr.UnlinkNode(root, b"f"),
                fr.RemoveDirectory(root, b"d"),
                fr.RenameNode(root, b"f", directory, b"n"),
            ]
            for request in (
                *refused,
                fr.ChangeInode(id_, 0o777),
                fr.ChangeInode(root, 0o777),
                fr.SetXattr(id_, b"a", b""),
            ):
                with pytest.raises(ReadOnlyBucket):
                    await files.change(request)
            with pytest.raises(ReadOnlyBucket):
                await write(store, id_, (0, b"other"))
        assert await files.read(id_, 0, 9) == b"bytes"
        assert [each.name for each in files.entries(root, None, 9)] == [b"d", b"f"]


async def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await store.create_bucket("other")
        files, root = store.files, store.files.root("box")
        id_ = await make(store, b"f")
        with pytest.raises(AcrossBuckets):
            await files.change(fr.RenameNode(root, b"f", files.root("other"), b"f"))
        with pytest.raises(AcrossBuckets):
            await files.change(fr.LinkNode(id_, files.root("other"), b"f"))
        with pytest.raises(IsADirectory):
            await write(store, root, (0, b"x"))
        await files.change(fr.UnlinkNode(root, b"f"))
        with pytest.raises(StaleInode):
            await files.change(fr.ChangeInode(id_, 0o600))
        with pytest.raises(StaleInode):
            await files.read(id_, 0, 1)


async def test_nothing_is_in_a_directory_that_is_gone(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        files, root = store.files, store.files.root("box")
        id_ = await make(store, b"f")
        gone = (await files.change(fr.MakeNode(root, b"d", stat.S_IFDIR | 0o755, 0, 0))).id  # type: ignore[union-attr]
        await files.change(fr.MakeNode(gone, b"kept in mind", stat.S_IFREG | 0o600, 0, 0))
        await files.change(fr.UnlinkNode(gone, b"kept in mind"))
        await files.change(fr.RemoveDirectory(root, b"d"))
        for request in (
            fr.MakeNode(gone, b"n", stat.S_IFREG | 0o600, 0, 0),
            fr.LinkNode(id_, gone, b"n"),
            fr.UnlinkNode(gone, b"n"),
            fr.RemoveDirectory(gone, b"n"),
            fr.RenameNode(gone, b"n", root, b"n"),
            fr.RenameNode(root, b"f", gone, b"n"),
        ):
            with pytest.raises(StaleInode):
                await files.change(request)
        assert there(store, b"f").nlink == 1
