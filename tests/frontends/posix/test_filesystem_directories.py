"""Directories, buckets and extended attributes of a file system over a small store."""

import errno
import os
import stat
from pathlib import Path

import pytest
from file_rig import make
from small_store import HandClock, new_store, read

from couchestord import errors
from couchestord.frontends.posix.errors import number_of
from couchestord.frontends.posix.filesystem import ROOT, Caller, FileSystem, Room
from couchestord.model import Attributes
from couchestord.store import ObjectStore
from couchestord.store.decide.files import XATTRS_BYTES_MAX

ME = Caller(1000, 100)
DIRECTORY = stat.S_IFDIR | 0o755


def system_of(store: ObjectStore, bucket: str | None) -> FileSystem:
    return FileSystem(bucket, lambda: store, HandClock(), lambda: Room(100, 50))


def listed(system: FileSystem, ino: int) -> dict[bytes, int]:
    """Number of what each name of a directory shows."""
    handle, after, found = system.open_directory(ino), 0, dict[bytes, int]()
    while page := system.read_directory(handle, after):
        for name, shown, _ in page:
            assert name not in found
            found[name] = shown.ino
        after = page[-1][2]
    system.close_directory(handle)
    return found


async def test_a_tree_of_directories(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        system = system_of(store, "box")
        one = await system.make(ROOT, b"one", DIRECTORY, ME)
        two = await system.make(one.ino, b"two", DIRECTORY, ME)
        handle, file = await system.create(two.ino, b"f", 0o600, ME)
        await system.close(handle)
        link = await system.make(two.ino, b"l", stat.S_IFLNK | 0o777, ME, target=b"../f")
        assert (system.read_link(link.ino), link.size) == (b"../f", 4)
        assert listed(system, ROOT) == {b".": ROOT, b"..": ROOT, b"one": one.ino}
        assert listed(system, one.ino) == {b".": one.ino, b"..": ROOT, b"two": two.ino}
        assert listed(system, two.ino) == {b".": two.ino, b"..": one.ino, b"f": file.ino, b"l": link.ino}
        assert [system.lookup(two.ino, name).ino for name in (b".", b"..", b"f")] == [two.ino, one.ino, file.ino]
        assert system.lookup(one.ino, b"..").ino == system.lookup(ROOT, b"..").ino == ROOT
        assert (system.stat(ROOT).nlink, system.stat(one.ino).nlink, system.stat(two.ino).nlink) == (3, 3, 2)
        await system.rename(one.ino, b"two", ROOT, b"moved", no_replace=False)
        assert system.lookup(two.ino, b"..").ino == ROOT
        assert [entry.key for entry in (await store.list("box", prefix=b"moved/")).entries] == [b"moved/f", b"moved/l"]
        assert system.room() == Room(100, 50)


async def test_what_directories_refuse(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        system = system_of(store, "box")
        one = await system.make(ROOT, b"one", DIRECTORY, ME)
        await system.make(one.ino, b"two", DIRECTORY, ME)
        with pytest.raises(errors.DirectoryNotEmpty):
            await system.remove_directory(ROOT, b"one")
        with pytest.raises(errors.IntoItself):
            await system.rename(ROOT, b"one", one.ino, b"x", no_replace=False)
        with pytest.raises(errors.IsADirectory):
            await system.unlink(ROOT, b"one")
        with pytest.raises(errors.NoSuchEntry):
            system.lookup(ROOT, b"none")
        with pytest.raises(errors.NameTooLong):
            system.lookup(ROOT, b"n" * 256)
        with pytest.raises(errors.EntryExists):
            await system.make(ROOT, b"one", stat.S_IFREG | 0o600, ME)
        await system.remove_directory(one.ino, b"two")
        await system.remove_directory(ROOT, b"one")
        assert listed(system, ROOT) == {b".": ROOT, b"..": ROOT}
        with pytest.raises(errors.StaleInode):
            system.open_directory(one.ino)


async def test_what_s3_made_is_removed_by_the_names_it_is_shown_under(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        system = system_of(store, "box")
        keys = [b"a", b"a/", b"a/b", b"a//c", b"n" * 300, b"./x", b"../y", b"plain"]
        for key in keys:
            await store.put("box", key, key)

        async def remove_all(ino: int) -> None:
            for name, number in listed(system, ino).items():
                if name in (b".", b".."):
                    continue
                assert system.lookup(ino, name).ino == number
                if stat.S_ISDIR(system.stat(number).mode):
                    await remove_all(number)
                    await system.remove_directory(ino, name)
                else:
                    await system.unlink(ino, name)

        await remove_all(ROOT)
        assert (await store.list("box")).entries == ()


async def test_a_bucket_that_is_not_there(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        with pytest.raises(errors.NoSuchBucket):
            system_of(store, "none")


# -- the top that has all buckets --------------------------------------------------------------------------------------


async def test_buckets_are_directories_of_the_top(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        system = system_of(store, None)
        assert listed(system, ROOT) == {b".": ROOT, b"..": ROOT, b"box": store.files.root("box")}
        made = await system.make(ROOT, b"another", DIRECTORY, ME)
        assert made.ino == store.files.root("another") == system.lookup(ROOT, b"another").ino
        assert listed(system, ROOT) == {b".": ROOT, b"..": ROOT, b"box": store.files.root("box"), b"another": made.ino}
        assert (system.stat(ROOT).nlink, stat.S_ISDIR(system.stat(ROOT).mode)) == (4, True)
        assert system.lookup(made.ino, b"..").ino == system.lookup(ROOT, b"..").ino == ROOT
        assert listed(system, made.ino) == {b".": made.ino, b"..": ROOT}
        handle, file = await system.create(made.ino, b"f", 0o600, ME)
        await system.write(handle, 0, b"bytes")
        await system.close(handle)
        assert await read(store, b"f", "another") == b"bytes"
        with pytest.raises(errors.BucketNotEmpty):
            await system.remove_directory(ROOT, b"another")
        await system.unlink(made.ino, b"f")
        below = await system.make(made.ino, b"d", DIRECTORY, ME)
        with pytest.raises(errors.BucketNotEmpty):
            await system.remove_directory(ROOT, b"another")
        await system.remove_directory(made.ino, b"d")
        await system.remove_directory(ROOT, b"another")
        assert [bucket.name for bucket in await store.list_buckets()] == ["box"]
        with pytest.raises(errors.NoSuchEntry):
            system.lookup(ROOT, b"another")
        assert system.stat(file.ino).nlink == 0  # until the store frees it
        for gone in (made.ino, below.ino):
            with pytest.raises(errors.StaleInode):
                system.stat(gone)


@pytest.mark.parametrize(
    ("name", "number"),
    [(b"box", errno.EEXIST), (b"Box!", errno.EINVAL), (b"\xff\xff\xff", errno.EINVAL), (b"x", errno.EINVAL)],
)
async def test_names_of_buckets_that_cannot_be_made(tmp_path: Path, name: bytes, number: int) -> None:
    async with new_store(tmp_path) as store:
        with pytest.raises(errors.Error) as caught:
            await system_of(store, None).make(ROOT, name, DIRECTORY, ME)
        assert number_of(caught.value) == number


async def test_at_the_top_are_buckets_only(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        system, box = system_of(store, None), store.files.root("box")
        file = await make(store, b"f")
        await make(store, b"d", DIRECTORY)
        with pytest.raises(errors.NotPermitted):
            await system.create(ROOT, b"f", 0o600, ME)
        with pytest.raises(errors.NotPermitted):
            await system.make(ROOT, b"l", stat.S_IFLNK | 0o777, ME, target=b"x")
        with pytest.raises(errors.NotPermitted):
            await system.link(file, ROOT, b"f")
        with pytest.raises(errors.NotPermitted):
            await system.unlink(ROOT, b"box")
        with pytest.raises(errors.NotPermitted):
            await system.rename(ROOT, b"box", ROOT, b"other", no_replace=False)
        with pytest.raises(errors.NotPermitted):
            await system.rename(box, b"d", ROOT, b"other", no_replace=False)
        with pytest.raises(errors.NotPermitted):
            await system.change(ROOT, mode=0o700)
        with pytest.raises(errors.NotPermitted):
            await system.set_xattr(ROOT, b"user.a", b"")
        with pytest.raises(errors.NoSuchBucket):
            await system.remove_directory(ROOT, b"none")
        assert [bucket.name for bucket in await store.list_buckets()] == ["box"]


async def test_entries_stay_in_their_bucket(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        system, box = system_of(store, None), store.files.root("box")
        other = (await system.make(ROOT, b"other", DIRECTORY, ME)).ino
        file = await make(store, b"f")
        with pytest.raises(errors.AcrossBuckets):
            await system.rename(box, b"f", other, b"f", no_replace=False)
        with pytest.raises(errors.AcrossBuckets):
            await system.link(file, other, b"f")
        assert number_of(errors.AcrossBuckets("x")) == errno.EXDEV  # mv copies then
        assert system.lookup(box, b"f").ino == file


# -- extended attributes -----------------------------------------------------------------------------------------------


async def test_extended_attributes_of_files_and_directories(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        system = system_of(store, "box")
        for ino in (ROOT, await make(store, b"f"), await make(store, b"d", DIRECTORY)):
            assert system.xattrs(ino) == []
            await system.set_xattr(ino, b"user.b", b"\0bytes\xff")
            await system.set_xattr(ino, b"user.a", b"")
            assert system.xattrs(ino) == [b"user.a", b"user.b"]
            assert (system.xattr(ino, b"user.a"), system.xattr(ino, b"user.b")) == (b"", b"\0bytes\xff")
            with pytest.raises(errors.XattrExists):
                await system.set_xattr(ino, b"user.b", b"", os.XATTR_CREATE)
            await system.set_xattr(ino, b"user.b", b"other", os.XATTR_REPLACE)
            assert system.xattr(ino, b"user.b") == b"other"
            with pytest.raises(errors.NoSuchXattr):
                await system.set_xattr(ino, b"user.c", b"", os.XATTR_REPLACE)
            await system.set_xattr(ino, b"user.b", None)
            assert system.xattrs(ino) == [b"user.a"]
            with pytest.raises(errors.NoSuchXattr):
                system.xattr(ino, b"user.b")
            with pytest.raises(errors.NoSuchXattr):
                await system.set_xattr(ino, b"user.b", None)


async def test_extended_attributes_have_a_limit_together(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        system = system_of(store, "box")
        # what S3 keeps does not count
        said = Attributes({"content-type": "x" * 1000}, {"name": "value" * 100})
        await store.put("box", b"f", b"", attributes=said)
        ino = system.lookup(ROOT, b"f").ino
        await system.set_xattr(ino, b"one", bytes(XATTRS_BYTES_MAX - 3))
        with pytest.raises(errors.XattrTooLarge):
            await system.set_xattr(ino, b"one", bytes(XATTRS_BYTES_MAX - 2))
        with pytest.raises(errors.XattrTooLarge):
            await system.set_xattr(ino, b"b", b"")
        await system.set_xattr(ino, b"one", bytes(XATTRS_BYTES_MAX - 7))
        await system.set_xattr(ino, b"two", b"x")
        with pytest.raises(errors.XattrTooLarge):
            await system.set_xattr(ino, b"two", b"xy")
        assert (len(system.xattr(ino, b"one")), system.xattr(ino, b"two")) == (XATTRS_BYTES_MAX - 7, b"x")


async def test_what_s3_keeps_is_read_as_extended_attributes_and_not_set(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        system = system_of(store, "box")
        info = await store.put("box", b"f", b"bytes", attributes=Attributes({"content-type": "text/css"}))
        ino = system.lookup(ROOT, b"f").ino
        assert system.xattrs(ino) == [b"user.s3.content-type"]
        assert system.xattr(ino, b"user.s3.etag") == info.etag.encode()
        assert system.xattr(ino, b"user.s3.content-type") == b"text/css"
        with pytest.raises(errors.NoSuchXattr):
            system.xattr(ino, b"user.s3.expires")
        for value, flags in ((b"text/html", 0), (b"x", os.XATTR_CREATE), (b"x", os.XATTR_REPLACE), (None, 0)):
            with pytest.raises(errors.NotPermitted) as caught:
                await system.set_xattr(ino, b"user.s3.content-type", value, flags)
            assert number_of(caught.value) == errno.EPERM
        assert (await store.head("box", b"f")).attributes.headers == {"content-type": "text/css"}
