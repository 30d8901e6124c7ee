"""The disks of a store: who is here, who is well, and which epoch it is.

A disk is *present* when its superblock was read, *good* while no call to it failed in a way that leaves its contents
in doubt, and *missing* otherwise. Epochs are taken here: a new one is durable in the superblock of every good disk
before anything is written under it.
"""

from collections.abc import Mapping, Sequence

import trio
from msgspec.structs import replace

from couchestord import logs
from couchestord.errors import (
    Corrupt,
    DiskError,
    DiskFull,
    ForeignDisk,
    NoSuchFile,
    NotAStore,
    StoreExists,
    TooFewDisks,
)
from couchestord.io import superblock as sb
from couchestord.io.disk import Disk
from couchestord.io.records import FOLDER, parse_file_name

log = logs.get(__name__)
TORN = (
    "{} holds a journal file of epoch {}, which the others know nothing of: this store was torn, a part of it was "
    "started alone, and both have gone on. What one of them wrote must be given up: start with the disks of the other"
)


class Disks:
    """All members of a store by index. Belongs to the store's task context."""

    def __init__(self, identity: sb.Identity, slot: sb.Slot, members: Mapping[int, Disk]) -> None:
        self.store_id = identity.store_id
        self.count = identity.disks_count
        self.k = identity.k
        self.m = identity.m
        self.slot = slot
        self.failures: dict[int, str] = {index: "missing" for index in range(self.count) if index not in members}
        self._members = dict(members)
        self.stale: list[int] = []
        """Disks that missed a start or a change while they were away, when the store was loaded."""
        self._full: set[int] = set()
        self._tight: set[int] = set()
        self._slots = trio.Lock()  # two slots written at once could be torn at once

    # -- who is here -----------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        return self.slot.epoch

    def good(self) -> list[int]:
        """Indexes of the disks that may be written, in order."""
        return [index for index in range(self.count) if index not in self.failures]

    def spare(self) -> list[int]:
        """Good disks that did not say lately that they are full: for records that lead to room again."""
        return [index for index in self.good() if index not in self._full]

    def roomy(self) -> list[int]:
        """Good disks with room beyond the reserve: for new data."""
        return [index for index in self.spare() if index not in self._tight]

    def set_tight(self, index: int, tight: bool) -> None:
        """Whether what is left on the disk is its reserve: then only deletes and moves may use it."""
        if tight and index not in self._tight:
            log.warning("disk has only its reserve left", disk=self.name(index))
        (self._tight.add if tight else self._tight.discard)(index)

    def missing_count(self) -> int:
        return len(self.failures)

    @property
    def writers_needed(self) -> int:
        """Good disks that a write needs, so that a store that was torn in two is written on one side at most.

        More than half of all; where m is half of them or more, as many as are left when m are lost.
        """
        return min(self.count - self.m, self.count // 2 + 1)

    def check_writable(self) -> None:
        """Raises TooFewDisks when so many disks are missing that others may be written without these."""
        if len(self.good()) < self.writers_needed:
            raise TooFewDisks(
                f"{len(self.good())} of {self.count} disks are good, a write needs {self.writers_needed}: "
                "bring missing disks back"
            )

    def epoch_known(self, index: int) -> int:
        """The newest epoch that a disk may hold anything of."""
        return self.slot.epochs[index] if index < len(self.slot.epochs) else self.slot.epoch

    def get(self, index: int) -> Disk | None:
        """The disk when it is good, else None."""
        return None if index in self.failures else self._members.get(index)

    def name(self, index: int) -> str:
        member = self._members.get(index)
        return member.name if member else f"disk {index}"

    def is_used(self, name: str) -> bool:
        """True when a good disk has that name."""
        return any(member.name == name for index, member in self._members.items() if index not in self.failures)

    def release_failed(self) -> None:
        """Close disks that were given up, so that they can be opened again when they are well."""
        for index in [index for index in self._members if index in self.failures]:
            self._members.pop(index).close()

    def fail(self, index: int, reason: object) -> None:
        """Stop using a disk: a write or sync on it failed or timed out, or it went away. DiskFull only keeps new
        data off it.
        """
        if isinstance(reason, DiskFull):
            if index not in self._full:
                log.warning("disk is full", disk=self.name(index), reason=str(reason))
            self._full.add(index)
            return
        if index in self.failures:
            return
        self.failures[index] = str(reason) or type(reason).__name__
        log.error("disk given up", disk=self.name(index), index=index, reason=self.failures[index])

    def room_again(self, index: int) -> None:
        """New data may go to this disk again."""
        self._full.discard(index)

    def is_full(self, index: int) -> bool:
        """True while no new data goes to the disk."""
        return index in self._full or index in self._tight

    async def join(self, index: int, disk: Disk) -> None:
        """Use a disk that was missing: it learns the present epoch first, and the others that it did.

        Raises DiskError, ForeignDisk, Corrupt.
        """
        identity, slot = await read_superblock(disk)
        if identity.store_id != self.store_id or identity.index != index:
            raise ForeignDisk(
                f"{disk.name} is disk {identity.index} of another store or place, not disk {index} of this one"
            )
        parsed = (parse_file_name(name) for name in await disk.list(FOLDER))
        newest = max((found[0] for found in parsed if found), default=0)
        async with self._slots:
            if (slot.epoch, slot.generation) > (self.slot.epoch, self.slot.generation):
                raise ForeignDisk(f"{disk.name} was written by this store without the disks that are here: restart it")
            if newest > self.epoch_known(index):
                raise ForeignDisk(TORN.format(disk.name, newest))
            self.slot = replace(
                self.slot, generation=self.slot.generation + 1, epochs=self._told([index], self.slot.epoch)
            )
            await _write_slot(disk, self.slot)
            await self._write_slots(self.slot)
            self._members[index] = disk
            self.failures.pop(index, None)
            self._full.discard(index)
        log.info("disk is back", disk=disk.name, index=index)

    def close(self) -> None:
        """Close every disk that was ever a member."""
        for disk in self._members.values():
            disk.close()

    # -- epochs and roots ------------------------------------------------------------------------------------------

    async def take_epoch(self) -> int:
        """A new epoch, synced into the superblock of every good disk. Raises TooFewDisks when too few took it."""
        async with self._slots:
            return (await self._store_slot(epoch=self.slot.epoch + 1, snapshot=self.slot.snapshot)).epoch

    async def set_snapshot(self, root: sb.SnapshotRoot | None) -> None:
        """Name the newest snapshot in the superblock of every good disk. Raises TooFewDisks."""
        async with self._slots:
            await self._store_slot(epoch=self.slot.epoch, snapshot=root)

    async def _store_slot(self, *, epoch: int, snapshot: sb.SnapshotRoot | None) -> sb.Slot:
        self.check_writable()
        epochs = self._told(self.good(), epoch)
        slot = sb.Slot(generation=self.slot.generation + 1, epoch=epoch, snapshot=snapshot, epochs=epochs)
        # the number is used up even when this fails: another try must not write other bytes under the same generation
        self.slot = slot
        written = await self._write_slots(slot)
        if written < self.writers_needed:
            raise TooFewDisks(
                f"{written} of {self.count} disks took the new superblock, {self.writers_needed} are needed"
            )
        return slot

    def _told(self, indexes: Sequence[int], epoch: int) -> tuple[int, ...]:
        return tuple(epoch if index in indexes else self.epoch_known(index) for index in range(self.count))

    async def _write_slots(self, slot: sb.Slot) -> int:
        """Write a slot to every good disk and sync it; those that fail are given up. Returns how many took it."""
        written = 0

        async def write(index: int) -> None:
            nonlocal written
            disk = self.get(index)
            if disk is None:
                return
            try:
                await _write_slot(disk, slot)
                written += 1
            except DiskError as error:
                self.fail(index, error)

        async with trio.open_nursery() as nursery:
            for index in self.good():
                nursery.start_soon(write, index)
        return written


def replicas_needed(m: int, missing: int) -> int:
    """Copies of a record that keep it through the loss of `m` disks, those already missing counted among them."""
    return m + 1 if missing > m else max(1, m + 1 - missing)


async def read_superblock(disk: Disk) -> tuple[sb.Identity, sb.Slot]:
    """Who the disk is. Raises NotAStore when it has no superblock, Corrupt, UnknownFormat, DiskError."""
    try:
        data = await disk.read(sb.PATH, 0, 3 * sb.PAGE_BYTES)
    except NoSuchFile:
        raise NotAStore(f"{disk.name} holds no superblock") from None
    pages = [data[at : at + sb.PAGE_BYTES] for at in range(0, 3 * sb.PAGE_BYTES, sb.PAGE_BYTES)]
    return sb.unpack_identity(pages[0]), sb.newest_slot(pages[1:])


async def _write_slot(disk: Disk, slot: sb.Slot) -> None:
    offset, page = sb.pack_slot(slot)
    await disk.write_at(sb.PATH, offset, [page], sync=True)


async def create_store(
    disks: Sequence[Disk], *, store_id: bytes, disk_ids: Sequence[bytes], k: int, m: int, created_ns: int
) -> None:
    """Write the superblocks of a new store. Raises StoreExists when a disk has one already: it is left untouched."""
    for disk in disks:
        try:
            await read_superblock(disk)
        except NotAStore:
            continue
        except Corrupt as error:
            raise StoreExists(f"{disk.name} holds a damaged superblock ({error}); not touching it") from error
        raise StoreExists(f"{disk.name} belongs to a store already")
    for index, disk in enumerate(disks):
        identity = sb.Identity(store_id, disk_ids[index], index, len(disks), k, m, "default", created_ns)
        # both slots: whichever is written next, torn or not, the other one stays
        pages = [sb.pack_identity(identity), *(sb.pack_slot(sb.Slot(generation, 0))[1] for generation in (0, 1))]
        # under another name first: a superblock is there whole or not at all
        await disk.write_at(sb.PATH + ".new", 0, pages, sync=True)
        await disk.rename(sb.PATH + ".new", sb.PATH)
        await disk.sync_dir("")


async def load_disks(candidates: Sequence[Disk]) -> Disks:
    """The store that these disks form; disks without a superblock or that cannot be read count as missing.

    Raises NotAStore when none has one, ForeignDisk when two stores are mixed or an index comes twice, UnknownFormat.
    """
    members: dict[int, Disk] = {}
    found: list[tuple[sb.Identity, sb.Slot]] = []
    problems: list[str] = []
    for disk in candidates:
        try:
            identity, slot = await read_superblock(disk)
        except (NotAStore, Corrupt, DiskError) as error:
            problems.append(f"{disk.name}: {error}")
            log.error("disk is not usable", disk=disk.name, reason=str(error))
            disk.close()
            continue
        if found and identity.store_id != found[0][0].store_id:
            raise ForeignDisk(f"{disk.name} and {next(iter(members.values())).name} belong to different stores")
        if identity.index in members:
            raise ForeignDisk(
                f"{disk.name} and {members[identity.index].name} both claim to be disk {identity.index}; one is a copy"
            )
        members[identity.index] = disk
        found.append((identity, slot))
    if not found:
        raise NotAStore("no disk holds a store" + "".join(f"; {problem}" for problem in problems))
    slots = [slot for _, slot in found]
    # generations grow with every change, epochs only where enough disks took part
    newest = max(slots, key=lambda slot: (slot.epoch, slot.generation, slots.count(slot)))
    disks = Disks(found[0][0], newest, members)
    disks.stale = [identity.index for identity, slot in found if slot.epoch < newest.epoch]
    return disks
