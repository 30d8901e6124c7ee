"""Blobs of which little is in use: what lives in them is packed into another one, and they die. The job `pack-bucket`.

Compaction, in the bucket, by the steps of an upload. What a blob holds is read and verified; a new blob is begun by a
record, put under a name that none had, and proved to be there; then records compare where each extent has its copy, and
set it. Until its record an extent has the old copy, from then on the new one. Cut off anywhere, the new blob is dead
room, all of it or a part, and what is left in the old ones is packed again.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple

import trio

from couchestord import logs
from couchestord.ec.throttle import Throttle
from couchestord.errors import Corrupt, DataLost, NoSuchBlob, RemoteError, Unavailable, UnknownFormat
from couchestord.io.catalog.copies import BlobRow, CopyReader
from couchestord.io.catalog.read import ExtentRow
from couchestord.io.mutations import IN_BLOB
from couchestord.remote.backend import Buffer
from couchestord.remote.backoff import Backoff
from couchestord.remote.blob import BlobPacker, Held, size_max
from couchestord.remote.blobs import Blobs
from couchestord.remote.options import UploadOptions
from couchestord.remote.uploader import Read
from couchestord.service import Progress
from couchestord.store.athand import Holds
from couchestord.store.ledger import CatalogLedger

log = logs.get(__name__)

GAIN_RATIO_MAX: Final = 0.75
"""A blob is packed when what is left takes at most so much of its room in another one."""
CANDIDATES_MAX: Final = 64
"""Thin blobs that are looked at in one step."""
_ROWS_PER_PAGE: Final = 1024


class Thin(NamedTuple):
    """A blob of which less than half is in use."""

    blob: BlobRow
    packed_bytes: int
    """What is left takes at most so much in a blob of its own."""


def is_worth_it(thin: Thin) -> bool:
    """What is left takes clearly less elsewhere, so that packing ends: where extents are small, most of a blob are the
    index and the sums, however it is packed.
    """
    return thin.packed_bytes <= GAIN_RATIO_MAX * thin.blob.size


def choose(thin: Iterable[Thin], blob_bytes: int) -> list[BlobRow]:
    """Those whose rest goes into one blob of that size, in this order; the first in any case. None is looked at behind
    the first that has no room.
    """
    chosen: list[BlobRow] = []
    left_bytes = blob_bytes
    for one in thin:
        if not is_worth_it(one):
            continue
        left_bytes -= one.packed_bytes
        if left_bytes < 0 and chosen:
            break
        chosen.append(one.blob)
    return chosen


class BlobCompactor:
    """A service: one new blob a step, which it holds in memory. It reads no more than that in a step, and nothing while
    the bucket fails.

    A blob that holds an extent that cannot be read, here or there, stays as it is.
    """

    name = "pack-bucket"

    def __init__(
        self,
        catalog: CopyReader,
        ledger: CatalogLedger,
        blobs: Blobs,
        read: Read,
        check_claim: Callable[[], Awaitable[None]],
        pins: Holds,
        throttle: Throttle,
        options: UploadOptions,
        turn: trio.Lock,
        is_put_off: Callable[[], bool] = lambda: False,
        on_gone: Callable[[int], None] = lambda _blob: None,
    ) -> None:
        """`read`: from wherever an extent lies. `check_claim`: RemoteRefused when the bucket is another's by now.
        `turn`: of all who hold a blob in memory. `is_put_off`: whether others need the bucket more, or it fails.
        `on_gone`: told of a blob that is not there.
        """
        self._catalog = catalog
        self._ledger = ledger
        self._blobs = blobs
        self._read = read
        self._check_claim = check_claim
        self._pins = pins
        self._throttle = throttle
        self._options = options
        self._turn = turn
        self._is_put_off = is_put_off
        self._on_gone = on_gone
        self._backoff = Backoff("blobs were not packed", options.retry_s, options.retry_s_max)
        self._passed_over: dict[int, int] = {}
        """Live bytes of thin blobs when they were found not worth it, or could not be read."""
        self.packed_blobs_count = 0
        """Those that died of it."""
        self.packed_bytes = 0
        """Of extents that were given another place."""

    @property
    def interval_s(self) -> float:
        return min(60.0, max(1.0, self._options.linger_s / 4))

    @property
    def trouble(self) -> str:
        """Why the last attempt failed; empty when it did not."""
        return self._backoff.trouble

    async def work(self) -> Progress:
        """Pack what fills a blob."""
        async with self._turn:
            if not self._backoff.is_due(trio.current_time()) or self._is_put_off():
                return Progress.IDLE
            victims = self._choose()
            if not victims:
                return Progress.IDLE
            if not self._throttle.is_open():
                return Progress.THROTTLED
            held = [victim.id for victim in victims]
            self._pins.hold(held)
            try:
                await self._pack(victims)
            except (RemoteError, Corrupt, Unavailable) as error:
                self._backoff.failed(error, trio.current_time())
                return Progress.IDLE
            finally:
                self._pins.release(held)
            self._backoff.succeeded()
            return Progress.BUSY

    # -- which -----------------------------------------------------------------------------------------------------

    def _choose(self) -> list[BlobRow]:
        rows = self._catalog.thin(CANDIDATES_MAX + len(self._passed_over))
        passed = self._passed_over
        self._passed_over = {row.id: row.live_bytes for row in rows if passed.get(row.id) == row.live_bytes}
        new = [row for row in rows if row.id not in self._passed_over]
        return choose(map(self._look, new), self._options.blob_bytes)

    def _look(self, row: BlobRow) -> Thin:
        found = Thin(row, size_max(row.live_bytes, self._catalog.extents_count(row.id)))
        if not is_worth_it(found):
            self._passed_over[row.id] = row.live_bytes
        return found

    # -- one blob --------------------------------------------------------------------------------------------------

    async def _pack(self, victims: Sequence[BlobRow]) -> None:
        await self._check_claim()
        packer = BlobPacker(self._options.blob_bytes)
        origins: dict[int, set[int]] = {}
        for victim in victims:
            try:
                found = await self._gather(victim)
            except (DataLost, NoSuchBlob, Corrupt, UnknownFormat) as error:
                self._passed_over[victim.id] = victim.live_bytes
                log.error("a blob cannot be packed", blob=self._key(victim), reason=str(error))
                if isinstance(error, NoSuchBlob):
                    self._on_gone(victim.id)
                continue
            origins[victim.id] = {extent for extent, data in found if packer.add(extent, data)}
        if not packer.extents_count:
            return
        name, index = await self._blobs.begin_and_put(self._ledger.begin, packer, read_back=self._options.read_back)
        for victim in victims:
            moved = [held for held in index if held.extent in origins.get(victim.id, ())]
            await self._ledger.replace(name, index, moved, victim.id)
            self.packed_bytes += sum(held.length for held in moved)
        died = [victim for victim in victims if (row := self._catalog.blob(victim.id)) is None or not row.live_bytes]
        self.packed_blobs_count += len(died)
        log.info("blobs were packed", blob=name.key, extents=len(index), packed=[self._key(row) for row in died])

    async def _gather(self, victim: BlobRow) -> list[tuple[int, Buffer]]:
        """All that lives in a blob, verified. Raises as `read` and `Blobs.read` do."""
        away: list[Held] = []
        found: list[tuple[int, Buffer]] = []
        for row in await self._rows(victim.id):
            if row.segment == IN_BLOB:
                away.append(Held(row.id, row.stripe_start, row.length))
            elif (data := await self._read(row.id)) is not None:
                found.append((row.id, data))
        away.sort(key=lambda held: held.offset)
        name, whole = self._blobs.name(victim.epoch, victim.id), bytearray()
        async with aclosing(self._blobs.read_all(name, away)) as pieces:
            async for held, piece in pieces:
                self._throttle.spend(len(piece))
                whole += piece
                if len(whole) == held.length:
                    found.append((held.extent, whole))
                    whole = bytearray()
        return found

    async def _rows(self, blob: int) -> list[ExtentRow]:
        rows: list[ExtentRow] = []
        while page := self._catalog.extents_in_blob(blob, rows[-1].id if rows else 0, _ROWS_PER_PAGE):
            rows += page
            await trio.lowlevel.checkpoint()
        return rows

    def _key(self, row: BlobRow) -> str:
        return self._blobs.name(row.epoch, row.id).key
