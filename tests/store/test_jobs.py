import json
from pathlib import Path
from typing import Any

import pytest
import trio
from small_store import STRIPE_BYTES, body_of, core_of, finish, look, new_store, put_all, read, segments, shard_files

from couchestord.errors import ShuttingDown
from couchestord.io.requests import PlaceShard


async def test_every_job_is_run_and_has_a_name_of_its_own(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        services = list(core_of(store).jobs.services())
        assert sorted(service.name for service in services) == [
            "checkpoint",
            "compact",
            "destage",
            "free-orphans",
            "housekeeping",
            "index",
            "join-pieces",
            "monitor",
            "rebuild",
            "rejournal",
            "repair",
            "snapshot",
            "spare",
        ]
        assert all(service.interval_s > 0 for service in services)


async def test_idle_jobs_write_nothing(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await store.put("box", b"key", body_of(5 * STRIPE_BYTES))
        await store.destage()
        for service in core_of(store).jobs.services():
            await finish(service)
        sequence = core_of(store).catalog.committed_sequence
        for service in core_of(store).jobs.services():
            await finish(service)
        assert core_of(store).catalog.committed_sequence == sequence


async def test_jobs_that_a_stop_finds_at_work_end_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """That the store stops is no trouble of theirs."""
    async with new_store(tmp_path) as store:
        core = core_of(store)
        await put_all(store, {b"%d" % number: body_of(20_000, number) for number in range(99)})
        await store.destage()
        for number in range(90):
            await store.delete("box", b"%d" % number)
        await put_all(store, {b"more/%d" % number: body_of(20_000, number) for number in range(99)})
        await core.pool.aclose()
        core.jobs.destager.force()
        core.jobs.snapshotter.ask()
        caplog.clear()
        core.writer.stop(ShuttingDown("as the test wants it"))
        stopped = set[str]()
        for service in core.jobs.services():
            try:
                await service.work()
            except ShuttingDown:
                stopped.add(service.name)
        assert stopped >= {"destage", "compact", "snapshot"}
        assert caplog.text == ""


async def test_nobody_waits_for_the_room_that_a_snapshot_takes(tmp_path: Path) -> None:
    """Its segment has no object's bytes in it, and stays."""
    async with new_store(tmp_path) as store:
        core = core_of(store)
        await store.put("box", b"key", body_of(5 * STRIPE_BYTES))
        await store.destage()
        await finish(core.jobs.compactor)
        assert core.catalog.reading.segments_dead(1)
        assert not core.jobs.fill.is_cleared()


async def test_status_counts_what_was_done(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        core = core_of(store)
        unused = core.jobs.status()
        assert json.loads(json.dumps(unused)) == unused
        assert not any(value for job in unused.values() for value in job.values())
        await put_all(store, {b"%d" % number: body_of(1000, number) for number in range(20)})
        await store.put("box", b"long", body_of(9 * STRIPE_BYTES))
        await store.destage()
        status = core.jobs.status()
        assert status["destage"]["moved_extents"] == 20
        assert status["snapshot"] == {"running": False, "taken": 1, "sequence": core.jobs.snapshotter.sequence}
        [path] = [path for path in shard_files(tmp_path) if path.parent.parent.name == "disk-1"][:1]
        path.unlink()
        await core.pool.aclose()
        await read(store, b"long")
        core.disks.fail(1, "as the test wants it")
        await look(store)
        await finish(core.jobs.rebuilder)
        assert core.jobs.status()["rebuild"]["rebuilt_shards"] == 1
        for key in (*(b"%d" % number for number in range(20)), b"long"):
            await store.delete("box", key)
        # the snapshot protects the segment that it lies in until the next one
        await store.destage()
        before = {row.id for row in segments(store)}
        await finish(core.jobs.compactor)
        gone = before - {row.id for row in segments(store)}
        assert core.jobs.status()["compact"]["dropped_segments"] == len(gone) > 0


async def test_destage_leaves_dead_bodies_and_keeps_live_ones(tmp_path: Path) -> None:
    bodies = {b"%d" % number: body_of(number * 1500, number) for number in range(60)}
    async with new_store(tmp_path) as store:
        await put_all(store, bodies)
        for number in range(0, 60, 2):
            await store.delete("box", b"%d" % number)
        await store.destage()
        live = sum(len(body) for key, body in bodies.items() if int(key) % 2)
        assert sum(row.live_bytes for row in segments(store)) == live
        for key, body in bodies.items():
            if int(key) % 2:
                assert await read(store, key) == body


async def test_compaction_empties_a_dying_segment(tmp_path: Path) -> None:
    bodies = {b"%d" % number: body_of(150_000, number) for number in range(14)}
    async with new_store(tmp_path) as store:
        core = core_of(store)
        await put_all(store, bodies)
        await store.destage()
        for number in range(14):
            if number % 4:
                await store.delete("box", b"%d" % number)
        await core.pool.aclose()
        before = {row.id for row in segments(store)}
        await finish(core.jobs.compactor)
        await store.destage()
        await core.pool.aclose()
        await finish(core.jobs.compactor)
        assert core.jobs.compactor.moved_extents_count
        assert not before & {row.id for row in segments(store)}
        for number in range(0, 14, 4):
            assert await read(store, b"%d" % number) == bodies[b"%d" % number]


async def test_shard_that_is_being_put_in_its_place_is_not_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file has its name already while the catalog still says that it lies on the disk that is back."""
    async with new_store(tmp_path, disks_count=7) as store:
        core = core_of(store)
        rebuilder, housekeeper = core.jobs.rebuilder, core.jobs.housekeeper
        await store.put("box", b"long", body_of(5 * STRIPE_BYTES))
        await core.pool.aclose()
        (row,) = segments(store)
        home = tmp_path / f"disk-{row.disks[0]}"
        home.rename(tmp_path / "away")
        await look(store)
        swept = trio.Event()
        submit = core.writer.submit

        async def sweep() -> None:
            await housekeeper.work()
            swept.set()

        async def submit_later(request: object) -> Any:
            if isinstance(request, PlaceShard):
                (tmp_path / "away").rename(home)
                await core.jobs.monitor.work()
                nursery.start_soon(sweep)
                while not swept.is_set() and not rebuilder.turn.statistics().tasks_waiting:
                    await trio.sleep(0.001)
            return await submit(request)

        monkeypatch.setattr(rebuilder, "_submit", submit_later)
        async with trio.open_nursery() as nursery:
            await finish(rebuilder)
        assert swept.is_set()
        (row,) = segments(store)
        assert row.disks[0] != int(home.name[5:])
        for other in row.disks[1:3]:
            core.disks.fail(other, "as the test wants it")
        assert await read(store, b"long") == body_of(5 * STRIPE_BYTES)
