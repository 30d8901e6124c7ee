"""The store's single writer: takes the requests that wait, commits them as one group, answers.

The order is what the promises rest on. In one open catalog transaction every request is decided and its outcome
applied; the records go to the journal, whose return is the commit point; the catalog transaction is committed; only
then is anybody answered, the refused ones too, since a refusal may rest on a mutation of the same group.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import outcome as outcomes
import trio

from couchestord import logs
from couchestord.errors import (
    EntityTooLarge,
    Error,
    InternalError,
    JournalFull,
    NoSpace,
    ShuttingDown,
    Unavailable,
    WritesStopped,
)
from couchestord.io import mutations as mu
from couchestord.io.catalog.catalog import WAL_BYTES_MAX, Catalog
from couchestord.io.catalog.reserve import Reserve
from couchestord.io.checksum import xxh3_64
from couchestord.io.disks import Disks, replicas_needed
from couchestord.io.journal import Journal
from couchestord.io.journalfile import Entry
from couchestord.io.records import BODY_BYTES_MAX, META_BYTES_MAX, record_digest
from couchestord.io.sqlite import is_damage, is_failure
from couchestord.store.answering import Answering
from couchestord.store.decide import Decider
from couchestord.store.fill import Fill
from couchestord.store.growing import STUCK_FROM, Room, grows
from couchestord.store.waiting import GROUP_MUTATIONS_MAX, Answered, Waiting, take_group

log = logs.get(__name__)
GROUP_ROWS_MAX = 4096
"""A group that has changed so many rows of the catalog is complete: nobody else has a turn while it is decided."""
GATHER_S_MAX = 0.004
"""So long a group waits at most for those who are expected to come, and never longer than the sync before it took."""
CATALOG_ROOM_BYTES_MIN = 8 << 20
"""More than the largest group adds to the catalog's WAL. New data needs so much beside the reserve; with less, and no
reserve left, all writes are refused until there is room again."""
SLOW_FROM = 0.9
"""How full the journal is when writers of new data begin to be slowed."""
SLOW_S_MAX = 0.2
OVERDRAFT = 1.5
"""How full the journal may become with deletes and other changes that bring no data."""
EMPTY_SUM = xxh3_64(b"")


@dataclass(slots=True)
class WriterStats:
    """Counters since the start."""

    groups: int = 0
    mutations: int = 0
    refused: int = 0


class Writer:
    """One per store. `submit` may be called by any task; `run` is the one task that writes."""

    def __init__(self, catalog: Catalog, journal: Journal, disks: Disks, decider: Decider, reserve: Reserve) -> None:
        self._disks = disks
        self._catalog = catalog
        self._journal = journal
        self._decider = decider
        self._reserve = reserve
        self._catalog_is_tight = False
        self._queue: deque[Waiting] = deque()
        self._kick = trio.Event()
        self._wanted = 1
        """So many requests in the queue wake the writer."""
        self._expected = 1
        """So many were under way when the last group was answered."""
        self._sync_s = 0.0
        """How long it took to make the last group durable."""
        self._turn = trio.Lock()
        self._idle = trio.Event()
        self._idle.set()
        self._stopped: Exception | None = None
        self._broken: WritesStopped | None = None
        self.failure: BaseException | None = None
        """How the catalog failed; None when it did not or was repaired."""
        self._in_doubt: BaseException | None = None
        """Why a group failed at the journal. It may have happened, as the next start says, until another one is in."""
        self._filled = self._fill
        """How full the journal was when that was last asked: before each group."""
        self.stats = WriterStats()
        self._answering: Answering | None = None
        self.fill: Fill | None = None
        """New data waits for it."""
        self.stuck: Callable[[], Mapping[int, Error]] = dict
        """Policies whose bodies do not leave the journal, and why."""

    async def submit(self, request: object, origin: object = None) -> Any:
        """Decide, apply and make durable. Returns the answer, or raises the refusal, once both are certain and mounts
        show them; but for those of `origin`, which asks.

        Cancellation does not take a request back: the call waits for the commit and returns.
        """
        if grows(request):
            if self._filled > SLOW_FROM:
                # a journal that fills slows its writers before it refuses them
                self._filled = self._fill
                await trio.sleep(SLOW_S_MAX * min(1.0, max(0.0, self._filled - SLOW_FROM) / (1 - SLOW_FROM)))
            if self.fill is not None:
                return await self.fill.with_room(partial(self._ask, request, origin))
        return await self._ask(request, origin)

    async def _ask(self, request: object, origin: object) -> Any:
        self._take(request, partial(trio.lowlevel.reschedule, trio.lowlevel.current_task()), origin)
        return await trio.lowlevel.wait_task_rescheduled(_cannot_cancel)

    def hand_in(self, request: object, answered: Answered, origin: object = None) -> bool:
        """As `submit`, without a task that waits: `answered` is called once the answer or the refusal is certain.

        False: not now, `submit` it; a journal or disks that fill slow their writers. Raises at once while writes are
        refused.
        """
        if grows(request) and (self._filled > SLOW_FROM or (self.fill is not None and self.fill.is_pressed())):
            return False
        self._take(request, answered, origin)
        return True

    def _take(self, request: object, answered: Answered, origin: object = None) -> None:
        reason = self._stopped or self._broken
        if reason is not None:
            raise type(reason)(str(reason))
        body = getattr(request, "body", b"")
        waiting = Waiting(request, len(body), answered, origin)
        if self._idle.is_set():
            self._idle = trio.Event()
        self._queue.append(waiting)
        if len(self._queue) >= self._wanted:
            self._kick.set()

    @property
    def waiting_count(self) -> int:
        """Requests that wait for the next group."""
        return len(self._queue)

    @property
    def stopped_because(self) -> str:
        """Why later requests are refused, empty while they are not."""
        reason = self._stopped or self._broken
        return str(reason) if reason else ""

    @property
    def broken_because(self) -> str:
        """How the catalog failed, empty when it did not or was repaired."""
        return str(self._broken) if self._broken else ""

    def stop(self, reason: Exception) -> None:
        """Refuse every later request with this error, for good. What waits already is still committed."""
        if self._stopped is None:
            self._stopped = reason

    def resume(self) -> None:
        """The catalog is as the log says again: later requests are committed."""
        self._broken = self.failure = None
        if self._answering is not None:
            self._answering.doubt_everything()

    def fail(self, error: Exception) -> None:
        """The catalog's file cannot be used, or is not what was committed to it: nothing is decided on it until it is
        repaired.
        """
        if self._broken is None or (is_damage(error) and not is_damage(self.failure)):
            self._break(error)

    def _break(self, error: BaseException) -> WritesStopped:
        """The catalog failed. Whatever is in the log happened, whatever the catalog says; a repair brings the two
        together, and until then nothing is decided.
        """
        self.failure = error
        self._broken = WritesStopped(f"the catalog failed and is being repaired from the log: {error}")
        log.error("catalog failed: writes stop until it is repaired", reason=str(error))
        return self._broken

    async def drain(self) -> None:
        """Refuse new requests and wait until those under way are answered."""
        self.stop(ShuttingDown("the store is shutting down"))
        await self._idle.wait()

    async def run(self) -> None:
        """Commit groups until cancelled."""
        async with trio.open_nursery() as nursery:
            self._answering = Answering(nursery, self._decider.mounts)
            await self._run(self._answering)

    async def _run(self, answering: Answering) -> None:
        try:
            # a cancelled writer finishes the group it has begun: its requests cannot be cancelled
            with trio.CancelScope(shield=True) as group:
                while True:
                    if not self._queue:
                        self._idle.set()
                        self._wanted, self._kick = 1, trio.Event()
                        group.shield = False
                        await self._kick.wait()
                        group.shield = True
                    await self._gather()
                    answering.answer(await self._commit_waiting())
        finally:
            self.stop(ShuttingDown("the store is shutting down"))
            for waiting in self._queue:
                waiting.result = outcomes.Error(ShuttingDown("the store is shutting down"))
                waiting.tell()
            self._queue.clear()
            self._idle.set()

    async def _gather(self) -> None:
        """Clients that were answered mostly come again at once. Two groups of half of them cost two syncs for what one
        would do, and whoever comes during the first waits for both: so they are waited for, but less than a sync takes.
        """
        patience_s = min(GATHER_S_MAX, self._sync_s)
        if len(self._queue) < self._expected and patience_s > 0:
            self._wanted, self._kick = self._expected, trio.Event()
            with trio.move_on_after(patience_s):
                await self._kick.wait()

    @asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """Between two groups: no transaction is open and none is begun. Keep it short, everybody waits."""
        async with self._turn:
            yield

    async def _take_turn(self) -> None:
        try:
            self._turn.acquire_nowait()  # `acquire` would take a turn of the loop
        except trio.WouldBlock:
            await self._turn.acquire()

    async def _commit_waiting(self) -> list[Waiting]:
        group = take_group(self._queue)
        await self._take_turn()
        try:
            await self._commit(group)
        except Exception as error:
            if not isinstance(error, Error):
                log.exception("commit failed")
                error = InternalError(f"the commit failed: {error!r}")
            for waiting in group:
                waiting.result = outcomes.Error(error)
        finally:
            self._turn.release()
        self._expected = min(GROUP_MUTATIONS_MAX, len(group) + len(self._queue))
        return group

    async def _commit(self, group: list[Waiting]) -> None:
        if self._broken is not None:
            raise self._broken
        self._check_catalog_room(group)
        first = self._catalog.applier.sequence + 1
        try:
            entries = self._decide(group)
        except Exception as error:
            if is_failure(error):
                raise self._break(error) from error
            raise
        if not entries:
            self._roll_back()
            if self._in_doubt is not None:
                # nothing to write, a delete of what is not there say: but it may turn out to be there
                raise Unavailable(f"a write before this one is in doubt until the next one succeeds: {self._in_doubt}")
            return
        begun_s = trio.current_time()
        try:
            await self._journal.append(first, entries)
        except BaseException as error:
            self._in_doubt = error
            self._roll_back()
            raise
        self._sync_s = trio.current_time() - begun_s
        self._in_doubt = None
        self.stats.groups += 1
        self.stats.mutations += len(entries)
        try:
            self._catalog.commit()
        except Exception as error:
            # the group is in the log: it happened. Whoever asked for it hears that nobody knows yet
            self._break(error)
            raise

    def _roll_back(self) -> None:
        try:
            self._catalog.rollback()
        except Exception as error:
            self._break(error)

    def _check_catalog_room(self, group: list[Waiting]) -> None:
        """Before the commit point: behind it, a catalog that cannot be written stops all writes until its repair.

        What is kept beside the catalog is for changes that lead to room, which new data may not take from them.
        """
        free_bytes = self._reserve.free_bytes()
        self._catalog_is_tight = not self._reserve.leaves(free_bytes, CATALOG_ROOM_BYTES_MIN)
        if free_bytes >= CATALOG_ROOM_BYTES_MIN or all(grows(waiting.request) for waiting in group):
            return
        self._reserve.free()
        free_bytes = self._reserve.free_bytes()
        if free_bytes < CATALOG_ROOM_BYTES_MIN:
            raise NoSpace(
                f"the file system of the catalog has {free_bytes >> 10} KiB left, {CATALOG_ROOM_BYTES_MIN >> 10} KiB "
                "are needed: make room there"
            )

    def _decide(self, group: list[Waiting]) -> list[Entry]:
        """Decide and apply the group in one transaction. A request whose outcome cannot be applied is taken out; those
        behind a full transaction go back to the queue.
        """
        excluded: set[int] = set()
        room = self._look_for_room()
        self._catalog.applier.watch.is_on = self._decider.mounts.are_there
        while True:
            self._catalog.begin()
            entries: list[Entry] = []
            for number, waiting in enumerate(group):
                if number in excluded:
                    continue
                try:
                    self._decide_one(waiting, room, entries)
                except Error as error:
                    if isinstance(error, InternalError):
                        self._exclude(excluded, number, waiting, error)
                        break
                    self.stats.refused += 1
                    waiting.result = outcomes.Error(error)
                except Exception as error:
                    if is_failure(error):
                        raise
                    self._exclude(excluded, number, waiting, error)
                    break
                if self._catalog.changed_rows >= GROUP_ROWS_MAX:
                    self._queue.extendleft(reversed(group[number + 1 :]))
                    del group[number + 1 :]
            else:
                return entries
            # half of an outcome may be in the transaction: begin the group again without that request
            self._catalog.rollback()

    def _exclude(self, excluded: set[int], number: int, waiting: Waiting, error: Exception) -> None:
        log.error("a request could not be applied", request=type(waiting.request).__name__, exc_info=error)
        excluded.add(number)
        waiting.result = outcomes.Error(InternalError(f"{type(waiting.request).__name__} failed: {error}"))

    @property
    def _fill(self) -> float:
        return self._journal.size_bytes / self._journal.size_bytes_max

    def _look_for_room(self) -> Room:
        """New data needs room in the journal and beyond the reserve of the disks; deletes and moves do not.

        Asked once for a group: nothing of it changes while one is decided.
        """
        self._filled = self._fill
        full = JournalFull("the journal is full: destage has not caught up. Try again.")
        others = full if self._filled >= OVERDRAFT else None
        if self._filled >= 1:
            return Room(full, others)
        if self._catalog_is_tight:
            reason = "the file system of the catalog is full: delete something, or make room there"
            return Room(NoSpace(reason), others)
        if self._catalog.wal_bytes() > WAL_BYTES_MAX:
            reason = "the catalog's WAL is full: checkpoints are behind, or a reader is in their way. Try again."
            return Room(Unavailable(reason), others)
        needed = replicas_needed(self._disks.m, self._disks.missing_count())
        if len(self._disks.roomy()) < needed <= len(self._disks.good()):
            return Room(None, others, NoSpace("the disks are full: delete something, or add room"))
        return Room(None, others, None, self.stuck() if self._filled >= STUCK_FROM else {})

    def _decide_one(self, waiting: Waiting, room: Room, entries: list[Entry]) -> None:
        room.check(waiting.request)
        decision = self._decider.decide(waiting.request)
        if decision.outcome is not None:
            body_sum = EMPTY_SUM if not decision.body else decision.body_sum
            assert body_sum is not None
            meta = mu.encode(decision.outcome)
            if len(meta) > META_BYTES_MAX or len(decision.body) > BODY_BYTES_MAX:
                raise EntityTooLarge("the request is made of too many pieces, or brings too many bytes, for one record")
            applier = self._catalog.applier
            applier.apply(decision.outcome, applier.sequence + 1, record_digest(meta, body_sum))
            waiting.changes = applier.watch.take()
            entries.append(Entry(meta, decision.body, body_sum))
        waiting.result = outcomes.Value(decision.answer)


def _cannot_cancel(_raise_cancel: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED
