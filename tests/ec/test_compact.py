from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from stripe_rig import STRIPE_BYTES, Rig, open_rig, pattern

from couchestord.ec.compact import SWEPT_A_TURN, CompactOptions, Compactor
from couchestord.ec.shards import shard_path
from couchestord.ec.throttle import Throttle
from couchestord.errors import DiskFull, JournalFull, NoSpace
from couchestord.io import requests as rq
from couchestord.io.room import ask_room
from couchestord.service import Progress

BODY = STRIPE_BYTES // 4


class Bench:
    def __init__(self, rig: Rig, **options: Any) -> None:
        self.rig = rig
        self.busy = False
        self.pool = rig.make_pool(segment_bytes=4 * STRIPE_BYTES)
        self.throttle = Throttle(1 << 40, lambda: self.busy)
        self.is_unseen = True
        self.is_pressed = False
        self.compactor = Compactor(
            rig.catalog.reading,
            rig.disks,
            self.pool,
            rig.submit,
            self.throttle,
            CompactOptions(**options),
            lambda _: self.is_unseen,
            lambda: self.is_pressed,
        )

    async def put(self, name: bytes, length: int = 4 * STRIPE_BYTES, seed: int = 0) -> int:
        """An object in a segment of its own when it has the full length; returns the id of its extent."""
        data = pattern(length, seed)
        async with self.pool.writer() as writer:
            for at in range(0, length, STRIPE_BYTES):
                await writer.append(data[at : at + STRIPE_BYTES])
            await writer.sync()
            return self.rig.put(name, writer.runs)

    async def seal(self) -> None:
        await self.pool.aclose()

    async def run(self) -> int:
        count = 0
        while await self.compactor.work() is Progress.BUSY:
            count += 1
            assert count < 50
        return count

    async def files(self) -> list[str]:
        names: list[str] = []
        for sim in self.rig.sims:
            names += await sim.list("segments")
        return names


async def test_a_dead_segment_is_dropped_and_its_files_go(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        await bench.put(b"a")
        kept = await bench.put(b"b", seed=1)
        await bench.seal()
        rig.delete(b"a")
        assert len(await bench.files()) == 12
        await bench.run()
        assert bench.compactor.dropped_segments_count == 1
        assert len(await bench.files()) == 6
        assert await rig.extent_bytes(kept) == pattern(4 * STRIPE_BYTES, 1)


async def test_what_a_stream_wrote_and_did_not_commit_yet_is_not_dropped(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        async with bench.pool.writer() as writer:
            for seed in range(5):  # the first segment is full, and sealed
                await writer.append(pattern(STRIPE_BYTES, seed))
            await writer.sync()
            assert await bench.run() == 0
            ids = rig.put(b"a", writer.runs)
        assert await bench.run() == 0
        assert await rig.extent_bytes(ids) == b"".join(pattern(STRIPE_BYTES, seed) for seed in range(4))


async def test_dead_segments_that_are_pinned_keep_none_waiting(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig, drops_per_step_max=1)
        for name in (b"a", b"b"):
            await bench.put(name)
        await bench.seal()
        first = rig.catalog.reading.segments()[0].id
        assert len(rig.catalog.reading.segments()) == 2
        for name in (b"a", b"b"):
            rig.delete(name)
        bench.pool.pin(first)
        await bench.run()
        assert [row.id for row in rig.catalog.reading.segments()] == [first]
        bench.pool.unpin([first])
        await bench.run()
        assert not rig.catalog.reading.segments()


async def test_an_open_segment_is_left_alone(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        async with bench.pool.writer() as writer:
            await writer.append(b"x")
        assert await bench.run() == 0
        assert len(await bench.files()) == 6


async def dying(bench: Bench, kept_count: int = 3) -> dict[int, bytes]:
    """A sealed segment of 16 objects of which a few are left."""
    ids = [await bench.put(b"%d" % n, BODY, n) for n in range(16)]
    await bench.seal()
    for n in range(kept_count, 16):
        bench.rig.delete(b"%d" % n)
    return {ids[n]: pattern(BODY, n) for n in range(kept_count)}


async def test_a_dying_segment_is_emptied_and_dropped(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        bodies = await dying(bench)
        (old,) = rig.catalog.reading.segments()
        await bench.run()
        rows = rig.catalog.reading.segments()
        assert old.id not in [row.id for row in rows]
        assert sum(row.live_bytes for row in rows) == 3 * BODY
        for id_, body in bodies.items():
            assert await rig.extent_bytes(id_) == body
        assert len(await bench.files()) == 6


async def test_one_that_is_half_full_stays(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        await dying(bench, 10)
        assert await bench.run() == 0
        assert len(rig.catalog.reading.segments()) == 1


async def test_while_the_disks_are_nearly_full_a_segment_is_emptied_that_is_more_than_half_full(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        bodies = await dying(bench, 11)
        assert await bench.run() == 0
        assert not bench.compactor.has_work
        calm_s = bench.compactor.interval_s
        bench.is_pressed = bench.busy = True
        assert await bench.compactor.work() is Progress.BUSY, "clients wait"
        assert bench.compactor.has_work
        assert bench.compactor.interval_s < calm_s
        await bench.run()
        assert not bench.compactor.has_work
        assert sum(row.live_bytes for row in rig.catalog.reading.segments()) == 11 * BODY
        assert bench.compactor.dropped_segments_count == 1
        for id_, body in bodies.items():
            assert await rig.extent_bytes(id_) == body


async def test_it_makes_room_where_only_the_reserve_is_left(tmp_path: Path) -> None:
    """What it moves may take half of that, and no more: records of deletes need the rest."""
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        bodies = await dying(bench, 6)
        (old,) = rig.catalog.reading.segments()
        kept_bytes = 1 << 20
        rig.disks.kept_bytes = lambda _: kept_bytes
        for sim in rig.sims:
            sim.capacity_bytes = sum((await sim.list("segments")).values()) + kept_bytes // 2 + 4096
        await ask_room(rig.disks)
        for index in range(6):
            rig.disks.set_tight(index, True)
        with pytest.raises(NoSpace):
            async with bench.pool.writer() as writer:
                await writer.append(b"new data")
        assert await bench.compactor.work() is Progress.IDLE, "half of it is gone already"
        assert not bench.compactor.has_work, "nobody should wait for it"
        for sim in rig.sims:
            sim.capacity_bytes += kept_bytes // 2
        await bench.run()
        assert rig.catalog.reading.segment(old.id) is None
        for id_, body in bodies.items():
            assert await rig.extent_bytes(id_) == body


async def test_what_others_may_still_see_is_work_to_do(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        await bench.put(b"a")
        await bench.seal()
        rig.delete(b"a")
        bench.is_unseen = False
        assert await bench.compactor.work() is Progress.IDLE
        assert bench.compactor.has_work
        bench.is_unseen = True
        await bench.run()
        assert not bench.compactor.has_work


async def test_long_extents_move_too_with_shards_missing(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig, live_ratio_min=0.9, gain_ratio_max=1.0)
        kept = await bench.put(b"kept", 3 * STRIPE_BYTES, 5)
        await bench.put(b"gone", STRIPE_BYTES)
        await bench.seal()
        rig.delete(b"gone")
        rig.disks.fail(0, "pulled")
        rig.disks.fail(3, "pulled")
        (old,) = rig.catalog.reading.segments()
        await bench.run()
        assert rig.catalog.reading.segment(old.id) is None
        assert await rig.extent_bytes(kept) == pattern(3 * STRIPE_BYTES, 5)


async def test_an_extent_that_is_longer_than_segments_are_is_moved(tmp_path: Path) -> None:
    """A long body is written several stripes at once, and the last ones go beyond what a segment holds."""
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        bench.is_pressed = True
        await bench.put(b"before", 3 * STRIPE_BYTES)
        data = pattern(5 * STRIPE_BYTES, 7)
        async with bench.pool.writer() as writer:
            await writer.append_many([data[at : at + STRIPE_BYTES] for at in range(0, len(data), STRIPE_BYTES)])
            await writer.sync()
            (run,) = writer.runs
            id_ = rig.put(b"long", [run])
        await bench.seal()
        rig.delete(b"before")
        await bench.run()
        assert rig.catalog.reading.segment(run.segment) is None
        assert await rig.extent_bytes(id_) == data


async def test_the_room_of_a_segment_without_a_known_end_is_that_of_its_files(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        bodies = await dying(bench)
        (old,) = rig.catalog.reading.segments()
        await rig.submit(rq.SealSegment(old.id, -1))
        await bench.run()
        assert rig.catalog.reading.segment(old.id) is None
        for id_, body in bodies.items():
            assert await rig.extent_bytes(id_) == body


async def test_an_unreadable_extent_keeps_its_segment_and_holds_up_no_other(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        bodies = await dying(bench)
        (old,) = rig.catalog.reading.segments()
        lost = sorted(bodies)[1]
        extent = rig.catalog.reading.extent(lost)
        assert extent is not None
        for index in (0, 1, 2):
            rig.sims[old.disks[index]].rot(shard_path(old.id, index), extent.stripe * 4096 + 10)
        rig.forget_cache()
        bench.pool.stripes = rig.stripes
        await bench.run()
        assert rig.segment(old.id).live_bytes == BODY
        del bodies[lost]
        for id_, body in bodies.items():
            assert await rig.extent_bytes(id_) == body
        assert await bench.run() == 0


def test_what_could_not_be_read_is_tried_again_once_its_disks_may_be_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_rig(tmp_path, disks_count=9) as rig:
            bench = Bench(rig, retry_s=60.0)
            bodies = await dying(bench)
            (old,) = rig.catalog.reading.segments()
            rig.disks.failures = dict.fromkeys(old.disks[:3], "pulled")
            await bench.run()
            rig.disks.failures = {}
            assert await bench.run() == 0, "not at once"
            await trio.sleep(60.0)
            await bench.run()
            assert rig.catalog.reading.segment(old.id) is None
            for id_, body in bodies.items():
                assert await rig.extent_bytes(id_) == body

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_clients_come_first(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        await dying(bench)
        bench.busy = True
        assert await bench.compactor.work() is Progress.THROTTLED
        bench.busy = False
        bench.throttle.spend(1 << 50)
        assert await bench.compactor.work() is Progress.THROTTLED


async def test_deletes_make_room_on_full_disks(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        await bench.put(b"a")
        await bench.seal()
        for index, sim in enumerate(rig.sims):
            sim.capacity_bytes = 0
            rig.disks.fail(index, DiskFull("full"))
        rig.delete(b"a")
        await bench.run()
        assert await bench.files() == []


async def test_a_writer_that_refuses_puts_it_off(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        await dying(bench)
        rig.refuse = JournalFull("full")
        assert await bench.compactor.work() is Progress.IDLE


async def test_the_sweep_removes_what_the_catalog_forgot_and_nothing_else(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        kept = await bench.put(b"kept")
        await bench.put(b"gone", seed=1)
        await bench.seal()
        known = rig.catalog.reading.segments()[0].id
        rig.disks.fail(2, "pulled")
        rig.delete(b"gone")
        await bench.run()
        rig.disks.failures.clear()
        next_id = rig.catalog.applier.next_id
        strays = {shard_path(next_id, 0), shard_path(next_id + 9, 1), "segments/notes.txt"}
        for path in (*strays, shard_path(known, 9)):
            await rig.sims[2].write_at(path, 0, [b"x"])
        assert await bench.compactor.sweep(lambda: rig.catalog.applier.next_id, only=2) == 1
        left = {f"segments/{name}" for name in await rig.sims[2].list("segments")}
        index = rig.segment(known).disks.index(2)
        assert left == strays | {shard_path(known, index), shard_path(known, 9)}
        assert await rig.extent_bytes(kept) == pattern(4 * STRIPE_BYTES)
        assert await bench.compactor.sweep(lambda: rig.catalog.applier.next_id) == 0


async def test_a_sweep_of_many_files_leaves_turns_to_others(tmp_path: Path) -> None:
    """Each is looked up; a large disk has hundreds of thousands."""
    async with open_rig(tmp_path) as rig, trio.open_nursery() as nursery:
        bench = Bench(rig)
        for number in range(2000):
            await rig.sims[2].write_at(shard_path(1 << 40 | number, 0), 0, [b"x"])
        turn = 0
        asked = Counter[int]()

        async def take_turns() -> None:
            nonlocal turn
            while True:
                turn += 1
                await trio.lowlevel.checkpoint()

        def next_id() -> int:
            asked[turn] += 1
            return 1

        nursery.start_soon(take_turns)
        await bench.compactor.sweep(next_id, only=2)
        nursery.cancel_scope.cancel()
        assert sum(asked.values()) == 2000
        assert max(asked.values()) <= 2 * SWEPT_A_TURN


@pytest.mark.parametrize("stripe_bytes", [4 * 512, 4 * 4096, 4 * 4097, 4 * 5000, 4 * 8192, 4 * 16384])
@pytest.mark.parametrize("fill", [0.01, 0.3, 0.51, 1.0, 1.1, 2.5])
async def test_compaction_ends_whatever_the_stripes_and_extents_are(
    tmp_path: Path, stripe_bytes: int, fill: float
) -> None:
    """Headers and the ends of pages may be most of the room: moving what is left gains nothing then."""
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig, batch_extents=8, batch_bytes=4 * stripe_bytes)
        rig.policies[0] = replace(rig.policies[0], stripe_bytes=stripe_bytes)
        bench.pool = rig.make_pool(segment_bytes=4 * stripe_bytes)
        bench.compactor = Compactor(
            rig.catalog.reading, rig.disks, bench.pool, rig.submit, bench.throttle, bench.compactor._options
        )
        length = max(1, int(fill * stripe_bytes))
        for number in range(24):
            data = pattern(length, number)
            async with bench.pool.writer() as writer:
                for at in range(0, length, stripe_bytes):
                    await writer.append(data[at : at + stripe_bytes])
                await writer.sync()
                rig.put(b"%d" % number, writer.runs)
        for number in range(0, 24, 4):
            rig.delete(b"%d" % number)
        for _ in range(4):
            await bench.seal()
            await bench.run()
        await bench.seal()
        # all but one little segment, which may always be joined with others in the one that is open
        assert await bench.run() <= 2


async def test_a_segment_that_was_passed_over_is_looked_at_when_it_changed(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig, gain_ratio_max=0.1)
        await dying(bench)
        assert await bench.run() == 0
        rig.delete(b"0")
        rig.delete(b"1")
        bench.compactor._options = CompactOptions()
        assert await bench.run() > 0


async def test_pinned_dead_segments_do_not_hide_others(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig, drops_per_step_max=1)
        for number in range(3):
            await bench.put(b"%d" % number)
            await bench.seal()
        rows = rig.catalog.reading.segments()
        for row in rows[:2]:
            bench.pool.pin(row.id)
        for number in range(3):
            rig.delete(b"%d" % number)
        await bench.run()
        assert [row.id for row in rig.catalog.reading.segments()] == [row.id for row in rows[:2]]


async def test_a_copy_of_a_shard_that_was_rebuilt_elsewhere_is_swept(tmp_path: Path) -> None:
    """While the other one is whole and its disk is here; a disk that returns is swept at once."""
    async with open_rig(tmp_path, disks_count=7) as rig:
        bench = Bench(rig)
        await bench.put(b"k")
        await bench.seal()
        (row,) = rig.catalog.reading.segments()
        old = row.disks[0]
        (spare,) = set(range(7)) - set(row.disks)
        data = await rig.sims[old].read(shard_path(row.id, 0), 0, 1 << 20)
        await rig.sims[spare].write_at(shard_path(row.id, 0), 0, [data], sync=True)
        await rig.submit(rq.PlaceShard(row.id, 0, spare))
        await rig.submit(rq.LoseShards(row.id, 1))
        assert await bench.compactor.sweep(lambda: 1 << 40, old) == 0, "the other copy is not whole"
        await rig.submit(rq.PlaceShard(row.id, 0, spare))
        assert await bench.compactor.sweep(lambda: 1 << 40, old) == 1
        assert await rig.sims[old].list("segments") == {}
        assert await bench.compactor.sweep(lambda: 1 << 40) == 0
        assert len(await bench.files()) == 6
