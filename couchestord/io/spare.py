"""A file on each disk that the journal can make its next one when the disk has no room for another.

Deletes need records, records need room, and another program can take the last byte of a disk, the reserve that is only
counted too. What lies in a file already cannot be taken: it is renamed, so that its blocks are never free in between.
"""

from couchestord import logs
from couchestord.errors import DiskError, DiskFull, NoSuchFile
from couchestord.io.disk import Buffer, Disk
from couchestord.io.disks import Disks
from couchestord.io.records import FOLDER
from couchestord.service import Progress

log = logs.get(__name__)
NAME = "spare"
PATH = f"{FOLDER}/{NAME}"


class Spares:
    """Which good disks have a spare file. A service: each step makes the file on disks that lack one, have room for it,
    and not much more: with plenty, nobody takes all of it between two steps.
    """

    name = "spare"
    interval_s = 5.0

    def __init__(self, disks: Disks, size_bytes: int, below_bytes: int) -> None:
        """Zeroes in each file, 0 for none; the free room below which a disk gets one."""
        self._size_bytes = size_bytes
        self._below_bytes = below_bytes
        self._disks = disks
        self._there: dict[int, tuple[bytes, int]] = {}
        """By place: the disk that had one when it was looked at, and its size. Another one may have come since."""

    def has(self, index: int) -> bool:
        """Whether the disk has one, as far as is known."""
        return self._size_of(index) > 0

    def _size_of(self, index: int) -> int:
        disk_id, size = self._there.get(index, (b"", 0))
        return size if disk_id == self._disks.ids.get(index) else 0

    async def look(self) -> None:
        """Find out which disks have one."""
        for index in self._disks.good():
            await self._look(index)

    async def _look(self, index: int) -> None:
        disk = self._disks.get(index)
        if disk is None or self.has(index):
            return
        disk_id = self._disks.ids[index]
        try:
            size = (await disk.list(FOLDER)).get(NAME)
            if size is None:
                return
            if size >= self._size_bytes:
                self._there[index] = disk_id, size
            else:
                await disk.unlink(PATH)  # its making was cut short, or more is kept now
        except DiskError as error:
            self._disks.fail(index, error, disk)

    async def take(self, index: int, disk: Disk, path: str, page: Buffer) -> int:
        """Turn the disk's file into the one at `path`, with `page` at its beginning, synced but for the name. Its size,
        0 when there is none. Raises DiskError.
        """
        size = self._size_of(index)
        self._there.pop(index, None)
        if not size:
            return 0
        try:
            if (await disk.list(FOLDER)).get(NAME, 0) < size:
                return 0  # somebody took it away, or cut it: the next step makes it anew
            # before it has the name, so that no file of that name lacks it
            await disk.write_at(PATH, 0, [page], sync=True)
            await disk.rename(PATH, path)
        except NoSuchFile:
            return 0
        log.warning("the journal goes on in what was kept for deletes", disk=disk.name)
        return size

    async def work(self) -> Progress:
        for index in self._disks.good():
            await self._look(index)
            if self._size_bytes and not self.has(index):
                await self._make(index)
        return Progress.IDLE

    async def _make(self, index: int) -> None:
        """On a disk whose reserve is touched too: this is a part of it."""
        disk = self._disks.get(index)
        if disk is None:
            return
        disk_id = self._disks.ids[index]
        try:
            if not 2 * self._size_bytes <= (await disk.capacity()).free_bytes < self._below_bytes:
                return
            await disk.preallocate(PATH, 0, self._size_bytes)
            await disk.sync_dir(FOLDER)
        except DiskFull:
            return  # what was made is found too short by the next step
        except DiskError as error:
            self._disks.fail(index, error, disk)
            return
        self._there[index] = disk_id, self._size_bytes
