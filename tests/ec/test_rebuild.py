import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from simdisk import SimDisk
from stripe_rig import STRIPE_BYTES, Rig, open_rig, pattern, reseal

from couchestord.ec.opensegment import OpenSegment
from couchestord.ec.rebuild import Rebuilder, RebuildOptions
from couchestord.ec.shards import CHECK_BYTES, PAGE_BYTES, shard_length, shard_path
from couchestord.ec.throttle import Throttle
from couchestord.errors import DataLost, DiskFailed, DiskFull, JournalFull
from couchestord.io import requests as rq
from couchestord.io.catalog.read import SegmentRow
from couchestord.io.disk import Disk
from couchestord.service import Progress

LENGTH = 5 * STRIPE_BYTES + 999


class Bench:
    """Objects of five and a bit stripes, each in a sealed segment of its own."""

    def __init__(self, rig: Rig, **options: Any) -> None:
        self.rig = rig
        self.busy = False
        self.throttle = Throttle(1 << 40, lambda: self.busy)
        self.options = {"grace_s": 0.0, "stripes_per_step": 2, **options}
        self.rebuilder = self.make()
        self.bodies: dict[int, bytes] = {}
        self.shards: dict[tuple[int, int], bytes] = {}
        """Every shard file as it was written."""

    def make(self) -> Rebuilder:
        rig = self.rig
        return Rebuilder(
            rig.catalog.reading, rig.disks, rig.stripes, rig.submit, self.throttle, RebuildOptions(**self.options)
        )

    def restart(self) -> None:
        self.rig.forget_cache()
        self.rebuilder = self.make()

    async def put(self, seed: int = 0, *, end_known: bool = True, extent_bytes_max: int = 16 << 20) -> int:
        """Returns the segment's id."""
        data = pattern(LENGTH, seed)
        pool = self.rig.make_pool(extent_bytes_max=extent_bytes_max)
        async with pool.writer() as writer:
            for at in range(0, LENGTH, STRIPE_BYTES):
                await writer.append(data[at : at + STRIPE_BYTES])
            await writer.sync()
            self.bodies[self.rig.put(b"%d" % seed, writer.runs)] = data
            (id_,) = writer.segments
        await pool.aclose()
        row = self.rig.segment(id_)
        if not end_known:
            await self.rig.submit(rq.SealSegment(id_, -1))
        for index, disk in enumerate(row.disks):
            if disk >= 0:
                self.shards[id_, index] = await self.file(row.disks[index], id_, index)
        return id_

    def report(self, id_: int, missing: int) -> None:
        """Damaged where they lie now."""
        for index, disk in enumerate(self.rig.segment(id_).disks):
            if missing >> index & 1:
                self.rebuilder.report(id_, index, disk)

    async def file(self, disk: int, id_: int, index: int) -> bytes:
        return await self.rig.sims[disk].read(shard_path(id_, index), 0, 1 << 30)

    async def run(self) -> int:
        count = 0
        while await self.rebuilder.work() is Progress.BUSY:
            count += 1
            assert count < 200
        return count

    async def check(self, *, disks_lost: int = 2) -> None:
        """Every object, with every loss of so many disks."""
        rig = self.rig
        away = dict(rig.disks.failures)
        for lost in itertools.combinations(range(rig.disks.count), disks_lost):
            rig.forget_cache()
            rig.disks.failures = away | dict.fromkeys(lost, "pulled")
            for id_, body in self.bodies.items():
                assert await rig.extent_bytes(id_) == body
        rig.disks.failures = away
        rig.forget_cache()

    async def check_file(self, id_: int, index: int) -> None:
        """The shard on its disk is that which was written, byte by byte; page 0 may name other disks."""
        row = self.rig.segment(id_)
        assert not row.missing >> index & 1
        found = await self.file(row.disks[index], id_, index)
        assert found[PAGE_BYTES:] == self.shards[id_, index][PAGE_BYTES:]
        header = await self.rig.stripes.file(row, index).segment_header()
        assert header.disks[index] == row.disks[index]


def sim_of(rig: Rig, id_: int, index: int) -> SimDisk:
    return rig.sims[rig.segment(id_).disks[index]]


@pytest.mark.parametrize("end_known", [True, False])
@pytest.mark.parametrize("lost", [lost for n in (1, 2) for lost in itertools.combinations(range(6), n)], ids=str)
async def test_lost_shard_files_are_rebuilt_in_their_place(
    tmp_path: Path, lost: tuple[int, ...], end_known: bool
) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        id_ = await bench.put(end_known=end_known)
        for index in lost:
            await sim_of(rig, id_, index).unlink(shard_path(id_, index))
        bench.restart()
        bench.report(id_, sum(1 << index for index in lost))
        await bench.run()
        for index in range(6):
            await bench.check_file(id_, index)
        assert bench.rebuilder.rebuilt_shards_count == len(lost)
        names = [name for sim in rig.sims for name in await sim.list("segments")]
        assert len(names) == 6
        await bench.check()


async def test_one_rotten_block_is_made_good(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        id_ = await bench.put()
        for index in (1, 4, 5):
            sim_of(rig, id_, index).rot(shard_path(id_, index), (index * 17 + 2) * PAGE_BYTES + 5)
            bench.report(id_, 1 << index)
        await bench.run()
        for index in range(6):
            await bench.check_file(id_, index)
        await bench.check()


async def test_what_reads_report_is_rebuilt(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        id_ = await bench.put()
        await sim_of(rig, id_, 2).unlink(shard_path(id_, 2))
        bench.restart()
        (extent,) = bench.bodies
        await rig.extent_bytes(extent)
        assert rig.damages == [(id_, 2, rig.segment(id_).disks[2])]
        bench.rebuilder.report(*rig.damages[0])
        await bench.run()
        await bench.check_file(id_, 2)


async def test_what_was_cut_short_goes_and_what_is_being_made_stays(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        id_ = await bench.put()
        disk_index = rig.segment(id_).disks[0]
        sim = rig.sims[disk_index]
        left = [shard_path(id_, 3) + ".new", shard_path(1 << 40, 0) + ".new"]
        for path in left:
            await sim.write_at(path, 0, [b"x"])
        await sim.write_at("segments/notes.new", 0, [b"x"])
        bench.report(id_, 1)
        assert await bench.rebuilder.work() is Progress.BUSY
        names = {f"segments/{name}" for name in await sim.list("segments")}
        assert {name for name in names if name.endswith(".new")} == {shard_path(id_, 0) + ".new", "segments/notes.new"}
        for path in left:
            await sim.write_at(path, 0, [b"x"])
        await bench.rebuilder.sweep(disk_index)
        assert {f"segments/{name}" for name in await sim.list("segments")} == names
        await bench.run()
        assert bench.rebuilder.rebuilt_shards_count == 1
        await bench.check_file(id_, 0)


async def test_a_copy_that_is_taken_away_beneath_it_is_begun_anew(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig, retry_s=0.0)
        id_ = await bench.put()
        bench.report(id_, 1)
        for _ in range(3):
            assert await bench.rebuilder.work() is Progress.BUSY
        sim = sim_of(rig, id_, 0)
        await sim.unlink(shard_path(id_, 0) + ".new")
        await bench.run()
        assert not rig.disks.failures
        await bench.check_file(id_, 0)


async def test_two_steps_at_once_take_turns(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        id_ = await bench.put()
        bench.report(id_, 1)
        for _ in range(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bench.rebuilder.work)
                nursery.start_soon(bench.rebuilder.work)
        assert not rig.disks.failures
        assert bench.rebuilder.rebuilt_shards_count == 1
        await bench.check_file(id_, 0)


async def test_a_reported_shard_is_written_anew_however_whole_it_reads(tmp_path: Path) -> None:
    """After a failed sync the page cache shows bytes that the medium never got."""
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        id_ = await bench.put()
        bench.report(id_, 1)
        writes = sim_of(rig, id_, 0).calls_by_name["write_at"]
        await bench.run()
        assert sim_of(rig, id_, 0).calls_by_name["write_at"] > writes
        await bench.check_file(id_, 0)


async def test_a_disk_that_is_gone_is_replaced_by_others(tmp_path: Path) -> None:
    async with open_rig(tmp_path, disks_count=8) as rig:
        bench = Bench(rig)
        ids = [await bench.put(seed) for seed in range(4)]
        gone = {rig.segment(ids[0]).disks[1], rig.segment(ids[0]).disks[4]}
        for disk in gone:
            rig.sims[disk].gone = True
            rig.disks.fail(disk, "pulled")
        await bench.run()
        for id_ in ids:
            row = rig.segment(id_)
            assert not gone & set(row.disks)
            assert len(set(row.disks)) == 6
            for index in range(6):
                await bench.check_file(id_, index)
        await bench.check()


@pytest.mark.parametrize("is_full", [True, False])
async def test_a_shard_that_was_made_anew_elsewhere_leaves_no_file_behind(tmp_path: Path, is_full: bool) -> None:
    """Its disk is full, so that there was no room for a second copy, or comes back while the copy is made."""
    async with open_rig(tmp_path, disks_count=7) as rig:
        bench = Bench(rig)
        id_ = await bench.put()
        home = rig.segment(id_).disks[0]
        if is_full:
            bench.report(id_, 1)
            rig.disks.set_tight(home, True)
        else:
            rig.disks.fail(home, "pulled")
            await bench.rebuilder.work()
            rig.disks.failures.clear()
        await bench.run()
        assert rig.segment(id_).disks[0] != home
        await bench.check_file(id_, 0)
        assert await rig.sims[home].list("segments") == {}
        await bench.check()


async def test_what_a_reader_misses_where_a_shard_lay_before_is_no_damage(tmp_path: Path) -> None:
    """But what it misses where the shard lies now is."""
    async with open_rig(tmp_path, disks_count=7) as rig:
        bench = Bench(rig)
        id_ = await bench.put()
        before = rig.segment(id_)
        rig.disks.fail(before.disks[0], "pulled")
        await bench.run()
        rig.disks.failures.clear()
        await rig.sims[before.disks[0]].unlink(shard_path(id_, 0))  # as a sweep does when it is back
        row = rig.segment(id_)
        for count, (layout, rebuilt) in enumerate(((before, False), (row, True)), start=1):
            if rebuilt:
                await sim_of(rig, id_, 0).unlink(shard_path(id_, 0))
            assert await rig.stripes.read(layout, 1, 0, 10) == pattern(LENGTH, 0)[:10]
            assert rig.damages[count - 1 :] == [(id_, 0, layout.disks[0])]
            bench.rebuilder.report(*rig.damages[-1])
            assert (await bench.run() > 0) == rebuilt
            assert rig.segment(id_) == row
            assert bench.rebuilder.rebuilt_shards_count == count
        await bench.check_file(id_, 0)
        await bench.check()


def test_a_disk_is_waited_for_during_its_grace(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_rig(tmp_path, disks_count=7) as rig:
            bench = Bench(rig, grace_s=100.0)
            id_ = await bench.put()
            disk = rig.segment(id_).disks[0]
            rig.disks.fail(disk, "pulled")
            assert await bench.run() == 0
            await trio.sleep(99)
            assert await bench.run() == 0
            await trio.sleep(1)
            await bench.run()
            assert rig.segment(id_).disks[0] != disk
            await bench.check_file(id_, 0)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_without_another_disk_it_waits_for_this_one(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        id_ = await bench.put()
        rig.disks.fail(3, "pulled")
        assert await bench.run() == 0
        del rig.disks.failures[3]
        assert await bench.run() == 0
        assert rig.segment(id_).missing == 0


async def test_shards_never_written_are_made_once_there_is_a_disk(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        rig.disks.fail(0, "pulled")
        rig.disks.fail(5, "pulled")
        id_ = await bench.put()
        assert rig.segment(id_).missing == 0b110000
        assert await bench.run() == 0
        rig.disks.failures.clear()
        await bench.run()
        assert sorted(rig.segment(id_).disks) == [0, 1, 2, 3, 4, 5]
        await bench.check()


async def test_the_most_endangered_comes_first(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        ids = [await bench.put(seed) for seed in range(3)]
        for id_, mask in zip(ids, (0b1, 0b110, 0b1000), strict=True):
            for index in range(6):
                if mask >> index & 1:
                    await sim_of(rig, id_, index).unlink(shard_path(id_, index))
            bench.report(id_, mask)
        bench.restart()
        for id_, mask in zip(ids, (0b1, 0b110, 0b1000), strict=True):
            bench.report(id_, mask)
        await bench.run()
        placed = [(request.id, request.index) for request in rig.requests if isinstance(request, rq.PlaceShard)]
        assert placed[0] == (ids[1], 1)
        assert sorted(placed) == [(ids[0], 0), (ids[1], 1), (ids[1], 2), (ids[2], 3)]


async def test_what_cannot_be_made_before_disks_are_back_keeps_no_other_waiting(tmp_path: Path) -> None:
    """However soon it would be tried again: with many such segments each has waited when all were tried."""
    async with open_rig(tmp_path, disks_count=9) as rig:
        bench = Bench(rig, retry_s=0.0)
        rig.disks.failures = dict.fromkeys((6, 7, 8), "pulled")
        lost = await bench.put(1)
        rig.disks.failures = dict.fromkeys((0, 7, 8), "pulled")
        endangered = await bench.put(2)
        rig.disks.failures = dict.fromkeys((0, 1, 2), "pulled")
        bench.restart()
        await bench.run()
        assert set(rig.segment(endangered).disks) == set(range(3, 9))
        assert set(rig.segment(lost).disks) == set(range(6))
        rig.disks.failures = {}
        bench.restart()
        await bench.run()
        await bench.check()


async def test_clients_come_first_unless_nothing_is_to_spare(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        id_ = await bench.put()
        bench.busy = True
        bench.report(id_, 0b1)
        assert await bench.rebuilder.work() is Progress.THROTTLED
        bench.report(id_, 0b11)
        assert await bench.rebuilder.work() is Progress.BUSY


@pytest.mark.parametrize("seed", range(15))
async def test_a_power_cut_at_any_time_loses_nothing_and_it_is_done_again(tmp_path: Path, seed: int) -> None:
    async with open_rig(tmp_path, seed=seed) as rig:
        bench = Bench(rig)
        id_ = await bench.put()
        for index in (0, 5):
            sim_of(rig, id_, index).rot(shard_path(id_, index), 30 * PAGE_BYTES)
        await rig.submit(rq.LoseShards(id_, 0b100001))
        for _ in range(seed):
            await bench.rebuilder.work()
        await rig.crash()
        bench.restart()
        (extent,) = bench.bodies
        assert await rig.extent_bytes(extent) == bench.bodies[extent]
        await bench.run()
        for index in range(6):
            await bench.check_file(id_, index)
        await bench.check()


@pytest.mark.parametrize("error", [DiskFailed("EIO"), DiskFull("ENOSPC")])
@pytest.mark.parametrize("count", range(1, 20, 2))
async def test_a_target_that_fails_is_given_up_for_another(
    tmp_path: Path, count: int, error: DiskFailed | DiskFull
) -> None:
    async with open_rig(tmp_path, disks_count=7) as rig:
        bench = Bench(rig, retry_s=0.0)
        id_ = await bench.put()
        row = rig.segment(id_)
        await rig.sims[row.disks[1]].unlink(shard_path(id_, 1))
        bench.restart()
        bench.report(id_, 0b10)
        rig.sims[row.disks[1]].fail_at(count, error)
        await bench.run()
        assert rig.segment(id_).missing == 0
        await bench.check_file(id_, 1)
        await bench.check(disks_lost=1)


@pytest.mark.parametrize("is_swept", [False, True])
async def test_a_target_that_goes_and_returns_between_two_steps_is_not_given_up(tmp_path: Path, is_swept: bool) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig, retry_s=0.0)
        id_ = await bench.put()
        home = rig.segment(id_).disks[1]
        bench.report(id_, 0b10)
        assert await bench.rebuilder.work() is Progress.BUSY
        before = rig.sims[home]
        rig.disks.fail(home, "pulled")
        rig.disks.release_failed()
        rig.sims[home] = before.crash(keep_all=True)
        rig.disks.take(home, rig.sims[home])
        name = shard_path(id_, 1).removeprefix("segments/")
        assert f"{name}.new" in await rig.sims[home].list("segments")
        if is_swept:
            await bench.rebuilder.sweep(home)
            assert list(await rig.sims[home].list("segments")) == [name], "nobody goes on with it"
        await bench.run()
        assert not rig.disks.failures
        assert list(await rig.sims[home].list("segments")) == [name]
        assert bench.rebuilder.rebuilt_shards_count == 1
        await bench.check_file(id_, 1)
        await bench.check()


async def test_a_target_that_lies_is_found_out(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        id_ = await bench.put()
        sim: Any = sim_of(rig, id_, 1)
        await sim.unlink(shard_path(id_, 1))
        bench.restart()
        bench.report(id_, 0b10)
        sync = sim.sync

        async def sync_and_rot(path: str) -> None:
            await sync(path)
            sim.rot(path, 3 * PAGE_BYTES)

        sim.sync = sync_and_rot
        await bench.run()
        assert rig.segment(id_).missing == 0b10
        assert await sim.list("segments") == {}


async def test_a_lost_stripe_does_not_keep_the_others_from_being_rebuilt(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        id_ = await bench.put()
        for index in (0, 2, 3):
            sim_of(rig, id_, index).rot(shard_path(id_, index), (2 + 17) * PAGE_BYTES)  # the second stripe
        bench.restart()
        bench.report(id_, 0b1101)
        await bench.run()
        row = rig.segment(id_)
        assert row.missing == 0b1101  # still not whole
        (extent,) = bench.bodies
        rig.disks.fail(row.disks[4], "pulled")
        rig.disks.fail(row.disks[5], "pulled")
        first = await rig.stripes.read(row, 1, 0, STRIPE_BYTES)
        assert first == bench.bodies[extent][:STRIPE_BYTES]
        with pytest.raises(DataLost):
            await rig.stripes.read(row, 18, 0, STRIPE_BYTES)
        assert await bench.run() == 0  # not for ever


def test_what_is_lost_for_good_is_tried_ever_less_often_until_a_disk_returns(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_rig(tmp_path, disks_count=7) as rig:
            bench = Bench(rig, grace_s=1e9)
            id_ = await bench.put()
            for index in (0, 2, 3):
                sim_of(rig, id_, index).rot(shard_path(id_, index), (2 + 17) * PAGE_BYTES)
            bench.restart()
            bench.report(id_, 0b1101)
            tries: list[float] = []
            begun_s = trio.current_time()
            while trio.current_time() < begun_s + 14_000:
                if await bench.run():
                    tries.append(trio.current_time() - begun_s)
                await trio.sleep(30)
            assert tries == [0, 60, 180, 420, 900, 1860, 3780, 7380, 10_980]
            (spare,) = set(range(7)) - set(rig.segment(id_).disks)
            rig.disks.fail(spare, "pulled")
            assert await bench.run() == 0
            rig.disks.failures.clear()
            assert await bench.run() > 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("away", [(), (4, 5)], ids=["all are here", "two are away"])
async def test_where_a_stripe_cannot_be_made_whole_no_block_is_lost_that_can_be_read(
    tmp_path: Path, away: tuple[int, ...]
) -> None:
    """The first blocks of some shards are rotten, and that is all: what the new files take the place of has the others,
    of which there may be no more than needed."""
    damaged = (0, 2, 3)[: 3 - len(away)]
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        id_ = await bench.put()
        (body,) = bench.bodies.values()
        row = rig.segment(id_)
        for index in damaged:
            sim_of(rig, id_, index).rot(shard_path(id_, index), (2 + 17) * PAGE_BYTES)  # the second stripe
        rig.disks.failures = {row.disks[index]: "pulled" for index in away}
        bench.rebuilder = Rebuilder(
            rig.catalog.reading, rig.disks, rig.stripes, rig.submit, bench.throttle, RebuildOptions(grace_s=1e9)
        )
        bench.report(id_, sum(1 << index for index in damaged))
        await bench.run()
        rig.forget_cache()
        row, size = rig.segment(id_), shard_length(STRIPE_BYTES, 4)
        for start in range(0, STRIPE_BYTES, CHECK_BYTES):
            if start // size not in damaged or start % size:
                found = await rig.stripes.read(row, 18, start, CHECK_BYTES)
                assert found == body[STRIPE_BYTES + start :][:CHECK_BYTES]
        for index in damaged:
            assert row.missing >> index & 1
            with pytest.raises(DataLost):  # and never taken for good
                await rig.stripes.read(row, 18, index * size, CHECK_BYTES)


@pytest.mark.parametrize("end_known", [True, False])
async def test_what_lies_behind_a_stripe_of_an_extent_of_which_no_header_is_left_is_kept(
    tmp_path: Path, end_known: bool
) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        id_ = await bench.put(end_known=end_known)
        (body,) = bench.bodies.values()
        for index in range(6):
            await sim_of(rig, id_, index).write_at(shard_path(id_, index), (1 + 17) * PAGE_BYTES, [bytes(PAGE_BYTES)])
        bench.restart()
        bench.report(id_, 0b111111)
        await bench.run()
        rig.forget_cache()
        row = rig.segment(id_)
        assert row.missing == 0b111111  # a stripe is lost
        for number in (0, 2, 3, 4):
            found = await rig.stripes.read(row, 1 + 17 * number, 0, STRIPE_BYTES)
            assert found == body[number * STRIPE_BYTES :][:STRIPE_BYTES]


@pytest.mark.parametrize("end_known", [True, False])
async def test_it_goes_on_behind_a_stripe_of_which_no_header_is_left(tmp_path: Path, end_known: bool) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        id_ = await bench.put(end_known=end_known, extent_bytes_max=STRIPE_BYTES)
        (first,) = bench.bodies
        for index in range(6):
            await sim_of(rig, id_, index).write_at(shard_path(id_, index), (1 + 17) * PAGE_BYTES, [bytes(PAGE_BYTES)])
        await sim_of(rig, id_, 1).unlink(shard_path(id_, 1))
        bench.restart()
        bench.report(id_, 2)
        await bench.run()
        assert rig.segment(id_).missing == 2  # a stripe is lost
        rig.disks.fail(rig.segment(id_).disks[0], "pulled")
        rig.disks.fail(rig.segment(id_).disks[5], "pulled")
        for number, data in enumerate(
            [bench.bodies[first][at : at + STRIPE_BYTES] for at in range(0, LENGTH, STRIPE_BYTES)]
        ):
            if number != 1:
                assert await rig.extent_bytes(first + number) == data


@pytest.mark.parametrize("damaged", [0, 4], ids=["one that has the garbage", "one that has not"])
async def test_garbage_behind_the_last_extent_is_no_loss(tmp_path: Path, damaged: int) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        id_ = await bench.put(end_known=False)
        row = rig.segment(id_)
        end = len(bench.shards[id_, 0]) // PAGE_BYTES
        encoded = await rig.stripes.encode(row, end, pattern(1000))
        for index in (0, 1, 2):  # a stripe that was written and never synced, of which three shards came through
            await sim_of(rig, id_, index).write_at(shard_path(id_, index), end * PAGE_BYTES, encoded.buffers(index))
        if damaged == 4:
            await sim_of(rig, id_, 4).unlink(shard_path(id_, 4))
        bench.restart()
        bench.report(id_, 1 << damaged)
        await bench.run()
        found = await bench.file(row.disks[damaged], id_, damaged)
        assert found[PAGE_BYTES : end * PAGE_BYTES] == bench.shards[id_, damaged][PAGE_BYTES:]
        assert rig.segment(id_).missing == 0
        assert rig.damages == []  # else the shards without that garbage would be rebuilt, over and over


async def test_what_a_newer_program_wrote_is_left_alone(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        id_ = await bench.put()
        sim, path = sim_of(rig, id_, 0), shard_path(id_, 0)
        page = await sim.read(path, PAGE_BYTES, PAGE_BYTES)
        await sim.write_at(path, PAGE_BYTES, [reseal(page, 4, b"\x02\x00")])
        before = await sim.read(path, 0, 1 << 30)
        bench.restart()
        bench.report(id_, 1)
        await bench.run()
        assert await sim.read(path, 0, 1 << 30) == before


async def test_a_segment_that_goes_meanwhile_is_forgotten(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        id_ = await bench.put()
        await sim_of(rig, id_, 0).unlink(shard_path(id_, 0))
        bench.restart()
        bench.report(id_, 1)
        sim = sim_of(rig, id_, 0)
        await bench.rebuilder.work()
        assert await sim.list("segments") != {}
        rig.delete(b"0")
        assert await rig.submit(rq.DropSegment(id_))
        await bench.run()
        assert await sim.list("segments") == {}


async def test_a_returned_disk_is_compared_and_what_it_misses_is_queued(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        ids = [await bench.put(seed, end_known=seed != 3) for seed in range(6)]
        index = [rig.segment(id_).disks.index(2) for id_ in ids]
        sim = rig.sims[2]
        await sim.unlink(shard_path(ids[0], index[0]))
        await sim.write_at(shard_path(ids[1], index[1]), (1 + 17) * PAGE_BYTES, [bytes(PAGE_BYTES)])
        whole = await sim.read(shard_path(ids[3], index[3]), 0, 1 << 30)
        await sim.unlink(shard_path(ids[3], index[3]))
        await sim.write_at(shard_path(ids[3], index[3]), 0, [whole[: -PAGE_BYTES + 100]])
        old = await rig.stripes.encode(rig.segment(ids[4])._replace(epoch=9), 1, pattern(STRIPE_BYTES, 4))
        await sim.write_at(shard_path(ids[4], index[4]), PAGE_BYTES, old.buffers(index[4]))
        bench.restart()
        assert await bench.rebuilder.check_returned(2) == 4
        assert [rig.segment(id_).missing for id_ in ids] == [
            1 << index[0], 1 << index[1], 0, 1 << index[3], 1 << index[4], 0,
        ]  # fmt: skip
        await bench.run()
        for id_ in ids:
            for each in range(6):
                await bench.check_file(id_, each)
        assert await bench.rebuilder.check_returned(2) == 0


@pytest.mark.parametrize("how", ["away", "hangs", "away and back"])
@pytest.mark.parametrize("after", [0, 1, 10])
async def test_a_disk_that_goes_while_it_is_compared_has_lost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, after: int
) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        ids = [await bench.put(seed) for seed in range(4)]
        bench.restart()
        sim = rig.sims[2]
        sim.deadline_s = 0.01
        original, calls = sim.read, itertools.count()

        async def read(path: str, offset: int, length: int) -> bytes:
            if next(calls) == after:
                if how == "hangs":
                    sim.frozen = True
                else:
                    sim.close()
                    rig.disks.fail(2, "pulled")
                if how == "away and back":
                    rig.disks.take(2, sim.crash(keep_all=True))
            return await original(path, offset, length)

        monkeypatch.setattr(sim, "read", read)
        with pytest.raises(DiskFailed, match="while it was compared"):
            await bench.rebuilder.check_returned(2)
        assert [rig.segment(id_).missing for id_ in ids] == [0] * 4
        rig.disks.take(2, sim.crash(keep_all=True))
        bench.restart()
        assert await bench.rebuilder.check_returned(2) == 0


async def test_what_is_written_to_a_disk_while_it_is_compared_is_not_missed_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a segment that was begun before, to one that was only made, and to one that is made meanwhile."""
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        ids = [await bench.put()]
        pool = rig.make_pool()
        begun, made = await pool.take(rig.policies[0]), await pool.take(rig.policies[0])
        ids += [begun.row.id, made.row.id]

        async def write(segment: OpenSegment) -> None:
            data = pattern(STRIPE_BYTES, segment.end)
            assert await segment.write([await rig.stripes.encode(segment.row, segment.end, data)])
            await segment.sync(6)

        await write(begun)
        bench.restart()
        sim, looked_at = rig.sims[2], []
        original = sim.read

        async def read(path: str, offset: int, length: int) -> bytes:
            looked_at.append(path)
            if len(looked_at) == 1:
                for segment in (begun, made):
                    await write(segment)
                    await pool.seal(segment)
                ids.append(await bench.put(1))
            return await original(path, offset, length)

        monkeypatch.setattr(sim, "read", read)
        monkeypatch.setattr("couchestord.ec.rebuild.COMPARED_MAX", 1)
        assert await bench.rebuilder.check_returned(2) == 0
        assert {shard_path(id_, rig.segment(id_).disks.index(2)) for id_ in ids} == set(looked_at)
        assert [rig.segment(id_).missing for id_ in ids] == [0] * 4


async def test_what_a_returned_disk_cannot_read_is_missing_there(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        ids = [await bench.put(seed) for seed in range(3)]
        bench.restart()
        rig.sims[2].fail_at(1, DiskFailed("EIO"))
        assert await bench.rebuilder.check_returned(2) == 1
        assert not rig.disks.failures
        assert [rig.segment(id_).missing for id_ in ids] == [1 << rig.segment(ids[0]).disks.index(2), 0, 0]
        await bench.run()
        await bench.check()


async def test_what_is_made_anew_elsewhere_while_its_disk_is_compared_is_not_missed_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_rig(tmp_path, disks_count=7) as rig:
        bench = Bench(rig)
        ids = [await bench.put(seed) for seed in range(3)]
        home = rig.segment(ids[0]).disks[0]
        (other,) = set(range(7)) - set(rig.segment(ids[0]).disks)

        async def has_headers(_: Rebuilder, disk: Disk, row: SegmentRow, index: int) -> bool:
            seen.append(row.id)
            if row.id == ids[0]:
                await rig.submit(rq.PlaceShard(row.id, index, other))
            return False

        seen: list[int] = []
        monkeypatch.setattr(Rebuilder, "_has_headers", has_headers)
        monkeypatch.setattr("couchestord.ec.rebuild.COMPARED_MAX", 2)
        count = await bench.rebuilder.check_returned(home)
        held = [id_ for id_ in ids[1:] if home in rig.segment(id_).disks]
        assert seen == [ids[0], *held]
        assert [id_ for id_ in ids if rig.segment(id_).missing] == held
        assert count == len(held)


async def test_progress_is_saved_and_cleared(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        id_ = await bench.put()
        await sim_of(rig, id_, 3).unlink(shard_path(id_, 3))
        bench.report(id_, 8)
        await bench.run()
        saved = [request.state for request in rig.requests if isinstance(request, rq.SaveJob)]
        assert json.loads(saved[0])["segment"] == id_
        assert saved[-1] == b""


async def test_a_writer_that_refuses_puts_it_off(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        id_ = await bench.put()
        bench.report(id_, 1)
        rig.refuse = JournalFull("full")
        assert await bench.rebuilder.work() is Progress.IDLE
        rig.refuse = None
        await bench.run()
        assert rig.segment(id_).missing == 0


async def test_an_open_segment_is_sealed_so_that_it_can_be_rebuilt(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        pool = rig.make_pool()
        bench.rebuilder = Rebuilder(
            rig.catalog.reading, rig.disks, rig.stripes, rig.submit, bench.throttle, RebuildOptions(), pool.retire
        )
        async with pool.writer() as writer:
            await writer.append(pattern(LENGTH, 1)[:STRIPE_BYTES])
            await writer.sync()
            rig.put(b"1", writer.runs)
            (id_,) = writer.segments
            await sim_of(rig, id_, 3).unlink(shard_path(id_, 3))
            bench.report(id_, 8)
            await bench.run()
            assert rig.segment(id_).missing == 8, "a stream is writing to it"
        await bench.run()
        await bench.run()
        assert rig.segment(id_).missing == 0
        async with pool.writer() as writer:
            assert (await writer.append(b"more")).segment != id_


@pytest.mark.parametrize("away_count", [3, 4, 6])
async def test_what_disks_that_are_away_may_still_have_stays_theirs(tmp_path: Path, away_count: int) -> None:
    """More are away than are made good: nobody else takes the place of a shard that cannot be made."""
    async with open_rig(tmp_path, disks_count=12) as rig:
        bench = Bench(rig)
        id_ = await bench.put()
        before = rig.segment(id_)
        away = dict.fromkeys(before.disks[:away_count], "pulled")
        rig.disks.failures = away
        bench.restart()
        await bench.run()
        assert rig.segment(id_).disks == before.disks
        for disk in rig.disks.good():
            names = await rig.sims[disk].list("segments")
            assert len(names) == (disk in before.disks), "nothing is left of the attempt"
        rig.disks.failures = {}
        bench.restart()
        await bench.run()
        await bench.check()
