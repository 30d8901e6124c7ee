"""A worker: serves S3 from a store that another process writes."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final

import trio

from couchestord import logs, openfiles
from couchestord.cache import CacheConfig
from couchestord.clock import SystemClock
from couchestord.config import Config
from couchestord.daemon import l3_options, like_disks
from couchestord.errors import Error
from couchestord.front import S3Front
from couchestord.frontends.http import Limits
from couchestord.io.sharedpage import SharedPage
from couchestord.listening import listeners_of
from couchestord.metrics import Metrics
from couchestord.processes import orders
from couchestord.remote.backend import Backend
from couchestord.replica.link import Link
from couchestord.replica.store import open_replica

_log = logs.get(__name__)
_IDLE_S: Final = 5.0
"""So long a worker whose place another one has waits for the next requests of its clients."""
_BEAT_S: Final = 1.0
_ASK_S: Final = 1.0
"""After so long without a link the supervisor is asked for one."""
_PAUSE_S: Final = 0.2
"""Before a store that cannot be read is tried again."""


async def run_worker(
    config: Config,
    control: socket.socket,
    page: SharedPage,
    cache: CacheConfig,
    number: int,
    listeners: Sequence[socket.socket],
    workers_count: int,
    disks_count: int,
    settle: Callable[[], None],
) -> None:
    """Serves until it is told to stop over `control`, then finishes what is under way. `settle` is called once it
    serves. `cache`: of all processes.
    """
    clients_max = openfiles.make_room(like_disks(config, disks_count), Limits().connections_max)
    # what there is for all of them is shared out
    clients_max = max(1, clients_max // workers_count)
    cache = share_of(cache, workers_count)
    worker = _Worker(config, control, page, number, listeners, clients_max, cache, settle)
    await worker.run()


def share_of(cache: CacheConfig, workers_count: int) -> CacheConfig:
    """What one worker has: of the memory a part, in shards as large as they were to be. All have the second tier."""
    shards = max(1, cache.l1_shards // workers_count)
    return replace(cache, l1_bytes=cache.l1_bytes // workers_count, l1_shards=shards)


class _Worker:
    def __init__(
        self,
        config: Config,
        control: socket.socket,
        page: SharedPage,
        number: int,
        listeners: Sequence[socket.socket],
        clients_max: int,
        cache: CacheConfig,
        settle: Callable[[], None],
    ) -> None:
        self._control = control
        self._page = page
        self._number = number
        self._metrics = Metrics()
        self._cache = cache
        self._front = S3Front(config, self._metrics, clients_max, listeners_of(listeners))
        self._l3 = l3_options(config)
        self._settle = settle
        self._link: Link | None = None
        self._changed = trio.Event()
        self._ending = trio.Event()
        """Told to stop or to leave."""
        self._stopping = trio.Event()
        """Told to stop."""
        self._waiting = trio.CancelScope()
        """For a store to be opened."""
        self._is_ready = False

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow, nursery)
            nursery.start_soon(self._beat)
            while not self._ending.is_set():
                link = self._link
                if link is None or link.is_gone:
                    await self._wait_for_link()
                    continue
                try:
                    await self._serve(link)
                except Error as error:
                    if link.is_gone:
                        continue  # the supervisor says more of it than could be said here
                    _log.warning("the store cannot be read by this worker; it is tried again", reason=str(error))
                    await trio.sleep(_PAUSE_S)
            await self._front.aclose()
            nursery.cancel_scope.cancel()

    async def _beat(self) -> None:
        while True:
            self._page.beat(self._number)
            await trio.sleep(_BEAT_S)

    async def _wait_for_link(self) -> None:
        """A process that starts comes with one. When both were there already, the supervisor has to be asked."""
        with trio.move_on_after(_ASK_S):
            await _first(self._changed.wait, self._ending.wait)
            self._changed = trio.Event()
            return
        orders.send(self._control, orders.LINK)

    @asynccontextmanager
    async def _backend(self) -> AsyncIterator[Backend | None]:
        """What the third tier lies in, to read from; None: there is none. Raises ConfigError."""
        if self._l3 is None:
            yield None
            return
        backend = self._l3.open_backend(SystemClock())
        try:
            yield backend
        finally:
            with trio.CancelScope(shield=True):
                await backend.aclose()

    async def _serve(self, link: Link) -> None:
        """One open store, until it closes or this worker is to end."""
        opened = None
        self._waiting = trio.CancelScope()
        if self._ending.is_set():
            return
        with self._waiting:
            opened = await link.open()
        if opened is None:
            return
        async with (
            self._backend() as backend,
            open_replica(link, opened, self._metrics, self._cache, backend) as store,
            self._front.serving(store) as server,
        ):
            if not self._is_ready:
                self._is_ready = True
                self._settle()
                orders.send(self._control, orders.READY)
            await _first(link.closing.wait, self._ending.wait)
            if not link.closing.is_set() and not self._stopping.is_set():
                leave = partial(server.leave, _IDLE_S, orders.LEAVE_S)
                await _first(leave, link.closing.wait, self._stopping.wait)

    async def _follow(self, nursery: trio.Nursery) -> None:
        async for order in orders.orders(self._control):
            if order.word in (orders.STOP, orders.LEAVE):
                self._ending.set()
                if order.word == orders.STOP:
                    self._stopping.set()
                self._waiting.cancel()
            elif order.word == orders.LINK:
                requests, bodies = order.sockets
                if self._link is not None:
                    self._link.channel.close()
                self._link = Link(requests, bodies, self._page, self._number)
                nursery.start_soon(self._link.run)
                self._changed.set()


async def _first(*waits: Callable[[], Awaitable[object]]) -> None:
    """Until one of them returns; the others are cancelled."""
    async with trio.open_nursery() as nursery:

        async def wait(each: Callable[[], Awaitable[object]]) -> None:
            await each()
            nursery.cancel_scope.cancel()

        for each in waits:
            nursery.start_soon(wait, each)
