"""Open files of a file system over a small store: what each reader sees, and when S3 does."""

import os
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from file_rig import there
from small_store import HandClock, body_of, core_of, faults_of, new_store, read
from trio.testing import wait_all_tasks_blocked

from couchestord import errors
from couchestord.frontends.posix.attributes import Stat
from couchestord.frontends.posix.filesystem import ROOT, Caller, FileSystem, Room, may_open
from couchestord.io import filerequests as fr
from couchestord.io.catalog.changes import Changes
from couchestord.model import OBJECT_BYTES_MAX
from couchestord.store import ObjectStore
from couchestord.store.mounts import Claim

ME = Caller(1000, 100)


def system_of(store: ObjectStore, bucket: str | None = "box") -> FileSystem:
    return FileSystem(bucket, lambda: store, HandClock(), lambda: Room(100, 50))


@asynccontextmanager
async def mounted(path: Path) -> AsyncIterator[tuple[ObjectStore, FileSystem]]:
    async with new_store(path) as store:
        system = system_of(store)

        async def which_open(inodes: Sequence[int]) -> Sequence[int]:
            return system.which_open(inodes)

        async def show(_: Changes) -> None:
            """There is no kernel."""

        core_of(store).mounts.add(Claim("box", True, which_open, show))
        assert await orphans(store) == []
        yield store, system
    assert faults_of(path) == []


@contextmanager
def refusing(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, error: errors.Error) -> Iterator[None]:
    """Nothing can be published meanwhile."""
    change = store.files.change

    async def refuse(request: Any) -> Any:
        if isinstance(request, fr.PublishFile):
            raise error
        return await change(request)

    with monkeypatch.context() as patch:
        patch.setattr(store.files, "change", refuse)
        yield


async def orphans(store: ObjectStore) -> list[int]:
    """Files without a name that stay."""
    await core_of(store).jobs.orphans.work()
    return core_of(store).catalog.files.orphans(0, 10)


async def test_what_is_written_is_read_at_once_and_published_by_sync(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (store, system):
        handle, made = await system.create(ROOT, b"f", 0o640, ME)
        assert (made.mode, made.uid, made.gid, made.size) == (stat.S_IFREG | 0o640, 1000, 100, 0)
        assert await system.write(handle, 10, b"hello") == 5
        assert system.stat(made.ino).size == system.lookup(ROOT, b"f").size == 15
        assert await system.read(handle, 0, 100) == bytes(10) + b"hello"
        assert await read(store, b"f") == b""
        await system.sync(handle)
        assert await read(store, b"f") == bytes(10) + b"hello"
        etag = (await store.head("box", b"f")).etag
        await system.sync(handle)  # nothing is new
        assert (await store.head("box", b"f")).etag == etag
        await system.write(handle, 12, b"LL")
        assert await system.read(handle, 11, 3) == b"eLL"
        assert await system.read(handle, 15, 10) == b""
        assert await read(store, b"f") == bytes(10) + b"hello"
        await system.close(handle)
        assert await read(store, b"f") == bytes(10) + b"heLLo"
        found = system.stat(made.ino)
        assert (found.size, found.mode, found.uid) == (15, stat.S_IFREG | 0o640, 1000)


async def test_all_handles_of_a_file_share_what_is_written(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (store, system):
        one, made = await system.create(ROOT, b"f", 0o600, ME)
        other = system.open(made.ino, writes=True)
        await system.write(one, 0, b"one")
        await system.write(other, 3, b"other")
        assert await system.read(one, 0, 99) == await system.read(other, 0, 99) == b"oneother"
        await system.close(one)
        assert system.which_open([made.ino, 5]) == [made.ino]
        assert await read(store, b"f") == b""  # it is published at the last close
        await system.close(other)
        assert system.which_open([made.ino]) == []
        assert await read(store, b"f") == b"oneother"


async def test_a_close_syncs_what_may_have_been_written_through_it(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (_, system):
        writer, made = await system.create(ROOT, b"f", 0o600, ME)
        reader = system.open(made.ino)
        assert not system.is_dirty(writer)
        await system.write(writer, 0, b"x")
        assert system.is_dirty(writer)
        assert not system.is_dirty(reader)
        await system.sync(writer)
        assert not system.is_dirty(writer)
        await system.close(reader)
        await system.close(writer)


async def test_long_and_sparse_files(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (store, system):
        handle, made = await system.create(ROOT, b"f", 0o600, ME)
        body = body_of(300_000)
        for at in range(0, len(body), 65_536):
            await system.write(handle, 50_000 + at, body[at : at + 65_536])
        whole = bytes(50_000) + body
        await system.sync(handle)
        await store.destage()
        await system.write(handle, 100_000, b"in the middle")
        await system.write(handle, 500_000, b"end")
        whole = whole[:100_000] + b"in the middle" + whole[100_013:]
        whole += bytes(500_000 - len(whole)) + b"end"
        for _ in range(2):
            assert await system.read(handle, 0, 1 << 20) == whole
            for first, length in [(0, 10), (49_990, 20), (99_990, 50), (349_990, 20), (499_990, 99)]:
                assert await system.read(handle, first, length) == whole[first : first + length]
            await system.sync(handle)
        assert await read(store, b"f") == whole
        await system.close(handle)
        assert system.stat(made.ino).size == len(whole)


async def test_cutting_and_making_longer(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (store, system):
        await store.put("box", b"f", b"0123456789")
        ino = there(store, b"f").id
        found = await system.change(ino, size=4)  # nobody has it open: published at once
        assert found.size == 4
        assert await read(store, b"f") == b"0123"
        reader = system.open(ino)
        assert (await system.change(ino, size=5)).size == 5  # and so when it is only read
        assert await read(store, b"f") == b"0123\0"
        await system.change(ino, size=4)
        await system.close(reader)
        handle = system.open(ino, writes=True)
        await system.write(handle, 4, b"abcd")
        assert (await system.change(ino, size=6)).size == 6
        assert (await system.change(ino, size=8)).size == 8
        assert await system.read(handle, 0, 99) == b"0123ab\0\0"
        assert await read(store, b"f") == b"0123"
        await system.close(handle)
        assert await read(store, b"f") == b"0123ab\0\0"
        with pytest.raises(errors.IsADirectory):
            await system.change(ROOT, size=1)


async def test_cut_to_the_length_that_it_has(tmp_path: Path) -> None:
    """The kernel keeps times: it says one with ftruncate(2), and with truncate(2) when the length becomes another."""
    async with mounted(tmp_path) as (store, system):
        await store.put("box", b"f", b"0123456789")
        node = there(store, b"f")
        shown = system.stat(node.id)
        assert await system.change(node.id, size=10) == shown
        assert there(store, b"f") == node
        assert (await system.change(node.id, size=10, modified_ns=5)).modified_ns == 5
        handle = system.open(node.id, writes=True)
        await system.write(handle, 10, b"x")
        shown = system.stat(node.id)
        assert await system.change(node.id, size=11) == shown
        await system.change(node.id, size=10)
        await system.close(handle)
        assert await read(store, b"f") == b"0123456789"


async def test_what_is_too_long_is_refused_and_the_rest_is_published(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (store, system):
        handle, made = await system.create(ROOT, b"f", 0o600, ME)
        await system.write(handle, 0, b"bytes")
        with pytest.raises(errors.EntityTooLarge):
            await system.write(handle, OBJECT_BYTES_MAX, b"x")
        with pytest.raises(errors.EntityTooLarge):
            await system.change(made.ino, size=OBJECT_BYTES_MAX + 1)
        await system.close(handle)
        assert await read(store, b"f") == b"bytes"
        with pytest.raises(errors.EntityTooLarge):
            await system.change(made.ino, size=OBJECT_BYTES_MAX + 1)
        assert (await system.change(made.ino, size=OBJECT_BYTES_MAX)).size == OBJECT_BYTES_MAX


async def test_opening_with_truncate(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (store, system):
        await store.put("box", b"f", b"0123456789")
        await store.put("box", b"d/x", b"")
        ino = there(store, b"f").id
        handle = system.open(ino, writes=True, truncate=True)
        assert system.stat(ino).size == 0
        assert await system.read(handle, 0, 99) == b""
        await system.write(handle, 3, b"new")
        assert await read(store, b"f") == b"0123456789"  # S3 never sees the file empty
        await system.close(handle)
        assert await read(store, b"f") == b"\0\0\0new"
        await system.close(system.open(ino, writes=True, truncate=True))
        assert await read(store, b"f") == b""
        with pytest.raises(errors.IsADirectory):
            system.open(there(store, b"d").id)
        with pytest.raises(errors.StaleInode):
            system.open(1 << 40)


async def test_times_that_are_set_while_a_file_is_written_are_published(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (_, system):
        handle, made = await system.create(ROOT, b"f", 0o600, ME)
        await system.write(handle, 0, b"x")
        assert system.stat(made.ino).modified_ns != made.modified_ns
        assert (await system.change(made.ino, modified_ns=5, accessed_ns=6)).modified_ns == 5
        await system.close(handle)
        found = system.stat(made.ino)
        assert (found.modified_ns, found.size) == (5, 1)
        assert (await system.change(made.ino, mode=0o4755, uid=7)).mode == stat.S_IFREG | 0o4755
        assert system.stat(made.ino).uid == 7


@pytest.mark.parametrize("how", ["sync", "spill"])
async def test_times_that_are_set_while_bytes_are_on_their_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async with mounted(tmp_path) as (store, system):
        handle, made = await system.create(ROOT, b"f", 0o600, ME)
        await system.write(handle, 0, body_of(300_000))
        take, gate = store.files.take, trio.Event()

        @asynccontextmanager
        async def take_late(*args: Any, **named: Any) -> AsyncIterator[object]:
            await gate.wait()
            async with take(*args, **named) as taken:
                yield taken

        monkeypatch.setattr(store.files, "take", take_late)
        async with trio.open_nursery() as nursery:
            if how == "sync":
                nursery.start_soon(system.sync, handle)
            else:
                nursery.start_soon(system._relieve, made.ino, system._open[made.ino], lambda: True)
            await wait_all_tasks_blocked()
            assert (await system.change(made.ino, modified_ns=5)).modified_ns == 5
            gate.set()
        await system.close(handle)
        assert system.stat(made.ino).modified_ns == 5
        assert await read(store, b"f") == body_of(300_000)


async def test_rights_that_are_what_they_were_cost_no_record_while_a_file_is_written(tmp_path: Path) -> None:
    """As tar and rsync set them before they close a file; of one that is not written it is a change, of its time."""
    async with mounted(tmp_path) as (store, system):
        handle, made = await system.create(ROOT, b"f", 0o600, ME)
        same = {"mode": made.mode, "uid": made.uid, "gid": made.gid}
        await trio.sleep(0.02)  # more than a tick of the kernel's clock
        assert (await system.change(made.ino, **same)).changed_ns > made.changed_ns
        before = core_of(store).catalog.committed_sequence
        clock = system._clock
        assert isinstance(clock, HandClock)
        clock.ns = 1 << 61  # later than all that the store knows
        await system.write(handle, 0, b"x")
        written = system.stat(made.ino)
        found = await system.change(made.ino, **same)
        assert found == written._replace(changed_ns=found.changed_ns)
        assert found.changed_ns > written.changed_ns
        assert core_of(store).catalog.committed_sequence == before
        for changed in ({"mode": 0o640}, {"uid": 7}, {"gid": 7}, {"accessed_ns": 7}):
            await system.change(made.ino, **{**same, **changed})
            before += 1
            assert core_of(store).catalog.committed_sequence == before
            same = {name: getattr(system.stat(made.ino), name) for name in same}
        found = await system.change(made.ino, **same, changed_ns=1 << 62)
        await system.close(handle)
        assert system.stat(made.ino) == found
        assert found.changed_ns == 1 << 62


@pytest.mark.parametrize("asked_ns", [1 << 63, 1 << 64, -(1 << 65)])
async def test_times_that_cannot_be_kept_become_the_nearest(tmp_path: Path, asked_ns: int) -> None:
    nearest_ns = (1 << 63) - 1 if asked_ns > 0 else 1 - (1 << 63)
    async with mounted(tmp_path) as (_, system):
        handle, made = await system.create(ROOT, b"f", 0o600, ME)
        found = await system.change(made.ino, modified_ns=asked_ns, accessed_ns=asked_ns)
        assert (found.modified_ns, found.accessed_ns) == (nearest_ns, nearest_ns)
        await system.write(handle, 0, b"x")
        await system.change(made.ino, modified_ns=asked_ns)
        await system.close(handle)
        found = system.stat(made.ino)
        assert (found.modified_ns, found.accessed_ns, found.size) == (nearest_ns, nearest_ns, 1)


async def test_unlinked_while_open(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (store, system):
        await store.put("box", b"f", body_of(200_000))
        ino = there(store, b"f").id
        one, other = system.open(ino, writes=True), system.open(ino, writes=True)
        await system.unlink(ROOT, b"f")
        with pytest.raises(errors.NoSuchKey):
            await store.head("box", b"f")
        with pytest.raises(errors.NoSuchEntry):
            system.lookup(ROOT, b"f")
        assert system.stat(ino).nlink == 0
        await system.write(one, 5, b"still")
        await system.sync(one)
        await system.write(one, 0, b"X")
        await system.close(one)
        whole = b"X" + body_of(200_000)[1:5] + b"still" + body_of(200_000)[10:]
        assert await system.read(other, 0, 1 << 20) == whole
        assert await orphans(store) == [ino]
        await system.close(other)
        assert await orphans(store) == []
        with pytest.raises(errors.StaleInode):
            system.stat(ino)


async def test_unlinked_while_nobody_has_it_open(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (store, system):
        handle, made = await system.create(ROOT, b"f", 0o600, ME)
        await system.close(handle)
        await system.unlink(ROOT, b"f")
        assert await orphans(store) == []
        with pytest.raises(errors.NoSuchEntry):
            await system.unlink(ROOT, b"f")
        with pytest.raises(errors.StaleInode):
            system.stat(made.ino)


async def test_a_name_that_is_taken_is_looked_up_again(tmp_path: Path) -> None:
    """Whether who makes a file may open one that is there, the kernel knows."""
    async with mounted(tmp_path) as (store, system):
        await store.put("box", b"f", b"bytes")
        with pytest.raises(errors.EntryExists):
            await system.create(ROOT, b"f", 0o600, ME)
        with pytest.raises(errors.StaleInode):
            await system.create(ROOT, b"f", 0o600, Caller(1, 1), os.O_WRONLY)
        assert system.written() == []


async def test_a_file_of_ones_own_that_s3_was_faster_to_put_is_opened(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (store, system):
        await store.put("box", b"f", b"bytes")
        owner = system.lookup(ROOT, b"f")
        who = Caller(owner.uid, owner.gid)
        handle, found = await system.create(ROOT, b"f", 0o600, who, os.O_RDWR)
        assert found == owner
        assert await system.read(handle, 0, 9) == b"bytes"
        await system.close(handle)
        handle, found = await system.create(ROOT, b"f", 0o600, who, os.O_WRONLY | os.O_TRUNC)
        assert (found.ino, found.size) == (owner.ino, 0)
        await system.close(handle)
        assert await read(store, b"f") == b""


@pytest.mark.parametrize("times", [1, 2, 3, 100])
async def test_a_name_that_comes_and_goes_is_made_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Told twice that what it asks for is stale, the kernel tells the program."""
    async with mounted(tmp_path) as (_, system):
        make, left = system.make, [times]

        async def taken(*arguments: Any, **more: Any) -> Any:
            if left[0]:
                left[0] -= 1
                raise errors.EntryExists("S3 was faster, and deletes it at once")
            return await make(*arguments, **more)

        monkeypatch.setattr(system, "make", taken)
        if times == 100:
            with pytest.raises(errors.StaleInode):
                await system.create(ROOT, b"f", 0o600, ME, os.O_WRONLY)
        else:
            _, found = await system.create(ROOT, b"f", 0o600, ME, os.O_WRONLY)
            assert system.lookup(ROOT, b"f") == found


@pytest.mark.parametrize(
    ("mode", "parent", "who", "flags", "allowed"),
    [
        (0o600, 0o777, Caller(5, 5), os.O_RDWR, True),
        (0o400, 0o777, Caller(5, 5), os.O_RDONLY, True),
        (0o400, 0o777, Caller(5, 5), os.O_WRONLY, False),
        (0o400, 0o777, Caller(5, 5), os.O_RDONLY | os.O_TRUNC, False),
        (0o066, 0o777, Caller(5, 5), os.O_RDONLY, False),
        (0o644, 0o777, Caller(6, 5), os.O_RDONLY, True),
        (0o644, 0o777, Caller(6, 5), os.O_WRONLY, False),
        (0o606, 0o777, Caller(6, 6), os.O_WRONLY, False),  # they may be of its group
        (0o660, 0o777, Caller(6, 5), os.O_WRONLY, False),  # the kernel knows
        (0o666, 0o777, Caller(6, 6), os.O_RDWR, True),
        (0o666, 0o1777, Caller(6, 6), os.O_RDWR, False),  # fs.protected_regular
        (0o666, 0o1777, Caller(5, 6), os.O_RDWR, True),
        (0o600, 0o777, Caller(0, 0), os.O_RDONLY, False),  # without capabilities root is like any other
    ],
)
def test_who_may_open_what_is_there(mode: int, parent: int, who: Caller, flags: int, allowed: bool) -> None:
    file = Stat(9, stat.S_IFREG | mode, 1, 5, 5, 0, 0, 0, 0, 0)
    folder = file._replace(mode=stat.S_IFDIR | parent)
    assert may_open(file, folder, who, flags) == allowed
    assert not may_open(file._replace(mode=stat.S_IFLNK | 0o777), folder, who, flags)


async def test_unlinked_between_a_look_and_an_open(tmp_path: Path) -> None:
    """The kernel asks for a name, then opens the number that it was told: what came between them loses nothing."""
    async with mounted(tmp_path) as (store, system):
        await store.put("box", b"f", b"old")
        found = system.lookup(ROOT, b"f")
        await store.put("box", b"f", b"new")
        handle = system.open(found.ino)
        assert await orphans(store) == [found.ino]
        assert await system.read(handle, 0, 9) == b"old"
        await system.close(handle)
        assert system.which_open([found.ino]) == []
        with pytest.raises(errors.StaleInode):  # though it is there still
            system.open(found.ino)
        assert await orphans(store) == []


async def test_renamed_over_while_open(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (store, system):
        await store.put("box", b"new", b"new")
        await store.put("box", b"f", b"old")
        old = there(store, b"f").id
        handle = system.open(old)
        await system.write(handle, 3, b" and more")
        with pytest.raises(errors.EntryExists):
            await system.rename(ROOT, b"new", ROOT, b"f", no_replace=True)
        await system.rename(ROOT, b"new", ROOT, b"f", no_replace=False)
        assert await read(store, b"f") == b"new"
        assert await system.read(handle, 0, 99) == b"old and more"
        assert await orphans(store) == [old]
        await system.sync(handle)
        assert await read(store, b"f") == b"new"
        await system.close(handle)
        assert await orphans(store) == []


async def test_replaced_through_s3_while_open(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (store, system):
        await store.put("box", b"f", b"old")
        old = there(store, b"f").id
        handle = system.open(old)
        await system.write(handle, 3, b"er")
        await store.put("box", b"f", b"new")
        assert await orphans(store) == [old]
        assert await system.read(handle, 0, 99) == b"older"
        assert system.lookup(ROOT, b"f").size == 3
        await system.close(handle)
        assert await orphans(store) == []
        assert await read(store, b"f") == b"new"


async def test_a_name_more_keeps_the_bytes(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (store, system):
        handle, made = await system.create(ROOT, b"f", 0o600, ME)
        assert (await system.link(made.ino, ROOT, b"g")).nlink == 2
        await system.unlink(ROOT, b"f")
        await system.write(handle, 0, b"bytes")
        await system.close(handle)
        assert await orphans(store) == []
        assert await read(store, b"g") == b"bytes"


@pytest.mark.parametrize("error", [errors.NoSpace("full"), errors.Unavailable("gone")])
async def test_what_cannot_be_published_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: errors.Error
) -> None:
    async with mounted(tmp_path) as (store, system):
        handle, made = await system.create(ROOT, b"f", 0o600, ME)
        await system.write(handle, 0, body_of(200_000))
        with refusing(store, monkeypatch, error):
            with pytest.raises(type(error)):
                await system.sync(handle)
            assert await system.read(handle, 0, 1 << 20) == body_of(200_000)
            await system.write(handle, 0, b"more")
            with pytest.raises(type(error)):
                await system.sync(handle)
            assert system.stat(made.ino).size == 200_000
        assert await read(store, b"f") == b""
        await system.sync(handle)
        assert await read(store, b"f") == b"more" + body_of(200_000)[4:]


async def test_a_close_that_cannot_publish_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with mounted(tmp_path) as (store, system):
        handle, made = await system.create(ROOT, b"f", 0o600, ME)
        await system.write(handle, 0, b"bytes")
        with refusing(store, monkeypatch, errors.NoSpace("full")):
            await system.close(handle)
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert system.which_open([made.ino]) == []
        handle = system.open(made.ino, writes=True)
        assert await system.read(handle, 0, 9) == b""


async def test_a_top_that_has_buckets_has_no_extended_attributes(tmp_path: Path) -> None:
    """`ls -l` asks for some of each name that it shows, `..` in a bucket among them."""
    async with mounted(tmp_path) as (store, system):
        await system.set_xattr(ROOT, b"user.a", b"1")
        assert (system.xattrs(ROOT), system.xattr(ROOT, b"user.a")) == ([b"user.a"], b"1")
        top = system_of(store, bucket=None)
        assert top.xattrs(ROOT) == []
        with pytest.raises(errors.NoSuchXattr):
            top.xattr(ROOT, b"user.a")
        with pytest.raises(errors.NotPermitted):
            await top.set_xattr(ROOT, b"user.a", b"1")
