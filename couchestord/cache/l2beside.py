"""The second cache in a process that reads beside the one that has it.

Chunks are found in the map that both share and read from the segments, as `l2` does. What is to be kept is handed over.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from couchestord import logs
from couchestord.cache.l2format import segment_path
from couchestord.cache.l2index import key_of, range_of, segment_of
from couchestord.cache.l2map import L2Map
from couchestord.cache.l2reading import ChunkReader, Records
from couchestord.cache.tier import TierStats
from couchestord.errors import DiskError, NoSuchFile
from couchestord.io.disk import Buffer, Disk

log = logs.get(__name__)
LOOK_S: Final = 0.25
"""How often it is looked whether the cache was turned on, emptied, or turned off."""
_RETRY_S: Final = 10.0
"""So long it is off in this process when its disk failed here."""


class Owner(Protocol):
    """The process that has the cache."""

    def keep(self, extent: int, chunk: int, data: bytes) -> bool:
        """Hand a chunk over. False when too much is on its way."""
        ...

    async def flush(self) -> None:
        """Until what was handed over is written, or was dropped. Never raises."""
        ...

    def report(self, extent: int, chunk: int, place: int) -> None:
        """See `L2.report`."""
        ...


@dataclass(frozen=True, slots=True)
class _Attached:
    disk: Disk
    records: Records
    sequence: int
    """Of the map's head."""


class L2Beside:
    """A `Tier` (which see) of another process, for one opening of its store. Belongs to one trio loop; `run` must be
    running for it to be on. What it holds and how much that is, the other process counts.
    """

    def __init__(
        self, shared: L2Map, opening: int, owner: Owner, open_disk: Callable[[], Awaitable[Disk]], reads_max: int
    ) -> None:
        """At most `reads_max` cold reads at a time; more are misses."""
        self._shared = shared
        self._opening = opening
        self._owner = owner
        self._open_disk = open_disk
        self._reader = ChunkReader(reads_max)
        self._attached: _Attached | None = None
        self._off_because = ""
        self._failed_sequence = -1
        self._retry_at = 0.0
        self._hits = self._misses = self._dropped = 0

    # -- what a tier does ---------------------------------------------------------------------------------------------

    def get_nowait(self, extent: int, chunk: int) -> bytes | None:
        found = self._find(extent, chunk)
        if found is None:
            return None
        attached, at, place = found
        raw = attached.disk.read_nowait(segment_path(segment_of(place)), *range_of(place))
        return None if raw is None else self._verify(attached, extent, chunk, at, place, raw)

    def holds(self, extent: int, chunk: int) -> bool:
        return self._find(extent, chunk) is not None

    async def get(self, extent: int, chunk: int) -> bytes | None:
        data = self.get_nowait(extent, chunk)
        if data is None:
            data = await self._get_cold(extent, chunk)
            if data is None:
                self._misses += 1
        return data

    async def _get_cold(self, extent: int, chunk: int) -> bytes | None:
        found = self._find(extent, chunk)
        if found is None:
            return None
        attached, at, place = found
        try:
            raw = await self._reader.read(attached.disk, place)
        except NoSuchFile:
            return None  # what the map said is out of date
        except DiskError as error:
            self._fail(attached, error)
            return None
        return None if raw is None else self._verify(attached, extent, chunk, at, place, raw)

    def put(self, extent: int, chunk: int, data: bytes) -> None:
        if self.holds(extent, chunk):
            return
        if self._current() is None or not key_of(extent, chunk) or not self._owner.keep(extent, chunk, data):
            self._dropped += 1

    async def flush(self) -> None:
        await self._owner.flush()

    async def evict(self) -> int:
        """Nothing is of this process: the other one forgets."""
        return 0

    def stats(self) -> TierStats:
        return TierStats(
            name="l2",
            capacity_bytes=0,
            size_bytes=0,
            entries_count=0,
            hits_count=self._hits,
            misses_count=self._misses,
            evictions_count=0,
            dropped_count=self._dropped,
            off_because=self._off_because,
        )

    def _current(self) -> _Attached | None:
        attached = self._attached
        return attached if attached is not None and attached.sequence == self._shared.sequence else None

    def _find(self, extent: int, chunk: int) -> tuple[_Attached, int, int] | None:
        """What to read from, the slot, and the place that it names."""
        attached, key = self._current(), key_of(extent, chunk)
        at = self._shared.find(key) if attached is not None and key else -1
        if attached is None or at < 0:
            return None
        place = self._shared.place(at)
        return (attached, at, place) if place else None

    def _verify(self, attached: _Attached, extent: int, chunk: int, at: int, place: int, raw: Buffer) -> bytes | None:
        """The chunk that a record holds, from a copy that nobody else can change; None when that is another one."""
        data = self._reader.chunk(attached.records, key_of(extent, chunk), raw)
        if data is not None:
            self._hits += 1
            self._shared.mark(at)
        elif self._find(extent, chunk) == (attached, at, place):
            # neither moved nor gone meanwhile
            self._owner.report(extent, chunk, place)
        return data

    # -- on and off ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow what the other process does with the cache, until cancelled."""
        try:
            while True:
                try:
                    await self._look()
                except Exception as error:
                    # a mistake of ours in here is no reason for the process to end
                    log.exception("cache failed")
                    self._note(error, self._shared.sequence)
                await trio.sleep(LOOK_S)
        finally:
            self._detach()

    async def _look(self) -> None:
        sequence = self._shared.sequence
        if self._current() is not None:
            return
        self._detach()
        if sequence == self._failed_sequence and trio.current_time() < self._retry_at:
            return
        records = self._shared.records(self._opening)
        if records is None:
            self._off_because = ""  # the other process says why
            return
        try:
            # again each time: another folder may have the name by now
            disk = await self._open_disk()
        except DiskError as error:
            self._note(error, sequence)
            return
        self._off_because = ""
        self._attached = _Attached(disk, records, sequence)
        log.debug("cache is on in this process", tier="l2", folder=disk.name)

    def _fail(self, attached: _Attached, error: DiskError) -> None:
        if self._attached is attached:
            self._detach()
            self._note(error, attached.sequence)

    def _note(self, error: Exception, sequence: int) -> None:
        if not self._off_because:
            log.warning("cache is off in this process, which goes on without it", tier="l2", reason=str(error))
        self._off_because = str(error)
        self._failed_sequence = sequence
        self._retry_at = trio.current_time() + _RETRY_S

    def _detach(self) -> None:
        if self._attached is not None:
            self._attached.disk.close()
            self._attached = None
