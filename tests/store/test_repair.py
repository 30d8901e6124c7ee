"""The catalog fails while the store runs, and is repaired in place.

Seen to fail with: writes that stay refused; a catalog that is not brought up to the log; a damaged file that is gone on
with; readers left on the connection that was closed; a reserve that is not freed first; a checkpoint that counts for
the file that was replaced; a snapshot of the file that took the name of the one that is open; a WAL that is taken away
and not missed, or only looked for before a checkpoint; damage that a reader
finds and that nobody is told of, or that is not looked for again; half a catalog that is put in place; a rebuilt shard
that is forgotten.
"""

import errno
import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio
from loops import LoopDisk, need
from simstore import SimMachine, run_seeded, small_options
from small_store import (
    SMALL,
    STRIPE_BYTES,
    body_of,
    catalog_of,
    core_of,
    faults_of,
    finish,
    make_store,
    new_store,
    put_all,
    read,
    segments,
)

from couchestord.ec.shards import shard_path
from couchestord.errors import Corrupt, DataLost, Error, NoSuchKey, Unavailable, WritesStopped
from couchestord.io.catalog import pages
from couchestord.io.catalog.catalog import FILE_SUFFIXES, Catalog, dump
from couchestord.io.catalog.reserve import Reserve
from couchestord.store import maintenance, repair, writer
from couchestord.store.core import Core
from couchestord.store.door import ObjectStore

BODIES = {b"small": b"few bytes", b"long": body_of(3 * STRIPE_BYTES + 9), b"dir/x": b"x" * 2000}


def fail_commits(catalog: Catalog, count: int, *, done: bool = False, after: int = 0) -> None:
    """The next commits but so many fail; with `done` after they were made, as one whose answer got lost."""
    original: Callable[[], None] = Catalog.commit.__get__(catalog)
    left = [count, after]

    def commit() -> None:
        if left[1] or not left[0]:
            left[1] = max(0, left[1] - 1)
            original()
            return
        left[0] -= 1
        if done:
            original()
        raise Corrupt("disk I/O error")

    catalog.commit = commit  # type: ignore[method-assign]


def shrink(catalog: Catalog) -> None:
    """The file is full, for the connection that writes now."""
    connection: Any = catalog._writer
    (pages,) = connection.execute("pragma page_count").fetchone()
    connection.execute(f"pragma max_page_count={pages}")


async def keys(store: ObjectStore) -> list[bytes]:
    return [found.key for found in (await store.list("box")).entries]


async def check_whole(store: ObjectStore, bodies: dict[bytes, bytes]) -> None:
    for key, body in bodies.items():
        assert await read(store, key) == body
    assert set(await keys(store)) == set(bodies)


@pytest.mark.parametrize("done", [False, True])
async def test_writes_resume_and_what_was_in_the_log_happened(tmp_path: Path, done: bool) -> None:
    async with new_store(tmp_path) as store:
        core = core_of(store)
        await put_all(store, BODIES)
        fail_commits(core.catalog, 1, done=done)
        with pytest.raises(Corrupt):
            await store.put("box", b"unanswered", b"whole or absent")
        with pytest.raises(WritesStopped):
            await store.delete("box", b"small")
        assert store.health().state == "unhealthy"
        assert "disk I/O error" in store.health().reasons[0]
        await check_whole(store, BODIES | ({b"unanswered": b"whole or absent"} if done else {}))
        await finish(core.jobs.repairer)
        expected = BODIES | {b"unanswered": b"whole or absent"}
        await check_whole(store, expected)
        await store.put("box", b"later", b"again")
        await check_whole(store, expected | {b"later": b"again"})
        assert store.health() == type(store.health())("healthy")
        assert core.jobs.repairer.repaired_count == 1
    assert faults_of(tmp_path) == []
    before = dump(catalog_of(tmp_path))
    catalog_of(tmp_path).unlink()
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await check_whole(store, expected | {b"later": b"again"})
    after = dump(catalog_of(tmp_path))
    for rows in (before, after):
        rows["segment"] = []  # a start seals those that were open
        rows["state"] = []
    assert after == before


async def test_a_full_file_before_the_commit_point_is_no_defect_of_a_request(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        core = core_of(store)
        shrink(core.catalog)
        answered: set[bytes] = set()

        async def fill() -> None:
            for number in range(3000):
                await store.put("box", b"%d" % number, b"x" * 10)
                answered.add(b"%d" % number)

        with pytest.raises(WritesStopped, match="full"):
            await fill()
        await finish(core.jobs.repairer)
        assert set(await keys(store)) == answered
        for number in range(3000, 3200):
            await store.put("box", b"%d" % number, b"x" * 10)
        assert len(await keys(store)) == len(answered) + 200
    assert faults_of(tmp_path) == []


async def damage(core: Core) -> None:
    """A page of the main file rots; nothing of it lies in the WAL."""
    assert await core.jobs.checkpointer.checkpoint()
    data = bytearray(core.catalog.path.read_bytes())
    at = len(data) // 4096 // 2 * 4096
    data[at : at + 4096] = random.Random(1).randbytes(4096)
    core.catalog.path.write_bytes(data)


@pytest.mark.parametrize("snapshot", [False, True])
async def test_a_damaged_file_is_made_again_while_reads_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: bool
) -> None:
    async with new_store(tmp_path) as store:
        core = core_of(store)
        await put_all(store, BODIES)
        if snapshot:
            await store.destage()
        await put_all(store, more := {b"%d" % number: b"y" * number for number in range(300)})
        await damage(core)
        fail_commits(core.catalog, 1)
        with pytest.raises(Corrupt):
            await store.put("box", b"unanswered", b"!")
        restore = core.jobs.repairer._restore
        asked = []

        async def look(path: Path) -> bool:
            with pytest.raises(Unavailable, match="made again"):
                await store.head("box", b"small")
            with pytest.raises(Unavailable):
                await store.list("box")
            assert store.health().state == "unhealthy"
            assert core.jobs.snapshotter is not None
            with pytest.raises(Unavailable):
                core.jobs.snapshotter.trim_point()
            asked.append(path)
            return await restore(path)

        monkeypatch.setattr(core.jobs.repairer, "_restore", look)
        checkpointed = core.jobs.checkpointer.sequence
        await finish(core.jobs.repairer)
        assert asked
        assert core.jobs.repairer.trouble == ""
        assert core.jobs.checkpointer.sequence > checkpointed, "the new file holds all of the log, synced"
        await check_whole(store, BODIES | more | {b"unanswered": b"!"})
        await store.delete("box", b"small")
        await store.destage()
        assert store.health().state == "healthy"
        assert not list(tmp_path.glob("catalog.sqlite.new*"))
        assert Path(f"{catalog_of(tmp_path)}.discarded").exists()
    assert faults_of(tmp_path) == []
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert core_of(store).started.rebuilt is None
        with pytest.raises(NoSuchKey):
            await store.head("box", b"small")


def unlinked(path: Path, _older: Path) -> None:
    path.unlink()


def with_all_beside_it(path: Path, _older: Path) -> None:
    for suffix in FILE_SUFFIXES:
        Path(f"{path}{suffix}").unlink()


def replaced(path: Path, older: Path) -> None:
    older.replace(path)


def wal_unlinked(path: Path, _older: Path) -> None:
    Path(f"{path}-wal").unlink()


def wal_replaced(path: Path, older: Path) -> None:
    older.replace(f"{path}-wal")


def shm_unlinked(path: Path, _older: Path) -> None:
    Path(f"{path}-shm").unlink()


TAKEN_AWAY = [unlinked, with_all_beside_it, replaced, wal_unlinked, wal_replaced, shm_unlinked]


@pytest.mark.parametrize("harm", TAKEN_AWAY)
@pytest.mark.parametrize("snapshot", [False, True])
async def test_a_file_that_is_taken_away_is_made_again(
    tmp_path: Path, harm: Callable[[Path, Path], None], snapshot: bool
) -> None:
    """SQLite goes on in the file that has no name any more; what has it, or nothing, must not become the snapshot."""
    path, older = catalog_of(tmp_path), tmp_path / "older"
    more = {b"%d" % number: b"y" * number for number in range(100)}
    async with new_store(tmp_path) as store:
        core = core_of(store)
        await put_all(store, BODIES)
        if snapshot:
            await store.destage()
        await core.jobs.checkpointer.checkpoint()
        older.write_bytes(path.read_bytes())
        await put_all(store, more)
        harm(path, older)
        await put_all(store, {b"since": b"!"})
        sequence = core.jobs.snapshotter.sequence
        for call in (core.jobs.checkpointer.checkpoint, core.jobs.snapshotter.take):
            with pytest.raises(Corrupt, match="took it away"):
                await call()
        assert core.jobs.snapshotter.sequence == sequence
        await finish(core.jobs.repairer)
        assert core.jobs.repairer.repaired_count == 1
        await check_whole(store, BODIES | more | {b"since": b"!"})
        await store.destage()
        assert core.jobs.snapshotter.sequence > sequence
    assert faults_of(tmp_path) == []
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert core_of(store).started.rebuilt is None
        await check_whole(store, BODIES | more | {b"since": b"!"})


async def test_a_checkpoint_whose_wal_was_replaced_beneath_it_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite moves what the other one holds: a checkpoint compares no sums of frames."""

    def checkpoint(main: pages.MainFile, *how: Any) -> bool:
        wal = Path(f"{main.path}-wal")
        data = bytearray(wal.read_bytes())
        for at in range(32 + 24, len(data), 24 + 4096):
            data[at : at + 4096] = bytes(4096)
        wal.unlink()
        wal.write_bytes(data)
        return pages.checkpoint_with_sums(main, *how)

    async with new_store(tmp_path) as store:
        core = core_of(store)
        await put_all(store, BODIES)
        before = core.jobs.checkpointer.sequence
        with monkeypatch.context() as patch:
            patch.setattr(maintenance, "checkpoint_with_sums", checkpoint)
            with pytest.raises(Corrupt, match="took it away"):
                await core.jobs.snapshotter.take()
        assert (core.jobs.checkpointer.sequence, core.jobs.snapshotter.sequence) == (before, 0)
        await finish(core.jobs.repairer)
        await check_whole(store, BODIES)
        await store.destage()
        assert core.jobs.snapshotter.sequence > 0
    assert faults_of(tmp_path) == []


async def test_a_store_ends_well_when_its_catalog_was_taken_away(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await put_all(store, BODIES)
        catalog_of(tmp_path).unlink()
        await store.put("box", b"since", b"!")
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert core_of(store).started.rebuilt == "there was none"
        await check_whole(store, BODIES | {b"since": b"!"})


def noise_for_pages(path: Path) -> None:
    """All but the first of the main file."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(random.Random(1).randbytes(path.stat().st_size - 4096))


def noise_for_frames(path: Path) -> None:
    """The later half of the pages, in the WAL: nobody compares sums of these, and a catalog that is opened anew does
    not come upon them.
    """
    wal = Path(f"{path}-wal")
    data = bytearray(wal.read_bytes())
    starts = range(32, len(data), 24 + 4096)
    held = {at: int.from_bytes(data[at : at + 4], "big") for at in starts}
    for at, page in held.items():
        if page > max(held.values()) // 2:
            data[at + 24 : at + 24 + 4096] = random.Random(page).randbytes(4096)
    wal.write_bytes(data)


@pytest.mark.parametrize("harm", [noise_for_pages, noise_for_frames])
async def test_damage_that_a_reader_finds_is_repaired(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    """SQLite says so as soon as a page is read."""
    bodies = BODIES | {b"%d" % number: b"y" * number for number in range(300)}
    async with new_store(tmp_path) as store:
        core = core_of(store)
        await put_all(store, bodies)
        if harm is noise_for_pages:
            assert await core.jobs.checkpointer.checkpoint()
        harm(core.catalog.path)
        with pytest.raises(Unavailable, match="is being repaired"):
            await store.list("box")
        with pytest.raises(WritesStopped):
            await store.put("box", b"refused", b"!")
        assert store.health().state == "unhealthy"
        with pytest.raises(Unavailable):
            await read(store, b"long")
        await finish(core.jobs.repairer)
        await check_whole(store, bodies)
        await store.put("box", b"again", b"!")
        assert store.health().state == "healthy"
        assert Path(f"{catalog_of(tmp_path)}.discarded").exists()
    assert faults_of(tmp_path) == []


async def test_pages_that_cannot_be_read_are_tried_again_before_they_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def unreadable(main: pages.MainFile) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", failing)
            pages.verify_open_pages(main)

    async with new_store(tmp_path) as store:
        core = core_of(store)
        await put_all(store, BODIES)
        core.writer.fail(OSError(errno.EIO, "as the test wants it"))
        monkeypatch.setattr(repair, "verify_open_pages", unreadable)
        for _ in range(repair.REOPENED_MAX - 1):
            core.jobs.repairer._not_before = 0
            await core.jobs.repairer.work()
            assert "cannot be read" in core.jobs.repairer.trouble
            await check_whole(store, BODIES)
        core.jobs.repairer._not_before = 0
        await core.jobs.repairer.work()
        await check_whole(store, BODIES)
        assert not core.writer.broken_because
        assert Path(f"{catalog_of(tmp_path)}.discarded").exists()


async def test_a_file_that_fails_again_and_again_is_made_anew(tmp_path: Path) -> None:
    """Opened anew it is well, as far as its sums tell; not for long. Failures that are far apart do not count."""

    async def fails_and_is_made_anew() -> bool:
        core.writer.fail(OSError(errno.EIO, "as the test wants it"))
        await finish(core.jobs.repairer)
        assert not core.writer.broken_because
        await core.jobs.repairer.work()
        assert read_count == len(BODIES)
        there = Path(f"{catalog_of(tmp_path)}.discarded")
        was_made = there.exists()
        there.unlink(missing_ok=True)
        return was_made

    async with new_store(tmp_path) as store:
        core = core_of(store)
        await put_all(store, BODIES)
        read_count = len(await keys(store))
        for _ in range(2):
            assert [await fails_and_is_made_anew() for _ in range(5)] == [False] * 4 + [True]
        assert [await fails_and_is_made_anew() for _ in range(4)] == [False] * 4
        core.jobs.repairer._well_at = 0
        await core.jobs.repairer.work()
        assert [await fails_and_is_made_anew() for _ in range(5)] == [False] * 4 + [True]
        await check_whole(store, BODIES)


@pytest.mark.parametrize("snapshot", [False, True])
def test_a_kill_in_the_middle_of_making_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: bool
) -> None:
    """Before each change of a file: what lies there is enough for the next start, which never takes half for all."""
    machine = SimMachine(tmp_path, small_options(2, 1, 4), rng := random.Random(3))
    bodies = {b"%d" % number: rng.randbytes(rng.choice((0, 10, 900, 5000))) for number in range(60)}
    steps = [0, 0]

    def counted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **how: Any) -> Any:
            steps[0] += 1
            if steps[0] == steps[1]:
                machine.cut(range(4))
            return original(*args, **how)

        monkeypatch.setattr(owner, name, call)

    async def run() -> int:
        await machine.create()
        async with machine.running() as (core, store):
            await store.create_bucket("box")
            await put_all(store, bodies)
            if snapshot:
                await core.destage_all()
        while True:
            async with machine.running() as (core, store):
                await check_whole(store, bodies)
                assert not list(core.catalog.path.parent.glob("*.new*")), "nothing half made stays"
                assert Path(f"{core.catalog.path}.sums").exists()
                bodies[b"turn"] = b"%d" % steps[1]
                await store.put("box", b"turn", bodies[b"turn"])
                await damage(core)
                core.writer.fail(Corrupt("as the test wants it"))
                steps[:] = 0, steps[1] + 1
                await core.jobs.repairer.work()
                if not machine.is_cut:
                    await check_whole(store, bodies)
                    return steps[1]

    for owner, name in ((Path, "replace"), (Path, "unlink"), (Catalog, "commit"), (Catalog, "close")):
        counted(owner, name)
    assert run_seeded(1, run) > 10


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("done", [False, True])
async def test_a_rebuild_that_ends_before_the_catalog_is_repaired(tmp_path: Path, number: int, done: bool) -> None:
    """A lost shard is recorded, made anew, recorded again: the catalog fails at each of these."""
    bodies = {b"%d" % key: body_of(5 * STRIPE_BYTES, key) for key in range(3)}
    async with new_store(tmp_path) as store:
        core = core_of(store)
        rebuilder = core.jobs.rebuilder
        await put_all(store, bodies)
        await store.destage()
        rows = segments(store)
        for row in rows:
            await core.pool.retire(row.id)
            shard = row.disks.index(2)
            (tmp_path / "disk-2" / shard_path(row.id, shard)).unlink()
            rebuilder.report(row.id, shard, 2)
        fail_commits(core.catalog, 1, done=done, after=number - 1)
        with pytest.raises(Error):
            await finish(rebuilder)
        assert core.writer.broken_because
        with suppress(Unavailable):
            await rebuilder.work()
        await finish(core.jobs.repairer)
        await finish(rebuilder)
        assert [row.missing for row in segments(store)] == [0] * len(rows)
        for row in segments(store):
            for shard, index in enumerate(row.disks):
                assert (tmp_path / f"disk-{index}" / shard_path(row.id, shard)).exists()
        for index in (0, 4):
            core.disks.fail(index, "as the test wants it")
        for key, body in bodies.items():
            assert await read(store, key) == body
    assert faults_of(tmp_path) == []


async def test_a_catalog_that_fell_behind_is_not_shown_to_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A WAL that lost its end would show what was acknowledged undone."""
    async with new_store(tmp_path) as store:
        core = core_of(store)
        await put_all(store, BODIES)
        fail_commits(core.catalog, 1)
        with pytest.raises(Corrupt):
            await store.put("box", b"unanswered", b"!")
        core.catalog.committed_sequence += 1
        made: list[str] = []
        make_anew = core.jobs.repairer._make_anew

        async def note(reason: Corrupt) -> None:
            made.append(str(reason))
            await make_anew(reason)

        monkeypatch.setattr(core.jobs.repairer, "_make_anew", note)
        await finish(core.jobs.repairer)
        assert "held" in made[0]
        await check_whole(store, BODIES | {b"unanswered": b"!"})


async def test_a_log_that_cannot_be_read_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with new_store(tmp_path) as store:
        core = core_of(store)
        await put_all(store, BODIES)
        fail_commits(core.catalog, 1)
        with pytest.raises(Corrupt):
            await store.put("box", b"unanswered", b"!")
        repairer = core.jobs.repairer

        async def lost(_sequence: int) -> Any:
            raise DataLost("no good replica")

        with monkeypatch.context() as patch:
            patch.setattr(core.journal, "record", lost)
            waits = []
            for _ in range(8):
                repairer._not_before = 0
                await repairer.work()
                waits.append(round(repairer._not_before - trio.current_time()))
            assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
            assert "no good replica" in store.health().reasons[1]
        await repairer.work()
        assert core.writer.broken_because, "the next attempt waits"
        await check_whole(store, BODIES)
        repairer._not_before = 0
        await repairer.work()
        await check_whole(store, BODIES | {b"unanswered": b"!"})


async def test_the_reserve_is_made_and_freed_and_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "catalog.sqlite.reserve"
    async with new_store(tmp_path, catalog_reserve_bytes=1 << 20) as store:
        core = core_of(store)
        await finish(core.jobs.repairer)
        assert path.stat().st_size == 1 << 20
        fail_commits(core.catalog, 1)
        with pytest.raises(Corrupt):
            await store.put("box", b"k", b"!")
        reopen = core.jobs.repairer._reopen

        async def look() -> None:
            assert not path.exists(), "freed first"
            await reopen()

        monkeypatch.setattr(core.jobs.repairer, "_reopen", look)
        await core.jobs.repairer.work()
        assert not core.writer.broken_because
        with monkeypatch.context() as patch:
            patch.setattr(Reserve, "free_bytes", lambda _: 2 * writer.CATALOG_ROOM_BYTES_MIN)
            await core.jobs.repairer.work()
            assert not path.exists()
            assert (store.health().state, len(store.health().reasons)) == ("degraded", 1)
        await core.jobs.repairer.work()
        assert path.exists()
        assert store.health().state == "healthy"


async def test_a_file_system_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one, for the catalog alone: the reserve is enough to repair; without it, room is waited for."""
    need("mkfs.ext4", "losetup", "mount")
    monkeypatch.setattr(writer, "CATALOG_ROOM_BYTES_MIN", 0)
    monkeypatch.setattr(repair, "CATALOG_ROOM_BYTES_MIN", 1 << 20)
    monkeypatch.setattr(Reserve, "lacking_bytes", lambda _: 0)  # else new data would be refused before the file fails
    loop = LoopDisk(tmp_path / "image", tmp_path / "data", "ext4", 32 << 20)
    try:
        loop.mount()
        disks = tuple(tmp_path / f"disk-{index}" for index in range(6))
        await check_full_catalog(loop, disks)
    finally:
        loop.destroy()


async def check_full_catalog(loop: LoopDisk, disks: tuple[Path, ...]) -> None:
    options = replace(SMALL, disks=disks, catalog_reserve_bytes=4 << 20)
    await make_store(loop.folder, options)
    expected: dict[bytes, bytes] = {}
    async with ObjectStore.open(loop.folder, options) as store:
        core = core_of(store)
        repairer = core.jobs.repairer

        async def fill_until_refused(tag: str) -> None:
            loop.fill()
            for number in range(20_000):
                key = f"{tag}/{number}".encode()
                try:
                    await store.put("box", key, key)
                except (Corrupt, WritesStopped) as error:
                    if isinstance(error, Corrupt):
                        unanswered.add(key)
                    return
                expected[key] = key
            raise AssertionError("the file system never was full")

        unanswered: set[bytes] = set()
        await store.put("box", b"before", b"before")
        await repairer.work()
        await fill_until_refused("first")
        with pytest.raises(WritesStopped):
            await store.delete("box", b"before")
        assert await read(store, b"before") == b"before", "reads go on"
        await repairer.work()
        assert not core.writer.broken_because, "the reserve was room enough"
        await store.delete("box", b"before")
        await repairer.work()
        assert "reserve" in repairer.trouble, "there is no room to make it again"
        await fill_until_refused("second")
        for _ in range(6):
            repairer._not_before = 0
            await repairer.work()
            assert core.writer.broken_because
        assert "full" in store.health().reasons[1]
        assert not list(loop.folder.glob("*.discarded")), "a file that is well is not given up for want of room"
        (loop.folder / "filler").unlink()
        repairer._not_before = 0
        await repairer.work()
        await store.put("box", b"third", b"third")
        expected[b"third"] = b"third"
        await repairer.work()
        assert store.health().state == "healthy"
        for key in unanswered:
            try:
                assert await read(store, key) == key
            except NoSuchKey:
                continue
            expected[key] = key
        for key, body in expected.items():
            assert await read(store, key) == body
        assert core.catalog.reading.bucket("box")
    loop.fill()
    async with ObjectStore.open(loop.folder, options) as store:
        assert core_of(store).started.rebuilt is None
        for key, body in expected.items():
            assert await read(store, key) == body


@pytest.mark.parametrize("seed", range(6))
def test_failures_and_power_cuts_at_random(tmp_path: Path, seed: int) -> None:
    """Nothing acknowledged is lost, nothing unanswered is there in part, with failures before and behind the commit,
    damaged files, repairs that are cut, and restarts.
    """
    rng = random.Random(seed)
    machine = SimMachine(tmp_path, small_options(2, 1, 4), rng)
    may_be: dict[bytes, set[bytes | None]] = {}

    async def change(store: ObjectStore, turn: int) -> None:
        key = b"%d" % rng.randrange(30)
        body = None if rng.random() < 0.3 else rng.randbytes(rng.choice((1, 500, 2000, 5000))) + b"%d" % turn
        try:
            if body is None:
                await store.delete("box", key)
            else:
                await store.put("box", key, body)
        except Unavailable:
            return
        except Error:
            may_be[key] = may_be.get(key, {None}) | {body}
            return
        may_be[key] = {body}

    async def check(store: ObjectStore) -> None:
        for key, bodies in may_be.items():
            try:
                found: bytes | None = await read(store, key)
            except NoSuchKey:
                found = None
            assert found in bodies, key
            may_be[key] = {found}

    async def run() -> int:
        repaired = 0
        await machine.create()
        async with machine.running() as (_, store):
            await store.create_bucket("box")
        for _ in range(4):
            async with machine.running() as (core, store):
                await check(store)
                for turn in range(60):
                    await change(store, turn)
                    dice = rng.random()
                    if dice < 0.10:
                        fail_commits(core.catalog, 1, done=dice < 0.05)
                    elif dice < 0.13:
                        await core.jobs.snapshotter.work()
                    elif dice < 0.16 and not core.writer.broken_because:
                        with suppress(Error):
                            await core.destage_all()
                            await damage(core)
                            fail_commits(core.catalog, 1)
                    if core.writer.broken_because and rng.random() < 0.5:
                        core.jobs.repairer._not_before = 0
                        await core.jobs.repairer.work()
                        assert not core.writer.broken_because, core.jobs.repairer.trouble
                        await check(store)
                repaired += core.jobs.repairer.repaired_count
                machine.cut(rng.sample(range(4), 2))
        async with machine.running() as (_, store):
            await check(store)
        return repaired

    assert run_seeded(seed, run) > 8
