"""A store with a bucket behind it: copies of all, and reading them when the disks have less."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
import trio.testing
from bucket_rig import (
    UNCACHED,
    BucketRig,
    fail,
    l3_of,
    lose_stripes,
    seal_all,
    set_tight,
    upload,
    upload_until_older_catalogs_are_gone,
)
from small_store import (
    SEGMENT_BYTES,
    STRIPE_BYTES,
    body_of,
    core_of,
    finish,
    make_store,
    put_all,
    read,
    segments,
    shard_files,
    stream,
)

from couchestord.errors import DataLost, IncompleteBody, NoSpace, RemoteDenied, RemoteUnavailable, Unavailable
from couchestord.model import ByteRange
from couchestord.service import Service
from couchestord.store.door import ObjectStore
from couchestord.store.overflow import LONG_PIECES_MAX


def job_of(store: ObjectStore, name: str) -> Service:
    return next(job for job in l3_of(store).services() if job.name == name)


BODIES = {
    b"small": body_of(1000),
    b"another": body_of(20_000),
    b"large": body_of(5 * STRIPE_BYTES + 3),
    b"empty": b"",
}


async def test_everything_has_a_copy_and_it_is_read_when_the_disks_have_lost_it(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path)
    async with rig.open() as store:
        await put_all(store, BODIES)
        assert l3_of(store).status()["waiting_bytes"] == 5 * STRIPE_BYTES, "the rest is in the log"
        await upload(store)
        found = l3_of(store).status()
        assert found["waiting_bytes"] == 0
        assert found["live_bytes"] == sum(map(len, BODIES.values()))
        assert found["only_bytes"] == 0
        assert len(rig.blobs()) == found["blobs"] == 1
        lose_stripes(tmp_path)
        for key, body in BODIES.items():
            assert await read(store, key) == body, key
        assert await read(store, b"large", byte_range=ByteRange(70_000, 80_000)) == BODIES[b"large"][70_000:80_001]
        assert l3_of(store).status()["reads"] > 3


async def test_without_a_copy_what_is_lost_is_lost(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path)
    async with rig.open() as store:
        await put_all(store, BODIES)
        await core_of(store).destage_all()
        lose_stripes(tmp_path)
        with pytest.raises(DataLost):
            await read(store, b"large")


async def test_a_copy_that_is_damaged_is_no_copy(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path)
    async with rig.open() as store:
        await put_all(store, BODIES)
        await upload(store)
        (key,) = rig.blobs()
        blob = bytearray(rig.backend.objects[key])
        blob[-100] ^= 1
        rig.backend.objects[key] = bytes(blob)
        here = {file: file.read_bytes() for file in shard_files(tmp_path)}
        lose_stripes(tmp_path)
        lost = []
        for name, body in BODIES.items():
            try:
                assert await read(store, name) == body
            except DataLost:
                lost.append(name)
        assert len(lost) == 1, "one frame was damaged"
        for file, data in here.items():
            file.write_bytes(data)
        assert await read(store, lost[0]) == BODIES[lost[0]]
        for _ in range(2):  # what is found by one job is mended by another
            await upload(store)
        assert len(rig.blobs()) == 3, "what had no copy any more got another, and what was left beside it was packed"
        assert l3_of(store).status()["waiting_bytes"] == 0


async def test_the_last_copy_is_not_given_up_because_the_bucket_failed_for_once(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path)
    async with rig.open() as store:
        await put_all(store, BODIES)
        await upload(store)
        here = {file: file.read_bytes() for file in shard_files(tmp_path)}
        lose_stripes(tmp_path)
        blobs = {key: rig.backend.objects.pop(key) for key in rig.blobs()}
        for name in BODIES.keys() - {b"empty"}:
            with pytest.raises(DataLost):
                await read(store, name)
        rig.backend.objects |= blobs
        await upload(store, destage=False)
        for name, body in BODIES.items():
            assert await read(store, name) == body, name
        assert l3_of(store).status()["lost_copies"] == 0
        for file, data in here.items():
            file.write_bytes(data)
        await upload(store)
        assert l3_of(store).status()["lost_copies"] > 0, "what is on the disks just waits again"
        await upload(store)
        assert l3_of(store).status()["waiting_bytes"] == 0


@pytest.mark.parametrize("is_gone", [False, True])
@pytest.mark.parametrize("is_started_anew", [False, True])
async def test_what_has_a_copy_that_is_known_to_be_damaged_stays_on_the_disks(
    tmp_path: Path, is_started_anew: bool, is_gone: bool
) -> None:
    """More disks than are made good were away for a while, perhaps until the next start, so that the copy was read.
    Where there is no blob any more, all copies in it are gone.
    """
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path)
    async with rig.open() as store:
        await put_all(store, BODIES)
        await core_of(store).destage_all()
        await seal_all(store)
        await upload(store)
    (key,) = rig.blobs()
    blob = bytearray(rig.backend.objects[key])
    blob[-100] ^= 1
    rig.backend.objects[key] = bytes(blob)
    if is_gone:
        del rig.backend.objects[key]
    rig.set_mode("tiered")
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(rig.open())
        here = {file: file.read_bytes() for file in shard_files(tmp_path)}
        lose_stripes(tmp_path)
        with pytest.raises(DataLost):
            await read(store, b"large")
        if is_started_anew:
            await finish(job_of(store, "clean-bucket"))
            await stack.aclose()
        for file, data in here.items():
            file.write_bytes(data)
        if is_started_anew:
            store = await stack.enter_async_context(rig.open())
        await finish(job_of(store, "evict"))
        await upload(store)
        for name, body in BODIES.items():
            assert await read(store, name) == body, name
        await upload(store)
        found = l3_of(store).status()
        assert found["only_bytes"] == sum(map(len, BODIES.values())), "it went once it had another copy"
        for name, body in BODIES.items():
            assert await read(store, name) == body, name


async def test_what_was_deleted_goes_from_the_bucket(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path)
    async with rig.open() as store:
        await put_all(store, BODIES)
        await upload(store)
        for key in BODIES:
            await store.delete("box", key)
        await upload(store)
        assert rig.blobs(), "the catalog in the bucket names it"
        await upload_until_older_catalogs_are_gone(store)
        assert not rig.blobs()
        assert l3_of(store).status()["blobs"] == 0


async def test_a_blob_that_cannot_be_deleted_keeps_no_other(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path)
    async with rig.open() as store:
        for number in range(20):
            await store.put("box", b"%d" % number, body_of(2 * STRIPE_BYTES, number))
            await upload(store)
        locked = min(rig.blobs())

        def refuse(call: str, key: str) -> None:
            if call == "delete" and key == locked:
                raise RemoteDenied(key)

        rig.backend.before = refuse
        for number in range(20):
            await store.delete("box", b"%d" % number)
        for _ in range(2):
            await upload_until_older_catalogs_are_gone(store)
        assert rig.blobs() == [locked]
        rig.backend.before = lambda _call, _key: None
        await upload_until_older_catalogs_are_gone(store)
        assert not rig.blobs()


async def test_a_reader_keeps_its_blob(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path, "tiered")
    async with rig.open() as store:
        await put_all(store, {b"large": BODIES[b"large"]})
        await core_of(store).destage_all()
        await core_of(store).pool.retire(segments(store)[-1].id)
        await seal_all(store)
        await upload(store)
        await upload(store)
        reader = await store.get("box", b"large")
        await store.delete("box", b"large")
        await upload_until_older_catalogs_are_gone(store)
        assert rig.blobs(), "it is being read"
        assert await reader.read() == BODIES[b"large"]
        await upload_until_older_catalogs_are_gone(store)
        assert not rig.blobs()


async def test_full_disks_give_up_what_has_a_copy(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path, "tiered")
    bodies = BODIES | {b"%d" % number: body_of(SEGMENT_BYTES // 3, number) for number in range(12)}
    async with rig.open() as store:
        await put_all(store, bodies)
        await core_of(store).destage_all()
        await seal_all(store)
        await upload(store)
        await upload(store)
        found = l3_of(store).status()
        assert found["only_bytes"] == found["live_bytes"] == sum(map(len, bodies.values()))
        (where,) = [extent for extent in (await store.describe("box", b"large"))["extents"] if extent["length"] > 1000]
        assert where["blob"] in rig.blobs()
        assert not where["lost"]
        await finish(core_of(store).jobs.compactor)
        assert not [row for row in segments(store) if row.live_bytes]
        for key, body in bodies.items():
            assert await read(store, key) == body, key
    async with rig.open() as store:
        for key, body in bodies.items():
            assert await read(store, key) == body, "after a start"
        rig.backend.before = fail
        with pytest.raises(Unavailable):
            await read(store, b"large")
        rig.backend.before = lambda _call, _key: None
        for key in bodies:
            await store.delete("box", key)
        await upload(store)
        assert rig.blobs(), "the catalog in the bucket names it"
        await upload_until_older_catalogs_are_gone(store)
        assert not rig.blobs()


async def test_segments_that_are_gone_are_forgotten_though_the_disks_never_fill(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    async with BucketRig(tmp_path, "tiered").open() as store:
        (evictor,) = [job for job in l3_of(store).services() if job.name == "evict"]
        read_at = core_of(store).reader_parts.read_at
        assert read_at is not None
        for segment in range(10**6, 10**6 + 20_000):
            read_at[segment] = 1.0
            if segment % 1000 == 0:
                await evictor.work()
        assert len(read_at) < 10_000


async def test_a_bucket_that_is_away_keeps_nobody_from_working(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path)
    rig.backend.before = fail
    async with rig.open() as store:
        await put_all(store, BODIES)
        await upload(store)
        assert any("is away" in reason for reason in l3_of(store).reasons())
        assert store.health().state == "degraded"
        for key, body in BODIES.items():
            assert await read(store, key) == body
        rig.backend.before = lambda _call, _key: None
        await upload(store)
        assert not l3_of(store).reasons()
        assert store.health().state == "healthy"


async def test_a_copy_of_the_store_is_noticed(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path)
    async with rig.open() as store:
        await put_all(store, BODIES)
        claim = f"claims/{core_of(store).disks.store_id.hex()}/{core_of(store).disks.epoch + 5:016x}"
        rig.backend.objects[claim] = b"another process"
        await upload(store)
        assert not rig.blobs()
        assert "copy of this store" in l3_of(store).status()["trouble"]


async def test_blobs_of_a_start_that_was_cut_off_go(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path)

    def lose_answer(call: str, key: str) -> None:
        if call == "put_new" and key.startswith("blobs/"):
            raise RemoteUnavailable("the answer was lost")

    async with rig.open() as store:
        await put_all(store, BODIES)
        rig.backend.after = lose_answer
        await upload(store)
        assert len(rig.blobs()) == 1
        assert l3_of(store).status()["blobs"] == 0
        rig.backend.after = lambda _call, _key: None
    left = rig.blobs()
    async with rig.open() as store:
        await upload(store)
        assert len(rig.blobs()) == 1
        assert rig.blobs() != left
        assert l3_of(store).status()["waiting_bytes"] == 0


async def test_long_bodies_go_past_full_disks(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path, "tiered")
    long = body_of(17 << 20)
    async with rig.open() as store:
        set_tight(store)
        with pytest.raises(NoSpace):
            await store.put("box", b"small", body_of(100))
        await store.put("box", b"long", stream(long, 1 << 20))
        for _ in range(2):
            await upload(store, destage=False)
        assert len(rig.blobs()) == 2
        assert await read(store, b"long") == long
        assert (
            await read(store, b"long", byte_range=ByteRange((16 << 20) - 5, (16 << 20) + 5))
            == (long[(16 << 20) - 5 : (16 << 20) + 6])
        )
        assert not shard_files(tmp_path)
        rig.backend.before = fail
        with pytest.raises(Unavailable):
            await store.put("box", b"longer", stream(long, 1 << 20))
        rig.backend.before = lambda _call, _key: None
    async with rig.open() as store:
        assert await read(store, b"long") == long
        await store.delete("box", b"long")
        await upload_until_older_catalogs_are_gone(store)
        assert not rig.blobs()


async def test_clients_that_stand_still_keep_no_other_from_the_bucket(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path, "tiered")
    goes_on = trio.Event()
    long = body_of(3 << 20)

    async def standing_still() -> AsyncIterator[bytes]:
        yield long
        await goes_on.wait()
        yield b"the rest"

    async with rig.open() as store, trio.open_nursery() as nursery:
        set_tight(store)
        for number in range(LONG_PIECES_MAX + 2):
            nursery.start_soon(store.put, "box", b"slow/%d" % number, standing_still())
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.fail_after(60):
            await store.put("box", b"another", stream(long, 1 << 20))
        assert await read(store, b"another") == long
        assert len((await store.describe("box", b"another"))["extents"]) == 3, "others have short pieces meanwhile"
        goes_on.set()
    async with rig.open() as store:
        for number in range(LONG_PIECES_MAX + 2):
            assert await read(store, b"slow/%d" % number) == long + b"the rest"


async def test_a_body_that_breaks_off_leaves_nothing_in_the_bucket(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path, "tiered")
    async with rig.open() as store:
        set_tight(store)

        async def broken() -> AsyncIterator[bytes]:
            yield body_of(16 << 20)
            await upload(store, destage=False)
            assert core_of(store).catalog.copies.dead(10), "nothing is in it"
            assert not core_of(store).catalog.copies.dropped(1 << 60, 10), "it is held"
            yield b"more"
            raise IncompleteBody("the client is gone")

        with pytest.raises(IncompleteBody):
            await store.put("box", b"long", broken())
        assert len(rig.blobs()) == 1
        set_tight(store, tight=False)
        await upload_until_older_catalogs_are_gone(store)
        assert not rig.blobs()
