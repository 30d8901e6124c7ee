"""Reads of a store through its caches, and what operators can do to them.

Seen to fail with: a chunk kept under another extent's id; a warm-up that goes on past its step, or begins again; an
eviction that leaves the second read to memory; long runs kept; a load for each who waits; nothing read ahead.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from small_store import (
    SEGMENT_BYTES,
    SMALL,
    body_of,
    core_of,
    flip,
    journal_files,
    make_store,
    new_store,
    put_all,
    read,
    segments,
    shard_files,
)

from couchestord.cache import CACHES_OFF, CHUNK_BYTES, CacheConfig, CacheManager
from couchestord.errors import InvalidArgument, NoSuchBucket
from couchestord.model import ByteRange
from couchestord.store import athand, caching
from couchestord.store.door import ObjectStore
from couchestord.store.reader import CACHED_RUN_BYTES_MAX, ExtentSource

IN_MEMORY = CacheConfig()
stored = partial(new_store, cache=IN_MEMORY)


def l1(store: ObjectStore) -> dict[str, int]:
    [found] = store.caches.stats()
    return found


async def test_the_second_read_is_from_memory(tmp_path: Path) -> None:
    """Though every byte of it has rotted; and the first read after the caches were forgotten is not."""
    async with stored(tmp_path) as store:
        body = body_of(4096)
        await store.put("box", b"key", body)
        assert await read(store, b"key") == body
        for path in journal_files(tmp_path):
            at = path.read_bytes().find(body)
            if at >= 0:
                flip(path, at, 4096)
        assert await read(store, b"key") == body
        assert await read(store, b"key", byte_range=ByteRange(10, 99)) == body[10:100]
        assert (l1(store)["hits"], l1(store)["misses"], l1(store)["entries"]) == (2, 1, 1)
        assert await store.caches.evict() == l1(store)["bytes"] + 4096 + 288
        with pytest.raises(Exception, match="no good replica"):
            await read(store, b"key")


async def test_an_overwrite_a_delete_and_a_move_leave_nothing_stale(tmp_path: Path) -> None:
    async with stored(tmp_path) as store:
        await store.put("box", b"key", b"one")
        assert await read(store, b"key") == b"one"
        await store.destage()
        assert await read(store, b"key") == b"one"
        assert l1(store)["hits"] == 1
        await store.put("box", b"key", b"two")
        assert await read(store, b"key") == b"two"
        await store.copy("box", b"copy", "box", b"key")
        assert await read(store, b"copy") == b"two"
        assert l1(store)["hits"] == 2
        await store.delete("box", b"key")
        await store.put("box", b"key", b"three")
        assert await read(store, b"key") == b"three"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What is loaded into the caches, as long as nothing is in the page cache."""
    found = []
    load = ExtentSource.load

    async def noted(self: ExtentSource, first: int, length: int) -> bytes | memoryview:
        found.append((first, length))
        await trio.lowlevel.checkpoint()
        return await load(self, first, length)

    monkeypatch.setattr(ExtentSource, "load", noted)
    monkeypatch.setattr(athand, "_read_resident", lambda *_: None)
    return found


async def test_many_readers_load_once(tmp_path: Path, loads: list[tuple[int, int]]) -> None:
    async with stored(tmp_path) as store:
        size = 5 * CHUNK_BYTES
        body = body_of(size)
        await store.put("box", b"key", body)
        found = []

        async def reader(first: int) -> None:
            found.append(await read(store, b"key", byte_range=ByteRange(first)) == body[first:])

        async with trio.open_nursery() as nursery:
            for first in range(0, size, size // 20):
                nursery.start_soon(reader, first)
        assert found == [True] * len(found)
        assert sum(length for _, length in loads) == size
        assert l1(store)["entries"] == 5


async def test_long_runs_are_read_past_the_caches(tmp_path: Path) -> None:
    async with stored(tmp_path, segment_bytes=16 * SEGMENT_BYTES) as store:
        body = body_of(3 * CACHED_RUN_BYTES_MAX)
        await store.put("box", b"key", body)
        assert await read(store, b"key") == body
        assert l1(store)["entries"] == 0
        first = CACHED_RUN_BYTES_MAX + 7
        end = first + CACHED_RUN_BYTES_MAX
        assert await read(store, b"key", byte_range=ByteRange(first, end - 1)) == body[first:end]
        assert l1(store)["entries"] == 17


async def test_a_small_part_of_a_chunk_in_the_page_cache_is_kept_when_it_is_asked_for_again(tmp_path: Path) -> None:
    """To read sixteen times as much for a range that never comes again would cost more than it gains."""
    async with stored(tmp_path, stripe_bytes=16 * CHUNK_BYTES, segment_bytes=16 * SEGMENT_BYTES) as store:
        body = body_of(8 * CHUNK_BYTES)
        await store.put("box", b"key", body)
        for at in (0, 2 * CHUNK_BYTES + 5, 7 * CHUNK_BYTES - 9):
            assert await read(store, b"key", byte_range=ByteRange(at, at + 99)) == body[at : at + 100]
        assert (l1(store)["entries"], l1(store)["misses"]) == (0, 3)
        for _ in range(2):
            assert await read(store, b"key", byte_range=ByteRange(50, 149)) == body[50:150]
        assert (l1(store)["entries"], l1(store)["misses"], l1(store)["hits"]) == (1, 4, 1)


async def test_rot_beside_a_range_does_not_keep_it_from_being_read(tmp_path: Path) -> None:
    """Whole chunks are loaded, but what is asked for may be less, and be there."""
    body = body_of(CHUNK_BYTES)
    async with stored(tmp_path, stripe_bytes=4 * CHUNK_BYTES) as store:
        await store.put("box", b"key", body_of(6 * CHUNK_BYTES, 1) + body)
    for path in shard_files(tmp_path):
        if path.suffix in (".0", ".4", ".5"):
            flip(path, 8192 + 60_000)
    async with ObjectStore.open(tmp_path, replace(SMALL, cache=IN_MEMORY)) as store:
        whole = body_of(6 * CHUNK_BYTES, 1) + body
        assert await read(store, b"key", byte_range=ByteRange(100, 199)) == whole[100:200]
        assert l1(store)["entries"] == 0


async def test_off(tmp_path: Path) -> None:
    async with new_store(tmp_path, cache=CACHES_OFF) as store:
        await store.put("box", b"key", b"body")
        assert [await read(store, b"key") for _ in range(2)] == [b"body"] * 2
        assert store.caches.stats() == []
        assert (await store.status())["caches"] == []
        assert await store.caches.evict() == 0
        with pytest.raises(InvalidArgument, match="off"):
            await store.caches.warm("box")


@pytest.mark.parametrize("destaged", [False, True])
async def test_a_small_cache_gives_the_bytes_that_none_gives(tmp_path: Path, destaged: bool) -> None:
    small = CacheConfig(l1_bytes=3 * CHUNK_BYTES)
    bodies = {b"key-%d" % number: body_of(size) for number, size in enumerate((0, 1, 4096, 70_000, 130_000, 400_000))}
    await make_store(tmp_path)
    async with ObjectStore.open(tmp_path, replace(SMALL, cache=IN_MEMORY)) as store:
        await put_all(store, bodies)
        if destaged:
            await store.destage()
    for cache in (small, CACHES_OFF):
        async with ObjectStore.open(tmp_path, replace(SMALL, cache=cache)) as store:
            for _ in range(2):
                for key, body in bodies.items():
                    assert await read(store, key) == body
                    if body:
                        middle = ByteRange(len(body) // 3, len(body) // 3 + 70_000)
                        assert await read(store, key, byte_range=middle) == body[len(body) // 3 :][:70_001]


async def test_warm_up_goes_on_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "LIST_KEYS_MAX", 4)
    async with stored(tmp_path) as store:
        bodies = {b"a/%02d" % number: body_of(1000, number) for number in range(10)}
        await put_all(store, bodies | {b"b": body_of(1000, "b")})
        start = b""
        for steps in range(1, 5):  # noqa: B007
            done = await store.caches.warm("box", b"a/", start)
            assert done.size_bytes == 1000 * done.objects_count
            if done.next_start is None:
                break
            start = done.next_start
        assert (steps, l1(store)["entries"], l1(store)["misses"]) == (3, 10, 10)
        for key, body in bodies.items():
            assert await read(store, key) == body
        assert (l1(store)["hits"], l1(store)["misses"]) == (10, 10)


async def test_a_step_of_a_warm_up_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stored(tmp_path) as store:
        await put_all(store, {b"key-%d" % number: body_of(200_000, number) for number in range(4)})
        monkeypatch.setattr(caching, "WARM_BYTES_MAX", 300_000)
        done = await store.caches.warm("box")
        assert (done.size_bytes, done.objects_count, done.next_start) == (300_000, 2, b"key-1")
        monkeypatch.setattr(caching, "WARM_S_MAX", -1.0)
        done = await store.caches.warm("box", start_after=b"key-1")
        assert (done.objects_count, done.next_start) == (1, b"key-2")


async def test_a_step_of_a_warm_up_looks_no_further_into_an_object_than_it_may_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of a large one would be a million steps without a wait."""
    asked = []

    async def noted(self: CacheManager, extent: int, size: int, first: int, length: int, *_: Any, **__: Any) -> None:
        asked.append((first, length))

    monkeypatch.setattr(CacheManager, "read", noted)
    monkeypatch.setattr(caching, "WARM_BYTES_MAX", CACHED_RUN_BYTES_MAX + 5)
    async with stored(tmp_path, stripe_bytes=16 * CHUNK_BYTES, segment_bytes=64 << 20) as store:
        await store.put("box", b"key", body_of(5 * CACHED_RUN_BYTES_MAX))
        assert (await store.caches.warm("box")).size_bytes == CACHED_RUN_BYTES_MAX + 5
    assert asked == [(0, CACHED_RUN_BYTES_MAX), (CACHED_RUN_BYTES_MAX, 5)]


async def test_a_warm_up_of_what_is_in_memory_lets_others_run(tmp_path: Path) -> None:
    async with stored(tmp_path) as store:
        await put_all(store, {b"%02d" % number: b"body" for number in range(50)})
        await store.caches.warm("box")
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            assert (await store.caches.warm("box")).objects_count == 50
            nursery.cancel_scope.cancel()
        assert turns >= 40


async def test_a_warm_up_skips_what_cannot_be_read(tmp_path: Path) -> None:
    async with stored(tmp_path) as store:
        body = body_of(5000)
        await put_all(store, {b"a": body, b"b": b"well"})
        for path in journal_files(tmp_path):
            at = path.read_bytes().find(body)
            if at >= 0:
                flip(path, at + 9)
        done = await store.caches.warm("box")
        assert (done.objects_count, done.lost_count, done.size_bytes) == (1, 1, 4)
        with pytest.raises(NoSuchBucket):
            await store.caches.warm("nowhere")


async def test_sequential_ranges_are_read_ahead_of_and_hold_nothing_afterwards(
    tmp_path: Path, loads: list[tuple[int, int]]
) -> None:
    async with stored(tmp_path, stripe_bytes=16 * CHUNK_BYTES, segment_bytes=64 << 20) as store:
        body = body_of(64 * CHUNK_BYTES)
        await store.put("box", b"key", body)
        for at in range(0, len(body), 10_000):
            assert await read(store, b"key", byte_range=ByteRange(at, at + 9999)) == body[at : at + 10_000]
        while core_of(store).cache._aheads_count:
            await trio.sleep(0.001)
        assert sum(length for _, length in loads) == len(body)
        assert len(loads) < 64 / 2
        [segment] = segments(store)
        await core_of(store).pool.retire(segment.id)
        assert not core_of(store).pool.is_pinned(segment.id)
