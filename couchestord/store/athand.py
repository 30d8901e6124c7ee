"""Bytes of extents that are in memory, or are there soon: found on the loop, verified before they are handed out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import trio

from couchestord.cache import CHUNK_BYTES, CacheManager
from couchestord.ec.stripes import StripeStore
from couchestord.errors import DataLost
from couchestord.io.catalog.read import CatalogReader, ExtentRow
from couchestord.io.mutations import IN_BLOB, LOST
from couchestord.io.patience import LOOK_BYTES_MAX, LOOKS_MAX, Patience
from couchestord.store.runs import Run

if TYPE_CHECKING:
    from couchestord.store.copies import Copies

CACHED_BESIDE_BYTES_MAX = 32 << 10
"""What of a chunk is not asked for costs nothing to speak of up to this; with more, the chunk is kept when it is asked
for again soon. The rest of the system keeps it meanwhile: the bytes were in the page cache.
"""


class Records(Protocol):
    """Bodies in the journal; see `Journal`."""

    def read_nowait(self, sequence: int, start: int, length: int) -> memoryview | None: ...

    async def read(self, sequence: int, start: int, length: int) -> memoryview: ...


class Holds(Protocol):
    """Keeps what readers read where it is; see `Pins`."""

    def hold(self, segments: Iterable[int], records: Iterable[int] = ()) -> None: ...

    def release(self, segments: Iterable[int], records: Iterable[int] = ()) -> None: ...


@dataclass(frozen=True, slots=True)
class ReaderParts:
    """What readers read from."""

    catalog: CatalogReader
    journal: Records
    stripes: StripeStore
    pins: Holds
    cache: CacheManager
    copies: "Copies | None" = None
    """Of extents in a bucket; None: there is none."""
    read_at: dict[int, float] | None = None
    """When segments were read from last, for who wants to know."""
    patience: Patience = field(default_factory=Patience)


def read_at_hand(parts: ReaderParts, extent: ExtentRow, first: int, length: int) -> bytes | memoryview | None:
    """A range of an extent, verified, when it is in memory and right; else None. The extent stays where it is: nothing
    was awaited since its row was found, or its place is held.
    """
    if not parts.cache.is_on:
        return _read_resident(parts, extent, first, length)
    found = parts.cache.peek_range(extent.id, first, length)
    return found if found is not None else _read_beside(parts, extent, first, length)


def lend_at_hand(
    parts: ReaderParts, extent: ExtentRow, first: int, length: int, memory: memoryview
) -> bytes | memoryview | None:
    """As `read_at_hand`, fewer bytes where what lies together ends. They may be in `memory`, of RESIDENT_BYTES_MAX.
    What is in no cache and goes beyond a chunk is read past them.
    """
    if not parts.cache.is_on:
        return _read_resident(parts, extent, first, length, memory)
    inside = min(length, CHUNK_BYTES - first % CHUNK_BYTES)
    found = parts.cache.peek_range(extent.id, first, inside)
    if found is None and inside == length:
        found = _read_beside(parts, extent, first, length, memory)
    return found if found is not None else _read_resident(parts, extent, first, length, memory)


def _read_beside(
    parts: ReaderParts, extent: ExtentRow, first: int, length: int, memory: memoryview | None = None
) -> bytes | memoryview | None:
    """What the caches do not have. What is likely to be asked for again they have then."""
    cache = parts.cache
    chunk, start = divmod(first, CHUNK_BYTES)
    size = min(CHUNK_BYTES, extent.length - first + start)
    if size - length > CACHED_BESIDE_BYTES_MAX and not cache.part_missed(extent.id, chunk):
        return _read_resident(parts, extent, first, length, memory)
    if start + length > CHUNK_BYTES:
        return None
    return _read_chunk(parts, extent, first, length, size)


def _read_chunk(parts: ReaderParts, extent: ExtentRow, first: int, length: int, size: int) -> bytes | memoryview | None:
    """A range that lies in one chunk, which is of that size and goes to the caches."""
    chunk, start = divmod(first, CHUNK_BYTES)
    whole = _read_resident(parts, extent, first - start, size)
    if whole is None:
        return None
    data = bytes(whole)
    parts.cache.offer(extent.id, chunk, data)
    return data if length == len(data) else memoryview(data)[start : start + length]


async def look_again(
    parts: ReaderParts, find: Callable[[], Run | None], memory: memoryview | None = None
) -> bytes | memoryview | None:
    """A short range of which a look has just found nothing: the system has begun to read it, and mostly it is there a
    little later, long before the way of those that wait is gone. None: it is not, or it takes that way.

    `find` says where it lies now. What is found is verified, kept as by `lend_at_hand`, and may be in `memory`.
    """
    begun = find()
    if begun is None or (extent := begun.extent) is None or not 0 < begun.length <= LOOK_BYTES_MAX:
        return None
    if extent.segment in (IN_BLOB, LOST) or not parts.patience.begins():
        return None
    first, length = begun.offset, begun.length
    chunk, start = divmod(first, CHUNK_BYTES)
    size = min(CHUNK_BYTES, extent.length - first + start)
    is_part = not parts.cache.is_on or start + length > CHUNK_BYTES
    if not is_part and size - length > CACHED_BESIDE_BYTES_MAX:
        is_part = parts.cache.is_part_noted(extent.id, chunk)
    for _ in range(LOOKS_MAX):
        await trio.lowlevel.checkpoint()
        now = find()
        if now is None or now.extent is None or (now.extent.id, *now[1:]) != (extent.id, first, length):
            return None
        if is_part:
            found: bytes | memoryview | None = _read_resident(parts, now.extent, first, length, memory)
        else:
            found = _read_chunk(parts, now.extent, first, length, size)
        if found is not None:
            parts.patience.has_paid()
            return found if len(found) == length else None
    parts.patience.was_in_vain()
    return None


def _read_resident(
    parts: ReaderParts, extent: ExtentRow, first: int, length: int, memory: memoryview | None = None
) -> memoryview | None:
    """With `memory` maybe in there, and fewer bytes where what lies together ends."""
    start = extent.stripe_start + first
    if not extent.segment:
        try:
            return parts.journal.read_nowait(extent.stripe, start, length)
        except DataLost:
            return None  # trimmed: who waits looks where it was moved to
    segment = parts.catalog.layout(extent.segment)  # there is none for what is not on the disks
    return None if segment is None else parts.stripes.read_nowait(segment, extent.stripe, start, length, memory)
