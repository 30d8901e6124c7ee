"""Drafts into the store."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack

from couchestord.frontends.posix.drafts import CONTENT_BYTES_MAX, Draft, Layer, Piece
from couchestord.io import filerequests as fr
from couchestord.io.checksum import xxh3_64
from couchestord.io.mutations import Extent
from couchestord.store.files import Files
from couchestord.store.options import INLINE_BYTES_MAX


async def publish(files: Files, inode: int, draft: Draft) -> None:
    """What a draft holds is durable and visible, to S3 as well, on return. Raises what the store raises; then the draft
    has all of it still. One call at a time for a draft.
    """
    if draft.keeps_bytes:
        await files.settle(inode)
    layer = draft.begin()
    try:
        await _publish(files, inode, layer, (draft.modified_ns, draft.changed_ns))
    except BaseException:
        draft.failed()
        raise
    draft.published()


async def _publish(files: Files, inode: int, layer: Layer, times_ns: tuple[int, int]) -> None:
    policy = files.policy_of(inode)
    contents: list[fr.NewBytes] = []
    body = bytearray()
    async with AsyncExitStack() as held:
        for pieces, length, lays in layer.contents():
            if len(body) + length <= INLINE_BYTES_MAX:
                extents: tuple[Extent, ...] = (Extent(length, 0, 0, len(body)),)
                body += b"".join(pieces)
                contents.append(fr.NewBytes(length, extents, lays, policy))
                continue
            # of many short ones each would cost more on its way than a copy does
            data = b"".join(pieces) if length <= CONTENT_BYTES_MAX else _each(pieces)
            taken = await held.enter_async_context(files.take(data, length, policy))
            # what is left at the end of a long body rides in the record, behind that of others
            shifted = [each if each.segment else Extent(each.length, 0, 0, len(body)) for each in taken.extents]
            body += taken.inline
            contents.append(fr.NewBytes(taken.size, tuple(shifted), lays, taken.policy))
        whole = bytes(body)
        await files.change(
            fr.PublishFile(inode, layer.size, layer.cut, tuple(contents), *times_ns, whole, xxh3_64(whole))
        )


async def _each(pieces: Iterable[Piece]) -> AsyncGenerator[Piece, None]:
    for piece in pieces:
        yield piece
