"""Who was let in and hangs is cut off."""

from pathlib import Path

import pytest
import trio
from small_store import new_store

from couchestord.cache import CACHES_OFF
from couchestord.io.sharedpage import NOBODY, SharedPage
from couchestord.metrics import Metrics
from couchestord.replica.door import knock, serve_door
from couchestord.replica.host import Host


async def test_a_process_whose_loop_does_not_turn_keeps_nothing_from_being_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = trio.Event()
    monkeypatch.setattr("couchestord.replica.host._LOOK_AT_LOOPS_S", 0.001)
    host = Host(SharedPage(), Metrics())
    async with (
        new_store(tmp_path, cache=CACHES_OFF) as store,
        serve_door(tmp_path, host),
        host.serving(store),
        trio.open_nursery() as nursery,
    ):
        alive, hanging = await knock(tmp_path), await knock(tmp_path)

        async def beat() -> None:
            while not turned.is_set():
                alive.page.beat(alive.number)
                await trio.lowlevel.checkpoint()

        nursery.start_soon(beat)
        for link in (alive, hanging):
            nursery.start_soon(link.run)
            await link.open()
        hanging.page.see(hanging.number, 0)
        assert host.page.seen_by_all() == 0
        await hanging.closing.wait()
        while len(host.page.let_in) > 1:
            await trio.lowlevel.checkpoint()
        assert hanging.is_gone
        assert not alive.is_gone
        assert host.page.seen_by_all() == alive.page.seen(alive.number) != NOBODY
        turned.set()
        alive.channel.close()
