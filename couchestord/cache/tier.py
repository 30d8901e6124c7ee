"""What a cache below the first one is: a place that holds verified chunks and may lose them at any time."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Final, Protocol

CHUNK_BYTES: Final = 64 << 10
"""A chunk is so many bytes of an extent, from a multiple of this on; the last one of an extent may be shorter."""
EXTENT_BITS: Final = 44
"""Ids that do not fit in so many bits are not kept below memory."""


@dataclass(frozen=True, slots=True)
class TierStats:
    """Counts of one tier since it was opened; sizes in bytes."""

    name: str
    """`l1`, `l2`."""
    capacity_bytes: int
    """What it may hold; 0 while it is off."""
    size_bytes: int
    """What it holds."""
    entries_count: int
    hits_count: int
    misses_count: int
    evictions_count: int
    """Chunks that went to make room."""
    promotions_count: int = 0
    """Chunks that came here from the tier below."""
    dropped_count: int = 0
    """Chunks that were not taken because the tier was behind, full or off."""
    damaged_count: int = 0
    """Chunks that were not what was put; each was a miss."""
    off_because: str = ""
    """Why a tier that was configured is off; empty: it is on."""

    @property
    def hit_ratio(self) -> float:
        """Hits of all look-ups; 0 before the first."""
        asked = self.hits_count + self.misses_count
        return self.hits_count / asked if asked else 0.0

    def ended(self) -> "TierStats":
        """What stays of it when its process ends: what happened."""
        return replace(self, capacity_bytes=0, size_bytes=0, entries_count=0, off_because="")


def sum_tiers(tiers: Iterable[TierStats]) -> list[TierStats]:
    """Counts of tiers in several processes, those of one name together, in the order in which the names came."""
    found: dict[str, TierStats] = {}
    for tier in tiers:
        before = found.get(tier.name)
        found[tier.name] = tier if before is None else _sum(before, tier)
    return list(found.values())


def _sum(one: TierStats, other: TierStats) -> TierStats:
    names = [field.name for field in fields(one) if field.name.endswith(("_bytes", "_count"))]
    counts = {name: getattr(one, name) + getattr(other, name) for name in names}
    return replace(one, **counts, off_because=one.off_because or other.off_because)


class Tier(Protocol):
    """Chunks by (extent id, chunk index). Everything here is called in the trio loop that the tier was opened in.

    An extent id stands for the same bytes for ever, so nothing in a tier is ever out of date. A tier is free to forget
    whatever it holds, and never raises because of what its files or devices do: what it cannot read, or what is not
    byte for byte what was put, is not there.
    """

    def get_nowait(self, extent: int, chunk: int) -> bytes | None:
        """A verified copy, when that takes no wait for a device; else None. Counts a hit, but no miss."""
        ...

    def holds(self, extent: int, chunk: int) -> bool:
        """True when the index knows it. It may be found damaged or gone when it is read."""
        ...

    async def get(self, extent: int, chunk: int) -> bytes | None:
        """A verified copy, or None when it is not there (any more). Cold reads run in threads, never in the loop.
        Counts a hit or a miss.
        """
        ...

    def put(self, extent: int, chunk: int, data: bytes) -> None:
        """Queue a chunk to be kept: whole and verified, as its extent has it, `CHUNK_BYTES` at most. Never waits; a
        tier that is behind drops it. One that it holds already is left as it is.
        """
        ...

    async def flush(self) -> None:
        """What was put until now is written, or was dropped."""
        ...

    async def evict(self) -> int:
        """Forget everything, what is queued too. Answers how many bytes went."""
        ...

    def stats(self) -> TierStats:
        """Counts as they are now."""
        ...
