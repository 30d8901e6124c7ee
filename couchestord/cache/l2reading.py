"""Chunks out of records: what the process that writes the second cache and those that read beside it have in common."""

from dataclasses import dataclass

from couchestord.cache import l2format as fmt
from couchestord.cache.compressor import Compressor, Lz4, NoCompression
from couchestord.cache.l2index import key_of, range_of, segment_of
from couchestord.errors import Corrupt
from couchestord.io.disk import Buffer, Disk


@dataclass(frozen=True, slots=True)
class Records:
    """Which records count: those of one folder, for one session. See `fmt.State`."""

    salt: int
    session: int
    limits: tuple[int, ...]

    def find(self, key: int, data: Buffer, at: int = 0) -> tuple[fmt.Head, memoryview] | None:
        """The record of that chunk at an offset of a copy; None unless it is whole, and counts by its session."""
        head = fmt.unpack_head(self.salt, data, at)
        if head is None or key_of(head.extent, head.chunk) != key:
            return None
        age = self.session - head.session
        if not 0 <= age < len(self.limits) or head.extent >= self.limits[age]:
            return None
        stored = fmt.stored_of(head, data, at)
        return None if stored is None else (head, stored)


class ChunkReader:
    """Belongs to one trio loop."""

    def __init__(self, reads_max: int, *compressors: Compressor) -> None:
        """At most `reads_max` cold reads at a time. `compressors`: beside those that are always known."""
        known: tuple[Compressor, ...] = (NoCompression(), Lz4(), *compressors)
        self._decompressors = {each.codec: each for each in known}
        self._reads_max = reads_max
        self._reads_count = 0

    def chunk(self, records: Records, key: int, raw: Buffer) -> bytes | None:
        """The chunk that a record holds, from a copy that nobody else can change. None: it is not what was put."""
        found = records.find(key, raw)
        if found is None:
            return None
        head, stored = found
        try:
            return self._decompressors[head.codec].decompress(stored, head.logical_bytes)
        except (Corrupt, KeyError):
            return None  # made by a codec that this program does not know

    async def read(self, disk: Disk, place: int) -> bytes | None:
        """What lies there, by a thread of the disk; None when too much is being read. Raises DiskError."""
        if self._reads_count >= self._reads_max:
            return None
        self._reads_count += 1
        try:
            return await disk.read(fmt.segment_path(segment_of(place)), *range_of(place))
        finally:
            self._reads_count -= 1
