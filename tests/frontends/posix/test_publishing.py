"""Drafts into a small store."""

from pathlib import Path
from typing import Any

import pytest
from bucket_rig import UNCACHED, BucketRig, l3_of, upload, upload_until_older_catalogs_are_gone
from file_rig import laid, make, there
from small_store import (
    SMALL,
    HandClock,
    body_of,
    core_of,
    faults_of,
    finish,
    make_store,
    new_store,
    read,
    shard_files,
)

from couchestord.errors import Corrupt, NoSpace
from couchestord.frontends.posix.drafts import CONTENT_BYTES_MAX, Draft, Spilled
from couchestord.frontends.posix.publishing import publish, spill
from couchestord.io import filerequests as fr
from couchestord.io.records import BODY_BYTES_MAX
from couchestord.store import ObjectStore, overflow
from couchestord.store.options import INLINE_BYTES_MAX

PARTS = [
    (3, b"short"),
    (1000, body_of(CONTENT_BYTES_MAX + 17)),
    (3 * CONTENT_BYTES_MAX, b"between"),
    (4 * CONTENT_BYTES_MAX, body_of(CONTENT_BYTES_MAX + 4711)),
    (6 * CONTENT_BYTES_MAX, b"end"),
]
"""Runs that ride in the record, and long ones whose ends do."""
FAR = 4 * CONTENT_BYTES_MAX
MUCH = {
    "ends of long runs": [(number * FAR, body_of(CONTENT_BYTES_MAX + 60_000, number)) for number in range(18)],
    "short runs between long ones": [
        (number * FAR // 2, body_of(100_000 if number % 2 else CONTENT_BYTES_MAX, number)) for number in range(24)
    ],
}
"""More than a record has room for, if all of it rode there that may."""


async def put_in(store: ObjectStore, id_: int, parts: list[tuple[int, bytes]], *, is_spilled: bool) -> None:
    """Publish them, at once or as what was spilled."""
    draft = Draft(store.files.node(id_).size)
    for offset, data in parts:
        draft.write(offset, data, 1)
    if is_spilled:
        await spill(store.files, id_, draft, Spilled(await store.files.make_spill()))
        assert not draft.dirty_bytes
    await publish(store.files, id_, draft)


@pytest.mark.parametrize("is_spilled", [False, True])
@pytest.mark.parametrize("what", MUCH)
async def test_what_a_record_has_no_room_for_goes_into_stripes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, is_spilled: bool
) -> None:
    async with new_store(tmp_path) as store:
        ride_bytes, change = list[int](), store.files.change

        async def seen(request: Any) -> Any:
            if isinstance(request, fr.PublishFile) and request.contents:
                ride_bytes.append(len(request.body))
            return await change(request)

        id_ = await make(store, b"f")
        monkeypatch.setattr(store.files, "change", seen)
        await put_in(store, id_, MUCH[what], is_spilled=is_spilled)
        assert BODY_BYTES_MAX - INLINE_BYTES_MAX < ride_bytes[0] <= BODY_BYTES_MAX
        assert await read(store, b"f") == laid(*MUCH[what])
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert await read(store, b"f") == laid(*MUCH[what])
    assert faults_of(tmp_path) == []


@pytest.mark.parametrize("is_spilled", [False, True])
async def test_what_goes_past_full_disks_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_spilled: bool
) -> None:
    """Some of it rides in the record, and of the rest each content lies in blobs of its own."""
    monkeypatch.setattr(overflow, "PIECE_BYTES", CONTENT_BYTES_MAX // 2)
    await make_store(tmp_path, UNCACHED)
    rig = BucketRig(tmp_path, "tiered")
    whole, over = PARTS[1][1], [(1000, b"over"), (CONTENT_BYTES_MAX, body_of(CONTENT_BYTES_MAX, 1))]
    expected = {b"f": laid(*PARTS), b"whole": whole}
    async with rig.open() as store:
        full = l3_of(store)._overflow
        core_of(store).intake.overflow = lambda: full
        ids = {key: await make(store, key) for key in expected}
        await put_in(store, ids[b"f"], PARTS, is_spilled=is_spilled)
        await put_in(store, ids[b"whole"], [(0, whole)], is_spilled=is_spilled)
        assert not shard_files(tmp_path)
        assert len(rig.blobs()) == 9
        await are_read(store, expected)
    async with rig.open() as store:
        await are_read(store, expected)
        # the content that is all of a file is split where its extents end
        for key, id_ in ids.items():
            await put_in(store, id_, over, is_spilled=False)
            expected[key] = laid(*over, over=expected[key])
        await finish(core_of(store).jobs.joiner)
        await upload(store)
        await are_read(store, expected)
    async with rig.open() as store:
        await are_read(store, expected)
        for key in expected:
            await store.delete("box", key)
        await finish(core_of(store).jobs.orphans)
        await upload_until_older_catalogs_are_gone(store)
        assert not rig.blobs()


async def are_read(store: ObjectStore, expected: dict[bytes, bytes]) -> None:
    """Through a mount, and by S3."""
    for key, body in expected.items():
        assert await store.files.read(there(store, key).id, 0, len(body) + 1) == body
        assert await read(store, key) == body


async def test_ends_of_long_runs_ride_beside_short_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with new_store(tmp_path) as store:
        requests, change = [], store.files.change

        async def seen(request: Any) -> Any:
            requests.append(request)
            return await change(request)

        id_, draft, clock = await make(store, b"f"), Draft(0), HandClock()
        monkeypatch.setattr(store.files, "change", seen)
        for offset, data in PARTS:
            draft.write(offset, data, clock.now_ns())
        await publish(store.files, id_, draft)
        assert (draft.is_dirty, draft.dirty_bytes) == (False, 0)
        assert await read(store, b"f") == laid(*PARTS)
        (request,) = requests
        assert isinstance(request, fr.PublishFile)
        # all of the record's body is somebody's, each byte once
        inside = [each for new in request.contents for each in new.extents if not each.segment]
        assert len(inside) == len(PARTS)
        assert sum(each.length for each in inside) == len(request.body)
        assert (request.modified_ns, request.changed_ns) == (draft.modified_ns, draft.changed_ns)
    assert faults_of(tmp_path) == []


async def test_of_a_draft_that_was_only_cut_no_bytes_are_taken(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        id_, draft = await make(store, b"f"), Draft(0)
        draft.truncate(100, 1)
        await publish(store.files, id_, draft)
        assert await read(store, b"f") == bytes(100)


@pytest.mark.parametrize("error", [NoSpace("full"), Corrupt("x"), KeyError("a defect")])
async def test_a_draft_that_failed_is_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async with new_store(tmp_path) as store:
        id_, draft = await make(store, b"f"), Draft(0)
        for offset, data in PARTS:
            draft.write(offset, data, 1)

        async def refuse(_: Any) -> Any:
            draft.write(0, b"meanwhile", 2)
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(store.files, "change", refuse)
            with pytest.raises(type(error)):
                await publish(store.files, id_, draft)
        assert draft.is_dirty
        assert await read(store, b"f") == b""
        await publish(store.files, id_, draft)
        assert await read(store, b"f") == laid((0, b"meanwhile"), over=laid(*PARTS))
