"""How a disk becomes a member: the superblocks of a new store, and that of an empty disk in the place of a lost one."""

from collections.abc import Sequence
from contextlib import suppress

from msgspec.structs import replace

from couchestord.errors import Corrupt, NoSuchFile, NotAStore, StoreExists
from couchestord.io import superblock as sb
from couchestord.io.disk import Disk
from couchestord.io.disks import Disks, read_superblock

NEW_PATH = sb.PATH + ".new"
NEW_GENERATIONS = 2
"""Slots are of these generations until the store is started: nothing has been written to a disk that has no other."""


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
    """Write the superblocks of a new store. Raises StoreExists when a disk has one already: it is left untouched.

    `classes` has the class of each disk; empty: all are of `default`. `log_after`: as in the superblock; `epoch`: the
    first start takes a newer one.
    """
    for disk in disks:
        await check_free(disk)
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
    await check_free(disk)
    with suppress(NoSuchFile):
        await disk.unlink(NEW_PATH)  # of an attempt that was cut short, or whose sync failed
    await write_superblock(disk, replace(disks.identity, disk_id=disk_id, index=index))


async def check_free(disk: Disk) -> None:
    """Raises StoreExists when the disk has a superblock, damaged or not; UnknownFormat, DiskError."""
    try:
        await read_superblock(disk)
    except NotAStore:
        return
    except Corrupt as error:
        raise StoreExists(f"{disk.name} holds a damaged superblock ({error}); not touching it") from error
    raise StoreExists(f"{disk.name} belongs to a store already")


async def write_superblock(disk: Disk, identity: sb.Identity, epoch: int = 0) -> None:
    """Durable on return; cut off before, there is none."""
    # both slots: whichever is written next, torn or not, the other one stays
    slots = [sb.Slot(generation, epoch) for generation in range(NEW_GENERATIONS)]
    pages = [sb.pack_identity(identity), *(sb.pack_slot(slot)[1] for slot in slots)]
    # under another name first: a superblock is there whole or not at all
    await disk.write_at(NEW_PATH, 0, pages, sync=True)
    await disk.rename(NEW_PATH, sb.PATH)
    await disk.sync_dir("")
