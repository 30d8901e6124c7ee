"""When what was written is published, and who waits for that."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from file_rig import laid, make
from small_store import HandClock, body_of, faults_of, new_store, read
from trio.testing import MockClock, wait_all_tasks_blocked

from couchestord import errors
from couchestord.frontends.posix import openfiles
from couchestord.frontends.posix.drafts import PIECE_COST_BYTES
from couchestord.frontends.posix.openfiles import DIRTY_S_MAX, IDLE_S_MAX, OpenFiles
from couchestord.io import filerequests as fr
from couchestord.store import ObjectStore

PIECE_BYTES = 150_000
"""Longer than what becomes one."""


@dataclass
class Rig:
    """A store, and files of it that are open. `gate` closed: publishing hangs."""

    store: ObjectStore
    files: OpenFiles
    gate: trio.Event = field(default_factory=trio.Event)
    error: Exception | None = None
    published_count: int = 0

    async def open(self, name: bytes) -> int:
        return self.files.open(await make(self.store, name), writes=True)

    def dirty_bytes(self, handle: int) -> int:
        draft = self.files._open[self.files._handles[handle]].draft
        return draft.dirty_bytes if draft else 0


@asynccontextmanager
async def rig(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    async with new_store(path) as store:
        made = Rig(store, OpenFiles(lambda: store.files, HandClock()))
        made.gate.set()
        change = store.files.change

        async def gated(request: Any) -> Any:
            if isinstance(request, fr.PublishFile):
                await made.gate.wait()
                if made.error is not None:
                    raise made.error
                made.published_count += 1
            return await change(request)

        with monkeypatch.context() as patch:
            patch.setattr(store.files, "change", gated)
            yield made
    assert faults_of(path) == []


@contextmanager
def limits(monkeypatch: pytest.MonkeyPatch, one_bytes: int, all_bytes: int = 1 << 40) -> Iterator[None]:
    monkeypatch.setattr(openfiles, "DIRTY_BYTES_MAX", one_bytes)
    monkeypatch.setattr(openfiles, "ALL_DIRTY_BYTES_MAX", all_bytes)
    yield


async def test_much_is_spilled_while_it_is_written_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for that before twice as much waits, and then no longer than for what is under way. And nobody sees
    it before it is synced.
    """
    whole = body_of(12 * PIECE_BYTES)
    with limits(monkeypatch, 4 * PIECE_BYTES):
        async with rig(tmp_path, monkeypatch) as it, trio.open_nursery() as nursery:
            nursery.start_soon(it.files.run)
            handle, written_count, most_bytes = await it.open(b"f"), 0, 0

            async def write() -> None:
                nonlocal written_count, most_bytes
                for at in range(0, len(whole), PIECE_BYTES):
                    await it.files.write(handle, at, whole[at : at + PIECE_BYTES])
                    written_count += 1
                    most_bytes = max(most_bytes, it.dirty_bytes(handle))
                    await wait_all_tasks_blocked()

            it.gate = trio.Event()
            nursery.start_soon(write)
            with trio.fail_after(60):
                while written_count < 8:
                    await trio.sleep(0.01)
                await trio.sleep(0.2)
                # four wait to be published, four more were written meanwhile, and the writer is held up
                assert (written_count, it.published_count) == (8, 0)
                gate, it.gate = it.gate, trio.Event()
                gate.set()
                while written_count < 9:
                    await trio.sleep(0.01)
                assert it.published_count == 1
                it.gate.set()
                while written_count < 12:
                    await trio.sleep(0.01)
            assert most_bytes <= 9 * (PIECE_BYTES + PIECE_COST_BYTES)
            assert await read(it.store, b"f") == b""
            assert bytes(await it.files.read(handle, 0, 1 << 30)) == whole
            await it.files.sync(handle)
            assert await read(it.store, b"f") == whole
            nursery.cancel_scope.cancel()


async def test_what_is_in_many_pieces_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However short they are: all writers of the store wait for as many as there are in one record."""
    monkeypatch.setattr(openfiles, "DIRTY_PIECES_MAX", 3)
    async with rig(tmp_path, monkeypatch) as it, trio.open_nursery() as nursery:
        nursery.start_soon(it.files.run)
        handle, at = await it.open(b"f"), iter(range(0, 1000, 10))
        with trio.fail_after(60):
            for count in (4, 4):
                for _ in range(count - 1):
                    await it.files.write(handle, next(at), b"x")
                await wait_all_tasks_blocked()
                before = it.published_count
                await it.files.write(handle, next(at), b"x")
                while it.published_count == before:
                    await trio.sleep(0.01)
            # who writes waits
            it.gate = trio.Event()
            with trio.move_on_after(0.5):
                while True:
                    await it.files.write(handle, next(at), b"x")
            written_count = next(at) // 10
            it.gate.set()
        assert written_count == 8 + 2 * 3 + 2
        nursery.cancel_scope.cancel()


async def test_who_writes_is_told_that_it_cannot_be_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with limits(monkeypatch, 4 * PIECE_BYTES):
        async with rig(tmp_path, monkeypatch) as it, trio.open_nursery() as nursery:
            nursery.start_soon(it.files.run)
            handle, it.error = await it.open(b"f"), errors.NoSpace("full")
            data = body_of(PIECE_BYTES)
            with pytest.raises(errors.NoSpace):  # noqa: PT012
                for number in range(9):
                    await it.files.write(handle, number * PIECE_BYTES, data)
                    while number == 3 and not caplog.records:
                        await trio.sleep(0.01)
                    await wait_all_tasks_blocked()
            assert number == 8
            # it is not tried with each write
            assert [record.levelname for record in caplog.records] == ["WARNING"]
            it.error = None
            await it.files.write(handle, 3, b"later")
            await it.files.sync(handle)
            assert await read(it.store, b"f") == laid((3, b"later"), over=data * 8)
            nursery.cancel_scope.cancel()


async def test_what_all_files_hold_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with limits(monkeypatch, 1 << 40, 1000 + 2 * PIECE_COST_BYTES):
        async with rig(tmp_path, monkeypatch) as it:
            one, other = await it.open(b"one"), await it.open(b"other")
            await it.files.write(one, 0, bytes(600))
            await it.files.write(other, 0, b"x" * 600)
            assert (it.published_count, it.dirty_bytes(other)) == (1, 0)
            await it.files.write(other, 600, b"y")
            assert it.published_count == 1
            assert await read(it.store, b"other") == b""
            await it.files.sync(other)
            assert await read(it.store, b"other") == b"x" * 600 + b"y"


def test_what_has_waited_long_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = MockClock(rate=1.0)

    async def published(store: ObjectStore, key: bytes) -> None:
        with trio.fail_after(60):
            while not await read(store, key):
                await trio.sleep(0.01)

    async def main() -> None:
        async with rig(tmp_path, monkeypatch) as it, trio.open_nursery() as nursery:
            nursery.start_soon(it.files.run)
            late, soon = await it.open(b"late"), await it.open(b"soon")
            await it.files.write(late, 0, b"x")
            await it.files.write(soon, 0, b"x")
            clock.jump(IDLE_S_MAX * 0.7)
            await it.files.write(late, 0, b"x")  # it waits from its last byte on
            clock.jump(IDLE_S_MAX * 0.5)
            await published(it.store, b"soon")
            assert await read(it.store, b"late") == b""  # it was looked at before the other
            for _ in range(9):
                clock.jump(IDLE_S_MAX * 0.7)  # but not for ever
                await it.files.write(late, 0, b"x")
            await published(it.store, b"late")
            await it.files.write(late, 0, b"y")
            it.error = errors.NoSpace("full")
            clock.jump(DIRTY_S_MAX)
            while not caplog.records:
                await trio.sleep(0.01)
            it.error = None
            assert caplog.records[0].levelname == "WARNING"
            assert await read(it.store, b"late") == b"x"
            clock.jump(DIRTY_S_MAX)  # and it goes on trying
            with trio.fail_after(60):
                while await read(it.store, b"late") != b"y":
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)


async def test_at_the_end_all_is_published_that_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig(tmp_path, monkeypatch) as it:
        handles = [await it.open(name) for name in (b"a", b"b", b"c")]
        first = it.files._handles[handles[0]]
        for handle in handles:
            await it.files.write(handle, 0, b"bytes")
        change = it.store.files.change

        async def refuse_first(request: Any) -> Any:
            if request.inode == first:
                raise errors.NoSpace("full")
            return await change(request)

        monkeypatch.setattr(it.store.files, "change", refuse_first)
        await it.files.finish()
        assert [await read(it.store, name) for name in (b"a", b"b", b"c")] == [b"", b"bytes", b"bytes"]
        assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_a_file_that_hangs_at_the_end_is_logged_and_keeps_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig(tmp_path, monkeypatch) as it, trio.open_nursery() as nursery:
        handles = [await it.open(name) for name in (b"a", b"b", b"c")]
        hung = it.files._handles[handles[0]]
        for handle in handles[:2]:
            await it.files.write(handle, 0, b"bytes")
        change = it.store.files.change

        async def hang(request: Any) -> Any:
            if request.inode == hung:
                await trio.sleep_forever()
            return await change(request)

        monkeypatch.setattr(it.store.files, "change", hang)
        nursery.start_soon(it.files.finish)
        with trio.fail_after(30):
            while await read(it.store, b"b") != b"bytes":
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    (record,) = caplog.records
    assert (record.levelname, f"'file': {hung}" in record.getMessage()) == ("ERROR", True)


async def test_what_was_given_up_is_opened_once_nobody_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has bytes of it until it was told to forget them."""
    async with rig(tmp_path, monkeypatch) as it, trio.open_nursery() as nursery:
        forgotten, told = trio.Event(), []

        async def forget(id_: int) -> None:
            told.append(id_)
            await forgotten.wait()

        it.files.forget = forget
        handle = await it.open(b"f")
        id_ = it.files._handles[handle]
        await it.files.write(handle, 0, b"lost")
        it.error = errors.DataLost("the disks are gone")
        nursery.start_soon(it.files.close, handle)
        await wait_all_tasks_blocked()
        assert told == [id_]
        await it.files.wait_forgotten(id_ + 1)
        opened = []

        async def open_again() -> None:
            await it.files.wait_forgotten(id_)
            opened.append(it.files.open(id_))

        nursery.start_soon(open_again)
        await wait_all_tasks_blocked()
        assert not opened
        forgotten.set()
        await wait_all_tasks_blocked()
        assert len(opened) == 1
        assert await it.files.read(opened[0], 0, 10) == b""


@pytest.mark.parametrize("is_cut", [False, True])
async def test_what_comes_after_a_sync_that_failed_is_published_when_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cut: bool
) -> None:
    """Through a mapping, or by the name of the file: who was told that the rest is lost knows nothing of it."""
    async with rig(tmp_path, monkeypatch) as it:
        handle = await it.open(b"f")
        await it.files.write(handle, 0, b"told")
        it.error = errors.NoSpace("full")
        with pytest.raises(errors.NoSpace):
            await it.files.sync(handle)
        assert not it.files.is_owed(handle)
        it.error = None
        if is_cut:
            await it.files._truncate(it.files._handles[handle], 2)
        else:
            await it.files.write(handle, 2, b"x")
        assert it.files.is_owed(handle)
        await it.files.close(handle)
        assert await read(it.store, b"f") == (b"to" if is_cut else b"toxd")


async def test_what_comes_while_a_sync_fails_is_published_when_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path, monkeypatch) as it, trio.open_nursery() as nursery:
        handle = await it.open(b"f")
        await it.files.write(handle, 0, b"told")
        it.gate, it.error = trio.Event(), errors.NoSpace("full")

        async def sync() -> None:
            with pytest.raises(errors.NoSpace):
                await it.files.sync(handle)

        nursery.start_soon(sync)
        await wait_all_tasks_blocked()
        await it.files.write(handle, 4, b", too")
        it.gate.set()
        await wait_all_tasks_blocked()
        assert it.files.is_owed(handle)
        it.error = None
        await it.files.close(handle)
        assert await read(it.store, b"f") == b"told, too"


async def test_what_is_given_up_for_what_nobody_foresaw_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig(tmp_path, monkeypatch) as it:
        told = []

        async def forget(id_: int) -> None:
            told.append(id_)

        it.files.forget = forget
        handle = await it.open(b"f")
        id_ = it.files._handles[handle]
        await it.files.write(handle, 0, b"lost")
        it.error = ZeroDivisionError()
        with pytest.raises(ZeroDivisionError):
            await it.files.close(handle)
        assert told == [id_]
        assert [record.levelname for record in caplog.records] == ["ERROR"]
