"""The second cache of a store, used by those that read beside it: real sockets, real files.

Seen to fail with: chunks that are not handed over, or from who reads nothing; no bound of what is on its way; the end
of a reader that settles nothing; what is in the store's process evicted before what others hold.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio
from replica_rig import linked
from small_store import SMALL, body_of, flip, read

from couchestord.cache import CacheConfig
from couchestord.cache.l2 import L2
from couchestord.cache.l2map import L2Map
from couchestord.frontends.admin.commands import execute
from couchestord.io.sharedpage import SharedPage
from couchestord.metrics import Metrics
from couchestord.replica import messages as ms
from couchestord.replica.host import Host
from couchestord.replica.link import Link
from couchestord.replica.store import open_replica
from couchestord.store import Objects, ObjectStore

KEYS = [b"key-%d" % number for number in range(20)]
BODY_BYTES = 60_000
L1_BYTES = 256 << 10
"""Four of them."""
L2_BYTES = 8 << 20


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("couchestord.cache.l2beside.LOOK_S", 0.001)
    # as of disks that are much larger than the memory
    monkeypatch.setattr("couchestord.store.athand._read_resident", lambda *_: None)


@dataclass
class Beside:
    store: ObjectStore
    host: Host
    page: SharedPage
    cache: CacheConfig
    links: list[Link]
    readers: list[Objects]

    @property
    def l2(self) -> L2:
        found = self.store.core.l2
        assert found is not None
        return found

    async def read_all(self, *readers: int, times: int = 1) -> None:
        for _ in range(times):
            for number in readers:
                for key in KEYS:
                    assert await read(self.readers[number], key) == body_of(BODY_BYTES, key), key
                    await self.flush(number)

    async def flush(self, number: int) -> None:
        """What was handed over until now is written."""
        await self.links[number].ask(ms.FlushChunks, None)

    def hits(self, number: int) -> int:
        below = self.readers[number]._core.reader_parts.cache.stats()[1]
        assert below.name == "l2"
        return below.hits_count

    async def is_on(self, number: int) -> None:
        tier: Any = self.readers[number]._core.reader_parts.cache._tier
        with trio.fail_after(30):
            while tier._current() is None:
                await trio.sleep(0.001)

    async def told(self, what: str, count: int) -> dict[str, Any]:
        """The sums of the second tier, once readers have told that there are so many of those."""
        with trio.fail_after(30):
            while self.store.caches.stats()[1:] == [] or self.store.caches.stats()[1][what] < count:
                await trio.sleep(0.01)
        return self.store.caches.stats()[1]


@asynccontextmanager
async def beside(path: Path, shared: L2Map, readers_count: int = 2) -> AsyncIterator[Beside]:
    """The store in `path`, made and filled if it is not there, its second tier on, and readers of it."""
    cache = CacheConfig(L1_BYTES, 1, path / "l2", L2_BYTES, l2_shared_device=True, l2_map=shared)
    options = replace(SMALL, cache=replace(cache, l1_bytes=0))
    is_new = not (path / "data").exists()
    if is_new:
        await ObjectStore.create(path / "data", options)
    page, metrics = SharedPage(), Metrics()
    host = Host(page, metrics)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(ObjectStore.open(path / "data", options))
        links = [await stack.enter_async_context(linked(host, page, number)) for number in range(readers_count)]
        await stack.enter_async_context(host.serving(store))
        if is_new:
            await store.create_bucket("box")
            for key in KEYS:
                await store.put("box", key, body_of(BODY_BYTES, key))
        # as processes that end: the host does not wait for them
        stack.push_async_callback(_closed, links)
        rig = Beside(store, host, page, cache, links, [])
        for number, link in enumerate(links):
            opened = await link.open()
            rig.readers.append(await stack.enter_async_context(open_replica(link, opened, Metrics(), cache)))
            await rig.is_on(number)
        yield rig


async def _closed(links: list[Link]) -> None:
    for link in links:
        link.channel.close()


async def test_what_one_drops_another_finds(tmp_path: Path) -> None:
    async with beside(tmp_path, L2Map(L2_BYTES)) as rig:
        await rig.read_all(0, times=3)
        assert rig.l2.stats().entries_count > 10
        assert rig.hits(1) == 0
        await rig.read_all(1)
        assert rig.hits(1) > 10
        stats = await rig.told("hits", rig.hits(0) + rig.hits(1))
        assert stats["hits"] == rig.hits(0) + rig.hits(1)
        own = rig.l2.stats()
        assert (stats["capacity_bytes"], stats["entries"]) == (L2_BYTES, own.entries_count)
        assert (stats["bytes"], stats["damaged"], stats["off_because"]) == (own.size_bytes, 0, "")
        assert stats["misses"] >= len(KEYS), "of the readers"
        assert rig.store.caches.warm_bytes_max() == L1_BYTES + L2_BYTES
        [first, second] = await execute(rig.store, "cache stats", {})
        assert (first["tier"], second["tier"]) == ("l1", "l2")
        assert [each["entries"] for each in second["processes"]] == [0, 0]


async def test_what_is_in_memory_and_was_wanted_is_there_after_a_restart(tmp_path: Path) -> None:
    shared = L2Map(L2_BYTES)
    async with beside(tmp_path, shared) as rig:
        for number in (0, 1):
            key = KEYS[number]
            for _ in range(2):
                await read(rig.readers[number], key)
        await read(rig.readers[0], KEYS[2])  # once: nobody wants it
        assert rig.l2.stats().entries_count == 0
    async with beside(tmp_path, shared) as rig:
        assert rig.l2.stats().entries_count == 2
        await rig.read_all(0)
        assert rig.hits(0) == 2


async def test_evict_empties_it_for_all(tmp_path: Path) -> None:
    async with beside(tmp_path, L2Map(L2_BYTES)) as rig:
        await rig.read_all(0, 1, times=3)
        await rig.told("hits", 1)
        held = rig.l2.stats().size_bytes
        assert held
        assert await rig.store.caches.evict() >= held
        assert rig.l2.stats().entries_count == 0
        for number in (0, 1):
            await rig.is_on(number)
            before = rig.hits(number)
            await read(rig.readers[number], KEYS[number])
            assert rig.hits(number) == before
        await rig.read_all(0, times=3)
        await rig.store.caches.evict("l1")
        assert rig.l2.stats().entries_count
        before = rig.hits(1)
        await rig.read_all(1)
        assert rig.hits(1) > before


async def test_evict_forgets_what_is_on_its_way_too(tmp_path: Path) -> None:
    async with beside(tmp_path, L2Map(L2_BYTES), 1) as rig:
        await rig.told("misses", 0)
        evict = rig.store.caches.beside.evict

        async def meanwhile(tier: str | None) -> int:
            rig.links[0].tell(ms.KeepChunk(100, 0, b"dropped by memory"))
            return await evict(tier)

        rig.store.caches.beside.evict = meanwhile  # type: ignore[method-assign]
        await rig.store.caches.evict()
        await rig.flush(0)
        assert not rig.l2.holds(100, 0)


async def test_what_is_rotten_is_read_from_the_disks(tmp_path: Path) -> None:
    async with beside(tmp_path, L2Map(L2_BYTES)) as rig:
        await rig.read_all(0, times=3)
        for path in (tmp_path / "l2" / "segments").iterdir():
            for at in range(5000, path.stat().st_size, 20_000):
                flip(path, at, 1)
        await rig.read_all(0, 1)
        assert rig.l2.stats().damaged_count > 10
        stats = await rig.told("hits", rig.hits(0))
        assert stats["damaged"] == rig.l2.stats().damaged_count


async def test_what_is_on_its_way_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("couchestord.replica.l2._UNSENT_BYTES_MAX", 2 * BODY_BYTES + 1000)
    async with beside(tmp_path, L2Map(L2_BYTES), 1) as rig:
        tier: Any = rig.readers[0]._core.reader_parts.cache._tier
        for extent in range(100, 110):
            tier.put(extent, 0, bytes(BODY_BYTES))  # nothing is sent in between
        await tier.flush()
        assert [extent for extent in range(100, 110) if rig.l2.holds(extent, 0)] == [100, 101]
        assert tier.stats().dropped_count == 8


async def test_nothing_is_taken_from_who_reads_nothing(tmp_path: Path) -> None:
    async with beside(tmp_path, L2Map(L2_BYTES)) as rig, linked(rig.host, rig.page, 5) as link:
        keep = ms.KeepChunk(100, 0, b"of another opening")
        link.tell(keep)
        link.tell(ms.ChunkDamage(100, 0, 2))
        await link.ask(ms.FlushChunks, None)
        assert not rig.l2.holds(100, 0)
        await link.open()
        link.tell(keep)
        await link.ask(ms.FlushChunks, None)
        assert rig.l2.holds(100, 0)
        link.channel.close()


async def test_a_store_without_it_takes_no_notice(tmp_path: Path) -> None:
    shared = L2Map(L2_BYTES)
    async with beside(tmp_path, shared) as rig:
        await rig.read_all(0, times=3)
        rig.store.core.l2 = None
        rig.links[0].tell(ms.KeepChunk(100, 0, b"a chunk"))
        await rig.read_all(0, 1, times=3)


async def test_a_flush_that_is_not_answered_can_be_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with beside(tmp_path, L2Map(L2_BYTES), 1) as rig:
        tier: Any = rig.readers[0]._core.reader_parts.cache._tier
        hold, flush = trio.Event(), rig.l2.flush

        async def slow() -> None:
            with trio.move_on_after(10):
                await hold.wait()
            await flush()

        monkeypatch.setattr(rig.l2, "flush", slow)
        with trio.move_on_after(0.01) as waiting:
            await tier.flush()
        assert waiting.cancelled_caught
        hold.set()
        await rig.flush(0)
        await rig.read_all(0)
        rig.links[0].channel.close()
        await tier.flush()
        tier.put(100, 0, b"a chunk")
        assert tier.stats().dropped_count == 1
