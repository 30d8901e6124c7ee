"""What of stripes is in memory: read at once, without a wait, and verified before it is handed out.

Headers of stripes are cached: an address is written once, so they cannot be stale.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from couchestord.ec.shardfile import ShardFile
from couchestord.ec.shards import (
    CHECK_BYTES,
    PAGE_BYTES,
    SegmentIdentity,
    StripeHeader,
    shard_length,
    shard_path,
    verify_blocks,
)
from couchestord.ec.trust import ShardTrust
from couchestord.errors import Corrupt, DiskGone, UnknownFormat
from couchestord.io.catalog.read import SegmentRow
from couchestord.io.disks import Disks

RESIDENT_BYTES_MAX = 256 << 10
"""Of a piece: little enough that it is still in the processor's cache when, just summed, it is copied to a socket."""
MEMORIES_KEPT_MAX = 32
"""Memories of pieces that are kept while nobody reads."""


class ResidentStripes:
    """The headers and bytes of stripes that can be had without waiting. Belongs to the store's task context."""

    def __init__(self, disks: Disks, trust: ShardTrust, headers_cached_max: int) -> None:
        self._disks = disks
        self._trust = trust
        self._headers_cached_max = headers_cached_max
        self._headers: dict[tuple[int, int], list[StripeHeader | None]] = {}
        self._memories: list[memoryview] = []

    def file(self, segment: SegmentRow, index: int) -> ShardFile:
        """The file of one shard. Raises DiskGone when it has no disk that is good."""
        disk = self._disks.get(segment.disks[index]) if segment.disks[index] >= 0 else None
        if disk is None:
            raise DiskGone(f"{self._trust.where(segment, index)} is not here")
        return ShardFile(disk, self.identity(segment), index)

    def identity(self, segment: SegmentRow) -> SegmentIdentity:
        """What the headers of a segment's shards say."""
        return SegmentIdentity(self._disks.store_id, segment.id, segment.epoch, segment.k, segment.m)

    # -- headers -----------------------------------------------------------------------------------------------------

    def known_shape(self, segment: SegmentRow, stripe: int) -> StripeHeader | None:
        """A cached header of some shard."""
        for known in self._headers.get((segment.id, stripe), ()):
            if known is not None:
                return known
        return None

    def known_header(self, segment: SegmentRow, stripe: int, index: int) -> StripeHeader | None:
        """The cached header of a shard."""
        known = self._headers.get((segment.id, stripe))
        return known[index] if known is not None else None

    def header(self, segment: SegmentRow, stripe: int, index: int) -> StripeHeader | None:
        """The header of a shard, cached or in memory. Raises Corrupt, UnknownFormat, DiskGone."""
        known = self._headers.get((segment.id, stripe))
        found = known[index] if known is not None else None
        if found is None:
            found = self.file(segment, index).header_nowait(stripe)
            if found is not None:
                self.remember(segment, stripe, index, found)
        return found

    def remember(self, segment: SegmentRow, stripe: int, index: int, header: StripeHeader) -> None:
        """Cache a header that was read and is right."""
        known = self._headers.get((segment.id, stripe))
        if known is None:
            if len(self._headers) >= self._headers_cached_max:
                del self._headers[next(iter(self._headers))]
            known = self._headers[segment.id, stripe] = [None] * (segment.k + segment.m)
        known[index] = header

    # -- bytes -------------------------------------------------------------------------------------------------------

    @contextmanager
    def lent(self) -> Iterator[memoryview]:
        """Memory for one piece after the other. Fresh memory costs more than what is done with it."""
        memory = self._memories.pop() if self._memories else memoryview(bytearray(RESIDENT_BYTES_MAX))
        try:
            yield memory
        finally:
            if len(self._memories) < MEMORIES_KEPT_MAX:
                self._memories.append(memory)

    def read(
        self, segment: SegmentRow, stripe: int, start: int, length: int, memory: memoryview | None = None
    ) -> memoryview | None:
        """Up to `length` bytes from `start` on of one stripe's data: fewer where a shard ends, or a piece.

        None unless the shard they lie in is trusted, resident and right. They are in `memory`, which is of
        RESIDENT_BYTES_MAX, or else the caller's alone.
        """
        index = near_shard(segment, start)
        try:
            header = self._trusted_header(segment, stripe, index)
            if header is None:
                self._begin(segment, stripe, index, start, length)
                return None
            if not 0 < length <= header.length - start:
                return None
            size = header.shard_length
            if start // size != index:  # a short stripe
                index, shape = start // size, header
                header = self._trusted_header(segment, stripe, index)
                if header is None or (header.length, header.shard_length) != (shape.length, size):
                    return None
            low = start - index * size
            high = min(low + length, size)
            aligned = low - low % CHECK_BYTES
            end = min(size, high + -high % CHECK_BYTES, aligned + RESIDENT_BYTES_MAX)
            taken = memoryview(bytearray(end - aligned)) if memory is None else memory[: end - aligned]
            disk = self._disks.get(segment.disks[index])
            offset = (stripe + 1) * PAGE_BYTES + aligned
            if disk is None or not disk.read_into_nowait(shard_path(segment.id, index), offset, taken):
                return None
            verify_blocks(header, aligned // CHECK_BYTES, taken)
        except (Corrupt, UnknownFormat):
            return None  # asked again by who waits, where it is counted
        return taken[low - aligned : min(high, end) - aligned]

    def _begin(self, segment: SegmentRow, stripe: int, index: int, start: int, length: int) -> None:
        """Where a full stripe would have the range: the system begins to read what it says it does not have, so that
        it comes together with the header.
        """
        size = shard_length(segment.stripe_bytes, segment.k)
        low = start - index * size
        disk = self._disks.get(segment.disks[index])
        if (
            disk is not None
            and self._trust.is_trusted(segment, index)
            and 0 < length <= min(size - low, RESIDENT_BYTES_MAX)
        ):
            offset = (stripe + 1) * PAGE_BYTES + low
            disk.read_nowait(shard_path(segment.id, index), offset, length)

    def _trusted_header(self, segment: SegmentRow, stripe: int, index: int) -> StripeHeader | None:
        return self.header(segment, stripe, index) if self._trust.is_trusted(segment, index) else None


def near_shard(segment: SegmentRow, start: int) -> int:
    """The shard that offset `start` of a stripe lies in when the stripe is full."""
    return min(start // shard_length(segment.stripe_bytes, segment.k), segment.k - 1)
