"""Bodies on their way out: verified pieces of one whole version."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import trio

from couchestord.errors import DataLost
from couchestord.io.catalog.read import CatalogReader, EntryRow, ExtentRow, SegmentRow
from couchestord.io.mutations import IN_BLOB, IN_JOURNAL, LOST
from couchestord.model import ByteRange, ObjectInfo
from couchestord.store.athand import ReaderParts, look_again, read_at_hand
from couchestord.store.runs import Run, plan, resolve_range

ZEROES = bytes(1 << 20)
CACHED_RUN_BYTES_MAX = 1 << 20
"""Longer runs are read past the caches: they would push out much, and gain little over the page cache."""


class ObjectReader:
    """One version of an object, or a range of it. Iterate once, or `read`; close it in any case (`async with` does).

    What it reads stays where it is until it is closed, but for records of a journal that is nearly full: their bytes
    are then read where they were moved to, and are lost to it when the object was deleted meanwhile; and for shards
    that are made anew on other disks, where they are looked for when too few of the old ones are left. Short runs are
    read through the caches. A piece is at most 1 MiB and verified before it is handed out.
    Iteration raises DataLost when more is damaged than the code makes good; pieces already handed out were right.
    """

    def __init__(
        self,
        info: ObjectInfo,
        first: int,
        length: int,
        runs: list[Run],
        segments: dict[int, SegmentRow],
        parts: ReaderParts,
    ) -> None:
        self.info = info
        self.first = first
        self.length = length
        self._runs = runs
        self._segments = segments
        self._parts = parts
        extents = [run.extent for run in runs if run.extent is not None]
        self._records = [extent.stripe for extent in extents if extent.segment == IN_JOURNAL]
        self._held = [*segments, *{extent.stripe for extent in extents if extent.segment == IN_BLOB}]
        """Segments and blobs: their ids are of one kind."""
        parts.pins.hold(self._held, self._records)
        self._open = True
        self._pieces: AsyncGenerator[bytes | memoryview, None] | None = None

    @property
    def partial(self) -> bool:
        """True when less than the whole object is read."""
        return self.length != self.info.size_bytes

    def __aiter__(self) -> AsyncGenerator[bytes | memoryview, None]:
        return self._iterate(lent=False)

    def lend(self) -> AsyncGenerator[bytes | memoryview, None]:
        """As iteration, at less cost: each piece is good only until the next is asked for, or the reader closed."""
        return self._iterate(lent=True)

    def _iterate(self, *, lent: bool) -> AsyncGenerator[bytes | memoryview, None]:
        self._pieces = self._read_all(lent)
        return self._pieces

    async def _read_all(self, lent: bool) -> AsyncGenerator[bytes | memoryview, None]:
        try:
            for run in self._runs:
                async with aclosing(self._read_run(run, lent)) as pieces:
                    async for piece in pieces:
                        yield piece
        except DataLost as error:
            raise DataLost(f"{self.info.bucket}/{self.info.key!r}: {self._where(run)}: {error}") from error
        finally:
            self._let_go()

    def _where(self, run: Run) -> str:
        """Where the bytes of a run should lie."""
        if run.extent is None or run.extent.segment == IN_JOURNAL:
            return f"journal record {run.extent.stripe if run.extent else 0}"
        if run.extent.segment in (IN_BLOB, LOST):
            return f"blob {run.extent.stripe}" if run.extent.segment == IN_BLOB else "nowhere"
        row = self._segments[run.extent.segment]
        return f"segment {row.id} ({row.k}+{row.m} shards on disks {row.disks}), from stripe {run.extent.stripe} on"

    async def _read_run(self, run: Run, lent: bool) -> AsyncGenerator[bytes | memoryview, None]:
        extent = run.extent
        if extent is None:
            for at in range(0, run.length, len(ZEROES)):
                yield memoryview(ZEROES)[: min(len(ZEROES), run.length - at)]
            return
        parts = self._parts
        segment = self._segments.get(extent.segment)
        if parts.cache.is_on and run.length <= CACHED_RUN_BYTES_MAX:
            source = ExtentSource(parts, extent, segment)
            found = await parts.cache.read(extent.id, extent.length, run.offset, run.length, source)
            yield found[0] if len(found) == 1 else b"".join(found)
        elif extent.segment == IN_BLOB:
            async for piece in _copied(parts, extent, run.offset, run.length):
                yield piece
        elif segment is None:
            yield await ExtentSource(parts, extent, None).load(run.offset, run.length)
        else:
            start, done = extent.stripe_start + run.offset, 0
            while segment is not None:
                whole = parts.stripes.read_run(segment, extent.stripe, start + done, run.length - done, lent=lent)
                try:
                    async with aclosing(whole) as pieces:
                        async for piece in pieces:
                            yield piece
                            done += len(piece)
                    return
                except DataLost:
                    segment = _placed_anew(parts, segment)
                    if segment is not None:
                        self._segments[segment.id] = segment
                    elif parts.copies is None or not parts.copies.has(extent):
                        raise
            async for piece in _copied(parts, extent, run.offset + done, run.length - done):
                yield piece

    async def read(self) -> bytes:
        """All of it, in memory. Closes the reader."""
        resident = self._read_resident()
        if resident is None and len(self._runs) == 1:
            resident = await look_again(self._parts, lambda: self._runs[0])
        if resident is None:
            return b"".join([piece async for piece in self])
        self._let_go()
        return bytes(resident)

    def _read_resident(self) -> bytes | memoryview | None:
        """All of it when it is one run, in memory, and right: a small object takes no iteration and no wait."""
        if len(self._runs) != 1 or (extent := self._runs[0].extent) is None:
            return None
        return read_at_hand(self._parts, extent, self._runs[0].offset, self.length)

    async def warm(self, bytes_max: int) -> int:
        """Bring so many of its bytes, at most, into the caches; answers how many. Raises DataLost."""
        left, cache = bytes_max, self._parts.cache
        for run in self._runs:
            if (extent := run.extent) is None:
                continue
            source = ExtentSource(self._parts, extent, self._segments.get(extent.segment))
            end = run.offset + min(left, run.length)
            for at in range(run.offset, end, CACHED_RUN_BYTES_MAX):
                take = min(CACHED_RUN_BYTES_MAX, end - at)
                await cache.read(extent.id, extent.length, at, take, source, wanted=True)
                left -= take
        return bytes_max - left

    async def aclose(self) -> None:
        """Let go of what was held, an iteration that was left in the middle included. May be called again."""
        try:
            if self._pieces is not None:
                await self._pieces.aclose()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._open:
            self._open = False
            self._parts.pins.release(self._held, self._records)

    async def __aenter__(self) -> "ObjectReader":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # a caller that forgot to close must not keep space for ever
        self._let_go()


class ExtentSource:
    """Where the bytes of an extent lie, for the caches. What they load may outlive the reader that asked.

    `segment`: the one it lies in, None while it lies in the journal.
    """

    __slots__ = ("_extent", "_parts", "_segment")

    def __init__(self, parts: ReaderParts, extent: ExtentRow, segment: SegmentRow | None) -> None:
        self._parts = parts
        self._extent = extent
        self._segment = segment

    async def load(self, first: int, length: int) -> bytes | memoryview:
        """A range of the extent, verified. A record that was trimmed is looked for where its bytes were moved to.

        Raises DataLost.
        """
        extent, copies = self._extent, self._parts.copies
        if extent.segment == IN_BLOB and copies is not None:
            return await copies.load(extent, first, length)
        try:
            return await self.load_here(first, length)
        except DataLost:
            if copies is None or not copies.has(extent):
                raise
        return await copies.load(extent, first, length)

    async def load_here(self, first: int, length: int) -> bytes | memoryview:
        """As `load`, from the disks alone."""
        extent, parts = self._extent, self._parts
        while self._segment is not None:
            try:
                return await parts.stripes.load(self._segment, extent.stripe, extent.stripe_start + first, length)
            except DataLost:
                segment = _placed_anew(parts, self._segment)
                if segment is None:
                    raise
                self._segment = segment
        if extent.segment != IN_JOURNAL:
            raise DataLost(f"extent {extent.id} is not on the disks")
        try:
            return await parts.journal.read(extent.stripe, extent.stripe_start + first, length)
        except DataLost:
            found = parts.catalog.extent(extent.id)
            segment = parts.catalog.layout(found.segment) if found is not None and found.segment > LOST else None
            if found is None or segment is None:
                raise  # they are in no stripes, or were deleted
        parts.pins.hold([segment.id])
        try:
            return await parts.stripes.load(segment, found.stripe, found.stripe_start + first, length)
        finally:
            parts.pins.release([segment.id])

    def hold(self) -> None:
        """Keep the bytes where they are until `release`."""
        self._parts.pins.hold(*self._places())

    def release(self) -> None:
        """Undo one `hold`."""
        self._parts.pins.release(*self._places())

    def _places(self) -> tuple[list[int], list[int]]:
        extent = self._extent
        if extent.segment == IN_JOURNAL:
            return [], [extent.stripe]
        return [extent.stripe if extent.segment == IN_BLOB else extent.segment], []


def _placed_anew(parts: ReaderParts, segment: SegmentRow) -> SegmentRow | None:
    """The segment as it is now, None when its shards are where they were. While it is held, all of them may be made
    anew elsewhere, a few at a time.
    """
    # what `layout` keeps may be of before, too: nobody has begun to answer something
    now = parts.catalog.segment(segment.id)
    return now if now is not None and (now.disks, now.missing) != (segment.disks, segment.missing) else None


async def _copied(parts: ReaderParts, extent: ExtentRow, first: int, length: int) -> AsyncGenerator[memoryview, None]:
    """A range of an extent from its copy, in pieces. Raises DataLost, Unavailable."""
    if parts.copies is None:
        raise DataLost(f"extent {extent.id} is in a bucket, and none is set")
    async with aclosing(parts.copies.load_pieces(extent, first, length)) as loaded:
        async for data in loaded:
            for at in range(0, len(data), len(ZEROES)):
                yield memoryview(data)[at : at + len(ZEROES)]


def open_reader(
    reader: CatalogReader, parts: ReaderParts, info: ObjectInfo, row: EntryRow, byte_range: ByteRange | None
) -> ObjectReader:
    """Resolve a range and hold what it needs. `row` was found just now: nothing was awaited since, so nothing moved.
    Raises InvalidRange, DataLost.
    """
    first, length = resolve_range(byte_range, row.size)
    runs = plan(reader, row, first, length)
    if sum([run.length for run in runs]) != length:
        raise DataLost(f"the extents of {info.key!r} do not cover the object")
    return open_runs(reader, parts, info, first, length, runs)


def open_runs(
    reader: CatalogReader, parts: ReaderParts, info: ObjectInfo, first: int, length: int, runs: list[Run]
) -> ObjectReader:
    """As `open_reader`, of a range whose runs were found just now."""
    segments: dict[int, SegmentRow] = {}
    for run in runs:
        if run.extent is not None and run.extent.segment > LOST and run.extent.segment not in segments:
            segment = reader.layout(run.extent.segment)
            if segment is None:
                raise DataLost(f"segment {run.extent.segment} of {info.key!r} does not exist")
            segments[segment.id] = segment
            if parts.read_at is not None:
                parts.read_at[segment.id] = trio.current_time()
    return ObjectReader(info, first, length, runs, segments, parts)
