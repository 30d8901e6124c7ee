"""What a worker has of what the daemon was given."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from couchestord.cache import CacheConfig
from couchestord.cache.l2map import L2Map
from couchestord.config import Config
from couchestord.io.sharedpage import SharedPage
from couchestord.processes import orders, worker
from couchestord.processes.worker import run_worker, share_of


def test_memory_is_divided_and_every_share_is_legal() -> None:
    assert share_of(CacheConfig(128 << 20, 1024 // 8), 4) == CacheConfig(32 << 20, 32)
    for shards in (1, 2, 3, 64):
        for workers in (1, 2, 3, 7, 64):
            share = share_of(CacheConfig(shards << 20, shards), workers)
            assert share.l1_bytes == (shards << 20) // workers
            assert share.l1_shards >= 1
    assert share_of(CacheConfig(0), 3).l1_bytes == 0


def test_all_have_the_second_tier(tmp_path: Path) -> None:
    shared = L2Map(1 << 30)
    share = share_of(CacheConfig(128 << 20, 1, tmp_path, 1 << 30, l2_map=shared), 2)
    assert share == CacheConfig(64 << 20, 1, tmp_path, 1 << 30, l2_map=shared)


NUMBER = 5


@asynccontextmanager
async def running(page: SharedPage) -> AsyncIterator[socket.socket]:
    """A worker, and the supervisor's end of its orders."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                run_worker, Config(), theirs, page, CacheConfig(), NUMBER, [listener], 1, 6, lambda: None
            )
            yield ours
            orders.send(ours, orders.STOP)


async def test_worker_whose_link_ended_asks_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_ASK_S", 0.01)
    async with running(SharedPage()) as supervisor:
        for _ in range(2):
            ends = socket.socketpair(), socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            orders.send(supervisor, orders.LINK, (ends[0][1], ends[1][1]))
            for pair in ends:
                for end in pair:
                    end.close()
            with trio.fail_after(20):
                await trio.lowlevel.wait_readable(supervisor)
            order = orders.receive(supervisor)
            assert order is not None
            assert order.word == orders.LINK


async def test_worker_says_that_its_loop_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_BEAT_S", 0.001)
    page = SharedPage()
    async with running(page):
        with trio.fail_after(20):
            while page.beats(NUMBER) < 3:
                await trio.sleep(0.001)
    assert page.beats(NUMBER - 1) == page.beats(NUMBER + 1) == 0
