"""Extents to a new place: read, packed into stripes, synced, looked at again, and only then moved in the catalog.

An extent that fits a stripe never straddles two; a longer one has stripes of its own, one behind the other. The move
compares with the old place, so what was deleted or moved meanwhile stays as it is and its new bytes are garbage. The
old bytes are not touched here.
"""

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from couchestord import logs
from couchestord.ec.codec import Buffer
from couchestord.ec.segments import Place, SegmentPool, StripeWriter, Submit
from couchestord.ec.shards import full_stripe_pages
from couchestord.errors import DataLost
from couchestord.io.catalog.read import ExtentRow
from couchestord.io.requests import ExtentMove, MoveExtents

log = logs.get(__name__)

MOVES_PER_REQUEST_MAX = 256
ATTEMPTS_MAX = 3

Read = Callable[[ExtentRow], AsyncGenerator[Buffer, None]]
"""The bytes of an extent at its present place, verified, in order. May raise DataLost."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of the extents that were to move."""

    moved_count: int
    written_bytes: int
    unreadable: tuple[ExtentRow, ...]
    """At their old place, or at the new one: trying again at once would do the same."""
    left_count: int
    """Not tried, because they would not have filled a stripe."""


@dataclass(slots=True)
class _Batch:
    """Extents on their way, with their new places."""

    writer: StripeWriter
    packed: bytearray = field(default_factory=bytearray)
    waiting: list[tuple[ExtentRow, int]] = field(default_factory=list)
    written: list[tuple[ExtentRow, Place, int]] = field(default_factory=list)
    stripes: set[Place] = field(default_factory=set)
    unreadable: list[ExtentRow] = field(default_factory=list)
    written_bytes: int = 0


class Mover:
    """Moves extents into the segments of a pool."""

    def __init__(self, pool: SegmentPool, submit: Submit, *, dips: bool = False) -> None:
        """`dips`: as for `SegmentPool.writer`."""
        self._pool = pool
        self._submit = submit
        self._dips = dips

    async def move(
        self, extents: Sequence[ExtentRow], read: Read, *, policy: int = 0, leave_short: bool = False
    ) -> Moved:
        """Move extents, all of contents under `policy`, in that order. With `leave_short` those that would end in a
        short stripe stay.

        An extent that cannot be read is skipped. Raises NoSpace, TooFewDisks, and what the store's writer raises; then
        nothing is lost, and some may have moved.
        """
        async with self._pool.writer(policy, dips=self._dips) as writer:
            batch = _Batch(writer)
            stripe_bytes = writer.policy.stripe_bytes
            for extent in extents:
                if extent.length > stripe_bytes:
                    await self._write_long(batch, extent, read)
                    continue
                data = await _fetch(extent, read)
                if data is None:
                    batch.unreadable.append(extent)
                    continue
                if len(batch.packed) + len(data) > stripe_bytes:
                    await self._write_packed(batch)
                batch.waiting.append((extent, len(batch.packed)))
                batch.packed += data
            left_count = len(batch.waiting)
            if batch.waiting and (not leave_short or len(batch.packed) == stripe_bytes):
                await self._write_packed(batch)
                left_count = 0
            await writer.sync()
            moved_count = await self._commit(batch)
        return Moved(moved_count, batch.written_bytes, tuple(batch.unreadable), left_count)

    async def _write_packed(self, batch: _Batch) -> None:
        place = await batch.writer.append(batch.packed)
        batch.written_bytes += len(batch.packed)
        batch.stripes.add(place)
        batch.written += [(extent, place, start) for extent, start in batch.waiting]
        batch.waiting = []
        batch.packed = bytearray()  # never the old one: a thread that hangs may still read it

    async def _write_long(self, batch: _Batch, extent: ExtentRow, read: Read) -> None:
        """Stripes right behind each other in one segment; anew when a disk that failed put them in two."""
        for _ in range(ATTEMPTS_MAX):
            await batch.writer.reserve(extent.length)
            try:
                places = await self._write_stripes(batch, extent, read)
            except DataLost as error:
                _log_unreadable(extent, error)
                batch.unreadable.append(extent)
                return
            step = full_stripe_pages(batch.writer.policy.k, batch.writer.policy.stripe_bytes)
            if all(place == (places[0].segment, places[0].stripe + at * step) for at, place in enumerate(places)):
                batch.stripes.update(places)
                batch.written.append((extent, places[0], 0))
                return

    async def _write_stripes(self, batch: _Batch, extent: ExtentRow, read: Read) -> list[Place]:
        places: list[Place] = []
        packed = bytearray()
        stripe_bytes = batch.writer.policy.stripe_bytes
        async with aclosing(read(extent)) as pieces:
            async for piece in pieces:
                packed += piece
                while len(packed) >= stripe_bytes:
                    places.append(await batch.writer.append(bytes(memoryview(packed)[:stripe_bytes])))
                    packed = packed[stripe_bytes:]
        if packed:
            places.append(await batch.writer.append(packed))
        batch.written_bytes += extent.length
        return places

    async def _commit(self, batch: _Batch) -> int:
        """Look at the headers on the disks once more, then move what is well."""
        bad_segments = await find_bad(self._pool, batch.writer, batch.stripes)
        moves = [
            ExtentMove(
                extent.id,
                (extent.segment, extent.stripe, extent.stripe_start),
                (place.segment, place.stripe, start),
            )
            for extent, place, start in batch.written
            if place.segment not in bad_segments
        ]
        batch.unreadable += [extent for extent, place, _ in batch.written if place.segment in bad_segments]
        moved_count = 0
        for at in range(0, len(moves), MOVES_PER_REQUEST_MAX):
            moved_count += await self._submit(MoveExtents(tuple(moves[at : at + MOVES_PER_REQUEST_MAX])))
        return moved_count


async def find_bad(pool: SegmentPool, writer: StripeWriter, stripes: Iterable[Place]) -> set[int]:
    """Look at the headers of stripes that were written and synced. Answers the segments in which too few are well: what
    is in these must not take the place of what is elsewhere.
    """
    bad: set[int] = set()
    for place in sorted(stripes):
        good_count = await pool.stripes.count_headers(writer.segments[place.segment], place.stripe)
        if good_count < writer.policy.shards_min:
            log.error("stripe was not written well", segment=place.segment, stripe=place.stripe, shards=good_count)
            bad.add(place.segment)
    return bad


async def _fetch(extent: ExtentRow, read: Read) -> bytes | None:
    try:
        async with aclosing(read(extent)) as pieces:
            data = b"".join([piece async for piece in pieces])
    except DataLost as error:
        _log_unreadable(extent, error)
        return None
    assert len(data) == extent.length
    return data


def _log_unreadable(extent: ExtentRow, error: DataLost) -> None:
    log.error("extent cannot be read", extent=extent.id, reason=str(error))
