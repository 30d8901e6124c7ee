"""A catalog of extents as uploads see it, and a bucket, both of which outlive a crash at any point."""

import itertools
import random
from collections.abc import Callable, Sequence

import trio
from memory_backend import MemoryBackend

from couchestord.errors import DataLost
from couchestord.remote.backend import Backend
from couchestord.remote.blob import BlobName, Held
from couchestord.remote.blobs import Blobs
from couchestord.remote.claims import Claim
from couchestord.remote.leftovers import Leftovers
from couchestord.remote.options import UploadOptions
from couchestord.remote.uploader import Uploader, Waiting

STORE = bytes(range(16))
QUICK = UploadOptions(blob_bytes=100_000, linger_s=0.0, retry_s=0.0)


class Crash(Exception):
    """The process ends here."""


def crash_at(number: int) -> Callable[[str], None]:
    """For the `at` of a rig: the process ends at that event, from 1."""
    events = itertools.count(1)

    def at(event: str) -> None:
        if next(events) == number:
            raise Crash(event)

    return at


class UploadRig:
    """`extents`, `copies`, `begun` and the bucket are what lasts. `at` is called before and after whatever lasts; of a
    bucket that is not the rig's own it is not told.
    """

    def __init__(self, seed: int = 1, bucket: Backend | None = None) -> None:
        self.random = random.Random(seed)
        self.backend = MemoryBackend(keys_per_page=100)
        self.bucket = bucket or self.backend
        self.blobs = Blobs(self.bucket, STORE)
        self.extents: dict[int, bytes] = {}
        self.in_stripes: set[int] = set()
        self.unreadable: set[int] = set()
        self.copies: dict[int, tuple[BlobName, Held]] = {}
        self.begun: list[BlobName] = []
        self.epoch = 1
        self.next_id = 16
        self.at: Callable[[str], None] = lambda _event: None
        self.backend.before = lambda call, _key: self.at(f"before {call}")
        self.backend.after = lambda call, _key: self.at(f"after {call}")

    # -- what clients and other jobs do ----------------------------------------------------------------------------

    def make(self, length: int, *, destaged: bool = True) -> int:
        """A new extent."""
        id_ = self.next_id
        self.next_id += 1
        self.extents[id_] = self.random.randbytes(length)
        if destaged:
            self.in_stripes.add(id_)
        return id_

    def delete(self, extent: int) -> None:
        del self.extents[extent]
        self.copies.pop(extent, None)
        self.in_stripes.discard(extent)

    # -- Ledger ----------------------------------------------------------------------------------------------------

    def newest(self) -> int:
        return self.next_id - 1

    def waiting(self, after: int, limit: int) -> Sequence[Waiting]:
        ids = [id_ for id_ in sorted(self.in_stripes) if id_ > after and id_ not in self.copies]
        return [Waiting(id_, len(self.extents[id_])) for id_ in ids[:limit]]

    async def begin(self) -> BlobName:
        self.at("before begin")
        await trio.lowlevel.checkpoint()
        self.begun.append(self.blobs.name(self.epoch, self.next_id))
        self.next_id += 1
        self.at("after begin")
        return self.begun[-1]

    async def confirm(self, name: BlobName, index: Sequence[Held]) -> int:
        self.at("before confirm")
        await trio.lowlevel.checkpoint()
        assert name in self.begun
        assert name.epoch == self.epoch, "a blob of an epoch that is over"
        new = [held for held in index if held.extent in self.extents and held.extent not in self.copies]
        self.copies.update({held.extent: (name, held) for held in new})
        self.at("after confirm")
        return len(new)

    # -- BegunBlobs ------------------------------------------------------------------------------------------------

    def left(self, after: int) -> Sequence[BlobName]:
        confirmed = {name for name, _ in self.copies.values()}
        found = [name for name in self.begun if name.epoch < self.epoch and name not in confirmed]
        return [name for name in found if name.number > after][:3]

    async def drop(self, name: BlobName) -> None:
        self.at("before drop")
        await trio.lowlevel.checkpoint()
        self.begun.remove(name)
        self.at("after drop")

    # -- the job ---------------------------------------------------------------------------------------------------

    async def read(self, extent: int) -> bytes | None:
        self.at("read")
        await trio.lowlevel.checkpoint()
        if extent in self.unreadable:
            raise DataLost(f"extent {extent}")
        return self.extents.get(extent)

    async def start(self, options: UploadOptions = QUICK) -> Uploader:
        """A new process: a new epoch, a claim, nothing remembered."""
        self.epoch += 1
        claim = Claim(self.bucket, STORE, self.epoch)
        await claim.take(self.random.randbytes)
        return Uploader(self, self.blobs, self.read, claim.check, options)

    def leftovers(self) -> Leftovers:
        """The other job of the same process."""
        return Leftovers(self, self.blobs, self.read, Claim(self.backend, STORE, self.epoch).check)

    async def check(self) -> None:
        """What has a copy can be read from there, byte for byte."""
        at, self.at = self.at, lambda _event: None
        for extent, (name, held) in self.copies.items():
            assert await self.blobs.read(name, held, 0, held.length) == self.extents[extent], extent
        self.at = at
