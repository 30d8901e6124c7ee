"""One call on several disks at once."""

from collections.abc import Awaitable, Callable, Iterator, Sequence

import trio

from couchestord.errors import DiskError
from couchestord.io.disk import Disk
from couchestord.io.disks import Disks


async def call_all(disks: Disks, indexes: Sequence[int], call: Callable[[int, Disk], Awaitable[None]]) -> bool:
    """Run a call on several disks at once; a disk that fails is given up. True when none failed.

    On the disks that are here now: not on one that comes in the place of another while the first ones are called.
    """
    failed = 0
    chosen = {index: disks.get(index) for index in indexes}

    async def one(index: int) -> None:
        nonlocal failed
        disk = chosen[index]
        try:
            if disk is None:
                raise DiskError(disks.failures.get(index, "given up"))
            await call(index, disk)
        except* DiskError as group:
            failed += 1
            for error in _leaves(group):
                disks.fail(index, error)

    if len(indexes) == 1:
        await one(indexes[0])
    else:
        async with trio.open_nursery() as nursery:
            for index in indexes:
                nursery.start_soon(one, index)
    return not failed


def _leaves(group: BaseExceptionGroup[DiskError]) -> Iterator[DiskError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
