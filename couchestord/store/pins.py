"""What readers and writers under way still need: space is freed only when nobody holds it."""

from collections import Counter
from collections.abc import Iterable


class Pins:
    """Counts holders of segments and of journal records. Within one process; task context only."""

    def __init__(self) -> None:
        self._segments: Counter[int] = Counter()
        self._records: Counter[int] = Counter()

    def hold(self, segments: Iterable[int], records: Iterable[int] = ()) -> None:
        """Keep segments and journal records (by sequence) where they are."""
        for counter, held in ((self._segments, segments), (self._records, records)):
            for item in held:
                counter[item] += 1

    def release(self, segments: Iterable[int], records: Iterable[int] = ()) -> None:
        """Undo one `hold` of the same."""
        for counter, released in ((self._segments, segments), (self._records, records)):
            for item in released:
                counter[item] -= 1
                if counter[item] <= 0:
                    del counter[item]

    def holds_segment(self, segment: int) -> bool:
        return segment in self._segments

    def oldest_record(self) -> int | None:
        """The lowest sequence that is held."""
        return min(self._records, default=None)
