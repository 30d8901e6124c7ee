import errno
import gc
import math
import resource
import weakref
from collections.abc import AsyncIterator, Sequence
from functools import partial
from mmap import mmap
from pathlib import Path
from typing import Any

import pytest
import trio
from decide_rig import put_request
from small_store import (
    SEGMENT_BYTES,
    SMALL,
    STRIPE_BYTES,
    body_of,
    core_of,
    faults_of,
    finish,
    make_store,
    md5_of,
    new_store,
    read,
    segments,
    shard_files,
    stream,
)

from couchestord.ec.segments import StripeWriter
from couchestord.errors import BadDigest, EntityTooLarge, IncompleteBody, MetadataTooLarge, ShuttingDown, TooFewDisks
from couchestord.io.directory import DirectoryDisk
from couchestord.io.disk import Buffer
from couchestord.model import OBJECT_BYTES_MAX, Attributes
from couchestord.store.door import ObjectStore
from couchestord.store.intake import BATCH_STREAMS_MAX, BATCH_STRIPES, _Batches
from couchestord.store.options import INLINE_BYTES_MAX

SIZES = sorted(
    {0, 1, 2, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 3 * SEGMENT_BYTES + 12_345}
    | {INLINE_BYTES_MAX + off for off in (-1, 0, 1)}
    | {STRIPE_BYTES + off for off in (-1, 0, 1)}
    | {INLINE_BYTES_MAX + STRIPE_BYTES + off for off in (-1, 0, 1)}
    | {5 * STRIPE_BYTES + off for off in (-1, 0, 1)}
)


async def failing(body: bytes, error: Exception) -> AsyncIterator[bytes]:
    async for piece in stream(body):
        yield piece
    raise error


@pytest.mark.parametrize("fails_to_lay", [False, True])
@pytest.mark.parametrize("stripes", [BATCH_STRIPES - 1, BATCH_STRIPES + 1])
async def test_a_body_that_fails_leaves_no_memory_for_the_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_to_lay: bool, stripes: int
) -> None:
    """Which comes seldom: a client that broke off one upload after the other had the daemon take a GiB."""
    taken: list[weakref.ref[Any]] = []

    class Batch(mmap):
        def __new__(cls, *where: int, **how: int) -> "Batch":
            batch = super().__new__(cls, *where, **how)
            taken.append(weakref.ref(batch))
            return batch

    async def body() -> AsyncIterator[bytes]:
        yield body_of(stripes * STRIPE_BYTES)
        raise IncompleteBody("the client is gone")

    async def fail(*_: object) -> None:
        raise TooFewDisks("none is left")

    monkeypatch.setattr("couchestord.store.intake.mmap", Batch)
    async with new_store(tmp_path) as store:
        if fails_to_lay:
            monkeypatch.setattr(StripeWriter, "append_many", fail)
        gc.disable()
        try:
            with pytest.raises(TooFewDisks if fails_to_lay and stripes > BATCH_STRIPES else IncompleteBody):
                await store.put("box", b"key", body())
            assert [batch() for batch in taken] == [None]
        finally:
            gc.enable()


async def test_bodies_of_every_size_as_bytes_and_as_streams(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        for size in SIZES:
            body = body_of(size)
            for way, given in (("bytes", body), ("pieces", stream(body)), ("one", stream(body, max(1, size)))):
                info = await store.put("box", f"{size}/{way}".encode(), given, size=size)
                assert (info.size_bytes, info.etag) == (size, md5_of(body)), (size, way)
        for size in SIZES:
            for way in ("bytes", "pieces", "one"):
                assert await read(store, f"{size}/{way}".encode()) == body_of(size), (size, way)
    assert faults_of(tmp_path) == []
    async with ObjectStore.open(tmp_path, SMALL) as store:
        for size in SIZES:
            assert await read(store, f"{size}/pieces".encode()) == body_of(size), size


class Filling:
    """A body that is read into the memory where it is wanted, so many bytes at a time; then an error is raised."""

    def __init__(self, body: bytes, piece_bytes: int, error: Exception | None = None) -> None:
        self._left = body
        self._piece_bytes = piece_bytes
        self._error = error

    async def read_into(self, buffer: memoryview) -> int:
        assert len(buffer)
        count = min(len(buffer), self._piece_bytes, len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        if not count and self._error is not None:
            raise self._error
        return count


@pytest.mark.parametrize("announced", [True, False])
async def test_bodies_that_fill_buffers(tmp_path: Path, announced: bool) -> None:
    async with new_store(tmp_path) as store:
        for size in SIZES:
            body = body_of(size)
            for piece_bytes in (10_000, max(1, size)):
                await store.put("box", b"key", Filling(body, piece_bytes), size=size if announced else None)
                assert await read(store, b"key") == body, (size, piece_bytes)
                short, long = Filling(body[:-1], piece_bytes), Filling(body + b"x", piece_bytes)
                for lying in (short, long) if size else (long,):
                    with pytest.raises(IncompleteBody):
                        await store.put("box", b"key", lying, size=size)
                with pytest.raises(BadDigest):
                    await store.put("box", b"key", Filling(body, piece_bytes, BadDigest("sum")))
                assert (await store.head("box", b"key")).etag == md5_of(body)


async def test_batches_are_used_again_but_never_one_that_a_hung_disk_may_still_read(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        core, body = core_of(store), body_of(3 * SEGMENT_BYTES)
        held: list[tuple[memoryview, bytes]] = []

        def hang(path: str, offset: int, buffers: Sequence[Buffer], sync: bool) -> None:
            held.extend((memoryview(buffer), bytes(buffer)) for buffer in buffers)
            raise OSError(errno.EIO, "hung")

        class HangsLater(Filling):
            async def read_into(self, buffer: memoryview) -> int:
                if len(self._left) == 2 * SEGMENT_BYTES:
                    disk = core.disks.get(0)
                    assert isinstance(disk, DirectoryDisk)
                    disk._folder.write = hang  # type: ignore[method-assign]
                return await super().read_into(buffer)

        await store.put("box", b"first", Filling(body, 10_000), size=len(body))
        [kept] = core.intake._batches._idle
        await store.put("box", b"second", HangsLater(body, STRIPE_BYTES), size=len(body))
        assert held
        assert not any(batch is kept for batch in core.intake._batches._idle)
        await store.put("box", b"third", Filling(bytes(len(body)), 10_000), size=len(body))
        assert all(buffer == before for buffer, before in held)
        assert len(core.intake._batches._idle) == 1
        for key in (b"first", b"second"):
            assert await read(store, key) == body


async def test_many_streams_have_a_stripe_each_and_few_have_a_batch(tmp_path: Path) -> None:
    """So that memory is bounded when each client that may connect is slow."""
    begun: list[int] = []
    all_begun = trio.Event()

    class Waits(Filling):
        waited = False

        async def read_into(self, buffer: memoryview) -> int:
            if not self.waited:
                self.waited = True
                begun.append(len(buffer))
                if len(begun) == BATCH_STREAMS_MAX + 8:
                    all_begun.set()
                await all_begun.wait()
            return await super().read_into(buffer)

    async with new_store(tmp_path) as store:
        body = body_of(INLINE_BYTES_MAX + STRIPE_BYTES + 1)
        keys = [b"%d" % number for number in range(BATCH_STREAMS_MAX + 8)]
        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(partial(store.put, "box", key, Waits(body, 50_000), size=len(body)))
        assert sorted(begun) == [STRIPE_BYTES] * 8 + [STRIPE_BYTES * BATCH_STRIPES] * BATCH_STREAMS_MAX
        begun.clear()
        await store.put("box", b"after", Waits(body, 50_000), size=len(body))
        assert begun == [STRIPE_BYTES * BATCH_STRIPES]
        for key in (*keys, b"after"):
            assert await read(store, key) == body


def test_a_batch_takes_no_memory_before_something_comes_into_it() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident_bytes()
    batches = [_Batches().take(1 << 20) for _ in range(32)]
    assert resident_bytes() - before < sum(map(len, batches)) // 4


async def test_stripes_larger_than_what_is_inline(tmp_path: Path) -> None:
    async with new_store(tmp_path, stripe_bytes=256 << 10) as store:
        for size in (INLINE_BYTES_MAX + 1, (256 << 10) - 1, 256 << 10, (256 << 10) + 1, 700_000):
            await store.put("box", b"key", stream(body_of(size)))
            assert await read(store, b"key") == body_of(size)


async def test_where_bodies_lie(tmp_path: Path) -> None:
    """Short ones in the record; of long ones whole stripes, and an end that is short in the record."""
    async with new_store(tmp_path) as store:
        size = 3 * STRIPE_BYTES + 100
        await store.put("box", b"short", body_of(INLINE_BYTES_MAX))
        await store.put("box", b"long", body_of(size))
        [short] = (await store.describe("box", b"short"))["extents"]
        assert short["journal_record"]
        first, last = (await store.describe("box", b"long"))["extents"]
        assert (first["length"], last["length"]) == (3 * STRIPE_BYTES, 100)
        assert "segment" in first
        assert "journal_record" in last


async def test_a_body_of_which_nothing_may_ride_in_the_record(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        intake = core_of(store).intake
        for size in SIZES:
            body = body_of(size)
            for given, announced in ((body, size), (stream(body), size), (stream(body), None)):
                async with intake.take(given, announced, inlined=False) as taken:
                    assert (taken.size, taken.md5.hex(), taken.inline) == (size, md5_of(body), b"")
                    assert all(extent.segment for extent in taken.extents)
                    await core_of(store).submit(put_request("box", b"key", extents=taken.extents))
                assert await read(store, b"key") == body
        with pytest.raises(IncompleteBody):
            async with intake.take(b"short", 6, inlined=False):
                pass
    assert faults_of(tmp_path) == []


@pytest.mark.parametrize("size", [10, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1, 3 * STRIPE_BYTES, 2 * SEGMENT_BYTES])
@pytest.mark.parametrize("off", [-1, 1, 5000])
@pytest.mark.parametrize("as_bytes", [True, False])
async def test_wrong_announced_size_stores_nothing(tmp_path: Path, size: int, off: int, as_bytes: bool) -> None:
    async with new_store(tmp_path) as store:
        await store.put("box", b"key", b"old")
        sequence = core_of(store).catalog.committed_sequence
        body = body_of(size)
        with pytest.raises(IncompleteBody):
            await store.put("box", b"key", body if as_bytes else stream(body), size=max(0, size + off))
        assert await read(store, b"key") == b"old"
        if size <= INLINE_BYTES_MAX:
            assert core_of(store).catalog.committed_sequence == sequence


@pytest.mark.parametrize("size", [0, 10, INLINE_BYTES_MAX + 1, 2 * SEGMENT_BYTES + 5])
async def test_iterator_that_raises_stores_nothing(tmp_path: Path, size: int) -> None:
    async with new_store(tmp_path) as store:
        await store.put("box", b"key", b"old")
        with pytest.raises(BadDigest, match="the sum is another"):
            await store.put("box", b"key", failing(body_of(size), BadDigest("the sum is another")))
        with pytest.raises(BadDigest):
            await store.put("box", b"new", failing(body_of(size), BadDigest("again")), size=size)
        upload = await store.create_upload("box", b"key")
        with pytest.raises(BadDigest):
            await store.put_part("box", b"key", upload.upload_id, 1, failing(body_of(size), BadDigest("part")))
        assert await store.list_parts("box", b"key", upload.upload_id) == ([], False)
        assert await read(store, b"key") == b"old"
        assert [entry.key for entry in (await store.list("box")).entries] == [b"key"]
        assert not (await store.describe("box", b"key"))["extents"][0].get("segment")
    assert faults_of(tmp_path) == []


async def test_body_that_was_cut_off_is_garbage_that_goes(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        with pytest.raises(OSError, match="hung up"):
            await store.put("box", b"key", failing(body_of(3 * SEGMENT_BYTES), OSError("hung up")))
        assert shard_files(tmp_path)
        await store.put("box", b"beside", body_of(5 * STRIPE_BYTES))
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await finish(core_of(store).jobs.compactor)
        assert [row.live_bytes > 0 for row in segments(store)] == [True]
        assert len(shard_files(tmp_path)) == 6
        assert await read(store, b"beside") == body_of(5 * STRIPE_BYTES)
        await store.delete("box", b"beside")
        await finish(core_of(store).jobs.compactor)
        assert segments(store) == []
        assert shard_files(tmp_path) == []


async def test_cancelled_stream_is_garbage_that_goes(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        arrived = trio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield body_of(2 * SEGMENT_BYTES)
            arrived.set()
            await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.put, "box", b"key", slow())
            await arrived.wait()
            nursery.cancel_scope.cancel()
        assert (await store.list("box")).entries == ()
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await finish(core_of(store).jobs.compactor)
        assert shard_files(tmp_path) == []


async def test_segment_that_a_stream_is_at_is_not_dropped(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        first, go_on = trio.Event(), trio.Event()
        body = body_of(2 * SEGMENT_BYTES + 999)

        async def slow() -> AsyncIterator[bytes]:
            async for piece in stream(body[: SEGMENT_BYTES * 3 // 2], STRIPE_BYTES):
                yield piece
            first.set()
            await go_on.wait()
            yield body[SEGMENT_BYTES * 3 // 2 :]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.put, "box", b"key", slow())
            await first.wait()
            sealed = [row for row in segments(store) if row.state]
            assert [row.live_bytes for row in sealed] == [0]
            await finish(core_of(store).jobs.compactor)
            await core_of(store).jobs.housekeeper.work()
            assert sealed[0] in segments(store)
            go_on.set()
        await finish(core_of(store).jobs.compactor)
        assert await read(store, b"key") == body
        assert core_of(store).jobs.compactor.dropped_segments_count == 0


async def test_finish_answers_the_attributes(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        for size in (5, 3 * STRIPE_BYTES):
            consumed: list[int] = []

            async def body(size: int, consumed: list[int]) -> AsyncIterator[bytes]:
                async for piece in stream(body_of(size)):
                    yield piece
                    consumed.append(len(piece))

            def finished(size: int = size, consumed: list[int] = consumed) -> Attributes:
                assert sum(consumed) == size
                return Attributes(checksums={"crc32": "AAAAAA=="})

            given = Attributes(metadata={"colour": "red"})
            info = await store.put("box", b"key", body(size, consumed), attributes=given, finish=finished)
            assert info.attributes == Attributes(checksums={"crc32": "AAAAAA=="})
            assert (await store.head("box", b"key")).attributes == info.attributes


async def test_finish_that_raises_stores_nothing(tmp_path: Path) -> None:
    def refuse() -> Attributes:
        raise BadDigest("the trailer says otherwise")

    async with new_store(tmp_path) as store:
        for size in (5, 3 * STRIPE_BYTES):
            with pytest.raises(BadDigest):
                await store.put("box", b"key", body_of(size), finish=refuse)
        assert (await store.list("box")).entries == ()


async def test_larger_than_any_object_is_refused_at_once(tmp_path: Path) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("nobody asks for the body")
        yield b""

    async with new_store(tmp_path) as store:
        with pytest.raises(EntityTooLarge):
            await store.put("box", b"key", never(), size=OBJECT_BYTES_MAX + 1)
        core_of(store).intake._size_bytes_max = SEGMENT_BYTES
        with pytest.raises(EntityTooLarge):
            await store.put("box", b"key", stream(body_of(SEGMENT_BYTES + 1)))
        await store.put("box", b"key", stream(body_of(SEGMENT_BYTES)))


async def test_many_streams_at_once_share_few_segments(tmp_path: Path) -> None:
    """More streams than segments may be open: each waits its turn, none is mixed up with another."""
    async with new_store(tmp_path) as store:
        count = core_of(store).pool.options.open_max * 3
        sizes = [INLINE_BYTES_MAX + 1 + number * 30_000 for number in range(count)]

        async def put(number: int) -> None:
            await store.put("box", b"%d" % number, stream(body_of(sizes[number], number)))

        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(put, number)
        for number, size in enumerate(sizes):
            assert await read(store, b"%d" % number) == body_of(size, number)
        # full ones, and at most so many that are open
        at_most = math.ceil(sum(sizes) / SEGMENT_BYTES) + core_of(store).pool.options.open_max
        assert len(segments(store)) <= at_most
    assert faults_of(tmp_path) == []


async def test_body_that_waits_for_a_commit_is_refused_by_a_drain(tmp_path: Path) -> None:
    await make_store(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await store.put("box", b"key", b"old")
        await store.drain()
        for body in (b"new", body_of(3 * STRIPE_BYTES)):
            with pytest.raises(ShuttingDown):
                await store.put("box", b"key", body)
        assert await read(store, b"key") == b"old"


async def test_attributes_that_fit_no_record_are_refused(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        huge = Attributes(metadata={"note": "x" * (4 << 20)})
        with pytest.raises((EntityTooLarge, MetadataTooLarge)):
            await store.put("box", b"key", b"body", attributes=huge)
        await store.put("box", b"key", b"body")
        assert await read(store, b"key") == b"body"
