"""A store in a process that reads beside the one that writes."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

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
from couchestord.metrics import Metrics
from couchestord.model import Body
from couchestord.remote.backend import Backend
from couchestord.replica import messages as ms
from couchestord.replica.bodies import BodySender
from couchestord.replica.catalog import ReplicaCatalog, Turns
from couchestord.replica.journal import ReplicaJournal
from couchestord.replica.l2 import second_tier
from couchestord.replica.link import Command, Link
from couchestord.replica.pins import TELL_S, ReplicaPins
from couchestord.store.athand import ReaderParts
from couchestord.store.beside import ReaderStats
from couchestord.store.caching import Caches
from couchestord.store.intake import Taken, check_size, inline
from couchestord.store.options import INLINE_BYTES_MAX
from couchestord.store.store import Objects

if TYPE_CHECKING:
    from couchestord.store.copies import Copies

log = logs.get(__name__)
_DEADLINE_S: Final = 5.0
SETTLE_S: Final = 3.0
"""For what is in memory to get to the cache below it, at the end."""
SEGMENTS_TOLD_MAX: Final = 4096
"""Of those read from since the last time: more say nothing of which was not."""
_LET_GO_S: Final = 1.0
"""So long a file may stay open here that is to go."""


class ReplicaIntake:
    """Takes bodies in; see `Intake`. Short ones ride in their records, others are taken in by the store's process."""

    def __init__(self, bodies: BodySender) -> None:
        self._bodies = bodies

    @asynccontextmanager
    async def take(
        self, body: Body, size: int | None, policy: int = 0, *, hashed: bool = True, inlined: bool = True
    ) -> AsyncIterator[Taken]:
        """See `Intake.take`."""
        if inlined and isinstance(body, bytes) and len(body) <= INLINE_BYTES_MAX:
            check_size(len(body), size)
            yield inline(body, policy, hashed=hashed)
            return
        async with self._bodies.take(body, size, policy, hashed=hashed, inlined=inlined) as taken:
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

    `backend` has what is not on the disks, if anything. `cache` is what this process has of the caches. `metrics` are
    taken from time to time and told.
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

                copies = None if backend is None else _copies(catalog, backend, disks.store_id, link)
                pins = ReplicaPins(page, number, lambda: catalog.version)
                journal = ReplicaJournal(disks, find_record, lambda path, disk: link.tell(ms.ReplicaDamage(path, disk)))
                l2 = second_tier(link, cache, opened.l2_opening)
                if l2 is not None:
                    nursery.start_soon(l2.run)
                manager = CacheManager(cache, nursery, l2)
                read_at: dict[int, float] | None = None if backend is None else {}
                parts = ReaderParts(catalog.reading, journal, stripes, pins, manager, copies, read_at)
                nursery.start_soon(_follow_disks, link, disks)
                nursery.start_soon(_let_go, disks)
                seam = _Parts(link, catalog, parts)
                telling = _Telling(link, metrics, parts, stripes, journal)
                nursery.start_soon(_tell, link, catalog, pins, telling)
                caches = Caches(seam)
                link.obey = lambda command: nursery.start_soon(_obey, link, caches, telling, command)
                try:
                    yield Objects(seam)
                finally:
                    link.obey = link.refuse
                with trio.move_on_after(SETTLE_S):
                    await manager.settle()
                telling.tell()
                nursery.cancel_scope.cancel()
        finally:
            trio.lowlevel.remove_instrument(turns)
            catalog.close()
    finally:
        disks.close()
        page.see(number, page.version)


def _copies(catalog: ReplicaCatalog, backend: Backend, store_id: bytes, link: Link) -> "Copies":
    # most stores have no bucket, and need not load what it takes to read from one
    from couchestord.remote.blobs import Blobs
    from couchestord.store.copies import Copies

    copies = Copies(catalog.copies, Blobs(backend, store_id))
    copies.on_damage = lambda blob, extent: link.tell(ms.CopyDamage(blob, extent))
    return copies


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
        self, link: Link, metrics: Metrics, parts: ReaderParts, stripes: StripeStore, journal: ReplicaJournal
    ) -> None:
        self._link = link
        self._metrics = metrics
        self._cache = parts.cache
        self._read_at = parts.read_at
        self._stripes = stripes
        self._journal = journal
        self._told: ReaderStats | None = None

    def tell(self) -> None:
        counts = self._metrics.take()
        if counts:
            self._link.tell(ms.Counted(ms.raw(counts)))
        if self._read_at:
            self._link.tell(ms.SegmentsRead(list(islice(self._read_at, SEGMENTS_TOLD_MAX))))
            self._read_at.clear()
        degraded = self._stripes.degraded_reads_count, self._journal.degraded_reads_count
        stats = ReaderStats(os.getpid(), self._cache.stats(), *degraded)
        if stats != self._told:
            self._told = stats
            self._link.tell(ms.Counts(stats))


async def _obey(link: Link, caches: Caches, telling: _Telling, command: Command) -> None:
    try:
        if isinstance(command, ms.WhichOpen):
            answer = ms.raw(link.which_open(command.inodes))
        elif isinstance(command, ms.Show):
            await link.show(command.changes)
            answer = ms.raw(None)
        elif isinstance(command, ms.EvictCaches):
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
    if isinstance(command, ms.EvictCaches | ms.WarmCaches):
        telling.tell()
    link.tell(ms.Answer(command.id, answer))


async def _let_go(disks: Disks) -> None:
    """What the process that writes has removed takes its room, and what it has replaced is read, until it is closed."""
    while True:
        await trio.sleep(_LET_GO_S)
        for index in disks.good():
            disk = disks.get(index)
            if disk is not None:
                try:
                    await disk.let_go()
                except DiskError:
                    disks.judge(index)


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
            elif known.get(index) != now[index] or disks.judge(index) is None:
                disks.fail(index, "is opened anew")
                disks.release_failed()
                try:
                    disks.take(index, await _open_disk(now[index][0]))
                except DiskError as error:
                    log.warning("disk cannot be opened", disk=now[index][0], reason=str(error))
        known = now
