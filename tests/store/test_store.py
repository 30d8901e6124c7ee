from dataclasses import replace
from pathlib import Path

import pytest
import trio
from small_store import (
    SEGMENT_BYTES,
    SMALL,
    STRIPE_BYTES,
    HandClock,
    body_of,
    core_of,
    faults_of,
    finish,
    make_store,
    md5_of,
    new_store,
    put_all,
    read,
    shard_files,
    stream,
)

from couchestord.errors import (
    AccessDenied,
    BucketNotEmpty,
    EntityTooSmall,
    InvalidArgument,
    InvalidPart,
    InvalidPartOrder,
    InvalidRange,
    MethodNotAllowed,
    NoSuchBucket,
    NoSuchKey,
    NoSuchUpload,
    NoSuchVersion,
    NotModified,
    PreconditionFailed,
)
from couchestord.io.catalog.catalog import dump
from couchestord.model import PART_BYTES_MIN, Attributes, ByteRange, Conditions
from couchestord.store.door import ObjectStore


async def test_example_of_the_docstring(tmp_path: Path) -> None:
    data = tmp_path / "data"
    await ObjectStore.create(data)
    body = body_of(3_000_000)
    async with ObjectStore.open(str(data)) as store:
        await store.create_bucket("photos")
        await store.put("photos", b"2026/one.jpg", body)
        async with await store.get("photos", b"2026/one.jpg") as reader:
            assert b"".join([bytes(piece) async for piece in reader]) == body
    async with ObjectStore.open(data) as store:
        assert await read(store, b"2026/one.jpg", "photos") == body


async def test_put_get_head_list_delete(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        bodies = {b"a": b"", b"a/": b"marker", b"a/b": body_of(100), b"z/deep/er": body_of(4 * STRIPE_BYTES)}
        await put_all(store, bodies)
        for key, body in bodies.items():
            info = await store.head("box", key)
            assert (info.bucket, info.key, info.size_bytes, info.etag) == ("box", key, len(body), md5_of(body))
            assert info.version_id is None
            assert await read(store, key) == body
        page = await store.list("box")
        assert [(entry.key, entry.size_bytes) for entry in page.entries] == [(k, len(b)) for k, b in bodies.items()]
        with pytest.raises(BucketNotEmpty):
            await store.delete_bucket("box")
        for key in bodies:
            await store.delete("box", key)
            await store.delete("box", key)
            with pytest.raises(NoSuchKey):
                await store.get("box", key)
        await store.delete_bucket("box")
        for call in (
            store.head("box", b"a"),
            store.put("box", b"a", b""),
            store.list("box"),
            store.delete("box", b"a"),
        ):
            with pytest.raises(NoSuchBucket):
                await call
    assert faults_of(tmp_path) == []


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    clock = HandClock()
    await make_store(tmp_path)
    bodies = {b"%d/%d" % (size % 7, size): body_of(size) for size in (0, 1, 70_000, 200_000, 1_300_000)}
    attributes = Attributes({"content-type": "text/plain"}, {"colour": "r\u00f6t"}, {"crc32": "AAAAAA=="})
    async with ObjectStore.open(tmp_path, SMALL, clock=clock) as store:
        for key, body in bodies.items():
            await store.put("box", key, stream(body), attributes=attributes)
        infos = [await store.head("box", key) for key in bodies]
    async with ObjectStore.open(tmp_path, SMALL, clock=clock) as store:
        assert [await store.head("box", key) for key in bodies] == infos
        assert infos[0].attributes == attributes
        for key, body in bodies.items():
            assert await read(store, key) == body
    kept = dump(tmp_path / "catalog.sqlite")
    async with ObjectStore.open(tmp_path, SMALL, clock=clock):
        pass
    assert dump(tmp_path / "catalog.sqlite") == kept


# -- versions ------------------------------------------------------------------------------------------------------


async def test_versions_and_markers(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await store.put("box", b"key", b"null version")
        await store.set_versioning("box", "Enabled")
        bodies = [body_of(100), body_of(5 * STRIPE_BYTES), b""]
        ids = [(await store.put("box", b"key", body)).version_id for body in bodies]
        assert len({*ids, None}) == 4
        for id_, body in zip(ids, bodies, strict=True):
            assert await read(store, b"key", version_id=id_) == body
        assert await read(store, b"key", version_id="null") == b"null version"
        assert await read(store, b"key") == b""
        marked = await store.delete("box", b"key")
        assert marked.delete_marker
        with pytest.raises(NoSuchKey):
            await store.get("box", b"key")
        with pytest.raises(MethodNotAllowed):
            await store.get("box", b"key", version_id=marked.version_id)
        assert (await store.list("box")).entries == ()
        assert await store.delete("box", b"key", version_id=marked.version_id) == marked
        assert await read(store, b"key") == b""
        await store.delete("box", b"key", version_id=ids[2])
        assert await read(store, b"key") == bodies[1]
        for id_ in (ids[2], "0" * 16, "no id"):
            with pytest.raises(NoSuchVersion):
                await store.head("box", b"key", version_id=id_)
        with pytest.raises(InvalidArgument):
            await store.set_versioning("box", "Off")
        assert (await store.head_bucket("box")).versioning == "Enabled"
    assert faults_of(tmp_path) == []


# -- conditions ----------------------------------------------------------------------------------------------------


async def test_conditions_reach_every_method(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        first = (await store.put("box", b"key", b"one", conditions=Conditions(if_none_match=("*",)))).etag
        there, other = Conditions(if_match=(first,)), Conditions(if_match=("0" * 32,))
        fresh = Conditions(if_none_match=("*",))
        for call in (
            store.put("box", b"key", b"two", conditions=fresh),
            store.put("box", b"key", body_of(4 * STRIPE_BYTES), conditions=other),
            store.get("box", b"key", conditions=other),
            store.head("box", b"key", conditions=other),
            store.delete("box", b"key", conditions=other),
            store.copy("box", b"copy", "box", b"key", source_conditions=other),
            store.copy("box", b"copy", "box", b"key", source_conditions=Conditions(if_none_match=(first,))),
            store.copy("box", b"key", "box", b"key", attributes=Attributes(), conditions=fresh),
        ):
            with pytest.raises(PreconditionFailed):
                await call
        for call in (
            store.get("box", b"key", conditions=Conditions(if_none_match=(first,))),
            store.head("box", b"key", conditions=Conditions(if_none_match=(first,))),
        ):
            with pytest.raises(NotModified):
                await call
        with pytest.raises(NoSuchKey):
            await store.put("box", b"none", b"", conditions=there)
        assert await read(store, b"key", conditions=there) == b"one"
        await store.put("box", b"key", b"two", conditions=there)
        with pytest.raises(PreconditionFailed):
            await store.put("box", b"key", b"three", conditions=there)
        assert await read(store, b"key") == b"two"


async def test_of_many_that_create_a_key_at_once_one_does(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        made: list[bytes] = []

        async def create(number: int) -> None:
            body = body_of(1000 if number % 2 else 3 * STRIPE_BYTES, number)
            try:
                await store.put("box", b"key", body, conditions=Conditions(if_none_match=("*",)))
            except PreconditionFailed:
                return
            made.append(body)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(create, number)
        assert len(made) == 1
        assert await read(store, b"key") == made[0]


# -- copies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1000, 3 * STRIPE_BYTES + 77, 2 * SEGMENT_BYTES + 5])
async def test_copies_of_copies_live_on_without_their_source(tmp_path: Path, size: int) -> None:
    body = body_of(size)
    async with new_store(tmp_path) as store:
        await store.create_bucket("other")
        given = Attributes(metadata={"colour": "red"})
        await store.put("box", b"key", body, attributes=given)
        written = len(shard_files(tmp_path))
        copied = await store.copy("other", b"copy", "box", b"key")
        again = await store.copy("box", b"copy/again", "other", b"copy", attributes=Attributes())
        assert (copied.etag, copied.attributes) == (md5_of(body), given)
        assert (again.etag, again.attributes) == (md5_of(body), Attributes())
        assert len(shard_files(tmp_path)) == written
        await store.delete("box", b"key")
        await store.put("other", b"copy", b"something else")
        await store.destage()
        await finish(core_of(store).jobs.compactor)
        assert await read(store, b"copy/again") == body
        assert await read(store, b"copy/again", byte_range=ByteRange(None, 10)) == body[-10:] if size else True
        with pytest.raises(InvalidArgument):
            await store.copy("box", b"copy/again", "box", b"copy/again")
        await store.copy("box", b"copy/again", "box", b"copy/again", attributes=given)
        assert (await store.head("box", b"copy/again")).attributes == given
        assert await read(store, b"copy/again") == body
    assert faults_of(tmp_path) == []


# -- multipart -----------------------------------------------------------------------------------------------------


async def test_multipart_object_with_a_small_last_part(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        upload = (await store.create_upload("box", b"big", attributes=Attributes(metadata={"a": "b"}))).upload_id
        bodies = {2: body_of(PART_BYTES_MIN, 2), 5: body_of(PART_BYTES_MIN + 70_001, 5), 9: b"the end"}
        etags = {}
        for number in (9, 2, 5):
            part = await store.put_part("box", b"big", upload, number, stream(bodies[number], 100_000))
            assert (part.number, part.size_bytes, part.etag) == (number, len(bodies[number]), md5_of(bodies[number]))
            etags[number] = part.etag
        await store.put_part("box", b"big", upload, 7, b"left out")
        parts, truncated = await store.list_parts("box", b"big", upload, max_parts=2)
        assert ([part.number for part in parts], truncated) == ([2, 5], True)
        parts, truncated = await store.list_parts("box", b"big", upload, start_after=5)
        assert ([part.number for part in parts], truncated) == ([7, 9], False)
        chosen = [(number, etags[number]) for number in sorted(etags)]
        for wrong, error in (
            ([], InvalidArgument),
            (chosen[::-1], InvalidPartOrder),
            ([*chosen, (10, chosen[0][1])], InvalidPart),
            ([(2, etags[5])], InvalidPart),
            ([chosen[0], (7, md5_of(b"left out")), chosen[2]], EntityTooSmall),
        ):
            with pytest.raises(error):
                await store.complete_upload("box", b"big", upload, wrong)
        with pytest.raises(NoSuchKey):
            await store.head("box", b"big")
        info = await store.complete_upload("box", b"big", upload, chosen)
        whole = b"".join(bodies[number] for number in sorted(bodies))
        joined = md5_of(b"".join(bytes.fromhex(etag) for _, etag in chosen))
        assert (info.size_bytes, info.etag, info.parts_count) == (len(whole), f"{joined}-3", 3)
        assert await store.complete_upload("box", b"big", upload, chosen) == info
        assert await store.head("box", b"big") == info
        assert await read(store, b"big") == whole
        for at in (0, PART_BYTES_MIN - 5, 2 * PART_BYTES_MIN + 70_000, len(whole) - 9):
            assert await read(store, b"big", byte_range=ByteRange(at, at + 10)) == whole[at : at + 11]
        with pytest.raises(NoSuchUpload):
            await store.abort_upload("box", b"big", upload)
        await store.copy("box", b"copy", "box", b"big")
        await store.delete("box", b"big")
        await store.destage()
        assert await read(store, b"copy") == whole
        assert (await store.head("box", b"copy")).parts_count == 3
    assert faults_of(tmp_path) == []


async def test_upload_of_copied_parts(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        source = body_of(PART_BYTES_MIN + 200_000)
        await store.put("box", b"source", source)
        upload = (await store.create_upload("box", b"made")).upload_id
        first = await store.copy_part(
            "box", b"made", upload, 1, "box", b"source", byte_range=ByteRange(99, PART_BYTES_MIN + 98)
        )
        last = await store.copy_part("box", b"made", upload, 2, "box", b"source")
        with pytest.raises(InvalidRange):
            await store.copy_part("box", b"made", upload, 3, "box", b"source", byte_range=ByteRange(0, len(source)))
        await store.delete("box", b"source")
        await store.complete_upload("box", b"made", upload, [(1, first.etag), (2, last.etag)])
        assert await read(store, b"made") == source[99 : PART_BYTES_MIN + 99] + source
    assert faults_of(tmp_path) == []


async def test_aborted_upload_leaves_nothing(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        made = [await store.create_upload("box", key) for key in (b"a", b"b", b"b", b"c/d")]
        listed, truncated = await store.list_uploads("box", max_uploads=3)
        assert (listed, truncated) == (made[:3], True)
        listed, truncated = await store.list_uploads("box", start_after=(b"b", made[1].upload_id))
        assert (listed, truncated) == (made[2:], False)
        assert (await store.list_uploads("box", prefix=b"b"))[0] == made[1:3]
        await store.put_part("box", b"a", made[0].upload_id, 1, body_of(2 * SEGMENT_BYTES))
        for upload in made:
            await store.abort_upload("box", upload.key, upload.upload_id)
            with pytest.raises(NoSuchUpload):
                await store.put_part("box", upload.key, upload.upload_id, 1, b"")
        assert await store.list_uploads("box") == ([], False)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await finish(core_of(store).jobs.compactor)
        assert shard_files(tmp_path) == []
    assert faults_of(tmp_path) == []


async def test_uploads_of_a_bucket_that_is_removed_go_one_by_one(tmp_path: Path) -> None:
    """A record that forgets all of them would hold the loop as long as they have parts."""
    async with new_store(tmp_path) as store:
        await store.create_user("ann")
        await store.create_bucket("hers", owner="ann")
        for key in (b"a", b"b", b"b", b"c/d"):
            upload = (await store.create_upload("hers", key)).upload_id
            await store.put_part("hers", key, upload, 1, b"part")
        await store.put("hers", b"in/the/way", b"")
        stats = core_of(store).writer.stats
        with pytest.raises(BucketNotEmpty):
            await store.delete_bucket("hers", owner="ann")
        await store.delete("hers", b"in/the/way")
        with pytest.raises(AccessDenied):
            await store.delete_bucket("hers", owner="bob")
        assert len((await store.list_uploads("hers"))[0]) == 4
        before = stats.mutations
        await store.delete_bucket("hers", owner="ann")
        assert stats.mutations == before + 5
        with pytest.raises(NoSuchBucket):
            await store.delete_bucket("hers")
    assert faults_of(tmp_path) == []


async def test_part_of_an_upload_that_was_aborted_meanwhile(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        upload = (await store.create_upload("box", b"key")).upload_id

        async def body() -> object:
            yield body_of(3 * STRIPE_BYTES)
            await store.abort_upload("box", b"key", upload)
            yield b"end"

        with pytest.raises(NoSuchUpload):
            await store.put_part("box", b"key", upload, 1, body())  # type: ignore[arg-type]
        assert await store.list_uploads("box") == ([], False)


@pytest.mark.parametrize("number", [0, -1, 10_001])
async def test_part_numbers_have_bounds(tmp_path: Path, number: int) -> None:
    async with new_store(tmp_path) as store:
        upload = (await store.create_upload("box", b"key")).upload_id
        with pytest.raises(InvalidArgument):
            await store.put_part("box", b"key", upload, number, b"")
        for good in (1, 10_000):
            await store.put_part("box", b"key", upload, good, b"")


# -- with everything running ---------------------------------------------------------------------------------------


async def test_with_the_background_jobs_running(tmp_path: Path) -> None:
    """Destage, compaction, snapshots and trims go on under writers, readers and deleters, and nobody notices."""
    running = replace(SMALL, services=True, destage_interval_s=0.01, snapshot_bytes_min=1)
    await make_store(tmp_path, running)
    kept: dict[bytes, bytes] = {}
    async with ObjectStore.open(tmp_path, running) as store:
        jobs = core_of(store).jobs
        jobs.snapshotter.interval_s = jobs.checkpointer.interval_s = 0.01

        async def churn(lane: int) -> None:
            for turn in range(12):
                key = b"%d/%d" % (lane, turn % 4)
                body = body_of((turn * 37_013 + lane * 90_001) % 400_000, (lane, turn))
                await store.put("box", key, stream(body))
                kept[key] = body
                assert await read(store, key) == body
                if turn % 5 == 4:
                    await store.delete("box", key)
                    del kept[key]

        async with trio.open_nursery() as nursery:
            for lane in range(6):
                nursery.start_soon(churn, lane)
        assert jobs.destager.moved_extents_count
        assert jobs.snapshotter.taken_count
        for key, body in kept.items():
            assert await read(store, key) == body
    assert faults_of(tmp_path) == []
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert {entry.key for entry in (await store.list("box")).entries} == set(kept)
        for key, body in kept.items():
            assert await read(store, key) == body
