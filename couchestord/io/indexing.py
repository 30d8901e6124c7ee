"""Keeps the indexes of journal files up with their records, so that a start has little left to read."""

from couchestord import logs
from couchestord.errors import DiskError, NoSuchFile
from couchestord.io.disks import Disks
from couchestord.io.journal import Journal
from couchestord.io.journalfile import JournalFile
from couchestord.io.journalindex import Block, block_bytes, pack_block, parse_index_name
from couchestord.io.records import file_name
from couchestord.io.recovery import FOLDER
from couchestord.service import Progress

log = logs.get(__name__)


class Indexer:
    """A service; each step indexes the records of one file on one disk that no index there names yet.

    Only records that are durable are known to the journal, so an index never promises more than lies there.
    """

    name = "index"
    interval_s = 0.5

    def __init__(
        self, disks: Disks, journal: Journal, *, records_min: int = 4096, bytes_min: int = 4 << 20, closed_min: int = 64
    ) -> None:
        """A block is written for so many records or bytes, and for fewer records of a file that grows no more."""
        self._disks = disks
        self._journal = journal
        self._records_min = records_min
        self._bytes_min = bytes_min
        self._closed_min = closed_min
        self._swept = False

    async def work(self) -> Progress:
        if not self._swept:
            await self._sweep()
            self._swept = True
        for file in self._journal.files():
            for index in file.replicas:
                if self._disks.get(index) is not None and self._lags(file, index):
                    await self._write(file, index)
                    return Progress.BUSY
        return Progress.IDLE

    def _lags(self, file: JournalFile, index: int) -> bool:
        done, _ = file.indexed.get(index, (0, 0))
        behind = len(file.offsets) - done
        if not behind:
            return False
        least = self._closed_min if self._journal.is_closed(file) else self._records_min
        return behind >= least or file.end_offset - file.offsets[done] >= self._bytes_min

    async def _write(self, file: JournalFile, index: int) -> None:
        disk = self._disks.get(index)
        assert disk is not None
        done, at = file.indexed.get(index, (0, 0))
        # what comes while this is written is left to the next block
        block = Block(file.first + done, file.offsets[done:], file.groups[done:], file.end_offset)
        data = pack_block(self._disks.store_id, file.epoch, file.first, block)
        file.indexed[index] = (done + len(block.offsets), at + block_bytes(len(block.offsets)))
        try:
            await disk.write_at(file.index_path, at, [data])
            if file not in self._journal.files():
                # it was trimmed meanwhile
                await disk.unlink(file.index_path)
        except NoSuchFile:
            pass
        except DiskError as error:
            self._disks.fail(index, error, disk)

    async def _sweep(self) -> None:
        """Remove indexes without a file: a cut between two removals may leave one."""
        for index in self._disks.good():
            disk = self._disks.get(index)
            if disk is None:
                continue
            try:
                names = await disk.list(FOLDER)
                for name in names:
                    of = parse_index_name(name)
                    if of is not None and file_name(*of) not in names:
                        await disk.unlink(f"{FOLDER}/{name}")
            except DiskError as error:
                log.warning("indexes of the journal were not swept", disk=disk.name, reason=str(error))
