"""The third tier, wired: a bucket of another store, or a folder, that has a copy of what lies in stripes, or all of it.

Mode `cache`: everything stays on the disks as well. Mode `tiered`: when the disks are full, what was not read for
longest is in the bucket only.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import trio

from couchestord.clock import Clock
from couchestord.ec.segments import SegmentPool, Submit
from couchestord.ec.throttle import Throttle
from couchestord.io.catalog.catalog import Catalog
from couchestord.io.catalog.copies import ALL
from couchestord.io.disks import Disks, replicas_needed
from couchestord.io.mutations import IN_BLOB, LOST
from couchestord.io.room import ask_room
from couchestord.remote.backend import Backend
from couchestord.remote.blobs import Blobs
from couchestord.remote.claims import Gate
from couchestord.remote.leftovers import Leftovers
from couchestord.remote.publisher import Publisher
from couchestord.remote.roots import Roots
from couchestord.remote.uploader import Uploader
from couchestord.service import Service
from couchestord.store.athand import ReaderParts
from couchestord.store.cleaning import Cleaner
from couchestord.store.copies import Copies
from couchestord.store.evicting import Evictor
from couchestord.store.history import StoreHistory
from couchestord.store.ledger import CatalogLedger, ClaimsKept
from couchestord.store.options import L3Options
from couchestord.store.overflow import Overflow
from couchestord.store.packing import BlobCompactor
from couchestord.store.reader import ExtentSource
from couchestord.store.views import Views

_THROTTLED_S = 0.05


class L3:
    """What a running store has of the bucket. Belongs to one trio loop; close it when its services have ended."""

    def __init__(self, options: L3Options, backend: Backend, catalog: Catalog, disks: Disks, clock: Clock) -> None:
        self._options = options
        self._backend = backend
        self._catalog = catalog
        self._disks = disks
        self._epoch = disks.epoch
        self._blobs = Blobs(backend, disks.store_id)
        self._clock = clock
        self._gate: Gate | None = None
        self.copies = Copies(catalog.copies, self._blobs)
        self._uploader: Uploader | None = None
        self._leftovers: Leftovers | None = None
        self._cleaner: Cleaner | None = None
        self._packing: BlobCompactor | None = None
        self._publisher: Publisher | None = None
        self._evictor: Evictor | None = None
        self._overflow: Overflow | None = None

    def employ(
        self,
        parts: ReaderParts,
        pool: SegmentPool,
        views: Views,
        submit: Submit,
        throttle: Throttle,
        history: StoreHistory,
    ) -> None:
        """Make the jobs; nothing runs yet. Not for a store that is read only: it writes nothing to a bucket either."""
        self._catalog.find_waiting()
        store_id, random_bytes = self._disks.store_id, self._clock.random_bytes
        memory = ClaimsKept(self._catalog.accounts.jobs, submit)
        self._gate = gate = Gate(self._backend, store_id, self._epoch, random_bytes, memory)
        ledger = CatalogLedger(self._catalog.copies, submit, store_id, self._epoch)
        read = _reading(parts, throttle)
        options = self._options
        self._leftovers = Leftovers(ledger, self._blobs, read, gate.check)
        self._publisher = publisher = self._publishing(history, gate)
        self._cleaner = cleaner = Cleaner(
            self._catalog.copies,
            submit,
            _reading(parts, throttle, here=True),
            self._blobs,
            self._epoch,
            gate.check,
            lambda blob: views.is_unseen(blob) and not pool.is_pinned(blob),
            lambda: publisher.kept_from,
            self._catalog.accounts.jobs,
        )
        self.copies.on_damage = self._cleaner.report
        if self.is_tiered:
            assert parts.read_at is not None
            is_bad, marks = self._cleaner.is_bad, options.watermarks
            self._evictor = Evictor(self._catalog, submit, self._left_bytes, parts.read_at, marks, is_bad)
            self._overflow = Overflow(
                ledger,
                self._blobs,
                gate.check,
                pool.pin,
                lambda blob: pool.unpin([blob]),
                read_back=options.upload.read_back,
            )
        evictor = self._evictor
        self._uploader = uploader = Uploader(
            ledger,
            self._blobs,
            read,
            gate.check,
            options.upload,
            is_urgent=lambda: evictor is not None and evictor.is_short,
        )
        self._packing = BlobCompactor(
            self._catalog.copies,
            ledger,
            self._blobs,
            read,
            gate.check,
            parts.pins,
            throttle,
            options.upload,
            uploader.turn,
            # what has no copy comes first
            is_put_off=lambda: bool(uploader.trouble) or (evictor is not None and evictor.is_short),
            on_gone=lambda blob: cleaner.report(blob, ALL),
        )

    def _publishing(self, history: StoreHistory, gate: Gate) -> Publisher:
        return Publisher(
            history,
            Roots(self._backend, self._disks.store_id),
            self._disks.store_id,
            self._epoch,
            history.founding(),
            gate.check,
            self._clock.now_ns,
            self._options.publish,
            # what was dropped stays until no catalog there names it
            is_awaited=lambda: bool(self._catalog.copies.dropped(self._catalog.committed_sequence + 1, 1)),
        )

    @property
    def is_tiered(self) -> bool:
        """Whether what was not read for long lies in the bucket only."""
        return self._options.mode == "tiered"

    def overflow(self) -> Overflow | None:
        """Where long bodies go now, past the disks; None: to the disks."""
        if self._evictor is None:
            return None
        disks = self._disks
        is_tight = len(disks.roomy()) < replicas_needed(disks.m, disks.missing_count()) <= len(disks.good())
        is_full = self._evictor.fill_percent >= self._options.watermarks.bypass
        return self._overflow if is_tight or is_full else None

    def note_read(self, segments: Iterable[int]) -> None:
        """Another process has just read from these."""
        if self._evictor is not None:
            self._evictor.note_read(segments)

    async def _left_bytes(self) -> int:
        return sum(room.left_bytes for room in (await ask_room(self._disks)).values())

    def services(self) -> Iterator[Service]:
        """Each of the jobs."""
        jobs = (self._uploader, self._packing, self._publisher, self._leftovers, self._cleaner, self._evictor)
        yield from (job for job in jobs if job is not None)

    async def aclose(self) -> None:
        """Give connections back."""
        await self._backend.aclose()

    # -- what there is to say ------------------------------------------------------------------------------------------

    def reasons(self) -> list[str]:
        """What is wrong, for people; nothing while all is well."""
        found: list[str] = []
        uploader = self._uploader
        if uploader is None:
            return found
        if uploader.trouble:
            found.append(f"the bucket {self._backend.name} gets no copies: {uploader.trouble}")
        if self._publisher is not None and self._publisher.trouble:
            found.append(f"the bucket {self._backend.name} does not get the catalog: {self._publisher.trouble}")
        age_s = uploader.age_s()
        if age_s > self._options.upload.linger_s + self._options.backlog_age_s_max:
            found.append(f"data has waited for its copy in {self._backend.name} for {age_s / 3600:.1f} h")
        return found

    def status(self) -> dict[str, Any]:
        """Ready for JSON."""
        blobs_count, size_bytes, live_bytes, only_bytes = self._catalog.copies.totals()
        uploader, evictor, cleaner, publisher = self._uploader, self._evictor, self._cleaner, self._publisher
        packing = self._packing
        return {
            "mode": self._options.mode,
            "backend": self._backend.name,
            "claimed": self._gate is not None and self._gate.is_open,
            "trouble": uploader.trouble if uploader else "the store is read only",
            "blobs": blobs_count,
            "bytes": size_bytes,
            "live_bytes": live_bytes,
            "only_bytes": only_bytes,
            "dead_bytes": self._catalog.copies.dead_bytes(),
            "waiting_bytes": max(0, self._catalog.copies.bytes_in_stripes() - (live_bytes - only_bytes)),
            "waiting_seconds": round(uploader.age_s(), 1) if uploader else 0.0,
            "uploaded_bytes": uploader.copied_bytes if uploader else 0,
            "bypassed_bodies": self._overflow.bodies_count if self._overflow else 0,
            "evicted_bytes": evictor.evicted_bytes if evictor else 0,
            "fill_percent": round(evictor.fill_percent, 1) if evictor else None,
            "reads": self.copies.reads_count,
            "read_bytes": self.copies.read_bytes,
            "published_sequence": publisher.sequence if publisher else 0,
            "unpublished_records": self._catalog.committed_sequence - publisher.sequence if publisher else 0,
            "packed_blobs": packing.packed_blobs_count if packing else 0,
            "packed_bytes": packing.packed_bytes if packing else 0,
            "packing_trouble": packing.trouble if packing else "",
            "deleted_blobs": cleaner.deleted_count if cleaner else 0,
            "lost_copies": cleaner.lost_copies_count if cleaner else 0,
        }


def _reading(
    parts: ReaderParts, throttle: Throttle, *, here: bool = False
) -> Callable[[int], Awaitable[bytes | memoryview | None]]:
    async def read(extent_id: int) -> bytes | memoryview | None:
        """All bytes of an extent, from the disks, or else, unless `here`, from its copy."""
        while not throttle.is_open(urgent=True):
            await trio.sleep(_THROTTLED_S)
        row = parts.catalog.extent(extent_id)
        if row is None or (here and row.segment in (IN_BLOB, LOST)):
            return None
        source = ExtentSource(parts, row, parts.catalog.layout(row.segment) if row.segment else None)
        source.hold()
        try:
            data = await (source.load_here if here else source.load)(0, row.length)
        finally:
            source.release()
        throttle.spend(row.length)
        return data

    return read
