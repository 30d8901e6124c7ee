"""Objects at one look: what can be said of a live object, and read of it, without waiting."""

from couchestord.io.catalog.read import BucketRow, EntryRow, ExtentRow
from couchestord.io.keys import split_key
from couchestord.model import ByteRange, ObjectInfo
from couchestord.store.athand import ReaderParts, read_at_hand
from couchestord.store.parts import CatalogView
from couchestord.store.reader import ObjectReader, open_reader
from couchestord.store.runs import plan, resolve_range
from couchestord.store.values import object_info

READ_BYTES_MAX = 128 << 10
"""No longer body is read at one look."""
EXTENTS_KEPT_MAX = 16
"""Of one object, some 250 bytes each. What lies behind them is looked up each time."""


class Look:
    """A live object as it was when it was looked up. Keep it as long as it holds."""

    __slots__ = ("_directory", "_extents", "_looks", "_moves", "_name", "_row", "_stamp", "info", "owner")

    def __init__(self, looks: "Looks", bucket: BucketRow, info: ObjectInfo, place: tuple[int, bytes], row: EntryRow):
        self._looks = looks
        self._stamp = looks.stamp()
        self._directory, self._name = place
        self._row = row
        self._extents: tuple[ExtentRow, ...] = ()
        self._moves = -1
        self.info = info
        self.owner = bucket.owner
        """Of the bucket."""

    def holds(self) -> bool:
        """The key still names this very object, in a bucket with this owner. As good as a new look-up."""
        looks = self._looks
        return looks.entry(self._directory, self._name) is self._row and looks.stamp() == self._stamp

    def read(self) -> bytes | memoryview | None:
        """The whole body, verified, when it is short and in memory, else None. Only while the look holds."""
        return self._looks.read(self._row)

    def read_range(self, asked: ByteRange) -> tuple[int, bytes | memoryview] | None:
        """As `read`, a range of the body; and the offset that it begins at. Raises InvalidRange."""
        looks, row = self._looks, self._row
        first, length = resolve_range(asked, row.size)
        if length > READ_BYTES_MAX:
            return None
        extent = row.extent
        if extent is None or first + length > extent.length:
            extent = self._extent_of(first, first + length)
            if extent is None:
                return None
        found = looks.read_extent(extent, first - extent.start, length)
        return None if found is None else (first, found)

    def open(self, asked: ByteRange | None) -> ObjectReader | None:
        """To read what is not in memory, when it is short, else None. Only while the look holds.

        Raises InvalidRange, DataLost.
        """
        _, length = resolve_range(asked, self._row.size)
        return self._looks.open(self.info, self._row, asked) if length <= READ_BYTES_MAX else None

    def _extent_of(self, first: int, end: int) -> ExtentRow | None:
        """The extent that holds all of a range, in an object that has more than one; None: there is none."""
        looks, row = self._looks, self._row
        moves = looks.moves()
        if moves != self._moves:
            self._extents, self._moves = looks.extents(row), moves
        for extent in self._extents:
            if extent.start <= first < extent.start + extent.length:
                return extent if end <= extent.start + extent.length else None
        return looks.find_extent(row, first, end - first)


class Looks:
    """Looks at a store's objects. Synchronous; belongs to the store's task context."""

    def __init__(self, catalog: CatalogView, parts: ReaderParts) -> None:
        self._catalog = catalog.reading
        self._generations = catalog.generations
        self._parts = parts
        self.entry = self._catalog.entry
        self.stamp = self._generations.stamp_of_paths

    def look(self, bucket: str, key: bytes) -> Look | None:
        """At the live object of that key; None when there is none, or no bucket."""
        found = self._catalog.bucket(bucket)
        if found is None:
            return None
        parts, name = split_key(key)
        directory = self._catalog.directory(found.root, parts)
        row = self._catalog.entry(directory, name) if directory is not None else None
        if directory is None or row is None:
            return None
        return Look(self, found, object_info(found, key, row), (directory, name), row)

    def read(self, row: EntryRow) -> bytes | memoryview | None:
        """As `Look.read`."""
        size, extent = row.size, row.extent
        if not size:
            return b""
        if extent is None or extent.length < size or size > READ_BYTES_MAX:
            return None
        return read_at_hand(self._parts, extent, 0, size)

    def open(self, info: ObjectInfo, row: EntryRow, asked: ByteRange | None) -> ObjectReader:
        """A reader of an object whose row was looked up just now, or holds. Raises InvalidRange, DataLost."""
        return open_reader(self._catalog, self._parts, info, row, asked)

    def moves(self) -> int:
        """Changes when an extent has another place."""
        return self._generations.moves

    def extents(self, row: EntryRow) -> tuple[ExtentRow, ...]:
        """The first extents of an object that is one content, of a few most likely; none of others."""
        if row.content is None or row.extent is None or row.size > EXTENTS_KEPT_MAX * row.extent.length:
            return ()
        return tuple(self._catalog.extents(row.content, 0, row.size, EXTENTS_KEPT_MAX))

    def find_extent(self, row: EntryRow, first: int, length: int) -> ExtentRow | None:
        """The extent that holds all of a range, shifted so that it begins where it would in the object."""
        run = plan(self._catalog, row, first, length)[0]
        if run.extent is None or run.length != length:
            return None
        return run.extent._replace(start=first - run.offset)

    def read_extent(self, extent: ExtentRow, first: int, length: int) -> bytes | memoryview | None:
        """A range of an extent, verified, when it is in memory."""
        return read_at_hand(self._parts, extent, first, length)
