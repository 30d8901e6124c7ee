"""The caches of processes that read, as the store's process tells of them."""

from pathlib import Path

import pytest
import trio
import trio.testing
from replica_rig import Pair, pair
from small_store import body_of, put_all, read

from couchestord.cache import TierStats
from couchestord.errors import DataLost, InvalidArgument, NoSuchBucket, Unavailable
from couchestord.frontends.admin.commands import execute
from couchestord.replica import messages as ms
from couchestord.replica.beside import Reader, ReadersBeside
from couchestord.store.beside import ReaderStats, Warmed

KEYS = [b"a/%d" % number for number in range(5)]


async def filled(both: Pair) -> None:
    await put_all(both.store, {key: body_of(1000, key) for key in KEYS})


async def told(both: Pair) -> None:
    """Until the reader has said what it counted."""
    before = both.host.beside.stats()[0]
    await read(both.replica, KEYS[0])
    with trio.fail_after(10):
        while both.host.beside.stats()[0] == before:
            await trio.sleep(0.01)


async def test_caches_are_warmed_counted_and_emptied_where_they_are(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await filled(both)
        await told(both)
        await both.store.caches.evict()
        done = await execute(both.store, "cache warmup", {"bucket": "box", "prefix": "a/"})
        assert done == {"objects": 5, "bytes": 5000, "unreadable": 0, "next": None, "capacity_bytes": 1 << 20}
        [row] = await execute(both.store, "cache stats", {})
        assert row["entries"] == 5, "told before the warm-up was answered"
        [process] = row["processes"]
        assert (process["entries"], process["pid"] > 0) == (5, True)
        hits = row["hits"]
        for key in KEYS:
            assert await read(both.replica, key) == body_of(1000, key)
        with trio.fail_after(10):
            while both.store.caches.stats()[0]["hits"] != hits + 5:
                await trio.sleep(0.01)
        assert (await both.store.status())["caches"] == both.store.caches.stats()
        assert await execute(both.store, "cache evict", {"tier": "l1"}) == {"bytes": row["bytes"]}
        assert both.store.caches.stats()[0]["entries"] == 0


async def test_what_a_reader_refuses_is_refused(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await filled(both)
        await told(both)
        with pytest.raises(NoSuchBucket):
            await both.store.caches.warm("nowhere")


async def test_what_happened_in_a_reader_that_ended_stays_counted(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await filled(both)
        await told(both)
        [before] = both.store.caches.stats()
        assert before["misses"]
        both.link.channel.close()
        with trio.fail_after(10):
            while both.store.caches.stats() == [before]:
                await trio.sleep(0.01)
        [after] = both.store.caches.stats()
        names = ("hits", "misses", "entries", "bytes", "capacity_bytes")
        assert [after[name] for name in names] == [before["hits"], before["misses"], 0, 0, 0]
        with pytest.raises(Unavailable):
            await both.store.caches.warm("box")
        assert await both.store.caches.evict() == 0


async def test_degraded_reads_of_readers_are_counted(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await filled(both)
        [file] = both.store.core.journal.files()
        victim = tmp_path / f"disk-{file.replicas[0]}" / file.path
        victim.write_bytes(bytes(victim.stat().st_size))
        await read(both.replica, KEYS[0])
        with trio.fail_after(10):
            while (await both.store.status())["journal"]["degraded_reads"] != 1:
                await trio.sleep(0.01)


class FakeReader:
    """A reader of a host, that answers what it is told to."""

    def __init__(self, pid: int, answer: ms.Answer | ms.Refusal | None, capacity_bytes: int = 100) -> None:
        self.known = Reader(self._send)
        self.known.stats = ReaderStats(pid, [TierStats("l1", capacity_bytes, 10, 1, 2, 3, 4)], 5, 6)
        self._answer = answer

    def _send(self, _data: bytes) -> None:
        if self._answer is not None:
            self.known.asked.answered(self._answer)


def answer(value: object) -> ms.Answer:
    return ms.Answer(1, ms.raw(value))


async def test_all_are_asked_and_who_ends_meanwhile_is_not_waited_for() -> None:
    first, second = FakeReader(7, answer(10)), FakeReader(8, answer(20))
    ending, silent = FakeReader(9, None), FakeReader(10, answer(40))
    silent.known.stats = None  # it reads nothing
    beside = ReadersBeside(lambda: [each.known for each in (first, second, ending, silent)])
    async with trio.open_nursery() as nursery:

        async def evict() -> None:
            assert await beside.evict(None) == 30
            nursery.cancel_scope.cancel()

        nursery.start_soon(evict)
        await trio.testing.wait_all_tasks_blocked()
        beside.left(ending.known)


async def test_who_has_ended_is_not_asked_until_it_begins_anew() -> None:
    asked = FakeReader(7, answer(10)).known.asked
    asked.end()
    with trio.fail_after(60), pytest.raises(Unavailable):
        await asked.ask(lambda id_: ms.WhichOpen(id_, []), int)
    asked.begin()
    assert await asked.ask(lambda id_: ms.WhichOpen(id_, []), int) == 10


async def test_error_of_one_is_the_error_of_all() -> None:
    refused = FakeReader(8, ms.refuse(1, InvalidArgument("for the test")))
    beside = ReadersBeside(lambda: [FakeReader(7, answer(10)).known, refused.known])
    with pytest.raises(InvalidArgument, match="for the test"):
        await beside.evict("l1")
    beside = ReadersBeside(lambda: [FakeReader(7, ms.refuse(1, DataLost(""))).known])
    with pytest.raises(DataLost):
        await beside.warm("box", b"", b"")


async def test_a_warm_up_goes_on_where_the_slowest_came_to(tmp_path: Path) -> None:
    steps = [Warmed(9, 900, 0, None), Warmed(3, 300, 1, b"c"), Warmed(5, 500, 0, b"e")]
    async with pair(tmp_path) as both:
        readers = [FakeReader(pid, answer(step), 100 * pid) for pid, step in enumerate(steps, start=1)]
        both.store.caches.beside = ReadersBeside(lambda: [each.known for each in readers])
        assert await both.store.caches.warm("box") == steps[1]
        assert both.store.caches.warm_bytes_max() == 100, "each is to hold the same"


def test_sums_are_of_all_and_what_ended_holds_nothing() -> None:
    readers = [FakeReader(1, None), FakeReader(2, None)]
    beside = ReadersBeside(lambda: [each.known for each in readers])
    beside.left(readers[0].known)
    beside.left(readers[0].known)
    [now, ended] = beside.stats()
    assert (now.pid, now.tiers) == (2, [TierStats("l1", 100, 10, 1, 2, 3, 4)])
    assert (ended.pid, ended.tiers) == (0, [TierStats("l1", 0, 0, 0, 2, 3, 4)])
    assert (ended.degraded_reads_count, ended.degraded_records_count) == (5, 6)
