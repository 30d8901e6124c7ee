"""Long drafts, part of which is in the store and not to be seen: random calls against a model."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from file_rig import make
from small_store import HandClock, core_of, faults_of, finish, new_store, read

from couchestord.errors import Error, NoSpace, Unavailable
from couchestord.frontends.posix import openfiles
from couchestord.frontends.posix.openfiles import OpenFiles
from couchestord.io import filerequests as fr
from couchestord.store import ObjectStore
from couchestord.store.mounts import Claim

SIZE_MAX = 3000
STEPS_COUNT = 150


@dataclass
class Rig:
    store: ObjectStore
    files: OpenFiles
    rng: random.Random
    failures: bool = False
    fails_once: bool = False
    """The next one happens, and nobody knows."""
    was_published_early: bool = False
    """What was spilled, and no more: for want of room."""

    async def change(self, request: Any, change: Any) -> Any:
        """What is asked for may fail, and have happened all the same."""
        which = self.rng.random() if self.failures and isinstance(request, fr.PublishFile) else 1.0
        if which < 0.1:
            raise NoSpace("full")
        if which < 0.2:
            raise Unavailable("the daemon is gone")
        self.was_published_early |= isinstance(request, fr.PublishFile) and bool(request.spill and not request.contents)
        answer = await change(request)
        if which < 0.35 or self.fails_once:
            self.fails_once = False
            raise Unavailable("the daemon is gone, and nobody knows")
        return answer


@asynccontextmanager
async def rig(path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> AsyncIterator[Rig]:
    """Files that spill what is more than a few hundred bytes."""
    monkeypatch.setattr(openfiles, "DIRTY_BYTES_MAX", 600)
    async with new_store(path) as store:
        it = Rig(store, OpenFiles(lambda: store.files, HandClock()), random.Random(seed))
        change = store.files.change

        async def failing(request: Any) -> Any:
            return await it.change(request, change)

        async def which_open(inodes: Any) -> list[int]:
            return it.files.which_open(inodes)

        async def show(_: object) -> None:
            pass

        core_of(store).mounts.add(Claim("box", True, which_open, show))
        with monkeypatch.context() as patch:
            patch.setattr(store.files, "change", failing)
            yield it
        it.failures = False
        await finish(core_of(store).jobs.orphans)
        assert core_of(store).catalog.files.orphans(0, 100) == []
    assert faults_of(path) == []


@pytest.mark.parametrize("seed", range(12))
async def test_what_is_read_is_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """And S3 sees what was synced, whatever fails."""
    async with rig(tmp_path, monkeypatch, seed) as it:
        rng, spilled_count = it.rng, 0
        handle = it.files.open(await make(it.store, b"f"), writes=True)
        opened = it.files._open[it.files._handles[handle]]
        model, may_be_seen, since = bytearray(), {b""}, {b""}
        it.failures = True
        for step in range(STEPS_COUNT):
            offset, length = rng.randrange(SIZE_MAX), rng.choice((1, 10, 200, 500))
            try:
                match rng.choice(("write", "write", "write", "truncate", "spill", "read", "sync", "free")):
                    case "write":
                        data = bytes([step % 251 + 1]) * length
                        await it.files.write(handle, offset, data)
                        model.extend(bytes(max(0, offset - len(model))))
                        model[offset : offset + length] = data
                    case "truncate":
                        del model[offset:]
                        model.extend(bytes(offset - len(model)))
                        await it.files._truncate(it.files._handles[handle], offset)
                    case "spill":
                        await it.files._relieve(it.files._handles[handle], opened, lambda: True)
                    case "read":
                        found = await it.files.read(handle, offset, length)
                        assert bytes(found) == model[offset : offset + length]
                    case "sync" if step % 4 == 0:
                        may_be_seen.add(bytes(model))
                        await it.files.sync(handle)
                        may_be_seen, since = {bytes(model)}, set()
                    case "free":
                        await core_of(it.store).jobs.orphans.work()
            except Error:
                pass
            since.add(bytes(model))
            if it.was_published_early:
                may_be_seen |= since
                it.was_published_early = False
            spilled_count += opened.draft is not None and opened.draft.spilled is not None
            assert bytes(await it.files.read(handle, 0, SIZE_MAX * 2)) == model, step
            assert await read(it.store, b"f") in may_be_seen, step
        assert spilled_count > STEPS_COUNT // 10
        it.failures = False
        await it.files.sync(handle)
        await it.files.close(handle)
        assert await read(it.store, b"f") == model


async def test_what_is_not_published_is_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig(tmp_path, monkeypatch, 1) as it, trio.open_nursery() as nursery:
        nursery.start_soon(it.files.run)
        handle = it.files.open(await make(it.store, b"f"), writes=True)
        for at in range(0, 3000, 300):
            await it.files.write(handle, at, b"x" * 300)
        (spill,) = core_of(it.store).catalog.files.orphans(0, 10)
        await finish(core_of(it.store).jobs.orphans)
        assert core_of(it.store).catalog.files.orphans(0, 10) == [spill]
        await it.store.delete("box", b"f")
        await it.files.close(handle)
        nursery.cancel_scope.cancel()


async def test_what_was_spilled_and_nobody_was_told_of_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path, monkeypatch, 1) as it:
        handle = it.files.open(await make(it.store, b"f"), writes=True)
        id_ = it.files._handles[handle]
        await it.files.write(handle, 0, b"a" * 100)
        await it.files._relieve(id_, it.files._open[id_], lambda: True)
        await it.files.write(handle, 100, b"b" * 100)
        it.fails_once = True
        with pytest.raises(Unavailable):
            await it.files._relieve(id_, it.files._open[id_], lambda: True)
        await it.files._truncate(id_, 150)
        await it.files._truncate(id_, 300)
        await it.files.sync(handle)
        assert await read(it.store, b"f") == b"a" * 100 + b"b" * 50 + bytes(150)
        await it.files.close(handle)


async def test_what_is_just_being_made_is_not_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store asks who has it open before the mount was told of it."""
    async with rig(tmp_path, monkeypatch, 1) as it:
        make_spill, orphans = it.store.files.make_spill, core_of(it.store).jobs.orphans

        async def make_slowly() -> int:
            id_ = await make_spill()
            await finish(orphans)
            return id_

        monkeypatch.setattr(it.store.files, "make_spill", make_slowly)
        handle = it.files.open(await make(it.store, b"f"), writes=True)
        id_ = it.files._handles[handle]
        await it.files.write(handle, 0, b"a" * 100)
        await it.files._relieve(id_, it.files._open[id_], lambda: True)
        await finish(orphans)
        assert bytes(await it.files.read(handle, 0, 1000)) == b"a" * 100
        assert await read(it.store, b"f") == b""
        await it.files.close(handle)
        assert await read(it.store, b"f") == b"a" * 100
