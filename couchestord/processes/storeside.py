"""The store's process: the daemon, with workers in place of its S3 server."""

import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from dataclasses import replace
from typing import Any

import trio

from couchestord import daemon
from couchestord.cache import CacheConfig
from couchestord.config import Config
from couchestord.io.sharedpage import SharedPage
from couchestord.metrics import Metrics
from couchestord.parsing import Address
from couchestord.processes import orders
from couchestord.replica.host import Host
from couchestord.store import ObjectStore


class WorkersFront:
    """A `Front` in place of those that workers are. The supervisor closes the listeners."""

    def __init__(self, address: Address) -> None:
        self.address = address

    def serving(self, _store: ObjectStore) -> AbstractAsyncContextManager[object]:
        """Workers are served as all processes that read are."""
        return nullcontext()

    async def aclose(self) -> None:
        """Workers are told to stop by the supervisor."""


async def run_store(
    config: Config,
    control: socket.socket,
    page: SharedPage,
    cache: CacheConfig,
    address: Address,
    announce: Callable[[daemon.Running], None],
    **arguments: Any,
) -> None:
    """As `daemon.run`, told to stop over `control`. Clients come to workers, at `address`, which have all of the memory
    of `cache`: what is read often is kept where it is read.
    """
    send_signal, signals = trio.open_memory_channel[int](8)
    links_in, links_out = trio.open_memory_channel[orders.Order](64)

    async def make_front(
        _config: Config, host: Host, _metrics: Metrics, _clients_max: int, stack: AsyncExitStack
    ) -> WorkersFront:
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        nursery.start_soon(_serve_links, links_out, host, nursery)
        return WorkersFront(address)

    def announce_ready(running: daemon.Running) -> None:
        announce(running)
        orders.send(control, orders.READY)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_follow, control, send_signal, links_in)
        await daemon.run(
            config,
            announce=announce_ready,
            make_front=make_front,
            signals=_each(signals),
            environ={},
            cache=replace(cache, l1_bytes=0, l1_shards=1),
            page=page,
            **arguments,
        )
        nursery.cancel_scope.cancel()


async def _each(signals: trio.MemoryReceiveChannel[int]) -> AsyncIterator[int]:
    async for number in signals:
        yield number


async def _follow(
    control: socket.socket, signals: trio.MemorySendChannel[int], links: trio.MemorySendChannel[orders.Order]
) -> None:
    async for order in orders.orders(control):
        if order.word == orders.STOP:
            await signals.send(signal.SIGTERM)
        elif order.word == orders.LINK:
            await links.send(order)


async def _serve_links(links: trio.MemoryReceiveChannel[orders.Order], host: Host, nursery: trio.Nursery) -> None:
    async for order in links:
        requests, bodies = order.sockets
        nursery.start_soon(host.serve_reader, requests, bodies)
