"""The journal: the log of every mutation, on several disks at once. The log is the truth; the catalog is its index.

A journal file lies on a set of disks, the same bytes on each. A group of records is appended to all of them and
synced: when `append` returns, the group is durable on enough disks. When a disk of the set fails, the group is
appended again, unchanged, to a new file under a new epoch on a good set; what the old file holds of it is void from
then on. A file is never written twice at the same place, never continued after a start, and freed by unlink.
"""

import bisect
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

import trio

from couchestord import logs
from couchestord.errors import DataLost, DiskFull, InternalError, NoSpace, TooFewDisks
from couchestord.io import records as rec
from couchestord.io.disk import Disk
from couchestord.io.disks import Disks, replicas_needed
from couchestord.io.fanout import call_all, write_all
from couchestord.io.journalfile import (
    Entry,
    JournalFile,
    JournalOptions,
    Record,
    ShortFile,
    cut,
    holds_end,
    read_body_nowait,
    read_record,
    taken,
    unlink_files,
)
from couchestord.io.recovery import FOLDER, Chain
from couchestord.io.spare import Spares

log = logs.get(__name__)


class Journal:
    """Appends, reads and trims. `append` has one caller at a time, the writer; reads may come at any time."""

    def __init__(self, disks: Disks, options: JournalOptions, chain: Chain) -> None:
        """Over the files that recovery kept. Records before the chain are gone."""
        self._disks = disks
        self._options = options
        self._files = [taken(file) for file in chain.files]
        self._firsts = [file.first for file in self._files]
        self._active: JournalFile | None = None
        self._needs_epoch = True
        self._away: frozenset[int] = frozenset()
        """Disks that the copies of the newest file do not count on."""
        self._void = [taken(file) for file in chain.void]
        self.spares = Spares(disks, options.spare_bytes, options.spare_below_bytes)
        self.degraded_reads_count = 0
        self.syncs_count = 0
        self.damaged: set[tuple[str, int]] = set()
        """(path, disk) of replicas that failed a read; the rebuilder copies them anew."""

    # -- what is here ----------------------------------------------------------------------------------------------

    @property
    def first_sequence(self) -> int | None:
        """Sequence of the oldest record, None when there is none."""
        return self._files[0].first if self._files else None

    @property
    def size_bytes(self) -> int:
        """Bytes of one replica."""
        return sum(file.end_offset for file in self._files)

    @property
    def size_bytes_max(self) -> int:
        return self._options.size_bytes

    def fill_percent(self) -> float:
        return 100 * self.size_bytes / self.size_bytes_max

    @property
    def replicas_wanted(self) -> int:
        """Replicas of a new file when all disks are good: each on a disk of its own, so never more than disks."""
        return min(self._disks.count, max(self._options.replication_factor, self._disks.m + 1))

    def bytes_after(self, sequence: int) -> int:
        """Bytes of the records after a sequence, counted by files: what replaying from there would read."""
        return sum(file.end_offset for file in self._files if file.end > sequence + 1)

    def files(self) -> Sequence[JournalFile]:
        """The files that count, in order of sequence."""
        return self._files

    def holders(self) -> list[list[int]]:
        """For each file the good disks that hold it whole, as far as is known."""
        return [[index for index in file.replicas if self._is_whole(file, index)] for file in self._files]

    def is_closed(self, file: JournalFile) -> bool:
        """True when the file grows no more."""
        return file is not self._active

    def is_unbroken(self, first: int, last: int) -> bool:
        """True when every record from `first` to `last` is in the journal; there may be none between them."""
        for file in self._files:
            if file.first <= first < file.end:
                first = file.end
        return first > last

    def replicas(self, sequence: int) -> tuple[str, list[int]]:
        """(path, disks) of the file that holds a record."""
        file = self._find(sequence)
        return file.path, list(file.replicas)

    # -- append ----------------------------------------------------------------------------------------------------

    def epoch_taken(self) -> None:
        """The caller took an epoch for this journal: the next append opens a file under it."""
        self._active = None
        self._needs_epoch = False

    async def append(self, first: int, entries: Sequence[Entry]) -> None:
        """The commit point: on return the records `first`, `first` + 1, ... are durable on enough disks.

        Raises NoSpace or TooFewDisks; then none of them may be answered, and their sequences are used again only under
        a new epoch (which the next append takes). How much may lie in the journal is the caller's to say.
        """
        if self._active is not None and first != self._active.end:
            raise InternalError(f"record {first} does not follow {self._active.end - 1}")
        await self._append(first, entries, first)

    async def renew(self, first: int, entries: Sequence[Entry]) -> None:
        """Repeat the records from `first` to the end of the log under the epoch that was taken, on enough disks.

        Until the repeat is whole, the records it repeats count. Raises as `append` does.
        """
        await self._append(first, entries, first + len(entries))

    async def _append(self, first: int, entries: Sequence[Entry], void_from: int) -> None:
        while True:
            self._disks.check_writable()
            file = await self._writable(first, void_from)
            packed, offsets = self._pack(file, first, entries)
            written = False
            try:
                written = await self._write_group(file, packed)
            finally:
                if not written:
                    # whatever of the group lies in this file is void under the next epoch
                    self._active = None
                    self._needs_epoch = True
            if written:
                file.offsets.extend(offsets)
                file.groups.extend([first] * len(offsets))
                file.end_offset += len(packed)
                with suppress(TooFewDisks):  # the group is durable; the disks name too many, not too few
                    await self._disks.set_away(self._away)
                return

    async def _writable(self, first: int, void_from: int) -> JournalFile:
        file = self._active
        # a disk that came back, perhaps in an epoch that it began, may lack the file, and counts in the next
        is_over = file is not None and (file.epoch != self._disks.epoch or file.end_offset >= self._options.file_bytes)
        if file is not None and not is_over and set(self._disks.slot.away) <= self._disks.failures.keys():
            return file
        self._active = None
        while True:
            # a file of the same epoch may follow a full one; after a failure only one of a newer epoch, and when it
            # has less copies for a disk that the others do not know to be away
            while self._needs_epoch or not self._short_for(self._choose(first)) <= set(self._disks.slot.away):
                await self._disks.take_epoch()
                self._needs_epoch = False
            made = await self._make_file(self._disks.epoch, first, void_from)
            if made is not None and made.epoch == self._disks.epoch:
                self._needs_epoch = False
                break
        while self._files and self._files[-1].first >= first:
            self._void.append(self._files.pop())
            self._firsts.pop()
        if self._files:
            cut(self._files[-1], first)
        self._files.append(made)
        self._firsts.append(made.first)
        self._active = made
        return made

    async def _make_file(self, epoch: int, first: int, void_from: int) -> JournalFile | None:
        """A new file on a good set, its name durable; None when a disk of the set failed."""
        chosen = self._choose(first)
        self._away = self._short_for(chosen)
        # cut off or failed, it leaves something of that name: nothing else may get it
        self._needs_epoch = True
        file = JournalFile(epoch, first, chosen, void_from)
        header = rec.pack_file_header(rec.FileHeader(self._disks.store_id, epoch, first, tuple(chosen), void_from))
        zeroes = self._options.zeroes_at(0)

        for index in chosen:
            self._disks.spend(index, rec.FILE_HEADER_BYTES + zeroes)

        async def make(index: int, disk: Disk) -> None:
            try:
                await disk.write_at(file.path, 0, [header])
                if zeroes:
                    await disk.preallocate(file.path, rec.FILE_HEADER_BYTES, zeroes)
                else:
                    await disk.sync(file.path)
            except DiskFull as error:
                size = await self.spares.take(index, disk, file.path, header)
                if not size:
                    raise
                self._disks.fail(index, error)
                file.zeroed_to = max(file.zeroed_to, size)
            await disk.sync_dir(FOLDER)

        if not await call_all(self._disks, chosen, make):
            return None
        file.zeroed_to = max(file.zeroed_to, rec.FILE_HEADER_BYTES + zeroes)
        return file

    def _choose(self, seed: int) -> list[int]:
        """The disks of a new file: as many as the promise asks for, another choice for every file."""
        needed = replicas_needed(self._disks.m, self._disks.missing_count())
        roomy = self._disks.roomy()
        if len(roomy) < needed:
            # no room to speak of is perhaps none at all
            roomy = kept = [index for index in self._disks.good() if self.spares.has(index)]
            if len(roomy) < needed:
                roomy = sorted({*kept, *self._disks.spare()})
        if len(roomy) < needed:
            raise NoSpace("the disks are full: delete something, or add room")
        wanted = min(len(roomy), self.replicas_wanted)
        turn = (seed // 64 + self._disks.epoch) % len(roomy)
        return sorted((roomy[turn:] + roomy[:turn])[:wanted])

    def _short_for(self, chosen: Sequence[int]) -> frozenset[int]:
        """Disks for which there are less copies on those chosen than outlive the loss of m disks."""
        return frozenset() if len(chosen) > self._disks.m else frozenset(self._disks.failures)

    def _pack(self, file: JournalFile, first: int, entries: Sequence[Entry]) -> tuple[bytes, list[int]]:
        parts: list[bytes | memoryview] = []
        offsets = []
        offset = file.end_offset
        store_id = self._disks.store_id
        for sequence, entry in enumerate(entries, start=first):
            head = rec.pack_record(store_id, file.epoch, sequence, first, entry.meta, len(entry.body), entry.body_sum)
            offsets.append(offset)
            offset += len(head) + len(entry.body)
            parts.append(head)
            parts.append(entry.body)
        return b"".join(parts), offsets

    async def _write_group(self, file: JournalFile, packed: bytes) -> bool:
        offset = file.end_offset
        end = offset + len(packed)
        step = self._options.zeroes_at(end)
        zeroes_at = max(end, file.zeroed_to)
        # a group that went past the zeroes begins new ones behind itself
        ahead = step > 0 and zeroes_at - end < step // 2 and zeroes_at < self._options.file_bytes

        for index in file.replicas:
            self._disks.spend(index, zeroes_at - file.zeroed_to + step * ahead)

        async def write(_: int, disk: Disk) -> None:
            await disk.write_at(file.path, offset, [packed], sync=True)

        async def zero_ahead(index: int, disk: Disk) -> None:
            try:
                await disk.preallocate(file.path, zeroes_at, step)
            except DiskFull as error:
                self._disks.fail(index, error)  # the group itself had its place

        async def write_and_zero(index: int, disk: Disk) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, index, disk)
                nursery.start_soon(zero_ahead, index, disk)

        self.syncs_count += len(file.replicas)
        if ahead:
            written = await call_all(self._disks, file.replicas, write_and_zero)
        else:
            written = await write_all(self._disks, file.replicas, file.path, offset, [packed])
        if written:
            file.zeroed_to = zeroes_at + (step if ahead else 0)
        return written

    # -- read ------------------------------------------------------------------------------------------------------

    def _find(self, sequence: int) -> JournalFile:
        at = bisect.bisect_right(self._firsts, sequence) - 1
        if at < 0 or sequence >= self._files[at].end:
            raise DataLost(f"record {sequence} is not in the journal")
        return self._files[at]

    def holds(self, sequence: int) -> bool:
        """True when the record is in the journal."""
        at = bisect.bisect_right(self._firsts, sequence) - 1
        return at >= 0 and sequence < self._files[at].end

    def read_nowait(self, sequence: int, start: int, length: int) -> memoryview | None:
        """As `read`, or None when that takes a wait or another replica than the first. Raises DataLost."""
        body = read_body_nowait(self._disks, self._find(sequence), sequence)
        return None if body is None else body[start : start + length]

    async def read(self, sequence: int, start: int, length: int) -> memoryview:
        """Bytes of a record's body, verified. Raises DataLost when no replica has them (or the record was trimmed)."""
        return (await self.record(sequence))[1][start : start + length]

    async def record(self, sequence: int) -> Record:
        """A record, verified. Raises DataLost."""
        found = await read_record(self._disks, self._find(sequence), sequence, self._note_damage)
        if found is None:
            raise DataLost(f"no good replica of journal record {sequence} is left on the disks that are here")
        record, turns = found
        self.degraded_reads_count += turns > 0
        return record

    def _note_damage(self, file: JournalFile, index: int) -> None:
        self.damaged.add((file.path, index))

    def report(self, path: str, index: int) -> None:
        """Somebody else found a replica damaged."""
        if any(file.path == path and index in file.replicas for file in self._files):
            self.damaged.add((path, index))

    async def raw(self, sequence: int) -> bytes:
        """A whole record as it lies in its file, verified. Raises DataLost."""
        file = self._find(sequence)
        meta, body, body_sum = await self.record(sequence)
        number = sequence - file.first
        group = file.groups[number]
        head = rec.pack_record(self._disks.store_id, file.epoch, sequence, group, bytes(meta), len(body), body_sum)
        return head + bytes(body)

    async def records(self, first: int) -> AsyncGenerator[tuple[int, memoryview, memoryview, int], None]:
        """(sequence, meta, body, body sum) of the records from `first` to the last one that was there at the call."""
        end = self._files[-1].end if self._files else first
        for sequence in range(first, end):
            yield sequence, *(await self.record(sequence))

    # -- redundancy ------------------------------------------------------------------------------------------------

    def short_file(self) -> ShortFile | None:
        """The oldest file, but for the one that is written, that lies whole on too few good disks, though on one."""
        needed = replicas_needed(self._disks.m, self._disks.missing_count())
        for file in self._files:
            if file is self._active or not file.offsets:
                continue
            whole = [index for index in file.replicas if self._is_whole(file, index)]
            if len(whole) >= needed:
                continue
            roomy = [index for index in self._disks.roomy() if index not in whole]
            if whole and roomy:
                # a disk that holds a damaged copy first: the good one takes its place
                target = min(roomy, key=lambda index: (index not in file.replicas, index))
                header = rec.FileHeader(self._disks.store_id, file.epoch, file.first, (*whole, target), file.void_from)
                return ShortFile(file.path, header, file.end, target)
        return None

    def _is_whole(self, file: JournalFile, index: int) -> bool:
        return self._disks.get(index) is not None and (file.path, index) not in self.damaged

    async def check_returned(self, index: int) -> None:
        """A disk that was away is here: the files that it should hold whole and does not are to be copied to it, those
        that it holds and a start without it did not see are read from it too.

        By their ends; what lies in them is verified when it is read. Raises DiskError.
        """
        disk = self._disks.get(index)
        if disk is None:
            return
        for file in list(self._files):
            is_whole = await holds_end(self._disks.store_id, disk, file)
            if is_whole and index not in file.replicas:
                file.replicas.append(index)
            elif not is_whole and index in file.replicas:
                self.damaged.add((file.path, index))

    def replica_made(self, short: ShortFile) -> None:
        """A whole, synced copy of the file lies on the target now."""
        self.damaged.discard((short.path, short.target))
        for file in self._files:
            if file.path == short.path and short.target not in file.replicas:
                file.replicas.append(short.target)

    # -- space -----------------------------------------------------------------------------------------------------

    def roll(self) -> None:
        """Let the next append begin a new file, so that the present one can go when it is trimmed."""
        if self._active is not None and self._active.offsets:
            self._active = None

    async def trim(self, before: int) -> int:
        """Unlink the files all of whose records come before that sequence; returns how many went."""
        gone: list[JournalFile] = []
        # the last record stays: it says where the log ends
        while len(self._files) > 1 and self._files[0].end <= before:
            gone.append(self._files.pop(0))
            self._firsts.pop(0)
        void, self._void = self._void, []
        # one that is void must not come back after the one that made it void is gone
        await unlink_files(self._disks, void)
        await unlink_files(self._disks, gone)
        return len(gone)
