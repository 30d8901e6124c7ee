from dataclasses import replace
from pathlib import Path

import pytest
import small_store
from small_store import (
    SEGMENT_BYTES,
    SMALL,
    STRIPE_BYTES,
    body_of,
    core_of,
    finish,
    flip,
    journal_files,
    look,
    new_store,
    read,
    segments,
    shard_files,
)

from couchestord.cache import CACHES_OFF, CacheConfig
from couchestord.errors import DataLost, InvalidRange
from couchestord.io.catalog.read import SegmentRow
from couchestord.io.journalfile import JournalOptions
from couchestord.model import PART_BYTES_MIN, ByteRange
from couchestord.store.door import ObjectStore
from couchestord.store.maintenance import HELD_FILL_MAX
from couchestord.store.options import INLINE_BYTES_MAX
from couchestord.store.runs import resolve_range


@pytest.fixture(autouse=True, params=[CacheConfig(), CACHES_OFF], ids=["cached", "uncached"])
def caches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every read is tried with caches and without."""
    options = replace(SMALL, cache=request.param)
    monkeypatch.setattr(small_store, "SMALL", options)
    monkeypatch.setattr(request.module, "SMALL", options)


@pytest.mark.parametrize(
    ("asked", "size", "found"),
    [
        (None, 0, (0, 0)),
        (None, 7, (0, 7)),
        (ByteRange(0), 7, (0, 7)),
        (ByteRange(0, 0), 7, (0, 1)),
        (ByteRange(3, 5), 7, (3, 3)),
        (ByteRange(6, 6), 7, (6, 1)),
        (ByteRange(6, 99), 7, (6, 1)),
        (ByteRange(2), 7, (2, 5)),
        (ByteRange(None, 1), 7, (6, 1)),
        (ByteRange(None, 7), 7, (0, 7)),
        (ByteRange(None, 8), 7, (0, 7)),
    ],
)
def test_ranges(asked: ByteRange | None, size: int, found: tuple[int, int]) -> None:
    assert resolve_range(asked, size) == found


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        (ByteRange(0), 0),
        (ByteRange(0, 0), 0),
        (ByteRange(7), 7),
        (ByteRange(7, 9), 7),
        (ByteRange(None, 0), 7),
        (ByteRange(None, 1), 0),
        (ByteRange(None, None), 7),
    ],
)
def test_ranges_that_hold_nothing(asked: ByteRange, size: int) -> None:
    with pytest.raises(InvalidRange) as caught:
        resolve_range(asked, size)
    assert caught.value.size_bytes == size


async def test_ranges_over_stripes_and_extents(tmp_path: Path) -> None:
    """Over stripes, segments (extents end with them), and the end that lies in the record; before and after destage."""
    async with new_store(tmp_path) as store:
        size = 2 * SEGMENT_BYTES + 3 * STRIPE_BYTES + 500
        body = body_of(size)
        await store.put("box", b"key", body)
        assert len((await store.describe("box", b"key"))["extents"]) >= 4
        edges = {0, STRIPE_BYTES, SEGMENT_BYTES, 2 * SEGMENT_BYTES, size - 500, size}
        points = sorted({point + off for point in edges for off in (-1, 0, 1) if 0 <= point + off < size})
        for _ in range(2):
            for first in points:
                for last in points:
                    if first > last:
                        continue
                    async with await store.get("box", b"key", byte_range=ByteRange(first, last)) as reader:
                        assert (reader.first, reader.length) == (first, last + 1 - first)
                        assert reader.partial == (reader.length != size)
                        assert await reader.read() == body[first : last + 1], (first, last)
            await store.destage()
        with pytest.raises(InvalidRange):
            await store.get("box", b"key", byte_range=ByteRange(size))


async def test_empty_object(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await store.put("box", b"empty", b"")
        async with await store.get("box", b"empty") as reader:
            assert (reader.first, reader.length, reader.partial, await reader.read()) == (0, 0, False, b"")
        for asked in (ByteRange(0), ByteRange(None, 5)):
            with pytest.raises(InvalidRange):
                await store.get("box", b"empty", byte_range=asked)
        assert (await store.describe("box", b"empty"))["extents"] == []


async def test_pieces_are_at_most_a_mebibyte(tmp_path: Path) -> None:
    async with new_store(tmp_path, stripe_bytes=4 << 20, segment_bytes=64 << 20) as store:
        body = body_of(9_000_000)
        await store.put("box", b"key", body)
        async with await store.get("box", b"key") as reader:
            pieces = [bytes(piece) async for piece in reader]
        assert b"".join(pieces) == body
        assert max(map(len, pieces)) <= 1 << 20


@pytest.mark.parametrize("size", [1000, 2 * SEGMENT_BYTES + 1000])
@pytest.mark.parametrize("change", ["overwrite", "delete"])
@pytest.mark.parametrize("lent", [False, True])
async def test_open_reader_gets_the_whole_old_version(tmp_path: Path, size: int, change: str, lent: bool) -> None:
    """Whatever is moved, dropped and trimmed meanwhile; the space is freed after it closed."""
    old = body_of(size)
    async with new_store(tmp_path) as store:
        jobs = core_of(store).jobs
        await store.put("box", b"key", old)
        before = await store.get("box", b"key")
        async with await store.get("box", b"key") as reader:
            pieces = reader.lend() if lent else aiter(reader)
            begun = bytes(await anext(pieces))
            if change == "overwrite":
                await store.put("box", b"key", b"new")
            else:
                await store.delete("box", b"key")
            for _ in range(2):
                await store.destage()
                await finish(jobs.compactor)
                await jobs.housekeeper.work()
            held = {row.id for row in segments(store)}
            assert begun + b"".join([bytes(piece) async for piece in pieces]) == old
        assert await before.read() == old
        await store.put("box", b"other", b"begins a new file of the journal")
        await store.destage()
        await finish(jobs.compactor)
        if size > INLINE_BYTES_MAX:
            assert not held & {row.id for row in segments(store) if row.state}
        else:
            assert core_of(store).pins.oldest_record() is None
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await finish(core_of(store).jobs.compactor)
        if change == "overwrite":
            assert await read(store, b"key") == b"new"


async def test_record_of_an_open_reader_is_not_trimmed(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        journal = core_of(store).journal
        await store.put("box", b"key", b"the old one")
        reader = await store.get("box", b"key")
        record = (await store.describe("box", b"key"))["extents"][0]["journal_record"]
        await store.delete("box", b"key")
        await store.destage()
        await store.put("box", b"other", b"more")
        await store.destage()
        assert journal.holds(record)
        assert await reader.read() == b"the old one"
        await store.destage()
        assert not journal.holds(record)


@pytest.mark.parametrize("deleted", [False, True])
async def test_a_journal_that_is_nearly_full_waits_for_no_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deleted: bool
) -> None:
    """A slow client stops nobody's writes: it reads on where the bytes were moved to, unless they were deleted."""
    options = JournalOptions(size_bytes=1 << 20, file_bytes=128 << 10, preallocate_bytes=0)
    async with new_store(tmp_path, journal=options) as store:
        core, body = core_of(store), body_of(3 * STRIPE_BYTES + 1000)
        await store.put("box", b"key", body)
        reader = await store.get("box", b"key")
        pieces = aiter(reader)
        begun = bytes(await anext(pieces))
        record = (await store.describe("box", b"key"))["extents"][-1]["journal_record"]
        while core.journal.size_bytes <= HELD_FILL_MAX * core.journal.size_bytes_max:
            assert core.jobs.snapshotter.trim_point() <= record
            await store.put("box", b"other", body_of(INLINE_BYTES_MAX))
        if deleted:
            await store.delete("box", b"key")
        [begun_in] = reader._segments
        await core.pool.retire(begun_in)
        await store.destage()
        assert not core.journal.holds(record)
        if deleted:
            with pytest.raises(DataLost):
                [piece async for piece in pieces]
        else:
            target = (await store.describe("box", b"key"))["extents"][-1]["segment"]
            assert (target == begun_in, core.pool.is_pinned(target)) == (False, False)
            pinned = []
            load = core.stripes.load

            async def watched(segment: SegmentRow, *place: int) -> memoryview:
                pinned.append(core.pool.is_pinned(target))
                return await load(segment, *place)

            monkeypatch.setattr(core.stripes, "load", watched)
            async for piece in pieces:
                begun += bytes(piece)
            assert begun == body
            assert pinned[-1]
            assert not core.pool.is_pinned(target)
        await reader.aclose()
        assert core.pins.oldest_record() is None


@pytest.mark.parametrize("deleted", [False, True])
async def test_a_record_that_was_trimmed_before_it_is_read_at_once(tmp_path: Path, deleted: bool) -> None:
    """A small object is read without an iteration, and is found where it was moved to as with one."""
    options = JournalOptions(size_bytes=1 << 20, file_bytes=128 << 10, preallocate_bytes=0)
    async with new_store(tmp_path, journal=options) as store:
        core = core_of(store)
        await store.put("box", b"key", body_of(1000))
        reader = await store.get("box", b"key", byte_range=ByteRange(10, 909))
        record = (await store.describe("box", b"key"))["extents"][0]["journal_record"]
        while core.journal.size_bytes <= HELD_FILL_MAX * core.journal.size_bytes_max:
            await store.put("box", b"other", body_of(INLINE_BYTES_MAX))
        if deleted:
            await store.delete("box", b"key")
        await store.destage()
        assert not core.journal.holds(record)
        if deleted:
            with pytest.raises(DataLost, match="box/b'key'"):
                await reader.read()
        else:
            assert await reader.read() == body_of(1000)[10:910]
        assert core.pins.oldest_record() is None


@pytest.mark.parametrize("destaged", [False, True])
async def test_a_small_object_in_memory_takes_no_call_to_a_disk(tmp_path: Path, destaged: bool) -> None:
    """And is closed when it was read; damaged bytes are never handed out."""
    async with new_store(tmp_path) as store:
        body = body_of(4096)
        await store.put("box", b"key", body)
        if destaged:
            await store.destage()
        assert await read(store, b"key") == body
        core = core_of(store)
        disks = [core.disks.get(index) for index in core.disks.good()]

        async def refuse(*_: object) -> bytes:
            raise AssertionError("a disk was asked")

        for disk in disks:
            disk.read = refuse  # type: ignore[method-assign, union-attr]
        held = [row.id for row in segments(store) if core.pool.is_pinned(row.id)]
        reader = await store.get("box", b"key", byte_range=ByteRange(10, 909))
        assert await reader.read() == body[10:910]
        assert reader._pieces is None
        assert core.pins.oldest_record() is None
        assert [row.id for row in segments(store) if core.pool.is_pinned(row.id)] == held


async def test_reader_that_is_forgotten_lets_go(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await store.put("box", b"key", b"body")
        reader = await store.get("box", b"key")
        pins = core_of(store).pins
        assert pins.oldest_record() is not None
        del reader
        assert pins.oldest_record() is None


@pytest.mark.parametrize("lent", [False, True])
async def test_reader_left_in_the_middle_lets_go(tmp_path: Path, lent: bool) -> None:
    async with new_store(tmp_path, cache=CACHES_OFF) as store:
        await store.put("box", b"key", body_of(3 * SEGMENT_BYTES))
        memories = core_of(store).stripes._resident._memories
        id_ = segments(store)[0].id
        async with await store.get("box", b"key") as reader:
            assert core_of(store).pool.is_pinned(id_)
            pieces = reader.lend() if lent else aiter(reader)
            await anext(pieces)
            assert not memories
        assert not core_of(store).pool.is_pinned(id_)
        assert len(memories) == lent
        with pytest.raises(StopAsyncIteration):
            await anext(pieces)
        await reader.aclose()
        assert not core_of(store).pool.is_pinned(id_)


async def test_rot_and_missing_shards_are_made_good(tmp_path: Path) -> None:
    body = body_of(10 * STRIPE_BYTES)
    async with new_store(tmp_path) as store:
        await store.put("box", b"key", body)
    for path in shard_files(tmp_path)[:2]:
        for at in range(5000, path.stat().st_size, 4096):
            flip(path, at)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert await read(store, b"key") == body
        assert core_of(store).stripes.degraded_reads_count
        rebuilder = core_of(store).jobs.rebuilder
        await finish(rebuilder)
        assert rebuilder.rebuilt_shards_count == 2
        assert store.health().state == "healthy"
    for path in shard_files(tmp_path)[2:4]:
        path.unlink()
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert await read(store, b"key") == body


async def test_too_much_rot_is_data_lost_never_wrong_bytes(tmp_path: Path) -> None:
    body = body_of(10 * STRIPE_BYTES)
    async with new_store(tmp_path) as store:
        await store.put("box", b"key", body)
        await store.put("box", b"well", body_of(4 * STRIPE_BYTES, 1))
    # the fifth stripe of the key: 5 pages each, the header first
    for path in shard_files(tmp_path)[:3]:
        flip(path, (1 + 4 * 5 + 1) * 4096 + 77)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        got = b""
        async with await store.get("box", b"key") as reader:
            with pytest.raises(DataLost, match=r"box/b'key': segment \d+ \(4\+2 .* stripe .*3 of 4\+2"):  # noqa: PT012
                async for piece in reader:
                    got += piece
        assert body.startswith(got)
        assert len(got) <= 5 * STRIPE_BYTES
        assert await read(store, b"key", byte_range=ByteRange(0, 3 * STRIPE_BYTES - 1)) == body[: 3 * STRIPE_BYTES]
        assert await read(store, b"key", byte_range=ByteRange(5 * STRIPE_BYTES)) == body[5 * STRIPE_BYTES :]
        assert await read(store, b"well") == body_of(4 * STRIPE_BYTES, 1)


@pytest.mark.parametrize("size", [4 << 20, 3 * STRIPE_BYTES])
async def test_shards_that_are_made_anew_while_they_are_read_are_looked_for_where_they_are(
    tmp_path: Path, size: int
) -> None:
    """More disks than the code makes good go and come back, one after the other: each takes a shard with it for good,
    and there is never one too few.
    """
    body = body_of(size)
    async with new_store(tmp_path, disks_count=9, segment_bytes=8 << 20) as store:
        core = core_of(store)
        await store.put("box", b"key", body)
        await store.destage()
        await core.pool.aclose()
        (before,) = (row for row in segments(store) if row.live_bytes)
        async with await store.get("box", b"key") as reader:
            pieces = aiter(reader)
            got = bytes(await anext(pieces)) if size > 1 << 20 else b""
            for disk in before.disks[: SMALL.m + 1]:
                (tmp_path / f"disk-{disk}").rename(tmp_path / "away")
                await look(store)
                await finish(core.jobs.rebuilder)
                (tmp_path / "away").rename(tmp_path / f"disk-{disk}")
                await look(store)
                await finish(core.jobs.rebuilder)
                (now,) = (row for row in segments(store) if row.live_bytes)
                assert not now.missing
            assert sum(old != new for old, new in zip(before.disks, now.disks, strict=True)) == SMALL.m + 1
            got += b"".join([bytes(piece) async for piece in pieces])
        assert got == body


async def test_record_rotten_on_one_disk_is_read_from_another(tmp_path: Path) -> None:
    async with new_store(tmp_path, cache=CACHES_OFF) as store:
        body = body_of(5000)
        await store.put("box", b"key", body)
        places = [(path, at) for path in journal_files(tmp_path) if (at := path.read_bytes().find(body)) >= 0]
        assert len(places) == 3
        for path, at in places[:2]:
            flip(path, at + 2000)
        assert await read(store, b"key") == body
        assert core_of(store).journal.degraded_reads_count == 1
        flip(places[2][0], places[2][1] + 2000)
        with pytest.raises(DataLost):
            await read(store, b"key")


async def test_multipart_ranges(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        upload = (await store.create_upload("box", b"big")).upload_id
        bodies = [body_of(PART_BYTES_MIN, 1), body_of(PART_BYTES_MIN + 3, 2), body_of(5, 3)]
        chosen = [
            (number, (await store.put_part("box", b"big", upload, number, body)).etag)
            for number, body in enumerate(bodies, start=1)
        ]
        await store.complete_upload("box", b"big", upload, chosen)
        whole = b"".join(bodies)
        edges = (0, PART_BYTES_MIN, 2 * PART_BYTES_MIN + 3, len(whole))
        points = [edge + off for edge in edges for off in (-1, 0, 1) if 0 <= edge + off < len(whole)]
        for first in points:
            for last in points:
                if first <= last:
                    asked = ByteRange(first, last)
                    assert await read(store, b"big", byte_range=asked) == whole[first : last + 1], (first, last)
