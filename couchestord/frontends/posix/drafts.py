"""Files that are being written: bytes that are in no store yet. Pure.

A draft is what was published last, cut to some length, with runs of new bytes laid over it. While its bytes are being
published, later ones go into a layer of their own above them, so nobody waits to write, and what cannot be published is
still there afterwards. Of a long one bytes are spilled: they lie in the store, in a file that has no name and that
nobody sees, until all of it is published.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final, NamedTuple

from couchestord.errors import EntityTooLarge
from couchestord.io.fileoutcomes import Lay
from couchestord.model import OBJECT_BYTES_MAX

CONTENT_BYTES_MAX: Final = 1 << 20
"""Runs shorter than that share a content: one row for each would cost more than it is worth. A content stays as long
as any of its bytes is wanted.
"""
PIECE_BYTES_MAX: Final = 128 << 10
"""Short writes beside each other become one piece, up to this."""
PIECE_COST_BYTES: Final = 256
"""What a piece takes beside its bytes, about. It counts as they do: a million writes of a byte take more than that."""

_FAR: Final = 1 << 62
"""Behind the end of all files."""

Piece = bytes | bytearray


class NewContent(NamedTuple):
    """Bytes that are to be kept together, in pieces, and where each of their runs lies."""

    pieces: list[Piece]
    length: int
    lays: tuple[Lay, ...]


@dataclass(slots=True)
class Layer:
    """Pieces over a file that was cut to `cut` bytes and is `size` long now. In order, and none overlaps another. Long
    ones are what was written, not copies of it.
    """

    cut: int
    size: int
    starts: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    length: int = 0
    """Of all pieces together."""
    is_taken_in: bool = False
    """By the layer below it: this one is not used any more."""

    @property
    def dirty_bytes(self) -> int:
        """What is held in memory."""
        return self.length + PIECE_COST_BYTES * len(self.pieces)

    def write(self, offset: int, data: Piece) -> None:
        """Lay bytes over what is there; behind the end, zeroes come between. They are this layer's now."""
        end = offset + len(data)
        if not data:
            return
        self.size = max(self.size, end)
        first = self._from(offset)
        last = bisect_left(self.starts, end, first)
        if first < last:
            start, there = self.starts[first], len(self.pieces[first])
            if start <= offset and end <= start + there:
                if len(data) == there:
                    self.pieces[first] = data
                else:
                    self._own(first)[offset - start : end - start] = data
                return
            first = self._make_room(first, last, offset, end)
        self._insert(first, offset, data)

    def _from(self, offset: int) -> int:
        """The first piece that ends after `offset`."""
        at = bisect_right(self.starts, offset)
        return at - (at > 0 and self.starts[at - 1] + len(self.pieces[at - 1]) > offset)

    def _own(self, index: int) -> bytearray:
        """A piece that may be changed."""
        found = self.pieces[index]
        if not isinstance(found, bytearray):
            found = self.pieces[index] = bytearray(found)
        return found

    def _make_room(self, first: int, last: int, offset: int, end: int) -> int:
        """Takes `offset` to before `end` out of the pieces from `first` to before `last`, each of which has some of it,
        and none all. Answers the first piece behind it.
        """
        if self.starts[first] < offset:
            piece, keep = self._own(first), offset - self.starts[first]
            self.length -= len(piece) - keep
            del piece[keep:]
            first += 1
        if first < last and self.starts[last - 1] + len(self.pieces[last - 1]) > end:
            last -= 1
            gone = end - self.starts[last]
            del self._own(last)[:gone]
            self.starts[last] = end
            self.length -= gone
        self._drop(first, last)
        return first

    def _drop(self, first: int, last: int) -> None:
        self.length -= sum(map(len, self.pieces[first:last]))
        del self.starts[first:last], self.pieces[first:last]

    def _insert(self, index: int, offset: int, data: Piece) -> None:
        """Between the pieces `index` - 1 and `index`, where there is room. Short ones that touch become one."""
        self.length += len(data)
        end = offset + len(data)
        before = len(self.pieces[index - 1]) if index and self._end(index - 1) == offset else PIECE_BYTES_MAX
        behind = len(self.pieces[index]) if index < len(self.starts) and self.starts[index] == end else PIECE_BYTES_MAX
        if before + len(data) <= PIECE_BYTES_MAX:
            joined = self._own(index - 1)
            joined += data
            if len(joined) + behind <= PIECE_BYTES_MAX:
                joined += self.pieces[index]
                del self.starts[index], self.pieces[index]
        elif len(data) + behind <= PIECE_BYTES_MAX:
            self._own(index)[:0] = data
            self.starts[index] = offset
        else:
            self.starts.insert(index, offset)
            self.pieces.insert(index, data)

    def _end(self, index: int) -> int:
        return self.starts[index] + len(self.pieces[index])

    def truncate(self, size: int) -> None:
        """As ftruncate(2)."""
        self.cut, self.size = min(self.cut, size), size
        self._drop(bisect_left(self.starts, size), len(self.starts))
        if self.starts and self._end(-1) > size:
            over = self._end(-1) - size
            del self._own(-1)[-over:]
            self.length -= over

    def read_over(self, found: bytearray, first: int) -> None:
        """Cut and lay what this layer has over `found`, bytes of the file below it from `first` on, zeroes behind its
        end.
        """
        end = first + len(found)
        if self.cut < end:
            begin = max(0, self.cut - first)
            found[begin:] = bytes(len(found) - begin)
        at = self._from(first)
        while at < len(self.starts) and self.starts[at] < end:
            start, piece = self.starts[at], self.pieces[at]
            low, high = max(first, start), min(end, start + len(piece))
            found[low - first : high - first] = memoryview(piece)[low - start : high - start]
            at += 1

    def lay(self, above: "Layer") -> None:
        """Take in a layer that was laid over this one."""
        above.is_taken_in = True
        # who was to keep these pieces, and failed, may look at them still
        self.pieces = [bytes(piece) for piece in self.pieces]
        self.truncate(min(self.size, above.cut))
        for start, piece in zip(above.starts, above.pieces, strict=True):
            self.write(start, piece)
        if above.size < self.size:
            self.truncate(above.size)
        self.size = above.size

    def contents(self) -> list[NewContent]:
        """The bytes as they are to be kept, and where each of them lies."""
        found: list[NewContent] = []
        joined, length, lays = list[Piece](), 0, list[Lay]()
        for start, pieces in self.runs():
            run_length = sum(map(len, pieces))
            if joined and length + run_length > CONTENT_BYTES_MAX:
                found.append(NewContent(joined, length, tuple(lays)))
                joined, length, lays = [], 0, []
            lays.append(Lay(start, length, run_length))
            joined += pieces
            length += run_length
        if joined:
            found.append(NewContent(joined, length, tuple(lays)))
        return found

    def runs(self) -> Iterator[tuple[int, list[Piece]]]:
        """Pieces that touch, and where the first of them begins."""
        run, begin, end = list[Piece](), 0, -1
        for start, piece in zip(self.starts, self.pieces, strict=True):
            if start != end:
                if run:
                    yield begin, run
                run, begin = [], start
            run.append(piece)
            end = start + len(piece)
        if run:
            yield begin, run


@dataclass(frozen=True, slots=True)
class Spilled:
    """What a draft has in a file of the store, to be laid over the file itself, cut to `cut` bytes."""

    inode: int
    cut: int = _FAR
    size: int = 0
    ranges: tuple[tuple[int, int], ...] = ()
    """(begin, end) of those that were written, in order; they neither overlap nor touch."""
    pieces_count: int = 0
    """At least as many as it is made of."""
    is_sure: bool = True
    """False: it may have more than this says, of bytes that the draft has still."""

    def laid(self, layer: Layer) -> "Spilled":
        """With what a layer over it has."""
        cut = [(begin, min(end, layer.cut)) for begin, end in self.ranges if begin < layer.cut]
        new = [(begin, begin + sum(map(len, pieces))) for begin, pieces in layer.runs()]
        ranges: list[tuple[int, int]] = []
        for begin, end in sorted(cut + new):
            if ranges and begin <= ranges[-1][1]:
                ranges[-1] = ranges[-1][0], max(ranges[-1][1], end)
            else:
                ranges.append((begin, end))
        pieces_count = self.pieces_count + len(new)
        return Spilled(self.inode, min(self.cut, layer.cut), layer.size, tuple(ranges), pieces_count)

    def within(self, first: int, end: int) -> list[tuple[int, int]]:
        """What of its ranges lies from `first` to before `end`."""
        at = bisect_right(self.ranges, first, key=itemgetter(1))
        found = []
        while at < len(self.ranges) and self.ranges[at][0] < end:
            found.append((max(first, self.ranges[at][0]), min(end, self.ranges[at][1])))
            at += 1
        return found


class Draft:
    """One file's. Belongs to one task context."""

    def __init__(self, size: int) -> None:
        """Of a file that has so many bytes."""
        self.spilled: Spilled | None = None
        self._below: Layer | None = None
        self._top = Layer(size, size)
        self.is_dirty = False
        self.is_asked_for = False
        """Whoever changed it has asked since for all of it to be published."""
        self.modified_ns = self.changed_ns = 0
        self._are_times_sent = False

    @property
    def size(self) -> int:
        return self._top.size

    @property
    def dirty_bytes(self) -> int:
        """What is held in memory."""
        return self._top.dirty_bytes + (self._below.dirty_bytes if self._below else 0)

    @property
    def pieces_count(self) -> int:
        """In how many pieces they are."""
        return sum(len(layer.pieces) for layer in self.layers())

    @property
    def all_pieces_count(self) -> int:
        """With those that were spilled."""
        return self.pieces_count + (self.spilled.pieces_count if self.spilled else 0)

    @property
    def keeps_bytes(self) -> bool:
        """Whether any of the bytes that are published stay."""
        return (self.spilled or self.layers()[0]).cut > 0

    @property
    def is_publishing(self) -> bool:
        return self._below is not None

    def write(self, offset: int, data: bytes, now_ns: int) -> None:
        """See `Layer.write`. Raises EntityTooLarge, as `truncate` does: who could not publish it is told at once."""
        _check_size(offset + len(data))
        self._top.write(offset, data)
        self._touch(now_ns)

    def truncate(self, size: int, now_ns: int) -> None:
        """See `Layer.truncate`."""
        _check_size(size)
        self._top.truncate(size)
        self._touch(now_ns)

    def _touch(self, now_ns: int) -> None:
        self.is_dirty, self.is_asked_for = True, False
        self.modified_ns = self.changed_ns = now_ns

    def layers(self) -> list[Layer]:
        """What is to be laid over what is published, in that order."""
        return [self._top] if self._below is None else [self._below, self._top]

    def begin(self) -> Layer:
        """What is to be published; then comes `published` or `failed`. One at a time."""
        assert self._below is None
        below = self._below = self._top
        self._top = Layer(below.size, below.size)
        self.is_dirty = self._are_times_sent = False
        return below

    def send_times(self) -> tuple[int, int]:
        """Those of the last change of its bytes and of anything. What is set later is not published with them."""
        self._are_times_sent = True
        return self.modified_ns, self.changed_ns

    @property
    def takes_times(self) -> bool:
        """Whether times that are set now are published with its bytes."""
        return self.is_dirty or (self.is_publishing and not self._are_times_sent)

    def published(self) -> None:
        """It is in the store, and what was spilled with it."""
        self._below = self.spilled = None

    def has_spilled(self, spilled: Spilled) -> None:
        """What was to be published is in the store, but is to be published yet."""
        self._below, self.spilled, self.is_dirty = None, spilled, True

    def failed(self) -> None:
        """It is not: it is to be published with what came since."""
        below = self._below
        assert below is not None
        below.lay(self._top)
        self._top, self._below, self.is_dirty = below, None, True


def _check_size(size: int) -> None:
    if size > OBJECT_BYTES_MAX:
        raise EntityTooLarge(f"a file has at most {OBJECT_BYTES_MAX} bytes")
