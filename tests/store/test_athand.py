"""What is in memory a little later than it was asked for."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from file_rig import make, write
from small_store import body_of, core_of, new_store, read

from couchestord.cache import CACHES_OFF, CHUNK_BYTES, CacheConfig
from couchestord.io.patience import LOOK_BYTES_MAX, LOOKS_MAX, Patience
from couchestord.model import ByteRange
from couchestord.store import ObjectStore, athand
from couchestord.store.filelooks import FileLook, FileLooks
from couchestord.store.reader import ObjectReader
from couchestord.store.runs import Run

LARGE = body_of(8 * CHUNK_BYTES)
CACHE = CacheConfig(4 << 20)
Reads = Callable[[int, int], Awaitable[bytes]]


class Slow:
    """A system that has nothing in memory until it was asked so often."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks_count = self.long_ways_count = self.in_vain = 0
        really, go = athand._read_resident, ObjectReader._iterate

        def look(*about: Any) -> memoryview | None:
            self.looks_count += 1
            return really(*about) if self.looks_count > self.in_vain else None

        def count(reader: ObjectReader, *, lent: bool) -> Any:
            self.long_ways_count += 1
            return go(reader, lent=lent)

        monkeypatch.setattr(athand, "_read_resident", look)
        monkeypatch.setattr(ObjectReader, "_iterate", count)

    def begin(self, in_vain: int) -> None:
        self.looks_count = self.long_ways_count = 0
        self.in_vain = in_vain


async def as_file(store: ObjectStore, data: bytes) -> Reads:
    id_ = await make(store, b"f")
    await write(store, id_, (0, data))
    return lambda first, length: store.files.read(id_, first, length)


async def as_object(store: ObjectStore, data: bytes) -> Reads:
    await store.put("box", b"k", data)
    return lambda first, length: read(store, b"k", byte_range=ByteRange(first, first + length - 1))


@pytest.mark.parametrize("cache", [CACHES_OFF, CACHE])
@pytest.mark.parametrize("stored", [as_file, as_object])
async def test_what_comes_soon_takes_no_long_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: CacheConfig, stored: Callable[..., Awaitable[Reads]]
) -> None:
    async with new_store(tmp_path, cache=cache) as store:
        reads, slow = await stored(store, LARGE), Slow(monkeypatch)
        await store.destage()
        for chunk, in_vain in enumerate((2, 5, LOOKS_MAX)):
            slow.begin(in_vain)
            first = chunk * CHUNK_BYTES + 7
            assert await reads(first, 100) == LARGE[first : first + 100]
            assert (slow.looks_count, slow.long_ways_count) == (in_vain + 1, 0)


@pytest.mark.parametrize("stored", [as_file, as_object])
async def test_what_is_small_is_in_the_cache_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: Callable[..., Awaitable[Reads]]
) -> None:
    async with new_store(tmp_path, cache=CACHE) as store:
        reads, slow = await stored(store, LARGE[:5000]), Slow(monkeypatch)
        slow.begin(4)
        assert await reads(1000, 3000) == LARGE[1000:4000]
        assert (slow.looks_count, slow.long_ways_count) == (5, 0)
        assert await reads(0, 5000) == LARGE[:5000]
        assert slow.looks_count == 5


@pytest.mark.parametrize("stored", [as_file, as_object])
async def test_what_does_not_come_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: Callable[..., Awaitable[Reads]]
) -> None:
    async with new_store(tmp_path, cache=CACHES_OFF) as store:
        reads, slow = await stored(store, LARGE), Slow(monkeypatch)
        await store.destage()
        for turn in range(200):
            slow.begin(1 << 30)
            assert await reads(turn * 1000, 100) == LARGE[turn * 1000 : turn * 1000 + 100]
            assert slow.long_ways_count == 1
            if turn in (0, 2, 6):
                assert slow.looks_count > LOOKS_MAX
        assert slow.looks_count <= 2, "those in vain become few"
        patience_of(store).has_paid()
        slow.begin(1 << 30)
        assert await reads(0, LOOK_BYTES_MAX + 1) == LARGE[: LOOK_BYTES_MAX + 1]
        assert slow.looks_count <= 2, "a long one is not looked for"


def patience_of(store: ObjectStore) -> Patience:
    return core_of(store).reader_parts.patience


async def test_what_changes_while_it_is_looked_for_is_looked_up_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with new_store(tmp_path, cache=CACHES_OFF) as store:
        reads, slow = await as_file(store, LARGE), Slow(monkeypatch)
        other = await make(store, b"other")
        await write(store, other, (0, body_of(len(LARGE), 1)))
        find, asked = FileLooks.find, []

        def changing(looks: FileLooks, id_: int, first: int, length: int) -> tuple[FileLook, list[Run]]:
            asked.append(id_)
            return find(looks, other if len(asked) == 4 else id_, first, length)

        monkeypatch.setattr(FileLooks, "find", changing)
        slow.begin(2)
        assert await reads(100, 100) == LARGE[100:200]
        assert (len(asked), slow.long_ways_count) == (5, 1)
