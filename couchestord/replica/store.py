"""A store in a process that reads beside the one that writes."""

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import outcome as outcomes
import trio
from msgspec.structs import replace

from couchestord import logs
from couchestord.cache import CacheConfig, CacheManager
from couchestord.ec.choice import choose_engine
from couchestord.ec.stripes import StripeStore
from couchestord.errors import DiskError, Error, InternalError, Unavailable
from couchestord.io.directory import DirectoryDisk
from couchestord.io.disk import Disk
from couchestord.io.disks import Disks
from couchestord.io.sharedpage import SharedPage
from couchestord.metrics import Metrics
from couchestord.model import Body
from couchestord.remote.backend import Backend
from couchestord.replica import messages as ms
from couchestord.replica.bodies import BodySender
from couchestord.replica.catalog import ReplicaCatalog, Turns
from couchestord.replica.channel import Channel
from couchestord.replica.journal import ReplicaJournal
from couchestord.replica.pins import TELL_S, ReplicaPins
from couchestord.store.beside import ReaderStats
from couchestord.store.caching import Caches
from couchestord.store.intake import Taken, check_size, inline
from couchestord.store.options import INLINE_BYTES_MAX
from couchestord.store.reader import ReaderParts
from couchestord.store.store import Objects

if TYPE_CHECKING:
    from couchestord.store.copies import Copies

log = logs.get(__name__)
_DEADLINE_S: Final = 5.0
_LET_GO_S: Final = 1.0
"""So long a file may stay open here that is to go."""
Command = ms.EvictCaches | ms.WarmCaches
_GONE: Final = "the store's process is gone; a write may have happened: look before you try again"


class Link:
    """What a reader's process has of the store's: a channel for requests, and a way for long bodies."""

    def __init__(self, requests: socket.socket, bodies: socket.socket, page: SharedPage, number: int) -> None:
        """Of reader `number` in `page`."""
        self.page = page
        self.number = number
        self.channel = Channel(requests, self._receive)
        self.bodies = BodySender(bodies)
        self._waiting: dict[int, trio.lowlevel.Task] = {}
        self._last_id = 0
        self._closed = False
        self.closing = trio.Event()
        """The store is about to close, or its process is gone."""
        self.good_disks: list[tuple[int, str, bytes]] = []
        self.disks_changed = trio.Event()
        self.obey: Callable[[Command], None] = self.refuse
        """What the store's process asks of this one goes there."""

    def refuse(self, command: Command) -> None:
        """Nobody is there to obey."""
        self.tell(ms.refuse(command.id, Unavailable("this process reads nothing now")))

    async def run(self) -> None:
        """Until the other process is gone."""
        try:
            await self.channel.run()
        finally:
            self._closed = True
            self.closing.set()
            self.bodies.close()
            waiting, self._waiting = self._waiting, {}
            for task in waiting.values():
                trio.lowlevel.reschedule(task, outcomes.Error(Unavailable(_GONE)))

    @property
    def is_gone(self) -> bool:
        return self._closed

    async def open(self) -> ms.Opened:
        """Waits for an open store; may be cancelled. Raises Unavailable when its process goes."""
        self.closing = trio.Event()
        # before anybody hears of it: when this process ends, its word is cleared once and for all
        self.page.see(self.number, self.page.version)

        def give_up(_raise_cancel: Any) -> trio.lowlevel.Abort:
            self._waiting.clear()  # nothing else is asked meanwhile
            return trio.lowlevel.Abort.SUCCEEDED

        found = await self._ask(lambda id_: ms.Hello(id_, os.getpid()), give_up)
        opened: ms.Opened = ms.unpack_value(found, ms.Opened)
        self.good_disks = opened.disks
        return opened

    async def submit(self, request: object) -> Any:
        """Hand a request to the writer; see `Writer.submit`."""
        await self.channel.wait_for_room()
        kind = type(request)
        packed = ms.raw(request)
        return await self.ask(lambda id_: ms.Submit(id_, kind.__name__, packed), ms.ANSWERS[kind])

    async def ask(self, message: Callable[[int], ms.FromReader], kind: Any) -> Any:
        """Sends what `message` makes of an id, and waits for the answer, of type `kind`. Cannot be cancelled: what was
        asked for may happen. Raises what it is refused with; Unavailable when the other process goes.
        """
        return ms.unpack_value(await self._ask(message, _cannot_cancel), kind)

    async def _ask(
        self, message: Callable[[int], ms.FromReader], abort: Callable[[Any], trio.lowlevel.Abort]
    ) -> msgspec.Raw:
        if self._closed:
            raise Unavailable("the store's process is gone; try again soon")
        self._last_id += 1
        self._waiting[self._last_id] = trio.lowlevel.current_task()
        self.channel.send(ms.pack(message(self._last_id)))
        found: msgspec.Raw = await trio.lowlevel.wait_task_rescheduled(abort)
        return found

    def tell(self, message: ms.FromReader) -> None:
        """Sends a message that has no answer."""
        self.channel.send(ms.pack(message))

    def _receive(self, data: memoryview) -> None:
        message = ms.unpack_from_store(data)
        match message:
            case ms.Answer():
                # the bytes of the message are used again
                self._wake(message.id, outcomes.Value(message.value.copy()))
            case ms.Refusal():
                self._wake(message.id, outcomes.Error(ms.error_of(message)))
            case ms.Closing():
                self.closing.set()
            case ms.GoodDisks():
                self.good_disks = message.disks
                self.disks_changed.set()
            case _:
                self.obey(message)

    def _wake(self, id_: int, found: outcomes.Outcome[Any]) -> None:
        task = self._waiting.pop(id_, None)
        if task is not None:
            trio.lowlevel.reschedule(task, found)


def _cannot_cancel(_raise_cancel: Any) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


class ReplicaIntake:
    """Takes bodies in; see `Intake`. Short ones ride in their records, others are taken in by the store's process."""

    def __init__(self, bodies: BodySender) -> None:
        self._bodies = bodies

    @asynccontextmanager
    async def take(self, body: Body, size: int | None, policy: int = 0) -> AsyncIterator[Taken]:
        """See `Intake.take`."""
        if isinstance(body, bytes) and len(body) <= INLINE_BYTES_MAX:
            check_size(len(body), size)
            yield inline(body, policy)
            return
        async with self._bodies.take(body, size, policy) as taken:
            yield taken


class _Parts:
    """`Parts` of a store over a link."""

    def __init__(self, link: Link, catalog: ReplicaCatalog, reader_parts: ReaderParts) -> None:
        self.catalog = catalog
        self.intake = ReplicaIntake(link.bodies)
        self.reader_parts = reader_parts
        self.submit = link.submit


@asynccontextmanager
async def open_replica(
    link: Link, opened: ms.Opened, metrics: Metrics, cache: CacheConfig, backend: Backend | None = None
) -> AsyncIterator[Objects]:
    """A store beside the one that writes, while the body runs; until `link.closing` it is worth while. Whatever begins
    to be answered sees all that anybody was told of before.

    `backend` has what is not on the disks, if anything. `cache` is of this process alone. `metrics` are taken from time
    to time and told.
    """
    disks = await _open_disks(opened)
    page, number = link.page, link.number
    try:
        catalog = ReplicaCatalog(Path(opened.catalog), page, lambda reason: link.tell(ms.CatalogFailed(reason)))
        turns = Turns(catalog)
        trio.lowlevel.add_instrument(turns)
        try:
            async with trio.open_nursery() as nursery:
                stripes = StripeStore(
                    disks, choose_engine(opened.engine), nursery, on_damage=lambda *shard: link.tell(ms.Damage(*shard))
                )

                async def find_record(sequence: int, epoch: int, first: int, count: int) -> ms.Places:
                    found: ms.Places = await link.ask(
                        lambda id_: ms.FindRecord(id_, sequence, epoch, first, count), ms.Places
                    )
                    return found

                copies = None if backend is None else _copies(catalog, backend, disks.store_id)
                pins = ReplicaPins(page, number, lambda: catalog.version)
                journal = ReplicaJournal(disks, find_record, lambda path, disk: link.tell(ms.ReplicaDamage(path, disk)))
                parts = ReaderParts(catalog.reading, journal, stripes, pins, CacheManager(cache, nursery), copies)
                nursery.start_soon(_follow_disks, link, disks)
                nursery.start_soon(_let_go, disks)
                seam = _Parts(link, catalog, parts)
                telling = _Telling(link, metrics, parts.cache, stripes, journal)
                nursery.start_soon(_tell, link, catalog, pins, telling)
                caches = Caches(seam)
                link.obey = lambda command: nursery.start_soon(_obey, link, caches, telling, command)
                try:
                    yield Objects(seam)
                finally:
                    link.obey = link.refuse
                telling.tell()
                nursery.cancel_scope.cancel()
        finally:
            trio.lowlevel.remove_instrument(turns)
            catalog.close()
    finally:
        disks.close()
        page.see(number, page.version)


def _copies(catalog: ReplicaCatalog, backend: Backend, store_id: bytes) -> "Copies":
    # most stores have no bucket, and need not load what it takes to read from one
    from couchestord.remote.blobs import Blobs
    from couchestord.store.copies import Copies

    return Copies(catalog.copies, Blobs(backend, store_id))


async def _tell(link: Link, catalog: ReplicaCatalog, pins: ReplicaPins, telling: "_Telling") -> None:
    async def hold(segments: list[int], records: list[int]) -> None:
        await link.ask(lambda id_: ms.Hold(id_, segments, records), None)

    while not link.is_gone:
        catalog.refresh()
        try:
            await pins.tell(link.tell, hold)
        except Unavailable:
            return
        telling.tell()
        await trio.sleep(TELL_S)


class _Telling:
    """Tells the store's process what was counted here, when that is something new."""

    def __init__(
        self, link: Link, metrics: Metrics, cache: CacheManager, stripes: StripeStore, journal: ReplicaJournal
    ) -> None:
        self._link = link
        self._metrics = metrics
        self._cache = cache
        self._stripes = stripes
        self._journal = journal
        self._told: ReaderStats | None = None

    def tell(self) -> None:
        counts = self._metrics.take()
        if counts:
            self._link.tell(ms.Counted(ms.raw(counts)))
        degraded = self._stripes.degraded_reads_count, self._journal.degraded_reads_count
        stats = ReaderStats(os.getpid(), self._cache.stats(), *degraded)
        if stats != self._told:
            self._told = stats
            self._link.tell(ms.Counts(stats))


async def _obey(link: Link, caches: Caches, telling: _Telling, command: Command) -> None:
    try:
        if isinstance(command, ms.EvictCaches):
            answer = ms.raw(await caches.evict(command.tier))
        else:
            answer = ms.raw(await caches.warm(command.bucket, command.prefix, command.start_after))
    except Error as error:
        link.tell(ms.refuse(command.id, error))
        return
    except Exception as error:
        log.exception("a command of the store's process failed")
        link.tell(ms.refuse(command.id, InternalError(repr(error))))
        return
    telling.tell()
    link.tell(ms.Answer(command.id, answer))


async def _let_go(disks: Disks) -> None:
    """What the process that writes has removed takes its room, and what it has replaced is read, until it is closed."""
    while True:
        await trio.sleep(_LET_GO_S)
        for index in disks.good():
            disk = disks.get(index)
            if disk is not None:
                with suppress(DiskError):  # who reads next hears of it
                    await disk.let_go()


async def _open_disk(folder: str) -> Disk:
    return await DirectoryDisk.open(Path(folder), deadline_s=_DEADLINE_S, read_only=True)


async def _open_disks(opened: ms.Opened) -> Disks:
    """Those that the store's process finds good, which may be none: what needs no disk is answered still."""
    members: dict[int, Disk] = {}
    identities = {opened.identity.index: opened.identity}
    for index, folder, id_ in opened.disks:
        identities[index] = replace(opened.identity, index=index, disk_id=id_)
        try:
            members[index] = await _open_disk(folder)
        except DiskError as error:
            log.warning("disk cannot be opened", disk=folder, reason=str(error))
    return Disks(opened.slot, members, identities)


async def _follow_disks(link: Link, disks: Disks) -> None:
    """Uses the disks that the store's process uses; one that failed here is tried again."""
    known = {index: (folder, id_) for index, folder, id_ in link.good_disks}
    while True:
        with trio.move_on_after(_DEADLINE_S):
            await link.disks_changed.wait()
        link.disks_changed = trio.Event()
        now = {index: (folder, id_) for index, folder, id_ in link.good_disks}
        for index in range(disks.count):
            if index not in now:
                disks.fail(index, "given up by the process that writes")
            elif known.get(index) != now[index] or index in disks.failures:
                disks.fail(index, "is opened anew")
                disks.release_failed()
                try:
                    disks.take(index, await _open_disk(now[index][0]))
                except DiskError as error:
                    log.warning("disk cannot be opened", disk=now[index][0], reason=str(error))
        known = now
