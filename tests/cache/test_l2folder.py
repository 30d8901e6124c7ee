"""The second cache in folders of real file systems.

Seen to fail with: no look at foreign files, at devices, at permissions; a cold read on the loop; a cap without the
files beside the segments; files that were taken away not missed.
"""

import os
import random
import shutil
import threading
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from l2_rig import SIZE_BYTES, SimLog, chunk_of, make_l2
from loops import LoopDisk, need

from couchestord.cache import l2folder
from couchestord.cache.l2 import L2
from couchestord.cache.l2folder import L2Options, Standing, open_folder, segments_for
from couchestord.errors import DiskFailed, DiskTimeout
from couchestord.io.folder import LockedFolder

PATIENCE_S = 60.0


@asynccontextmanager
async def running_in(
    folder: Path, standing: Standing, *, devices: frozenset[int] = frozenset(), **changes: Any
) -> AsyncIterator[L2]:
    """The cache in a folder, as a daemon has it. A loaded machine is given time."""
    options = {"path": folder, "deadline_s": PATIENCE_S, "retry_s_min": 0.01, "retry_s_max": 0.02, **changes}
    chosen = L2Options(**({"size_bytes": SIZE_BYTES} | options))
    l2 = make_l2(partial(open_folder, chosen, devices, trio.CapacityLimiter(1)), standing, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(l2.run)
        yield l2
        nursery.cancel_scope.cancel()


async def until(l2: L2, *, is_on: bool) -> None:
    with trio.fail_after(PATIENCE_S):
        while (l2.stats().off_because == "") != is_on:
            await trio.sleep(0.001)


def taken_bytes(folder: Path) -> int:
    """As `du` says."""
    return sum(path.lstat().st_blocks * 512 for path in [folder, *folder.rglob("*")])


async def test_what_lies_there_is_ours_alone(tmp_path: Path) -> None:
    folder, log = tmp_path / "cache", SimLog()
    async with running_in(folder, log.start()) as l2:
        l2.put(16, 0, b"chunk")
        await l2.flush()
        assert await l2.get(16, 0) == b"chunk"
    for path in [folder, *folder.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


async def test_an_empty_folder_that_others_may_look_into_is_closed_to_them(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(0o755)
    (folder / "lost+found").mkdir()
    async with running_in(folder, SimLog().start()) as l2:
        assert l2.stats().off_because == ""
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["photo.jpg", "segments/photo.jpg", "journal/x", ".hidden"])
async def test_a_folder_with_foreign_files_is_left_alone(tmp_path: Path, name: str) -> None:
    foreign = tmp_path / "cache" / name
    foreign.parent.mkdir(parents=True, mode=0o755)
    foreign.write_bytes(b"precious")
    async with running_in(tmp_path / "cache", SimLog().start()) as l2:
        assert "no cache put there" in l2.stats().off_because
        l2.put(16, 0, b"chunk")
        assert await l2.get(16, 0) is None
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [foreign]
    assert foreign.read_bytes() == b"precious"


async def test_the_device_of_a_data_disk_is_refused_unless_allowed(tmp_path: Path) -> None:
    devices = frozenset((tmp_path.stat().st_dev,))
    async with running_in(tmp_path / "cache", SimLog().start(), devices=devices) as l2:
        assert "device of a data disk" in l2.stats().off_because
    assert [path.name for path in (tmp_path / "cache").iterdir()] == []
    async with running_in(tmp_path / "cache", SimLog().start(), devices=devices, allow_shared_device=True) as l2:
        assert l2.stats().off_because == ""


async def test_the_folder_above_must_be_there(tmp_path: Path) -> None:
    async with running_in(tmp_path / "not" / "mounted", SimLog().start()) as l2:
        assert "No such file" in l2.stats().off_because
        (tmp_path / "not").mkdir()
        await until(l2, is_on=True)


async def test_one_process_at_a_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = SimLog()
    async with running_in(tmp_path / "cache", log.start()), running_in(tmp_path / "cache", log.start()) as second:
        assert "in use" in second.stats().off_because
    async with running_in(tmp_path / "cache", log.start()) as third:
        assert third.stats().off_because == ""
    assert "cache failed" not in caplog.text


def test_a_size_makes_segments_that_fit_in_it() -> None:
    for size_bytes in (8 << 20, 100 << 20, 1 << 30, 100 << 30, 10 << 40):
        segment_bytes, count = segments_for(size_bytes)
        assert count >= 4
        assert size_bytes * 0.85 < segment_bytes * count < size_bytes
    for size_bytes in (0, 1 << 20, 4 << 20):
        with pytest.raises(DiskFailed, match="too small"):
            segments_for(size_bytes)


async def test_takes_no_more_room_than_it_may(tmp_path: Path) -> None:
    folder, log = tmp_path / "cache", SimLog()
    rng = random.Random(1)
    for life in range(3):
        async with running_in(folder, log.start()) as l2:
            for number in range(200):
                extent = 16 + life * 1000 + number
                l2.put(extent, 0, rng.randbytes(rng.choice((1000, 64 << 10))))
                await l2.flush()
                await l2.get(extent - rng.randrange(20), 0)
                assert taken_bytes(folder) <= SIZE_BYTES
            assert l2.stats().evictions_count > 0 or life == 0
    async with running_in(folder, log.start(), size_bytes=SIZE_BYTES * 2 // 3 + (3 << 20)):
        assert taken_bytes(folder) <= SIZE_BYTES  # what a smaller one has no place for is removed
    async with running_in(folder, log.start(), size_bytes=SIZE_BYTES - (2 << 20)):
        assert taken_bytes(folder) <= SIZE_BYTES - (2 << 20)


async def test_a_slow_disk_keeps_nobody_but_who_asks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, read = threading.Event(), LockedFolder.read
    asked = threading.Event()

    def slow(self: LockedFolder, path: str, offset: int, length: int) -> bytes:
        asked.set()
        assert go_on.wait(PATIENCE_S), "the loop waits for the disk"
        return read(self, path, offset, length)

    async with running_in(tmp_path / "cache", SimLog().start()) as l2:
        l2.put(16, 0, chunk_of(16))
        await l2.flush()
        monkeypatch.setattr(LockedFolder, "read_nowait", lambda *_: None)
        monkeypatch.setattr(LockedFolder, "read", slow)
        found: list[bytes | None] = []

        async def ask() -> None:
            found.append(await l2.get(16, 0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            while not asked.is_set():
                await trio.sleep(0.001)
            l2.put(17, 0, b"meanwhile")
            assert l2.get_nowait(17, 0) == b"meanwhile"
            await l2.flush()
            assert found == []
            go_on.set()
        assert found == [chunk_of(16)]


async def test_a_batch_is_made_smaller_off_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[int] = set()

    class Watched:
        codec = 1

        def compress(self, data: bytes) -> None:
            threads.add(threading.get_ident())

    async with running_in(tmp_path / "cache", SimLog().start()) as l2:
        monkeypatch.setattr(l2, "_compressor", Watched())
        for extent in range(16, 26):
            l2.put(extent, 0, bytes(60_000))
        await l2.flush()
        assert [await l2.get(extent, 0) for extent in range(16, 26)] == [bytes(60_000)] * 10
    assert threads
    assert threading.get_ident() not in threads


async def test_a_folder_that_is_removed_is_made_anew(tmp_path: Path) -> None:
    folder, log = tmp_path / "cache", SimLog()
    async with running_in(folder, log.start(), look_interval_s=0.01) as l2:
        l2.put(16, 0, b"chunk")
        await l2.flush()
        before = trio.current_time()
        shutil.rmtree(folder)
        with trio.fail_after(PATIENCE_S):
            while not (folder / "state").exists():
                await trio.sleep(0.001)
        await until(l2, is_on=True)
        assert await l2.get(16, 0) is None, before
        l2.put(16, 0, b"chunk")
        await l2.flush()
        assert await l2.get(16, 0) == b"chunk"


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[LoopDisk]:
    need("mkfs.ext4", "losetup", "mount", "fsfreeze")
    try:
        disk = LoopDisk(tmp_path / "image", tmp_path / "mounted", "ext4", 40 << 20)
    except OSError as error:
        pytest.skip(f"no loop devices here: {error}")
    try:
        disk.mount()
        yield disk
    finally:
        disk.thaw()
        disk.destroy()


async def fill_with(l2: L2, extents: range) -> None:
    rng = random.Random(1)
    for extent in extents:
        l2.put(extent, 0, rng.randbytes(60_000))
        await l2.flush()


async def test_a_file_system_that_fills_up_turns_it_off_until_there_is_room(loop: LoopDisk) -> None:
    folder = loop.folder / "cache"
    log = SimLog()
    async with running_in(folder, log.start(), size_bytes=16 << 20) as l2:
        await fill_with(l2, range(16, 30))
        loop.fill_wholly()
        await fill_with(l2, range(30, 300))  # a new segment finds no room
        assert "ENOSPC" in l2.stats().off_because or "no room" in l2.stats().off_because
        assert await l2.get(16, 0) is None
        (loop.folder / "filler").unlink()
        await until(l2, is_on=True)
        assert await l2.get(16, 0) == random.Random(1).randbytes(60_000)
    async with running_in(folder, log.start(), size_bytes=64 << 20) as l2:
        assert "no room" in l2.stats().off_because


async def test_a_file_system_that_dies_turns_it_off(loop: LoopDisk) -> None:
    async with running_in(loop.folder / "cache", SimLog().start()) as l2:
        await fill_with(l2, range(16, 30))
        loop.cut()
        await fill_with(l2, range(30, 200))
        assert l2.stats().off_because
        assert await l2.get(16, 0) is None


async def test_cold_reads_come_from_the_device(tmp_path: Path) -> None:
    folder, log = tmp_path / "cache", SimLog()
    async with running_in(folder, log.start()) as l2:
        for extent in range(16, 216):
            l2.put(extent, 0, chunk_of(extent, 0, 4096))
        await l2.flush()
        for path in folder.glob("segments/*"):
            number = os.open(path, os.O_RDONLY)
            os.fsync(number)
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(number)
        for extent in range(16, 216):
            assert l2.get_nowait(extent, 0) in (None, chunk_of(extent, 0, 4096))
            assert await l2.get(extent, 0) == chunk_of(extent, 0, 4096)


async def test_tries_wait_for_a_folder_that_hangs_in_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, and in none of those that the rest of the daemon works in."""
    options, threads = L2Options(tmp_path / "cache", SIZE_BYTES, deadline_s=0.01), trio.CapacityLimiter(1)
    prepare, asked, answer = l2folder._prepare, list[Path](), threading.Event()

    def hang(path: Path, devices: Collection[int]) -> None:
        asked.append(path)
        answer.wait()
        prepare(path, devices)

    monkeypatch.setattr(l2folder, "_prepare", hang)
    try:
        while not asked:
            with pytest.raises(DiskTimeout):
                await open_folder(options, (), threads)
        for _ in range(3):
            with pytest.raises(DiskTimeout):
                await open_folder(options, (), threads)
        assert len(asked) == 1
        assert not trio.to_thread.current_default_thread_limiter().borrowed_tokens
    finally:
        answer.set()
    disk = await open_folder(replace(options, deadline_s=PATIENCE_S), (), threads)
    disk.close()


async def test_a_file_system_that_hangs_turns_it_off_until_it_answers(loop: LoopDisk) -> None:
    async with running_in(loop.folder / "cache", SimLog().start(), deadline_s=1.0) as l2:
        await fill_with(l2, range(16, 20))
        loop.freeze()
        l2.put(20, 0, chunk_of(20))
        await until(l2, is_on=False)
        assert "no answer" in l2.stats().off_because
        assert await l2.get(16, 0) is None
        loop.thaw()
        with trio.fail_after(PATIENCE_S):
            while await l2.get(23, 0) is None:  # a loaded machine may not answer in a second, again
                await fill_with(l2, range(21, 24))
                await trio.sleep(0.01)
