"""The caches behind one face.

Seen to fail with: a leader's cancellation told to those that wait as a failure; its failure told to them as theirs;
nobody's load published; chunks kept as views of a larger buffer; a range next to damage refused; the whole of a lost
range loaded twice; what is read ahead not held, held for ever, or more of it than is bounded; what was wanted not
demoted; a scan demoted; what came back not noticed; a miss counted twice.
"""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from cache_rig import CountingSource, DictTier, extent_bytes

from couchestord.cache import CACHES_OFF, CHUNK_BYTES, CacheConfig, CacheManager
from couchestord.cache.l2map import L2Map
from couchestord.cache.manager import AHEAD_BYTES_MAX, AHEADS_MAX, DROPPED_NOTED_MAX, NEXTS_NOTED_MAX
from couchestord.cache.sieve import ENTRY_BYTES
from couchestord.errors import DataLost, InternalError

SIZE = 5 * CHUNK_BYTES + 1000
CHUNK_ROOM = CHUNK_BYTES + ENTRY_BYTES


def manager_of(chunks_count: int, tier: DictTier | None = None, nursery: trio.Nursery | None = None) -> CacheManager:
    return CacheManager(CacheConfig(l1_bytes=chunks_count * CHUNK_ROOM), nursery, tier)


async def read(manager: CacheManager, extent: int, source: CountingSource, first: int, length: int) -> bytes:
    return b"".join(await manager.read(extent, len(source.data), first, length, source))


@asynccontextmanager
async def reading_ahead(chunks_count: int) -> AsyncIterator[CacheManager]:
    async with trio.open_nursery() as nursery:
        yield manager_of(chunks_count, nursery=nursery)
        nursery.cancel_scope.cancel()


async def until_idle() -> None:
    for _ in range(20):
        await trio.lowlevel.checkpoint()


async def test_every_range_is_what_the_source_has() -> None:
    source, rng = CountingSource(1, SIZE), random.Random(1)
    edges = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, SIZE - 1, SIZE]
    for chunks_count in (2, 100):
        manager = manager_of(chunks_count)
        for first in edges:
            for end in edges:
                if first <= end:
                    assert await read(manager, 1, source, first, end - first) == source.data[first:end]
        for _ in range(200):
            first = rng.randrange(SIZE)
            length = rng.randrange(SIZE - first + 1)
            assert await read(manager, 1, source, first, length) == source.data[first : first + length]
            found = manager.peek_range(1, first, length)
            assert found is None or bytes(found) == source.data[first : first + length]


async def test_whole_chunks_are_loaded_once_each_run_in_one_go() -> None:
    source, manager = CountingSource(1, SIZE), manager_of(100)
    await read(manager, 1, source, CHUNK_BYTES + 5, 10)
    assert source.loads == [(CHUNK_BYTES, CHUNK_BYTES)]
    await read(manager, 1, source, 0, SIZE)
    assert source.loads[1:] == [(0, CHUNK_BYTES), (2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 1000)]
    await read(manager, 1, source, 0, SIZE)
    assert len(source.loads) == 3
    [stats] = manager.stats()
    assert (stats.hits_count, stats.misses_count, stats.entries_count) == (1 + 6, 6, 6)
    assert stats.size_bytes == SIZE + 6 * ENTRY_BYTES


async def test_what_is_kept_is_its_own_copy() -> None:
    """And not a view that keeps a larger buffer, or one that is used again."""
    buffer = bytearray(extent_bytes(1, 1000))

    class Reused(CountingSource):
        async def load(self, first: int, length: int) -> memoryview:  # type: ignore[override]
            return memoryview(buffer)[first : first + length]

    manager = manager_of(10)
    await manager.read(1, 1000, 0, 1000, Reused(1, 1000))
    buffer[:] = bytes(1000)
    kept = manager.peek(1, 0)
    assert type(kept) is bytes
    assert kept == extent_bytes(1, 1000)


async def test_peek_and_offer() -> None:
    manager = manager_of(10)
    assert manager.peek(1, 0) is None
    assert manager.peek_range(1, 10, 5) is None
    assert manager.stats()[0].misses_count == 0
    manager.offer(1, 0, bytes(range(100)))
    assert manager.peek(1, 0) == bytes(range(100))
    assert bytes(manager.peek_range(1, 10, 5) or b"") == bytes(range(10, 15))
    assert manager.peek_range(1, 5, 0) == b""
    assert (manager.stats()[0].hits_count, manager.stats()[0].misses_count) == (2, 1)


async def test_a_range_that_is_there_in_part_is_counted_once() -> None:
    source, manager = CountingSource(1, SIZE), manager_of(100)
    await read(manager, 1, source, 0, CHUNK_BYTES)
    assert manager.peek_range(1, 0, 2 * CHUNK_BYTES) is None
    await read(manager, 1, source, 0, 2 * CHUNK_BYTES)
    assert (manager.stats()[0].hits_count, manager.stats()[0].misses_count) == (1, 2)


async def test_parts_of_a_chunk_are_worth_it_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("couchestord.cache.manager.PARTS_NOTED_MAX", 3)
    manager = manager_of(10)
    assert [manager.part_missed(1, chunk) for chunk in (0, 1, 2, 0, 0)] == [False, False, False, True, False]
    assert [manager.part_missed(2, chunk) for chunk in range(10)] == [False] * 10
    assert not manager.part_missed(1, 0)
    assert len(manager._parts_asked) == 3
    assert manager.stats()[0].misses_count == 15


async def test_one_load_serves_all_who_wait() -> None:
    source, manager, found = CountingSource(1, SIZE), manager_of(100), []
    source.gate = trio.Event()

    async def reader(first: int) -> None:
        found.append(await read(manager, 1, source, first, 100) == source.data[first : first + 100])

    async with trio.open_nursery() as nursery:
        for first in range(50):
            nursery.start_soon(reader, first)
        await source.begun.wait()
        await until_idle()
        source.gate.set()
    assert found == [True] * 50
    assert source.loads == [(0, CHUNK_BYTES)]


async def test_one_load_serves_those_who_wait_though_nothing_is_kept() -> None:
    """Memory has room for one chunk: what is handed over is what was loaded, not what is left of it."""
    source, manager, found = CountingSource(1, 4 * CHUNK_BYTES), manager_of(1), []
    source.gate = trio.Event()

    async def reader() -> None:
        found.append(await read(manager, 1, source, 0, 4 * CHUNK_BYTES) == source.data)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(reader)
        await source.begun.wait()
        await until_idle()
        source.gate.set()
    assert (found, len(source.loads)) == ([True] * 3, 1)


async def test_who_is_cancelled_takes_nobody_along() -> None:
    source, manager, found = CountingSource(1, 100), manager_of(10), []
    source.gate = trio.Event()

    async def reader() -> None:
        found.append(await read(manager, 1, source, 0, 100))

    async with trio.open_nursery() as nursery:
        leader = trio.CancelScope()

        async def lead() -> None:
            with leader:
                await reader()

        nursery.start_soon(lead)
        await source.begun.wait()
        for _ in range(5):
            nursery.start_soon(reader)
        await until_idle()
        leader.cancel()
        await until_idle()
        assert (found, len(source.loads)) == ([], 2)
        source.gate.set()
    assert found == [source.data] * 5
    assert len(source.loads) == 2
    assert manager._flights == {}


async def test_a_follower_that_is_cancelled_leaves_the_others() -> None:
    source, manager, found = CountingSource(1, 100), manager_of(10), []
    source.gate = trio.Event()

    async def reader(scope: trio.CancelScope) -> None:
        with scope:
            found.append(await read(manager, 1, source, 0, 100))

    async with trio.open_nursery() as nursery:
        scopes = [trio.CancelScope() for _ in range(3)]
        for scope in scopes:
            nursery.start_soon(reader, scope)
        await until_idle()
        scopes[1].cancel()
        scopes[2].cancel()
        await until_idle()
        source.gate.set()
    assert [len(found), len(source.loads)] in ([1, 1], [1, 2])


async def test_who_waited_for_a_load_that_failed_loads_for_itself() -> None:
    """It may know another place: its bytes were moved since the one who failed looked."""
    old, new, manager = CountingSource(1, 100), CountingSource(1, 100), manager_of(10)
    old.gate, old.lost = trio.Event(), range(100)
    results: list[object] = []

    async def reader(source: CountingSource) -> None:
        try:
            results.append(await read(manager, 1, source, 0, 100))
        except DataLost:
            results.append("lost")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader, old)
        await old.begun.wait()
        for _ in range(3):
            nursery.start_soon(reader, new)
        await until_idle()
        old.gate.set()
    assert sorted(map(str, results)) == sorted(["lost", *[str(new.data)] * 3])
    assert len(old.loads) == 1  # the range was all there is: nothing smaller to try


async def test_two_readers_of_crossing_ranges_do_not_wait_for_each_other() -> None:
    manager, source = manager_of(100), CountingSource(1, SIZE)
    results = []

    async def reader(first: int, length: int) -> None:
        results.append(await read(manager, 1, source, first, length) == source.data[first : first + length])

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for first in range(4):
                for end in range(first + 1, 6):
                    nursery.start_soon(reader, first * CHUNK_BYTES, (end - first) * CHUNK_BYTES)
    assert results == [True] * len(results)
    assert sum(length for _, length in source.loads) == 5 * CHUNK_BYTES


async def test_damage_beside_a_range_keeps_nobody_from_it() -> None:
    source, manager = CountingSource(1, SIZE), manager_of(100)
    source.lost = range(CHUNK_BYTES + 100, CHUNK_BYTES + 101)
    assert await read(manager, 1, source, CHUNK_BYTES, 100) == source.data[CHUNK_BYTES : CHUNK_BYTES + 100]
    assert manager.peek(1, 1) is None
    with pytest.raises(DataLost):
        await read(manager, 1, source, CHUNK_BYTES + 50, 100)
    before = len(source.loads)
    with pytest.raises(DataLost):
        await read(manager, 1, source, CHUNK_BYTES, CHUNK_BYTES)
    assert len(source.loads) == before + 1
    assert manager._flights == {}


async def test_a_source_that_brings_too_little_is_an_error_and_nothing_is_kept() -> None:
    source, manager = CountingSource(1, 100), manager_of(10)
    source.data = source.data[:99]
    with pytest.raises(InternalError):
        await manager.read(1, 100, 0, 100, source)
    assert manager.peek(1, 0) is None


@pytest.mark.parametrize("chunks_count", [16, 1000])
async def test_what_is_missed_one_after_the_other_is_read_ahead_of(chunks_count: int) -> None:
    """Bounded by a mebibyte, and by a sixteenth of what there is."""
    async with reading_ahead(chunks_count) as manager:
        source = CountingSource(1, 64 * CHUNK_BYTES)
        for first in (0, 100):
            await read(manager, 1, source, first, 100)
            await until_idle()
        assert source.loads == [(0, CHUNK_BYTES)]
        await read(manager, 1, source, CHUNK_BYTES - 100, 200)
        await until_idle()
        ahead = min(AHEAD_BYTES_MAX, chunks_count * CHUNK_ROOM // 16)
        assert source.loads[1:] == [
            (CHUNK_BYTES, CHUNK_BYTES),
            (2 * CHUNK_BYTES, -(-ahead // CHUNK_BYTES) * CHUNK_BYTES),
        ]
        assert (source.held_count, source.held_max) == (0, 1)


@pytest.mark.parametrize("step", [10_000, CHUNK_BYTES // 2, CHUNK_BYTES, 3 * CHUNK_BYTES - 100])
@pytest.mark.parametrize("peeks", [False, True])
async def test_sequential_reads_are_read_ahead_of_however_small(step: int, peeks: bool) -> None:
    """By who looks what memory has before it asks, too: it asks only for what is missed."""
    async with reading_ahead(1000) as manager:
        source = CountingSource(1, 64 * CHUNK_BYTES)
        for at in range(0, len(source.data), step):
            length = min(step, len(source.data) - at)
            found = manager.peek_range(1, at, length) if peeks else None
            if found is None:
                found = await read(manager, 1, source, at, length)
            assert bytes(found) == source.data[at : at + length]
            await until_idle()
        assert sum(length for _, length in source.loads) == len(source.data)
        # two for each mebibyte, when its first chunk is waited for, and some until it is known for what it is
        assert len(source.loads) <= 2 * len(source.data) // AHEAD_BYTES_MAX + 3
        assert source.held_count == 0


async def test_other_reads_are_not_read_ahead_of() -> None:
    async with reading_ahead(1000) as manager:
        source, rng = CountingSource(1, 256 * CHUNK_BYTES), random.Random(3)
        for chunk in rng.sample(range(0, 256, 2), 30):
            await read(manager, 1, source, chunk * CHUNK_BYTES, 4096)
            await until_idle()
        assert len(source.loads) == 30
        assert source.held_max == 0


async def test_reading_ahead_is_bounded_and_its_failure_is_nobodys() -> None:
    async with reading_ahead(1000) as manager:
        sources = [CountingSource(extent, 64 * CHUNK_BYTES) for extent in range(AHEADS_MAX + 3)]
        for extent, source in enumerate(sources):
            await read(manager, extent, source, CHUNK_BYTES, CHUNK_BYTES)
            await read(manager, extent, source, 0, CHUNK_BYTES)
            source.lost = range(2 * CHUNK_BYTES, 3 * CHUNK_BYTES)
            source.gate = trio.Event()
            await read(manager, extent, source, CHUNK_BYTES, 1)
        await until_idle()
        assert [source.held_count for source in sources] == [1] * AHEADS_MAX + [0] * 3
        for source in sources:
            assert source.gate is not None
            source.gate.set()
        await until_idle()
        assert [source.held_count for source in sources] == [0] * len(sources)
        assert manager._aheads_count == 0
        with pytest.raises(DataLost):
            await read(manager, 0, sources[0], 2 * CHUNK_BYTES, 10)


async def test_an_error_nobody_thought_of_stops_reading_ahead_only(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(CountingSource):
        async def load(self, first: int, length: int) -> bytes:
            if first >= 2 * CHUNK_BYTES:
                raise ZeroDivisionError
            return await super().load(first, length)

    async with reading_ahead(1000) as manager:
        source = Broken(1, 64 * CHUNK_BYTES)
        await read(manager, 1, source, 0, CHUNK_BYTES)
        await read(manager, 1, source, CHUNK_BYTES, CHUNK_BYTES)
        await until_idle()
        assert (source.held_count, source.held_max) == (0, 1)
    assert "reading ahead failed" in caplog.text


async def test_what_is_read_ahead_is_let_go_when_the_store_stops() -> None:
    source = CountingSource(1, 64 * CHUNK_BYTES)
    async with reading_ahead(1000) as manager:
        await read(manager, 1, source, 0, CHUNK_BYTES)
        await read(manager, 1, source, CHUNK_BYTES, CHUNK_BYTES)
        source.gate = trio.Event()
        await until_idle()
        assert source.held_count == 1
    assert source.held_count == 0
    assert manager._flights == {}


async def test_what_was_wanted_goes_below_and_comes_back() -> None:
    tier = DictTier()
    manager = manager_of(4, tier)
    sources = [CountingSource(extent, CHUNK_BYTES) for extent in range(20)]
    for extent in (0, 0, 1, 1, *range(2, 12)):  # two that are asked for again, then a scan
        await read(manager, extent, sources[extent], 0, 10)
    assert tier.chunks == {}
    for extent in range(12, 20):  # other work
        await read(manager, extent, sources[extent], 0, 10)
        await read(manager, extent, sources[extent], 0, 10)
    assert {(0, 0), (1, 0)} < set(tier.chunks) <= {(0, 0), (1, 0), *((extent, 0) for extent in range(12, 20))}
    assert tier.chunks[0, 0] == sources[0].data
    for cold, extent in ((False, 0), (True, 1)):
        tier.cold = cold
        assert await read(manager, extent, sources[extent], 5, 10) == sources[extent].data[5:15]
        assert len(sources[extent].loads) == 1
        assert manager.peek(extent, 0) == sources[extent].data
    first, second = manager.stats()
    assert (first.promotions_count, second.hits_count, second.misses_count) == (2, 2, 20)
    assert first.misses_count == second.hits_count + second.misses_count


async def test_peek_finds_what_the_tier_below_has_at_hand() -> None:
    tier = DictTier()
    manager = manager_of(4, tier)
    tier.chunks[7, 0] = b"below"
    assert manager.peek(7, 0) == b"below"
    tier.chunks.clear()
    assert [manager.peek(7, 0) for _ in range(2)] == [b"below"] * 2
    tier.chunks[8, 0] = b"below"
    tier.cold = True
    assert manager.peek(8, 0) is None
    manager.offer(8, 0, b"found elsewhere")
    first, second = manager.stats()
    assert (first.hits_count, first.misses_count) == (2, 2)
    assert (second.hits_count, second.misses_count) == (1, 1)


async def test_what_comes_back_after_it_was_dropped_is_wanted() -> None:
    """Chunks that each come once a round, more of them than memory holds: the second time they are put below."""
    tier = DictTier()
    manager = manager_of(4, tier)
    sources = [CountingSource(extent, CHUNK_BYTES) for extent in range(10)]
    for extent, source in enumerate(sources):
        await read(manager, extent, source, 0, 10)
    assert tier.chunks == {}
    for _ in range(2):
        for extent, source in enumerate(sources):
            await read(manager, extent, source, 0, 10)
    assert len(tier.chunks) == 10
    loads = sum(len(source.loads) for source in sources)
    for extent, source in enumerate(sources):
        await read(manager, extent, source, 0, 10)
    assert sum(len(source.loads) for source in sources) == loads


async def test_a_tier_that_loses_what_it_holds_is_a_miss() -> None:
    tier = DictTier()
    manager, source = manager_of(4, tier), CountingSource(1, 100)
    tier.chunks[1, 0] = b"damaged"
    tier.cold, tier.on_get = True, tier.chunks.clear
    assert await read(manager, 1, source, 0, 100) == source.data


async def test_notes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("couchestord.cache.manager.DROPPED_NOTED_MAX", 50)
    monkeypatch.setattr("couchestord.cache.manager.NEXTS_NOTED_MAX", 20)
    manager = manager_of(2, DictTier())
    for extent in range(200):
        await manager.read(extent, 2 * CHUNK_BYTES, 0, 10, CountingSource(extent, 2 * CHUNK_BYTES))
    assert (len(manager._dropped), len(manager._nexts)) == (50, 20)
    assert (DROPPED_NOTED_MAX, NEXTS_NOTED_MAX) > (50, 20)


async def test_evict() -> None:
    tier = DictTier()
    manager = manager_of(4, tier)
    manager.offer(1, 0, b"above")
    tier.put(2, 0, b"below")
    assert await manager.evict("l1") == 5 + ENTRY_BYTES
    assert (manager.peek(1, 0), manager.peek(2, 0)) == (None, b"below")
    assert await manager.evict() == 5 + 5 + ENTRY_BYTES
    assert manager.peek(2, 0) is None
    assert [stats.entries_count for stats in manager.stats()] == [0, 0]


async def test_off() -> None:
    manager = CacheManager(CACHES_OFF)
    manager.offer(1, 0, b"bytes")
    assert (manager.is_on, manager.peek(1, 0), manager.stats()) == (False, None, [])


async def test_random_reads_and_faults_give_right_bytes_and_never_more_than_the_cap() -> None:
    rng, tier = random.Random(11), DictTier()
    async with trio.open_nursery() as nursery:
        manager = CacheManager(CacheConfig(l1_bytes=10 * CHUNK_ROOM), nursery, tier)
        sources = [CountingSource(extent, rng.choice((10, 5000, CHUNK_BYTES, SIZE))) for extent in range(12)]

        async def reader() -> None:
            extent = rng.randrange(len(sources))
            source = sources[extent]
            size = len(source.data)
            first = rng.randrange(size)
            length = rng.randint(1, size - first)
            with trio.CancelScope() as scope:
                if rng.random() < 0.2:
                    nursery.start_soon(until_cancelled, scope, rng.randrange(4))
                source.lost = range(rng.randrange(size), size) if rng.random() < 0.1 else range(0)
                try:
                    found = await read(manager, extent, source, first, length)
                except DataLost:
                    return
                assert found == source.data[first : first + length]
            assert manager.stats()[0].size_bytes <= 10 * CHUNK_ROOM

        async def until_cancelled(scope: trio.CancelScope, turns: int) -> None:
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            scope.cancel()

        for _ in range(100):
            tier.cold = rng.random() < 0.5
            async with trio.open_nursery() as burst:
                for _ in range(rng.randint(1, 12)):
                    burst.start_soon(reader)
        await until_idle()
        assert manager._flights == {}
        assert [source.held_count for source in sources] == [0] * len(sources)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "wrong",
    [
        {"l1_bytes": -1},
        {"l2_bytes": -1},
        {"l1_shards": 0},
        {"l1_bytes": 1 << 20, "l1_shards": 2},
        {"l2_bytes": 1 << 30},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        CacheConfig(**wrong)  # type: ignore[arg-type]


async def test_the_process_that_has_a_shared_tier_needs_no_memory_in_front_of_it(tmp_path: Path) -> None:
    tier = DictTier()
    tier.put(1, 0, b"a chunk")
    config = CacheConfig(0, l2_path=tmp_path, l2_bytes=1 << 30, l2_map=L2Map(1 << 30))
    manager = CacheManager(config, tier=tier)
    assert not manager.is_on
    assert [each.name for each in manager.stats()] == ["l2"]
    await manager.settle()
    assert await manager.evict("l1") == 0
    assert await manager.evict("l2") == 7


async def test_what_was_asked_for_again_is_handed_down_at_the_end() -> None:
    tier = DictTier()
    manager = CacheManager(CacheConfig(l1_bytes=4 << 20), tier=tier)
    await CacheManager(CacheConfig(l1_bytes=4 << 20)).settle()
    for extent in range(40):
        manager.offer(extent, 0, bytes([extent]) * 50_000)
    for extent in range(0, 40, 2):
        manager.peek(extent, 0)
    await manager.settle()
    assert [extent for extent in range(40) if tier.holds(extent, 0)] == list(range(0, 40, 2))
    assert manager.peek(1, 0) == b"\1" * 50_000
