"""Reads from blobs: what lies in the bucket only, and what the disks have lost."""

from collections.abc import AsyncGenerator, Callable

from couchestord.errors import Corrupt, DataLost, NoSuchBlob, RemoteError, Unavailable, UnknownFormat
from couchestord.io.catalog.copies import ALL, CopyReader, CopyRow
from couchestord.io.catalog.read import ExtentRow
from couchestord.io.mutations import IN_BLOB
from couchestord.remote.blob import Held
from couchestord.remote.blobs import Blobs

_PIECE_BYTES = 4 << 20
"""Asked for in one request."""


class Copies:
    """The copies of a store's extents. Any number of tasks."""

    def __init__(self, catalog: CopyReader, blobs: Blobs) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self.on_damage: Callable[[int, int], None] = lambda _blob, _extent: None
        """Told of a blob and an extent whose copy in it is wrong, or ALL when there is no such blob."""
        self.reads_count = 0
        self.read_bytes = 0

    def has(self, extent: ExtentRow) -> bool:
        """Whether an extent has a copy."""
        return self._catalog.copy(extent.id) is not None

    async def load(self, extent: ExtentRow, first: int, length: int) -> bytes:
        """A range of an extent, verified. One that lies in a blob only is read there as long as the blob is held,
        whatever became of it.

        Raises DataLost when it has no copy, or that is gone or bad; Unavailable when the bucket does not answer.
        """
        copy = self._place(extent)
        while True:
            name = self._blobs.name(copy.epoch, copy.blob)
            try:
                data = await self._blobs.read(name, Held(extent.id, copy.start, extent.length), first, length)
            except (NoSuchBlob, Corrupt, UnknownFormat) as error:
                packed = self._catalog.copy(extent.id)
                if packed is not None and packed != copy:
                    copy = packed  # meanwhile: where it was may be gone
                    continue
                self.on_damage(copy.blob, ALL if isinstance(error, NoSuchBlob) else extent.id)
                raise DataLost(f"the copy of extent {extent.id} in {name.key}: {error}") from error
            except RemoteError as error:
                raise Unavailable(f"the bucket with extent {extent.id} does not give it now: {error}") from error
            self.reads_count += 1
            self.read_bytes += length
            return data

    async def load_pieces(self, extent: ExtentRow, first: int, length: int) -> AsyncGenerator[bytes, None]:
        """As `load`, a few MiB at a time."""
        for at in range(first, first + length, _PIECE_BYTES):
            yield await self.load(extent, at, min(_PIECE_BYTES, first + length - at))

    def _place(self, extent: ExtentRow) -> CopyRow:
        if extent.segment == IN_BLOB and (blob := self._catalog.blob(extent.stripe)) is not None:
            return CopyRow(blob.epoch, blob.id, extent.stripe_start, extent.length)
        found = self._catalog.copy(extent.id)
        if found is None:
            raise DataLost(f"extent {extent.id} has no copy")
        return found
