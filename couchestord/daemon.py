"""Builds the daemon from its parts and runs it until it is told to stop. The only place that makes long-lived objects.

Order at the start: addresses are bound (a port in use is found before anything is touched), /livez answers, the store
is opened and recovered, the other servers start, /readyz turns to 200. Order at the end: /readyz turns to 503, requests
under way are finished, mounts let go before their door is closed, the store is drained, synced and closed.
"""

import math
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from couchestord import logs, memory, openfiles
from couchestord.cache import CacheConfig
from couchestord.config import Config
from couchestord.errors import ConfigError, Error, NotAStore, TooFewDisks
from couchestord.front import Front, MakeFront, make_server
from couchestord.frontends.admin.commands import execute
from couchestord.frontends.admin.gauges import snapshot_of
from couchestord.frontends.admin.pages import HealthPages, MetricsPage, Readiness
from couchestord.frontends.admin.server import serve_admin
from couchestord.frontends.http import Limits, serve_http
from couchestord.io.disks import disks_to_spare, shards_per_disk
from couchestord.io.journalfile import JournalOptions
from couchestord.io.sharedpage import SharedPage
from couchestord.listening import address_of, bind, copies
from couchestord.metrics import Metrics, Snapshot
from couchestord.mountkeeper import kept_mounted
from couchestord.parsing import Address
from couchestord.remote.options import PublishOptions, UploadOptions
from couchestord.replica.door import serve_door
from couchestord.replica.host import Host
from couchestord.servicemanager import notify_systemd
from couchestord.store import ObjectStore, StoreOptions
from couchestord.store.opening import folders_there
from couchestord.store.options import L3Options, Watermarks
from couchestord.versions import program_version

_log = logs.get(__name__)

_SNAPSHOT_TIMEOUT_S: Final = 5.0
_PAGES_LIMITS: Final = Limits(connections_max=50)
"""Of the servers of health and metrics, each."""
_PAUSE_S_MIN: Final = 0.1
_PAUSE_S_MAX: Final = 30.0
"""Before a store is opened again: doubled while that does not help."""
Bound = Mapping[str, Sequence[socket.socket]]
"""Sockets that listen already, by the section whose address they have."""


@dataclass(frozen=True, slots=True)
class Running:
    """Where a daemon that is ready can be reached: the addresses it got, which are not those asked for with port 0."""

    s3: Address
    metrics: Address
    health: Address
    admin_socket: Path


def store_options(config: Config, disks: Sequence[Path] = ()) -> StoreOptions:
    """The store's part of the configuration. `disks` replaces the configured ones. Raises ConfigError."""
    store, journal = config.store, config.journal
    chosen = tuple(disks or store.disks)
    return StoreOptions(
        k=store.k,
        m=store.m,
        disks_count=len(chosen) or store.k + store.m,
        disks=chosen,
        disk_classes=store.disk_classes,
        stripe_bytes=store.stripe_size_bytes,
        segment_bytes=store.segment_bytes,
        min_healthy_shards=store.min_healthy_shards,
        shards_per_disk=store.shards_per_disk,
        engine=store.engine,
        reserve_bytes=store.reserve_bytes,
        journal=JournalOptions(
            size_bytes=journal.size_bytes,
            file_bytes=journal.file_bytes,
            preallocate_bytes=journal.preallocate_bytes,
            replication_factor=journal.replication_factor,
        ),
        destage_threshold_percent=journal.destage_threshold_percent,
        destage_interval_s=journal.destage_interval_s,
        disk_deadline_s=store.disk_deadline_s,
        monitor_interval_s=store.monitor_interval_s,
        rebuild_grace_s=store.rebuild_grace_s,
        uploads_kept_s=store.uploads_kept_s,
        background_bytes_per_s=store.background_bytes_per_s,
        snapshot_bytes_min=store.snapshot_bytes_min,
        cache=cache_options(config),
        l3=l3_options(config),
    )


def cache_options(config: Config) -> CacheConfig:
    """Raises ConfigError for settings that make no sense together."""
    asked = config.cache
    l1_bytes = memory.cache_bytes(memory.total_bytes()) if asked.l1_bytes is None else asked.l1_bytes
    l2 = (asked.l2_path, asked.l2_bytes, asked.compression, asked.l2_shared_device)
    try:
        return CacheConfig(l1_bytes, asked.l1_shards, *l2)
    except ValueError as error:
        raise ConfigError(f"[cache]: {error}") from None


def l3_options(config: Config) -> L3Options | None:
    """None: there is no third tier."""
    l3 = config.l3
    if l3.mode == "off":
        return None
    # most stores have none, and need not load what it takes to ask a bucket
    from couchestord.remote.opening import RemoteSettings, open_backend

    settings = RemoteSettings(l3.url, l3.region, l3.access_key, l3.secret_key_file, l3.session_token_file, l3.ca_file)
    return L3Options(
        partial(open_backend, settings),
        l3.mode,
        UploadOptions(l3.blob_bytes, linger_s=l3.delay_s, read_back=l3.verify == "all"),
        Watermarks(l3.evict_from_percent, l3.evict_to_percent, l3.bypass_from_percent),
        publish=PublishOptions(run_age_s=l3.publish_delay_s),
    )


async def create_store(config: Config, disks_count: int) -> tuple[Path, ...]:
    """Makes a store, on the configured disks or else on `disks_count` folders in the data folder; returns its disks.

    Raises StoreExists, TooFewDisks, and NotAStore when the data folder has held a store whose disks are all away:
    making a new one in their place would hide it.
    """
    store = config.store
    data, k, m = store.data, store.k, store.m
    disks = config.store.disks or tuple(data / f"disk-{index}" for index in range(disks_count))
    if len(disks) * store.shards_per_disk < k + m:
        raise TooFewDisks(_too_few(len(disks), store.shards_per_disk, k, m))
    if len(store.disk_classes) not in (0, len(disks)):
        raise ConfigError(f"store.disk_classes names {len(store.disk_classes)} classes, there are {len(disks)} disks")
    try:
        left = sorted(path.name for path in data.glob("catalog*"))
        if left and not any(any(disk.iterdir()) for disk in disks if disk.is_dir()):
            raise NotAStore(
                f"{data} has held a store ({left[0]} is there), but none of its disks is: mount them, or move the "
                "catalog away to make a new store"
            )
        for folder in (data, *disks):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {error.filename}: {error.strerror}") from None
    await ObjectStore.create(data, store_options(config, disks))
    return disks


def _too_few(disks_count: int, per_disk_max: int, k: int, m: int) -> str:
    several, spare = shards_per_disk(k + m, disks_count), disks_to_spare(k, m, disks_count)
    at = f" at {per_disk_max} a disk" if per_disk_max > 1 else ""
    return (
        f"{disks_count} disks are too few: k = {k} data and m = {m} parity shards need {-(-(k + m) // per_disk_max)}"
        f"{at}. Give more disks with --disks or store.disks, or put several shards on each with "
        f"--shards-per-disk {several} (store.shards_per_disk): then the loss of "
        + (f"{spare} of the {disks_count} disks is made good, of more loses data" if spare else "any disk loses data")
    )


def like_disks(config: Config, disks_count: int) -> int:
    """How many disks would have as many files open as those and the caches have."""
    return disks_count + 4 * bool(config.cache.l2_bytes)


@asynccontextmanager
async def open_store(config: Config, cache: CacheConfig | None = None) -> AsyncIterator[ObjectStore]:
    """The configured store, open while the body runs. `cache`: in place of the configured ones. Raises as
    ObjectStore.open.
    """
    options = store_options(config)
    if cache is not None:
        options = replace(options, cache=cache)
    async with ObjectStore.open(config.store.data, options) as store:
        yield store


async def run(
    config: Config,
    *,
    prepare: Callable[[ObjectStore], Awaitable[None]],
    announce: Callable[[Running], None],
    create_disks_count: int | None = None,
    environ: Mapping[str, str],
    make_front: MakeFront | None = None,
    signals: AsyncIterator[int] | None = None,
    bound: Bound | None = None,
    cache: CacheConfig | None = None,
    page: SharedPage | None = None,
    mount: Sequence[str] = (),
) -> None:
    """Serves the store until SIGTERM or SIGINT, then stops in good order; a second signal stops at once.

    `prepare` is awaited once the store is open, before a request is answered; `announce` is called once requests will
    succeed. With `create_disks_count` a store is made where there is none. `make_front` makes another front, `signals`
    come from elsewhere, sockets that are `bound` are not bound here, `cache` is in place of the configured caches,
    `page` is shared with forked processes, and `mount` is a command line that mounts the store, to be run beside it.
    Raises an Error, perhaps within exception groups, when the daemon cannot start or its store fails.
    """
    own_signals = nullcontext(signals) if signals else trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT)
    with own_signals as received:
        async with trio.open_nursery() as nursery:
            stop = _Stop(nursery.cancel_scope)
            nursery.start_soon(stop.watch, received)
            daemon = _Daemon(config, environ, make_front, bound, cache, page, mount)
            await daemon.run(prepare, announce, create_disks_count, stop)
            nursery.cancel_scope.cancel()


class _Stop:
    """The first signal asks for a stop in good order once the daemon is up; before that, and the second, it cuts."""

    def __init__(self, everything: trio.CancelScope) -> None:
        self._everything = everything
        self._asked = trio.Event()
        self._orderly = False

    async def watch(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            _log.info("signal was received", signal=signal.Signals(number).name)
            if self._asked.is_set() or not self._orderly:
                self._everything.cancel()
            self._asked.set()

    async def wait_or(self, other: Callable[[], Awaitable[None]]) -> bool:
        """True once a stop is asked for, False when `other` returns before that."""
        self._orderly = True
        async with trio.open_nursery() as nursery:

            async def watch_other() -> None:
                await other()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch_other)
            await self._asked.wait()
            nursery.cancel_scope.cancel()
        return self._asked.is_set()

    def starting(self) -> bool:
        """What follows may be cut. False when a stop was asked for already."""
        self._orderly = False
        return not self._asked.is_set()


class _Daemon:
    def __init__(
        self,
        config: Config,
        environ: Mapping[str, str],
        make_front: MakeFront | None = None,
        bound: Bound | None = None,
        cache: CacheConfig | None = None,
        page: SharedPage | None = None,
        mount: Sequence[str] = (),
    ) -> None:
        self._config = config
        self._mount = mount
        self._cache = cache
        self._environ = environ
        self._make_front = make_front or make_server
        self._bound = bound or {}
        self._metrics = Metrics()
        self._host = Host(page or SharedPage(), self._metrics, has_workers=page is not None)
        self._readiness = Readiness()
        self._announced = False
        self._reopened_at = -math.inf
        self._pause_s = _PAUSE_S_MIN
        self._clients_max = Limits().connections_max

    async def run(
        self,
        prepare: Callable[[ObjectStore], Awaitable[None]],
        announce: Callable[[Running], None],
        create_disks_count: int | None,
        stop: _Stop,
    ) -> None:
        config = self._config
        disks_count = len(config.store.disks or await _disks_there(config)) or create_disks_count or 1
        self._clients_max = openfiles.make_room(like_disks(config, disks_count), self._clients_max)
        async with AsyncExitStack() as stack:
            s3 = await self._make_front(config, self._host, self._metrics, self._clients_max, stack)
            metrics = await bind("metrics", config.metrics.address, stack, self._bound.get("metrics"))
            health = await bind("health", config.health.address, stack, self._bound.get("health"))
            await stack.enter_async_context(serve_http(health, HealthPages(self._readiness).handle, _PAGES_LIMITS))

            def announce_first(path: Path) -> None:
                if self._announced:
                    return
                self._announced = True
                announce(Running(s3.address, address_of(metrics), address_of(health), path))
                notify_systemd("READY=1", self._environ)

            while stop.starting():
                if await self._serve(prepare, announce_first, create_disks_count, stop, s3, metrics):
                    break
        _log.info("daemon has stopped")

    async def _serve(
        self,
        prepare: Callable[[ObjectStore], Awaitable[None]],
        announce: Callable[[Path], None],
        create_disks_count: int | None,
        stop: _Stop,
        s3: Front,
        metrics: list[trio.SocketListener],
    ) -> bool:
        """From the opening of the store to its closing. True when that is the end; False when the store is to be opened
        again: it could not be written, and may now, or could not be opened for the second time. What asks meanwhile
        waits to be accepted.
        """
        config = self._config
        async with AsyncExitStack() as stack:
            try:
                store = await stack.enter_async_context(self._open(create_disks_count))
            except (Error, OSError) as error:
                if not self._announced:
                    raise
                _log.error("the store cannot be opened again; it is tried on", reason=str(error))
                self._readiness.waiting(f"starting: the store cannot be opened: {error}")
                await self._pause()
                return False
            await prepare(store)
            async with AsyncExitStack() as servers:
                page = MetricsPage(self._metrics, partial(self._snapshot, store))
                await servers.enter_async_context(serve_http(copies(metrics), page.handle, _PAGES_LIMITS))
                path = await servers.enter_async_context(serve_admin(config.store.data, partial(execute, store)))
                await servers.enter_async_context(serve_door(config.store.data, self._host))
                await servers.enter_async_context(self._host.serving(store))
                await servers.enter_async_context(s3.serving(store))
                await servers.enter_async_context(kept_mounted(self._mount))
                self._readiness.opened(store.health)
                _log.info("daemon is ready", s3=str(s3.address), data=str(config.store.data))
                announce(path)
                is_end = await stop.wait_or(partial(self._wait_until_better, store))
                if is_end:
                    notify_systemd("STOPPING=1", self._environ)
                    self._readiness.stopping()
                    await s3.aclose()
                    for listener in metrics:
                        await listener.aclose()
                else:
                    self._readiness.waiting("starting: the store is opened again, since it may be written now")
            await store.drain()
        return is_end

    async def _wait_until_better(self, store: ObjectStore) -> None:
        """One that cannot be written after all, time and again, is served for longer and longer in between."""
        await store.wait_until_better()
        await self._pause()

    async def _pause(self) -> None:
        """Before the store is opened again: twice as long when that was done just now."""
        now = trio.current_time()
        self._pause_s = min(_PAUSE_S_MAX, 2 * self._pause_s) if now < self._reopened_at + _PAUSE_S_MAX else _PAUSE_S_MIN
        self._reopened_at = now + self._pause_s
        await trio.sleep(self._pause_s)

    @asynccontextmanager
    async def _open(self, create_disks_count: int | None) -> AsyncIterator[ObjectStore]:
        """The store, made first where there is none and that is wanted."""
        async with AsyncExitStack() as stack:
            store = None
            try:
                if create_disks_count is None or await _disks_there(self._config):
                    store = await stack.enter_async_context(open_store(self._config, self._cache))
            except NotAStore:
                if create_disks_count is None:
                    raise
            if store is None:
                disks = await create_store(self._config, create_disks_count or 0)
                _log.info("store was made", disks=len(disks), data=str(self._config.store.data))
                store = await stack.enter_async_context(open_store(self._config, self._cache))
            yield store

    async def _snapshot(self, store: ObjectStore) -> Snapshot:
        """The gauges. When the store cannot say its status in time, what it always can say is still told."""
        status: dict[str, Any] = {}
        with trio.move_on_after(_SNAPSHOT_TIMEOUT_S):
            try:
                status = await store.status()
            except Error as error:
                _log.warning("status could not be read for a scrape", reason=str(error))
        return snapshot_of(program_version(), store.health().state, status)


async def _disks_there(config: Config) -> list[Path]:
    """The folders where disks could be."""
    store = config.store
    return await folders_there(store.disks, store.data, store.disk_deadline_s)
