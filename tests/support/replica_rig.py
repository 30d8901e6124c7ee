"""A small store with a reader beside it, in one loop: what would be two processes are two ends of real sockets."""

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from small_store import core_of, new_store

from couchestord.cache import CACHES_OFF, CacheConfig
from couchestord.io.catalog.generations import Generations
from couchestord.io.sharedpage import SharedPage
from couchestord.metrics import Metrics
from couchestord.remote.backend import Backend
from couchestord.replica.host import Host
from couchestord.replica.link import Link
from couchestord.replica.store import open_replica
from couchestord.store import Objects, ObjectStore

READER = 3


@dataclass(slots=True)
class Pair:
    """`store` writes, `replica` is what another process would have."""

    store: ObjectStore
    replica: Objects
    page: SharedPage
    host: Host
    link: Link
    counted: Metrics
    """What the store's process counts."""
    counting: Metrics
    """What the reader counts."""


@asynccontextmanager
async def linked(host: Host, page: SharedPage, number: int = READER) -> AsyncIterator[Link]:
    """A link to a host, served while the body runs."""
    requests = socket.socketpair()
    bodies = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.serve_reader, requests[0], bodies[0])
        link = Link(requests[1], bodies[1], page, number)
        nursery.start_soon(link.run)
        yield link
        link.channel.close()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def pair(path: Path, *, backend: Backend | None = None, **changes: object) -> AsyncIterator[Pair]:
    """A new store with the bucket `box`, and a reader of it, which has `backend`, too."""
    page, counted, counting = SharedPage(), Metrics(), Metrics()
    host = Host(page, counted)
    # as with workers: what is read often is kept where it is read
    changes.setdefault("cache", CACHES_OFF)
    async with new_store(path, **changes) as store, linked(host, page) as link, host.serving(store):
        opened = await link.open()
        try:
            async with open_replica(link, opened, counting, CacheConfig(l1_bytes=1 << 20), backend) as replica:
                yield Pair(store, replica, page, host, link, counted, counting)
        finally:
            # as a process that ends: the host does not wait for it
            link.channel.close()


@contextmanager
def commit_parted(
    both: Pair, monkeypatch: pytest.MonkeyPatch, begun: Callable[[], object], published: Callable[[], object]
) -> Iterator[None]:
    """What another process may do in the midst of the one commit of the body: `begun` before the state changes, behind
    the first growth of the numbers; `published` before they grow again, when the new state can be seen.
    """
    numbers, follow, steps = core_of(both.store).catalog.generations, Generations.follow, [begun, published]

    def meanwhile(self: Generations, other: Generations) -> None:
        if self is numbers and len(steps) == 1:
            steps.pop()()
        follow(self, other)
        if self is numbers and len(steps) == 2:
            steps.pop(0)()

    with monkeypatch.context() as patch:
        patch.setattr(Generations, "follow", meanwhile)
        yield
    assert not steps


async def settled(both: Pair) -> None:
    """Until the reader has said that it sees all that was committed, and what it holds for long."""
    version = both.page.version
    while both.page.seen(READER) < version:
        await trio.sleep(0.01)
