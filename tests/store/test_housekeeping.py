from dataclasses import replace
from pathlib import Path

import pytest
from small_store import (
    SEGMENT_BYTES,
    SMALL,
    STRIPE_BYTES,
    HandClock,
    body_of,
    core_of,
    finish,
    make_store,
    new_store,
    segments,
    shard_files,
)

from couchestord.ec.shards import shard_path
from couchestord.errors import NoSuchUpload
from couchestord.io import requests as rq
from couchestord.store.door import ObjectStore


async def test_results_of_uploads_are_kept_a_day(tmp_path: Path) -> None:
    clock = HandClock()
    await make_store(tmp_path)
    async with ObjectStore.open(tmp_path, replace(SMALL, upload_results_kept_s=100.0), clock=clock) as store:
        housekeeper = core_of(store).jobs.housekeeper
        upload = (await store.create_upload("box", b"key")).upload_id
        chosen = [(1, (await store.put_part("box", b"key", upload, 1, b"body")).etag)]
        info = await store.complete_upload("box", b"key", upload, chosen)
        clock.ns += 99_000_000_000
        await housekeeper.work()
        sequence = core_of(store).catalog.committed_sequence
        assert await store.complete_upload("box", b"key", upload, chosen) == info
        clock.ns += 2_000_000_000
        await housekeeper.work()
        assert core_of(store).catalog.committed_sequence == sequence + 1
        with pytest.raises(NoSuchUpload):
            await store.complete_upload("box", b"key", upload, chosen)
        await housekeeper.work()
        assert core_of(store).catalog.committed_sequence == sequence + 1
        assert (await store.head("box", b"key")).etag == info.etag


async def test_uploads_that_were_left_are_aborted(tmp_path: Path) -> None:
    clock = HandClock()
    day = 86_400 * 10**9
    await make_store(tmp_path)
    async with ObjectStore.open(tmp_path, replace(SMALL, uploads_kept_s=7 * 86_400.0), clock=clock) as store:
        housekeeper = core_of(store).jobs.housekeeper
        left = [(await store.create_upload("box", b"left %d" % number)).upload_id for number in range(70)]
        await store.put_part("box", b"left 0", left[0], 1, b"body")
        used = (await store.create_upload("box", b"used")).upload_id
        clock.ns += 4 * day
        await store.put_part("box", b"used", used, 1, b"body")
        young = (await store.create_upload("box", b"young")).upload_id
        await finish(housekeeper)
        assert len((await store.list_uploads("box"))[0]) == 72
        clock.ns += 4 * day
        await finish(housekeeper)
        assert {found.upload_id for found in (await store.list_uploads("box"))[0]} == {used, young}
        assert housekeeper.aborted_uploads_count == 70
        with pytest.raises(NoSuchUpload):
            await store.put_part("box", b"left 0", left[0], 2, b"body")
        # one that gets a part between the look and the abort stays
        before_ns = clock.ns
        await store.put_part("box", b"used", used, 2, b"body")
        await core_of(store).submit(rq.AbortUpload("box", b"used", used, before_ns))
        assert len((await store.list_parts("box", b"used", used))[0]) == 2


async def test_uploads_that_are_kept_for_longer_than_there_is_time_are_kept(tmp_path: Path) -> None:
    async with new_store(tmp_path, uploads_kept_s=1e12) as store:
        await store.create_upload("box", b"key")
        await finish(core_of(store).jobs.housekeeper)
        assert len((await store.list_uploads("box"))[0]) == 1


async def test_files_of_segments_that_are_gone_go_at_the_first_step(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await store.put("box", b"key", body_of(4 * STRIPE_BYTES))
    stale = [tmp_path / "disk-1" / shard_path(3, 1), tmp_path / "disk-2/segments/0000000000000005.2.new"]
    unknown = tmp_path / "disk-1" / shard_path(1 << 40, 0)
    foreign = tmp_path / "disk-1/segments/notes.txt"
    for path in (*stale, unknown, foreign):
        path.write_bytes(b"left behind")
    before = set(shard_files(tmp_path))
    async with ObjectStore.open(tmp_path, SMALL) as store:
        housekeeper = core_of(store).jobs.housekeeper
        await housekeeper.work()
        await core_of(store).jobs.rebuilder.work()  # removes what a rebuild before left
        assert before - set(shard_files(tmp_path)) == set(stale)
        stale[0].write_bytes(b"again")
        await housekeeper.work()
        assert stale[0].exists()


async def test_full_segment_that_waits_open_is_sealed(tmp_path: Path) -> None:
    """So that deletes lead to room without another write."""
    async with new_store(tmp_path) as store:
        await store.put("box", b"key", body_of(SEGMENT_BYTES))
        assert [row.state for row in segments(store)] == [0]
        await store.delete("box", b"key")
        await finish(core_of(store).jobs.compactor)
        assert shard_files(tmp_path)
        await core_of(store).jobs.housekeeper.work()
        await finish(core_of(store).jobs.compactor)
        assert shard_files(tmp_path) == []


async def test_segment_with_room_stays_open(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await store.put("box", b"key", body_of(4 * STRIPE_BYTES))
        await core_of(store).jobs.housekeeper.work()
        await store.put("box", b"other", body_of(4 * STRIPE_BYTES))
        assert [row.state for row in segments(store)] == [0]
