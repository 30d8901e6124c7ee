"""What the journal knows of its files."""

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from couchestord import logs
from couchestord.errors import Corrupt, DiskError
from couchestord.io import records as rec
from couchestord.io.disk import Disk
from couchestord.io.disks import Disks
from couchestord.io.journalindex import index_name
from couchestord.io.recovery import FOLDER, FoundFile

log = logs.get(__name__)
Record = tuple[memoryview, memoryview, int]
"""Meta, body, sum of the body."""


@dataclass(frozen=True, slots=True)
class JournalOptions:
    """Sizes in bytes."""

    size_bytes: int = 10 << 30
    """Over it, writers are refused (JournalFull) until destage has made room. Counts one replica."""
    file_bytes: int = 64 << 20
    preallocate_bytes: int = 4 << 20
    replication_factor: int = 3
    """Replicas of a file; at least m+1."""
    spare_bytes: int = 8 << 20
    """Kept on each disk for a next file when there is no other room; at least a group and the seals of a start."""
    spare_below_bytes: int = 4 << 30
    """With more room than that a disk keeps none yet."""

    def zeroes_at(self, end: int) -> int:
        """How much to write ahead of a file that ends there: as much as it holds, so that a short one stays small."""
        return min(self.preallocate_bytes, max(self.preallocate_bytes >> 4, 1 << end.bit_length() >> 1))


class Entry(NamedTuple):
    """A record to be appended: a mutation's outcome and the body that goes with it."""

    meta: bytes
    body: bytes | memoryview
    body_sum: int


@dataclass(slots=True)
class JournalFile:
    epoch: int
    first: int
    replicas: list[int]
    void_from: int
    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    groups: "array[int]" = field(default_factory=lambda: array("Q"))
    end_offset: int = rec.FILE_HEADER_BYTES
    zeroed_to: int = rec.FILE_HEADER_BYTES
    indexed: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(records, bytes) of its index, by disk."""
    path: str = field(init=False)

    def __post_init__(self) -> None:
        self.path = f"{FOLDER}/{rec.file_name(self.epoch, self.first)}"

    @property
    def end(self) -> int:
        return self.first + len(self.offsets)

    def place(self, sequence: int) -> tuple[int, int]:
        """(offset, length) of a record that it holds."""
        number = sequence - self.first
        offset = self.offsets[number]
        return offset, (self.offsets[number + 1] if number + 1 < len(self.offsets) else self.end_offset) - offset

    def unpack(self, store_id: bytes, sequence: int, data: bytes | bytearray) -> Record:
        """The record that `data`, the bytes of its place, must be. Raises Corrupt."""
        head = rec.unpack_record(store_id, data)
        if head.sequence != sequence or head.epoch != self.epoch or head.length != len(data):
            raise Corrupt(f"record {head.sequence} stands in the place of {sequence}")
        meta_end = rec.HEAD_BYTES + head.meta_length
        view = memoryview(data)
        return view[rec.HEAD_BYTES : meta_end], view[meta_end:], head.body_sum

    @property
    def index_path(self) -> str:
        return f"{FOLDER}/{index_name(self.epoch, self.first)}"


def read_body_nowait(disks: Disks, file: JournalFile, sequence: int) -> memoryview | None:
    """The body of a record that the file holds, verified, or None when that takes a wait or another replica than the
    first.
    """
    offset, size = file.place(sequence)
    disk = disks.get(file.replicas[0]) if file.replicas else None
    if disk is None or (data := disk.read_nowait(file.path, offset, size)) is None:
        return None
    try:
        return file.unpack(disks.store_id, sequence, data)[1]
    except Corrupt:
        return None  # asked again by `read_record`, where it is told


async def read_record(
    disks: Disks, file: JournalFile, sequence: int, on_damage: Callable[[JournalFile, int], None]
) -> tuple[Record, int] | None:
    """A record that the file holds, verified, and how many replicas were of no use before; None: no replica has it.
    `on_damage` is told of each that could not be read, and its disk.
    """
    offset, size = file.place(sequence)
    for turn, index in enumerate(file.replicas):
        disk = disks.get(index)
        if disk is None:
            continue
        try:
            data = disk.read_nowait(file.path, offset, size)
            if data is None:
                data = await disk.read(file.path, offset, size)
            return file.unpack(disks.store_id, sequence, data), turn
        except (Corrupt, DiskError) as error:
            if isinstance(error, DiskError) and disks.judge(index) is not disk:
                continue  # the disk as a whole is gone: nothing is known of the copy
            log.warning("journal replica is damaged", disk=disks.name(index), sequence=sequence, reason=str(error))
            on_damage(file, index)
    return None


async def holds_end(store_id: bytes, disk: Disk, file: JournalFile) -> bool:
    """Whether the last record is there, on a disk that was away: an old copy of one has zeroes in its place, which are
    written ahead. Raises DiskError when the disk answers no more.
    """
    if not file.offsets:
        return True
    sequence = file.end - 1
    offset, size = file.place(sequence)
    try:
        file.unpack(store_id, sequence, await disk.read(file.path, offset, size))
    except (Corrupt, DiskError):
        if disk.failure is not None:
            raise  # that of the disk as a whole, which says nothing of the file
        return False
    return True


@dataclass(frozen=True, slots=True)
class ShortFile:
    """A file that lacks copies: records up to before `end`, to be copied to the disk `target`."""

    path: str
    header: rec.FileHeader
    end: int
    target: int


def taken(found: FoundFile) -> JournalFile:
    """A file that recovery found."""
    return JournalFile(
        found.epoch,
        found.first,
        list(found.replicas),
        found.void_from,
        found.offsets,
        found.groups,
        found.end_offset,
        found.end_offset,
        # of one that names records which do not count any more nothing is kept: it is written anew
        {disk: done for disk, done in found.indexed.items() if done[0] <= len(found.offsets)},
    )


def cut(file: JournalFile, end: int) -> None:
    """Forget the records from `end` on: a newer file holds what happened."""
    keep = end - file.first
    if keep < len(file.offsets):
        file.end_offset = file.offsets[keep]
        del file.offsets[keep:]
        del file.groups[keep:]
        file.indexed = {disk: done for disk, done in file.indexed.items() if done[0] <= keep}


async def unlink_files(disks: Disks, files: Iterable[JournalFile]) -> None:
    """Remove files and their indexes from every good disk, so that no power cut brings them back."""
    touched: set[int] = set()
    for file in files:
        for index in disks.good():
            disk = disks.get(index)
            if disk is None:
                continue
            for path in (file.index_path, file.path):
                try:
                    await disk.unlink(path)
                    touched.add(index)
                except DiskError:
                    continue  # a name that stays is found again at the next start
    for index in touched:
        disk = disks.get(index)
        try:
            if disk is not None:
                await disk.sync_dir(FOLDER)
        except DiskError as error:
            disks.fail(index, error)
