"""Drafts into the store."""

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import replace

from couchestord.errors import NoSpace
from couchestord.frontends.posix.drafts import CONTENT_BYTES_MAX, Draft, Layer, Piece, Spilled
from couchestord.io import filerequests as fr
from couchestord.io.checksum import xxh3_64
from couchestord.io.mutations import Extent
from couchestord.io.records import BODY_BYTES_MAX
from couchestord.store.files import Files
from couchestord.store.options import INLINE_BYTES_MAX


async def publish(files: Files, inode: int, draft: Draft) -> None:
    """What a draft holds is durable and visible, to S3 as well, on return. Raises what the store raises; then the draft
    has all of it still. One call at a time for a draft.
    """
    if draft.keeps_bytes:
        await files.settle(inode)
    try:
        await _publish_all(files, inode, draft)
    except NoSpace:
        if not await publish_early(files, inode, draft):
            raise
        await _publish_all(files, inode, draft)


async def _publish_all(files: Files, inode: int, draft: Draft) -> None:
    spilled = draft.spilled
    if spilled is not None and (draft.layers()[0].cut < spilled.size or not spilled.is_sure):
        # a part of it was cut off since, or may have to be
        await spill(files, inode, draft, spilled)
        spilled = draft.spilled
    layer = draft.begin()
    try:
        await _publish(files, inode, layer, draft.send_times, files.policy_of(inode), spilled)
    except BaseException:
        draft.failed()
        raise
    draft.published()


async def spill(files: Files, inode: int, draft: Draft, spilled: Spilled) -> None:
    """What a draft of a file holds in memory joins what was spilled of it. It is durable, and nobody sees it until it
    is published. Otherwise as `publish`.
    """
    layer = draft.begin()
    try:
        await _publish(files, spilled.inode, layer, lambda: (0, 0), files.policy_of(inode))
    except BaseException as error:
        draft.failed()
        if not isinstance(error, NoSpace):  # it may have been done
            draft.spilled = replace(spilled, is_sure=False)
        raise
    draft.has_spilled(spilled.laid(layer))


async def publish_early(files: Files, inode: int, draft: Draft) -> bool:
    """What was spilled of a file is published, without what is in memory, for want of room: what it takes the place of
    is freed then. False when that is nothing.
    """
    spilled = draft.spilled
    if spilled is None or not spilled.ranges or not spilled.is_sure:
        return False
    times = draft.modified_ns, draft.changed_ns
    await files.change(fr.PublishFile(inode, spilled.size, spilled.cut, (), *times, b"", xxh3_64(b""), spilled.inode))
    draft.spilled = None
    return True


async def _publish(
    files: Files,
    into: int,
    layer: Layer,
    times_ns: Callable[[], tuple[int, int]],
    policy: int,
    spilled: Spilled | None = None,
) -> None:
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
            has_room = len(body) + INLINE_BYTES_MAX <= BODY_BYTES_MAX
            taken = await held.enter_async_context(files.take(data, length, policy, inlined=has_room))
            # what is left at the end of a long body rides in the record, behind that of others, while it has room
            shifted = [each if each.segment else Extent(each.length, 0, 0, len(body)) for each in taken.extents]
            body += taken.inline
            contents.append(fr.NewBytes(taken.size, tuple(shifted), lays, taken.policy, taken.content))
        whole = bytes(body)
        cut, spill_inode = (min(layer.cut, spilled.cut), spilled.inode) if spilled else (layer.cut, 0)
        # not before: they may have been set while the bytes were on their way
        times = times_ns()
        await files.change(
            fr.PublishFile(into, layer.size, cut, tuple(contents), *times, whole, xxh3_64(whole), spill_inode)
        )


async def _each(pieces: Iterable[Piece]) -> AsyncGenerator[Piece, None]:
    for piece in pieces:
        yield piece
