"""Bodies in the journal, read by a process that does not write it."""

import bisect
from array import array
from collections.abc import Awaitable, Callable

from couchestord.errors import DataLost
from couchestord.io.disks import Disks
from couchestord.io.journalfile import JournalFile, read_body_nowait, read_record
from couchestord.replica.messages import FindRecord, Places

Ask = Callable[[int, int, int, int], Awaitable[Places]]
"""As the fields of `FindRecord` behind the id. Raises DataLost when no file holds the record."""
assert FindRecord.__struct_fields__ == ("id", "sequence", "epoch", "first", "count")


class ReplicaJournal:
    """Knows of each file the places of the records that were there when it asked last; asks when that is too few.

    A place is written once, and what is read there says which record it is. Belongs to one trio loop.
    """

    def __init__(self, disks: Disks, ask: Ask, on_damage: Callable[[str, int], None]) -> None:
        """`on_damage` is told of a replica that could not be read: its path, and its disk."""
        self._disks = disks
        self._ask = ask
        self._on_damage = on_damage
        self._files: list[JournalFile] = []
        self._firsts: list[int] = []
        self.degraded_reads_count = 0

    def read_nowait(self, sequence: int, start: int, length: int) -> memoryview | None:
        """As `read`, or None when that takes a wait, another replica than the first, or a question."""
        file = self._find(sequence)
        body = None if file is None else read_body_nowait(self._disks, file, sequence)
        return None if body is None else body[start : start + length]

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
        found = await read_record(self._disks, file, sequence, lambda file, index: self._on_damage(file.path, index))
        if found is None:
            return None
        (_, body, _), turns = found
        self.degraded_reads_count += turns > 0
        return body

    def _at(self, sequence: int) -> int:
        return bisect.bisect_right(self._firsts, sequence) - 1

    def _find(self, sequence: int) -> JournalFile | None:
        at = self._at(sequence)
        return self._files[at] if at >= 0 and sequence < self._files[at].end else None

    async def _learn(self, sequence: int, forget: JournalFile | None) -> JournalFile:
        known, before = (0, 0, 0) if forget else self._known(sequence), None
        # one answer tells of so many records, not of all that a file may have
        while known != before:
            self._keep(await self._ask(sequence, *known))
            found = self._find(sequence)
            if found is not None:
                return found
            known, before = self._known(sequence), known
        raise DataLost(f"record {sequence} is not in the journal")

    def _known(self, sequence: int) -> tuple[int, int, int]:
        """Of the file that should hold the record: epoch, first record, and how many are known."""
        at = self._at(sequence)
        file = self._files[at] if at >= 0 else None
        return (0, 0, 0) if file is None else (file.epoch, file.first, len(file.offsets))

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
