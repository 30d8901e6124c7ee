"""Restores the copies of journal files whose disk failed or whose bytes rotted."""

from couchestord import logs
from couchestord.errors import DataLost, DiskError
from couchestord.io import records as rec
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
        self._hopeless: set[str] = set()
        self.copied_count = 0

    async def work(self) -> Progress:
        short = self._journal.short_file()
        if short is None or short.path in self._hopeless:
            return Progress.IDLE
        disk = self._disks.get(short.target)
        if disk is None:
            return Progress.IDLE
        temporary = f"{short.path}.new"
        try:
            await self._copy(short, temporary)
            await disk.sync(temporary)
            await disk.rename(temporary, short.path)
            await disk.sync_dir(FOLDER)
        except DataLost as error:
            log.error("a journal file cannot be copied", file=short.path, reason=str(error))
            self._hopeless.add(short.path)
            return Progress.IDLE
        except DiskError as error:
            self._disks.fail(short.target, error)
            return Progress.BUSY
        self._journal.replica_made(short)
        self.copied_count += 1
        log.info("journal file copied", file=short.path, disk=disk.name)
        return Progress.BUSY

    async def _copy(self, short: ShortFile, temporary: str) -> None:
        disk = self._disks.get(short.target)
        if disk is None:
            raise DiskError("the disk went away")
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
