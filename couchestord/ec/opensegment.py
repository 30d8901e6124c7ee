"""A segment that is being written: its shard files, what of them is whole, what is synced."""

from collections.abc import Awaitable, Callable, Sequence

import trio

from couchestord.ec.shards import (
    ALGORITHM,
    CHECK_BYTES,
    FOLDER,
    PAGE_BYTES,
    EncodedStripe,
    SegmentHeader,
    pack_segment_header,
    shard_path,
)
from couchestord.errors import DiskError, DiskFailed, DiskFull, TooFewDisks
from couchestord.io.catalog.read import SegmentRow
from couchestord.io.disk import Disk
from couchestord.io.disks import Disks

FIRST_STRIPE = 1


class OpenSegment:
    """Used by one writer at a time. `broken`: an error came, or may have; it must not be appended to again.

    `end` is the page behind the last stripe, `synced_end` behind the last that is durable; bit i of `missing` says that
    shard i does not hold all of it.
    """

    def __init__(self, row: SegmentRow, disks: Disks) -> None:
        self.row = row
        self.missing = row.missing
        self.end = FIRST_STRIPE
        self.synced_end = FIRST_STRIPE
        self.data_bytes = 0
        self.broken = False
        self._disks = disks
        self._homes = [disks.ids.get(number) for number in row.disks]
        self._unsynced: set[int] = set()
        self._named: set[int] = set()

    def whole(self) -> list[int]:
        """Shards that hold everything up to `end`."""
        return [index for index in range(self.row.k + self.row.m) if not self.missing >> index & 1]

    def replaced(self) -> int:
        """Bits of the shards in whose disk's place another disk is now: it has nothing of what was written."""
        return sum(1 << index for index in range(len(self._homes)) if not self._is_home(index))

    def _is_home(self, index: int) -> bool:
        return self._disks.ids.get(self.row.disks[index]) == self._homes[index]

    async def write(self, encoded: Sequence[EncodedStripe]) -> bool:
        """Write stripes at the end. False when a shard could not be written: it is broken, they are not part of it.

        Disks that failed are given up.
        """
        assert not self.broken
        self.broken = True  # until all is written: who is cancelled in between leaves a stripe in part
        stripe = self.end

        async def put(disk: Disk, index: int) -> None:
            buffers = [buffer for each in encoded for buffer in each.buffers(index)]
            offset = stripe * PAGE_BYTES
            if stripe == FIRST_STRIPE:
                buffers.insert(0, segment_header_page(self.row, self._disks.store_id, index))
                offset = 0
            await disk.write_at(shard_path(self.row.id, index), offset, buffers)

        whole = self.whole()
        failed = await self._on_shards(whole, put)
        if failed:
            # a full disk still holds what came before
            self.missing |= sum(1 << index for index, error in failed.items() if not isinstance(error, DiskFull))
            return False
        self.end += sum(each.pages_count for each in encoded)
        self._unsynced.update(whole)
        self.broken = False
        return True

    async def sync(self, min_healthy: int) -> None:
        """All stripes so far are durable on return. A shard that fails is missing from then on, and this is broken.

        Raises TooFewDisks when fewer than `min_healthy` shards are whole after it.
        """

        async def sync(disk: Disk, index: int) -> None:
            await disk.sync(shard_path(self.row.id, index))
            if index not in self._named:
                await disk.sync_dir(FOLDER)
                self._named.add(index)

        broken, self.broken = self.broken, True
        failed = await self._on_shards(sorted(self._unsynced.intersection(self.whole())), sync)
        self.missing |= sum(1 << index for index in failed)
        whole_count = len(self.whole())
        if whole_count < min_healthy:
            raise TooFewDisks(
                f"{whole_count} of {self.row.k}+{self.row.m} shards of segment {self.row.id} are whole, {min_healthy} "
                "are needed"
            )
        self._unsynced.clear()
        self.synced_end = self.end
        self.broken = broken or bool(failed)

    async def _on_shards(
        self, indexes: Sequence[int], call: Callable[[Disk, int], Awaitable[None]]
    ) -> dict[int, DiskError]:
        """Run a call for several shards at once; those that failed, whose disks are given up."""
        failed: dict[int, DiskError] = {}

        async def one(index: int) -> None:
            number = self.row.disks[index]
            disk = self._disks.get(number) if self._is_home(index) else None
            try:
                if disk is None:
                    raise DiskFailed("given up")
                await call(disk, index)
            except DiskError as error:
                failed[index] = error
                if disk is not None:
                    self._disks.fail(number, error, disk)

        async with trio.open_nursery() as nursery:
            for index in indexes:
                nursery.start_soon(one, index)
        return failed


def segment_header_page(row: SegmentRow, store_id: bytes, index: int) -> bytes:
    """Page 0 of the file of a shard."""
    return pack_segment_header(
        SegmentHeader(
            store_id, row.id, row.epoch, index, ALGORITHM, row.k, row.m, 0, row.stripe_bytes, CHECK_BYTES, row.disks
        )
    )
