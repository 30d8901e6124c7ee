"""Files that are being written: bytes that are in no store yet. Pure.

A draft is what was published last, cut to some length, with runs of new bytes laid over it. While its bytes are being
published, later ones go into a layer of their own above them, so nobody waits to write, and what cannot be published is
still there afterwards.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

from couchestord.io.fileoutcomes import Lay

CONTENT_BYTES_MAX = 1 << 20
"""Runs shorter than that share a content: one row for each would cost more than it is worth. A content stays as long
as any of its bytes is wanted.
"""


@dataclass(slots=True)
class Layer:
    """Runs over a file that was cut to `cut` bytes and is `size` long now."""

    cut: int
    size: int
    starts: list[int] = field(default_factory=list)
    runs: list[bytearray] = field(default_factory=list)
    dirty_bytes: int = 0

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Lay bytes over what is there; behind the end, zeroes come between."""
        end = offset + len(data)
        self.size = max(self.size, end)
        # those that touch the new run, or overlap it, become one with it
        first = bisect_left(self.starts, offset)
        if first and self.starts[first - 1] + len(self.runs[first - 1]) >= offset:
            first -= 1
        last = bisect_right(self.starts, end)
        self.dirty_bytes -= sum(map(len, self.runs[first:last]))
        if first == last:
            self.starts.insert(first, offset)
            self.runs.insert(first, bytearray(data))
        elif self.starts[first] <= offset:
            start, run = self.starts[first], self.runs[first]
            behind = self._behind(last - 1, end)
            run[offset - start : end - start] = data
            if last - first > 1:
                run += behind
            self.starts[first + 1 : last] = []
            self.runs[first + 1 : last] = []
        else:
            self.runs[first:last] = [bytearray(data) + self._behind(last - 1, end)]
            self.starts[first:last] = [offset]
        self.dirty_bytes += len(self.runs[first])

    def _behind(self, index: int, end: int) -> bytes:
        """What of a run lies from `end` on."""
        return bytes(self.runs[index][max(0, end - self.starts[index]) :])

    def truncate(self, size: int) -> None:
        """As ftruncate(2)."""
        self.cut, self.size = min(self.cut, size), size
        keep = bisect_left(self.starts, size)
        gone = self.runs[keep:]
        del self.starts[keep:], self.runs[keep:]
        self.dirty_bytes -= sum(map(len, gone))
        if self.runs and self.starts[-1] + len(self.runs[-1]) > size:
            over = self.starts[-1] + len(self.runs[-1]) - size
            del self.runs[-1][-over:]
            self.dirty_bytes -= over

    def read_over(self, found: bytearray, first: int) -> None:
        """Cut and lay what this layer has over `found`, bytes of the file below it from `first` on, zeroes behind its
        end.
        """
        if self.cut < first + len(found):
            begin = max(0, self.cut - first)
            found[begin:] = bytes(len(found) - begin)
        at = max(0, bisect_right(self.starts, first) - 1)
        while at < len(self.starts) and self.starts[at] < first + len(found):
            start, run = self.starts[at], self.runs[at]
            low, high = max(first, start), min(first + len(found), start + len(run))
            if low < high:
                found[low - first : high - first] = run[low - start : high - start]
            at += 1

    def lay(self, above: "Layer") -> None:
        """Take in a layer that was laid over this one."""
        self.truncate(min(self.size, above.cut))
        for start, run in zip(above.starts, above.runs, strict=True):
            self.write(start, run)
        if above.size < self.size:
            self.truncate(above.size)
        self.size = above.size

    def contents(self) -> list[tuple[bytes, tuple[Lay, ...]]]:
        """The bytes as they are to be kept, and where each of them lies."""
        found: list[tuple[bytes, tuple[Lay, ...]]] = []
        joined, lays = bytearray(), list[Lay]()
        for start, run in zip(self.starts, self.runs, strict=True):
            if joined and len(joined) + len(run) > CONTENT_BYTES_MAX:
                found.append((bytes(joined), tuple(lays)))
                joined, lays = bytearray(), []
            lays.append(Lay(start, len(joined), len(run)))
            joined += run
        if joined:
            found.append((bytes(joined), tuple(lays)))
        return found


class Draft:
    """One file's. Belongs to one task context."""

    def __init__(self, size: int) -> None:
        """Of a file that has so many bytes."""
        self._below: Layer | None = None
        self._top = Layer(size, size)
        self.is_dirty = False
        self.modified_ns = self.changed_ns = 0

    @property
    def size(self) -> int:
        return self._top.size

    @property
    def dirty_bytes(self) -> int:
        """What is held in memory."""
        return self._top.dirty_bytes + (self._below.dirty_bytes if self._below else 0)

    @property
    def is_publishing(self) -> bool:
        return self._below is not None

    def write(self, offset: int, data: bytes | memoryview, now_ns: int) -> None:
        """See `Layer.write`."""
        self._top.write(offset, data)
        self._touch(now_ns)

    def truncate(self, size: int, now_ns: int) -> None:
        """See `Layer.truncate`."""
        self._top.truncate(size)
        self._touch(now_ns)

    def _touch(self, now_ns: int) -> None:
        self.is_dirty = True
        self.modified_ns = self.changed_ns = now_ns

    def layers(self) -> list[Layer]:
        """What is to be laid over what is published, in that order."""
        return [self._top] if self._below is None else [self._below, self._top]

    def begin(self) -> Layer:
        """What is to be published; then comes `published` or `failed`. One at a time."""
        assert self._below is None
        below = self._below = self._top
        self._top = Layer(below.size, below.size)
        self.is_dirty = False
        return below

    def published(self) -> None:
        """It is in the store."""
        self._below = None

    def failed(self) -> None:
        """It is not: it is to be published with what came since."""
        below = self._below
        assert below is not None
        below.lay(self._top)
        self._top, self._below, self.is_dirty = below, None, True
