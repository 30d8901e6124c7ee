"""What a file is made of while it is written: what was published last, with the draft laid over it."""

from couchestord.errors import StaleInode
from couchestord.frontends.posix.drafts import Draft, Spilled
from couchestord.store.files import Files


async def read(files: Files, inode: int, draft: Draft | None, offset: int, length: int) -> bytes | memoryview:
    """Fewer bytes at the end of the file; good until the caller awaits anything. Raises DataLost, StaleInode."""
    if draft is None or not (draft.is_dirty or draft.is_publishing):
        return await files.lend(inode, offset, length)
    while True:
        # the layers of now go with the bytes that are published now: nothing is awaited in between
        layers, spilled, length = draft.layers(), draft.spilled, max(0, min(length, draft.size - offset))
        try:
            found = await _read_below(files, inode, spilled, offset, length)
        except StaleInode:
            # what was spilled has been published, and freed
            if draft.spilled is spilled:
                raise
            continue
        if layers[-1].is_taken_in:
            continue  # by the other, which could not be published: it may have newer bytes by now
        for layer in layers:
            layer.read_over(found, offset)
        return memoryview(found)


async def _read_below(files: Files, inode: int, spilled: Spilled | None, offset: int, length: int) -> bytearray:
    found = bytearray(await files.lend(inode, offset, length))
    found += bytes(length - len(found))
    if spilled is not None:
        begin = max(0, spilled.cut - offset)
        found[begin:] = bytes(max(0, length - begin))
        for low, high in spilled.within(offset, offset + length):
            data = await files.lend(spilled.inode, low, high - low)
            # a file that was cut meanwhile has fewer: the layer that cut it is above
            found[low - offset : low - offset + len(data)] = data
    return found
