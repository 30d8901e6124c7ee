import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from simdisk import SimDisk
from stripe_rig import STRIPE_BYTES, Rig, open_rig, pattern

from couchestord.ec.choice import choose_engine
from couchestord.ec.segments import SegmentPool, StripeWriter, seal_left_open
from couchestord.ec.shards import PAGE_BYTES, full_stripe_pages, shard_path
from couchestord.ec.stripes import StripeStore
from couchestord.errors import (
    Corrupt,
    DataLost,
    DiskError,
    DiskFailed,
    DiskFull,
    DiskTimeout,
    InvalidArgument,
    JournalFull,
    NoSpace,
    TooFewDisks,
)
from couchestord.io import requests as rq
from couchestord.io.mutations import Extent

STEP = full_stripe_pages(4, STRIPE_BYTES)


def make_pool(rig: Rig, **options: Any) -> SegmentPool:
    return rig.make_pool(**{"segment_bytes": 4 * STRIPE_BYTES, **options})


async def write(writer: StripeWriter, data: bytes) -> None:
    for at in range(0, len(data), STRIPE_BYTES):
        await writer.append(data[at : at + STRIPE_BYTES])
    await writer.sync()


async def read(rig: Rig, runs: list[Extent]) -> bytes:
    found = b""
    for run in runs:
        async for piece in rig.stripes.read_run(rig.segment(run.segment), run.stripe, run.start, run.length):
            found += piece
    return found


def asked(rig: Rig, kind: type) -> list[Any]:
    return [request for request in rig.requests if isinstance(request, kind)]


async def test_a_stream_goes_into_runs_of_stripes(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        pool = make_pool(rig)
        data = pattern(3 * STRIPE_BYTES + 999)
        async with pool.writer() as writer:
            await write(writer, data)
            id_ = writer.runs[0].segment
            assert writer.runs == [Extent(len(data), id_, 1, 0)]
            assert await read(rig, writer.runs) == data
            assert writer.segments[id_].disks == rig.segment(id_).disks
        for index, disk in enumerate(rig.segment(id_).disks):
            header = await rig.stripes.file(rig.segment(id_), index).segment_header()
            assert (header.segment, header.index, header.disks[index]) == (id_, index, disk)
        assert rig.disks.good() == list(range(6))


async def test_runs_end_after_a_short_stripe_and_at_the_limit(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        pool = make_pool(rig, segment_bytes=1 << 30, extent_bytes_max=2 * STRIPE_BYTES)
        async with pool.writer() as writer:
            for length in (100, STRIPE_BYTES, STRIPE_BYTES, STRIPE_BYTES, 7):
                await writer.append(pattern(length))
            await writer.sync()
            assert [run.length for run in writer.runs] == [100, 2 * STRIPE_BYTES, STRIPE_BYTES + 7]
            wanted = b"".join(pattern(n) for n in (100, STRIPE_BYTES, STRIPE_BYTES, STRIPE_BYTES, 7))
            assert await read(rig, writer.runs) == wanted


async def test_a_full_segment_is_synced_sealed_and_followed(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        pool = make_pool(rig)
        data = pattern(10 * STRIPE_BYTES)
        async with pool.writer() as writer:
            await write(writer, data)
            assert [run.length for run in writer.runs] == [4 * STRIPE_BYTES, 4 * STRIPE_BYTES, 2 * STRIPE_BYTES]
            seals = asked(rig, rq.SealSegment)
            assert seals == [rq.SealSegment(run.segment, 1 + 4 * STEP, 0) for run in writer.runs[:2]]
            assert await read(rig, writer.runs) == data
            assert len({rig.segment(run.segment).disks for run in writer.runs}) == 3  # rotated


async def test_the_next_writer_goes_on_in_the_same_segment(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        pool = make_pool(rig)
        places = []
        for seed in range(3):
            async with pool.writer() as writer:
                places.append(await writer.append(pattern(100, seed)))
                await writer.sync()
        assert len(asked(rig, rq.MakeSegment)) == 1
        assert [place.stripe for place in places] == [1, 3, 5]
        for seed, place in enumerate(places):
            assert await rig.stripes.read(rig.segment(place.segment), place.stripe, 0, 100) == pattern(100, seed)


async def test_writers_at_once_have_segments_of_their_own_and_are_bounded(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        pool = make_pool(rig, open_max=2)
        most = 0
        runs: dict[int, list[Extent]] = {}

        async def stream(seed: int) -> None:
            nonlocal most
            async with pool.writer() as writer:
                await writer.append(pattern(STRIPE_BYTES, seed))
                most = max(most, sum(row.state == 0 for row in rig.catalog.reading.segments()))
                await writer.append(pattern(1000, seed))
                await writer.sync()
                runs[seed] = writer.runs

        async with trio.open_nursery() as nursery:
            for seed in range(9):
                nursery.start_soon(stream, seed)
        assert most == 2
        for seed in range(9):
            assert await read(rig, runs[seed]) == pattern(STRIPE_BYTES, seed) + pattern(1000, seed)


async def test_a_segment_stays_pinned_until_the_context_ends(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        pool = make_pool(rig, open_max=1)
        async with pool.writer() as writer:
            await write(writer, pattern(100))
            writer.release()
            async with pool.writer() as other:  # has the segment, though the first has not ended
                await other.append(b"x")
                assert other.segments.keys() == writer.segments.keys()
            (id_,) = writer.segments
            assert pool.is_pinned(id_)
        assert not pool.is_pinned(id_)


FAILURES: list[Callable[[], DiskError]] = [lambda: DiskFailed("EIO"), lambda: DiskTimeout("slow")]


@pytest.mark.parametrize("lost", [lost for n in (1, 2) for lost in itertools.combinations(range(6), n)], ids=str)
async def test_a_stream_survives_the_loss_of_two_disks_in_its_midst(tmp_path: Path, lost: tuple[int, ...]) -> None:
    async with open_rig(tmp_path) as rig:
        pool = make_pool(rig, segment_bytes=1 << 30)
        data = pattern(5 * STRIPE_BYTES)
        async with pool.writer() as writer:
            for number in range(5):
                if number == 2:
                    for disk in lost:
                        rig.sims[disk].gone = True
                await writer.append(data[number * STRIPE_BYTES : (number + 1) * STRIPE_BYTES])
            await writer.sync()
        assert set(rig.disks.failures) == set(lost)
        first, second = (rig.segment(run.segment) for run in writer.runs)
        assert [run.length for run in writer.runs] == [2 * STRIPE_BYTES, 3 * STRIPE_BYTES]
        assert first.state == 1
        assert first.stripes_end == 1 + 2 * STEP
        assert first.missing == sum(1 << first.disks.index(disk) for disk in lost)
        assert not set(second.disks) & set(lost)
        assert second.missing.bit_count() == len(lost)
        rig.forget_cache()
        assert await read(rig, writer.runs) == data


@pytest.mark.parametrize("make_error", FAILURES)
async def test_a_sync_that_fails_is_not_tried_again(tmp_path: Path, make_error: Callable[[], DiskError]) -> None:
    async with open_rig(tmp_path) as rig:
        pool = make_pool(rig)
        async with pool.writer() as writer:
            place = await writer.append(pattern(1000))
            rig.sims[3].fail_at(1, make_error())
            syncs = rig.sims[3].calls_by_name["sync"]
            await writer.sync()
            assert rig.sims[3].calls_by_name["sync"] == syncs + 1
            row = rig.segment(place.segment)
            assert row.state == 1
            assert row.missing == 1 << row.disks.index(3)
            again = await writer.append(pattern(1000, 1))
            await writer.sync()
            assert again.segment != place.segment
            assert rig.sims[3].calls_by_name["sync"] == syncs + 1
            assert await read(rig, writer.runs) == pattern(1000) + pattern(1000, 1)


async def test_too_many_failures_fail_the_stream_and_seal_the_segment(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        pool = make_pool(rig)
        with pytest.raises(TooFewDisks, match="3 of 4"):
            await lose_three(rig, pool)
        for sim in rig.sims:
            sim.gone = False
        with pytest.raises(TooFewDisks):
            await pool.writer().append(b"x")
        assert [seal.missing.bit_count() for seal in asked(rig, rq.SealSegment)] == [3]


async def lose_three(rig: Rig, pool: SegmentPool) -> None:
    async with pool.writer() as writer:
        await writer.append(pattern(1000))
        for disk in (0, 2, 5):
            rig.sims[disk].gone = True
        await writer.sync()


async def test_before_its_first_stripe_a_stream_finds_other_disks(tmp_path: Path) -> None:
    async with open_rig(tmp_path, disks_count=12) as rig:
        pool = make_pool(rig)
        async with pool.writer() as writer:
            await write(writer, b"another stream's")
        (row,) = writer.segments.values()
        for index in (0, 1, 2, 3):
            rig.sims[row.disks[index]].gone = True
        async with pool.writer() as writer:
            await write(writer, pattern(1000))
        assert rig.segment(row.id).missing == 0b1111
        assert await read(rig, writer.runs) == pattern(1000)


async def test_min_healthy_shards_is_kept(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        rig.policies[0] = replace(rig.policies[0], min_healthy_shards=5)
        pool = make_pool(rig)
        rig.disks.fail(0, "pulled")
        async with pool.writer() as writer:
            await write(writer, pattern(1000))
        rig.disks.fail(1, "pulled")
        with pytest.raises(TooFewDisks, match="needs 5"):
            await pool.writer().append(b"x")


async def test_a_disk_that_returned_is_not_given_up_for_what_failed_before(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        pool = make_pool(rig)
        async with pool.writer() as writer:
            await write(writer, pattern(1000))
            rig.sims[2].frozen = True
            async with trio.open_nursery() as nursery:
                nursery.start_soon(writer.append, pattern(1000, 1))
                await trio.testing.wait_all_tasks_blocked()
                rig.sims[2].gone = True
                rig.disks.fail(2, "pulled")
                rig.disks.take(2, rig.sims[2].crash(keep_all=True))
                rig.sims[2].frozen = False
            await writer.sync()
        await pool.aclose()
        assert not rig.disks.failures
        first = rig.segment(writer.runs[0].segment)
        assert first.missing == 1 << first.disks.index(2)
        assert rig.segment(writer.runs[1].segment).missing == 0
        assert await read(rig, writer.runs) == pattern(1000) + pattern(1000, 1)


async def test_a_full_disk_spoils_nothing(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        pool = make_pool(rig, segment_bytes=1 << 30)
        data = pattern(4 * STRIPE_BYTES)
        async with pool.writer() as writer:
            await write(writer, data[: 2 * STRIPE_BYTES])
            rig.sims[2].capacity_bytes = sum((await rig.sims[2].list("segments")).values()) + 20_000
            await write(writer, data[2 * STRIPE_BYTES :])
        first, second = (rig.segment(run.segment) for run in writer.runs)
        assert (first.missing, first.stripes_end) == (0, 1 + 2 * STEP)
        assert 2 not in second.disks
        assert rig.disks.good() == list(range(6))
        assert await read(rig, writer.runs) == data
        # room again: the next segment uses it, the one without it is sealed
        rig.sims[2].capacity_bytes = 1 << 40
        rig.disks.room_again(2)
        async with pool.writer() as writer:
            place = await writer.append(b"x")
        assert 2 in rig.segment(place.segment).disks
        assert rig.segment(second.id).state == 1


async def test_full_disks_refuse_and_take_again_when_there_is_room(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        pool = make_pool(rig)
        async with pool.writer() as writer:
            kept = await writer.append(pattern(1000))
            await writer.sync()
        for sim in rig.sims:
            sim.capacity_bytes = sum((await sim.list("segments")).values()) + 20_000
        with pytest.raises(NoSpace):
            async with pool.writer() as writer:
                await writer.append(pattern(STRIPE_BYTES))
        assert rig.disks.good() == list(range(6))
        row = rig.segment(kept.segment)
        assert (row.state, row.missing, row.stripes_end) == (1, 0, kept.stripe + 2)
        assert await rig.stripes.read(row, kept.stripe, 0, 1000) == pattern(1000)
        for sim in rig.sims:
            sim.capacity_bytes = 1 << 40
        async with pool.writer() as writer:
            await write(writer, pattern(STRIPE_BYTES))


async def test_a_full_disk_on_sync_loses_that_shard(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        pool = make_pool(rig)
        async with pool.writer() as writer:
            place = await writer.append(pattern(1000))
            rig.sims[1].fail_at(1, DiskFull("ENOSPC"))
            await writer.sync()
        row = rig.segment(place.segment)
        assert row.missing == 1 << row.disks.index(1)
        assert rig.disks.is_full(1)


async def test_the_reserve_is_kept(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        for sim in rig.sims:
            sim.capacity_bytes = 10 << 20
        rig.disks.kept_bytes = lambda _: 10 << 20
        with pytest.raises(NoSpace):
            await make_pool(rig).writer().append(b"x")
        rig.disks.kept_bytes = lambda _: 5 << 20
        await make_pool(rig).writer().append(b"x")


async def test_disks_on_one_file_system_do_not_each_count_its_room(tmp_path: Path) -> None:
    """Room for a stripe of any one of them, but not of all, is no room."""
    async with open_rig(tmp_path) as rig:
        least = 2 * PAGE_BYTES + full_stripe_pages(4, STRIPE_BYTES) * PAGE_BYTES
        for sim in rig.sims[1:]:
            sim.share(rig.sims[0])
        used = sum([sum((await sim.list("")).values()) for sim in rig.sims])
        for length, fits in ((5 * least, False), (6 * least, True)):
            for sim in rig.sims:
                sim.capacity_bytes = used + 100_000 + length
            rig.disks.kept_bytes = lambda _: 100_000
            pool = make_pool(rig)
            if fits:
                await pool.writer().append(pattern(STRIPE_BYTES))
                continue
            with pytest.raises(NoSpace):
                await pool.writer().append(pattern(STRIPE_BYTES))


async def test_a_fast_stream_leaves_what_is_kept(tmp_path: Path) -> None:
    """Nobody asks for the room while it writes."""
    async with open_rig(tmp_path) as rig:
        for sim in rig.sims[1:]:
            sim.share(rig.sims[0])
        for sim in rig.sims:
            sim.capacity_bytes = 4 << 20
        rig.disks.kept_bytes = lambda _: 1 << 20
        pool = make_pool(rig, segment_bytes=1 << 30)

        async def fill() -> None:
            async with pool.writer() as writer:
                for _ in range(1000):
                    await writer.append_many([pattern(STRIPE_BYTES)] * 2)

        with pytest.raises(NoSpace):
            await fill()
        used = sum([sum((await sim.list("segments")).values()) for sim in rig.sims])
        left = (await rig.sims[0].capacity()).free_bytes
        assert left >= 1 << 20
        assert used > 2 << 20
        assert (rig.disks.roomy(), rig.disks.spare()) == ([], list(range(6)))


async def test_a_cancelled_append_never_lets_its_address_be_used_again(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        pool = make_pool(rig)
        async with pool.writer() as writer:
            kept = await writer.append(pattern(1000))
            await writer.sync()
        scope = trio.CancelScope()
        really = rig.sims[2].write_at

        async def cancel(path: str, offset: int, buffers: Any, *, sync: bool = False) -> None:
            scope.cancel()
            await trio.lowlevel.checkpoint()

        rig.sims[2].write_at = cancel  # type: ignore[method-assign]
        with scope:
            async with pool.writer() as writer:
                await writer.append(pattern(STRIPE_BYTES))
        rig.sims[2].write_at = really  # type: ignore[method-assign]
        assert scope.cancelled_caught
        async with pool.writer() as writer:
            place = await writer.append(b"x")
            await writer.sync()
        assert place.segment != kept.segment
        row = rig.segment(kept.segment)
        assert (row.state, row.stripes_end) == (1, kept.stripe + 2)
        assert await rig.stripes.read(row, kept.stripe, 0, 1000) == pattern(1000)


async def test_a_seal_that_was_refused_is_done_later(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        pool = make_pool(rig)
        rig_refuse = JournalFull("full")
        with pytest.raises(JournalFull):
            await refuse_seal(rig, pool, rig_refuse)
        rig.refuse = None
        assert [row.state for row in rig.catalog.reading.segments()] == [0]
        async with pool.writer() as writer:
            await write(writer, b"x")
        assert [row.state for row in rig.catalog.reading.segments()] == [1, 0]
        assert rig.catalog.reading.segments()[0].missing.bit_count() == 1


async def refuse_seal(rig: Rig, pool: SegmentPool, error: Exception) -> None:
    async with pool.writer() as writer:
        await writer.append(pattern(1000))
        rig.sims[0].gone = True
        rig.refuse = error
        await writer.sync()


async def test_seals_that_are_refused_again_and_again_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each stream tries them first. Once all were done, the next refusal is news."""
    async with open_rig(tmp_path) as rig:
        pool = make_pool(rig)
        for turn in (1, 2):
            async with pool.writer(alone=True) as writer:
                await write(writer, b"x")
            rig.refuse = NoSpace(f"turn {turn}")
            for _ in range(3):
                await pool.retire(0)
            rig.refuse = None
            assert caplog.text.count("segment was not sealed yet") == turn
            await pool.retire(0)
            assert all(row.state for row in rig.catalog.reading.segments())


async def test_reserve_keeps_bytes_in_one_segment(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        pool = make_pool(rig)
        async with pool.writer() as writer:
            await writer.append(pattern(3 * STRIPE_BYTES)[:STRIPE_BYTES])
            await writer.append(pattern(STRIPE_BYTES))
            await writer.reserve(3 * STRIPE_BYTES)
            places = [await writer.append(pattern(STRIPE_BYTES)) for _ in range(3)]
            assert len({place.segment for place in places}) == 1


async def test_several_stripes_in_one_write(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        rig.stripes = StripeStore(rig.disks, choose_engine(), rig.nursery)
        pool = make_pool(rig)
        datas = [pattern(STRIPE_BYTES, seed) for seed in range(11)]
        async with pool.writer() as writer:
            places = await writer.append_many([pattern(10), *datas[:2]])
            assert [place.stripe for place in places] == [1, 3, 3 + STEP]
            writes = rig.sims[0].calls_by_name["write_at"]
            await writer.append_many(datas[2:4])  # parity goes into the buffers of the stripes before
            assert rig.sims[0].calls_by_name["write_at"] == writes + 1
            rig.sims[1].fail_at(1, DiskFailed("EIO"), short=True)
            for at in range(4, 11, 3):
                await writer.append_many(datas[at : at + 3])
            await writer.sync()
            assert await read(rig, writer.runs) == b"".join([pattern(10), *datas])
        rig.disks.fail(0, "pulled")
        rig.stripes = StripeStore(rig.disks, choose_engine(), rig.nursery)
        assert await read(rig, writer.runs) == b"".join([pattern(10), *datas])
        with pytest.raises(InvalidArgument):
            await pool.writer().append_many([])


async def test_buffers_that_a_hung_thread_may_still_read_are_never_written_again(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        rig.stripes = StripeStore(rig.disks, choose_engine(), rig.nursery)
        pool = make_pool(rig, segment_bytes=1 << 30)
        held: list[tuple[Any, bytes]] = []

        async def hang(path: str, offset: int, buffers: list[Any], *, sync: bool = False) -> None:
            held.extend((buffer, bytes(buffer)) for buffer in buffers)
            raise DiskTimeout("hung")

        async with pool.writer() as writer:
            for seed in range(3):
                await writer.append(pattern(STRIPE_BYTES, seed))
            row = next(iter(writer.segments.values()))
            for index in (4, 5):  # parity
                rig.sims[row.disks[index]].write_at = hang  # type: ignore[method-assign,assignment]
            free = []
            for seed in range(3, 8):
                await writer.append(pattern(STRIPE_BYTES, seed))
                free.append(writer.buffers_are_free)
        assert free == [False, True, True, True, True]
        assert len(held) == 4
        assert all(bytes(buffer) == before for buffer, before in held)


async def test_a_stripe_has_1_to_stripe_bytes(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        writer = make_pool(rig).writer()
        for length in (0, STRIPE_BYTES + 1):
            with pytest.raises(InvalidArgument):
                await writer.append(bytes(length))


@pytest.mark.parametrize("seed", range(20))
async def test_what_was_synced_survives_a_power_cut_and_two_disks(tmp_path: Path, seed: int) -> None:
    async with open_rig(tmp_path, seed=seed) as rig:
        pool = make_pool(rig)
        data = pattern(5 * STRIPE_BYTES + 77)
        async with pool.writer() as writer:
            await write(writer, data)
            runs = list(writer.runs)
            unsynced = await writer.append(pattern(STRIPE_BYTES, 1))
        await rig.crash()
        for disk in random.Random(seed).sample(range(6), 2):
            rig.disks.fail(disk, "pulled")
        assert await read(rig, runs) == data
        try:
            row = rig.segment(unsynced.segment)
            found = await rig.stripes.read(row, unsynced.stripe, 0, STRIPE_BYTES)
        except DataLost:
            return
        assert found == pattern(STRIPE_BYTES, 1)


async def test_at_a_start_open_segments_are_sealed(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        pool = make_pool(rig)
        async with pool.writer() as writer:
            place = await writer.append(b"x")
            await writer.sync()
        await seal_left_open(rig.catalog.reading.segments_open(), rig.submit)
        assert rig.segment(place.segment).state == 1
        assert rig.segment(place.segment).stripes_end == -1
        assert rig.catalog.reading.segments_open() == []


async def test_closing_seals_what_is_idle(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        pool = make_pool(rig)
        async with pool.writer() as writer:
            await writer.append(b"x")
            await writer.sync()
            await writer.append(b"never synced")
        await pool.aclose()
        (row,) = rig.catalog.reading.segments()
        assert (row.state, row.stripes_end) == (1, 3)


async def test_a_shard_file_of_another_disk_is_refused(tmp_path: Path) -> None:
    """Two disks of a store swapped below the daemon: every stripe header tells."""
    async with open_rig(tmp_path) as rig:
        async with make_pool(rig).writer() as writer:
            place = await writer.append(pattern(STRIPE_BYTES))
            await writer.sync()
        row = rig.segment(place.segment)
        paths = [shard_path(row.id, index) for index in (0, 1)]
        disks: list[SimDisk] = [rig.sims[row.disks[index]] for index in (0, 1)]
        whole = [await disk.read(path, 0, 1 << 30) for disk, path in zip(disks, paths, strict=True)]
        for disk, path, found in zip(disks, paths, reversed(whole), strict=True):
            await disk.write_at(path, 0, [found])
        rig.forget_cache()
        with pytest.raises(Corrupt, match="stands in the place"):
            await rig.stripes.file(row, 0).header(place.stripe)
        with pytest.raises(Corrupt, match="stands in the place"):
            await rig.stripes.file(row, 0).segment_header()
        assert await rig.stripes.read(row, place.stripe, 0, STRIPE_BYTES) == pattern(STRIPE_BYTES)
        assert len(whole[0]) == (1 + STEP) * PAGE_BYTES
