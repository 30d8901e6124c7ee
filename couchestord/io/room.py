"""How much room the disks have. Folders on one file system share one account of it, and what is kept there."""

from collections import Counter
from dataclasses import dataclass

import trio

from couchestord.errors import DiskError
from couchestord.io.disk import Capacity
from couchestord.io.disks import Disks


@dataclass(frozen=True, slots=True)
class Room:
    """What a disk may count as its own of the file system that it lies on: an equal share, in bytes."""

    total_bytes: int
    free_bytes: int
    left_bytes: int
    """Of these, what new data may take; negative when some of what is kept from it is gone."""
    sharers_count: int
    """Good disks on the file system, this one among them."""


async def ask_room(disks: Disks) -> dict[int, Room]:
    """The room of each good disk. One that does not answer is given up. What is spent is counted from here on."""
    found: dict[int, Capacity] = {}

    async def ask(index: int) -> None:
        disk = disks.get(index)
        try:
            if disk is not None:
                found[index] = await disk.capacity()
        except DiskError as error:
            disks.fail(index, error, disk)

    async with trio.open_nursery() as nursery:
        for index in disks.good():
            nursery.start_soon(ask, index)
    sharers = Counter(capacity.file_system for capacity in found.values())
    left = {each.file_system: each.free_bytes - disks.kept_bytes(each.file_system) for each in found.values()}
    disks.account.note({index: each.file_system for index, each in found.items()}, left)
    return {
        index: Room(each.total_bytes // count, each.free_bytes // count, left[each.file_system] // count, count)
        for index, each in sorted(found.items())
        if (count := sharers[each.file_system])
    }
