"""Serves an open store to the processes that read beside it: its task context is the store's."""

import bisect
import socket
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final

import msgspec
import outcome as outcomes
import trio

from couchestord import logs
from couchestord.cache.l2 import L2
from couchestord.errors import Corrupt, DataLost, Error, InternalError, Unavailable
from couchestord.io.catalog.catalog import Catalog
from couchestord.io.catalog.changes import Changes
from couchestord.io.sharedpage import ALONE, SharedPage
from couchestord.metrics import Metrics
from couchestord.replica import messages as ms
from couchestord.replica.beside import Reader, ReadersBeside
from couchestord.replica.bodies import answer, coming_bodies, take_coming
from couchestord.replica.channel import Channel
from couchestord.store import ObjectStore
from couchestord.store.mounts import Claim, Mounts

log = logs.get(__name__)
LET_IN_MAX: Final = 64
"""Processes that were not forked, at a time."""
LEAVE_S: Final = 40.0
"""So long a store that closes waits for readers to finish what they have begun."""
_LOOK_AT_LOOPS_S: Final = 5.0
_STILL_LOOKS_MAX: Final = 6
"""A process that was let in and does not turn its loop between so many looks is cut off."""
_LOOK_AT_DISKS_S: Final = 0.2
"""How often the host looks whether a disk was given up or came back."""
_ASKED_MAX: Final = 1 << 12
"""With more changes that a mount was told and has not shown, it is cut off, and will look up everything anew."""
_PLACES_MAX: Final = 1 << 17
"""Records of the journal whose places are told in one answer: a megabyte of them."""


class Host:
    """One for the life of a process, whatever stores it opens one after the other."""

    def __init__(self, page: SharedPage, metrics: Metrics, *, has_workers: bool = True) -> None:
        """`has_workers`: clients are served by processes that read, not by this one."""
        self.page = page
        self._metrics = metrics
        self._store: ObjectStore | None = None
        self._opened = trio.Event()
        self._left = trio.Event()
        self._readers: set[_Reader] = set()
        self.beside = ReadersBeside(lambda: [each.caches for each in self._readers], has_workers=has_workers)

    def worker_pids(self) -> list[int]:
        """Workers that read now."""
        return sorted(reader.pid for reader in self._readers if reader.is_reading and reader.caches.is_worker)

    @property
    def has_room(self) -> bool:
        """For another process that was not forked."""
        return len(self.page.let_in) < LET_IN_MAX

    async def serve_reader(
        self, requests: socket.socket, bodies: socket.socket, page: SharedPage | None = None
    ) -> None:
        """One process, until it is gone, or, when it was let in, with a page made `apart`, until its loop does not turn
        any more: nothing that it may see is freed. Closes the sockets.
        """
        reader = _Reader(self, requests, is_worker=page is None)
        self._readers.add(reader)
        if page is not None:
            self.page.let_in.add(page)
        try:
            with bodies:
                async with trio.open_nursery() as nursery:
                    reader.nursery = nursery
                    nursery.start_soon(self._take_bodies, bodies, nursery)
                    if page is not None:
                        nursery.start_soon(self._watch_loop, reader, page)
                    await reader.channel.run()
                    nursery.cancel_scope.cancel()
        except* Exception as group:
            log.exception("a process that reads is cut off", exc_info=group)
        finally:
            self._readers.discard(reader)
            reader.leave()
            if page is not None:
                self.page.let_in.discard(page)

    @asynccontextmanager
    async def serving(self, store: ObjectStore) -> AsyncIterator[None]:
        """While the body runs, readers read this store; at its end they have finished, or were waited for `LEAVE_S`."""
        core = store.core
        core.catalog.generations.share(self.page.generations)
        core.jobs.views.share(self.page, self.worker_pids)
        store.caches.beside = self.beside
        core.catalog.tell(self._publish)
        self._publish(core.catalog)
        self._store = store
        self._opened.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_disks, store)
            try:
                yield
            finally:
                self._opened = trio.Event()
                for reader in self._readers:
                    reader.channel.send(ms.pack(ms.Closing()))
                with trio.move_on_after(LEAVE_S):
                    while any(reader.is_reading for reader in self._readers):
                        self._left = trio.Event()
                        await self._left.wait()
                for reader in self._readers:
                    reader.leave()
                self._store = None
                nursery.cancel_scope.cancel()

    def _publish(self, catalog: Catalog) -> None:
        self.page.publish(catalog.generations, sequence=catalog.sequence, is_shut=catalog.is_shut)

    async def _watch_disks(self, store: ObjectStore) -> None:
        before = good_disks(store)
        while True:
            await trio.sleep(_LOOK_AT_DISKS_S)
            now = good_disks(store)
            if now != before:
                before = now
                for reader in self._readers:
                    if reader.is_reading:
                        reader.channel.send(ms.pack(ms.GoodDisks(now)))

    # -- bodies ------------------------------------------------------------------------------------------------------

    async def _watch_loop(self, reader: "_Reader", page: SharedPage) -> None:
        beats, still_looks = -1, 0
        while still_looks < _STILL_LOOKS_MAX:
            # looks are counted, not seconds: when both processes are frozen together, nobody hangs
            await trio.sleep(_LOOK_AT_LOOPS_S)
            now = page.beats(ALONE)
            still_looks = still_looks + 1 if now == beats else 0
            beats = now
        log.error("a process that reads hangs and is cut off", pid=reader.pid)
        reader.channel.close()

    async def _take_bodies(self, bodies: socket.socket, nursery: trio.Nursery) -> None:
        async with aclosing(coming_bodies(bodies)) as coming:
            async for head, sock in coming:
                nursery.start_soon(self._take, head, sock)

    async def _take(self, head: ms.LongBody, sock: socket.socket) -> None:
        with sock:
            try:
                await take_coming(self.store.core.intake, head, sock)
            except Exception as error:
                await answer(sock, ms.refuse(0, _known(error)))

    # -- for readers ---------------------------------------------------------------------------------------------------

    @property
    def store(self) -> ObjectStore:
        """Raises Unavailable while there is none."""
        if self._store is None:
            raise Unavailable("the store is being opened; try again soon")
        return self._store

    async def wait_open(self) -> ObjectStore:
        """The store, once there is one and it is not closing."""
        await self._opened.wait()
        return self.store

    def count(self, counts: msgspec.Raw) -> None:
        """Requests that a reader has answered."""
        self._metrics.add(msgspec.msgpack.decode(counts))

    def left(self) -> None:
        """A reader has finished what it began."""
        self._left.set()


class _Reader:
    """What the host knows of one process."""

    def __init__(self, host: Host, requests: socket.socket, *, is_worker: bool) -> None:
        self._host = host
        self.channel = Channel(requests, self._receive)
        self.nursery: trio.Nursery | None = None
        self.is_reading = False
        self.pid = 0
        self.caches = Reader(self.channel.send, is_worker=is_worker)
        self._under_way = 0
        """Requests to the writer that were not answered yet."""
        self._claims: list[tuple[Mounts, Claim]] = []
        self._held: tuple[ObjectStore, list[int], list[int]] | None = None

    def leave(self) -> None:
        """It reads no more, until it says hello again: what it held is let go."""
        self._host.beside.left(self.caches)
        self._end_claims(is_over=False)
        held, self._held = self._held, None
        if held is not None:
            held[0].core.pins.release(held[1], held[2])
        if self.is_reading:
            self.is_reading = False
            self._host.left()

    def _end_claims(self, *, is_over: bool) -> None:
        claims, self._claims = self._claims, []
        for mounts, claim in claims:
            mounts.remove(claim, is_over=is_over)

    def _receive(self, data: memoryview) -> None:
        message = ms.unpack_from_reader(data)
        assert self.nursery is not None
        match message:
            case ms.Submit():
                self._under_way += 1
                if not self._hand_in(message):
                    self.nursery.start_soon(self._submit, message)
            case ms.FindRecord():
                self._answer_now(message.id, self._find, message)
            case ms.Hold():
                self._answer_now(message.id, self._hold, message)
            case ms.Release():
                self._release(message)
            case ms.Hello():
                self.leave()
                self.nursery.start_soon(self._hello, message)
            case ms.Damage():
                if self.is_reading:
                    self._host.store.core.jobs.rebuilder.report(message.segment, message.index, message.disk)
            case ms.ReplicaDamage():
                if self.is_reading:
                    self._host.store.core.journal.report(message.path, message.disk)
            case ms.CopyDamage() if self.is_reading and (l3 := self._host.store.core.jobs.l3) is not None:
                l3.copies.on_damage(message.blob, message.extent)
            case ms.SegmentsRead() if self.is_reading and (l3 := self._host.store.core.jobs.l3) is not None:
                l3.note_read(message.segments)
            case ms.KeepChunk():
                # who does not read now may have it from an earlier opening, in which its id stood for other bytes
                if (l2 := self._l2()) is not None:
                    l2.put(message.extent, message.chunk, message.data)
            case ms.ChunkDamage():
                if (l2 := self._l2()) is not None:
                    l2.report(message.extent, message.chunk, message.place)
            case ms.ClaimMount():
                self.nursery.start_soon(self._claim, message)
            case ms.EndMount():
                self._answer_now(message.id, lambda _: self._end_claims(is_over=True), message)
            case ms.FlushChunks():
                self.nursery.start_soon(self._flush, message)
            case ms.Counted():
                self._host.count(message.counts)
            case ms.Counts():
                if self.is_reading:
                    self.caches.stats = replace(message.stats, is_worker=self.caches.is_worker)
            case ms.Answer() | ms.Refusal():
                self.caches.asked.answered(message)
            case ms.CatalogFailed():
                if self.is_reading:
                    self._host.store.core.writer.fail(Corrupt(message.reason))

    def _l2(self) -> L2 | None:
        return self._host.store.core.l2 if self.is_reading else None

    async def _flush(self, message: ms.FlushChunks) -> None:
        if (l2 := self._l2()) is not None:
            await l2.flush()
        self.channel.send(ms.pack(ms.Answer(message.id, ms.raw(None))))

    def _answer_now(self, id_: int, work: Any, message: Any) -> None:
        try:
            reply: ms.FromStore = ms.Answer(id_, ms.raw(work(message)))
        except Error as error:
            reply = ms.refuse(id_, error)
        self.channel.send(ms.pack(reply))

    def _hand_in(self, message: ms.Submit) -> bool:
        """As `_submit`, without a task that waits; False: not now."""
        answered = partial(self._answer, message.id)
        try:
            return self._host.store.core.hand_in(ms.unpack_request(message), answered, self)
        except Exception as error:
            answered(outcomes.Error(error))
            return True

    async def _submit(self, message: ms.Submit) -> None:
        try:
            answer = await self._host.store.core.submit(ms.unpack_request(message), self)
        except Exception as error:
            self._answer(message.id, outcomes.Error(error))
        else:
            self._answer(message.id, outcomes.Value(answer))

    def _answer(self, id_: int, outcome: outcomes.Outcome[Any]) -> None:
        try:
            reply: ms.FromStore = ms.Answer(id_, ms.raw(outcome.unwrap()))
        except Exception as error:
            reply = ms.refuse(id_, _known(error))
        self._under_way -= 1
        # of those of one commit the last one takes the others along
        self.channel.send(ms.pack(reply), is_last=not self._under_way)

    async def _hello(self, message: ms.Hello) -> None:
        store = await self._host.wait_open()
        self.pid, self.is_reading = message.pid, True
        self.caches.asked.begin()
        self._held = store, [], []
        core = store.core
        disks = core.disks
        shared = core.options.cache.l2_map
        opened = ms.Opened(
            str(core.catalog.path),
            core.options.engine,
            disks.identity,
            disks.slot,
            good_disks(store),
            shared.opening if shared is not None else 0,
        )
        self.channel.send(ms.pack(ms.Answer(message.id, ms.raw(opened))))

    async def _claim(self, message: ms.ClaimMount) -> None:
        async def which_open(inodes: Sequence[int]) -> Sequence[int]:
            found: list[int] = await self.caches.asked.ask(lambda id_: ms.WhichOpen(id_, list(inodes)), list[int])
            return found

        async def show(changes: Changes) -> None:
            if self.caches.asked.count > _ASKED_MAX:
                log.error("a mount that does not show what changes is cut off", pid=self.pid)
                self.channel.close()
            await self.caches.asked.ask(lambda id_: ms.Show(id_, changes), None)

        core = self._host.store.core
        claim = Claim(message.bucket, message.writes, which_open, show, self)
        try:
            # what is being committed was not noted for it: it looks after that
            async with core.writer.quiet():
                core.mounts.add(claim)
                self._claims.append((core.mounts, claim))
        except Error as error:
            self.channel.send(ms.pack(ms.refuse(message.id, error)))
        else:
            self.channel.send(ms.pack(ms.Answer(message.id, ms.raw(None))))

    def _hold(self, message: ms.Hold) -> None:
        if self._held is not None:
            store, segments, records = self._held
            store.core.pins.hold(message.segments, message.records)
            segments += message.segments
            records += message.records

    def _release(self, message: ms.Release) -> None:
        if self._held is not None:
            store, segments, records = self._held
            for held, gone in ((segments, message.segments), (records, message.records)):
                for id_ in gone:
                    held.remove(id_)
            store.core.pins.release(message.segments, message.records)

    def _find(self, message: ms.FindRecord) -> ms.Places:
        files = self._host.store.core.journal.files()
        at = bisect.bisect_right(files, message.sequence, key=lambda file: file.first) - 1
        file = files[at] if at >= 0 else None
        if file is None or message.sequence >= file.end:
            raise DataLost(f"record {message.sequence} is not in the journal")
        is_known = (file.epoch, file.first) == (message.epoch, message.first) and message.count <= len(file.offsets)
        start = message.count if is_known else 0
        end = start + _PLACES_MAX
        offsets: array[int] = file.offsets[start:end]
        return ms.Places(
            file.epoch,
            file.first,
            file.void_from,
            list(file.replicas),
            start,
            offsets.tobytes(),
            file.offsets[end] if end < len(file.offsets) else file.end_offset,
            files[0].first,
        )


def good_disks(store: ObjectStore) -> list[tuple[int, str, bytes]]:
    """Index, folder and id of the disks that are good now."""
    disks = store.core.disks
    return [(index, disks.name(index), disks.ids[index]) for index in disks.good()]


def _known(error: Exception) -> Error:
    """What a reader is told; what nobody foresaw is logged here."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, Error):
        return error
    log.error("a request of another process failed", exc_info=error)
    return InternalError(f"{type(error).__name__}: {error}")
