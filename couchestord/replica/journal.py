"""Bodies in the journal, read by a process that does not write it."""

import bisect
from array import array
from collections.abc import Awaitable, Callable

from couchestord import logs
from couchestord.errors import Corrupt, DataLost, DiskError
from couchestord.io.disks import Disks
from couchestord.io.journalfile import JournalFile
from couchestord.replica.messages import FindRecord, Places

log = logs.get(__name__)
Ask = Callable[[int, int, int, int], Awaitable[Places]]
"""As the fields of `FindRecord` behind the id. Raises DataLost when no file holds the record."""
assert FindRecord.__struct_fields__ == ("id", "sequence", "epoch", "first", "count")


class ReplicaJournal:
    """Knows of each file the places of the records that were there when it asked last; asks when that is too few.

    A place is written once, and what is read there says which record it is. Belongs to one trio loop.
    """

    def __init__(self, disks: Disks, ask: Ask) -> None:
        self._disks = disks
        self._ask = ask
        self._files: list[JournalFile] = []
        self._firsts: list[int] = []
        self.degraded_reads_count = 0

    def read_nowait(self, sequence: int, start: int, length: int) -> memoryview | None:
        """As `read`, or None when that takes a wait, another replica than the first, or a question."""
        file = self._find(sequence)
        if file is None:
            return None
        offset, size = file.place(sequence)
        disk = self._disks.get(file.replicas[0]) if file.replicas else None
        if disk is None or (data := disk.read_nowait(file.path, offset, size)) is None:
            return None
        try:
            return file.unpack(self._disks.store_id, sequence, data)[1][start : start + length]
        except Corrupt:
            return None

    async def read(self, sequence: int, start: int, length: int) -> memoryview:
        """Bytes of a record's body, verified. Raises DataLost when no replica has them (or the record was trimmed)."""
        file = self._find(sequence)
        found = None if file is None else await self._try(file, sequence)
        if found is None:
            # more records than were known, or replicas elsewhere
            file = await self._learn(sequence, forget=file)
            found = await self._try(file, sequence)
        if found is None:
            raise DataLost(f"no good replica of journal record {sequence} is left on the disks that are here")
        return found[start : start + length]

    async def _try(self, file: JournalFile, sequence: int) -> memoryview | None:
        offset, size = file.place(sequence)
        for turn, index in enumerate(file.replicas):
            disk = self._disks.get(index)
            if disk is None:
                continue
            try:
                data = disk.read_nowait(file.path, offset, size) or await disk.read(file.path, offset, size)
                body = file.unpack(self._disks.store_id, sequence, data)[1]
            except (Corrupt, DiskError) as error:
                log.warning("journal replica cannot be read", disk=disk.name, sequence=sequence, reason=str(error))
                continue
            self.degraded_reads_count += turn > 0
            return body
        return None

    def _at(self, sequence: int) -> int:
        return bisect.bisect_right(self._firsts, sequence) - 1

    def _find(self, sequence: int) -> JournalFile | None:
        at = self._at(sequence)
        return self._files[at] if at >= 0 and sequence < self._files[at].end else None

    async def _learn(self, sequence: int, forget: JournalFile | None) -> JournalFile:
        at = self._at(sequence)
        known = self._files[at] if at >= 0 and forget is None else None
        if known is not None:
            self._keep(await self._ask(sequence, known.epoch, known.first, len(known.offsets)))
        found = None if known is None else self._find(sequence)
        if found is None:
            self._keep(await self._ask(sequence, 0, 0, 0))
            found = self._find(sequence)
        if found is None:
            raise DataLost(f"record {sequence} is not in the journal")
        return found

    def _keep(self, places: Places) -> None:
        offsets = array("Q")
        offsets.frombytes(places.offsets)
        at = bisect.bisect_left(self._firsts, places.first)
        file = self._files[at] if at < len(self._files) and self._firsts[at] == places.first else None
        if file is None or file.epoch != places.epoch or places.start > len(file.offsets) or not places.start:
            made = JournalFile(places.epoch, places.first, list(places.replicas), places.void_from)
            if places.start:
                return  # it goes on from what was forgotten meanwhile
            if file is None:
                self._files.insert(at, made)
                self._firsts.insert(at, places.first)
            else:
                self._files[at] = made
            file = made
        # somebody else may have asked for the same
        del file.offsets[places.start :]
        file.offsets.extend(offsets)
        file.end_offset = places.end_offset
        file.replicas[:] = places.replicas
        while self._files and self._files[0].end <= places.oldest:
            del self._files[0], self._firsts[0]
