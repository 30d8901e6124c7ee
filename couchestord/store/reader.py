"""Bodies on their way out: verified pieces of one whole version."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple

from couchestord.ec.stripes import StripeStore
from couchestord.errors import DataLost, InvalidRange
from couchestord.io.catalog.read import CatalogReader, EntryRow, ExtentRow, SegmentRow
from couchestord.io.journal import Journal
from couchestord.model import ByteRange, ObjectInfo
from couchestord.store.pins import Pins

ZEROES = bytes(1 << 20)


class Run(NamedTuple):
    """`length` bytes from `offset` on of an extent; without an extent, zeroes."""

    extent: ExtentRow | None
    offset: int
    length: int


def resolve_range(byte_range: ByteRange | None, size: int) -> tuple[int, int]:
    """(first, length) of a range in an object of `size` bytes. Raises InvalidRange when it begins at or after the
    end.
    """
    if byte_range is None:
        return 0, size
    if byte_range.first is None:
        wanted = byte_range.last or 0
        if wanted <= 0 or size == 0:
            raise InvalidRange(f"the last {wanted} bytes of {size} are none", size)
        first = max(0, size - wanted)
        return first, size - first
    if byte_range.first >= size:
        raise InvalidRange(f"the range begins at {byte_range.first}, the object has {size} bytes", size)
    last = size - 1 if byte_range.last is None else min(byte_range.last, size - 1)
    return byte_range.first, last - byte_range.first + 1


def plan(reader: CatalogReader, row: EntryRow, first: int, length: int) -> list[Run]:
    """The runs that make up a range of an object, in order."""
    end = first + length
    if not length:
        return []
    if row.extent is not None and end <= row.extent.length:
        return [Run(row.extent, first, length)]
    if row.content is not None:
        return _content_runs(reader, row.content, first, end)
    runs: list[Run] = []
    at = first
    for piece in reader.pieces(row.inode):
        low, high = max(first, piece.start), min(end, piece.start + piece.length)
        if low >= high:
            continue
        if low > at:
            runs.append(Run(None, 0, low - at))
        if piece.content is None:
            runs.append(Run(None, 0, high - low))
        else:
            shift = piece.content_start - piece.start
            runs += _content_runs(reader, piece.content, low + shift, high + shift)
        at = high
    if at < end:
        runs.append(Run(None, 0, end - at))
    return runs


def _content_runs(reader: CatalogReader, content: int, first: int, end: int) -> list[Run]:
    runs = []
    for extent in reader.extents(content, first, end):
        low, high = max(first, extent.start), min(end, extent.start + extent.length)
        if low < high:
            runs.append(Run(extent, low - extent.start, high - low))
    return runs


class ObjectReader:
    """One version of an object, or a range of it. Iterate once, or `read`; close it in any case (`async with` does).

    What it reads stays where it is until it is closed, but for records of a journal that is nearly full: their bytes
    are then read where they were moved to, and are lost to it when the object was deleted meanwhile. A piece is at most
    1 MiB and verified before it is handed out.
    Iteration raises DataLost when more is damaged than the code makes good; pieces already handed out were right.
    """

    def __init__(
        self,
        info: ObjectInfo,
        first: int,
        length: int,
        runs: list[Run],
        segments: dict[int, SegmentRow],
        parts: "ReaderParts",
    ) -> None:
        self.info = info
        self.first = first
        self.length = length
        self._runs = runs
        self._segments = segments
        self._parts = parts
        self._records = [run.extent.stripe for run in runs if run.extent is not None and not run.extent.segment]
        parts.pins.hold(segments, self._records)
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
        if run.extent is None or not run.extent.segment:
            return f"journal record {run.extent.stripe if run.extent else 0}"
        row = self._segments[run.extent.segment]
        return f"segment {row.id} ({row.k}+{row.m} shards on disks {row.disks}), from stripe {run.extent.stripe} on"

    async def _read_run(self, run: Run, lent: bool) -> AsyncGenerator[bytes | memoryview, None]:
        extent = run.extent
        if extent is None:
            for at in range(0, run.length, len(ZEROES)):
                yield memoryview(ZEROES)[: min(len(ZEROES), run.length - at)]
            return
        if not extent.segment:
            try:
                whole = await self._parts.journal.read(extent.stripe, extent.stripe_start + run.offset, run.length)
            except DataLost:
                extent = self._moved(extent)
                if extent is None:
                    raise
            else:
                yield whole
                return
        segment = self._segments[extent.segment]
        start = extent.stripe_start + run.offset
        found = self._parts.stripes.read_run(segment, extent.stripe, start, run.length, lent=lent)
        async with aclosing(found) as pieces:
            async for piece in pieces:
                yield piece

    def _moved(self, extent: ExtentRow) -> ExtentRow | None:
        """Where the bytes of a record lie now, held from now on; None when they are in no stripes, or were deleted."""
        found = self._parts.catalog.extent(extent.id)
        segment = self._parts.catalog.layout(found.segment) if found is not None and found.segment else None
        if segment is None:
            return None
        if segment.id not in self._segments:
            self._parts.pins.hold([segment.id])
            self._segments[segment.id] = segment
        return found

    async def read(self) -> bytes:
        """All of it, in memory. Closes the reader."""
        resident = self._read_resident()
        if resident is None:
            return b"".join([piece async for piece in self])
        self._let_go()
        return bytes(resident)

    def _read_resident(self) -> bytes | memoryview | None:
        """All of it when it is one run, in memory, and right: a small object takes no iteration and no wait."""
        if len(self._runs) != 1 or (extent := self._runs[0].extent) is None:
            return None
        start, length = extent.stripe_start + self._runs[0].offset, self.length
        if not extent.segment:
            try:
                return self._parts.journal.read_nowait(extent.stripe, start, length)
            except DataLost:
                return None  # trimmed: who iterates looks where it was moved to
        return self._parts.stripes.read_nowait(self._segments[extent.segment], extent.stripe, start, length)

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
            self._parts.pins.release(self._segments, self._records)

    async def __aenter__(self) -> "ObjectReader":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # a caller that forgot to close must not keep space for ever
        self._let_go()


@dataclass(frozen=True, slots=True)
class ReaderParts:
    """What readers read from."""

    catalog: CatalogReader
    journal: Journal
    stripes: StripeStore
    pins: Pins


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
    segments: dict[int, SegmentRow] = {}
    for run in runs:
        if run.extent is not None and run.extent.segment and run.extent.segment not in segments:
            segment = reader.layout(run.extent.segment)
            if segment is None:
                raise DataLost(f"segment {run.extent.segment} of {info.key!r} does not exist")
            segments[segment.id] = segment
    return ObjectReader(info, first, length, runs, segments, parts)
