"""What must not go wrong while publishing waits, fails, or is asked for from several sides."""

import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from small_store import HandClock, core_of, faults_of, new_store, read
from trio.testing import MockClock, wait_all_tasks_blocked

from couchestord import errors
from couchestord.frontends.posix import openfiles
from couchestord.frontends.posix.filesystem import ROOT, Caller, FileSystem, Room
from couchestord.frontends.posix.openfiles import DIRTY_S_MAX, IDLE_S_MAX
from couchestord.io import filerequests as fr
from couchestord.io.catalog.changes import Changes
from couchestord.store import ObjectStore
from couchestord.store.mounts import Claim

ME = Caller(1000, 100)


async def _nothing(_: Any) -> None: ...


class Rig:
    """A store with a mount. What is awaited before and after changes of it."""

    def __init__(self, store: ObjectStore, patch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.system = FileSystem("box", lambda: store, HandClock(), lambda: Room(100, 50))
        self.before: Callable[[Any], Awaitable[None]] = _nothing
        self.after: Callable[[Any], Awaitable[None]] = _nothing
        change = store.files.change

        async def watched(request: Any) -> Any:
            await self.before(request)
            answer = await change(request)
            await self.after(request)
            return answer

        patch.setattr(store.files, "change", watched)

        async def which_open(inodes: Any) -> Any:
            return self.system.which_open(inodes)

        async def show(_: Changes) -> None:
            """There is no kernel."""

        core_of(store).mounts.add(Claim("box", True, which_open, show))

    async def create(self, name: bytes) -> tuple[int, int]:
        """(handle, number) of a new file."""
        handle, made = await self.system.create(ROOT, name, 0o600, ME)
        return handle, made.ino

    def gate(self, inode: int) -> trio.Event:
        """Until it is set, publishing that file hangs."""
        gate = trio.Event()

        async def wait(request: Any) -> None:
            if isinstance(request, fr.PublishFile) and request.inode == inode:
                await gate.wait()

        self.before = wait
        return gate

    def refuse(self, error: errors.Error, inode: int) -> None:
        """Publishing that file fails from now on."""

        async def fail(request: Any) -> None:
            if isinstance(request, fr.PublishFile) and request.inode == inode:
                raise error

        self.before = fail


@asynccontextmanager
async def rig(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    async with new_store(path) as store:
        with monkeypatch.context() as patch:
            yield Rig(store, patch)
    assert faults_of(path) == []


def run(main: Callable[[MockClock], Awaitable[None]]) -> None:
    """With a clock that can be set forward."""
    clock = MockClock(rate=1.0)
    trio.run(partial(main, clock), clock=clock)


def test_what_was_given_up_is_not_published_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who goes through what is open may have seen it before, and waits at another file."""

    async def main(clock: MockClock) -> None:
        async with rig(tmp_path, monkeypatch) as it, trio.open_nursery() as nursery:
            (first, first_id), (second, second_id) = await it.create(b"first"), await it.create(b"second")
            await it.system.write(first, 0, b"x")
            await it.system.write(second, 0, b"old " * 100)
            gate = it.gate(first_id)
            clock.jump(IDLE_S_MAX + 1)
            has_looked = trio.Event()

            async def look() -> None:
                await it.system._publish_due()
                has_looked.set()

            nursery.start_soon(look)
            await wait_all_tasks_blocked()
            it.refuse(errors.NoSpace("full"), second_id)
            with pytest.raises(errors.NoSpace):
                await it.system.sync(second)
            await it.system.close(second)
            it.before = _nothing
            again = it.system.open(second_id, writes=True, truncate=True)
            await it.system.write(again, 0, b"new")
            await it.system.close(again)
            gate.set()
            await has_looked.wait()
            assert await read(it.store, b"second") == b"new"
            await it.system.close(first)

    run(main)


def test_who_writes_on_and_on_is_published_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it was spilled."""

    async def main(clock: MockClock) -> None:
        monkeypatch.setattr(openfiles, "DIRTY_BYTES_MAX", 100_000)
        async with rig(tmp_path, monkeypatch) as it:
            handle, id_ = await it.create(b"f")
            spilled_count = 0

            async def write_on(request: Any) -> None:
                nonlocal spilled_count
                if isinstance(request, fr.PublishFile) and request.inode != id_:
                    spilled_count += 1
                    await it.system.write(handle, 0, b"y")

            it.before = write_on
            for second in range(round(DIRTY_S_MAX) + 2):
                await it.system.write(handle, 100_000 * second, b"x" * 100_000)
                await it.system._relieve(id_, it.system._open[id_], lambda: True)
                clock.jump(1)
                await it.system._publish_due()
            assert spilled_count > 20
            assert len(await read(it.store, b"f")) >= 100_000 * (DIRTY_S_MAX - 3)
            await it.system.close(handle)

    run(main)


async def test_what_is_refused_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openfiles, "DIRTY_BYTES_MAX", 1000)
    async with rig(tmp_path, monkeypatch) as it:
        handle, id_ = await it.create(b"f")

        async def full(_: Any) -> None:
            raise errors.NoSpace("full")

        it.before, refused_count = full, 0
        for number in range(50):
            try:
                await it.system.write(handle, 100 * number, b"x" * 100)
            except errors.NoSpace:
                refused_count += 1
        assert refused_count > 25
        draft = it.system._open[id_].draft
        assert draft is not None
        assert draft.dirty_bytes < 3000
        size = it.system.stat(id_).size
        it.before = _nothing
        await it.system.close(handle)
        assert await read(it.store, b"f") == b"x" * size


async def test_what_comes_while_it_is_published_is_published_when_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path, monkeypatch) as it, trio.open_nursery() as nursery:
        handle, id_ = await it.create(b"f")
        await it.system.write(handle, 0, b"a" * 1000)
        gate = it.gate(id_)
        nursery.start_soon(it.system._publish, id_, it.system._open[id_])
        await wait_all_tasks_blocked()
        await it.system.write(handle, 1000, b"b" * 1000)
        nursery.start_soon(it.system.close, handle)
        await wait_all_tasks_blocked()
        gate.set()
        await wait_all_tasks_blocked()
        with trio.fail_after(30):
            while len(await read(it.store, b"f")) < 2000:
                await trio.sleep(0.01)


async def test_whatever_happens_to_one_file_the_others_are_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig(tmp_path, monkeypatch) as it:
        (bad, bad_id), (good, _) = await it.create(b"bad"), await it.create(b"good")
        for handle in (bad, good):
            await it.system.write(handle, 0, b"bytes")

        async def fail(request: Any) -> None:
            if request.inode == bad_id:
                raise ZeroDivisionError

        it.before = fail
        monkeypatch.setattr(openfiles, "IDLE_S_MAX", 0.0)
        assert not await it.system._publish_due()
        assert await read(it.store, b"good") == b"bytes"
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        await it.system.finish()
        it.before = _nothing
        await it.system.close(bad)
        await it.system.close(good)


async def test_times_that_are_set_outlast_what_is_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig(tmp_path, monkeypatch) as it, trio.open_nursery() as nursery:
        handle, id_ = await it.create(b"f")
        await it.system.write(handle, 0, b"bytes")
        gate = it.gate(id_)
        nursery.start_soon(it.system._publish, id_, it.system._open[id_])
        await wait_all_tasks_blocked()
        nursery.start_soon(partial(it.system.change, id_, modified_ns=5))
        await wait_all_tasks_blocked()
        gate.set()
        await wait_all_tasks_blocked()
        with trio.fail_after(30):
            while it.system.stat(id_).modified_ns != 5:
                await trio.sleep(0.01)
        await it.system.close(handle)
        assert it.system.stat(id_).modified_ns == 5


async def test_rights_wait_for_nothing_that_is_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig(tmp_path, monkeypatch) as it, trio.open_nursery() as nursery:
        handle, id_ = await it.create(b"f")
        await it.system.write(handle, 0, b"bytes")
        gate = it.gate(id_)
        nursery.start_soon(it.system._publish, id_, it.system._open[id_])
        await wait_all_tasks_blocked()
        with trio.fail_after(30):
            assert (await it.system.change(id_, mode=0o640)).mode & 0o777 == 0o640
        gate.set()
        await wait_all_tasks_blocked()
        await it.system.close(handle)


async def test_the_time_of_a_change_does_not_go_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig(tmp_path, monkeypatch) as it:
        handle, id_ = await it.create(b"f")
        await it.system.write(handle, 0, b"bytes")
        changed = await it.system.change(id_, mode=0o640)
        assert it.system.stat(id_) == changed
        assert changed.changed_ns == it.store.files.node(id_).changed_ns
        await it.system.close(handle)
        assert it.system.stat(id_) == changed


async def test_a_read_that_began_before_publishing_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig(tmp_path, monkeypatch) as it, trio.open_nursery() as nursery:
        handle, _ = await it.create(b"f")
        await it.system.write(handle, 0, b"." * 4000)
        await it.system.sync(handle)
        await it.system.write(handle, 3000, b"b" * 10)
        fails, goes_on, lend = trio.Event(), trio.Event(), it.store.files.lend

        async def refuse(request: Any) -> None:
            if isinstance(request, fr.PublishFile):
                await fails.wait()
                raise errors.NoSpace("full")

        async def publish() -> None:
            with pytest.raises(errors.NoSpace):
                await it.system.sync(handle)

        async def slow(inode: int, first: int, length: int) -> bytes:
            found = bytes(await lend(inode, first, length))
            await goes_on.wait()
            return found

        it.before = refuse
        nursery.start_soon(publish)
        await wait_all_tasks_blocked()
        await it.system.write(handle, 100, b"01234")
        await it.system.write(handle, 105, b"56789")
        monkeypatch.setattr(it.store.files, "lend", slow)
        found = []

        async def look() -> None:
            found.append(bytes(await it.system.read(handle, 90, 40)))

        nursery.start_soon(look)
        await wait_all_tasks_blocked()
        fails.set()
        await wait_all_tasks_blocked()
        # they join what was there
        await it.system.write(handle, 95, b"abcde")
        goes_on.set()
        await wait_all_tasks_blocked()
        assert found == [b"....." + b"abcde0123456789" + b"." * 20]
        it.before = _nothing
        await it.system.close(handle)


def test_a_truncation_that_is_refused_is_not_done_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(clock: MockClock) -> None:
        async with rig(tmp_path, monkeypatch) as it:
            handle, id_ = await it.create(b"f")
            await it.system.write(handle, 0, b"bytes")
            await it.system.close(handle)
            reader = it.system.open(id_)
            it.refuse(errors.JournalFull("full"), id_)
            with pytest.raises(errors.JournalFull):
                await it.system.change(id_, size=0, modified_ns=9)
            it.before = _nothing
            assert it.system.stat(id_).size == 5
            clock.jump(DIRTY_S_MAX)
            await it.system._publish_due()
            await it.system.close(reader)
            assert await read(it.store, b"f") == b"bytes"

    run(main)


class Calls:
    """There is a store."""

    async def begin(self) -> None: ...

    def end(self) -> None: ...


async def test_a_call_that_is_given_up_is_not_taken_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One task serves one call of the kernel's after the other."""
    pyfuse3 = pytest.importorskip("pyfuse3")
    from couchestord.frontends.posix import fuse

    async with rig(tmp_path, monkeypatch) as it:
        operations: Any = fuse._Operations(it.system, Calls(), writes=True)
        await it.system.make(ROOT, b"victim", stat.S_IFREG | 0o600, ME)

        async def fail(request: Any) -> None:
            raise errors.Unavailable("the daemon is gone")

        it.after = fail
        monkeypatch.setattr(fuse, "_AGAIN_S", 0.0)
        with pytest.raises(pyfuse3.FUSEError):
            await operations.mkdir(ROOT, b"made", 0o700, SimpleNamespace(umask=0, uid=0, gid=0))
        it.after = _nothing
        await operations.unlink(ROOT, b"victim", None)
        with pytest.raises(errors.NoSuchEntry):
            it.system.lookup(ROOT, b"victim")


async def test_a_file_that_goes_before_it_is_known_to_be_made_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 deletes it while other mounts are shown that it is there."""
    async with rig(tmp_path, monkeypatch) as it, trio.open_nursery() as nursery:
        shown, found = trio.Event(), []

        async def wait(request: Any) -> None:
            if isinstance(request, fr.MakeNode):
                await shown.wait()

        async def create() -> None:
            with pytest.raises(errors.StaleInode):
                await it.create(b"f")
            found.append("stale")

        it.after = wait
        nursery.start_soon(create)
        with trio.fail_after(30):
            while it.store.files.lookup(it.system.root or 0, b"f") is None:
                await trio.sleep(0.01)
        await it.store.delete("box", b"f")
        (orphan,) = core_of(it.store).catalog.files.orphans(0, 10)
        assert it.system.which_open([orphan]) == []
        shown.set()
        await wait_all_tasks_blocked()
        assert found == ["stale"]


async def test_a_truncate_that_fails_takes_no_other_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once, of a file that nobody has open."""
    async with rig(tmp_path, monkeypatch) as it:
        handle, inode = await it.create(b"file")
        await it.system.write(handle, 0, b"x" * 1000)
        await it.system.close(handle)
        gate, asked_count = it.gate(inode), 0
        wait = it.before

        async def fail_once(request: Any) -> None:
            nonlocal asked_count
            asked_count += isinstance(request, fr.PublishFile)
            await wait(request)
            if asked_count == 1:
                raise errors.Unavailable("for once")

        it.before = fail_once
        refused: list[int] = []

        async def truncate(size: int) -> None:
            try:
                assert (await it.system.change(inode, size=size)).size == size
            except errors.Unavailable:
                refused.append(size)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(truncate, 500)
            await wait_all_tasks_blocked()
            nursery.start_soon(truncate, 300)
            await wait_all_tasks_blocked()
            gate.set()
        assert refused == [500]
        assert it.system.stat(inode).size == 300
        assert await read(it.store, b"file") == b"x" * 300
        it.refuse(errors.Unavailable("again"), inode)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(truncate, 200)
            nursery.start_soon(truncate, 100)
        assert sorted(refused) == [100, 200, 500]
        it.before = _nothing
        assert it.system.stat(inode).size == 300
        await it.system.finish()
        assert await read(it.store, b"file") == b"x" * 300
