"""Blobs that an earlier start began and never confirmed: the job `leftovers`.

Such a blob may be missing, or be there for nothing. Or it may be the last copy of something: when more disks were lost
than the log survives, the log may end before the record that confirmed the blob. So one is deleted only when every
extent in it is gone from the catalog, or is there, the same byte for byte: on the disks, or in a blob that counts.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from couchestord import logs
from couchestord.errors import Corrupt, DataLost, NoSuchBlob, RemoteError, Unavailable, UnknownFormat
from couchestord.remote.backend import Buffer
from couchestord.remote.blob import BlobName, Held
from couchestord.remote.blobs import Blobs
from couchestord.service import Progress

log = logs.get(__name__)

_COMPARED_BYTES = 4 << 20

Read = Callable[[int], Awaitable[Buffer | None]]
"""All bytes of an extent, verified, from where the catalog says they are; None when it is gone. May raise DataLost,
Unavailable.
"""


class BegunBlobs(Protocol):
    """What the catalog says of them."""

    def left(self, after: int) -> Sequence[BlobName]:
        """Begun in epochs before this one and not confirmed: some of greater numbers, in order; none at the end."""
        ...

    async def drop(self, name: BlobName) -> None:
        """Forget it; durable on return. Raises Unavailable."""
        ...


class Leftovers:
    """A service: a blob a step. What has to stay is looked at again after the next start."""

    name = "leftovers"
    interval_s = 60.0

    def __init__(self, begun: BegunBlobs, blobs: Blobs, read: Read, check_claim: Callable[[], Awaitable[None]]) -> None:
        """`check_claim`: RemoteRefused when the bucket is another's by now."""
        self._begun = begun
        self._blobs = blobs
        self._read = read
        self._check_claim = check_claim
        self._turn = trio.Lock()
        self._after = 0
        """Number of the one that was judged last."""
        self.kept: set[BlobName] = set()
        """Those that stay: nobody could say that they are not needed."""
        self.deleted_count = 0

    async def work(self) -> Progress:
        """Judge one blob. Steps take turns."""
        async with self._turn:
            page = self._begun.left(self._after)
            if not page:
                self._after = 0
                return Progress.IDLE
            name = next((name for name in page if name not in self.kept), None)
            # one that cannot be judged now keeps no other from it
            self._after = (name or page[-1]).number
            if name is None:
                return Progress.BUSY
            try:
                await self._judge(name)
            except (RemoteError, Unavailable) as error:
                log.warning("a blob that was left could not be judged", blob=name.key, reason=str(error))
                return Progress.IDLE
            return Progress.BUSY

    async def _judge(self, name: BlobName) -> None:
        try:
            for held in await self._blobs.index(name):
                if not await self._is_needless(name, held):
                    self._keep(name, f"extent {held.extent} is not here, or is another")
                    return
        except NoSuchBlob:
            await self._begun.drop(name)
            return
        except (Corrupt, UnknownFormat, DataLost) as error:
            self._keep(name, str(error))
            return
        await self._check_claim()
        await self._blobs.delete(name)  # first: a start in between finds it missing and forgets it
        await self._begun.drop(name)
        self.deleted_count += 1
        log.info("a blob that was left was deleted", blob=name.key)

    async def _is_needless(self, name: BlobName, held: Held) -> bool:
        data = await self._read(held.extent)
        if data is None:
            return True
        with memoryview(data) as here:
            if here.nbytes != held.length:
                return False
            for start in range(0, held.length, _COMPARED_BYTES):
                wanted = here[start : start + _COMPARED_BYTES]
                if await self._blobs.read(name, held, start, len(wanted)) != wanted:
                    return False
        return True

    def _keep(self, name: BlobName, reason: str) -> None:
        self.kept.add(name)
        log.warning("a blob that was left is kept", blob=name.key, reason=reason)
