"""The records of the second cache: a ring of segments that is written in one direction.

Theory of operation. One segment is the head: records are appended to it. The one after it in the ring is the oldest,
and the next to go: while the head fills, what was read of it since it was written is copied to the head, up to half of
the head's room. When the head is full, the rest of the oldest is forgotten and it becomes the head. So what is read
stays, nothing is moved in place, and each turn of a segment makes room for new chunks even when everything is read.

At the end of a segment's file lies its index. It is written when the segment is full, and when the ring is closed. What
a kill leaves without one, the head and perhaps the segment before it, is found by walking along its records. A page at
the beginning of the file says which turn it is, and so do records: the walk ends at what an older turn left.

Nothing is synced. What a power cut leaves behind is right, or is not found.
"""

from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import trio

from couchestord import logs
from couchestord.cache import l2format as fmt
from couchestord.cache.l2index import (
    SEGMENT_BYTES_MAX,
    L2Index,
    chunk_of,
    extent_of,
    key_of,
    place_of,
    range_of,
    segment_of,
    was_read,
)
from couchestord.cache.l2map import L2Map
from couchestord.cache.l2reading import Records
from couchestord.cache.tier import CHUNK_BYTES
from couchestord.errors import DiskFailed, NoSuchFile
from couchestord.io.disk import Disk

log = logs.get(__name__)
SEGMENTS_MIN: Final = 4
SEGMENTS_WANTED: Final = 64
SEGMENT_BYTES_MIN: Final = 1 << 20
SEGMENT_BYTES_WANTED_MAX: Final = 256 << 20
OTHER_BYTES: Final = 256 << 10
"""Of what the cache may take, what is left for its state, its lock, and the file system's own notes on the segments."""
_INDEX_SHARE: Final = 128
"""One in so many bytes of a segment is for its index: enough for records of 2 KiB."""
_SCANS_MAX: Final = 3
"""Segments without an index that are walked along when the ring is opened. A kill leaves two."""
_SPAN_BYTES: Final = 1 << 20
"""Read at once: by a walk, and of what is copied."""
_SLICE: Final = 500
"""Keys between two checkpoints: about a millisecond."""
_RECORD_BYTES_MAX: Final = fmt.record_bytes(CHUNK_BYTES)


def segment_bytes_for(capacity_bytes: int) -> int:
    """The size of segments of a cache that may take so much: a power of two."""
    share = max(SEGMENT_BYTES_MIN, capacity_bytes // SEGMENTS_WANTED)
    return min(SEGMENT_BYTES_WANTED_MAX, 1 << share.bit_length() - 1)


class Piece(NamedTuple):
    """A chunk as it is written."""

    key: int
    codec: int
    logical_bytes: int
    stored: bytes | memoryview
    body_sum: int


class _Segment:
    __slots__ = ("end", "keys", "number", "path", "turn")

    def __init__(self, number: int) -> None:
        self.number = number
        self.path = fmt.segment_path(number)
        self.turn = 0
        """0: nothing of it is used."""
        self.end = fmt.PAGE_BYTES
        self.keys = array("Q")
        """Of every record, those that were forgotten too."""


class Ring:
    """Chunks in segments on a disk. One task changes it; others may ask `index` and read meanwhile. `shared` is told
    where chunks lie, for other processes.

    Every call that writes raises DiskError; then the ring is as good as lost, and is opened again.
    """

    def __init__(
        self,
        disk: Disk,
        *,
        segment_bytes: int,
        segments_count: int,
        records: Records,
        shared: L2Map | None = None,
    ) -> None:
        assert segments_count >= 2
        assert segment_bytes <= SEGMENT_BYTES_MAX
        self.index = L2Index()
        self.segment_bytes = segment_bytes
        self.evictions_count = 0
        self.rescued_count = 0
        self.size_bytes = 0
        """Of the records that are found."""
        self.records = records
        self._disk = disk
        self._shared = shared
        self._segments = [_Segment(number) for number in range(segments_count)]
        self._index_at = segment_bytes - max(fmt.PAGE_BYTES, segment_bytes // _INDEX_SHARE)
        self._keys_max = (segment_bytes - self._index_at - fmt.index_bytes(0)) // fmt.INDEX_ENTRY_BYTES
        self._head: _Segment | None = None
        self._rescue_at = 0
        self._rescue_bytes = 0
        assert self._index_at - fmt.PAGE_BYTES >= _RECORD_BYTES_MAX

    # -- what is there ------------------------------------------------------------------------------------------------

    def path_of(self, place: int) -> str:
        """The file that a place lies in."""
        return self._segments[segment_of(place)].path

    def forget(self, key: int) -> None:
        """The chunk is there no more."""
        place = self.index.get(key)
        if place:
            self.index.remove(key)
            self.size_bytes -= range_of(place)[1]
            if self._shared is not None:
                self._shared.remove(key)

    def show(self, key: int) -> None:
        """Another process did not find a chunk that is here."""
        place = self._take_marks(key)
        if place and self._shared is not None:
            self._shared.put(key, place)

    def _take_marks(self, key: int) -> int:
        """The place of a chunk, 0 when there is none; that others have read it is noted."""
        place = self.index.get(key)
        if place and self._shared is not None and not was_read(place) and self._shared.was_read(key):
            self.index.mark(key)
            place = self.index.get(key)
        return place

    def _note(self, segment: _Segment, key: int, offset: int, length: int) -> None:
        self.forget(key)
        place = place_of(segment.number, offset, length)
        self.index.put(key, place)
        if self._shared is not None:
            self._shared.put(key, place)
        self.size_bytes += length
        segment.keys.append(key)

    # -- opening ------------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Find what the folder holds. Files that are no segments of this size are removed. Raises DiskError."""
        turns: list[tuple[int, _Segment]] = []
        named = {segment.path: segment for segment in self._segments}
        for name, size in sorted((await self._disk.list(fmt.FOLDER)).items()):
            segment = named.get(f"{fmt.FOLDER}/{name}")
            if segment is None or size != self.segment_bytes:
                await self._remove(f"{fmt.FOLDER}/{name}")
                continue
            page = await self._disk.read(segment.path, 0, fmt.PAGE_BYTES)
            turn = fmt.unpack_segment(self.records.salt, segment.number, page)
            if turn:
                turns.append((turn, segment))
        scans = 0
        for turn, segment in sorted(turns, key=lambda each: each[0], reverse=True):
            found = await self._read_index(segment, turn)
            if found is None or not found.is_full:
                scans += 1
                if scans > _SCANS_MAX:
                    # what nobody looks at now must not be found later, when ids may stand for other bytes
                    await self._remove(segment.path)
                    continue
            await self._load_segment(segment, turn, found)
        if turns:
            head = max(self._segments, key=lambda segment: segment.turn)
            self._head = head if head.turn else None
        log.debug("segments were read", segments=len(turns), walked=scans, chunks=self.index.count)

    async def _remove(self, path: str) -> None:
        with suppress(NoSuchFile):
            await self._disk.unlink(path)

    async def _read_index(self, segment: _Segment, turn: int) -> fmt.SegmentIndex | None:
        data = await self._disk.read(segment.path, self._index_at, self.segment_bytes - self._index_at)
        return fmt.unpack_index(self.records.salt, segment.number, turn, data)

    async def _load_segment(self, segment: _Segment, turn: int, found: fmt.SegmentIndex | None) -> None:
        """Newest segments come first: what they hold counts, not what older ones do."""
        segment.turn = turn
        if found is not None:
            segment.end = found.end
            for count, (key, place) in enumerate(zip(found.keys, found.places, strict=True)):
                self._add(segment, key, place)
                if not count % _SLICE:
                    await trio.lowlevel.checkpoint()
        if found is None or not found.is_full:
            await self._walk(segment)

    def _add(self, segment: _Segment, key: int, place: int) -> None:
        if self.index.add(key, place):
            if self._shared is not None:
                self._shared.put(key, place)
            self.size_bytes += range_of(place)[1]
            segment.keys.append(key)

    async def _walk(self, segment: _Segment) -> None:
        """Note the records from `end` on, as far as they are of this turn. Bodies are verified when they are read."""
        base, data, count = segment.end, b"", 0
        while len(segment.keys) < self._keys_max:
            count += 1
            if not count % _SLICE:
                await trio.lowlevel.checkpoint()
            at = segment.end - base
            if len(data) - at < fmt.HEAD_BYTES:
                length = min(_SPAN_BYTES, self._index_at - segment.end)
                base, data = segment.end, await self._disk.read(segment.path, segment.end, length)
                at = 0
            head = fmt.unpack_head(self.records.salt, data, at)
            if head is None or head.turn != segment.turn:
                return
            length = fmt.record_bytes(head.stored_bytes)
            if head.stored_bytes > CHUNK_BYTES or segment.end + length > self._index_at:
                return
            self._add(segment, key_of(head.extent, head.chunk), place_of(segment.number, segment.end, length))
            segment.end += length

    # -- writing ------------------------------------------------------------------------------------------------------

    async def append(self, pieces: Sequence[Piece]) -> None:
        """Write chunks. Each is found once it is written; whatever has to go for it is not any more."""
        start = 0
        while start < len(pieces):
            head = self._head
            end = start if head is None else self._fitting(head, pieces, start)
            if head is None or end == start:
                await self._advance()
                continue
            await self._write(head, pieces[start:end])
            start = end

    def _fitting(self, head: _Segment, pieces: Sequence[Piece], start: int) -> int:
        """Behind the last of the pieces from `start` on that the head has room for."""
        left_bytes = self._index_at - head.end
        most = min(len(pieces), start + self._keys_max - len(head.keys))
        for number in range(start, most):
            left_bytes -= fmt.record_bytes(len(pieces[number].stored))
            if left_bytes < 0:
                return number
        return most

    async def _write(self, head: _Segment, pieces: Sequence[Piece]) -> None:
        parts: list[bytes | memoryview] = []
        at, salt, session = head.end, self.records.salt, self.records.session
        lengths: list[int] = []
        for key, codec, logical_bytes, stored, body_sum in pieces:
            its = fmt.Head(
                codec, extent_of(key), chunk_of(key), logical_bytes, len(stored), session, head.turn, body_sum
            )
            length = fmt.record_bytes(len(stored))
            parts += (fmt.pack_head(salt, its), stored, bytes(length - fmt.HEAD_BYTES - len(stored)))
            lengths.append(length)
        await self._disk.write_at(head.path, at, parts)
        for piece, length in zip(pieces, lengths, strict=True):
            self._note(head, piece.key, at, length)
            at += length
        head.end = at

    async def _advance(self) -> None:
        """Make the segment after the head the head."""
        if self._head is not None:
            await self._write_index(self._head, is_full=True)
        number = 0 if self._head is None else (self._head.number + 1) % len(self._segments)
        segment = self._segments[number]
        await self._drop(segment)
        # room for all of it, before anything is written: what is set aside stays ours
        await self._disk.allocate(segment.path, self.segment_bytes)
        turn = 1 + max(each.turn for each in self._segments)
        await self._disk.write_at(segment.path, 0, [fmt.pack_segment(self.records.salt, number, turn)])
        segment.turn = turn
        self._head = segment
        self._rescue_at = 0
        self._rescue_bytes = (self._index_at - fmt.PAGE_BYTES) // 2

    async def _drop(self, segment: _Segment) -> None:
        for count, key in enumerate(segment.keys):
            place = self.index.get(key)
            if place and segment_of(place) == segment.number:
                self.forget(key)
                self.evictions_count += 1
            if not count % _SLICE:
                await trio.lowlevel.checkpoint()
        segment.keys = array("Q")
        segment.end = fmt.PAGE_BYTES
        segment.turn = 0

    async def _write_index(self, segment: _Segment, *, is_full: bool) -> None:
        keys, places = array("Q"), array("Q")
        for count, key in enumerate(segment.keys):
            place = self._take_marks(key)
            if place and segment_of(place) == segment.number:
                keys.append(key)
                places.append(place)
            if not count % _SLICE:
                await trio.lowlevel.checkpoint()
        index = fmt.SegmentIndex(segment.number, segment.turn, segment.end, is_full, keys, places)
        await self._disk.write_at(segment.path, self._index_at, [fmt.pack_index(self.records.salt, index)])

    async def rescue(self) -> None:
        """A step of copying what was read of the oldest segment to the head. Call it after each batch."""
        head = self._head
        if head is None or self._rescue_bytes <= 0:
            return
        oldest = self._segments[(head.number + 1) % len(self._segments)]
        chosen = self._choose(oldest)
        if not chosen:
            return
        low, high = chosen[0][1], max(offset + length for _, offset, length in chosen)
        data = await self._disk.read(oldest.path, low, high - low)
        pieces: list[Piece] = []
        for key, offset, _ in chosen:
            if (found := self.records.find(key, data, offset - low)) is not None:
                its, stored = found
                pieces.append(Piece(key, its.codec, its.logical_bytes, stored, its.body_sum))
        pieces = pieces[: self._fitting(head, pieces, 0)]
        if pieces:
            await self._write(head, pieces)
            self.rescued_count += len(pieces)
            self._rescue_bytes -= sum(fmt.record_bytes(len(piece.stored)) for piece in pieces)

    def _choose(self, oldest: _Segment) -> list[tuple[int, int, int]]:
        """(key, offset, length) of the next records that were read, close enough together to be read at once."""
        chosen: list[tuple[int, int, int]] = []
        taken_bytes = 0
        stop = min(len(oldest.keys), self._rescue_at + 2 * _SLICE)
        while self._rescue_at < stop:
            key = oldest.keys[self._rescue_at]
            place = self._take_marks(key)
            if was_read(place) and segment_of(place) == oldest.number:
                offset, length = range_of(place)
                taken_bytes += length
                low = chosen[0][1] if chosen else offset
                if not low <= offset < low + _SPAN_BYTES or taken_bytes > self._rescue_bytes:
                    break
                chosen.append((key, offset, length))
            self._rescue_at += 1
        return chosen

    def check(self, sizes: Mapping[str, int]) -> None:
        """Raises DiskFailed when a segment is missing from the folder's files, or is of another size."""
        for segment in self._segments:
            if segment.turn and sizes.get(segment.path.removeprefix(f"{fmt.FOLDER}/")) != self.segment_bytes:
                raise DiskFailed(f"{self._disk.name}: {segment.path} was taken away or cut")

    async def close(self) -> None:
        """Write the index of the head, so that the next start need not walk. The disk stays open."""
        if self._head is not None:
            await self._write_index(self._head, is_full=False)
