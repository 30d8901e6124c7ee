"""What a file is made of while it is written: what was published last, with the draft laid over it."""

from couchestord.frontends.posix.drafts import Draft
from couchestord.store.files import Files


async def read(files: Files, inode: int, draft: Draft | None, offset: int, length: int) -> bytes | memoryview:
    """Fewer bytes at the end of the file; good until the caller awaits anything. Raises DataLost, StaleInode."""
    if draft is None or not (draft.is_dirty or draft.is_publishing):
        return await files.lend(inode, offset, length)
    # the layers of now go with the bytes that are published now: nothing is awaited in between
    layers, length = draft.layers(), max(0, min(length, draft.size - offset))
    found = bytearray(await files.lend(inode, offset, length))
    found += bytes(length - len(found))
    for layer in layers:
        layer.read_over(found, offset)
    return memoryview(found)
