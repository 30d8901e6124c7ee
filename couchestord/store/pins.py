"""What readers under way still need: space is freed only when nobody holds it."""

from collections import defaultdict
from collections.abc import Iterable

from couchestord.ec.segments import SegmentPool


class Pins:
    """Counts holders of journal records, and pins segments in the pool. Within one process; task context only."""

    def __init__(self, pool: SegmentPool) -> None:
        self._pool = pool
        self._records: defaultdict[int, int] = defaultdict(int)

    def hold(self, segments: Iterable[int], records: Iterable[int] = ()) -> None:
        """Keep segments and journal records (by sequence) where they are."""
        for segment in segments:
            self._pool.pin(segment)
        for record in records:
            self._records[record] += 1

    def release(self, segments: Iterable[int], records: Iterable[int] = ()) -> None:
        """Undo one `hold` of the same."""
        self._pool.unpin(segments)
        for record in records:
            self._records[record] -= 1
            if self._records[record] <= 0:
                del self._records[record]

    def oldest_record(self) -> int | None:
        """The lowest sequence that is held."""
        return min(self._records, default=None)
