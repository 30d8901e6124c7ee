import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from simdisk import SimDisk
from small_store import SMALL, STRIPE_BYTES, HandClock, body_of, compared, core_of, finish, make_store, put_all, read

from couchestord.ec.shards import shard_path
from couchestord.errors import Corrupt, DiskFailed, JournalFull, NoSuchKey, ShuttingDown, TooFewDisks
from couchestord.io.catalog.segments import STATE_OPEN, STATE_SEALED
from couchestord.io.disks import load_disks
from couchestord.io.newdisk import create_store
from couchestord.io.requests import SealSegment
from couchestord.service import Progress
from couchestord.store.core import run_core, run_service
from couchestord.store.door import ObjectStore
from couchestord.store.writer import Writer

BODIES = {b"%d" % number: body_of(size, number) for number, size in enumerate((0, 10, 100_000, 700_000))}


async def new_disks(seed: int = 0) -> list[SimDisk]:
    sims = [SimDisk(f"sim-{index}", random.Random(f"{seed} {index}"), deadline_s=0.2) for index in range(6)]
    ids = [bytes([index] * 16) for index in range(6)]
    await create_store(
        sims, store_id=b"store of a test!", disk_ids=ids, k=4, m=2, created_ns=1, stripe_bytes=SMALL.stripe_bytes
    )
    return sims


@asynccontextmanager
async def running(path: Path, sims: list[SimDisk]) -> AsyncIterator[ObjectStore]:
    async with run_core(await load_disks(sims), path / "catalog.sqlite", SMALL, HandClock()) as core:
        yield ObjectStore(core)


async def check(store: ObjectStore, bodies: dict[bytes, bytes]) -> None:
    for key, body in bodies.items():
        assert await read(store, key) == body


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keep_all", [True, False])
async def test_power_cut_loses_nothing_that_was_answered(tmp_path: Path, seed: int, keep_all: bool) -> None:
    sims = await new_disks(seed)
    async with running(tmp_path, sims) as store:
        await store.create_bucket("box")
        await put_all(store, BODIES)
        await store.destage()
        await put_all(store, {b"after/" + key: body for key, body in BODIES.items()})
        await store.delete("box", b"1")
        crashed = [sim.crash(keep_all=keep_all) for sim in sims]
    for suffix in ("", "-wal", "-shm", ".sums"):
        Path(f"{tmp_path / 'catalog.sqlite'}{suffix}").unlink(missing_ok=True)
    del crashed[seed % 6]
    async with running(tmp_path, crashed) as store:
        await check(store, {key: body for key, body in BODIES.items() if key != b"1"})
        await check(store, {b"after/" + key: body for key, body in BODIES.items()})
        with pytest.raises(NoSuchKey):
            await store.head("box", b"1")
        await put_all(store, BODIES)
        await check(store, BODIES)


async def test_start_with_a_full_journal_seals_what_was_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sims = await new_disks()
    async with running(tmp_path, sims) as store:
        await store.create_bucket("box")
        await put_all(store, BODIES)
        assert STATE_OPEN in {row.state for row in core_of(store).catalog.reading.segments()}
    monkeypatch.setattr(Writer, "_fill", 9.0)
    async with running(tmp_path, [sim.crash(keep_all=True) for sim in sims]) as store:
        await check(store, BODIES)
        assert {row.state for row in core_of(store).catalog.reading.segments()} == {STATE_SEALED}
        with pytest.raises(JournalFull):
            await store.delete("box", b"1")
        await store.destage()
        assert not core_of(store).catalog.reading.extents_in_journal(0, 1)
        assert core_of(store).jobs.snapshotter.taken_count == 1


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), Corrupt("disk I/O error")], ids=repr)
async def test_stop_without_a_checkpoint_is_an_orderly_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fail(*_: object) -> bool:
        raise error

    sims = await new_disks()
    async with running(tmp_path, sims) as store:
        await store.create_bucket("box")
        await put_all(store, BODIES)
        monkeypatch.setattr("couchestord.store.maintenance.checkpoint_with_sums", fail)
    assert "catalog was not checkpointed" in caplog.text
    monkeypatch.undo()
    async with running(tmp_path, [sim.crash(keep_all=True) for sim in sims]) as store:
        await check(store, BODIES)


@pytest.mark.parametrize("verb", ["write", "hang", "gone"])
async def test_disks_that_fail_under_a_stream(tmp_path: Path, verb: str) -> None:
    """Up to two of six: the body is written all the same, and nobody hears of it."""
    sims = await new_disks()
    async with running(tmp_path, sims) as store:
        await store.create_bucket("box")
        body = body_of(40 * STRIPE_BYTES)

        async def pieces() -> AsyncIterator[bytes]:
            for number, at in enumerate(range(0, len(body), STRIPE_BYTES)):
                if number in (7, 20):
                    sim = sims[number % 6]
                    if verb == "write":
                        sim.fail_at(1, DiskFailed("as the test wants it"), short=True)
                    elif verb == "hang":
                        sim.frozen = True
                    else:
                        sim.gone = True
                yield body[at : at + STRIPE_BYTES]

        await store.put("box", b"key", pieces())
        assert await read(store, b"key") == body
        assert core_of(store).disks.missing_count() == 2
        assert store.health().state == "degraded"
        await put_all(store, BODIES)
        await check(store, BODIES)
        for sim in sims:
            sim.frozen = False


async def test_too_many_disks_that_fail_under_a_stream(tmp_path: Path) -> None:
    """The caller hears which error it is, not a group of them."""
    sims = await new_disks()
    async with running(tmp_path, sims) as store:
        await store.create_bucket("box")
        await store.put("box", b"key", b"old")
        body = body_of(30 * STRIPE_BYTES)

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(body), STRIPE_BYTES):
                if at == 10 * STRIPE_BYTES:
                    for sim in sims[:3]:
                        sim.gone = True
                yield body[at : at + STRIPE_BYTES]

        with pytest.raises(TooFewDisks):
            await store.put("box", b"key", pieces())
        assert store.health().state == "unhealthy"
        for sim in sims[:3]:
            sim.gone = False


async def test_error_of_the_block_reaches_the_caller_as_it_is(tmp_path: Path) -> None:
    await make_store(tmp_path)
    for error in (ValueError("mine"), NoSuchKey("mine")):
        with pytest.raises(type(error), match="mine"):
            async with ObjectStore.open(tmp_path, replace(SMALL, services=True)):
                raise error
    with pytest.raises(ExceptionGroup) as caught:
        async with ObjectStore.open(tmp_path, SMALL):
            raise ExceptionGroup("two", [ValueError("a"), KeyError("b")])
    assert len(caught.value.exceptions) == 2


async def test_cancelled_store_stops_cleanly(tmp_path: Path) -> None:
    await make_store(tmp_path)
    with trio.CancelScope() as scope:
        async with ObjectStore.open(tmp_path, replace(SMALL, services=True)) as store:
            await store.put("box", b"key", b"body")
            scope.cancel()
            await trio.sleep_forever()
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert await read(store, b"key") == b"body"
        assert core_of(store).started.rebuilt is None
        assert core_of(store).started.replayed_count == 0


async def test_writes_under_way_are_finished_by_a_stop(tmp_path: Path) -> None:
    await make_store(tmp_path)
    done: list[int] = []
    refused: list[int] = []
    async with trio.open_nursery() as nursery, ObjectStore.open(tmp_path, SMALL) as store:

        async def put(number: int) -> None:
            try:
                await store.put("box", b"%d" % number, body_of(1000, number))
            except ShuttingDown:
                refused.append(number)
            else:
                done.append(number)

        for number in range(50):
            nursery.start_soon(put, number)
        await trio.testing.wait_all_tasks_blocked()
        await store.drain()
        with pytest.raises(ShuttingDown):
            await store.put("box", b"late", b"")
    assert sorted(done + refused) == list(range(50))
    assert done
    async with ObjectStore.open(tmp_path, SMALL) as store:
        for number in done:
            assert await read(store, b"%d" % number) == body_of(1000, number)
        assert len((await store.list("box")).entries) == len(done)


class Stub:
    """A service that does what it is told, one word a step."""

    name = "stub"
    interval_s = 0.001

    def __init__(self, *steps: Progress | Exception) -> None:
        self.left = list(steps)
        self.running: set[str] = set()
        self.seen: list[bool] = []

    async def work(self) -> Progress:
        await trio.lowlevel.checkpoint()
        self.seen.append(self.name in self.running)
        step = self.left.pop(0)
        if isinstance(step, Exception):
            raise step
        return step


async def test_service_is_run_until_it_is_done(caplog: pytest.LogCaptureFixture) -> None:
    stub = Stub(Progress.BUSY, Progress.IDLE, Progress.THROTTLED, ValueError("a defect"), Progress.BUSY, Progress.DONE)
    await run_service(stub, stub.running)
    assert stub.left == []
    assert stub.seen == [False, True, False, True, False, True]
    assert stub.running == set()
    assert "it is tried again" in caplog.text


async def test_segments_left_open_are_sealed_by_a_start(tmp_path: Path) -> None:
    await make_store(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await put_all(store, BODIES)
        assert [row.state for row in core_of(store).catalog.reading.segments()] == [0]
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert [row.state for row in core_of(store).catalog.reading.segments()] == [1]
        await put_all(store, {b"more/" + key: body for key, body in BODIES.items()})
        # a segment is never appended to again after a start
        assert [row.state for row in core_of(store).catalog.reading.segments()] == [1, 0]
        await finish(core_of(store).jobs.compactor)
        await check(store, BODIES)


async def test_segments_that_a_start_could_not_seal_are_sealed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody would rebuild their shards, nor drop them, before the next start."""
    sims = await new_disks()
    async with running(tmp_path, sims) as store:
        await store.create_bucket("box")
        await put_all(store, BODIES)
        assert [row.state for row in core_of(store).catalog.reading.segments()] == [STATE_OPEN]
    submit = Writer.submit

    async def refuse(writer: Writer, request: object, origin: object = None) -> Any:
        if isinstance(request, SealSegment) and refusing:
            raise JournalFull("as the test wants it")
        return await submit(writer, request, origin)

    refusing = True
    monkeypatch.setattr(Writer, "submit", refuse)
    async with running(tmp_path, [sim.crash() for sim in sims]) as store:
        core = core_of(store)
        for state in (STATE_OPEN, STATE_SEALED):
            refusing = state == STATE_OPEN
            await finish(core.jobs.housekeeper)
            assert [row.state for row in core.catalog.reading.segments()] == [state]
        await check(store, BODIES)


async def test_a_disk_that_returns_to_a_store_that_is_read_only_is_left_as_it_is(tmp_path: Path) -> None:
    """The catalog may end behind the log: what it does not know may be the only copy."""
    sims = await new_disks(31)
    async with running(tmp_path, sims) as store:
        await store.create_bucket("box")
        await put_all(store, BODIES)
    left = shard_path(1, 0)
    for is_read_only in (True, False):
        again = [sim.crash(keep_all=True) for sim in sims]
        await again[5].write_at(left, 0, [b"of a segment that the catalog does not know"])
        async with running(tmp_path, again[: 3 if is_read_only else 5]) as store:
            core = core_of(store)
            assert bool(core.started.read_only) == is_read_only
            await core.disks.join(5, again[5])
            core.jobs.monitor.welcome([5])
            await compared(core)
            assert (left.partition("/")[2] in await again[5].list("segments")) == is_read_only


async def test_the_file_system_of_the_catalog_keeps_room_for_it(tmp_path: Path) -> None:
    async with ObjectStore.open(await make_store(tmp_path), replace(SMALL, reserve_bytes=1 << 20)) as store:
        core = core_of(store)
        disk = core.disks.get(0)
        assert disk is not None
        here = (await disk.capacity()).file_system
        assert core.disks.kept_bytes(here) == (1 + 16 + 16) << 20
        await core.jobs.repairer.work()
        assert core.disks.kept_bytes(here) == (1 + 16) << 20, "the reserve beside it is there"
        assert core.disks.kept_bytes(here + 1) == 1 << 20
