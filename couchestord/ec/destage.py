"""From the journal to stripes: the bytes of small objects, packed many to a stripe."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import trio

from couchestord import logs
from couchestord.ec.codec import Buffer
from couchestord.ec.losing import Losses
from couchestord.ec.moves import Mover
from couchestord.ec.segments import SegmentPool, Submit
from couchestord.errors import Error, NoSpace, ShuttingDown, TooFewDisks, Unavailable
from couchestord.io.catalog.read import CatalogReader, ExtentRow
from couchestord.service import Progress

log = logs.get(__name__)

ReadJournal = Callable[[int, int, int], Awaitable[Buffer]]
"""(sequence, start, length) to verified bytes of that record's body. May raise DataLost."""


@dataclass(frozen=True, slots=True)
class DestageOptions:
    threshold_percent: int = 80
    """How full the journal may become before it is destaged without waiting for the interval."""
    interval_s: float = 30.0
    """At most so long an extent stays in the journal, if the disks keep up."""
    batch_bytes: int = 8 << 20
    batch_extents: int = 2048
    unreadable_max: int = 4096


class Destager:
    """Steps through the extents that lie in the journal, oldest first. Trimming the journal is not its part.

    A pass begins when the journal is fuller than the threshold, when the interval is over, or when `force` asks for it;
    it ends when nothing is left. One of the first kind writes a stripe that is not full only when no other is to be
    written. An extent that cannot be read is skipped and counted, and tried again in the next pass; see `Losses`.
    """

    name = "destage"

    def __init__(
        self,
        catalog: CatalogReader,
        pool: SegmentPool,
        submit: Submit,
        read_journal: ReadJournal,
        fill_percent: Callable[[], float],
        options: DestageOptions = DestageOptions(),
        is_whole: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_whole`: as in `Losses`."""
        self._catalog = catalog
        self._mover = Mover(pool, submit)
        self._read_journal = read_journal
        self._fill_percent = fill_percent
        self._options = options
        self._turn = trio.Lock()
        self._due: float | None = None
        self._forced = False
        self._passing = False
        self._is_fruitless = True
        """Nothing was moved since the pass began."""
        self._short = False
        self._skipped: dict[int, ExtentRow] = {}
        """Those of this pass that cannot be read."""
        self._put_off: dict[int, Error] = {}
        self._passed = 0
        """Up to this record nothing is left for this pass."""
        self.stuck: dict[int, Error] = {}
        """Policies that there were no disks for in the last pass, and why: what is written under them stays here."""
        self.losses = Losses(submit, self._load, is_whole)
        self.moved_extents_count = 0
        self.unreadable_extents_count = 0

    @property
    def interval_s(self) -> float:
        return min(1.0, self._options.interval_s)

    def force(self) -> None:
        """Begin a pass with the next step, short stripes and all."""
        self._forced = True

    async def work(self) -> Progress:
        """Move one batch. Calls take turns: two at once would write the same bytes twice."""
        async with self._turn:
            return await self._work()

    async def _work(self) -> Progress:
        if not self._begin():
            return Progress.IDLE
        batch, cut_by_bytes, more = self._next()
        if more and not batch:
            return Progress.BUSY
        leave_short = cut_by_bytes or not self._short
        if more and not cut_by_bytes:
            leave_short = False  # so many tiny ones: they are a stripe's worth of work
        before_count = self.moved_extents_count
        progressed = await self._move_all(batch, leave_short)
        if not progressed and (cut_by_bytes or self._is_fruitless):
            # nothing fills a stripe, but it keeps a journal that is full of what is dead: short ones it is
            progressed = await self._move_all(batch, False)
        if not progressed or len(self._skipped) > self._options.unreadable_max:
            return await self._end()
        self._is_fruitless = self._is_fruitless and self.moved_extents_count == before_count
        return Progress.BUSY

    async def _move_all(self, batch: Mapping[int, Sequence[ExtentRow]], leave_short: bool) -> bool:
        """Move what of each policy is in the batch. True when something was moved, or will not be tried again; what
        one policy has no disks for does not keep the others in the journal.
        """
        progressed = False
        for policy, extents in batch.items():
            try:
                moved = await self._mover.move(extents, self._read, policy=policy, leave_short=leave_short)
            except ShuttingDown:
                raise
            except (NoSpace, Unavailable) as error:
                log.warning("destage was put off", policy=policy, reason=str(error))
                self._put_off[policy] = error
                self._note_stuck()
                progressed = True
                continue
            self.moved_extents_count += moved.moved_count
            self.unreadable_extents_count += len(moved.unreadable)
            self._skipped |= {extent.id: extent for extent in moved.unreadable}
            progressed |= moved.left_count < len(extents)
        return progressed

    def _note_stuck(self) -> None:
        # whatever else keeps it in the journal is not the disks'
        short = NoSpace | TooFewDisks
        self.stuck |= {policy: error for policy, error in self._put_off.items() if isinstance(error, short)}

    def _begin(self) -> bool:
        now = trio.current_time()
        if self._due is None:
            self._due = now + self._options.interval_s
        wanted = self._forced or now >= self._due
        if wanted:
            self._short = True
            self._forced = False
            self._due = now + self._options.interval_s
        if wanted or self._is_pressed():
            self._passing = True
        return self._passing

    def _is_pressed(self) -> bool:
        return self._fill_percent() >= self._options.threshold_percent

    async def _end(self) -> Progress:
        self._passing = False
        self.stuck.clear()
        self._note_stuck()
        self._put_off.clear()
        self._passed = 0
        self._is_fruitless = True
        self._short = False
        unreadable, self._skipped = self._skipped, {}
        await self.losses.settle(unreadable.values(), self._is_pressed())
        return Progress.IDLE

    def _next(self) -> tuple[dict[int, list[ExtentRow]], bool, bool]:
        """Extents of one step by policy; whether there are more in this answer; whether there may be more in the
        journal.
        """
        limit = self._options.batch_extents + len(self._skipped)
        rows = self._catalog.extents_to_destage(self._passed, limit)
        batch: dict[int, list[ExtentRow]] = {}
        size_bytes = 0
        for policy, row in rows:
            if row.id in self._skipped or policy in self._put_off:
                continue
            if batch and size_bytes + row.length > self._options.batch_bytes:
                return batch, True, True
            batch.setdefault(policy, []).append(row)
            size_bytes += row.length
        more = len(rows) == limit
        if more and not batch:
            # all of its last record, unless there is nothing else
            last = rows[-1][1].stripe
            self._passed = max(last - 1, self._passed + (rows[0][1].stripe == last))
        return batch, False, more

    async def _read(self, extent: ExtentRow) -> AsyncGenerator[Buffer, None]:
        yield await self._load(extent)

    def _load(self, extent: ExtentRow) -> Awaitable[Buffer]:
        return self._read_journal(extent.stripe, extent.stripe_start, extent.length)
