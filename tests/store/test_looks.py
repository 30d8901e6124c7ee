"""Ranges at one look: what is found is what a reader gives, wherever in the object it lies."""

import random
from pathlib import Path

import pytest
from small_store import SEGMENT_BYTES, STRIPE_BYTES, body_of, core_of, new_store, read

from couchestord.cache import CacheConfig
from couchestord.errors import InvalidRange
from couchestord.io.catalog.read import ExtentRow
from couchestord.model import ByteRange
from couchestord.store import looks
from couchestord.store.looks import EXTENTS_KEPT_MAX, READ_BYTES_MAX, Looks


@pytest.fixture(autouse=True)
def within(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is read than an extent holds: behind it lie others' bytes."""
    read_extent = Looks.read_extent

    def compared(self: Looks, extent: ExtentRow, first: int, length: int) -> bytes | memoryview | None:
        assert 0 <= first <= first + length <= extent.length
        return read_extent(self, extent, first, length)

    monkeypatch.setattr(Looks, "read_extent", compared)


@pytest.mark.parametrize(("l1_bytes", "kept_max"), [(0, EXTENTS_KEPT_MAX), (4 << 20, EXTENTS_KEPT_MAX), (4 << 20, 3)])
async def test_a_range_in_memory_is_read_at_one_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, l1_bytes: int, kept_max: int
) -> None:
    """In any extent, in stripes and in the record; over two extents, or long, it is left to a reader."""
    monkeypatch.setattr(looks, "EXTENTS_KEPT_MAX", kept_max)
    async with new_store(tmp_path, cache=CacheConfig(l1_bytes)) as store:
        size = 2 * SEGMENT_BYTES + 3 * STRIPE_BYTES + 500
        body = body_of(size)
        await store.put("box", b"key", body)
        extents = (await store.describe("box", b"key"))["extents"]
        ends = [0]
        for extent in extents:
            ends.append(ends[-1] + extent["length"])
        assert len(extents) >= 4
        assert ends[-1] == size
        assert await read(store, b"key") == body  # files are open then, and what is short is cached
        look = store.looks.look("box", b"key")
        assert look is not None
        rng = random.Random(2)
        inside = crossing = 0
        for _ in range(300):
            first = max(0, rng.choice([*ends, rng.randrange(size)]) + rng.randrange(-30, 30))
            if first >= size:
                continue
            length = min(rng.choice((1, 20, 60)), size - first)
            found = look.read_range(ByteRange(first, first + length - 1))
            crosses = any(first < end < first + length for end in ends)
            crossing += crosses
            assert found is None or (found[0] == first and bytes(found[1]) == body[first : first + length])
            assert found is None or not crosses
            inside += found is not None
        assert inside >= 150
        assert crossing >= 10
        assert len(look._extents) == min(len(extents), kept_max)
        assert look.read_range(ByteRange(0, READ_BYTES_MAX)) is None
        with pytest.raises(InvalidRange):
            look.read_range(ByteRange(size))


async def test_a_range_is_read_where_its_extent_lies_now(tmp_path: Path) -> None:
    """What a look keeps of the places of extents ends with the next move."""
    async with new_store(tmp_path, cache=CacheConfig(0)) as store:
        size = 3 * SEGMENT_BYTES + 500
        body = body_of(size)
        await store.put("box", b"key", body)
        await store.put("box", b"other", body_of(3 * SEGMENT_BYTES, 1))
        look = store.looks.look("box", b"key")
        assert look is not None
        asked = ByteRange(size - 100, size - 1)
        kept = look.read_range(asked)  # in the record
        assert kept is not None
        await store.destage()
        assert look.holds()
        assert await read(store, b"key") == body
        moved = look.read_range(asked)
        assert moved is not None
        assert bytes(kept[1]) == bytes(moved[1]) == body[-100:]


async def test_ranges_of_an_object_made_of_parts(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        upload = await store.create_upload("box", b"key")
        bodies = [body_of(5 << 20, 1), body_of(70_000, 2)]
        parts = [
            (number, (await store.put_part("box", b"key", upload.upload_id, number, body)).etag)
            for number, body in enumerate(bodies, 1)
        ]
        await store.complete_upload("box", b"key", upload.upload_id, parts)
        whole = b"".join(bodies)
        assert await read(store, b"key") == whole
        look = store.looks.look("box", b"key")
        assert look is not None
        found = 0
        for first in (0, 1000, (5 << 20) - 50, 5 << 20, (5 << 20) + 69_000):
            for _ in range(2):
                piece = look.read_range(ByteRange(first, first + 99))
                assert piece is None or bytes(piece[1]) == whole[first : first + 100]
                found += piece is not None
        assert found >= 4


async def test_what_is_short_is_read_through_a_look_that_holds_it(tmp_path: Path) -> None:
    async with new_store(tmp_path, cache=CacheConfig(0)) as store:
        body, large = body_of(5000), body_of(READ_BYTES_MAX + 1, 1)
        await store.put("box", b"key", body)
        await store.put("box", b"large", large)
        look, long = store.looks.look("box", b"key"), store.looks.look("box", b"large")
        assert look is not None
        assert long is not None
        assert long.open(None) is None
        with pytest.raises(InvalidRange):
            look.open(ByteRange(5000))
        part = long.open(ByteRange(1, READ_BYTES_MAX))
        whole = look.open(None)
        assert part is not None
        assert whole is not None
        assert core_of(store).pins.oldest_record() is not None
        await store.delete("box", b"key")
        await store.delete("box", b"large")
        await store.destage()
        async with part, whole:
            assert await part.read() == large[1:]
            assert await whole.read() == body
        assert core_of(store).pins.oldest_record() is None
