"""Bodies past full disks: into blobs of their own, before the writer hears of them.

Only in tiered mode, where the bucket has the only copy of much in any case. Each blob holds one extent, so that a body
is never held whole in memory. Its record is committed when all of its blobs are proved to be there.

A piece is taken in before it is the body's turn to go to the bucket: so a client that stands still holds up nobody. A
few bodies have long pieces in memory, others short ones, as a thousand clients may be slow.
"""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import trio

from couchestord.errors import Corrupt, RemoteError, Unavailable
from couchestord.io.mutations import IN_BLOB, Extent
from couchestord.model import FillingBody
from couchestord.remote.blob import BlobName, BlobPacker, Held
from couchestord.remote.blobs import Blobs
from couchestord.store.ledger import CatalogLedger

PIECE_BYTES: Final = 16 << 20
"""Of a body in one blob, and in memory."""
LONG_PIECES_MAX: Final = 8
"""Pieces of that length in memory at once; others are shorter."""
SHORT_PIECE_BYTES: Final = 1 << 20
SHORT_PIECES_MAX: Final = 1 << 16
"""Of a body, so that its extents are never more than it has ids."""
STREAMS_MAX: Final = 4
"""Pieces that go to the bucket at once; others wait."""
IDS_PER_BODY: Final = 1 << 20
"""Extents of the longest body, and more."""
_BLOB_BYTES_MAX: Final = 64 << 20


class Overflow:
    """Takes long bodies to the bucket. Any task may call."""

    def __init__(
        self,
        ledger: CatalogLedger,
        blobs: Blobs,
        check_claim: Callable[[], Awaitable[None]],
        hold: Callable[[int], None],
        release: Callable[[int], None],
        *,
        read_back: bool,
    ) -> None:
        """`check_claim`: RemoteRefused when the bucket is another's by now. `hold` and `release`: a blob that nothing
        is in stays meanwhile.
        """
        self._ledger = ledger
        self._blobs = blobs
        self._check_claim = check_claim
        self._hold = hold
        self._release = release
        self._read_back = read_back
        self._streams = trio.CapacityLimiter(STREAMS_MAX)
        self._long_pieces_count = 0
        self.bodies_count = 0

    @asynccontextmanager
    async def take(self, body: FillingBody) -> AsyncIterator[tuple[int, bytes, tuple[Extent, ...], int]]:
        """All of a body, durable in the bucket: (size, MD5, extents, id of the first one). Commit inside.

        Raises Unavailable when the bucket does not take it, and what the body raises; then the blobs go again.
        """
        held: list[int] = []
        try:
            taken = await self._take(body, held)
            self.bodies_count += 1
            yield taken
        finally:
            for blob in held:
                self._release(blob)

    async def _take(self, body: FillingBody, held: list[int]) -> tuple[int, bytes, tuple[Extent, ...], int]:
        extents: list[Extent] = []
        md5, size, first = hashlib.md5(usedforsecurity=False), 0, 0
        try:
            await self._check_claim()
            while True:
                with self._piece(len(extents)) as piece:
                    if not (filled := await _fill(body, piece)):
                        break
                    async with self._streams:
                        data = memoryview(piece)[:filled]
                        await trio.to_thread.run_sync(md5.update, data)
                        if not first:
                            first = (await self._ledger.begin(IDS_PER_BODY)).number + 1
                        name, kept = await self._put(first + len(extents), data, held)
                    extents.append(Extent(filled, IN_BLOB, name.number, kept.offset))
                    size += filled
        except (RemoteError, Corrupt) as error:
            raise Unavailable(f"the disks are full, and the bucket does not take the body now: {error}") from error
        return size, md5.digest(), tuple(extents), first

    @contextmanager
    def _piece(self, number: int) -> Iterator[bytearray]:
        """Memory for that piece of a body."""
        is_long = self._long_pieces_count < LONG_PIECES_MAX or number >= SHORT_PIECES_MAX
        self._long_pieces_count += is_long
        try:
            yield bytearray(PIECE_BYTES if is_long else SHORT_PIECE_BYTES)
        finally:
            self._long_pieces_count -= is_long

    async def _put(self, extent: int, data: memoryview, held: list[int]) -> tuple[BlobName, Held]:
        packer = BlobPacker(_BLOB_BYTES_MAX)
        packer.add(extent, data)
        name, index = await self._blobs.begin_and_put(self._ledger.begin, packer, read_back=self._read_back)
        self._hold(name.number)
        held.append(name.number)
        # it counts from now on, and nothing is in it before the body's record says so
        await self._ledger.note(name, index)
        return name, index[0]


async def _fill(body: FillingBody, piece: bytearray) -> int:
    """Read until the piece is full or the body ends; answers how much came."""
    filled = 0
    while filled < len(piece) and (count := await body.read_into(memoryview(piece)[filled:])):
        filled += count
    return filled
