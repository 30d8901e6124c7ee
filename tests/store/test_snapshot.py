import errno
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio
from small_store import (
    SMALL,
    STRIPE_BYTES,
    body_of,
    catalog_of,
    core_of,
    faults_of,
    finish,
    flip,
    journal_files,
    make_store,
    new_store,
    put_all,
    read,
    segments,
    shard_files,
)

from couchestord.ec.shards import PAGE_BYTES, shard_path
from couchestord.errors import JournalDamaged, TooFewDisks
from couchestord.io.catalog.catalog import FILE_SUFFIXES, dump
from couchestord.store import snapshot
from couchestord.store.door import ObjectStore
from couchestord.store.fsck import check_store
from couchestord.store.snapshot import JOB, Table, protected_segments, read_table


def lose_catalog(path: Path) -> None:
    for suffix in FILE_SUFFIXES:
        Path(f"{catalog_of(path)}{suffix}").unlink(missing_ok=True)


async def settled(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """The catalog's rows after a start, which seals what was open."""
    async with ObjectStore.open(path, SMALL):
        pass
    return dump(catalog_of(path))


def holding(store: ObjectStore) -> frozenset[int]:
    """The segments that the newest snapshot lies in."""
    return protected_segments(core_of(store).catalog.accounts.jobs().get(JOB))


BODIES = {b"%d/%d" % (number % 5, number): body_of(number * 4_001) for number in range(40)} | {
    b"long": body_of(9 * STRIPE_BYTES)
}


@pytest.mark.parametrize("gone", [None, 0, 5])
async def test_catalog_lost_with_a_disk_is_made_again_equal(tmp_path: Path, gone: int | None) -> None:
    async with new_store(tmp_path) as store:
        await put_all(store, BODIES)
        await store.create_user("ann", admin=True)
        await store.create_key("ann")
        await store.destage()
        sequence = core_of(store).jobs.snapshotter.sequence
        assert sequence > 40
        assert (core_of(store).journal.first_sequence or 0) > 40
        await put_all(store, {b"after": b"the snapshot", b"after/long": body_of(5 * STRIPE_BYTES)})
        await store.delete("box", b"long")
    kept = await settled(tmp_path)
    lose_catalog(tmp_path)
    if gone is not None:
        shutil.rmtree(tmp_path / f"disk-{gone}")
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert core_of(store).started.rebuilt == "there was none"
        assert core_of(store).started.replayed_count < 40
        for key, body in BODIES.items():
            if key != b"long":
                assert await read(store, key) == body
        assert await read(store, b"after/long") == body_of(5 * STRIPE_BYTES)
        assert len(await store.list_keys()) == 1
        assert core_of(store).jobs.snapshotter.sequence == sequence
    assert dump(catalog_of(tmp_path)) == kept
    assert faults_of(tmp_path) == []


async def test_snapshot_of_many_stripes(tmp_path: Path) -> None:
    """The catalog is many stripes long, and stripes are smaller than the pieces of the usual size."""
    async with new_store(tmp_path) as store:
        await put_all(store, {b"%04d/%s" % (number, b"k" * 800): b"" for number in range(400)})
        await store.destage()
        assert catalog_of(tmp_path).stat().st_size > 5 * STRIPE_BYTES
    kept = await settled(tmp_path)
    lose_catalog(tmp_path)
    assert await settled(tmp_path) == kept


async def test_stripes_that_are_short_for_the_catalog(tmp_path: Path) -> None:
    """The table of so many pieces as there are stripes in the catalog is longer than a stripe."""
    short = replace(SMALL, k=1, m=2, disks_count=3, stripe_bytes=8 << 10)
    await make_store(tmp_path, short)
    async with ObjectStore.open(tmp_path, short) as store:
        for turn, count in enumerate((200, 1800)):
            await put_all(store, {b"%d/%04d%s" % (turn, number, b"k" * 1000): b"" for number in range(count)})
            await store.destage()
            snapshotter = core_of(store).jobs.snapshotter
            assert snapshotter.sequence >= count, "no snapshot was taken"
        assert (core_of(store).journal.first_sequence or 0) > count, "the journal was not trimmed"
        assert await core_of(store).jobs.snapshotter.take(), "what is longer now is named again"
    async with ObjectStore.open(tmp_path, short):
        pass
    kept = dump(catalog_of(tmp_path))
    lose_catalog(tmp_path)
    shutil.rmtree(tmp_path / "disk-1")
    async with ObjectStore.open(tmp_path, short) as store:
        assert len((await store.list("box", prefix=b"1/")).entries) == 1000
    assert {**dump(catalog_of(tmp_path)), "state": 0} == {**kept, "state": 0}
    assert faults_of(tmp_path) == []


async def test_new_snapshot_takes_the_place_of_the_old(tmp_path: Path) -> None:
    await make_store(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await put_all(store, BODIES)
        await store.destage()
        first = holding(store)
        assert first
    # each start seals the open segment, so that the next snapshot lies in others
    async with ObjectStore.open(tmp_path, SMALL) as store:
        for key in BODIES:
            await store.delete("box", key)
        await finish(core_of(store).jobs.compactor)
        assert first <= {row.id for row in segments(store)}
        await store.destage()
        second = holding(store)
        assert not second & first
        await finish(core_of(store).jobs.compactor)
        assert {row.id for row in segments(store)} == second
        assert len(shard_files(tmp_path)) == 6 * len(second)
    # and it is protected after a restart too, though no extent lies in it
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await finish(core_of(store).jobs.compactor)
        await core_of(store).jobs.housekeeper.work()
        assert {row.id for row in segments(store)} == second
    lose_catalog(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert (await store.list("box")).entries == ()


async def put_many(store: ObjectStore, count: int, tag: bytes) -> None:
    """Keys so long that a few make a piece of the catalog."""
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(store.put, "box", b"%s%04d/%s" % (tag, number, b"k" * 900), b"")


async def table_of(store: ObjectStore) -> Table:
    core = core_of(store)
    root = core.disks.slot.snapshot
    assert root is not None
    return await read_table(root, core.stripes, {row.id: row for row in segments(store)})


async def snapshot_of(store: ObjectStore) -> Table:
    assert await core_of(store).jobs.snapshotter.take()
    return await table_of(store)


async def test_pieces_that_are_as_they_were_are_not_written_again(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await put_many(store, 400, b"")
        first = await snapshot_of(store)
        assert len(first.pieces) > 8
        await store.create_user("ann")
        second = await snapshot_of(store)
        kept = set(first.pieces) & set(second.pieces)
        assert len(first.pieces) / 2 < len(kept) < len(first.pieces)
        assert len({piece.segment for piece in second.pieces}) == 2
        assert {piece.segment for piece in second.pieces} <= holding(store)
        await finish(core_of(store).jobs.compactor)
    # one run later the pieces of both are still there, and named again
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await finish(core_of(store).jobs.compactor)
        await store.create_user("bob")
        third = await snapshot_of(store)
        assert set(third.pieces) & kept
        assert third.seed == first.seed != 0
        await finish(core_of(store).jobs.compactor)
    kept_rows = await settled(tmp_path)
    assert faults_of(tmp_path) == []
    assert await check_store(tmp_path, SMALL) == []
    lose_catalog(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert core_of(store).started.replayed_count < 20
    assert {name: rows for name, rows in dump(catalog_of(tmp_path)).items() if name not in {"state", "segment"}} == {
        name: rows for name, rows in kept_rows.items() if name not in {"state", "segment"}
    }


async def test_segments_of_which_little_is_wanted_are_given_up(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await put_many(store, 200, b"")
        first = await snapshot_of(store)
        before = holding(store)
        for turn in range(4):
            await put_many(store, 200, b"%d" % turn)
            table = await snapshot_of(store)
            await finish(core_of(store).jobs.compactor)
            assert {row.id for row in segments(store)} == holding(store) >= {piece.segment for piece in table.pieces}
            room = sum(file.stat().st_size for file in shard_files(tmp_path)) * 4 / 6
            # half of each at most, the table, and a page of header to each shard of each stripe
            assert room < 2.6 * table.size + STRIPE_BYTES
        assert not set(first.pieces) & set(table.pieces)
        assert not before & holding(store)
        assert not any(core_of(store).pool.is_pinned(id_) for id_ in before)


async def test_old_piece_that_rotted_is_written_again(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await put_many(store, 200, b"")
        first = await snapshot_of(store)
        sequence = core_of(store).jobs.snapshotter.sequence
        [segment] = {piece.segment for piece in first.pieces}
        for file in [file for file in shard_files(tmp_path) if int(file.name[:16], 16) == segment][:3]:
            for piece in first.pieces:
                flip(file, (piece.stripe + 1) * 4096, 8)
        await store.create_user("ann")
        assert not await core_of(store).jobs.snapshotter.take()
        assert core_of(store).jobs.snapshotter.sequence == sequence
        second = await snapshot_of(store)
        assert segment not in {piece.segment for piece in second.pieces}
        third = await snapshot_of(store)
        assert set(second.pieces) & set(third.pieces)
    kept = await settled(tmp_path)
    lose_catalog(tmp_path)
    assert {**await settled(tmp_path), "state": 0, "segment": 0} == {**kept, "state": 0, "segment": 0}


async def test_snapshot_that_reads_back_wrong_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with new_store(tmp_path) as store:
        await put_all(store, BODIES)
        jobs = core_of(store).jobs
        assert await jobs.snapshotter.take()
        sequence, protected = jobs.snapshotter.sequence, holding(store)
        await store.put("box", b"more", b"")
        real = core_of(store).pool.stripes.read

        async def rotten(*arguments: object) -> bytes:
            data = bytearray(await real(*arguments))  # type: ignore[arg-type]
            data[len(data) // 2] ^= 1
            return bytes(data)

        monkeypatch.setattr(core_of(store).pool.stripes, "read", rotten)
        assert not await jobs.snapshotter.take()
        monkeypatch.undo()
        assert (jobs.snapshotter.sequence, holding(store)) == (sequence, protected)
        assert jobs.snapshotter.taken_count == 1
    kept = await settled(tmp_path)
    lose_catalog(tmp_path)
    assert await settled(tmp_path) == kept


async def damage_snapshot(path: Path) -> None:
    async with ObjectStore.open(path, SMALL) as store:
        [segment] = holding(store)
    for file in [file for file in shard_files(path) if int(file.name[:16], 16) == segment][:3]:
        for at in range(4096, file.stat().st_size - 8, 512):
            flip(file, at, 8)


async def test_damaged_snapshot_that_is_needed_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with new_store(tmp_path) as store:
        await put_all(store, BODIES)
        await store.destage()
        await store.put("box", b"more", b"")
    await damage_snapshot(tmp_path)
    await settled(tmp_path)
    lose_catalog(tmp_path)
    with pytest.raises(JournalDamaged, match="are on no disk that is here"):
        await settled(tmp_path)
    assert "snapshot of the catalog is unreadable" in caplog.text
    with pytest.raises(JournalDamaged):
        await settled(tmp_path)


async def test_damaged_snapshot_that_is_not_needed(tmp_path: Path) -> None:
    """The log still reaches back to the beginning."""
    async with new_store(tmp_path) as store:
        await put_all(store, BODIES)
        await core_of(store).jobs.snapshotter.take()
        assert core_of(store).journal.first_sequence == 1
    await damage_snapshot(tmp_path)
    kept = await settled(tmp_path)
    lose_catalog(tmp_path)
    assert await settled(tmp_path) == kept


async def test_snapshot_is_read_without_a_catalog_from_any_four_shards(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await put_all(store, BODIES)
        await store.destage()
    kept = await settled(tmp_path)
    for pair in ((0, 1), (2, 5)):
        away = [(tmp_path / f"disk-{index}", tmp_path / f"away-{index}") for index in pair]
        for here, there in away:
            here.rename(there)
        lose_catalog(tmp_path)
        async with ObjectStore.open(tmp_path, SMALL) as store:
            assert core_of(store).started.rebuilt
            assert len((await store.list("box")).entries) == len(BODIES)
        for here, there in away:
            there.rename(here)
    lose_catalog(tmp_path)
    again = await settled(tmp_path)
    assert {name: rows for name, rows in again.items() if name != "state"} == {
        name: rows for name, rows in kept.items() if name != "state"
    }


async def test_what_a_kill_leaves_of_a_snapshot_that_is_read_is_removed_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, killed = tmp_path / "store", tmp_path / "killed"
    path.mkdir()
    async with new_store(path) as store:
        await put_all(store, BODIES)
        await store.destage()
    await settled(path)
    catalog, real = catalog_of(path).read_bytes(), snapshot.read_pieces

    async def read_pieces(*arguments: Any) -> AsyncIterator[object]:
        async for piece in real(*arguments):
            yield piece
            shutil.copytree(path, killed, dirs_exist_ok=True)

    monkeypatch.setattr(snapshot, "read_pieces", read_pieces)
    lose_catalog(path)
    await settled(path)
    assert list(killed.glob("catalog.sqlite.new*"))
    # a repair was killed: the one before is in its place
    catalog_of(killed).write_bytes(catalog)
    await settled(killed)
    assert not list(killed.glob("catalog.sqlite.new*"))


@pytest.mark.parametrize("is_at_home", [True, False])
async def test_snapshot_is_read_from_the_whole_one_of_two_files_of_a_shard(tmp_path: Path, is_at_home: bool) -> None:
    """One disk failed while it was written to, the shard was made anew on another, and the first is back."""
    options = replace(SMALL, disks_count=7)
    await make_store(tmp_path, options)
    async with ObjectStore.open(tmp_path, options) as store:
        await put_all(store, BODIES)
        await store.destage()
        (row,) = (row for row in segments(store) if row.id in holding(store))
    (spare,) = set(range(7)) - set(row.disks)
    home, *others = row.disks
    files = [tmp_path / f"disk-{disk}" / shard_path(row.id, 0) for disk in (home, spare)]
    shutil.copy(*files)
    os.truncate(files[is_at_home], PAGE_BYTES)
    for disk in others[:2]:
        shutil.rmtree(tmp_path / f"disk-{disk}")
    lose_catalog(tmp_path)
    async with ObjectStore.open(tmp_path, options) as store:
        for key, body in BODIES.items():
            assert await read(store, key) == body


async def test_taken_when_due(tmp_path: Path) -> None:
    options = replace(SMALL, snapshot_bytes_min=300_000)
    await make_store(tmp_path, options)
    async with ObjectStore.open(tmp_path, options) as store:
        snapshotter = core_of(store).jobs.snapshotter
        await snapshotter.work()
        assert (snapshotter.is_due(), snapshotter.taken_count) == (False, 0)
        for number in range(4):
            await store.put("box", b"%d" % number, body_of(100_000))
        assert snapshotter.is_due()
        await snapshotter.work()
        assert (snapshotter.is_due(), snapshotter.taken_count) == (False, 1)
        await snapshotter.work()
        assert snapshotter.taken_count == 1
    assert len(journal_files(tmp_path)) >= 3


async def test_failed_snapshot_leaves_pins_even(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it fails: what the next one replaces is let go, and what a reader holds is not."""
    async with new_store(tmp_path) as store:
        core = core_of(store)
        await store.put("box", b"key", body_of(5 * STRIPE_BYTES))
        [segment] = [row.id for row in segments(store)]

        async def fail(*_: object, **__: object) -> None:
            raise TooFewDisks("as the test wants it")

        for what, name in ((core.disks, "set_snapshot"), (core.pool.stripes, "read"), (core.pool, "take")):
            assert await core.jobs.snapshotter.take()
            await core.pool.aclose()  # the next one lies in another segment
            with monkeypatch.context() as patch:
                patch.setattr(what, name, fail)
                assert not await core.jobs.snapshotter.take()
            assert all(core.pool.is_pinned(id_) for id_ in holding(store))
            async with await store.get("box", b"key"):
                assert await core.jobs.snapshotter.take()
                assert core.pool.is_pinned(segment)
            assert all(core.pool.is_pinned(id_) for id_ in holding(store))
        [held] = holding(store)
        core.pins.release([held])
        assert not core.pool.is_pinned(held)


async def test_rot_in_the_catalog_is_not_taken_for_the_truth(tmp_path: Path) -> None:
    """A page rots while the store runs: a snapshot with it, and the log trimmed behind it, would lose the key."""
    bodies = {b"%04d" % number: b"body %d" % number for number in range(300)}
    async with new_store(tmp_path) as store:
        core = core_of(store)
        await put_all(store, bodies)
        await core.jobs.snapshotter.take()
        sequence = core.jobs.snapshotter.sequence
        await put_all(store, {b"later": b"!"})
        assert await core.jobs.checkpointer.checkpoint()
        with catalog_of(tmp_path).open("r+b") as file:
            file.seek(file.read().index(b"0123") + 3)
            file.write(b"0")
        assert not await core.jobs.snapshotter.take()
        assert core.jobs.snapshotter.sequence == sequence
        await finish(core.jobs.repairer)
        assert core.jobs.repairer.repaired_count == 1
        await store.destage()
        assert core.jobs.snapshotter.sequence > sequence
        assert (core.journal.first_sequence or 0) > sequence
    lose_catalog(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        for key, body in {**bodies, b"later": b"!"}.items():
            assert await read(store, key) == body


async def test_a_catalog_that_cannot_be_read_for_a_snapshot_is_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with new_store(tmp_path) as store:
        core = core_of(store)
        await put_all(store, BODIES)
        assert await core.jobs.checkpointer.checkpoint()
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", failing)
            assert not await core.jobs.snapshotter.take()
        assert "cannot be read" in str(core.writer.broken_because)
        await finish(core.jobs.repairer)
        assert await core.jobs.snapshotter.take()


async def test_a_catalog_that_changed_its_length_is_no_snapshot(tmp_path: Path) -> None:
    for change in (-4096, 4096):
        path = tmp_path / str(change)
        async with new_store(path) as store:
            core = core_of(store)
            await put_all(store, BODIES)
            assert await core.jobs.checkpointer.checkpoint()
            with catalog_of(path).open("r+b") as file:
                file.truncate(catalog_of(path).stat().st_size + change)
            assert not await core.jobs.snapshotter.take()
            assert core.writer.broken_because
            assert core.disks.slot.snapshot is None
            await finish(core.jobs.repairer)
            assert await core.jobs.snapshotter.take()
