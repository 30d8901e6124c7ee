from pathlib import Path
from typing import Any

import trio
import trio.testing
from stripe_rig import STRIPE_BYTES, Rig, open_rig, pattern

from couchestord.ec.destage import DestageOptions, Destager
from couchestord.ec.shards import shard_path
from couchestord.errors import DataLost, DiskFailed, JournalFull
from couchestord.io import requests as rq
from couchestord.model import Policy
from couchestord.service import Progress

BODY = 10_000


class Bench:
    """A destager over a rig; `fill_percent` is how full the journal says it is."""

    def __init__(self, rig: Rig, **options: Any) -> None:
        self.fill_percent = 0.0
        self.rig = rig
        self.pool = rig.make_pool(segment_bytes=8 * STRIPE_BYTES)
        settings = {"batch_bytes": 4 * STRIPE_BYTES, **options}
        self.destager = Destager(
            rig.catalog.reading, self.pool, rig.submit, rig.read_journal, lambda: self.fill_percent,
            DestageOptions(**settings),
        )  # fmt: skip

    async def run(self) -> int:
        """Steps until idle; returns how many were busy."""
        count = 0
        while await self.destager.work() is Progress.BUSY:
            count += 1
            assert count < 100
        return count

    def in_journal(self) -> int:
        return len(self.rig.catalog.reading.extents_in_journal(0, 100_000))


def fill(rig: Rig, count: int, length: int = BODY) -> dict[int, bytes]:
    return {rig.put_small(b"%d" % n, pattern(length, n)): pattern(length, n) for n in range(count)}


async def check(rig: Rig, bodies: dict[int, bytes]) -> None:
    rig.journal.clear()
    for id_, body in bodies.items():
        assert await rig.extent_bytes(id_) == body


async def test_forced_everything_moves_and_many_share_a_stripe(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        bodies = fill(rig, 200)
        bench.destager.force()
        await bench.run()
        assert bench.in_journal() == 0
        assert bench.destager.moved_extents_count == 200
        await check(rig, bodies)
        places = {(row.segment, row.stripe) for row in map(rig.catalog.reading.extent, bodies) if row}
        assert len(places) == -(-200 // (STRIPE_BYTES // BODY))
        live = sum(row.live_bytes for row in rig.catalog.reading.segments())
        assert live == 200 * BODY


async def test_nothing_happens_without_a_reason(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        fill(rig, 100)
        bench.fill_percent = 79
        assert await bench.destager.work() is Progress.IDLE
        assert bench.in_journal() == 100


async def test_over_the_threshold_only_full_stripes_are_written(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        bodies = fill(rig, 100)
        bench.fill_percent = 80
        await bench.run()
        per_stripe = STRIPE_BYTES // BODY
        assert bench.in_journal() == 100 % per_stripe
        moved = {id_: body for id_, body in bodies.items() if rig.catalog.reading.extent(id_).segment}  # type: ignore[union-attr]
        assert sorted(moved) == sorted(bodies)[: len(moved)]  # oldest first
        await check(rig, moved)


async def test_a_journal_that_is_full_of_what_is_dead_is_not_kept_by_a_few(tmp_path: Path) -> None:
    """They fill no stripe, and nothing else would be moved before the interval is over."""
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        bodies = fill(rig, 3)
        bench.fill_percent = 80
        await bench.run()
        assert bench.in_journal() == 0
        await check(rig, bodies)


def test_after_the_interval_the_rest_goes_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_rig(tmp_path) as rig:
            bench = Bench(rig, interval_s=30)
            bodies = fill(rig, 3)
            assert await bench.run() == 0
            await trio.sleep(29)
            assert await bench.run() == 0
            await trio.sleep(1)
            await bench.run()
            assert bench.in_journal() == 0
            await check(rig, bodies)
            rig.put_small(b"later", b"x")
            assert await bench.run() == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_an_extent_that_cannot_be_read_holds_up_no_other(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig, batch_extents=10)
        bodies = fill(rig, 60)
        lost = sorted(bodies)[::7]
        for id_ in lost:
            row = rig.catalog.reading.extent(id_)
            assert row is not None
            del rig.journal[row.stripe]
            del bodies[id_]
        bench.destager.force()
        await bench.run()
        assert bench.in_journal() == len(lost)
        assert bench.destager.unreadable_extents_count == len(lost)
        await check(rig, bodies)
        bench.destager.force()
        assert await bench.run() <= 1  # tried once more, not for ever


async def test_what_was_deleted_meanwhile_is_garbage(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        bodies = fill(rig, 5)
        read = rig.read_journal

        async def read_and_delete(sequence: int, start: int, length: int) -> bytes:
            body = await read(sequence, start, length)
            if body == pattern(BODY, 2):
                rig.delete(b"2")
            return body

        bench.destager._read_journal = read_and_delete
        bench.destager.force()
        await bench.run()
        assert bench.destager.moved_extents_count == 4
        del bodies[sorted(bodies)[2]]
        await check(rig, bodies)
        assert sum(row.live_bytes for row in rig.catalog.reading.segments()) == 4 * BODY


async def test_many_tiny_extents_in_requests_of_256(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig, batch_extents=300)
        bodies = fill(rig, 700, 50)
        bench.destager.force()
        await bench.run()
        assert bench.in_journal() == 0
        sizes = [len(request.moves) for request in rig.requests if isinstance(request, rq.MoveExtents)]
        assert max(sizes) == 256
        await check(rig, bodies)


async def test_extents_longer_than_a_stripe(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        bodies = fill(rig, 3, 2 * STRIPE_BYTES + 5) | fill(rig, 2, 100)
        bench.destager.force()
        await bench.run()
        assert bench.in_journal() == 0
        await check(rig, {id_: body for id_, body in bodies.items() if rig.catalog.reading.extent(id_)})


async def test_a_disk_lost_in_between_keeps_a_long_extent_in_one_segment(tmp_path: Path) -> None:
    for count in range(1, 14):
        folder = tmp_path / str(count)
        folder.mkdir()
        async with open_rig(folder) as rig:
            bench = Bench(rig)
            bodies = fill(rig, 2, 3 * STRIPE_BYTES + 5)
            rig.sims[1].fail_at(count, DiskFailed("EIO"))
            bench.destager.force()
            await bench.run()
            bench.destager.force()
            await bench.run()
            assert bench.in_journal() == 0
            await check(rig, bodies)


async def test_headers_that_are_not_there_stop_the_move(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        bodies = fill(rig, 5)
        for sim in rig.sims[:3]:
            lose_syncs(sim)
        bench.destager.force()
        assert await bench.run() <= 1, "not again and again"
        assert bench.in_journal() == 5
        for id_ in bodies:
            row = rig.catalog.reading.extent(id_)
            assert row is not None
            assert await rig.read_journal(row.stripe, 0, BODY) == bodies[id_]


def lose_syncs(sim: Any) -> None:
    """A disk that answers, and holds nothing."""
    sync = sim.sync

    async def sync_and_lose(path: str) -> None:
        await sync(path)
        sim.rot(path, 4096, length=100)

    sim.sync = sync_and_lose


async def test_a_writer_that_refuses_puts_it_off(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        bodies = fill(rig, 5)
        rig.refuse = JournalFull("full")
        bench.destager.force()
        assert await bench.run() <= 1
        assert not bench.destager.stuck, "that says nothing of disks"
        rig.refuse = None
        bench.destager.force()
        await bench.run()
        assert bench.in_journal() == 0
        await check(rig, bodies)


async def test_what_there_are_no_disks_for_keeps_nothing_else_in_the_journal(tmp_path: Path) -> None:
    """However much of it comes first, and however many of it a record holds."""
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig, batch_extents=8, unreadable_max=10)
        rig.policies[1] = Policy(id=1, name="fast", disk_class="nvme")
        for number in range(50):
            rig.put_small(b"stuck %d" % number, b"x" * BODY, policy=1)
        bodies = fill(rig, 30)
        rig.put_small(b"stuck", b"x", policy=1)
        for _ in range(2):
            bench.destager.force()
            await bench.run()
            assert bench.in_journal() == 51
            assert list(bench.destager.stuck) == [1]
        rig.policies[1] = Policy(id=1, name="fast", stripe_bytes=STRIPE_BYTES)
        bench.destager.force()
        await bench.run()
        assert bench.in_journal() == 0
        assert not bench.destager.stuck
        await check(rig, bodies)


async def test_a_power_cut_after_the_move_loses_nothing(tmp_path: Path) -> None:
    for seed in range(10):
        folder = tmp_path / str(seed)
        folder.mkdir()
        async with open_rig(folder, seed=seed) as rig:
            bench = Bench(rig)
            bodies = fill(rig, 60)
            bench.destager.force()
            await bench.run()
            await rig.crash()
            rig.disks.fail(seed % 6, "pulled")
            rig.disks.fail((seed + 1) % 6, "pulled")
            await check(rig, bodies)


async def test_the_old_bytes_count_until_the_move(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        bench = Bench(rig)
        (id_,) = fill(rig, 1)
        bench.destager.force()
        await bench.run()
        row = rig.catalog.reading.extent(id_)
        assert row is not None
        for index, disk in enumerate(rig.segment(row.segment).disks[:3]):
            await rig.sims[disk].unlink(shard_path(row.segment, index))
        rig.forget_cache()
        try:
            await rig.extent_bytes(id_)
        except DataLost:
            return
        raise AssertionError("three shards are gone")
