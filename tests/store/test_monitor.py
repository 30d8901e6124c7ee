import errno
import os
import shutil
import threading
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing
from small_store import (
    SMALL,
    STRIPE_BYTES,
    body_of,
    compared,
    core_of,
    faults_of,
    finish,
    look,
    make_store,
    new_store,
    put_all,
    read,
    segments,
)

from couchestord.ec.rebuild import Rebuilder
from couchestord.errors import DiskError, DiskFailed, DiskFull, JournalFull, NoSpace, TooFewDisks
from couchestord.io import disks as disks_module
from couchestord.io.directory import DirectoryDisk
from couchestord.io.disk import Capacity, Disk
from couchestord.io.folder import LockedFolder
from couchestord.io.superblock import Slot
from couchestord.store.door import ObjectStore
from couchestord.store.health import health
from couchestord.store.monitor import Monitor

BODIES = {b"%d" % number: body_of(size, number) for number, size in enumerate((10, 70_000, 6 * STRIPE_BYTES, 900_000))}


async def test_folder_that_goes_is_noticed_and_taken_back(tmp_path: Path) -> None:
    here, away = tmp_path / "disk-2", tmp_path / "away"
    async with new_store(tmp_path) as store:
        monitor, disks = core_of(store).jobs.monitor, core_of(store).disks
        await put_all(store, BODIES)
        await monitor.work()
        assert disks.missing_count() == 0
        here.rename(away)
        await monitor.work()
        assert disks.failures == {2: "the folder is gone"}
        more = {b"more/" + key: body for key, body in BODIES.items()}
        await put_all(store, more)
        await store.delete("box", b"2")
        await store.destage()
        await monitor.work()
        assert 2 in disks.failures
        # nothing was written behind its back, wherever the folder went
        away.rename(here)
        await look(store)
        assert disks.failures == {}
        await finish(core_of(store).jobs.rebuilder)
        assert all(not row.missing for row in segments(store))
        assert store.health().state == "healthy"
        for index in (0, 4):
            disks.fail(index, "as the test wants it")
        for key, body in (BODIES | more).items():
            if key != b"2":
                assert await read(store, key) == body
    assert faults_of(tmp_path) == []


async def test_log_goes_on_in_a_new_file_once_a_disk_is_back(tmp_path: Path) -> None:
    """Nothing was written meanwhile: the file would go on on a disk that may have lost what it held of it."""
    async with new_store(tmp_path) as store:
        core = core_of(store)
        await store.put("box", b"before", b"")
        file, (index, *_) = core.journal.replicas(core.catalog.committed_sequence)
        here, away = tmp_path / f"disk-{index}", tmp_path / "away"
        here.rename(away)
        await core.jobs.monitor.work()
        away.rename(here)
        await core.jobs.monitor.work()
        assert (core.disks.failures, core.disks.slot.away) == ({}, (index,))
        await store.put("box", b"after", b"")
        assert core.journal.replicas(core.catalog.committed_sequence)[0] != file
        assert core.disks.slot.away == ()


async def test_reader_that_is_older_than_a_rebuild_makes_no_work_when_the_disk_is_back(tmp_path: Path) -> None:
    """It looks for the shard where it lay, and that copy was removed when the disk returned."""
    async with new_store(tmp_path, disks=tuple(tmp_path / f"disk-{index}" for index in range(7))) as store:
        core, body = core_of(store), body_of(9 * STRIPE_BYTES)
        await store.put("box", b"key", body)
        await core.pool.aclose()
        async with await store.get("box", b"key") as reader:
            [row] = segments(store)
            here = tmp_path / f"disk-{row.disks[0]}"
            here.rename(tmp_path / "away")
            await core.jobs.monitor.work()
            await finish(core.jobs.rebuilder)
            assert segments(store)[0].disks[0] != row.disks[0]
            (tmp_path / "away").rename(here)
            await look(store)
            assert core.disks.failures == {}
            assert list((here / "segments").iterdir()) == []
            await finish(core.jobs.rebuilder)
            sequence, count = core.catalog.committed_sequence, core.jobs.rebuilder.rebuilt_shards_count
            assert await reader.read() == body
        assert core.stripes.degraded_reads_count
        await finish(core.jobs.rebuilder)
        assert (core.catalog.committed_sequence, core.jobs.rebuilder.rebuilt_shards_count) == (sequence, count)


async def test_copy_of_a_disk_in_anothers_place_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with new_store(tmp_path) as store:
        monitor, disks = core_of(store).jobs.monitor, core_of(store).disks
        (tmp_path / "disk-2").rename(tmp_path / "away")
        shutil.copytree(tmp_path / "disk-3", tmp_path / "disk-2")
        await monitor.work()
        await monitor.work()
        assert disks.failures == {2: "the folder is gone"}
        assert "claims to be disk 3" in caplog.text
        shutil.rmtree(tmp_path / "disk-2")
        (tmp_path / "away").rename(tmp_path / "disk-2")
        await monitor.work()
        assert disks.failures == {}


async def test_disk_of_another_store_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = await make_store(tmp_path / "other")
    async with new_store(tmp_path / "one") as store:
        monitor, disks = core_of(store).jobs.monitor, core_of(store).disks
        shutil.rmtree(tmp_path / "one/disk-2")
        shutil.copytree(other / "disk-2", tmp_path / "one/disk-2")
        superblock = (tmp_path / "one/disk-2/superblock").read_bytes()
        await monitor.work()
        await monitor.work()
        assert disks.failures == {2: "the folder is gone"}
        assert "another store" in caplog.text
        assert (tmp_path / "one/disk-2/superblock").read_bytes() == superblock


async def test_a_look_that_is_cut_short_leaves_no_disk_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await make_store(tmp_path)
    (tmp_path / "disk-5").rename(tmp_path / "away")
    looking = trio.Event()

    async def look(_: object) -> None:
        looking.set()
        await trio.sleep_forever()

    async with ObjectStore.open(tmp_path, SMALL) as store:
        (tmp_path / "away").rename(tmp_path / "disk-5")
        monkeypatch.setattr("couchestord.store.monitor.read_superblock", look)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core_of(store).jobs.monitor.work)
            await looking.wait()
            nursery.cancel_scope.cancel()
        (await DirectoryDisk.open(tmp_path / "disk-5")).close()


async def test_empty_folder_is_no_disk(tmp_path: Path) -> None:
    """A mount that failed leaves an empty folder: it is never made a disk anew."""
    async with new_store(tmp_path) as store:
        shutil.rmtree(tmp_path / "disk-2")
        (tmp_path / "disk-2").mkdir()
        await core_of(store).jobs.monitor.work()
        await core_of(store).jobs.monitor.work()
        assert set(core_of(store).disks.failures) == {2}
        await put_all(store, BODIES)
        assert [path.name for path in (tmp_path / "disk-2").iterdir() if path.name != "lock"] == []


async def test_disk_missing_at_the_start_is_taken_in_later(tmp_path: Path) -> None:
    await make_store(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await put_all(store, BODIES)
    (tmp_path / "disk-5").rename(tmp_path / "away")
    async with ObjectStore.open(tmp_path, SMALL) as store:
        disks = core_of(store).disks
        assert set(disks.failures) == {5}
        await store.delete("box", b"2")
        await finish(core_of(store).jobs.compactor)
        await store.put("box", b"new", body_of(5 * STRIPE_BYTES))
        (tmp_path / "away").rename(tmp_path / "disk-5")
        await look(store)
        assert disks.failures == {}
        await finish(core_of(store).jobs.rebuilder)
        assert await read(store, b"new") == body_of(5 * STRIPE_BYTES)
    kept = {row.name for row in (tmp_path / "disk-5/segments").iterdir()}
    # the files of what was dropped while it was away are gone from it
    assert {name[:16] for name in kept} <= {
        path.name[:16] for index in range(5) for path in (tmp_path / f"disk-{index}/segments").iterdir()
    }


async def test_more_disks_gone_than_the_code_makes_good(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await put_all(store, BODIES)
        for index in (1, 3, 4):
            (tmp_path / f"disk-{index}").rename(tmp_path / f"away-{index}")
        await core_of(store).jobs.monitor.work()
        assert store.health().state == "unhealthy"
        with pytest.raises(TooFewDisks):
            await store.put("box", b"new", body_of(5 * STRIPE_BYTES))
        for index in (1, 3, 4):
            (tmp_path / f"away-{index}").rename(tmp_path / f"disk-{index}")
        await look(store)
        await finish(core_of(store).jobs.rebuilder)
        await store.put("box", b"new", body_of(5 * STRIPE_BYTES))
        for key, body in BODIES.items():
            assert await read(store, key) == body
        assert store.health().state == "healthy"


def test_disk_that_fails_again_and_again_is_left_out_longer_until_it_was_good_for_a_while(tmp_path: Path) -> None:
    clock = trio.testing.MockClock()

    async def main() -> None:
        async with new_store(tmp_path) as store:
            monitor, disks = core_of(store).jobs.monitor, core_of(store).disks
            await monitor.work()

            async def fails_and_is_away_for(wait_s: float) -> None:
                disks.fail(2, "as the test wants it")
                await monitor.work()
                for step_s, is_away in ((0.0, True), (wait_s - 0.5, True), (1.0, False)):
                    clock.jump(step_s)
                    await monitor.work()
                    assert (2 in disks.failures) == is_away, f"{wait_s} s"

            for wait_s in (2, 4, 8, 16, 32, 64, 128, 256, 300, 300):
                await fails_and_is_away_for(wait_s)
            clock.jump(590)
            await fails_and_is_away_for(300)
            clock.jump(610)
            (tmp_path / "disk-2").rename(tmp_path / "away")
            await monitor.work()
            assert 2 in disks.failures
            (tmp_path / "away").rename(tmp_path / "disk-2")
            await monitor.work()
            assert 2 not in disks.failures, "it went, and is taken back at once"
            await fails_and_is_away_for(2)
            await fails_and_is_away_for(4)

    trio.run(main, clock=clock)


async def test_full_disk_is_used_again_when_it_has_room(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        disks = core_of(store).disks
        disks.fail(1, DiskFull("as the test wants it"))
        assert disks.is_full(1)
        assert 1 not in disks.roomy()
        await core_of(store).jobs.monitor.work()
        assert not disks.is_full(1)


async def test_disks_on_one_file_system_are_tight_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free beside the reserve counts, not the share that each has of it."""
    free_bytes = 1 << 30
    monkeypatch.setattr(LockedFolder, "capacity", lambda _: Capacity(1 << 32, free_bytes, 1))
    async with new_store(tmp_path, reserve_bytes=10 << 20) as store:
        monitor, disks = core_of(store).jobs.monitor, core_of(store).disks
        for free_mib, roomy_count in ((11, 6), (9, 0), (14, 0), (16, 6), (11, 6), (9, 0)):
            free_bytes = free_mib << 20
            await monitor.work()
            assert len(disks.roomy()) == roomy_count, free_mib
        with pytest.raises(NoSpace):
            await store.put("box", b"new", b"x")


async def test_with_the_jobs_running(tmp_path: Path) -> None:
    """A disk goes and comes back under load, with nobody stepping anything."""
    options = replace(SMALL, services=True, monitor_interval_s=0.01)
    await make_store(tmp_path, options)
    async with ObjectStore.open(tmp_path, options) as store:

        async def until(wanted: bool) -> None:
            with trio.fail_after(60):
                while bool(core_of(store).disks.failures) != wanted:
                    await trio.sleep(0.01)

        for turn in range(2):
            (tmp_path / "disk-1").rename(tmp_path / "away")
            await put_all(store, {b"%d/" % turn + key: body for key, body in BODIES.items()})
            await until(True)
            (tmp_path / "away").rename(tmp_path / "disk-1")
            await until(False)
            await put_all(store, {b"%d/again/" % turn + key: body for key, body in BODIES.items()})
        for turn in range(2):
            for key, body in BODIES.items():
                assert await read(store, b"%d/" % turn + key) == body
                assert await read(store, b"%d/again/" % turn + key) == body
    assert faults_of(tmp_path) == []


def test_folder_that_hangs_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread waits for it; no look after that costs another one, until it is back."""
    clock = trio.testing.MockClock()
    answer = threading.Event()
    asked: list[object] = []

    def utime(path: Path) -> None:
        asked.append(path)
        # the deadline passes while it hangs, however slow the machine is, and at no other time
        trio.from_thread.run_sync(clock.jump, SMALL.disk_deadline_s + 1)
        answer.wait()

    async def main() -> None:
        async with new_store(tmp_path) as store:
            monitor, disks = core_of(store).jobs.monitor, core_of(store).disks
            (tmp_path / "disk-2").rename(tmp_path / "away")
            await monitor.work()
            (tmp_path / "away").rename(tmp_path / "disk-2")
            with monkeypatch.context() as patch:
                patch.setattr("couchestord.store.monitor.os.utime", utime)
                try:
                    for _ in range(4):
                        await monitor.work()
                    assert asked == [tmp_path / "disk-2"]
                finally:
                    answer.set()
            while 2 in disks.failures:
                await monitor.work()
                await trio.lowlevel.checkpoint()

    trio.run(main, clock=clock)


def test_a_folder_where_another_disk_is_mounted_is_asked_though_the_one_before_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For ever: a thread that waits for a disk that is mounted there no more does not come back."""
    clock = trio.testing.MockClock()
    answer = threading.Event()
    asked_s: list[float] = []
    really = os.utime

    def utime(path: Path) -> None:
        asked_s.append(trio.from_thread.run_sync(trio.current_time))
        if len(asked_s) > 3:
            return really(path)
        trio.from_thread.run_sync(clock.jump, SMALL.disk_deadline_s + 1)
        answer.wait()
        return None

    async def main() -> None:
        async with new_store(tmp_path) as store:
            monitor, disks = core_of(store).jobs.monitor, core_of(store).disks
            (tmp_path / "disk-2").rename(tmp_path / "away")
            await monitor.work()
            (tmp_path / "away").rename(tmp_path / "disk-2")
            with monkeypatch.context() as patch:
                patch.setattr("couchestord.store.monitor.os.utime", utime)
                try:
                    for _ in range(1000):
                        await monitor.work()
                        clock.jump(10)
                        if 2 not in disks.failures:
                            break
                    await monitor.work()
                    assert 2 not in disks.failures
                finally:
                    answer.set()

    trio.run(main, clock=clock)
    pauses_s = [after - before for before, after in pairwise(asked_s)]
    assert len(pauses_s) == 3
    assert all(wanted_s <= pause_s < 2 * wanted_s for pause_s, wanted_s in zip(pauses_s, (300, 600, 1200), strict=True))


def test_a_disk_is_not_gone_when_the_whole_process_stood_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked_count = trio.testing.MockClock(), 0
    is_present = DirectoryDisk.is_present

    def look(disk: DirectoryDisk) -> bool:
        nonlocal asked_count
        asked_count += 1
        if asked_count == 1:
            trio.from_thread.run_sync(clock.jump, 10 * SMALL.disk_deadline_s)
            trio.from_thread.run(trio.testing.wait_all_tasks_blocked)
        return is_present(disk)

    async def main() -> None:
        async with new_store(tmp_path) as store:
            core = core_of(store)
            monkeypatch.setattr(DirectoryDisk, "is_present", look)
            await core.jobs.monitor.work()
            assert asked_count == core.disks.count + 1
            assert core.disks.failures == {}

    trio.run(main, clock=clock)


async def test_disks_are_looked_at_though_all_threads_are_busy(tmp_path: Path) -> None:
    """Those that bodies are hashed in, say: a disk is not gone because many write."""
    threads = trio.to_thread.current_default_thread_limiter()

    async def watch() -> None:
        while not threads.statistics().tasks_waiting:
            await trio.sleep(0.01)
        pytest.fail("a look waits for a thread that others use")

    async with new_store(tmp_path) as store, trio.open_nursery() as nursery:
        disks = core_of(store).disks
        busy = [object() for _ in range(int(threads.total_tokens))]
        for each in busy:
            threads.acquire_on_behalf_of_nowait(each)
        nursery.start_soon(watch)
        try:
            (tmp_path / "disk-2").rename(tmp_path / "away")
            await look(store)
            assert set(disks.failures) == {2}
            (tmp_path / "away").rename(tmp_path / "disk-2")
            await look(store)
            assert disks.failures == {}
            shutil.rmtree(tmp_path / "disk-3")
            await look(store)
            (tmp_path / "disk-3").mkdir()
            assert (await store.disks.replace(3, force=True)).is_new
            await look(store)
            assert disks.failures == {}
        finally:
            for each in busy:
                threads.release_on_behalf_of(each)
        nursery.cancel_scope.cancel()


async def test_store_that_may_not_be_written_takes_no_disk_back_and_says_when_it_is_to_be_opened_again(
    tmp_path: Path,
) -> None:
    data = await make_store(tmp_path / "one")
    other = await make_store(tmp_path / "other")
    async with ObjectStore.open(data, SMALL) as store:
        await put_all(store, BODIES)
    for index in (0, 2, 4, 5):
        (data / f"disk-{index}").rename(tmp_path / f"away-{index}")
    (data / "disk-5").mkdir()
    here = [data / f"disk-{index}/superblock" for index in (1, 3)]
    before = [path.read_bytes() for path in here]
    for back in (2, 4):
        async with ObjectStore.open(data, SMALL) as store:
            core = core_of(store)
            assert "disks were missing at the start" in store.health().reasons[0]
            with pytest.raises(TooFewDisks, match="bring them back"):
                await store.put("box", b"new", b"")
            shutil.copytree(other / "disk-0", data / "disk-0")
            await core.jobs.monitor.work()
            shutil.rmtree(data / "disk-0")
            assert not core.better.is_set(), "a foreign disk and an empty folder make nothing better"
            (tmp_path / f"away-{back}").rename(data / f"disk-{back}")
            await core.jobs.monitor.work()
            assert back in core.disks.failures
            with trio.fail_after(5):
                await store.wait_until_better()
        assert [path.read_bytes() for path in here] == before
    async with ObjectStore.open(data, SMALL) as store:
        assert not core_of(store).better.is_set()
        await core_of(store).jobs.monitor.work()
        for key, body in BODIES.items():
            assert await read(store, key) == body
        await store.put("box", b"new", b"")
        assert not core_of(store).better.is_set()


async def test_store_that_was_started_on_full_disks_says_when_they_have_room(tmp_path: Path) -> None:
    data = await make_store(tmp_path)
    async with ObjectStore.open(data, SMALL) as store:
        core = core_of(store)
        monitor = core.jobs.monitor
        core.disks.kept_bytes = lambda _: 1 << 60
        await monitor.work()
        monitor.hold(core.better.set)
        await monitor.work()
        assert not core.better.is_set()
        core.disks.kept_bytes = lambda _: 0
        await monitor.work()
        assert core.better.is_set()


class Comparisons:
    def __init__(self) -> None:
        self.begun: list[int] = []
        self.free = trio.Event()
        self.failure: Exception | None = None

    async def begin(self, count: int) -> None:
        with trio.fail_after(60):
            while len(self.begun) < count:
                await trio.sleep(0.001)


@pytest.fixture
def comparisons(monkeypatch: pytest.MonkeyPatch) -> Comparisons:
    """Those of disks that return, which wait for the test."""
    held = Comparisons()
    original = Rebuilder.check_returned

    async def check_returned(rebuilder: Rebuilder, index: int, **_: object) -> int:
        held.begun.append(index)
        await held.free.wait()
        if held.failure is not None:
            failure, held.failure = held.failure, None
            raise failure
        return await original(rebuilder, index)

    monkeypatch.setattr(Rebuilder, "check_returned", check_returned)
    return held


async def leave(store: ObjectStore, folder: Path) -> None:
    """The folder of a disk goes, and is missed."""
    folder.rename(folder.with_name(f"away-{folder.name}"))
    await core_of(store).jobs.monitor.work()


async def come_back(store: ObjectStore, folder: Path) -> None:
    folder.with_name(f"away-{folder.name}").rename(folder)
    with trio.fail_after(60):
        await core_of(store).jobs.monitor.work()


async def test_a_disk_that_goes_is_noticed_while_another_is_compared(tmp_path: Path, comparisons: Comparisons) -> None:
    async with new_store(tmp_path) as store:
        await put_all(store, BODIES)
        core = core_of(store)
        await leave(store, tmp_path / "disk-2")
        await store.put("box", b"new", body_of(5 * STRIPE_BYTES))
        await come_back(store, tmp_path / "disk-2")
        await comparisons.begin(1)
        await leave(store, tmp_path / "disk-4")
        assert core.disks.failures == {4: "the folder is gone"}
        await core.jobs.monitor.work()
        assert comparisons.begun == [2], "never twice at once"
        assert "disk 2 was away and is being compared with the catalog" in health(core).reasons
        await come_back(store, tmp_path / "disk-4")
        await comparisons.begin(2)
        comparisons.free.set()
        await look(store)
        assert comparisons.begun == [2, 4]
        assert not core.jobs.monitor.uncompared
        await finish(core.jobs.rebuilder)
        await finish(core.jobs.rejournaler)
        assert health(core).reasons == ()


async def test_a_disk_that_goes_and_returns_while_it_is_compared_is_compared_again(
    tmp_path: Path, comparisons: Comparisons
) -> None:
    async with new_store(tmp_path) as store:
        core = core_of(store)
        await leave(store, tmp_path / "disk-2")
        await come_back(store, tmp_path / "disk-2")
        await comparisons.begin(1)
        await leave(store, tmp_path / "disk-2")
        await come_back(store, tmp_path / "disk-2")
        assert core.disks.failures == {}
        comparisons.free.set()
        await compared(core)
        assert core.jobs.monitor.uncompared == {2}, "it was another one that was compared"
        await look(store)
        assert comparisons.begun == [2, 2]
        assert not core.jobs.monitor.uncompared


async def test_a_comparison_that_breaks_breaks_nothing_else(tmp_path: Path, comparisons: Comparisons) -> None:
    async with new_store(tmp_path) as store:
        core = core_of(store)
        await leave(store, tmp_path / "disk-2")
        comparisons.failure = RuntimeError("as the test wants it")
        comparisons.free.set()
        await come_back(store, tmp_path / "disk-2")
        await compared(core)
        assert core.jobs.monitor.uncompared == {2}
        await look(store)
        assert not core.jobs.monitor.uncompared
        assert comparisons.begun == [2, 2]


async def test_a_store_that_is_closed_while_it_compares_leaves_no_disk_locked(
    tmp_path: Path, comparisons: Comparisons
) -> None:
    async with new_store(tmp_path) as store:
        await leave(store, tmp_path / "disk-2")
        await come_back(store, tmp_path / "disk-2")
        await comparisons.begin(1)
    (await DirectoryDisk.open(tmp_path / "disk-2")).close()


async def test_what_a_store_did_not_compare_before_it_ended_the_next_one_compares(
    tmp_path: Path, comparisons: Comparisons
) -> None:
    """The superblock of the disk says no more that it was away."""
    async with new_store(tmp_path):
        (tmp_path / "disk-2").rename(tmp_path / "away")
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await store.put("box", b"new", body_of(5 * STRIPE_BYTES))
        (tmp_path / "away").rename(tmp_path / "disk-2")
    for opened_count in (1, 2, 3):
        async with ObjectStore.open(tmp_path, SMALL) as store:
            core = core_of(store)
            assert core.jobs.monitor.uncompared == {2}
            await comparisons.begin(opened_count)
    comparisons.free.set()
    async with ObjectStore.open(tmp_path, SMALL) as store:
        core = core_of(store)
        await compared(core)
        assert not core.jobs.monitor.uncompared
        await finish(core.jobs.rebuilder)
        await finish(core.jobs.rejournaler)
        assert health(core).reasons == ()
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert not core_of(store).jobs.monitor.uncompared


@pytest.mark.parametrize("is_cut_off", [False, True])
async def test_what_an_old_copy_of_a_disk_lacks_is_found_whatever_its_superblock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cut_off: bool
) -> None:
    """It is told of the epoch of a start that is cut off before anything else was recorded; or the others went on in
    the epoch that it knows.
    """
    await make_store(tmp_path)
    if is_cut_off:
        shutil.copytree(tmp_path / "disk-2", tmp_path / "old")
    async with ObjectStore.open(tmp_path, SMALL) as store:
        if not is_cut_off:
            shutil.copytree(tmp_path / "disk-2", tmp_path / "old")
        await put_all(store, BODIES)
        for number in range(40):
            await store.put("box", b"behind/%d" % number, b"a record each")
    shutil.rmtree(tmp_path / "disk-2")
    (tmp_path / "old").rename(tmp_path / "disk-2")
    if is_cut_off:
        monkeypatch.setattr("couchestord.store.core.seal_left_open", partial(_fail, RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            async with ObjectStore.open(tmp_path, SMALL):
                pass
        monkeypatch.undo()
    async with ObjectStore.open(tmp_path, SMALL) as store:
        core = core_of(store)
        assert not core.jobs.monitor.uncompared, "nothing tells of it"
        await finish(core.jobs.rebuilder)
        await finish(core.jobs.rejournaler)
        assert health(core).reasons == ()
    for gone in ("disk-0", "disk-5"):
        shutil.rmtree(tmp_path / gone)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        for key, body in BODIES.items():
            assert await read(store, key) == body
        assert await read(store, b"behind/1") == b"a record each"


async def _fail(error: Exception, *_: object) -> None:
    raise error


@pytest.mark.parametrize("at_a_start", [False, True])
async def test_a_disk_that_is_away_is_doubted_before_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_a_start: bool
) -> None:
    """The daemon may be killed when its superblock knows all again, and nothing of it is in the log yet."""
    async with new_store(tmp_path) as store:
        await leave(store, tmp_path / "disk-2")
        if not at_a_start:
            monkeypatch.setattr(core_of(store).jobs.monitor, "_returned", lambda _: trio.sleep_forever())
            await come_back(store, tmp_path / "disk-2")
    if at_a_start:
        async with ObjectStore.open(tmp_path, SMALL) as store:
            await core_of(store).jobs.monitor.work()
            (tmp_path / "away-disk-2").rename(tmp_path / "disk-2")
        with monkeypatch.context() as patch:
            patch.setattr(Monitor, "welcome", lambda *_: None)
            async with ObjectStore.open(tmp_path, SMALL):
                """It takes an epoch, and is killed."""
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert core_of(store).jobs.monitor.uncompared == {2}
        await look(store)
        assert not core_of(store).jobs.monitor.uncompared
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert not core_of(store).jobs.monitor.uncompared


@pytest.mark.parametrize("error", [DiskFull("ENOSPC"), DiskFailed("EROFS")], ids=["full", "read-only"])
async def test_store_whose_disks_refused_an_epoch_says_when_they_are_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: DiskError
) -> None:
    data = await make_store(tmp_path)
    async with ObjectStore.open(data, SMALL) as store:
        await put_all(store, BODIES)
    write_slot = disks_module._write_slot
    is_well = False

    async def refuse(disk: Disk, slot: Slot) -> None:
        if int(disk.name[-1]) < 3 and not is_well:
            raise error
        await write_slot(disk, slot)

    def is_dir_well(path: Path, *_: object) -> None:
        if int(path.name[-1]) < 3 and not is_well:
            raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(disks_module, "_write_slot", refuse)
    monkeypatch.setattr(os, "utime", is_dir_well)
    async with ObjectStore.open(data, SMALL) as store:
        core = core_of(store)
        assert "too many disks refused to be written" in store.health().reasons[0]
        with pytest.raises(TooFewDisks, match="refused to be written"):
            await store.put("box", b"new", b"")
        if isinstance(error, DiskFull):
            for key, body in BODIES.items():
                assert await read(store, key) == body
            core.disks.kept_bytes = lambda _: 1 << 60
        for _ in range(2):
            await core.jobs.monitor.work()
            assert not core.better.is_set()
        is_well = True
        core.disks.kept_bytes = lambda _: 0
        await core.jobs.monitor.work()
        assert core.better.is_set()
    async with ObjectStore.open(data, SMALL) as store:
        for key, body in BODIES.items():
            assert await read(store, key) == body
        await store.put("box", b"new", b"")
        await core_of(store).jobs.monitor.work()
        assert not core_of(store).better.is_set()


@pytest.mark.parametrize("fails", [False, True])
async def test_old_copy_of_a_disk_is_no_redundancy_before_it_is_compared(
    tmp_path: Path, comparisons: Comparisons, fails: bool
) -> None:
    async with new_store(tmp_path) as store:
        await store.put("box", b"before", body_of(STRIPE_BYTES))
    shutil.copytree(tmp_path / "disk-1", tmp_path / "old")
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await store.put("box", b"key", body_of(5 * STRIPE_BYTES))
    shutil.rmtree(tmp_path / "disk-1")
    (tmp_path / "old").rename(tmp_path / "disk-1")
    comparisons.failure = JournalFull("not now") if fails else None
    async with ObjectStore.open(tmp_path, SMALL) as store:
        core = core_of(store)
        assert "disk 1 was away and is being compared with the catalog" in health(core).reasons
        await comparisons.begin(1)
        comparisons.free.set()
        await compared(core)
        assert bool(core.jobs.monitor.uncompared) == fails
        await look(store)
        assert comparisons.begun == [1] * (1 + fails)
        [reason, *_] = health(core).reasons
        assert "segments lack shards" in reason or "journal files lack copies" in reason
        for service in (core.jobs.rebuilder, core.jobs.rejournaler):
            await finish(service)
        assert health(core).reasons == ()
