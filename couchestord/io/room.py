"""How much room the disks have. Folders on one file system share one account of it, and one reserve."""

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
    """Without the reserve, of which there is one on each file system; negative when less than it is left."""
    sharers_count: int
    """Good disks on the file system, this one among them."""


async def ask_room(disks: Disks, reserve_bytes: int) -> dict[int, Room]:
    """The room of each good disk. One that does not answer is given up."""
    found: dict[int, Capacity] = {}

    async def ask(index: int) -> None:
        disk = disks.get(index)
        try:
            if disk is not None:
                found[index] = await disk.capacity()
        except DiskError as error:
            disks.fail(index, error)

    async with trio.open_nursery() as nursery:
        for index in disks.good():
            nursery.start_soon(ask, index)
    sharers = Counter(capacity.file_system for capacity in found.values())
    return {
        index: Room(capacity.total_bytes // count, (capacity.free_bytes - reserve_bytes) // count, count)
        for index, capacity in sorted(found.items())
        if (count := sharers[capacity.file_system])
    }
