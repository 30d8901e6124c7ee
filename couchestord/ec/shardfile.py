"""One shard file on one disk: reads that are verified before they are returned.

Raises Corrupt for bytes that are damaged, cut short or another's, UnknownFormat for a newer program's, and DiskError.
"""

from couchestord import logs
from couchestord.ec.shards import (
    CHECK_BYTES,
    PAGE_BYTES,
    SegmentHeader,
    SegmentIdentity,
    StripeHeader,
    check_segment_header,
    shard_path,
    unpack_segment_header,
    unpack_stripe_header,
    verify_blocks,
)
from couchestord.errors import Corrupt, DiskError, NoSuchFile
from couchestord.io.disk import Disk
from couchestord.io.disks import Disks

log = logs.get(__name__)


class ShardFile:
    """Shard `index` of a segment, in its place on `disk` or at `path`."""

    __slots__ = ("_disk", "_identity", "_index", "_path")

    def __init__(self, disk: Disk, identity: SegmentIdentity, index: int, path: str | None = None) -> None:
        self._disk = disk
        self._identity = identity
        self._index = index
        self._path = path or shard_path(identity.segment, index)

    async def segment_header(self) -> SegmentHeader:
        """Page 0, of this very shard."""
        header = unpack_segment_header(await self._disk.read(self._path, 0, PAGE_BYTES))
        check_segment_header(header, self._identity, self._index)
        return header

    def header_nowait(self, stripe: int) -> StripeHeader | None:
        """As `header`, or None when the page is not resident in memory."""
        page = self._disk.read_nowait(self._path, stripe * PAGE_BYTES, PAGE_BYTES)
        return None if page is None else unpack_stripe_header(page, self._identity, stripe, self._index)

    async def header(self, stripe: int) -> StripeHeader:
        """The header of a stripe."""
        page = await self._disk.read(self._path, stripe * PAGE_BYTES, PAGE_BYTES)
        return unpack_stripe_header(page, self._identity, stripe, self._index)

    async def header_and_blocks(
        self, stripe: int, low: int, high: int, length: int
    ) -> tuple[StripeHeader, bytes | None]:
        """As `header` and `blocks`, in one call of the disk. None instead of blocks when the stripe holds not `length`
        bytes: then they lie elsewhere.
        """
        ranges = (stripe * PAGE_BYTES, PAGE_BYTES), ((stripe + 1) * PAGE_BYTES + low, high - low)
        page, payload = await self._disk.read_ranges(self._path, ranges)
        header = unpack_stripe_header(page, self._identity, stripe, self._index)
        if header.length != length:
            return header, None
        _check_blocks(header, low, high, payload)
        return header, payload

    def blocks_nowait(self, stripe: int, header: StripeHeader, low: int, high: int) -> bytes | bytearray | None:
        """As `blocks`, or None when the bytes are not resident in memory."""
        payload = self._disk.read_nowait(self._path, (stripe + 1) * PAGE_BYTES + low, high - low)
        if payload is not None:
            verify_blocks(header, low // CHECK_BYTES, payload)
        return payload

    async def blocks(self, stripe: int, header: StripeHeader, low: int, high: int) -> bytes:
        """Bytes `low` to before `high` of the payload: from the start of a block to the end of one."""
        payload = await self._disk.read(self._path, (stripe + 1) * PAGE_BYTES + low, high - low)
        _check_blocks(header, low, high, payload)
        return payload


def _check_blocks(header: StripeHeader, low: int, high: int, payload: bytes) -> None:
    assert low % CHECK_BYTES == 0
    if len(payload) != high - low:
        raise Corrupt("shard is cut short")
    verify_blocks(header, low // CHECK_BYTES, payload)


async def remove_shard(disks: Disks, number: int, segment: int, index: int) -> None:
    """Remove the file of a shard that the catalog knows no longer there. One that stays, since its disk is away or
    fails, is found by a sweep when the disk is back, or at a start.
    """
    disk = disks.get(number)
    if disk is None:
        return
    try:
        await disk.unlink(shard_path(segment, index))
    except NoSuchFile:
        return
    except DiskError as error:
        log.warning("shard file was not removed", disk=disk.name, segment=segment, reason=str(error))
