"""Blobs of which little is in use are packed anew, and whatever happens meanwhile nothing is without its copy."""

import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import pytest
from bucket_rig import (
    UNCACHED,
    BucketRig,
    l3_of,
    lose_stripes,
    seal_all,
    upload,
    upload_until_older_catalogs_are_gone,
)
from memory_backend import MemoryBackend
from small_store import SMALL, HandClock, body_of, core_of, finish, make_store, put_all, read

from couchestord.errors import RemoteUnavailable
from couchestord.io.catalog.copies import BlobRow
from couchestord.remote.backend import Buffer
from couchestord.service import Progress, Service
from couchestord.store.door import ObjectStore
from couchestord.store.packing import Thin, choose, is_worth_it
from couchestord.store.remake import remake_store

Mode = Literal["cache", "tiered"]
BODY_BYTES = 10_000
KEPT = (1, 4)
"""Of each blob's eight objects, those that are not deleted."""


def thin(number: int, size: int, packed_bytes: int) -> Thin:
    return Thin(BlobRow(number, 1, 1, size, packed_bytes, 0, 0), packed_bytes)


def test_what_takes_as_much_elsewhere_stays() -> None:
    assert is_worth_it(thin(1, 1000, 750))
    assert not is_worth_it(thin(1, 1000, 751))
    assert choose([thin(1, 1000, 900), thin(2, 1000, 999)], 10_000) == []


def test_as_many_as_fill_a_blob() -> None:
    blobs = iter([thin(1, 900, 300), thin(2, 900, 500), thin(3, 900, 800), thin(4, 900, 200), thin(5, 900, 1)])
    assert [row.id for row in choose(blobs, 1000)] == [1, 2, 4]
    blobs = iter([thin(1, 900, 600), thin(2, 900, 401), thin(3, 900, 1)])
    assert [row.id for row in choose(blobs, 1000)] == [1]
    assert list(blobs) == [thin(3, 900, 1)], "each costs a look"


def test_one_that_is_longer_than_a_blob_may_be_now_is_chosen_alone() -> None:
    assert [row.id for row in choose([thin(1, 9000, 3000), thin(2, 9000, 1)], 1000)] == [1]


# -- a store -----------------------------------------------------------------------------------------------------------


def job(store: ObjectStore, name: str) -> Service:
    return next(service for service in l3_of(store).services() if service.name == name)


async def fill(store: ObjectStore, blobs_count: int) -> dict[bytes, bytes]:
    """Blobs of eight objects each, of which two live; answers these. What is tiered is in the bucket only."""
    kept: dict[bytes, bytes] = {}
    for blob in range(blobs_count):
        bodies = {b"%d-%d" % (blob, number): body_of(BODY_BYTES, (blob, number)) for number in range(8)}
        await put_all(store, bodies)
        await core_of(store).destage_all()
        await finish(job(store, "upload"))
        kept |= {b"%d-%d" % (blob, number): bodies[b"%d-%d" % (blob, number)] for number in KEPT}
    await evict(store)
    for blob, number in itertools.product(range(blobs_count), range(8)):
        if number not in KEPT:
            await store.delete("box", b"%d-%d" % (blob, number))
    return kept


async def evict(store: ObjectStore) -> None:
    """All that has a copy leaves the disks, if it may."""
    await seal_all(store)
    for service in l3_of(store).services():
        if service.name == "evict":
            for _ in range(2):
                await finish(service)


async def check(store: ObjectStore, kept: dict[bytes, bytes]) -> None:
    page = await store.list("box")
    assert {entry.key for entry in page.entries} == set(kept)
    for key, body in kept.items():
        assert await read(store, key) == body, key


@pytest.mark.parametrize("mode", ["cache", "tiered"])
async def test_what_lives_in_thin_blobs_goes_into_one(mode: Mode, tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path, mode)
    async with rig.open() as store:
        kept = await fill(store, 3)
        found = l3_of(store).status()
        live_bytes = 6 * BODY_BYTES
        assert (found["blobs"], found["live_bytes"]) == (3, live_bytes)
        assert found["only_bytes"] == (live_bytes if mode == "tiered" else 0)
        assert found["dead_bytes"] == found["bytes"] - live_bytes > 18 * BODY_BYTES
        old = set(rig.blobs())
        await finish(job(store, "pack-bucket"))
        await check(store, kept)
        (new,) = set(rig.blobs()) - old
        found = l3_of(store).status()
        assert (found["packed_blobs"], found["packed_bytes"]) == (3, live_bytes)
        assert old < set(rig.blobs()), "catalogs in the bucket name them"
        await upload_until_older_catalogs_are_gone(store)
        assert rig.blobs() == [new]
        found = l3_of(store).status()
        assert (found["blobs"], found["live_bytes"]) == (1, live_bytes)
        assert found["dead_bytes"] == len(rig.backend.objects[new]) - live_bytes < 1000
        lose_stripes(tmp_path)
        await check(store, kept)
    async with rig.open() as store:
        await check(store, kept)


async def test_it_ends(tmp_path: Path) -> None:
    """What was packed is not packed again before half of it has died."""
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path, "tiered")
    async with rig.open() as store:
        await put_all(store, {b"%d" % number: body_of(BODY_BYTES, number) for number in range(10)})
        await upload(store)
        left = []
        for number in range(10):
            if await job(store, "pack-bucket").work() is Progress.BUSY:
                left.append(10 - number)
            await store.delete("box", b"%d" % number)
        assert left == [5, 2, 1]


async def test_tiny_extents_are_let_be(tmp_path: Path) -> None:
    """Most of their blob are its index and sums, and so it would be of another."""
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path, "tiered")
    async with rig.open() as store:
        await put_all(store, {b"%d" % number: b"tiny" for number in range(40)})
        await upload(store)
        packing = job(store, "pack-bucket")
        for number in range(5):
            await store.delete("box", b"%d" % number)
            assert core_of(store).catalog.copies.thin(9)
            assert await packing.work() is Progress.IDLE
        for number in range(5, 20):
            await store.delete("box", b"%d" % number)
        assert await packing.work() is Progress.BUSY, "it takes half now"
        assert await packing.work() is Progress.IDLE


async def test_a_long_extent_from_the_bucket(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path, "tiered")
    bodies = {b"long": body_of(9 << 20), b"longer": body_of(13 << 20)}
    async with rig.open() as store:
        await put_all(store, bodies)
        await upload(store)
        await evict(store)
        await store.delete("box", b"longer")
        (old,) = rig.blobs()
        await finish(job(store, "pack-bucket"))
        assert len(rig.blobs()) == 2
        del rig.backend.objects[old]
        await check(store, {b"long": bodies[b"long"]})
        assert l3_of(store).status()["only_bytes"] == 9 << 20


# -- meanwhile ---------------------------------------------------------------------------------------------------------


def meanwhile(rig: BucketRig, do: Callable[[], Awaitable[None]]) -> None:
    """Once, when a blob was put and no record says so yet."""
    put_new = rig.backend.put_new

    async def put_and_do(key: str, parts: Sequence[Buffer]) -> None:
        await put_new(key, parts)
        if key.startswith("blobs/"):
            rig.backend.put_new = put_new  # type: ignore[method-assign]
            await do()

    rig.backend.put_new = put_and_do  # type: ignore[method-assign]


async def test_what_is_deleted_meanwhile_is_dead_in_the_new_blob(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path, "tiered")
    async with rig.open() as store:
        kept = await fill(store, 2)

        async def delete() -> None:
            for key in (b"0-1", b"0-4", b"1-4"):
                await store.delete("box", key)
                del kept[key]

        meanwhile(rig, delete)
        assert await job(store, "pack-bucket").work() is Progress.BUSY
        await check(store, kept)
        assert list(kept) == [b"1-1"]
        found = l3_of(store).status()
        assert (found["blobs"], found["live_bytes"], found["only_bytes"]) == (3, BODY_BYTES, BODY_BYTES)
        await upload_until_older_catalogs_are_gone(store)
        await check(store, kept)
        assert len(rig.blobs()) == 1
        assert l3_of(store).status()["dead_bytes"] < 1000, "it was thin itself"


async def test_what_leaves_the_disks_meanwhile_is_found_in_the_new_blob(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path, "cache")
    async with rig.open() as store:
        kept = await fill(store, 2)
    rig.set_mode("tiered")
    async with rig.open() as store:
        meanwhile(rig, lambda: evict(store))
        old = rig.blobs()
        assert await job(store, "pack-bucket").work() is Progress.BUSY
        found = l3_of(store).status()
        assert found["only_bytes"] == found["live_bytes"] == 4 * BODY_BYTES
        for key in old:
            del rig.backend.objects[key]
        await check(store, kept)


async def test_a_reader_of_the_old_blob_reads_on(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path, "tiered")
    async with rig.open() as store:
        kept = await fill(store, 2)
        (old, _) = rig.blobs()
        reader = await store.get("box", b"0-1")
        await upload_until_older_catalogs_are_gone(store)
        assert len(rig.blobs()) == 2
        assert old in rig.blobs(), "it is being read"
        assert await reader.read() == kept[b"0-1"]
        await upload_until_older_catalogs_are_gone(store)
        assert len(rig.blobs()) == 1
        await check(store, kept)


async def test_a_copy_that_moves_while_it_is_asked_for_is_found(tmp_path: Path) -> None:
    """What lies on the disks holds no blob: who needs its copy all the same may come too late to the old one."""
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path, "cache")
    async with rig.open() as store:
        kept = await fill(store, 2)
        old = set(rig.blobs())
        lose_stripes(tmp_path)
        get = rig.backend.get

        async def get_late(key: str, offset: int, length: int) -> bytes:
            rig.backend.get = get  # type: ignore[method-assign]
            await upload_until_older_catalogs_are_gone(store)
            return await get(key, offset, length)

        rig.backend.get = get_late  # type: ignore[method-assign]
        assert await read(store, b"0-1") == kept[b"0-1"]
        assert not old & set(rig.blobs())
        assert l3_of(store).status()["lost_copies"] == 0


async def test_a_place_that_nobody_held_is_looked_for_anew(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path, "tiered")
    async with rig.open() as store:
        await fill(store, 2)
        catalog = core_of(store).catalog
        rows = [row for blob in catalog.copies.confirmed(0, 9) for row in catalog.copies.extents_in_blob(blob.id, 0, 9)]
        bodies = [await l3_of(store).copies.load(row, 0, row.length) for row in rows]
        await upload_until_older_catalogs_are_gone(store)
        assert catalog.copies.blob(rows[0].stripe) is None
        assert [await l3_of(store).copies.load(row, 0, row.length) for row in rows] == bodies


# -- what fails --------------------------------------------------------------------------------------------------------


async def test_whatever_call_fails_it_is_done_later(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path, "tiered")
    failures_count = 0
    async with rig.open() as store:
        for fail_at in itertools.count():
            kept = await fill(store, 2)
            packing, left, trouble = job(store, "pack-bucket"), itertools.count(-fail_at), []

            def fail(_call: str, _key: str, left: Iterator[int] = left) -> None:
                if next(left) == 0:
                    raise RemoteUnavailable("the bucket is away")

            rig.backend.before = rig.backend.after = fail
            while await packing.work() is Progress.IDLE:
                trouble.append(l3_of(store).status()["packing_trouble"])
            rig.backend.before = rig.backend.after = lambda _call, _key: None
            assert l3_of(store).status()["packing_trouble"] == ""
            await check(store, kept)
            assert l3_of(store).status()["only_bytes"] == 4 * BODY_BYTES
            if not trouble:
                break
            assert trouble == ["the bucket is away"]
            failures_count += 1
            await evict(store)
            for key in kept:
                await store.delete("box", key)
    assert failures_count == 8


@pytest.mark.parametrize("is_left", [True, False])
async def test_a_blob_that_cannot_be_read_stays_and_keeps_no_other_from_being_packed(
    is_left: bool, tmp_path: Path
) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path, "tiered")
    async with rig.open() as store:
        kept = await fill(store, 3)
        bad, *others = rig.blobs()
        whole = rig.backend.objects.pop(bad)
        if is_left:
            rig.backend.objects[bad] = whole[:100] + bytes(len(whole) - 100)
        await finish(job(store, "pack-bucket"))
        cleaner = l3_of(store)._cleaner
        assert cleaner is not None
        assert cleaner.is_bad(int(bad[-16:], 16), 1) is not is_left, "what it held as well is not there"
        await upload_until_older_catalogs_are_gone(store)
        assert not set(others) & set(rig.blobs())
        calls = len(rig.backend.calls)
        assert await job(store, "pack-bucket").work() is Progress.IDLE
        assert len(rig.backend.calls) == calls, "not tried again"
        rig.backend.objects[bad] = whole
        await check(store, kept)
    async with rig.open() as store:
        await upload_until_older_catalogs_are_gone(store)
        assert len(rig.blobs()) == 2, "tried again after a start; the other is full of life"
        await check(store, kept)


async def test_what_has_no_copy_comes_first(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path)
    async with rig.open() as store:
        await fill(store, 2)
        await store.put("box", b"new", body_of(1000))
        await core_of(store).destage_all()

        def refuse(call: str, _key: str) -> None:
            if call == "put_new":
                raise RemoteUnavailable("full")

        rig.backend.before = refuse
        await finish(job(store, "upload"))
        calls = len(rig.backend.calls)
        assert await job(store, "pack-bucket").work() is Progress.IDLE
        assert len(rig.backend.calls) == calls


async def test_a_bucket_that_is_anothers_by_now_is_left_alone(tmp_path: Path) -> None:
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path)
    async with rig.open() as store:
        await fill(store, 2)
        core = core_of(store)
        rig.backend.objects[f"claims/{core.disks.store_id.hex()}/{core.disks.epoch + 5:016x}"] = b"another process"
        before = rig.blobs()
        assert await job(store, "pack-bucket").work() is Progress.IDLE
        assert rig.blobs() == before
        assert "copy of this store" in l3_of(store).status()["packing_trouble"]


async def test_a_node_made_anew_finds_all(tmp_path: Path) -> None:
    """From the bucket as it was at any time between two calls."""
    await make_store(tmp_path / "old", UNCACHED)
    rig = BucketRig(tmp_path / "old", "tiered")
    moments: list[dict[str, bytes]] = []
    async with rig.open() as store:
        kept = await fill(store, 2)
        for _ in range(2):
            await core_of(store).jobs.snapshotter.take()
            await finish(job(store, "metadata"))
        rig.backend.before = rig.backend.after = lambda _call, _key: moments.append(dict(rig.backend.objects))
        await upload_until_older_catalogs_are_gone(store)
        assert len(rig.blobs()) == 1
    kinds = {frozenset(key for key in now if key.startswith(("blobs/", "roots/"))): now for now in moments}
    distinct = list(kinds.values())
    assert len(distinct) > 5
    for number, objects in enumerate(distinct):
        backend = MemoryBackend(keys_per_page=100)
        backend.objects = objects
        path = tmp_path / f"{number}"
        made = await remake_store(path, SMALL, backend, HandClock(100 + number))
        assert (made.missing_blobs, made.lost_extents) == (0, 0)
        new = BucketRig(path, "tiered")
        new.backend = backend
        async with new.open() as store:
            await check(store, kept)


async def test_a_blob_that_was_packed_for_nothing_goes(tmp_path: Path) -> None:
    """Its record was never written, and all that is in it lies in blobs that count."""
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path, "tiered")
    async with rig.open() as store:
        kept = await fill(store, 2)
        old = set(rig.blobs())

        async def stop() -> None:
            raise RemoteUnavailable("the answer was lost")

        meanwhile(rig, stop)
        assert await job(store, "pack-bucket").work() is Progress.IDLE
        (left,) = set(rig.blobs()) - old
    for is_whole in (False, True):
        one = min(old)
        whole = rig.backend.objects[one]
        if not is_whole:
            rig.backend.objects[one] = whole[:100] + bytes(len(whole) - 100)
        async with rig.open() as store:
            await finish(job(store, "leftovers"))
            assert (left in rig.blobs()) is not is_whole, "it may be the last copy"
            rig.backend.objects[one] = whole
            await check(store, kept)
