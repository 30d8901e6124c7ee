"""Services that keep catalog and journal in bounds: checkpoint, snapshot, trim."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from couchestord import logs
from couchestord.ec.segments import SegmentPool
from couchestord.ec.stripes import StripeStore
from couchestord.errors import Corrupt, DataLost, Error, ShuttingDown
from couchestord.io.catalog.catalog import Catalog
from couchestord.io.catalog.pages import NOTHING, checkpoint_ahead, checkpoint_with_sums
from couchestord.io.catalog.read import SegmentRow
from couchestord.io.disks import Disks, disks_to_spare, replicas_needed
from couchestord.io.journal import Journal
from couchestord.io.sqlite import is_full, is_unreadable
from couchestord.model import Policy
from couchestord.service import Progress
from couchestord.store import snapshot as sn
from couchestord.store.pins import Pins
from couchestord.store.views import Views
from couchestord.store.writer import Writer

log = logs.get(__name__)
WAL_BYTES_MIN = 8 << 20
"""A checkpoint waits for that much of the WAL, or for the interval."""
INTERVAL_S = 0.25
INTERVAL_FAILED_S = 5.0
WAL_BYTES_AHEAD_MIN = 1 << 20
"""A checkpoint of less is done in one go."""
IDLE_LOG_BYTES_MIN = 2 << 20
"""With no body left in the journal, a snapshot is worth taking to free that much of it, and a quarter of the
catalog."""
HELD_FILL_MAX = 0.85
"""A journal that is fuller is trimmed whatever readers hold, before it is so full that writers are slowed."""


class Checkpointer:
    """Moves the catalog's WAL into its main file, off the loop, and keeps the sums of its pages."""

    name = "checkpoint"

    def __init__(
        self,
        catalog: Catalog,
        quiet: Callable[[], AbstractAsyncContextManager[None]],
        failed: Callable[[Exception], None],
    ) -> None:
        """`quiet` keeps the writer from beginning a group; `failed` is told that the file cannot be read or written."""
        self._catalog = catalog
        self._quiet = quiet
        self._failed = failed
        self.interval_s = INTERVAL_S
        self._lock = trio.Lock()
        self._is_asked = False
        self.sequence = 0
        """The main file, synced, holds everything up to here; 0 after a start, when nobody knows yet."""

    def ask(self) -> None:
        """Let the next steps checkpoint, whatever the WAL's length, until one is complete."""
        self._is_asked = True

    async def work(self) -> Progress:
        """Checkpoint when the WAL has grown, or it was asked for."""
        self.interval_s = INTERVAL_S
        if self._catalog.wal_bytes() < WAL_BYTES_MIN and not self._is_asked:
            return Progress.IDLE
        try:
            if await self.checkpoint():
                self._is_asked = False
        except (Corrupt, OSError) as error:
            log.error("catalog was not checkpointed", reason=str(error))
            self.interval_s = INTERVAL_FAILED_S
            if is_unreadable(error) and not is_full(error):
                # repaired, or made anew: else its WAL grows until nothing may be written
                self._failed(error)
        return Progress.IDLE

    async def checkpoint(self) -> bool:
        """Checkpoint now. True when the main file holds all that was committed before the call. Raises Corrupt."""
        async with self._lock:
            return await self._checkpoint()

    async def _checkpoint(self) -> bool:
        if self._catalog.committed_sequence == self.sequence:
            return True
        main = self._catalog.main
        self._catalog.check_in_place()
        ahead = NOTHING
        if self._catalog.wal_bytes() >= WAL_BYTES_AHEAD_MIN:
            # most of it while the writer goes on; it waits for the rest only
            ahead = await trio.to_thread.run_sync(checkpoint_ahead, main)
        # between two groups: a writer that never rests would else never let the WAL begin anew
        async with self._quiet():
            sequence = self._catalog.committed_sequence
            with self._catalog.out_of_wal():
                complete = await trio.to_thread.run_sync(checkpoint_with_sums, main, ahead)
        # it opened them by their names
        self._catalog.check_in_place()
        if not complete:
            return False
        self.sequence = sequence
        return True

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """No checkpoint is under way and none begins; nobody copies the main file."""
        async with self._lock:
            yield

    def replaced(self, sequence: int) -> None:
        """Inside `away`: the main file is another one, synced, that holds everything up to `sequence`."""
        self.sequence = sequence

    async def frozen(self) -> "Frozen | None":
        """A complete checkpoint whose main file stays as it is until released; None when a reader was in the way.
        Raises Corrupt.
        """
        await self._lock.acquire()
        complete = False
        try:
            complete = await self._checkpoint()
        finally:
            if not complete:
                self._lock.release()
        return Frozen(self._lock, self.sequence) if complete else None


class Frozen:
    """Keeps checkpoints away while the main file is copied."""

    def __init__(self, lock: trio.Lock, sequence: int) -> None:
        self._lock = lock
        self.sequence = sequence

    def release(self) -> None:
        self._lock.release()


class Snapshotter:
    """Writes a snapshot when the log since the last one has outgrown its bounds, and trims what is no longer needed."""

    name = "snapshot"
    interval_s = 2.0

    def __init__(
        self,
        disks: Disks,
        catalog: Catalog,
        journal: Journal,
        writer: Writer,
        checkpointer: Checkpointer,
        stripes: StripeStore,
        pool: SegmentPool,
        pins: Pins,
        views: Views,
        bytes_min: int,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._disks = disks
        self._catalog = catalog
        self._journal = journal
        self._writer = writer
        self._checkpointer = checkpointer
        self._stripes = stripes
        self._pool = pool
        self._pins = pins
        self._views = views
        self._bytes_min = bytes_min
        self._random_bytes = random_bytes
        self._whole = False
        self._is_asked = False
        self._is_full = False
        self.taken_count = 0

    @property
    def sequence(self) -> int:
        """The newest verified snapshot holds everything up to here."""
        root = self._disks.slot.snapshot
        return root.sequence if root else 0

    def ask(self) -> None:
        """Let the next step take one, whatever the log's length."""
        self._is_asked = True

    def is_due(self) -> bool:
        if self._is_asked or self._is_weak():
            return True
        if not self._journal.is_unbroken(self.sequence + 1, self._catalog.committed_sequence):
            # the log has a gap, and what it said is known to nobody but the catalog
            return True
        behind = self._journal.bytes_after(self.sequence)
        catalog_bytes = self._catalog.path.stat().st_size
        # a journal that is half full comes first: without a snapshot nothing ever frees it
        if behind > min(max(self._bytes_min, catalog_bytes // 2), self._journal.size_bytes_max // 2):
            return True
        nothing_left = not self._catalog.reading.extents_in_journal(0, 1)
        return nothing_left and behind > max(IDLE_LOG_BYTES_MIN, catalog_bytes // 4)

    def _strongest(self) -> Policy:
        """The policy that makes most lost disks good: the catalog of all must not go before the data of one."""
        return max(self._catalog.accounts.policies(), key=lambda policy: (self._spare(policy), -policy.id))

    def _spare(self, policy: Policy) -> int:
        return disks_to_spare(policy.k, policy.m, len(self._disks.of_class(policy.disk_class)))

    def _is_weak(self) -> bool:
        """The newest snapshot would be lost with fewer disks than the strongest policy makes good."""
        spare = self._spare(self._strongest())
        held = sn.protected_segments(self._catalog.accounts.jobs().get(sn.JOB))
        rows = [row for id_ in held if (row := self._catalog.reading.segment(id_)) is not None]
        return any(disks_to_spare(row.k, row.m, self._disks.count) < spare for row in rows)

    async def work(self) -> Progress:
        """Take a snapshot when one is due; trim."""
        if self.is_due():
            await self.take()
        await self.trim()
        self._say_whether_full()
        return Progress.IDLE

    def _say_whether_full(self) -> None:
        was_full, self._is_full = self._is_full, self._journal.size_bytes >= self._journal.size_bytes_max
        if self._is_full and not was_full:
            oldest = self._catalog.reading.extents_in_journal(0, 1)
            log.warning(
                "journal is full: new data is refused until it is trimmed",
                first=self._journal.first_sequence,
                needed=self.trim_point(),
                snapshot=self.sequence,
                checkpoint=self._checkpointer.sequence,
                body=oldest[0].stripe if oldest else None,
                reader=self._pins.oldest_record(),
            )

    async def take(self) -> bool:
        """Write a snapshot now, read it back, and make it the newest. False when it could not be finished this time.
        Raises Corrupt when the catalog could not be checkpointed, ShuttingDown.
        """
        if len(self._disks.roomy()) < replicas_needed(self._disks.m, self._disks.missing_count()):
            # nor is there room for a new file of the journal but what is kept for deletes
            return False
        self._is_asked = False
        # what follows begins a new file of the journal, so that all before it can be trimmed with this snapshot
        self._journal.roll()
        frozen = await self._checkpointer.frozen()
        if frozen is None:
            return False
        try:
            # what lies in segments of a weaker policy is written anew
            earlier = None if self._whole or self._is_weak() else await self._earlier()
            seed = int.from_bytes(self._random_bytes(8), "little")
            root, segments = await sn.write_snapshot(
                self._catalog.main, frozen.sequence, self._pool, self._strongest(), earlier, seed
            )
        except ShuttingDown:
            raise
        except Error as error:
            log.error("snapshot failed", reason=str(error))
            if isinstance(error, Corrupt):
                self._writer.fail(error)
            return False
        finally:
            frozen.release()
        self._pins.hold(segments)
        old = sn.protected_segments(self._catalog.accounts.jobs().get(sn.JOB))
        named = False
        try:
            # one that cannot be read back has perhaps an old piece that cannot: the next names none
            self._whole = True
            # sealed now, the next snapshot knows how much room it takes
            await self._pool.retire(root.segment)
            rows = self._rows(segments)
            table = await sn.read_table(root, self._stripes, rows)
            async for _ in sn.read_pieces(table, self._stripes, rows):
                pass
            self._whole = False
            await self._writer.submit(sn.save_request(segments | old, root.sequence))
            named = True
            await self._disks.set_snapshot(root)
            await self._writer.submit(sn.save_request(segments, root.sequence))
        except Error as error:
            # what the job names stays held, once, until the next snapshot takes its place
            self._pins.release(segments & old if named else segments)
            if isinstance(error, ShuttingDown):
                raise
            log.error("snapshot failed", reason=str(error))
            return False
        self._pins.release(old)
        self.taken_count += 1
        log.info("catalog snapshot written", sequence=root.sequence, pieces=len(table.pieces))
        return True

    def _rows(self, segments: Iterable[int]) -> dict[int, SegmentRow]:
        return {id_: row for id_ in segments if (row := self._catalog.reading.segment(id_)) is not None}

    async def _earlier(self) -> "sn.Earlier | None":
        """The newest snapshot, when its pieces may be named again."""
        root = self._disks.slot.snapshot
        if root is None:
            return None
        rows = self._rows(sn.protected_segments(self._catalog.accounts.jobs().get(sn.JOB)))
        try:
            return sn.Earlier(await sn.read_table(root, self._stripes, rows), rows)
        except (Corrupt, DataLost) as error:
            log.warning("the snapshot before cannot be read: all of the catalog is written", reason=str(error))
            return None

    def trim_point(self) -> int:
        """Records before it are needed by nobody."""
        oldest = self._catalog.reading.extents_in_journal(0, 1)
        point = min(self.sequence, self._checkpointer.sequence) + 1
        if oldest:
            point = min(point, oldest[0].stripe)
        held = self._pins.oldest_record()
        if held is None or held >= point:
            return point
        # one slow client must not keep all others from writing
        return point if self._journal.size_bytes > HELD_FILL_MAX * self._journal.size_bytes_max else held

    async def trim(self) -> int:
        """Free journal files; answers how many."""
        if self._checkpointer.sequence < self.sequence:
            # a start found this snapshot. A journal that is full now lets nothing in that would make a checkpoint or
            # another snapshot due, and neither would ever come
            self._checkpointer.ask()
        return await self._journal.trim(self._views.trim_point(self.trim_point()))
