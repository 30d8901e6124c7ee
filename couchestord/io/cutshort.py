"""Files that are made beside their place and renamed when they are whole and durable: what is left of those that never
were.
"""

from collections.abc import Callable

from couchestord import logs
from couchestord.errors import DiskError
from couchestord.io.disks import Disks

log = logs.get(__name__)
NEW_SUFFIX = ".new"
"""Of the name of a file that is being made."""


async def remove_cut_short(
    disks: Disks, index: int, folder: str, is_ours: Callable[[str], object], kept: str = ""
) -> None:
    """Remove from a folder of a disk what was being made, but not the file that is to become `kept` (a path).

    `is_ours`: whether a name in that folder, without the suffix, is one that the caller makes. What cannot be removed
    stays, with a line in the log: it takes room and does no other harm.
    """
    disk = disks.get(index)
    if disk is None:
        return
    try:
        for name in await disk.list(folder):
            made = name.removesuffix(NEW_SUFFIX)
            if made != name and is_ours(made) and f"{folder}/{made}" != kept:
                await disk.unlink(f"{folder}/{name}")
    except DiskError as error:
        log.warning("files that were cut short stay", disk=disk.name, folder=folder, reason=str(error))
