"""From the disks to the bucket only: the job `evict` of tiered mode.

What has a confirmed copy gives up its place in stripes, whole segments at a time, those not read for longest first, so
that the segment is dropped. It is a move as any other: compared with where the extent is, and recorded, first.
"""

from collections.abc import Awaitable, Callable, Iterable

import trio

from couchestord import logs
from couchestord.ec.segments import Submit
from couchestord.ec.shards import PAGE_BYTES
from couchestord.errors import ShuttingDown, Unavailable
from couchestord.io import requests as rq
from couchestord.io.catalog.catalog import Catalog
from couchestord.io.catalog.read import ExtentRow, SegmentRow
from couchestord.io.catalog.segments import STATE_SEALED
from couchestord.io.mutations import IN_BLOB
from couchestord.service import Progress
from couchestord.store.options import Watermarks

log = logs.get(__name__)
_MOVES_PER_RECORD = 256
_INTERVAL_S = 5.0
_INTERVAL_FULL_S = 0.5
_GONE_MAX = 4096
"""So many segments, and as many as there are, may be remembered that are gone."""


class Evictor:
    """A service: a segment a step. Nothing goes that has no copy: what lacks one is asked for by `is_short`."""

    name = "evict"

    def __init__(
        self,
        catalog: Catalog,
        submit: Submit,
        left_bytes: Callable[[], Awaitable[int]],
        read_at: dict[int, float],
        watermarks: Watermarks,
        is_bad: Callable[[int, int], bool] = lambda _blob, _extent: False,
    ) -> None:
        """`left_bytes`: what new data may take yet, of all disks. `read_at`: when segments were read from last; what
        is not there was not read since the start. `is_bad`: whether the copy of an extent in a blob turned out to be
        none, though the catalog says so not yet.
        """
        self._catalog = catalog
        self._submit = submit
        self._left_bytes = left_bytes
        self._read_at = read_at
        self._watermarks = watermarks
        self._is_bad = is_bad
        self._is_evicting = False
        self._remembered_max = _GONE_MAX
        self._candidates: list[SegmentRow] = []
        self.is_short = False
        """The disks are too full, and nothing that may leave them has a copy yet."""
        self.fill_percent = 0.0
        self.evicted_extents_count = 0
        self.evicted_bytes = 0

    @property
    def interval_s(self) -> float:
        # who writes asks how full the disks are, too
        return _INTERVAL_S if self.fill_percent < self._watermarks.high else _INTERVAL_FULL_S

    def note_read(self, segments: Iterable[int]) -> None:
        """They were read from just now."""
        self._read_at |= dict.fromkeys(segments, trio.current_time())

    async def work(self) -> Progress:
        """Look how full the disks are; evict a segment when they are too full."""
        self.fill_percent = await self._fill()
        marks = self._watermarks
        if self.fill_percent <= (marks.low if self._is_evicting else marks.high):
            self._is_evicting, self.is_short, self._candidates = False, False, []
            if len(self._read_at) > self._remembered_max:
                self._forget_gone(self._catalog.reading.segments())
            return Progress.IDLE
        if not self._candidates:
            if self._is_evicting:
                # all were tried: what is left waits for its upload, or for readers
                self._is_evicting, self.is_short = False, True
                return Progress.IDLE
            self._is_evicting = True
            self._candidates = self._coldest_last()
            if not self._candidates:
                return Progress.IDLE
        try:
            moved_count = await self._evict(self._candidates.pop())
        except ShuttingDown:
            raise
        except Unavailable as error:
            log.warning("eviction was put off", reason=str(error))
            return Progress.IDLE
        self.is_short = self.is_short and not moved_count
        return Progress.BUSY

    async def _fill(self) -> float:
        left_bytes = max(0, await self._left_bytes())
        used_bytes = self._catalog.copies.bytes_on_disks(PAGE_BYTES)
        return 100 * used_bytes / max(1, used_bytes + left_bytes)

    def _coldest_last(self) -> list[SegmentRow]:
        rows = self._catalog.reading.segments()
        self._forget_gone(rows)
        full = [row for row in rows if row.state == STATE_SEALED and row.live_bytes]
        return sorted(full, key=lambda row: (self._read_at.get(row.id, 0.0), row.id), reverse=True)

    def _forget_gone(self, rows: Iterable[SegmentRow]) -> None:
        for gone in self._read_at.keys() - {row.id for row in rows}:
            del self._read_at[gone]
        self._remembered_max = 2 * len(self._read_at) + _GONE_MAX

    async def _evict(self, row: SegmentRow) -> int:
        """Move what has a copy; answers how many extents moved."""
        total = 0
        while copied := self._copied(row):
            moves = [
                rq.ExtentMove(it.id, (it.segment, it.stripe, it.stripe_start), (IN_BLOB, blob, start))
                for it, blob, start in copied
            ]
            moved_count: int = await self._submit(rq.MoveExtents(tuple(moves)))
            if not moved_count:
                break  # another moved them meanwhile
            total += moved_count
            self.evicted_bytes += sum(it.length for it, _, _ in copied)
        self.evicted_extents_count += total
        if total:
            log.info("data left the disks for the bucket", segment=row.id, extents=total)
        return total

    def _copied(self, row: SegmentRow) -> list[tuple[ExtentRow, int, int]]:
        """Some extents that have a copy, each with its blob and start."""
        found = self._catalog.copies.copies_in_segment(row.id, _MOVES_PER_RECORD)
        return [(it, blob, start) for it, blob, start in found if not self._is_bad(blob, it.id)]
