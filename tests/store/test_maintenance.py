import contextlib
import random
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from small_store import (
    JOURNAL,
    SMALL,
    STRIPE_BYTES,
    body_of,
    catalog_of,
    core_of,
    finish,
    flip,
    journal_files,
    new_store,
    other_reader,
    put_all,
    read,
)

from couchestord.errors import Corrupt, JournalFull, Unavailable
from couchestord.io.catalog import pages
from couchestord.io.catalog.catalog import FILE_SUFFIXES, Catalog, dump
from couchestord.io.catalog.pages import PAGE_BYTES, checkpoint_ahead, checkpoint_with_sums, sums_path, verify_pages
from couchestord.io.catalog.wal import committed_pages, frame_pages, salt_of
from couchestord.io.sqlite import checkpoint, open_writer
from couchestord.model import Policy
from couchestord.store import maintenance, writer
from couchestord.store.door import ObjectStore


async def test_checkpoint_moves_the_wal_and_keeps_sums(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        checkpointer = core_of(store).jobs.checkpointer
        catalog = core_of(store).catalog
        await store.put("box", b"key", b"body")
        before = catalog_of(tmp_path).read_bytes()
        assert await checkpointer.checkpoint()
        assert checkpointer.sequence == catalog.committed_sequence
        assert catalog_of(tmp_path).read_bytes() != before
        verify_pages(catalog_of(tmp_path))
        stored = sums_path(catalog_of(tmp_path)).stat().st_mtime_ns
        assert await checkpointer.checkpoint()
        assert sums_path(catalog_of(tmp_path)).stat().st_mtime_ns == stored


async def test_readers_of_the_store_keep_no_checkpoint_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their transaction lasts from commit to commit, but for this."""
    real = checkpoint_with_sums
    async with new_store(tmp_path) as store:

        def read_meanwhile(main: pages.MainFile, ahead: pages.Moved) -> bool:
            assert core_of(store).catalog.reading.bucket("box")
            core_of(store).catalog.accounts.users()
            return real(main, ahead)

        monkeypatch.setattr(maintenance, "checkpoint_with_sums", read_meanwhile)
        await store.put("box", b"key", b"body")
        assert await read(store, b"key") == b"body"
        assert await core_of(store).jobs.checkpointer.checkpoint()
        assert not core_of(store).catalog.wal_bytes()
        assert await read(store, b"key") == b"body"


async def test_wal_begins_anew_though_readers_never_rest(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        path = catalog_of(tmp_path)
        await put_all(store, {b"%d" % number: b"" for number in range(40)})
        assert await read(store, b"0") == b""
        before, size = salt_of(Path(f"{path}-wal")), core_of(store).catalog.wal_bytes()
        checkpoint(path)
        assert await read(store, b"0") == b""
        await store.put("box", b"key", b"body")
        assert salt_of(Path(f"{path}-wal")) != before
        assert core_of(store).catalog.wal_bytes() == size
        assert await read(store, b"key") == b"body"


async def test_checkpoint_is_taken_when_the_wal_has_grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with new_store(tmp_path) as store:
        checkpointer = core_of(store).jobs.checkpointer
        await store.put("box", b"key", b"body")
        await checkpointer.work()
        assert checkpointer.sequence == 0
        monkeypatch.setattr(maintenance, "WAL_BYTES_MIN", core_of(store).catalog.wal_bytes())
        await checkpointer.work()
        assert checkpointer.sequence == core_of(store).catalog.committed_sequence


async def test_checkpoint_that_a_reader_keeps_from_its_end(tmp_path: Path) -> None:
    """Then nothing may be trimmed that only the WAL holds, and no snapshot is taken of half a catalog."""
    async with new_store(tmp_path) as store:
        jobs = core_of(store).jobs
        with other_reader(tmp_path):
            await store.put("box", b"key", b"body")
            assert not await jobs.checkpointer.checkpoint()
            assert not await jobs.snapshotter.take()
            assert jobs.checkpointer.sequence == 0
        assert await jobs.snapshotter.take()
        assert jobs.checkpointer.sequence


async def test_no_checkpoint_while_the_file_is_frozen(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        checkpointer = core_of(store).jobs.checkpointer
        await store.put("box", b"key", b"body")
        frozen = await checkpointer.frozen()
        assert frozen is not None
        before = catalog_of(tmp_path).read_bytes()
        await store.put("box", b"other", b"body")
        assert frozen.sequence < core_of(store).catalog.committed_sequence
        async with trio.open_nursery() as nursery:
            nursery.start_soon(checkpointer.checkpoint)
            await trio.testing.wait_all_tasks_blocked()
            assert catalog_of(tmp_path).read_bytes() == before
            frozen.release()
        assert catalog_of(tmp_path).read_bytes() != before
        assert checkpointer.sequence == core_of(store).catalog.committed_sequence


async def test_checkpoint_that_fails_leaves_the_next_one_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> tuple[int, int]:
        raise Corrupt("as the test wants it")

    async with new_store(tmp_path) as store:
        jobs = core_of(store).jobs
        await store.put("box", b"key", b"body")
        with monkeypatch.context() as patch:
            patch.setattr(maintenance, "checkpoint_with_sums", fail)
            for call in (jobs.snapshotter.take, jobs.checkpointer.checkpoint):
                with pytest.raises(Corrupt):
                    await call()
        assert await jobs.snapshotter.take()


@pytest.mark.parametrize(("code", "repaired"), [(sqlite3.SQLITE_IOERR, True), (sqlite3.SQLITE_FULL, False)])
async def test_checkpoint_that_cannot_write_the_file_calls_for_a_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, repaired: bool
) -> None:
    """But not for want of room, which no repair makes."""
    async with new_store(tmp_path) as store:
        jobs, writer_ = core_of(store).jobs, core_of(store).writer
        monkeypatch.setattr(maintenance, "WAL_BYTES_MIN", 1)

        def failing(main: pages.MainFile, ahead: pages.Moved) -> bool:
            cause = sqlite3.OperationalError("as the test wants it")
            cause.sqlite_errorcode = code
            raise Corrupt("checkpointing") from cause

        monkeypatch.setattr(maintenance, "checkpoint_with_sums", failing)
        await store.put("box", b"key", b"body")
        await jobs.checkpointer.work()
        assert bool(writer_.broken_because) is repaired
        if repaired:
            await jobs.repairer.work()
            assert jobs.repairer.repaired_count == 1
        await store.put("box", b"other", b"body")
        monkeypatch.undo()
        assert await jobs.checkpointer.checkpoint()


async def test_clean_stop_leaves_sums_that_hold(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await put_all(store, {b"%d" % number: b"" for number in range(50)})
    verify_pages(catalog_of(tmp_path))
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert core_of(store).started.rebuilt is None
        assert core_of(store).started.replayed_count == 0


async def test_rotten_page_of_the_catalog_is_found_and_made_again(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await put_all(store, {b"%d/%d" % (number % 9, number): b"" for number in range(100)})
    async with ObjectStore.open(tmp_path, SMALL):
        pass
    kept = dump(catalog_of(tmp_path))
    pages = catalog_of(tmp_path).stat().st_size // PAGE_BYTES
    for page in (0, pages // 2, pages - 1):
        # a page that the WAL holds is read from there, so only what it does not hold can hurt
        Path(f"{catalog_of(tmp_path)}-wal").unlink()
        flip(catalog_of(tmp_path), page * PAGE_BYTES + 2000)
        async with ObjectStore.open(tmp_path, SMALL) as store:
            assert core_of(store).started.rebuilt == (
                f"it was damaged: 1 of its {pages} pages fail their checksum, the first is page {page}"
            )
            assert len((await store.list("box")).entries) == 100
        assert dump(catalog_of(tmp_path)) == kept
        pages = catalog_of(tmp_path).stat().st_size // PAGE_BYTES


async def test_rotten_page_that_the_wal_holds_does_no_harm(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await put_all(store, {b"%d" % number: b"" for number in range(100)})
    kept = dump(catalog_of(tmp_path))
    flip(catalog_of(tmp_path), 2000)
    assert dump(catalog_of(tmp_path)) == kept
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert len((await store.list("box")).entries) == 100
    assert {name: rows for name, rows in dump(catalog_of(tmp_path)).items() if name not in {"state", "segment"}} == {
        name: rows for name, rows in kept.items() if name not in {"state", "segment"}
    }


async def test_destage_snapshot_trim(tmp_path: Path) -> None:
    """Bodies are trimmed only after they lie in stripes and a snapshot holds what the records said."""
    bodies = {b"%d" % number: body_of(60_000, number) for number in range(40)}
    async with new_store(tmp_path) as store:
        jobs, journal = core_of(store).jobs, core_of(store).journal
        await put_all(store, bodies)
        filled = journal.size_bytes
        assert len(journal_files(tmp_path)) >= 9
        assert await jobs.snapshotter.take()
        await jobs.snapshotter.trim()
        oldest = core_of(store).catalog.reading.extents_in_journal(0, 1)[0].stripe
        assert journal.holds(oldest)
        assert jobs.snapshotter.trim_point() == oldest
        jobs.destager.force()
        await finish(jobs.destager)
        assert jobs.destager.moved_extents_count == len(bodies)
        await jobs.snapshotter.trim()
        snapshot = jobs.snapshotter.sequence
        assert journal.holds(snapshot + 1)
        assert jobs.snapshotter.trim_point() == snapshot + 1
        assert await jobs.snapshotter.take()
        assert await jobs.snapshotter.trim()
        assert journal.size_bytes < filled / 10
        assert len(journal_files(tmp_path)) <= 6
        for key, body in bodies.items():
            assert await read(store, key) == body
            assert "segment" in (await store.describe("box", key))["extents"][0]
    async with ObjectStore.open(tmp_path, SMALL) as store:
        for key, body in bodies.items():
            assert await read(store, key) == body


async def test_what_the_main_file_lacks_is_not_trimmed(tmp_path: Path) -> None:
    """After a start no checkpoint of this run vouches for the main file yet."""
    async with new_store(tmp_path) as store:
        await put_all(store, {b"%d" % number: body_of(3 * STRIPE_BYTES) for number in range(10)})
        await store.destage()
    async with ObjectStore.open(tmp_path, SMALL) as store:
        jobs = core_of(store).jobs
        assert jobs.snapshotter.sequence > 0
        assert jobs.snapshotter.trim_point() == 1
        await store.put("box", b"more", b"")
        assert await jobs.checkpointer.checkpoint()
        assert jobs.snapshotter.trim_point() == jobs.snapshotter.sequence + 1


async def test_journal_that_a_start_finds_full_is_trimmed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A kill came between a snapshot and the trim behind it: nothing that is let in calls for a checkpoint."""
    small = replace(JOURNAL, size_bytes=2 << 20, file_bytes=256 << 10)
    async with new_store(tmp_path, journal=small) as store:
        jobs, journal = core_of(store).jobs, core_of(store).journal
        with pytest.raises(JournalFull):
            await put_all(store, {b"%d" % number: body_of(100_000) for number in range(99)})
        jobs.destager.force()
        await finish(jobs.destager)
        assert await jobs.snapshotter.take()
        assert journal.size_bytes >= journal.size_bytes_max
    async with ObjectStore.open(tmp_path, replace(SMALL, journal=small)) as store:
        jobs, journal = core_of(store).jobs, core_of(store).journal
        assert not jobs.snapshotter.is_due()
        with pytest.raises(JournalFull):
            await store.put("box", b"more", body_of(100_000))
        for _ in range(2):
            for job in (jobs.destager, jobs.checkpointer, jobs.snapshotter, jobs.checkpointer):
                await finish(job)
        assert caplog.text.count("journal is full") == 1
        assert journal.size_bytes < journal.size_bytes_max * 0.2
        await store.put("box", b"more", body_of(100_000))


async def test_idle_log_is_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no body left in the journal a small log is worth a snapshot; with one it is not."""
    async with new_store(tmp_path) as store:
        jobs = core_of(store).jobs
        await put_all(store, {b"%d" % number: body_of(100_000) for number in range(9)})
        monkeypatch.setattr(maintenance, "IDLE_LOG_BYTES_MIN", 500_000)
        assert not jobs.snapshotter.is_due()
        jobs.destager.force()
        await finish(jobs.destager)
        assert jobs.snapshotter.is_due()
        await jobs.snapshotter.work()
        assert not jobs.snapshotter.is_due()
        assert core_of(store).journal.size_bytes < 100_000


async def test_journal_that_is_half_full_is_freed_whatever_the_bounds_of_a_snapshot(tmp_path: Path) -> None:
    small = replace(JOURNAL, size_bytes=2 << 20, file_bytes=256 << 10)
    async with new_store(tmp_path, journal=small) as store:
        jobs, journal = core_of(store).jobs, core_of(store).journal
        await put_all(store, {b"%d" % number: body_of(100_000) for number in range(9)})
        assert not jobs.snapshotter.is_due()
        await put_all(store, {b"more/%d" % number: body_of(100_000) for number in range(9)})
        assert journal.size_bytes > journal.size_bytes_max * 0.8
        jobs.destager.force()
        await finish(jobs.destager)
        assert jobs.snapshotter.is_due()
        await jobs.snapshotter.work()
        assert journal.size_bytes < journal.size_bytes_max * 0.2


async def test_gap_in_the_log_calls_for_a_snapshot(tmp_path: Path) -> None:
    """The end of the log rots on every disk, and only the catalog knows what it said."""
    async with new_store(tmp_path) as store:
        await put_all(store, {b"%d" % number: b"few bytes" for number in range(9)})
    newest = max(file.name for file in journal_files(tmp_path))
    for file in journal_files(tmp_path):
        if file.name == newest:
            flip(file, file.read_bytes().rindex(b"CJRC") + 30)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert core_of(store).started.rebuilt is None
        await store.put("box", b"after", b"the damage")
        jobs = core_of(store).jobs
        assert jobs.snapshotter.is_due()
        await jobs.snapshotter.work()
        assert not jobs.snapshotter.is_due()
    kept = dump(catalog_of(tmp_path))
    for suffix in FILE_SUFFIXES:
        Path(f"{catalog_of(tmp_path)}{suffix}").unlink(missing_ok=True)
    async with ObjectStore.open(tmp_path, SMALL):
        pass
    again = dump(catalog_of(tmp_path))
    assert {table: again[table] for table in ("entry", "content", "extent")} == {
        table: kept[table] for table in ("entry", "content", "extent")
    }


async def test_sums_that_could_not_be_stored_are_all_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite reuses a WAL that was moved: the pages it held would else never be summed again."""

    def fail(*_: object) -> None:
        raise OSError(28, "as the test wants it")

    async with new_store(tmp_path) as store:
        checkpointer = core_of(store).jobs.checkpointer
        await put_all(store, {b"%03d" % number: b"x" for number in range(200)})
        wal = Path(f"{catalog_of(tmp_path)}-wal")
        first = committed_pages(wal)
        with monkeypatch.context() as patch:
            patch.setattr(pages, "_store", fail)
            with pytest.raises(OSError, match="as the test wants it"):
                await checkpointer.checkpoint()
        await store.put("box", b"two", b"2")
        assert first - committed_pages(wal)
        assert await checkpointer.checkpoint()
        assert sums_path(catalog_of(tmp_path)).exists()
        verify_pages(catalog_of(tmp_path))


@pytest.mark.parametrize("seed", range(3))
async def test_sums_hold_whatever_is_written_beside_a_checkpoint_ahead(tmp_path: Path, seed: int) -> None:
    """Cut off at each step, and with the WAL begun anew in between."""
    rng = random.Random(seed)
    async with new_store(tmp_path) as store:
        path = catalog_of(tmp_path)

        async def write(count: int) -> None:
            for _ in range(count):
                await store.put("box", b"%d" % rng.randrange(300), body_of(rng.randrange(30)))

        for turn in range(6):
            await write(rng.randrange(1, 60))
            with contextlib.ExitStack() as stack:
                if turn % 3 == 2:
                    # a reader of what was there: what is written from now on cannot be moved
                    stack.enter_context(other_reader(tmp_path))
                    await write(5)
                ahead = checkpoint_ahead(core_of(store).catalog.main)
                assert ahead.frames > 0
                verify_pages(path)
            await write(rng.choice((0, 1, 20)))
            verify_pages(path)
            if turn % 2:
                with core_of(store).catalog.out_of_wal():
                    assert checkpoint_with_sums(core_of(store).catalog.main, ahead)
                assert not committed_pages(Path(f"{path}-wal"))
                verify_pages(path)
        kept = dump(path)
    assert dump(catalog_of(tmp_path)) == kept


async def test_wal_that_began_anew_is_summed_from_its_first_frame(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        path = catalog_of(tmp_path)
        await put_all(store, {b"%d" % number: b"" for number in range(40)})
        ahead = checkpoint_ahead(core_of(store).catalog.main)
        await put_all(store, {b"%d" % number: b"more" for number in range(40)})
        assert salt_of(Path(f"{path}-wal")) != ahead.salt
        assert checkpoint_with_sums(core_of(store).catalog.main, ahead)
        verify_pages(path)


async def test_checkpoint_leaves_little_to_the_part_that_writers_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "WAL_BYTES_AHEAD_MIN", 4096)
    left: list[int] = []
    real = checkpoint_with_sums

    def watched(main: pages.MainFile, ahead: pages.Moved) -> bool:
        left.append(len(frame_pages(Path(f"{main.path}-wal"), ahead.frames)))
        return real(main, ahead)

    monkeypatch.setattr(maintenance, "checkpoint_with_sums", watched)
    async with new_store(tmp_path) as store:
        await put_all(store, {b"%d" % number: b"" for number in range(100)})
        assert await core_of(store).jobs.checkpointer.checkpoint()
        assert left
        assert not any(left)
        verify_pages(catalog_of(tmp_path))


async def test_sums_that_could_not_be_stored_ahead_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "as the test wants it")

    async with new_store(tmp_path) as store:
        path = catalog_of(tmp_path)
        await put_all(store, {b"%03d" % number: b"x" for number in range(50)})
        with monkeypatch.context() as patch:
            patch.setattr(pages, "_store", fail)
            with pytest.raises(OSError, match="as the test wants it"):
                checkpoint_ahead(core_of(store).catalog.main)
        assert not sums_path(path).exists()
        await put_all(store, {b"%03d" % number: b"y" for number in range(3)})
        assert checkpoint_with_sums(core_of(store).catalog.main)
        verify_pages(path)
        assert sums_path(path).exists()


async def test_new_data_waits_while_the_wal_is_full_and_deletes_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with new_store(tmp_path) as store:
        with other_reader(tmp_path):
            await store.put("box", b"key", b"body")
            monkeypatch.setattr(writer, "WAL_BYTES_MAX", core_of(store).catalog.wal_bytes() - 1)
            await core_of(store).jobs.checkpointer.checkpoint()
            with pytest.raises(Unavailable, match="WAL is full"):
                await store.put("box", b"other", b"body")
            await store.delete("box", b"key")
        assert await core_of(store).jobs.checkpointer.checkpoint()
        await store.put("box", b"other", b"body")


def test_wal_does_not_begin_anew_before_what_was_moved_ahead_is_summed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "catalog.sqlite"
    Catalog.create(path, b"0123456789abcdef", Policy())
    with contextlib.closing(pages.MainFile(path)) as main, contextlib.closing(open_writer(path)) as connection:
        connection.execute("create table filler (number integer primary key, text blob)")
        connection.executemany("insert into filler values (?, ?)", ((number, b"x" * 900) for number in range(100)))

        def checkpoint_and_write(path: Path) -> tuple[int, int]:
            found = checkpoint(path)
            connection.execute("update filler set text='y' where number=50")
            return found

        monkeypatch.setattr(pages, "checkpoint", checkpoint_and_write)
        ahead = checkpoint_ahead(main)
        monkeypatch.undo()
        verify_pages(path)
        assert checkpoint_with_sums(main, ahead)
        verify_pages(path)
