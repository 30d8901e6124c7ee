"""Blobs that nobody needs, and copies that turned out to be none: the job `clean-bucket`."""

import json
from collections.abc import Awaitable, Callable, Mapping

from couchestord import logs
from couchestord.ec.segments import Submit
from couchestord.errors import DataLost, RemoteError
from couchestord.io import requests as rq
from couchestord.io.catalog.copies import ALL, BlobRow, CopyReader
from couchestord.remote.blobs import Blobs
from couchestord.remote.uploader import Read
from couchestord.service import Progress

log = logs.get(__name__)
_BLOBS_PER_STEP = 16
_BAD_PER_STEP = 16
_BAD_MAX = 4096
_PASSED_OVER_MAX = 4096


class Cleaner:
    """A service. A blob without a live byte is dropped, by a record, and deleted once no catalog that may come back
    from the bucket names it.
    """

    name = "clean-bucket"
    interval_s = 30.0

    def __init__(
        self,
        catalog: CopyReader,
        submit: Submit,
        read_here: Read,
        blobs: Blobs,
        epoch: int,
        check_claim: Callable[[], Awaitable[None]],
        is_free: Callable[[int], bool],
        kept_from: Callable[[], int],
        jobs: Callable[[], Mapping[str, bytes]],
    ) -> None:
        """`read_here`: from the disks alone; None for what is gone, or lies on none by right. `is_free`: whether no
        reader is at a blob. `kept_from`: catalogs in the bucket are of that sequence, or of later ones. `check_claim`:
        RemoteRefused when the bucket is another's by now. `jobs` answers the states of all jobs, as the catalog has
        them.
        """
        self._catalog = catalog
        self._submit = submit
        self._read_here = read_here
        self._blobs = blobs
        self._epoch = epoch
        self._check_claim = check_claim
        self._is_free = is_free
        self._kept_from = kept_from
        state = jobs().get(self.name)
        self._bad: dict[tuple[int, int], None] = {(blob, extent): None for blob, extent in json.loads(state or "[]")}
        self._noted = set(self._bad)
        self._passed_over: set[int] = set()
        self.deleted_count = 0
        self.lost_copies_count = 0
        self.trouble = ""

    def report(self, blob: int, extent: int) -> None:
        """The copy of an extent in a blob is wrong, or with ALL the blob is gone, and every copy in it."""
        if (blob, extent) not in self._bad and len(self._bad) < _BAD_MAX:
            self._bad[blob, extent] = None
            log.error("a copy in the bucket is missing or damaged", blob=blob, extent=extent)

    def is_bad(self, blob: int, extent: int) -> bool:
        """Whether that was reported, and the catalog still names the copy: nothing may rely on it."""
        return (blob, extent) in self._bad or (blob, ALL) in self._bad

    async def work(self) -> Progress:
        """Forget bad copies, drop dead blobs, delete dropped ones: some of each."""
        await self._note_bad()
        bad = list(self._bad)[:_BAD_PER_STEP]
        has_more = all([await self._forget_copy(blob, extent) for blob, extent in bad]) and bool(self._bad)
        for row in self._catalog.dead(_BLOBS_PER_STEP):
            if self._is_free(row.id):
                await self._submit(rq.DropBlob(row.id))
        dropped = self._dropped()
        try:
            if dropped:
                await self._check_claim()
            for row in dropped:
                self._passed_over.add(row.id)  # when it cannot be deleted, until all others were tried
                await self._blobs.delete(self._blobs.name(row.epoch, row.id))
                await self._submit(rq.ForgetBlob(self._epoch, row.id))
                self._passed_over.discard(row.id)
                self.deleted_count += 1
        except RemoteError as error:
            if str(error) != self.trouble:
                log.warning("blobs were not deleted yet", reason=str(error))
            self.trouble = str(error)
            return Progress.IDLE
        self.trouble = ""
        return Progress.BUSY if has_more or len(dropped) == _BLOBS_PER_STEP else Progress.IDLE

    def _dropped(self) -> list[BlobRow]:
        """Some that may be deleted; nothing, once, when those that are left were all tried."""
        rows = self._catalog.dropped(self._kept_from(), _BLOBS_PER_STEP + len(self._passed_over))
        found = [row for row in rows if row.id not in self._passed_over]
        if not found or len(self._passed_over) > _PASSED_OVER_MAX:
            self._passed_over.clear()
        return found[:_BLOBS_PER_STEP]

    async def _note_bad(self) -> None:
        """For the next start: the disks may be back then, and what they give is worth more than such a copy."""
        bad = set(self._bad)
        if bad != self._noted:
            await self._submit(rq.SaveJob(self.name, json.dumps(sorted(bad)).encode() if bad else b""))
            self._noted = bad

    async def _forget_copy(self, blob: int, extent: int) -> bool:
        """Only of what is on the disks still: else it may be the last, and the bucket have failed for once. False: it
        stays.
        """
        is_left, extents = False, [extent]
        while extents:
            for each in extents:
                is_left |= not await self._forget(blob, each)
            rows = self._catalog.extents_in_blob(blob, extents[-1], _BAD_PER_STEP) if extent == ALL else ()
            extents = [row.id for row in rows]
        del self._bad[blob, extent]
        if is_left:
            self._bad[blob, extent] = None  # behind the others: its disks may come back
        return not is_left

    async def _forget(self, blob: int, extent: int) -> bool:
        """False: it cannot be read from the disks."""
        try:
            if await self._read_here(extent) is not None:
                await self._submit(rq.LoseCopies(blob, (extent,)))
                self.lost_copies_count += 1
        except DataLost:
            return False
        return True
