"""The disks of a store: who is here, who is well, and which epoch it is.

A disk is *present* when its superblock was read, *good* while no call to it failed in a way that leaves its contents
in doubt, and *missing* otherwise. Epochs are taken here: a new one is durable in the superblock of every good disk
before anything is written under it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import trio
from msgspec.structs import replace

from couchestord import logs
from couchestord.errors import Corrupt, DiskError, DiskFull, ForeignDisk, NoSuchFile, NotAStore, TooFewDisks
from couchestord.io import superblock as sb
from couchestord.io.account import Account
from couchestord.io.disk import Disk
from couchestord.io.records import FOLDER, parse_file_name
from couchestord.model import Policy

log = logs.get(__name__)
CLASS_DEFAULT = "default"
TORN = (
    "{} holds a journal file of epoch {}, which the others know nothing of: this store was torn, a part of it was "
    "started alone, and both have gone on. What one of them wrote must be given up: start with the disks of the other"
)


class Disks:
    """All members of a store by index. Belongs to the store's task context."""

    def __init__(self, slot: sb.Slot, members: Mapping[int, Disk], identities: Mapping[int, sb.Identity]) -> None:
        self.identity = identity = next(iter(identities.values()))
        """Of some disk: what it says of the store, all say."""
        self.store_id = identity.store_id
        self.count = identity.disks_count
        self.shards_per_disk = identity.shards_per_disk
        self.default_policy = Policy(
            k=identity.k,
            m=identity.m,
            stripe_bytes=identity.stripe_bytes,
            min_healthy_shards=identity.min_healthy_shards,
            created_ns=identity.created_ns,
        )
        """The default policy as the store was made with it; what it is now says the catalog."""
        self.slot = slot
        self._classes = identity.disk_classes
        self.ids = {index: each.disk_id for index, each in identities.items()}
        """Id of the disk that is here, or was last, in each place."""
        self.failures: dict[int, str] = {index: "missing" for index in range(self.count) if index not in members}
        self._members = dict(members)
        self.stale: dict[int, int] = {}
        """Disks that missed a start or a change while they were away, when the store was loaded, and the epoch that
        each knew of."""
        self._full: set[int] = set()
        self._tight: set[int] = set()
        self.kept_bytes: Callable[[int], int] = lambda _: 0
        """Room that is kept from new data on a file system, by its number (`io.disk.Capacity`)."""
        self.random_bytes: Callable[[int], bytes] = lambda _: b""
        """Where tokens of epochs come from; by itself they are empty."""
        self.account = Account()
        self._slots = trio.Lock()  # two slots written at once could be torn at once
        self.lagging: dict[int, int] = {}
        """Generation of the newest slot on each disk that missed some."""

    # -- who is here -----------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        return self.slot.epoch

    @property
    def m(self) -> int:
        """Disks that may be lost while every record of the journal stays: as many as any policy makes good."""
        default = self.default_policy
        return disks_to_spare(default.k, default.m, self.count) if self.slot.m is None else self.slot.m

    def class_of(self, index: int) -> str:
        return self._classes[index] if self._classes else CLASS_DEFAULT

    def of_class(self, disk_class: str) -> set[int]:
        """Indexes of the disks of a class, missing ones too; empty: of any."""
        return {index for index in range(self.count) if not disk_class or self.class_of(index) == disk_class}

    def good(self) -> list[int]:
        """Indexes of the disks that may be written, in order."""
        return [index for index in range(self.count) if index not in self.failures]

    def spare(self) -> list[int]:
        """Good disks that did not say lately that they are full: for records that lead to room again."""
        return [index for index in self.good() if index not in self._full]

    def roomy(self) -> list[int]:
        """Good disks with room beyond the reserve: for new data."""
        return [index for index in self.spare() if index not in self._tight]

    @property
    def have_room(self) -> bool:
        """Whether none that is good lacks room for new data: `roomy` are all of them."""
        return not (self._tight or self._full)

    def set_tight(self, index: int, tight: bool) -> None:
        """Whether what is left on the disk is its reserve: then only deletes and moves may use it."""
        if tight and index not in self._tight:
            log.warning("disk has only its reserve left", disk=self.name(index))
        (self._tight.add if tight else self._tight.discard)(index)

    def spend(self, index: int, length: int, *, dips: bool = False) -> bool:
        """Account for new data on a disk before it is written: between two looks at the room a fast writer would take
        the reserve too. False when there was less left on its file system: its disks are tight from now on. `dips`: who
        makes room may take half of the reserve, and is told False only when that is gone, too.
        """
        spent = self.account.spend(index, length)
        for other in spent:
            self.set_tight(other, True)
        return not spent or (dips and self.account.is_within(index, self.kept_bytes))

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

    def fail(self, index: int, reason: object, disk: Disk | None = None) -> None:
        """Stop using a disk: a write or sync on it failed or timed out, or it went away. DiskFull only keeps new
        data off it. `disk`: that which it happened to; the one that has come in its place since is not to blame.
        """
        if disk is not None and self._members.get(index) is not disk:
            return
        if isinstance(reason, DiskFull):
            if index not in self._full:
                log.warning("disk is full", disk=self.name(index), reason=str(reason))
            self._full.add(index)
            return
        if index in self.failures:
            return
        self.failures[index] = str(reason) or type(reason).__name__
        log.error("disk given up", disk=self.name(index), index=index, reason=self.failures[index])

    def judge(self, index: int) -> Disk | None:
        """As `get`, after a call failed: a disk that answers none any more is given up."""
        if (disk := self.get(index)) is not None and disk.failure is not None:
            self.fail(index, disk.failure)
        return self.get(index)

    def room_again(self, index: int) -> None:
        """New data may go to this disk again."""
        self._full.discard(index)

    def is_full(self, index: int) -> bool:
        """True while no new data goes to the disk."""
        return index in self._full or index in self._tight

    async def join(self, index: int, disk: Disk) -> None:
        """Use a disk that was missing: it learns the present epoch first, and the others that it did.

        One that is not the disk that was here before in that place begins a new epoch, so that neither is taken for the
        other later; and it makes no majority, nor does one that no epoch was ever told: they say nothing of what others
        may have written. Raises DiskError, ForeignDisk, Corrupt, TooFewDisks.
        """
        identity, slot = await read_superblock(disk)
        if identity.store_id != self.store_id or identity.index != index:
            raise ForeignDisk(f"{disk.name} is disk {identity.index} of another store or place, not {index} of this")
        parsed = (parse_file_name(name) for name in await disk.list(FOLDER))
        newest = max((found[0] for found in parsed if found), default=0)
        async with self._slots:
            if (slot.epoch, slot.generation) > (self.slot.epoch, self.slot.generation):
                raise ForeignDisk(f"{disk.name} was written by this store without the disks that are here: restart it")
            if newest > self.epoch_known(index):
                raise ForeignDisk(TORN.format(disk.name, newest))
            before = self.slot
            is_other = self.ids.get(index, identity.disk_id) != identity.disk_id
            if is_other or (before.epoch and not slot.epoch):
                self.check_writable()
            epoch = before.epoch + is_other
            told = [*self.good(), index] if is_other else [index]
            generation = max(before.generation, slot.generation) + 1
            # what it held of the log may be gone
            told_all, away = self._told(told, epoch), self._away_with([index])
            self.slot = replace(before, generation=generation, epoch=epoch, epochs=told_all, away=away)
            self.lagging[index] = slot.generation
            await self._write_slot(index, disk, self.slot, before)
            await self._write_slots(self.slot, before)
            self._members[index] = disk
            self.ids[index] = identity.disk_id
            self.failures.pop(index, None)
            self._full.discard(index)
        log.info("disk is back", disk=disk.name, index=index)

    def take(self, index: int, disk: Disk) -> None:
        """For a process that only reads: use a disk that the one that writes says is good."""
        self._members[index] = disk
        self.failures.pop(index, None)

    def close(self) -> None:
        """Close every disk that was ever a member."""
        for disk in self._members.values():
            disk.close()

    # -- epochs and roots ------------------------------------------------------------------------------------------

    async def take_epoch(self) -> int:
        """A new epoch, synced into the superblock of every good disk, with those that are missing. Raises TooFewDisks
        when too few took it.
        """
        async with self._slots:
            token, away = self.random_bytes(sb.TOKEN_BYTES), self._away_with(self.failures)
            return (await self._store_slot(epoch=self.slot.epoch + 1, token=token, away=away)).epoch

    async def set_snapshot(self, root: sb.SnapshotRoot | None) -> None:
        """Name the newest snapshot in the superblock of every good disk. Raises TooFewDisks."""
        async with self._slots:
            await self._store_slot(snapshot=root)

    async def set_m(self, m: int, *, lower: bool = False) -> bool:
        """Records must outlive the loss of `m` disks from now on; fewer than before only with `lower`.

        False when nothing changed. Raises TooFewDisks.
        """
        async with self._slots:
            if m == self.m or (m < self.m and not lower):
                return False
            await self._store_slot(m=m)
            return True

    def note_away(self, indexes: Iterable[int]) -> None:
        """Copies of the end of the log may be fewer by these disks: the next slot says so."""
        self.slot = replace(self.slot, away=self._away_with(indexes))

    def _away_with(self, indexes: Iterable[int]) -> tuple[int, ...]:
        return tuple(sorted({*self.slot.away, *indexes}))

    async def set_away(self, away: Collection[int]) -> None:
        """The log goes on in a file that has less copies for these disks only. Raises TooFewDisks."""
        if not set(self.slot.away) <= set(away):
            async with self._slots:
                await self._store_slot(away=tuple(sorted(away)))

    async def _store_slot(self, **changes: Any) -> sb.Slot:
        self.check_writable()
        before = self.slot
        epoch = changes.get("epoch", before.epoch)
        told = self._told(self.good(), epoch)
        # the number is used up even when this fails: another try must not write other bytes under the same generation
        self.slot = slot = replace(before, generation=before.generation + 1, epochs=told, **changes)
        written = await self._write_slots(slot, before)
        if written < self.writers_needed:
            raise TooFewDisks(
                f"{written} of {self.count} disks took the new superblock, {self.writers_needed} are needed"
            )
        return slot

    def _told(self, indexes: Sequence[int], epoch: int) -> tuple[int, ...]:
        return tuple(epoch if index in indexes else self.epoch_known(index) for index in range(self.count))

    async def _write_slots(self, slot: sb.Slot, before: sb.Slot) -> int:
        """Write a slot, in the place of `before`, to every good disk and sync it; those that fail are given up. Returns
        how many took it.
        """
        written = 0

        async def write(index: int) -> None:
            nonlocal written
            disk = self.get(index)
            if disk is None:
                return
            try:
                await self._write_slot(index, disk, slot, before)
                written += 1
            except DiskError as error:
                self.fail(index, error, disk)

        async with trio.open_nursery() as nursery:
            for index in self.good():
                nursery.start_soon(write, index)
        return written

    async def _write_slot(self, index: int, disk: Disk, slot: sb.Slot, before: sb.Slot) -> None:
        generation = self.lagging.get(index, before.generation)
        if generation % 2 == slot.generation % 2:
            # its page is that of the newest slot there, and the other page may have been torn: that one first
            await _write_slot(disk, replace(before, generation=slot.generation - 1))
        await _write_slot(disk, slot)
        self.lagging.pop(index, None)


def shards_per_disk(shards_count: int, disks_count: int) -> int:
    """Shards of one segment on the disk that holds the most, when they are spread evenly over all disks there are.

    New segments keep to it while disks are missing or full, so that what is missing finds its place when they are back.
    """
    return -(-shards_count // max(1, disks_count))


def disks_to_spare(k: int, m: int, disks_count: int) -> int:
    """Disks, of those that segments of k+m shards are spread over, whose loss is made good."""
    return m // shards_per_disk(k + m, disks_count)


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
            other = next(iter(members.values())).name
            raise ForeignDisk(f"{disk.name} and {other} belong to different stores: name the disks of one only")
        if identity.index in members:
            twin = next(each for each in found if each[0].index == identity.index)
            raise ForeignDisk(_why_twice((disk, identity, slot), (members[identity.index], *twin)))
        members[identity.index] = disk
        found.append((identity, slot))
    if not found:
        raise NotAStore("no disk holds a store" + "".join(f"; {problem}" for problem in problems))
    slots = [slot for _, slot in found]
    # generations grow with every change, epochs only where enough disks took part
    newest = max(slots, key=lambda slot: (slot.epoch, slot.generation, slots.count(slot)))
    # too few disks may have taken epochs without the others, which went on: what those know of snapshots is newer
    roots = [slot.snapshot for slot in [newest, *slots] if slot.snapshot is not None]
    generation = max(slot.generation for slot in slots)
    newest = replace(newest, generation=generation, snapshot=max(roots, key=lambda root: root.sequence, default=None))
    disks = Disks(newest, members, {identity.index: identity for identity, _ in found})
    disks.stale = {identity.index: slot.epoch for identity, slot in found if slot.epoch < newest.epoch}
    disks.lagging = {identity.index: slot.generation for identity, slot in found if slot.generation != generation}
    return disks


def _why_twice(one: tuple[Disk, sb.Identity, sb.Slot], two: tuple[Disk, sb.Identity, sb.Slot]) -> str:
    """Why two disks with the same index cannot be used."""
    both = f"{one[0].name} and {two[0].name} both claim to be disk {one[1].index}; "
    if one[1].disk_id == two[1].disk_id:
        return f"{both}one is a copy: take it away"
    old = min(one, two, key=lambda each: (each[2].epoch, each[2].generation))
    return f"{both}one took the place of the other; take {old[0].name} away, which the store went on without"
