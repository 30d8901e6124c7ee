"""What lies in stripes goes into blobs: the job `upload`.

There is no queue: an extent without a copy waits, and the catalog says which these are. A blob is put between two
records. The first says that it is begun, so that whatever becomes of it is known; the second, once the blob was proved
to be there, what it holds. Only from then on does anything rely on it. Cut off anywhere, the extents wait as before and
go into another blob, of another name.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, Protocol

import trio

from couchestord import logs
from couchestord.errors import Corrupt, DataLost, RemoteError, Unavailable
from couchestord.remote.backend import Buffer
from couchestord.remote.backoff import Backoff
from couchestord.remote.blob import BlobName, BlobPacker, Held
from couchestord.remote.blobs import Blobs
from couchestord.remote.options import UploadOptions
from couchestord.service import Progress

log = logs.get(__name__)

_MARKS_MAX: Final = 256
_MARKS_APART_S: Final = 1.0
_SKIPPED_MAX: Final = 4096


class Waiting(NamedTuple):
    """An extent that has no copy."""

    extent: int
    length: int


class Ledger(Protocol):
    """What the catalog says of blobs. Its async calls are records: durable when they return; Unavailable."""

    def newest(self) -> int:
        """No committed extent has a higher id."""
        ...

    def waiting(self, after: int, limit: int) -> Sequence[Waiting]:
        """Committed extents that lie in stripes and have no copy, by id, from behind `after` on; quick."""
        ...

    async def begin(self) -> BlobName:
        """A blob is begun, of a name that none had before in this epoch."""
        ...

    async def confirm(self, name: BlobName, index: Sequence[Held]) -> int:
        """The blob is proved. Those of its extents that still exist, and have no copy, have one now: how many."""
        ...


Read = Callable[[int], Awaitable[Buffer | None]]
"""All bytes of an extent, verified; None when it is gone. May raise DataLost."""


class Uploader:
    """A service. Holds one blob in memory at a time."""

    name = "upload"

    def __init__(
        self,
        ledger: Ledger,
        blobs: Blobs,
        read: Read,
        check_claim: Callable[[], Awaitable[None]],
        options: UploadOptions,
        is_urgent: Callable[[], bool] = lambda: False,
    ) -> None:
        """`check_claim`: RemoteRefused when the bucket is another's by now; asked before each blob. `is_urgent`:
        whether nothing should linger.
        """
        self._is_urgent = is_urgent
        self._ledger = ledger
        self._blobs = blobs
        self._read = read
        self._check_claim = check_claim
        self._options = options
        self.turn = trio.Lock()
        """Of all who hold a blob in memory."""
        self._marks: deque[tuple[int, float]] = deque()
        self._marks_apart_s = _MARKS_APART_S
        self._skipped: set[int] = set()
        """Extents that could not be read ..."""
        self._behind = 0
        """... and of those up to this one so many that they are passed over, all of them ..."""
        self._skipped_until = 0.0
        """... until then."""
        self._backoff = Backoff("uploads were put off", options.retry_s, options.retry_s_max)
        self.copied_extents_count = 0
        self.copied_bytes = 0
        self.unreadable_extents_count = 0

    @property
    def interval_s(self) -> float:
        return min(10.0, max(0.01, self._options.linger_s / 4))

    @property
    def trouble(self) -> str:
        """Why the last attempt failed; empty when it did not."""
        return self._backoff.trouble

    def age_s(self) -> float:
        """How long the oldest extent that waits has waited, since this start; a hundredth less, at most. 0: none."""
        first = self._ledger.waiting(0, 1)
        return self._age_s(first[0].extent) if first else 0.0

    def _age_s(self, extent: int) -> float:
        return max((trio.current_time() - at for newest, at in self._marks if newest >= extent), default=0.0)

    async def work(self) -> Progress:
        """Upload one blob, if one is due. Steps take turns."""
        async with self.turn:
            self._mark()
            if not self._backoff.is_due(trio.current_time()):
                return Progress.IDLE
            batch = self._next()
            if not batch:
                if trio.current_time() >= self._skipped_until:
                    self._skipped.clear()
                    self._behind = 0
                return Progress.IDLE
            try:
                await self._upload(batch)
            except (RemoteError, Corrupt, Unavailable) as error:
                self._backoff.failed(error, trio.current_time())
                return Progress.IDLE
            self._backoff.succeeded()
            return Progress.BUSY

    # -- which -----------------------------------------------------------------------------------------------------

    def _mark(self) -> None:
        """Remember when which extents were there: they have no times of their own, their ids are in order."""
        first = self._ledger.waiting(0, 1)
        while self._marks and (not first or self._marks[0][0] < first[0].extent):
            self._marks.popleft()
        if not self._marks:
            self._marks_apart_s = _MARKS_APART_S
        newest, now = self._ledger.newest(), trio.current_time()
        if not first:
            return
        if not self._marks or (self._marks[-1][0] < newest and now >= self._marks[-1][1] + self._marks_apart_s):
            self._marks.append((newest, now))
            if len(self._marks) > _MARKS_MAX:
                self._marks = deque(list(self._marks)[::2])
                self._marks_apart_s *= 2

    def _next(self) -> list[Waiting]:
        """What fills a blob, or what has lingered; nothing when neither is the case."""
        options = self._options
        batch: list[Waiting] = []
        size_bytes = 0
        for one in self._ledger.waiting(self._behind, options.extents_max + len(self._skipped)):
            if one.extent in self._skipped:
                continue
            if batch and size_bytes + one.length > options.blob_bytes:
                return batch
            batch.append(one)
            size_bytes += one.length
        is_full = size_bytes >= options.blob_bytes or len(batch) >= options.extents_max
        if not batch or is_full or self._is_urgent():
            return batch
        # what cannot be read waits for ever: others need not go one by one for that
        return batch if self._age_s(batch[0].extent) >= options.linger_s else []

    # -- one blob --------------------------------------------------------------------------------------------------

    async def _upload(self, batch: Sequence[Waiting]) -> None:
        await self._check_claim()
        packer = await self._gather(batch)
        if not packer.extents_count:
            return
        name, index = await self._blobs.begin_and_put(self._ledger.begin, packer, read_back=self._options.read_back)
        copied_count = await self._ledger.confirm(name, index)
        self.copied_extents_count += copied_count
        self.copied_bytes += sum(held.length for held in index)
        log.info("a blob was uploaded", blob=name.key, extents=len(index), copied=copied_count)

    async def _gather(self, batch: Sequence[Waiting]) -> BlobPacker:
        """What is still there and can be read. Raises Unavailable when all that is there cannot."""
        packer = BlobPacker(self._options.blob_bytes)
        unreadable_count = 0
        for one in batch:
            try:
                data = await self._read(one.extent)
            except DataLost as error:
                log.warning("an extent could not be uploaded", extent=one.extent, reason=str(error))
                unreadable_count += 1
                self._skipped_until = trio.current_time() + self._options.linger_s
                if len(self._skipped) < _SKIPPED_MAX:
                    self._skipped.add(one.extent)
                continue
            if data is not None and not packer.add(one.extent, data):
                break  # frames and index made it too long: the rest waits
        self.unreadable_extents_count += unreadable_count
        if unreadable_count and not packer.extents_count:
            self._behind = batch[-1].extent
            raise Unavailable(f"none of {unreadable_count} extents could be read")
        return packer
