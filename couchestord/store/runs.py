"""Where the bytes of a range of an object are to be read."""

from typing import NamedTuple

from couchestord.errors import DataLost, InvalidRange
from couchestord.io.catalog.read import CatalogReader, EntryRow, ExtentRow
from couchestord.model import ByteRange


class Run(NamedTuple):
    """`length` bytes from `offset` on of an extent; without an extent, zeroes."""

    extent: ExtentRow | None
    offset: int
    length: int


class Stretch(NamedTuple):
    """Bytes of an object from `start` to before `end`: an extent's from `offset` on; without an extent, zeroes."""

    start: int
    end: int
    extent: ExtentRow | None
    offset: int


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
        return content_runs(reader, row.content, first, end)
    runs: list[Run] = []
    at = first
    for piece in reader.pieces(row.inode, first, end):
        low, high = max(first, piece.start), min(end, piece.start + piece.length)
        if low >= high:
            continue
        if low > at:
            runs.append(Run(None, 0, low - at))
        shift = piece.content_start - piece.start
        runs += content_runs(reader, piece.content, low + shift, high + shift)
        at = high
    if at < end:
        runs.append(Run(None, 0, end - at))
    return runs


def find_stretch(reader: CatalogReader, inode: int, content: int | None, size: int, at: int) -> Stretch:
    """All that lies together with byte `at` of an object, which has `size`. `content` None: it is made of pieces.
    Raises DataLost.
    """
    low, high, shift = 0, size, 0
    if content is None:
        for piece in reader.pieces(inode, at, size, limit=2):
            end = piece.start + piece.length
            if end <= at:
                low = end
            elif piece.start > at:
                high = piece.start
                break
            else:
                low, high, content, shift = piece.start, end, piece.content, piece.content_start - piece.start
                break
        if content is None:
            return Stretch(low, high, None, 0)
    for extent in reader.extents(content, at + shift, at + shift + 1):
        start, end = max(low, extent.start - shift), min(high, extent.start + extent.length - shift)
        if start <= at < end:
            return Stretch(start, end, extent, start + shift - extent.start)
    raise DataLost(f"no extent of content {content} has byte {at + shift}")


def content_runs(reader: CatalogReader, content: int, first: int, end: int) -> list[Run]:
    """The runs that make up the bytes of a content from `first` to before `end`, in order."""
    runs = []
    for extent in reader.extents(content, first, end):
        low, high = max(first, extent.start), min(end, extent.start + extent.length)
        if low < high:
            runs.append(Run(extent, low - extent.start, high - low))
    return runs
