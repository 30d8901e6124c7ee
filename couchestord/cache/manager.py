"""The caches of a store, behind one face: memory first (L1), below it perhaps a tier on a device (L2).

Theory of operation. What is kept is a chunk: `CHUNK_BYTES` of an extent, whole and verified. Extents are immutable and
their ids are never used for other bytes, so nothing here can be out of date, nothing needs to be told of overwrites,
deletes and moves, and an entry that nobody can ask for any more goes like any other that nobody asks for. What is dirty
never gets here.

- A chunk that is in no tier is loaded once, however many ask for it: the first loads, in its own task, the others wait.
  One that fails hands the failure to nobody: who waited loads for itself, since it may know another place. One that is
  cancelled is followed by the next of those that wait.
- What is found below is promoted to memory. What memory drops is demoted if it was wanted: it was hit while it was
  here, or it came back after it had been dropped before. So a scan, which wants everything once, writes nothing below.
- Chunks of an extent that are missed one after the other are read ahead of, in the background. What is found in memory
  is not noted: to a reader in small steps it is all the same.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final, Protocol

import trio

from couchestord import logs
from couchestord.cache.flight import Flight
from couchestord.cache.settings import CacheConfig
from couchestord.cache.sieve import Cache, make_cache
from couchestord.cache.tier import CHUNK_BYTES, Tier, TierStats
from couchestord.errors import DataLost, Error, InternalError

AHEAD_BYTES_MAX: Final = 1 << 20
AHEADS_MAX: Final = 4
"""Reads ahead that run at a time; others are not begun."""
NEXTS_NOTED_MAX: Final = 1024
PARTS_NOTED_MAX: Final = 256
"""So many chunks later, a chunk that is asked for again was not asked for lately."""
DROPPED_NOTED_MAX: Final = 1 << 17
"""Keys of chunks that were dropped unwanted, and are remembered to be known when they come back: 200 bytes each."""
SETTLE_BYTES: Final = 512 << 10
"""Handed to the tier below at once when all is."""

log = logs.get(__name__)
Buffer = bytes | memoryview
Key = tuple[int, int]


class Source(Protocol):
    """Where the bytes of one extent come from when no cache has them."""

    async def load(self, first: int, length: int) -> Buffer:
        """A range of the extent, verified. Raises DataLost."""
        ...

    def hold(self) -> None:
        """Keep the bytes where they are until `release`: they are loaded by a task that outlives the caller."""
        ...

    def release(self) -> None: ...


class CacheManager:
    """Chunks of extents. Belongs to one trio loop; usable without a store, see `couchestord.cache`.

    `nursery` runs what is read ahead; without one, nothing is.
    """

    def __init__(
        self, config: CacheConfig | None = None, nursery: trio.Nursery | None = None, tier: Tier | None = None
    ) -> None:
        config = config or CacheConfig()
        self.is_on = config.l1_bytes > 0
        """False when nothing is kept: ask the source itself."""
        self._nursery = nursery
        self._tier = tier
        self._l1: Cache[Key] = make_cache(config.l1_bytes, config.l1_shards, None if tier is None else self._demote)
        self._flights: dict[Key, Flight] = {}
        # a plain dict takes ever longer to find its oldest entry
        self._dropped: OrderedDict[Key, None] = OrderedDict()
        self._parts_asked: OrderedDict[Key, None] = OrderedDict()
        self._nexts: OrderedDict[int, int] = OrderedDict()
        """Of an extent, the chunk behind those that were read, or read ahead, last."""
        self._aheads_count = 0
        self._promotions_count = 0
        self._below_misses_count = 0
        self._ahead_chunks = -(-min(AHEAD_BYTES_MAX, config.l1_bytes // 16) // CHUNK_BYTES)

    # -- without waiting -------------------------------------------------------------------------------------------

    def peek(self, extent: int, chunk: int) -> bytes | None:
        """A chunk that is in memory, or that the tier below has at hand. No miss is counted: who gets None goes on with
        `read`, or finds the bytes without waiting and `offer`s them.
        """
        data = self._l1.peek((extent, chunk))
        if data is None and self._tier is not None and (data := self._tier.get_nowait(extent, chunk)) is not None:
            self._l1.get((extent, chunk))  # a miss, which no `read` or `offer` will count
            self._promote((extent, chunk), data)
        return data

    def peek_range(self, extent: int, first: int, length: int) -> Buffer | None:
        """A range of an extent, if `peek` has all of it."""
        if not length:
            return b""
        low, high = first // CHUNK_BYTES, (first + length - 1) // CHUNK_BYTES
        if low == high:
            data = self.peek(extent, low)
            if data is None or len(data) == length:
                return data
            return memoryview(data)[first - low * CHUNK_BYTES :][:length]
        # of a range that `read` has to go on with, nothing is counted here
        if not all(self._may_have(extent, chunk) for chunk in range(low, high + 1)):
            return None
        chunks: list[bytes] = []
        for chunk in range(low, high + 1):
            data = self.peek(extent, chunk)
            if data is None:
                return None
            chunks.append(data)
        return b"".join(_cut(chunks, first - low * CHUNK_BYTES, length))

    def _may_have(self, extent: int, chunk: int) -> bool:
        return (extent, chunk) in self._l1 or (self._tier is not None and self._tier.holds(extent, chunk))

    def part_missed(self, extent: int, chunk: int) -> bool:
        """A small part of a chunk is wanted that `peek` did not find. True if one of it was lately: read all of it and
        `offer` that. False: read the part alone; a miss is counted.
        """
        key = (extent, chunk)
        if key in self._parts_asked:
            del self._parts_asked[key]
            return True
        if len(self._parts_asked) >= PARTS_NOTED_MAX:
            self._parts_asked.popitem(last=False)
        self._parts_asked[key] = None
        self._l1.get(key)
        self._below_misses_count += 1
        return False

    def is_part_noted(self, extent: int, chunk: int) -> bool:
        """Whether `part_missed` last said of this chunk to read the part alone."""
        return (extent, chunk) in self._parts_asked

    def offer(self, extent: int, chunk: int, data: bytes) -> None:
        """Keep a chunk that was found without this cache after `peek` did not have it: whole and verified."""
        key = (extent, chunk)
        if self._l1.get(key) is None:
            self._below_misses_count += 1
            self._admit(key, data)

    # -- with a source ---------------------------------------------------------------------------------------------

    async def read(
        self, extent: int, size: int, first: int, length: int, source: Source, *, wanted: bool = False
    ) -> Sequence[Buffer]:
        """A range of an extent of `size` bytes, in pieces. `wanted`: it is worth a place below when memory drops it.

        Whole chunks are loaded; when they cannot be, the range alone is. Raises what `source.load` raises.
        """
        if not length:
            return ()
        low, end = first // CHUNK_BYTES, -(-(first + length) // CHUNK_BYTES)
        try:
            chunks = await self._chunks(extent, size, range(low, end), source, wanted)
        except DataLost:
            if length == min(size, end * CHUNK_BYTES) - low * CHUNK_BYTES:
                raise
            # damage beside the range keeps nobody from it
            return [await source.load(first, length)]
        if size > CHUNK_BYTES:
            self._read_ahead(extent, size, low, end, source)
        return _cut([chunks[chunk] for chunk in range(low, end)], first - low * CHUNK_BYTES, length)

    async def _chunks(
        self, extent: int, size: int, asked: Iterable[int], source: Source, keep: bool
    ) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        missing: list[int] = []
        for chunk in asked:
            data = self._l1.get((extent, chunk))
            if data is None:
                missing.append(chunk)
            else:
                found[chunk] = data
        while missing:
            flights = {chunk: self._flights.get((extent, chunk)) for chunk in missing}
            mine = [chunk for chunk, flight in flights.items() if flight is None]
            if mine:
                found |= await self._lead(extent, size, mine, source, keep)
            for chunk, flight in flights.items():
                if flight is None:
                    continue
                await flight.wait()
                if flight.data is not None:
                    found[chunk] = flight.data
                elif flight.failed:
                    found |= await self._load(extent, size, [chunk], source, keep)
            # what is missing still was given up by who was cancelled
            missing = [chunk for chunk in missing if chunk not in found]
        return found

    async def _lead(self, extent: int, size: int, chunks: list[int], source: Source, keep: bool) -> dict[int, bytes]:
        """Load chunks that nobody is loading, for all who come meanwhile."""
        flights = {chunk: Flight() for chunk in chunks}
        for chunk, flight in flights.items():
            self._flights[extent, chunk] = flight
        try:
            found = await self._load(extent, size, chunks, source, keep)
            for chunk, data in found.items():
                flights[chunk].data = data
        except Exception:
            for flight in flights.values():
                flight.failed = True
            raise
        finally:
            for chunk, flight in flights.items():
                del self._flights[extent, chunk]
                flight.land()
        return found

    async def _load(self, extent: int, size: int, chunks: list[int], source: Source, keep: bool) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        if self._tier is not None:
            for chunk in chunks:
                data = self._tier.get_nowait(extent, chunk)
                if data is None and self._tier.holds(extent, chunk):
                    data = await self._tier.get(extent, chunk)
                if data is None:
                    self._below_misses_count += 1
                else:
                    found[chunk] = data
                    self._promote((extent, chunk), data)
        for run in _runs(chunk for chunk in chunks if chunk not in found):
            start = run.start * CHUNK_BYTES
            length = min(size, run.stop * CHUNK_BYTES) - start
            whole = await source.load(start, length)
            if len(whole) != length:
                raise InternalError(f"extent {extent}: {len(whole)} bytes came for {length}")
            for chunk in run:
                at = chunk * CHUNK_BYTES - start
                found[chunk] = data = bytes(whole[at : at + CHUNK_BYTES])
                self._admit((extent, chunk), data, wanted=keep)
        return found

    # -- between the tiers -----------------------------------------------------------------------------------------

    def _admit(self, key: Key, data: bytes, *, wanted: bool = False) -> None:
        if self._dropped and key in self._dropped:
            del self._dropped[key]
            wanted = True
        self._l1.put(key, data, wanted=wanted)

    def _promote(self, key: Key, data: bytes) -> None:
        self._promotions_count += 1
        self._l1.put(key, data, wanted=True)

    def _demote(self, key: Key, data: bytes, wanted: bool) -> None:
        if wanted:
            assert self._tier is not None
            self._tier.put(*key, data)
            return
        if len(self._dropped) >= DROPPED_NOTED_MAX:
            self._dropped.popitem(last=False)
        self._dropped[key] = None

    # -- ahead -----------------------------------------------------------------------------------------------------

    def _read_ahead(self, extent: int, size: int, low: int, end: int, source: Source) -> None:
        """Begin to load what comes behind the chunks from `low` to before `end`, if they go on where what was read
        before ended, and little of what comes is there.
        """
        before = self._nexts.pop(extent, None)
        if before is None and len(self._nexts) >= NEXTS_NOTED_MAX:
            self._nexts.popitem(last=False)
        self._nexts[extent] = end
        # a range may begin in the middle of the last chunk of the one before
        if before is None or not before - 1 <= low <= before < end:
            return
        if self._nursery is None or self._aheads_count >= AHEADS_MAX:
            return
        window = range(end, min(-(-size // CHUNK_BYTES), end + self._ahead_chunks))
        if 2 * len(self._lacking(extent, window)) > len(window):
            self._aheads_count += 1
            self._nexts[extent] = window.stop
            source.hold()
            self._nursery.start_soon(self._load_ahead, extent, size, window, source)

    def _lacking(self, extent: int, chunks: range) -> list[int]:
        """Those that are not in memory, nor on their way there."""
        keys = [(extent, chunk) for chunk in chunks]
        return [key[1] for key in keys if key not in self._l1 and key not in self._flights]

    async def _load_ahead(self, extent: int, size: int, window: range, source: Source) -> None:
        try:
            # some may have come since it was begun
            if chunks := self._lacking(extent, window):
                await self._lead(extent, size, chunks, source, False)
        except Error as error:
            # who comes to ask for it is told
            log.debug("reading ahead failed", extent=extent, reason=str(error))
        except Exception:
            # what nobody asked for must not stop the store
            log.exception("reading ahead failed", extent=extent)
        finally:
            source.release()
            self._aheads_count -= 1

    # -- operation -------------------------------------------------------------------------------------------------

    async def evict(self, tier: str | None = None) -> int:
        """Forget what a tier holds (`l1`, `l2`), or all do. Answers how many bytes went."""
        gone = 0
        if tier in (None, "l1"):
            gone += self._l1.clear()
            self._dropped.clear()
        if tier in (None, "l2") and self._tier is not None:
            gone += await self._tier.evict()
        return gone

    async def settle(self) -> None:
        """Before the end: hand what is in memory and was asked for again to the tier below, which outlives it. When it
        is cancelled, a part of it is there.
        """
        if self._tier is not None:
            handed_bytes = 0
            for key, data in self._l1.wanted():
                self._tier.put(*key, data)
                handed_bytes += len(data)
                if handed_bytes >= SETTLE_BYTES:
                    handed_bytes = 0
                    await self._tier.flush()
            await self._tier.flush()

    def stats(self) -> list[TierStats]:
        """Counts of each tier there is, as they are now; none when caches are off.

        A chunk that memory does not have is a hit or a miss of the tier below.
        """
        if not self.is_on:
            return [] if self._tier is None else [self._tier.stats()]
        l1 = self._l1
        first = TierStats(
            name="l1",
            capacity_bytes=l1.capacity_bytes,
            size_bytes=l1.size_bytes,
            entries_count=len(l1),
            hits_count=l1.hits_count,
            misses_count=l1.misses_count,
            evictions_count=l1.evictions_count,
            promotions_count=self._promotions_count,
        )
        if self._tier is None:
            return [first]
        # a tier hears of no miss that its index is enough for
        return [first, replace(self._tier.stats(), misses_count=self._below_misses_count)]


def _cut(chunks: Sequence[bytes], start: int, length: int) -> Sequence[Buffer]:
    """`length` bytes from `start` on of chunks that follow each other."""
    if len(chunks) == 1 and length == len(chunks[0]):
        return chunks
    pieces: list[Buffer] = []
    for chunk in chunks:
        piece = memoryview(chunk)[start : start + length]
        length -= len(piece)
        start = 0
        pieces.append(piece)
    return pieces


def _runs(chunks: Iterable[int]) -> Iterator[range]:
    """Chunks in order as ranges of those that follow each other."""
    run = range(0)
    for chunk in chunks:
        if run and chunk == run.stop:
            run = range(run.start, chunk + 1)
            continue
        if run:
            yield run
        run = range(chunk, chunk + 1)
    if run:
        yield run
