"""The background jobs, beside each other."""

from pathlib import Path
from typing import Any

import pytest
import trio
from small_store import STRIPE_BYTES, body_of, core_of, finish, look, new_store, read, segments

from couchestord.io.requests import PlaceShard


async def test_shard_that_is_being_put_in_its_place_is_not_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file has its name already while the catalog still says that it lies on the disk that is back."""
    async with new_store(tmp_path, disks_count=7) as store:
        core = core_of(store)
        rebuilder, housekeeper = core.jobs.rebuilder, core.jobs.housekeeper
        await store.put("box", b"long", body_of(5 * STRIPE_BYTES))
        await core.pool.aclose()
        (row,) = segments(store)
        home = tmp_path / f"disk-{row.disks[0]}"
        home.rename(tmp_path / "away")
        await look(store)
        swept = trio.Event()
        submit = core.writer.submit

        async def sweep() -> None:
            await housekeeper.work()
            swept.set()

        async def submit_later(request: object) -> Any:
            if isinstance(request, PlaceShard):
                (tmp_path / "away").rename(home)
                await core.jobs.monitor.work()
                nursery.start_soon(sweep)
                while not swept.is_set() and not rebuilder.turn.statistics().tasks_waiting:
                    await trio.sleep(0.001)
            return await submit(request)

        monkeypatch.setattr(rebuilder, "_submit", submit_later)
        async with trio.open_nursery() as nursery:
            await finish(rebuilder)
        assert swept.is_set()
        (row,) = segments(store)
        assert row.disks[0] != int(home.name[5:])
        for other in row.disks[1:3]:
            core.disks.fail(other, "as the test wants it")
        assert await read(store, b"long") == body_of(5 * STRIPE_BYTES)
