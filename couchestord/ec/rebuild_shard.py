"""One shard file, made anew from the others.

It is written under another name, synced, read back and verified, and only then takes the place of what was there: the
last good copy of anything is never at risk, and a rebuild that was cut short is simply done again. What was there may
be all that is left of a stripe, so of one that cannot be made whole each block is made that can be.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from couchestord.ec.codec import Buffer
from couchestord.ec.gather import ShardRange
from couchestord.ec.opensegment import FIRST_STRIPE, segment_header_page
from couchestord.ec.shapes import by_blocks
from couchestord.ec.shardfile import ShardFile
from couchestord.ec.shards import (
    CHECK_BYTES,
    FOLDER,
    PAGE_BYTES,
    StripeHeader,
    full_stripe_pages,
    pack_stripe_header,
    shard_path,
    stripe_pages,
)
from couchestord.ec.stripes import StripeStore
from couchestord.errors import Corrupt, DataLost, NoSuchFile
from couchestord.io.catalog.read import CatalogReader, ExtentRow, SegmentRow
from couchestord.io.cutshort import NEW_SUFFIX
from couchestord.io.disk import Disk


class StripeWalk:
    """The stripes of a sealed segment, in order.

    Where headers are missing it goes on at the next stripe that an extent lies in. When the catalog does not know
    the end, it is where no header is found and no extent lies any more.
    """

    def __init__(self, stripes: StripeStore, catalog: CatalogReader, row: SegmentRow) -> None:
        self._stripes = stripes
        self._catalog = catalog
        self._row = row
        self._page = FIRST_STRIPE

    async def next(self) -> tuple[int, StripeHeader | None] | None:
        """(page, header) of the next stripe, None for the header of one of which none is left; None at the end."""
        row, page = self._row, self._page
        if page < 0 or 0 <= row.stripes_end <= page:
            return None
        try:
            shape = await self._stripes.shape(row, page, report=False)
        except DataLost:
            here = self._catalog.extents_up_to(row.id, page, 1)
            following = [extent.stripe for extent in self._catalog.extents_in_segment(row.id, page, 1)]
            behind = page + full_stripe_pages(row.k, row.stripe_bytes)
            if is_live(row, here, behind):
                following.append(behind)  # of an extent all stripes but the last are full
            self._page = min(following, default=-1)
            return (page, None) if following or is_live(row, here, page) or row.stripes_end >= 0 else None
        self._page = page + stripe_pages(shape.shard_length)
        return page, shape


def is_live(row: SegmentRow, extents: Sequence[ExtentRow], page: int) -> bool:
    """Does one of the segment's extents lie, in part, in the stripe whose header is at that page?"""
    step = full_stripe_pages(row.k, row.stripe_bytes)
    for extent in extents:
        turns = -(-(extent.stripe_start + extent.length) // row.stripe_bytes)
        if (page - extent.stripe) % step == 0 and 0 <= (page - extent.stripe) // step < turns:
            return True
    return False


def is_as_long(row: SegmentRow, length: int) -> bool:
    """Whether the file of a shard is as long as it should be, as far as the catalog knows; 0: it is not there."""
    if row.stripes_end <= FIRST_STRIPE and not row.live_bytes:
        return True  # nothing was ever written, perhaps
    return length >= max(1, row.stripes_end) * PAGE_BYTES


async def check_ends(stripes: StripeStore, catalog: CatalogReader, row: SegmentRow, index: int) -> None:
    """Read all headers of a shard's file and the end of its last stripe. Raises Corrupt, UnknownFormat, DiskError."""
    last: tuple[int, StripeHeader] | None = None
    file, walk = stripes.file(row, index), StripeWalk(stripes, catalog, row)
    await file.segment_header()
    while (found := await walk.next()) is not None:
        page, shape = found
        if shape is not None:
            last = page, await file.header(page)
    if last is not None:
        # not its size, as it was listed when all this began: what was open then, or came since, has grown
        page, header = last
        end = header.shard_length
        await file.blocks(page, header, (end - 1) // CHECK_BYTES * CHECK_BYTES, end)


class ShardRebuild:
    """Rebuilds shard `index` of a segment onto a disk, a few stripes a step.

    DiskError from any method is the target's; the caller gives the disk up and unlinks what is left with `abandon`.
    """

    def __init__(
        self, stripes: StripeStore, catalog: CatalogReader, row: SegmentRow, index: int, target: int, disk: Disk
    ) -> None:
        self.row = row
        self.index = index
        self.target = target
        self.disk = disk
        self.holes: list[int] = []
        """Pages of stripes that could not be made, or not whole: too few of their shards are left."""
        self.written_bytes = 0
        self._stripes = stripes
        self._path = shard_path(row.id, index)
        self._new = self._path + NEW_SUFFIX
        self._file = ShardFile(disk, stripes.identity(row), index, self._new)
        self._walk = StripeWalk(stripes, catalog, row)
        self._written: list[tuple[int, StripeHeader, list[ShardRange]]] = []
        """With what was made of each."""
        self._begun = False
        self._verified_count = 0

    async def step(self, stripes_max: int) -> bool:
        """Write or verify that many stripes; True when the file is in its place, durable."""
        if not self._begun:
            await self._begin()
        for _ in range(stripes_max):
            found = await self._walk.next()
            if found is None:
                return await self._verify(stripes_max)
            await self._write(*found)
        return False

    async def abandon(self) -> None:
        """Remove what was begun. Raises DiskError."""
        with suppress(NoSuchFile):
            await self.disk.unlink(self._new)

    async def _begin(self) -> None:
        with suppress(NoSuchFile):
            await self.disk.unlink(self._new)  # of a run before, perhaps longer
        disks = (*self.row.disks[: self.index], self.target, *self.row.disks[self.index + 1 :])
        page = segment_header_page(
            self.row._replace(disks=disks), self._stripes.identity(self.row).store_id, self.index
        )
        await self.disk.write_at(self._new, 0, [page])
        self._begun = True

    async def _write(self, page: int, shape: StripeHeader | None) -> None:
        made = await self._make(page, shape) if shape is not None else {}
        if shape is None or sum(part.high - part.low for part in made) < shape.shard_length:
            self.holes.append(page)
        if shape is None or not made:
            return
        payload = _payload(made, shape.shard_length, b"\0")
        header = pack_stripe_header(self._stripes.identity(self.row), page, self.index, shape.length, payload)
        # another one than was summed where it is lost: that must fail
        payload = _payload(made, shape.shard_length, b"\xff")
        padding = bytes(-shape.shard_length % PAGE_BYTES)
        await self.disk.write_at(self._new, page * PAGE_BYTES, [header, payload, padding])
        self._written.append((page, shape, list(made)))
        self.written_bytes += len(header) + shape.shard_length

    async def _make(self, page: int, shape: StripeHeader) -> dict[ShardRange, Buffer]:
        """The shard of a stripe, whole, or else each block of it that can be made."""
        whole = ShardRange(self.index, 0, shape.shard_length)
        with suppress(DataLost):
            return {whole: await self._stripes.shard(self.row, page, shape, whole)}
        made: dict[ShardRange, Buffer] = {}
        for column in by_blocks([whole]):
            with suppress(DataLost):
                made[column[whole]] = await self._stripes.shard(self.row, page, shape, column[whole])
        return made

    async def _verify(self, stripes_max: int) -> bool:
        if not self._verified_count:
            await self.disk.sync(self._new)
        upto = min(len(self._written), self._verified_count + stripes_max)
        try:
            await self._file.segment_header()
            for page, shape, made in self._written[self._verified_count : upto]:
                await check_stripe(self._file, page, shape, made)
        except Corrupt as error:
            raise DataLost(f"what was written to {self.disk.name} reads otherwise: {error}") from error
        self._verified_count = upto
        if upto < len(self._written):
            return False
        await self.disk.rename(self._new, self._path)
        await self.disk.sync_dir(FOLDER)
        return True


async def check_stripe(file: ShardFile, page: int, shape: StripeHeader, parts: Iterable[ShardRange] = ()) -> None:
    """Read one shard of a stripe, all of it or some parts. Raises Corrupt, UnknownFormat, DiskError."""
    header = await file.header(page)
    if header.length != shape.length:
        raise Corrupt(f"the shard's stripe holds {header.length} bytes, the others say {shape.length}")
    for _, low, high in parts or [ShardRange(0, 0, header.shard_length)]:
        await file.blocks(page, header, low, high)


def _payload(made: Mapping[ShardRange, Buffer], length: int, filler: bytes) -> bytearray:
    """A shard's bytes; those that could not be made are `filler`."""
    payload = bytearray(filler * length)
    for part, data in made.items():
        payload[part.low : part.high] = data
    return payload
