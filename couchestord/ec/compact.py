"""Space: segments without live bytes are dropped, those with few are emptied first."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from math import inf

import trio

from couchestord import logs
from couchestord.ec.codec import Buffer
from couchestord.ec.moves import Mover
from couchestord.ec.segments import SegmentPool, Submit
from couchestord.ec.shardfile import remove_shard
from couchestord.ec.shards import FOLDER, PAGE_BYTES, parse_shard_name, shard_path
from couchestord.ec.throttle import Throttle
from couchestord.errors import DiskError, NoSpace, ShuttingDown, Unavailable
from couchestord.io.catalog.read import CatalogReader, ExtentRow, SegmentRow
from couchestord.io.disks import Disks
from couchestord.io.requests import DropSegment
from couchestord.service import Progress

log = logs.get(__name__)
SWEPT_A_TURN = 100
CANDIDATES_MAX = 64
"""Thin segments that are looked at in one step."""


@dataclass(frozen=True, slots=True)
class CompactOptions:
    live_ratio_min: float = 0.5
    """A sealed segment with less of its room in use is emptied."""
    gain_ratio_max: float = 0.75
    """... when what is left takes at most so much of its room in another one."""
    live_ratio_pressed: float = 0.75
    gain_ratio_pressed: float = 0.9
    """The same while the disks are nearly full."""
    batch_bytes: int = 8 << 20
    batch_extents: int = 1024
    drops_per_step_max: int = 16
    interval_s: float = 2.0
    interval_pressed_s: float = 0.5
    retry_s: float = 600.0
    """So long an extent that could not be read is left alone: disks that were away may be back."""


class Compactor:
    """Drops dead segments and empties dying ones, the emptiest first, a batch a step.

    The file of a dropped segment on a disk that is away is found by `sweep` when it is back. An extent that cannot be
    read keeps its segment, and is tried again after a while.
    """

    name = "compact"

    def __init__(
        self,
        catalog: CatalogReader,
        disks: Disks,
        pool: SegmentPool,
        submit: Submit,
        throttle: Throttle,
        options: CompactOptions = CompactOptions(),
        is_unseen: Callable[[int], bool] = lambda _: True,
        is_pressed: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_unseen`: whether no reader elsewhere may still find the segment that is dead here. `is_pressed`: whether
        the disks are nearly full.
        """
        self._is_unseen = is_unseen
        self._is_pressed = is_pressed
        self._was_pressed = False
        self._catalog = catalog
        self._disks = disks
        self._pool = pool
        self._submit = submit
        self._throttle = throttle
        self._options = options
        self._mover = Mover(pool, submit, dips=True)
        self._stuck: dict[int, set[int]] = {}
        """Extents that could not be read, by segment ..."""
        self._stuck_until = inf
        """... and when they are tried again."""
        self._passed_over: dict[int, int] = {}
        """Live bytes of thin segments when they were found not worth emptying."""
        self._trouble = ""
        """Why the last step failed."""
        self.can_move = False
        """Whether the last step found something to do, and could."""
        self.dropped_segments_count = 0
        self.moved_extents_count = 0

    @property
    def interval_s(self) -> float:
        return self._options.interval_pressed_s if self._was_pressed else self._options.interval_s

    @property
    def has_work(self) -> bool:
        """Whether it makes room now, or will once readers have seen what is dead."""
        return self.can_move or bool(self._dead())

    async def work(self) -> Progress:
        """Drop some dead segments, or move a batch out of a dying one."""
        try:
            if await self._drop_dead():
                self.can_move = True
                return Progress.BUSY
            row = await self._find_dying()
            self.can_move = row is not None
            if row is None:
                return Progress.IDLE
            if not self._throttle.is_open(urgent=self._was_pressed):
                return Progress.THROTTLED
            return await self._empty(row)
        except ShuttingDown:
            raise
        except (NoSpace, Unavailable) as error:
            if str(error) != self._trouble:
                log.warning("compaction was put off", reason=str(error))
            self._trouble = str(error)
            self.can_move = False
            return Progress.IDLE

    # -- dead ----------------------------------------------------------------------------------------------------------

    def _dead(self) -> list[SegmentRow]:
        """Some that may go, as far as is known here: the catalog's newest snapshot lies in one that is pinned, and a
        stream may have written to one and not have said so yet.
        """
        limit = self._options.drops_per_step_max
        rows = self._catalog.segments_dead(limit + self._pool.pinned_count)
        return [row for row in rows if not self._pool.is_pinned(row.id)][:limit]

    async def _drop_dead(self) -> int:
        dropped = 0
        for row in self._dead():
            # asked in this order: who reads on for long has pinned it when nobody else sees it
            is_free = self._is_unseen(row.id) and not self._pool.is_pinned(row.id)
            if is_free and await self._submit(DropSegment(row.id)):
                dropped += 1
                self._stuck.pop(row.id, None)
                self._passed_over.pop(row.id, None)
                for index, number in enumerate(row.disks):
                    await remove_shard(self._disks, number, row.id, index)
        self.dropped_segments_count += dropped
        return dropped

    async def sweep(self, next_id: Callable[[], int], only: int | None = None) -> int:
        """Remove files of segments that the catalog once knew and no longer does, and of shards that were rebuilt on
        another disk.

        For a start and for the return of disk `only`, before rebuilding begins on it. Returns how many files went.
        The only whole copy of a shard, and a file whose segment the catalog cannot have known, is not touched.
        """
        count = 0
        for number in self._disks.good() if only is None else [only]:
            disk = self._disks.get(number)
            if disk is None:
                continue
            try:
                names = await disk.list(FOLDER)
                for place, name in enumerate(names):
                    if not place % SWEPT_A_TURN:
                        await trio.lowlevel.checkpoint()
                    # asked after the list: a segment is committed before its first file is made
                    if self._is_stale(name, next_id(), number):
                        await disk.unlink(f"{FOLDER}/{name}")
                        count += 1
            except DiskError as error:
                log.warning("disk was not swept", disk=disk.name, reason=str(error))
        return count

    def _is_stale(self, name: str, next_id: int, number: int) -> bool:
        parsed = parse_shard_name(name)
        if parsed is None or parsed[0] >= next_id:
            return False
        row, index = self._catalog.segment(parsed[0]), parsed[1]
        if row is None:
            return True
        # the shard was made anew on another disk, which has it: this copy is read by nobody
        home = row.disks[index] if index < len(row.disks) else number
        return home != number and not row.missing >> index & 1 and self._disks.get(home) is not None

    # -- dying ---------------------------------------------------------------------------------------------------------

    async def _find_dying(self) -> SegmentRow | None:
        """The emptiest segment that is worth the work. One that is not is not looked at again until it changes."""
        if self._is_pressed() != self._was_pressed:
            self._was_pressed = not self._was_pressed
            self._passed_over.clear()
        if trio.current_time() >= self._stuck_until:
            self._stuck_until = inf
            while self._stuck:
                self._passed_over.pop(self._stuck.popitem()[0], None)
        limit = CANDIDATES_MAX + len(self._passed_over)
        for row in self._catalog.segments_thin(int(self._live_ratio * PAGE_BYTES), limit):
            if self._passed_over.get(row.id) == row.live_bytes:
                continue
            if await self._is_worth_it(row) and self._extents(row):
                return row
            self._passed_over[row.id] = row.live_bytes
        return None

    @property
    def _live_ratio(self) -> float:
        return self._options.live_ratio_pressed if self._was_pressed else self._options.live_ratio_min

    async def _is_worth_it(self, row: SegmentRow) -> bool:
        """Little of its room is in use, and what is left takes clearly less elsewhere, so that compaction ends: where
        stripes or extents are small, headers and the ends of pages are most of the room however they are packed.
        """
        pages = await self._pages(row)
        if row.live_bytes >= self._live_ratio * max(0, pages - 1) * PAGE_BYTES * row.k:
            return False
        options, live_bytes = self._options, row.live_bytes
        gain_ratio = options.gain_ratio_pressed if self._was_pressed else options.gain_ratio_max
        batches = (
            1 + self._catalog.extents_count(row.id) // options.batch_extents + 2 * live_bytes // options.batch_bytes
        )
        # two stripes in a row hold more than one stripe's bytes; each has a page of header and one that is not full
        stripes = batches + 2 * live_bytes // row.stripe_bytes
        return live_bytes / (PAGE_BYTES * row.k) + 2 * stripes <= gain_ratio * pages

    async def _pages(self, row: SegmentRow) -> int:
        """Pages of each shard file, its header's included."""
        if row.stripes_end >= 0:
            return row.stripes_end
        for index, number in enumerate(row.disks):
            disk = self._disks.get(number)
            if disk is None:
                continue
            try:
                sizes = await disk.list(FOLDER)
            except DiskError:
                continue
            name = shard_path(row.id, index).removeprefix(f"{FOLDER}/")
            if name in sizes:
                return -(-sizes[name] // PAGE_BYTES)
        return 0

    def _extents(self, row: SegmentRow) -> list[ExtentRow]:
        """The next extents to move; none when only such are left that cannot be read."""
        stuck = self._stuck.get(row.id, set())
        rows = self._catalog.extents_in_segment(row.id, 0, self._options.batch_extents + len(stuck))
        batch: list[ExtentRow] = []
        size_bytes = 0
        for extent in rows:
            if extent.id in stuck:
                continue
            if batch and size_bytes + extent.length > self._options.batch_bytes:
                break
            batch.append(extent)
            size_bytes += extent.length
        return batch

    async def _empty(self, row: SegmentRow) -> Progress:
        async def read(extent: ExtentRow) -> AsyncGenerator[Buffer, None]:
            run = self._pool.stripes.read_run(row, extent.stripe, extent.stripe_start, extent.length)
            async with aclosing(run) as pieces:
                async for piece in pieces:
                    yield piece

        moved = await self._mover.move(self._extents(row), read, policy=row.policy)
        self._throttle.spend(2 * moved.written_bytes)
        self._trouble = ""
        self.moved_extents_count += moved.moved_count
        if moved.unreadable:
            self._stuck_until = min(self._stuck_until, trio.current_time() + self._options.retry_s)
            self._stuck.setdefault(row.id, set()).update(extent.id for extent in moved.unreadable)
        return Progress.BUSY
