"""Which records of the journal count: the longest valid run over the union of all replicas.

Pure, but for `scan`, which reads. The rules:

- A replica is believed record by record; where it fails, any other replica of the same file goes on.
- Records of an older epoch at or past `void_from` of a newer epoch's file are void: that group failed, or its disk
  was away, and the newer file holds what happened instead. A file that begins with a repeat of older records (the
  tail that a start renews) has `void_from` behind them; cut off before the repeat was whole, it counts for nothing.
- A run that ends before a record which proves (by its group) that more had been durable is damage, not a torn tail.
- A header is synced before the first record is written. So a file without a whole header is one that was being made
  when nothing lies behind the header, and has rotted when something does.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import trio

from couchestord.errors import Corrupt, DiskError, ForeignDisk
from couchestord.io import records as rec
from couchestord.io.disk import Disk
from couchestord.io.disks import TORN, Disks
from couchestord.io.journalindex import block_bytes, blocks, index_name, parse_index_name

FOLDER = rec.FOLDER
_READ_BYTES = 1 << 20


@dataclass(slots=True)
class FoundFile:
    """A journal file as its replicas hold it: records `first` to before `end`, record i at `offsets[i - first]`."""

    epoch: int
    first: int
    replicas: list[int]
    void_from: int
    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    end_offset: int = rec.FILE_HEADER_BYTES
    groups: "array[int]" = field(default_factory=lambda: array("Q"))
    proven: int = 0
    """Everything before this sequence was durable once, as a record behind the run proves."""
    indexed: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(records, bytes) of the index that was believed, by its disk."""
    is_headless: bool = False
    """Its header has rotted on every replica here, and something lies behind it."""
    has_rest: bool = False
    """Behind the run lie bytes that are no whole record: a group that was cut off, or rot."""

    @property
    def end(self) -> int:
        return self.first + len(self.offsets)

    @property
    def counts(self) -> bool:
        """False for a repeat of older records that was cut off, as far as anything here shows, and for a file whose
        header is nowhere whole: it was being made.
        """
        return bool(self.replicas) and max(self.end, self.proven) >= self.void_from

    @property
    def path(self) -> str:
        return f"{FOLDER}/{rec.file_name(self.epoch, self.first)}"

    def cut(self, end: int) -> None:
        """Forget the records from `end` on."""
        keep = max(0, end - self.first)
        if keep < len(self.offsets):
            self.end_offset = self.offsets[keep]
            del self.offsets[keep:]
            del self.groups[keep:]


@dataclass(frozen=True, slots=True)
class Chain:
    """The files that count, in order of sequence, and what is wrong with them."""

    files: tuple[FoundFile, ...]
    damage: tuple[tuple[int, int], ...]
    """Runs of sequences [from, before) that were durable once and are on no replica here."""
    void: tuple[FoundFile, ...]
    """Files without a record that counts."""
    ends_in_rest: bool = False
    """Behind the last record lie bytes that are no whole record."""

    @property
    def end(self) -> int:
        """The sequence after the last."""
        return self.files[-1].end if self.files else 0

    @property
    def reach(self) -> int:
        """The sequence after the last that was durable once, as far as anything here proves."""
        return max(self.end, max((high for _, high in self.damage), default=0))


async def scan(disks: Disks, *, indexed: bool = True) -> list[FoundFile]:
    """Read every journal file on every good disk and verify its records. Disks that fail are given up.

    With `indexed`, records that an index names are believed to be there: whoever reads one verifies it.
    """
    holders: dict[tuple[int, int], dict[int, int]] = {}
    indexes: dict[tuple[int, int], dict[int, int]] = {}
    for index in disks.good():
        disk = disks.get(index)
        assert disk is not None
        try:
            names = await disk.list(FOLDER)
        except DiskError as error:
            disks.fail(index, error)
            continue
        for name, size in names.items():
            parsed = rec.parse_file_name(name)
            if parsed:
                holders.setdefault(parsed, {})[index] = size
            elif indexed and (of := parse_index_name(name)):
                indexes.setdefault(of, {})[index] = size
    found: list[FoundFile] = []
    # the last first: where one that counts begins, those before it may end
    for epoch, first in sorted(holders, key=lambda key: (key[1], key[0]), reverse=True):
        begun = frozenset(
            after.first for after in found if after.epoch >= epoch and after.counts and not after.is_headless
        )
        beside = indexes.get((epoch, first), {})
        found.append(await _scan_file(disks, epoch, first, holders[epoch, first], beside, begun))
    return found[::-1]


async def read_on(disk: Disk, path: str, start: int, end: int) -> bytes:
    """All of a file from `start` to `end`, in calls short enough for a slow disk to answer each of them in time."""
    return b"".join([await disk.read(path, at, min(_READ_BYTES, end - at)) for at in range(start, end, _READ_BYTES)])


async def _scan_file(
    disks: Disks,
    epoch: int,
    first: int,
    replicas: dict[int, int],
    indexes: dict[int, int],
    begun: frozenset[int],
) -> FoundFile:
    """Follow the file on one replica; where it ends too early or fails, look at the others from there on.

    A copy of a file that was followed to where another goes on is only looked at in its header: it is verified when it
    is read. `begun` has the first sequences of those that do: neither a repeat that was cut off nor one that this file
    made void.
    """
    file = FoundFile(epoch, first, [], first)
    seen: list[_Part] = []
    rotten: list[int] = []
    for index, size in sorted(replicas.items(), key=lambda item: item[0] not in indexes):
        disk = disks.get(index)
        if disk is None:
            continue
        try:
            header = rec.unpack_file_header(await disk.read(file.path, 0, rec.FILE_HEADER_BYTES))
            if (header.store_id, header.epoch, header.first_sequence) != (disks.store_id, epoch, first):
                continue
            if not file.offsets and index in indexes:
                await _take_index(disks.store_id, disk, file, size, index, indexes[index])
            at = file.end_offset
            # an index may end where another file begins, and records follow that nobody has looked at
            is_whole = len(seen) > 0 and len(file.offsets) > 0 and file.end in begun
            part = _Part(at, b"" if is_whole else await read_on(disk, file.path, at, size))
        except Corrupt:
            rotten.append(index)
            continue
        except DiskError as error:
            disks.fail(index, error)
            continue
        file.replicas.append(index)
        file.void_from = header.void_from
        seen.append(part)
        _follow(disks.store_id, file, part)
        await trio.lowlevel.checkpoint()
    if not seen:
        seen = await _read_headless(disks, file, {index: replicas[index] for index in rotten})
    # a later replica may reach further, and then an earlier one may go on behind its own damage
    progress = True
    while progress and len(seen) > 1:
        before = len(file.offsets)
        for part in seen:
            _follow(disks.store_id, file, part)
        progress = len(file.offsets) > before
    if file.end not in begun:
        file.proven = max((_proven_behind(disks.store_id, file, part) for part in seen), default=0)
        file.has_rest = any(_holds_anything(part.data, file.end_offset - part.base) for part in seen)
    return file


async def _take_index(store_id: bytes, disk: Disk, file: FoundFile, size: int, index: int, length: int) -> None:
    """Take over what the index on a disk names, as far as the replica there can hold it. Raises DiskError."""
    read_bytes = 0
    data = await read_on(disk, f"{FOLDER}/{index_name(file.epoch, file.first)}", 0, length)
    for block in blocks(store_id, file.epoch, file.first, data):
        if block.end > size:
            break
        file.offsets.extend(block.offsets)
        file.groups.extend(block.groups)
        file.end_offset = block.end
        read_bytes += block_bytes(len(block.offsets))
        file.indexed[index] = (len(file.offsets), read_bytes)


async def _read_headless(disks: Disks, file: FoundFile, sizes: dict[int, int]) -> list["_Part"]:
    """What lies behind headers none of which is whole. Records say themselves what they are."""
    parts: list[_Part] = []
    for index, size in sizes.items():
        disk = disks.get(index)
        if disk is None:
            continue
        try:
            data = await read_on(disk, file.path, rec.FILE_HEADER_BYTES, size)
        except DiskError as error:
            disks.fail(index, error)
            continue
        if _holds_anything(data, 0):
            file.replicas.append(index)
            parts.append(_Part(rec.FILE_HEADER_BYTES, data))
            _follow(disks.store_id, file, parts[-1])
    file.is_headless = bool(parts)
    return parts


def _holds_anything(data: bytes, start: int) -> bool:
    """Whether anything but zeroes, which are written ahead of the records, lies there."""
    start = max(0, start)
    return data.count(0, start) < len(data) - start


class _Part(NamedTuple):
    """Bytes of a replica from an offset in its file on."""

    base: int
    data: bytes


def _follow(store_id: bytes, file: FoundFile, part: _Part) -> None:
    """Append the valid records that follow the run in this replica's bytes."""
    offset = file.end_offset - part.base
    data = memoryview(part.data)
    if offset > len(data):
        return
    while True:
        try:
            head = rec.unpack_record(store_id, data, offset)
        except Corrupt:
            break
        if head.epoch != file.epoch or head.sequence != file.end:
            break
        file.offsets.append(offset + part.base)
        file.groups.append(head.group)
        offset += head.length
    file.end_offset = offset + part.base


def _proven_behind(store_id: bytes, file: FoundFile, part: _Part) -> int:
    """The highest group of a valid record of this file behind the end of its run, 0 when there is none."""
    proven = 0
    data = part.data
    at = data.find(rec.RECORD_MAGIC, max(0, file.end_offset + 1 - part.base))
    while at >= 0:
        try:
            head = rec.unpack_record(store_id, data, at, epoch=file.epoch)
        except Corrupt:
            at = data.find(rec.RECORD_MAGIC, at + 1)
            continue
        if head.sequence > file.end:
            proven = max(proven, head.group)
        at = data.find(rec.RECORD_MAGIC, at + head.length)
    return proven


def check_torn(disks: Disks, found: Sequence[FoundFile]) -> None:
    """Raises ForeignDisk when two parts of the store were written apart: two truths that nobody may mix."""
    for file in found:
        for index in file.replicas:
            if file.epoch > disks.epoch_known(index):
                raise ForeignDisk(TORN.format(disks.name(index), file.epoch))


def chain(found: Sequence[FoundFile]) -> Chain:
    """Void what newer epochs replaced, put the rest in order, find the gaps. Changes the files in place."""
    damage: list[tuple[int, int]] = []
    kept: list[FoundFile] = []
    for file in found:
        if file.is_headless:
            # how much it was to repeat is not known: it counts when it reaches as far as what it would make void
            file.void_from = _end_before(found, file)
    void = [file for file in found if not file.counts]
    counted = [file for file in found if file.counts]
    for file in found:
        # a newer file that counts holds all from its first record on, or says that it never was
        limit = min((other.first for other in counted if other.epoch > file.epoch), default=None)
        if file.is_headless and not file.offsets:
            # it held something, and nothing tells what
            end = _end_before(found, file)
            _note(damage, end, max(file.proven, end + 1), limit)
        if file in void:
            continue
        if limit is not None:
            file.cut(limit)
        _note(damage, file.end, file.proven, limit)
        (kept if file.offsets else void).append(file)
    kept.sort(key=lambda file: file.first)
    for before, after in pairwise(kept):
        # a valid record proves that all before its group was durable; a file begins with a group
        _note(damage, before.end, after.first, None)
    end = kept[-1].end if kept else 0
    ends_in_rest = any(file.has_rest and file.end >= end for file in found)
    return Chain(tuple(kept), _united(damage), tuple(void), ends_in_rest)


def _end_before(found: Sequence[FoundFile], file: FoundFile) -> int:
    """Where the records of older epochs that a file's first one belongs to end; its first when there are none."""
    return max(
        (other.end for other in found if other.epoch < file.epoch and other.first <= file.first < other.end),
        default=file.first,
    )


def _note(damage: list[tuple[int, int]], low: int, high: int, limit: int | None) -> None:
    """Add a run of sequences that are gone, but for those that a newer file holds or made void."""
    high = high if limit is None else min(limit, high)
    if low < high:
        damage.append((low, high))


def _united(runs: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The same sequences in runs that do not touch, in order."""
    united: list[tuple[int, int]] = []
    for low, high in sorted(runs):
        if united and low <= united[-1][1]:
            united[-1] = (united[-1][0], max(high, united[-1][1]))
        else:
            united.append((low, high))
    return tuple(united)
