"""Drafts into a small store."""

from pathlib import Path
from typing import Any

import pytest
from file_rig import laid, make
from small_store import HandClock, body_of, faults_of, new_store, read

from couchestord.errors import Corrupt, NoSpace
from couchestord.frontends.posix.drafts import CONTENT_BYTES_MAX, Draft
from couchestord.frontends.posix.publishing import publish
from couchestord.io import filerequests as fr

PARTS = [
    (3, b"short"),
    (1000, body_of(CONTENT_BYTES_MAX + 17)),
    (3 * CONTENT_BYTES_MAX, b"between"),
    (4 * CONTENT_BYTES_MAX, body_of(CONTENT_BYTES_MAX + 4711)),
    (6 * CONTENT_BYTES_MAX, b"end"),
]
"""Runs that ride in the record, and long ones whose ends do."""


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
