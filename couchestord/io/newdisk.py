"""How a disk becomes a member: the superblocks of a new store, and that of an empty disk in the place of a lost one."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from msgspec.structs import replace

from couchestord.errors import Corrupt, NoSuchFile, NotAStore, StoreExists
from couchestord.io import superblock as sb
from couchestord.io.disk import Disk
from couchestord.io.disks import Disks, read_superblock

NEW_PATH = sb.PATH + ".new"
NEW_GENERATIONS = 2
"""Slots are of these generations until the store is started: nothing has been written to a disk that has no other."""
_NEW_SLOT: Final = sb.Slot(NEW_GENERATIONS - 1, 0)


async def create_store(
    disks: Sequence[Disk],
    *,
    store_id: bytes,
    disk_ids: Sequence[bytes],
    k: int,
    m: int,
    created_ns: int,
    stripe_bytes: int = 1 << 20,
    min_healthy_shards: int = 0,
    shards_per_disk: int = 1,
    classes: Sequence[str] = (),
    log_after: int = 0,
    epoch: int = 0,
) -> None:
    """Write the superblocks of a new store, that of the last disk last: without it, while nothing was written to the
    others, there is none, and another attempt begins anew. Raises StoreExists when a disk is of a store: all are left
    untouched.

    `classes` has the class of each disk; empty: all are of `default`. `log_after`: as in the superblock; `epoch`: the
    first start takes a newer one.
    """
    is_made = [await _is_made(disk) for disk in disks]
    if is_made[-1]:
        raise _belongs(disks[-1])
    for index, disk in enumerate(disks):
        identity = sb.Identity(
            store_id,
            disk_ids[index],
            index,
            len(disks),
            k,
            m,
            tuple(classes),
            created_ns,
            stripe_bytes=stripe_bytes,
            min_healthy_shards=min_healthy_shards,
            shards_per_disk=shards_per_disk,
            log_after=log_after,
        )
        await write_superblock(disk, identity, epoch)


async def replace_member(disks: Disks, index: int, disk: Disk, disk_id: bytes) -> None:
    """Make an empty disk the one with that index, durably: a disk that was told of no epoch since the store was made.

    It is used once it has joined, like any that returns. The time of making stays that of the store, since the default
    policy takes its own from it. Raises StoreExists when the disk has a superblock already, DiskError.
    """
    if await _is_made(disk):
        raise _belongs(disk)
    await write_superblock(disk, replace(disks.identity, disk_id=disk_id, index=index))


def may_be_cut_off(disks: Disks) -> bool:
    """Whether their store may be one whose making was cut off: another attempt would begin anew."""
    return disks.slot == _NEW_SLOT and disks.get(disks.count - 1) is None


async def _is_made(disk: Disk) -> bool:
    """Whether the disk has the superblock of a store that was made, and perhaps never started; False: it has none.
    Raises StoreExists when more was written to it, or its superblock is damaged; UnknownFormat, DiskError.
    """
    try:
        _, slot = await read_superblock(disk)
    except NotAStore:
        return False
    except Corrupt as error:
        raise StoreExists(f"{disk.name} holds a damaged superblock ({error}); not touching it") from error
    if slot != _NEW_SLOT:
        raise _belongs(disk)
    return True


def _belongs(disk: Disk) -> StoreExists:
    return StoreExists(f"{disk.name} belongs to a store already")


async def write_superblock(disk: Disk, identity: sb.Identity, epoch: int = 0) -> None:
    """Durable on return; cut off before, there is none."""
    # both slots: whichever is written next, torn or not, the other one stays
    slots = [sb.Slot(generation, epoch) for generation in range(NEW_GENERATIONS)]
    pages = [sb.pack_identity(identity), *(sb.pack_slot(slot)[1] for slot in slots)]
    with suppress(NoSuchFile):
        await disk.unlink(NEW_PATH)  # of an attempt that was cut short, or whose sync failed
    # under another name first: a superblock is there whole or not at all
    await disk.write_at(NEW_PATH, 0, pages, sync=True)
    await disk.rename(NEW_PATH, sb.PATH)
    await disk.sync_dir("")
