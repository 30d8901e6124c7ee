"""One call on several disks at once. A disk that fails is given up."""

from collections.abc import Awaitable, Callable, Iterator, Sequence

import trio

from couchestord.errors import DiskError
from couchestord.io.disk import Buffer, Disk
from couchestord.io.disks import Disks
from couchestord.io.joint import Joint


async def call_all(disks: Disks, indexes: Sequence[int], call: Callable[[int, Disk], Awaitable[None]]) -> bool:
    """Run a call on several disks at once; a disk that fails is given up. True when none failed.

    On the disks that are here now: not on one that comes in the place of another while the first ones are called.
    """
    failed = 0
    chosen = {index: disks.get(index) for index in indexes}

    async def one(index: int) -> None:
        nonlocal failed
        disk = chosen[index]
        if disk is None:
            failed += 1
            return
        try:
            await call(index, disk)
        except* DiskError as group:
            failed += 1
            for error in _leaves(group):
                disks.fail(index, error, disk)

    if len(indexes) == 1:
        await one(indexes[0])
    else:
        async with trio.open_nursery() as nursery:
            for index in indexes:
                nursery.start_soon(one, index)
    return not failed


async def write_all(disks: Disks, indexes: Sequence[int], path: str, offset: int, buffers: Sequence[Buffer]) -> bool:
    """Write the same at the same place of the same file on several disks, synced. True when it is durable on all.

    What `call_all` would do with `Disk.write_at`, without a task and a wake-up for each disk. Cannot be cancelled.
    """
    joint = Joint()
    ends: list[tuple[int, Disk, Callable[[], None]]] = []
    for index in indexes:
        disk = disks.get(index)
        if disk is None:
            continue
        try:
            ends.append((index, disk, disk.begin_write(path, offset, buffers, joint)))
        except DiskError as error:
            disks.fail(index, error)
    await joint.wait()
    written = 0
    for index, disk, end in ends:
        try:
            end()
            written += 1
        except DiskError as error:
            disks.fail(index, error, disk)
    return written == len(indexes)


def _leaves(group: BaseExceptionGroup[DiskError]) -> Iterator[DiskError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
