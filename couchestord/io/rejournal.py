"""Restores the copies of journal files whose disk failed or whose bytes rotted."""

from contextlib import suppress

import trio

from couchestord import logs
from couchestord.errors import DataLost, DiskError, NoSuchFile
from couchestord.io import records as rec
from couchestord.io.cutshort import NEW_SUFFIX, remove_cut_short
from couchestord.io.disk import Disk
from couchestord.io.disks import Disks
from couchestord.io.journal import Journal
from couchestord.io.journalfile import ShortFile
from couchestord.io.recovery import FOLDER
from couchestord.service import Progress

log = logs.get(__name__)
COPY_BYTES = 1 << 20


class Rejournaler:
    """A service; each step copies one file to one disk: under another name, synced, then renamed."""

    name = "rejournal"
    interval_s = 1.0

    def __init__(self, disks: Disks, journal: Journal) -> None:
        self._disks = disks
        self._journal = journal
        self._turn = trio.Lock()
        self._swept = False
        self.copied_count = 0

    async def work(self) -> Progress:
        """Copy a file. Calls take turns: two at once would write the same copy."""
        async with self._turn:
            if not self._swept:
                self._swept = True
                for index in self._disks.good():
                    await self._sweep(index)
                    await self._look_at(index)
            return await self._work()

    async def sweep(self, index: int) -> None:
        """Remove copies that were cut short from a disk that was away."""
        async with self._turn:
            await self._sweep(index)

    async def _look_at(self, index: int) -> None:
        """After a start: what an old copy of a disk lacks its superblock does not tell."""
        try:
            await self._journal.check_returned(index)
        except DiskError as error:
            log.warning("a disk was not looked at", disk=self._disks.name(index), reason=str(error))

    async def _sweep(self, index: int) -> None:
        await remove_cut_short(self._disks, index, FOLDER, rec.parse_file_name)

    async def _work(self) -> Progress:
        short = self._journal.short_file()
        disk = self._disks.get(short.target) if short else None
        if short is None or disk is None:
            return Progress.IDLE
        temporary = short.path + NEW_SUFFIX
        try:
            # a copy that was cut short, or whose sync failed, is never written again
            with suppress(NoSuchFile):
                await disk.unlink(temporary)
            await self._copy(disk, short, temporary)
            await disk.sync(temporary)
            await disk.rename(temporary, short.path)
            await disk.sync_dir(FOLDER)
            if not self._journal.holds(short.header.first_sequence):
                # it was trimmed meanwhile
                await disk.unlink(short.path)
                return Progress.BUSY
        except (DataLost, DiskError) as error:
            if isinstance(error, DiskError):
                self._disks.fail(short.target, error, disk)
            elif self._journal.holds(short.header.first_sequence):
                # no replica that is here counts as whole any more: it is not tried again before a disk returns
                log.error("a journal file cannot be copied", file=short.path, reason=str(error))
            with suppress(DiskError):
                await disk.unlink(temporary)  # a disk that is full wants the room
            return Progress.BUSY
        self._journal.replica_made(short)
        self.copied_count += 1
        log.info("journal file copied", file=short.path, disk=disk.name)
        return Progress.BUSY

    async def _copy(self, disk: Disk, short: ShortFile, temporary: str) -> None:
        parts = [rec.pack_file_header(short.header)]
        size, offset = len(parts[0]), 0
        for sequence in range(short.header.first_sequence, short.end):
            record = await self._journal.raw(sequence)
            parts.append(record)
            size += len(record)
            if size >= COPY_BYTES or sequence == short.end - 1:
                await disk.write_at(temporary, offset, [b"".join(parts)])
                offset += size
                parts, size = [], 0
